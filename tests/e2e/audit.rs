//! What happened is recorded, whatever happened; and what cannot be recorded does not happen.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::mesh::*;

fn is_request(record: &Value) -> bool {
    record["kind"] == "request"
}

#[tokio::test]
async fn an_allowed_request_is_recorded_with_who_what_why_and_how_it_ended() {
    let mesh = Mesh::new().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let mut asked = request("POST", "/status/201?token=hunter2");
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    asked
        .headers_mut()
        .insert("traceparent", traceparent.parse().unwrap());
    asked
        .headers_mut()
        .insert("authorization", "Bearer hunter2".parse().unwrap());
    let answer = ask(mesh.entrance(), asked).await;
    assert_eq!(answer.status, 201);

    let record = mesh.b.record("the request", is_request).await;
    for (pointer, expected) in [
        ("/direction", Value::from("inbound")),
        ("/principal/id", id("a").into()),
        ("/own", id("b").into()),
        ("/service", SERVICE.into()),
        ("/context/method", "POST".into()),
        ("/context/host", "app.example".into()),
        ("/context/path", "/status/201".into()),
        ("/context/protocol", "http/2".into()),
        ("/context/status", 201.into()),
        ("/decision", "allow".into()),
        ("/grant/id", "all-for-a".into()),
        ("/grant/owner", "payments@example.org".into()),
        ("/generation", 1.into()),
        ("/outcome", "completed".into()),
        ("/trace_id", trace.into()),
        ("/bytes_in", 0.into()),
        ("/bytes_out", answer.body.len().into()),
    ] {
        assert_eq!(
            record.pointer(pointer),
            Some(&expected),
            "{pointer}: {record}"
        );
    }
    for pointer in [
        "/principal/serial",
        "/principal/issuer",
        "/principal/not_after",
        "/source",
        "/time",
        "/id",
    ] {
        let found = record.pointer(pointer).and_then(Value::as_str);
        assert!(
            found.is_some_and(|text| !text.is_empty()),
            "{pointer}: {record}"
        );
    }
    assert!(record["duration_ms"].as_f64().unwrap() > 0.0);

    let told = mesh.a.record("the request", is_request).await;
    assert_eq!(told["direction"], "outbound");
    assert_eq!(told["principal"]["id"], id("a"));
    assert_eq!(told["peer"]["id"], id("b"));
    assert_eq!(told["decision"], "none");
    assert_eq!(told["trace_id"], trace);

    // Secrets travel in queries and headers; neither is kept, nor logged.
    for sidecar in [&mesh.a, &mesh.b] {
        let kept = std::fs::read_to_string(&sidecar.audit).unwrap() + &sidecar.process.log();
        assert!(!kept.contains("hunter2"), "{kept}");
    }
}

#[tokio::test]
async fn a_registered_owner_is_named_in_the_record() {
    let mesh = Mesh::new().await;
    let generation = mesh.generation().await;
    mesh.policy.write(
        "workloads.yaml",
        "workloads:\n- { id: 'spiffe://example.org/a', owner: checkout@example.org, purpose: Checkout }\n",
    );
    mesh.policy_after(generation).await;
    assert_eq!(mesh.get("/").await.status, 200);
    let record = mesh.b.record("the request", is_request).await;
    assert_eq!(
        record["principal"]["owner"], "checkout@example.org",
        "{record}"
    );
}

#[tokio::test]
async fn a_tcp_session_is_recorded_with_what_passed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mesh = Mesh::with(Options {
        app: Some(listener.local_addr().unwrap()),
        inbound: "protocol: tcp".into(),
        outbound: "protocol: tcp".into(),
        ..Options::default()
    })
    .await;
    let mut client = TcpStream::connect(mesh.entrance()).await.unwrap();
    client.write_all(b"12345").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut app, _) = listener.accept().await.unwrap();
    let mut read = Vec::new();
    app.read_to_end(&mut read).await.unwrap();
    app.write_all(b"123").await.unwrap();
    drop(app);
    client.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"12345123");

    let record = mesh
        .b
        .record("the session", |record| record["kind"] == "connection")
        .await;
    assert_eq!(record["principal"]["id"], id("a"), "{record}");
    assert_eq!(record["decision"], "allow", "{record}");
    assert_eq!(record["grant"]["id"], "all-for-a", "{record}");
    assert_eq!(record["outcome"], "completed", "{record}");
    assert_eq!(
        (&record["bytes_in"], &record["bytes_out"]),
        (&5.into(), &3.into())
    );

    mesh.repolicy(&grant("all-for-c", "c")).await;
    let mut client = TcpStream::connect(mesh.entrance()).await.unwrap();
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    let record = mesh
        .b
        .record("the denial", |record| record["decision"] == "deny")
        .await;
    assert_eq!(record["reason"], "no_grant", "{record}");
    assert_eq!(record["outcome"], "denied", "{record}");
}

