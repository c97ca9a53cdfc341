//! How much still passes without mutual TLS, and how much is refused for it?

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::Kind;
use crate::policy::Plaintext;

/// The metric families of callers that speak no TLS, in one worker's registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    total: IntCounterVec,
    open: IntGaugeVec,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// When a family of the same name is there already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            total: IntCounterVec::new(
                Opts::new(
                    "doorward_inbound_plaintext_total",
                    "What came from callers that speak no TLS: requests and TCP sessions that were `allowed` by \
                     plaintext: allow_and_report, connections that were `refused`. There are series of \
                     `allowed`, if only as 0, where such callers are let in.",
                ),
                &["service", "kind", "action"],
            )?,
            open: IntGaugeVec::new(
                Opts::new(
                    "doorward_inbound_plaintext_open",
                    "Open connections of callers that speak no TLS and were let in.",
                ),
                &["service", "kind"],
            )?,
        };
        registry.register(Box::new(metrics.total.clone()))?;
        registry.register(Box::new(metrics.open.clone()))?;
        Ok(metrics)
    }

    /// The handles of one listener.
    #[must_use]
    pub fn of(&self, service: &str, plaintext: Plaintext) -> Tally {
        let count = |kind: Kind, action| {
            let labels = [service, kind.label(), action];
            self.total.with_label_values(&labels)
        };
        let each = |kind: Kind| Counters {
            refused: count(kind, "refused"),
            allowed: plaintext.is_allowed().then(|| {
                let open = self.open.with_label_values(&[service, kind.label()]);
                (count(kind, "allowed"), open)
            }),
        };
        Tally {
            http: each(Kind::Http),
            tcp: each(Kind::Tcp),
        }
    }
}

/// Counts for one listener in one worker.
#[derive(Debug)]
pub struct Tally {
    http: Counters,
    tcp: Counters,
}

#[derive(Debug)]
struct Counters {
    refused: IntCounter,
    /// None where nobody is let in.
    allowed: Option<(IntCounter, IntGauge)>,
}

impl Tally {
    /// Counts a connection that was refused.
    pub fn refused(&self, kind: Kind) {
        self.of(kind).refused.inc();
    }

    /// Counts a request or a session that was let in.
    pub fn allowed(&self, kind: Kind) {
        if let Some((allowed, _)) = &self.of(kind).allowed {
            allowed.inc();
        }
    }

    /// Counts a connection as open until the guard is dropped.
    #[must_use]
    pub fn open(&self, kind: Kind) -> Open {
        let open = self.of(kind).allowed.as_ref().map(|(_, open)| open.clone());
        if let Some(open) = &open {
            open.inc();
        }
        Open(open)
    }

    fn of(&self, kind: Kind) -> &Counters {
        match kind {
            Kind::Http | Kind::Upgrade => &self.http,
            Kind::Tcp => &self.tcp,
        }
    }
}

/// A connection counted as open.
#[derive(Debug)]
pub struct Open(Option<IntGauge>);

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(open) = &self.0 {
            open.dec();
        }
    }
}
