//! Access lives as long as its proof: what ends takes with it what stood on it, and nothing else.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::mesh::*;

/// Within this a sidecar is back once its provider is.
const BACK: Duration = Duration::from_secs(3);

#[tokio::test]
async fn without_a_provider_nothing_is_served_and_with_one_everything_within_3_seconds() {
    let mut mesh = Mesh::unidentified(Options::default()).await;
    assert_eq!(mesh.b.unready().await, ["identity", "listeners"]);
    assert_eq!(mesh.a.readiness().await.status, 503);
    assert_eq!(get(mesh.b.metrics, "/live").await.status, 200);
    for address in [mesh.entrance(), mesh.gate()] {
        let refused = TcpStream::connect(address).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    // It has tried more than once, and will again.
    eventually("the provider is asked again and again", async || {
        let failures = mesh.b.metrics().await;
        (failures.sum("doorward_identity_source_failures_total", &[]) >= 2.0).then_some(())
    })
    .await;
    mesh.issuer.start().await;
    within(BACK, "both are ready", async || {
        let both = (
            mesh.a.readiness().await.status,
            mesh.b.readiness().await.status,
        );
        (both == (200, 200)).then_some(())
    })
    .await;
    assert_eq!(mesh.get("/").await.status, 200);
}

#[tokio::test]
async fn without_its_provider_a_sidecar_serves_until_its_certificate_ends_and_no_longer() {
    let mut mesh = Mesh::with(Options {
        lifetime: "5s",
        ..Options::default()
    })
    .await;
    let mut client = Client::connect(mesh.entrance(), Http::One).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
    mesh.issuer.kill();
    let not_after = async |sidecar: &Sidecar| {
        let metrics = sidecar.metrics().await;
        metrics
            .value("doorward_identity_not_after_timestamp_seconds", &[])
            .unwrap()
    };
    let ends = not_after(&mesh.a).await.min(not_after(&mesh.b).await);

    // Every answer that comes well before the end is an answer.
    let refused = loop {
        let asked = now();
        let answer = client.get("/").await.unwrap();
        if answer.status == 200 {
            // The check at the end and the answer are not one instant.
            assert!(asked < ends + 1.0, "served after its end");
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        assert!(now() >= ends - 0.1, "refused before its end: {answer:?}");
        break answer;
    };
    // Whichever of the two ended first, it was a proxy that refused.
    let why = refused.header("proxy-status");
    assert!(why.starts_with("doorward; error="), "{refused:?}");
    eventually("both have ended", async || {
        let both = (mesh.a.unready().await, mesh.b.unready().await);
        (both == (vec!["identity".into()], vec!["identity".into()])).then_some(())
    })
    .await;
    let answer = client.get("/").await.unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["error"], "own_identity_expired");

    mesh.issuer.start().await;
    within(BACK, "requests pass again", async || {
        (client.get("/").await.unwrap().status == 200).then_some(())
    })
    .await;
    assert_eq!(mesh.a.readiness().await.status, 200);
    assert_eq!(mesh.b.readiness().await.status, 200);
}

fn now() -> f64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

#[tokio::test]
async fn a_workload_whose_entry_is_removed_stops_presenting_its_identity_at_once() {
    let mut mesh = Mesh::new().await;
    let mut client = Client::connect(mesh.entrance(), Http::One).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);

    mesh.issuer.remove("a");
    mesh.issuer.reload();
    within(Duration::from_secs(2), "a has no identity", async || {
        (mesh.a.unready().await == ["identity"]).then_some(())
    })
    .await;
    let answer = client.get("/").await.unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["error"], "identity_unavailable");
    // Nobody else loses anything.
    assert_eq!(mesh.b.readiness().await.status, 200);

    mesh.issuer.add(&mesh.dirs, "a", "1h", None);
    mesh.issuer.reload();
    within(BACK, "a is back", async || {
        (client.get("/").await.unwrap().status == 200).then_some(())
    })
    .await;

    mesh.issuer.remove("b");
    mesh.issuer.reload();
    within(Duration::from_secs(2), "b has no identity", async || {
        (mesh.b.unready().await == ["identity"]).then_some(())
    })
    .await;
    let before = mesh.app.seen().len();
    let answer = client.get("/").await.unwrap();
    assert!([502, 503].contains(&answer.status), "{answer:?}");
    // It presents nothing to a newcomer either.
    let svid = mesh.issuer.ca().svid("a");
    let shown = Tls::new(Some(&svid), &["h2"]).connect(mesh.gate()).await;
    assert!(shown.is_err());
    assert_eq!(mesh.app.seen().len(), before);
}

