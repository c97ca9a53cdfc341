//! What does a process hold, and is anything left of what has passed?

use std::fs;
use std::time::{Duration, Instant};

use super::{SOON, Sidecar, eventually};

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) descriptors: usize,
    threads: usize,
    pub(crate) sessions: f64,
    in_flight: f64,
    upstream: f64,
    resident_kib: usize,
}

impl Held {
    /// By now.
    pub(crate) async fn by(sidecar: &Sidecar) -> Self {
        let pid = sidecar.process.pid();
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.unwrap().trim().trim_end_matches(" kB");
        let metrics = sidecar.metrics().await;
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            sessions: metrics.sum("doorward_open_sessions", &[]),
            in_flight: metrics.sum("doorward_requests_in_flight", &[]),
            upstream: metrics.sum("doorward_upstream_connections", &[]),
            resident_kib: resident.parse().unwrap(),
        }
    }

    /// The same once nothing is under way, and our own callers have gone.
    pub(crate) async fn at_rest(sidecar: &Sidecar) -> Self {
        eventually("what was under way has ended", async || {
            let metrics = sidecar.metrics().await;
            let callers = metrics.sum("doorward_open_sessions", &[("direction", "outbound")]);
            let held = Self::by(sidecar).await;
            (held.in_flight + callers < 0.5).then_some(held)
        })
        .await
    }

    /// Where the machine was too busy for it before, there is a connection between the sidecars now. The
    /// runtime ends the threads of its blocking pool when it likes.
    fn is_within(&self, before: &Self) -> bool {
        self.descriptors <= before.descriptors + 1
            && self.threads <= before.threads + 2
            && self.sessions <= before.sessions + 1.0
            && self.in_flight <= before.in_flight
            && self.upstream <= before.upstream + 1.0
    }
}

/// Waits until `sidecar` holds no more than `before`, and a little memory.
pub(crate) async fn nothing_is_left(sidecar: &Sidecar, before: &Held) {
    let mut last = *before;
    let limit = Instant::now() + SOON;
    while Instant::now() < limit {
        last = Held::by(sidecar).await;
        if last.is_within(before) {
            let grown = last.resident_kib.saturating_sub(before.resident_kib);
            assert!(grown < 16 * 1024, "{grown} KiB more: {before:?}, {last:?}");
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!(
        "{} held {before:?}, and holds {last:?}",
        sidecar.process.name()
    );
}
