//! What signs, and what do others trust? Our small CA: X509-SVIDs (ECDSA P-256) and JWT-SVIDs (ES256).
//!
//! An [`Authority`] is one complete value: one or more *generations*, each a CA certificate with its
//! key and a JWT key. When the newest generation has passed half of its life a further one is made. It
//! is published in the bundle at once and signs a little later, so that whoever verifies knows it
//! before it meets its first signature. An old generation leaves the bundle when it ends, and nothing
//! it signed lives longer than itself.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{digest, rand};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Map, Value};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::identity::bundle_document::{BundleDocument, JwtKey};
use crate::identity::{Bundle, SpiffeId, TrustDomain, svid};

/// The CA of one trust domain, as it is at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    domain: TrustDomain,
    /// How long a generation made from now on lives.
    lifetime: Duration,
    /// Oldest first; the times at which they were made rise.
    generations: Vec<Arc<Generation>>,
}

/// A CA certificate and a JWT key that live equally long.
pub(crate) struct Generation {
    certificate: CertificateDer<'static>,
    key: Zeroizing<KeyPair>,
    jwt_key: Zeroizing<KeyPair>,
    signer: EncodingKey,
    verifier: DecodingKey,
    jwk: Jwk,
    not_before: SystemTime,
    not_after: SystemTime,
}

/// An X509-SVID with its key, just made.
pub(crate) struct X509Svid {
    /// The certificate in DER. The root signed it, so there is no intermediate.
    pub(crate) certificate: Vec<u8>,
    /// PKCS#8 in DER.
    pub(crate) key: Zeroizing<Vec<u8>>,
    /// In lower-case hex.
    pub(crate) serial: String,
    pub(crate) not_after: SystemTime,
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A JWT-SVID.
#[derive(Debug)]
pub(crate) struct JwtSvid {
    pub(crate) token: String,
    pub(crate) expires: SystemTime,
}

/// A little tolerance for clocks that run behind ours.
const BACKDATED: Duration = Duration::from_secs(10);

/// A JWT-SVID is a bearer token: it never lives longer than this.
const LONGEST_JWT: Duration = Duration::from_secs(300);

/// How long a new generation is published before it signs, unless its life is short: other trust domains
/// look at our bundle only now and then.
const PUBLISHED_BEFORE_SIGNING: Duration = Duration::from_secs(600);

impl Authority {
    /// A new CA whose generations live for `lifetime`.
    ///
    /// # Errors
    /// If the random source or the crypto library fails.
    pub(crate) fn generate(
        domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Ok(Self {
            domain: domain.clone(),
            lifetime,
            generations: vec![Arc::new(Generation::new(domain, lifetime, now)?)],
        })
    }

    /// The CA kept in `text`, PEM as [`Authority::to_pem`] writes it; what has ended by `now` is replaced.
    ///
    /// # Errors
    /// [`AuthorityError::Kept`] says what is wrong with the text.
    pub(crate) fn from_pem(
        text: &str,
        domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let kept = AuthorityError::Kept;
        let blocks = pem::parse_many(text).map_err(|_| kept("it is not PEM"))?;
        let blocks: Vec<(String, Zeroizing<Vec<u8>>)> = blocks
            .into_iter()
            .map(|block| {
                (
                    block.tag().to_owned(),
                    Zeroizing::new(block.into_contents()),
                )
            })
            .collect();
        if blocks.is_empty() {
            return Err(kept("it holds nothing"));
        }
        let mut generations = Vec::new();
        for triple in blocks.chunks(3) {
            let [(CERTIFICATE, certificate), (KEY, key), (KEY, jwt_key)] =
                &[0, 1, 2].map(|at| match triple.get(at) {
                    Some((tag, bytes)) => (tag.as_str(), bytes.as_slice()),
                    None => ("", &[][..]),
                })
            else {
                return Err(kept(
                    "it must hold a certificate, its key and a key for JWTs, in this order",
                ));
            };
            generations.push(Arc::new(Generation::load(
                domain,
                certificate,
                key,
                jwt_key,
            )?));
        }
        let loaded = Self {
            domain: domain.clone(),
            lifetime,
            generations,
        };
        Ok(loaded.renewed(now)?.unwrap_or(loaded))
    }

