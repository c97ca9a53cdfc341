//! Which value is in force right now? One complete value, replaced whole while others read it.
//!
//! One writer publishes, readers never wait (arc-swap), and a refresh that failed changes nothing.
//! Identity, TLS configurations and policy are all held this way.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwapOption, Guard};
use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::watch;

/// A published value, with its place in the history.
#[derive(Debug)]
pub struct Snapshot<T> {
    /// The value itself.
    pub value: T,
    /// How many values were published up to this one; the first is 1.
    pub generation: u64,
    /// When it was published.
    pub since: SystemTime,
}

/// The value in force, or none: not yet, or withdrawn.
#[derive(Debug)]
pub struct Live<T> {
    current: ArcSwapOption<Snapshot<T>>,
    changes: watch::Sender<u64>,
}

impl<T> Default for Live<T> {
    fn default() -> Self {
        Self {
            current: ArcSwapOption::empty(),
            changes: watch::Sender::new(0),
        }
    }
}

impl<T> Live<T> {
    /// Puts `value` in force. Only one task may publish.
    pub fn publish(&self, value: T) {
        self.change(|generation| {
            Some(Arc::new(Snapshot {
                value,
                generation,
                since: SystemTime::now(),
            }))
        });
    }

    /// Takes the value out of force: from now on there is none.
    pub fn withdraw(&self) {
        self.change(|_| None);
    }

    fn change(&self, make: impl FnOnce(u64) -> Option<Arc<Snapshot<T>>>) {
        self.changes.send_modify(|changes| {
            *changes += 1;
            self.current.store(make(*changes));
        });
    }

    /// The value in force.
    #[must_use]
    pub fn get(&self) -> Option<Arc<Snapshot<T>>> {
        self.current.load_full()
    }

    /// The value in force, borrowed: cheaper than [`Live::get`] and not to be kept.
    #[must_use]
    pub fn peek(&self) -> Guard<Option<Arc<Snapshot<T>>>> {
        self.current.load()
    }

    /// A receiver that is told the number of changes so far after each one.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until there is a value.
    pub async fn wait(&self) -> Arc<Snapshot<T>> {
        let mut changes = self.changes();
        loop {
            if let Some(snapshot) = self.get() {
                return snapshot;
            }
            if changes.changed().await.is_err() {
                // The sender lives in `self`, which is borrowed here.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// Where complete values come from: a Workload API stream, a watched directory.
pub trait Source: Send {
    /// What it yields.
    type Item: Send + Sync + 'static;
    /// Why it yields nothing this time.
    type Error: Debug + Send;

    /// Waits for the next change. After an error it is asked again, a little later each time; what was
    /// in force stays in force.
    fn next(&mut self) -> impl Future<Output = Result<Change<Self::Item>, Self::Error>> + Send;

    /// Waits until there is reason to ask at once, even though the source failed a moment ago. For most,
    /// there never is.
    fn urgent(&mut self) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// What a [`Source`] says.
#[derive(Debug)]
pub enum Change<T> {
    /// This value is in force from now on.
    Replace(T),
    /// The source is there and says that there is no value for us any more.
    Withdraw,
}

/// What [`keep`] did, for logs and metrics.
#[derive(Debug)]
pub enum Kept<'a, T, E> {
    /// A new value is in force.
    Published(&'a Snapshot<T>),
    /// There is no value any more.
    Withdrawn,
    /// The source failed; what was in force stays. It is asked again after the given time.
    Failed(&'a E, Duration),
}

/// Moves every change from `source` into `live`, for ever. A source that fails is asked again after
/// 50 ms at first and [`RETRY_CAP`] at most.
pub async fn keep<S: Source>(
    mut source: S,
    live: &Live<S::Item>,
    mut tell: impl FnMut(Kept<'_, S::Item, S::Error>),
) {
    let pace = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(RETRY_CAP)
        .without_max_times()
        .with_jitter();
    let mut delays = pace.build();
    loop {
        match source.next().await {
            Ok(Change::Replace(value)) => {
                delays = pace.build();
                live.publish(value);
                if let Some(snapshot) = live.get() {
                    tell(Kept::Published(&snapshot));
                }
            }
            Ok(Change::Withdraw) => {
                live.withdraw();
                tell(Kept::Withdrawn);
            }
            Err(error) => {
                // Jitter may exceed the cap.
                let delay = delays.next().unwrap_or(RETRY_CAP).min(RETRY_CAP);
                tell(Kept::Failed(&error, delay));
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = source.urgent() => {}
                }
            }
        }
    }
}

/// The longest pause between two attempts at a source: an outage ends at most this much later for us.
pub const RETRY_CAP: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_keeps_what_it_took_while_the_next_value_is_published() {
        let live = Live::default();
        live.publish("first");
        let kept = live.get().unwrap();
        live.publish("second");
        assert_eq!((kept.value, kept.generation), ("first", 1));
        let now = live.get().unwrap();
        assert_eq!((now.value, now.generation), ("second", 2));
    }

    #[test]
    fn a_withdrawn_value_is_gone_and_the_next_one_counts_on() {
        let live = Live::default();
        let changes = live.changes();
        live.publish(1);
        live.withdraw();
        assert!(live.get().is_none());
        live.publish(2);
        assert_eq!(live.get().unwrap().generation, 3);
        assert_eq!(*changes.borrow(), 3);
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_first_value() {
        let live = Arc::new(Live::default());
        let waiting = tokio::spawn({
            let live = live.clone();
            async move { live.wait().await.value }
        });
        tokio::task::yield_now().await;
        live.publish(7);
        assert_eq!(waiting.await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_source_leaves_the_value_and_is_asked_again() {
        struct Script(Vec<Result<Change<u32>, &'static str>>);
        impl Source for Script {
            type Item = u32;
            type Error = &'static str;
            async fn next(&mut self) -> Result<Change<u32>, &'static str> {
                match self.0.pop() {
                    Some(step) => step,
                    None => std::future::pending().await,
                }
            }
        }
        let mut steps = vec![
            Ok(Change::Replace(1)),
            Err("down"),
            Err("down"),
            Ok(Change::Replace(2)),
        ];
        steps.extend([Ok(Change::Withdraw)]);
        steps.reverse();
        let live = Live::default();
        let mut told = Vec::new();
        let keeping = keep(Script(steps), &live, |kept| {
            told.push(match kept {
                Kept::Published(snapshot) => format!("{}", snapshot.value),
                Kept::Withdrawn => "withdrawn".into(),
                Kept::Failed(error, delay) => {
                    assert!(delay <= RETRY_CAP);
                    (*error).into()
                }
            });
        });
        let _ = tokio::time::timeout(Duration::from_secs(60), keeping).await;
        assert_eq!(told, ["1", "down", "down", "2", "withdrawn"]);
        assert!(live.get().is_none());
    }
}
