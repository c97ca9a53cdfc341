//! Certificates for tests: a CA of one trust domain that signs whatever a case needs.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::{Bundle, Bundles, Material, SpiffeId, TrustDomain};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A certificate authority.
pub(crate) struct Ca {
    pub(crate) domain: TrustDomain,
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Intermediates between the leaves and the root, nearest first.
    above: Vec<CertificateDer<'static>>,
}

/// A leaf with its chain and key, whether or not it follows the rules.
pub(crate) struct Minted {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: Vec<u8>,
}

/// A CA's parameters: valid from an hour ago until in an hour.
fn authority(domain: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, domain);
    params.not_before = (now - HOUR).into();
    params.not_after = (now + HOUR).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
    params
}

/// The parameters of a proper SVID: valid from a minute ago until in half an hour.
pub(crate) fn leaf(id: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + HOUR / 2).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.subject_alt_names = vec![uri(id)];
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Any extension with any content, under `2.5.29.last`.
pub(crate) fn extension(last: u64, critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, last], content.to_vec());
    extension.set_criticality(critical);
    extension
}

impl Ca {
    pub(crate) fn new(domain: &str) -> Self {
        Self::with(domain, |_| {})
    }

    pub(crate) fn with(domain: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority(domain);
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Self {
            domain: TrustDomain::parse(domain).unwrap(),
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
            above: Vec::new(),
        }
    }

    /// An intermediate of the same trust domain.
    pub(crate) fn intermediate(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority(self.domain.as_str());
        params
            .distinguished_name
            .push(DnType::CommonName, "intermediate");
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(params, key, &self.issuer).unwrap();
        let mut above = vec![issuer.der().clone()];
        above.extend(self.above.iter().cloned());
        Self {
            domain: self.domain.clone(),
            issuer,
            above,
        }
    }

    /// Another certificate for the name and key of `below`, an intermediate.
    pub(crate) fn reissue(
        &self,
        below: &Self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = authority(self.domain.as_str());
        params
            .distinguished_name
            .push(DnType::CommonName, "intermediate");
        change(&mut params);
        let certificate = params.signed_by(below.issuer.key(), &self.issuer).unwrap();
        certificate.der().clone()
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        self.issuer.der()
    }

    /// A revocation list an hour old that names `revoked`, due again at the age of `due`.
    pub(crate) fn crl(&self, revoked: &[&Minted], due: Duration) -> Vec<u8> {
        let now = SystemTime::now();
        let serial = |minted: &&Minted| {
            let certificate = webpki::EndEntityCert::try_from(&minted.chain[0]).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(certificate.serial()),
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            }
        };
        let params = CertificateRevocationListParams {
            this_update: (now - HOUR).into(),
            next_update: (now - HOUR + due).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(serial).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }

    pub(crate) fn bundle(&self) -> (TrustDomain, Bundle) {
        let bundle = Bundle::new([self.certificate().clone()]).unwrap();
        (self.domain.clone(), bundle)
    }

    pub(crate) fn mint(&self, params: &CertificateParams) -> Minted {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut chain = vec![certificate.der().clone()];
        chain.extend(self.above.iter().cloned());
        Minted {
            chain,
            key: key.serialize_der(),
        }
    }

    /// A proper SVID, with the bundles of this CA and of `federated` ones.
    pub(crate) fn material(&self, path: &str, federated: &[&Self]) -> Material {
        let id = format!("spiffe://{}{path}", self.domain);
        let bundles = std::iter::once(&self)
            .chain(federated)
            .map(|ca| ca.bundle());
        self.mint(&leaf(&id)).material(bundles.collect()).unwrap()
    }
}

impl Minted {
    pub(crate) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()))
    }

    pub(crate) fn material(&self, bundles: Bundles) -> Result<Material, super::MaterialError> {
        Material::new(self.chain.clone(), self.private_key(), Arc::new(bundles))
    }

    /// Presents itself to whoever connects, and asks nobody who they are.
    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.private_key())
            .unwrap();
        TlsAcceptor::from(Arc::new(tls))
    }
}

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}