    /// Certificates and keys, to be kept in a file. Whoever reads it is the CA.
    pub(crate) fn to_pem(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        for generation in &self.generations {
            text.push_str(&pem::encode_config(
                &pem::Pem::new(CERTIFICATE, generation.certificate.to_vec()),
                pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
            ));
            for key in [&generation.key, &generation.jwt_key] {
                text.push_str(&Zeroizing::new(key.serialize_pem()));
            }
        }
        text
    }

    /// The CA as it must be at `now`, if that is another: without what has ended, and with a further
    /// generation once the newest has passed half of its life.
    ///
    /// # Errors
    /// If the random source or the crypto library fails.
    pub(crate) fn renewed(&self, now: SystemTime) -> Result<Option<Self>, AuthorityError> {
        if now < self.next_change() {
            return Ok(None);
        }
        let mut generations: Vec<_> = self
            .generations
            .iter()
            .filter(|generation| now < generation.not_after)
            .cloned()
            .collect();
        if generations.last().is_none_or(|last| now >= last.half()) {
            let next = Generation::new(&self.domain, self.lifetime, now)?;
            generations.push(Arc::new(next));
        }
        Ok(Some(Self {
            generations,
            ..self.clone()
        }))
    }

    /// When [`Authority::renewed`] is to be asked next.
    pub(crate) fn next_change(&self) -> SystemTime {
        let ends = self
            .generations
            .iter()
            .map(|generation| generation.not_after);
        let half = self.generations.last().map(|last| last.half());
        ends.chain(half).min().unwrap_or(UNIX_EPOCH)
    }

    /// The generation that signs at `now`: the newest that everybody has had time to learn of.
    fn signing(&self, now: SystemTime) -> Result<&Generation, AuthorityError> {
        let mut valid = self
            .generations
            .iter()
            .filter(|generation| now < generation.not_after);
        let known = valid
            .clone()
            .rev()
            .find(|generation| generation.signs_from() <= now);
        // With nothing older there is nobody who trusts something else.
        known
            .or_else(|| valid.next())
            .map(|generation| &**generation)
            .ok_or(AuthorityError::Ended)
    }

    /// The trust domain it vouches for.
    pub(crate) fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The CA certificates in DER, one behind the other.
    pub(crate) fn x509_bundle(&self) -> Vec<u8> {
        let certificates = self.generations.iter().map(|one| one.certificate.as_ref());
        certificates.collect::<Vec<_>>().concat()
    }

    /// The JWT keys as a JWK Set (RFC 7517).
    pub(crate) fn jwt_bundle(&self) -> Result<Vec<u8>, AuthorityError> {
        let keys = self.generations.iter().map(|one| one.jwk.clone()).collect();
        serde_json::to_vec(&JwkSet { keys }).map_err(|_| AuthorityError::Encoding)
    }

    /// Everything public, for other trust domains.
    pub(crate) fn document(&self, sequence: u64) -> Result<BundleDocument, AuthorityError> {
        let roots = self.generations.iter().map(|one| one.certificate.clone());
        let keys = self.generations.iter().map(|one| {
            let id = one.jwk.common.key_id.clone().unwrap_or_default();
            match serde_json::to_value(&one.jwk) {
                Ok(Value::Object(jwk)) => Ok(JwtKey::new(id, jwk)),
                _ => Err(AuthorityError::Encoding),
            }
        });
        // Twice within the time that a successor is published before it signs.
        let hint = (PUBLISHED_BEFORE_SIGNING / 2).min(self.lifetime / 20);
        Ok(BundleDocument {
            sequence: Some(sequence),
            refresh_hint: Some(Duration::from_secs(hint.as_secs().max(1))),
            x509: Bundle::new(roots).map_err(|_| AuthorityError::Encoding)?,
            jwt: keys.collect::<Result<_, _>>()?,
        })
    }

