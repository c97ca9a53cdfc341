//! TCP sessions between two sidecars share a connection, and none of them notices.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::mesh::{Dirs, Issuer, Mesh, Options, Plan, SOON, Tls, eventually, grant, id, within};

/// Sessions of a sidecar with one worker to an application of the test's own.
async fn mesh(outbound: &str) -> (Mesh, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::with(Options {
        app: Some(listener.local_addr().unwrap()),
        inbound: "protocol: tcp".into(),
        outbound: format!("protocol: tcp{outbound}"),
        a: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await;
    (mesh, listener)
}

/// Both ends of a session.
async fn session(mesh: &Mesh, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = TcpStream::connect(mesh.entrance()).await.unwrap();
    client.write_all(b"?").await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    assert_eq!(app.read_u8().await.unwrap(), b'?');
    (client, app)
}

async fn connections(mesh: &Mesh) -> f64 {
    let metrics = mesh.a.metrics().await;
    metrics.sum("doorward_upstream_connections", &[])
}

async fn end(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut rest));
    let _ = read.await.expect("it ends in time");
    rest
}

#[tokio::test]
async fn many_sessions_share_one_connection_and_each_is_recorded_for_itself() {
    const SESSIONS: usize = 40;
    let (mesh, listener) = mesh(", tunnel: always").await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(session(&mesh, &listener).await);
    }
    assert!((connections(&mesh).await - 1.0).abs() < f64::EPSILON);
    let open = [("kind", "tcp")];
    mesh.b
        .counts("doorward_open_sessions", &open, SESSIONS as f64)
        .await;
    for (number, (client, app)) in sessions.iter_mut().enumerate() {
        // A half that is closed leaves the other open.
        let said = vec![u8::try_from(number).unwrap(); 100_000];
        let (wrote, heard) = tokio::join!(
            async {
                client.write_all(&said).await?;
                client.shutdown().await
            },
            end(app)
        );
        wrote.unwrap();
        assert!(heard == said, "{number}: bytes differ");
        app.write_all(&said[..number]).await.unwrap();
        app.shutdown().await.unwrap();
        assert!(end(client).await == said[..number], "{number}");
    }
    for sidecar in [&mesh.a, &mesh.b] {
        let records = eventually("all are recorded", async || {
            let records = sidecar.audit();
            (records.len() == SESSIONS).then_some(records)
        })
        .await;
        for (number, record) in records.iter().enumerate() {
            assert_eq!(record["kind"], "connection", "{record}");
            assert_eq!(record["outcome"], "completed", "{record}");
            assert_eq!(record["bytes_in"], 100_001, "{record}");
            assert_eq!(record["bytes_out"], number, "{record}");
        }
    }
    let granted = |record: &Value| record["grant"]["id"] == "all-for-a";
    assert!(mesh.b.audit().iter().all(granted));
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard() {
    let (mesh, listener) = mesh(", tunnel: always").await;
    let mut client = TcpStream::connect(mesh.entrance()).await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    app.write_all(b"220 ready").await.unwrap();
    let mut greeting = [0; 9];
    client.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 ready");
}

