//! Who are we, and whom do we trust? SPIFFE names, and the [`Material`] that proves ours.

pub mod bundle_document;
pub mod crl;
pub mod files;
pub mod jwt;
mod provider;
pub mod shown;
mod status;
pub mod svid;
#[cfg(test)]
pub(crate) mod testing;
pub mod workload_api;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::InconsistentKeys;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use zeroize::Zeroizing;

use self::crl::Crls;
pub use self::provider::{Provider, ProviderError};
pub use self::status::Status;
use self::svid::{Leaf, SvidError};

/// A SPIFFE ID with a path: the stable name of a workload (SPIFFE-ID §2). Always valid; cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
}

impl SpiffeId {
    /// Reads `text`, which must be in canonical form: what a certificate or a policy says is compared
    /// letter by letter, so a second spelling of one name must not exist.
    ///
    /// # Errors
    /// [`IdError`] says which rule of SPIFFE-ID §2 the text breaks.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let id = spiffe::SpiffeId::new(text)?;
        if id.path().is_empty() {
            return Err(IdError::NoPath);
        }
        if id.to_string() != text {
            return Err(IdError::NotCanonical);
        }
        Ok(Self {
            text: text.into(),
            trust_domain: TrustDomain(id.trust_domain_name().into()),
        })
    }

    /// The whole ID, `spiffe://` included.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain whose bundle vouches for this ID.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The part behind the trust domain, from its `/` on.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.text["spiffe://".len() + self.trust_domain.as_str().len()..]
    }
}

impl FromStr for SpiffeId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The name of a trust domain, without scheme (SPIFFE-ID §2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Reads a bare name such as `example.org`.
    ///
    /// # Errors
    /// [`IdError`] if the name breaks SPIFFE-ID §2.1 or is not in lower case.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let name = spiffe::TrustDomain::new(text)?;
        if name.as_str() != text {
            return Err(IdError::NotCanonical);
        }
        Ok(Self(text.into()))
    }

    /// The bare name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::parse(text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not the SPIFFE ID of a workload.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum IdError {
    /// A rule of the standard that the text breaks, in its own words.
    #[error("not a SPIFFE ID: {0}")]
    Standard(spiffe::SpiffeIdError),
    /// A trust domain alone names no workload.
    #[error("names a trust domain but no workload: a path is missing")]
    NoPath,
    /// The scheme and the trust domain are written in lower case.
    #[error("not in canonical form: write the scheme and the trust domain in lower case")]
    NotCanonical,
}

impl From<spiffe::SpiffeIdError> for IdError {
    fn from(error: spiffe::SpiffeIdError) -> Self {
        Self::Standard(error)
    }
}

/// One complete identity: our SVID with its key, and the trust bundles to judge others by.
///
/// Replaced whole or not at all: a rotation that does not make a valid `Material` changes nothing.
#[derive(Clone)]
pub struct Material {
    leaf: Leaf,
    certified: Arc<CertifiedKey>,
    bundles: Arc<Bundles>,
}

impl Material {
    /// Checks that `chain` (leaf first) is an X.509-SVID of ours, that `key` belongs to it, and that
    /// the bundle of its trust domain is there.
    ///
    /// # Errors
    /// [`MaterialError`] says what does not fit.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundles: Arc<Bundles>,
    ) -> Result<Self, MaterialError> {
        let key = Zeroizing::new(key);
        let first = chain.first().ok_or(MaterialError::NoCertificate)?;
        let leaf = svid::parse(first).map_err(MaterialError::Leaf)?;
        let own = leaf.id.trust_domain();
        if bundles.get(own).is_none() {
            return Err(MaterialError::NoBundle(own.clone()));
        }
        // From here on aws-lc alone keeps it, which wipes what it frees.
        let key = any_supported_type(&key).map_err(MaterialError::Key)?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(error) => return Err(MaterialError::Key(error)),
        }
        Ok(Self {
            leaf,
            certified: Arc::new(certified),
            bundles,
        })
    }

    /// The same identity with other bundles, which must include our own trust domain's.
    pub(crate) fn with_bundles(&self, bundles: Arc<Bundles>) -> Self {
        Self {
            bundles,
            ..self.clone()
        }
    }

    /// Our own SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// What our own leaf certificate says.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// The chain and the key, ready for rustls.
    #[must_use]
    pub fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// The trust bundles that came with it.
    #[must_use]
    pub fn bundles(&self) -> &Arc<Bundles> {
        &self.bundles
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must never reach a log.
        f.debug_struct("Material")
            .field("leaf", &self.leaf)
            .field("bundles", &self.bundles)
            .finish_non_exhaustive()
    }
}

