//! The side that asks for sessions.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use futures_util::StreamExt;
use h2::client::{Builder, SendRequest};
use http::uri::Authority;
use http::{Method, Request, Uri};
use tokio::io::{AsyncRead, AsyncWrite};

use super::gathered::gather;
use super::{CONNECTION_WINDOW, HEADER_BYTES, SEND_BUFFER, SMALL_FRAMES, STREAMS, Stream, watch};
use crate::upstream::{MAX_FRAME, PING_EVERY, STREAM_WINDOW};

/// A shared connection on which we ask for sessions. It ends with the last clone and the last session.
#[derive(Clone)]
pub struct Opener {
    sender: SendRequest<Bytes>,
    authority: Authority,
    seats: Arc<AtomicUsize>,
}

impl Opener {
    /// Whether there is room for one more session.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let most = self.sender.current_max_send_streams().min(STREAMS as usize);
        self.seats.load(Ordering::Relaxed) < most
    }

    /// Whether both are the same connection.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.seats, &other.seats)
    }

    /// Asks for a session. Bytes may be written before the other side has agreed; what it says instead comes
    /// with reading or writing, as [`super::Refused`].
    ///
    /// # Errors
    /// When the connection takes no more sessions: nothing was sent.
    pub async fn ask(&self) -> Result<Stream, h2::Error> {
        let seat = Seat::take(&self.seats);
        let mut sender = self.sender.clone().ready().await?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = Uri::from(self.authority.clone());
        let (answer, send) = sender.send_request(request, false)?;
        Ok(Stream::asked(answer, send, seat))
    }
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("seats", &self.seats)
            .finish_non_exhaustive()
    }
}

/// One session's place on a shared connection, counted.
#[derive(Debug)]
pub(super) struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(seats: &Arc<AtomicUsize>) -> Self {
        seats.fetch_add(1, Ordering::Relaxed);
        Self(seats.clone())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Begins a shared connection to `authority` on `io`. The future keeps it going to its end.
///
/// # Errors
/// If the connection fails before anything was said.
pub async fn open<IO>(
    io: IO,
    authority: Authority,
) -> Result<(Opener, impl Future<Output = Result<(), h2::Error>> + Send), h2::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (io, outlet) = gather(io);
    let (sender, mut connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(STREAMS as usize)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(HEADER_BYTES)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES)
        .handshake::<_, Bytes>(io)
        .await?;
    let mut gone = watch(connection.ping_pong(), PING_EVERY);
    let opener = Opener {
        sender,
        authority,
        seats: Arc::default(),
    };
    let driven = async move {
        poll_fn(
            |cx| match outlet.driving(cx, |cx| Pin::new(&mut connection).poll(cx)) {
                Poll::Ready(Ok(ended)) => Poll::Ready(ended),
                // Nothing can be said any more.
                Poll::Ready(Err(_)) => Poll::Ready(Ok(())),
                Poll::Pending => gone.poll_next_unpin(cx).map(|_| Ok(())),
            },
        )
        .await
    };
    Ok((opener, driven))
}
