//! Every request is decided by a grant: what is not allowed does not pass, and a change counts at once.

use std::os::unix::fs::symlink;
use std::path::Path;

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::Full;

use crate::mesh::*;

const READS: &str = "permit (principal == Workload::\"spiffe://example.org/a\", action in Action::\"read\", resource == Service::\"invoices\")\nwhen { context.http.path like \"/v1/*\" };";

#[tokio::test]
async fn only_what_a_grant_allows_passes_and_a_denial_says_who_refused() {
    let mesh = Mesh::with(Options {
        policy: Some(governed("a-reads", READS)),
        ..Options::default()
    })
    .await;
    assert_eq!(mesh.get("/v1/invoices?secret=1").await.status, 200);

    for (method, path) in [
        ("GET", "/v2/invoices"),
        ("POST", "/v1/invoices"),
        ("BREW", "/v1/x"),
    ] {
        let before = mesh.app.seen().len();
        let answer = ask(mesh.entrance(), request(method, path)).await;
        assert_eq!(answer.status, 403, "{method} {path}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(
            answer.header("proxy-status"),
            "doorward; error=http_request_denied"
        );
        let problem = answer.json();
        assert_eq!(problem["status"], 403);
        assert_eq!(problem["error"], "denied");
        assert!(problem["title"].is_string() && problem["type"].is_string());
        // The peer learns that it was refused, by whom and under which number: nothing of the policy.
        let text = answer.text();
        assert!(
            !text.contains("a-reads") && !text.contains("no_grant"),
            "{text}"
        );
        let request_id = problem["request_id"].as_str().unwrap().to_owned();
        let record = mesh
            .b
            .record("the denial", |record| record["id"] == request_id.as_str())
            .await;
        assert_eq!(record["reason"], "no_grant", "{record}");
        assert_eq!(mesh.app.seen().len(), before, "{method} {path}");
    }
    let metrics = mesh.b.metrics().await;
    let principal = id("a");
    let of = |grant, decision, reason| {
        let labels = [
            ("service", SERVICE),
            ("principal", &principal),
            ("grant", grant),
            ("decision", decision),
            ("reason", reason),
        ];
        metrics.sum("doorward_decisions_total", &labels)
    };
    assert_eq!(of("a-reads", "allowed", "grant"), 1.0);
    assert_eq!(of("", "denied", "no_grant"), 3.0);
}

#[tokio::test]
async fn a_grpc_call_is_denied_in_trailers_alone() {
    let mesh = Mesh::with(Options {
        policy: Some(governed("a-reads", READS)),
        ..Options::default()
    })
    .await;
    let mut client = Client::connect(mesh.entrance(), Http::Two).await;
    let call = Request::builder()
        .method("POST")
        .version(Version::HTTP_2)
        .uri("http://app.example/bank.Ledger/Transfer")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::<Bytes>::default())
        .unwrap();
    let answer = client.ask(call).await.unwrap();
    // "Trailers-Only": one block of headers that ends the stream.
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "application/grpc");
    assert_eq!(answer.header("grpc-status"), "7");
    assert_eq!(answer.header("grpc-message"), "Access denied");
    assert!(
        answer.body.is_empty() && answer.trailers.is_none(),
        "{answer:?}"
    );
    let record = mesh
        .b
        .record("the denial", |record| record["outcome"] == "denied")
        .await;
    assert_eq!(record["context"]["grpc_status"], 7, "{record}");
    assert!(mesh.app.seen().is_empty());
}

#[tokio::test]
async fn a_policy_that_fails_denies_even_what_another_grants() {
    // One more than the largest number there is: known only when it is evaluated.
    let fails = governed(
        "no-overflow",
        "forbid (principal, action, resource == Service::\"invoices\")\nwhen { context.port + 9223372036854775807 == 0 };",
    )
    .replace("@expires(\"2099-01-01\")\n", "");
    let mesh = Mesh::with(Options {
        policy: Some(grant("all-for-a", "a") + &fails),
        ..Options::default()
    })
    .await;
    assert_eq!(mesh.get("/").await.status, 403);
    let record = mesh
        .b
        .record("the denial", |record| record["decision"] == "deny")
        .await;
    assert_eq!(record["reason"], "error", "{record}");
    assert_eq!(record["grant"]["id"], "no-overflow", "{record}");
    assert!(mesh.app.seen().is_empty());
}

#[tokio::test]
async fn a_forbid_wins_and_a_grant_that_has_ended_grants_nothing() {
    let ended = grant("ended", "a").replace("2099-01-01", "2020-01-01");
    let mesh = Mesh::with(Options {
        policy: Some(ended),
        ..Options::default()
    })
    .await;
    assert_eq!(mesh.get("/").await.status, 403);
    let forbid = "@id(\"no-admin\")\nforbid (principal, action, resource)\nwhen { context has http && context.http.path like \"/admin*\" };";
    mesh.repolicy(&(grant("all-for-a", "a") + forbid)).await;
    assert_eq!(mesh.get("/").await.status, 200);
    assert_eq!(mesh.get("/admin/users").await.status, 403);
    let record = mesh
        .b
        .record("the forbid", |record| record["reason"] == "forbidden")
        .await;
    assert_eq!(record["grant"]["id"], "no-admin", "{record}");
}

