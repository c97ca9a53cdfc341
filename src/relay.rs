//! Bytes both ways, until both sides have said their last.
//!
//! A direction owns no buffer while it idles: it reads into a scratch space on the stack, writes from
//! there, and keeps on the heap only what the other side would not take at once. So an idle connection
//! costs nothing, bulk moves in large pieces, and a slow reader slows its writer.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use prometheus::IntCounter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::outcome::Outcome;

/// What passed, from the view of the side called `a`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Bytes read from `a` and written to `b`.
    pub from_a: u64,
    /// Bytes read from `b` and written to `a`.
    pub from_b: u64,
}

/// The counters that grow while bytes pass, named as in [`Passed`].
#[derive(Clone, Copy, Debug)]
pub struct Counters<'a> {
    /// Grows with [`Passed::from_a`].
    pub from_a: &'a IntCounter,
    /// Grows with [`Passed::from_b`].
    pub from_b: &'a IntCounter,
}

/// How a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides finished in order.
    Completed,
    /// Nothing passed for the whole idle limit.
    Idle,
    /// The side `a` failed.
    FailedA(io::Error),
    /// The side `b` failed.
    FailedB(io::Error),
}

impl End {
    /// How a session ends whose side `a` opened it.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Completed => Outcome::Completed,
            Self::Idle => Outcome::IdleTimeout,
            Self::FailedA(_) => Outcome::ClientGone,
            Self::FailedB(_) => Outcome::UpstreamFailed,
        }
    }
}

/// Passes bytes between `a` and `b`. The end of one direction is handed on as a half-close and the other
/// goes on, until both have ended, or nothing passed for `idle`. `passed` is up to date at every moment,
/// so that a relay that is dropped half-way leaves its count behind.
pub async fn both_ways<A, B>(
    a: &mut A,
    b: &mut B,
    idle: Duration,
    counters: Counters<'_>,
    passed: &mut Passed,
) -> End
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    let mut there = Direction::default();
    let mut back = Direction::default();
    let mut seen = *passed;
    let mut timer = std::pin::pin!(tokio::time::sleep(idle));
    poll_fn(|cx| {
        let one = match there.poll(cx, a, b, &mut passed.from_a, counters.from_a) {
            Poll::Ready(Err(Side::From(error))) => return Poll::Ready(End::FailedA(error)),
            Poll::Ready(Err(Side::To(error))) => return Poll::Ready(End::FailedB(error)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        let other = match back.poll(cx, b, a, &mut passed.from_b, counters.from_b) {
            Poll::Ready(Err(Side::From(error))) => return Poll::Ready(End::FailedB(error)),
            Poll::Ready(Err(Side::To(error))) => return Poll::Ready(End::FailedA(error)),
            Poll::Ready(Ok(())) => true,
            Poll::Pending => false,
        };
        if one && other {
            return Poll::Ready(End::Completed);
        }
        // The timer is looked at when it fires, not moved with every byte.
        while timer.as_mut().poll(cx).is_ready() {
            if *passed == seen {
                return Poll::Ready(End::Idle);
            }
            seen = *passed;
            timer.as_mut().reset(Instant::now() + idle);
        }
        Poll::Pending
    })
    .await
}

/// One direction's state.
#[derive(Debug, Default)]
struct Direction {
    /// What was read and not yet written, from `start` on.
    rest: Vec<u8>,
    start: usize,
    unflushed: bool,
    stage: Stage,
}

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Copying,
    Closing,
    Closed,
}

/// Whose error it is.
enum Side {
    From(io::Error),
    To(io::Error),
}

