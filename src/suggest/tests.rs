//! What is suggested allows what was seen, and nothing else.

use std::time::SystemTime;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::FileFailurePersistence;

use super::*;
use crate::audit::entry::Line;
use crate::policy::{self, Act, DenialReason, Metrics, Place, Policy, Subject, files};

const CHECKOUT: &str = "spiffe://example.org/checkout";

fn settings() -> Settings {
    Settings {
        missing: false,
        grant: None,
        denied: false,
        refused: false,
        now: "2026-11-22T12:00:00Z".parse().unwrap(),
        expires_in: Duration::from_secs(90 * 24 * 3600),
    }
}

/// A record of a request that passed because nothing is enforced.
fn line(principal: &str, service: &str, method: &str, path: &str) -> serde_json::Value {
    serde_json::json!({
        "time": "2026-11-20T10:00:00.000Z",
        "direction": "inbound",
        "kind": "request",
        "principal": { "id": principal },
        "service": service,
        "context": { "method": method, "path": path, "status": 200 },
        "decision": "allow",
        "observed": { "decision": "deny" },
        "outcome": "completed",
    })
}

fn seeing(settings: Settings, lines: &[serde_json::Value]) -> Sightings {
    let mut sightings = Sightings::new(settings);
    for line in lines {
        let text = line.to_string();
        match Line::parse(text.as_bytes()) {
            Ok(Line::Record(entry)) => sightings.add(&entry),
            other => panic!("{other:?}: {text}"),
        }
    }
    sightings
}

fn gets(paths: &[&str]) -> Vec<serde_json::Value> {
    let get = |path: &&str| line(CHECKOUT, "invoices", "GET", path);
    paths.iter().map(get).collect()
}

/// What is suggested, with its owners filled in, asked as a connection asks.
struct Put(Arc<Policy>);

impl Put {
    fn in_force(suggestion: &Suggestion) -> Self {
        let text = suggestion.cedar().replace("@owner(\"\")", "@owner(\"o\")");
        let settings = policy::Settings::of("");
        let policy = Policy::new(&settings);
        match files::check_texts([("suggested.cedar", &*text)], &settings) {
            Ok(engine) => {
                // Cedar warns of what looks odd, and some of what is seen here is odd.
                let warnings = engine.warnings().map(ToString::to_string);
                let warnings: Vec<_> = warnings
                    .filter(|_| text.is_ascii() && !text.contains("\\u{"))
                    .collect();
                assert_eq!(warnings, [""; 0], "{text}");
                policy.engine().publish(engine);
            }
            Err(error) => panic!("{error}\n{text}"),
        }
        Self(policy)
    }

    fn ask(&self, principal: &str, service: &str, act: &Act<'_>) -> Result<(), DenialReason> {
        let now = SystemTime::from(settings().now);
        let subject = Subject {
            id: principal.parse().unwrap(),
            expires: now + Duration::from_secs(3600),
            lifetime: Duration::from_secs(3600),
        };
        let place = Place {
            service: service.into(),
            port: 8443,
            source: "10.0.0.9".parse().unwrap(),
        };
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let answer = self.0.gate(subject, place, &metrics).authorize(act, now);
        answer.map(|_| ()).map_err(|denial| denial.reason())
    }

    fn allows(&self, principal: &str, service: &str, method: &str, path: &str) -> bool {
        let act = Act::Http {
            method: &method.parse().unwrap(),
            host: "h",
            path,
        };
        match self.ask(principal, service, &act) {
            Ok(()) => true,
            Err(DenialReason::NoGrant) => false,
            Err(other) => panic!("{other:?} for {method} {path}"),
        }
    }

    fn gets(&self, path: &str) -> bool {
        self.allows(CHECKOUT, "invoices", "GET", path)
    }
}

