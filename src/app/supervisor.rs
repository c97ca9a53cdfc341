//! What is the service manager told? That we are ready, how we are, that no worker hangs, and that we stop
//! (sd_notify(3)). Without one that listens, nothing.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use sd_notify::NotifyState;

use crate::admin::Health;
use crate::lifecycle::{Lifecycle, Phase};

/// Tells the service manager for as long as we run. It runs on the control thread: when that hangs, the
/// watchdog hears nothing, as when a worker does.
pub(super) async fn tell(health: Arc<Health>, lifecycle: Lifecycle) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let watchdog = sd_notify::watchdog_enabled();
    let mut last = None;
    let mut was_ready = false;
    loop {
        let mut states = Vec::with_capacity(3);
        let status = status(&health, &lifecycle);
        let is_ready = status == Status::Ready;
        if is_ready && !was_ready {
            states.push(NotifyState::Ready);
        }
        if watchdog.is_some() && health.liveness(Instant::now()).live {
            states.push(NotifyState::Watchdog);
        }
        let text = status.to_string();
        if last.as_ref() != Some(&status) {
            states.push(NotifyState::Status(&text));
        }
        // What it could not be told is told again: without hearing that we are ready it would end us.
        if !states.is_empty() && said(&states) {
            was_ready |= is_ready;
            last = Some(status);
        }
        let pause = if was_ready { CALM } else { STARTING };
        tokio::time::sleep(watchdog.map_or(pause, |patience| pause.min(patience / 4))).await;
    }
}

/// Tells the service manager that the end has begun, and is meant.
pub(super) fn stopping() {
    said(&[NotifyState::Stopping]);
}

fn said(states: &[NotifyState<'_>]) -> bool {
    let told = sd_notify::notify(states);
    if let Err(error) = &told {
        tracing::debug!(%error, "the service manager cannot be told");
    }
    told.is_ok()
}

/// How we are, in a line for `systemctl status`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Status {
    Ready,
    /// And why not.
    Unready(String),
    Draining,
}

fn status(health: &Health, lifecycle: &Lifecycle) -> Status {
    if lifecycle.phase() >= Phase::Draining {
        return Status::Draining;
    }
    let readiness = health.readiness(SystemTime::now());
    if readiness.ready {
        return Status::Ready;
    }
    let failing = readiness
        .conditions
        .into_iter()
        .filter(|finding| !finding.ready);
    let why: Vec<_> = failing
        .map(|finding| match finding.detail {
            Some(detail) => format!("{}: {detail}", finding.name),
            None => finding.name.to_owned(),
        })
        .collect();
    Status::Unready(why.join("; "))
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            // One line is all that there is room for.
            Self::Unready(why) => write!(f, "not ready: {}", why.replace(['\n', '\r'], " ")),
            Self::Draining => f.write_str("draining"),
        }
    }
}

/// How often we look at how we are, until we are ready for the first time.
const STARTING: Duration = Duration::from_millis(20);
/// And from then on.
const CALM: Duration = Duration::from_secs(1);
