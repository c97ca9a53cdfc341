//! Does a worker keep up with what there is to do, and if not, which part of it is turned away?
//!
//! A worker is one thread that takes its tasks in turn, and what overloads a sidecar is this thread's time:
//! more tasks are ready than it gets done, each waits longer for its turn, and all requests become slow
//! together. So what is measured is the wait itself. While many requests are under way, a timer is set every
//! [`TICK`]; how much later than due the worker comes to it is how long everything else that is ready waits
//! too: the lag. Neither the application's own time, nor idle streams, nor waiting for the network is in it,
//! so a slow application is never taken for an overloaded sidecar, and no capacity has to be guessed, as it has
//! for a limit on concurrency that follows latency.
//!
//! The share of new requests that is turned away follows the lag as PIE does for queues of packets (RFC 8033
//! §4.2): it rises while the lag is above its limit, falls while it is below, and moves ahead with the
//! direction in which the lag moves. A refusal costs the worker much less than a request, but not nothing, so
//! a share finds the balance that all or nothing would jump over. What counts as lag is the least of some ticks
//! in a row (as in CoDel, RFC 8289 §3): a burst that is worked off, or a pause in which the machine
//! gave its CPU to others, is no overload.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use prometheus::Histogram;
use tokio::time::{Instant, sleep};

/// The lag of one worker, as the requests at one of its listeners see it, and what share of them to shed.
#[derive(Debug)]
pub(super) struct Lag {
    limit: Duration,
    measured: Histogram,
    /// Whether a task is measuring.
    watched: AtomicBool,
    /// Whether anybody wanted to know since the last tick.
    asked: AtomicBool,
    /// The share to shed, of [`ALL`].
    share: AtomicU32,
    /// What is left over of shares that were no whole request.
    owed: AtomicU32,
}

impl Lag {
    /// Nothing is shed before the lag stands above `limit`. It is observed in `measured`.
    pub(super) fn new(limit: Duration, measured: Histogram) -> Arc<Self> {
        Arc::new(Self {
            limit,
            measured,
            watched: AtomicBool::new(false),
            asked: AtomicBool::new(false),
            share: AtomicU32::new(0),
            owed: AtomicU32::new(0),
        })
    }

    /// Whether one more request is to be turned away. Called by one worker only, on its runtime.
    pub(super) fn sheds(self: &Arc<Self>) -> bool {
        self.asked.store(true, Ordering::Relaxed);
        if !self.watched.swap(true, Ordering::Relaxed) {
            tokio::spawn(self.clone().watch());
        }
        // Each in its turn rather than by lot: the same share, evenly.
        let owed = self.owed.load(Ordering::Relaxed) + self.share.load(Ordering::Relaxed);
        self.owed.store(owed % ALL, Ordering::Relaxed);
        owed >= ALL
    }

    /// Measures for as long as there is somebody to shed.
    async fn watch(self: Arc<Self>) {
        let mut control = Control::new(self.limit);
        let mut quiet = 0;
        while quiet < QUIET {
            let set = Instant::now();
            sleep(TICK).await;
            let lag = set.elapsed().saturating_sub(TICK);
            self.measured.observe(lag.as_secs_f64());
            let share = control.next(lag);
            self.share.store(whole(share), Ordering::Relaxed);
            let asked = self.asked.swap(false, Ordering::Relaxed);
            quiet = if asked || share > 0.0 { 0 } else { quiet + 1 };
        }
        self.watched.store(false, Ordering::Relaxed);
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share is between 0 and 1"
)]
fn whole(share: f64) -> u32 {
    (share * f64::from(ALL)) as u32
}

/// How the share follows the lag.
#[derive(Debug)]
struct Control {
    limit: f64,
    /// The last measurements, in seconds.
    last: [f64; STANDING],
    /// The least of them one tick ago.
    before: f64,
    share: f64,
}

impl Control {
    fn new(limit: Duration) -> Self {
        Self {
            limit: limit.as_secs_f64(),
            last: [0.0; STANDING],
            before: 0.0,
            share: 0.0,
        }
    }

    /// The share after one more tick, which came so much too late.
    fn next(&mut self, lag: Duration) -> f64 {
        self.last.rotate_left(1);
        self.last[STANDING - 1] = lag.as_secs_f64();
        let standing = self.last.iter().copied().fold(f64::MAX, f64::min);
        // In limits, so that all limits are kept in the same way.
        let over = ((standing - self.limit) / self.limit).clamp(-1.0, 1.0);
        let moved = ((standing - self.before) / self.limit).clamp(-1.0, 1.0);
        self.before = standing;
        let elapsed = (TICK + lag).as_secs_f64();
        self.share = (self.share + elapsed * over * A_SECOND + moved * AHEAD).clamp(0.0, 1.0);
        self.share
    }
}

