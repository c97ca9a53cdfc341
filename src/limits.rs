//! What may others make us hold, and how often did they reach the limit?
//!
//! Each [`Limit`] is enforced where the resource is held; here they are named, and counted in one family.

mod lag;
mod stall;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use self::lag::Lag;
pub use self::stall::Stall;
use crate::outcome::Outcome;

/// A limit of ours that somebody reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// As many connections are open as may be: the next ones wait in the kernel's queue.
    Connections,
    /// File descriptors, or the kernel's memory for sockets, have run out or nearly so: accepting pauses.
    Descriptors,
    /// As many handshakes are under way as may be: the oldest was given up for a new one.
    Handshakes,
    /// As many requests are under way as may be: the next one was answered with 503.
    Requests,
    /// The worker has more to do than it gets done: some requests are answered with 503, so that the others
    /// do not wait long.
    Lag,
    /// A request and its response together took too long.
    RequestTime,
    /// A request's head, or the preface of HTTP/2, did not come in time, or a kept HTTP/1.1 connection had
    /// nothing to ask.
    HeaderTime,
    /// A request's head was too long.
    HeaderBytes,
    /// HTTP/2 frames that carry nothing, or headers without end, came in such numbers that the connection
    /// was ended.
    Frames,
    /// The other side took nothing of what was to be written for too long.
    Unread,
    /// A body stood still for too long, or came too slowly.
    Unsent,
    /// Little credit was left for what a new HTTP/2 connection may send before it is read.
    Credit,
}

impl Limit {
    /// Every variant, to register metrics with.
    pub const ALL: [Self; 12] = [
        Self::Connections,
        Self::Descriptors,
        Self::Handshakes,
        Self::Requests,
        Self::Lag,
        Self::RequestTime,
        Self::HeaderTime,
        Self::HeaderBytes,
        Self::Frames,
        Self::Unread,
        Self::Unsent,
        Self::Credit,
    ];

    /// The word in metrics. Part of the public surface: never rename one.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Descriptors => "descriptors",
            Self::Handshakes => "handshakes",
            Self::Requests => "requests",
            Self::Lag => "lag",
            Self::RequestTime => "request_time",
            Self::HeaderTime => "header_time",
            Self::HeaderBytes => "header_bytes",
            Self::Frames => "frames",
            Self::Unread => "unread",
            Self::Unsent => "unsent",
            Self::Credit => "credit",
        }
    }
}

/// The metric families of limits, in one worker's registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    hit: IntCounterVec,
    requests: IntGaugeVec,
    lag: HistogramVec,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// When a family of the same name is there already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            hit: IntCounterVec::new(
                Opts::new(
                    "doorward_limits_hit_total",
                    "Times that a limit was reached, by which.",
                ),
                &["direction", "service", "limit"],
            )?,
            requests: IntGaugeVec::new(
                Opts::new(
                    "doorward_requests_in_flight",
                    "HTTP requests that were let in and have not ended; upgraded connections too, and inbound TCP sessions that share a connection.",
                ),
                &["direction", "service"],
            )?,
            lag: HistogramVec::new(
                HistogramOpts::new(
                    "doorward_worker_lag_seconds",
                    "How late a worker came to what was due, measured while it has many requests under way.",
                )
                .buckets(lag::BUCKETS.to_vec()),
                &["direction", "service"],
            )?,
        };
        registry.register(Box::new(metrics.lag.clone()))?;
        registry.register(Box::new(metrics.hit.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        Ok(metrics)
    }

    /// What counts for one listener. Its limits show at once, as 0.
    #[must_use]
    pub fn of(&self, direction: &'static str, service: &str) -> Tally {
        for limit in Limit::ALL {
            let labels = [direction, service, limit.label()];
            let _ = self.hit.with_label_values(&labels);
        }
        Tally(Arc::new(Counters {
            direction,
            service: service.into(),
            families: self.clone(),
        }))
    }
}

/// Counts for one listener how often its limits are reached. Clones count together.
#[derive(Clone, Debug)]
pub struct Tally(Arc<Counters>);

#[derive(Debug)]
struct Counters {
    direction: &'static str,
    service: Box<str>,
    families: Metrics,
}

impl Tally {
    /// Counts that `limit` was reached.
    pub fn hit(&self, limit: Limit) {
        let Counters {
            direction,
            service,
            families,
        } = &*self.0;
        let labels = [direction, &**service, limit.label()];
        families.hit.with_label_values(&labels).inc();
    }

    /// Lets requests in on these terms.
    #[must_use]
    pub fn requests(&self, terms: Terms) -> Arc<Requests> {
        let labels = [self.0.direction, &*self.0.service];
        let families = &self.0.families;
        Arc::new(Requests {
            most: i64::try_from(terms.most).unwrap_or(i64::MAX),
            under_way: families.requests.with_label_values(&labels),
            lag: Lag::new(terms.max_lag, families.lag.with_label_values(&labels)),
            terms,
            tally: self.clone(),
        })
    }

