//! Whom do we trust beyond our own trust domain? Bundles of others, from their bundle endpoints (SPIFFE
//! Federation §5).
//!
//! Each relationship is asked again and again, at the pace that its document hints at, and what it says
//! last stays in force while it cannot be reached. [`Federated`] adds these bundles to whatever identity
//! source we have. Where that source itself has a bundle for a trust domain, the source's is the one that
//! counts: whoever vouches for us also answers for whom we trust.
//!
//! An empty set of keys is distrust: the bundle in force is an empty one then, nobody of that trust domain
//! can be verified, and what stood on it ends.

mod endpoint;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{GaugeVec, IntCounter, IntCounterVec, Opts, Registry};
use tokio::sync::watch;

use self::endpoint::Endpoint;
pub use self::endpoint::{FetchError, OpenError, Url};
use crate::document::Node;
use crate::identity::bundle_document::BundleDocument;
use crate::identity::{Bundle, Bundles, Material, SpiffeId, TrustDomain};
use crate::live::{Change, Source};
use crate::telemetry::chain;

/// One trust domain that we federate with, as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Whose bundle it is.
    pub trust_domain: TrustDomain,
    /// Where it is served.
    pub url: Url,
    /// How the server there proves itself.
    pub profile: Profile,
}

/// How a bundle endpoint proves itself (SPIFFE Federation §5.2).
#[derive(Clone, Debug, PartialEq)]
pub enum Profile {
    /// By an X509-SVID of the trust domain that the bundle is for.
    HttpsSpiffe {
        /// Who answers there.
        endpoint: SpiffeId,
        /// The file with the bundle that is believed until the first document is there.
        bundle: PathBuf,
    },
    /// By a certificate for the URL's host.
    HttpsWeb {
        /// The file with the CA certificates that may vouch for it, in PEM.
        ca: PathBuf,
    },
}

impl Settings {
    /// Reads the list `federation`.
    #[must_use]
    pub fn read_all(node: &Node<'_>) -> Option<Vec<Self>> {
        let mut seen = BTreeSet::new();
        node.list(|item| {
            let settings = Self::read(&item)?;
            if !seen.insert(settings.trust_domain.clone()) {
                let message = format_args!("{} is there twice", settings.trust_domain);
                return item.mistake(message, None);
            }
            Some(settings)
        })
    }

    /// Reads one item of the list `federation`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let trust_domain: Option<TrustDomain> =
            section.required("trust_domain", |node| node.parse());
        let url = section.required("url", |node| node.parse());
        let profile = match section.required("profile", |node| {
            node.choice(&[("https_spiffe", true), ("https_web", false)])
        }) {
            Some(true) => {
                let endpoint = section.required("endpoint_spiffe_id", |node| {
                    let id: SpiffeId = node.parse()?;
                    let own = trust_domain.as_ref();
                    if own.is_some_and(|own| own != id.trust_domain()) {
                        let message = format_args!("`{id}` is of another trust domain");
                        let help =
                            "its own bundle must vouch for the endpoint; `https_web` does without";
                        return node.mistake(message, Some(help));
                    }
                    Some(id)
                });
                let bundle = section.required("bundle", |node| node.path());
                Some(Profile::HttpsSpiffe {
                    endpoint: endpoint?,
                    bundle: bundle?,
                })
            }
            Some(false) => {
                let ca = section.required("ca", |node| node.path());
                Some(Profile::HttpsWeb { ca: ca? })
            }
            None => {
                // Whichever it was to be, these belong to it.
                for key in ["endpoint_spiffe_id", "bundle", "ca"] {
                    section.get(key);
                }
                None
            }
        };
        Some(Self {
            trust_domain: trust_domain?,
            url: url?,
            profile: profile?,
        })
    }
}

/// How often an endpoint is asked that gives no hint (SPIFFE Trust Domain and Bundle §4.1.2).
const DEFAULT_REFRESH: Duration = Duration::from_secs(300);
/// Whatever it hints at, we ask at least this often, so that distrust arrives,
const LONGEST_REFRESH: Duration = Duration::from_secs(3600);
/// and no more often than this, so that a mistake there is no flood.
const SHORTEST_REFRESH: Duration = Duration::from_secs(10);
/// The first pause after a failure; each further one is twice as long, up to the refresh time.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// What is counted of federation.
#[derive(Clone, Debug)]
pub struct Metrics {
    failures: IntCounterVec,
    updated: GaugeVec,
}

impl Metrics {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            failures: IntCounterVec::new(
                Opts::new(
                    "doorward_federation_failures_total",
                    "Times that a bundle endpoint could not be asked, or gave something unusable.",
                ),
                &["trust_domain"],
            )?,
            updated: GaugeVec::new(
                Opts::new(
                    "doorward_federation_updated_timestamp_seconds",
                    "When a bundle endpoint last gave us a document, the same one or another; 0 before.",
                ),
                &["trust_domain"],
            )?,
        };
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.updated.clone()))?;
        Ok(metrics)
    }
}

/// All relationships, ready to be kept.
#[derive(Debug)]
pub struct Federation {
    relationships: Vec<Relationship>,
    bundles: watch::Sender<Foreign>,
}

/// The bundles that were fetched last.
type Foreign = BTreeMap<TrustDomain, Bundle>;

