//! Identity from a SPIFFE Workload API socket: SPIRE's agent, or `doorward issuer`.
//!
//! Three answers must be told apart. A new SVID replaces the old one. A provider that *is there* and no
//! longer lists us has **withdrawn** our identity, and it is presented no more (Workload API §5.2.1). A
//! provider that is *not there* says nothing at all: what we have stays until it ends.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::transport::{Endpoint, TransportError};
use spiffe::{WorkloadApiClient, X509Context, X509Svid};

use super::{
    Bundle, BundleError, Bundles, IdError, Material, MaterialError, SpiffeId, TrustDomain,
};
use crate::live::{Change, Source};

/// How long a provider may take to answer at all. Attestation may be slow, a Unix socket is not.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A stream of identities from one Workload API socket.
pub struct WorkloadApi {
    endpoint: String,
    wanted: Wanted,
    updates: Option<Updates>,
    /// Whether we have handed out an identity that was not withdrawn since.
    in_force: bool,
}

type Updates = BoxStream<'static, Result<X509Context, spiffe::WorkloadApiError>>;

impl WorkloadApi {
    /// Will ask at `endpoint` (`unix:///…`) for the SVID `wanted`, or else for the default one, which is
    /// the first (Workload API §5.2.2). Nothing is opened yet.
    #[must_use]
    pub fn new(endpoint: String, wanted: Wanted) -> Self {
        Self {
            endpoint,
            wanted,
            updates: None,
            in_force: false,
        }
    }

    /// The next message of the stream, which is opened if it is not.
    async fn receive(&mut self) -> Result<X509Context, Failure> {
        let updates = match &mut self.updates {
            Some(updates) => updates,
            closed => {
                let opening = tokio::time::timeout(PATIENCE, open(&self.endpoint)).await;
                closed.insert(opening.map_err(|_| Failure::Silent)??)
            }
        };
        updates
            .next()
            .await
            .unwrap_or(Err(spiffe::WorkloadApiError::EmptyResponse))
            .map_err(Failure::from)
    }

    /// One message, or the lack of one, judged.
    fn judge(
        &mut self,
        received: Result<X509Context, Failure>,
    ) -> Result<Change<Material>, WorkloadApiError> {
        let judged = received.and_then(|context| material(&context, &self.wanted));
        let failure = match judged {
            Ok(material) => {
                self.in_force = true;
                return Ok(Change::Replace(material));
            }
            Err(failure) => failure,
        };
        if failure.ends_stream() {
            self.updates = None;
        }
        // Said once; after that it is a failure like others, so that the next attempt is paced.
        if failure.withdraws() && std::mem::take(&mut self.in_force) {
            return Ok(Change::Withdraw);
        }
        Err(WorkloadApiError {
            endpoint: self.endpoint.clone(),
            failure,
        })
    }
}

impl Source for WorkloadApi {
    type Item = Material;
    type Error = WorkloadApiError;

    async fn next(&mut self) -> Result<Change<Material>, WorkloadApiError> {
        let received = self.receive().await;
        self.judge(received)
    }
}

impl fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApi")
            .field("endpoint", &self.endpoint)
            .field("wanted", &self.wanted)
            .field("connected", &self.updates.is_some())
            .field("in_force", &self.in_force)
            .finish()
    }
}

async fn open(endpoint: &str) -> Result<Updates, Failure> {
    let client = connect(endpoint).await?;
    Ok(client.stream_x509_contexts().await?.boxed())
}

/// Connects to the Workload API at `endpoint`.
pub(super) async fn connect(endpoint: &str) -> Result<WorkloadApiClient, Failure> {
    // As a URL the crate would look for a path with `%20` in it where the operator wrote a space.
    let endpoint = match endpoint.strip_prefix("unix://") {
        Some(path) => Endpoint::Unix(path.into()),
        None => Endpoint::parse(endpoint).map_err(spiffe::WorkloadApiError::from)?,
    };
    Ok(WorkloadApiClient::connect(endpoint).await?)
}

/// The SVID that is ours, with every bundle that came along.
fn material(context: &X509Context, wanted: &Wanted) -> Result<Material, Failure> {
    let svid = choose(context, wanted)?;
    let chain = svid.cert_chain().iter();
    let chain = chain.map(|certificate| CertificateDer::from(certificate.as_bytes().to_vec()));
    let key = PrivatePkcs8KeyDer::from(svid.private_key().as_bytes().to_vec());
    let bundles = bundles(context)?;
    Material::new(chain.collect(), PrivateKeyDer::from(key), Arc::new(bundles))
        .map_err(Failure::Material)
}

fn choose<'a>(context: &'a X509Context, wanted: &Wanted) -> Result<&'a X509Svid, Failure> {
    let mut svids = context.svids().iter().map(Arc::as_ref);
    if context.svids().is_empty() {
        return Err(Failure::NoSvid);
    }
    svids
        .find(|svid| wanted.is(svid))
        .ok_or_else(|| Failure::NotListed {
            wanted: wanted.clone(),
            listed: Listed(context.svids().iter().map(|svid| name(svid)).collect()),
        })
}

fn name(svid: &X509Svid) -> String {
    match svid.hint() {
        Some(hint) => format!("{} (hint `{}`)", svid.spiffe_id(), hint.escape_debug()),
        None => svid.spiffe_id().to_string(),
    }
}