    /// Lets at most `most` handshakes be under way at once.
    #[must_use]
    pub fn handshakes(&self, most: usize) -> Arc<Handshakes> {
        Arc::new(Handshakes {
            most,
            tally: self.clone(),
            under_way: Mutex::default(),
        })
    }
}

/// What holds for the requests at one listener.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Under way at most, in each worker.
    pub most: usize,
    /// The worker may be late by so much before requests are turned away.
    pub max_lag: Duration,
    /// How long one may take, from its head to the end of its response.
    pub request_timeout: Option<Duration>,
    /// How long a body, and whoever takes a response, may stand still.
    pub stall_timeout: Duration,
    /// Bytes a second at least of a body whose length is known, over each `stall_timeout`.
    pub min_body_rate: u32,
    /// The same of one whose length is not known. Without it, such a body may take as long as it likes.
    pub min_stream_rate: Option<u32>,
}

/// The requests under way at one listener of one worker.
#[derive(Debug)]
pub struct Requests {
    most: i64,
    /// Of this worker alone, so that it serves as the count itself.
    under_way: IntGauge,
    lag: Arc<Lag>,
    terms: Terms,
    tally: Tally,
}

impl Requests {
    /// Lets one more in, until what is returned is dropped. To be called on the worker's runtime.
    ///
    /// # Errors
    /// When as many are in as may be, or the worker does not keep up.
    pub fn admit(self: &Arc<Self>) -> Result<Admitted, Outcome> {
        let under_way = self.under_way.get();
        let reached = if under_way >= self.most {
            Some(Limit::Requests)
        } else if under_way >= CROWD && self.lag.sheds() {
            Some(Limit::Lag)
        } else {
            None
        };
        if let Some(limit) = reached {
            self.tally.hit(limit);
            return Err(Outcome::Overloaded);
        }
        self.under_way.inc();
        Ok(Admitted {
            requests: self.clone(),
            deadline: None,
        })
    }
}

/// With fewer requests under way at a listener of a worker, none is turned away because the worker is late:
/// it is not they who keep it busy.
const CROWD: i64 = 8;

/// A request that was let in and is under way.
#[derive(Debug)]
pub struct Admitted {
    requests: Arc<Requests>,
    deadline: Option<AbortHandle>,
}

impl Admitted {
    /// Calls `late` when it has taken as long as it may. To be called on the worker's runtime.
    pub fn unless_late(&mut self, late: impl FnOnce() + Send + 'static) {
        if let Some(timeout) = self.requests.terms.request_timeout {
            let waiting = async move {
                tokio::time::sleep(timeout).await;
                late();
            };
            self.deadline = Some(tokio::spawn(waiting).abort_handle());
        }
    }

    /// From now on it may take as long as it likes.
    pub fn take_time(&self) {
        if let Some(deadline) = &self.deadline {
            deadline.abort();
        }
    }

    /// Watches over the progress of one of its bodies, of known length or not, where there is a limit.
    #[must_use]
    pub fn stall(&self, known_length: bool) -> Option<Stall> {
        let terms = &self.requests.terms;
        let rate = if known_length {
            terms.min_body_rate
        } else {
            terms.min_stream_rate?
        };
        Some(Stall::new(terms.stall_timeout).at_least(rate))
    }

    /// Counts that it reached `limit`.
    pub fn hit(&self, limit: Limit) {
        self.requests.tally.hit(limit);
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.take_time();
        self.requests.under_way.dec();
    }
}

/// The handshakes under way at one listener of one worker. Whoever opens connections and leaves them half
/// open cannot keep others out: the newest always begins, and the oldest is given up for it. An honest
/// handshake is over long before it is the oldest of many.
#[derive(Debug)]
pub struct Handshakes {
    most: usize,
    tally: Tally,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    next: u64,
    /// By age: dropping the sender gives the handshake up.
    handshakes: BTreeMap<u64, oneshot::Sender<()>>,
}

impl Handshakes {
    /// Begins one more.
    pub fn begin(self: &Arc<Self>) -> Handshake {
        let (keep, given_up) = oneshot::channel();
        let mut under_way = self.locked();
        if under_way.handshakes.len() >= self.most {
            under_way.handshakes.pop_first();
            self.tally.hit(Limit::Handshakes);
        }
        let number = under_way.next;
        under_way.next += 1;
        under_way.handshakes.insert(number, keep);
        drop(under_way);
        Handshake {
            all: self.clone(),
            number,
            given_up,
        }
    }

