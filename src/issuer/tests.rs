//! The whole issuer, asked by the crate `spiffe` and by clients that speak HTTP/2 in their own way.

use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use loona_hpack::{Decoder, Encoder};
use spiffe::workload_api::x509_context::X509Context;
use spiffe::{JwtSvid, WorkloadApiClient, WorkloadApiError};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::identity::bundle_document::BundleDocument;
use crate::identity::workload_api::Failure;
use crate::identity::{Bundle, Bundles, Material, SpiffeId, jwt, svid};

/// An issuer that serves in this process, in a directory of its own.
struct Running {
    dir: TempDir,
    handle: Handle,
    stop: DropGuard,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    async fn start(ca: &str, entries: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), ca, entries).await
    }

    async fn start_in(dir: TempDir, ca: &str, entries: &str) -> Self {
        let issuer = Issuer::bind(settings(dir.path(), ca, entries))
            .await
            .unwrap();
        let handle = issuer.handle();
        let token = CancellationToken::new();
        let serving = tokio::spawn(issuer.serve(token.clone().cancelled_owned()));
        Self {
            dir,
            handle,
            stop: token.drop_guard(),
            serving,
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("issuer.sock")
    }

    async fn client(&self) -> WorkloadApiClient {
        let endpoint = format!("unix://{}", self.socket().display());
        WorkloadApiClient::connect_to(endpoint).await.unwrap()
    }

    fn replace(&self, entries: &str) {
        let settings = settings(self.dir.path(), "{}", entries);
        self.handle.replace(settings.registry);
    }

    async fn stop(self) -> TempDir {
        drop(self.stop);
        self.serving.await.unwrap().unwrap();
        self.dir
    }
}

fn settings(dir: &Path, ca: &str, entries: &str) -> Settings {
    let uid = nix::unistd::geteuid();
    let entries = entries.replace("UID", &uid.to_string());
    let text = format!(
        "trust_domain: example.org\nsocket: {}/issuer.sock\nca: {ca}\nentries: [{entries}]",
        dir.display()
    );
    Document::new("issuer.yaml", text)
        .read(Settings::read)
        .unwrap()
}

async fn next<T>(stream: &mut BoxStream<'_, T>) -> T {
    let patience = Duration::from_secs(20);
    timeout(patience, stream.next()).await.unwrap().unwrap()
}

fn is_denied<T>(result: Result<T, WorkloadApiError>) -> bool {
    match result {
        Ok(_) => false,
        Err(WorkloadApiError::PermissionDenied(_) | WorkloadApiError::NoIdentityIssued) => true,
        Err(other) => panic!("{other:?}"),
    }
}

/// Holds what a client got to the rules by which we accept our own identity.
fn material(context: &X509Context) -> Material {
    let svid = context.default_svid().unwrap();
    let chain = svid.cert_chain().iter();
    let chain = chain.map(|one| one.as_bytes().to_vec().into()).collect();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec());
    let bundles = context.bundle_set().iter().map(|(domain, bundle)| {
        let roots = bundle.authorities().iter();
        let roots = roots.map(|one| one.as_bytes().to_vec().into());
        let domain = TrustDomain::parse(domain.as_str()).unwrap();
        (domain, Bundle::new(roots).unwrap())
    });
    let bundles: Bundles = bundles.collect();
    Material::new(chain, key.into(), Arc::new(bundles)).unwrap()
}

const A: &str = "{ id: /a, selectors: { uid: UID } }";

#[tokio::test]
async fn a_caller_gets_all_its_identities_with_hints_and_the_bundle() {
    let own = std::env::current_exe().unwrap();
    let entries = format!(
        "{{ id: /a, selectors: {{ uid: UID, path: {} }}, lifetime: 10m, hint: internal }},\
         {{ id: /b, selectors: {{ uid: UID }} }},\
         {{ id: /c, selectors: {{ uid: UID, path: /bin/false }} }}",
        own.display()
    );
    let issuer = Running::start("{}", &entries).await;
    let context = issuer.client().await.fetch_x509_context().await.unwrap();
    let ids: Vec<_> = context
        .svids()
        .iter()
        .map(|svid| (svid.spiffe_id().to_string(), svid.hint()))
        .collect();
    assert_eq!(
        ids,
        [
            ("spiffe://example.org/a".to_owned(), Some("internal")),
            ("spiffe://example.org/b".to_owned(), None),
        ]
    );
    let material = material(&context);
    let minutes = material.leaf().lifetime().as_secs() / 60;
    assert_eq!(minutes, 10);
    let bundles = issuer.client().await.fetch_x509_bundles().await.unwrap();
    assert_eq!(bundles.len(), 1);
}

