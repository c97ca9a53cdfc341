//! The policy directory: read, checked, watched.

use super::{Settings, cedar};
use crate::live;

/// Reads and checks the policy directory.
///
/// # Errors
/// Every mistake found.
pub fn load(_settings: &Settings) -> Result<cedar::Engine, LoadError> {
    todo!()
}

/// Why a policy directory does not load.
#[derive(Debug, thiserror::Error)]
#[error("the policy does not load")]
pub struct LoadError {}

impl LoadError {
    /// Every mistake.
    pub fn diagnostics(&self) -> impl Iterator<Item = &(dyn miette::Diagnostic + Send + Sync)> {
        std::iter::empty()
    }
}

/// A policy directory as a source of engines.
#[derive(Debug)]
pub struct Watched {}

impl Watched {
    /// Watches the directory in `settings`.
    #[must_use]
    pub fn new(_settings: Settings) -> Self {
        Self {}
    }
}

impl live::Source for Watched {
    type Item = cedar::Engine;
    type Error = LoadError;
    async fn next(&mut self) -> Result<live::Change<cedar::Engine>, LoadError> {
        std::future::pending().await
    }
}
