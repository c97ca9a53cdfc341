//! What passed in one HTTP exchange, and how did it end? Bodies that count while they stream.
//!
//! An [`Exchange`] is opened when a request arrives and ends exactly once: when the response has been
//! passed on to its last byte, or when it no longer can be. Ending writes the audit record and the metrics.

mod coming;
mod going;
pub mod plaintext;

use std::convert::Infallible;
use std::error::Error as _;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::header::{self, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

pub use self::coming::Coming;
pub(crate) use self::going::Going;
pub use self::going::Passing;
use crate::audit::{self, Audit, Direction, Record};
use crate::headers::{self, PROXY_STATUS};
use crate::limits::{Admitted, Limit, RETRY_AFTER, Requests, Stall};
use crate::outcome::Outcome;
use crate::relay::{self, Passed};
use crate::secrets::{Action, Carried};
use crate::session::Place;
use crate::upstream::{Asking, Dial, Lease};

/// One HTTP request and its response.
pub struct Exchange {
    meter: Arc<Meter>,
    received: AtomicU64,
    sent: AtomicU64,
    /// Taken when the exchange ends.
    open: Mutex<Option<Open>>,
    /// Why nothing of it may pass any more.
    revoked: OnceLock<Outcome>,
    /// Whoever waits for the request's body, and for the response or its body.
    waiting: [AtomicWaker; 2],
    /// Among those under way on its connection. Kept to the end of both bodies.
    place: Mutex<Option<Place>>,
    /// Among those under way at its listener. Kept as long.
    admitted: OnceLock<Admitted>,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug)]
enum Flow {
    Request,
    Response,
}

struct Open {
    record: Record,
    status: Option<StatusCode>,
}

impl Exchange {
    /// Opens the books on a request that has just arrived.
    fn open(meter: Arc<Meter>, mut record: Record) -> Arc<Self> {
        // Whoever drops it without a word was cut off by the caller's going away.
        record.if_dropped(Outcome::ClientGone);
        Arc::new(Self {
            meter,
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            open: Mutex::new(Some(Open {
                record,
                status: None,
            })),
            revoked: OnceLock::new(),
            waiting: Default::default(),
            place: Mutex::default(),
            admitted: OnceLock::new(),
        })
    }

    /// Opens the audit record of `request`, which has just arrived on `connection`, and the books on it. Its body
    /// counts from now on.
    ///
    /// # Errors
    /// [`Outcome::AuditUnavailable`] if no record can be opened: refuse with [`unrecorded`].
    pub fn record(
        request: Request<Coming>,
        audit: &Audit,
        connection: &Arc<audit::Connection>,
        meter: &Arc<Meter>,
    ) -> Result<(Arc<Self>, Asking), Outcome> {
        let opened = audit.open(audit::Kind::Request, connection);
        let mut record = opened.map_err(|_| Outcome::AuditUnavailable)?;
        record.request(&request);
        let exchange = Self::open(meter.clone(), record);
        let request = request.map(|body| Upload::new(body, exchange.clone()));
        Ok((exchange, Box::new(request)))
    }

    /// Changes the audit record, while it is open.
    pub fn note(&self, change: impl FnOnce(&mut Record)) {
        if let Some(open) = &mut *self.locked() {
            change(&mut open.record);
        }
    }

    /// Keeps which standing secrets the request carried.
    ///
    /// # Errors
    /// When it may not pass with them.
    pub fn carries(&self, carried: Carried) -> Result<(), Outcome> {
        let action = carried.action();
        self.note(|record| record.carries(carried));
        match action {
            Action::Observed | Action::Stripped => Ok(()),
            Action::Denied => Err(Outcome::StandingSecret),
        }
    }

    /// Takes its place among the `requests` under way.
    ///
    /// # Errors
    /// When there is none.
    pub fn admit(self: &Arc<Self>, requests: &Arc<Requests>) -> Result<(), Outcome> {
        let mut admitted = requests.admit()?;
        let exchange = Arc::downgrade(self);
        admitted.unless_late(move || {
            if let Some(exchange) = exchange.upgrade() {
                exchange.give_up(Limit::RequestTime, Outcome::RequestTimeout);
            }
        });
        // A request asks once.
        let _ = self.admitted.set(admitted);
        Ok(())
    }

