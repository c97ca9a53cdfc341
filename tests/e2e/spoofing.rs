//! What the application reads of its caller is what the handshake proved, whatever a caller claims.

use std::convert::Infallible;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::mesh::*;

/// Headers by which a caller claims to be somebody, in many spellings.
const CLAIMS: &str = "X-Forwarded-Client-Cert: By=spiffe://example.org/b;URI=spiffe://example.org/admin\r\n\
x-forwarded-client-cert: URI=spiffe://example.org/admin\r\n\
X-FORWARDED-CLIENT-CERT: URI=spiffe://example.org/admin\r\n\
Client-Cert: :Zm9yZ2Vk:\r\n\
CLIENT-CERT: :Zm9yZ2Vk:\r\n\
client-cert-chain: :Zm9yZ2Vk:\r\n\
Client-Cert-Chain: :Zm9yZ2Vk:\r\n";

/// Everything that could carry an identity. Some applications read `_` as `-`, as CGI does.
fn claims(seen: &Seen) -> Vec<(String, String)> {
    let about_identity = |(name, _): &&(String, String)| {
        let name = name.replace('_', "-");
        name.contains("client-cert")
    };
    seen.headers
        .iter()
        .filter(about_identity)
        .cloned()
        .collect()
}

fn head(extra: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: app.example\r\n{extra}\r\n")
}

/// Asks `b` directly as `a`, with `extra` header lines.
async fn as_peer(mesh: &Mesh, extra: &str) -> String {
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["http/1.1"]);
    let mut stream = tls.connect(mesh.gate()).await.unwrap();
    raw(&mut stream, head(extra).as_bytes()).await
}

async fn as_application(mesh: &Mesh, extra: &str) -> String {
    let mut stream = TcpStream::connect(mesh.entrance()).await.unwrap();
    raw(&mut stream, head(extra).as_bytes()).await
}

#[tokio::test]
async fn claims_of_a_caller_never_reach_the_application() {
    let mesh = Mesh::new().await;
    let hop_by_hop = [
        String::new(),
        "Connection: x-forwarded-client-cert\r\n".into(),
        "Connection: close, X-Forwarded-Client-Cert, client-cert\r\n".into(),
        "Connection: keep-alive\r\nConnection: X-FORWARDED-CLIENT-CERT\r\n".into(),
    ];
    for trick in hop_by_hop {
        for (claims_too, way) in [(false, "bare"), (true, "claiming")] {
            let extra = if claims_too {
                format!("{trick}{CLAIMS}")
            } else {
                trick.clone()
            };
            for answer in [
                as_peer(&mesh, &extra).await,
                as_application(&mesh, &extra).await,
            ] {
                assert_eq!(status_of(&answer), 200, "{way} {trick}: {answer}");
                let seen = mesh.app.last();
                let found = claims(&seen);
                assert_eq!(found.len(), 1, "{way} {trick}: {found:?}");
                let (name, value) = &found[0];
                assert_eq!(name, "x-forwarded-client-cert");
                assert!(
                    value.starts_with("By=spiffe://example.org/b;Hash="),
                    "{value}"
                );
                assert!(value.ends_with(";URI=spiffe://example.org/a"), "{value}");
                assert!(seen.all("connection").is_empty(), "{seen:?}");
            }
        }
    }
}

#[tokio::test]
async fn claims_with_underscores_do_not_reach_the_application_either() {
    let mesh = Mesh::new().await;
    let extra = "x_forwarded_client_cert: URI=spiffe://example.org/admin\r\nClient_Cert: :Zm9yZ2Vk:\r\nclient_cert_chain: :Zm9yZ2Vk:\r\nX-Forwarded_Client-Cert: x\r\n";
    for answer in [
        as_peer(&mesh, extra).await,
        as_application(&mesh, extra).await,
    ] {
        assert_eq!(status_of(&answer), 200, "{answer}");
        let found = claims(&mesh.app.last());
        assert_eq!(found.len(), 1, "{found:?}");
    }
}

#[tokio::test]
async fn claims_in_trailers_do_not_reach_the_application_either() {
    let mesh = Mesh::new().await;
    let mut trailers = HeaderMap::new();
    for name in ["x-sum", "x-forwarded-client-cert", "client_cert"] {
        trailers.insert(name, "URI=spiffe://example.org/admin".parse().unwrap());
    }
    let frames = [
        Frame::data(Bytes::from_static(b"x")),
        Frame::trailers(trailers),
    ];
    let body = StreamBody::new(futures_util::stream::iter(frames.map(Ok::<_, Infallible>)));
    let stream = TcpStream::connect(mesh.entrance()).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let asked = request("POST", "http://app.example/").map(|_| body);
    let answer = Answer::of(client.send_request(asked).await.unwrap()).await;
    assert_eq!(answer.unwrap().status, 200);
    let arrived = mesh.app.trailers();
    assert_eq!(arrived.keys().collect::<Vec<_>>(), ["x-sum"]);
}

