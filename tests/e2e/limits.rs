//! What others can make us hold is bounded, and who holds much does not keep the others out.

use http::header;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::mesh::{
    Client, Http, Mesh, Options, SERVICE, Sidecar, Tls, eventually, get, governed, id, request,
};

/// A response that does not end before its reader does.
const ENDLESS: &str = "/stream?n=1000000&ms=60000";

#[tokio::test]
async fn more_requests_than_may_be_are_turned_away_while_denials_and_health_are_answered() {
    let principal = id("a");
    let policy = governed(
        "a-but-not-secrets",
        &format!(
            "permit (principal == Workload::\"{principal}\", action, resource == Service::\"{SERVICE}\")\nunless {{ context has http && context.http.path like \"/secret*\" }};"
        ),
    );
    let mesh = Mesh::with(Options {
        policy: Some(policy),
        inbound: "max_requests: 3".into(),
        b: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await;
    let mut client = Client::connect(mesh.entrance(), Http::Two).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let endless = request("GET", &format!("http://app.example{ENDLESS}"));
        held.push(client.send(endless).await.unwrap());
    }
    let inbound = [("direction", "inbound")];
    mesh.b
        .counts("doorward_requests_in_flight", &inbound, 3.0)
        .await;

    for http in [Http::One, Http::Two] {
        let mut client = Client::connect(mesh.entrance(), http).await;
        let turned_away = client.get("/more").await.unwrap();
        assert_eq!(turned_away.status, 503);
        assert_eq!(turned_away.header("retry-after"), "1");
        assert_eq!(turned_away.json()["error"], "overloaded");
        assert_eq!(client.get("/secret").await.unwrap().status, 403);
    }
    let mut call = request("POST", "http://app.example/invoices.Invoices/Get");
    let grpc = header::HeaderValue::from_static("application/grpc");
    call.headers_mut().insert(header::CONTENT_TYPE, grpc);
    let turned_away = client.ask(call).await.unwrap();
    assert_eq!(turned_away.header("grpc-status"), "14");
    assert_eq!(mesh.b.readiness().await.status, 200);
    assert_eq!(get(mesh.b.metrics, "/live").await.status, 200);
    hits(&mesh.b, "requests", 3).await;
    assert!(
        !mesh
            .app
            .seen()
            .iter()
            .any(|seen| seen.path == "/more" || seen.path.ends_with("/Get")),
        "the application was spared"
    );

    drop(held.pop());
    eventually("one that ends makes room", async || {
        (mesh.get("/more").await.status == 200).then_some(())
    })
    .await;
    drop(held);
    mesh.b
        .counts("doorward_requests_in_flight", &inbound, 0.0)
        .await;
}

#[tokio::test]
async fn a_worker_that_does_not_keep_up_turns_requests_away_while_denials_and_health_are_answered()
{
    let principal = id("a");
    let policy = governed(
        "a-but-not-secrets",
        &format!(
            "permit (principal == Workload::\"{principal}\", action, resource == Service::\"{SERVICE}\")\nunless {{ context has http && context.http.path like \"/secret*\" }};"
        ),
    );
    let mesh = Mesh::with(Options {
        policy: Some(policy),
        // Nobody is as punctual as that.
        inbound: "max_lag: 1us".into(),
        b: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await;
    let mut client = Client::connect(mesh.entrance(), Http::Two).await;
    for _ in 0..50 {
        // However late it is, a few requests are never turned away.
        assert_eq!(client.get("/alone").await.unwrap().status, 200);
    }
    let mut held = Vec::new();
    for _ in 0..8 {
        let endless = request("GET", &format!("http://app.example{ENDLESS}"));
        held.push(client.send(endless).await.unwrap());
    }
    let mut served = 0;
    let turned_away = loop {
        let answer = client.get("/more").await.unwrap();
        if answer.status != 200 {
            break answer;
        }
        served += 1;
        assert!(served < 100_000, "nobody is turned away");
    };
    assert_eq!(turned_away.status, 503);
    assert_eq!(turned_away.header("retry-after"), "1");
    assert_eq!(turned_away.json()["error"], "overloaded");
    let mut seen = 0;
    loop {
        let mut call = request("POST", "http://app.example/invoices.Invoices/Get");
        let grpc = header::HeaderValue::from_static("application/grpc");
        call.headers_mut().insert(header::CONTENT_TYPE, grpc);
        match client.ask(call).await.unwrap().header("grpc-status") {
            "" => seen += 1,
            status => break assert_eq!(status, "14"),
        }
        assert!(seen < 100_000, "no call is turned away");
    }
    assert_eq!(client.get("/secret").await.unwrap().status, 403);
    assert_eq!(mesh.b.readiness().await.status, 200);
    assert_eq!(get(mesh.b.metrics, "/live").await.status, 200);
    let asked = mesh.app.seen();
    let asked = asked.iter().filter(|seen| seen.path == "/more");
    assert_eq!(asked.count(), served, "the application was spared");
    let metrics = mesh.b.metrics().await;
    let inbound = ("direction", "inbound");
    let lag = [inbound, ("limit", "lag")];
    assert!(metrics.sum("doorward_limits_hit_total", &lag) >= 2.0);
    assert!(metrics.sum("doorward_worker_lag_seconds_count", &[inbound]) > 0.0);

    drop(held);
    eventually("who is left is served", async || {
        (mesh.get("/more").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn our_own_application_is_turned_away_in_the_same_way() {
    let mesh = Mesh::with(Options {
        outbound: "max_requests: 1".into(),
        a: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await;
    let mut client = Client::connect(mesh.entrance(), Http::Two).await;
    let endless = request("GET", &format!("http://app.example{ENDLESS}"));
    let held = client.send(endless).await.unwrap();
    let turned_away = client.get("/").await.unwrap();
    assert_eq!(turned_away.status, 503);
    assert_eq!(turned_away.header("retry-after"), "1");
    hits(&mesh.a, "requests", 1).await;
    drop(held);
    eventually("one that ends makes room", async || {
        (mesh.get("/").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn half_open_handshakes_are_few_and_keep_nobody_out() {
    let mesh = Mesh::with(Options {
        inbound: "max_handshakes: 8, handshake_timeout: 1m".into(),
        b: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(mesh.gate()).await.unwrap());
    }
    hits(&mesh.b, "handshakes", 32).await;
    let crowded = [("result", "crowded")];
    mesh.b
        .counts("doorward_handshakes_total", &crowded, 32.0)
        .await;
    // The oldest are gone, the newest are not.
    let mut byte = [0; 1];
    for stream in &mut silent[..32] {
        let ended = stream.read(&mut byte).await;
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    }
    for stream in &silent[32..] {
        let still_open = stream.try_read(&mut byte).unwrap_err();
        assert_eq!(still_open.kind(), std::io::ErrorKind::WouldBlock);
    }
    let svid = mesh.issuer.ca().svid("a");
    let mut client = Tls::new(Some(&svid), &["h2"]).client(mesh.gate()).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_handshake_that_does_not_come_to_its_end_is_given_up() {
    let mesh = Mesh::with(Options {
        inbound: "handshake_timeout: 100ms".into(),
        ..Options::default()
    })
    .await;
    let mut silent = TcpStream::connect(mesh.gate()).await.unwrap();
    let mut byte = [0; 1];
    assert_eq!(silent.read(&mut byte).await.unwrap(), 0);
    let late = [("result", "timeout")];
    mesh.b.counts("doorward_handshakes_total", &late, 1.0).await;
}

#[tokio::test]
async fn more_connections_than_may_be_wait_until_one_ends() {
    let mesh = Mesh::with(Options {
        outbound: "max_connections: 2".into(),
        a: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await;
    let mut first = Client::connect(mesh.entrance(), Http::One).await;
    let mut second = Client::connect(mesh.entrance(), Http::One).await;
    assert_eq!(first.get("/first").await.unwrap().status, 200);
    assert_eq!(second.get("/second").await.unwrap().status, 200);
    let mut third = Client::connect(mesh.entrance(), Http::One).await;
    let mut waiting = JoinSet::new();
    waiting.spawn(async move { third.get("/third").await.unwrap().status });
    hits(&mesh.a, "connections", 1).await;
    assert_eq!(first.get("/first").await.unwrap().status, 200);
    assert!(!mesh.app.seen().iter().any(|seen| seen.path == "/third"));
    drop(second);
    assert_eq!(waiting.join_next().await.unwrap().unwrap(), 200);
}

#[tokio::test]
async fn running_out_of_descriptors_ends_nothing_and_probes_still_get_in() {
    let mut mesh = Mesh::with(Options {
        inbound: "handshake_timeout: 1m".into(),
        b: vec!["workers: 1".into()],
        ulimit: Some("-n 160"),
        ..Options::default()
    })
    .await;
    let mut client = Client::connect(mesh.entrance(), Http::One).await;
    assert_eq!(client.get("/before").await.unwrap().status, 200);
    // More than there are descriptors.
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(mesh.gate()).await.unwrap());
    }
    eventually("descriptors run out", async || {
        let limit = [("limit", "descriptors")];
        let metrics = mesh.b.metrics().await;
        (metrics.sum("doorward_limits_hit_total", &limit) > 0.0).then_some(())
    })
    .await;
    // Ten probes at once, and metrics: each takes a descriptor.
    let mut probes = JoinSet::new();
    for path in ["/ready", "/live", "/metrics"].repeat(4) {
        let address = mesh.b.metrics;
        probes.spawn(async move { get(address, path).await.status });
    }
    assert!(probes.join_all().await.iter().all(|status| *status == 200));
    let used = mesh.b.metrics().await.sum("process_open_fds", &[]);
    assert!(used < 160.0, "{used} descriptors are open");
    // Who was there before is served, a connection to the application included.
    for _ in 0..10 {
        assert_eq!(client.get("/meanwhile").await.unwrap().status, 200);
    }
    mesh.b.process.assert_running();

    drop(silent);
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["h2"]);
    let mut late = tls.client(mesh.gate()).await;
    assert_eq!(late.get("/after").await.unwrap().status, 200);
}

#[tokio::test]
async fn as_many_descriptors_are_taken_as_the_hard_limit_allows() {
    let mesh = Mesh::with(Options {
        ulimit: Some("-S -n 64"),
        ..Options::default()
    })
    .await;
    let most = mesh.b.metrics().await.sum("process_max_fds", &[]);
    assert!(most > 64.0, "{most}");
}

#[tokio::test]
async fn an_idle_connection_holds_little_and_one_that_is_closed_nothing() {
    let mesh = Mesh::with(Options {
        b: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await;
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["http/1.1"]);
    let open = async |connections: usize| {
        let mut held = Vec::with_capacity(connections);
        for _ in 0..connections {
            let mut client = tls.client(mesh.gate()).await;
            assert_eq!(client.get("/").await.unwrap().status, 200);
            held.push(client);
        }
        held
    };
    drop(open(20).await);
    let before = private_bytes(&mesh.b);
    let mut held = open(IDLE_CONNECTIONS).await;
    let holds = || private_bytes(&mesh.b).saturating_sub(before) / IDLE_CONNECTIONS;
    eventually("what is idle holds little", async || {
        (holds() <= IDLE_BYTES).then_some(())
    })
    .await;
    for client in &mut held {
        assert_eq!(client.get("/again").await.unwrap().status, 200);
    }
    drop(held);
    eventually("memory is given back", async || {
        (holds() <= IDLE_BYTES / 4).then_some(())
    })
    .await;
}

const IDLE_CONNECTIONS: usize = 400;

/// A third of what it is while requests are served. Most of it is what TLS needs.
const IDLE_BYTES: usize = 20 << 10;

/// The memory of `sidecar` in RAM that is no copy of a file, in bytes.
fn private_bytes(sidecar: &Sidecar) -> usize {
    let path = format!("/proc/{}/status", sidecar.process.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"));
    let kib: usize = line
        .and_then(|rest| rest.split_whitespace().next())
        .map(|number| number.parse().unwrap())
        .unwrap();
    kib * 1024
}

/// Waits until `limit` was reached exactly `times` times.
async fn hits(sidecar: &Sidecar, limit: &str, times: u32) {
    let limit = [("limit", limit)];
    sidecar
        .counts("doorward_limits_hit_total", &limit, times.into())
        .await;
}
