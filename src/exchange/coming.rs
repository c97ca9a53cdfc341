//! A body while it comes in, on a connection of whichever kind.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::BrokenOff;

/// The body of a request or a response. Dropping it before its end gives the rest up.
#[derive(Debug)]
pub enum Coming {
    /// On an HTTP/1.1 connection.
    Http1(Incoming),
    /// On a stream of an HTTP/2 connection.
    Http2(Stream),
}

impl Coming {
    pub(crate) fn of_request(request: Request<RecvStream>) -> Request<Self> {
        let length = length_said(request.headers());
        request.map(|stream| Self::Http2(Stream::new(stream, length, Sender::Client)))
    }

    pub(crate) fn of_response(response: Response<RecvStream>) -> Response<Self> {
        let length = length_said(response.headers());
        response.map(|stream| Self::Http2(Stream::new(stream, length, Sender::Server)))
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

fn length_said(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What comes in on one stream.
#[derive(Debug)]
pub struct Stream {
    stream: RecvStream,
    sender: Sender,
    /// Bytes still to come, where that was said.
    left: Option<u64>,
    /// There is no more data; trailers may come.
    all: bool,
}

/// Who sends a body.
#[derive(Clone, Copy, Debug)]
enum Sender {
    Client,
    Server,
}

impl Stream {
    fn new(stream: RecvStream, length: Option<u64>, sender: Sender) -> Self {
        let left = length.or_else(|| stream.is_end_stream().then_some(0));
        Self {
            stream,
            sender,
            left,
            all: false,
        }
    }

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
                Some(Err(error)) => return Poll::Ready(self.ended(error)),
                None => self.all = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => self.ended(error),
        })
    }

    /// A server that has said all it wants to say may reset the stream, to be spared the rest of the request
    /// (RFC 9113 §8.1). A client that does has not said all.
    fn ended(&self, error: h2::Error) -> Option<Result<Frame<Bytes>, BrokenOff>> {
        match (self.sender, error.reason()) {
            (Sender::Server, Some(Reason::NO_ERROR)) => None,
            _ => Some(Err(BrokenOff::Stream(error))),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn a_server_may_stop_when_it_has_said_all_and_a_client_may_not() {
        let (ours, theirs) = duplex(64 * 1024);
        let serving = async {
            let mut server = h2::server::handshake(theirs).await.unwrap();
            let (request, mut respond) = server.accept().await.unwrap().unwrap();
            let response = respond.send_response(Response::new(()), false);
            let mut stream = response.unwrap();
            stream.send_data(Bytes::from_static(b"all"), false).unwrap();
            let reading = async {
                let mut body = Coming::of_request(request).into_body();
                let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
                (data, body.frame().await)
            };
            let driving = async {
                while server.accept().await.is_some() {}
                std::future::pending::<()>().await;
            };
            tokio::select! {
                read = reading => read,
                () = driving => unreachable!(),
            }
        };
        let asking = async {
            let (mut sender, connection) = h2::client::handshake(ours).await.unwrap();
            tokio::spawn(connection);
            let request = Request::post("http://a/").body(()).unwrap();
            let (response, mut stream) = sender.send_request(request, false).unwrap();
            stream
                .send_data(Bytes::from_static(b"half"), false)
                .unwrap();
            let mut body = Coming::of_response(response.await.unwrap()).into_body();
            let data = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(data, "all");
            stream.send_reset(Reason::NO_ERROR);
        };
        let ((data, end), ()) = tokio::join!(serving, asking);
        assert_eq!(data, "half");
        assert!(matches!(end, Some(Err(BrokenOff::Stream(_)))), "{end:?}");
    }
}
