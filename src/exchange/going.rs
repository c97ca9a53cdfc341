//! A body on its way out on an HTTP/2 stream: a piece at a time, and the next one only when the other side has
//! taken what there is.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http_body::Body;

use super::BrokenOff;

/// A body that passes through.
pub trait Passing: Body<Data = Bytes, Error = BrokenOff> + Unpin {
    /// Completes when it may no longer go on, for whoever waits for other things than the body.
    fn poll_broken_off(&self, _: &Context<'_>) -> Poll<BrokenOff> {
        Poll::Pending
    }
}

/// A body on its way out.
#[derive(Debug)]
pub(crate) struct Going<B> {
    stream: SendStream<Bytes>,
    body: B,
    /// Waits for room, and whether it is the last.
    held: Option<(Bytes, bool)>,
    /// Pieces of the body that have been taken from it.
    taken: u64,
}

impl<B: Passing> Going<B> {
    pub(crate) fn new(stream: SendStream<Bytes>, body: B) -> Self {
        Self {
            stream,
            body,
            held: None,
            taken: 0,
        }
    }

    /// Pieces of the body that have been taken from it.
    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether it is the other side that is waited for.
    pub(crate) fn waits_for_room(&self) -> bool {
        self.held.is_some()
    }

    /// What has not been taken of the body.
    pub(crate) fn into_body(self) -> B {
        self.body
    }

    /// Completes when all of it has been given to the connection, or nothing more can be.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Err(Stopped::Broken(error)) = ready!(self.poll_going(cx)) {
            self.stream.send_reset(error.reset());
        }
        Poll::Ready(())
    }

    fn poll_going(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        loop {
            if self.held.is_some() {
                while self.stream.capacity() == 0 {
                    match self.stream.poll_capacity(cx) {
                        Poll::Ready(Some(room)) => drop(room?),
                        Poll::Ready(None) => return Poll::Ready(Err(Stopped::Refused)),
                        // Nobody asks the body meanwhile whether it may still go.
                        Poll::Pending => {
                            if let Poll::Ready(unwanted) = self.poll_wanted(cx) {
                                return Poll::Ready(unwanted);
                            }
                            return self.body.poll_broken_off(cx).map(|why| Err(why.into()));
                        }
                    }
                }
            }
            if let Some((data, last)) = self.held.take() {
                self.stream.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                return self.poll_wanted(cx);
            };
            self.taken += 1;
            let Some(frame) = frame.transpose()? else {
                self.stream.send_data(Bytes::new(), true)?;
                return Poll::Ready(Ok(()));
            };
            match frame.into_data() {
                Ok(data) => {
                    // A claim on the room of the whole connection is made only for what is there, and the
                    // smallest: what is to be sent counts once it is sent.
                    self.stream.reserve_capacity(usize::from(!data.is_empty()));
                    let last = self.body.is_end_stream();
                    if data.is_empty() {
                        self.stream.send_data(data, last)?;
                        if last {
                            return Poll::Ready(Ok(()));
                        }
                    } else {
                        self.held = Some((data, last));
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.stream.reserve_capacity(0);
                        self.stream.send_trailers(trailers)?;
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }

    /// Completes when the other side wants no more of it. It is asked only when there is nothing else to do:
    /// most bodies go without a wait, and what is sent to nobody fails by itself.
    fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Stopped>> {
        let _ = ready!(self.stream.poll_reset(cx)?);
        Poll::Ready(Err(Stopped::Refused))
    }
}

/// Why a body does not go to its end.
enum Stopped {
    /// The other side wants no more of it, or is gone.
    Refused,
    /// It broke off.
    Broken(BrokenOff),
}

impl From<h2::Error> for Stopped {
    fn from(_: h2::Error) -> Self {
        // Whoever waits for the stream learns the same there.
        Self::Refused
    }
}

impl From<BrokenOff> for Stopped {
    fn from(why: BrokenOff) -> Self {
        Self::Broken(why)
    }
}
