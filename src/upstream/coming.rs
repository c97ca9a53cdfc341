//! The body of a response while it comes in, on a connection of whichever kind.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::exchange::BrokenOff;

/// A response's body. Dropping it before its end gives the rest up.
#[derive(Debug)]
pub enum Coming {
    /// On an HTTP/1.1 connection.
    Http1(Incoming),
    /// On a stream of an HTTP/2 connection.
    Http2(Stream),
}

impl Coming {
    pub(super) fn on_stream(response: Response<RecvStream>) -> Response<Self> {
        let length = response.headers().get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        response.map(|stream| {
            let left = length.or_else(|| stream.is_end_stream().then_some(0));
            Self::Http2(Stream {
                stream,
                left,
                all: false,
            })
        })
    }

    /// Whether nothing but trailers can still come.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_end_stream() || self.size_hint().exact() == Some(0)
    }
}

impl Body for Coming {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match self.get_mut() {
            Self::Http1(body) => Pin::new(body).poll_frame(cx).map_err(BrokenOff::Failed),
            Self::Http2(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2(stream) => stream.stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Http1(body) => body.size_hint(),
            Self::Http2(stream) => stream.left.map(SizeHint::with_exact).unwrap_or_default(),
        }
    }
}

/// What comes in on one stream.
#[derive(Debug)]
pub struct Stream {
    stream: RecvStream,
    /// Bytes still to come, where that was said.
    left: Option<u64>,
    /// There is no more data; trailers may come.
    all: bool,
}

impl Stream {
    fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        if !self.all {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // It fails only for more than has come.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    if let Some(left) = &mut self.left {
                        *left = left.saturating_sub(data.len() as u64);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(ended(error)),
                None => self.all = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => ended(error),
        })
    }
}

/// A server that has said all it wants to say may reset the stream, to be spared the rest of the request
/// (RFC 9113 §8.1).
fn ended(error: h2::Error) -> Option<Result<Frame<Bytes>, BrokenOff>> {
    (error.reason() != Some(Reason::NO_ERROR)).then_some(Err(BrokenOff::Stream(error)))
}
