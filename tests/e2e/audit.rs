//! What happened is recorded, whatever happened; what cannot be recorded does not happen; and what was done
//! to the record afterwards is found.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Output;

use nix::sys::signal::Signal;
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
    let mut mesh = Mesh::unidentified(Options {
        audit: Some("{ path: /dev/full }".into()),
        ..Options::default()
    })
    .await;
    mesh.issuer.start().await;
    mesh.a.ready().await;
    let refused = eventually("requests are refused", async || {
        let answer = mesh.get("/").await;
        (answer.text().contains("audit_unavailable")).then_some(answer)
    })
    .await;
    assert_eq!(refused.status, 503);
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
    mesh.b.process.signal(Signal::SIGHUP);
    eventually("the file is there again", async || {
        mesh.b.audit.exists().then_some(())
    })
    .await;
    assert_eq!(mesh.get("/after").await.status, 200);
    mesh.b
        .record("the second", |record| record["context"]["path"] == "/after")
        .await;
    let old = std::fs::read_to_string(&aside).unwrap();
    assert!(old.contains("/before") && !old.contains("/after"), "{old}");

    // One chain goes through both, in whatever order they are given.
    let output = verify(&[&mesh.b.audit, &aside]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = verify(&[&mesh.b.audit]);
    assert!(said(&output).contains("its first 1 files are not here"));
}

