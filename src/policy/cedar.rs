//! Which policies concern this principal at this service, and what do they say?

/// Policies, ready to decide.
#[derive(Debug)]
pub struct Engine {}
