//! Certificates for tests: whatever a case needs, signed by the mesh's own CA or by a stranger.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// A certificate authority.
#[derive(Debug)]
pub(crate) struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A leaf with its chain and key, whether or not it follows the rules.
#[derive(Debug)]
pub(crate) struct Minted {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Ca {
    /// The issuer's own, from the file it keeps it in: a certificate, then its key.
    pub(crate) fn open(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let blocks = pem::parse_many(text).unwrap();
        let certificate = CertificateDer::from(blocks[0].contents().to_vec());
        let key = KeyPair::try_from(blocks[1].contents()).unwrap();
        let issuer = Issuer::from_ca_cert_der(&certificate, key).unwrap();
        Self {
            certificate,
            issuer,
        }
    }

    /// A stranger's, of the trust domain `domain` by its own account.
    pub(crate) fn stranger(domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![uri(&format!("spiffe://{domain}"))];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate in PEM.
    pub(crate) fn pem(&self) -> String {
        pem::encode(&pem::Pem::new("CERTIFICATE", self.certificate.to_vec()))
    }

    /// Signs `params` with a fresh key.
    pub(crate) fn mint(&self, params: &CertificateParams) -> Minted {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Minted {
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
        }
    }

    /// A proper SVID for `workload` of the mesh's trust domain.
    pub(crate) fn svid(&self, workload: &str) -> Minted {
        self.mint(&leaf(&super::id(workload)))
    }

    /// A proper SVID that ends in `lifetime` from now, rounded up to a whole second.
    pub(crate) fn svid_for(&self, workload: &str, lifetime: Duration) -> Minted {
        let mut params = leaf(&super::id(workload));
        params.not_after = (SystemTime::now() + lifetime + Duration::from_millis(999)).into();
        self.mint(&params)
    }
}

impl Ca {
    /// A revocation list in PEM, an hour old and due tomorrow, that names `revoked`.
    pub(crate) fn crl(&self, revoked: &[&Minted]) -> String {
        let now = SystemTime::now();
        let hour = Duration::from_secs(3600);
        let serial = |minted: &&Minted| {
            let (_, certificate) = x509_parser::parse_x509_certificate(&minted.chain[0]).unwrap();
            RevokedCertParams {
                serial_number: SerialNumber::from_slice(certificate.raw_serial()),
                revocation_time: now.into(),
                reason_code: None,
                invalidity_date: None,
            }
        };
        let params = CertificateRevocationListParams {
            this_update: (now - hour).into(),
            next_update: (now + 24 * hour).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(serial).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

impl Minted {
    pub(crate) fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.clone()))
    }
}

/// The parameters of a proper SVID: valid from a minute ago until in half an hour.
pub(crate) fn leaf(id: &str) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - Duration::from_secs(60)).into();
    params.not_after = (now + Duration::from_secs(1800)).into();
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
