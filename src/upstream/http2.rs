//! How does an HTTP/2 connection that we open begin, and how is it kept going until it ends?
//!
//! It takes three parts: the [`Sender`] opens streams, [`Driving`] has to be run by somebody, and
//! [`Answered`] tells when the other side has accepted us.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::{Ping, PingPong, Reason};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use super::{DialError, HEADER_BYTES, MAX_FRAME, PING_EVERY, STREAM_WINDOW};
use crate::limits::Limit;
use crate::tls::HandshakeError;

/// Opens streams on one connection. The connection ends when every clone is gone and every stream has ended.
pub(crate) type Sender = h2::client::SendRequest<Bytes>;

/// A connection that has just begun.
pub(crate) struct Begun<Io> {
    pub(crate) sender: Sender,
    /// Nothing goes or comes unless this runs.
    pub(crate) driving: Driving<Io>,
    pub(crate) answered: Answered,
}

/// Begins HTTP/2 on `io`, with at most `streams` requests at once until the other side has said how many it
/// takes, which may send `credit` bytes before they are read.
///
/// # Errors
/// [`DialError::Http2`].
pub(crate) async fn begin<Io>(io: Io, streams: usize, credit: u32) -> Result<Begun<Io>, DialError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let life = Arc::new(Life::new());
    let (io, answered) = Heard::new(io, life.clone());
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(credit)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(HEADER_BYTES)
        .initial_max_send_streams(streams)
        .max_send_buffer_size(MAX_FRAME as usize * 4)
        .handshake(io)
        .await
        .map_err(DialError::Http2)?;
    Ok(Begun {
        sender,
        driving: Driving { connection, life },
        answered: Answered(answered),
    })
}

/// What goes and comes on a connection.
pub(crate) struct Driving<Io> {
    connection: h2::client::Connection<Heard<Io>, Bytes>,
    life: Arc<Life>,
}

impl<Io> Driving<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    /// Runs until the connection has ended, or the other side answers no more.
    ///
    /// # Errors
    /// What broke it off.
    pub(crate) async fn run(mut self) -> Result<(), Broken> {
        let pings = self.connection.ping_pong();
        // Polled only when it has woken: the connection is polled for every frame.
        let mut silence = FuturesUnordered::new();
        silence.extend(pings.map(|pings| silent(pings, self.life, PING_EVERY)));
        tokio::select! {
            biased;
            ended = self.connection => Ok(ended?),
            Some(()) = silence.next() => Err(Broken::Silent),
        }
    }
}

/// What ended a connection before its time.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// HTTP/2 itself, or what is under it.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// Nothing was heard any more, not even an answer to a PING.
    #[error("no answer to a PING within {PING_EVERY:?}")]
    Silent,
}

impl Broken {
    /// The limit that ended it, if it was one of h2's own.
    pub(crate) fn limit(&self) -> Option<Limit> {
        match self {
            Self::Http2(error) if error.is_go_away() && error.is_library() => {
                (error.reason() == Some(Reason::ENHANCE_YOUR_CALM)).then_some(Limit::Frames)
            }
            Self::Http2(_) | Self::Silent => None,
        }
    }
}

/// Completes when a PING is not answered, and nothing else comes, for [`PING_EVERY`]. One is sent when nothing
/// has come for `quiet`.
pub(crate) async fn silent(mut pings: PingPong, life: Arc<Life>, quiet: Duration) {
    loop {
        let due = life.last() + quiet;
        if Instant::now() < due {
            sleep_until(due).await;
            continue;
        }
        let mut pong = std::pin::pin!(pings.ping(Ping::opaque()));
        let mut patience = Instant::now() + PING_EVERY;
        loop {
            match timeout_at(patience, pong.as_mut()).await {
                Ok(Ok(_)) => break,
                // The connection is ending by itself.
                Ok(Err(_)) => return std::future::pending().await,
                Err(_) => {}
            }
            // The answer may be on its way behind much else.
            let later = life.last() + PING_EVERY;
            if later <= patience {
                return;
            }
            patience = later;
        }
    }
}

/// When the other side was last heard of.
pub(crate) struct Life {
    began: Instant,
    /// Milliseconds since.
    last: AtomicU64,
}