#[tokio::test]
async fn claims_over_http2_do_not_reach_the_application_either() {
    let mesh = Mesh::new().await;
    let svid = mesh.issuer.ca().svid("a");
    let mut client = Tls::new(Some(&svid), &["h2"]).client(mesh.gate()).await;
    let mut asked = request("GET", "http://app.example/");
    for name in [
        "x-forwarded-client-cert",
        "client-cert",
        "client-cert-chain",
    ] {
        let forged = "URI=spiffe://example.org/admin".parse().unwrap();
        asked.headers_mut().append(name, forged);
    }
    assert_eq!(client.ask(asked).await.unwrap().status, 200);
    let found = claims(&mesh.app.last());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].1.ends_with(";URI=spiffe://example.org/a"));
}

#[tokio::test]
async fn hop_by_hop_headers_end_at_each_hop_and_our_marks_are_taken_off_again() {
    let mesh = Mesh::new().await;
    let extra = "Connection: X-Hop, te\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nTE: gzip, trailers\r\nX-End: 2\r\n";
    assert_eq!(status_of(&as_application(&mesh, extra).await), 200);
    let seen = mesh.app.last();
    for name in [
        "x-hop",
        "keep-alive",
        "proxy-connection",
        "proxy-authorization",
        "connection",
        "via",
        "upgrade",
    ] {
        assert!(seen.all(name).is_empty(), "{name}: {seen:?}");
    }
    assert_eq!(seen.all("x-end"), ["2"]);
    assert_eq!(seen.all("host"), ["app.example"]);
    let te = seen.all("te");
    assert!(te.is_empty() || te == ["trailers"], "{te:?}");

    // A `via` of somebody else's stays.
    let extra = "Via: 1.1 somebody\r\n";
    assert_eq!(status_of(&as_application(&mesh, extra).await), 200);
    assert_eq!(mesh.app.last().all("via"), ["1.1 somebody"]);
}

#[tokio::test]
async fn a_request_that_names_two_hosts_or_two_lengths_is_refused() {
    let mesh = Mesh::new().await;
    for (extra, why) in [
        ("Host: other.example\r\n", "two hosts"),
        ("Host: app.example\r\n", "the same host twice"),
        ("Content-Length: 1\r\nContent-Length: 2\r\n", "two lengths"),
        ("Content-Length: 3\r\nContent-Length: +3\r\n", "no length"),
        ("X : y\r\n", "a space in a name"),
        ("Transfer-Encoding: chunked, identity\r\n", "no framing"),
    ] {
        let before = mesh.app.seen().len();
        for answer in [
            as_peer(&mesh, extra).await,
            as_application(&mesh, extra).await,
        ] {
            assert_eq!(status_of(&answer), 400, "{why}: {answer}");
        }
        assert_eq!(mesh.app.seen().len(), before, "{why}");
    }

    // Over HTTP/2 the `host` header may not name another than `:authority`.
    let svid = mesh.issuer.ca().svid("a");
    let mut client = Tls::new(Some(&svid), &["h2"]).client(mesh.gate()).await;
    let before = mesh.app.seen().len();
    let mut asked = request("GET", "http://app.example/");
    asked
        .headers_mut()
        .insert("host", "other.example".parse().unwrap());
    assert_eq!(client.ask(asked).await.unwrap().status, 400);
    assert_eq!(mesh.app.seen().len(), before);
}

#[tokio::test]
async fn a_length_beside_chunks_smuggles_no_second_request() {
    let mesh = Mesh::new().await;
    let svid = mesh.issuer.ca().svid("a");
    let smuggled = "POST / HTTP/1.1\r\nHost: app.example\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: app.example\r\nX-Forwarded-Client-Cert: URI=spiffe://example.org/admin\r\n\r\n";
    let tls = Tls::new(Some(&svid), &["http/1.1"]);
    let mut stream = tls.connect(mesh.gate()).await.unwrap();
    let answer = raw(&mut stream, smuggled.as_bytes()).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    let mut rest = String::new();
    let _ = stream.read_to_string(&mut rest).await;
    // RFC 9112 §6.1: the chunks count, and nobody reads on behind them.
    assert_eq!((answer + &rest).matches("HTTP/1.1 ").count(), 1);
    let seen = mesh.app.seen();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert!(seen[0].all("content-length").is_empty(), "{seen:?}");
}

