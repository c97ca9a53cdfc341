//! From traffic to least privilege: what was seen is enough to go on, and nothing else is.

use std::path::Path;
use std::process::{Command, Output};

use http::Method;

use crate::mesh::*;

fn doorward(args: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(args)
        .output();
    output.unwrap()
}

async fn status(mesh: &Mesh, method: &Method, path: &str) -> u16 {
    ask(mesh.entrance(), request(method.as_str(), path))
        .await
        .status
}

#[tokio::test]
async fn what_was_observed_becomes_grants_that_allow_it_and_nothing_else() {
    let seen = [
        (Method::GET, "/v1/invoices/2041"),
        (Method::GET, "/v1/invoices/2042"),
        (Method::GET, "/v1/\"odd\"*/x"),
        (Method::GET, "/%76%31/health"),
        (Method::POST, "/v1/invoices"),
        (Method::HEAD, "/v1/invoices/2041"),
        (
            Method::DELETE,
            "/v1/drafts/0191d2a4-6f3e-7cc1-9f0a-4d2f5b6c7d8e",
        ),
    ];
    // Refused by the sidecar, by the application: neither is a need.
    let probes = [
        (Method::GET, "/v1/../admin", 400),
        (Method::GET, "/status/404", 404),
    ];
    let observing = Mesh::with(Options {
        policy: Some(grant("all-for-c", "c")),
        policy_keys: ", mode: observe",
        ..Options::default()
    })
    .await;
    for (method, path) in &seen {
        assert_eq!(
            status(&observing, method, path).await,
            200,
            "{method} {path}"
        );
    }
    for (method, path, expected) in &probes {
        assert_eq!(status(&observing, method, path).await, *expected, "{path}");
    }
    let all = seen.len() + probes.len();
    eventually("everything is recorded", async || {
        (observing.b.audit().len() >= all).then_some(())
    })
    .await;

    let log = observing.b.audit.to_str().unwrap();
    let out = observing.dirs.file("suggested");
    let told = doorward(&["suggest", "--missing", "--out", out.to_str().unwrap(), log]);
    let summary = String::from_utf8(told.stderr).unwrap();
    assert!(told.status.success(), "{summary}");
    assert!(
        summary.contains(&format!("from {} of ", seen.len())),
        "{summary}"
    );

    // As it is, it is put in force by nobody.
    let check = |dir: &Path| doorward(&["check", "--strict", "--policy", dir.to_str().unwrap()]);
    let unowned = check(&out);
    assert_eq!(unowned.status.code(), Some(1));
    let complaint = String::from_utf8(unowned.stderr).unwrap();
    assert!(complaint.contains("does not say @owner"), "{complaint}");

    let file = out.join("suggested.cedar");
    let text = std::fs::read_to_string(&file).unwrap();
    let owned = text.replace("@owner(\"\")", "@owner(\"payments@example.org\")");
    std::fs::write(&file, &owned).unwrap();
    let owned_check = check(&out);
    let complaint = String::from_utf8(owned_check.stderr).unwrap();
    assert_eq!(owned_check.status.code(), Some(0), "{complaint}\n{owned}");

    let enforcing = Mesh::with(Options {
        policy: Some(owned.clone()),
        ..Options::default()
    })
    .await;
    for (method, path) in &seen {
        let status = status(&enforcing, method, path).await;
        assert_eq!(status, 200, "{method} {path}\n{owned}");
    }
    for (method, path) in [
        (Method::GET, "/v1/invoices/7"),
        (Method::HEAD, "/v1/invoices/7"),
        (Method::DELETE, "/v1/drafts/7"),
    ] {
        let status = status(&enforcing, &method, path).await;
        assert_eq!(status, 200, "another of the same: {method} {path}");
    }
    for (method, path) in [
        (Method::GET, "/v1/invoices"),
        (Method::GET, "/v1/invoices/2041/lines"),
        (Method::GET, "/v1/\"odd\"2/x"),
        (Method::GET, "/v2/invoices/2041"),
        (Method::GET, "/status/404"),
        (Method::PUT, "/v1/invoices"),
        (Method::POST, "/v1/invoices/2041"),
        (Method::DELETE, "/v1/invoices/2041"),
    ] {
        let status = status(&enforcing, &method, path).await;
        assert_eq!(status, 403, "{method} {path}\n{owned}");
    }

    // What was denied stays denied, unless somebody asks for it.
    let log = enforcing.b.audit.to_str().unwrap();
    enforcing
        .b
        .record("the denials", |record| {
            record["context"]["path"] == "/v2/invoices/2041"
        })
        .await;
    let told = doorward(&["suggest", log]);
    let suggested = String::from_utf8(told.stdout).unwrap();
    assert!(!suggested.contains("/v2/"), "{suggested}");
    let told = doorward(&["suggest", "--denied", log]);
    let suggested = String::from_utf8(told.stdout).unwrap();
    assert!(suggested.contains("/v2/invoices/"), "{suggested}");
    assert!(suggested.contains("of these denied"), "{suggested}");
}
