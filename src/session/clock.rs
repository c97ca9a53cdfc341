//! Did somebody set the clock? Timers run by another one, which does not notice.

use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

/// Tells those who sleep until some time of day that it may have come without them: the clock was set, or
/// the machine was suspended. Clones tell the same.
#[derive(Clone, Debug)]
pub struct Clock {
    steps: watch::Sender<u64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            steps: watch::Sender::new(0),
        }
    }
}

impl Clock {
    /// Compares the two clocks for ever, four times a second.
    pub async fn keep(self) {
        let mut before = Reading::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = Reading::now();
            if before.stepped(&now) {
                tracing::warn!("the clock was set; every open session is looked at again");
                self.step();
            }
            before = now;
        }
    }

    fn step(&self) {
        self.steps.send_modify(|steps| *steps += 1);
    }

    /// A receiver that is told of every step.
    #[must_use]
    pub fn steps(&self) -> watch::Receiver<u64> {
        self.steps.subscribe()
    }
}

/// Both clocks at one instant.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall: SystemTime,
    steady: Instant,
}

impl Reading {
    fn now() -> Self {
        Self {
            wall: SystemTime::now(),
            steady: Instant::now(),
        }
    }

    /// Whether the wall clock went another way than the steady one until `later`.
    fn stepped(&self, later: &Self) -> bool {
        let passed = later.steady.duration_since(self.steady);
        match later.wall.duration_since(self.wall) {
            Ok(wall) => wall.abs_diff(passed) > TOLERANCE,
            // It went back.
            Err(_) => true,
        }
    }
}

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// More than a clock that is slewed can gain in [`LOOK_EVERY`], or a busy machine between two readings.
const TOLERANCE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_either_way_is_told_from_one_that_runs() {
        let before = Reading::now();
        let later = |wall: i64, steady: u64| {
            let distance = Duration::from_millis(wall.unsigned_abs());
            Reading {
                wall: if wall < 0 {
                    before.wall - distance
                } else {
                    before.wall + distance
                },
                steady: before.steady + Duration::from_millis(steady),
            }
        };
        for (wall, steady, stepped) in [
            (250, 250, false),
            (251, 250, false),
            (320, 250, false),
            // Stopped for a minute, both clocks went on.
            (60_000, 60_000, false),
            (3_600_250, 250, true),
            (-3_600_000, 250, true),
            (100, 250, true),
        ] {
            assert_eq!(before.stepped(&later(wall, steady)), stepped, "{wall}");
        }
    }

    #[tokio::test]
    async fn whoever_listens_hears_of_a_step() {
        let clock = Clock::default();
        let mut steps = clock.clone().steps();
        clock.step();
        steps.changed().await.unwrap();
    }
}
