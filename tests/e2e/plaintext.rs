//! Callers that speak no TLS are refused in words that they understand; where the operator lets them in for a
//! while, they are nobody, and told of.

use http::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::mesh::*;

const TOTAL: &str = "doorward_inbound_plaintext_total";
const OPEN: &str = "doorward_inbound_plaintext_open";

async fn allowing(rest: &str) -> Mesh {
    Mesh::with(Options {
        inbound: format!("plaintext: allow_and_report, {rest}"),
        ..Options::default()
    })
    .await
}

fn count<'a>(kind: &'a str, action: &'a str) -> [(&'a str, &'a str); 3] {
    [("service", SERVICE), ("kind", kind), ("action", action)]
}

/// What the bytes `asked` are answered with, and everything that follows.
async fn say(mesh: &Mesh, asked: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(mesh.gate()).await.unwrap();
    stream.write_all(asked).await.unwrap();
    let mut answer = Vec::new();
    // What was not read is answered with a reset.
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

#[tokio::test]
async fn callers_in_plaintext_are_refused_in_words_that_they_understand() {
    for inbound in ["", "protocol: http", "protocol: tcp", "plaintext: deny"] {
        let mesh = Mesh::with(Options {
            inbound: inbound.into(),
            ..Options::default()
        })
        .await;
        let recorded = mesh.b.audit().len();

        let told = say(&mesh, b"GET /v1 HTTP/1.1\r\nhost: app.example\r\n\r\n").await;
        let told = String::from_utf8(told).unwrap();
        assert_eq!(status_of(&told), 426, "{inbound}: {told}");
        let (head, body) = told.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("\r\nupgrade: TLS/1.3\r\n"), "{head}");
        assert!(
            head.contains("content-type: application/problem+json"),
            "{head}"
        );
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["error"], "plaintext_refused", "{problem}");

        // Settings, then GOAWAY with INADEQUATE_SECURITY.
        let frames = say(&mesh, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        assert_eq!(frames[..9], [0, 0, 0, 4, 0, 0, 0, 0, 0], "{inbound}");
        assert_eq!((frames[12], frames[25]), (7, 0xc), "{inbound}");
        assert_eq!(say(&mesh, b"\x00\x00\x00\x08\x04\xd2").await, b"");

        mesh.b.counts(TOTAL, &count("http", "refused"), 2.0).await;
        mesh.b.counts(TOTAL, &count("tcp", "refused"), 1.0).await;
        let refused = [("direction", "inbound"), ("result", "not_tls")];
        mesh.b
            .counts("doorward_handshakes_total", &refused, 3.0)
            .await;
        let metrics = mesh.b.metrics().await;
        let allowed = [("action", "allowed")];
        assert_eq!(metrics.value(TOTAL, &allowed), None, "{inbound}");
        let records = eventually("all are recorded", async || {
            let records = mesh.b.audit().split_off(recorded);
            (records.len() == 3).then_some(records)
        })
        .await;
        for record in &records {
            assert_eq!(record["outcome"], "plaintext_refused", "{record}");
            assert_eq!(record["reason"], "not_tls", "{record}");
            assert_eq!(record["decision"], "deny", "{record}");
            assert_eq!(record["plaintext"], true, "{record}");
            assert!(record["source"].is_string(), "{record}");
            assert!(record["principal"].is_null(), "{record}");
        }
        assert_eq!(problem["request_id"], records[0]["id"], "{problem}");
        assert_eq!(mesh.app.connections(), 0, "{inbound}");
    }
}

#[tokio::test]
async fn whoever_goes_away_without_a_word_is_not_counted_as_plaintext() {
    for inbound in ["", "plaintext: allow_and_report, protocol: tcp"] {
        let mesh = Mesh::with(Options {
            inbound: inbound.into(),
            ..Options::default()
        })
        .await;
        drop(TcpStream::connect(mesh.gate()).await.unwrap());
        let failed = [("direction", "inbound"), ("result", "io")];
        mesh.b
            .counts("doorward_handshakes_total", &failed, 1.0)
            .await;
        assert_eq!(mesh.b.metrics().await.sum(TOTAL, &[]), 0.0, "{inbound}");
        assert_eq!(mesh.app.connections(), 0, "{inbound}");
    }
}

