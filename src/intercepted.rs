//! Which connections that reach the ports of the section `intercept` are taken, and what becomes of the others?
//!
//! Whoever serves them asks a [`Doorstep`] where each was going. One that nobody led here may be anybody's, and
//! one that is going where no entry of the configuration leads has no business here: both are reset, recorded
//! and counted, under the name of the key that the port is configured by.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::audit::{self, Direction, Kind, Verdict};
use crate::exchange::{self, Meter};
use crate::intercept::{self, Direct};
use crate::limits::Tally;
use crate::listen::{self, Source, Stream};
use crate::outcome::Outcome;
use crate::telemetry::chain;
use crate::worker::Worker;

/// The port of one direction in one worker.
#[derive(Debug)]
pub struct Doorstep {
    direction: Direction,
    service: Arc<str>,
    worker: Arc<Worker>,
    meter: Arc<Meter>,
    tally: Tally,
}

impl Doorstep {
    /// That of `direction`.
    #[must_use]
    pub fn new(direction: Direction, worker: Arc<Worker>) -> Self {
        let service: Arc<str> = match direction {
            Direction::Inbound => "intercept.inbound",
            Direction::Outbound => "intercept.outbound",
        }
        .into();
        Self {
            meter: worker.metrics.exchange.of(direction, &service),
            tally: worker.metrics.limits.of(direction.label(), &service),
            direction,
            service,
            worker,
        }
    }

    /// Counts what no entry serves, and connections before it is known which one does.
    #[must_use]
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// Counts what is reached of the port's limits.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Where `stream` was going; an IPv4 address is one also where the socket takes both families. `None` if
    /// nobody led it here: then it has been refused.
    #[must_use]
    pub fn destination(&self, stream: &Stream, source: Source) -> Option<SocketAddr> {
        let told = match stream.local_addr() {
            Some(local) => intercept::original_destination(stream, local),
            None => Err(Direct::Here),
        };
        match told {
            Ok(destination) => Some(destination),
            Err(error) => {
                let error = chain(&error);
                tracing::debug!(%source, port = %self.service, %error, "a connection that nobody led here");
                self.refuse(stream, source, None, Outcome::NotRedirected);
                None
            }
        }
    }

    /// Refuses `stream`, which was going to `destination`: it is reset when it is dropped.
    pub fn refuse(
        &self,
        stream: &Stream,
        source: Source,
        destination: Option<SocketAddr>,
        outcome: Outcome,
    ) {
        listen::break_off(stream);
        let facts = Arc::new(self.facts(source, destination));
        self.meter.session(exchange::Kind::Tcp).ended(outcome);
        // There is nothing to refuse any more.
        if let Ok(mut record) = self.worker.audit.open(Kind::Connection, &facts) {
            record.verdict(Verdict {
                reason: Some(outcome.label()),
                ..Verdict::default()
            });
            record.finish(outcome, 0, 0);
        }
    }

    /// What records say of a connection that no entry serves.
    #[must_use]
    pub fn facts(&self, source: Source, destination: Option<SocketAddr>) -> audit::Connection {
        audit::Connection {
            plaintext: false,
            direction: self.direction,
            own: self.worker.identity.get().map(|own| own.value.id().clone()),
            peer: None,
            service: self.service.clone(),
            source: source.address(),
            destination,
        }
    }
}
