//! Which of several addresses takes the next request? Of two drawn by lot, the one with less to do
//! ("power of two choices"), measured by what is under way there and how long answers take.
//!
//! An address that keeps failing is left out for a while, each time for longer, and is given its share
//! again little by little. Where most are left out, none is: then it is not the addresses that are wrong.
//! Nothing here reads a clock or draws a lot itself, and nothing waits.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// When an address is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Failures in a row after which an address is left out; 0 for never.
    pub after: u32,
    /// For how long the first time. It doubles with each time in a row.
    pub first: Duration,
}

/// What is known of one address. Times are since the worker began.
///
/// Each is written by one worker; a value lost between two threads would be one observation less.
#[derive(Debug, Default)]
pub struct Health {
    /// Smoothed time to an answer, in nanoseconds.
    latency: AtomicU64,
    /// When that was updated, in nanoseconds.
    updated: AtomicU64,
    /// In a row.
    failures: AtomicU32,
    /// Times it was left out, in a row.
    ejections: AtomicU32,
    /// Until when it is left out, in nanoseconds.
    until: AtomicU64,
}

impl Health {
    /// It answered at `now`, and `took` so long.
    pub fn answered(&self, took: Duration, now: Duration) {
        self.failures.store(0, Ordering::Relaxed);
        let ejected = self.ejections.load(Ordering::Relaxed) > 0;
        if ejected && self.share(now) >= 1.0 {
            self.ejections.store(0, Ordering::Relaxed);
        }
        self.observe(took, now);
    }

    /// It failed at `now`. Returns for how long it is left out, if it is from now on.
    pub fn failed(&self, now: Duration, rules: Rules) -> Option<Duration> {
        // Whoever fails fast must not look fast.
        self.observe(FAILURE, now);
        let failures = self.failures.load(Ordering::Relaxed).saturating_add(1);
        self.failures.store(failures, Ordering::Relaxed);
        if rules.after == 0 || self.ejected(now) {
            return None;
        }
        let times = self.ejections.load(Ordering::Relaxed);
        // One that came back a moment ago has no credit.
        let returning = times > 0 && self.share(now) < 1.0;
        if failures < rules.after && !returning {
            return None;
        }
        let out = rules.first.saturating_mul(2_u32.saturating_pow(times));
        Some(self.leave_out(out.min(LONGEST), now))
    }

    /// It asked to be left alone for `pause` from `now` on. That is no failure, and it is believed for a
    /// minute at most.
    pub fn rest(&self, pause: Duration, now: Duration) {
        let until = nanos(now + pause.min(LONGEST_REST));
        self.until.fetch_max(until, Ordering::Relaxed);
    }

    fn leave_out(&self, out: Duration, now: Duration) -> Duration {
        let times = self.ejections.load(Ordering::Relaxed);
        self.ejections
            .store(times.saturating_add(1), Ordering::Relaxed);
        self.until.store(nanos(now + out), Ordering::Relaxed);
        out
    }

    /// Whether it is left out at `now`.
    pub fn ejected(&self, now: Duration) -> bool {
        nanos(now) < self.until.load(Ordering::Relaxed)
    }

    /// How much of its fair share it gets: less than 1 shortly after it has come back.
    fn share(&self, now: Duration) -> f64 {
        let until = Duration::from_nanos(self.until.load(Ordering::Relaxed));
        let back = now.saturating_sub(until);
        (back.as_secs_f64() / RETURNING.as_secs_f64()).clamp(0.1, 1.0)
    }

    /// What one more request costs there, with `outstanding` under way.
    pub fn cost(&self, outstanding: usize, now: Duration) -> f64 {
        let updated = Duration::from_nanos(self.updated.load(Ordering::Relaxed));
        let latency = Duration::from_nanos(self.latency.load(Ordering::Relaxed)).as_secs_f64();
        // What was slow once is tried again: without news the estimate fades.
        let latency = latency * kept(now.saturating_sub(updated)) + LEAST.as_secs_f64();
        let cost = latency * (outstanding as f64 + 1.0);
        match self.ejections.load(Ordering::Relaxed) {
            0 => cost,
            _ => cost / self.share(now),
        }
    }