#[tokio::test]
async fn requests_in_plaintext_pass_as_nobodys_beside_those_of_peers() {
    let mesh = allowing("protocol: http").await;
    assert!(mesh.b.process.log().contains("prove nothing"));
    let metrics = mesh.b.metrics().await;
    assert_eq!(metrics.value(TOTAL, &count("http", "allowed")), Some(0.0));

    for (http, version) in [(Http::One, Version::HTTP_11), (Http::Two, Version::HTTP_2)] {
        let stream = TcpStream::connect(mesh.gate()).await.unwrap();
        let mut client = Client::on(stream, http).await;
        let protocol = format!("{http:?}");
        for path in ["/old/one", "/old/two"] {
            let answer = client.ask(request("GET", &format!("http://app.example{path}")));
            assert_eq!(answer.await.unwrap().status, 200, "{protocol}");
            let seen = mesh.app.last();
            assert_eq!((seen.version, &*seen.path), (version, path));
        }
        let open = [("service", SERVICE), ("kind", "http")];
        mesh.b.counts(OPEN, &open, 1.0).await;
        drop(client);
        mesh.b.counts(OPEN, &open, 0.0).await;
    }
    assert_eq!(mesh.get("/new").await.status, 200);
    assert_eq!(mesh.app.last().all("x-forwarded-client-cert").len(), 1);

    mesh.b.counts(TOTAL, &count("http", "allowed"), 4.0).await;
    let decided = mesh.b.metrics().await;
    assert_eq!(decided.sum("doorward_decisions_total", &[]), 1.0);
    let record = mesh
        .b
        .record("a request in plaintext", |record| {
            record["context"]["path"] == "/old/two"
        })
        .await;
    assert_eq!(record["plaintext"], true, "{record}");
    assert_eq!(record["decision"], "none", "{record}");
    assert_eq!(record["outcome"], "completed", "{record}");
    assert_eq!(record["context"]["status"], 200, "{record}");
    assert!(record["source"].is_string(), "{record}");
    assert!(record["principal"].is_null(), "{record}");
    let record = mesh
        .b
        .record("a request of a peer", |record| {
            record["context"]["path"] == "/new"
        })
        .await;
    assert!(record["plaintext"].is_null(), "{record}");
    assert_eq!(record["principal"]["id"], id("a"), "{record}");
}

#[tokio::test]
async fn nobody_can_pass_for_somebody() {
    let forged = "URI=spiffe://example.org/admin";
    for header in ["xfcc", "client_cert", "both", "none"] {
        let mesh = allowing(&format!("protocol: http, identity_header: {header}")).await;
        let claims = format!(
            "X-Forwarded-Client-Cert: {forged}\r\nx_forwarded_client_cert: {forged}\r\n\
             Client-Cert: :Zm9yZ2Vk:\r\nclient-cert-chain: :Zm9yZ2Vk:\r\n\
             Connection: x-forwarded-client-cert\r\nVia: 2 doorward\r\n"
        );
        // An application may skip empty lines, and take a method in small letters.
        for begin in ["GET", "\r\nGET", "get", " GET"] {
            let mut stream = TcpStream::connect(mesh.gate()).await.unwrap();
            let asked = format!("{begin} / HTTP/1.1\r\nhost: app.example\r\n{claims}\r\n");
            raw(&mut stream, asked.as_bytes()).await;
        }
        let stream = TcpStream::connect(mesh.gate()).await.unwrap();
        let mut client = Client::on(stream, Http::Two).await;
        let mut asked = request("GET", "http://app.example/");
        for name in ["x-forwarded-client-cert", "client-cert"] {
            asked.headers_mut().append(name, forged.parse().unwrap());
        }
        assert_eq!(client.ask(asked).await.unwrap().status, 200);
        let seen = mesh.app.seen();
        assert!(seen.len() >= 2, "{seen:?}");
        for seen in seen {
            let about_identity =
                |(name, _): &&(String, String)| name.replace('_', "-").contains("client-cert");
            assert_eq!(seen.headers.iter().find(about_identity), None, "{header}");
            assert_eq!(seen.all("via"), Vec::<&str>::new());
        }
    }
}

#[tokio::test]
async fn standing_secrets_and_limits_hold_for_nobody_too() {
    let mesh = allowing("protocol: http, standing_secrets: deny, max_requests: 1").await;
    let mut stream = TcpStream::connect(mesh.gate()).await.unwrap();
    let asked =
        b"GET / HTTP/1.1\r\nhost: a\r\nauthorization: Basic eDp5\r\nconnection: close\r\n\r\n";
    assert_eq!(status_of(&raw(&mut stream, asked).await), 403);
    let carried = [("principal", "plaintext"), ("action", "denied")];
    let family = "doorward_requests_with_standing_secrets_total";
    mesh.b.counts(family, &carried, 1.0).await;
    assert_eq!(mesh.app.connections(), 0);

    let mut stream = TcpStream::connect(mesh.gate()).await.unwrap();
    let ambiguous = b"GET /a/%2e%2e/b HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert_eq!(status_of(&raw(&mut stream, ambiguous).await), 400);
}

