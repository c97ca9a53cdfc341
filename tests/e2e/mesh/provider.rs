//! A Workload API that gives whatever the test says, to whoever asks (SPIFFE Workload API §5).

use std::convert::Infallible;
use std::path::PathBuf;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::Response;
use http_body_util::StreamBody;
use hyper::body::{Body, Frame};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Ca, Dirs, Minted};

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
}

#[derive(Clone, PartialEq, prost::Message)]
struct Svids {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<Svid>,
}

/// The provider. Whoever asks is told what is so now, and of every change.
#[derive(Debug)]
pub(crate) struct Provider {
    pub(crate) socket: PathBuf,
    now: watch::Sender<Svids>,
    _serving: JoinSet<()>,
}

impl Provider {
    /// A provider with nothing for anybody.
    pub(crate) fn start(dirs: &Dirs) -> Self {
        let socket = dirs.file("provider.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let now = watch::Sender::new(Svids::default());
        let changes = now.subscribe();
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let changes = changes.clone();
                let service = service_fn(move |_| {
                    let response = answer(changes.clone());
                    async { Ok::<_, Infallible>(response) }
                });
                let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                let connection = http.serve_connection(TokioIo::new(io), service);
                // Whoever breaks off is gone.
                connections.spawn(async move { drop(connection.await) });
            }
        });
        Self {
            socket,
            now,
            _serving: serving,
        }
    }

    /// From now on `svid` is everybody's, and these roots vouch for others.
    pub(crate) fn give(&self, svid: &Minted, roots: &[&Ca]) {
        let concatenated = |ders: &[&[u8]]| ders.concat();
        let chain: Vec<&[u8]> = svid.chain.iter().map(|der| &der[..]).collect();
        let bundle: Vec<&[u8]> = roots.iter().map(|ca| &ca.certificate()[..]).collect();
        self.now.send_replace(Svids {
            svids: vec![Svid {
                spiffe_id: "spiffe://example.org/not/looked/at".into(),
                x509_svid: concatenated(&chain),
                x509_svid_key: svid.key().secret_der().to_vec(),
                bundle: concatenated(&bundle),
            }],
        });
    }

    /// From now on there is nothing for anybody.
    pub(crate) fn withdraw(&self) {
        self.now.send_replace(Svids::default());
    }
}

fn answer(
    mut changes: watch::Receiver<Svids>,
) -> Response<impl Body<Data = Bytes, Error = Infallible>> {
    changes.mark_changed();
    let frames = stream::unfold(changes, |mut changes| async {
        changes.changed().await.ok()?;
        let message = changes.borrow_and_update().clone();
        let mut frame = BytesMut::new();
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.encoded_len()).unwrap());
        message.encode(&mut frame).unwrap();
        Some((Ok(Frame::data(frame.freeze())), changes))
    });
    let response = Response::builder().header("content-type", "application/grpc");
    response.body(StreamBody::new(frames)).unwrap()
}