#[tokio::test]
async fn the_executables_digest_selects_too() {
    let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &own);
    let digest: String = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let entry = |digest: &str| format!("{{ id: /a, selectors: {{ sha256: {digest} }} }}");
    let issuer = Running::start("{}", A).await;
    // Connected before anybody asked for digests.
    let client = issuer.client().await;
    client.fetch_x509_svid().await.unwrap();
    issuer.replace(&entry(&digest));
    client.fetch_x509_svid().await.unwrap();
    issuer.replace(&entry(&"00".repeat(32)));
    assert!(is_denied(client.fetch_x509_svid().await));
}

#[tokio::test]
async fn an_svid_is_rotated_on_the_open_stream_before_it_ends() {
    let entry = "{ id: /a, selectors: { uid: UID }, lifetime: 2s }";
    let issuer = Running::start("{}", entry).await;
    let client = issuer.client().await;
    let mut stream = client.stream_x509_contexts().await.unwrap().boxed();
    let mut last = None;
    for _ in 0..3 {
        let context = next(&mut stream).await.unwrap();
        let now = SystemTime::now();
        let material = material(&context);
        assert!(material.leaf().not_before < now && now < material.leaf().not_after);
        let key = context
            .default_svid()
            .unwrap()
            .private_key()
            .as_bytes()
            .to_vec();
        let this = (material.leaf().serial.clone(), key);
        if let Some((last, end)) = last {
            assert_ne!(this, last);
            assert!(now < end, "it comes before the last one has ended");
        }
        last = Some((this, material.leaf().not_after));
    }
}

#[tokio::test]
async fn a_removed_entry_is_withdrawn_on_the_open_stream() {
    let b = "{ id: /b, selectors: { uid: UID } }";
    let issuer = Running::start("{}", &format!("{A}, {b}")).await;
    let client = issuer.client().await;
    let mut stream = client.stream_x509_svids().await.unwrap().boxed();
    assert!(next(&mut stream).await.is_ok());
    let mut contexts = client.stream_x509_contexts().await.unwrap().boxed();
    assert_eq!(next(&mut contexts).await.unwrap().svids().len(), 2);

    issuer.replace(b);
    let left = next(&mut contexts).await.unwrap();
    let ids: Vec<_> = left.svids().iter().map(|s| s.spiffe_id().path()).collect();
    assert_eq!(ids, ["/b"]);

    issuer.replace("");
    assert!(is_denied(next(&mut contexts).await));
    assert!(contexts.next().await.is_none());
    assert!(is_denied(client.fetch_x509_svid().await));
    assert!(is_denied(client.fetch_x509_bundles().await));
    assert!(is_denied(client.fetch_jwt_bundles().await));
    assert!(is_denied(client.fetch_jwt_svid(["x"], None).await));

    issuer.replace(A);
    client.fetch_x509_svid().await.unwrap();
}

#[tokio::test]
async fn a_reload_that_changes_nothing_for_a_caller_sends_it_nothing() {
    let issuer = Running::start("{}", A).await;
    let client = issuer.client().await;
    let mut stream = client.stream_x509_contexts().await.unwrap().boxed();
    let first = next(&mut stream).await.unwrap();
    issuer.replace(&format!("{A}, {{ id: /z, selectors: {{ uid: 4242424 }} }}"));
    issuer.replace("{ id: /new, selectors: { uid: UID } }");
    let second = next(&mut stream).await.unwrap();
    assert_eq!(first.svids()[0].spiffe_id().path(), "/a");
    assert_eq!(second.svids()[0].spiffe_id().path(), "/new");
}

