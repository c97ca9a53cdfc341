//! Identity from PEM files that somebody else renews: cert-manager, a provisioning tool, an operator.
//!
//! Files cannot be replaced together, so what was read counts only if it fits: a half-written file, a key
//! of another certificate or a pair that has ended changes nothing. A file that is gone means *unknown*,
//! never *withdrawn*: what is in force stays until it ends.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::svid::{self, SvidError};
use super::{
    Bundle, BundleError, Bundles, IdError, Material, MaterialError, SpiffeId, TrustDomain,
};
use crate::document::Node;
use crate::live::{Change, Source};
use crate::watch::Watched;

/// The section `identity.files`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Our certificate and its intermediates, leaf first, in PEM.
    pub cert: PathBuf,
    /// Its private key in PEM: PKCS#8 or SEC1.
    pub key: PathBuf,
    /// The roots of our own trust domain in PEM; or a directory of such files, each named for its trust
    /// domain, as in `example.org.pem`.
    pub bundle: PathBuf,
}

impl Settings {
    /// Reads the section.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let cert = section.required("cert", |node| node.path());
        let key = section.required("key", |node| node.path());
        let bundle = section.required("bundle", |node| node.path());
        Some(Self {
            cert: cert?,
            key: key?,
            bundle: bundle?,
        })
    }
}

/// Certificate, key and bundles in files, as a source of identities.
#[derive(Debug)]
pub struct Files {
    settings: Arc<Settings>,
    wanted: Option<SpiffeId>,
    watched: Watched,
    /// Whether the operator was told that others can read the key.
    warned: bool,
}

impl Files {
    /// Watches the files in `settings`. The certificate must be that of `wanted`, if that is given.
    #[must_use]
    pub fn new(settings: Settings, wanted: Option<SpiffeId>) -> Self {
        let paths = [&settings.cert, &settings.key, &settings.bundle].map(Clone::clone);
        Self {
            settings: Arc::new(settings),
            wanted,
            watched: Watched::new(paths),
            warned: false,
        }
    }

    fn warn_of_readers(&mut self, mode: u32) {
        if mode & OTHERS_READ != 0 && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                file = %self.settings.key.display(),
                mode = format_args!("{mode:04o}"),
                "others may read this private key; let only its owner: chmod 600"
            );
        }
    }
}

impl Source for Files {
    type Item = Material;
    type Error = FilesError;

    async fn next(&mut self) -> Result<Change<Material>, FilesError> {
        let settings = self.settings.clone();
        let read = self
            .watched
            .news(|| std::future::ready(Content::read(&settings)));
        let content = read.await?;
        self.warn_of_readers(content.key_mode);
        let now = SystemTime::now();
        let material = content.material(&self.settings, self.wanted.as_ref(), now);
        let material = material.inspect_err(|error| {
            // Time makes it true, or good again after a clock was set; no change of a file would tell.
            if matches!(error, FilesError::Ended(..)) {
                self.watched.forget();
            }
        })?;
        self.watched.take();
        Ok(Change::Replace(material))
    }
}

/// The files as read at one time.
#[derive(Hash)]
struct Content {
    cert: Vec<u8>,
    key: Secret,
    key_mode: u32,
    bundles: BTreeMap<Domain, (PathBuf, Vec<u8>)>,
}

/// A file that holds a private key.
struct Secret(Zeroizing<Vec<u8>>);

impl Hash for Secret {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

/// Whose bundle a file holds.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Domain {
    /// That of our own certificate, whichever that is.
    Own,
    Named(TrustDomain),
}

impl Content {
    fn read(settings: &Settings) -> Result<Self, FilesError> {
        let (cert, _) = read(&settings.cert)?;
        let (key, key_mode) = read(&settings.key)?;
        let key = Secret(Zeroizing::new(key));
        if key_mode & OTHERS_WRITE != 0 {
            return Err(FilesError::Writable(settings.key.clone(), key_mode));
        }
        let bundles = if settings.bundle.is_dir() {
            directory(&settings.bundle)?
        } else {
            let (bundle, _) = read(&settings.bundle)?;
            BTreeMap::from([(Domain::Own, (settings.bundle.clone(), bundle))])
        };
        Ok(Self {
            cert,
            key,
            key_mode,
            bundles,
        })
    }

