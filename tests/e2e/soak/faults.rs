//! What went wrong, when, and is there a fault that explains it?

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

/// What was done to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The grant for what is guarded is on its way out, out, or on its way back.
    Withdrawn,
    /// It is out, everywhere: nobody gets through.
    WithdrawnInForce,
    ApplicationsGone,
    SidecarGone,
}

/// What happened to a client instead of what it expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Failure {
    /// 403.
    Denied,
    /// It got an answer although it was denied it.
    Allowed,
    /// 502, 503 or 504, or the same in gRPC's words.
    Unavailable,
    /// The connection, or the body, broke off.
    Broken,
    /// The wrong bytes, or another status.
    Wrong,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    fault: Fault,
    from: Instant,
    until: Option<Instant>,
}

/// Something that failed.
#[derive(Debug)]
struct Failed {
    client: &'static str,
    /// Which of the sidecars it went to.
    to: &'static str,
    failure: Failure,
    began: Instant,
    at: Instant,
    why: String,
}

/// Everything that was done and that failed.
#[derive(Debug, Default)]
pub(super) struct Journal {
    windows: Mutex<Vec<Window>>,
    failed: Mutex<Vec<Failed>>,
}

impl Journal {
    pub(super) fn begin(&self, fault: Fault) -> usize {
        let mut windows = self.windows.lock().unwrap();
        windows.push(Window {
            fault,
            from: Instant::now(),
            until: None,
        });
        windows.len() - 1
    }

    pub(super) fn end(&self, number: usize) {
        self.windows.lock().unwrap()[number].until = Some(Instant::now());
    }

    pub(super) fn failed(
        &self,
        (client, to): (&'static str, &'static str),
        began: Instant,
        failure: Failure,
        why: String,
    ) {
        self.failed.lock().unwrap().push(Failed {
            client,
            to,
            failure,
            began,
            at: Instant::now(),
            why,
        });
    }

    /// Something was let through that a withdrawn grant was for.
    pub(super) fn allowed(&self, client: (&'static str, &'static str), began: Instant) {
        let windows = self.windows.lock().unwrap();
        let out = windows.iter().any(|window| {
            // It began, and was answered, while it was out.
            window.fault == Fault::WithdrawnInForce
                && window.from <= began
                && window.until.is_none()
        });
        drop(windows);
        if out {
            self.failed(client, began, Failure::Allowed, "without a grant".into());
        }
    }

    /// Prints how much failed by which fault, and returns what no fault explains.
    pub(super) fn tell(&self) -> Vec<String> {
        let windows = self.windows.lock().unwrap();
        let mut explained = BTreeMap::<_, usize>::new();
        let mut latest = Duration::ZERO;
        let mut unexplained = Vec::new();
        for failed in self.failed.lock().unwrap().iter() {
            match windows.iter().find(|window| window.explains(failed)) {
                Some(window) => {
                    let key = format!(
                        "{:?}: {} to {}, {:?}",
                        window.fault, failed.client, failed.to, failed.failure
                    );
                    *explained.entry(key).or_default() += 1;
                    let until = window.until.unwrap_or(failed.at);
                    latest = latest.max(failed.at.saturating_duration_since(until));
                }
                None => unexplained.push(failed.told(&windows)),
            }
        }
        for (key, count) in &explained {
            println!("{count:>8} failed by {key}");
        }
        println!(
            "the latest of them {latest:?} after its fault; {} unexplained",
            unexplained.len()
        );
        unexplained
    }
}

impl Failed {
    /// With everything that was done in the seconds before.
    fn told(&self, windows: &[Window]) -> String {
        let before = windows.iter().filter_map(|window| {
            let before = self.at.checked_duration_since(window.from)?;
            (before < Duration::from_secs(10))
                .then(|| format!("{:?} {before:?} before", window.fault))
        });
        format!(
            "{} to {}: {:?} after {:?}, {}; {:?}",
            self.client,
            self.to,
            self.failure,
            self.at - self.began,
            self.why,
            before.collect::<Vec<_>>()
        )
    }
}

impl Window {
    fn explains(&self, failed: &Failed) -> bool {
        let within =
            self.from <= failed.at && self.until.is_none_or(|until| failed.at <= until + SETTLES);
        let broken = matches!(failed.failure, Failure::Unavailable | Failure::Broken);
        within
            && match self.fault {
                Fault::Withdrawn => failed.failure == Failure::Denied && failed.client == "guarded",
                Fault::WithdrawnInForce => false,
                Fault::ApplicationsGone => broken,
                Fault::SidecarGone => broken && failed.to == "c",
            }
    }
}

/// Clients learn of an end a moment later, on a machine that is busy.
const SETTLES: Duration = Duration::from_secs(1);