    fn locked(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handshake that is under way until this is dropped.
#[derive(Debug)]
pub struct Handshake {
    all: Arc<Handshakes>,
    number: u64,
    given_up: oneshot::Receiver<()>,
}

impl Handshake {
    /// Completes when it has to make room for a new one.
    pub async fn given_up(&mut self) {
        // Nothing is ever sent.
        let _ = (&mut self.given_up).await;
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.all.locked().handshakes.remove(&self.number);
    }
}

/// What all HTTP/2 connections to this process may send, together, before it is read. What one of them has
/// been promised cannot be taken back (RFC 9113 §6.9.2), so each new one gets a share of what is left: the
/// first ones enough for many slow streams beside fast ones, the last of many what the protocol begins
/// with. Clones share the same.
#[derive(Clone, Debug, Default)]
pub struct Credit(Arc<AtomicU32>);

impl Credit {
    /// A new connection's share.
    #[must_use]
    pub fn lend(&self) -> Lent {
        let share = |lent: u32| (BUDGET.saturating_sub(lent) / SHARES).max(LEAST);
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let more = |lent: u32| Some(lent.saturating_add(share(lent)));
        let before = self.0.fetch_update(set, fetch, more).unwrap_or_default();
        Lent {
            credit: self.clone(),
            bytes: share(before),
        }
    }
}

/// One connection's share of the credit, given back when it is dropped.
#[derive(Debug)]
pub struct Lent {
    credit: Credit,
    bytes: u32,
}

impl Lent {
    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Whether a few streams that are not read could use all of it up.
    #[must_use]
    pub fn is_scarce(&self) -> bool {
        self.bytes < SCARCE
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.credit.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// All credit there is, in bytes.
const BUDGET: u32 = 512 << 20;
/// Each new connection gets one of so many shares of what is left.
const SHARES: u32 = 16;
/// The credit that every HTTP/2 connection begins with (RFC 9113 §6.9.2), in bytes.
const LEAST: u32 = 65_535;
/// Less than this is told: the credit of 16 streams, in bytes.
const SCARCE: u32 = 4 << 20;

/// How long whoever was turned away is asked to wait before asking again, in seconds (RFC 9110 §10.2.3).
pub const RETRY_AFTER: u16 = 1;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures_util::FutureExt;

    use super::*;

    const TERMS: Terms = Terms {
        most: 10_000,
        max_lag: Duration::from_millis(100),
        request_timeout: None,
        stall_timeout: Duration::from_secs(60),
        min_body_rate: 100,
        min_stream_rate: None,
    };

    fn tally() -> (Registry, Tally) {
        let registry = Registry::new();
        let tally = Metrics::register(&registry).unwrap().of("inbound", "a");
        (registry, tally)
    }

    fn hits(tally: &Tally, limit: Limit) -> u64 {
        let labels = ["inbound", "a", limit.label()];
        tally.0.families.hit.with_label_values(&labels).get()
    }

    #[test]
    fn every_limit_has_a_label_of_its_own_and_shows_from_the_start() {
        let labels: BTreeSet<_> = Limit::ALL.iter().map(|limit| limit.label()).collect();
        assert_eq!(labels.len(), Limit::ALL.len());
        let (registry, _tally) = tally();
        let families = registry.gather();
        let family = families
            .iter()
            .find(|family| family.name() == "doorward_limits_hit_total");
        assert_eq!(family.unwrap().get_metric().len(), Limit::ALL.len());
    }

    #[test]
    fn as_many_requests_are_let_in_as_may_be_and_each_that_ends_makes_room() {
        let (_, tally) = tally();
        let requests = tally.requests(Terms { most: 2, ..TERMS });
        let first = requests.admit().unwrap();
        let _second = requests.admit().unwrap();
        assert_eq!(requests.admit().unwrap_err(), Outcome::Overloaded);
        assert_eq!(hits(&tally, Limit::Requests), 1);
        drop(first);
        let _third = requests.admit().unwrap();
        assert_eq!(requests.under_way.get(), 2);
    }

    #[test]
    fn credit_shrinks_as_connections_come_is_never_overdrawn_and_comes_back() {
        let credit = Credit::default();
        let lent: Vec<_> = std::iter::repeat_with(|| credit.lend()).take(300).collect();
        assert_eq!(lent[0].bytes(), 32 << 20);
        assert!(lent.is_sorted_by(|one, next| one.bytes() >= next.bytes()));
        assert!(!lent[0].is_scarce() && lent[299].is_scarce());
        assert_eq!(lent[299].bytes(), LEAST);
        let promised: u32 = lent.iter().map(|lent| lent.bytes() - LEAST).sum();
        assert!(promised <= BUDGET, "{promised}");
        drop(lent);
        assert_eq!(credit.lend().bytes(), 32 << 20);
    }

    #[test]
    fn the_oldest_handshake_is_given_up_for_the_newest() {
        let (_, tally) = tally();
        let handshakes = tally.handshakes(2);
        let mut first = handshakes.begin();
        let mut second = handshakes.begin();
        assert!(first.given_up().now_or_never().is_none());
        let mut third = handshakes.begin();
        assert!(first.given_up().now_or_never().is_some());
        assert!(second.given_up().now_or_never().is_none());
        // One that has ended is not given up: it makes room.
        drop(second);
        drop(first);
        let _fourth = handshakes.begin();
        assert!(third.given_up().now_or_never().is_none());
        assert_eq!(hits(&tally, Limit::Handshakes), 1);
    }
}
