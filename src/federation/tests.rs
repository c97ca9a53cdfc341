use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rcgen::SanType;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::document::Document;
use crate::identity::testing::{Ca, Minted, leaf};

const PARTNER: &str = "partner.example";
const ENDPOINT: &str = "spiffe://partner.example/doorward/issuer";

fn document(roots: &[&Ca], sequence: u64) -> BundleDocument {
    let roots = roots.iter().map(|ca| ca.certificate().clone());
    BundleDocument {
        sequence: Some(sequence),
        refresh_hint: None,
        x509: Bundle::new(roots).unwrap(),
        jwt: Vec::new(),
    }
}

fn metrics() -> Metrics {
    Metrics::register(&Registry::new()).unwrap()
}

/// Answers every request on `127.0.0.1` with `answer`, whatever it asks.
async fn serve(minted: &Minted, answer: impl Into<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = minted.acceptor();
    let answer = answer.into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            // The client may have hung up on a large one.
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    address
}

fn ok(body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")
}

/// A certificate as servers of the web have it.
fn web(ca: &Ca, host: Ipv4Addr) -> Minted {
    let mut params = leaf(ENDPOINT);
    params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(host))];
    ca.mint(&params)
}

/// A relationship with whoever listens at `address`, its file holding the root of `ca`.
fn settings(dir: &TempDir, address: SocketAddr, spiffe: bool, ca: &Ca) -> Settings {
    let file = dir.path().join("roots.pem");
    let root = pem::Pem::new("CERTIFICATE", ca.certificate().to_vec());
    std::fs::write(&file, pem::encode(&root)).unwrap();
    let profile = if spiffe {
        Profile::HttpsSpiffe {
            endpoint: ENDPOINT.parse().unwrap(),
            bundle: file,
        }
    } else {
        Profile::HttpsWeb { ca: file }
    };
    Settings {
        trust_domain: TrustDomain::parse(PARTNER).unwrap(),
        url: format!("https://{address}/").parse().unwrap(),
        profile,
    }
}

const DAY: Duration = Duration::from_secs(86_400);

async fn fetch(settings: &Settings) -> Result<BundleDocument, String> {
    let endpoint = Endpoint::open(settings, DAY).unwrap();
    let fetched = endpoint.fetch().await;
    fetched.map_err(|error| chain(&error))
}

#[tokio::test]
async fn an_endpoint_is_believed_only_when_it_proves_itself_as_its_profile_says() {
    let dir = tempfile::tempdir().unwrap();
    let (ca, stranger) = (Ca::new(PARTNER), Ca::new(PARTNER));
    let here = Ipv4Addr::LOCALHOST;
    let svid = |ca: &Ca, id| ca.mint(&leaf(id));
    for (what, spiffe, minted, why) in [
        ("its SVID", true, svid(&ca, ENDPOINT), None),
        ("a certificate for its host", false, web(&ca, here), None),
        (
            "another workload's SVID",
            true,
            svid(&ca, "spiffe://partner.example/a"),
            Some("was expected"),
        ),
        (
            "the same name, signed by a stranger",
            true,
            svid(&stranger, ENDPOINT),
            Some("no valid root"),
        ),
        (
            "a certificate of the web where an SVID is asked for",
            true,
            web(&ca, here),
            Some("not an X.509-SVID"),
        ),
        (
            "an SVID where a certificate of the web is asked for",
            false,
            svid(&ca, ENDPOINT),
            Some("not valid for name"),
        ),
        (
            "a certificate for another host",
            false,
            web(&ca, Ipv4Addr::new(127, 0, 0, 2)),
            Some("not valid for name"),
        ),
        (
            "a certificate of an unknown CA",
            false,
            web(&Ca::new("strange.example"), here),
            Some("no valid root"),
        ),
    ] {
        let address = serve(&minted, ok(&document(&[&ca], 1).render())).await;
        let fetched = fetch(&settings(&dir, address, spiffe, &ca)).await;
        match (fetched, why) {
            (Ok(document), None) => assert_eq!(document.sequence, Some(1), "{what}"),
            (Err(error), Some(why)) => assert!(error.contains(why), "{what}: {error}"),
            (other, _) => panic!("{what}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_no_document_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(PARTNER);
    let minted = ca.mint(&leaf(ENDPOINT));
    let large = "x".repeat(crate::identity::bundle_document::LARGEST + 1);
    for (answer, why) in [
        (ok("{}"), "no bundle document"),
        (ok(&large), "too large"),
        (
            "HTTP/1.1 301 Moved\r\nlocation: https://127.0.0.1/\r\ncontent-length: 0\r\n\r\n"
                .into(),
            "status 301",
        ),
        (
            "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".into(),
            "status 500",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}".into(),
            "to its end",
        ),
        ("SSH-2.0-OpenSSH\r\n\r\n".into(), "speak HTTP"),
        (String::new(), "speak HTTP"),
    ] {
        let address = serve(&minted, answer).await;
        let error = fetch(&settings(&dir, address, true, &ca))
            .await
            .unwrap_err();
        assert!(error.contains(why), "{why}: {error}");
    }
}

#[tokio::test]
async fn the_document_in_force_vouches_for_its_endpoint_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Ca::new(PARTNER), Ca::new(PARTNER));
    let minted = new.mint(&leaf(ENDPOINT));
    let address = serve(&minted, ok(&document(&[&new], 2).render())).await;
    let settings = settings(&dir, address, true, &old);
    let mut relationship = relationship(&settings);
    assert!(relationship.endpoint.fetch().await.is_err());
    let bundles = watch::Sender::default();
    relationship
        .take(document(&[&old, &new], 1), &bundles)
        .unwrap();
    assert!(relationship.endpoint.fetch().await.is_ok());
    relationship.take(document(&[], 2), &bundles).unwrap();
    assert!(relationship.endpoint.fetch().await.is_err());
}

