//! Which policy is in force, in metrics?

use std::time::UNIX_EPOCH;

use prometheus::{Gauge, IntCounter, IntGauge, Registry};

use super::cedar::Engine;
use crate::live::Snapshot;

/// The metrics of the policy as a whole, once in a process.
#[derive(Clone, Debug)]
pub struct Status {
    generation: IntGauge,
    loaded: Gauge,
    policies: IntGauge,
    failures: IntCounter,
}

impl Status {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let status = Self {
            generation: IntGauge::new(
                "doorward_policy_generation",
                "How many times policy was put in force; audit records name it.",
            )?,
            loaded: Gauge::new(
                "doorward_policy_loaded_timestamp_seconds",
                "When the policy in force was loaded.",
            )?,
            policies: IntGauge::new(
                "doorward_policy_policies",
                "Policies in force, permits and forbids together.",
            )?,
            failures: IntCounter::new(
                "doorward_policy_load_failures_total",
                "Changes of the policy directory that were not put in force, because something in it is wrong.",
            )?,
        };
        registry.register(Box::new(status.generation.clone()))?;
        registry.register(Box::new(status.loaded.clone()))?;
        registry.register(Box::new(status.policies.clone()))?;
        registry.register(Box::new(status.failures.clone()))?;
        Ok(status)
    }

    /// Tells of the policy that is now in force.
    pub fn published(&self, snapshot: &Snapshot<Engine>) {
        self.generation
            .set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        self.loaded.set(
            snapshot
                .since
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64(),
        );
        self.policies
            .set(i64::try_from(snapshot.value.policies()).unwrap_or(i64::MAX));
    }

    /// Tells of a directory that could not be loaded.
    pub fn failed(&self) {
        self.failures.inc();
    }
}
