//! How many connections to one destination may be open, and how many may wait for one?

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::IntGauge;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use super::DialError;

/// What one worker holds open towards one destination, and who waits for it.
#[derive(Debug)]
pub struct Queue {
    limits: Limits,
    open: AtomicUsize,
    pending: AtomicUsize,
    freed: Notify,
    shown: IntGauge,
}

/// Limits of one destination, in each worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open connections at most.
    pub connections: usize,
    /// Requests and sessions at most that wait for a connection.
    pub pending: usize,
    /// How long each of them waits where none can be opened.
    pub patience: Duration,
}

impl Queue {
    /// Nothing is open yet. How much is, will be `shown`.
    #[must_use]
    pub fn new(limits: Limits, shown: IntGauge) -> Arc<Self> {
        Arc::new(Self {
            limits,
            open: AtomicUsize::new(0),
            pending: AtomicUsize::new(0),
            freed: Notify::new(),
            shown,
        })
    }

    /// Room for one more connection.
    ///
    /// # Errors
    /// [`DialError::Full`] when there is none.
    pub fn open(self: &Arc<Self>) -> Result<Place, DialError> {
        let room = |open| (open < self.limits.connections).then_some(open + 1);
        let (set, read) = (Ordering::Relaxed, Ordering::Relaxed);
        match self.open.fetch_update(set, read, room) {
            Ok(_) => {
                self.shown.inc();
                Ok(Place(self.clone()))
            }
            Err(_) => Err(DialError::Full),
        }
    }

    /// Makes `attempt`s at a connection until one ends otherwise than by [`DialError::Full`]: at once, and
    /// then whenever something has become free, as long as patience lasts.
    ///
    /// # Errors
    /// Those of an attempt; [`DialError::Full`] also when too many wait already.
    pub async fn pass<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, DialError>
    where
        F: Future<Output = Result<T, DialError>>,
    {
        let _waiting = Waiting::enter(self)?;
        let until = Instant::now() + self.limits.patience;
        loop {
            let mut freed = pin!(self.freed.notified());
            // What becomes free while we try counts.
            freed.as_mut().enable();
            match attempt().await {
                Err(DialError::Full) => {}
                done => return done,
            }
            if timeout_at(until, freed).await.is_err() {
                return Err(DialError::Full);
            }
        }
    }

    /// Something can be used again.
    pub(super) fn wake(&self) {
        if self.pending.load(Ordering::Relaxed) > 0 {
            self.freed.notify_one();
        }
    }
}

/// Room for one connection, until it is dropped.
#[derive(Debug)]
pub struct Place(Arc<Queue>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.shown.dec();
        self.0.wake();
    }
}

struct Waiting<'a>(&'a Queue);

impl<'a> Waiting<'a> {
    fn enter(queue: &'a Queue) -> Result<Self, DialError> {
        let waiting = Self(queue);
        if queue.pending.fetch_add(1, Ordering::Relaxed) < queue.limits.pending {
            Ok(waiting)
        } else {
            Err(DialError::Full)
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures_util::FutureExt;

    use super::*;

    fn queue(connections: usize, pending: usize) -> Arc<Queue> {
        let limits = Limits {
            connections,
            pending,
            patience: Duration::from_secs(5),
        };
        Queue::new(limits, IntGauge::new("open", "Open.").unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_finds_no_room_waits_for_some_and_not_for_ever() {
        let queue = queue(1, 9);
        let open = || async { queue.open() };
        let first = queue.pass(open).await.unwrap();
        assert_eq!(queue.shown.get(), 1);
        let mut second = pin!(queue.pass(open));
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.await.unwrap();

        let began = Instant::now();
        let third = queue.pass(open).await;
        assert!(matches!(third, Err(DialError::Full)), "{third:?}");
        assert_eq!(began.elapsed(), queue.limits.patience);
        drop(second);
        assert_eq!(
            (queue.shown.get(), queue.pending.load(Ordering::Relaxed)),
            (0, 0)
        );
    }

    #[tokio::test]
    async fn not_more_wait_than_may() {
        let queue = queue(1, 1);
        let mut first = Box::pin(queue.pass(pending::<Result<(), DialError>>));
        assert!(first.as_mut().now_or_never().is_none());
        let second = queue.pass(|| async { Ok(()) }).await;
        assert!(matches!(second, Err(DialError::Full)), "{second:?}");
        drop(first);
        queue.pass(|| async { Ok(()) }).await.unwrap();
    }
}
