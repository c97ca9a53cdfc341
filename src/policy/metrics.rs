//! What policy decided, counted.

/// The metrics of policy, for one worker.
#[derive(Clone, Debug)]
pub struct Metrics {}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(_registry: &prometheus::Registry) -> prometheus::Result<Self> {
        Ok(Self {})
    }
}
