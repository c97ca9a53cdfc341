//! Is the application well? Asked here by whoever has no certificate, as kubelet, where all connections to
//! the pod are led to the sidecar.
//!
//! The configuration lists what may be asked and how. A caller says which, and learns yes or no: nothing of
//! the request reaches the application, and nothing of its answer the caller.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::admin::{self, Answer};
use crate::document::Node;
use crate::telemetry::chain;

/// The section `probes`. Without it there is no such listener.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listen: SocketAddr,
    /// What may be asked.
    pub checks: Vec<Check>,
}

/// One question to the application.
#[derive(Clone, Debug)]
pub struct Check {
    /// The path that it is asked by.
    pub path: String,
    /// Where the application listens, on loopback.
    pub port: NonZeroU16,
    /// How it is asked.
    pub kind: Kind,
    /// How long it may take to answer.
    pub timeout: Duration,
}

/// How an application is asked whether it is well; in each case as kubelet does.
#[derive(Clone, Debug)]
pub enum Kind {
    /// It accepts connections.
    Tcp,
    /// It answers a GET with a status below 400.
    Http {
        /// Path and query.
        target: PathAndQuery,
        /// What else the request says.
        headers: HeaderMap,
    },
    /// It says SERVING (gRPC Health Checking Protocol).
    Grpc {
        /// Of which service; empty for all.
        service: String,
    },
}

impl Settings {
    /// Reads the section `probes`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let listen = section.required("listen", |node| node.address());
        let mut paths = Vec::new();
        let checks = section.required("checks", |node| {
            node.list(|item| {
                let check = Check::read(&item)?;
                if paths.contains(&check.path) {
                    return item.mistake(
                        format_args!("another check is asked by `{}` already", check.path),
                        Some("give each a path of its own"),
                    );
                }
                paths.push(check.path.clone());
                Some(check)
            })
        });
        Some(Self {
            listen: listen?,
            checks: checks?,
        })
    }
}

impl Check {
    fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let path = section.required("path", |node| match node.text()? {
            path if path.starts_with('/') => Some(path.to_owned()),
            _ => node.mistake("a path begins with `/`", None),
        });
        let port = section.required("port", |node| node.parse());
        let kind = section.required("kind", |node| {
            node.choice(&[
                ("http", Word::Http),
                ("tcp", Word::Tcp),
                ("grpc", Word::Grpc),
            ])
        });
        let timeout = section.or("timeout", DEFAULT_TIMEOUT, |node| {
            node.duration(Duration::from_millis(1)..=Duration::from_secs(600))
        });
        // Each kind has keys of its own; those of another one are not known.
        let kind = match kind {
            Some(Word::Tcp) => Some(Kind::Tcp),
            Some(Word::Http) => {
                let target = PathAndQuery::from_static("/");
                let target = section.or("target", target, |node| node.parse());
                let headers = section.or("headers", HeaderMap::new(), |node| headers(&node));
                target
                    .zip(headers)
                    .map(|(target, headers)| Kind::Http { target, headers })
            }
            Some(Word::Grpc) => {
                let service = section.or("grpc_service", String::new(), |node| {
                    Some(node.text()?.to_owned())
                });
                service.map(|service| Kind::Grpc { service })
            }
            None => None,
        };
        Some(Self {
            path: path?,
            port: port?,
            kind: kind?,
            timeout: timeout?,
        })
    }

    /// Asks the application.
    async fn ask(&self) -> Result<(), Unwell> {
        timeout(self.timeout, self.asked())
            .await
            .unwrap_or(Err(Unwell::Late))
    }

    async fn asked(&self) -> Result<(), Unwell> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port.get()));
        match &self.kind {
            Kind::Tcp => connect(address).await.map(drop),
            Kind::Http { target, headers } => {
                let mut request = Request::get(target.clone()).body(Empty::<Bytes>::new())?;
                let agent = HeaderValue::from_static("doorward-probe");
                request.headers_mut().insert(header::USER_AGENT, agent);
                let host =
                    HeaderValue::from_str(&address.to_string()).map_err(http::Error::from)?;
                request.headers_mut().insert(header::HOST, host);
                request.headers_mut().extend(headers.clone());
                match status(connect(address).await?, request).await? {
                    status if (200..400).contains(&status.as_u16()) => Ok(()),
                    status => Err(Unwell::Status(status)),
                }
            }
            Kind::Grpc { service } => serving(address, service).await,
        }
    }
}

#[derive(Clone, Copy)]
enum Word {
    Http,
    Tcp,
    Grpc,
}