    fn material(
        &self,
        settings: &Settings,
        wanted: Option<&SpiffeId>,
        now: SystemTime,
    ) -> Result<Material, FilesError> {
        let chain = certificates(&settings.cert, &self.cert)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key.0)
            .map_err(|error| FilesError::Pem(settings.key.clone(), "private key", error))?;
        let leaf = svid::parse(&chain[0])
            .map_err(|error| FilesError::Leaf(settings.cert.clone(), error))?;
        if let Some(wanted) = wanted
            && leaf.id != *wanted
        {
            return Err(FilesError::Unwanted {
                file: settings.cert.clone(),
                wanted: wanted.clone(),
                found: leaf.id,
            });
        }
        if now >= leaf.not_after {
            return Err(FilesError::Ended(settings.cert.clone(), leaf.not_after));
        }
        let bundles = self.bundles.iter().map(|(domain, (file, text))| {
            let domain = match domain {
                Domain::Own => leaf.id.trust_domain(),
                Domain::Named(domain) => domain,
            };
            let bundle = Bundle::new(certificates(file, text)?)
                .map_err(|error| FilesError::Bundle(file.clone(), error))?;
            Ok((domain.clone(), bundle))
        });
        let bundles: Bundles = bundles.collect::<Result<_, _>>()?;
        Material::new(chain, key, Arc::new(bundles)).map_err(|error| FilesError::Material {
            cert: settings.cert.clone(),
            key: settings.key.clone(),
            error,
        })
    }
}

/// Every visible `<trust-domain>.pem` of a directory. Kubernetes keeps the files in hidden directories and
/// links to them.
fn directory(dir: &Path) -> Result<BTreeMap<Domain, (PathBuf, Vec<u8>)>, FilesError> {
    let unread = |error| FilesError::Unread(dir.to_owned(), error);
    let mut bundles = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(unread)? {
        let file = entry.map_err(unread)?.path();
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let Some(domain) = name.strip_suffix(".pem").filter(|_| !name.starts_with('.')) else {
            continue;
        };
        let domain = TrustDomain::parse(domain)
            .map_err(|error| FilesError::BundleName(file.clone(), error))?;
        let (text, _) = read(&file)?;
        bundles.insert(Domain::Named(domain), (file, text));
    }
    Ok(bundles)
}

/// A file's content and its permissions.
fn read(path: &Path) -> Result<(Vec<u8>, u32), FilesError> {
    let unread = |error| FilesError::Unread(path.to_owned(), error);
    let file = File::open(path).map_err(unread)?;
    let mode = file.metadata().map_err(unread)?.mode() & 0o777;
    // Reserved at once: a vector that grows leaves copies of the key behind.
    let mut content = Vec::with_capacity(USUAL);
    file.take(LARGEST)
        .read_to_end(&mut content)
        .map_err(unread)?;
    Ok((content, mode))
}

/// Every certificate in a PEM file, which must have one. Sections of other kinds are passed over.
fn certificates(file: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, FilesError> {
    let bad = |error| FilesError::Pem(file.to_owned(), "certificate", error);
    let found: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(bad)?;
    match found.is_empty() {
        // An empty bundle would trust nobody; an empty file is one that is being written.
        true => Err(bad(pem::Error::NoItemsFound)),
        false => Ok(found),
    }
}

/// More than a chain with its key has.
const USUAL: usize = 16 << 10;

/// Far more than a bundle has.
const LARGEST: u64 = 4 << 20;

const OTHERS_READ: u32 = 0o044;
const OTHERS_WRITE: u32 = 0o022;

/// Why the files make no identity. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// It is not there, or not for us to read.
    #[error("cannot read {}", .0.display())]
    Unread(PathBuf, #[source] io::Error),
    /// Whoever can write the key can give us an identity of theirs.
    #[error("{}: others may write this private key (mode {:04o}); let only its owner: chmod 600", .0.display(), .1)]
    Writable(PathBuf, u32),
    /// It is not PEM, breaks off, or holds nothing of the kind.
    #[error("{} holds no whole {} in PEM", .0.display(), .1)]
    Pem(PathBuf, &'static str, #[source] pem::Error),
    /// The first certificate is not ours to present.
    #[error("the first certificate in {} is not an X.509-SVID", .0.display())]
    Leaf(PathBuf, #[source] SvidError),
    /// It is somebody else's than `identity.spiffe_id` says.
    #[error("the certificate in {} is that of {found}, but identity.spiffe_id is {wanted}", file.display())]
    Unwanted {
        /// Where the certificate is.
        file: PathBuf,
        /// The configured one.
        wanted: SpiffeId,
        /// Whose it is.
        found: SpiffeId,
    },
    /// It proves nothing any more.
    #[error("the certificate in {} was valid until {}", .0.display(), humantime::format_rfc3339_seconds(*.1))]
    Ended(PathBuf, SystemTime),
    /// A file of the bundle directory is not named for a trust domain.
    #[error("{} is not named for a trust domain, as in `example.org.pem`", .0.display())]
    BundleName(PathBuf, #[source] IdError),
    /// A root in it cannot be used.
    #[error("the bundle {} cannot be used", .0.display())]
    Bundle(PathBuf, #[source] BundleError),
    /// Each of the files is sound, but they do not fit together.
    #[error("{} and {} do not make an identity", cert.display(), key.display())]
    Material {
        /// Where the certificate is.
        cert: PathBuf,
        /// Where the key is.
        key: PathBuf,
        /// What does not fit.
        #[source]
        error: MaterialError,
    },
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must never reach a log.
        f.debug_struct("Content").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
