//! How is one HTTP connection served, from its first request to its goodbye?

mod http2;
mod kept;
mod streams;
pub(crate) mod turns;
pub(crate) mod watched;

use std::convert::Infallible;
use std::error::Error as _;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use tokio::io::{AsyncRead, AsyncWrite};

use self::http2::Served;
use self::kept::Kept;
use self::streams::Streams;
use self::turns::{InTurns, Turn};
pub(crate) use self::watched::Watched;
use crate::exchange::{BrokenOff, Coming, Passing};
use crate::lifecycle::{Lifecycle, Phase};
use crate::limits::{Lent, Limit, Tally};
use crate::listen;
use crate::outcome::Outcome;
use crate::session::Running;
use crate::upstream::HEADER_BYTES;

/// Limits of one HTTP connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// How long a request's head may take, and how long a kept HTTP/1.1 connection may idle.
    pub header_timeout: Duration,
    /// How long the other side may take nothing of what is to be written.
    pub stall_timeout: Duration,
    /// Bytes of a request's head.
    pub header_bytes: u32,
    /// HTTP/2 streams at once.
    pub streams: u32,
    /// How long an HTTP/2 connection may carry no request.
    pub idle_timeout: Duration,
}

impl Limits {
    /// The limits of HTTP connections to the listener that `settings` describe.
    #[must_use]
    pub fn of(settings: &listen::Settings) -> Self {
        Self {
            header_timeout: settings.header_timeout,
            stall_timeout: settings.requests.stall_timeout,
            header_bytes: HEADER_BYTES,
            streams: STREAMS,
            idle_timeout: settings.idle_timeout,
        }
    }

    /// The same for one connection with the credit that it was lent. What it reaches is counted in `tally`.
    #[must_use]
    pub fn bounds<'a>(&'a self, credit: &'a Lent, tally: &'a Tally) -> Bounds<'a> {
        Bounds {
            limits: self,
            credit,
            tally,
        }
    }
}

/// What one connection may make us hold.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    limits: &'a Limits,
    credit: &'a Lent,
    tally: &'a Tally,
}

/// Serves requests on `io` until the other side is done. When `lost` completes, requests under way may
/// still end, for [`FAREWELL`]; those that are `running` then are reset. When the drain begins, HTTP/2
/// says GOAWAY and HTTP/1.1 answers with `connection: close`; an HTTP/1.1 connection that idles is closed
/// a little later, so that a request already on its way is not lost. An HTTP/2 connection that carries nothing
/// for long is said goodbye to in the same way.
pub async fn http<IO, S, F, B>(
    io: IO,
    http2: bool,
    bounds: Bounds<'_>,
    lifecycle: &Lifecycle,
    lost: BoxFuture<'_, Outcome>,
    running: &Running,
    service: S,
) -> Outcome
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Coming>) -> F + Unpin,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Passing + Send + 'static,
{
    let limits = bounds.limits;
    let (io, turn) = InTurns::new(io);
    let (io, sight) = Watched::new(io, http2, *limits);
    let ended = if http2 {
        let streams = Streams::new(limits.stall_timeout, bounds.tally);
        let unused = streams.unused(limits.idle_timeout).boxed();
        let connection = Served::new(io, bounds, streams, service);
        let connection = std::pin::pin!(connection);
        let linger = Duration::ZERO;
        let unused = Some(unused);
        drive(connection, &turn, linger, lifecycle, lost, running, unused).await
    } else {
        let service = service_fn(|request: Request<Incoming>| {
            let (version, sight, turn) = (request.version(), &sight, &turn);
            service(request.map(Coming::Http1)).map(move |mut response| {
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    sight.upgrade();
                    turn.end();
                } else if version != Version::HTTP_2 && lifecycle.phase() >= Phase::Draining {
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(CONNECTION, close);
                }
                Ok::<_, Infallible>(response)
            })
        });
        let connection = Kept::new(io, sight.clone(), *limits, service);
        let connection = std::pin::pin!(connection);
        drive(connection, &turn, LINGER, lifecycle, lost, running, None).await
    };
    let ended = sight.reached().map_or(ended, Ended::at);
    if let Some(limit) = ended.limit {
        bounds.tally.hit(limit);
    }
    ended.outcome
}

/// How a connection ended.
struct Ended {
    outcome: Outcome,
    /// The limit that ended it, if one did.
    limit: Option<Limit>,
}

