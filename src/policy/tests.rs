//! What policy promises, asked through a [`Gate`] as a connection asks.

use std::time::UNIX_EPOCH;

use http::Method;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::FileFailurePersistence;
use serde_json::json;

use super::cedar::Engine;
use super::files::{LoadError, check_texts};
use super::*;

mod people;

const CHECKOUT: &str = "spiffe://example.org/checkout";

fn engine_of(cedar: &str, workloads: &str, settings: &Settings) -> Result<Engine, LoadError> {
    let workloads = (!workloads.is_empty()).then_some((files::WORKLOADS, workloads));
    check_texts([("a.cedar", cedar)].into_iter().chain(workloads), settings)
}

fn policy_with(cedar: &str, workloads: &str, settings: &Settings) -> Arc<Policy> {
    let policy = Policy::new(settings);
    match engine_of(cedar, workloads, settings) {
        Ok(engine) => policy.engine().publish(engine),
        Err(error) => panic!("{error}"),
    }
    policy
}

fn policy(cedar: &str) -> Arc<Policy> {
    policy_with(cedar, "", &Settings::of(""))
}

/// A grant with everything that governance asks for.
fn grant(id: &str, rest: &str) -> String {
    format!(r#"@id("{id}") @owner("o") @purpose("p") @expires("2030-01-01") {rest}"#)
}

fn gate_of(policy: &Arc<Policy>, id: &str) -> Gate {
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let subject = Subject {
        id: id.parse().unwrap(),
        expires: at(3600),
        lifetime: Duration::from_secs(3600),
    };
    policy.gate(subject, place("invoices"), &metrics)
}

fn gate(policy: &Arc<Policy>) -> Gate {
    gate_of(policy, CHECKOUT)
}

fn place(service: &str) -> Place {
    Place {
        service: service.into(),
        port: 8443,
        source: "10.0.0.9".parse().unwrap(),
    }
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds)
}

fn get(path: &str) -> Act<'_> {
    http(&Method::GET, path)
}

fn http<'a>(method: &'a Method, path: &'a str) -> Act<'a> {
    Act::Http {
        method,
        host: "invoices.example",
        path,
    }
}

/// The grant that allows it, or the reason why none does.
fn ask(gate: &Gate, act: &Act<'_>) -> Result<String, DenialReason> {
    match gate.authorize(act, at(0)) {
        Ok(permit) => Ok(permit.grant().unwrap().id.to_string()),
        Err(denial) => Err(denial.reason()),
    }
}

const EXAMPLE: &str = r#"
@id("checkout-reads-invoices")
@owner("payments@example.org")
@purpose("Checkout shows a customer's invoices")
@expires("2027-06-30")
permit (principal == Workload::"spiffe://example.org/checkout",
        action in Action::"read",
        resource == Service::"invoices")
when { context.http.path like "/v1/invoices/*" };
"#;

#[test]
fn a_grant_allows_what_it_says_and_nothing_else() {
    let policy = policy(EXAMPLE);
    let ours = gate(&policy);
    let id = "checkout-reads-invoices";
    assert_eq!(ask(&ours, &get("/v1/invoices/7")).as_deref(), Ok(id));
    assert_eq!(
        ask(&ours, &http(&Method::HEAD, "/v1/invoices/7")).as_deref(),
        Ok(id)
    );
    for (what, denied) in [
        ("another path", ask(&ours, &get("/v1/customers"))),
        (
            "a write",
            ask(&ours, &http(&Method::POST, "/v1/invoices/7")),
        ),
        ("TCP", ask(&ours, &Act::Connect)),
        (
            "another workload",
            ask(
                &gate_of(&policy, "spiffe://example.org/other"),
                &get("/v1/invoices/7"),
            ),
        ),
        (
            "the same name elsewhere",
            ask(
                &gate_of(&policy, "spiffe://example.com/checkout"),
                &get("/v1/invoices/7"),
            ),
        ),
    ] {
        assert_eq!(denied, Err(DenialReason::NoGrant), "{what}");
    }
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let subject = ours.authorize(&get("/v1/invoices/7"), at(0)).unwrap();
    assert_eq!(
        subject.grant().unwrap().owner.as_deref(),
        Some("payments@example.org")
    );
    let subject = Subject {
        id: CHECKOUT.parse().unwrap(),
        expires: at(1),
        lifetime: Duration::from_secs(1),
    };
    let elsewhere = policy.gate(subject, place("ledger"), &metrics);
    assert_eq!(
        ask(&elsewhere, &get("/v1/invoices/7")),
        Err(DenialReason::NoGrant)
    );
}

#[test]
fn without_a_policy_nothing_passes() {
    let policy = Policy::new(&Settings::of(""));
    let gate = gate(&policy);
    assert_eq!(ask(&gate, &get("/")), Err(DenialReason::NoPolicy));
    policy
        .engine()
        .publish(engine_of(EXAMPLE, "", &Settings::of("")).unwrap());
    assert!(ask(&gate, &get("/v1/invoices/1")).is_ok());
    policy.engine().withdraw();
    assert_eq!(
        ask(&gate, &get("/v1/invoices/1")),
        Err(DenialReason::NoPolicy)
    );
}

