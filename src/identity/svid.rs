//! Is this certificate an X.509-SVID leaf, and what does it say? (X509-SVID §2–§5)

use std::net::IpAddr;
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
        serial: hex(certificate.raw_serial()),
        issuer: certificate.issuer().to_string(),
    })
}

/// Bytes as lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Start and end of any certificate's validity.
///
/// # Errors
/// [`SvidError::Malformed`] if it cannot be read.
pub fn validity(der: &[u8]) -> Result<(SystemTime, SystemTime), SvidError> {
    times(&certificate(der)?)
}

/// The DNS names and IP addresses that any certificate is for, besides its SPIFFE ID (X509-SVID §2).
#[must_use]
pub fn hosts(der: &[u8]) -> Vec<String> {
    let Ok(certificate) = certificate(der) else {
        return Vec::new();
    };
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let host = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => address(octets).map(|address| address.to_string()),
        _ => None,
    };
    names.iter().filter_map(host).collect()
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
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

pub(super) fn instant(time: ASN1Time) -> Result<SystemTime, SvidError> {
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
    // A name that cannot be read, say a URI that is not ASCII, may be the second one.
    let unreadable = |name: &GeneralName<'_>| matches!(name, GeneralName::Invalid(..));
    if names.value.general_names.iter().any(unreadable) {
        return Err(SvidError::Malformed);
    }
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

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType};

    use super::*;
    use crate::identity::testing::{Ca, extension, leaf, uri};

    const ID: &str = "spiffe://example.org/ledger";

    type Breaking = fn(&mut CertificateParams);

    fn minted(change: Breaking) -> Vec<u8> {
        let mut params = leaf(ID);
        change(&mut params);
        Ca::new("example.org").mint(&params).chain[0].to_vec()
    }

    #[test]
    fn the_hosts_of_a_certificate_are_its_names_and_addresses() {
        let der = minted(|params| {
            params.subject_alt_names.extend([
                SanType::DnsName("webhook.doorward.svc".try_into().unwrap()),
                SanType::IpAddress("127.0.0.1".parse().unwrap()),
                SanType::IpAddress("::1".parse().unwrap()),
            ]);
        });
        assert_eq!(hosts(&der), ["webhook.doorward.svc", "127.0.0.1", "::1"]);
        assert!(hosts(&minted(|_| {})).is_empty());
        assert!(hosts(b"no certificate").is_empty());
    }

    #[test]
    fn a_leaf_says_what_was_signed() {
        let der = minted(|params| {
            params.serial_number = Some(vec![0x0a, 0xff].into());
            params.not_before = (UNIX_EPOCH + Duration::from_secs(1_000_000_000)).into();
            params.not_after = (UNIX_EPOCH + Duration::from_secs(1_000_003_600)).into();
        });
        let leaf = parse(&der).unwrap();
        assert_eq!(leaf.id.as_str(), ID);
        assert_eq!(leaf.serial, "0aff");
        assert_eq!(leaf.issuer, "CN=example.org");
        assert_eq!(leaf.lifetime(), Duration::from_secs(3600));
        assert_eq!(validity(&der), Ok((leaf.not_before, leaf.not_after)));
    }

    #[test]
    fn what_the_standard_allows_is_accepted() {
        let allowed: [(&str, Breaking); 4] = [
            ("a DNS name beside the URI", |params| {
                let name = SanType::DnsName("ledger.example.org".try_into().unwrap());
                params.subject_alt_names.insert(0, name);
            }),
            ("no basic constraints", |params| params.is_ca = IsCa::NoCa),
            ("no extended key usage", |params| {
                params.extended_key_usages.clear();
            }),
            ("keyAgreement as well", |params| {
                params.key_usages.push(KeyUsagePurpose::KeyAgreement);
            }),
        ];
        for (what, change) in allowed {
            let leaf = parse(&minted(change));
            assert_eq!(
                leaf.map(|leaf| leaf.id.to_string()),
                Ok(ID.into()),
                "{what}"
            );
        }
    }

    #[test]
    fn a_leaf_that_breaks_a_rule_is_refused_by_its_name() {
        let signs = SvidError::KeyUsage("keyCertSign or cRLSign is set");
        let cases: [(&str, Breaking, SvidError); 16] = [
            (
                "no names at all",
                |params| params.subject_alt_names.clear(),
                SvidError::NoUri,
            ),
            (
                "a DNS name alone",
                |params| {
                    let name = SanType::DnsName("ledger.example.org".try_into().unwrap());
                    params.subject_alt_names = vec![name];
                },
                SvidError::NoUri,
            ),
            (
                "two SPIFFE IDs",
                |params| params.subject_alt_names.push(uri("spiffe://example.org/b")),
                SvidError::ManyUris,
            ),
            (
                "the same SPIFFE ID twice",
                |params| params.subject_alt_names.push(uri(ID)),
                SvidError::ManyUris,
            ),
            (
                "a second URI of another scheme",
                |params| params.subject_alt_names.push(uri("https://example.org/")),
                SvidError::ManyUris,
            ),
            (
                "a second URI that is not ASCII",
                |params| {
                    params.subject_alt_names.clear();
                    let mut names = vec![0x30, 0x20, 0x86, 0x1b];
                    names.extend(ID.as_bytes());
                    names.extend([0x86, 0x01, 0xff]);
                    params.custom_extensions = vec![extension(17, false, &names)];
                },
                SvidError::Malformed,
            ),
            (
                "a trust domain without a path",
                |params| params.subject_alt_names = vec![uri("spiffe://example.org")],
                SvidError::Id(IdError::NoPath),
            ),
            (
                "a trust domain in upper case",
                |params| params.subject_alt_names = vec![uri("spiffe://Example.org/a")],
                SvidError::Id(IdError::NotCanonical),
            ),
            (
                "a CA",
                |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained),
                SvidError::CertificateAuthority,
            ),
            (
                "no key usage",
                |params| params.key_usages.clear(),
                SvidError::KeyUsage("key usage is missing"),
            ),
            (
                "a key usage that is not critical",
                |params| {
                    params.key_usages.clear();
                    let content = [0x03, 0x02, 0x07, 0x80];
                    params.custom_extensions = vec![extension(15, false, &content)];
                },
                SvidError::KeyUsage("key usage is not marked critical"),
            ),
            (
                "a key that may sign certificates",
                |params| params.key_usages.push(KeyUsagePurpose::KeyCertSign),
                signs.clone(),
            ),
            (
                "a key that may sign revocation lists",
                |params| params.key_usages.push(KeyUsagePurpose::CrlSign),
                signs,
            ),
            (
                "a key that may not sign",
                |params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment],
                SvidError::KeyUsage("digitalSignature is not set"),
            ),
            (
                "a key usage that cannot be read",
                |params| {
                    params.key_usages.clear();
                    params.custom_extensions = vec![extension(15, true, &[0x05, 0x00])];
                },
                SvidError::Malformed,
            ),
            (
                "key usage twice",
                |params| {
                    let content = [0x03, 0x02, 0x07, 0x80];
                    params.custom_extensions = vec![extension(15, true, &content)];
                },
                SvidError::Malformed,
            ),
        ];
        for (what, change, expected) in cases {
            assert_eq!(parse(&minted(change)), Err(expected), "{what}");
        }
    }

    #[test]
    fn no_standard_id_is_refused_with_the_words_of_the_standard() {
        let der = minted(|params| params.subject_alt_names = vec![uri("https://example.org/a")]);
        assert!(matches!(
            parse(&der),
            Err(SvidError::Id(IdError::Standard(_)))
        ));
    }

    #[test]
    fn bytes_that_are_no_certificate_are_malformed() {
        let whole = minted(|_| {});
        let mut longer = whole.clone();
        longer.push(0);
        for der in [&[][..], b"certificate", &whole[..whole.len() - 1], &longer] {
            assert_eq!(parse(der), Err(SvidError::Malformed));
        }
    }
}