    /// Makes a key and a certificate for `id` that proves it for `lifetime`, rounded up to a whole
    /// second, but not longer than the CA lives.
    ///
    /// # Errors
    /// [`AuthorityError::Ended`] if the CA itself has ended.
    pub(crate) fn x509_svid(
        &self,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<X509Svid, AuthorityError> {
        let ca = self.signing(now)?;
        let not_after = ceil(now + lifetime).min(ca.not_after);
        let key = Zeroizing::new(generate_key()?);
        let mut params = CertificateParams::default();
        params.not_before = floor(now - BACKDATED).into();
        params.not_after = not_after.into();
        let serial = serial()?;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.distinguished_name = name(&[(DnType::OrganizationName, self.domain.as_str())]);
        params.subject_alt_names = vec![uri(id.as_str())?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let issuer = Issuer::from_ca_cert_der(&ca.certificate, &*ca.key)?;
        let certificate = params.signed_by(&*key, &issuer)?;
        Ok(X509Svid {
            certificate: certificate.der().to_vec(),
            key: Zeroizing::new(key.serialize_der()),
            serial: hex(&serial),
            not_after,
        })
    }

    /// Makes a token that proves `id` to `audience` for `lifetime`, five minutes at most, and not longer
    /// than the CA lives.
    ///
    /// # Errors
    /// [`AuthorityError::Ended`] if the CA itself has ended.
    pub(crate) fn jwt_svid(
        &self,
        id: &SpiffeId,
        audience: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<JwtSvid, AuthorityError> {
        let ca = self.signing(now)?;
        let expires = ceil(now + lifetime.min(LONGEST_JWT)).min(ca.not_after);
        let claims = serde_json::json!({
            "sub": id.as_str(),
            "aud": audience,
            "iat": seconds(now),
            "exp": seconds(expires),
            "jti": hex(&serial()?),
        });
        let header = Header {
            kid: ca.jwk.common.key_id.clone(),
            ..Header::new(Algorithm::ES256)
        };
        Ok(JwtSvid {
            token: jsonwebtoken::encode(&header, &claims, &ca.signer)?,
            expires,
        })
    }

    /// Checks a JWT-SVID of our own trust domain (JWT-SVID §5) and says whose it is and all it claims.
    ///
    /// # Errors
    /// [`TokenError`] says why it proves nothing to `audience`.
    pub(crate) fn validate(
        &self,
        token: &str,
        audience: &str,
        now: SystemTime,
    ) -> Result<(SpiffeId, Map<String, Value>), TokenError> {
        let header = jsonwebtoken::decode_header(token).map_err(TokenError::Token)?;
        if !matches!(header.typ.as_deref(), None | Some("JWT" | "JOSE")) {
            return Err(TokenError::Type);
        }
        let ca = self
            .generations
            .iter()
            .filter(|generation| now < generation.not_after)
            .find(|generation| generation.jwk.common.key_id == header.kid)
            .ok_or(TokenError::Key)?;
        let mut validation = Validation::new(Algorithm::ES256);
        validation.leeway = 0;
        validation.set_audience(&[audience]);
        validation.set_required_spec_claims(&["exp", "sub", "aud"]);
        let claims: Map<String, Value> = jsonwebtoken::decode(token, &ca.verifier, &validation)
            .map_err(TokenError::Token)?
            .claims;
        let subject = claims.get("sub").and_then(Value::as_str);
        let id = subject
            .and_then(|subject| SpiffeId::parse(subject).ok())
            .filter(|id| id.trust_domain() == &self.domain)
            .ok_or(TokenError::Subject)?;
        Ok((id, claims))
    }
}

impl Generation {
    fn new(
        domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let key = Zeroizing::new(generate_key()?);
        let serial = serial()?;
        let mut params = CertificateParams::default();
        params.not_before = floor(now - BACKDATED).into();
        params.not_after = ceil(now + lifetime).into();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        // Each generation has a name of its own, so that nobody takes one for the other.
        params.distinguished_name = name(&[
            (DnType::OrganizationName, domain.as_str()),
            (
                DnType::CommonName,
                &format!("Doorward CA {}", hex(&serial[..4])),
            ),
        ]);
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))?];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&*key)?;
        Self::of(
            certificate.der().clone(),
            key,
            Zeroizing::new(generate_key()?),
        )
    }