#[tokio::test]
async fn a_withdrawn_grant_closes_an_open_tcp_session_within_a_second() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::with(Options {
        app: Some(listener.local_addr().unwrap()),
        inbound: "protocol: tcp".into(),
        outbound: "protocol: tcp".into(),
        policy: Some(grant("all-for-a", "a") + &grant("all-for-c", "c")),
        ..Options::default()
    })
    .await;
    let mut client = TcpStream::connect(mesh.entrance()).await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    client.write_all(b"x").await.unwrap();
    assert_eq!(app.read_u8().await.unwrap(), b'x');
    // Another session, of somebody who keeps the grant.
    let svid = mesh.issuer.ca().svid("c");
    let kept = Tls::new(Some(&svid), &["doorward-tcp"]);
    let mut kept = kept.connect(mesh.gate()).await.unwrap();
    let (mut app_of_kept, _) = listener.accept().await.unwrap();

    // A change that leaves the grant as it is ends nothing.
    mesh.repolicy(&(grant("all-for-a", "a") + &grant("all-for-c", "c") + &grant("all-for-d", "d")))
        .await;
    client.write_all(b"y").await.unwrap();
    assert_eq!(app.read_u8().await.unwrap(), b'y');

    mesh.repolicy(&grant("all-for-c", "c")).await;
    let closed = async {
        // Whether it ends or is reset: nothing more comes.
        assert!(client.read_u8().await.is_err());
        assert!(app.read_u8().await.is_err());
    };
    tokio::time::timeout(Duration::from_secs(1), closed)
        .await
        .expect("both ends are closed within a second");
    let record = mesh
        .b
        .record("the end", |record| record["outcome"] == "permit_withdrawn")
        .await;
    assert_eq!(record["principal"]["id"], id("a"), "{record}");
    assert_eq!(record["bytes_in"], 2, "{record}");

    kept.write_all(b"z").await.unwrap();
    assert_eq!(app_of_kept.read_u8().await.unwrap(), b'z');
}

#[tokio::test]
async fn a_grant_that_ends_by_itself_closes_an_open_tcp_session() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::with(Options {
        app: Some(listener.local_addr().unwrap()),
        inbound: "protocol: tcp".into(),
        outbound: "protocol: tcp".into(),
        ..Options::default()
    })
    .await;
    let mut client = TcpStream::connect(mesh.entrance()).await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    app.write_all(b"hello").await.unwrap();
    // However long the start has taken, the end is still to come.
    let end = std::time::SystemTime::now() + Duration::from_secs(3);
    let end = humantime::format_rfc3339_seconds(end).to_string();
    mesh.repolicy(&grant("short", "a").replace("2099-01-01", &end))
        .await;
    let mut read = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), client.read_to_end(&mut read));
    let _ = ended
        .await
        .expect("it is closed soon after the grant's end");
    assert_eq!(read, b"hello");
    mesh.b
        .record("the end", |record| record["outcome"] == "permit_withdrawn")
        .await;
}

#[tokio::test]
async fn a_withdrawn_grant_denies_the_next_request_on_open_http_connections() {
    let mesh = Mesh::new().await;
    for http in [Http::One, Http::Two] {
        let mut client = Client::connect(mesh.entrance(), http).await;
        assert_eq!(client.get("/").await.unwrap().status, 200);
        mesh.repolicy(&grant("all-for-c", "c")).await;
        assert_eq!(client.get("/").await.unwrap().status, 403, "{http:?}");
        // Only the request is refused; the connection may well be granted something else.
        mesh.repolicy(&grant("again", "a")).await;
        assert_eq!(client.get("/").await.unwrap().status, 200, "{http:?}");
    }
}

#[tokio::test]
async fn when_a_peers_certificate_ends_its_next_request_is_refused_and_the_connection_closed() {
    let mesh = Mesh::new().await;
    let ca = mesh.issuer.ca();
    for (alpn, http) in [("http/1.1", Http::One), ("h2", Http::Two)] {
        let svid = ca.svid_for("a", Duration::from_secs(2));
        let mut client = Tls::new(Some(&svid), &[alpn]).client(mesh.gate()).await;
        let began = std::time::Instant::now();
        let mut served = 0;
        // Either the refusal is seen, or the goodbye was faster.
        loop {
            match client.get("/").await {
                Ok(answer) if answer.status == 200 => served += 1,
                Ok(answer) => {
                    assert_eq!(answer.status, 403, "{http:?} {answer:?}");
                    assert_eq!(answer.json()["error"], "peer_expired");
                    break;
                }
                Err(_) => break,
            }
            let lasted = began.elapsed();
            assert!(
                lasted < Duration::from_secs(4),
                "{http:?} served for {lasted:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(served > 0, "{http:?}");
        assert!(
            began.elapsed() > Duration::from_secs(1),
            "{http:?} ended early"
        );
        let closed = [("kind", "http"), ("outcome", "peer_expired")];
        let number = if http == Http::One { 1.0 } else { 2.0 };
        mesh.b
            .counts("doorward_sessions_ended_total", &closed, number)
            .await;
        let seen = mesh.app.seen().len();
        assert!(client.get("/").await.is_err(), "{http:?}");
        assert_eq!(mesh.app.seen().len(), seen);
    }
}

#[tokio::test]
async fn when_a_peers_certificate_ends_its_tcp_session_is_closed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::with(Options {
        app: Some(listener.local_addr().unwrap()),
        inbound: "protocol: tcp".into(),
        ..Options::default()
    })
    .await;
    let svid = mesh.issuer.ca().svid_for("a", Duration::from_secs(2));
    let tls = Tls::new(Some(&svid), &["doorward-tcp"]);
    let mut client = tls.connect(mesh.gate()).await.unwrap();
    client.write_all(b"x").await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    assert_eq!(app.read_u8().await.unwrap(), b'x');
    let ended = tokio::time::timeout(Duration::from_secs(4), app.read_u8());
    assert!(ended.await.expect("it is closed at the end").is_err());
    let record = mesh
        .b
        .record("the end", |record| record["outcome"] == "peer_expired")
        .await;
    assert_eq!(record["principal"]["id"], id("a"), "{record}");
}
