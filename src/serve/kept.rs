//! How is an HTTP/1.1 connection served, and what is left of it while nothing is asked?
//!
//! hyper holds its buffers and the place for a request's future for as long as it has a connection. So it
//! has one only while there is something to do: after [`PARK_AFTER`] without a request the stream is taken
//! back, and what then waits for the next bytes owns nothing else. With them it goes to hyper again. A
//! connection under load never gets that far.

use std::future::Future;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::Body;
use hyper::body::{Bytes, Incoming};
use hyper::rt;
use hyper::server::conn::http1::{Builder, UpgradeableConnection};
use hyper::service::HttpService;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::watched::{Sight, Watched};
use super::{Ended, Goodbye, Limits};
use crate::limits::Limit;
use crate::outcome::Outcome;
use crate::tls::detect::Prefixed;

/// An HTTP/1.1 connection from its first byte to its last.
pub(super) struct Kept<IO, S: HttpService<Incoming>> {
    stage: Stage<IO, S>,
    header_timeout: Duration,
    header_bytes: usize,
    sight: Arc<Sight>,
    head: Arc<Head>,
    /// The wait for a head of which hyper has a part, or may have: it ends with the head or in time.
    begun: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

/// Who has the stream.
enum Stage<IO, S: HttpService<Incoming>> {
    /// hyper.
    Served(Box<Served<IO, S>>),
    /// Nobody: nothing was asked since then.
    Parked(Watched<IO>, S, Instant),
    /// Nobody any more: it is being closed.
    Closing(Watched<IO>),
    Closed,
}

type Served<IO, S> = UpgradeableConnection<TokioIo<Prefixed<Watched<IO>>>, S>;

impl<IO, S, B> Kept<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B> + Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Waits for the first request on `io`.
    pub(super) fn new(io: Watched<IO>, sight: Arc<Sight>, limits: Limits, service: S) -> Self {
        Self {
            stage: Stage::Parked(io, service, Instant::now()),
            header_timeout: limits.header_timeout,
            header_bytes: limits.header_bytes as usize,
            sight,
            head: Arc::default(),
            begun: None,
            alarm: None,
        }
    }

    /// Gives the stream to hyper, which has waited since `since` for the head that begins with `read`.
    fn serve(&mut self, io: Watched<IO>, read: Bytes, service: S, since: Instant) {
        self.begun = Some(since);
        *self.head.locked() = Some(since);
        let connection = Builder::new()
            .timer(HeadTimer {
                head: self.head.clone(),
                made: std::time::Instant::now(),
            })
            .header_read_timeout(self.header_timeout)
            .max_header_size(self.header_bytes)
            .auto_date_header(false)
            .serve_connection(TokioIo::new(Prefixed::new(read, io)), service)
            .with_upgrades();
        self.stage = Stage::Served(Box::new(connection));
    }

    /// Gives it to hyper again, with what was read meanwhile.
    fn resume(&mut self, read: Bytes) {
        match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Parked(io, service, since) => self.serve(io, read, service, since),
            other => self.stage = other,
        }
    }

    /// Takes the stream back from hyper, which has waited for a head since `since` and has said all it had
    /// to say.
    fn park(&mut self, since: Instant) {
        let connection = match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Served(connection) => connection,
            other => return self.stage = other,
        };
        // Once it is upgraded it is somebody else's, and waits for no head.
        let Some(parts) = connection.into_parts() else {
            return;
        };
        let (_, io) = parts.io.into_inner().into_parts();
        if parts.read_buf.is_empty() {
            self.stage = Stage::Parked(io, parts.service, since);
        } else {
            // The beginning of a head came with the request before it.
            self.serve(io, parts.read_buf, parts.service, since);
        }
    }

    /// Closes a stream that hyper does not have.
    fn leave(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Closed) {
            Stage::Parked(io, ..) => self.stage = Stage::Closing(io),
            other => self.stage = other,
        }
    }

    /// When to look again if hyper goes on waiting for a head as it did since `since`.
    fn next_look(&self, since: Instant) -> Instant {
        let end = since + self.header_timeout;
        if self.begun == Some(since) {
            end
        } else {
            end.min(since + PARK_AFTER)
        }
    }

    /// Completes at `instant`, with what time it is then.
    fn poll_alarm(&mut self, cx: &mut Context<'_>, instant: Instant) -> Poll<Instant> {
        let alarm = self
            .alarm
            .get_or_insert_with(|| Box::pin(sleep_until(instant)));
        if alarm.deadline() > instant {
            alarm.as_mut().reset(instant);
        }
        loop {
            ready!(alarm.as_mut().poll(cx));
            let now = Instant::now();
            if now >= instant {
                return Poll::Ready(now);
            }
            // Set for a head that has come since: it is not moved with every request.
            alarm.as_mut().reset(instant);
        }
    }
}

