//! Which open connection carries this request? Connections of one worker to one place, kept for reuse.
//!
//! One pool serves both directions: to the peer's sidecar over mutual TLS, and to our own application in
//! plain. What differs is how to [`Dial`]. An HTTP/2 connection is shared by many requests; an HTTP/1.1
//! connection is lent to one at a time and comes back when the response has been read to its end. Beside the first
//! some of the second are kept for when they are cheaper.

mod calm;
pub(crate) mod http2;
mod queue;
mod stream;

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, TryFutureExt};
use http::uri::Scheme;
use http::{Request, Response, Version};
use http_body::Body as _;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use tokio::io::{AsyncRead, AsyncWrite};

use self::calm::{Calm, Opened};
pub use self::queue::{Limits, Place, Queue};
use crate::descriptors;
use crate::discovery::ResolveError;
use crate::exchange::{Coming, Exchange, Upload};
use crate::lifecycle::Tasks;
use crate::limits::{Credit, Limit, Tally};
use crate::listen;
use crate::outcome::Outcome;
use crate::serve::turns::InTurns;
use crate::serve::watched::{Asked, Watched};
use crate::serve::{self, LAST_WORDS};
use crate::session::{Granted, Own, Running, Standing};
use crate::target;
use crate::telemetry::asked::AskedGauges;
use crate::telemetry::chain;
use crate::tls::HandshakeError;

/// A request on its way to the other side. It is large, and goes through many hands: moved as it is, it would
/// be most of the future of an exchange, in each of them.
pub type Asking = Box<Request<Upload>>;

/// How to reach the one place that a pool leads to.
pub trait Dial: Send + Sync + 'static {
    /// The stream it opens.
    type Io: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// Opens a connection that can speak `wanted`.
    fn dial(
        &self,
        wanted: Wanted,
    ) -> impl Future<Output = Result<Dialed<Self::Io>, DialError>> + Send;

    /// The scheme of the targets there.
    fn scheme(&self) -> Scheme;

    /// The generation of what connections are made with. Those of an older one take no new requests.
    fn epoch(&self) -> u64;
}

/// What a request needs of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Whatever both sides like best.
    Any,
    /// The same, and HTTP/1.1 while hardly any requests meet. For what [`suits_http1`]: the other side may close such
    /// a connection with a request on its way, where HTTP/2 says that it has not seen it.
    Cheapest,
    /// HTTP/1.1, for an upgrade or because the application speaks nothing else.
    Http1,
    /// HTTP/2.
    Http2,
}

impl Wanted {
    /// What a request of `version` was written in.
    #[must_use]
    pub fn spoken_in(version: Version) -> Self {
        match version {
            Version::HTTP_2 => Self::Http2,
            _ => Self::Http1,
        }
    }
}

/// A connection just opened.
#[derive(Debug)]
pub struct Dialed<Io> {
    /// The stream.
    pub io: Io,
    /// Whether to speak HTTP/2 on it, or else HTTP/1.1.
    pub http2: bool,
    /// [`Dial::epoch`] at the time of dialling.
    pub epoch: u64,
    /// When what it was made with ends: it takes no new requests shortly before.
    pub not_after: Option<SystemTime>,
    /// Who answered, and what that rests on, where it was proved.
    pub standing: Option<Standing>,
}

