//! What has come on a connection is looked for once each time that the connection runs.
//!
//! h2 looks anew for each request that it hands out, and hyper at each step that it takes, although all that
//! they could find has come before the first. Through TLS and the runtime, each look costs a few hundred
//! instructions.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream in which nothing more is to be found in a turn when there once was nothing.
#[derive(Debug)]
pub(crate) struct InTurns<IO> {
    io: IO,
    turn: Turn,
}

/// Tells [`InTurns`] when a turn begins. Without, it would be silent for ever.
#[derive(Clone, Debug)]
pub(crate) struct Turn(Arc<AtomicU8>);

impl<IO> InTurns<IO> {
    pub(crate) fn new(io: IO) -> (Self, Turn) {
        let turn = Turn(Arc::new(AtomicU8::new(BEGUN)));
        let in_turns = Self {
            io,
            turn: turn.clone(),
        };
        (in_turns, turn)
    }
}

impl Turn {
    /// Whoever reads begins a turn.
    pub(crate) fn begin(&self) {
        if self.0.load(Ordering::Relaxed) == LOOKED {
            self.0.store(BEGUN, Ordering::Relaxed);
        }
    }

    /// From now on somebody reads who knows no turns.
    pub(crate) fn end(&self) {
        self.0.store(NONE, Ordering::Relaxed);
    }

    /// Begins a turn each time that `reader` runs.
    pub(crate) async fn each<F: Future + Unpin>(self, mut reader: F) -> F::Output {
        poll_fn(|cx| {
            self.begin();
            Pin::new(&mut reader).poll(cx)
        })
        .await
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for InTurns<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let turn = self.turn.0.load(Ordering::Relaxed);
        if turn == LOOKED {
            // The first look has left word where to be woken.
            return Poll::Pending;
        }
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if turn == BEGUN && read.is_pending() {
            self.turn.0.store(LOOKED, Ordering::Relaxed);
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for InTurns<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A turn has begun.
const BEGUN: u8 = 0;
/// In this turn it was looked, and there was nothing.
const LOOKED: u8 = 1;
/// There are no turns any more.
const NONE: u8 = 2;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_comes_after_a_look_is_found_in_the_next_turn() {
        let (mut theirs, ours) = duplex(64);
        let (mut ours, turn) = InTurns::new(ours);
        assert!(ours.read_u8().now_or_never().is_none());
        theirs.write_all(b"abc").await.unwrap();
        assert!(ours.read_u8().now_or_never().is_none());
        turn.begin();
        assert_eq!(ours.read_u8().await.unwrap(), b'a');
        // What has come already is found at once.
        assert_eq!(ours.read_u8().await.unwrap(), b'b');
        assert_eq!(
            turn.clone().each(Box::pin(ours.read_u8())).await.unwrap(),
            b'c'
        );
        assert!(ours.read_u8().now_or_never().is_none());
        turn.end();
        theirs.write_all(b"d").await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'd');
        turn.begin();
        assert!(ours.read_u8().now_or_never().is_none());
        theirs.write_all(b"e").await.unwrap();
        assert_eq!(ours.read_u8().await.unwrap(), b'e');
    }
}
