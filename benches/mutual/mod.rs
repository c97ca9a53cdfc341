//! Both ends of a mutual TLS connection, in memory.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use doorward::identity::{Bundle, DEFAULT_MAX_PEER_LIFETIME, Material, SpiffeId};
use doorward::live::Live;
use doorward::tls::{Acceptor, Connector, Endpoint, Metrics, Offer, Verifications};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::PrivatePkcs8KeyDer;

pub(crate) const ID: &str = "spiffe://example.org/ledger";

const HOUR: Duration = Duration::from_secs(3600);

/// An SVID signed by a fresh root, ECDSA P-256 both.
fn material() -> Material {
    let now = SystemTime::now();
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();

    let mut leaf = CertificateParams::default();
    leaf.not_before = now.into();
    leaf.not_after = (now + HOUR).into();
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.subject_alt_names = vec![SanType::URI(ID.try_into().unwrap())];
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.signed_by(&key, &root).unwrap().der().clone();

    let domain = SpiffeId::parse(ID).unwrap().trust_domain().clone();
    let bundles = [(domain, Bundle::new([root.der().clone()]).unwrap())];
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let bundles = bundles.into_iter().collect();
    Material::new(vec![certificate], key.into(), Arc::new(bundles)).unwrap()
}

/// What accepts and what dials, with one identity between them.
pub(crate) struct Pair {
    pub(crate) acceptor: Acceptor,
    pub(crate) connector: Connector,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let live = Arc::new(Live::default());
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let (offer, patience) = (Offer::Http, Duration::from_secs(10));
        let expected = Arc::new(ID.parse().unwrap());
        let counts = Verifications::default();
        let endpoint = Endpoint::new(material(), DEFAULT_MAX_PEER_LIFETIME, counts);
        live.publish(endpoint.unwrap());
        Self {
            acceptor: Acceptor::new(live.clone(), offer, patience, metrics.clone()),
            connector: Connector::new(live, expected, offer, patience, metrics),
        }
    }
}