/// Why no connection could be opened.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The name has no address.
    #[error("cannot resolve the name")]
    Resolve(#[source] Arc<ResolveError>),
    /// Nobody has said yet where the name is.
    #[error("no name server has answered within {0:?}")]
    Unresolved(Duration),
    /// As many connections are open, or requests wait for one, as may.
    #[error("no more connections to the peer, or requests that wait for one, are allowed")]
    Full,
    /// Nobody accepts the connection.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// Nobody answered in time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// Who answered is not who should, or would not have us.
    #[error("the TLS handshake failed")]
    Handshake(#[from] HandshakeError),
    /// HTTP could not be started on the connection.
    #[error("the connection does not speak HTTP")]
    Http(#[source] hyper::Error),
    /// HTTP/2 could not be started on it.
    #[error("the connection does not speak HTTP/2")]
    Http2(#[source] h2::Error),
}

/// Why a request got no response.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// It was never sent.
    #[error("no connection to send the request on")]
    Dial(#[from] DialError),
    /// The connection stands on nothing any more.
    #[error("the connection has ended: {}", .0.label())]
    Lost(Outcome),
    /// Its target cannot be written for the next hop.
    #[error("the request has no sound target")]
    Target(#[from] http::Error),
    /// It may have been received, and took too long.
    #[error("no response within {0:?}")]
    Late(Duration),
    /// It may have been received.
    #[error("the connection failed before a response came")]
    Exchange(#[source] hyper::Error),
    /// The same of a stream on an HTTP/2 connection.
    #[error("the stream failed before a response came")]
    Stream(#[source] h2::Error),
    /// It was received, and certainly not acted on (RFC 9113 §8.7): there was no room for it.
    #[error("the other side has no room for the request")]
    Unprocessed(#[source] h2::Error),
}

impl DialError {
    /// How an exchange ends that needed this connection.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Connect(error) if descriptors::ran_out(error) => Outcome::Overloaded,
            Self::Resolve(_) | Self::Connect(_) => Outcome::UpstreamUnreachable,
            Self::Unresolved(_) | Self::Timeout(_) => Outcome::UpstreamTimeout,
            Self::Handshake(error) => error.outcome(),
            Self::Full => Outcome::Overloaded,
            Self::Http(_) | Self::Http2(_) => Outcome::UpstreamFailed,
        }
    }
}

impl SendError {
    /// How the exchange ends.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Dial(error) => error.outcome(),
            Self::Lost(why) => *why,
            Self::Target(_) => Outcome::BadRequest,
            Self::Late(_) => Outcome::UpstreamTimeout,
            Self::Exchange(_) | Self::Stream(_) | Self::Unprocessed(_) => Outcome::UpstreamFailed,
        }
    }
}

impl From<h2::Error> for SendError {
    fn from(error: h2::Error) -> Self {
        if stream::is_refused(&error) {
            Self::Unprocessed(error)
        } else {
            Self::Stream(error)
        }
    }
}

/// The metric families of connections to peers, in one worker's registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    failures: IntCounterVec,
    ejections: IntCounterVec,
    retries: IntCounterVec,
    unretried: IntCounterVec,
    connections: IntGaugeVec,
    ejected: AskedGauges,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            failures: IntCounterVec::new(
                Opts::new(
                    "doorward_upstream_connect_failures_total",
                    "Connections to an address of a peer that did not come about, by how the request would have ended.",
                ),
                &["service", "outcome"],
            )?,
            ejections: IntCounterVec::new(
                Opts::new(
                    "doorward_upstream_ejections_total",
                    "Times that a worker left an address of a peer out for a while.",
                ),
                &["service"],
            )?,
            retries: IntCounterVec::new(
                Opts::new(
                    "doorward_upstream_retries_total",
                    "Requests that were sent once more, most of them to another address, after they were or may have been received, by why.",
                ),
                &["service", "why"],
            )?,
            unretried: IntCounterVec::new(
                Opts::new(
                    "doorward_upstream_retries_over_budget_total",
                    "Requests that were not sent once more because too many were.",
                ),
                &["service"],
            )?,
            connections: IntGaugeVec::new(
                Opts::new(
                    "doorward_upstream_connections",
                    "Connections to a destination that are open, or being opened.",
                ),
                &["service"],
            )?,
            ejected: AskedGauges::new(
                Opts::new(
                    "doorward_upstream_ejected",
                    "Addresses of a peer that workers leave out now, summed over the workers.",
                ),
                &["service"],
            )?,
        };
        registry.register(Box::new(metrics.ejected.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.ejections.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.unretried.clone()))?;
        Ok(metrics)
    }

    /// A connection to `service` did not come about.
    pub fn not_connected(&self, service: &str, error: &DialError) {
        let outcome = error.outcome().label();
        self.failures.with_label_values(&[service, outcome]).inc();
    }

    /// A request to `service` is sent once more.
    pub fn retried(&self, service: &str, why: Again) {
        let labels = [service, why.label()];
        self.retries.with_label_values(&labels).inc();
    }

    /// A request to `service` could have been sent once more, but for the budget.
    pub fn not_retried(&self, service: &str) {
        self.unretried.with_label_values(&[service]).inc();
    }

    /// The gauge of connections to `service`.
    #[must_use]
    pub fn connections(&self, service: &str) -> IntGauge {
        self.connections.with_label_values(&[service])
    }

    /// `count` says how many addresses of `service` are left out, as long as there is somebody to say it.
    pub fn ejected(&self, service: &str, count: impl Fn() -> Option<i64> + Send + Sync + 'static) {
        self.ejected.ask(&[service], count);
    }

    /// The counter of addresses of `service` left out.
    #[must_use]
    pub fn ejections(&self, service: &str) -> IntCounter {
        self.ejections.with_label_values(&[service])
    }
}