impl Federation {
    /// Reads the files that the relationships name. Endpoints' certificates that were made to live longer
    /// than `max_lifetime` will be refused.
    ///
    /// # Errors
    /// [`OpenError`] if one of them cannot be used.
    pub fn open(
        settings: &[Settings],
        max_lifetime: Duration,
        metrics: &Metrics,
    ) -> Result<Self, OpenError> {
        let relationships = settings.iter().map(|settings| {
            let domain = settings.trust_domain.clone();
            let updated = metrics.updated.with_label_values(&[domain.as_str()]);
            updated.set(0.0);
            Ok(Relationship {
                endpoint: Endpoint::open(settings, max_lifetime)?,
                failures: metrics.failures.with_label_values(&[domain.as_str()]),
                updated,
                domain,
                sequence: None,
            })
        });
        Ok(Self {
            relationships: relationships.collect::<Result<_, _>>()?,
            bundles: watch::Sender::default(),
        })
    }

    /// Adds the bundles to what `materials` yields.
    pub fn join<S>(&self, materials: S) -> Federated<S> {
        Federated {
            materials,
            foreign: self.bundles.subscribe(),
            last: None,
        }
    }

    /// Keeps asking all endpoints, each in a task of its own.
    pub fn keep(self) {
        for relationship in self.relationships {
            tokio::spawn(relationship.keep(self.bundles.clone()));
        }
    }
}

/// One endpoint, and what is known of it.
#[derive(Debug)]
struct Relationship {
    domain: TrustDomain,
    endpoint: Endpoint,
    /// Of the document in force.
    sequence: Option<u64>,
    failures: IntCounter,
    updated: prometheus::Gauge,
}

impl Relationship {
    async fn keep(mut self, bundles: watch::Sender<Foreign>) {
        let mut refresh = DEFAULT_REFRESH;
        let mut retry = FIRST_RETRY;
        loop {
            let fetched = self.endpoint.fetch().await;
            let taken = fetched
                .map_err(RefreshError::from)
                .and_then(|document| self.take(document, &bundles));
            let pause = match taken {
                Ok(hint) => {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH);
                    self.updated.set(now.unwrap_or_default().as_secs_f64());
                    retry = FIRST_RETRY;
                    refresh = hint;
                    refresh
                }
                Err(error) => {
                    self.failures.inc();
                    let again = retry.min(refresh);
                    retry *= 2;
                    tracing::warn!(
                        trust_domain = %self.domain,
                        error = %chain(&error),
                        ?again,
                        "no bundle from the bundle endpoint; what is in force stays"
                    );
                    again
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Puts `document` in force and says when to look for another.
    fn take(
        &mut self,
        document: BundleDocument,
        bundles: &watch::Sender<Foreign>,
    ) -> Result<Duration, RefreshError> {
        // An old copy would give trust back to keys that were revoked since.
        if let (Some(known), Some(found)) = (self.sequence, document.sequence)
            && found < known
        {
            return Err(RefreshError::Stale { found, known });
        }
        self.sequence = document.sequence.or(self.sequence);
        self.endpoint.believe(&self.domain, &document.x509)?;
        let changed = bundles.send_if_modified(|bundles| {
            let last = bundles.insert(self.domain.clone(), document.x509.clone());
            last.as_ref() != Some(&document.x509)
        });
        if changed {
            tracing::info!(
                trust_domain = %self.domain,
                sequence = document.sequence,
                roots = document.x509.certificates().count(),
                "the bundle of a federated trust domain is in force"
            );
        }
        let hint = document.refresh_hint.unwrap_or(DEFAULT_REFRESH);
        Ok(hint.clamp(SHORTEST_REFRESH, LONGEST_REFRESH))
    }
}

/// Why there is no newer bundle.
#[derive(Debug, thiserror::Error)]
enum RefreshError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("its sequence number {found} is lower than {known}, which is in force: an old copy?")]
    Stale { found: u64, known: u64 },
    #[error("its roots cannot be used for TLS")]
    Tls(#[from] rustls::Error),
}

/// A source of [`Material`] with the bundles of federated trust domains added.
///
/// The source must be one whose `next` may be dropped half-way, as a change of these bundles does.
#[derive(Debug)]
pub struct Federated<S> {
    materials: S,
    foreign: watch::Receiver<Foreign>,
    /// What the source said last, as it said it.
    last: Option<Material>,
}

impl<S> Federated<S> {
    fn joined(&mut self, material: &Material) -> Material {
        let mut all: Foreign = self.foreign.borrow_and_update().clone();
        let own = material.bundles().iter();
        all.extend(own.map(|(domain, bundle)| (domain.clone(), bundle.clone())));
        let all: Bundles = all.into_iter().collect();
        material.with_bundles(Arc::new(all))
    }
}

impl<S: Source<Item = Material>> Source for Federated<S> {
    type Item = Material;
    type Error = S::Error;

    async fn next(&mut self) -> Result<Change<Material>, S::Error> {
        let material = tokio::select! {
            // First, because a source that is down is always ready: to fail.
            biased;
            material = once_changed(&mut self.foreign, self.last.as_ref()) => material.clone(),
            change = self.materials.next() => match change? {
                Change::Replace(material) => material,
                Change::Withdraw => {
                    self.last = None;
                    return Ok(Change::Withdraw);
                }
            },
        };
        let joined = self.joined(&material);
        self.last = Some(material);
        Ok(Change::Replace(joined))
    }
}

/// Waits until there are other bundles to go with `material`; for ever, if there is none to go with.
async fn once_changed<'a>(
    foreign: &mut watch::Receiver<Foreign>,
    material: Option<&'a Material>,
) -> &'a Material {
    match material {
        Some(material) if foreign.changed().await.is_ok() => material,
        // Or there is no federation, and nobody left who could change it.
        _ => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