#[test]
fn a_gate_sees_a_change_of_policy_at_the_next_question() {
    let policy = policy(EXAMPLE);
    let gate = gate(&policy);
    let permit = gate.authorize(&get("/v1/invoices/1"), at(0)).unwrap();
    assert_eq!(permit.generation(), 1);
    policy
        .engine()
        .publish(engine_of("", "", &Settings::of("")).unwrap());
    let denial = gate.authorize(&get("/v1/invoices/1"), at(0)).unwrap_err();
    assert_eq!(
        (denial.reason(), denial.generation()),
        (DenialReason::NoGrant, 2)
    );
}

#[test]
fn a_forbid_wins_and_is_named() {
    let policy = policy(&format!(
        r#"{EXAMPLE}
        @id("no-drafts") forbid (principal, action, resource)
        when {{ context has http && context.http.path like "*draft*" }};"#
    ));
    let gate = gate(&policy);
    assert!(ask(&gate, &get("/v1/invoices/7")).is_ok());
    let denial = gate
        .authorize(&get("/v1/invoices/draft"), at(0))
        .unwrap_err();
    assert_eq!(denial.reason(), DenialReason::Forbidden);
    assert_eq!(&*denial.grant().unwrap().id, "no-drafts");
}

#[test]
fn a_policy_that_fails_denies() {
    let policy = policy(&format!(
        "{EXAMPLE} forbid (principal, action, resource) \
         when {{ context.port * 9223372036854775807 > 0 }};"
    ));
    let denial = gate(&policy)
        .authorize(&get("/v1/invoices/7"), at(0))
        .unwrap_err();
    assert_eq!(denial.reason(), DenialReason::Error);
    assert_eq!(&*denial.grant().unwrap().id, "a.cedar#2");
    assert!(denial.detail().unwrap().contains("overflow"), "{denial:?}");
}

#[test]
fn a_grant_ends_by_itself_and_the_gate_says_when() {
    let policy = policy(
        r#"@id("brief") @owner("o") @purpose("p") @expires("2023-11-14T22:13:30Z")
        permit (principal, action, resource);"#,
    );
    let gate = gate(&policy);
    assert_eq!(gate.reconsider_at(at(0)), Some(at(10)));
    assert!(gate.authorize(&get("/"), at(9)).is_ok());
    let denial = gate.authorize(&get("/"), at(10)).unwrap_err();
    assert_eq!(denial.reason(), DenialReason::NoGrant);
    assert_eq!(gate.reconsider_at(at(10)), None);
    // A clock that was set back: what ended is in force again, as the clock says.
    assert!(gate.authorize(&get("/"), at(9)).is_ok());
}

#[test]
fn a_slice_that_reads_the_clock_is_asked_each_time() {
    let policy = policy(&grant(
        "until-ten",
        r#"permit (principal, action, resource)
        when { context.now < datetime("2023-11-14T22:13:30Z") };"#,
    ));
    let gate = gate(&policy);
    assert_eq!(gate.reconsider_at(at(0)), Some(at(1)));
    assert!(gate.authorize(&get("/"), at(9)).is_ok());
    assert!(gate.authorize(&get("/"), at(10)).is_err());
}

#[test]
fn what_one_connection_remembers_another_never_sees() {
    let policy = policy(&grant(
        "near",
        r#"permit (principal, action, resource)
        when { context.source.ip.isInRange(ip("10.0.0.0/8")) };"#,
    ));
    let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
    let from = |source: &str| {
        let subject = Subject {
            id: CHECKOUT.parse().unwrap(),
            expires: at(3600),
            lifetime: Duration::from_secs(3600),
        };
        let source = source.parse().unwrap();
        let place = Place {
            source,
            ..place("invoices")
        };
        policy.gate(subject, place, &metrics)
    };
    let (near, far) = (from("10.0.0.9"), from("192.0.2.1"));
    let mapped = from("::ffff:10.0.0.9");
    for _ in 0..2 {
        assert_eq!(ask(&near, &get("/1")).as_deref(), Ok("near"));
        assert_eq!(ask(&far, &get("/1")), Err(DenialReason::NoGrant));
        assert_eq!(ask(&mapped, &get("/1")).as_deref(), Ok("near"));
    }
}

#[test]
fn a_dry_run_is_told_and_not_enforced() {
    let policy = policy(&format!(
        r#"{EXAMPLE}
        @id("stricter") @mode("observe") forbid (principal, action, resource)
        when {{ context has http && context.http.path like "*9" }};
        @mode("observe") {}"#,
        grant(
            "wider",
            r#"permit (principal, action == Action::"POST", resource);"#
        )
    ));
    let gate = gate(&policy);
    let permit = gate.authorize(&get("/v1/invoices/7"), at(0)).unwrap();
    assert!(permit.would_deny().is_none());
    let permit = gate.authorize(&get("/v1/invoices/9"), at(0)).unwrap();
    let would = permit.would_deny().unwrap();
    assert_eq!(would.reason(), DenialReason::Forbidden);
    assert_eq!(&*would.grant().unwrap().id, "stricter");
    let denial = gate
        .authorize(&http(&Method::POST, "/"), at(0))
        .unwrap_err();
    assert_eq!(&*denial.would_allow().unwrap().id, "wider");
}