/// Why a request is sent once more that was, or may have been, received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// The connection failed before a response came.
    Failed,
    /// No response came in time.
    Late,
    /// The other side said that it had not done it, and when to come back.
    RetryAfter,
    /// The other side refused the stream: nothing was done about it, whatever was asked.
    Unprocessed,
}

impl Again {
    /// The word in metrics. Part of the public surface: never rename one.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Late => "late",
            Self::RetryAfter => "retry_after",
            Self::Unprocessed => "unprocessed",
        }
    }
}

/// The connections of one worker to one place.
pub struct Pool<D: Dial> {
    dial: D,
    settings: Settings,
    tasks: Tasks,
    open: Mutex<Open>,
    /// Held while an HTTP/2 connection is being opened: those who come meanwhile share it.
    opening: tokio::sync::Mutex<()>,
    load: Arc<Load>,
}

/// Limits of one [`Pool`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// HTTP/2 requests on one connection before another one is opened.
    pub streams: usize,
    /// Idle HTTP/1.1 connections that are kept.
    pub idle: usize,
    /// How long an idle HTTP/1.1 connection is kept.
    pub idle_for: Duration,
    /// How long an HTTP/2 connection is kept that carries no request.
    pub shared_idle_for: Duration,
    /// What an HTTP/2 connection is held to.
    pub http: serve::Limits,
    /// Where its credit comes from.
    pub credit: Credit,
    /// Counts what is reached of the limits.
    pub tally: Tally,
}

impl Settings {
    /// What holds for the connections that serve the listener that `listener` describes. What whoever answers
    /// may send before it is read comes from `credit`; what it reaches of its limits is counted in `tally`.
    #[must_use]
    pub fn of(listener: &listen::Settings, credit: Credit, tally: Tally) -> Self {
        Self {
            streams: STREAMS as usize,
            idle: 256,
            idle_for: Duration::from_secs(30),
            shared_idle_for: listener.idle_timeout,
            http: serve::Limits::of(listener),
            credit,
            tally,
        }
    }
}

#[derive(Default)]
struct Open {
    shared: Vec<Arc<Shared>>,
    /// The most recently used is at the back.
    idle: VecDeque<Idle>,
    /// The other side chose HTTP/1.1 last time, so opening needs no waiting for each other.
    prefers_http1: bool,
    calm: Calm,
    /// The generation at which all of `idle` were looked at last.
    swept: u64,
    /// No connection is kept any more.
    retired: bool,
}

/// An HTTP/2 connection.
struct Shared {
    sender: http2::Sender,
    streams: AtomicUsize,
    /// It takes no new requests any more: it has ended, or one has found out that the other side bids farewell.
    over: Arc<AtomicBool>,
    /// It has refused a request while others ran, none of which has ended since.
    full: AtomicBool,
    /// The requests that were ever put on it.
    used: AtomicU64,
    asked: Asked,
    term: Term,
}

impl Shared {
    /// Whether one more request finds room, of `most` that we put on one connection. Where the other side
    /// takes fewer, it would wait.
    fn has_room(&self, most: usize) -> bool {
        match self.streams.load(Ordering::Relaxed) {
            0 => true,
            streams => {
                !self.full.load(Ordering::Relaxed)
                    && streams < most.min(self.sender.current_max_send_streams())
            }
        }
    }
}

/// An HTTP/1.1 connection that nobody uses.
struct Idle {
    sender: http1::SendRequest<Upload>,
    term: Term,
    since: Instant,
}

/// How long a connection may take new requests.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    epoch: u64,
    retire_at: Option<SystemTime>,
    ground: Option<Ground>,
}

/// What a connection to a peer stands on, and what stands on the connection.
#[derive(Clone, Debug)]
struct Ground {
    standing: Standing,
    running: Arc<Running>,
}

impl Open {
    /// The HTTP/1.1 connection that was used last of those that nobody uses.
    fn take_idle(&mut self, epoch: u64) -> Option<Connection> {
        for last in (0..self.idle.len()).rev() {
            let idle = &self.idle[last];
            let lasts = idle.term.holds(epoch, SystemTime::now) && !idle.sender.is_closed();
            if lasts && !idle.sender.is_ready() {
                continue;
            }
            let Idle { sender, term, .. } = self.idle.remove(last)?;
            if lasts {
                return Some(Connection(Either::Own {
                    sender,
                    term,
                    fresh: false,
                }));
            }
        }
        None
    }
}