impl<IO, S, B> Goodbye for Kept<IO, S>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = B> + Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn poll_end(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = &mut *self;
        loop {
            match &mut this.stage {
                Stage::Served(connection) => {
                    if let Poll::Ready(ended) = Pin::new(&mut **connection).poll(cx) {
                        this.stage = Stage::Closed;
                        return Poll::Ready(ended.into());
                    }
                    let head = *this.head.locked();
                    let Some(since) = head.filter(|_| !this.sight.parts()) else {
                        return Poll::Pending;
                    };
                    let now = ready!(this.poll_alarm(cx, this.next_look(since)));
                    if now >= since + this.header_timeout {
                        return Poll::Ready(Ended::at(Limit::HeaderTime));
                    }
                    if this.sight.stalls() {
                        // Whoever does not even take the last answer is not idle.
                        this.begun = Some(since);
                    } else {
                        this.park(since);
                    }
                }
                Stage::Parked(io, _, since) => {
                    let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH];
                    let mut buffer = ReadBuf::uninit(&mut scratch);
                    match Pin::new(io).poll_read(cx, &mut buffer) {
                        Poll::Ready(Ok(())) if buffer.filled().is_empty() => this.leave(),
                        Poll::Ready(Ok(())) => {
                            this.resume(Bytes::copy_from_slice(buffer.filled()));
                        }
                        Poll::Ready(Err(error)) => {
                            tracing::debug!(%error, "HTTP connection ended");
                            return Poll::Ready(Outcome::ClientGone.into());
                        }
                        Poll::Pending => {
                            let end = *since + this.header_timeout;
                            ready!(this.poll_alarm(cx, end));
                            return Poll::Ready(Ended::at(Limit::HeaderTime));
                        }
                    }
                }
                Stage::Closing(io) => {
                    // There is nobody left whom it would concern that this fails.
                    let _ = ready!(Pin::new(io).poll_shutdown(cx));
                    this.stage = Stage::Closed;
                }
                Stage::Closed => return Poll::Ready(Outcome::Completed.into()),
            }
        }
    }

    fn goodbye(mut self: Pin<&mut Self>) {
        match &mut self.stage {
            Stage::Served(connection) => Pin::new(&mut **connection).graceful_shutdown(),
            _ => self.leave(),
        }
    }
}

/// Since when hyper has been waiting for a request's head, if it does: it has read the request before it,
/// and written its response or at least handed all of it to be written.
#[derive(Debug, Default)]
struct Head(Mutex<Option<Instant>>);

impl Head {
    fn locked(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What hyper takes for a clock. It asks for a timer only when it begins to wait for a head, and drops it
/// when the head is there. When the time is over is not hyper's concern, but that of [`Kept`].
struct HeadTimer {
    head: Arc<Head>,
    made: std::time::Instant,
}

impl rt::Timer for HeadTimer {
    fn sleep(&self, _: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(self.now())
    }

    fn sleep_until(&self, _: std::time::Instant) -> Pin<Box<dyn rt::Sleep>> {
        self.head.locked().get_or_insert_with(Instant::now);
        Box::pin(HeadWait(self.head.clone()))
    }

    /// Any time will do.
    fn now(&self) -> std::time::Instant {
        self.made
    }

    /// One that is never late needs no new time.
    fn reset(&self, _: &mut Pin<Box<dyn rt::Sleep>>, _: std::time::Instant) {}
}

/// There while hyper waits for a head.
struct HeadWait(Arc<Head>);

impl Future for HeadWait {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }
}

impl rt::Sleep for HeadWait {}

impl Drop for HeadWait {
    fn drop(&mut self) {
        *self.0.locked() = None;
    }
}

/// How long nothing must be asked before hyper's share of a connection is given back.
const PARK_AFTER: Duration = Duration::from_secs(1);

/// Room for most heads. It is not initialised, so its size costs nothing.
const SCRATCH: usize = 8192;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use futures_util::future::BoxFuture;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use hyper::service::Service;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use super::*;

    const LIMITS: Limits = Limits {
        header_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(300),
        header_bytes: 65536,
        streams: 100,
        idle_timeout: Duration::from_secs(3600),
    };

    /// Answers with the path and the body, after as many seconds as the path has bytes.
    struct Echo;

    impl Service<Request<Incoming>> for Echo {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn call(&self, request: Request<Incoming>) -> Self::Future {
            let answer = async {
                let path = request.uri().path().to_owned();
                sleep(Duration::from_secs(path.len() as u64)).await;
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let answer = [path.as_bytes(), &body].concat();
                Ok(Response::new(Full::from(answer)))
            };
            answer.boxed()
        }
    }

    type Pinned = Pin<Box<Kept<DuplexStream, Echo>>>;