#[test]
fn a_grant_lets_connect_where_its_scope_says_so_and_nothing_speaks_of_requests() {
    for (rest, lets) in [
        (
            r#"permit (principal, action == Action::"connect", resource);"#,
            true,
        ),
        (
            r#"permit (principal, action in [Action::"read", Action::"connect"], resource == Service::"invoices");"#,
            true,
        ),
        (
            r#"permit (principal, action == Action::"connect", resource) when { context.port == 1 };"#,
            true,
        ),
        ("permit (principal, action, resource);", true),
        (
            r#"permit (principal, action, resource) when { context has http };"#,
            false,
        ),
        (
            r#"permit (principal, action in Action::"write", resource);"#,
            false,
        ),
        (
            r#"permit (principal, action == Action::"connect", resource == Service::"ledger");"#,
            false,
        ),
        (
            r#"@mode("observe") permit (principal, action == Action::"connect", resource);"#,
            false,
        ),
    ] {
        let engine = engine_of(&grant("it", rest), "", &Settings::of("")).unwrap();
        let connecting = |now| engine.connecting("invoices", now).len();
        assert_eq!(connecting(at(0)), usize::from(lets), "{rest}");
        assert_eq!(connecting(at(3600 * 24 * 365 * 10)), 0, "{rest}");
    }
}

#[test]
fn a_sidecar_that_observes_lets_everything_pass_and_says_what_it_would_deny() {
    let settings = Settings {
        mode: Mode::Observe,
        ..Settings::of("")
    };
    let policy = policy_with(EXAMPLE, "", &settings);
    let gate = gate(&policy);
    let permit = gate.authorize(&get("/v1/invoices/7"), at(0)).unwrap();
    assert!(permit.grant().is_some() && permit.would_deny().is_none());
    let permit = gate.authorize(&get("/"), at(0)).unwrap();
    assert!(permit.grant().is_none());
    assert_eq!(permit.would_deny().unwrap().reason(), DenialReason::NoGrant);
}

#[test]
fn registration_gives_roles_attributes_and_a_longest_lifetime() {
    let workloads = format!(
        "workloads:\n- {{ id: {CHECKOUT}, owner: shop, purpose: sells, roles: [readers], \
         labels: {{ tier: front }} }}\n\
         - {{ id: spiffe://example.org/brief, owner: o, purpose: p, max_lifetime: 30m }}\n"
    );
    let conditions = [
        r#"principal in Role::"readers""#,
        r#"principal in TrustDomain::"example.org""#,
        r#"principal has owner && principal.owner == "shop""#,
        r#"principal has kind && principal.kind == Kind::"service""#,
        r#"principal.hasTag("tier") && principal.getTag("tier") == "front""#,
        r#"Workload::"spiffe://example.org/brief" has owner"#,
        r#"context.environment.hasTag("region") && context.environment.getTag("region") == "eu""#,
        r#"context.source.ip.isInRange(ip("10.0.0.0/8"))"#,
        r#"context.port == 8443"#,
        r#"context.peer.trust_domain == "example.org""#,
        r#"context.peer.lifetime <= duration("1h")"#,
        r#"context.peer.expires > context.now"#,
        r#"action in Action::"read""#,
    ];
    let settings = Settings {
        environment: [("region".to_owned(), "eu".to_owned())].into(),
        ..Settings::of("")
    };
    for condition in conditions {
        let cedar = grant("g", "permit (principal, action, resource)");
        let cedar = format!("{cedar} when {{ {condition} }};");
        let policy = policy_with(&cedar, &workloads, &settings);
        assert_eq!(
            ask(&gate(&policy), &get("/")).as_deref(),
            Ok("g"),
            "{condition}"
        );
    }
    let cedar = grant("g", "permit (principal, action, resource);");
    let policy = policy_with(&cedar, &workloads, &settings);
    let brief = gate_of(&policy, "spiffe://example.org/brief");
    assert_eq!(ask(&brief, &get("/")), Err(DenialReason::LifetimeTooLong));
}

#[test]
fn methods_without_a_name_are_told_apart_by_conditions() {
    let policy = policy(&grant(
        "purges",
        r#"permit (principal, action == Action::"other", resource)
        when { context.http.method == "PURGE" };"#,
    ));
    let gate = gate(&policy);
    let method = |name: &str| Method::from_bytes(name.as_bytes()).unwrap();
    for _ in 0..2 {
        assert!(ask(&gate, &http(&method("PURGE"), "/")).is_ok());
        assert!(ask(&gate, &http(&method("purge"), "/")).is_err());
        assert!(ask(&gate, &http(&method("LOCK"), "/")).is_err());
    }
}

