//! Whichever source of identity is configured.

use super::files::{Files, FilesError};
use super::workload_api::{Wanted, WorkloadApi, WorkloadApiError};
use super::{Material, Settings, Source};
use crate::live::{self, Change};

/// The configured source of identity, open.
#[derive(Debug)]
pub enum Provider {
    /// A SPIFFE Workload API.
    WorkloadApi(WorkloadApi),
    /// PEM files.
    Files(Files),
}

impl Provider {
    /// Will ask the source in `settings`. Nothing is opened yet.
    #[must_use]
    pub fn new(settings: &Settings) -> Self {
        let spiffe_id = settings.spiffe_id.clone();
        match settings.source.clone() {
            Source::WorkloadApi(socket) => {
                let hint = settings.hint.clone();
                Self::WorkloadApi(WorkloadApi::new(socket, Wanted { spiffe_id, hint }))
            }
            Source::Files(files) => Self::Files(Files::new(files, spiffe_id)),
        }
    }
}

impl live::Source for Provider {
    type Item = Material;
    type Error = ProviderError;

    async fn next(&mut self) -> Result<Change<Material>, ProviderError> {
        Ok(match self {
            Self::WorkloadApi(source) => source.next().await?,
            Self::Files(source) => source.next().await?,
        })
    }
}

/// Why the source gave us no identity this time.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// It is a Workload API.
    #[error(transparent)]
    WorkloadApi(#[from] WorkloadApiError),
    /// It is files.
    #[error(transparent)]
    Files(#[from] FilesError),
}
