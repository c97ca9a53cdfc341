//! One request on an HTTP/2 connection of ours: its head, its body while it goes up, and the head of the
//! response.
//!
//! Most bodies have gone up when the response begins, so they go within the request's own future. A body that
//! has not gets a task then: whoever reads the response slowly, or to its end, holds up none of the body.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use h2::Reason;
use h2::client::ResponseFuture;
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body;

use super::Asking;
use super::http2::Sender;
use crate::exchange::{Coming, Going, Upload};
use crate::lifecycle::Tasks;

/// A request that got no response.
#[derive(Debug)]
pub(super) struct Unanswered {
    /// Why.
    pub(super) error: h2::Error,
    /// The request, if the other side has certainly not acted on it, and nothing of its body is gone.
    pub(super) again: Option<Asking>,
}

/// Sends `request`. What is left of its body when the response begins goes among `tasks`.
pub(super) fn send(
    mut sender: Sender,
    mut request: Asking,
    tasks: &Tasks,
) -> Result<Sending<'_>, Unanswered> {
    say_length(&mut request);
    let bodiless = request.body().is_end_stream();
    // What h2 takes it does not give back.
    let (response, stream) = match sender.send_request(copy(&request), bodiless) {
        Ok(sent) => sent,
        Err(error) => {
            // The connection had ended, or was about to.
            let unsent = error.is_io() || error.is_go_away();
            let again = unsent.then_some(request);
            return Err(Unanswered { error, again });
        }
    };
    let up = (!bodiless).then(|| {
        let body = std::mem::replace(request.body_mut(), Upload::empty());
        Box::new(Up {
            opening: Some(sender),
            going: Going::new(stream, body),
            gone: false,
        })
    });
    Ok(Sending {
        request: Some(request),
        response,
        up,
        tasks,
    })
}

/// Completes with the head of the response, or with [`Unanswered`], which has the request again if it may be
/// sent once more, whatever its method. Dropping it resets the stream, unless all has been said on it.
pub(super) struct Sending<'a> {
    /// Until it is answered.
    request: Option<Asking>,
    response: ResponseFuture,
    /// The request's body, if it has one.
    up: Option<Box<Up>>,
    tasks: &'a Tasks,
}

impl Future for Sending<'_> {
    type Output = Result<Response<Coming>, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(up) = &mut self.up
            && !up.gone
        {
            // It may be answered all the same.
            let _ = up.poll(cx);
        }
        let answered = ready!(Pin::new(&mut self.response).poll(cx));
        let (request, up) = (self.request.take(), self.up.take());
        Poll::Ready(match answered {
            Ok(response) => {
                if let Some(mut up) = up
                    && !up.gone
                {
                    self.tasks.spawn(poll_fn(move |cx| up.poll(cx)));
                }
                Ok(Coming::of_response(response))
            }
            Err(error) => {
                let again = request.filter(|_| is_unprocessed(&error));
                Err(Unanswered {
                    error,
                    again: again.and_then(|request| whole(request, up)),
                })
            }
        })
    }
}

/// The request with its body, if nothing of that is gone.
fn whole(mut request: Asking, up: Option<Box<Up>>) -> Option<Asking> {
    if let Some(up) = up {
        if up.going.taken() > 0 {
            return None;
        }
        *request.body_mut() = up.going.into_body();
    }
    Some(request)
}

/// Says how long the body is where that is known and its sender has left it to HTTP/2, which applications
/// behind HTTP/1.1 could not see (RFC 9110 §8.6).
fn say_length(request: &mut Request<Upload>) {
    let expected = [Method::POST, Method::PUT, Method::PATCH].contains(request.method());
    match request.body().size_hint().exact() {
        Some(length) if length > 0 || expected => {
            let headers = request.headers_mut();
            headers
                .entry(CONTENT_LENGTH)
                .or_insert_with(|| HeaderValue::from(length));
        }
        _ => {}
    }
}

/// The same request without a body. The copy shares the header values.
pub(super) fn copy(request: &Request<Upload>) -> Request<()> {
    let mut copy = Request::new(());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// Whether an error says that nothing was done about the request: it was refused (RFC 9113 §8.7), or came
/// after the last one that is looked at (§6.8). h2 gives the error of a GOAWAY to no other streams.
pub(super) fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote() && (error.is_go_away() || is_refused(error))
}

/// Whether this one request was refused, for want of room.
pub(super) fn is_refused(error: &h2::Error) -> bool {
    error.is_remote() && error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM)
}

/// A request's body on its way up.
struct Up {
    /// Until the other side takes the stream.
    opening: Option<Sender>,
    going: Going<Upload>,
    /// There is nothing more to do.
    gone: bool,
}

impl Up {
    /// Completes when all of it has been given to the connection, or nothing more can be.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(sender) = &mut self.opening {
            // The other side may take no more streams now: then nothing is asked of whoever sends the body.
            // That it takes none after this one is no error of this one.
            let _ = ready!(sender.poll_ready(cx));
            self.opening = None;
        }
        ready!(self.going.poll(cx));
        self.gone = true;
        Poll::Ready(())
    }
}