    /// Ends it because it reached `limit`.
    fn give_up(&self, limit: Limit, why: Outcome) {
        if let Some(admitted) = self.admitted.get() {
            admitted.hit(limit);
        }
        self.revoke(why);
    }

    /// Whether `body`, which is waited for, has made too little `progress` for too long. From the first time on
    /// `stall` watches over it, where there is a limit.
    fn has_stalled(
        &self,
        stall: &mut Option<Box<Stall>>,
        body: &impl Body,
        cx: &mut Context<'_>,
        progress: u64,
    ) -> bool {
        if stall.is_none() {
            let known_length = body.size_hint().exact().is_some();
            let admitted = self.admitted.get();
            *stall = admitted
                .and_then(|admitted| admitted.stall(known_length))
                .map(Box::new);
        }
        let stall = stall.as_mut();
        stall.is_some_and(|stall| stall.poll(cx, progress).is_ready())
    }

    fn answered(&self, status: StatusCode) {
        if let Some(open) = &mut *self.locked() {
            open.status = Some(status);
            open.record.status(status);
        }
    }

    /// Adds bytes that passed after an upgrade. Metrics have them already.
    pub fn passed(&self, passed: Passed) {
        self.received.fetch_add(passed.from_a, Ordering::Relaxed);
        self.sent.fetch_add(passed.from_b, Ordering::Relaxed);
    }

    /// Takes its place among those under way on a connection, instead of one it had.
    pub fn take_place(&self, place: Place) {
        let before = self.placed().replace(place);
        // Leaving is for when the lock is free.
        drop(before);
    }

    /// Leaves its place: from now on somebody else watches what it stands on.
    pub fn leave_place(&self) {
        let before = self.placed().take();
        drop(before);
    }

    fn placed(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away what it stood on: nothing of it passes any more, in either direction. Only the first
    /// call counts.
    pub fn revoke(&self, why: Outcome) {
        if self.revoked.set(why).is_err() {
            return;
        }
        // Without a response there can still be one: the refusal.
        if self
            .locked()
            .as_ref()
            .is_some_and(|open| open.status.is_some())
        {
            self.end(why);
        }
        for waiting in &self.waiting {
            waiting.wake();
        }
    }

    /// Whether it was.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.revoked.get().is_some()
    }

    fn broken_off(&self) -> Option<BrokenOff> {
        Some(BrokenOff::Revoked {
            why: *self.revoked.get()?,
            reset: h2::Reason::CANCEL.into(),
        })
    }

    /// Whether it was revoked; if not, whoever asks is woken when it is.
    fn poll_revoked(&self, flow: Flow, cx: &Context<'_>) -> Poll<Outcome> {
        self.waiting[flow as usize].register(cx.waker());
        // It may have happened before the waker was there.
        match self.revoked.get() {
            Some(why) => Poll::Ready(*why),
            None => Poll::Pending,
        }
    }

    /// The same for a body, which breaks off then.
    fn poll_broken_off(&self, flow: Flow, cx: &Context<'_>) -> Poll<BrokenOff> {
        ready!(self.poll_revoked(flow, cx));
        self.broken_off().map_or(Poll::Pending, Poll::Ready)
    }

    /// Waits for `response`, unless the exchange is revoked before.
    ///
    /// # Errors
    /// Why it was revoked.
    pub async fn unless_revoked<F: Future>(
        &self,
        mut response: Pin<&mut F>,
    ) -> Result<F::Output, Outcome> {
        poll_fn(|cx| match response.as_mut().poll(cx) {
            // What broke off because of it is no other failure.
            Poll::Ready(output) => Poll::Ready(match self.revoked.get() {
                Some(why) => Err(*why),
                None => Ok(output),
            }),
            Poll::Pending => self.poll_revoked(Flow::Response, cx).map(Err),
        })
        .await
    }

    /// Closes the books. Only the first call counts.
    pub fn end(&self, outcome: Outcome) {
        // Whatever else went wrong then went wrong because of it.
        let outcome = self.revoked.get().copied().unwrap_or(outcome);
        let Some(Open { record, status }) = self.locked().take() else {
            return;
        };
        self.meter.ended(outcome, status, record.started());
        let (received, sent) = (
            self.received.load(Ordering::Relaxed),
            self.sent.load(Ordering::Relaxed),
        );
        record.finish(outcome, received, sent);
    }