impl Term {
    /// A connection retires when a tenth of its remaining time is left, so that the peer never has to
    /// refuse a request on it.
    fn of<Io>(dialed: &Dialed<Io>, now: SystemTime) -> Self {
        Self {
            ground: dialed.standing.clone().map(|standing| Ground {
                standing,
                running: Arc::default(),
            }),
            ..Self::new(dialed.epoch, dialed.not_after, now)
        }
    }

    pub(crate) fn new(epoch: u64, not_after: Option<SystemTime>, now: SystemTime) -> Self {
        let retire_at = not_after.map(|end| {
            let left = end.duration_since(now).unwrap_or_default();
            end - (left / 10).min(Duration::from_secs(30))
        });
        Self {
            epoch,
            retire_at,
            ground: None,
        }
    }

    /// Whether it may at the time that `now` tells. Where nothing ever ends, no clock is read.
    pub(crate) fn holds(&self, epoch: u64, now: impl FnOnce() -> SystemTime) -> bool {
        let lost = |ground: &Ground| ground.running.is_closed();
        self.epoch == epoch
            && self.retire_at.is_none_or(|end| now() < end)
            && !self.ground.as_ref().is_some_and(lost)
    }

    /// Puts `exchange` among those that end with the connection's proof.
    fn enter(&self, exchange: &Arc<Exchange>) -> Result<(), SendError> {
        if let Some(ground) = &self.ground {
            let place = ground.running.enter(exchange, None, 0);
            exchange.take_place(place.map_err(SendError::Lost)?);
        }
        Ok(())
    }

    fn standing(&self) -> Option<&Standing> {
        self.ground.as_ref().map(|ground| &ground.standing)
    }

    /// Keeps `connection` going until it ends by itself, or stands on nothing any more.
    async fn keep<E: std::error::Error>(self, connection: impl Future<Output = Result<(), E>>) {
        let tell = |ended: Result<(), E>| {
            if let Err(error) = ended {
                tracing::debug!(error = %chain(&error), "connection ended");
            }
        };
        let mut connection = std::pin::pin!(connection);
        let Some(Ground { standing, running }) = self.ground else {
            return tell(connection.await);
        };
        // Polled only when it has woken: the connection is polled for every frame.
        let mut lost = FuturesUnordered::new();
        lost.push(standing.lost(Own::Shown, Granted::Nothing));
        let why = tokio::select! {
            biased;
            ended = &mut connection => return tell(ended),
            Some(why) = lost.next() => why,
        };
        tracing::info!(peer = %standing.peer.id(), why = why.label(), "a connection to a peer stands on nothing any more");
        running.close(why);
        // What is left after that is cut.
        if let Ok(ended) = tokio::time::timeout(LAST_WORDS, connection).await {
            tell(ended);
        }
    }
}

impl<D: Dial> Pool<D> {
    /// A pool without connections yet. Those it opens run among `tasks`.
    pub fn new(dial: D, settings: Settings, tasks: Tasks) -> Arc<Self> {
        Self::with(dial, settings, tasks, None)
    }

    /// The same, and whoever waits in `queue` is told what becomes free.
    pub fn queued(dial: D, settings: Settings, tasks: Tasks, queue: Arc<Queue>) -> Arc<Self> {
        Self::with(dial, settings, tasks, Some(queue))
    }

    fn with(dial: D, settings: Settings, tasks: Tasks, queue: Option<Arc<Queue>>) -> Arc<Self> {
        Arc::new(Self {
            dial,
            settings,
            tasks,
            open: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            load: Arc::new(Load {
                outstanding: AtomicUsize::new(0),
                passed: AtomicU64::new(0),
                queue,
            }),
        })
    }

    /// How the connections are made.
    pub fn dialler(&self) -> &D {
        &self.dial
    }

    /// What is under way there: requests up to the end of their responses, and whatever else is
    /// [`Pool::busy`].
    pub fn outstanding(&self) -> usize {
        self.load.outstanding.load(Ordering::Relaxed)
    }

    /// Counts as under way until it is dropped.
    pub fn busy(&self) -> Busy {
        self.load.outstanding.fetch_add(1, Ordering::Relaxed);
        Busy(self.load.clone())
    }

