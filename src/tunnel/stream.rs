//! One session's bytes on a connection that it shares.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::client::Seat;

/// Bytes both ways in the DATA frames of one CONNECT (RFC 9113 §8.5). END_STREAM is the half-close, and
/// dropping it before both sides have ended is the reset.
pub struct Stream {
    send: SendStream<Bytes>,
    receive: Receive,
    /// What was received and not yet read.
    rest: Bytes,
    /// How receiving ended, where that was seen while there were still bytes to hand out.
    ended: Option<io::Result<()>>,
    closed: bool,
    _seat: Option<Seat>,
}

enum Receive {
    /// The other side has not said yet whether it takes the session.
    Answer(ResponseFuture),
    Bytes(RecvStream),
}

/// The other side does not take the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side refuses the session: {0}")]
pub struct Refused(pub StatusCode);

impl Stream {
    pub(super) fn asked(answer: ResponseFuture, send: SendStream<Bytes>, seat: Seat) -> Self {
        Self::new(Receive::Answer(answer), send, Some(seat))
    }

    pub(super) fn taken(receive: RecvStream, send: SendStream<Bytes>) -> Self {
        Self::new(Receive::Bytes(receive), send, None)
    }

    fn new(receive: Receive, send: SendStream<Bytes>, seat: Option<Seat>) -> Self {
        Self {
            send,
            receive,
            rest: Bytes::new(),
            ended: None,
            closed: false,
            _seat: seat,
        }
    }

    /// Tells the other side that what is behind this one broke off (RFC 9113 §8.5).
    pub fn reset(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut RecvStream>> {
        if let Receive::Answer(answer) = &mut self.receive {
            let answer = ready!(Pin::new(answer).poll(cx)).map_err(broken)?;
            if answer.status() != StatusCode::OK {
                return Poll::Ready(Err(io::Error::other(Refused(answer.status()))));
            }
            self.receive = Receive::Bytes(answer.into_body());
        }
        match &mut self.receive {
            Receive::Bytes(bytes) => Poll::Ready(Ok(bytes)),
            Receive::Answer(_) => Poll::Pending,
        }
    }

    /// What to say of a stream that cannot be written to: the refusal, if there was one.
    fn cannot_write(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        if let Receive::Answer(_) = self.receive
            && let Poll::Ready(Err(refusal)) = self.poll_answer(cx)
        {
            return refusal;
        }
        error
    }

    /// Fills `buffer` from what was received, or says how receiving ended.
    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            if !self.rest.is_empty() {
                let count = self.rest.len().min(buffer.remaining());
                buffer.put_slice(&self.rest[..count]);
                self.rest.advance(count);
                if let Receive::Bytes(bytes) = &mut self.receive {
                    // Only fails for more than was received.
                    let _ = bytes.flow_control().release_capacity(count);
                }
                if buffer.remaining() == 0 {
                    return Poll::Ready(Ok(()));
                }
                self.rest = Bytes::new();
            }
            if let Some(ended) = self.ended.take() {
                return Poll::Ready(ended);
            }
            match ready!(ready!(self.poll_answer(cx))?.poll_data(cx)) {
                Some(Ok(bytes)) => self.rest = bytes,
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = self.poll_fill(cx, buffer);
        if buffer.filled().len() == before {
            return polled;
        }
        // There is something to hand out first.
        if let Poll::Ready(ended) = polled
            && buffer.remaining() > 0
        {
            self.ended = Some(ended);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len());
        let mut capacity = self.send.capacity();
        while capacity == 0 {
            capacity = match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => {
                    return Poll::Ready(Err(self.cannot_write(cx, broken(error))));
                }
                None => {
                    let gone = io::ErrorKind::BrokenPipe.into();
                    return Poll::Ready(Err(self.cannot_write(cx, gone)));
                }
            };
        }
        let count = capacity.min(bytes.len());
        let data = Bytes::copy_from_slice(&bytes[..count]);
        match self.send.send_data(data, false) {
            Ok(()) => Poll::Ready(Ok(count)),
            Err(error) => Poll::Ready(Err(self.cannot_write(cx, broken(error)))),
        }
    }

    /// Whoever drives the connection does it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            self.closed = true;
            self.send
                .send_data(Bytes::new(), true)
                .map_err(|_| io::ErrorKind::NotConnected)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream")
            .field(&self.send.stream_id())
            .finish()
    }
}

/// An error of the stream, or of the connection below it.
fn broken(error: h2::Error) -> io::Error {
    let kind = match error.get_io() {
        Some(error) => error.kind(),
        None => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, error)
}