#[tokio::test]
async fn a_jwt_svid_is_fetched_for_one_audience_and_validated_there() {
    let issuer = Running::start("{}", A).await;
    let endpoint = format!("unix://{}", issuer.socket().display());
    let own: SpiffeId = "spiffe://example.org/a".parse().unwrap();
    let bundles = jwt::fetch_bundles(&endpoint).await.unwrap();
    for wanted in [None, Some(&own)] {
        let svid = jwt::fetch(&endpoint, "x", wanted).await.unwrap();
        assert_eq!(*svid.id(), own);
        let validated = jwt::validate(svid.token(), "x", &bundles).unwrap();
        assert_eq!(*validated.id(), own);
        assert_eq!(validated.expires(), svid.expires());
        assert!(jwt::validate(svid.token(), "y", &bundles).is_err());
    }
    let other = "spiffe://example.org/other".parse().unwrap();
    let refused = jwt::fetch(&endpoint, "x", Some(&other)).await;
    assert!(matches!(
        refused,
        Err(jwt::FetchError::Provider(Failure::NoIdentity(_)))
    ));
    // The keys of the bundle document are the same ones.
    let authority = issuer.handle.0.authority.get().unwrap();
    let document = authority.value.document(1).unwrap();
    let document = BundleDocument::parse(document.render().as_bytes()).unwrap();
    let bundles = jwt::JwtBundles::of([(own.trust_domain(), &document)]).unwrap();
    let svid = jwt::fetch(&endpoint, "x", None).await.unwrap();
    jwt::validate(svid.token(), "x", &bundles).unwrap();
}

#[tokio::test]
async fn a_jwt_svid_verifies_with_the_bundle_and_at_the_endpoint() {
    let issuer = Running::start("{}", A).await;
    let client = issuer.client().await;
    let svid = client.fetch_jwt_svid(["x", "y"], None).await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), "spiffe://example.org/a");
    let bundles = client.fetch_jwt_bundles().await.unwrap();
    JwtSvid::parse_and_validate(svid.token(), &bundles, &["y"]).unwrap();
    client.validate_jwt_token("x", svid.token()).await.unwrap();
    assert!(client.validate_jwt_token("z", svid.token()).await.is_err());
    let no_audience: [&str; 0] = [];
    assert!(client.fetch_jwt_svid(no_audience, None).await.is_err());
    let other = spiffe::SpiffeId::new("spiffe://example.org/other").unwrap();
    assert!(is_denied(client.fetch_jwt_svid(["x"], Some(&other)).await));
}

#[tokio::test]
async fn a_successor_of_the_ca_reaches_open_streams_before_it_signs() {
    let entry = "{ id: /a, selectors: { uid: UID }, lifetime: 10s }";
    let issuer = Running::start("{ lifetime: 10s }", entry).await;
    let client = issuer.client().await;
    let mut stream = client.stream_x509_contexts().await.unwrap().boxed();
    let roots = |context: &X509Context| -> Vec<Vec<u8>> {
        let domain = spiffe::TrustDomain::new("example.org").unwrap();
        let bundle = context.bundle_set().get(&domain).unwrap();
        bundle
            .authorities()
            .iter()
            .map(|one| one.as_bytes().to_vec())
            .collect()
    };
    let first = next(&mut stream).await.unwrap();
    let old = roots(&first);
    assert_eq!(old.len(), 1);
    let both = loop {
        let context = next(&mut stream).await.unwrap();
        if roots(&context).len() == 2 {
            break context;
        }
    };
    let issuer_of = |context: &X509Context| material(context).leaf().issuer.clone();
    assert_eq!(
        issuer_of(&both),
        issuer_of(&first),
        "the old one still signs"
    );
    let last = loop {
        let context = next(&mut stream).await.unwrap();
        if issuer_of(&context) != issuer_of(&first) {
            break context;
        }
    };
    assert!(roots(&both).starts_with(&old));
    assert!(material(&last).leaf().not_after > svid::validity(&old[0]).unwrap().1);
}

#[tokio::test]
async fn trust_continues_after_a_restart_if_the_ca_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let ca = format!("{{ file: {}/ca.pem }}", dir.path().display());
    let issuer = Running::start_in(dir, &ca, A).await;
    let before = issuer.client().await.fetch_x509_bundles().await.unwrap();
    let dir = issuer.stop().await;
    let issuer = Running::start_in(dir, &ca, A).await;
    let after = issuer.client().await.fetch_x509_bundles().await.unwrap();
    assert_eq!(before, after);
    let dir = issuer.stop().await;
    let issuer = Running::start_in(dir, "{}", A).await;
    let other = issuer.client().await.fetch_x509_bundles().await.unwrap();
    assert_ne!(before, other, "a CA in memory is a new one");
}