impl Direction {
    fn poll<F, T>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        passed: &mut u64,
        counter: &IntCounter,
    ) -> Poll<Result<(), Side>>
    where
        F: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        let (mut from, mut to) = (Pin::new(from), Pin::new(to));
        loop {
            match self.stage {
                Stage::Copying => {
                    while self.start < self.rest.len() {
                        self.start += ready!(write(cx, to.as_mut(), &self.rest[self.start..]))?;
                    }
                    if !self.rest.is_empty() {
                        self.rest = Vec::new();
                        self.start = 0;
                    }
                    let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH];
                    let mut buffer = ReadBuf::uninit(&mut scratch);
                    match from.as_mut().poll_read(cx, &mut buffer) {
                        Poll::Ready(result) => result.map_err(Side::From)?,
                        Poll::Pending => {
                            if self.unflushed {
                                ready!(to.as_mut().poll_flush(cx)).map_err(Side::To)?;
                                self.unflushed = false;
                            }
                            return Poll::Pending;
                        }
                    }
                    let mut read = buffer.filled();
                    if read.is_empty() {
                        self.stage = Stage::Closing;
                        continue;
                    }
                    *passed += read.len() as u64;
                    counter.inc_by(read.len() as u64);
                    self.unflushed = true;
                    while !read.is_empty() {
                        match write(cx, to.as_mut(), read) {
                            Poll::Ready(written) => read = &read[written?..],
                            Poll::Pending => {
                                self.rest = read.to_vec();
                                return Poll::Pending;
                            }
                        }
                    }
                }
                Stage::Closing => {
                    match ready!(to.as_mut().poll_shutdown(cx)) {
                        // It is gone already: that direction is over either way.
                        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                        result => result.map_err(Side::To)?,
                    }
                    self.stage = Stage::Closed;
                }
                Stage::Closed => return Poll::Ready(Ok(())),
            }
        }
    }
}

fn write<T: AsyncWrite>(
    cx: &mut Context<'_>,
    to: Pin<&mut T>,
    bytes: &[u8],
) -> Poll<Result<usize, Side>> {
    match ready!(to.poll_write(cx, bytes)) {
        Ok(0) => Poll::Ready(Err(Side::To(io::ErrorKind::WriteZero.into()))),
        result => Poll::Ready(result.map_err(Side::To)),
    }
}

/// Room for four full TLS records. It is not initialised, so its size costs nothing.
const SCRATCH: usize = 64 * 1024;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn counter() -> IntCounter {
        IntCounter::new("bytes", "bytes").unwrap()
    }

    async fn relay(
        a: &mut (impl AsyncRead + AsyncWrite + Unpin),
        b: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> (End, Passed) {
        let (from_a, from_b) = (counter(), counter());
        let counters = Counters {
            from_a: &from_a,
            from_b: &from_b,
        };
        let mut passed = Passed::default();
        let end = both_ways(a, b, Duration::from_secs(10), counters, &mut passed).await;
        assert_eq!((from_a.get(), from_b.get()), (passed.from_a, passed.from_b));
        (end, passed)
    }

    #[tokio::test]
    async fn every_byte_passes_once_and_in_order_through_narrow_pipes() {
        let (mut client, mut a) = duplex(7);
        let (mut b, mut server) = duplex(64);
        let sent: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let (relayed, _, received) = tokio::join!(
            relay(&mut a, &mut b),
            async {
                client.write_all(&sent).await.unwrap();
                client.shutdown().await.unwrap();
                let mut back = Vec::new();
                client.read_to_end(&mut back).await.unwrap();
                assert_eq!(back, b"bye");
            },
            async {
                let mut got = Vec::new();
                server.read_to_end(&mut got).await.unwrap();
                // The other half is still open after the first was closed.
                server.write_all(b"bye").await.unwrap();
                server.shutdown().await.unwrap();
                got
            }
        );
        assert!(received == expected, "bytes differ");
        assert!(matches!(relayed.0, End::Completed));
        assert_eq!(
            relayed.1,
            Passed {
                from_a: 200_000,
                from_b: 3
            }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_and_traffic_puts_that_off() {
        let (mut client, mut a) = duplex(64);
        let (mut b, _server) = duplex(64);
        let started = Instant::now();
        let ((end, passed), ()) = tokio::join!(relay(&mut a, &mut b), async {
            tokio::time::sleep(Duration::from_secs(8)).await;
            client.write_all(b"x").await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
        });
        assert!(matches!(end, End::Idle));
        assert_eq!(passed.from_a, 1);
        assert!(started.elapsed() >= Duration::from_secs(20));
    }

    #[tokio::test]
    async fn a_side_that_fails_is_named() {
        struct Broken;
        impl AsyncRead for Broken {
            fn poll_read(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
        }
        impl AsyncWrite for Broken {
            fn poll_write(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
                _: &[u8],
            ) -> Poll<io::Result<usize>> {
                Poll::Pending
            }
            fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Pending
            }
            fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
                Poll::Pending
            }
        }
        let (_other, mut sound) = duplex(64);
        assert!(matches!(
            relay(&mut Broken, &mut sound).await.0,
            End::FailedA(_)
        ));
        assert!(matches!(
            relay(&mut sound, &mut Broken).await.0,
            End::FailedB(_)
        ));
    }
}
