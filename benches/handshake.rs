//! What does a full mTLS handshake cost, in total and on each side? Everything is in memory.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark may stop at the first surprise"
)]

use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use criterion::{Criterion, criterion_group, criterion_main};
use doorward::identity::svid;
use doorward::identity::{Bundle, DEFAULT_MAX_PEER_LIFETIME, Material, SpiffeId};
use doorward::live::Live;
use doorward::tls::{Acceptor, Connector, Endpoint, Metrics, Offer, Verifications, verify};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::PrivatePkcs8KeyDer;

const ID: &str = "spiffe://example.org/ledger";

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

struct Pair {
    acceptor: Acceptor,
    connector: Connector,
}

impl Pair {
    fn new() -> Self {
        let live = Arc::new(Live::default());
        live.publish(
            Endpoint::new(
                material(),
                DEFAULT_MAX_PEER_LIFETIME,
                Verifications::default(),
            )
            .unwrap(),
        );
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let (offer, patience) = (Offer::Http, Duration::from_secs(10));
        let expected = Arc::new(ID.parse().unwrap());
        Self {
            acceptor: Acceptor::new(live.clone(), offer, patience, metrics.clone()),
            connector: Connector::new(live, expected, offer, patience, metrics),
        }
    }

    /// One handshake, both sides polled in turn: the time that the server took, and the client.
    fn handshake(&self) -> [Duration; 2] {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let mut server = pin!(self.acceptor.accept(near));
        let mut client = pin!(self.connector.connect(far));
        let mut context = Context::from_waker(Waker::noop());
        let mut spent = [Duration::ZERO; 2];
        let (mut accepted, mut connected) = (None, None);
        while accepted.is_none() || connected.is_none() {
            spent[1] += step(client.as_mut(), &mut connected, &mut context);
            spent[0] += step(server.as_mut(), &mut accepted, &mut context);
        }
        black_box((accepted.unwrap().unwrap(), connected.unwrap().unwrap()));
        spent
    }
}

fn step<F: Future>(
    future: Pin<&mut F>,
    output: &mut Option<F::Output>,
    context: &mut Context<'_>,
) -> Duration {
    if output.is_some() {
        return Duration::ZERO;
    }
    let began = Instant::now();
    if let Poll::Ready(done) = future.poll(context) {
        *output = Some(done);
    }
    began.elapsed()
}

fn handshake(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let pair = Pair::new();
    let mut group = criterion.benchmark_group("handshake");
    for (name, sides) in [("both", 0..2), ("inbound", 0..1), ("outbound", 1..2)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    spent += pair.handshake()[sides.clone()].iter().sum::<Duration>();
                }
                spent
            });
        });
    }
    group.finish();
}

/// What is paid besides: an open connection verified anew, a leaf read.
fn verification(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let pair = Pair::new();
    let secured = runtime.block_on(async {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (served, _) = tokio::join!(pair.acceptor.accept(near), pair.connector.connect(far));
        served.unwrap()
    });
    let bundles = secured.endpoint.value.material().bundles();
    criterion.bench_function("still_holds", |bencher| {
        let now = SystemTime::now();
        bencher.iter(|| verify::still_holds(&secured.peer, bundles, HOUR * 2, now).unwrap());
    });
    let der = &secured.peer.chain()[0];
    criterion.bench_function("svid::parse", |bencher| {
        bencher.iter(|| svid::parse(black_box(der)).unwrap());
    });
}

criterion_group!(benches, handshake, verification);
criterion_main!(benches);
