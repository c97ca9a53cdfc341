//! A standing secret in a request is found in both directions, and passes, comes off or is refused as the
//! operator says; the secret itself is kept nowhere.

use std::os::unix::fs::PermissionsExt;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::mesh::*;

/// `user:hunter2`.
const BASIC: &str = "Basic dXNlcjpodW50ZXIy";

/// What must not be found in anything that is kept: as written, and as meant.
const SECRETS: [&str; 4] = ["hunter2", "dXNlcjpodW50ZXIy", "standing-key", "query-key"];

/// Carries a secret of three kinds.
fn carrying(http: Http) -> Request<Full<Bytes>> {
    let target = "/things?a=%20&api_key=query-key&b=+";
    let mut asked = match http {
        Http::One => request("POST", target),
        Http::Two => request("POST", &format!("http://app.example{target}")),
    };
    let headers = asked.headers_mut();
    headers.insert("authorization", BASIC.parse().unwrap());
    headers.insert("x-api-key", "standing-key".parse().unwrap());
    headers.insert("x-other", "stays".parse().unwrap());
    asked
}

fn has_secrets(record: &Value) -> bool {
    record.get("secrets").is_some()
}

/// Kind and place of each secret in a record, in their order by name.
fn listed(record: &Value) -> Vec<(&str, &str)> {
    let secrets = record["secrets"].as_array().unwrap().iter();
    let mut listed: Vec<_> = secrets
        .map(|one| {
            (
                one["kind"].as_str().unwrap(),
                one["where"].as_str().unwrap(),
            )
        })
        .collect();
    listed.sort_unstable();
    listed
}

const ALL_THREE: [(&str, &str); 3] = [
    ("api_key_header", "header x-api-key"),
    ("api_key_query", "query api_key"),
    ("basic", "header authorization"),
];

/// Nothing that `sidecar` keeps or tells has one of the [`SECRETS`] in it.
async fn assert_discreet(sidecar: &Sidecar) {
    let passed = |record: &Value| record["outcome"] == "completed";
    sidecar.record("what passed", passed).await;
    let audit = std::fs::read_to_string(&sidecar.audit).unwrap();
    let metrics = sidecar.metrics().await.0;
    for (what, text) in [
        ("audit", audit),
        ("log", sidecar.process.log()),
        ("metrics", metrics),
    ] {
        assert!(!text.is_empty(), "{what}");
        for secret in SECRETS {
            assert!(!text.contains(secret), "{what}: {text}");
        }
    }
}

async fn mesh(outbound: &str, inbound: &str) -> Mesh {
    Mesh::with(Options {
        outbound: outbound.into(),
        inbound: inbound.into(),
        ..Options::default()
    })
    .await
}

#[tokio::test]
async fn secrets_that_are_observed_pass_and_are_counted_and_recorded_on_both_sides() {
    for http in [Http::One, Http::Two] {
        let mesh = Mesh::new().await;
        let mut client = Client::connect(mesh.entrance(), http).await;
        assert_eq!(client.ask(carrying(http)).await.unwrap().status, 200);
        let seen = mesh.app.last();
        assert_eq!(seen.path, "/things?a=%20&api_key=query-key&b=+", "{http:?}");
        assert_eq!(seen.all("authorization"), [BASIC]);
        assert_eq!(seen.all("x-api-key"), ["standing-key"]);

        let (a, b) = (id("a"), id("b"));
        for (sidecar, direction, principal, grant) in [
            (&mesh.a, "outbound", &a, ""),
            (&mesh.b, "inbound", &a, "all-for-a"),
        ] {
            let record = sidecar.record("the secrets", has_secrets).await;
            assert_eq!(listed(&record), ALL_THREE, "{record}");
            assert_eq!(record["secrets_action"], "observed", "{record}");
            assert_eq!(record["outcome"], "completed", "{record}");
            let labels = [
                ("direction", direction),
                ("principal", principal),
                ("grant", grant),
            ];
            let metrics = sidecar.metrics().await;
            let requests = "doorward_requests_with_standing_secrets_total";
            let observed = [&labels[..], &[("action", "observed")]].concat();
            assert_eq!(metrics.sum(requests, &observed), 1.0, "{direction}");
            let secrets = "doorward_standing_secrets_total";
            assert_eq!(metrics.sum(secrets, &labels), 3.0, "{direction}");
            for (kind, _) in ALL_THREE {
                let of_kind = [&labels[..], &[("kind", kind)]].concat();
                assert_eq!(metrics.sum(secrets, &of_kind), 1.0, "{direction} {kind}");
            }
            assert_eq!(metrics.sum(secrets, &[("principal", &b)]), 0.0);
            assert_discreet(sidecar).await;
        }
    }
}