/// Why received identity documents do not make a [`Material`].
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// The chain is empty.
    #[error("no certificate was received")]
    NoCertificate,
    /// The first certificate is not an X.509-SVID.
    #[error("the certificate is not an X.509-SVID")]
    Leaf(#[source] SvidError),
    /// The key cannot be used, or belongs to another certificate.
    #[error("the private key does not fit the certificate")]
    Key(#[source] rustls::Error),
    /// Nobody of our own trust domain could be verified.
    #[error("no trust bundle was received for our own trust domain {0}")]
    NoBundle(TrustDomain),
    /// A bundle holds something that is no CA certificate.
    #[error("the trust bundle of {0} is not usable")]
    Bundle(TrustDomain, #[source] BundleError),
}

/// The trust bundles in force, one for each trust domain, and what their issuers took back.
///
/// A certificate is only ever checked against the bundle of the trust domain that it names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bundles {
    domains: BTreeMap<TrustDomain, Bundle>,
    crls: Crls,
}

impl Bundles {
    /// The bundle of one trust domain.
    #[must_use]
    pub fn get(&self, domain: &TrustDomain) -> Option<&Bundle> {
        self.domains.get(domain)
    }

    /// All of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &Bundle)> {
        self.domains.iter()
    }

    /// The certificate revocation lists in force.
    #[must_use]
    pub fn crls(&self) -> &Crls {
        &self.crls
    }

    /// The same bundles with these lists.
    #[must_use]
    pub fn with_crls(&self, crls: Crls) -> Self {
        Self {
            crls,
            ..self.clone()
        }
    }
}

impl FromIterator<(TrustDomain, Bundle)> for Bundles {
    fn from_iter<I: IntoIterator<Item = (TrustDomain, Bundle)>>(bundles: I) -> Self {
        Self {
            domains: bundles.into_iter().collect(),
            crls: Crls::default(),
        }
    }
}

/// The roots of one trust domain (SPIFFE Trust Domain and Bundle §4).
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    anchors: Vec<Anchor>,
}

#[derive(Clone, Debug, PartialEq)]
struct Anchor {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_after: SystemTime,
}

impl Bundle {
    /// Takes CA certificates in DER. None at all is a bundle that trusts nobody.
    ///
    /// # Errors
    /// [`BundleError`] if one of them cannot be parsed.
    pub fn new(
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
    ) -> Result<Self, BundleError> {
        let anchors = roots.into_iter().map(|der| {
            let anchor = webpki::anchor_from_trusted_cert(&der)
                .map_err(BundleError::Anchor)?
                .to_owned();
            let not_after = svid::validity(&der).map_err(BundleError::Certificate)?.1;
            Ok(Anchor {
                der,
                anchor,
                not_after,
            })
        });
        Ok(Self {
            anchors: anchors.collect::<Result<_, _>>()?,
        })
    }

    /// The roots that may vouch at `now`. webpki does not look at an anchor's end, so this does.
    #[must_use]
    pub fn anchors(&self, now: SystemTime) -> Vec<TrustAnchor<'_>> {
        let valid = self.anchors.iter().filter(|anchor| now < anchor.not_after);
        valid.map(|anchor| anchor.anchor.clone()).collect()
    }

    /// When the next of the roots ends that may vouch at `now`.
    #[must_use]
    pub fn next_end(&self, now: SystemTime) -> Option<SystemTime> {
        let ends = self.anchors.iter().map(|anchor| anchor.not_after);
        ends.filter(|end| now < *end).min()
    }

    /// The root certificates in DER.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.anchors.iter().map(|anchor| &anchor.der)
    }
}