#[tokio::test]
async fn the_stop_ends_streams_as_unavailable_and_removes_the_socket() {
    let issuer = Running::start("{}", A).await;
    let client = issuer.client().await;
    let mut stream = client.stream_x509_contexts().await.unwrap().boxed();
    next(&mut stream).await.unwrap();
    let dir = issuer.stop().await;
    assert!(!dir.path().join("issuer.sock").exists());
    let error = next(&mut stream).await.unwrap_err();
    // Not a denial: what the client holds stays good.
    assert!(format!("{error:?}").contains("Unavailable"), "{error:?}");
}

/// Sends one request as gRPC's C core does, and returns the fields of the first answer.
async fn raw(socket: &Path, fields: &[(&[u8], &[u8])]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    let block = Encoder::new().encode(fields.iter().copied());
    bytes.extend([0, 0, u8::try_from(block.len()).unwrap(), 1, 4, 0, 0, 0, 1]);
    bytes.extend(block);
    bytes.extend(b"\0\0\x05\0\x01\0\0\0\x01\0\0\0\0\0");
    stream.write_all(&bytes).await.unwrap();
    loop {
        let mut head = [0; 9];
        timeout(PATIENCE, stream.read_exact(&mut head))
            .await
            .unwrap()
            .unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        match head[3] {
            1 => return Decoder::new().decode(&payload).unwrap(),
            4 | 8 => {}
            other => panic!("frame {other}: {payload:?}"),
        }
    }
}

#[tokio::test]
async fn a_client_whose_authority_is_the_sockets_path_is_served() {
    let issuer = Running::start("{}", A).await;
    let mut fields: Vec<(&[u8], &[u8])> = vec![
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
        (b":authority", b"%2Ftmp%2Fissuer.sock"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"workload.spiffe.io", b"true"),
    ];
    let status = |answer: &[(Vec<u8>, Vec<u8>)]| {
        let found = answer.iter().find(|(name, _)| name == b"grpc-status");
        found.map(|(_, value)| value.clone())
    };
    let answer = raw(&issuer.socket(), &fields).await;
    assert_eq!(answer[0], (b":status".to_vec(), b"200".to_vec()));
    assert_eq!(status(&answer), None, "an open stream has no status yet");

    // Without the header that keeps forged requests out: INVALID_ARGUMENT.
    fields.pop();
    let answer = raw(&issuer.socket(), &fields).await;
    assert_eq!(status(&answer).unwrap(), b"3");
}

#[test]
fn one_user_cannot_take_all_seats() {
    let seats = Arc::new(Seats::default());
    let mut taken: Vec<_> = (0..CONNECTIONS_OF_ONE_USER)
        .map(|_| seats.take(7).unwrap())
        .collect();
    assert!(seats.take(7).is_none());
    taken.extend((0..CONNECTIONS - CONNECTIONS_OF_ONE_USER).map(|_| seats.take(8).unwrap()));
    assert!(seats.take(9).is_none());
    taken.remove(0);
    drop(seats.take(9).unwrap());
    taken.clear();
    assert!(seats.taken.lock().unwrap().is_empty());
}

#[test]
fn mistakes_in_the_file_are_told_together() {
    let text = "trust_domain: Example.org\nsocket: issuer.sock\nca: { lifetime: 1s, fiel: x }\n\
                entries:\n- id: /a\n- { id: 'spiffe://a.b/c', selectors: { uid: x } }\n";
    let mistakes = Document::new("i.yaml", text)
        .read(Settings::read)
        .unwrap_err();
    let told: Vec<_> = mistakes.diagnostics().map(ToString::to_string).collect();
    let expected = [
        "i.yaml:1: trust_domain: ",
        "i.yaml:2: socket: `issuer.sock` is not an absolute path",
        "i.yaml:3: ca.lifetime: `1s` is out of range",
        "i.yaml:3: ca.fiel: unknown key",
        "i.yaml:5: entries[0]: the key `selectors` is missing",
        "i.yaml:6: entries[1].selectors.uid: `x` is not a whole number",
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told}");
    }
}
