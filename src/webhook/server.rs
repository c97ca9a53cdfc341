//! From an accepted connection to an answered review: bounded in size, number and time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::MapErr;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::callers::{Caller, Callers};
use super::reviewer::Reviewer;
use crate::exchange::{BrokenOff, Coming, Passing};
use crate::lifecycle::Lifecycle;
use crate::limits::{Credit, Handshakes, Limit, Tally};
use crate::listen::{Source, Stream};
use crate::serve;
use crate::session::Running;
use crate::telemetry::chain;
use crate::tls::{Agreed, HandshakeError, WebAcceptor};

/// Where reviews are sent to.
pub(super) const PATH: &str = "/mutate";

/// The largest review, in bytes. The API server takes no larger object, and nothing but a new pod comes
/// with a review of its creation.
pub(super) const LARGEST: usize = 4 << 20;

/// How long a review may take to arrive once its head is there. The API server itself waits for 10 s, unless the
/// webhook's configuration says otherwise, and 30 s at most.
const ARRIVAL: Duration = Duration::from_secs(10);

/// Reviews that are held in memory at once; the others wait.
const HELD: usize = 32;

/// Connections at once; the others wait in the kernel's queue. An API server keeps one or a few.
pub(super) const CONNECTIONS: usize = 512;

/// Handshakes under way at once.
const HANDSHAKES: usize = 256;

/// How long a handshake may take.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long whoever is connected may give no sign of life.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// The limits of one connection.
const LIMITS: serve::Limits = serve::Limits {
    header_timeout: Duration::from_secs(60),
    stall_timeout: Duration::from_secs(30),
    header_bytes: 16 * 1024,
    streams: 250,
    idle_timeout: Duration::from_secs(600),
};

/// Answers reviews on accepted connections.
#[derive(Debug)]
pub(super) struct Server {
    acceptor: WebAcceptor,
    reviewer: Reviewer,
    lifecycle: Lifecycle,
    handshakes: Arc<Handshakes>,
    tally: Tally,
    credit: Credit,
    callers: Callers,
    held: Semaphore,
}

impl Server {
    /// Whoever passes `acceptor` is answered what `reviewer` says, until the drain of `lifecycle`.
    pub(super) fn new(
        acceptor: WebAcceptor,
        reviewer: Reviewer,
        lifecycle: Lifecycle,
        tally: Tally,
    ) -> Arc<Self> {
        Arc::new(Self {
            acceptor,
            reviewer,
            lifecycle,
            handshakes: tally.handshakes(HANDSHAKES),
            tally,
            credit: Credit::default(),
            callers: Callers::default(),
            held: Semaphore::new(HELD),
        })
    }

    /// Serves one accepted connection to its end.
    pub(super) async fn serve(
        self: Arc<Self>,
        stream: Stream,
        source: Source,
        slot: OwnedSemaphorePermit,
    ) {
        let caller = self.callers.at(source.ip());
        let Ok(_place) = caller.connections.try_acquire() else {
            self.tally.hit(Limit::Connections);
            tracing::debug!(%source, "as many connections of this address are open as may be");
            return;
        };
        let mut handshake = self.handshakes.begin();
        let accepted = self
            .acceptor
            .accept_unless(handshake.given_up(), stream)
            .await;
        drop(handshake);
        let (stream, agreed) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => return refused(&error, source),
        };
        let credit = self.credit.lend();
        let running = Running::default();
        let service = |request| self.clone().answer(caller.clone(), request);
        let ended = serve::http(
            stream,
            agreed == Agreed::Http2,
            LIMITS.bounds(&credit, &self.tally),
            &self.lifecycle,
            std::future::pending().boxed(),
            &running,
            service,
        );
        let outcome = ended.await;
        tracing::debug!(%source, outcome = outcome.label(), "a connection has ended");
        drop(slot);
    }

    async fn answer(
        self: Arc<Self>,
        caller: Arc<Caller>,
        request: Request<Coming>,
    ) -> Response<Reply> {
        let began = Instant::now();
        match self.read(&caller, request).await {
            Ok(text) => match self.reviewer.review(&text, began) {
                Ok(answer) => response(StatusCode::OK, "application/json", answer),
                Err(error) => {
                    tracing::warn!(%error, "what came is not answered");
                    response(StatusCode::BAD_REQUEST, TEXT, format!("{error}\n"))
                }
            },
            Err(refusal) => {
                let (status, why) = refusal.told();
                tracing::warn!(status = status.as_u16(), why, "what came is not answered");
                let mut response = response(status, TEXT, format!("{why}\n"));
                if status == StatusCode::METHOD_NOT_ALLOWED {
                    let allow = HeaderValue::from_static("POST");
                    response.headers_mut().insert(header::ALLOW, allow);
                }
                response
            }
        }
    }

    /// The whole of a review, in JSON.
    async fn read(&self, caller: &Caller, request: Request<Coming>) -> Result<Bytes, Refusal> {
        if request.uri().path() != PATH {
            return Err(Refusal::Path);
        }
        if request.method() != Method::POST {
            return Err(Refusal::Method);
        }
        let is_json = |value: &HeaderValue| {
            let text = value.to_str().unwrap_or_default();
            let essence = text.split(';').next().unwrap_or_default();
            essence.trim().eq_ignore_ascii_case("application/json")
        };
        if !request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(is_json)
        {
            return Err(Refusal::Type);
        }
        let body = request.into_body();
        if body.size_hint().lower() > LARGEST as u64 {
            return Err(Refusal::Size);
        }
        let reading = async {
            // Never closed. Its own first: whoever waits for that takes none from others.
            let _own = caller.reviews.acquire().await;
            let _place = self.held.acquire().await;
            Limited::new(body, LARGEST).collect().await
        };
        match tokio::time::timeout(ARRIVAL, reading).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::Size),
            Ok(Err(_)) => Err(Refusal::Broken),
            Err(_) => Err(Refusal::Time),
        }
    }
}

/// Those who do not trust us are the ones that have to be told of: no pod will be admitted.
fn refused(error: &HandshakeError, source: Source) {
    let text = chain(error);
    if let HandshakeError::RefusedByPeer(_) = error {
        tracing::warn!(
            %source,
            error = text,
            "whoever asked does not trust our certificate: does `caBundle` hold our roots, and does the certificate name our service?"
        );
    } else {
        tracing::debug!(%source, error = text, "handshake failed");
    }
}

/// Why what came is not even looked at.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Path,
    Method,
    Type,
    Size,
    Time,
    Broken,
}

impl Refusal {
    fn told(self) -> (StatusCode, &'static str) {
        match self {
            Self::Path => (
                StatusCode::NOT_FOUND,
                "nothing here; reviews are sent to /mutate",
            ),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "use POST"),
            Self::Type => (
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "send an AdmissionReview as application/json",
            ),
            Self::Size => (
                StatusCode::PAYLOAD_TOO_LARGE,
                "this is larger than any review of a pod",
            ),
            Self::Time => (
                StatusCode::REQUEST_TIMEOUT,
                "the review did not arrive in time",
            ),
            Self::Broken => (StatusCode::BAD_REQUEST, "the review broke off"),
        }
    }
}

type Reply = MapErr<Full<Bytes>, fn(Infallible) -> BrokenOff>;

/// It is whole from the beginning: nothing breaks it off.
impl Passing for Reply {}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Reply> {
    let never: fn(Infallible) -> BrokenOff = |never| match never {};
    let mut response = Response::new(Full::new(body.into()).map_err(never));
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}

const TEXT: &str = "text/plain; charset=utf-8";
