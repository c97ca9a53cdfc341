//! What do all listeners of one worker share?

use std::sync::Arc;

use prometheus::Registry;

use crate::audit::{Audit, Direction};
use crate::discovery::Directory;
use crate::lifecycle::{Lifecycle, Tasks};
use crate::limits::Credit;
use crate::live::{Live, Snapshot};
use crate::secrets::{self, Guard};
use crate::session::{Roll, Standing};
use crate::tls::{self, Endpoint, Peer};
use crate::{exchange, limits, policy, upstream};

/// One worker, as its listeners see it.
#[derive(Debug)]
pub struct Worker {
    /// The identity in force.
    pub identity: Arc<Live<Endpoint>>,
    /// Where destinations are.
    pub directory: Arc<Directory>,
    /// Where records go.
    pub audit: Audit,
    /// What fingerprints of standing secrets are made with.
    pub fingerprints: Arc<secrets::Key>,
    /// The way out.
    pub lifecycle: Lifecycle,
    /// The worker's tasks.
    pub tasks: Tasks,
    /// The worker's open sessions.
    pub roll: Roll,
    /// Credit of HTTP/2 connections, that of all workers.
    pub credit: Credit,
    /// The worker's share of the metrics.
    pub metrics: Metrics,
}

/// The metric families of the data path.
#[derive(Debug)]
pub struct Metrics {
    /// Handshakes.
    pub tls: tls::Metrics,
    /// Decisions.
    pub policy: policy::Metrics,
    /// Standing secrets.
    pub secrets: secrets::Metrics,
    /// Callers that speak no TLS.
    pub plaintext: exchange::plaintext::Metrics,
    /// Requests, connections, bytes.
    pub exchange: exchange::Metrics,
    /// Limits that were reached.
    pub limits: limits::Metrics,
    /// Connections to peers.
    pub upstream: upstream::Metrics,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        Ok(Self {
            tls: tls::Metrics::register(registry)?,
            policy: policy::Metrics::register(registry)?,
            secrets: secrets::Metrics::register(registry)?,
            plaintext: exchange::plaintext::Metrics::register(registry)?,
            exchange: exchange::Metrics::register(registry)?,
            limits: limits::Metrics::register(registry)?,
            upstream: upstream::Metrics::register(registry)?,
        })
    }
}

impl Worker {
    /// What a connection with `peer` stands on that was made as `own`.
    #[must_use]
    pub fn standing(&self, peer: Arc<Peer>, own: Arc<Snapshot<Endpoint>>) -> Standing {
        Standing {
            peer,
            own,
            identity: self.identity.clone(),
            roll: self.roll.clone(),
        }
    }

    /// What looks for standing secrets on the way to `service`.
    #[must_use]
    pub fn guard(
        &self,
        direction: Direction,
        settings: &secrets::Settings,
        service: &Arc<str>,
    ) -> Guard {
        let tally = &self.metrics.secrets;
        Guard::new(
            settings.clone(),
            self.fingerprints.clone(),
            tally.of(direction.label(), service.clone()),
        )
    }
}