fn verify(args: &[&Path]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.args(["audit", "verify"]).args(args);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn verified(args: &[&Path]) -> Value {
    let mut args = args.to_vec();
    args.push(Path::new("--json"));
    serde_json::from_slice(&verify(&args).stdout).unwrap()
}

/// Starts `b` again, with the configuration it had.
fn again(mesh: &Mesh, log: &str) -> Process {
    let config = mesh.dirs.file("b.yaml");
    let args = ["run", "--config", config.to_str().unwrap()];
    Process::spawn("b", &mesh.dirs.program("b"), &args, &mesh.dirs.file(log))
}

#[tokio::test]
async fn a_file_is_rotated_under_load_and_no_record_is_lost() {
    let dirs = Dirs::new();
    let dir = dirs.file("audit");
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("audit.jsonl");
    let mut mesh = Mesh::with(Options {
        audit: Some(format!(
            "{{ path: '{}', rotate: {{ size: 64 KiB, keep: 1000 }} }}",
            file.display()
        )),
        ..Options::default()
    })
    .await;
    let clients = (0..8).map(|_| {
        let entrance = mesh.entrance();
        tokio::spawn(async move {
            let mut client = Client::connect(entrance, Http::Two).await;
            for _ in 0..100 {
                assert_eq!(client.get("/load").await.unwrap().status, 200);
            }
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.await.unwrap();
    }
    let rotations = mesh.b.metrics().await;
    assert!(rotations.sum("doorward_audit_rotations_total", &[]) >= 3.0);
    assert_eq!(mesh.b.terminate().await, Some(0));
    let output = verify(&[&dir]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut records = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        mesh.b.audit = entry.unwrap().path();
        let requests = mesh.b.audit();
        records += requests
            .iter()
            .filter(|record| is_request(record) && record["context"]["path"] == "/load")
            .count();
    }
    assert_eq!(records, 800);
    assert!(verified(&[&dir])["logs"][0]["stopped"] == true);

    // A whole file that is taken out of the middle is missed.
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    std::fs::remove_file(&files[2]).unwrap();
    let output = verify(&[&dir]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("of the log are missing before this one"));
}

#[tokio::test]
async fn a_killed_sidecar_goes_on_with_its_log_and_marks_the_tear() {
    let mut mesh = Mesh::new().await;
    assert_eq!(mesh.get("/before").await.status, 200);
    mesh.b.record("the request", is_request).await;
    mesh.b.process.signal(Signal::SIGKILL);
    assert_eq!(mesh.b.process.exit().await, None);
    // As a machine that went down in the middle of a write would leave it.
    let mut file = std::fs::File::options()
        .append(true)
        .open(&mesh.b.audit)
        .unwrap();
    file.write_all(b"{\"time\":\"2027-01-01T00:0").unwrap();
    assert_eq!(verified(&[&mesh.b.audit])["logs"][0]["unfinished"], true);

    let mut process = again(&mesh, "b.again.log");
    eventually("it goes on", async || {
        process.assert_running();
        let text = std::fs::read_to_string(&mesh.b.audit).unwrap();
        text.contains("\"kind\":\"resumed\"").then_some(())
    })
    .await;
    process.signal(Signal::SIGTERM);
    assert_eq!(process.exit().await, Some(0));
    let report = verified(&[&mesh.b.audit]);
    assert_eq!(report["sound"], true, "{report}");
    assert_eq!(report["logs"].as_array().unwrap().len(), 1);
    assert_eq!(report["logs"][0]["torn"], 1);
}

#[tokio::test]
async fn two_sidecars_never_write_one_file() {
    let mesh = Mesh::new().await;
    let mut second = again(&mesh, "second.log");
    assert_eq!(second.exit().await, Some(2));
    let told = second.log();
    assert!(
        told.contains("another process writes to the audit file")
            && told.contains(mesh.b.audit.to_str().unwrap()),
        "{told}"
    );
    assert_eq!(mesh.get("/").await.status, 200);
}

#[tokio::test]
async fn whoever_tampers_with_a_file_is_found_and_the_line_named() {
    let mut mesh = Mesh::with(Options {
        b: vec!["admin: { listen: '127.0.0.1:0' }".into()],
        ..Options::default()
    })
    .await;
    for number in 1..=5 {
        assert_eq!(mesh.get(&format!("/{number}")).await.status, 200);
    }
    mesh.b
        .record("the last", |record| record["context"]["path"] == "/5")
        .await;
    // What the sidecar says of itself is noted elsewhere. It says so once the lines are in the file.
    let head = eventually("the head after the last line", async || {
        let noted = get(mesh.b.admin.unwrap(), "/audit").await.json();
        let written = std::fs::read_to_string(&mesh.b.audit).unwrap();
        let is_last = noted["lines"] == written.lines().count();
        is_last.then(|| noted["head"].as_str().unwrap().to_owned())
    })
    .await;
    assert_eq!(mesh.b.terminate().await, Some(0));
    assert!(mesh.b.process.log().contains("the audit chain"));
    let audit = mesh.b.audit.clone();
    let options = ["--head", &head].map(Path::new);
    let anchored = [&*audit, options[0], options[1]];
    let output = verify(&anchored);
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    let whole = std::fs::read_to_string(&audit).unwrap();
    let lines: Vec<_> = whole.lines().collect();
    let at = |path: &str| {
        let asked = format!("\"path\":\"{path}\"");
        lines.iter().position(|line| line.contains(&asked)).unwrap()
    };
    let place = |line: usize| format!("{}:{}: ", audit.display(), line + 1);
    let tampered = |text: String| {
        std::fs::write(&audit, text).unwrap();
        let output = verify(&[&audit]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        said(&output)
    };
    let told = tampered(whole.replace("\"path\":\"/3\"", "\"path\":\"/x\""));
    assert!(told.starts_with(&(place(at("/3")) + "changed")), "{told}");
    let without = |gone: usize| {
        let kept = lines.iter().enumerate().filter(|(at, _)| *at != gone);
        kept.map(|(_, line)| (*line).to_owned() + "\n").collect()
    };
    let told = tampered(without(at("/2")));
    assert!(told.starts_with(&(place(at("/2")) + "removed")), "{told}");
    let mut moved = lines.clone();
    moved.swap(at("/2"), at("/4"));
    let told = tampered(moved.join("\n") + "\n");
    assert!(told.starts_with(&place(at("/2"))), "{told}");

    // Lines that are cut off at the end show only against what was noted.
    std::fs::write(&audit, lines[..at("/4")].join("\n") + "\n").unwrap();
    assert_eq!(verify(&[&audit]).status.code(), Some(0));
    let output = verify(&anchored);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains(&head), "{output:?}");

    let output = verify(&[Path::new("/nowhere/audit.jsonl")]);
    assert_eq!(output.status.code(), Some(2));
}

#[tokio::test]
async fn a_receiver_on_a_socket_may_go_and_come_back() {
    let dirs = Dirs::new();
    let path: PathBuf = dirs.file("audit.sock");
    let receiver = UnixDatagram::bind(&path).unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    let mut mesh = Mesh::with(Options {
        audit: Some(format!("{{ socket: '{}' }}", path.display())),
        ..Options::default()
    })
    .await;
    let receive = |receiver: &UnixDatagram| -> Value {
        let mut bytes = vec![0; 64 << 10];
        let length = receiver.recv(&mut bytes).unwrap();
        serde_json::from_slice(&bytes[..length]).unwrap()
    };
    let received = |receiver: &UnixDatagram, path: &str| {
        while receive(receiver)["context"]["path"] != path {}
    };
    assert_eq!(receive(&receiver)["kind"], "file");
    assert_eq!(mesh.get("/here").await.status, 200);
    received(&receiver, "/here");

    drop(receiver);
    std::fs::remove_file(&path).unwrap();
    let refused = eventually("requests are refused", async || {
        let answer = mesh.get("/away").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(refused.json()["error"], "audit_unavailable");
    assert_eq!(mesh.b.unready().await, ["audit"]);
    assert!(mesh.b.readiness().await.text().contains("no such socket"));

    let receiver = UnixDatagram::bind(&path).unwrap();
    receiver.set_read_timeout(Some(SOON)).unwrap();
    mesh.b.ready().await;
    assert_eq!(mesh.get("/back").await.status, 200);
    // What happened before it was known to be away waited for it.
    received(&receiver, "/away");
    received(&receiver, "/back");
    let metrics = mesh.b.metrics().await;
    assert_eq!(metrics.value("doorward_audit_lost_total", &[]), Some(0.0));
}