    /// Sends the request of `exchange` and waits for the head of its response. What comes with it is to be told when the
    /// response has ended.
    ///
    /// A request is sent again when it certainly did not reach the other side, or when a kept connection
    /// turned out to be closed and asking again is safe (RFC 9110 §9.2.2) and possible (no body).
    ///
    /// # Errors
    /// [`SendError`] tells whether it may have been received.
    pub async fn send(
        self: &Arc<Self>,
        mut request: Asking,
        wanted: Wanted,
        exchange: &Arc<Exchange>,
    ) -> Result<(Response<Coming>, Lease<D>), SendError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let connection = match self.kept_at(attempt, wanted) {
                Some(connection) => connection,
                // Rare, and large: dialling has no place in the future of every request.
                None => Box::pin(self.open(wanted)).await?,
            };
            match self.send_on(connection, request, exchange).await {
                Ok(answered) => return Ok(answered),
                Err(Refused {
                    again: Some(unsent),
                    ..
                }) if attempt < ATTEMPTS => request = unsent,
                Err(Refused { error, .. }) => return Err(error),
            }
        }
    }

    /// Sends the request of `exchange` on `connection`, once.
    ///
    /// # Errors
    /// [`Refused`] has the request again if it may be sent once more, here or elsewhere.
    pub async fn send_on(
        self: &Arc<Self>,
        connection: Connection,
        mut request: Asking,
        exchange: &Arc<Exchange>,
    ) -> Result<(Response<Coming>, Lease<D>), Refused> {
        let busy = self.busy();
        match connection.0 {
            Either::Shared(shared) => {
                shared.term.enter(exchange)?;
                target::address(&mut request, true, self.dial.scheme()).map_err(SendError::from)?;
                let sender = shared.sender.clone();
                let slot = Slot::take(shared);
                let answered = match stream::send(sender, request, &self.tasks) {
                    Ok(sending) => sending.await,
                    Err(unsent) => Err(unsent),
                };
                match answered {
                    Ok(response) => Ok((response, Lease::new(Lent::Stream(slot), busy))),
                    Err(unanswered) => {
                        slot.tell(&unanswered.error);
                        Err(Refused {
                            again: unanswered.again,
                            error: unanswered.error.into(),
                        })
                    }
                }
            }
            Either::Own {
                mut sender,
                term,
                fresh,
            } => {
                term.enter(exchange)?;
                target::address(&mut request, false, self.dial.scheme())
                    .map_err(SendError::from)?;
                let again = (!fresh).then(|| repeatable(&request)).flatten();
                match sender.try_send_request(*request).await {
                    Ok(response) => {
                        let lent = Lent::Connection(sender, term, self.clone());
                        Ok((response.map(Coming::Http1), Lease::new(lent, busy)))
                    }
                    Err(mut refused) => Err(Refused {
                        again: refused.take_message().map(Box::new).or(again),
                        error: SendError::Exchange(refused.into_error()),
                    }),
                }
            }
        }
    }

    /// Opens an HTTP/1.1 connection for one exchange that will take it over: an upgrade.
    ///
    /// # Errors
    /// As [`Pool::send`].
    pub async fn send_alone(
        &self,
        request: Asking,
        exchange: &Arc<Exchange>,
    ) -> Result<(Response<Coming>, Option<Standing>), SendError> {
        let dialed = self.dial.dial(Wanted::Http1).await?;
        self.send_alone_on(dialed, request, exchange).await
    }

    /// Sends one exchange on an HTTP/1.1 connection that it will take over.
    ///
    /// # Errors
    /// As [`Pool::send`].
    pub async fn send_alone_on(
        &self,
        dialed: Dialed<D::Io>,
        mut request: Asking,
        exchange: &Arc<Exchange>,
    ) -> Result<(Response<Coming>, Option<Standing>), SendError> {
        let term = Term::of(&dialed, SystemTime::now());
        term.enter(exchange)?;
        let standing = term.standing().cloned();
        let (mut sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(dialed.io))
            .await
            .map_err(DialError::Http)?;
        self.tasks.spawn(term.keep(connection.with_upgrades()));
        target::address(&mut request, false, self.dial.scheme())?;
        let response = sender
            .send_request(*request)
            .await
            .map_err(SendError::Exchange)?;
        Ok((response.map(Coming::Http1), standing))
    }

    /// A connection that is open already, for the first attempt at a request: where one of them turned out to
    /// be closed, the others probably are too.
    pub fn kept_at(self: &Arc<Self>, attempt: usize, wanted: Wanted) -> Option<Connection> {
        if attempt > 1 {
            return None;
        }
        let open = &mut *self.locked();
        if wanted != Wanted::Http1 {
            let passed = self.load.passed.load(Ordering::Relaxed);
            open.calm.arrives(self.outstanding(), passed);
        }
        self.kept_in(open, wanted)
    }

    /// A connection that is open already.
    pub fn kept(self: &Arc<Self>, wanted: Wanted) -> Option<Connection> {
        self.kept_in(&mut self.locked(), wanted)
    }

    fn kept_in(self: &Arc<Self>, open: &mut Open, wanted: Wanted) -> Option<Connection> {
        let epoch = self.dial.epoch();
        self.sweep(open, epoch);
        let calm = wanted == Wanted::Cheapest && open.calm.is_calm();
        if calm && let Some(connection) = open.take_idle(epoch) {
            return Some(connection);
        }
        let free = |shared: &&Arc<Shared>| shared.has_room(self.settings.streams);
        if wanted != Wanted::Http1
            && let Some(shared) = open.shared.iter().find(free)
        {
            let connection = Connection(Either::Shared(shared.clone()));
            if calm && open.calm.misses(self.outstanding()) {
                self.tasks.spawn(self.clone().open_beside());
            }
            return Some(connection);
        }
        let may_be_http1 = match wanted {
            Wanted::Http1 | Wanted::Cheapest => true,
            // Those beside one of HTTP/2 are kept for what may be repeated.
            Wanted::Any => open.prefers_http1,
            Wanted::Http2 => false,
        };
        may_be_http1.then(|| open.take_idle(epoch)).flatten()
    }

    /// Lets go of the connections that take no more requests, and of those that nobody has used for long.
    fn sweep(&self, open: &mut Open, epoch: u64) {
        // Dropping our handle lets the connection finish its streams and close.
        open.shared.retain(|shared| {
            shared.term.holds(epoch, SystemTime::now) && !shared.over.load(Ordering::Relaxed)
        });
        let idle_for = self.settings.idle_for;
        let unused = |idle: &Idle| idle.since.elapsed() > idle_for;
        while open.idle.front().is_some_and(unused) {
            open.idle.pop_front();
        }
        // All are looked at only when what they were made with has changed: there may be many.
        if open.swept != epoch {
            open.swept = epoch;
            open.idle
                .retain(|idle| idle.term.holds(epoch, SystemTime::now));
        }
    }

    /// Opens an HTTP/1.1 connection beside the HTTP/2 one. Nobody waits for it.
    async fn open_beside(self: Arc<Self>) {
        let (opened, connection) = match self.open_now(Wanted::Http1).await {
            Ok(connection) => (Opened::Connected, Some(connection)),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "no HTTP/1.1 connection beside the HTTP/2 one");
                let opened = match error {
                    DialError::Handshake(HandshakeError::NoSharedAlpn) => Opened::Never,
                    _ => Opened::Failed,
                };
                (opened, None)
            }
        };
        self.locked().calm.opened(opened);
        if let Some(Connection(Either::Own { sender, term, .. })) = connection {
            self.give_back(sender, term);
        }
    }

    /// Opens a connection, or shares one that was opened meanwhile.
    ///
    /// # Errors
    /// [`DialError`] says how far it came.
    pub async fn open(self: &Arc<Self>, wanted: Wanted) -> Result<Connection, DialError> {
        let alone =
            wanted == Wanted::Http1 || (wanted != Wanted::Http2 && self.locked().prefers_http1);
        if alone {
            return self.open_now(wanted).await;
        }
        let _turn = self.opening.lock().await;
        let shared = match wanted {
            // Where one that is kept beside turned out to be closed, the others probably are too.
            Wanted::Cheapest => Wanted::Any,
            wanted => wanted,
        };
        match self.kept(shared) {
            Some(connection) => Ok(connection),
            None => self.open_now(wanted).await,
        }
    }

    async fn open_now(self: &Arc<Self>, wanted: Wanted) -> Result<Connection, DialError> {
        let dialed = self.dial.dial(wanted).await?;
        let term = Term::of(&dialed, SystemTime::now());
        if matches!(wanted, Wanted::Any | Wanted::Cheapest) {
            self.locked().prefers_http1 = !dialed.http2;
        }
        if dialed.http2 {
            let lent = self.settings.credit.lend();
            if lent.is_scarce() {
                self.settings.tally.hit(Limit::Credit);
            }
            let asked = Asked::default();
            let (io, sight) = Watched::opened(dialed.io, self.settings.http, asked.clone());
            let http2::Begun {
                sender,
                driving,
                answered,
            } = http2::begin(io, self.settings.streams, lent.bytes()).await?;
            let tally = self.settings.tally.clone();
            let driven = driving.run().inspect_err(move |broken| {
                if let Some(limit) = sight.reached().or(broken.limit()) {
                    tally.hit(limit);
                }
            });
            let kept = term.clone().keep(driven);
            let over = Arc::<AtomicBool>::default();
            let ended = over.clone();
            let shared = Arc::new(Shared {
                sender,
                streams: AtomicUsize::new(0),
                over,
                full: AtomicBool::new(false),
                used: AtomicU64::new(0),
                asked,
                term,
            });
            let (pool, weak) = (Arc::downgrade(self), Arc::downgrade(&shared));
            let unused = Self::drop_unused(pool, weak, self.settings.shared_idle_for);
            self.tasks.spawn(async move {
                until_over(kept, unused).await;
                ended.store(true, Ordering::Relaxed);
                drop(lent);
            });
            answered.wait().await?;
            let mut open = self.locked();
            if !open.retired {
                open.shared.push(shared.clone());
            }
            Ok(Connection(Either::Shared(shared)))
        } else {
            let (io, turn) = InTurns::new(dialed.io);
            let (sender, connection) = http1::Builder::new()
                .handshake(TokioIo::new(io))
                .await
                .map_err(DialError::Http)?;
            self.tasks.spawn(term.clone().keep(turn.each(connection)));
            Ok(Connection(Either::Own {
                sender,
                term,
                fresh: true,
            }))
        }
    }

    /// Lets go of an HTTP/2 connection that has carried no request for long, or at most for twice as long: it
    /// closes by itself. Whoever has just got it still uses it.
    async fn drop_unused(pool: Weak<Self>, shared: Weak<Shared>, timeout: Duration) {
        let mut before = 0;
        loop {
            tokio::time::sleep(timeout).await;
            let (Some(pool), Some(shared)) = (pool.upgrade(), shared.upgrade()) else {
                return;
            };
            let used = shared.used.load(Ordering::Relaxed);
            if used == before && shared.streams.load(Ordering::Relaxed) == 0 {
                let kept = &mut pool.locked().shared;
                return kept.retain(|one| !Arc::ptr_eq(one, &shared));
            }
            before = used;
        }
    }

    /// Closes the HTTP/1.1 connection that nobody has used for the longest time. Whether there was one.
    pub fn close_idle(&self) -> bool {
        let idle = self.locked().idle.pop_front();
        idle.is_some()
    }

    /// Closes what nobody uses, now and from now on.
    pub fn retire(&self) {
        self.locked().retired = true;
        self.close();
    }

    /// Closes what nobody uses. What is in use ends with its last response.
    pub fn close(&self) {
        let mut open = self.locked();
        open.shared.clear();
        open.idle.clear();
    }

    fn give_back(&self, sender: http1::SendRequest<Upload>, term: Term) {
        if sender.is_closed() || !term.holds(self.dial.epoch(), SystemTime::now) {
            return;
        }
        let mut open = self.locked();
        if open.retired {
            return;
        }
        if open.idle.len() >= self.settings.idle {
            open.idle.pop_front();
        }
        let since = Instant::now();
        open.idle.push_back(Idle {
            sender,
            term,
            since,
        });
    }

    fn locked(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Dial> fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = self.locked();
        f.debug_struct("Pool")
            .field("shared", &open.shared.len())
            .field("idle", &open.idle.len())
            .finish_non_exhaustive()
    }
}