#[test]
fn a_grant_says_what_was_seen_and_who_is_left_to_answer_for_it() {
    let mut lines = gets(&[
        "/v1/invoices/2041",
        "/v1/invoices/2042",
        "/v1/invoices/2042/lines",
        "/health",
        "/v1/a\"b*c",
    ]);
    lines.push(line(CHECKOUT, "invoices", "HEAD", "/health"));
    lines.push(line(CHECKOUT, "invoices", "POST", "/v1/invoices"));
    lines[0]["time"] = "2026-11-01T00:00:00Z".into();
    lines[1]["grant"] = serde_json::json!({ "id": "old \u{1b}[31m\n@id" });
    let suggestion = seeing(settings(), &lines).suggest().unwrap();
    let expected = include_str!("expected.cedar");
    let told = suggestion.cedar();
    if std::env::var_os("DOORWARD_BLESS").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/suggest/expected.cedar");
        std::fs::write(path, &told).unwrap();
    }
    assert_eq!(told, expected);
    let put = Put::in_force(&suggestion);
    for (method, path, expected) in [
        ("GET", "/v1/invoices/9", true),
        ("HEAD", "/v1/invoices/9", true),
        ("GET", "/v1/invoices/9/lines", true),
        ("GET", "/v1/a\"b*c", true),
        ("GET", "/v1/a\"bxc", false),
        ("GET", "/v1/invoices/9/lines/1", false),
        ("GET", "/v1/invoices/9/other", false),
        ("GET", "/v1/invoices/", false),
        ("GET", "/v1/invoices", false),
        ("GET", "/v1/customers/9", false),
        ("POST", "/v1/invoices", true),
        ("PUT", "/v1/invoices", false),
        ("POST", "/v1/invoices/9", false),
    ] {
        let allowed = put.allows(CHECKOUT, "invoices", method, path);
        assert_eq!(allowed, expected, "{method} {path}");
    }
}

#[test]
fn only_what_passed_and_was_no_probe_counts_unless_it_is_asked_for() {
    let with = |key: &str, value: serde_json::Value| {
        let mut line = line(CHECKOUT, "invoices", "GET", "/a");
        line[key] = value;
        line
    };
    let mut denied = with("decision", "deny".into());
    denied["reason"] = "no_grant".into();
    let mut forbidden = denied.clone();
    forbidden["reason"] = "forbidden".into();
    let mut granted = with("grant", serde_json::json!({"id": "g"}));
    granted["observed"] = serde_json::Value::Null;
    let status = |status: u16| {
        with(
            "context",
            serde_json::json!({"method": "GET", "path": "/a", "status": status}),
        )
    };
    let grpc = with(
        "context",
        serde_json::json!({"method": "POST", "path": "/a", "status": 200, "grpc_status": 7}),
    );
    let handshake = serde_json::json!({
        "time": "2026-11-20T10:00:00.000Z", "direction": "inbound", "kind": "connection",
        "service": "invoices", "decision": "deny", "reason": "no_certificate",
        "outcome": "handshake_failed",
    });
    let default = settings();
    let missing = Settings {
        missing: true,
        ..settings()
    };
    let all = Settings {
        denied: true,
        refused: true,
        ..settings()
    };
    let of = |id: &str| Settings {
        grant: Some(id.into()),
        ..settings()
    };
    for (record, settings, expected) in [
        (with("id", "1".into()), &default, None),
        (with("id", "1".into()), &missing, None),
        (with("id", "1".into()), &of("g"), Some(LeftOut::OtherGrant)),
        (granted.clone(), &default, None),
        (granted.clone(), &missing, Some(LeftOut::Granted)),
        (granted.clone(), &of("g"), None),
        (granted, &of("h"), Some(LeftOut::OtherGrant)),
        (denied.clone(), &default, Some(LeftOut::Denied)),
        (denied.clone(), &all, None),
        (denied, &of("g"), Some(LeftOut::OtherGrant)),
        (forbidden.clone(), &default, Some(LeftOut::Forbidden)),
        (forbidden, &all, Some(LeftOut::Forbidden)),
        (
            with(
                "observed",
                serde_json::json!({"decision": "deny", "grant": "no-drafts"}),
            ),
            &all,
            Some(LeftOut::Forbidden),
        ),
        (status(404), &default, Some(LeftOut::Refused)),
        (
            with("outcome", "standing_secret".into()),
            &default,
            Some(LeftOut::Refused),
        ),
        (status(404), &all, None),
        (grpc.clone(), &default, Some(LeftOut::Refused)),
        (grpc, &all, None),
        (handshake, &all, Some(LeftOut::Unauthenticated)),
        (
            with("direction", "outbound".into()),
            &all,
            Some(LeftOut::Outbound),
        ),
        (
            with("decision", "none".into()),
            &all,
            Some(LeftOut::Undecided),
        ),
        (
            with(
                "principal",
                serde_json::json!({"id": "spiffe://example.org/a\") or true"}),
            ),
            &all,
            Some(LeftOut::NotSpiffe),
        ),
        (with("service", "".into()), &all, Some(LeftOut::Incomplete)),
        (
            line(CHECKOUT, "i", "GET", "/a/../b"),
            &all,
            Some(LeftOut::Ambiguous),
        ),
        (
            line(CHECKOUT, "i", "GET", "/a%2fb"),
            &all,
            Some(LeftOut::Ambiguous),
        ),
        (
            line(CHECKOUT, "i", "GET", &"/a".repeat(1024)),
            &all,
            Some(LeftOut::Cut),
        ),
        (
            line(CHECKOUT, "i", "G E T", "/"),
            &all,
            Some(LeftOut::Incomplete),
        ),
    ] {
        let sightings = seeing(settings.clone(), std::slice::from_ref(&record));
        let left_out = sightings.left_out().next().map(|(why, _)| why);
        assert_eq!(left_out, expected, "{record} {settings:?}");
        assert_eq!(
            sightings.counted(),
            u64::from(expected.is_none()),
            "{record}"
        );
    }
}

