//! Whoever cannot prove a trusted identity reaches nothing: refused, counted by reason, recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::mesh::*;

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: app.example\r\n\r\n";

/// What a stranger presents.
enum Presents {
    /// TLS 1.3 with this certificate.
    Certificate(Minted),
    /// TLS 1.3 without one.
    Nothing,
    /// These bytes in place of TLS 1.3.
    Bytes(Vec<u8>),
}

struct Case {
    name: &'static str,
    presents: Presents,
    /// The word in metrics and records.
    reason: &'static str,
}

fn cases(ca: &Ca) -> Vec<Case> {
    let changed = |change: fn(&mut CertificateParams)| {
        let mut params = leaf(&id("a"));
        change(&mut params);
        Presents::Certificate(ca.mint(&params))
    };
    let of = |id: &str| Presents::Certificate(ca.mint(&leaf(id)));
    let stranger = Ca::stranger(DOMAIN).svid("a");
    let list = [
        ("no certificate", Presents::Nothing, "no_certificate"),
        (
            "another trust domain",
            of("spiffe://other.example/a"),
            "unknown_trust_domain",
        ),
        (
            "a CA that nobody trusts",
            Presents::Certificate(stranger),
            "unknown_ca",
        ),
        (
            "expired",
            changed(|params| {
                params.not_before = (SystemTime::now() - Duration::from_secs(600)).into();
                params.not_after = (SystemTime::now() - Duration::from_secs(5)).into();
            }),
            "expired",
        ),
        (
            "not yet valid",
            changed(|params| {
                params.not_before = (SystemTime::now() + Duration::from_secs(600)).into();
            }),
            "not_yet_valid",
        ),
        (
            "two URI names",
            changed(|params| params.subject_alt_names.push(uri(&id("b")))),
            "not_an_svid",
        ),
        ("no path", of("spiffe://example.org"), "not_an_svid"),
        (
            "no URI name",
            changed(|params| params.subject_alt_names.clear()),
            "not_an_svid",
        ),
        (
            "a CA as leaf",
            changed(|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            "not_an_svid",
        ),
        (
            "a key that may sign certificates",
            changed(|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
            "not_an_svid",
        ),
        (
            "a key that may not sign handshakes",
            changed(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]),
            "not_an_svid",
        ),
        (
            "made to live for ten years",
            changed(|params| {
                params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
                params.not_after = (SystemTime::now() + Duration::from_secs(315_360_000)).into();
            }),
            "lifetime_too_long",
        ),
        (
            "TLS 1.2",
            Presents::Bytes(hello_of_tls12()),
            "no_shared_protocol",
        ),
        ("plaintext HTTP", Presents::Bytes(REQUEST.into()), "not_tls"),
    ];
    list.into_iter()
        .map(|(name, presents, reason)| Case {
            name,
            presents,
            reason,
        })
        .collect()
}

/// A ClientHello as TLS 1.2 wrote it: no supported_versions (RFC 5246 §7.4.1.2).
fn hello_of_tls12() -> Vec<u8> {
    let extensions = [
        &[0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x1d][..],
        &[0x00, 0x0d, 0x00, 0x04, 0x00, 0x02, 0x04, 0x03],
        &[0x00, 0x17, 0x00, 0x00],
    ]
    .concat();
    let mut body = vec![0x03, 0x03];
    body.extend([7; 32]);
    body.extend([0x00, 0x00, 0x02, 0xc0, 0x2b, 0x01, 0x00, 0x00]);
    body.push(u8::try_from(extensions.len()).unwrap());
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let mut hello = vec![0x16, 0x03, 0x01, 0x00, length + 4, 0x01, 0x00, 0x00, length];
    hello.extend(body);
    hello
}

#[tokio::test]
async fn whoever_proves_no_trusted_identity_reaches_nothing_and_is_recorded() {
    let mesh = Mesh::new().await;
    for Case {
        name,
        presents,
        reason,
    } in cases(&mesh.issuer.ca())
    {
        let labels = [("direction", "inbound"), ("result", reason)];
        let family = "doorward_handshakes_total";
        let before = mesh.b.metrics().await.sum(family, &labels);
        let recorded = mesh.b.audit().len();

        let answer = match presents {
            Presents::Certificate(minted) => over_tls(&mesh, Some(&minted)).await,
            Presents::Nothing => over_tls(&mesh, None).await,
            Presents::Bytes(bytes) => {
                let mut stream = TcpStream::connect(mesh.gate()).await.unwrap();
                raw(&mut stream, &bytes).await
            }
        };
        // Who can read an answer without TLS is told why there is no other.
        let expected = if reason == "not_tls" { 426 } else { 0 };
        assert_eq!(status_of(&answer), expected, "{name}: {answer:?}");
        mesh.b.counts(family, &labels, before + 1.0).await;
        let record = eventually(format_args!("{name} is recorded"), async || {
            mesh.b.audit().get(recorded).cloned()
        })
        .await;
        assert_eq!(record["reason"], reason, "{name}: {record}");
        assert_eq!(record["decision"], "deny", "{name}: {record}");
        assert_eq!(record["kind"], "connection", "{name}: {record}");
        assert_eq!(record["direction"], "inbound", "{name}: {record}");
        assert!(record["principal"].is_null(), "{name}: {record}");
        assert!(record["source"].is_string(), "{name}: {record}");
    }
    assert_eq!(mesh.app.connections(), 0);
    // The table shows refusals only if the door opens to the right key.
    assert_eq!(
        status_of(&over_tls(&mesh, Some(&mesh.issuer.ca().svid("a"))).await),
        200
    );
}

async fn over_tls(mesh: &Mesh, identity: Option<&Minted>) -> String {
    match Tls::new(identity, &["http/1.1"]).connect(mesh.gate()).await {
        Ok(mut stream) => raw(&mut stream, REQUEST).await,
        Err(_) => String::new(),
    }
}

#[tokio::test]
async fn a_stranger_cannot_borrow_the_key_of_nobody() {
    // The right certificate, but another key: nothing proves that it is the stranger's own.
    let mesh = Mesh::new().await;
    let ca = mesh.issuer.ca();
    let (shown, held) = (ca.svid("a"), ca.svid("stranger"));
    let tls = Tls::with_foreign_key(&shown, &held, &["http/1.1"]);
    let answer = match tls.connect(mesh.gate()).await {
        Ok(mut stream) => raw(&mut stream, REQUEST).await,
        Err(_) => String::new(),
    };
    assert_eq!(answer, "");
    let failed = [("direction", "inbound"), ("result", "completed")];
    assert_eq!(
        mesh.b
            .metrics()
            .await
            .sum("doorward_handshakes_total", &failed),
        0.0
    );
    mesh.b
        .record("the refusal", |record| record["decision"] == "deny")
        .await;
    assert_eq!(mesh.app.connections(), 0);
}

const ALPN: [&str; 3] = ["h2", "http/1.1", "doorward-tcp"];

/// A server that counts the bytes it is told after the handshake.
struct Impostor {
    address: std::net::SocketAddr,
    handshakes: Arc<AtomicUsize>,
    told: Arc<AtomicUsize>,
}

impl Impostor {
    async fn start(identity: &Minted) -> Self {
        Self::with(Tls::server(identity, &ALPN)).await
    }

    async fn with(acceptor: TlsAcceptor) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let this = Self {
            address: listener.local_addr().unwrap(),
            handshakes: Arc::default(),
            told: Arc::default(),
        };
        let (handshakes, told) = (this.handshakes.clone(), this.told.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let tried = acceptor.accept(stream).await;
                if let Ok(mut stream) = tried {
                    let mut piece = [0; 4096];
                    while let Ok(length @ 1..) = stream.read(&mut piece).await {
                        told.fetch_add(length, Ordering::SeqCst);
                    }
                }
                handshakes.fetch_add(1, Ordering::SeqCst);
            }
        });
        this
    }

    /// Waits until `number` connections have come and gone.
    async fn gone(&self, number: usize) {
        eventually("the connection to the impostor ends", async || {
            (self.handshakes.load(Ordering::SeqCst) >= number).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_that_is_not_the_expected_one_is_told_nothing() {
    let dirs = Dirs::new();
    let mut issuer = Issuer::new(&dirs);
    issuer.add(&dirs, "a", "1h", None);
    issuer.start().await;
    let ca = issuer.ca();
    // Trusted, but somebody else; and the right name from a CA that nobody trusts.
    let other = Impostor::start(&ca.svid("other")).await;
    let forged = Impostor::start(&Ca::stranger(DOMAIN).svid("b")).await;
    let mut a = Plan::new("a")
        .outbound(other.address, &id("b"), "protocol: http")
        .outbound(forged.address, &id("b"), "protocol: http")
        .outbound(other.address, &id("b"), "protocol: tcp")
        .start(&dirs, &issuer)
        .await;
    a.ready().await;

    let cases = [(0, &other, "unexpected_peer"), (1, &forged, "unknown_ca")];
    for (listener, impostor, reason) in cases {
        let answer = get(a.outbound[listener], "/secret").await;
        assert_eq!(answer.status, 502, "{answer:?}");
        assert_eq!(answer.json()["error"], "peer_refused");
        assert_eq!(
            answer.header("proxy-status"),
            "doorward; error=tls_certificate_error"
        );
        impostor.gone(1).await;
        assert_eq!(impostor.told.load(Ordering::SeqCst), 0, "{reason}");
        let labels = [("direction", "outbound"), ("result", reason)];
        let counted = a.metrics().await.sum("doorward_handshakes_total", &labels);
        assert!(counted >= 1.0, "{reason}");
        a.record(reason, |record| {
            record["reason"] == reason && record["outcome"] == "peer_refused"
        })
        .await;
    }

    let seen = other.handshakes.load(Ordering::SeqCst);
    let mut stream = TcpStream::connect(a.outbound[2]).await.unwrap();
    // It may be closed before all is written.
    let _ = stream.write_all(b"secret").await;
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    other.gone(seen + 1).await;
    assert_eq!(other.told.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_server_that_refuses_us_is_named_and_not_asked_again() {
    let dirs = Dirs::new();
    let mut issuer = Issuer::new(&dirs);
    issuer.add(&dirs, "a", "1h", None);
    issuer.start().await;
    let stranger = Ca::stranger("other.example");
    let server = Tls::strict_server(&issuer.ca().svid("b"), &stranger, &ALPN);
    let server = Impostor::with(server).await;
    let mut a = Plan::new("a")
        .outbound(server.address, &id("b"), "protocol: http")
        .start(&dirs, &issuer)
        .await;
    a.ready().await;
    for method in ["GET", "POST"] {
        let tried = server.handshakes.load(Ordering::SeqCst);
        let answer = ask(a.outbound[0], request(method, "/")).await;
        assert_eq!(answer.status, 502, "{method}: {answer:?}");
        assert_eq!(answer.json()["error"], "handshake_failed");
        server.gone(tried + 1).await;
        let tries = server.handshakes.load(Ordering::SeqCst) - tried;
        assert_eq!(tries, 1, "{method}");
        assert_eq!(server.told.load(Ordering::SeqCst), 0, "{method}");
    }
    a.record("the failure", |record| {
        record["outcome"] == "handshake_failed" && record["reason"] == "refused_by_peer"
    })
    .await;
}
