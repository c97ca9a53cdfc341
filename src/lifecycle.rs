//! Are we running, saying goodbye, or gone? Every task is counted, learns of the drain, and can be cut.

use std::future::Future;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerWaitFuture;

/// How far the process is on its way out. Only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections are accepted.
    Running,
    /// Listeners are closed; what is open may end by itself.
    Draining,
    /// The grace is over: whatever is still open ends now.
    Cut,
}

/// The one phase of the process, shared by all its tasks.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
        }
    }
}

impl Lifecycle {
    /// Starts the drain.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Ends the grace.
    pub fn cut(&self) {
        self.advance(Phase::Cut);
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let moved = *phase < to;
            *phase = to.max(*phase);
            moved
        });
    }

    /// The phase at this moment.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Completes when the phase is `phase` or later.
    pub fn reached(&self, phase: Phase) -> impl Future<Output = ()> + Send + 'static {
        let mut receiver = self.phase.subscribe();
        async move {
            if receiver.wait_for(|now| *now >= phase).await.is_err() {
                // Nobody is left who could end us: then nothing does.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// The tasks of one worker, on the worker's runtime. A worker ends when they have.
#[derive(Clone, Debug, Default)]
pub struct Tasks(TaskTracker);

impl Tasks {
    /// Starts a counted task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(task);
    }

    /// Completes when every task has ended. Tasks may still be added while waiting.
    pub fn ended(&self) -> TaskTrackerWaitFuture<'_> {
        self.0.close();
        self.0.wait()
    }

    /// How many are running.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// Counted tasks end by themselves once the cut has come. This is how long a worker waits for them to
/// notice before its runtime ends under them.
pub const CUT_TAKES_AT_MOST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_phase_only_moves_forward_and_late_comers_see_it() {
        let lifecycle = Lifecycle::default();
        let draining = lifecycle.reached(Phase::Draining);
        lifecycle.cut();
        lifecycle.drain();
        assert_eq!(lifecycle.phase(), Phase::Cut);
        draining.await;
        lifecycle.reached(Phase::Cut).await;
    }

    #[tokio::test]
    async fn a_worker_waits_for_the_tasks_of_its_tasks() {
        let tasks = Tasks::default();
        let (tell, told) = tokio::sync::oneshot::channel();
        tasks.spawn({
            let tasks = tasks.clone();
            async move {
                tasks.spawn(async move { tell.send(()).unwrap() });
            }
        });
        tasks.ended().await;
        told.await.unwrap();
        assert_eq!(tasks.count(), 0);
    }
}
