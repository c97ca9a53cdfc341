//! What is decided on this connection, from memory where that is exact?

use std::sync::Arc;
use std::time::SystemTime;

use super::{Act, Denial, Metrics, Permit, Place, Policy, Subject};

/// One connection's view of the policy: the slice for its peer, and a cache of decisions. It renews
/// itself when the policy changed or a grant in its slice ended.
#[derive(Debug)]
pub struct Gate {
    _policy: Arc<Policy>,
}

impl Gate {
    pub(super) fn new(policy: Arc<Policy>, _: Subject, _: Place, _: &Metrics) -> Self {
        Self { _policy: policy }
    }

    /// Decides.
    ///
    /// # Errors
    /// The denial.
    pub fn authorize(&self, _act: &Act<'_>, _now: SystemTime) -> Result<Permit, Denial> {
        todo!()
    }

    /// When, at the latest, an answer may change by time alone; `None`: never.
    #[must_use]
    pub fn reconsider_at(&self, _now: SystemTime) -> Option<SystemTime> {
        todo!()
    }
}
