//! How is an HTTP/2 connection served, from its preface to its last stream?

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use h2::Reason;
use h2::server::{Builder, Connection, Handshake};
use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};

use super::streams::Streams;
use super::{Bounds, Ended, Goodbye};
use crate::exchange::{Coming, Passing};
use crate::limits::Limit;
use crate::outcome::Outcome;
use crate::upstream::http2::{Heard, Life, silent};
use crate::upstream::{MAX_FRAME, PING_EVERY, STREAM_WINDOW};

/// An HTTP/2 connection from its first byte to its last.
pub(super) struct Served<IO, S> {
    stage: Stage<IO>,
    life: Arc<Life>,
    streams: Streams,
    service: S,
    /// It was said goodbye to.
    leaves: bool,
    /// Completes when nothing is heard of the other side any more. Polled only when it has woken.
    silence: FuturesUnordered<BoxFuture<'static, ()>>,
    /// Nothing was.
    silent: bool,
}

/// How far it is.
enum Stage<IO> {
    /// The other side's preface has not come.
    Beginning(Box<Handshake<Heard<IO>>>),
    Open(Box<Connection<Heard<IO>, Bytes>>),
}

impl<IO, S> Served<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    /// Serves requests on `io` with `service`, each of them among `streams`.
    pub(super) fn new(io: IO, bounds: Bounds<'_>, streams: Streams, service: S) -> Self {
        let (io, life) = Heard::only(io);
        let handshake = Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(bounds.credit.bytes())
            .max_frame_size(MAX_FRAME)
            .max_concurrent_streams(bounds.limits.streams)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(Some(RESETS))
            .max_header_list_size(bounds.limits.header_bytes)
            .max_send_buffer_size(MAX_FRAME as usize * 4)
            .handshake(io);
        Self {
            stage: Stage::Beginning(Box::new(handshake)),
            life,
            streams,
            service,
            leaves: false,
            silence: FuturesUnordered::new(),
            silent: false,
        }
    }
}

impl<IO, S, F, B> Goodbye for Served<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    S: Fn(Request<Coming>) -> F + Unpin,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Passing + Send + 'static,
{
    fn poll_end(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = &mut *self;
        loop {
            match &mut this.stage {
                Stage::Beginning(handshake) => {
                    let mut connection = match ready!(Pin::new(&mut **handshake).poll(cx)) {
                        Ok(connection) => connection,
                        Err(error) => return Poll::Ready(error.into()),
                    };
                    let pings = connection.ping_pong();
                    let silent = pings.map(|pings| silent(pings, this.life.clone(), QUIET).boxed());
                    this.silence.extend(silent);
                    if this.leaves {
                        connection.graceful_shutdown();
                    }
                    this.stage = Stage::Open(Box::new(connection));
                }
                Stage::Open(connection) => match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        let answer = || (this.service)(Coming::of_request(request));
                        this.streams.answer(answer, respond);
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(error.into()),
                    Poll::Ready(None) if this.silent => {
                        return Poll::Ready(Ended::at(Limit::HeaderTime));
                    }
                    Poll::Ready(None) => return Poll::Ready(Outcome::Completed.into()),
                    Poll::Pending => {
                        let Poll::Ready(Some(())) = this.silence.poll_next_unpin(cx) else {
                            return Poll::Pending;
                        };
                        this.silent = true;
                        connection.abrupt_shutdown(Reason::NO_ERROR);
                    }
                },
            }
        }
    }

    fn goodbye(mut self: Pin<&mut Self>) {
        self.leaves = true;
        if let Stage::Open(connection) = &mut self.stage {
            connection.graceful_shutdown();
        }
    }
}

impl From<h2::Error> for Ended {
    fn from(error: h2::Error) -> Self {
        tracing::debug!(%error, "HTTP/2 connection ended");
        // h2 itself could not let pass what the other side sent.
        let ours = error.is_go_away() && error.is_library();
        match error.reason().filter(|_| ours) {
            Some(Reason::ENHANCE_YOUR_CALM) => Self::at(Limit::Frames),
            Some(_) => Outcome::BadRequest.into(),
            None => Outcome::ClientGone.into(),
        }
    }
}

