//! Who answers for a grant, and until when? What a policy says about itself, and the workload registry.

use std::sync::Arc;
use std::time::SystemTime;

/// What a policy says about itself.
#[derive(Debug, PartialEq)]
pub struct Grant {
    /// Its `@id`, unique over all policies; where it has none, its file and number (`a.cedar#3`).
    pub id: Arc<str>,
    /// Who answers for it.
    pub owner: Option<Arc<str>>,
    /// What it is for.
    pub purpose: Option<Arc<str>>,
    /// From this instant on it is not in force. Always there for a `permit`, unless governance is
    /// advisory.
    pub expires: Option<SystemTime>,
}