/// Keeps `connection` going to its end, with `beside` next to it.
async fn until_over(connection: impl Future<Output = ()>, beside: impl Future<Output = ()>) {
    // Polled only when it has woken: the connection is polled for every frame.
    let beside = FuturesUnordered::from_iter([beside]);
    let (mut connection, mut beside) = (std::pin::pin!(connection), std::pin::pin!(beside));
    loop {
        tokio::select! {
            biased;
            () = &mut connection => return,
            Some(()) = beside.next() => {}
        }
    }
}

/// Whether a request may take an HTTP/1.1 connection where it could have one of HTTP/2: it may be asked again, and
/// the other side will read all of its headers.
#[must_use]
pub fn suits_http1(request: &Request<Upload>) -> bool {
    request.headers().len() < HTTP1_HEADERS && may_be_repeated(request)
}

/// Whether a request may be asked again: an idempotent method (RFC 9110 §9.2.2), and no body.
fn may_be_repeated(request: &Request<Upload>) -> bool {
    request.method().is_idempotent() && request.body().is_end_stream()
}

/// A request as it could be asked again. The copy shares the header values.
#[must_use]
pub fn repeatable(request: &Request<Upload>) -> Option<Asking> {
    may_be_repeated(request).then(|| Box::new(stream::copy(request).map(|()| Upload::empty())))
}