/// HTTP/2 requests that were taken back before we looked at them, and of such that are wrong, before the
/// connection is ended (CVE-2023-44487, CVE-2025-8671).
const RESETS: usize = 100;

/// After so long without a word the other side is asked whether it is there.
const QUIET: Duration = PING_EVERY.saturating_mul(4);

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicBool, Ordering};

    use futures_util::task::AtomicWaker;
    use http_body::{Body, Frame};
    use prometheus::Registry;
    use tokio::io::{DuplexStream, duplex};
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::exchange::BrokenOff;
    use crate::limits::{Credit, Metrics, Tally};
    use crate::serve::Limits;

    const LIMITS: Limits = Limits {
        header_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(300),
        header_bytes: 65536,
        streams: 100,
        idle_timeout: Duration::from_secs(3600),
    };

    /// Ten bytes, for as long as nobody withdraws them.
    #[derive(Clone, Default)]
    struct Lasting(Arc<(AtomicBool, AtomicWaker)>);

    impl Lasting {
        fn withdraw(&self) {
            self.0.0.store(true, Ordering::Relaxed);
            self.0.1.wake();
        }
    }

    impl Body for Lasting {
        type Data = Bytes;
        type Error = BrokenOff;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"0123456789")))))
        }
    }

    impl Passing for Lasting {
        fn poll_broken_off(&self, cx: &Context<'_>) -> Poll<BrokenOff> {
            self.0.1.register(cx.waker());
            if !self.0.0.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            Poll::Ready(BrokenOff::Revoked {
                why: Outcome::PermitWithdrawn,
                reset: Reason::CANCEL.into(),
            })
        }
    }

    /// Answers all that is asked on `io` with `body`, to the end of the connection.
    async fn serve(io: DuplexStream, body: Lasting) -> Ended {
        let tally = tally();
        let credit = Credit::default().lend();
        let service = move |_| std::future::ready(Response::new(body.clone()));
        let streams = Streams::new(LIMITS.stall_timeout, &tally);
        let bounds = LIMITS.bounds(&credit, &tally);
        let mut served = Box::pin(Served::new(io, bounds, streams, service));
        poll_fn(|cx| served.as_mut().poll_end(cx)).await
    }

    fn tally() -> Tally {
        let metrics = Metrics::register(&Registry::new()).unwrap();
        metrics.of("inbound", "a")
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_is_not_heard_of_any_more_is_let_go() {
        let (ours, theirs) = duplex(64 * 1024);
        let serving = tokio::spawn(serve(ours, Lasting::default()));
        let (_sender, connection) = h2::client::handshake(theirs).await.unwrap();
        // Pings are answered for as long as the client runs.
        let hour = Duration::from_secs(3600);
        let mut connection = Box::pin(connection);
        assert!(timeout(hour, &mut connection).await.is_err());
        assert!(!serving.is_finished());

        let stopped = Instant::now();
        assert_eq!(serving.await.unwrap().limit, Some(Limit::HeaderTime));
        assert!(stopped.elapsed() <= QUIET + PING_EVERY * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_nobody_takes_ends_with_what_it_stands_on() {
        for withdrawn in [true, false] {
            let (ours, theirs) = duplex(64 * 1024);
            let body = Lasting::default();
            let began = Instant::now();
            tokio::spawn(serve(ours, body.clone()));
            let (mut sender, connection) = h2::client::Builder::new()
                .initial_window_size(0)
                .handshake::<_, Bytes>(theirs)
                .await
                .unwrap();
            tokio::spawn(connection);
            let request = Request::get("http://a/").body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            let mut taken = response.await.unwrap().into_body();
            if withdrawn {
                body.withdraw();
            }
            let broken = taken.data().await.unwrap().unwrap_err();
            assert_eq!(broken.reason(), Some(Reason::CANCEL));
            // Without a word of ours it is patience that ends.
            assert_eq!(began.elapsed() < LIMITS.stall_timeout, withdrawn);
        }
    }
}
