//! Which certificates did their issuers take back? Revocation lists in files (RFC 5280 §5).
//!
//! A certificate is revoked if a list names its serial number, bears its issuer's name and was signed with
//! its issuer's key. The key matters: SPIRE gives every CA the same name, so by name alone a list of last
//! month's CA would judge this month's certificates. What no list speaks of is not revoked. A list that is
//! overdue revokes what it revoked: its author may be late, and nothing comes off a list for that.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use prometheus::{Gauge, IntCounter, Registry};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateRevocationListDer, SignatureVerificationAlgorithm};
use tokio::sync::watch;
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::asn1_rs::{Any, BitString, FromDer as _, Tag};
use x509_parser::prelude::CertificateRevocationList;

use super::{Material, svid};
use crate::live::{Change, Live, Source};
use crate::watch::Watched;

/// The lists in force. None at all revoke nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Crls(Vec<Crl>);

/// One list.
#[derive(Clone)]
struct Crl {
    der: CertificateRevocationListDer<'static>,
    list: Arc<CertRevocationList<'static>>,
    issuer: String,
    next_update: SystemTime,
}

impl Crls {
    /// Reads the file at `path`, in PEM or DER, or every `*.pem`, `*.crl` and `*.der` in the directory
    /// there.
    ///
    /// # Errors
    /// [`CrlError`], naming the file, also if there is no list at all.
    pub fn open(path: &Path) -> Result<Self, CrlError> {
        Self::parse(&read(path)?)
    }

    fn parse(files: &[(PathBuf, Vec<u8>)]) -> Result<Self, CrlError> {
        let mut lists = Vec::new();
        for (file, content) in files {
            for der in blocks(file, content)? {
                let list = Crl::new(der).map_err(|fault| CrlError::List(file.clone(), fault))?;
                lists.push(list);
            }
        }
        Ok(Self(lists))
    }

    /// How many lists there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the certificate with this `serial` number and `issuer` is revoked; `issuer_key` is the
    /// issuer's SubjectPublicKeyInfo in DER, the others are as in [`webpki::Cert`].
    #[must_use]
    pub fn revoke(
        &self,
        serial: &[u8],
        issuer: &[u8],
        issuer_key: &[u8],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> bool {
        let mut of_issuer = self.0.iter().filter(|crl| crl.list.issuer() == issuer);
        // The signature is last: it costs something, and few certificates are on a list.
        of_issuer.any(|crl| crl.names(serial) && crl.signed_with(issuer_key, algorithms))
    }

    /// The lists that should have been replaced before `now`: issuer, and when.
    pub fn overdue(&self, now: SystemTime) -> impl Iterator<Item = (&str, SystemTime)> {
        let late = self.0.iter().filter(move |crl| crl.next_update <= now);
        late.map(|crl| (&*crl.issuer, crl.next_update))
    }

    fn next_update(&self) -> Option<SystemTime> {
        self.0.iter().map(|crl| crl.next_update).min()
    }
}

impl Crl {
    fn new(der: CertificateRevocationListDer<'static>) -> Result<Self, Fault> {
        let list = OwnedCertRevocationList::from_der(&der).map_err(Fault::Unusable)?;
        let (issuer, next_update) = match CertificateRevocationList::from_der(&der) {
            Ok(([], crl)) => (crl.issuer().to_string(), crl.next_update()),
            _ => return Err(Fault::Malformed),
        };
        let next_update = next_update.and_then(|time| svid::instant(time).ok());
        let signed = Signed::of(&der).ok_or(Fault::Malformed)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = provider.signature_verification_algorithms.all;
        if !algorithms
            .iter()
            .any(|known| known.signature_alg_id().as_ref() == signed.algorithm)
        {
            return Err(Fault::Algorithm);
        }
        Ok(Self {
            list: Arc::new(list.into()),
            issuer,
            next_update: next_update.ok_or(Fault::Malformed)?,
            der,
        })
    }

    fn names(&self, serial: &[u8]) -> bool {
        // An entry that cannot be read may be this one.
        !matches!(self.list.find_serial(serial), Ok(None))
    }