/// How often one request is put on a connection at most.
pub const ATTEMPTS: usize = 3;

/// How often an HTTP/2 connection is tried, and how long its answer may take: a host that vanished
/// without a word is noticed long before TCP would.
pub const PING_EVERY: Duration = Duration::from_secs(15);

/// Credit for one HTTP/2 stream, in bytes.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// HTTP/2 requests that share a connection, of ours.
const STREAMS: u32 = 200;
/// The longest head of a request or a response that we take, in bytes.
pub const HEADER_BYTES: u32 = 64 * 1024;
/// With fewer headers a request may go by HTTP/1.1 where it need not: hyper reads 100, and Envoy no more.
const HTTP1_HEADERS: usize = 90;
/// The largest HTTP/2 frame we take, in bytes: with its head (RFC 9113 §4.1) it fills four TLS records.
pub const MAX_FRAME: u32 = 64 * 1024 - 9;

/// A connection that can take a request.
pub struct Connection(Either);

enum Either {
    Shared(Arc<Shared>),
    Own {
        sender: http1::SendRequest<Upload>,
        term: Term,
        fresh: bool,
    },
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Either::Shared(_) => "Connection(shared)",
            Either::Own { .. } => "Connection(own)",
        })
    }
}

/// A request that got no response on the connection it was put on.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: SendError,
    /// The request, if the other side has certainly not received it, or it may be asked again.
    pub again: Option<Asking>,
}