    /// Turns the response of the other side into one that counts, and that returns `lease` at its end.
    pub fn pass_on<D: Dial>(
        self: Arc<Self>,
        response: Response<Coming>,
        lease: Option<Lease<D>>,
    ) -> Response<Reply<D>> {
        self.answered(response.status());
        response.map(|body| {
            let ended = body.is_end_stream();
            let mut download = Download {
                body,
                exchange: self,
                stall: None,
                lease,
                ended: false,
            };
            if ended {
                download.end(Outcome::Completed);
            }
            Reply::Stream(download)
        })
    }

    /// Passes on that the other side has changed its protocol. The exchange goes on.
    pub fn switch<D: Dial>(&self, response: Response<Coming>) -> Response<Reply<D>> {
        self.leave_place();
        if let Some(admitted) = self.admitted.get() {
            admitted.take_time();
        }
        self.answered(response.status());
        let mut response = response.map(|_| Reply::empty());
        let headers = response.headers_mut();
        let protocol = headers.get(UPGRADE).cloned();
        headers::strip_response(headers);
        if let Some(protocol) = protocol {
            headers::set_upgrade(headers, protocol);
        }
        response
    }

    /// Ends the exchange with a response that the proxy itself makes: an RFC 9457 problem document, or
    /// for gRPC a status in trailers. It says that the proxy refused, not why policy did.
    pub fn refuse<D: Dial>(&self, outcome: Outcome, form: Form) -> Response<Reply<D>> {
        let (mut id, mut advice) = (String::new(), None);
        self.note(|record| {
            id = record.id().to_string();
            if outcome == Outcome::StandingSecret {
                advice = record.carried().map(Carried::advice);
            }
            if form == Form::Grpc {
                record.grpc_status(outcome.grpc_status());
            }
        });
        let response = refusal(outcome, form, &id, advice);
        self.answered(response.status());
        self.end(outcome);
        response
    }

    fn locked(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("received", &self.received)
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.end(Outcome::ClientGone);
    }
}

/// How a refusal is written, which depends on what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// An RFC 9457 problem document.
    Problem,
    /// The head of one: nothing follows the answer to a HEAD (RFC 9110 §9.3.2).
    Head,
    /// A gRPC status.
    Grpc,
}

impl Form {
    /// The form in which whoever sent `request` can read it.
    #[must_use]
    pub fn of<B>(request: &Request<B>) -> Self {
        if headers::is_grpc(request.headers()) {
            Self::Grpc
        } else if *request.method() == Method::HEAD {
            Self::Head
        } else {
            Self::Problem
        }
    }
}

/// Refuses a request for which no audit record could be opened.
pub fn unrecorded<D: Dial>(meter: &Meter, outcome: Outcome, form: Form) -> Response<Reply<D>> {
    let response = refusal(outcome, form, "", None);
    meter.ended(outcome, Some(response.status()), Instant::now());
    response
}