    /// Slower counts at once, faster little by little: a peak that lasts is seen before it is averaged away.
    fn observe(&self, took: Duration, now: Duration) {
        let before = self.latency.load(Ordering::Relaxed);
        let updated = Duration::from_nanos(self.updated.swap(nanos(now), Ordering::Relaxed));
        let took = nanos(took);
        let next = if took >= before {
            took
        } else {
            let over = (before - took) as f64 * kept(now.saturating_sub(updated));
            took.saturating_add(nanos(Duration::from_secs_f64(over / 1e9)))
        };
        self.latency.store(next, Ordering::Relaxed);
    }
}

/// How much of an estimate is left after `time` without another.
fn kept(time: Duration) -> f64 {
    (-time.as_secs_f64() / FADES.as_secs_f64()).exp()
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Draws two of `all` by `lot` and takes the one that costs less. What is not `usable` is drawn only where
/// less than half is usable. `None` where there is nothing to draw from.
pub fn choose<T>(
    all: &[T],
    lot: u64,
    usable: impl Fn(&T) -> bool,
    cost: impl Fn(&T) -> f64,
) -> Option<&T> {
    let (first, second) = match all {
        [] => return None,
        [only] => return Some(only),
        _ => draw(all.len(), lot),
    };
    let (one, other) = (&all[first], &all[second]);
    let cheaper = || if cost(other) < cost(one) { other } else { one };
    match (usable(one), usable(other)) {
        (true, true) => Some(cheaper()),
        _ if 2 * all.iter().filter(|one| usable(one)).count() < all.len() => Some(cheaper()),
        (true, false) => Some(one),
        (false, true) => Some(other),
        (false, false) => {
            let around = all[first..].iter().chain(&all[..first]);
            Some(around.into_iter().find(|one| usable(one)).unwrap_or(one))
        }
    }
}

/// Two different places among `count`, which is at least 2.
fn draw(count: usize, lot: u64) -> (usize, usize) {
    let within = |lot: u64, count: usize| {
        let place = ((lot & 0xffff_ffff) * count as u64) >> 32;
        usize::try_from(place).unwrap_or_default()
    };
    let first = within(lot, count);
    (first, (first + 1 + within(lot >> 32, count - 1)) % count)
}

/// The time by which an estimate fades to a third.
const FADES: Duration = Duration::from_secs(10);
/// What every request costs: differences below are chance.
const LEAST: Duration = Duration::from_micros(100);
/// How a failure counts as latency.
const FAILURE: Duration = Duration::from_secs(1);
/// An address is left out this long at most.
const LONGEST: Duration = Duration::from_secs(300);
/// And this long at its own wish.
const LONGEST_REST: Duration = Duration::from_secs(60);
/// How long it takes for one that was left out to get its whole share again.
const RETURNING: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules = Rules {
        after: 3,
        first: Duration::from_secs(5),
    };

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// Lots as a fair draw would give them.
    fn lots() -> impl Iterator<Item = u64> {
        let mut generator = fastrand::Rng::with_seed(7);
        std::iter::repeat_with(move || generator.u64(..))
    }

    #[test]
    fn two_different_places_are_drawn_and_every_place_is() {
        for count in 2..9 {
            let mut drawn = vec![0; count];
            for lot in lots().take(4000) {
                let (first, second) = draw(count, lot);
                assert_ne!(first, second);
                drawn[first] += 1;
                drawn[second] += 1;
            }
            let fair = 8000 / count;
            for times in drawn {
                assert!(
                    times > fair * 8 / 10 && times < fair * 12 / 10,
                    "{times} of {fair}"
                );
            }
        }
    }

    #[test]
    fn the_busiest_and_the_slowest_never_take_the_next_request() {
        let costs = [5.0, 1.0, 9.0, 3.0];
        for lot in lots().take(1000) {
            let chosen = choose(&costs, lot, |_| true, |cost| *cost);
            assert_ne!(chosen, Some(&9.0));
        }
        assert_eq!(choose(&[4], 9, |_| false, |_| 0.0), Some(&4));
        assert_eq!(choose::<u8>(&[], 9, |_| true, |_| 0.0), None);
    }

    #[test]
    fn what_is_left_out_is_used_only_where_most_are() {
        let used = |usable: &[bool]| {
            let all: Vec<_> = usable.iter().copied().enumerate().collect();
            let mut used = vec![false; all.len()];
            for lot in lots().take(1000) {
                let (place, _) = choose(&all, lot, |(_, usable)| *usable, |_| 1.0).unwrap();
                used[*place] = true;
            }
            used
        };
        assert_eq!(used(&[true, false]), [true, false]);
        assert_eq!(
            used(&[false, true, true, false]),
            [false, true, true, false]
        );
        assert_eq!(used(&[false, false]), [true, true]);
        assert_eq!(used(&[false, true, false]), [true, true, true]);
    }

    #[test]
    fn more_under_way_and_slower_answers_cost_more() {
        let (quick, slow) = (Health::default(), Health::default());
        quick.answered(ms(1), ms(0));
        slow.answered(ms(20), ms(0));
        assert!(quick.cost(0, ms(0)) < quick.cost(1, ms(0)));
        assert!(quick.cost(3, ms(0)) < slow.cost(0, ms(0)));
        // A peak counts at once and fades: what was slow is tried again.
        quick.answered(ms(100), ms(1));
        assert!(quick.cost(0, ms(1)) > slow.cost(0, ms(1)));
        assert!(quick.cost(0, ms(60_000)) < slow.cost(0, ms(1)));
        for step in 0..300 {
            slow.answered(ms(1), ms(100 * step));
        }
        assert!(slow.cost(0, ms(30_000)) < 0.003);
    }

    #[test]
    fn failures_in_a_row_leave_an_address_out_each_time_for_longer() {
        let health = Health::default();
        assert_eq!(health.failed(ms(0), RULES), None);
        assert_eq!(health.failed(ms(0), RULES), None);
        health.answered(ms(1), ms(1));
        for _ in 0..2 {
            assert_eq!(health.failed(ms(2), RULES), None);
        }
        assert_eq!(health.failed(ms(2), RULES), Some(ms(5_000)));
        assert!(health.ejected(ms(5_001)) && !health.ejected(ms(5_002)));
        // What was under way when it was left out changes nothing.
        assert_eq!(health.failed(ms(3), RULES), None);
        // Just back, one failure is enough.
        health.answered(ms(1), ms(5_003));
        assert_eq!(health.failed(ms(5_004), RULES), Some(ms(10_000)));
        // Well again for long enough, it has its credit back.
        health.answered(ms(1), ms(30_000));
        assert_eq!(health.failed(ms(30_001), RULES), None);

        let never = Rules { after: 0, ..RULES };
        let failed = (0..100).map(|at| Health::default().failed(ms(at), never));
        assert!(failed.into_iter().all(|out| out.is_none()));
    }

    #[test]
    fn an_address_that_asks_for_it_is_left_alone_for_a_minute_at_most() {
        let health = Health::default();
        health.rest(ms(2_000), ms(1_000));
        health.rest(ms(1_000), ms(1_000));
        assert!(health.ejected(ms(2_999)) && !health.ejected(ms(3_000)));
        let usual = Health::default().cost(0, ms(3_000));
        assert!((health.cost(0, ms(3_000)) - usual).abs() < f64::EPSILON);
        health.rest(ms(u64::MAX / 2), ms(3_000));
        assert!(!health.ejected(ms(63_000)));
    }

    #[test]
    fn an_address_that_comes_back_gets_its_share_little_by_little() {
        let health = Health::default();
        let usual = health.cost(0, ms(0));
        health.leave_out(ms(5_000), ms(0));
        let costs = [5_000, 7_000, 10_000, 14_000].map(|at| health.cost(0, ms(at)) / usual);
        assert!(costs.is_sorted_by(|a, b| a > b), "{costs:?}");
        assert!((costs[0] - 10.0).abs() < 1e-6, "{costs:?}");
        assert!((health.cost(0, ms(15_000)) / usual - 1.0).abs() < 1e-6);
    }
}