fn relationship(settings: &Settings) -> Relationship {
    let federation = Federation::open(std::slice::from_ref(settings), DAY, &metrics());
    federation.unwrap().relationships.remove(0)
}

#[test]
fn a_document_replaces_the_last_one_unless_it_is_older() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Ca::new(PARTNER), Ca::new(PARTNER));
    let address = "127.0.0.1:1".parse().unwrap();
    let mut relationship = relationship(&settings(&dir, address, true, &old));
    let bundles = watch::Sender::default();
    let domain = TrustDomain::parse(PARTNER).unwrap();
    let mut take = |roots: &[&Ca], sequence| {
        let taken = relationship.take(document(roots, sequence), &bundles);
        let roots = bundles.borrow()[&domain].certificates().count();
        (taken.is_ok(), roots)
    };
    assert_eq!(take(&[&old], 5), (true, 1));
    assert_eq!(take(&[&old, &new], 6), (true, 2));
    assert_eq!(take(&[&old], 5), (false, 2), "an old copy");
    assert_eq!(take(&[], 7), (true, 0), "distrust");
    assert_eq!(
        take(&[&old, &new], 6),
        (false, 0),
        "trust does not come back"
    );
}

#[test]
fn a_refresh_hint_is_followed_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(PARTNER);
    let address = "127.0.0.1:1".parse().unwrap();
    let mut relationship = relationship(&settings(&dir, address, true, &ca));
    let bundles = watch::Sender::default();
    for (hint, expected) in [
        (None, 300),
        (Some(0), 10),
        (Some(60), 60),
        (Some(u64::MAX), 3600),
    ] {
        let document = BundleDocument {
            refresh_hint: hint.map(Duration::from_secs),
            ..document(&[&ca], 1)
        };
        let taken = relationship.take(document, &bundles).unwrap();
        assert_eq!(taken, Duration::from_secs(expected), "{hint:?}");
    }
}

/// Says what it is told to, then waits for ever; or fails for ever.
struct Script {
    steps: VecDeque<Change<Material>>,
    down: bool,
}

impl Source for Script {
    type Item = Material;
    type Error = &'static str;

    async fn next(&mut self) -> Result<Change<Material>, &'static str> {
        match self.steps.pop_front() {
            Some(step) => Ok(step),
            None if self.down => Err("down"),
            None => std::future::pending().await,
        }
    }
}

fn federated(
    steps: impl IntoIterator<Item = Change<Material>>,
    down: bool,
) -> (Federated<Script>, watch::Sender<Foreign>) {
    let federation = Federation::open(&[], DAY, &metrics()).unwrap();
    let steps = steps.into_iter().collect();
    (federation.join(Script { steps, down }), federation.bundles)
}

fn roots_of(change: Change<Material>, domain: &str) -> Option<usize> {
    let Change::Replace(material) = change else {
        panic!("withdrawn")
    };
    let domain = TrustDomain::parse(domain).unwrap();
    let bundle = material.bundles().get(&domain);
    bundle.map(|bundle| bundle.certificates().count())
}

#[tokio::test]
async fn a_foreign_bundle_joins_those_of_the_source_even_while_that_is_down() {
    let (own, partner) = (Ca::new("example.org"), Ca::new(PARTNER));
    let first = Change::Replace(own.material("/a", &[]));
    let (mut federated, bundles) = federated([first], true);
    assert_eq!(roots_of(federated.next().await.unwrap(), PARTNER), None);
    assert!(federated.next().await.is_err());
    bundles.send_modify(|all| all.extend([partner.bundle()]));
    let joined = federated.next().await.unwrap();
    assert_eq!(roots_of(joined, PARTNER), Some(1));
    let (domain, empty) = (partner.domain.clone(), Bundle::new([]).unwrap());
    bundles.send_modify(|all| drop(all.insert(domain, empty)));
    assert_eq!(roots_of(federated.next().await.unwrap(), PARTNER), Some(0));
    assert!(federated.next().await.is_err());
}