fn refusal<D: Dial>(
    outcome: Outcome,
    form: Form,
    id: &str,
    advice: Option<String>,
) -> Response<Reply<D>> {
    let status = outcome.status().unwrap_or(StatusCode::BAD_GATEWAY);
    let grpc = form == Form::Grpc;
    let body = if grpc {
        Bytes::new()
    } else {
        Bytes::from(problem(outcome, id, advice.as_deref()))
    };
    let length = body.len();
    let body = match form {
        Form::Head => Bytes::new(),
        Form::Problem | Form::Grpc => body,
    };
    let mut response = Response::new(Reply::Full(Full::new(body)));
    let headers = response.headers_mut();
    if form == Form::Head {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    if grpc {
        // gRPC over HTTP/2, "Responses": trailers alone, with HTTP status 200.
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(
            "grpc-status",
            HeaderValue::from(u16::from(outcome.grpc_status())),
        );
        // The names of headers are plain ASCII, but may have a `%`, which gRPC decodes.
        let encoded = advice.map(|advice| advice.replace('%', "%25"));
        let message = encoded.and_then(|text| HeaderValue::try_from(text).ok());
        let title = || HeaderValue::from_static(outcome.title());
        headers.insert("grpc-message", message.unwrap_or_else(title));
    } else {
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
    }
    if outcome == Outcome::Overloaded {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
    }
    if let Some(Ok(value)) = outcome
        .proxy_error()
        .map(|error| HeaderValue::try_from(format!("doorward; error={error}")))
    {
        headers.insert(PROXY_STATUS, value);
    }
    if !grpc {
        *response.status_mut() = status;
    }
    response
}

/// The problem document of a refusal (RFC 9457 §3). `id` is the name of the record of it.
pub(crate) fn problem(outcome: Outcome, id: &str, advice: Option<&str>) -> String {
    let status = outcome.status().unwrap_or(StatusCode::BAD_GATEWAY);
    let problem = serde_json::json!({
        "type": "about:blank",
        "title": outcome.title(),
        "status": status.as_u16(),
        "detail": advice.unwrap_or(ANSWERED_BY_US),
        "error": outcome.label(),
        "request_id": id,
    });
    problem.to_string()
}

const ANSWERED_BY_US: &str = "The Doorward proxy answered this, not the application.";

/// Why a body breaks off before its end.
#[derive(Debug, thiserror::Error)]
pub enum BrokenOff {
    /// The side it came from failed.
    #[error(transparent)]
    Failed(#[from] hyper::Error),
    /// The same, on an HTTP/2 connection.
    #[error("the stream broke off")]
    Stream(#[source] h2::Error),
    /// What the exchange stood on is gone.
    #[error("access ended while it was in use: {}", why.label())]
    Revoked {
        /// What is gone.
        why: Outcome,
        /// How HTTP/2 says it: without this, hyper calls it an error of ours.
        #[source]
        reset: h2::Error,
    },
}

impl BrokenOff {
    /// What HTTP/2 is told of it: the same as the side it came from said, if it did.
    #[must_use]
    pub fn reset(&self) -> h2::Reason {
        let mut cause: Option<&dyn std::error::Error> = Some(self);
        while let Some(error) = cause {
            if let Some(reason) = error.downcast_ref().and_then(h2::Error::reason) {
                return reason;
            }
            cause = error.source();
        }
        h2::Reason::INTERNAL_ERROR
    }
}

/// How an exchange ends whose caller does not send the request's body to its end.
fn broken_by_caller(error: &BrokenOff) -> Outcome {
    use std::io::ErrorKind::{InvalidData, InvalidInput};
    // What `Failed` says of its source is what that one says.
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    match cause.map(std::io::Error::kind) {
        Some(InvalidData | InvalidInput) => Outcome::BadRequest,
        _ => Outcome::ClientGone,
    }
}

/// A request's body on its way to the other side.
pub struct Upload(Option<Sending>);

struct Sending {
    body: Coming,
    exchange: Arc<Exchange>,
    stall: Option<Box<Stall>>,
}

impl Upload {
    /// Passes `body` on, counted in `exchange`.
    #[must_use]
    pub fn new(body: Coming, exchange: Arc<Exchange>) -> Self {
        if body.is_end_stream() {
            return Self(None);
        }
        Self(Some(Sending {
            body,
            exchange,
            stall: None,
        }))
    }

    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self(None)
    }
}

impl Passing for Upload {
    fn poll_broken_off(&self, cx: &Context<'_>) -> Poll<BrokenOff> {
        match &self.0 {
            Some(Sending { exchange, .. }) => exchange.poll_broken_off(Flow::Request, cx),
            None => Poll::Pending,
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let Some(Sending {
            body,
            exchange,
            stall,
        }) = &mut self.0
        else {
            return Poll::Ready(None);
        };
        if let Some(broken_off) = exchange.broken_off() {
            return Poll::Ready(Some(Err(broken_off)));
        }
        let Poll::Ready(mut frame) = Pin::new(&mut *body).poll_frame(cx) else {
            let received = exchange.received.load(Ordering::Relaxed);
            if exchange.has_stalled(stall, body, cx, received) {
                exchange.give_up(Limit::Unsent, Outcome::IdleTimeout);
                return Poll::Ready(exchange.broken_off().map(Err));
            }
            return exchange
                .poll_broken_off(Flow::Request, cx)
                .map(|why| Some(Err(why)));
        };
        if let Some(stall) = stall {
            stall.came();
        }
        if let Some(Ok(frame)) = &mut frame {
            if let Some(data) = frame.data_ref() {
                exchange
                    .received
                    .fetch_add(data.len() as u64, Ordering::Relaxed);
                exchange.meter.received.inc_by(data.len() as u64);
            } else if let Some(trailers) = frame.trailers_mut() {
                headers::strip_trailers(trailers);
            }
        }
        if let Some(Err(error)) = &frame {
            // What fails next fails because of it, and not by the other side's fault.
            exchange.revoke(broken_by_caller(error));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0
            .as_ref()
            .is_none_or(|sending| sending.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(
            || SizeHint::with_exact(0),
            |sending| sending.body.size_hint(),
        )
    }
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload")
            .field("size", &self.size_hint())
            .finish()
    }
}

/// A response's body on its way to the caller.
pub enum Reply<D: Dial> {
    /// Made by the proxy.
    Full(Full<Bytes>),
    /// From the other side.
    Stream(Download<D>),
}

impl<D: Dial> Reply<D> {
    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Self::Full(Full::new(Bytes::new()))
    }
}

impl<D: Dial> Body for Reply<D> {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.get_mut() {
            Self::Full(body) => Pin::new(body)
                .poll_frame(cx)
                .map_err(|never: Infallible| match never {}),
            Self::Stream(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(body) => body.is_end_stream(),
            Self::Stream(download) => download.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => body.size_hint(),
            Self::Stream(download) => download.body.size_hint(),
        }
    }
}

impl<D: Dial> Passing for Reply<D> {
    fn poll_broken_off(&self, cx: &Context<'_>) -> Poll<BrokenOff> {
        match self {
            Self::Full(_) => Poll::Pending,
            Self::Stream(download) => download.exchange.poll_broken_off(Flow::Response, cx),
        }
    }
}

impl<D: Dial> fmt::Debug for Reply<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply")
            .field("size", &self.size_hint())
            .finish()
    }
}

/// The other side's response body, counted.
pub struct Download<D: Dial> {
    body: Coming,
    exchange: Arc<Exchange>,
    stall: Option<Box<Stall>>,
    lease: Option<Lease<D>>,
    ended: bool,
}

impl<D: Dial> Download<D> {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        let exchange = &self.exchange;
        if let Some(broken_off) = exchange.broken_off() {
            return Poll::Ready(Some(Err(broken_off)));
        }
        let Poll::Ready(mut frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            let sent = exchange.sent.load(Ordering::Relaxed);
            if exchange.has_stalled(&mut self.stall, &self.body, cx, sent) {
                exchange.give_up(Limit::Unsent, Outcome::UpstreamTimeout);
                return Poll::Ready(exchange.broken_off().map(Err));
            }
            return exchange
                .poll_broken_off(Flow::Response, cx)
                .map(|why| Some(Err(why)));
        };
        if let Some(stall) = &mut self.stall {
            stall.came();
        }
        match &mut frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.exchange
                        .sent
                        .fetch_add(data.len() as u64, Ordering::Relaxed);
                    self.exchange.meter.sent.inc_by(data.len() as u64);
                } else if let Some(trailers) = frame.trailers_mut() {
                    headers::strip_trailers(trailers);
                }
                // A length that is known ends here: nobody asks for the frame after the last.
                if self.body.is_end_stream() {
                    self.end(Outcome::Completed);
                }
            }
            Some(Err(_)) => self.end(Outcome::UpstreamFailed),
            None => self.end(Outcome::Completed),
        }
        Poll::Ready(frame)
    }

    fn end(&mut self, outcome: Outcome) {
        self.ended = true;
        self.exchange.end(outcome);
        if let (Some(lease), Outcome::Completed) = (self.lease.take(), outcome) {
            lease.finished(self.exchange.sent.load(Ordering::Relaxed));
        }
    }
}

