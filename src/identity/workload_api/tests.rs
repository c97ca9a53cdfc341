use std::convert::Infallible;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

use super::*;
use crate::identity::testing::{Ca, Minted, id, leaf};

/// The messages of the Workload API (SPIFFE Workload API §5) as far as they are needed.
#[derive(Clone, PartialEq, prost::Message)]
struct Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "vec", tag = "2")]
    x509_svid: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    x509_svid_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    bundle: Vec<u8>,
    #[prost(string, tag = "5")]
    hint: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
    #[prost(map = "string, bytes", tag = "3")]
    federated_bundles: std::collections::HashMap<String, Vec<u8>>,
}

enum Answer {
    Message(SvidResponse),
    /// A gRPC status, which ends the stream.
    Status(&'static str),
}

/// A provider that says what the test tells it to, to whoever asks next.
struct Provider {
    answers: mpsc::UnboundedSender<Answer>,
    _serving: JoinSet<()>,
}

impl Provider {
    fn start(socket: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let (answers, script) = mpsc::unbounded_channel();
        let script = Arc::new(Mutex::new(script));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let script = script.clone();
                let service =
                    service_fn(move |request: http::Request<_>| respond(request, script.clone()));
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let connection = http.serve_connection(TokioIo::new(io), service);
                connections.spawn(async move {
                    let _ = connection.await;
                });
            }
        });
        Self {
            answers,
            _serving: serving,
        }
    }

    fn say(&self, svids: &[(&Minted, &Ca)], federated: &[&Ca]) {
        let svids = svids.iter().map(|(minted, ca)| svid(minted, ca, ""));
        self.list(svids.collect(), federated);
    }

    fn list(&self, svids: Vec<Svid>, federated: &[&Ca]) {
        let federated = federated
            .iter()
            .map(|ca| (format!("spiffe://{}", ca.domain), ca.certificate().to_vec()));
        self.answer(Answer::Message(SvidResponse {
            svids,
            federated_bundles: federated.collect(),
        }));
    }

    fn answer(&self, answer: Answer) {
        assert!(self.answers.send(answer).is_ok());
    }
}

fn svid(minted: &Minted, ca: &Ca, hint: &str) -> Svid {
    Svid {
        spiffe_id: "spiffe://example.org/not/looked/at".into(),
        x509_svid: minted.chain.iter().flat_map(|der| der.to_vec()).collect(),
        x509_svid_key: minted.key.clone(),
        bundle: ca.certificate().to_vec(),
        hint: hint.into(),
    }
}

async fn respond(
    request: http::Request<hyper::body::Incoming>,
    script: Arc<Mutex<mpsc::UnboundedReceiver<Answer>>>,
) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, Infallible> {
    assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
    assert_eq!(request.headers()["workload.spiffe.io"], "true");
    let frames = stream::unfold(Some(script), |script| async {
        let script = script?;
        let answer = script.lock().await.recv().await?;
        Some(match answer {
            Answer::Message(message) => {
                let mut frame = BytesMut::new();
                frame.put_u8(0);
                frame.put_u32(u32::try_from(message.encoded_len()).unwrap());
                message.encode(&mut frame).unwrap();
                (Ok(Frame::data(frame.freeze())), Some(script))
            }
            Answer::Status(code) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", code.parse().unwrap());
                (Ok(Frame::trailers(trailers)), None)
            }
        })
    });
    let response = Response::builder().header("content-type", "application/grpc");
    Ok(response.body(StreamBody::new(frames)).unwrap())
}

const UNAVAILABLE: Answer = Answer::Status("14");
const PERMISSION_DENIED: Answer = Answer::Status("7");

struct Scene {
    _directory: tempfile::TempDir,
    endpoint: String,
    provider: Provider,
    ca: Ca,
}

impl Scene {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("a name with spaces.sock");
        Self {
            endpoint: format!("unix://{}", socket.display()),
            provider: Provider::start(&socket),
            ca: Ca::new("example.org"),
            _directory: directory,
        }
    }

    fn source(&self, wanted: Option<&str>) -> WorkloadApi {
        self.source_for(wanted, None)
    }

    fn source_for(&self, wanted: Option<&str>, hint: Option<&str>) -> WorkloadApi {
        let wanted = Wanted {
            spiffe_id: wanted.map(id),
            hint: hint.map(Into::into),
        };
        WorkloadApi::new(self.endpoint.clone(), wanted)
    }

    fn mint(&self, path: &str) -> Minted {
        self.ca.mint(&leaf(&format!("spiffe://example.org{path}")))
    }
}