/// Which of several SVIDs is ours. What is not said does not matter; of those that are left, the first is
/// taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its SPIFFE ID.
    pub spiffe_id: Option<SpiffeId>,
    /// What the provider says that it is for (Workload API §5.2.1, `hint`).
    pub hint: Option<String>,
}

impl Wanted {
    fn is(&self, svid: &X509Svid) -> bool {
        let id = self.spiffe_id.as_ref();
        let hint = self.hint.as_deref();
        id.is_none_or(|id| svid.spiffe_id().to_string() == id.as_str())
            && hint.is_none_or(|hint| svid.hint() == Some(hint))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.spiffe_id, &self.hint) {
            (Some(id), Some(hint)) => write!(f, "{id} with the hint `{hint}`"),
            (Some(id), None) => write!(f, "{id}"),
            (None, Some(hint)) => write!(f, "an SVID with the hint `{hint}`"),
            (None, None) => f.write_str("an SVID"),
        }
    }
}

/// What a provider offers, in its order; not more of it than a message can hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed(Vec<String>);

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 20;
        let shown = &self.0[..self.0.len().min(SHOWN)];
        f.write_str(&shown.join(", "))?;
        match self.0.len() - shown.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

fn bundles(context: &X509Context) -> Result<Bundles, Failure> {
    let each = context.bundle_set().iter().map(|(name, bundle)| {
        let domain = TrustDomain::parse(name.as_str()).map_err(Failure::TrustDomain)?;
        let roots = bundle.authorities().iter();
        let roots = roots.map(|root| CertificateDer::from(root.as_bytes().to_vec()));
        match Bundle::new(roots) {
            Ok(bundle) => Ok((domain, bundle)),
            Err(error) => Err(bad_bundle(domain, error)),
        }
    });
    each.collect()
}

fn bad_bundle(domain: TrustDomain, error: BundleError) -> Failure {
    Failure::Material(MaterialError::Bundle(domain, error))
}

/// Why a Workload API gave us no identity this time.
#[derive(Debug, thiserror::Error)]
#[error("no identity from the Workload API at {endpoint}")]
pub struct WorkloadApiError {
    endpoint: String,
    #[source]
    failure: Failure,
}

impl WorkloadApiError {
    /// What went wrong there.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        &self.failure
    }
}

/// What went wrong at a Workload API, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Nobody answers there.
    #[error(
        "it cannot be reached: is the provider running (SPIRE agent or `doorward issuer`), and may this process open the socket?"
    )]
    Unreachable(#[source] Box<spiffe::WorkloadApiError>),
    /// Somebody took the connection and says nothing.
    #[error("it took the connection but did not answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// It answers and has no identity for us.
    #[error(
        "it issues no identity to this process: add a registration entry that matches its user, group or executable"
    )]
    NoIdentity(#[source] Box<spiffe::WorkloadApiError>),
    /// It answers with an empty list.
    #[error("it lists no SVID for this process")]
    NoSvid,
    /// It has identities for us, but not the configured one.
    #[error(
        "it does not list {wanted}, but {listed}: correct identity.spiffe_id or identity.hint, or the registration entries"
    )]
    NotListed {
        /// The configured one.
        wanted: Wanted,
        /// Those it has.
        listed: Listed,
    },
    /// It ended the stream: stopped, restarted, or failed.
    #[error("it ended the stream")]
    Ended(#[source] Option<Box<spiffe::WorkloadApiError>>),
    /// It said something that is no valid answer.
    #[error("its answer cannot be used")]
    Answer(#[source] Box<spiffe::WorkloadApiError>),
    /// A bundle is named by something that is no trust domain.
    #[error("it names a trust domain that is none")]
    TrustDomain(#[source] IdError),
    /// The documents do not fit together.
    #[error("its identity documents cannot be used")]
    Material(#[source] MaterialError),
}

impl Failure {
    /// Whether it means: the provider is there and has nothing for us any more.
    fn withdraws(&self) -> bool {
        match self {
            Self::NoIdentity(_) | Self::NoSvid | Self::NotListed { .. } => true,
            Self::Unreachable(_)
            | Self::Silent
            | Self::Ended(_)
            | Self::Answer(_)
            | Self::TrustDomain(_)
            | Self::Material(_) => false,
        }
    }

    /// Whether no further message can come on this stream. After one that made no sense, one can.
    fn ends_stream(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Silent | Self::NoIdentity(_) | Self::Ended(_) => true,
            Self::NoSvid
            | Self::NotListed { .. }
            | Self::Answer(_)
            | Self::TrustDomain(_)
            | Self::Material(_) => false,
        }
    }
}

impl From<spiffe::WorkloadApiError> for Failure {
    fn from(error: spiffe::WorkloadApiError) -> Self {
        use spiffe::WorkloadApiError as Theirs;
        match error {
            Theirs::NoIdentityIssued | Theirs::PermissionDenied(_) => {
                Self::NoIdentity(Box::new(error))
            }
            // How the crate words a response that lists no SVID at all.
            Theirs::MissingRequiredField {
                field: "X509SVIDResponse.svids",
            } => Self::NoSvid,
            Theirs::EmptyResponse => Self::Ended(None),
            Theirs::Transport(TransportError::Status(_)) => Self::Ended(Some(Box::new(error))),
            Theirs::Transport(_) | Theirs::Endpoint(_) => Self::Unreachable(Box::new(error)),
            error => Self::Answer(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests;