#[tokio::test]
async fn stripped_secrets_do_not_arrive_and_everything_else_does() {
    let strip = "standing_secrets: strip";
    for http in [Http::One, Http::Two] {
        for (outbound, inbound) in [(strip, ""), ("", strip)] {
            let mesh = mesh(outbound, inbound).await;
            let mut client = Client::connect(mesh.entrance(), http).await;
            assert_eq!(client.ask(carrying(http)).await.unwrap().status, 200);
            let seen = mesh.app.last();
            assert_eq!(seen.path, "/things?a=%20&b=+", "{http:?} {seen:?}");
            assert!(seen.all("authorization").is_empty(), "{seen:?}");
            assert!(seen.all("x-api-key").is_empty(), "{seen:?}");
            assert_eq!(seen.all("x-other"), ["stays"]);
            assert_eq!(seen.all("x-forwarded-client-cert").len(), 1, "{seen:?}");

            let strips = if outbound.is_empty() {
                &mesh.b
            } else {
                &mesh.a
            };
            let record = strips.record("the secrets", has_secrets).await;
            assert_eq!(listed(&record), ALL_THREE, "{record}");
            assert_eq!(record["secrets_action"], "stripped", "{record}");
            let labels = [("action", "stripped")];
            let requests = "doorward_requests_with_standing_secrets_total";
            assert_eq!(strips.metrics().await.sum(requests, &labels), 1.0);
            if !outbound.is_empty() {
                // There was nothing left to find.
                let record = mesh.b.record("the request", |_| true).await;
                assert!(!has_secrets(&record), "{record}");
                assert_eq!(mesh.b.metrics().await.sum(requests, &[]), 0.0);
            }
            assert_discreet(&mesh.a).await;
            assert_discreet(&mesh.b).await;
        }
    }
}

#[tokio::test]
async fn denied_secrets_are_refused_with_what_and_where_and_never_reach_the_application() {
    let deny = "standing_secrets: deny";
    for http in [Http::One, Http::Two] {
        for (outbound, inbound) in [(deny, ""), ("", deny)] {
            let mesh = mesh(outbound, inbound).await;
            let mut client = Client::connect(mesh.entrance(), http).await;
            let answer = client.ask(carrying(http)).await.unwrap();
            assert_eq!(answer.status, 403);
            assert_eq!(answer.header("content-type"), "application/problem+json");
            let problem = answer.json();
            assert_eq!(problem["error"], "standing_secret", "{problem}");
            let detail = problem["detail"].as_str().unwrap();
            for (kind, place) in ALL_THREE {
                assert!(detail.contains(&format!("{kind} in {place}")), "{detail}");
            }
            for secret in SECRETS {
                assert!(!answer.text().contains(secret), "{problem}");
            }
            assert!(mesh.app.seen().is_empty(), "{http:?}");

            let denies = if outbound.is_empty() {
                &mesh.b
            } else {
                &mesh.a
            };
            let record = denies.record("the refusal", has_secrets).await;
            assert_eq!(record["id"], problem["request_id"], "{record}");
            assert_eq!(record["outcome"], "standing_secret", "{record}");
            assert_eq!(record["secrets_action"], "denied", "{record}");
            let metrics = denies.metrics().await;
            let labels = [("outcome", "standing_secret"), ("status", "4xx")];
            assert_eq!(metrics.sum("doorward_requests_total", &labels), 1.0);
            // Without, the same connection goes on.
            assert_eq!(client.get("/").await.unwrap().status, 200);
            assert_discreet(&mesh.a).await;
            assert_discreet(&mesh.b).await;
        }
    }
}

