//! The side that is asked for sessions.

use std::future::{Future, poll_fn};
use std::pin::pin;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use h2::ext::Protocol;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};

use super::gathered::gather;
use super::{HEADER_BYTES, SEND_BUFFER, SMALL_FRAMES, Stream, watch};
use crate::lifecycle::{Lifecycle, Phase};
use crate::outcome::Outcome;
use crate::serve::{FAREWELL, LAST_WORDS};
use crate::upstream::{MAX_FRAME, PING_EVERY, STREAM_WINDOW};

/// What a peer may make us hold on one shared connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    window: u32,
    stream_window: u32,
    streams: u32,
}

impl Limits {
    /// At most `streams` sessions, and `window` bytes before they are read. As many sessions as can have a
    /// window each: those that are not read must not hold up the others.
    #[must_use]
    pub fn within(window: u32, streams: u32) -> Self {
        let stream_window = (window / SHARES).clamp(LEAST_WINDOW, STREAM_WINDOW);
        Self {
            window,
            stream_window,
            streams: streams.min(window / stream_window).max(1),
        }
    }
}

/// Serves a shared connection on `io`: each session that is asked for goes to `take`. When `lost` completes,
/// and when the drain begins, no more are taken, and those that are open end by themselves.
pub async fn serve<IO>(
    io: IO,
    limits: Limits,
    lifecycle: &Lifecycle,
    lost: impl Future<Output = Outcome> + Send,
    mut take: impl FnMut(Asked),
) -> Outcome
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let (io, outlet) = gather(io);
    let handshake = Builder::new()
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.window)
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(Some(RESETS))
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(HEADER_BYTES)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .handshake::<_, Bytes>(io);
    let mut handshake = pin!(handshake);
    let begun = poll_fn(|cx| outlet.driving(cx, |cx| handshake.as_mut().poll(cx))).await;
    let mut connection = match begun {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return how(&error),
        Err(_) => return Outcome::ClientGone,
    };

    let mut events: FuturesUnordered<BoxFuture<'_, Event>> = FuturesUnordered::new();
    events.push(lost.map(Event::Lost).boxed());
    events.push(reached(lifecycle, Phase::Draining, Event::Leave));
    events.push(reached(lifecycle, Phase::Cut, Event::Lost(Outcome::Cut)));
    let mut gone = watch(connection.ping_pong(), PING_EVERY * 4);
    let mut outcome = None;
    loop {
        tokio::select! {
            biased;
            asked = poll_fn(|cx| outlet.driving(cx, |cx| connection.poll_accept(cx))) => match asked {
                Ok(Some(Ok((request, respond)))) => take(Asked { request, respond }),
                Ok(Some(Err(error))) => return outcome.unwrap_or_else(|| how(&error)),
                Ok(None) => return outcome.unwrap_or(Outcome::Completed),
                Err(_) => return outcome.unwrap_or(Outcome::ClientGone),
            },
            Some(event) = events.next() => match event {
                Event::Leave => connection.graceful_shutdown(),
                Event::Lost(why) => {
                    outcome.get_or_insert(why);
                    connection.graceful_shutdown();
                    // Each session knows by itself that it has lost what it stands on.
                    let over = tokio::time::sleep(FAREWELL + LAST_WORDS);
                    events.push(over.map(move |()| Event::Over(why)).boxed());
                }
                Event::Over(why) => return why,
            },
            Some(()) = gone.next() => return Outcome::ClientGone,
        }
    }
}

/// What may happen to a connection while it serves.
enum Event {
    /// It may end with its last session.
    Leave,
    /// It stands on nothing any more.
    Lost(Outcome),
    /// The sessions have had the time to end.
    Over(Outcome),
}

fn reached(lifecycle: &Lifecycle, phase: Phase, event: Event) -> BoxFuture<'static, Event> {
    lifecycle.reached(phase).map(move |()| event).boxed()
}

/// How a connection ended that HTTP/2 could not go on with.
fn how(error: &h2::Error) -> Outcome {
    if error.is_io() || error.is_remote() {
        Outcome::ClientGone
    } else {
        match error.reason() {
            Some(Reason::ENHANCE_YOUR_CALM) => Outcome::Overloaded,
            _ => Outcome::BadRequest,
        }
    }
}

/// A peer that asks for a session.
#[derive(Debug)]
pub struct Asked {
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
}

impl Asked {
    /// Whether it is a CONNECT as RFC 9113 §8.5 describes it. h2 has refused one with a scheme or a path.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let extended = self.request.extensions().get::<Protocol>();
        self.request.method() == Method::CONNECT
            && self.request.uri().authority().is_some()
            && extended.is_none()
    }

    /// Takes it.
    ///
    /// # Errors
    /// If the peer is gone already.
    pub fn take(mut self) -> Result<Stream, h2::Error> {
        let send = self.respond.send_response(Response::new(()), false)?;
        Ok(Stream::taken(self.request.into_body(), send))
    }

    /// Says with what `outcome` it ends before it has begun.
    pub fn refuse(mut self, outcome: Outcome) {
        let mut answer = Response::new(());
        *answer.status_mut() = outcome.status().unwrap_or(StatusCode::BAD_GATEWAY);
        // Nobody is there to hear it when this fails.
        let _ = self.respond.send_response(answer, true);
    }
}

/// Where credit is short, it is for so many sessions.
const SHARES: u32 = 16;
/// The smallest window of a session, in bytes: less would keep bytes waiting for credit.
const LEAST_WINDOW: u32 = 16 * 1024;
/// Sessions that were taken back before we looked at them, and of such that are wrong, before the connection
/// is ended (CVE-2023-44487, CVE-2025-8671).
const RESETS: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_that_are_not_read_leave_room_for_the_others() {
        for (window, streams, window_of_each) in [
            (65_535, 3, 16 * 1024),
            (1 << 20, 16, 64 * 1024),
            (4 << 20, 16, STREAM_WINDOW),
            (32 << 20, 128, STREAM_WINDOW),
            (512 << 20, 1000, STREAM_WINDOW),
        ] {
            let limits = Limits::within(window, 1000);
            assert_eq!(
                (limits.streams, limits.stream_window),
                (streams, window_of_each)
            );
            assert!(limits.streams * limits.stream_window <= window, "{window}");
        }
        assert_eq!(Limits::within(32 << 20, 5).streams, 5);
    }
}