impl<D: Dial> Drop for Download<D> {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if self.body.is_whole() {
            // Nobody asks for the end of a body whose length is known.
            self.end(Outcome::Completed);
        } else {
            // The request's body may still be on its way, in a task of its own.
            self.exchange.revoke(Outcome::ClientGone);
        }
    }
}

impl<D: Dial> fmt::Debug for Download<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download").finish_non_exhaustive()
    }
}

/// The metric families of the data path, in one worker's registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    bytes: IntCounterVec,
    sessions: IntGaugeVec,
    ended: IntCounterVec,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// When a family of the same name is there already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new(
                    "doorward_requests_total",
                    "HTTP requests that ended, by how, and by the class of the status the caller got.",
                ),
                &["direction", "service", "outcome", "status"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "doorward_request_duration_seconds",
                    "Time from a request's head to the last byte of its response.",
                )
                .buckets(BUCKETS.to_vec()),
                &["direction", "service"],
            )?,
            bytes: IntCounterVec::new(
                Opts::new(
                    "doorward_bytes_total",
                    "Payload bytes passed on: received from whoever opened the connection, or sent to it.",
                ),
                &["direction", "service", "flow"],
            )?,
            sessions: IntGaugeVec::new(
                Opts::new(
                    "doorward_open_sessions",
                    "Open connections, by what they carry: http, tcp or an upgrade (WebSocket).",
                ),
                &["direction", "service", "kind"],
            )?,
            ended: IntCounterVec::new(
                Opts::new(
                    "doorward_sessions_ended_total",
                    "Connections that ended, by what they carried and how they ended.",
                ),
                &["direction", "service", "kind", "outcome"],
            )?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.sessions.clone()))?;
        registry.register(Box::new(metrics.ended.clone()))?;
        Ok(metrics)
    }

    /// The handles of one listener.
    #[must_use]
    pub fn of(&self, direction: Direction, service: &str) -> Arc<Meter> {
        let direction = direction.label();
        Arc::new(Meter {
            direction,
            service: service.into(),
            duration: self.duration.with_label_values(&[direction, service]),
            received: self
                .bytes
                .with_label_values(&[direction, service, "received"]),
            sent: self.bytes.with_label_values(&[direction, service, "sent"]),
            completed: std::array::from_fn(|_| OnceLock::new()),
            families: self.clone(),
        })
    }
}