#[tokio::test]
async fn what_is_recorded_at_level_denials_is_recorded_of_nobody_all_the_more() {
    let dirs = Dirs::new();
    let path = dirs.file("denials.jsonl");
    let mesh = Mesh::with(Options {
        inbound: "plaintext: allow_and_report, protocol: http".into(),
        audit: Some(format!("{{ path: '{}', level: denials }}", path.display())),
        ..Options::default()
    })
    .await;
    assert_eq!(mesh.get("/of-a-peer").await.status, 200);
    assert_eq!(get(mesh.gate(), "/of-nobody").await.status, 200);
    let text = eventually("it is recorded", async || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.contains("/of-nobody").then_some(text)
    })
    .await;
    assert!(!text.contains("/of-a-peer"), "{text}");

    let mut full = Mesh::unidentified(Options {
        inbound: "plaintext: allow_and_report, protocol: http".into(),
        audit: Some("{ path: /dev/full, level: denials }".into()),
        ..Options::default()
    })
    .await;
    full.issuer.start().await;
    full.a.ready().await;
    eventually(
        "a peer is served, of whom nothing is recorded",
        async || (full.get("/").await.status == 200).then_some(()),
    )
    .await;
    let refused = get(full.gate(), "/").await;
    assert_eq!(refused.status, 503);
    assert_eq!(refused.json()["error"], "audit_unavailable");
}

/// An application that says a line before it hears one, then sends back what it hears.
async fn greeter() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                // Whoever goes away before the end is not this one's concern.
                let _ = stream.write_all(b"220 ready\r\n").await;
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn tcp_in_plaintext_passes_whoever_speaks_first() {
    let mesh = Mesh::with(Options {
        inbound: "plaintext: allow_and_report, protocol: tcp, detect_timeout: 50ms".into(),
        outbound: "protocol: tcp".into(),
        app: Some(greeter().await),
        ..Options::default()
    })
    .await;
    let mut listening = TcpStream::connect(mesh.gate()).await.unwrap();
    let mut greeting = [0; 11];
    listening.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    let open = [("service", SERVICE), ("kind", "tcp")];
    mesh.b.counts(OPEN, &open, 1.0).await;

    // What looks like HTTP is bytes here, as everything is.
    for said in [&b"\x00\x00\x00\x08"[..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut speaking = TcpStream::connect(mesh.gate()).await.unwrap();
        speaking.write_all(said).await.unwrap();
        speaking.shutdown().await.unwrap();
        let mut heard = Vec::new();
        speaking.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, [b"220 ready\r\n", said].concat());
    }
    drop(listening);

    let mut peer = TcpStream::connect(mesh.entrance()).await.unwrap();
    peer.read_exact(&mut greeting).await.unwrap();
    mesh.b.counts(TOTAL, &count("tcp", "allowed"), 3.0).await;
    mesh.b.counts(OPEN, &open, 0.0).await;
    let record = mesh
        .b
        .record("a session in plaintext", |record| {
            record["bytes_in"] == 4 && record["plaintext"] == true
        })
        .await;
    assert_eq!(record["kind"], "connection", "{record}");
    assert_eq!(record["decision"], "none", "{record}");
    assert_eq!(record["outcome"], "completed", "{record}");
    assert!(record["principal"].is_null(), "{record}");
}

#[tokio::test]
async fn the_header_of_the_proxy_protocol_names_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::with(Options {
        inbound: "plaintext: allow_and_report, protocol: tcp, proxy_protocol: true".into(),
        app: Some(listener.local_addr().unwrap()),
        ..Options::default()
    })
    .await;
    let mut caller = TcpStream::connect(mesh.gate()).await.unwrap();
    // A header of the caller's own is no more than bytes behind ours.
    let forged = b"\r\n\r\n\0\r\nQUIT\n\x21\x00\x00\x00";
    caller.write_all(forged).await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    let mut header = [0; 28];
    app.read_exact(&mut header).await.unwrap();
    assert_eq!(header[..12], forged[..12]);
    assert_eq!(header[14..16], [0, 12], "addresses, and no SPIFFE ID");
    let from = caller.local_addr().unwrap().port().to_be_bytes();
    assert_eq!(header[24..26], from);
    let mut rest = vec![0; forged.len()];
    app.read_exact(&mut rest).await.unwrap();
    assert_eq!(rest, forged);
}

#[tokio::test]
async fn peers_are_decided_as_ever_where_nobody_is_let_in_too() {
    let mesh = Mesh::with(Options {
        inbound: "plaintext: allow_and_report, protocol: http".into(),
        policy: Some(grant("all-for-c", "c")),
        ..Options::default()
    })
    .await;
    assert_eq!(mesh.get("/").await.status, 403);
    let stranger = Ca::stranger(DOMAIN).svid("a");
    let tls = Tls::new(Some(&stranger), &["http/1.1"]);
    let answer = match tls.connect(mesh.gate()).await {
        Ok(mut stream) => raw(&mut stream, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await,
        Err(_) => String::new(),
    };
    assert_eq!(status_of(&answer), 0, "{answer}");
    assert_eq!(mesh.app.connections(), 0);
    assert_eq!(get(mesh.gate(), "/").await.status, 200);
}
