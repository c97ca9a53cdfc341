//! How long is somebody waited for who makes no progress, or hardly any?

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Ends our patience with somebody who is waited for and makes no progress. Only time in which they are
/// waited for counts.
#[derive(Debug)]
pub struct Stall {
    timeout: Duration,
    /// Progress at least, in each `timeout`.
    least: u64,
    timer: Option<Pin<Box<Sleep>>>,
    /// The progress when the time below began.
    seen: u64,
    /// How long they were waited for since then, up to `since`.
    waited: Duration,
    /// When the waiting began that goes on now.
    since: Option<Instant>,
}

impl Stall {
    /// Nobody is waited for yet. Any progress in each `timeout` will do.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            least: 1,
            timer: None,
            seen: 0,
            waited: Duration::ZERO,
            since: None,
        }
    }

    /// Asks for progress of at least `rate` a second, on average over each timeout.
    #[must_use]
    pub fn at_least(mut self, rate: u32) -> Self {
        let milliseconds = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        self.least = (milliseconds.saturating_mul(rate.into()) / 1000).max(1);
        self
    }

    /// To be called while somebody is waited for. Completes when there was too little `progress` in the
    /// timeout, or a little later: the timer is looked at when it fires, not moved with every byte.
    pub fn poll(&mut self, cx: &mut Context<'_>, progress: u64) -> Poll<()> {
        let mut since = *self.since.get_or_insert_with(Instant::now);
        let timer = self.timer.get_or_insert_with(|| {
            self.seen = progress;
            self.waited = Duration::ZERO;
            Box::pin(sleep(self.timeout))
        });
        while timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            self.waited += now - since;
            since = now;
            self.since = Some(now);
            if self.waited >= self.timeout {
                if progress.saturating_sub(self.seen) < self.least {
                    return Poll::Ready(());
                }
                self.seen = progress;
                self.waited = Duration::ZERO;
            }
            timer.as_mut().reset(now + (self.timeout - self.waited));
        }
        Poll::Pending
    }

    /// What was waited for has come.
    pub fn came(&mut self) {
        let Some(since) = self.since.take() else {
            return;
        };
        let now = Instant::now();
        let due = self.timer.as_ref().map_or(now, |timer| timer.deadline());
        if now > due + self.timeout / 4 {
            // Nobody looked when the timer fired: it was we who did not take what came.
            self.timer = None;
        } else {
            self.waited += now - since;
        }
    }

    /// Nobody is waited for.
    pub fn rest(&mut self) {
        self.timer = None;
        self.since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn is_over(stall: &mut Stall, progress: u64) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        stall.poll(&mut cx, progress).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_is_waited_for_and_makes_no_progress_stalls() {
        let mut stall = Stall::new(MINUTE);
        assert!(!is_over(&mut stall, 1));
        tokio::time::advance(MINUTE * 2).await;
        stall.came();
        // It was not waited for in the meantime: the time begins anew.
        assert!(!is_over(&mut stall, 2));
        tokio::time::advance(MINUTE / 2).await;
        assert!(!is_over(&mut stall, 2));
        tokio::time::advance(MINUTE).await;
        assert!(is_over(&mut stall, 2));
        stall.rest();
        assert!(!is_over(&mut stall, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn who_makes_a_little_progress_now_and_then_stalls_all_the_same() {
        for (each_second, ends) in [(0, true), (1, true), (9, true), (10, false), (1000, false)] {
            let mut stall = Stall::new(MINUTE).at_least(10);
            let mut progress = 0;
            let mut seconds = 0;
            while !is_over(&mut stall, progress) && seconds < 3600 {
                tokio::time::advance(Duration::from_secs(1)).await;
                seconds += 1;
                progress += each_second;
                stall.came();
            }
            assert_eq!(seconds < 3600, ends, "{each_second} a second: {seconds} s");
            assert!(!ends || seconds <= 62, "{seconds}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_nobody_was_waited_for_does_not_count() {
        let mut stall = Stall::new(MINUTE).at_least(10);
        for progress in 0..100 {
            assert!(!is_over(&mut stall, progress * 20));
            tokio::time::advance(Duration::from_secs(1)).await;
            stall.came();
            // We have other things to do.
            tokio::time::advance(MINUTE * 3).await;
        }
    }
}