/// Why CA certificates do not make a [`Bundle`].
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// webpki cannot use it as a trust anchor.
    #[error("a root cannot be used as a trust anchor")]
    Anchor(#[source] webpki::Error),
    /// Its validity cannot be read.
    #[error("a root is malformed")]
    Certificate(#[source] SvidError),
}

/// Where identity comes from and what is accepted of others.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The source of our own SVID.
    pub source: Source,
    /// Which SVID to take where a source offers several.
    pub spiffe_id: Option<SpiffeId>,
    /// The same by what the provider says that an SVID is for. Only a Workload API says so.
    pub hint: Option<String>,
    /// A file or directory of certificate revocation lists.
    pub crl: Option<std::path::PathBuf>,
    /// The longest validity of a peer's SVID that is accepted: a ten-year certificate is a standing
    /// secret.
    pub max_peer_lifetime: Duration,
}

/// The configured source of identity.
#[derive(Clone, Debug)]
pub enum Source {
    /// A SPIFFE Workload API socket, as in `unix:///run/spire/agent.sock`.
    WorkloadApi(String),
    /// PEM files that somebody else renews.
    Files(files::Settings),
}

impl Source {
    /// A Workload API by its URL: a Unix socket, because only a local provider can attest us.
    #[must_use]
    pub fn workload_api(url: &str) -> Option<Self> {
        let path = url
            .strip_prefix("unix://")
            .or_else(|| url.strip_prefix("unix:"))?;
        path.starts_with('/')
            .then(|| Self::WorkloadApi(format!("unix://{path}")))
    }
}

/// 25 hours: a day's certificate, and an hour for clocks and back-dating.
pub const DEFAULT_MAX_PEER_LIFETIME: Duration = Duration::from_secs(25 * 3600);

impl Settings {
    /// This source, and what is usual for the rest.
    #[must_use]
    pub fn of(source: Source) -> Self {
        Self {
            source,
            spiffe_id: None,
            hint: None,
            crl: None,
            max_peer_lifetime: DEFAULT_MAX_PEER_LIFETIME,
        }
    }

