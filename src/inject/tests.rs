//! What a pod gets, and what it keeps.

use serde_json::json;

use super::*;

const NO_OWNER: Owner<'_> = Owner { name: None };

fn plain(annotations: Value) -> Value {
    json!({
        "metadata": { "annotations": annotations, "labels": { "app": "invoices" } },
        "spec": {
            "serviceAccountName": "invoices",
            "containers": [{ "name": "app", "image": "app:1", "ports": [{ "containerPort": 8080 }] }],
        },
    })
}

fn without_interception() -> Settings {
    Settings {
        intercept: false,
        policy: Some("policy".into()),
        ..Settings::default()
    }
}

#[test]
fn injecting_twice_changes_nothing_and_undoing_gives_the_original_back() {
    let original = plain(json!({ "doorward.dev/port": "8080" }));
    let settings = without_interception();
    let mut once = original.clone();
    let outcome = pod(&settings, NO_OWNER, &mut once).unwrap();
    assert_eq!(outcome, Outcome::Injected { notes: Vec::new() });
    let mut twice = once.clone();
    pod(&settings, NO_OWNER, &mut twice).unwrap();
    assert_eq!(twice, once);
    assert!(undo::undo(&mut twice));
    assert_eq!(twice, original);
}
