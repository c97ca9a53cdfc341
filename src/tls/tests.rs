use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls::HandshakeKind;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::identity::crl::Crls;
use crate::identity::svid::{self, SvidError};
use crate::identity::testing::{Ca, HOUR, Minted, extension, id, leaf, uri};
use crate::identity::{Bundles, DEFAULT_MAX_PEER_LIFETIME};

const PATIENCE: Duration = Duration::from_secs(10);

const LEDGER: &str = "spiffe://example.org/ledger";

fn endpoint(material: Material) -> Endpoint {
    Endpoint::new(
        material,
        DEFAULT_MAX_PEER_LIFETIME,
        Verifications::default(),
    )
    .unwrap()
}

fn live(material: Material) -> Arc<Live<Endpoint>> {
    let live = Live::default();
    live.publish(endpoint(material));
    Arc::new(live)
}

fn metrics() -> Metrics {
    Metrics::register(&Registry::new()).unwrap()
}

fn acceptor(live: &Arc<Live<Endpoint>>) -> Acceptor {
    Acceptor::new(live.clone(), Offer::Auto, PATIENCE, metrics())
}

fn connector(live: &Arc<Live<Endpoint>>, expected: &str) -> Connector {
    let expected = Arc::new(expected.parse().unwrap());
    Connector::new(live.clone(), expected, Offer::Auto, PATIENCE, metrics())
}

type Served = Result<Secured<ServerStream<DuplexStream>>, HandshakeError>;
type Dialled = Result<Secured<ClientStream<DuplexStream>>, HandshakeError>;

async fn handshake(acceptor: &Acceptor, connector: &Connector) -> (Served, Dialled) {
    let (near, far) = duplex(64 * 1024);
    tokio::join!(acceptor.accept(near), connector.connect(far))
}

fn failure<S>(outcome: Result<Secured<S>, HandshakeError>) -> HandshakeError {
    match outcome {
        Ok(secured) => panic!("let {} in", secured.peer.id()),
        Err(error) => error,
    }
}

/// A stranger's TLS: any certificate, and none of our rules.
#[derive(Debug)]
struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn certified(minted: &Minted) -> Arc<SingleCertAndKey> {
    let key = aws_lc_rs::sign::any_supported_type(&minted.private_key()).unwrap();
    let certified = CertifiedKey::new(minted.chain.clone(), key);
    Arc::new(SingleCertAndKey::from(certified))
}

fn stranger_dials(minted: Option<&Minted>, alpn: &[&[u8]]) -> TlsConnector {
    let config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous));
    let mut config = match minted {
        Some(minted) => config.with_client_cert_resolver(certified(minted)),
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

fn stranger_serves(minted: &Minted) -> TlsAcceptor {
    let config = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(certified(minted));
    TlsAcceptor::from(Arc::new(config))
}

/// What our acceptor says to a stranger, and what the stranger reads then.
async fn accept_stranger(
    acceptor: &Acceptor,
    stranger: TlsConnector,
) -> (Served, io::Result<usize>) {
    let (near, far) = duplex(64 * 1024);
    tokio::join!(acceptor.accept(near), async {
        let mut stream = stranger.connect(nobody(), far).await?;
        stream.read(&mut [0]).await
    })
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let (home, abroad) = (Ca::new("example.org"), Ca::new("other.test"));
    let served = live(home.material("/ledger", &[&abroad]));
    let dialling = live(abroad.material("/shop", &[&home]));
    let (served, dialled) = handshake(&acceptor(&served), &connector(&dialling, LEDGER)).await;
    let (mut served, mut dialled) = (served.unwrap(), dialled.unwrap());

    assert_eq!(served.peer.id().as_str(), "spiffe://other.test/shop");
    assert_eq!(dialled.peer.id().as_str(), LEDGER);
    let ours = dialled.stream.agreed();
    let chain = ours.peer_certificates().unwrap();
    assert_eq!(dialled.peer.chain(), chain);
    assert_eq!(
        dialled.peer.leaf(),
        &Arc::new(svid::parse(&chain[0]).unwrap())
    );
    assert_eq!(dialled.peer.not_after(), dialled.peer.leaf().not_after);
    assert_eq!(dialled.peer.lifetime(), HOUR / 2 + Duration::from_secs(60));
    assert!(dialled.peer.valid_at(SystemTime::now()));
    assert!(!dialled.peer.valid_at(dialled.peer.not_after()));
    assert!(!dialled.peer.valid_at(dialled.peer.leaf().not_before - HOUR));
    assert_eq!(served.endpoint.value.id().as_str(), LEDGER);
    assert_eq!(
        (served.agreed, dialled.agreed),
        (Agreed::Http2, Agreed::Http2)
    );
    let group = ours.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);

    dialled.stream.write_all(b"hello").await.unwrap();
    dialled.stream.flush().await.unwrap();
    let mut read = [0; 5];
    served.stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"hello");
}