#[tokio::test]
async fn at_level_denials_only_refusals_of_requests_are_kept() {
    let dirs = Dirs::new();
    let path = dirs.file("denials.jsonl");
    let mut mesh = Mesh::with(Options {
        audit: Some(format!("{{ path: '{}', level: denials }}", path.display())),
        policy: Some(governed(
            "reads",
            "permit (principal == Workload::\"spiffe://example.org/a\", action in Action::\"read\", resource == Service::\"invoices\");",
        )),
        ..Options::default()
    })
    .await;
    mesh.b.audit = path;
    assert_eq!(mesh.get("/first").await.status, 200);
    assert_eq!(
        ask(mesh.entrance(), request("POST", "/second"))
            .await
            .status,
        403
    );
    assert_eq!(mesh.get("/third").await.status, 200);
    // All that was waiting is written when it stops.
    assert_eq!(mesh.b.terminate().await, Some(0));
    let records = mesh.b.audit();
    let paths: Vec<_> = records
        .iter()
        .map(|record| &record["context"]["path"])
        .collect();
    assert_eq!(paths, ["/second"], "{records:?}");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_refused_and_readiness_says_why() {
    let mesh = Mesh::with(Options {
        audit: Some("{ path: /dev/full }".into()),
        ..Options::default()
    })
    .await;
    // The first record finds out that the disk is full.
    let refused = eventually("requests are refused", async || {
        let answer = mesh.get("/").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(refused.json()["error"], "audit_unavailable");
    assert_eq!(
        refused.header("proxy-status"),
        "doorward; error=proxy_internal_error"
    );
    let before = mesh.app.seen().len();
    for _ in 0..5 {
        assert_eq!(mesh.get("/").await.status, 503);
    }
    assert_eq!(mesh.app.seen().len(), before);
    assert_eq!(mesh.b.readiness().await.status, 503);
    assert_eq!(mesh.b.unready().await, ["audit"]);
    let metrics = mesh.b.metrics().await;
    assert!(metrics.sum("doorward_audit_refused_total", &[]) >= 6.0);
    assert_eq!(metrics.value("doorward_audit_healthy", &[]), Some(0.0));
    assert_eq!(metrics.value("doorward_audit_lost_total", &[]), Some(0.0));
}

#[tokio::test]
async fn whoever_prefers_to_go_on_without_records_goes_on_and_counts_them() {
    let mesh = Mesh::with(Options {
        audit: Some("{ path: /dev/full, on_failure: continue, queue: 16 }".into()),
        ..Options::default()
    })
    .await;
    let mut client = Client::connect(mesh.entrance(), Http::One).await;
    eventually("records are lost and counted", async || {
        assert_eq!(client.get("/").await.unwrap().status, 200);
        let metrics = mesh.b.metrics().await;
        (metrics.sum("doorward_audit_lost_total", &[]) > 0.0).then_some(())
    })
    .await;
    assert_eq!(mesh.b.readiness().await.status, 200);
}

#[tokio::test]
async fn a_rotated_file_is_opened_anew_on_sighup() {
    let mesh = Mesh::new().await;
    assert_eq!(mesh.get("/before").await.status, 200);
    mesh.b.record("the first", is_request).await;
    let aside = mesh.dirs.file("b.audit.old");
    std::fs::rename(&mesh.b.audit, &aside).unwrap();
    mesh.b.process.signal(nix::sys::signal::Signal::SIGHUP);
    eventually("the file is there again", async || {
        mesh.b.audit.exists().then_some(())
    })
    .await;
    assert_eq!(mesh.get("/after").await.status, 200);
    mesh.b
        .record("the second", |record| record["context"]["path"] == "/after")
        .await;
    let old = std::fs::read_to_string(aside).unwrap();
    assert!(old.contains("/before") && !old.contains("/after"), "{old}");
}