fn headers(node: &Node<'_>) -> Option<HeaderMap> {
    let read = node.map(|value| {
        let text = value.text()?;
        match HeaderValue::from_str(text) {
            Ok(header) => Some(header),
            Err(_) => value.mistake("this cannot stand in a header", None),
        }
    })?;
    let mut headers = HeaderMap::new();
    for (name, value) in read {
        match HeaderName::from_bytes(name.as_bytes()) {
            Ok(name) => drop(headers.append(name, value)),
            Err(_) => return node.mistake(format_args!("`{name}` is no name of a header"), None),
        }
    }
    Some(headers)
}

async fn connect(address: SocketAddr) -> Result<TcpStream, Unwell> {
    TcpStream::connect(address).await.map_err(Unwell::Connect)
}

/// The status of the answer, of which no more is read.
async fn status(stream: TcpStream, request: Request<Empty<Bytes>>) -> Result<StatusCode, Unwell> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Unwell::Http)?;
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    tokio::select! {
        answer = &mut answer => answer.map_err(Unwell::Http).map(|answer| answer.status()),
        // The connection may be over with the answer on its way to us.
        _ = &mut connection => answer.await.map_err(Unwell::Http).map(|answer| answer.status()),
    }
}

async fn serving(address: SocketAddr, service: &str) -> Result<(), Unwell> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let channel = async { endpoint?.connect().await };
    let mut client = Grpc::new(channel.await.map_err(Unwell::Channel)?);
    client.ready().await.map_err(Unwell::Channel)?;
    let request = tonic::Request::new(HealthRequest {
        service: service.into(),
    });
    let method = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let codec = ProstCodec::<HealthRequest, HealthReply>::default();
    let reply = client.unary(request, method, codec).await;
    match reply.map_err(Box::new)?.into_inner().status {
        SERVING => Ok(()),
        status => Err(Unwell::NotServing(status)),
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct HealthReply {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// `HealthCheckResponse.ServingStatus`.
const SERVING: i32 = 1;

/// Why the answer is no.
#[derive(Debug, thiserror::Error)]
enum Unwell {
    #[error("it did not answer in time")]
    Late,
    #[error("it cannot be connected to")]
    Connect(#[source] std::io::Error),
    #[error("the request cannot be made")]
    Request(#[from] http::Error),
    #[error("it does not speak HTTP as it should")]
    Http(#[source] hyper::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it cannot be connected to by gRPC")]
    Channel(#[source] tonic::transport::Error),
    #[error("it answered by gRPC")]
    Grpc(#[from] Box<tonic::Status>),
    #[error("it says that it does not serve: status {0}")]
    NotServing(i32),
}

/// What is answered on the listener.
#[derive(Debug)]
pub struct Probes {
    questions: Vec<Question>,
}

/// A check, which is asked for whoever waits at once: anybody may come here, and as often as he likes.
#[derive(Debug)]
struct Question {
    check: Check,
    /// Held while the application is asked: whether it was well the last time.
    turn: Mutex<bool>,
    /// How many answers there were.
    answers: AtomicU64,
}

impl Question {
    fn new(check: Check) -> Self {
        Self {
            check,
            turn: Mutex::new(false),
            answers: AtomicU64::new(0),
        }
    }

    /// Whether the application is well. Who comes while it is asked hears the answer to that.
    async fn is_well(&self) -> bool {
        let before = self.answers.load(Ordering::Relaxed);
        let mut well = self.turn.lock().await;
        if self.answers.load(Ordering::Relaxed) == before {
            let answer = self.check.ask().await;
            if let Err(unwell) = &answer {
                let path = &self.check.path;
                tracing::debug!(path, error = %chain(unwell), "the application fails a probe");
            }
            *well = answer.is_ok();
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        *well
    }
}

impl Probes {
    /// Those of `settings`.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            questions: settings.checks.into_iter().map(Question::new).collect(),
        }
    }
}

impl Answer for Probes {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let mut questions = self.questions.iter();
        let Some(question) = questions.find(|question| question.check.path == path) else {
            return told(StatusCode::NOT_FOUND, "no such probe is configured\n");
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return admin::only_get();
        }
        match question.is_well().await {
            true => told(StatusCode::OK, "ok\n"),
            false => told(
                StatusCode::SERVICE_UNAVAILABLE,
                "the application fails this probe\n",
            ),
        }
    }
}

fn told(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    admin::response(status, admin::TEXT, text)
}

/// As Kubernetes'.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::server::conn::http2;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioExecutor;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> Result<Settings, String> {
        let read = Document::new("x.yaml", text).read(|node| Settings::read(&node));
        read.map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn every_mistake_has_its_message() {
        for (checks, message) in [
            (
                "{ path: a, port: 1, kind: tcp }",
                "1: checks[0].path: a path begins with `/`",
            ),
            ("{ path: /a, port: 0, kind: tcp }", "1: checks[0].port: `0`"),
            (
                "{ path: /a, port: 1, kind: udp }",
                "1: checks[0].kind: `udp` is not known here",
            ),
            (
                "{ path: /a, port: 1, kind: tcp, target: / }",
                "1: checks[0].target: unknown key",
            ),
            (
                "{ path: /a, port: 1, kind: http, headers: { 'a b': c } }",
                "`a b` is no name of a header",
            ),
            (
                "{ path: /a, port: 1, kind: grpc, timeout: 1h }",
                "1: checks[0].timeout: `1h` is out of range",
            ),
            (
                "{ path: /a, port: 1, kind: tcp }, { path: /a, port: 2, kind: tcp }",
                "1: checks[1]: another check is asked by `/a` already",
            ),
        ] {
            let told =
                read(&format!("{{ listen: '127.0.0.1:1', checks: [{checks}] }}")).unwrap_err();
            assert!(told.contains(message), "{checks}\n{told}");
        }
    }

    /// Answers each connection with what `answer` makes of the request's head.
    async fn http_app(answer: fn(&str) -> &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut head = vec![0; 4096];
                let length = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..length]).into_owned();
                // Whoever asked may be gone.
                let _ = stream.write_all(answer(&head).as_bytes()).await;
            }
        });
        port
    }

    /// Serves the health of `good`, and of no other service.
    async fn grpc_app() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = service_fn(|request: Request<Incoming>| async {
            use http_body_util::BodyExt;
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let asked = request.into_body().collect().await.unwrap().to_bytes();
            let status = if asked.ends_with(b"good") { 1 } else { 2 };
            let reply = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
            let trailers = HeaderMap::from_iter([(
                HeaderName::from_static("grpc-status"),
                HeaderValue::from_static("0"),
            )]);
            let frames = [Frame::data(reply), Frame::trailers(trailers)];
            let frames = frames.map(Ok::<_, Infallible>);
            let body = StreamBody::new(futures_util::stream::iter(frames));
            let response = Response::builder().header(header::CONTENT_TYPE, "application/grpc");
            response.body(body)
        });
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let connection = http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        port
    }

    #[tokio::test]
    async fn however_many_ask_at_once_the_application_is_asked_once() {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        let port = http_app(|_| {
            ASKED.fetch_add(1, Ordering::Relaxed);
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        })
        .await;
        let check = format!("{{ path: /a, port: {port}, kind: http }}");
        let settings = read(&format!("{{ listen: '127.0.0.1:1', checks: [{check}] }}"));
        let probes = Probes::new(settings.unwrap());
        for asked in 1..=2 {
            let all = (0..20).map(|_| probes.questions[0].is_well());
            assert_eq!(futures_util::future::join_all(all).await, [true; 20]);
            assert_eq!(ASKED.load(Ordering::Relaxed), asked);
        }
    }

    #[tokio::test]
    async fn the_application_is_asked_as_kubelet_would_ask() {
        let http = http_app(|head| {
            let well = head.starts_with("GET /healthz?deep=1 HTTP/1.1\r\n")
                && head.contains("\r\nx-probe: yes\r\n");
            match well {
                true => "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 9999\r\n\r\n",
                false => "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
            }
        })
        .await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = silent
            .local_addr()
            .map(|address| (silent, address.port()))
            .unwrap();
        let closed = http_app(|_| "").await;
        let grpc = grpc_app().await;
        for (kind, expected) in [
            (
                format!(
                    "port: {http}, kind: http, target: '/healthz?deep=1', headers: {{ X-Probe: 'yes' }}"
                ),
                Ok(()),
            ),
            (
                format!("port: {http}, kind: http, target: /"),
                Err("it answered 404 Not Found"),
            ),
            (
                format!("port: {closed}, kind: http"),
                Err("it does not speak HTTP as it should"),
            ),
            (
                format!("port: {}, kind: http, timeout: 50ms", silent.1),
                Err("it did not answer in time"),
            ),
            (format!("port: {}, kind: tcp", silent.1), Ok(())),
            (
                "port: 1, kind: tcp".into(),
                Err("it cannot be connected to"),
            ),
            (
                format!("port: {grpc}, kind: grpc, grpc_service: good"),
                Ok(()),
            ),
            (
                format!("port: {grpc}, kind: grpc"),
                Err("it says that it does not serve: status 2"),
            ),
            (
                "port: 1, kind: grpc".into(),
                Err("it cannot be connected to by gRPC"),
            ),
        ] {
            let settings = format!("{{ listen: '127.0.0.1:1', checks: [{{ path: /a, {kind} }}] }}");
            let answer = read(&settings).unwrap().checks[0].ask().await;
            let answer = answer.map_err(|unwell| unwell.to_string());
            assert_eq!(answer, expected.map_err(str::to_owned), "{kind}");
        }
    }
}