    fn load(
        domain: &TrustDomain,
        certificate: &[u8],
        key: &[u8],
        jwt_key: &[u8],
    ) -> Result<Self, AuthorityError> {
        let kept = AuthorityError::Kept;
        let read = |bytes: &[u8]| {
            let der = PrivatePkcs8KeyDer::from(bytes);
            KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
                .map(Zeroizing::new)
                .map_err(|_| kept("a key in it is not an ECDSA P-256 key"))
        };
        let (key, jwt_key) = (read(key)?, read(jwt_key)?);
        let malformed = || kept("a certificate in it is malformed");
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| malformed())?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(kept("a key in it does not belong to its certificate"));
        }
        let names = parsed.subject_alternative_name().ok().flatten();
        let own = format!("spiffe://{domain}");
        let ours = names.is_some_and(
            |names| matches!(names.value.general_names[..], [GeneralName::URI(uri)] if uri == own),
        );
        if !parsed.is_ca() || !ours {
            return Err(kept("a certificate in it is no CA of this trust domain"));
        }
        Self::of(certificate.to_vec().into(), key, jwt_key)
    }

    fn of(
        certificate: CertificateDer<'static>,
        key: Zeroizing<KeyPair>,
        jwt_key: Zeroizing<KeyPair>,
    ) -> Result<Self, AuthorityError> {
        let (not_before, not_after) =
            svid::validity(&certificate).map_err(|_| AuthorityError::Encoding)?;
        let signer = EncodingKey::from_ec_der(jwt_key.serialized_der());
        let mut jwk = Jwk::from_encoding_key(&signer, Algorithm::ES256)?;
        // The same after a restart, and never the same for two keys.
        let fingerprint = digest::digest(&digest::SHA256, jwt_key.public_key_raw());
        jwk.common.key_id = Some(hex(&fingerprint.as_ref()[..16]));
        Ok(Self {
            verifier: DecodingKey::from_jwk(&jwk)?,
            certificate,
            key,
            jwt_key,
            signer,
            jwk,
            not_before,
            not_after,
        })
    }

    fn made(&self) -> SystemTime {
        self.not_before + BACKDATED
    }

    fn lifetime(&self) -> Duration {
        self.not_after
            .duration_since(self.made())
            .unwrap_or_default()
    }

    fn half(&self) -> SystemTime {
        self.made() + self.lifetime() / 2
    }

    fn signs_from(&self) -> SystemTime {
        self.made() + PUBLISHED_BEFORE_SIGNING.min(self.lifetime() / 10)
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation")
            .field("kid", &self.jwk.common.key_id)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// Why the CA cannot do what it is asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The kept CA is not usable.
    #[error("the kept CA is not usable: {0}")]
    Kept(&'static str),
    /// All its generations have ended, which happens when the clock jumps.
    #[error("the CA has ended and its successor is not there yet")]
    Ended,
    /// What was made cannot be written down or read back.
    #[error("what the CA made cannot be encoded")]
    Encoding,
    /// Certificates cannot be made.
    #[error("a certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// Tokens cannot be made.
    #[error("a token cannot be made")]
    Token(#[from] jsonwebtoken::errors::Error),
    /// The system gives no random numbers.
    #[error("the system's random source failed")]
    Random,
}

/// Why a JWT-SVID is not valid.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the header `typ` is neither JWT nor JOSE")]
    Type,
    #[error("it was not signed by a key in the bundle")]
    Key,
    #[error("its subject is no SPIFFE ID of this trust domain")]
    Subject,
    #[error(transparent)]
    Token(jsonwebtoken::errors::Error),
}

const CERTIFICATE: &str = "CERTIFICATE";
const KEY: &str = "PRIVATE KEY";

fn generate_key() -> Result<KeyPair, AuthorityError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// 126 random bits that are positive and always 16 bytes long in DER (RFC 5280 §4.1.2.2).
fn serial() -> Result<[u8; 16], AuthorityError> {
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| AuthorityError::Random)?;
    serial[0] = serial[0] & 0x3f | 0x40;
    Ok(serial)
}

fn uri(text: &str) -> Result<SanType, AuthorityError> {
    Ok(SanType::URI(text.try_into()?))
}