impl Ended {
    fn at(limit: Limit) -> Self {
        let outcome = match limit {
            Limit::HeaderTime | Limit::Unread | Limit::Unsent => Outcome::IdleTimeout,
            Limit::RequestTime => Outcome::RequestTimeout,
            Limit::HeaderBytes => Outcome::BadRequest,
            Limit::Connections
            | Limit::Credit
            | Limit::Descriptors
            | Limit::Handshakes
            | Limit::Requests
            | Limit::Lag
            | Limit::Frames => Outcome::Overloaded,
        };
        Self {
            outcome,
            limit: Some(limit),
        }
    }
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        Self {
            outcome,
            limit: None,
        }
    }
}

impl From<hyper::Result<()>> for Ended {
    fn from(ended: hyper::Result<()>) -> Self {
        match ended {
            Ok(()) => Outcome::Completed.into(),
            Err(error) => {
                tracing::debug!(%error, "HTTP connection ended");
                how(&error)
            }
        }
    }
}

/// A connection that can be asked to end once its requests have.
trait Goodbye {
    fn poll_end(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended>;
    fn goodbye(self: Pin<&mut Self>);
}

/// What may happen to a connection while it serves.
enum Event {
    /// It stands on nothing any more.
    Lost(Outcome),
    /// It has carried nothing for long.
    Unused,
    /// The drain has begun; until [`Event::Leave`], a request that is on its way is still answered.
    Draining,
    /// It may end with its last request.
    Leave,
    /// The farewell is over: what still runs is reset.
    Reset(Outcome),
    /// The resets have been said, or cannot be.
    Over(Outcome),
    /// The drain is over.
    Cut,
}

async fn drive<'a>(
    mut connection: Pin<&mut impl Goodbye>,
    turn: &Turn,
    linger: Duration,
    lifecycle: &Lifecycle,
    lost: BoxFuture<'a, Outcome>,
    running: &Running,
    unused: Option<BoxFuture<'a, ()>>,
) -> Ended {
    // Polled only when one of them has woken: the connection is polled for every request.
    let mut events: FuturesUnordered<BoxFuture<'a, Event>> = FuturesUnordered::new();
    events.push(lost.map(Event::Lost).boxed());
    events.push(
        lifecycle
            .reached(Phase::Draining)
            .map(|()| Event::Draining)
            .boxed(),
    );
    events.extend(unused.map(|unused| unused.map(|()| Event::Unused).boxed()));
    let mut outcome = None;
    loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| {
                turn.begin();
                connection.as_mut().poll_end(cx)
            }) => {
                return outcome.map_or(ended, Ended::from);
            }
            Some(event) = events.next() => match event {
                Event::Lost(why) => {
                    outcome = Some(why);
                    connection.as_mut().goodbye();
                    events.push(tokio::time::sleep(FAREWELL).map(move |()| Event::Reset(why)).boxed());
                }
                Event::Unused => {
                    outcome = outcome.or(Some(Outcome::IdleTimeout));
                    connection.as_mut().goodbye();
                }
                Event::Reset(why) => {
                    running.close(why);
                    events.push(tokio::time::sleep(LAST_WORDS).map(move |()| Event::Over(why)).boxed());
                }
                Event::Draining => {
                    events.push(lifecycle.reached(Phase::Cut).map(|()| Event::Cut).boxed());
                    events.push(tokio::time::sleep(linger).map(|()| Event::Leave).boxed());
                }
                Event::Leave => connection.as_mut().goodbye(),
                Event::Over(why) => return why.into(),
                Event::Cut => return Outcome::Cut.into(),
            },
        }
    }
}

fn how(error: &hyper::Error) -> Ended {
    let body = error.source().and_then(|cause| cause.downcast_ref());
    if let Some(BrokenOff::Revoked { why, .. }) = body {
        (*why).into()
    } else if let Some(BrokenOff::Failed(_) | BrokenOff::Stream(_)) = body {
        Outcome::UpstreamFailed.into()
    } else if error.is_timeout() {
        Ended::at(Limit::HeaderTime)
    } else if error.is_parse_too_large() {
        Ended::at(Limit::HeaderBytes)
    } else if error.is_parse() {
        Outcome::BadRequest.into()
    } else {
        Outcome::ClientGone.into()
    }
}

/// HTTP/2 requests at once on a connection to us.
const STREAMS: u32 = 1000;

/// How long requests under way may go on when their connection has lost its standing.
pub const FAREWELL: Duration = Duration::from_millis(200);

/// How long it may take to tell the other side that they are reset.
pub const LAST_WORDS: Duration = Duration::from_millis(100);

/// How long a kept HTTP/1.1 connection stays open in a drain for a request already on its way.
const LINGER: Duration = Duration::from_secs(1);