#[test]
fn a_path_is_suggested_as_policy_sees_it() {
    let lines = gets(&["/%61dmin/caf%c3%a9"]);
    let put = Put::in_force(&seeing(settings(), &lines).suggest().unwrap());
    assert!(put.gets("/admin/caf%C3%A9"));
    assert!(!put.gets("/%61dmin/caf%c3%a9"));
}

#[test]
fn methods_without_an_action_of_their_own_and_connections_have_grants_of_their_own() {
    let mut tcp = line(CHECKOUT, "ledger", "", "");
    tcp["kind"] = "connection".into();
    tcp["context"] = serde_json::Value::Null;
    let lines = [
        tcp,
        line(CHECKOUT, "files", "PROPFIND", "/dav"),
        line(CHECKOUT, "files", "GET", "/dav"),
        line(CHECKOUT, "files", "OPTIONS", "*"),
    ];
    let suggestion = seeing(settings(), &lines).suggest().unwrap();
    let ids: Vec<_> = suggestion.grants().iter().map(Grant::id).collect();
    assert_eq!(
        ids,
        [
            "checkout-reads-files",
            "checkout-reads-files-2",
            "checkout-uses-propfind-of-files",
            "checkout-connects-to-ledger",
        ]
    );
    let put = Put::in_force(&suggestion);
    assert_eq!(put.ask(CHECKOUT, "ledger", &Act::Connect), Ok(()));
    assert!(put.ask(CHECKOUT, "files", &Act::Connect).is_err());
    assert!(!put.allows(CHECKOUT, "ledger", "GET", "/"));
    assert!(put.allows(CHECKOUT, "files", "PROPFIND", "/dav"));
    assert!(put.allows(CHECKOUT, "files", "OPTIONS", "*"));
    assert!(!put.allows(CHECKOUT, "files", "PROPFINE", "/dav"));
    assert!(!put.allows(CHECKOUT, "files", "POST", "/dav"));
}

#[test]
fn names_stay_apart_and_short() {
    let long = format!("spiffe://example.org/{}", "a-".repeat(400));
    let mut lines = Vec::new();
    for principal in [
        "spiffe://example.org/ns/shop/checkout",
        "spiffe://example.org/ns/test/checkout",
        "spiffe://example.com/ns/test/checkout",
        &long,
    ] {
        for service in ["a.b", "a:b", "\"\n", ""] {
            lines.push(line(principal, service, "GET", "/"));
        }
    }
    let suggestion = seeing(settings(), &lines).suggest().unwrap();
    let ids: BTreeSet<_> = suggestion.grants().iter().map(Grant::id).collect();
    assert_eq!(ids.len(), 12);
    assert!(ids.contains("checkout-reads-a-b"), "{ids:?}");
    Put::in_force(&suggestion);
}

