//! `doorward identity` shows who a sidecar is: the identity in force, not the one hoped for, and no key.

use std::process::Output;
use std::time::SystemTime;

use doorward::identity::jwt;
use serde_json::Value;
use tokio::process::Command;

use crate::mesh::*;

async fn ask(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.arg("identity").args(args).kill_on_drop(true);
    command.output().await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn a_running_sidecar_shows_its_identity_in_force_on_the_admin_listener_alone() {
    let mut mesh = Mesh::unidentified(Options {
        b: vec!["admin: { listen: '127.0.0.1:0' }".into()],
        ..Options::default()
    })
    .await;
    let admin = mesh.b.admin.unwrap().to_string();
    let before = ask(&["--admin", &admin]).await;
    assert_eq!(before.status.code(), Some(1), "{before:?}");
    assert!(text(&before.stdout).contains("there is no identity"));

    mesh.issuer.start().await;
    mesh.b.ready().await;
    let shown = json(&ask(&["--admin", &admin, "--json"]).await);
    let root = mesh.issuer.ca();
    assert_eq!(shown["svid"]["spiffe_id"], id("b"), "{shown}");
    assert_eq!(shown["svid"]["valid"], true, "{shown}");
    assert_eq!(shown["generation"], 1, "{shown}");
    assert_eq!(
        shown["source"],
        format!("unix://{}", mesh.issuer.socket.display())
    );
    let bundles = shown["bundles"].as_array().unwrap();
    assert_eq!(bundles.len(), 1, "{shown}");
    assert_eq!(bundles[0]["trust_domain"], DOMAIN);
    let (_, certificate) = x509_parser::parse_x509_certificate(root.certificate()).unwrap();
    let serial = certificate
        .raw_serial()
        .iter()
        .map(|byte| format!("{byte:02x}"));
    assert_eq!(bundles[0]["roots"][0]["serial"], serial.collect::<String>());
    let end = shown["svid"]["chain"][0]["not_after"].as_str().unwrap();
    let end = humantime::parse_rfc3339(end).unwrap();
    let end = end
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64();
    let metrics = mesh.b.metrics().await;
    let told = metrics.value("doorward_identity_not_after_timestamp_seconds", &[]);
    assert_eq!(told, Some(end));

    let table = text(&ask(&["--admin", &admin]).await.stdout);
    assert!(
        table.contains(&format!("SPIFFE ID         {}\n", id("b"))),
        "{table}"
    );
    assert!(!table.contains("PRIVATE"), "{table}");

    let metrics = mesh.b.metrics.to_string();
    assert_eq!(get(mesh.b.metrics, "/identity").await.status, 404);
    let refused = ask(&["--admin", &metrics]).await;
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(
        text(&refused.stderr).contains("`admin.listen`"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_source_shows_what_it_would_give_this_process() {
    let dirs = Dirs::new();
    let mut issuer = Issuer::new(&dirs);
    issuer.add(&dirs, "cli", "1h", None);
    issuer.start().await;
    let socket = format!("unix://{}", issuer.socket.display());
    let program = dirs.program("cli");
    let ask = async |args: &[&str]| {
        let mut command = Command::new(&program);
        command.arg("identity").args(args).kill_on_drop(true);
        command.output().await.unwrap()
    };
    let shown = json(&ask(&["--workload-api", &socket, "--json"]).await);
    assert_eq!(shown["svid"]["spiffe_id"], id("cli"), "{shown}");
    assert!(shown.get("generation").is_none(), "{shown}");

    let config = dirs.file("cli.yaml");
    let outbound = format!(
        "outbound: [{{ listen: '127.0.0.1:0', to: 'a:1', peer: '{}' }}]",
        id("b")
    );
    std::fs::write(
        &config,
        format!("identity: {{ workload_api: '{socket}' }}\n{outbound}\n"),
    )
    .unwrap();
    let shown = json(&ask(&["--config", config.to_str().unwrap(), "--json"]).await);
    assert_eq!(shown["svid"]["spiffe_id"], id("cli"), "{shown}");

    let other = id("other");
    for (args, told) in [
        (
            &["--workload-api", &socket, "--spiffe-id", &other][..],
            "it does not list",
        ),
        (
            &["--workload-api", "unix:///nowhere/at.all"][..],
            "it cannot be reached",
        ),
        (
            &["--workload-api", "https://example.org"][..],
            "is not a Workload API socket",
        ),
        (
            &["--admin", "127.0.0.1:1"][..],
            "cannot ask the admin listener at 127.0.0.1:1",
        ),
    ] {
        let refused = ask(args).await;
        assert_eq!(refused.status.code(), Some(2), "{args:?} {refused:?}");
        assert!(text(&refused.stderr).contains(told), "{args:?} {refused:?}");
    }
}

/// Asks the provider that `DOORWARD_JWT_SOCKET` names, which must know this process and vouch for its own
/// tokens: `tests/interop/spire.sh` runs this against SPIRE.
#[tokio::test]
#[ignore = "asks a provider that somebody else has started"]
async fn a_token_of_the_provider_at_hand_is_fetched_and_validated() {
    let socket = std::env::var("DOORWARD_JWT_SOCKET").unwrap();
    // The provider may have heard of us only just now.
    let fetched = eventually("a token", async || {
        jwt::fetch(&socket, "ledger", None).await.ok()
    })
    .await;
    let bundles = jwt::fetch_bundles(&socket).await.unwrap();
    let validated = jwt::validate(fetched.token(), "ledger", &bundles).unwrap();
    assert_eq!(validated.id(), fetched.id());
    assert!(validated.expires() > SystemTime::now());
    assert!(jwt::validate(fetched.token(), "invoices", &bundles).is_err());
    let (head, signature) = fetched.token().rsplit_once('.').unwrap();
    let forged: String = signature.chars().rev().collect();
    assert!(jwt::validate(&format!("{head}.{forged}"), "ledger", &bundles).is_err());
    println!("token of {} validated", validated.id());
}