#[test]
fn what_a_gate_holds_is_bounded() {
    let policy = policy(&grant(
        "g",
        r#"permit (principal, action, resource)
        when { context has http && [context.http.path].contains("/1") };"#,
    ));
    let gate = gate(&policy);
    for number in 0..2_000 {
        assert_eq!(ask(&gate, &get(&format!("/{number}"))).is_ok(), number == 1);
    }
    assert!(ask(&gate, &get(&"/1".repeat(100_000))).is_err());
    let (remembered, key) = gate.held();
    assert!(
        (1..=gate::MOST_REMEMBERED).contains(&remembered),
        "{remembered}"
    );
    assert!(key < 100_000, "{key}");
}

#[test]
fn only_the_denial_counts_of_what_is_decided_again() {
    let registry = prometheus::Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let policy = policy(EXAMPLE);
    let subject = Subject {
        id: CHECKOUT.parse().unwrap(),
        expires: at(3600),
        lifetime: Duration::from_secs(3600),
    };
    let gate = policy.gate(subject, place("invoices"), &metrics);
    let counted = || {
        let families = registry.gather();
        let samples = families
            .iter()
            .flat_map(prometheus::proto::MetricFamily::get_metric);
        samples
            .map(|one| one.get_counter().get_value())
            .sum::<f64>()
    };
    let act = get("/v1/invoices/1");
    assert!(gate.authorize(&act, at(0)).is_ok());
    assert!(gate.reconsider(&act, at(0)).is_ok());
    assert!((counted() - 1.0).abs() < f64::EPSILON);
    let none = engine_of("", "", &Settings::of("policy")).unwrap();
    policy.engine().publish(none);
    assert!(gate.reconsider(&act, at(0)).is_err());
    assert!((counted() - 2.0).abs() < f64::EPSILON);
}

#[test]
fn decisions_are_counted_with_bounded_names() {
    let registry = prometheus::Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let policy = policy(EXAMPLE);
    for number in 0..1_002 {
        let subject = Subject {
            id: format!("spiffe://example.org/w{number}").parse().unwrap(),
            expires: at(1),
            lifetime: Duration::from_secs(1),
        };
        let gate = policy.gate(subject, place("invoices"), &metrics);
        assert!(gate.authorize(&Act::Connect, at(0)).is_err());
    }
    let families = registry.gather();
    let text = prometheus::TextEncoder::new()
        .encode_to_string(&families)
        .unwrap();
    assert!(text.contains(
        r#"doorward_decisions_total{decision="denied",grant="",principal="other",reason="no_grant",service="invoices"} 2"#
    ), "{text}");
}

#[test]
fn mistakes_are_told_in_place() {
    let everyone = "permit (principal, action, resource);";
    let sound = grant("g", everyone);
    for (cedar, told) in [
        (
            everyone.to_owned(),
            "a.cedar:1: this permit does not say @id, @owner, @purpose, @expires",
        ),
        (
            format!(
                "\n@id(\"a\") @owner(\"\") @purpose(\"p\") @expires(\"2030-01-01\") {everyone}"
            ),
            "a.cedar:2: this permit does not say @owner",
        ),
        (
            sound.replace("2030-01-01", "tomorrow"),
            "a.cedar:1: `tomorrow` is not a date",
        ),
        (
            sound.replace("2030-01-01", "2030-02-30"),
            "a.cedar:1: `2030-02-30` is not a date",
        ),
        (
            "@expires(\"2030-01-01\") forbid (principal, action, resource);".into(),
            "a.cedar:1: a forbid does not expire",
        ),
        (
            format!("@mode(\"audit\") {sound}"),
            "a.cedar:1: `audit` is not a mode",
        ),
        (
            format!("{sound}\n{sound}"),
            "a.cedar:2: the id `g` is taken",
        ),
        (
            format!("{sound}\n@id(\"g\") forbid (principal, action, resource);"),
            "a.cedar:2: the id `g` is taken",
        ),
        (
            grant("g", "permit (principal == ?principal, action, resource);"),
            "a.cedar:1: a template grants nothing by itself",
        ),
        (
            "permit (principal, action resource);".into(),
            "a.cedar:1: unexpected token",
        ),
        (
            grant(
                "g",
                r#"permit (principal, action == Action::"get", resource);"#,
            ),
            "a.cedar:1: for policy `g`, unrecognized action `Action::\"get\"`",
        ),
        (
            grant(
                "g",
                r#"permit (principal, action, resource) when { context.http.path == "/" };"#,
            ),
            "a.cedar:1: for policy `g`, attribute `http` in context not found",
        ),
        (
            grant(
                "g",
                r#"permit (principal == Workload::"checkout", action, resource);"#,
            ),
            "a.cedar:1: `checkout` names nobody: not a SPIFFE ID",
        ),
        (
            grant(
                "g",
                r#"permit (principal in TrustDomain::"Example.org", action, resource);"#,
            ),
            "a.cedar:1: `Example.org` names nobody",
        ),
        (
            grant(
                "g",
                r#"permit (principal, action == Action::"read", resource);"#,
            ),
            "a.cedar:1: `read` is a group of actions, and no request is a group",
        ),
    ] {
        let error = engine_of(&cedar, "", &Settings::of(""))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with(told), "{cedar}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn every_mistake_of_every_file_is_told_at_once() {
    let error = check_texts(
        [
            (
                "a.cedar",
                "permit (principal, action, resource);\npermit (principal, action, resource);",
            ),
            ("b.cedar", "oops"),
            ("workloads.yaml", "workloads: 1"),
        ],
        &Settings::of(""),
    )
    .unwrap_err();
    let told: Vec<_> = error.diagnostics().map(ToString::to_string).collect();
    let places: Vec<_> = told
        .iter()
        .map(|told| told.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        places,
        ["a.cedar:1", "a.cedar:2", "b.cedar:1", "workloads.yaml:1"]
    );
    for diagnostic in error.diagnostics() {
        assert!(diagnostic.source_code().is_some() && diagnostic.labels().is_some());
    }
}

#[test]
fn advisory_governance_warns_and_loads() {
    let settings = Settings {
        governance: Governance::Advisory,
        ..Settings::of("")
    };
    let cedar = "permit (principal in Role::\"a\", action in Action::\"read\", resource);";
    let workloads = "workloads:\n- { id: spiffe://a/b, owner: o, purpose: p, roles: a }";
    let engine = engine_of(cedar, workloads, &settings).unwrap();
    let told: Vec<_> = engine.warnings().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["a.cedar:1: this permit does not say @id, @owner, @purpose, @expires"]
    );
}