fn name(parts: &[(DnType, &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (kind, text) in parts {
        name.push(kind.clone(), *text);
    }
    name
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

/// The whole second that `time` lies in.
fn floor(time: SystemTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds(time))
}

/// The first whole second that is not before `time`.
fn ceil(time: SystemTime) -> SystemTime {
    let whole = floor(time);
    if whole < time {
        whole + Duration::from_secs(1)
    } else {
        whole
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::UnixTime;
    use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

    use super::*;

    const MONTH: Duration = Duration::from_secs(30 * 86_400);
    const HOUR: Duration = Duration::from_secs(3600);

    fn domain() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    fn id() -> SpiffeId {
        SpiffeId::parse("spiffe://example.org/a").unwrap()
    }

    fn authority(lifetime: Duration, now: SystemTime) -> Authority {
        Authority::generate(&domain(), lifetime, now).unwrap()
    }

    fn verifies(authority: &Authority, svid: &X509Svid, now: SystemTime) -> bool {
        let leaf = CertificateDer::from(svid.certificate.as_slice());
        let leaf = EndEntityCert::try_from(&leaf).unwrap();
        let anchors: Vec<_> = authority
            .generations
            .iter()
            .map(|one| anchor_from_trusted_cert(&one.certificate).unwrap())
            .collect();
        let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap());
        let algorithms = rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .all;
        [KeyUsage::server_auth(), KeyUsage::client_auth()]
            .into_iter()
            .all(|usage| {
                leaf.verify_for_usage(algorithms, &anchors, &[], time, usage, None, None)
                    .is_ok()
            })
    }

    #[test]
    fn a_leaf_is_an_svid_that_verifies_for_both_sides_of_tls() {
        let now = SystemTime::now();
        let authority = authority(MONTH, now);
        let svid = authority.x509_svid(&id(), HOUR, now).unwrap();
        assert!(verifies(&authority, &svid, now));
        let leaf = svid::parse(&svid.certificate).unwrap();
        assert_eq!(leaf.id, id());
        assert_eq!(leaf.serial, svid.serial);
        assert_eq!(leaf.not_after, svid.not_after);
        assert!(leaf.not_before <= now - BACKDATED);
        let key = PrivatePkcs8KeyDer::from(svid.key.to_vec()).into();
        let chain = vec![svid.certificate.clone().into()];
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        rustls::sign::CertifiedKey::from_der(chain, key, &provider).unwrap();
    }

    #[test]
    fn what_a_leaf_says_is_what_the_standard_asks_for() {
        let now = SystemTime::now();
        let svid = authority(MONTH, now).x509_svid(&id(), HOUR, now).unwrap();
        let (_, leaf) = X509Certificate::from_der(&svid.certificate).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert_eq!(
            names.value.general_names,
            [GeneralName::URI("spiffe://example.org/a")]
        );
        let constraints = leaf.basic_constraints().unwrap().unwrap();
        assert!(!constraints.value.ca);
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical);
        assert_eq!(usage.value.flags, 1, "digitalSignature alone");
        let extended = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.server_auth && extended.client_auth && !extended.any);
        assert_eq!(leaf.raw_serial().len(), 16);
        assert!(leaf.raw_serial()[0] < 0x80);
    }

    #[test]
    fn times_are_whole_seconds_and_never_shorter_than_asked() {
        let whole = UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let authority = authority(MONTH, whole);
        for (after, lives) in [(0, 2), (1, 3), (999_999_999, 3)] {
            let now = whole + Duration::from_nanos(after);
            let svid = authority.x509_svid(&id(), 2 * HOUR / 3600, now).unwrap();
            assert_eq!(
                svid.not_after,
                whole + Duration::from_secs(lives),
                "{after}"
            );
            assert!(verifies(&authority, &svid, now + Duration::from_secs(2)));
        }
    }

    #[test]
    fn nothing_outlives_the_ca_that_signed_it() {
        let now = SystemTime::now();
        let authority = authority(HOUR, now);
        let end = authority.generations[0].not_after;
        let svid = authority.x509_svid(&id(), 2 * HOUR, now).unwrap();
        assert_eq!(svid.not_after, end);
        let later = end - Duration::from_secs(3);
        let token = authority
            .jwt_svid(&id(), &["b".into()], HOUR, later)
            .unwrap();
        assert_eq!(token.expires, end);
        assert!(matches!(
            authority.x509_svid(&id(), HOUR, end),
            Err(AuthorityError::Ended)
        ));
    }

    #[test]
    fn a_successor_is_published_first_signs_later_and_outlives_the_old_one() {
        let start = ceil(SystemTime::now());
        let first = authority(MONTH, start);
        assert!(first.renewed(start + MONTH / 2 - HOUR).unwrap().is_none());
        assert_eq!(first.next_change(), start + MONTH / 2);

        let half = start + MONTH / 2;
        let both = first.renewed(half).unwrap().unwrap();
        assert_eq!(both.generations.len(), 2);
        let old_bundle = first.x509_bundle();
        assert!(both.x509_bundle().starts_with(&old_bundle));
        assert!(both.x509_bundle().len() > old_bundle.len());

        let svid = both.x509_svid(&id(), HOUR, half).unwrap();
        assert!(verifies(&first, &svid, half), "still signed by the old one");
        let later = half + PUBLISHED_BEFORE_SIGNING;
        let svid = both.x509_svid(&id(), HOUR, later).unwrap();
        assert!(!verifies(&first, &svid, later), "signed by the new one");
        assert!(verifies(&both, &svid, later));

        let end = start + MONTH;
        assert_eq!(both.next_change(), end);
        let last = both.renewed(end).unwrap().unwrap();
        assert_eq!(last.generations.len(), 2, "old one gone, a third made");
        assert!(!last.x509_bundle().starts_with(&old_bundle));
        assert!(last.renewed(end).unwrap().is_none());
    }

    #[test]
    fn a_kept_ca_is_the_same_ca() {
        let now = SystemTime::now();
        let first = authority(MONTH, now);
        let svid = first.x509_svid(&id(), HOUR, now).unwrap();
        let token = first.jwt_svid(&id(), &["b".into()], HOUR, now).unwrap();
        let again = Authority::from_pem(&first.to_pem(), &domain(), MONTH, now).unwrap();
        assert_eq!(again.x509_bundle(), first.x509_bundle());
        assert_eq!(again.jwt_bundle().unwrap(), first.jwt_bundle().unwrap());
        assert!(verifies(&again, &svid, now));
        again.validate(&token.token, "b", now).unwrap();

        let ended = now + MONTH + HOUR;
        let renewed = Authority::from_pem(&first.to_pem(), &domain(), MONTH, ended).unwrap();
        assert_eq!(renewed.generations.len(), 1);
        assert_ne!(renewed.x509_bundle(), first.x509_bundle());
    }

    #[test]
    fn a_kept_ca_that_does_not_fit_is_refused() {
        let now = SystemTime::now();
        let own = authority(MONTH, now).to_pem();
        let other = authority(MONTH, now).to_pem();
        let (certificate, _) = own.split_at(own.find("-----BEGIN PRIVATE").unwrap());
        let (_, keys) = other.split_at(other.find("-----BEGIN PRIVATE").unwrap());
        let elsewhere = TrustDomain::parse("example.com").unwrap();
        for (text, domain, why) in [
            (String::new(), domain(), "it holds nothing"),
            (own[..own.len() / 2].to_owned(), domain(), "it"),
            (certificate.to_owned(), domain(), "in this order"),
            (keys.to_owned(), domain(), "in this order"),
            (
                format!("{certificate}{keys}"),
                domain(),
                "does not belong to its certificate",
            ),
            (own.to_string(), elsewhere, "no CA of this trust domain"),
        ] {
            let error = Authority::from_pem(&text, &domain, MONTH, now).unwrap_err();
            assert!(error.to_string().contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn a_token_is_valid_for_its_audience_until_it_ends() {
        let now = SystemTime::now();
        let authority = authority(MONTH, now);
        let audience = ["b".to_owned(), "c".to_owned()];
        let svid = authority.jwt_svid(&id(), &audience, HOUR, now).unwrap();
        assert!(svid.expires <= ceil(now + LONGEST_JWT));
        let (subject, claims) = authority.validate(&svid.token, "c", now).unwrap();
        assert_eq!(subject, id());
        assert_eq!(claims["aud"], serde_json::json!(["b", "c"]));
        assert!(authority.validate(&svid.token, "d", now).is_err());
        let (head, _) = svid.token.rsplit_once('.').unwrap();
        for bad in ["", "a.b.c", head, &format!("{head}.AAAA")] {
            assert!(authority.validate(bad, "c", now).is_err(), "{bad}");
        }
        let stranger = Authority::generate(&domain(), MONTH, now).unwrap();
        assert!(matches!(
            stranger.validate(&svid.token, "c", now),
            Err(TokenError::Key)
        ));
        let past = now - 2 * HOUR;
        let old = authority.jwt_svid(&id(), &audience, HOUR, past).unwrap();
        assert!(authority.validate(&old.token, "c", now).is_err());
    }

    #[test]
    fn keys_do_not_reach_debug_output() {
        let now = SystemTime::now();
        let authority = authority(MONTH, now);
        let shown = format!("{authority:?}{:?}", authority.x509_svid(&id(), HOUR, now));
        assert!(
            shown.contains("not_after") && !shown.contains("key:"),
            "{shown}"
        );
    }
}