#[tokio::test]
async fn a_change_of_the_directory_is_in_force_on_open_connections_and_a_broken_one_changes_nothing()
 {
    let mesh = Mesh::new().await;
    let mut client = Client::connect(mesh.entrance(), Http::One).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);

    mesh.repolicy(&grant("all-for-c", "c")).await;
    assert_eq!(client.get("/").await.unwrap().status, 403);
    mesh.policy.write("more.cedar", &grant("all-for-a", "a"));
    eventually("the added file counts", async || {
        (client.get("/").await.unwrap().status == 200).then_some(())
    })
    .await;

    let generation = mesh.generation().await;
    for (number, broken) in ["permit (", "permit (principal, action, resource);"]
        .into_iter()
        .enumerate()
    {
        mesh.policy.write("broken.cedar", broken);
        mesh.b
            .counts(
                "doorward_policy_load_failures_total",
                &[],
                f64::from(u32::try_from(number).unwrap() + 1),
            )
            .await;
        assert_eq!(client.get("/").await.unwrap().status, 200, "{broken}");
    }
    assert!((mesh.generation().await - generation).abs() < 0.5);
    mesh.policy.remove("broken.cedar");
    mesh.policy.remove("more.cedar");
    eventually("the removed file counts no more", async || {
        (client.get("/").await.unwrap().status == 403).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_directory_that_kubernetes_swaps_by_symlink_is_followed() {
    // As a ConfigMap is mounted: files link through `..data`, which is renamed over.
    let mesh = Mesh::with(Options {
        policy: Some(grant("all-for-c", "c")),
        ..Options::default()
    })
    .await;
    assert_eq!(mesh.get("/").await.status, 403);
    let dir = &mesh.policy.0;
    let swap = |version: &str, text: &str| {
        std::fs::create_dir(dir.join(version)).unwrap();
        std::fs::write(dir.join(version).join("policy.cedar"), text).unwrap();
        symlink(version, dir.join("..data_tmp")).unwrap();
        std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    };
    swap("..2026_01", &grant("all-for-a", "a"));
    symlink(Path::new("..data/policy.cedar"), dir.join(".link")).unwrap();
    std::fs::rename(dir.join(".link"), dir.join("policy.cedar")).unwrap();
    eventually("the first version counts", async || {
        (mesh.get("/").await.status == 200).then_some(())
    })
    .await;

    swap("..2026_02", &grant("all-for-c", "c"));
    std::fs::remove_dir_all(dir.join("..2026_01")).unwrap();
    eventually("the second version counts", async || {
        (mesh.get("/").await.status == 403).then_some(())
    })
    .await;
    let failures = mesh.b.metrics().await;
    assert_eq!(
        failures.sum("doorward_policy_load_failures_total", &[]),
        0.0
    );
}

#[tokio::test]
async fn a_path_that_could_mean_two_things_is_not_decided_at_all() {
    let mesh = Mesh::with(Options {
        policy: Some(governed("a-reads", READS)),
        ..Options::default()
    })
    .await;
    for path in [
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1//admin",
        "/v1/..;x=1/admin",
        "/v1/a%2fb",
        "/v1/a%00b",
        "/v1/a%5c..%5cadmin",
    ] {
        let mut stream = tokio::net::TcpStream::connect(mesh.entrance())
            .await
            .unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: app.example\r\n\r\n");
        let answer = raw(&mut stream, head.as_bytes()).await;
        assert_eq!(status_of(&answer), 400, "{path}: {answer}");
    }
    assert!(mesh.app.seen().is_empty());
    // Needless encoding is undone before it is decided.
    assert_eq!(mesh.get("/%761/x").await.status, 200);
}

#[tokio::test]
async fn what_is_only_observed_is_recorded_and_not_enforced() {
    let observed = |id, rest: &str| governed(id, &format!("@mode(\"observe\")\n{rest}"));
    let trial = observed(
        "no-deletes",
        "forbid (principal, action == Action::\"DELETE\", resource == Service::\"invoices\");",
    )
    .replace("@expires(\"2099-01-01\")\n", "");
    let mesh = Mesh::with(Options {
        policy: Some(grant("all-for-a", "a") + &trial),
        ..Options::default()
    })
    .await;
    let answer = ask(mesh.entrance(), request("DELETE", "/x")).await;
    assert_eq!(answer.status, 200);
    let record = mesh
        .b
        .record("the trial", |record| !record["observed"].is_null())
        .await;
    assert_eq!(record["decision"], "allow", "{record}");
    assert_eq!(record["observed"]["decision"], "deny", "{record}");
    assert_eq!(record["observed"]["grant"], "no-deletes", "{record}");
    let labels = [("grant", "no-deletes"), ("decision", "would_deny")];
    let metrics = mesh.b.metrics().await;
    assert_eq!(
        metrics.sum("doorward_decisions_observed_total", &labels),
        1.0
    );
}

#[tokio::test]
async fn a_sidecar_in_dry_run_lets_everything_pass_and_says_what_it_would_deny() {
    let mesh = Mesh::with(Options {
        policy: Some(grant("all-for-c", "c")),
        policy_keys: ", mode: observe",
        ..Options::default()
    })
    .await;
    assert_eq!(mesh.get("/").await.status, 200);
    let record = mesh
        .b
        .record("the trial", |record| !record["observed"].is_null())
        .await;
    assert_eq!(record["decision"], "allow", "{record}");
    assert_eq!(record["observed"]["decision"], "deny", "{record}");
    let metrics = mesh.b.metrics().await;
    let would = [("decision", "would_deny")];
    assert_eq!(
        metrics.sum("doorward_decisions_observed_total", &would),
        1.0
    );
}