#[test]
fn the_section_policy_is_read() {
    let read = |text: &str| {
        crate::document::Document::new("d.yaml", text)
            .read(Settings::read)
            .map_err(|mistakes| mistakes.to_string())
    };
    let settings =
        read("dir: /etc/p\ngovernance: advisory\nmode: observe\ndeny: [shadowed, duplicate]");
    let settings = settings.unwrap();
    assert_eq!(
        settings.deny,
        Codes::from_iter([Code::Shadowed, Code::Duplicate])
    );
    assert_eq!(settings.dir, PathBuf::from("/etc/p"));
    assert_eq!(settings.governance, Governance::Advisory);
    assert_eq!(settings.mode, Mode::Observe);
    let settings = read("dir: /etc/p").unwrap();
    assert_eq!(
        (settings.governance, settings.mode),
        (Governance::Enforce, Mode::Enforce)
    );
    assert_eq!(
        read("mode: off").unwrap_err(),
        "d.yaml:1: the key `dir` is missing\nd.yaml:1: mode: `off` is not known here"
    );
}

/// A policy of the property test, before it is written out.
#[derive(Clone, Debug)]
struct Drawn {
    permit: bool,
    scope: (&'static str, &'static str, &'static str),
    conditions: Vec<&'static str>,
    unless: bool,
    expires: u64,
    dry_run: bool,
}

const PRINCIPALS: &[&str] = &[
    "principal",
    "principal is Workload",
    r#"principal == Workload::"spiffe://example.org/a""#,
    r#"principal == Workload::"spiffe://example.org/b""#,
    r#"principal in Workload::"spiffe://example.org/a""#,
    r#"principal in Role::"readers""#,
    r#"principal in Role::"writers""#,
    r#"principal is Workload in Role::"readers""#,
    r#"principal in TrustDomain::"example.org""#,
    r#"principal in TrustDomain::"example.com""#,
];

const ACTIONS: &[&str] = &[
    "action",
    r#"action == Action::"GET""#,
    r#"action == Action::"connect""#,
    r#"action == Action::"other""#,
    r#"action in Action::"read""#,
    r#"action in Action::"write""#,
    r#"action in [Action::"GET", Action::"write", Action::"connect"]"#,
];

const RESOURCES: &[&str] = &[
    "resource",
    "resource is Service",
    r#"resource == Service::"s""#,
    r#"resource == Service::"t""#,
    r#"resource in Service::"s""#,
    r#"resource is Service in Service::"t""#,
];

const CONDITIONS: &[&str] = &[
    "true",
    "false",
    r#"context has http && context.http.path like "/a*""#,
    r#"context has http && context.http.path like "*b""#,
    r#"context has http && context.http.path like "*a*b*""#,
    r#"context has http && context.http.path == "/a""#,
    r#"context has http && "/b" != context.http.path"#,
    r#"context has http && ["/a", "/ab"].contains(context.http.path)"#,
    r#"context has http && [context.http.path, context.http.host].contains("h")"#,
    r#"context has http.path && context.http.path like "/a*""#,
    r#"context has http && context.http has host && context.http.host like "h*""#,
    r#"context has http && context.http.host == "h""#,
    r#"context has http && context.http.host like "h.*""#,
    r#"context has http && context.http.host == context.http.path"#,
    r#"context has http && context.http.method == "PURGE""#,
    r#"context has http && context.http == {method: "GET", host: "h", path: "/a"}"#,
    r#"if context has http then context.http.path like "/b*" else context.port == 1"#,
    r#"context.peer.trust_domain == "example.org""#,
    r#"context.peer.lifetime > duration("30m")"#,
    r#"context.peer.expires > context.now"#,
    r#"context.source.ip.isInRange(ip("10.0.0.0/8"))"#,
    r#"context.source.ip.isIpv6()"#,
    r#"context.now < datetime("2023-11-14T22:13:25Z")"#,
    r#"context.port == 1"#,
    r#"context.port * 9223372036854775807 > 5"#,
    r#"context has http && context.http.path like "/a*" && context.port + 9223372036854775807 > 5"#,
    r#"context.environment.hasTag("region") && context.environment.getTag("region") == "eu""#,
    r#"principal has owner && principal.owner == "o""#,
    r#"principal.hasTag("tier") && principal.getTag("tier") == "front""#,
    r#"principal in Role::"writers""#,
    r#"principal == Workload::"spiffe://example.org/b""#,
    r#"Workload::"spiffe://example.org/b" has owner && Workload::"spiffe://example.org/b" in Role::"readers""#,
    r#"action in Action::"read""#,
    r#"resource == Service::"s""#,
];

fn drawn() -> impl Strategy<Value = Drawn> {
    (
        prop::bool::weighted(0.7),
        // Half of them concern everybody: a policy that decides nothing proves nothing.
        prop_oneof![
            Just((PRINCIPALS[0], ACTIONS[0], RESOURCES[0])),
            (select(PRINCIPALS), select(ACTIONS), select(RESOURCES)),
        ],
        subsequence(CONDITIONS, 0..3),
        prop::bool::weighted(0.2),
        select(&[4, 8, 1_000][..]),
        prop::bool::weighted(0.2),
    )
        .prop_map(
            |(permit, scope, conditions, unless, expires, dry_run)| Drawn {
                permit,
                scope,
                conditions,
                unless,
                expires,
                dry_run,
            },
        )
}

/// Conditions that follow from each other, or exclude each other.
const RELATED: &[&str] = &[
    r#"context.http.path like "/a*""#,
    r#"context.http.path like "/a*b*""#,
    r#"context.http.path like "*b""#,
    r#"context.http.path like "/b*""#,
    r#"context.http.path == "/a""#,
    r#""/b" != context.http.path"#,
    r#"["/a", "/ab"].contains(context.http.path)"#,
    r#"["/a", "/b"].contains(context.http.path)"#,
    r#"context.http.path == "/b" || context.http.path like "/a*""#,
    r#"context.http.path like "/b*" || context.port == 1"#,
    r#"context has http && context.http.path like "/a*""#,
    r#"if context.port == 1 then context.http.path == "/a" else false"#,
    r#"context.http.host == "h""#,
    r#"context.http.host like "h*""#,
    r#"context.http.method == "GET""#,
    r#"context.port < 2"#,
    r#"context.port == 1"#,
    r#"context.port + 9223372036854775807 > 5 || context.http.path == "/a""#,
    r#"principal in Role::"readers""#,
    r#"principal in Role::"writers""#,
    r#"principal == Workload::"spiffe://example.org/b""#,
    r#"principal has kind && principal.kind == Kind::"agent""#,
    r#"principal.hasTag("tier") && principal.getTag("tier") == "front""#,
    r#"context.peer.trust_domain == "example.org""#,
    r#"action == Action::"GET""#,
    r#"resource == Service::"s""#,
];

/// Policies that are likely to have to do with each other.
fn related() -> impl Strategy<Value = Drawn> {
    let principals = select(&PRINCIPALS[2..]);
    let actions = select(&[r#"action in Action::"read""#, r#"action == Action::"GET""#][..]);
    let conditions = subsequence(RELATED, 0..3);
    let permit = prop::bool::weighted(0.8);
    (permit, principals, actions, conditions, any::<bool>()).prop_map(
        |(permit, principal, action, conditions, unless)| Drawn {
            permit,
            scope: (principal, action, "resource"),
            unless: unless && conditions.len() == 1,
            conditions,
            expires: 1_000,
            dry_run: false,
        },
    )
}

fn text(drawn: &[Drawn]) -> String {
    let mut text = String::new();
    for (number, policy) in drawn.iter().enumerate() {
        let end = jiff::Timestamp::try_from(at(policy.expires)).unwrap();
        text += &match policy.permit {
            true => {
                format!("@id(\"g{number}\") @owner(\"o\") @purpose(\"p\") @expires(\"{end}\")\n")
            }
            false => format!("@id(\"g{number}\")\n"),
        };
        if policy.dry_run {
            text += "@mode(\"observe\")\n";
        }
        let effect = if policy.permit { "permit" } else { "forbid" };
        let (principal, action, resource) = policy.scope;
        text += &format!("{effect} ({principal}, {action}, {resource})");
        let clause = if policy.unless { "unless" } else { "when" };
        for condition in &policy.conditions {
            text += &format!("\n{clause} {{ {condition} }}");
        }
        text += ";\n";
    }
    text
}

const REGISTERED: &str = "workloads:
- { id: spiffe://example.org/a, owner: o, purpose: p, roles: [readers, writers], labels: { tier: front } }
- { id: spiffe://example.org/b, owner: x, purpose: p, kind: agent, accountable: j, roles: [readers] }
";

/// One question of the property test: method, path, host, seconds, none of it for TCP.
type Asked = (Option<(&'static str, &'static str, &'static str)>, u64);

fn asked() -> impl Strategy<Value = Asked> {
    let methods = select(&["GET", "POST", "PURGE", "LOCK", "CONNECT"][..]);
    let paths = select(&["/a", "/b", "/ab", "/aab", "h", "", "/é*b"][..]);
    let hosts = select(&["h", "h.x", "", "/a"][..]);
    (
        prop::option::weighted(0.85, (methods, paths, hosts)),
        0_u64..12,
    )
}

/// Cedar alone: all policies, its own entities and its own context, both checked by the schema.
struct Plain {
    policies: Vec<(Drawn, cedar_policy::Policy)>,
    entities: cedar_policy::Entities,
    subject: Subject,
    place: Place,
}

impl Plain {
    fn new(drawn: &[Drawn], subject: &Subject, place: &Place) -> Self {
        let parsed: cedar_policy::PolicySet = text(drawn).parse().unwrap();
        let policy = |(number, drawn): (usize, &Drawn)| {
            let id = cedar_policy::PolicyId::new(format!("policy{number}"));
            (drawn.clone(), parsed.policy(&id).unwrap().clone())
        };
        let id = subject.id.as_str();
        let mut entities = vec![
            json!({
                "uid": uid("Workload", "spiffe://example.org/a"),
                "attrs": { "owner": "o", "purpose": "p", "kind": uid("Kind", "service") },
                "tags": { "tier": "front" },
                "parents": [
                    uid("Role", "readers"), uid("Role", "writers"), uid("TrustDomain", "example.org"),
                ],
            }),
            json!({
                "uid": uid("Workload", "spiffe://example.org/b"),
                "attrs": {
                    "owner": "x", "purpose": "p", "accountable": "j", "kind": uid("Kind", "agent"),
                },
                "parents": [uid("Role", "readers"), uid("TrustDomain", "example.org")],
            }),
            json!({
                "uid": uid("Environment", "this"),
                "attrs": {}, "tags": { "region": "eu" }, "parents": [],
            }),
        ];
        if !["spiffe://example.org/a", "spiffe://example.org/b"].contains(&id) {
            let domain = uid("TrustDomain", subject.id.trust_domain().as_str());
            entities.push(json!({ "uid": uid("Workload", id), "attrs": {}, "parents": [domain] }));
        }
        Self {
            policies: drawn.iter().enumerate().map(policy).collect(),
            entities: cedar_policy::Entities::from_json_value(
                entities.into(),
                Some(&cedar::SCHEMA),
            )
            .unwrap(),
            subject: subject.clone(),
            place: place.clone(),
        }
    }

    /// Decides over what is in force, with the dry runs or without; a policy that fails denies.
    fn decide(&self, dry_runs: bool, asked: Asked) -> Result<(), DenialReason> {
        use cedar_policy::{Decision, PolicySet};
        let seconds = asked.1;
        let in_force = self.policies.iter().filter(|(drawn, _)| {
            (!drawn.permit || seconds < drawn.expires) && (dry_runs || !drawn.dry_run)
        });
        let policies = in_force.map(|(_, policy)| policy.clone());
        let response = self.ask(&PolicySet::from_policies(policies).unwrap(), asked);
        let denied = response.decision() == Decision::Deny;
        if denied && response.diagnostics().reason().next().is_some() {
            Err(DenialReason::Forbidden)
        } else if response.diagnostics().errors().next().is_some() {
            Err(DenialReason::Error)
        } else if denied {
            Err(DenialReason::NoGrant)
        } else {
            Ok(())
        }
    }

    /// Whether the scope and the conditions of one policy hold, in force or not.
    fn matches(&self, number: usize, asked: Asked) -> bool {
        let policy = [self.policies[number].1.clone()];
        let policy = cedar_policy::PolicySet::from_policies(policy).unwrap();
        self.ask(&policy, asked)
            .diagnostics()
            .reason()
            .next()
            .is_some()
    }

    fn ask(
        &self,
        policies: &cedar_policy::PolicySet,
        (http, seconds): Asked,
    ) -> cedar_policy::Response {
        use cedar_policy::{Authorizer, Context, Request};
        let time = |time| {
            let time = jiff::Timestamp::try_from(time).unwrap();
            time.strftime("%FT%TZ").to_string()
        };
        let Subject {
            id,
            expires,
            lifetime,
        } = &self.subject;
        let mut context = json!({
            "source": { "ip": self.place.source.to_string() },
            "port": self.place.port,
            "now": time(at(seconds)),
            "peer": {
                "trust_domain": id.trust_domain().as_str(),
                "expires": time(*expires),
                "lifetime": format!("{}s", lifetime.as_secs()),
            },
            "environment": uid("Environment", "this"),
        });
        let mut action = "connect";
        if let Some((method, path, host)) = http {
            context["http"] = json!({ "method": method, "path": path, "host": host });
            action = match method {
                "PURGE" | "LOCK" => "other",
                known => known,
            };
        }
        let action: cedar_policy::EntityUid = format!("Action::\"{action}\"").parse().unwrap();
        let context = Context::from_json_value(context, Some((&cedar::SCHEMA, &action)));
        let request = Request::new(
            format!("Workload::\"{id}\"").parse().unwrap(),
            action,
            format!("Service::\"{}\"", self.place.service)
                .parse()
                .unwrap(),
            context.unwrap(),
            Some(&cedar::SCHEMA),
        );
        Authorizer::new().is_authorized(&request.unwrap(), policies, &self.entities)
    }
}

fn uid(kind: &str, id: &str) -> serde_json::Value {
    json!({ "type": kind, "id": id })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::with_cases(160)
    })]
    #[test]
    fn index_slice_and_memory_decide_as_cedar_alone_decides(
        policies in prop::collection::vec(drawn(), 0..7),
        questions in prop::collection::vec(asked(), 1..24),
        id in select(&["spiffe://example.org/a", "spiffe://example.org/b",
            "spiffe://example.org/c", "spiffe://example.com/a"][..]),
        service in select(&["s", "t", "u"][..]),
        source in select(&["10.0.0.1", "192.0.2.1", "2001:db8::1"][..]),
        port in select(&[1_u16, 2][..]),
        lifetime in select(&[600_u64, 7200][..]),
    ) {
        let settings = Settings {
            environment: [("region".to_owned(), "eu".to_owned())].into(),
            ..Settings::of("")
        };
        let subject = Subject {
            id: id.parse().unwrap(),
            expires: at(6),
            lifetime: Duration::from_secs(lifetime),
        };
        let place = Place { service: service.into(), port, source: source.parse().unwrap() };
        let policy = policy_with(&text(&policies), REGISTERED, &settings);
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let plain = Plain::new(&policies, &subject, &place);
        let gate = policy.gate(subject, place, &metrics);
        // Twice over: the second time from memory wherever that is allowed.
        for question in questions.iter().chain(&questions) {
            let (http, seconds) = *question;
            let method = http.map(|(method, ..)| Method::from_bytes(method.as_bytes()).unwrap());
            let act = match (http, &method) {
                (Some((_, path, host)), Some(method)) => Act::Http { method, host, path },
                _ => Act::Connect,
            };
            let decided = gate.authorize(&act, at(seconds));
            let enforced = plain.decide(false, *question);
            let rehearsed = plain.decide(true, *question);
            match decided {
                Ok(permit) => {
                    prop_assert_eq!(enforced, Ok(()));
                    let would = permit.would_deny().map_or(Ok(()), |denial| Err(denial.reason()));
                    prop_assert_eq!(would, rehearsed);
                }
                Err(denial) => {
                    prop_assert_eq!(enforced, Err(denial.reason()));
                    prop_assert_eq!(denial.would_allow().is_some(), rehearsed.is_ok());
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::with_cases(160)
    })]
    #[test]
    fn what_is_said_to_be_needless_or_void_is_so(
        policies in prop_oneof![
            prop::collection::vec(drawn(), 1..6),
            prop::collection::vec(related(), 4..10),
        ],
        questions in prop::collection::vec(asked(), 8..32),
        id in select(&["spiffe://example.org/a", "spiffe://example.org/b",
            "spiffe://example.org/c", "spiffe://example.com/a"][..]),
        service in select(&["s", "t", "u"][..]),
        source in select(&["10.0.0.1", "2001:db8::1"][..]),
        port in select(&[1_u16, 2][..]),
        lifetime in select(&[600_u64, 7200][..]),
    ) {
        let one = |(number, policy): (usize, &Drawn)| {
            let text = text(std::slice::from_ref(policy)).replace("\"g0\"", &format!("\"g{number}\""));
            (format!("{number}.cedar"), text)
        };
        let texts: Vec<_> = policies.iter().enumerate().map(one).collect();
        let given = texts.iter().map(|(name, text)| (&**name, &**text));
        let given = given.chain([(files::WORKLOADS, REGISTERED)]);
        let engine = files::check_texts_at(given, &Settings::of(""), at(0)).unwrap();
        let subject = Subject {
            id: id.parse().unwrap(),
            expires: at(6),
            lifetime: Duration::from_secs(lifetime),
        };
        let place = Place { service: service.into(), port, source: source.parse().unwrap() };
        let plain = Plain::new(&policies, &subject, &place);
        for warning in engine.warnings() {
            let told = warning.to_string();
            let Ok(policy) = told.split('.').next().unwrap_or_default().parse() else { continue };
            // Cedar's validator names the policy itself.
            let other = told.split('`').nth(1).filter(|_| !told.contains("for policy"));
            let other = other.and_then(|name| name.strip_prefix('g')?.parse::<usize>().ok());
            // No request has such a path.
            let real = questions.iter().filter(|(http, _)| {
                http.is_none_or(|(method, path, host)| {
                    (path.starts_with('/') || (path.is_empty() && method == "CONNECT")) && host != "/a"
                })
            });
            for question in real {
                let matches = |policy| plain.matches(policy, *question);
                match (warning.code(), other) {
                    (Some(Code::NeverMatches), None) => prop_assert!(!matches(policy), "{told}\n{texts:?}"),
                    (Some(Code::NeverMatches | Code::Shadowed | Code::Duplicate), Some(other)) => {
                        prop_assert!(!matches(policy) || matches(other), "{told}\n{texts:?}");
                    }
                    _ => {}
                }
            }
        }
    }
}
