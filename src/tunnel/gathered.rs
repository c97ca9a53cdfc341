//! How do the frames of many streams leave in one write?
//!
//! h2 flushes after each frame of some size: a TLS record and a system call for each. Here what it writes
//! is kept until whoever drives the connection has let it say all that it has to say now.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose flush is for [`Outlet::driving`] to do.
#[derive(Debug)]
pub(super) struct Gathered<IO>(Arc<Mutex<Pipe<IO>>>);

/// The other hold of a [`Gathered`] stream.
#[derive(Debug)]
pub(super) struct Outlet<IO>(Arc<Mutex<Pipe<IO>>>);

#[derive(Debug)]
struct Pipe<IO> {
    io: IO,
    /// What is to be written, from `start` on.
    kept: Vec<u8>,
    start: usize,
    unflushed: bool,
}

/// Gathers what is written to `io`.
pub(super) fn gather<IO>(io: IO) -> (Gathered<IO>, Outlet<IO>) {
    let pipe = Arc::new(Mutex::new(Pipe {
        io,
        kept: Vec::new(),
        start: 0,
        unflushed: false,
    }));
    (Gathered(pipe.clone()), Outlet(pipe))
}

fn lock<IO>(pipe: &Mutex<Pipe<IO>>) -> MutexGuard<'_, Pipe<IO>> {
    pipe.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<IO: AsyncWrite + Unpin> Outlet<IO> {
    /// Lets `drive` say what it has to say now, and writes it.
    ///
    /// # Errors
    /// When that cannot be written.
    pub(super) fn driving<T>(
        &self,
        cx: &mut Context<'_>,
        drive: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<io::Result<T>> {
        let driven = drive(cx).map(Ok);
        if driven.is_pending()
            && let Poll::Ready(Err(error)) = lock(&self.0).poll_flush(cx)
        {
            return Poll::Ready(Err(error));
        }
        driven
    }
}

impl<IO: AsyncWrite + Unpin> Pipe<IO> {
    fn poll_write_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.start < self.kept.len() {
            let rest = &self.kept[self.start..];
            match ready!(Pin::new(&mut self.io).poll_write(cx, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.start += written,
            }
        }
        self.start = 0;
        // An idle connection keeps no buffer.
        self.kept = Vec::new();
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.unflushed {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_write_kept(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.unflushed = false;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Gathered<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_read(cx, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Gathered<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = lock(&self.0);
        if pipe.kept.len() >= MOST {
            ready!(pipe.poll_write_kept(cx))?;
        }
        pipe.unflushed = true;
        let count = pieces.iter().map(|piece| piece.len()).sum();
        if pipe.kept.is_empty() && count >= MOST {
            return Pin::new(&mut pipe.io).poll_write_vectored(cx, pieces);
        }
        for piece in pieces {
            pipe.kept.extend_from_slice(piece);
        }
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Done when the driver does it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.0);
        ready!(pipe.poll_flush(cx))?;
        Pin::new(&mut pipe.io).poll_shutdown(cx)
    }
}

/// So many bytes are worth a write of their own: a full TLS record.
const MOST: usize = 16 * 1024;