#[test]
fn a_fingerprint_is_sha_256() {
    // FIPS 180-2, appendix B.1.
    let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    let hex: String = sha256(b"abc")
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hex, expected);
}

/// Certificates of the trust domains example.org (ours), other.test (federated) and strange.test.
struct World {
    ours: Ca,
    federated: Ca,
    ended: Ca,
    stranger: Ca,
    namesake: Ca,
}

impl World {
    fn new() -> Self {
        Self {
            ours: Ca::new("example.org"),
            federated: Ca::new("other.test"),
            ended: Ca::with("ended.test", |params| {
                params.not_after = (SystemTime::now() - Duration::from_secs(5)).into();
            }),
            stranger: Ca::new("strange.test"),
            namesake: Ca::new("example.org"),
        }
    }

    fn live(&self) -> Arc<Live<Endpoint>> {
        live(self.ours.material("/us", &[&self.federated, &self.ended]))
    }

    fn ours(&self, change: impl FnOnce(&mut CertificateParams)) -> Minted {
        let mut params = leaf(LEDGER);
        change(&mut params);
        self.ours.mint(&params)
    }
}

type Mint = fn(&World) -> Minted;

/// Certificates that are refused, whichever side presents them.
const REFUSED: [(&str, Mint, Reason); 17] = [
    (
        "a trust domain we have no bundle of",
        |world| world.stranger.mint(&leaf("spiffe://strange.test/ledger")),
        Reason::UnknownTrustDomain,
    ),
    (
        "our trust domain in the mouth of a federated CA",
        |world| world.federated.mint(&leaf(LEDGER)),
        Reason::UnknownCa,
    ),
    (
        "a federated trust domain in the mouth of our CA",
        |world| world.ours.mint(&leaf("spiffe://other.test/ledger")),
        Reason::UnknownCa,
    ),
    (
        "a CA with the name of ours and another key",
        |world| world.namesake.mint(&leaf(LEDGER)),
        Reason::UnknownCa,
    ),
    (
        "a root that has ended",
        |world| world.ended.mint(&leaf("spiffe://ended.test/ledger")),
        Reason::UnknownCa,
    ),
    (
        "ended",
        |world| {
            let end = SystemTime::now() - Duration::from_secs(5);
            world.ours(|params| params.not_after = end.into())
        },
        Reason::Expired,
    ),
    (
        "an intermediate that has ended",
        |world| {
            let end = SystemTime::now() - Duration::from_secs(5);
            let between = world
                .ours
                .intermediate(|params| params.not_after = end.into());
            between.mint(&leaf(LEDGER))
        },
        Reason::Expired,
    ),
    (
        "not begun",
        |world| {
            let start = SystemTime::now() + Duration::from_secs(60);
            world.ours(|params| params.not_before = start.into())
        },
        Reason::NotYetValid,
    ),
    (
        "two URIs",
        |world| world.ours(|params| params.subject_alt_names.push(uri(LEDGER))),
        Reason::NotAnSvid,
    ),
    (
        "no path",
        |world| world.ours(|params| params.subject_alt_names = vec![uri("spiffe://example.org")]),
        Reason::NotAnSvid,
    ),
    (
        "no URI",
        |world| world.ours(|params| params.subject_alt_names.clear()),
        Reason::NotAnSvid,
    ),
    (
        "a CA as leaf",
        |world| {
            world.ours(|params| params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained))
        },
        Reason::NotAnSvid,
    ),
    (
        "a key that may sign certificates",
        |world| world.ours(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        Reason::NotAnSvid,
    ),
    (
        "a key that may not sign",
        |world| world.ours(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
        Reason::NotAnSvid,
    ),
    (
        "made for signing code",
        |world| {
            let usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
            world.ours(|params| params.extended_key_usages = usages)
        },
        Reason::BadChain,
    ),
    (
        "a critical extension that nobody knows",
        |world| {
            let unknown = extension(99, true, &[0x05, 0x00]);
            world.ours(|params| params.custom_extensions = vec![unknown])
        },
        Reason::BadChain,
    ),
    (
        "made to live too long",
        |world| {
            let start = SystemTime::now() - DEFAULT_MAX_PEER_LIFETIME;
            world.ours(|params| params.not_before = start.into())
        },
        Reason::LifetimeTooLong,
    ),
];

#[tokio::test]
async fn a_client_without_a_good_svid_is_refused_and_told_so() {
    let world = World::new();
    let acceptor = acceptor(&world.live());
    for (what, mint, reason) in REFUSED {
        let stranger = stranger_dials(Some(&mint(&world)), &[b"h2"]);
        let (served, read) = accept_stranger(&acceptor, stranger).await;
        assert_eq!(failure(served).reason(), reason, "{what}");
        let alert = HandshakeError::from(read.unwrap_err());
        assert!(
            matches!(alert, HandshakeError::RefusedByPeer(_)),
            "{what}: {alert:?}"
        );
    }
}

#[tokio::test]
async fn a_server_without_a_good_svid_is_refused_and_told_so() {
    let world = World::new();
    // Anybody is expected, so that only the certificate can be the reason.
    let anybody = ["example.org", "other.test", "ended.test", "strange.test"];
    let anybody = anybody.map(|domain| format!("spiffe://{domain}/*").parse().unwrap());
    let expected = Arc::new(Expected::any_of(anybody));
    let live = world.live();
    let connector = Connector::new(live, expected, Offer::Auto, PATIENCE, metrics());
    for (what, mint, reason) in REFUSED {
        let (near, far) = duplex(64 * 1024);
        let stranger = stranger_serves(&mint(&world));
        let (served, dialled) = tokio::join!(stranger.accept(near), connector.connect(far));
        assert_eq!(failure(dialled).reason(), reason, "{what}");
        let alert = HandshakeError::from(served.map(drop).unwrap_err());
        assert!(
            matches!(alert, HandshakeError::RefusedByPeer(_)),
            "{what}: {alert:?}"
        );
    }
}

#[tokio::test]
async fn the_alert_names_the_kind_of_refusal() {
    let world = World::new();
    let acceptor = acceptor(&world.live());
    let cases: [(Mint, AlertDescription); 3] = [
        (REFUSED[5].1, AlertDescription::CertificateExpired),
        (REFUSED[3].1, AlertDescription::UnknownCA),
        (REFUSED[8].1, AlertDescription::CertificateUnknown),
    ];
    for (mint, expected) in cases {
        let stranger = stranger_dials(Some(&mint(&world)), &[]);
        let (_, read) = accept_stranger(&acceptor, stranger).await;
        match HandshakeError::from(read.unwrap_err()) {
            HandshakeError::RefusedByPeer(alert) => assert_eq!(alert, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_rule_that_a_certificate_breaks_is_kept_as_the_source() {
    let world = World::new();
    let minted = world.ours(|params| params.subject_alt_names.push(uri(LEDGER)));
    let stranger = stranger_dials(Some(&minted), &[]);
    let (served, _) = accept_stranger(&acceptor(&world.live()), stranger).await;
    assert!(matches!(
        failure(served),
        HandshakeError::Refused(VerifyError::Svid(SvidError::ManyUris))
    ));
}

#[tokio::test]
async fn a_certificate_for_servers_makes_no_client() {
    let world = World::new();
    let usages = [
        (
            ExtendedKeyUsagePurpose::ServerAuth,
            Err("bad_chain"),
            Ok(()),
        ),
        (
            ExtendedKeyUsagePurpose::ClientAuth,
            Ok(()),
            Err("bad_chain"),
        ),
    ];
    for (usage, as_client, as_server) in usages {
        let minted = world.ours(|params| params.extended_key_usages = vec![usage]);
        let acceptor = acceptor(&world.live());
        let (near, far) = duplex(64 * 1024);
        let stranger = stranger_dials(Some(&minted), &[]);
        let (served, _) = tokio::join!(acceptor.accept(near), stranger.connect(nobody(), far));
        let served = served.map(drop).map_err(|error| error.label());
        assert_eq!(served, as_client);

        let connector = connector(&world.live(), LEDGER);
        let (near, far) = duplex(64 * 1024);
        let stranger = stranger_serves(&minted);
        let (_, dialled) = tokio::join!(stranger.accept(near), connector.connect(far));
        let dialled = dialled.map(drop).map_err(|error| error.label());
        assert_eq!(dialled, as_server);
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let acceptor = acceptor(&World::new().live());
    let (served, read) = accept_stranger(&acceptor, stranger_dials(None, &[b"h2"])).await;
    assert_eq!(failure(served).label(), "no_certificate");
    assert!(read.is_err());
}

#[tokio::test]
async fn another_server_than_expected_is_refused_before_a_byte_is_sent() {
    let world = World::new();
    let acceptor = acceptor(&world.live());
    let connector = connector(&world.live(), LEDGER);
    let (served, dialled) = handshake(&acceptor, &connector).await;
    let error = failure(dialled);
    assert_eq!(error.label(), "unexpected_peer");
    let HandshakeError::Refused(why) = error else {
        panic!("{error:?}");
    };
    let text = "spiffe://example.org/us answered, but spiffe://example.org/ledger was expected";
    assert_eq!(why.to_string(), text);
    assert_eq!(failure(served).label(), "refused_by_peer");
}

/// A ClientHello as TLS 1.2 wrote it: no supported_versions.
fn hello_of_tls12() -> Vec<u8> {
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0x00, 0x02, 0xc0, 0x2b, 0x01, 0x00]);
    let extensions = [
        &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x1d][..],
        &[0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03],
        &[0x00, 0x17, 0x00, 0x00],
    ]
    .concat();
    body.extend([0x00, u8::try_from(extensions.len()).unwrap()]);
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let mut hello = vec![0x16, 0x03, 0x01, 0x00, length + 4, 0x01, 0x00, 0x00, length];
    hello.extend(body);
    hello
}

#[tokio::test]
async fn first_bytes_of_another_kind_are_named() {
    let acceptor = acceptor(&World::new().live());
    let cases: [(&str, Vec<u8>, &str); 3] = [
        ("TLS 1.2", hello_of_tls12(), "no_shared_protocol"),
        (
            "HTTP",
            b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".into(),
            "not_tls",
        ),
        ("nothing", Vec::new(), "io"),
    ];
    for (what, bytes, label) in cases {
        let (near, mut far) = duplex(64 * 1024);
        far.write_all(&bytes).await.unwrap();
        far.shutdown().await.unwrap();
        let served = acceptor.accept(near).await;
        assert_eq!(failure(served).label(), label, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up() {
    let world = World::new();
    let (near, _far) = duplex(64 * 1024);
    let acceptor = acceptor(&world.live());
    assert_eq!(failure(acceptor.accept(near).await).label(), "timeout");
    let (near, _far) = duplex(64 * 1024);
    let connector = connector(&world.live(), LEDGER);
    assert_eq!(failure(connector.connect(near).await).label(), "timeout");
}

#[tokio::test]
async fn without_an_identity_in_force_there_is_no_handshake() {
    let world = World::new();
    let end = SystemTime::now() - Duration::from_secs(5);
    let ended = world.ours(|params| params.not_after = end.into());
    let ended = ended.material([world.ours.bundle()].into_iter().collect());
    let withdrawn = world.live();
    withdrawn.withdraw();
    for (live, label) in [
        (Arc::default(), "own_identity_missing"),
        (withdrawn, "own_identity_missing"),
        (live(ended.unwrap()), "own_identity_expired"),
    ] {
        let (served, dialled) = handshake(&acceptor(&live), &connector(&live, LEDGER)).await;
        assert_eq!(failure(served).label(), label);
        assert_eq!(failure(dialled).label(), label);
    }
}

#[tokio::test]
async fn alpn_agrees_on_the_first_common_protocol_or_fails() {
    let ca = Ca::new("example.org");
    let live = live(ca.material("/ledger", &[]));
    for (serves, dials, expected) in [
        (Offer::Auto, Offer::Http, Ok(Agreed::Http2)),
        (Offer::Auto, Offer::Http1, Ok(Agreed::Http1)),
        (Offer::Auto, Offer::Opaque, Ok(Agreed::Opaque)),
        (Offer::Auto, Offer::Tunnel, Ok(Agreed::Tunnel)),
        (Offer::Tunnel, Offer::Tunnel, Ok(Agreed::Tunnel)),
        // Either side may be older.
        (Offer::Tunnel, Offer::Opaque, Ok(Agreed::Opaque)),
        (Offer::Opaque, Offer::Tunnel, Ok(Agreed::Opaque)),
        (Offer::Http, Offer::Tunnel, Err("no_shared_alpn")),
        (Offer::Http1, Offer::Http, Ok(Agreed::Http1)),
        (Offer::Http1, Offer::Auto, Ok(Agreed::Http1)),
        (Offer::Http, Offer::Opaque, Err("no_shared_alpn")),
        (Offer::Opaque, Offer::Http, Err("no_shared_alpn")),
    ] {
        let acceptor = Acceptor::new(live.clone(), serves, PATIENCE, metrics());
        let connector = connector(&live, LEDGER);
        let (near, far) = duplex(64 * 1024);
        let dialling = connector.connect_offering(far, dials);
        let (served, dialled) = tokio::join!(acceptor.accept(near), dialling);
        let served = served.map(|secured| secured.agreed);
        let dialled = dialled.map(|secured| secured.agreed);
        assert_eq!(served.map_err(|error| error.label()), expected);
        assert_eq!(dialled.map_err(|error| error.label()), expected);
    }
}

#[tokio::test]
async fn a_peer_without_alpn_is_served() {
    let world = World::new();
    let stranger = stranger_dials(Some(&world.ours(|_| {})), &[]);
    let (near, far) = duplex(64 * 1024);
    let acceptor = acceptor(&world.live());
    let (served, dialled) = tokio::join!(acceptor.accept(near), stranger.connect(nobody(), far));
    assert_eq!(served.unwrap().agreed, Agreed::Nothing);
    assert!(dialled.is_ok());
}

#[tokio::test]
async fn no_handshake_is_ever_resumed() {
    let live = live(Ca::new("example.org").material("/ledger", &[]));
    let (acceptor, connector) = (acceptor(&live), connector(&live, LEDGER));
    for _ in 0..3 {
        let (served, dialled) = handshake(&acceptor, &connector).await;
        let (mut served, mut dialled) = (served.unwrap().stream, dialled.unwrap().stream);
        // A ticket would arrive with the first bytes.
        served.write_all(b"x").await.unwrap();
        served.flush().await.unwrap();
        dialled.read_exact(&mut [0]).await.unwrap();
        let kinds = (
            served.agreed().handshake_kind(),
            dialled.agreed().handshake_kind(),
        );
        assert_eq!(
            kinds,
            (Some(HandshakeKind::Full), Some(HandshakeKind::Full))
        );
    }
}

#[tokio::test]
async fn a_client_that_would_resume_gets_no_ticket() {
    let world = World::new();
    let acceptor = acceptor(&world.live());
    let stranger = stranger_dials(Some(&world.ours(|_| {})), &[]);
    for _ in 0..2 {
        let (near, far) = duplex(64 * 1024);
        let dialling = stranger.connect(nobody(), far);
        let (served, dialled) = tokio::join!(acceptor.accept(near), dialling);
        let (mut served, mut dialled) = (served.unwrap().stream, dialled.unwrap());
        served.write_all(b"x").await.unwrap();
        served.flush().await.unwrap();
        dialled.read_exact(&mut [0]).await.unwrap();
        let client = dialled.get_ref().1;
        assert_eq!(client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(client.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn the_next_handshake_is_made_with_the_newest_identity() {
    let ca = Ca::new("example.org");
    let served = live(ca.material("/ledger", &[]));
    let dialling = live(ca.material("/before", &[]));
    let (acceptor, connector) = (acceptor(&served), connector(&dialling, LEDGER));
    let (first, kept) = handshake(&acceptor, &connector).await;
    assert_eq!(first.unwrap().peer.id().path(), "/before");

    dialling.publish(endpoint(ca.material("/after", &[])));
    served.publish(endpoint(ca.material("/ledger", &[])));
    let (second, dialled) = handshake(&acceptor, &connector).await;
    let (second, dialled, kept) = (second.unwrap(), dialled.unwrap(), kept.unwrap());
    assert_eq!(second.peer.id().path(), "/after");
    assert_eq!(
        (kept.endpoint.generation, dialled.endpoint.generation),
        (1, 2)
    );
    assert_ne!(kept.peer.fingerprint(), dialled.peer.fingerprint());

    // A CA that leaves the bundle is trusted no more from the next handshake on.
    dialling.publish(endpoint(Ca::new("example.org").material("/after", &[])));
    let (_, refused) = handshake(&acceptor, &connector).await;
    assert_eq!(failure(refused).label(), "unknown_ca");
}

#[tokio::test]
async fn the_proof_of_an_open_connection_is_asked_again() {
    let ca = Ca::new("example.org");
    let soon = SystemTime::now() + Duration::from_secs(600);
    let between = ca.intermediate(|params| params.not_after = soon.into());
    let served = between
        .mint(&leaf(LEDGER))
        .material([ca.bundle()].into_iter().collect());
    let served = live(served.unwrap());
    let dialling = live(ca.material("/shop", &[]));
    let (served, dialled) = handshake(&acceptor(&served), &connector(&dialling, LEDGER)).await;
    let (peer, client) = (dialled.unwrap().peer, served.unwrap().peer);

    // The intermediate ends before the leaf, and what it vouched for ends with it.
    assert!(peer.not_after() < peer.leaf().not_after);
    let bundles: Bundles = [ca.bundle()].into_iter().collect();
    let other: Bundles = [Ca::new("example.org").bundle()].into_iter().collect();
    let now = SystemTime::now();
    let domain = ca.domain.clone();
    for (bundles, most, now, expected) in [
        (&bundles, HOUR, now, Ok(())),
        (&bundles, HOUR, peer.not_after(), Err(VerifyError::Expired)),
        (
            &bundles,
            HOUR,
            peer.leaf().not_after,
            Err(VerifyError::Expired),
        ),
        (
            &bundles,
            HOUR,
            now - HOUR / 2,
            Err(VerifyError::NotYetValid),
        ),
        (&other, HOUR, now, Err(VerifyError::UnknownCa)),
        (
            &Bundles::default(),
            HOUR,
            now,
            Err(VerifyError::UnknownTrustDomain(domain)),
        ),
    ] {
        assert_eq!(verify::still_holds(&peer, bundles, most, now), expected);
    }
    assert!(matches!(
        verify::still_holds(&peer, &bundles, HOUR / 4, now),
        Err(VerifyError::LifetimeTooLong { .. })
    ));
    // Not even in the second of its end, which webpki still accepts.
    let endpoint = dialling.get().unwrap();
    let end = client.not_after();
    for (now, expected) in [
        (now, Ok(())),
        (end - Duration::from_secs(1), Ok(())),
        (end, Err(VerifyError::Expired)),
    ] {
        assert_eq!(endpoint.value.still_holds(&client, now), expected);
    }
}

#[tokio::test]
async fn what_its_issuer_revoked_is_refused_and_holds_no_longer() {
    let ca = Ca::new("example.org");
    let between = ca.intermediate(|_| {});
    let minted = between.mint(&leaf(LEDGER));
    let own: Bundles = [ca.bundle()].into_iter().collect();
    let served = live(minted.material(own.clone()).unwrap());
    let revoking = |lists: &[Vec<u8>]| {
        let dir = tempfile::tempdir().unwrap();
        for (index, list) in lists.iter().enumerate() {
            std::fs::write(dir.path().join(format!("{index}.crl")), list).unwrap();
        }
        own.with_crls(Crls::open(dir.path()).unwrap())
    };
    let upper = Minted {
        chain: vec![between.certificate().clone()],
        key: Vec::new(),
    };
    let dialling = live(ca.material("/shop", &[]));
    let connector = connector(&dialling, LEDGER);
    let (_, dialled) = handshake(&acceptor(&served), &connector).await;
    let peer = dialled.unwrap().peer;
    for (what, lists, good) in [
        ("nothing is listed", vec![ca.crl(&[], HOUR * 2)], true),
        (
            "the root speaks of what it did not issue",
            vec![ca.crl(&[&minted], HOUR * 2)],
            true,
        ),
        ("the leaf", vec![between.crl(&[&minted], HOUR * 2)], false),
        ("the intermediate", vec![ca.crl(&[&upper], HOUR * 2)], false),
        (
            "the intermediate, by the second list",
            vec![ca.crl(&[], HOUR * 2), ca.crl(&[&upper], HOUR * 2)],
            false,
        ),
    ] {
        let bundles = revoking(&lists);
        let now = SystemTime::now();
        let expected = if good {
            Ok(())
        } else {
            Err(VerifyError::Revoked)
        };
        assert_eq!(
            verify::still_holds(&peer, &bundles, HOUR, now),
            expected,
            "{what}"
        );
        let material = ca.mint(&leaf("spiffe://example.org/shop"));
        dialling.publish(endpoint(material.material(bundles).unwrap()));
        let (_, dialled) = handshake(&acceptor(&served), &connector).await;
        match good {
            true => assert!(dialled.is_ok(), "{what}"),
            false => assert_eq!(failure(dialled).label(), "revoked", "{what}"),
        }
    }
}

#[tokio::test]
async fn a_chain_is_verified_once_however_many_connections_stand_on_it() {
    let soon = SystemTime::now() + Duration::from_secs(600);
    let ca = Ca::with("example.org", |params| params.not_after = soon.into());
    let served = live(ca.material("/ledger", &[]));
    let dialling = live(ca.material("/shop", &[]));
    let (acceptor, connector) = (acceptor(&served), connector(&dialling, LEDGER));
    let one = handshake(&acceptor, &connector).await.0.unwrap().peer;
    let two = handshake(&acceptor, &connector).await.0.unwrap().peer;
    dialling.publish(endpoint(ca.material("/shop", &[])));
    let other = handshake(&acceptor, &connector).await.0.unwrap().peer;

    // What has verified them in the handshake need not do so again.
    let first = served.get().unwrap();
    let now = SystemTime::now();
    assert_eq!(still_holds(first.clone(), one.clone(), now).await, Ok(()));
    assert_eq!(first.value.verdicts.count(), 0);

    served.publish(endpoint(ca.material("/ledger", &[])));
    let endpoint = served.get().unwrap();
    let now = SystemTime::now();
    for (peer, verified) in [(&one, 1), (&two, 1), (&other, 2), (&one, 2)] {
        assert_eq!(
            still_holds(endpoint.clone(), peer.clone(), now).await,
            Ok(())
        );
        assert_eq!(endpoint.value.verdicts.count(), verified);
    }
    // What was found says nothing about the time after a root's end.
    let material = endpoint.value.material();
    let end = material.bundles().get(&ca.domain).unwrap().next_end(now);
    let gone = still_holds(endpoint.clone(), one, end.unwrap()).await;
    assert_eq!(gone, Err(VerifyError::UnknownCa));
}

#[tokio::test]
async fn who_was_proved_before_is_asked_for_all_that_may_have_changed() {
    let (ca, other) = (Ca::new("example.org"), Ca::new("example.org"));
    let between = ca.intermediate(|_| {});
    let peer = between.mint(&leaf(LEDGER));
    let upper = Minted {
        chain: vec![between.certificate().clone()],
        key: Vec::new(),
    };
    let own: Bundles = [ca.bundle()].into_iter().collect();
    let revoking = |list: Vec<u8>| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), list).unwrap();
        own.with_crls(Crls::open(file.path()).unwrap())
    };
    let theirs = live(peer.material(own.clone()).unwrap());
    let ours = live(ca.material("/shop", &[]));
    let both_ways = async || {
        let (accepting, dialling) = (acceptor(&ours), connector(&ours, LEDGER));
        let (served, _) =
            handshake(&accepting, &connector(&theirs, "spiffe://example.org/*")).await;
        let (_, dialled) = handshake(&acceptor(&theirs), &dialling).await;
        (served, dialled)
    };
    let warm = async || {
        ours.publish(endpoint(ca.material("/shop", &[])));
        for _ in 0..2 {
            let (served, dialled) = both_ways().await;
            assert!(served.is_ok() && dialled.is_ok());
        }
        let before = ours.get().unwrap();
        let (known, _) = before.value.rules.proven.size();
        assert_eq!(known, 2, "once as a client, once as a server");
    };
    for (what, bundles, expected) in [
        (
            "a root took the place of theirs",
            [other.bundle()].into_iter().collect(),
            "unknown_ca",
        ),
        (
            "the leaf was revoked",
            revoking(between.crl(&[&peer], HOUR * 2)),
            "revoked",
        ),
        (
            "the intermediate was revoked",
            revoking(ca.crl(&[&upper], HOUR * 2)),
            "revoked",
        ),
    ] {
        warm().await;
        let material = ca.mint(&leaf("spiffe://example.org/shop"));
        ours.publish(endpoint(material.material(bundles).unwrap()));
        let (served, dialled) = both_ways().await;
        assert_eq!(failure(served).label(), expected, "{what}");
        assert_eq!(failure(dialled).label(), expected, "{what}");
    }

    warm().await;
    // Good for us, but not who was expected.
    let dialling = connector(&ours, "spiffe://example.org/other");
    let (_, dialled) = handshake(&acceptor(&theirs), &dialling).await;
    assert_eq!(failure(dialled).label(), "unexpected_peer");
    // Known certificates in the hands of somebody without their key.
    let thief = Minted {
        chain: peer.chain.clone(),
        key: between.mint(&leaf(LEDGER)).key,
    };
    let (served, _) = accept_stranger(&acceptor(&ours), stranger_dials(Some(&thief), &[])).await;
    assert_eq!(failure(served).label(), "protocol");
    let (near, far) = duplex(64 * 1024);
    let (thief, ours) = (stranger_serves(&thief), connector(&ours, LEDGER));
    let (_, dialled) = tokio::join!(thief.accept(near), ours.connect(far));
    assert_eq!(failure(dialled).label(), "protocol");
}

#[test]
fn who_may_answer_is_written_out() {
    for (text, matching, others) in [
        (
            LEDGER,
            &[LEDGER][..],
            &[
                "spiffe://example.org/ledger/a",
                "spiffe://other.test/ledger",
            ][..],
        ),
        (
            "spiffe://example.org/ns/*/ledger",
            &[
                "spiffe://example.org/ns/bank/ledger",
                "spiffe://example.org/ns/b/ledger",
            ],
            &[
                "spiffe://example.org/ns/ledger",
                "spiffe://example.org/ns/a/b/ledger",
                "spiffe://example.org/ns/bank/ledger/x",
                "spiffe://example.org/ns/bank/other",
                "spiffe://other.test/ns/bank/ledger",
            ],
        ),
        (
            "spiffe://example.org/*",
            &["spiffe://example.org/a"],
            &["spiffe://example.org/a/b"],
        ),
    ] {
        let expected: Expected = text.parse().unwrap();
        assert_eq!(expected.to_string(), text);
        for found in matching {
            assert!(expected.matches(&id(found)), "{text} {found}");
        }
        for found in others {
            assert!(!expected.matches(&id(found)), "{text} {found}");
        }
    }
    let both =
        Expected::any_of([LEDGER, "spiffe://other.test/*"].map(|text| text.parse().unwrap()));
    assert!(both.matches(&id(LEDGER)) && both.matches(&id("spiffe://other.test/a")));
    assert_eq!(
        both.to_string(),
        "spiffe://example.org/ledger or spiffe://other.test/*"
    );
    assert!(!Expected::any_of([]).matches(&id(LEDGER)));
}

#[test]
fn a_pattern_that_says_too_much_is_refused() {
    for (text, expected) in [
        ("spiffe://example.org/led*", ExpectedError::PartOfSegment),
        ("spiffe://example.org/**", ExpectedError::PartOfSegment),
        (
            "*",
            ExpectedError::Id(IdError::Standard(spiffe::SpiffeIdError::WrongScheme)),
        ),
        ("spiffe://*/ledger", ExpectedError::TrustDomain),
        (
            "spiffe://*.example.org/ledger",
            ExpectedError::PartOfSegment,
        ),
        ("spiffe://example.org", ExpectedError::Id(IdError::NoPath)),
    ] {
        assert_eq!(text.parse::<Expected>(), Err(expected), "{text}");
    }
}

#[tokio::test]
async fn handshakes_are_counted_by_direction_and_result() {
    let world = World::new();
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let live = world.live();
    let acceptor = Acceptor::new(live.clone(), Offer::Auto, PATIENCE, metrics.clone());
    let us = "spiffe://example.org/us".parse().unwrap();
    let connector = Connector::new(live.clone(), Arc::new(us), Offer::Auto, PATIENCE, metrics);
    let _ = handshake(&acceptor, &connector).await;
    let (served, _) = accept_stranger(&acceptor, stranger_dials(None, &[])).await;
    assert!(served.is_err());
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    for line in [
        r#"doorward_handshakes_total{direction="inbound",result="completed"} 1"#,
        r#"doorward_handshakes_total{direction="inbound",result="no_certificate"} 1"#,
        r#"doorward_handshakes_total{direction="outbound",result="completed"} 1"#,
        r#"doorward_handshakes_total{direction="outbound",result="io"} 0"#,
        r#"doorward_handshake_duration_seconds_count{direction="inbound"} 1"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
}

#[test]
fn reasons_index_their_counters() {
    for (index, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index);
    }
    for (index, offer) in Offer::ALL.into_iter().enumerate() {
        assert_eq!(offer as usize, index);
    }
}