/// From half a millisecond to a minute.
const BUCKETS: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0,
];

/// One listener's counters in one worker, resolved once: looking one up costs more than counting.
#[derive(Debug)]
pub struct Meter {
    direction: &'static str,
    service: Box<str>,
    duration: Histogram,
    received: IntCounter,
    sent: IntCounter,
    /// Completed requests, by the first digit of the status.
    completed: [OnceLock<IntCounter>; 6],
    families: Metrics,
}

impl Meter {
    fn ended(&self, outcome: Outcome, status: Option<StatusCode>, started: Instant) {
        let class = status.map_or(0, |status| usize::from(status.as_u16() / 100).min(5));
        let count = |outcome: Outcome| {
            let labels = [
                self.direction,
                &self.service,
                outcome.label(),
                CLASSES[class],
            ];
            self.families.requests.with_label_values(&labels)
        };
        match outcome {
            Outcome::Completed => self.completed[class].get_or_init(|| count(outcome)).inc(),
            _ => count(outcome).inc(),
        }
        self.duration.observe(started.elapsed().as_secs_f64());
    }

    /// The counters of a relay whose side `a` opened the connection.
    #[must_use]
    pub fn counters(&self) -> relay::Counters<'_> {
        relay::Counters {
            from_a: &self.received,
            from_b: &self.sent,
        }
    }

    /// Counts a connection as open until the guard is dropped or told how it ended.
    #[must_use]
    pub fn session(self: &Arc<Self>, kind: Kind) -> OpenSession {
        let gauge = self.families.sessions.with_label_values(&[
            self.direction,
            &self.service,
            kind.label(),
        ]);
        gauge.inc();
        OpenSession {
            meter: self.clone(),
            kind,
            gauge,
            outcome: Outcome::ClientGone,
        }
    }
}

const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// What an open connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// HTTP requests.
    Http,
    /// Opaque bytes.
    Tcp,
    /// An upgraded HTTP/1.1 connection.
    Upgrade,
}

impl Kind {
    const fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
            Self::Upgrade => "upgrade",
        }
    }
}

/// A connection counted as open.
#[derive(Debug)]
pub struct OpenSession {
    meter: Arc<Meter>,
    kind: Kind,
    gauge: IntGauge,
    outcome: Outcome,
}

impl OpenSession {
    /// Counts it as ended.
    pub fn ended(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        self.gauge.dec();
        let meter = &self.meter;
        let labels = [
            meter.direction,
            &meter.service,
            self.kind.label(),
            self.outcome.label(),
        ];
        meter.families.ended.with_label_values(&labels).inc();
    }
}