/// How often the lag is measured.
const TICK: Duration = Duration::from_millis(10);
/// After so many ticks in which nobody asked, and nothing is shed, measuring ends.
const QUIET: u32 = 10;
/// What counts is the least of so many measurements in a row.
const STANDING: usize = 3;
/// All requests, as a share.
const ALL: u32 = 1 << 16;
/// How far the share goes in a second with a lag of twice the limit, or of nothing.
const A_SECOND: f64 = 1.0;
/// How far it goes when the lag moves by the limit.
const AHEAD: f64 = 0.5;

/// Buckets of the lag, in seconds: around [`TICK`] and the limits that make sense.
pub(super) const BUCKETS: [f64; 10] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;

    use super::*;

    const LIMIT: Duration = Duration::from_millis(100);

    fn lag() -> Arc<Lag> {
        let measured = Histogram::with_opts(HistogramOpts::new("lag", "Lag.")).unwrap();
        Lag::new(LIMIT, measured)
    }

    /// What a refusal costs of what a request costs.
    const REFUSAL: f64 = 0.25;

    /// A worker that is offered so many times what it can do: the most that it lagged in each second of half a
    /// minute, and which part of the last ten went into what it served.
    fn offered(load: f64) -> (Vec<f64>, f64) {
        let mut control = Control::new(LIMIT);
        let (mut share, mut now, mut backlog) = (0.0, 0.0, 0.0_f64);
        let (mut worst, mut useful) = (vec![0.0_f64; 30], 0.0);
        while now < 30.0 {
            let tick = TICK.as_secs_f64() + backlog;
            let served = load * (1.0 - share) * tick;
            let work = served + load * share * tick * REFUSAL;
            // While it is late it works off what it was late for.
            backlog = (work - TICK.as_secs_f64()).max(0.0);
            now += tick;
            let second = Duration::from_secs_f64(now).as_secs();
            if let Some(worst) = usize::try_from(second)
                .ok()
                .and_then(|at| worst.get_mut(at))
            {
                *worst = worst.max(backlog);
            }
            if now > 20.0 {
                useful += served;
            }
            share = control.next(Duration::from_secs_f64(backlog));
        }
        (worst, useful / 10.0)
    }

    #[test]
    fn whatever_is_offered_the_lag_stays_near_its_limit_and_the_worker_is_not_idle() {
        for load in [0.5, 0.9, 1.2, 2.0, 3.0] {
            let (worst, useful) = offered(load);
            let standing = worst[12..].iter().copied().fold(0.0, f64::max);
            assert!(standing < 2.0 * LIMIT.as_secs_f64(), "{load}: {worst:?}");
            // What is left when the rest is refused.
            let possible = ((1.0 - load * REFUSAL) / (1.0 - REFUSAL)).min(load);
            assert!(useful > 0.9 * possible, "{load}: {useful} of {possible}");
        }
    }

    #[test]
    fn a_burst_sheds_nothing_and_neither_does_a_pause() {
        let mut control = Control::new(LIMIT);
        for lag in [0, 900, 0, 0, 300, 400, 0, 0, 2000, 0].repeat(10) {
            assert_eq!(control.next(Duration::from_millis(lag)), 0.0);
        }
    }

    #[test]
    fn shares_are_shed_evenly() {
        let lag = lag();
        // Nobody measures here.
        lag.watched.store(true, Ordering::Relaxed);
        for (share, of_a_thousand) in [(0.0, 0), (0.001, 1), (0.25, 250), (0.5, 500), (1.0, 1000)] {
            lag.share.store(whole(share), Ordering::Relaxed);
            lag.owed.store(0, Ordering::Relaxed);
            let shed = (0..1000).filter(|_| lag.sheds()).count();
            assert!(shed.abs_diff(of_a_thousand) <= 1, "{share}: {shed}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_measured_while_nobody_asks() {
        let lag = lag();
        assert!(!lag.sheds());
        assert!(lag.watched.load(Ordering::Relaxed));
        sleep(TICK * (QUIET + 4)).await;
        assert!(!lag.watched.load(Ordering::Relaxed));
        let measured = lag.measured.get_sample_count();
        assert!(measured > 0);
        sleep(TICK * 100).await;
        assert_eq!(lag.measured.get_sample_count(), measured);
    }
}