async fn replaced(source: &mut WorkloadApi) -> Material {
    match source.next().await.unwrap() {
        Change::Replace(material) => material,
        Change::Withdraw => panic!("withdrawn"),
    }
}

async fn withdrawn(source: &mut WorkloadApi) {
    let change = source.next().await.unwrap();
    assert!(matches!(change, Change::Withdraw), "{change:?}");
}

async fn failed(source: &mut WorkloadApi) -> Failure {
    source.next().await.unwrap_err().failure
}

#[tokio::test]
async fn every_update_replaces_the_identity_with_all_its_bundles() {
    let scene = Scene::new();
    let mut source = scene.source(None);
    let between = scene.ca.intermediate(|_| {});
    let first = between.mint(&leaf("spiffe://example.org/ledger"));
    let other = Ca::new("other.test");
    scene.provider.say(&[(&first, &scene.ca)], &[&other]);
    let material = replaced(&mut source).await;
    assert_eq!(material.id().as_str(), "spiffe://example.org/ledger");
    assert_eq!(material.certified().cert, first.chain);
    let bundles = [scene.ca.bundle(), other.bundle()].into_iter().collect();
    assert_eq!(**material.bundles(), bundles);

    let second = scene.mint("/ledger");
    scene.provider.say(&[(&second, &scene.ca)], &[]);
    let material = replaced(&mut source).await;
    assert_eq!(material.certified().cert, second.chain);
    assert_eq!(material.bundles().iter().count(), 1);
}

#[tokio::test]
async fn the_first_svid_is_taken_unless_another_is_wanted() {
    for (wanted, expected) in [
        (None, "/ledger"),
        (Some("spiffe://example.org/shop"), "/shop"),
    ] {
        let scene = Scene::new();
        let (ledger, shop) = (scene.mint("/ledger"), scene.mint("/shop"));
        let both = [(&ledger, &scene.ca), (&shop, &scene.ca)];
        scene.provider.say(&both, &[]);
        let material = replaced(&mut scene.source(wanted)).await;
        assert_eq!(material.id().path(), expected);
    }
}

#[tokio::test]
async fn of_several_svids_the_id_and_the_hint_choose() {
    const SHOP: &str = "spiffe://example.org/shop";
    for (wanted, hint, expected) in [
        (None, None, Ok(0)),
        (None, Some("public"), Ok(1)),
        (Some(SHOP), None, Ok(1)),
        (Some(SHOP), Some("internal"), Ok(2)),
        (None, Some("none"), Err("an SVID with the hint `none`")),
        (
            Some("spiffe://example.org/ledger"),
            Some("public"),
            Err("spiffe://example.org/ledger with the hint `public`"),
        ),
    ] {
        let scene = Scene::new();
        let minted = [
            scene.mint("/ledger"),
            scene.mint("/shop"),
            scene.mint("/shop"),
        ];
        let svids = minted.iter().zip(["", "public", "internal"]);
        let svids = svids.map(|(minted, hint)| svid(minted, &scene.ca, hint));
        scene.provider.list(svids.collect(), &[]);
        let mut source = scene.source_for(wanted, hint);
        match expected {
            Ok(index) => {
                let material = replaced(&mut source).await;
                assert_eq!(
                    material.certified().cert,
                    minted[index].chain,
                    "{wanted:?} {hint:?}"
                );
            }
            Err(asked) => assert_eq!(
                failed(&mut source).await.to_string(),
                format!(
                    "it does not list {asked}, but spiffe://example.org/ledger, \
                     spiffe://example.org/shop (hint `public`), \
                     spiffe://example.org/shop (hint `internal`): \
                     correct identity.spiffe_id or identity.hint, or the registration entries"
                )
            ),
        }
    }
}