    /// Reads the section `identity`.
    pub fn read(node: crate::document::Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let workload_api = section.optional("workload_api", |node| {
            let text = node.text()?;
            Source::workload_api(text).or_else(|| {
                node.mistake(
                    format_args!("`{text}` is not a Workload API socket"),
                    Some("write `unix://` and an absolute path, for example `unix:///run/spire/agent.sock`"),
                )
            })
        });
        let files = section.optional("files", |node| files::Settings::read(&node));
        let source = workload_api
            .zip(files)
            .and_then(|sources| match sources {
                (Some(socket), None) => Some(socket),
                (None, Some(files)) => Some(Source::Files(files)),
                (found, _) => section.node().mistake(
                    match found {
                        None => "nothing says where our identity comes from",
                        Some(_) => "our identity comes from one source, and here are two",
                    },
                    Some("write either `workload_api`, a SPIFFE Workload API socket, or `files` with `cert`, `key` and `bundle`"),
                ),
            });
        let spiffe_id = section.optional("spiffe_id", |node| node.parse());
        let hint = section.optional("hint", |node| {
            let text = node.text()?.to_owned();
            match source {
                Some(Source::Files(_)) => node.mistake(
                    "files hold one certificate, and no hint chooses it",
                    Some("remove this key, or name a Workload API with `workload_api`"),
                ),
                _ => Some(text),
            }
        });
        let crl = section.optional("crl", |node| node.path());
        let max_peer_lifetime =
            section.or("max_peer_lifetime", DEFAULT_MAX_PEER_LIFETIME, |node| {
                node.duration(Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 3600))
            });
        Some(Self {
            source: source?,
            spiffe_id: spiffe_id?,
            hint: hint?,
            crl: crl?,
            max_peer_lifetime: max_peer_lifetime?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Ca;
    use super::*;

    #[test]
    fn ids_outside_the_standard_are_refused() {
        for text in [
            "",
            "https://example.org/a",
            "spiffe://",
            "spiffe:///a",
            "spiffe://example.org/a/",
            "spiffe://example.org//a",
            "spiffe://example.org/../a",
            "spiffe://example.org/a?b=c",
            "spiffe://example.org/a#b",
            "spiffe://user@example.org/a",
            "spiffe://example.org:8443/a",
            "spiffe://example.org/%61",
            "spiffe://example.org/ä",
        ] {
            assert!(
                matches!(SpiffeId::parse(text), Err(IdError::Standard(_))),
                "{text}"
            );
        }
        assert_eq!(
            SpiffeId::parse("spiffe://example.org"),
            Err(IdError::NoPath)
        );
        assert_eq!(
            SpiffeId::parse("spiffe://Example.org/a"),
            Err(IdError::NotCanonical)
        );
    }

    #[test]
    fn an_id_knows_its_parts() {
        let id = SpiffeId::parse("spiffe://example.org/ns/bank/ledger").unwrap();
        assert_eq!(id.trust_domain().as_str(), "example.org");
        assert_eq!(id.path(), "/ns/bank/ledger");
    }

    #[test]
    fn material_is_taken_only_if_all_of_it_fits() {
        let ca = Ca::new("example.org");
        let good = ca.mint(&testing::leaf("spiffe://example.org/ledger"));
        let other = ca.mint(&testing::leaf("spiffe://example.org/ledger"));
        let bundles: Arc<Bundles> = Arc::new([ca.bundle()].into_iter().collect());
        let take = |chain: &[CertificateDer<'static>], key, bundles: &Arc<Bundles>| {
            Material::new(chain.to_vec(), key, bundles.clone())
        };
        let material = take(&good.chain, good.private_key(), &bundles).unwrap();
        assert_eq!(material.id().as_str(), "spiffe://example.org/ledger");
        let broken = PrivateKeyDer::from(rustls_pki_types::PrivatePkcs8KeyDer::from(vec![1]));
        assert!(matches!(
            take(&[], good.private_key(), &bundles),
            Err(MaterialError::NoCertificate)
        ));
        assert!(matches!(
            take(&good.chain, other.private_key(), &bundles),
            Err(MaterialError::Key(_))
        ));
        assert!(matches!(
            take(&good.chain, broken, &bundles),
            Err(MaterialError::Key(_))
        ));
        assert!(matches!(
            take(&[ca.certificate().clone()], good.private_key(), &bundles),
            Err(MaterialError::Leaf(_))
        ));
        assert!(matches!(
            take(&good.chain, good.private_key(), &Arc::default()),
            Err(MaterialError::NoBundle(domain)) if domain.as_str() == "example.org"
        ));
    }

    #[test]
    fn a_debug_text_never_holds_the_key() {
        let ca = Ca::new("example.org");
        let minted = ca.mint(&testing::leaf("spiffe://example.org/ledger"));
        let material = minted
            .material([ca.bundle()].into_iter().collect())
            .unwrap();
        // A text that dumped the key would hold its bytes as a list of numbers.
        let secret: Vec<_> = minted.key[36..52].iter().map(u8::to_string).collect();
        assert!(!format!("{material:?}").contains(&secret.join(", ")));
    }

    #[test]
    fn a_root_vouches_until_its_end_and_no_longer() {
        let ca = Ca::new("example.org");
        let bundle = ca.bundle().1;
        let end = svid::validity(ca.certificate()).unwrap().1;
        assert_eq!(bundle.anchors(end - Duration::from_secs(1)).len(), 1);
        assert_eq!(bundle.anchors(end).len(), 0);
        assert_eq!(bundle.certificates().count(), 1);
    }

    #[test]
    fn a_bundle_with_a_broken_root_is_refused_whole() {
        let ca = Ca::new("example.org");
        let roots = [ca.certificate().clone(), CertificateDer::from(vec![0x30])];
        assert!(matches!(Bundle::new(roots), Err(BundleError::Anchor(_))));
    }
}