    /// A client, and what serves it through a pipe that holds `room` bytes.
    fn pair(room: usize) -> (DuplexStream, Pinned) {
        let (client, server) = duplex(room);
        let (io, sight) = Watched::new(server, false, LIMITS);
        (client, Box::pin(Kept::new(io, sight, LIMITS, Echo)))
    }

    /// Serves until `client` is done.
    async fn beside<T>(kept: &mut Pinned, client: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            done = client => done,
            ended = end(kept) => panic!("ended: {:?}", ended.outcome),
        }
    }

    async fn end(kept: &mut Pinned) -> Ended {
        poll_fn(|cx| kept.as_mut().poll_end(cx)).await
    }

    async fn ask(client: &mut DuplexStream, request: &str) -> String {
        client.write_all(request.as_bytes()).await.unwrap();
        answer(client).await
    }

    /// The body of one response.
    async fn answer(client: &mut DuplexStream) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let length = head.split("content-length: ").nth(1).unwrap();
        let length = length.split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        client.read_exact(&mut body).await.unwrap();
        String::from_utf8(body).unwrap()
    }

    const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn what_idles_is_parked_and_served_again() {
        let (mut client, mut kept) = pair(4096);
        for _ in 0..3 {
            assert_eq!(beside(&mut kept, ask(&mut client, GET)).await, "/");
            assert!(matches!(kept.stage, Stage::Served(_)));
            beside(&mut kept, sleep(PARK_AFTER / 2)).await;
            assert!(matches!(kept.stage, Stage::Served(_)));
            beside(&mut kept, sleep(PARK_AFTER)).await;
            assert!(matches!(kept.stage, Stage::Parked(..)));
        }
        drop(client);
        assert_eq!(end(&mut kept).await.outcome, Outcome::Completed);
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_is_under_way_is_not_parked() {
        let (mut client, mut kept) = pair(4096);
        // The response takes ten seconds.
        let slow = "GET /slowly/to HTTP/1.1\r\nhost: a\r\n\r\n";
        let answered = beside(&mut kept, ask(&mut client, slow)).await;
        assert_eq!(answered, "/slowly/to");
        // So does the body.
        let client = async {
            let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n";
            client.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..5 {
                sleep(PARK_AFTER * 2).await;
                client.write_all(b"x").await.unwrap();
            }
            assert_eq!(answer(&mut client).await, "/xxxxx");
            // And the next head, the first half of which came with a whole request.
            let (first, second) = GET.split_at(7);
            assert_eq!(ask(&mut client, &format!("{GET}{first}")).await, "/");
            sleep(PARK_AFTER * 10).await;
            assert_eq!(ask(&mut client, second).await, "/");
        };
        beside(&mut kept, client).await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_not_taken_yet_is_not_lost() {
        let (mut client, mut kept) = pair(8);
        let client = async {
            client.write_all(GET.as_bytes()).await.unwrap();
            sleep(PARK_AFTER * 10).await;
            assert_eq!(answer(&mut client).await, "/");
        };
        beside(&mut kept, client).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_must_be_there_in_time_however_often_its_wait_is_interrupted() {
        for pieces in ["", "G", "GET / HTTP/1.1\r\nhost:"] {
            for asked in [false, true] {
                let (mut client, mut kept) = pair(4096);
                if asked {
                    beside(&mut kept, ask(&mut client, GET)).await;
                }
                let began = Instant::now();
                let dripping = async {
                    for piece in pieces.bytes() {
                        sleep(PARK_AFTER * 2).await;
                        client.write_u8(piece).await.unwrap();
                    }
                    std::future::pending::<()>().await;
                };
                let ended = tokio::select! {
                    ended = end(&mut kept) => ended,
                    () = dripping => unreachable!(),
                };
                assert_eq!(ended.limit, Some(Limit::HeaderTime), "{pieces:?}");
                let took = began.elapsed();
                let late = took.saturating_sub(LIMITS.header_timeout);
                assert!(took >= LIMITS.header_timeout, "{pieces:?}: {took:?}");
                assert!(late < Duration::from_millis(10), "{pieces:?}: {took:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn goodbye_closes_what_is_parked_and_waits_for_what_is_asked() {
        let (mut client, mut kept) = pair(4096);
        beside(&mut kept, ask(&mut client, GET)).await;
        beside(&mut kept, sleep(PARK_AFTER * 2)).await;
        kept.as_mut().goodbye();
        assert_eq!(end(&mut kept).await.outcome, Outcome::Completed);
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);

        let (mut client, mut kept) = pair(4096);
        client.write_all(GET.as_bytes()).await.unwrap();
        beside(&mut kept, sleep(Duration::from_millis(10))).await;
        kept.as_mut().goodbye();
        assert_eq!(end(&mut kept).await.outcome, Outcome::Completed);
        assert_eq!(answer(&mut client).await, "/");
    }
}
