//! The application behind the mesh: says what it was asked, over HTTP/1.1 and HTTP/2 without TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// A request that reached the application.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    pub(crate) version: Version,
    /// In lower case, in the order in which they came.
    pub(crate) headers: Vec<(String, String)>,
}

impl Seen {
    /// Every value of the header `name`.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let of_that_name = self.headers.iter().filter(|(key, _)| key == name);
        of_that_name.map(|(_, value)| value.as_str()).collect()
    }
}

/// The application. Its answer to anything is what it saw, as JSON: `method`, `path`, `version`,
/// `headers` (a list of pairs), `body` (how many bytes it had). Besides:
///
/// | path | answers |
/// |---|---|
/// | `/slow?ms=N` | after N milliseconds |
/// | `/stream?n=N&ms=M` | N lines `tick`, one every M milliseconds |
/// | `/bytes/N` | N bytes, in pieces |
/// | `/status/N` | with the status N |
/// | `/busy?s=N` | 503, and to come again after N seconds |
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct State {
    connections: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
    trailers: Mutex<HeaderMap>,
}

impl App {
    pub(crate) async fn start() -> Self {
        Self::at("127.0.0.1:0").await
    }

    /// The same at an address of the test's choice.
    pub(crate) async fn at(address: &str) -> Self {
        Self::on(TcpListener::bind(address).await.unwrap())
    }

    /// The same behind a socket that listens already.
    pub(crate) fn on(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::<State>::default();
        let shared = state.clone();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                shared.connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self {
            address,
            state,
            task: serving.abort_handle(),
        }
    }

    /// How many connections it was ever given.
    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// The requests it was ever asked.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// The trailers of all requests together.
    pub(crate) fn trailers(&self) -> HeaderMap {
        self.state.trailers.lock().unwrap().clone()
    }

    /// The request it was asked last.
    pub(crate) fn last(&self) -> Seen {
        self.seen().pop().expect("the application was asked")
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    stream.set_nodelay(true).unwrap();
    let mut first = [0; 3];
    // HTTP/2 begins with `PRI`, which is no method of HTTP/1.1. The first bytes come in one piece.
    let read = stream.peek(&mut first).await.unwrap_or_default();
    let service = service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(answer(request, &state).await) }
    });
    let io = TokioIo::new(stream);
    // Whoever breaks off is not the application's concern.
    if &first[..read] == b"PRI" {
        let _ = http2::Builder::new(TokioExecutor::new())
            .serve_connection(io, service)
            .await;
    } else {
        let _ = http1::Builder::new().serve_connection(io, service).await;
    }
}

async fn answer(request: Request<Incoming>, state: &State) -> Response<BoxBody<Bytes, Infallible>> {
    let (parts, body) = request.into_parts();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts
            .uri
            .path_and_query()
            .map_or("", |path| path.as_str())
            .into(),
        version: parts.version,
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| {
                let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
                (name.to_string(), value)
            })
            .collect(),
    };
    state.seen.lock().unwrap().push(seen.clone());
    let length = count(body, &state.trailers).await;

    let number = |key: &str| {
        let query = parts.uri.query().unwrap_or_default();
        let pair = query
            .split('&')
            .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
        pair.map_or(0, |value| value.parse::<u64>().unwrap())
    };
    let mut response = Response::builder();
    let path = parts.uri.path();
    if path == "/slow" {
        tokio::time::sleep(Duration::from_millis(number("ms"))).await;
    } else if path == "/stream" {
        return response.body(ticks(number("n"), number("ms"))).unwrap();
    } else if let Some(size) = path.strip_prefix("/bytes/") {
        return response.body(zeros(size.parse().unwrap())).unwrap();
    } else if let Some(status) = path.strip_prefix("/status/") {
        response = response.status(status);
    } else if path == "/busy" {
        response = response.status(503).header("retry-after", number("s"));
    }
    let told = json!({
        "method": seen.method,
        "path": seen.path,
        "version": format!("{:?}", seen.version),
        "headers": seen.headers,
        "body": length,
    });
    response
        .header("content-type", "application/json")
        .body(Full::from(Value::to_string(&told)).boxed())
        .unwrap()
}

/// How many bytes `body` has, without keeping them. What breaks off counts as far as it came.
async fn count(mut body: Incoming, trailers: &Mutex<HeaderMap>) -> usize {
    let mut length = 0;
    while let Some(Ok(frame)) = body.frame().await {
        length += frame.data_ref().map_or(0, Bytes::len);
        if let Ok(found) = frame.into_trailers() {
            trailers.lock().unwrap().extend(found);
        }
    }
    length
}

fn ticks(number: u64, ms: u64) -> BoxBody<Bytes, Infallible> {
    let ticks = futures_util::stream::iter(0..number).then(move |index| async move {
        if index > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        Ok(Frame::data(Bytes::from_static(b"tick\n")))
    });
    BodyExt::boxed(StreamBody::new(Box::pin(ticks)))
}

fn zeros(size: usize) -> BoxBody<Bytes, Infallible> {
    const PIECE: usize = 64 * 1024;
    let pieces = (0..size.div_ceil(PIECE)).map(move |index| {
        let left = size - index * PIECE;
        Ok(Frame::data(Bytes::from(vec![0; left.min(PIECE)])))
    });
    BodyExt::boxed(StreamBody::new(futures_util::stream::iter(pieces)))
}