#[tokio::test]
async fn a_grpc_call_with_a_secret_in_its_metadata_is_refused_in_trailers_alone() {
    let mesh = mesh("", "standing_secrets: deny").await;
    let mut call = request("POST", "http://app.example/bank.Ledger/Transfer");
    let headers = call.headers_mut();
    headers.insert("content-type", "application/grpc".parse().unwrap());
    headers.insert("x-api-key", "standing-key".parse().unwrap());
    let mut client = Client::connect(mesh.entrance(), Http::Two).await;
    let answer = client.ask(call).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("grpc-status"), "7");
    let message = answer.header("grpc-message");
    assert!(
        message.contains("api_key_header in header x-api-key"),
        "{message}"
    );
    assert!(mesh.app.seen().is_empty());
}

/// A WebSocket handshake with a secret in header and query.
const HANDSHAKE: &str = "GET /chat?api_key=query-key&room=1 HTTP/1.1\r\nHost: app.example\r\n\
Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Basic dXNlcjpodW50ZXIy\r\n\r\n";

#[tokio::test]
async fn the_handshake_of_a_websocket_is_no_way_around() {
    for (mode, passes) in [("strip", true), ("deny", false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mesh = Mesh::with(Options {
            app: Some(listener.local_addr().unwrap()),
            inbound: format!("standing_secrets: {mode}"),
            ..Options::default()
        })
        .await;
        let mut client = TcpStream::connect(mesh.entrance()).await.unwrap();
        if passes {
            client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
            let (mut app, _) = listener.accept().await.unwrap();
            let head = read_head(&mut app).await;
            assert!(head.starts_with("GET /chat?room=1 HTTP/1.1\r\n"), "{head}");
            assert!(
                head.to_lowercase().contains("sec-websocket-key: "),
                "{head}"
            );
            assert!(
                !head.to_lowercase().contains("\r\nauthorization:"),
                "{head}"
            );
            let switched = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
            app.write_all(switched.as_bytes()).await.unwrap();
            let answer = read_head(&mut client).await;
            assert_eq!(status_of(&answer), 101, "{answer}");
            client.write_all(b"ping").await.unwrap();
            let mut bytes = [0; 4];
            app.read_exact(&mut bytes).await.unwrap();
            assert_eq!(&bytes, b"ping");
        } else {
            let answer = raw(&mut client, HANDSHAKE.as_bytes()).await;
            assert_eq!(status_of(&answer), 403, "{answer}");
        }
    }
}

/// What comes up to the first empty line, and not a byte more.
async fn read_head(io: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(io.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Asks with each of `keys` in turn; the fingerprints that `sidecar` recorded.
async fn fingerprints(mesh: &Mesh, sidecar: &Sidecar, keys: &[&str]) -> Vec<String> {
    for key in keys {
        let mut asked = request("GET", "/");
        asked
            .headers_mut()
            .insert("x-api-key", key.parse().unwrap());
        assert_eq!(ask(mesh.entrance(), asked).await.status, 200);
    }
    let records = eventually("all are recorded", async || {
        let records = sidecar.audit();
        (records.len() == keys.len()).then_some(records)
    })
    .await;
    let fingerprint = |record: &Value| {
        record["secrets"][0]["fingerprint"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    records.iter().map(fingerprint).collect()
}

#[tokio::test]
async fn a_secret_is_recognised_by_its_fingerprint_and_only_within_one_sidecar() {
    let mesh = Mesh::new().await;
    let at_b = fingerprints(&mesh, &mesh.b, &["one", "other", "one"]).await;
    assert_eq!(at_b[0], at_b[2]);
    assert_ne!(at_b[0], at_b[1]);
    assert!(at_b.iter().all(|text| text.len() == 32), "{at_b:?}");
    let at_a = mesh.a.record("the first", has_secrets).await;
    assert_ne!(
        at_a["secrets"][0]["fingerprint"], at_b[0],
        "each has a key of its own"
    );
}

#[tokio::test]
async fn sidecars_with_the_same_key_file_give_the_same_fingerprints() {
    let keys = Dirs::new();
    let file = keys.file("key");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    let audit = keys.file("b.jsonl");
    let mut mesh = Mesh::with(Options {
        audit: Some(format!(
            "{{ path: '{}', fingerprint_key: '{}' }}",
            audit.display(),
            file.display()
        )),
        ..Options::default()
    })
    .await;
    mesh.b.audit = audit;
    let found = fingerprints(&mesh, &mesh.b, &["standing-key"]).await;
    let key = aws_lc_rs::hmac::Key::new(
        aws_lc_rs::hmac::HMAC_SHA256,
        b"0123456789abcdef0123456789abcdef",
    );
    let tag = aws_lc_rs::hmac::sign(&key, b"standing-key");
    let expected: String = tag.as_ref()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(found, [expected]);
}

#[tokio::test]
async fn a_fingerprint_key_that_others_may_read_stops_the_start() {
    let dirs = Dirs::new();
    let (key, config) = (dirs.file("key"), dirs.file("b.yaml"));
    std::fs::write(&key, "0123456789abcdef0123456789abcdef").unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    let text = format!(
        "identity: {{ workload_api: 'unix:///nowhere' }}\naudit: {{ fingerprint_key: '{}' }}\n\
         outbound: [{{ listen: '127.0.0.1:0', to: '127.0.0.1:1', peer: '{}' }}]\n",
        key.display(),
        id("b")
    );
    std::fs::write(&config, text).unwrap();
    let mut process = Process::spawn(
        "b",
        &dirs.program("b"),
        &["run", "--config", config.to_str().unwrap()],
        &dirs.file("b.log"),
    );
    assert_eq!(process.exit().await, Some(2));
    assert!(process.log().contains("chmod 600"), "{}", process.log());
}

#[tokio::test]
async fn a_dry_run_of_policy_does_not_weaken_what_is_said_of_secrets() {
    let mesh = Mesh::with(Options {
        policy: Some(grant("all-for-c", "c")),
        policy_keys: ", mode: observe",
        inbound: "standing_secrets: deny".into(),
        ..Options::default()
    })
    .await;
    assert_eq!(mesh.get("/").await.status, 200);
    let answer = ask(mesh.entrance(), carrying(Http::One)).await;
    assert_eq!(answer.status, 403);
    let record = mesh.b.record("the refusal", has_secrets).await;
    assert_eq!(record["observed"]["decision"], "deny", "{record}");
    assert_eq!(record["outcome"], "standing_secret", "{record}");
}

#[tokio::test]
async fn what_policy_denies_is_not_looked_at() {
    let mesh = Mesh::with(Options {
        policy: Some(grant("all-for-c", "c")),
        inbound: "standing_secrets: deny".into(),
        ..Options::default()
    })
    .await;
    let answer = ask(mesh.entrance(), carrying(Http::One)).await;
    assert_eq!(answer.json()["error"], "denied");
    let record = mesh.b.record("the denial", |_| true).await;
    assert!(!has_secrets(&record), "{record}");
    let requests = "doorward_requests_with_standing_secrets_total";
    assert_eq!(mesh.b.metrics().await.sum(requests, &[]), 0.0);
}

#[tokio::test]
async fn at_level_denials_a_request_that_was_changed_leaves_a_record_and_one_that_was_not_leaves_none()
 {
    let dirs = Dirs::new();
    for (mode, expected) in [("observe", 0), ("strip", 1), ("deny", 1)] {
        let audit = dirs.file(mode);
        let mut mesh = Mesh::with(Options {
            audit: Some(format!("{{ path: '{}', level: denials }}", audit.display())),
            inbound: format!("standing_secrets: {{ mode: {mode}, ignore: [basic] }}"),
            ..Options::default()
        })
        .await;
        mesh.b.audit = audit;
        ask(mesh.entrance(), carrying(Http::One)).await;
        // All that was waiting is written when it stops.
        assert_eq!(mesh.b.terminate().await, Some(0));
        let records = mesh.b.audit();
        assert_eq!(records.len(), expected, "{mode}: {records:?}");
        for record in records {
            assert_eq!(listed(&record), ALL_THREE[..2], "{record}");
        }
    }
}
