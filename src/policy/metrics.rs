//! What policy decided, counted.

use std::sync::Arc;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::governance::Grant;
use super::{DenialReason, Place, Subject};
use crate::telemetry::names::Names;

/// The metrics of policy, for one worker. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    decisions: IntCounterVec,
    rehearsals: IntCounterVec,
    principals: Names,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let decisions = IntCounterVec::new(
            Opts::new(
                "doorward_decisions_total",
                "Decisions of policy. `grant` is the @id of the policy that decided, empty if none did; \
                 `decision` is allowed or denied; `reason` is grant, no_grant, forbidden, error, \
                 no_policy, lifetime_too_long, or observe for what passes only because the whole policy \
                 is in mode observe.",
            ),
            &["service", "principal", "grant", "decision", "reason"],
        )?;
        let rehearsals = IntCounterVec::new(
            Opts::new(
                "doorward_decisions_observed_total",
                "Decisions that would be others if what is in dry run (@mode(\"observe\"), or mode: \
                 observe) were enforced. `grant` is the policy that would decide; `decision` is \
                 would_allow or would_deny.",
            ),
            &["service", "principal", "grant", "decision"],
        )?;
        registry.register(Box::new(decisions.clone()))?;
        registry.register(Box::new(rehearsals.clone()))?;
        Ok(Self {
            decisions,
            rehearsals,
            principals: Names::default(),
        })
    }

    /// The handles for one peer at one place.
    pub(super) fn of(&self, subject: &Subject, place: &Place) -> PeerMetrics {
        PeerMetrics {
            families: self.clone(),
            service: place.service.clone(),
            principal: self.principals.label(subject.id.as_str()),
        }
    }
}

/// The metrics of policy for one peer at one place.
#[derive(Debug)]
pub(super) struct PeerMetrics {
    families: Metrics,
    service: Arc<str>,
    principal: Arc<str>,
}

impl PeerMetrics {
    pub(super) fn allowed(&self, grant: Option<&Arc<Grant>>) -> IntCounter {
        let reason = if grant.is_some() { "grant" } else { "observe" };
        self.decided(grant, "allowed", reason)
    }

    pub(super) fn denied(&self, reason: DenialReason, grant: Option<&Arc<Grant>>) -> IntCounter {
        self.decided(grant, "denied", reason.label())
    }

    fn decided(&self, grant: Option<&Arc<Grant>>, decision: &str, reason: &str) -> IntCounter {
        let grant = grant.map_or("", |grant| &grant.id);
        let labels = [&*self.service, &*self.principal, grant, decision, reason];
        self.families.decisions.with_label_values(&labels)
    }

    pub(super) fn would(&self, decision: &str, grant: Option<&Arc<Grant>>) -> IntCounter {
        let grant = grant.map_or("", |grant| &grant.id);
        let labels = [&*self.service, &*self.principal, grant, decision];
        self.families.rehearsals.with_label_values(&labels)
    }
}
