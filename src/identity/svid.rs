//! Is this certificate an X.509-SVID leaf, and what does it say? (X509-SVID §2–§5)

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};
use x509_parser::time::ASN1Time;

use super::{IdError, SpiffeId};

/// What a valid X.509-SVID leaf says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The one URI in its subject alternative name.
    pub id: SpiffeId,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity: from this instant on it proves nothing.
    pub not_after: SystemTime,
    /// Serial number, in lower-case hex.
    pub serial: String,
    /// Distinguished name of the issuer.
    pub issuer: String,
}

impl Leaf {
    /// How long it was made to live.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.not_after
            .duration_since(self.not_before)
            .unwrap_or_default()
    }
}

/// Reads a leaf certificate and holds it to the rules of X509-SVID §2–§5. Signatures, validity at this
/// moment and the path to a root are for the verifier.
///
/// # Errors
/// [`SvidError`] names the rule it breaks.
pub fn parse(der: &[u8]) -> Result<Leaf, SvidError> {
    let certificate = certificate(der)?;
    let (not_before, not_after) = times(&certificate)?;
    check_usage(&certificate)?;
    Ok(Leaf {
        id: spiffe_id(&certificate)?,
        not_before,
        not_after,
        serial: certificate
            .raw_serial()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
        issuer: certificate.issuer().to_string(),
    })
}

/// Start and end of any certificate's validity.
///
/// # Errors
/// [`SvidError::Malformed`] if it cannot be read.
pub fn validity(der: &[u8]) -> Result<(SystemTime, SystemTime), SvidError> {
    times(&certificate(der)?)
}

fn certificate(der: &[u8]) -> Result<X509Certificate<'_>, SvidError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(SvidError::Malformed),
    }
}

fn times(certificate: &X509Certificate<'_>) -> Result<(SystemTime, SystemTime), SvidError> {
    let validity = certificate.validity();
    Ok((instant(validity.not_before)?, instant(validity.not_after)?))
}

fn instant(time: ASN1Time) -> Result<SystemTime, SvidError> {
    let seconds = u64::try_from(time.timestamp()).map_err(|_| SvidError::Malformed)?;
    UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))
        .ok_or(SvidError::Malformed)
}

/// Exactly one URI, and it names a workload (§2; §5.2 step "leaf").
fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, SvidError> {
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| SvidError::Malformed)?
        .ok_or(SvidError::NoUri)?;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (None, _) => Err(SvidError::NoUri),
        (Some(uri), None) => SpiffeId::parse(uri).map_err(SvidError::Id),
        (Some(_), Some(_)) => Err(SvidError::ManyUris),
    }
}

/// A leaf is no CA and may only sign handshakes (§4.1, §4.3).
fn check_usage(certificate: &X509Certificate<'_>) -> Result<(), SvidError> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|_| SvidError::Malformed)?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(SvidError::CertificateAuthority);
    }
    let usage = certificate
        .key_usage()
        .map_err(|_| SvidError::Malformed)?
        .ok_or(SvidError::KeyUsage("key usage is missing"))?;
    if !usage.critical {
        return Err(SvidError::KeyUsage("key usage is not marked critical"));
    }
    if usage.value.key_cert_sign() || usage.value.crl_sign() {
        return Err(SvidError::KeyUsage("keyCertSign or cRLSign is set"));
    }
    if !usage.value.digital_signature() {
        return Err(SvidError::KeyUsage("digitalSignature is not set"));
    }
    // An unparsed extension that is critical is webpki's to refuse; a malformed one is ours.
    let malformed = certificate.extensions().iter().any(|extension| {
        matches!(
            extension.parsed_extension(),
            ParsedExtension::ParseError { .. }
        )
    });
    if malformed {
        return Err(SvidError::Malformed);
    }
    Ok(())
}

/// The rule of the X509-SVID standard that a leaf certificate breaks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SvidError {
    /// Not DER, not X.509 v3, or a broken extension.
    #[error("the certificate is malformed")]
    Malformed,
    /// §2: an SVID carries its SPIFFE ID as a URI.
    #[error("the certificate carries no URI name")]
    NoUri,
    /// §2: and no second one.
    #[error("the certificate carries more than one URI name")]
    ManyUris,
    /// §2: the URI must be a SPIFFE ID with a path.
    #[error("the certificate's URI name is not usable")]
    Id(#[source] IdError),
    /// §4.1: a leaf has `cA` false.
    #[error("the certificate is a CA, not a leaf")]
    CertificateAuthority,
    /// §4.3: digitalSignature, critical, nothing that signs certificates.
    #[error("the certificate's {0}")]
    KeyUsage(&'static str),
}
