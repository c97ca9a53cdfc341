//! Two trust domains that federate: what each vouches for counts at the other for as long as it says so.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use rcgen::SanType;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::mesh::*;

const PARTNER: &str = "partner.test";

/// Bundle endpoints are asked at least this often when they ask for it.
const REFRESH: Duration = Duration::from_secs(10);

/// A bundle endpoint of the web, whose document the test writes; none is an error of the server.
struct Published {
    address: SocketAddr,
    document: Arc<Mutex<Option<String>>>,
}

impl Published {
    /// Proves itself with a certificate that `ca` signed.
    async fn start(ca: &Ca) -> Self {
        let mut params = leaf("spiffe://web.test/a");
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let minted = ca.mint(&params);
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let tls = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(minted.chain.clone(), minted.key())
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let published = Self {
            address: listener.local_addr().unwrap(),
            document: Arc::default(),
        };
        let document = published.document.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                let document = document.lock().unwrap().clone();
                let status = if document.is_some() { 200 } else { 500 };
                let body = document.unwrap_or_default();
                let head = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all((head + &body).as_bytes()).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        published
    }

    fn publish(&self, sequence: u64, roots: &[&Ca]) {
        let keys: Vec<Value> = roots
            .iter()
            .map(|ca| {
                let der = base64::engine::general_purpose::STANDARD.encode(ca.certificate());
                json!({ "use": "x509-svid", "kty": "EC", "x5c": [der] })
            })
            .collect();
        let document = json!({
            "keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": REFRESH.as_secs(),
        });
        *self.document.lock().unwrap() = Some(document.to_string());
    }
}

/// A port that nobody listens on, a moment ago at least.
fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn a_request_passes_between_trust_domains_until_one_revokes_all_its_keys() {
    let (here, there) = (Dirs::new(), Dirs::new());
    let mut ours = Issuer::new(&here);
    let endpoint = free_address();
    ours.federate(endpoint);
    ours.add(&here, "b", "1h", None);
    ours.start().await;
    let mut theirs = Issuer::of(&there, PARTNER);
    theirs.add(&there, "a", "1h", None);
    theirs.start().await;

    // Ours learns their keys from a server of the web, theirs learns ours from the issuer itself.
    let web = Ca::stranger("web.test");
    let published = Published::start(&web).await;
    let app = App::start().await;
    let policy = PolicyDir::new(here.file("policy"));
    let partner = governed(
        "partner",
        &format!(
            "permit (principal == Workload::\"spiffe://{PARTNER}/a\", action, resource == Service::\"{SERVICE}\");"
        ),
    );
    policy.write("policy.cedar", &(partner + &grant("all-for-c", "c")));
    let ca = here.file("web.pem");
    std::fs::write(&ca, web.pem()).unwrap();
    let mut b = Plan::new("b")
        .inbound(app.address, "")
        .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
        .with(format!(
            "federation: [{{ trust_domain: {PARTNER}, url: 'https://{}/', profile: https_web, ca: '{}' }}]",
            published.address,
            ca.display()
        ))
        .start(&here, &ours)
        .await;
    let bundle = there.file("ours.pem");
    std::fs::write(&bundle, ours.ca().pem()).unwrap();
    let mut a = Plan::new("a")
        .outbound(b.inbound[0], &id("b"), "")
        .with(format!(
            "federation: [{{ trust_domain: {DOMAIN}, url: 'https://{endpoint}/', profile: https_spiffe, endpoint_spiffe_id: 'spiffe://{DOMAIN}/doorward/issuer', bundle: '{}' }}]",
            bundle.display()
        ))
        .start(&there, &theirs)
        .await;
    a.ready().await;
    b.ready().await;

    // While nobody has said what the keys of the partner are, it is a stranger.
    let domain = ("trust_domain", PARTNER);
    eventually("the endpoint was asked in vain", async || {
        let failures = b.metrics().await;
        (failures.sum("doorward_federation_failures_total", &[domain]) > 0.0).then_some(())
    })
    .await;
    assert_ne!(get(a.outbound[0], "/").await.status, 200);
    assert!(app.seen().is_empty());

    published.publish(7, &[&theirs.ca()]);
    let mut client = Client::connect(a.outbound[0], Http::One).await;
    eventually("a request passes", async || {
        (client.get("/").await.unwrap().status == 200).then_some(())
    })
    .await;
    let updated = [("trust_domain", DOMAIN)];
    let metrics = a.metrics().await;
    assert!(metrics.sum("doorward_federation_updated_timestamp_seconds", &updated) > 0.0);

    // Somebody of our own trust domain, whom the rest is no business of.
    let svid = ours.ca().svid("c");
    let mut own = Tls::new(Some(&svid), &["http/1.1"])
        .client(b.inbound[0])
        .await;
    assert_eq!(own.get("/").await.unwrap().status, 200);

    published.publish(8, &[]);
    let ended = [("direction", "inbound"), ("outcome", "trust_withdrawn")];
    within(REFRESH * 2, "the partner's session ends", async || {
        let metrics = b.metrics().await;
        (metrics.sum("doorward_sessions_ended_total", &ended) > 0.0).then_some(())
    })
    .await;
    let seen = app.seen().len();
    assert_ne!(get(a.outbound[0], "/").await.status, 200);
    assert_eq!(app.seen().len(), seen);
    assert_eq!(own.get("/").await.unwrap().status, 200);
    let alone = b.metrics().await;
    assert_eq!(alone.sum("doorward_sessions_ended_total", &ended), 1.0);

    published.publish(9, &[&theirs.ca()]);
    within(REFRESH * 2, "requests pass again", async || {
        (client.get("/").await.unwrap().status == 200).then_some(())
    })
    .await;
}
