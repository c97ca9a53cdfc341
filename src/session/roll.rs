//! When is it a session's turn to look again? A few at a time, not all in one instant.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::sync::{Notify, watch};

/// The open sessions of one worker. A change of policy or of trust concerns all of them; if ten thousand
/// woke in one instant, every request would wait behind them. Clones are one roll.
#[derive(Clone, Debug, Default)]
pub struct Roll {
    open: Arc<Mutex<Slab<Arc<Notify>>>>,
}

impl Roll {
    /// Calls the sessions after each of the `changes`, for ever. Without it they notice by time alone.
    pub async fn keep(self, changes: impl IntoIterator<Item = watch::Receiver<u64>>) {
        let changed = Arc::new(Notify::new());
        let tell = |mut change: watch::Receiver<u64>| {
            let changed = changed.clone();
            async move {
                while change.changed().await.is_ok() {
                    changed.notify_one();
                }
            }
        };
        let telling = futures_util::future::join_all(changes.into_iter().map(tell));
        let calling = async {
            loop {
                // One change or several: whoever is called looks at all there is.
                changed.notified().await;
                self.call().await;
            }
        };
        tokio::join!(telling, calling);
    }

    /// Calls every session once, within [`ALL`].
    async fn call(&self) {
        let mut next = 0;
        loop {
            {
                let open = self.locked();
                let end = open.iter().next_back().map_or(0, |(last, _)| last + 1);
                if next >= end {
                    return;
                }
                let few = next..end.min(next + end.div_ceil(STEPS).max(FEW));
                next = few.end;
                few.filter_map(|key| open.get(key))
                    .for_each(|turn| turn.notify_one());
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// Puts a session on the roll until its turn is dropped.
    pub(super) fn enter(&self) -> Turn<'_> {
        let called = Arc::new(Notify::new());
        let key = self.locked().insert(called.clone());
        Turn {
            roll: self,
            key,
            called,
        }
    }

    fn locked(&self) -> MutexGuard<'_, Slab<Arc<Notify>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place on the roll.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    roll: &'a Roll,
    key: usize,
    called: Arc<Notify>,
}

impl Turn<'_> {
    /// Completes when something has changed since it did so last.
    pub(super) async fn come(&self) {
        self.called.notified().await;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.roll.locked().try_remove(self.key);
    }
}

/// What is left to requests between two steps.
const STEP: Duration = Duration::from_millis(1);

/// All have been called after this many, and when a second has passed what must end has ended.
const STEPS: usize = 200;

/// So many are never felt.
const FEW: usize = 16;

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_calls_everybody_once_and_many_not_in_one_instant() {
        for (sessions, least, most) in [(1, 0, 5), (10, 0, 5), (10_000, 150, 500)] {
            let roll = Roll::default();
            let (changes, others) = (watch::Sender::new(0), watch::Sender::new(0));
            let keeping = roll.clone().keep([changes.subscribe(), others.subscribe()]);
            let keeping = tokio::spawn(keeping);
            let turns: Vec<_> = std::iter::repeat_with(|| roll.enter())
                .take(sessions)
                .collect();
            tokio::task::yield_now().await;
            let began = Instant::now();
            changes.send_modify(|changes| *changes += 1);
            for turn in &turns {
                turn.come().await;
            }
            let took = began.elapsed().as_millis();
            assert!((least..most).contains(&took), "{sessions}: {took} ms");
            let again = turns.iter().map(|turn| Box::pin(turn.come()));
            let again = futures_util::future::select_all(again);
            let nobody = tokio::time::timeout(Duration::from_secs(60), again).await;
            assert!(nobody.is_err(), "{sessions}: called twice");
            keeping.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_left_is_called_no_more_and_gaps_are_no_end() {
        let roll = Roll::default();
        let change = watch::Sender::new(0);
        let keeping = tokio::spawn(roll.clone().keep([change.subscribe()]));
        let mut turns: Vec<_> = std::iter::repeat_with(|| roll.enter()).take(1000).collect();
        let last = turns.pop().unwrap();
        drop(turns);
        assert_eq!(roll.locked().len(), 1);
        tokio::task::yield_now().await;
        change.send_modify(|changes| *changes += 1);
        last.come().await;
        keeping.abort();
    }
}
