//! Which entry leads a connection on that the packet filter led to us?

use std::sync::Arc;

use super::Settings;
use crate::audit::Direction;
use crate::intercepted::Doorstep;
use crate::lifecycle::Tasks;
use crate::limits::Tally;
use crate::listen::{Source, Stream};
use crate::outcome::Outcome;
use crate::worker::Worker;

/// All intercepted entries of one worker, behind the port `intercept.outbound.port`.
#[derive(Debug)]
pub struct Intercepted {
    doorstep: Doorstep,
}

impl Intercepted {
    /// Prepares to serve what `entries` say.
    #[must_use]
    pub fn new(_entries: Vec<Settings>, worker: &Arc<Worker>) -> Arc<Self> {
        Arc::new(Self {
            doorstep: Doorstep::new(Direction::Outbound, worker.clone()),
        })
    }

    /// Counts what is reached of the port's limits.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.doorstep.tally().clone()
    }

    /// Closes the kept connections to peers.
    pub fn close(&self) {}

    /// Hands one accepted connection to the entry that leads on, among `tasks`; or refuses it.
    pub fn take(&self, stream: Stream, source: Source, _tasks: &Tasks) {
        let Some(destination) = self.doorstep.destination(&stream, source) else {
            return;
        };
        let (to, why) = (Some(destination), Outcome::NoRoute);
        self.doorstep.refuse(&stream, source, to, why);
    }
}