    fn signed_with(&self, key: &[u8], algorithms: &[&dyn SignatureVerificationAlgorithm]) -> bool {
        let (Some(signed), Some((key_algorithm, key))) = (Signed::of(&self.der), public_key(key))
        else {
            return false;
        };
        algorithms.iter().any(|algorithm| {
            algorithm.signature_alg_id().as_ref() == signed.algorithm
                && algorithm.public_key_alg_id().as_ref() == key_algorithm
                && algorithm
                    .verify_signature(&key.data, signed.content, &signed.signature.data)
                    .is_ok()
        })
    }
}

impl PartialEq for Crl {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl fmt::Debug for Crl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crl")
            .field("issuer", &self.issuer)
            .field("next_update", &self.next_update)
            .finish_non_exhaustive()
    }
}

/// The outer shape of everything signed in X.509: content, algorithm, signature.
struct Signed<'a> {
    content: &'a [u8],
    algorithm: &'a [u8],
    signature: BitString<'a>,
}

impl<'a> Signed<'a> {
    fn of(der: &'a [u8]) -> Option<Self> {
        let (inner, _) = sequence(der)?;
        let (_, rest) = sequence(inner)?;
        let content = &inner[..inner.len() - rest.len()];
        let (algorithm, rest) = sequence(rest)?;
        let (_, signature) = BitString::from_der(rest).ok()?;
        Some(Self {
            content,
            algorithm,
            signature,
        })
    }
}

/// Algorithm and key of a SubjectPublicKeyInfo.
fn public_key(der: &[u8]) -> Option<(&[u8], BitString<'_>)> {
    let (inner, _) = sequence(der)?;
    let (algorithm, rest) = sequence(inner)?;
    let (_, key) = BitString::from_der(rest).ok()?;
    Some((algorithm, key))
}

/// What is in a SEQUENCE, and what follows it.
fn sequence(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (rest, any) = Any::from_der(der).ok()?;
    (any.header.tag() == Tag::Sequence).then_some((any.data, rest))
}

fn read(path: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>, CrlError> {
    let unread = |path: &Path| {
        let path = path.to_owned();
        move |error| CrlError::Unread(path, error)
    };
    let mut files = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).map_err(unread(path))? {
            let file = entry.map_err(unread(path))?.path();
            let hidden = file
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'));
            let extension = file.extension().and_then(|extension| extension.to_str());
            if !hidden && matches!(extension, Some("pem" | "crl" | "der")) {
                files.push(file);
            }
        }
        files.sort_unstable();
    } else {
        files.push(path.to_owned());
    }
    if files.is_empty() {
        return Err(CrlError::Nothing(path.to_owned()));
    }
    let content = |file: PathBuf| {
        let mut content = Vec::new();
        File::open(&file)
            .and_then(|open| open.take(LARGEST).read_to_end(&mut content))
            .map_err(unread(&file))?;
        Ok((file, content))
    };
    files.into_iter().map(content).collect()
}

fn blocks(
    file: &Path,
    content: &[u8],
) -> Result<Vec<CertificateRevocationListDer<'static>>, CrlError> {
    // The tag of a SEQUENCE; no text in PEM begins with `0`.
    if content.first() == Some(&0x30) {
        return Ok(vec![content.to_vec().into()]);
    }
    let blocks: Vec<_> = CertificateRevocationListDer::pem_slice_iter(content)
        .collect::<Result<_, _>>()
        .map_err(|error| CrlError::Pem(file.to_owned(), error))?;
    match blocks.is_empty() {
        true => Err(CrlError::Nothing(file.to_owned())),
        false => Ok(blocks),
    }
}

/// Far more than short-lived certificates need.
const LARGEST: u64 = 64 << 20;

