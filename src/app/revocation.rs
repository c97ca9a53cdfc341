//! The certificate revocation lists: read before anything starts, then kept.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::admin::Health;
use crate::identity::crl::{Crls, Lists, Status};
use crate::live::{self, Change, Kept, Live, Source};
use crate::telemetry::{Registries, chain};

/// The lists as they were when we started, and where their changes come from.
pub(super) struct Revocation {
    pub(super) crls: Arc<Live<Crls>>,
    lists: Lists,
    status: Status,
    /// Why the lists in force are not the newest.
    fault: Fault,
}

type Fault = Arc<Mutex<Option<String>>>;

impl Revocation {
    /// Reads the lists at `path`: a control that was asked for and cannot be had stops the start.
    pub(super) async fn open(path: &Path, registries: &Registries) -> anyhow::Result<Self> {
        let mut revocation = Self {
            crls: Arc::default(),
            lists: Lists::new(path.to_owned()),
            status: Status::register(registries.process())?,
            fault: Arc::default(),
        };
        if let Change::Replace(crls) = revocation.lists.next().await? {
            revocation.crls.publish(crls);
        }
        if let Some(snapshot) = revocation.crls.get() {
            revocation.status.published(&snapshot.value, snapshot.since);
            tell_overdue(&snapshot.value);
        }
        Ok(revocation)
    }

    /// Shows at `/ready` when lists are not what they should be. That alone makes nobody unready: every
    /// sidecar would be at once, and what is revoked stays revoked.
    pub(super) fn shown_by(&self, health: Health) -> Health {
        let (fault, crls) = (self.fault.clone(), self.crls.clone());
        health.tells("crl", move |now| {
            let fault = fault.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(fault) = &*fault {
                return Some(format!("{fault}; the lists in force stay"));
            }
            let snapshot = crls.get()?;
            let (issuer, since) = snapshot.value.overdue(now).next()?;
            Some(overdue(issuer, since))
        })
    }

    /// Puts every change in force, for ever.
    pub(super) async fn keep(self) {
        let Self {
            crls,
            lists,
            status,
            fault,
        } = self;
        let say = |text| *fault.lock().unwrap_or_else(PoisonError::into_inner) = text;
        let tell = |kept: Kept<'_, _, _>| match kept {
            Kept::Published(snapshot) => {
                say(None);
                status.published(&snapshot.value, snapshot.since);
                tell_overdue(&snapshot.value);
                let (lists, generation) = (snapshot.value.len(), snapshot.generation);
                tracing::info!(lists, generation, "revocation lists are in force");
            }
            // Files never withdraw.
            Kept::Withdrawn => {}
            Kept::Failed(error, again) => {
                let error = chain(error);
                status.failed();
                tracing::error!(%error, ?again, "revocation lists cannot be read; those in force stay");
                say(Some(error));
            }
        };
        live::keep(lists, &crls, tell).await;
    }
}

fn tell_overdue(crls: &Crls) {
    for (issuer, since) in crls.overdue(SystemTime::now()) {
        tracing::warn!("{}", overdue(issuer, since));
    }
}

fn overdue(issuer: &str, since: SystemTime) -> String {
    let since = humantime::format_rfc3339_seconds(since);
    format!("the revocation list of `{issuer}` is overdue since {since}; it stays in force")
}