#[test]
fn more_than_one_grant_should_name_is_divided_and_nothing_is_lost() {
    let paths: Vec<_> = (0..200).map(|at| format!("/p{at}/x")).collect();
    let paths: Vec<_> = paths.iter().map(String::as_str).collect();
    let suggestion = seeing(settings(), &gets(&paths)).suggest().unwrap();
    assert_eq!(suggestion.grants().len(), 4);
    let put = Put::in_force(&suggestion);
    for path in paths {
        assert!(put.gets(path), "{path}");
    }
    assert!(!put.gets("/p200/x"));
}

#[test]
fn nothing_seen_is_nothing_suggested() {
    let suggestion = seeing(settings(), &[]).suggest().unwrap();
    assert!(suggestion.is_empty());
}

/// Segments as applications have them, and as somebody would write them who wants more.
fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec!["v1", "invoices", "lines", "health", "admin"]).prop_map(str::to_owned),
        (0_u32..10_000).prop_map(|number| number.to_string()),
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "[a-z]{1,3}",
        "[!-.0-~]{1,8}",
        "\\PC{1,6}",
        select(vec![
            "*",
            "**",
            "\"",
            "\\",
            "\");permit(principal,action,resource);//",
            "\u{202e}"
        ])
        .prop_map(str::to_owned),
    ]
}

fn path() -> impl Strategy<Value = String> {
    let segments = proptest::collection::vec(segment(), 0..5);
    (segments, any::<bool>()).prop_map(|(segments, slash)| {
        let slash = if slash { "/" } else { "" };
        let path = format!("/{}{slash}", segments.join("/"));
        // These end a path.
        path.replace(['?', '#'], "_")
    })
}

fn method() -> impl Strategy<Value = &'static str> {
    select(vec![
        "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "PURGE", "REPORT",
    ])
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::with_cases(96)
    })]

    #[test]
    fn what_is_suggested_allows_all_that_was_seen_and_nothing_of_others(
        asked in proptest::collection::vec((method(), path()), 1..40),
        services in proptest::collection::vec("\\PC{1,8}", 1..3),
        other in path(),
    ) {
        let mut lines = Vec::new();
        for (at, (method, path)) in asked.iter().enumerate() {
            lines.push(line(CHECKOUT, &services[at % services.len()], method, path));
        }
        let sightings = seeing(settings(), &lines);
        let suggestion = sightings.suggest().unwrap();
        let put = Put::in_force(&suggestion);
        let methods: Vec<_> = asked.iter().map(|(method, _)| *method).collect();
        let (mut first, mut depths) = (Vec::new(), Vec::new());
        for (at, (method, path)) in asked.iter().enumerate() {
            let Ok(path) = path::decided(path) else { continue };
            if path.contains(char::REPLACEMENT_CHARACTER) { continue }
            let service = &services[at % services.len()];
            prop_assert!(put.allows(CHECKOUT, service, method, &path), "{method} {path}");
            for other in ["spiffe://example.org/other", "spiffe://example.org/checkout2"] {
                prop_assert!(!put.allows(other, service, method, &path));
            }
            prop_assert!(!put.allows(CHECKOUT, "another service", method, &path));
            prop_assert!(put.ask(CHECKOUT, service, &Act::Connect).is_err());
            // A method that nobody used, of a kind where all that is read is not one.
            for method in ["POST", "PUT", "DELETE", "PATCH", "PURGE", "REPORT", "MKCOL"] {
                if !methods.contains(&method) {
                    prop_assert!(!put.allows(CHECKOUT, service, method, &path));
                }
            }
            first.push(path.split('/').nth(1).unwrap_or_default().to_owned());
            depths.push(path.split('/').count());
        }
        // Never into a place, nor to a depth, in which nobody was seen.
        if let Ok(path) = path::decided(&other) {
            let first_of = path.split('/').nth(1).unwrap_or_default().to_owned();
            if !first.contains(&first_of) || !depths.contains(&path.split('/').count()) {
                for service in &services {
                    prop_assert!(!put.allows(CHECKOUT, service, "GET", &path), "{path}");
                }
            }
        }
    }
}