#[tokio::test]
async fn a_session_has_a_connection_to_itself_while_there_is_no_other() {
    let (mesh, listener) = mesh("").await;
    let _first = session(&mesh, &listener).await;
    let _second = session(&mesh, &listener).await;
    let _third = session(&mesh, &listener).await;
    assert!((connections(&mesh).await - 2.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn switched_off_each_session_has_a_connection_to_itself() {
    let (mesh, listener) = mesh(", tunnel: off").await;
    let _first = session(&mesh, &listener).await;
    let _second = session(&mesh, &listener).await;
    assert!((connections(&mesh).await - 2.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_refusal_ends_one_session_and_the_caller_records_it() {
    let (mesh, listener) = mesh(", tunnel: always").await;
    let (mut client, mut app) = session(&mesh, &listener).await;
    mesh.repolicy(&grant("all-for-c", "c")).await;
    // What is open ends too, both ends of it.
    let (mut rest, limit) = ([0; 1], std::time::Duration::from_secs(1));
    let closed = async { (client.read(&mut rest).await, app.read_u8().await) };
    let (client_end, app_end) = tokio::time::timeout(limit, closed).await.unwrap();
    assert!(matches!(client_end, Ok(0) | Err(_)));
    assert!(app_end.is_err());
    let withdrawn = |record: &Value| record["outcome"] == "permit_withdrawn";
    mesh.b.record("the end", withdrawn).await;

    let mut refused = TcpStream::connect(mesh.entrance()).await.unwrap();
    let _ = refused.write_all(b"let me in").await;
    assert!(end(&mut refused).await.is_empty());
    let denied = |record: &Value| record["outcome"] == "denied";
    let record = mesh.b.record("the denial", denied).await;
    assert_eq!(record["reason"], "no_grant", "{record}");
    let record = mesh.a.record("what it was told", denied).await;
    assert_eq!(record["reason"], "refused_by_peer", "{record}");

    // The connection is as good as before.
    mesh.repolicy(&grant("all-for-a", "a")).await;
    session(&mesh, &listener).await;
    let inbound = [("direction", "inbound"), ("result", "completed")];
    mesh.b
        .counts("doorward_handshakes_total", &inbound, 1.0)
        .await;
}

#[tokio::test]
async fn an_application_that_cannot_be_reached_is_told_to_the_caller() {
    let (mesh, listener) = mesh(", tunnel: always").await;
    drop(listener);
    let mut client = TcpStream::connect(mesh.entrance()).await.unwrap();
    assert!(end(&mut client).await.is_empty());
    let unreachable = |record: &Value| record["outcome"] == "upstream_unreachable";
    mesh.b.record("the failure", unreachable).await;
    mesh.a.record("the failure", unreachable).await;
}

#[tokio::test]
async fn a_session_that_is_reset_ends_alone() {
    let (mesh, listener) = mesh(", tunnel: always").await;
    let (mut kept, mut kept_app) = session(&mesh, &listener).await;
    for (breaks, outcome_a, outcome_b) in [
        ("client", "client_gone", "client_gone"),
        ("app", "upstream_failed", "upstream_failed"),
    ] {
        let (client, app) = session(&mesh, &listener).await;
        let (broken, mut other) = match breaks {
            "client" => (client, app),
            _ => (app, client),
        };
        broken.set_zero_linger().unwrap();
        drop(broken);
        assert!(end(&mut other).await.is_empty(), "{breaks}");
        for (sidecar, outcome) in [(&mesh.a, outcome_a), (&mesh.b, outcome_b)] {
            let is_it = |record: &Value| record["outcome"] == outcome;
            sidecar.record(breaks, is_it).await;
        }
    }
    kept.write_all(b"!").await.unwrap();
    assert_eq!(kept_app.read_u8().await.unwrap(), b'!');
    assert!((connections(&mesh).await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn a_renewed_certificate_moves_new_sessions_and_leaves_the_old_ones() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::with(Options {
        app: Some(listener.local_addr().unwrap()),
        rotate_every: Some("1s"),
        inbound: "protocol: tcp".into(),
        outbound: "protocol: tcp, tunnel: always".into(),
        a: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await;
    let (mut old, mut old_app) = session(&mesh, &listener).await;
    let completed = [("direction", "outbound"), ("result", "completed")];
    // Sessions come and go; with each renewal they need another connection.
    eventually("sessions are on a third connection", async || {
        drop(session(&mesh, &listener).await);
        let metrics = mesh.a.metrics().await;
        (metrics.sum("doorward_handshakes_total", &completed) >= 3.0).then_some(())
    })
    .await;
    old.write_all(b"!").await.unwrap();
    assert_eq!(old_app.read_u8().await.unwrap(), b'!');
    drop((old, old_app));
    // Without sessions, all but the newest connections go.
    eventually("the old connections are closed", async || {
        drop(session(&mesh, &listener).await);
        (connections(&mesh).await <= 2.0).then_some(())
    })
    .await;
}

/// A peer that takes opaque bytes in the ways that `alpn` names, and sends them back.
async fn echo(acceptor: TlsAcceptor) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let (mut from, mut to) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn peers_that_know_nothing_of_it_are_served_as_before() {
    let dirs = Dirs::new();
    let mut issuer = Issuer::new(&dirs);
    issuer.add(&dirs, "a", "1h", None);
    issuer.start().await;
    let svid = issuer.ca().svid("b");
    let mut plan = Plan::new("a").with("workers: 1");
    // An older sidecar, a plain TLS server, and one that insists on a name of its own.
    let peers: [&[&str]; 3] = [&["h2", "http/1.1", "doorward-tcp"], &[], &["postgresql"]];
    for alpn in peers {
        let server = echo(Tls::server(&svid, alpn)).await;
        plan = plan.outbound(server, &id("b"), "protocol: tcp, tunnel: always");
    }
    let mut a = plan.start(&dirs, &issuer).await;
    a.ready().await;
    for (entrance, alpn) in a.outbound.iter().zip(peers) {
        for _ in 0..2 {
            let mut client = TcpStream::connect(entrance).await.unwrap();
            client.write_all(b"hello").await.unwrap();
            let mut back = [0; 5];
            client.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"hello", "{alpn:?}");
        }
    }
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame (RFC 9113 §4.1), its header block ended.
fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, if kind == HEADERS { 4 } else { 0 }]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header block: `(index of the name in HPACK's static table, value)`, none of them indexed.
fn block(fields: &[(u8, &str)]) -> Vec<u8> {
    let field = |(name, value): &(u8, &str)| {
        let mut field = vec![*name, u8::try_from(value.len()).unwrap()];
        field.extend(value.as_bytes());
        field
    };
    fields.iter().flat_map(field).collect()
}

const AUTHORITY: u8 = 1;
const METHOD: u8 = 2;
const PATH: u8 = 4;
const SCHEME: u8 = 6;

#[tokio::test]
async fn a_peer_that_asks_for_anything_else_reaches_nobody() {
    let (mesh, listener) = mesh(", tunnel: always").await;
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["doorward-tcp/1"]);
    let connect = (METHOD, "CONNECT");
    let authority = (AUTHORITY, "app:1");
    for (what, fields) in [
        (
            "GET",
            vec![(METHOD, "GET"), authority, (PATH, "/"), (SCHEME, "https")],
        ),
        ("no method", vec![authority]),
        ("no authority", vec![connect]),
        ("a path", vec![connect, authority, (PATH, "/")]),
        ("a scheme", vec![connect, authority, (SCHEME, "https")]),
    ] {
        let mut peer = tls.connect(mesh.gate()).await.unwrap();
        let asked = [
            PREFACE.to_vec(),
            frame(SETTINGS, 0, &[]),
            frame(HEADERS, 1, &block(&fields)),
        ];
        peer.write_all(&asked.concat()).await.unwrap();
        // Refused with an answer, or with a reset.
        let answer = async {
            loop {
                let mut header = [0; 9];
                peer.read_exact(&mut header).await.unwrap();
                let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
                let mut payload = vec![0; length as usize];
                peer.read_exact(&mut payload).await.unwrap();
                if header[8] == 1 {
                    return (header[3], payload);
                }
            }
        };
        let (kind, payload) = tokio::time::timeout(SOON, answer).await.expect(what);
        match kind {
            // `:status: 400` is the twelfth of the static table.
            HEADERS => assert_eq!(payload[0], 0x80 | 12, "{what}"),
            kind => assert_eq!(kind, RST_STREAM, "{what}"),
        }
    }
    // Whoever asks rightly is first in line.
    let (_client, _app) = session(&mesh, &listener).await;
}

/// What an attacker says in the round of this number.
type Round = fn(u32) -> Vec<u8>;

#[tokio::test]
async fn whoever_floods_a_shared_connection_is_cut_off_and_the_others_go_on() {
    let (mesh, listener) = mesh(", tunnel: always").await;
    let (mut client, mut app) = session(&mesh, &listener).await;
    let svid = mesh.issuer.ca().svid("c");
    let tls = Tls::new(Some(&svid), &["doorward-tcp/1"]);
    let rounds: [(&str, Round); 3] = [
        ("pings", |_| frame(PING, 0, &[7; 8])),
        ("rapid reset", |index| {
            let block = block(&[(METHOD, "CONNECT"), (AUTHORITY, "app:1")]);
            let stream = 1 + 2 * index;
            [
                frame(HEADERS, stream, &block),
                frame(RST_STREAM, stream, &[0, 0, 0, 8]),
            ]
            .concat()
        }),
        ("wrong requests", |index| {
            let block = block(&[(METHOD, "CONNECT"), (AUTHORITY, "app:1"), (PATH, "/")]);
            frame(HEADERS, 1 + 2 * index, &block)
        }),
    ];
    for (what, round) in rounds {
        let mut peer = tls.connect(mesh.gate()).await.unwrap();
        let flood = async {
            let begun = [PREFACE.to_vec(), frame(SETTINGS, 0, &[])].concat();
            let mut sent = peer.write_all(&begun).await;
            let mut index = 0;
            while sent.is_ok() {
                let many: Vec<u8> = (index..index + 1000).flat_map(round).collect();
                index += 1000;
                sent = peer.write_all(&many).await;
            }
        };
        tokio::time::timeout(SOON, flood).await.expect(what);
    }
    let frames = [("limit", "frames"), ("direction", "inbound")];
    within(SOON, "the limit is counted", async || {
        let metrics = mesh.b.metrics().await;
        (metrics.sum("doorward_limits_hit_total", &frames) >= 3.0).then_some(())
    })
    .await;
    client.write_all(b"!").await.unwrap();
    assert_eq!(app.read_u8().await.unwrap(), b'!');
}
