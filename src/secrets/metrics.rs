//! How many standing secrets were carried, by whom, and what became of them?

use std::sync::Arc;

use prometheus::{IntCounterVec, Opts, Registry};

use super::Carried;
use crate::telemetry::names::Names;

/// The metric families of standing secrets, in one worker's registry.
#[derive(Clone, Debug)]
pub struct Metrics {
    secrets: IntCounterVec,
    requests: IntCounterVec,
    principals: Names,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let secrets = IntCounterVec::new(
            Opts::new(
                "doorward_standing_secrets_total",
                "Standing secrets in HTTP requests that policy allowed, by who sent them and by the @id of \
                 the grant (empty outbound). `kind` is basic, api_key_header, api_key_query, \
                 bearer_no_expiry or bearer_long_lived.",
            ),
            &["direction", "service", "principal", "grant", "kind"],
        )?;
        let requests = IntCounterVec::new(
            Opts::new(
                "doorward_requests_with_standing_secrets_total",
                "HTTP requests that carried at least one standing secret, and what became of it: \
                 `action` is observed, stripped or denied.",
            ),
            &["direction", "service", "principal", "grant", "action"],
        )?;
        registry.register(Box::new(secrets.clone()))?;
        registry.register(Box::new(requests.clone()))?;
        Ok(Self {
            secrets,
            requests,
            principals: Names::default(),
        })
    }

    /// The counters of one listener; `direction` is the label of one.
    #[must_use]
    pub fn of(&self, direction: &'static str, service: Arc<str>) -> Tally {
        Tally {
            families: self.clone(),
            direction,
            service,
        }
    }
}

/// What one listener counts. Handles are looked up when there is something to count: most requests carry
/// nothing, and most connections none that do.
#[derive(Clone, Debug)]
pub struct Tally {
    families: Metrics,
    direction: &'static str,
    service: Arc<str>,
}

impl Tally {
    pub(super) fn count(&self, principal: &str, grant: &str, carried: &Carried) {
        let principal = self.families.principals.label(principal);
        let labels = |last| [self.direction, &*self.service, &*principal, grant, last];
        let action = carried.action().label();
        self.families
            .requests
            .with_label_values(&labels(action))
            .inc();
        for finding in carried.findings() {
            let kind = finding.kind.label();
            self.families.secrets.with_label_values(&labels(kind)).inc();
        }
    }
}