impl Life {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    fn sign(&self) {
        let passed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(passed, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }
}

/// Tells whether the other side has accepted us.
pub(crate) struct Answered(oneshot::Receiver<Result<(), HandshakeError>>);

impl Answered {
    /// Waits for the other side's first bytes, which every HTTP/2 server sends unasked (RFC 9113 §3.4). In TLS
    /// 1.3 a server that refuses our certificate says so in their place, when we believe the handshake done:
    /// then no request has been risked on the connection.
    ///
    /// # Errors
    /// Why it has not.
    pub(crate) async fn wait(self) -> Result<(), DialError> {
        match timeout(PING_EVERY, self.0).await {
            Ok(Ok(answer)) => Ok(answer?),
            Ok(Err(_)) => Err(DialError::Connect(io::ErrorKind::UnexpectedEof.into())),
            Err(_) => Err(DialError::Timeout(PING_EVERY)),
        }
    }
}

/// Listens on `io` for whether the other side accepts us.
pub(crate) fn heard<Io>(io: Io) -> (Heard<Io>, Answered) {
    let (io, told) = Heard::new(io, Arc::new(Life::new()));
    (io, Answered(told))
}

/// A stream that tells how the first reading of it went, and when the last one was.
pub(crate) struct Heard<Io> {
    io: Io,
    life: Arc<Life>,
    tell: Option<oneshot::Sender<Result<(), HandshakeError>>>,
}

impl<Io> Heard<Io> {
    /// Tells nobody of the first reading.
    pub(crate) fn only(io: Io) -> (Self, Arc<Life>) {
        let life = Arc::new(Life::new());
        let heard = Self {
            io,
            life: life.clone(),
            tell: None,
        };
        (heard, life)
    }

    fn new(io: Io, life: Arc<Life>) -> (Self, oneshot::Receiver<Result<(), HandshakeError>>) {
        let (tell, told) = oneshot::channel();
        let tell = Some(tell);
        (Self { io, life, tell }, told)
    }
}

impl<Io: AsyncRead + Unpin> Heard<Io> {
    /// A refusal may come in while we still write: then writing fails first, and its error is held back
    /// until reading has said why. A connection that fails can always be read to its end.
    fn cut(&mut self, cx: &mut Context<'_>, error: io::Error) -> Poll<io::Error> {
        if self.tell.is_some() {
            let mut space = [0; 1];
            let read = ready!(Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut space)));
            let reason = refusal(&read.err().unwrap_or_else(|| error.kind().into()));
            if let Some(tell) = self.tell.take() {
                let _ = tell.send(Err(reason));
            }
        }
        Poll::Ready(error)
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Heard<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buffer));
        self.life.sign();
        if let Some(tell) = self.tell.take() {
            // Nobody listens any more when the wait was given up.
            let _ = tell.send(match &read {
                Ok(()) if buffer.filled().len() > before => Ok(()),
                Ok(()) => Err(HandshakeError::Io(io::ErrorKind::UnexpectedEof.into())),
                Err(error) => Err(refusal(error)),
            });
        }
        Poll::Ready(read)
    }
}

/// An error cannot be had twice; an alert is what matters in it.
fn refusal(error: &io::Error) -> HandshakeError {
    let rustls = error
        .get_ref()
        .and_then(|error| error.downcast_ref::<rustls::Error>());
    match rustls {
        Some(error) => error.clone().into(),
        None => HandshakeError::Io(error.kind().into()),
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Heard<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.io).poll_write(cx, buf)) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(error) => self.cut(cx, error).map(Err),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match ready!(Pin::new(&mut self.io).poll_write_vectored(cx, bufs)) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(error) => self.cut(cx, error).map(Err),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.io).poll_flush(cx)) {
            Ok(()) => Poll::Ready(Ok(())),
            Err(error) => self.cut(cx, error).map(Err),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_goes_on_while_pings_are_answered_and_no_longer() {
        let (ours, theirs) = duplex(64 * 1024);
        let begun = begin(ours, 1, STREAM_WINDOW).await.unwrap();
        // With it gone the connection would end by itself.
        let _sender = begun.sender;
        let mut running = tokio::spawn(begun.driving.run());
        let mut server = h2::server::handshake(theirs).await.unwrap();
        begun.answered.wait().await.unwrap();

        let answering = std::future::poll_fn(|cx| server.poll_closed(cx));
        let hour = Duration::from_secs(3600);
        assert!(timeout(hour, answering).await.is_err());
        assert!(!running.is_finished());

        // Nobody reads what comes to the server now.
        let ended = timeout(PING_EVERY * 3, &mut running).await.unwrap();
        assert!(matches!(ended, Ok(Err(Broken::Silent))), "{ended:?}");
    }
}
