//! How is one HTTP/2 request answered? Each has a task of its own: whoever takes a response slowly, or sends a
//! request slowly, holds up none of the others.
//!
//! A response that is not taken by whoever asked for it is reset, and the others go on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::Response;
use http::header::{CONTENT_LENGTH, HeaderValue};
use pin_project_lite::pin_project;

use crate::exchange::{Going, Passing};
use crate::limits::{Limit, Stall, Tally};

/// The streams of one connection.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    timeout: Duration,
    tally: Tally,
    load: Arc<Load>,
}

/// What a connection carries.
#[derive(Debug, Default)]
struct Load {
    /// Requests that have ever come.
    requests: AtomicU64,
    /// Streams that have not ended.
    open: AtomicUsize,
}

impl Streams {
    pub(super) fn new(timeout: Duration, tally: &Tally) -> Self {
        Self {
            timeout,
            tally: tally.clone(),
            load: Arc::default(),
        }
    }

    /// Completes when nothing was carried for `timeout`, or at most for twice as long: it is looked now and
    /// then, rather than a clock at each request.
    pub(super) fn unused(&self, timeout: Duration) -> impl Future<Output = ()> + Send + 'static {
        let load = self.load.clone();
        async move {
            loop {
                let before = load.requests.load(Ordering::Relaxed);
                tokio::time::sleep(timeout).await;
                let after = load.requests.load(Ordering::Relaxed);
                if before == after && load.open.load(Ordering::Relaxed) == 0 {
                    return;
                }
            }
        }
    }

    /// Answers a request with what the future completes with that `answer` makes.
    pub(super) fn answer<F, B>(&self, answer: impl FnOnce() -> F, respond: SendResponse<Bytes>)
    where
        F: Future<Output = Response<B>> + Send + 'static,
        B: Passing + Send + 'static,
    {
        self.load.requests.fetch_add(1, Ordering::Relaxed);
        // It is large, and a task is moved several times until it runs: so it is made where it stays.
        let stream = Box::write(
            Box::new_uninit(),
            Stream {
                respond,
                stage: Stage::Asked { answer: answer() },
                stall: Stall::new(self.timeout),
                tally: self.tally.clone(),
                carried: Carried::new(self.load.clone()),
            },
        );
        tokio::spawn(Box::into_pin(stream));
    }
}

pin_project! {
    /// A request and its response. Dropping it resets the stream, unless all has been said on it.
    struct Stream<F, B> {
        respond: SendResponse<Bytes>,
        #[pin]
        stage: Stage<F, B>,
        stall: Stall,
        tally: Tally,
        carried: Carried,
    }
}

pin_project! {
    /// How far it is.
    #[project = At]
    enum Stage<F, B> {
        Asked {
            #[pin]
            answer: F,
        },
        Answered {
            body: Going<B>,
        },
    }
}

impl<F, B> Future for Stream<F, B>
where
    F: Future<Output = Response<B>>,
    B: Passing,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut this = self.project();
        loop {
            match this.stage.as_mut().project() {
                At::Asked { answer } => {
                    let Poll::Ready(response) = answer.poll(cx) else {
                        // Whoever takes a request back waits for no answer.
                        return this.respond.poll_reset(cx).map(drop);
                    };
                    match begin(this.respond, response) {
                        Some(body) => this.stage.set(Stage::Answered { body }),
                        None => return Poll::Ready(()),
                    }
                }
                At::Answered { body } => {
                    if body.poll(cx).is_ready() {
                        return Poll::Ready(());
                    }
                    if !body.waits_for_room() {
                        this.stall.rest();
                        return Poll::Pending;
                    }
                    ready!(this.stall.poll(cx, body.taken()));
                    this.tally.hit(Limit::Unread);
                    return Poll::Ready(());
                }
            }
        }
    }
}

/// Sends the head of `response`. Returns what is to follow it.
fn begin<B: Passing>(respond: &mut SendResponse<Bytes>, response: Response<B>) -> Option<Going<B>> {
    let (mut head, body) = response.into_parts();
    let bodiless = body.is_end_stream();
    let length = body.size_hint().exact().filter(|_| !bodiless);
    if let Some(length) = length
        && !head.headers.contains_key(CONTENT_LENGTH)
    {
        head.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    match respond.send_response(Response::from_parts(head, ()), bodiless) {
        Ok(stream) => (!bodiless).then(|| Going::new(stream, body)),
        Err(error) => {
            tracing::debug!(%error, "no response could be sent");
            respond.send_reset(Reason::INTERNAL_ERROR);
            None
        }
    }
}

/// A stream that counts as open until this is dropped.
struct Carried(Arc<Load>);

impl Carried {
    fn new(load: Arc<Load>) -> Self {
        load.open.fetch_add(1, Ordering::Relaxed);
        Self(load)
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
