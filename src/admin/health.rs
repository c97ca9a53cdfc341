//! Does it run, and can it do its work? The truth behind `/live` and `/ready`.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

/// Ready while every condition holds, alive while every worker's pulse beats.
#[derive(Debug)]
pub struct Health {
    conditions: Vec<Condition>,
    notes: Vec<Note>,
    pulses: Mutex<Vec<Weak<Beat>>>,
    began: Instant,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            conditions: Vec::new(),
            notes: Vec::new(),
            pulses: Mutex::default(),
            began: Instant::now(),
        }
    }
}

impl Health {
    /// Adds a condition of readiness: `check` is asked at each probe, and its error is shown to whoever
    /// probes, so it must hold no secret. The name is public surface.
    #[must_use]
    pub fn ready_if(
        mut self,
        name: &'static str,
        check: impl Fn(SystemTime) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.conditions.push(Condition {
            name,
            check: Box::new(check),
        });
        self
    }

    /// Adds something to tell beside the conditions: what `tell` says is shown and decides nothing.
    #[must_use]
    pub fn tells(
        mut self,
        name: &'static str,
        tell: impl Fn(SystemTime) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.notes.push(Note {
            name,
            tell: Box::new(tell),
        });
        self
    }

    /// What holds at `now`.
    #[must_use]
    pub fn readiness(&self, now: SystemTime) -> Readiness {
        let conditions = self.conditions.iter().map(|condition| {
            let detail = (condition.check)(now).err();
            Finding {
                name: condition.name,
                ready: detail.is_none(),
                detail,
            }
        });
        let notes = self.notes.iter().map(|note| Finding {
            name: note.name,
            ready: true,
            detail: (note.tell)(now),
        });
        let conditions: Vec<_> = conditions.chain(notes).collect();
        Readiness {
            ready: conditions.iter().all(|finding| finding.ready),
            conditions,
        }
    }

    /// The pulse of one more worker. A worker that ended is not a worker that hangs: dropping the pulse
    /// takes it off the list.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        let beat = Arc::new(Beat {
            last: AtomicU64::new(0),
            began: self.began,
        });
        beat.now();
        let mut pulses = self.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        pulses.push(Arc::downgrade(&beat));
        Pulse { beat }
    }

    /// Whether every worker still answers at `now`.
    #[must_use]
    pub fn liveness(&self, now: Instant) -> Liveness {
        let mut pulses = self.pulses.lock().unwrap_or_else(PoisonError::into_inner);
        pulses.retain(|pulse| pulse.strong_count() > 0);
        let now = now.saturating_duration_since(self.began);
        let hung = pulses
            .iter()
            .filter_map(Weak::upgrade)
            .map(|beat| Duration::from_millis(beat.last.load(Ordering::Relaxed)))
            .filter(|last| now.saturating_sub(*last) > HUNG)
            .count();
        Liveness {
            live: hung == 0,
            workers: pulses.len(),
            hung,
        }
    }
}

/// The answer to `/ready`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    /// Whether every condition holds.
    pub ready: bool,
    /// Each of them, in the order in which they were added.
    pub conditions: Vec<Finding>,
}

/// What one condition of readiness says.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// Its name.
    pub name: &'static str,
    /// Whether it holds.
    pub ready: bool,
    /// Why it does not, or what else there is to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// The answer to `/live`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Liveness {
    /// Whether no worker hangs.
    pub live: bool,
    /// How many workers there are.
    pub workers: usize,
    /// How many of them have not answered for a minute.
    pub hung: usize,
}

/// A sign of life from one worker.
#[derive(Debug)]
pub struct Pulse {
    beat: Arc<Beat>,
}

impl Pulse {
    /// Says that the worker's loop goes round.
    pub fn beat(&self) {
        self.beat.now();
    }

    /// Beats for ever, on the runtime of the worker: it stops when that hangs.
    pub async fn keep(self) {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            ticks.tick().await;
            self.beat();
        }
    }
}

#[derive(Debug)]
struct Beat {
    /// Milliseconds since `began`.
    last: AtomicU64,
    began: Instant,
}

impl Beat {
    fn now(&self) {
        let since = self.began.elapsed().as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.last.store(since, Ordering::Relaxed);
    }
}

struct Condition {
    name: &'static str,
    check: Box<dyn Fn(SystemTime) -> Result<(), String> + Send + Sync>,
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

struct Note {
    name: &'static str,
    tell: Box<dyn Fn(SystemTime) -> Option<String> + Send + Sync>,
}

impl fmt::Debug for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Rare enough to cost an idle pod nothing.
const EVERY: Duration = Duration::from_secs(5);

/// A worker silent for so long will not come back. Longer than any pause that a starved node imposes.
const HUNG: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn it_is_ready_only_while_every_condition_holds() {
        let draining = Arc::new(AtomicBool::new(false));
        let not_after = UNIX_EPOCH + Duration::from_secs(100);
        let health = Health::default()
            .ready_if("identity", move |now| match now < not_after {
                true => Ok(()),
                false => Err("expired".into()),
            })
            .ready_if("serving", {
                let draining = draining.clone();
                move |_| match draining.load(Ordering::Relaxed) {
                    false => Ok(()),
                    true => Err("draining".into()),
                }
            });
        let shown = |seconds| {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            serde_json::to_string(&health.readiness(now)).unwrap()
        };
        assert_eq!(
            shown(99),
            r#"{"ready":true,"conditions":[{"name":"identity","ready":true},{"name":"serving","ready":true}]}"#
        );
        assert_eq!(
            shown(100),
            r#"{"ready":false,"conditions":[{"name":"identity","ready":false,"detail":"expired"},{"name":"serving","ready":true}]}"#
        );
        draining.store(true, Ordering::Relaxed);
        assert!(!health.readiness(UNIX_EPOCH).ready);
    }

    #[test]
    fn what_is_only_told_is_shown_and_decides_nothing() {
        let health = Health::default().tells("late", |now| {
            (now > UNIX_EPOCH).then(|| "by a second".into())
        });
        let shown = |now| serde_json::to_string(&health.readiness(now)).unwrap();
        assert_eq!(
            shown(UNIX_EPOCH),
            r#"{"ready":true,"conditions":[{"name":"late","ready":true}]}"#
        );
        assert_eq!(
            shown(UNIX_EPOCH + Duration::from_secs(1)),
            r#"{"ready":true,"conditions":[{"name":"late","ready":true,"detail":"by a second"}]}"#
        );
    }

    #[test]
    fn a_worker_that_hangs_is_seen_and_one_that_ended_is_forgotten() {
        let health = Health::default();
        let (first, second) = (health.pulse(), health.pulse());
        let later = Instant::now() + HUNG * 2;
        assert!(health.liveness(Instant::now()).live);
        let seen = health.liveness(later);
        assert_eq!((seen.live, seen.workers, seen.hung), (false, 2, 2));
        drop(first);
        assert_eq!(health.liveness(later).workers, 1);
        drop(second);
        assert!(health.liveness(later).live);
    }
}