/// Why there are no lists to go by. Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// It is not there, or not for us to read.
    #[error("cannot read {}", .0.display())]
    Unread(PathBuf, #[source] io::Error),
    /// It is not PEM, or breaks off.
    #[error("{} holds no whole certificate revocation list", .0.display())]
    Pem(PathBuf, #[source] pem::Error),
    /// There is none: nothing would be revoked.
    #[error("there is no certificate revocation list in {}", .0.display())]
    Nothing(PathBuf),
    /// A list in it is of no use.
    #[error("a certificate revocation list in {} cannot be used", .0.display())]
    List(PathBuf, #[source] Fault),
}

/// What is wrong with a list.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error("it is malformed")]
    Malformed,
    /// It is of a kind that we cannot go by: a delta, an indirect one, or with an unknown critical
    /// extension.
    #[error("it is malformed or of a kind that is not supported")]
    Unusable(#[source] webpki::Error),
    /// Nobody's signature under it could be checked.
    #[error("it is signed with an algorithm that is not supported")]
    Algorithm,
}

/// A file or directory of lists, as a source of them.
#[derive(Debug)]
pub struct Lists {
    path: PathBuf,
    watched: Watched,
}

impl Lists {
    /// Watches `path`; see [`Crls::open`].
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self {
            watched: Watched::new([path.clone()]),
            path,
        }
    }
}

impl Source for Lists {
    type Item = Crls;
    type Error = CrlError;

    async fn next(&mut self) -> Result<Change<Crls>, CrlError> {
        let path = self.path.clone();
        let files = self
            .watched
            .news(|| std::future::ready(read(&path)))
            .await?;
        let crls = Crls::parse(&files)?;
        self.watched.take();
        Ok(Change::Replace(crls))
    }
}

/// Identities whose bundles come with the lists in force. A new list makes a new identity of the last one.
#[derive(Debug)]
pub struct Revoking<S> {
    materials: S,
    crls: Arc<Live<Crls>>,
    changes: watch::Receiver<u64>,
    last: Option<Material>,
}

impl<S> Revoking<S> {
    /// Joins `materials` and `crls`. The future of the former must be safe to drop.
    #[must_use]
    pub fn new(materials: S, crls: Arc<Live<Crls>>) -> Self {
        Self {
            materials,
            changes: crls.changes(),
            crls,
            last: None,
        }
    }

    fn joined(&mut self, material: Material) -> Change<Material> {
        self.changes.mark_unchanged();
        let bundles = match self.crls.get() {
            Some(crls) => material.bundles().with_crls(crls.value.clone()),
            None => material.bundles().as_ref().clone(),
        };
        let joined = material.with_bundles(Arc::new(bundles));
        self.last = Some(material);
        Change::Replace(joined)
    }
}

impl<S: Source<Item = Material>> Source for Revoking<S> {
    type Item = Material;
    type Error = S::Error;

    async fn next(&mut self) -> Result<Change<Material>, S::Error> {
        loop {
            tokio::select! {
                // First, because a source that is down is always ready: to fail.
                biased;
                Ok(()) = self.changes.changed() => {
                    if let Some(material) = self.last.take() {
                        return Ok(self.joined(material));
                    }
                }
                change = self.materials.next() => return Ok(match change? {
                    Change::Replace(material) => self.joined(material),
                    Change::Withdraw => {
                        self.last = None;
                        Change::Withdraw
                    }
                }),
            }
        }
    }

    async fn urgent(&mut self) {
        if self.last.is_some() && self.changes.changed().await.is_ok() {
            // `next` has still to see it.
            self.changes.mark_changed();
        } else {
            self.materials.urgent().await;
        }
    }
}

/// The metrics of the lists, once in a process.
#[derive(Clone, Debug)]
pub struct Status {
    updated: Gauge,
    next_update: Gauge,
    failures: IntCounter,
}

impl Status {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let status = Self {
            updated: Gauge::new(
                "doorward_crl_updated_timestamp_seconds",
                "When the certificate revocation lists in force were read.",
            )?,
            next_update: Gauge::new(
                "doorward_crl_next_update_timestamp_seconds",
                "When the first of the certificate revocation lists in force is overdue.",
            )?,
            failures: IntCounter::new(
                "doorward_crl_failures_total",
                "Times that certificate revocation lists could not be read; those in force stayed.",
            )?,
        };
        registry.register(Box::new(status.updated.clone()))?;
        registry.register(Box::new(status.next_update.clone()))?;
        registry.register(Box::new(status.failures.clone()))?;
        Ok(status)
    }

    /// Tells of lists that are in force since `since`.
    pub fn published(&self, crls: &Crls, since: SystemTime) {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH);
            since.unwrap_or_default().as_secs_f64()
        };
        self.updated.set(seconds(since));
        self.next_update
            .set(crls.next_update().map_or(0.0, seconds));
    }

    /// Tells of lists that could not be read.
    pub fn failed(&self) {
        self.failures.inc();
    }
}

#[cfg(test)]
mod tests;
