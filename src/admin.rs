//! Is it well, and what does it count? Two small HTTP servers for whoever runs this sidecar.
//!
//! The metrics listener is for Prometheus and for Kubernetes' probes, which come from outside the pod;
//! the admin listener is for people beside the process. Both run on the control thread.

mod health;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

pub use self::health::{Finding, Health, Liveness, Pulse, Readiness};
use crate::audit::chain::Chain;
use crate::document::Node;
use crate::identity::shown::Shown;
use crate::telemetry::Registries;

/// The section `admin`. Without it there is no admin listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen. On loopback, unless the operator wrote `unsafe_expose: true`.
    pub listen: SocketAddr,
}

impl Settings {
    /// Reads the section `admin`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let exposed = section.or("unsafe_expose", false, |node| node.flag());
        let listen = section.required("listen", |node| {
            let address = node.address()?;
            // After a mistake in the flag itself, that one is enough.
            if exposed == Some(false) && !address.ip().to_canonical().is_loopback() {
                return node.mistake(
                    format_args!("`{address}` is open to other machines"),
                    Some("use `127.0.0.1`; if everybody may see this, write `unsafe_expose: true`"),
                );
            }
            Some(address)
        });
        exposed?;
        Some(Self { listen: listen? })
    }
}

/// The section `metrics`. Without it there is no metrics listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricsSettings {
    /// Where to listen.
    pub listen: SocketAddr,
}

impl MetricsSettings {
    /// Reads the section `metrics`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let listen = section.required("listen", |node| node.address());
        Some(Self { listen: listen? })
    }
}

/// What can be asked here.
#[derive(Clone)]
pub struct Routes {
    health: Arc<Health>,
    registries: Registries,
    identity: Option<Identity>,
    audit: Option<Audited>,
}

type Identity = Arc<dyn Fn(SystemTime) -> Shown + Send + Sync>;
type Audited = Arc<dyn Fn() -> Option<Chain> + Send + Sync>;

impl Routes {
    /// `/live`, `/ready` and `/metrics`.
    #[must_use]
    pub fn new(health: Arc<Health>, registries: Registries) -> Self {
        Self {
            health,
            registries,
            identity: None,
            audit: None,
        }
    }

    /// Also `/identity`, which shows what `identity` says. For the admin listener alone.
    #[must_use]
    pub fn with_identity(
        self,
        identity: impl Fn(SystemTime) -> Shown + Send + Sync + 'static,
    ) -> Self {
        Self {
            identity: Some(Arc::new(identity)),
            ..self
        }
    }

    /// Also `/audit`, which shows where the audit's chain stands. For the admin listener alone.
    #[must_use]
    pub fn with_audit(self, chain: impl Fn() -> Option<Chain> + Send + Sync + 'static) -> Self {
        Self {
            audit: Some(Arc::new(chain)),
            ..self
        }
    }

    fn routed<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        let route: fn(&Self) -> Response<Full<Bytes>> = match request.uri().path() {
            "/live" => Self::live,
            "/ready" => Self::ready,
            "/metrics" => Self::metrics,
            "/identity" if self.identity.is_some() => Self::identity,
            "/audit" if self.audit.is_some() => Self::audit,
            _ => {
                let identity = self.identity.as_ref().map_or("", |_| ", /identity");
                let audit = self.audit.as_ref().map_or("", |_| ", /audit");
                let hint = format!("nothing here; try {PATHS}{identity}{audit}\n");
                return response(StatusCode::NOT_FOUND, TEXT, hint);
            }
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return only_get();
        }
        route(self)
    }

    fn live(&self) -> Response<Full<Bytes>> {
        let liveness = self.health.liveness(Instant::now());
        json(liveness.live, &liveness)
    }

    fn ready(&self) -> Response<Full<Bytes>> {
        let readiness = self.health.readiness(SystemTime::now());
        json(readiness.ready, &readiness)
    }

    fn identity(&self) -> Response<Full<Bytes>> {
        json(
            true,
            &self
                .identity
                .as_ref()
                .map(|identity| identity(SystemTime::now())),
        )
    }

    /// Nothing is written yet: 503.
    fn audit(&self) -> Response<Full<Bytes>> {
        let chain = self.audit.as_ref().and_then(|chain| chain());
        json(chain.is_some(), &chain)
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        response(
            StatusCode::OK,
            prometheus::TEXT_FORMAT,
            self.registries.render(),
        )
    }
}

impl Answer for Routes {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.routed(&request)
    }
}

/// Whoever answers what is asked on one listener.
pub trait Answer: Send + Sync + 'static {
    /// The answer to `request`.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Full<Bytes>>> + Send;
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes")
            .field("health", &self.health)
            .field("identity", &self.identity.is_some())
            .field("audit", &self.audit.is_some())
            .finish_non_exhaustive()
    }
}

fn json(well: bool, value: &impl Serialize) -> Response<Full<Bytes>> {
    let status = if well {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    match serde_json::to_string(value) {
        Ok(text) => response(status, "application/json", text + "\n"),
        Err(error) => response(
            StatusCode::INTERNAL_SERVER_ERROR,
            TEXT,
            format!("{error}\n"),
        ),
    }
}

/// The answer to a method that changes something.
pub(crate) fn only_get() -> Response<Full<Bytes>> {
    let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "use GET\n");
    let allow = HeaderValue::from_static("GET, HEAD");
    refusal.headers_mut().insert(header::ALLOW, allow);
    refusal
}

pub(crate) fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    let content_type = HeaderValue::from_static(content_type);
    headers.insert(header::CONTENT_TYPE, content_type);
    let cache = HeaderValue::from_static("no-store");
    headers.insert(header::CACHE_CONTROL, cache);
    response
}

/// Binds a listener for [`serve`], on the runtime that calls this.
///
/// # Errors
/// [`BindError`] when the address is taken or may not be used.
pub fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let bind = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    bind().map_err(|error| BindError(address, error))
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {0}")]
pub struct BindError(SocketAddr, #[source] io::Error);

/// Answers on `listener` until `shutdown`, then closes what is open.
///
/// At most [`CONNECTIONS`] are open at once, and the newest always gets in: whoever holds connections
/// open without a question cannot keep a probe out.
pub async fn serve(
    listener: TcpListener,
    answers: Arc<impl Answer>,
    shutdown: impl Future<Output = ()> + Send,
) {
    let mut shutdown = pin!(shutdown);
    let mut open = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => return,
            Some(_) = open.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics or admin");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        by_age.retain(|connection| !connection.is_finished());
        if by_age.len() >= CONNECTIONS
            && let Some(oldest) = by_age.pop_front()
        {
            oldest.abort();
        }
        by_age.push_back(open.spawn(attend(stream, answers.clone())));
    }
}

async fn attend(stream: TcpStream, answers: Arc<impl Answer>) {
    let service = service_fn(|request| {
        let answers = answers.clone();
        async move { Ok::<_, Infallible>(answers.answer(request).await) }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .max_headers(64)
            .max_buf_size(16 * 1024)
            .serve_connection(TokioIo::new(stream), service)
    );
    // Whoever reads slowly, or never stops asking, is sent away in the end.
    if timeout(CONNECTION_TIME, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(HEADER_TIME, connection).await;
    }
}

pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
const PATHS: &str = "/live, /ready, /metrics";

/// How many connections one listener holds.
pub const CONNECTIONS: usize = 64;

/// How long a client may take for a request's head, and how long an idle connection is kept.
const HEADER_TIME: Duration = Duration::from_secs(5);

/// How long one connection may last in all.
const CONNECTION_TIME: Duration = Duration::from_secs(60);

/// How long to wait when the system has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
