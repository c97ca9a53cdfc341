//! Which entry serves a connection that the packet filter led to us? The one that has its port.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::{Inbound, Settings};
use crate::audit::Direction;
use crate::intercept::Ports;
use crate::intercepted::Doorstep;
use crate::lifecycle::Tasks;
use crate::limits::{Limit, Tally};
use crate::listen::{self, Source, Stream};
use crate::outcome::Outcome;
use crate::policy::Policy;
use crate::worker::Worker;

/// All intercepted entries of one worker, behind the port `intercept.inbound.port`.
#[derive(Debug)]
pub struct Intercepted {
    doorstep: Doorstep,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    ports: Vec<Ports>,
    inbound: Arc<Inbound>,
    /// Its open connections.
    limit: Arc<Semaphore>,
}

impl Intercepted {
    /// Prepares to serve what `entries` say. No two of them have the same port.
    #[must_use]
    pub fn new(entries: Vec<Settings>, policy: &Arc<Policy>, worker: &Arc<Worker>) -> Arc<Self> {
        let entry = |settings: Settings| Entry {
            ports: settings.entrance.intercepted().cloned().unwrap_or_default(),
            limit: Arc::new(Semaphore::new(settings.listener.max_connections)),
            inbound: Inbound::new(settings, policy.clone(), worker.clone()),
        };
        Arc::new(Self {
            doorstep: Doorstep::new(Direction::Inbound, worker.clone()),
            entries: entries.into_iter().map(entry).collect(),
        })
    }

    /// Counts what is reached of the port's limits.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.doorstep.tally().clone()
    }

    /// Closes the kept connections to the applications.
    pub fn close(&self) {
        for entry in &self.entries {
            entry.inbound.close();
        }
    }

    /// Hands one accepted connection to the entry that serves it, among `tasks`; or refuses it.
    pub fn take(&self, stream: Stream, source: Source, tasks: &Tasks) {
        let Some(destination) = self.doorstep.destination(&stream, source) else {
            return;
        };
        let port = destination.port();
        let has_port = |entry: &&Entry| entry.ports.iter().any(|ports| ports.contains(port));
        let Some(entry) = self.entries.iter().find(has_port) else {
            tracing::debug!(%source, %destination, "no entry of `inbound` serves this port");
            let (to, why) = (Some(destination), Outcome::NoRoute);
            return self.doorstep.refuse(&stream, source, to, why);
        };
        // One entry that is full must not make the others' connections wait.
        let Ok(slot) = entry.limit.clone().try_acquire_owned() else {
            entry.inbound.tally.hit(Limit::Connections);
            return listen::break_off(&stream);
        };
        let inbound = entry.inbound.clone();
        tasks.spawn(inbound.serve(stream, source, Some(destination), slot));
    }
}
