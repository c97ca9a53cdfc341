//! Is an HTTP/2 response taken by whoever asked for it? One that is not is reset, and the others go on.
//!
//! hyper waits for credit without asking anybody else, for as long as the other side gives none. So its
//! futures run under watch here, and bodies tell when they are the ones who wait.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use pin_project_lite::pin_project;

use crate::limits::{Limit, Stall, Tally};

/// Runs the streams of one connection.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    timeout: Duration,
    tally: Tally,
    /// Of the stream that has begun and is not running yet: hyper runs each right after it asked for it.
    begun: Arc<Mutex<Option<Arc<Progress>>>>,
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

/// How far a response is.
#[derive(Debug, Default)]
struct Progress {
    /// The last that was done was to give something to be sent.
    given: AtomicBool,
    /// How often.
    times: AtomicU64,
}

impl Streams {
    pub(super) fn new(timeout: Duration, tally: &Tally) -> Self {
        Self {
            timeout,
            tally: tally.clone(),
            begun: Arc::default(),
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

    /// A request has come.
    pub(super) fn begin(&self) -> Taking {
        self.load.requests.fetch_add(1, Ordering::Relaxed);
        let progress = Arc::<Progress>::default();
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = Some(progress.clone());
        Taking(progress)
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        tokio::spawn(Watched {
            stream,
            progress: begun.take().unwrap_or_default(),
            stall: Stall::new(self.timeout),
            tally: self.tally.clone(),
            _carried: Carried::new(self.load.clone()),
        });
    }
}

pin_project! {
    /// A stream under watch. Dropping it resets the stream.
    struct Watched<F> {
        #[pin]
        stream: F,
        progress: Arc<Progress>,
        stall: Stall,
        tally: Tally,
        _carried: Carried,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !this.progress.given.load(Ordering::Relaxed) {
            this.stall.rest();
            return Poll::Pending;
        }
        let times = this.progress.times.load(Ordering::Relaxed);
        this.stall
            .poll(cx, times)
            .map(|()| this.tally.hit(Limit::Unread))
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

/// What is to be told of one response.
#[derive(Debug)]
pub(super) struct Taking(Arc<Progress>);

impl Taking {
    /// A body that tells.
    pub(super) fn of<B>(self, body: B) -> Told<B> {
        Told {
            body,
            progress: self.0,
        }
    }
}

/// A body that tells who waits for whom.
#[derive(Debug)]
pub(super) struct Told<B> {
    body: B,
    progress: Arc<Progress>,
}

impl<B: Body + Unpin> Body for Told<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let given = frame.is_ready();
        self.progress.given.store(given, Ordering::Relaxed);
        if given {
            self.progress.times.fetch_add(1, Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