impl From<SendError> for Refused {
    fn from(error: SendError) -> Self {
        Self { error, again: None }
    }
}

/// Something under way in a pool, counted.
#[derive(Debug)]
pub struct Busy(Arc<Load>);

#[derive(Debug)]
struct Load {
    outstanding: AtomicUsize,
    /// Bytes of responses that were read to their ends.
    passed: AtomicU64,
    queue: Option<Arc<Queue>>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.outstanding.fetch_sub(1, Ordering::Relaxed);
        if let Some(queue) = &self.0.queue {
            queue.wake();
        }
    }
}

/// The use of a connection by one exchange. Dropping it gives up what is not finished.
pub struct Lease<D: Dial> {
    lent: Lent<D>,
    busy: Busy,
}

enum Lent<D: Dial> {
    Stream(Slot),
    Connection(http1::SendRequest<Upload>, Term, Arc<Pool<D>>),
}

impl<D: Dial> Lease<D> {
    fn new(lent: Lent<D>, busy: Busy) -> Self {
        Self { lent, busy }
    }

    /// Who answers on this connection, where that was proved.
    #[must_use]
    pub fn standing(&self) -> Option<&Standing> {
        match &self.lent {
            Lent::Stream(slot) => slot.0.term.standing(),
            Lent::Connection(_, term, _) => term.standing(),
        }
    }

    /// The response has been read to its end, and had so many `bytes`: the connection may serve the next request.
    pub fn finished(self, bytes: u64) {
        self.busy.0.passed.fetch_add(bytes, Ordering::Relaxed);
        if let Lent::Connection(sender, term, pool) = self.lent {
            pool.give_back(sender, term);
        }
    }
}

impl<D: Dial> fmt::Debug for Lease<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.lent {
            Lent::Stream(_) => "Lease(stream)",
            Lent::Connection(..) => "Lease(connection)",
        })
    }
}

/// One stream on a shared connection, counted.
struct Slot(Arc<Shared>);

impl Slot {
    fn take(shared: Arc<Shared>) -> Self {
        shared.streams.fetch_add(1, Ordering::Relaxed);
        shared.used.fetch_add(1, Ordering::Relaxed);
        shared.asked.one();
        Self(shared)
    }

    /// Learns from what happened to the stream where the next request is not to go.
    fn tell(self, error: &h2::Error) {
        let shared = self.0.clone();
        // Its end makes no room: there was none for it.
        drop(self);
        if error.is_go_away() || error.is_io() {
            shared.over.store(true, Ordering::Relaxed);
        } else if stream::is_refused(error) {
            shared.full.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
        self.0.full.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_retires_shortly_before_its_end_and_with_its_epoch() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let term = Term::new(3, Some(now + Duration::from_secs(10)), now);
        assert!(term.holds(3, || now + Duration::from_millis(8_900)));
        assert!(!term.holds(3, || now + Duration::from_millis(9_100)));
        assert!(!term.holds(4, || now));
        let long = Term::new(3, Some(now + Duration::from_secs(3600)), now);
        assert!(long.holds(3, || now + Duration::from_secs(3569)));
        assert!(!long.holds(3, || now + Duration::from_secs(3571)));
        assert!(Term::new(0, None, now).holds(0, || now + Duration::from_secs(1 << 30)));
    }
}