#[tokio::test]
async fn a_provider_that_lists_us_no_more_withdraws_once() {
    let scene = Scene::new();
    let mut source = scene.source(Some("spiffe://example.org/ledger"));
    let (ledger, shop) = (scene.mint("/ledger"), scene.mint("/shop"));
    for round in 0..2 {
        scene.provider.say(&[(&ledger, &scene.ca)], &[]);
        replaced(&mut source).await;
        // First another one alone, then none at all.
        let left = [(&shop, &scene.ca)];
        let left = if round == 0 { &left[..] } else { &[] };
        scene.provider.say(left, &[]);
        withdrawn(&mut source).await;
        scene.provider.say(left, &[]);
        let failure = failed(&mut source).await;
        match round {
            0 => assert!(matches!(failure, Failure::NotListed { .. }), "{failure:?}"),
            _ => assert!(matches!(failure, Failure::NoSvid), "{failure:?}"),
        }
    }
}

#[tokio::test]
async fn a_provider_that_denies_us_withdraws_and_may_change_its_mind() {
    let scene = Scene::new();
    let mut source = scene.source(None);
    scene.provider.answer(PERMISSION_DENIED);
    assert!(matches!(failed(&mut source).await, Failure::NoIdentity(_)));

    let ledger = scene.mint("/ledger");
    scene.provider.say(&[(&ledger, &scene.ca)], &[]);
    replaced(&mut source).await;
    scene.provider.answer(PERMISSION_DENIED);
    withdrawn(&mut source).await;
    scene.provider.answer(PERMISSION_DENIED);
    assert!(matches!(failed(&mut source).await, Failure::NoIdentity(_)));
    scene.provider.say(&[(&ledger, &scene.ca)], &[]);
    replaced(&mut source).await;
}

#[tokio::test]
async fn a_stream_that_breaks_says_nothing_about_us() {
    let scene = Scene::new();
    let mut source = scene.source(None);
    let ledger = scene.mint("/ledger");
    for ending in [UNAVAILABLE, Answer::Status("0")] {
        scene.provider.say(&[(&ledger, &scene.ca)], &[]);
        replaced(&mut source).await;
        scene.provider.answer(ending);
        assert!(matches!(failed(&mut source).await, Failure::Ended(_)));
    }
    scene.provider.say(&[(&ledger, &scene.ca)], &[]);
    replaced(&mut source).await;
}

#[tokio::test]
async fn documents_that_do_not_fit_change_nothing_and_the_next_ones_count() {
    let scene = Scene::new();
    let mut source = scene.source(None);
    let (ledger, other) = (scene.mint("/ledger"), scene.mint("/ledger"));
    scene.provider.say(&[(&ledger, &scene.ca)], &[]);
    replaced(&mut source).await;

    let stolen = Minted {
        chain: ledger.chain.clone(),
        key: other.key.clone(),
    };
    scene.provider.say(&[(&stolen, &scene.ca)], &[]);
    let failure = failed(&mut source).await;
    assert!(matches!(failure, Failure::Material(MaterialError::Key(_))));
    let garbled = Minted {
        chain: vec![CertificateDer::from(vec![0x30, 0x00])],
        key: other.key.clone(),
    };
    scene.provider.say(&[(&garbled, &scene.ca)], &[]);
    assert!(matches!(failed(&mut source).await, Failure::Answer(_)));

    scene.provider.say(&[(&other, &scene.ca)], &[]);
    let material = replaced(&mut source).await;
    assert_eq!(material.certified().cert, other.chain);
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_named_and_found_when_it_comes() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let endpoint = format!("unix://{}", socket.display());
    let mut source = WorkloadApi::new(endpoint.clone(), Wanted::default());
    let error = source.next().await.unwrap_err();
    assert!(matches!(error.failure(), Failure::Unreachable(_)));
    assert!(error.to_string().contains(&endpoint), "{error}");

    let ca = Ca::new("example.org");
    let provider = Provider::start(&socket);
    let ledger = ca.mint(&leaf("spiffe://example.org/ledger"));
    provider.say(&[(&ledger, &ca)], &[]);
    replaced(&mut source).await;
    drop(provider);
    assert!(matches!(failed(&mut source).await, Failure::Ended(_)));
    assert!(matches!(failed(&mut source).await, Failure::Unreachable(_)));
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_never_answers_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let mut source = WorkloadApi::new(format!("unix://{}", socket.display()), Wanted::default());
    assert!(matches!(failed(&mut source).await, Failure::Silent));
}