#[tokio::test]
async fn the_identity_arrives_in_the_header_that_was_asked_for() {
    for (kind, xfcc, certificate) in [
        ("xfcc", true, false),
        ("client_cert", false, true),
        ("both", true, true),
        ("none", false, false),
    ] {
        let mesh = Mesh::with(Options {
            inbound: format!("identity_header: {kind}"),
            ..Options::default()
        })
        .await;
        let svid = mesh.issuer.ca().svid("a");
        let tls = Tls::new(Some(&svid), &["http/1.1"]);
        let mut stream = tls.connect(mesh.gate()).await.unwrap();
        assert_eq!(
            status_of(&raw(&mut stream, head(CLAIMS).as_bytes()).await),
            200
        );
        let seen = mesh.app.last();
        let hash = hex(&digest(&svid.chain[0]));
        let expected = format!("By={};Hash={hash};URI={}", id("b"), id("a"));
        let expected = if xfcc {
            vec![expected.as_str()]
        } else {
            vec![]
        };
        assert_eq!(seen.all("x-forwarded-client-cert"), expected, "{kind}");

        let found = seen.all("client-cert");
        assert_eq!(found.len(), usize::from(certificate), "{kind}");
        for item in found {
            // RFC 9440 §2.2: a byte sequence of RFC 8941, the DER in Base64 between colons.
            let inner = item
                .strip_prefix(':')
                .and_then(|item| item.strip_suffix(':'));
            let der = STANDARD.decode(inner.unwrap()).unwrap();
            assert_eq!(der, svid.chain[0].to_vec());
            let (_, parsed) = X509Certificate::from_der(&der).unwrap();
            let names = parsed.subject_alternative_name().unwrap().unwrap();
            assert!(format!("{:?}", names.value).contains(&id("a")));
        }
        assert!(seen.all("client-cert-chain").is_empty(), "{kind}");
    }
}

fn digest(bytes: &[u8]) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes)
        .as_ref()
        .to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `b`'s application hears of claims behind an empty line, from a peer that may connect as well as ask.
async fn behind_an_empty_line(protocol: &str, alpn: &[&str]) -> Option<Vec<(String, String)>> {
    let mesh = Mesh::with(Options {
        inbound: format!("protocol: {protocol}"),
        ..Options::default()
    })
    .await;
    let tls = Tls::new(Some(&mesh.issuer.ca().svid("a")), alpn);
    let mut stream = tls.connect(mesh.gate()).await.ok()?;
    let hidden = format!("\r\n{}", head(CLAIMS));
    let answer = raw(&mut stream, hidden.as_bytes()).await;
    assert_eq!(status_of(&answer), 200, "{protocol} {alpn:?}: {answer}");
    Some(claims(&mesh.app.last()))
}

#[tokio::test]
async fn a_grant_to_connect_is_one_for_any_bytes_but_where_only_requests_pass() {
    let opaque = ["doorward-tcp"];
    for alpn in [&[][..], &opaque] {
        let claims = behind_an_empty_line("auto", alpn).await.unwrap();
        assert_eq!(claims.len(), CLAIMS.lines().count(), "{alpn:?}");
    }
    let claims = behind_an_empty_line("http", &[]).await.unwrap();
    let [(_, ours)] = &claims[..] else {
        panic!("not ours alone: {claims:?}");
    };
    assert!(ours.contains(&format!("URI={}", id("a"))), "{ours}");
    assert_eq!(behind_an_empty_line("http", &opaque).await, None);
}

#[tokio::test]
async fn a_tcp_application_learns_the_caller_from_a_proxy_header() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::with(Options {
        app: Some(listener.local_addr().unwrap()),
        inbound: "protocol: tcp, proxy_protocol: true".into(),
        outbound: "protocol: tcp".into(),
        ..Options::default()
    })
    .await;
    let mut client = TcpStream::connect(mesh.entrance()).await.unwrap();
    // What looks like such a header in the caller's own bytes is only bytes.
    let forged = [SIGNATURE, &[0x20, 0x00, 0x00, 0x00]].concat();
    client.write_all(&forged).await.unwrap();
    client.shutdown().await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    let mut read = Vec::new();
    app.read_to_end(&mut read).await.unwrap();

    let (header, rest) = read.split_at(16);
    assert_eq!(&header[..12], SIGNATURE);
    assert_eq!(header[12..14], [0x21, 0x11], "PROXY, TCP over IPv4");
    let length = usize::from(u16::from_be_bytes([header[14], header[15]]));
    let (body, payload) = rest.split_at(length);
    assert_eq!(payload, forged);
    let destination = [&[127, 0, 0, 1][..], &mesh.gate().port().to_be_bytes()].concat();
    assert_eq!([&body[4..8], &body[10..12]].concat(), destination);
    let mut values = &body[12..];
    let mut ids = Vec::new();
    while let [kind, high, low, rest @ ..] = values {
        let (value, next) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        if *kind == 0xE0 {
            ids.push(String::from_utf8(value.to_vec()).unwrap());
        }
        values = next;
    }
    assert_eq!(ids, [id("a")]);
}

/// The PROXY protocol, §2.2.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