#[tokio::test]
async fn where_the_source_has_a_bundle_it_is_the_one_that_counts() {
    let own = Ca::new("example.org");
    let (told, fetched) = (Ca::new(PARTNER), Ca::new(PARTNER));
    let first = Change::Replace(own.material("/a", &[&told]));
    let (mut federated, bundles) = federated([first], false);
    bundles.send_modify(|all| {
        all.extend([
            fetched.bundle(),
            (own.domain.clone(), Bundle::new([]).unwrap()),
        ]);
    });
    let Change::Replace(material) = federated.next().await.unwrap() else {
        panic!("withdrawn")
    };
    for ca in [&own, &told] {
        let bundle = material.bundles().get(&ca.domain).unwrap();
        let roots: Vec<_> = bundle.certificates().collect();
        assert_eq!(roots, [ca.certificate()]);
    }
}

#[tokio::test]
async fn a_withdrawn_identity_does_not_come_back_with_a_foreign_bundle() {
    let (own, partner) = (Ca::new("example.org"), Ca::new(PARTNER));
    let first = Change::Replace(own.material("/a", &[]));
    let (mut federated, bundles) = federated([first, Change::Withdraw], true);
    federated.next().await.unwrap();
    assert!(matches!(federated.next().await, Ok(Change::Withdraw)));
    bundles.send_modify(|all| all.extend([partner.bundle()]));
    assert!(federated.next().await.is_err());
}

#[test]
fn a_relationship_is_read_and_every_mistake_has_its_message() {
    let told = |text: &str| {
        let read = Document::new("f", text).read(|node| Settings::read_all(&node));
        read.map(|_| String::new())
            .unwrap_or_else(|mistakes| mistakes.to_string())
    };
    let spiffe = "{ trust_domain: partner.example, url: 'https://b:8443', profile: https_spiffe, endpoint_spiffe_id: 'spiffe://partner.example/x', bundle: /b }";
    let web = "{ trust_domain: web.example, url: 'https://[::1]/b', profile: https_web, ca: /c }";
    for (text, why) in [
        (format!("[{spiffe}, {web}]"), ""),
        (
            format!("[{spiffe}, {spiffe}]"),
            "partner.example is there twice",
        ),
        ("[{}]".into(), "`trust_domain` is missing"),
        (
            spiffe.replace("partner.example/x", "other.example/x"),
            "of another trust domain",
        ),
        (spiffe.replace("https:", "http:"), "reached by `https://`"),
        (spiffe.replace(", bundle: /b", ""), "`bundle` is missing"),
        (web.replace(", ca: /c", ""), "`ca` is missing"),
        (web.replace("ca: /c", "ca: /c, bundle: /b"), "unknown key"),
        (web.replace("https_web", "web"), "`web` is not known here"),
    ] {
        let text = if text.starts_with('[') {
            text
        } else {
            format!("[{text}]")
        };
        let all = told(&text);
        assert!(
            all.contains(why) && all.is_empty() == why.is_empty(),
            "{text}\n{all}"
        );
    }
}

#[test]
fn a_url_is_https_with_a_host_and_a_path_alone() {
    for text in [
        "https://b.example",
        "https://b.example:8443/x/y",
        "https://[::1]:8443/",
        "https://127.0.0.1/",
    ] {
        assert!(text.parse::<Url>().is_ok(), "{text}");
    }
    for text in [
        "",
        "b.example",
        "http://b.example",
        "spiffe://b.example",
        "https://",
        "https://u@b.example",
        "https://u:p@b.example/",
        "https://b.example/?a",
        "https://b.example/#a",
        "https://:8443/",
        "/a",
    ] {
        assert!(text.parse::<Url>().is_err(), "{text}");
    }
}

#[test]
fn a_file_that_cannot_be_used_stops_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ca = Ca::new(PARTNER);
    let settings = settings(&dir, "127.0.0.1:1".parse().unwrap(), false, &ca);
    let file = dir.path().join("roots.pem");
    for (content, why) in [
        (Some(json!({ "keys": [] }).to_string()), "holds no root"),
        (None, "cannot read"),
    ] {
        match content {
            Some(content) => std::fs::write(&file, content).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let error = Federation::open(std::slice::from_ref(&settings), DAY, &metrics()).unwrap_err();
        let told = chain(&error);
        assert!(told.contains(why) && told.contains("roots.pem"), "{told}");
    }
}
