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

/// Sends `request`, and completes with the head of its response. What is left of its body then goes among
/// `tasks`. Dropping the future resets the stream, unless all has been said on it.
pub(super) fn send(mut sender: Sender, mut request: Request<Upload>, tasks: &Tasks) -> Sending<'_> {
    say_length(&mut request);
    // What h2 takes it does not give back.
    let copy = Some(copy(&request));
    let (head, body) = request.into_parts();
    let bodiless = body.is_end_stream();
    let state = match sender.send_request(Request::from_parts(head, ()), bodiless) {
        Ok((response, _)) if bodiless => State::Waiting(response),
        Ok((response, stream)) => {
            let up = Up {
                opening: Some(sender),
                going: Going::new(stream, body),
                gone: false,
            };
            State::Going(response, Box::new(up))
        }
        Err(error) => State::Unsent(Some((error, body))),
    };
    Sending { copy, tasks, state }
}

/// A request that waits for its response, or [`Unanswered`], which has it again if it may be sent once more,
/// whatever its method.
pub(super) struct Sending<'a> {
    copy: Option<Request<()>>,
    tasks: &'a Tasks,
    state: State,
}

enum State {
    Waiting(ResponseFuture),
    Going(ResponseFuture, Box<Up>),
    Unsent(Option<(h2::Error, Upload)>),
    Done,
}

impl Future for Sending<'_> {
    type Output = Result<Response<Coming>, Unanswered>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answered = match &mut self.state {
            State::Waiting(response) => ready!(Pin::new(response).poll(cx)),
            State::Going(response, up) => {
                if !up.gone {
                    // It may be answered all the same.
                    let _ = up.poll(cx);
                }
                ready!(Pin::new(response).poll(cx))
            }
            State::Unsent(unsent) => match unsent.take() {
                // The connection had ended, or was about to.
                Some((error, body)) => {
                    let body = (error.is_io() || error.is_go_away()).then_some(body);
                    return Poll::Ready(Err(self.unanswered(error, body)));
                }
                None => return Poll::Pending,
            },
            State::Done => return Poll::Pending,
        };
        let state = std::mem::replace(&mut self.state, State::Done);
        Poll::Ready(match (answered, state) {
            (Ok(response), State::Going(_, mut up)) => {
                if !up.gone {
                    self.tasks.spawn(poll_fn(move |cx| up.poll(cx)));
                }
                Ok(Coming::of_response(response))
            }
            (Ok(response), _) => Ok(Coming::of_response(response)),
            (Err(error), state) => {
                let body = match state {
                    State::Going(_, up) => (up.going.taken() == 0).then(|| up.going.into_body()),
                    _ => Some(Upload::empty()),
                };
                let body = body.filter(|_| is_unprocessed(&error));
                Err(self.unanswered(error, body))
            }
        })
    }
}

impl Sending<'_> {
    fn unanswered(&mut self, error: h2::Error, body: Option<Upload>) -> Unanswered {
        let copy = self.copy.take();
        let again = copy.zip(body).map(|(copy, body)| copy.map(|()| body));
        let again = again.map(Box::new);
        Unanswered { error, again }
    }
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
