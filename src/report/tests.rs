use serde_json::json;

use super::history::Target;
use super::*;
use crate::policy::{Settings, files};

/// 2026-11-22, in milliseconds.
const NOW: i64 = 1_795_305_600_000;
const DAY: i64 = 86_400_000;

fn window() -> Window {
    Window {
        end: NOW,
        step: DAY,
        steps: 4,
    }
}

fn engine(policies: &str, workloads: &str) -> Engine {
    let texts = [("a.cedar", policies), ("workloads.yaml", workloads)];
    let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
    files::check_texts(texts, &Settings::of("")).unwrap()
}

fn grant(id: &str, expires: &str, more: &str, who: &str, service: &str) -> String {
    format!(
        "@id(\"{id}\") @owner(\"{id}@example.org\") @purpose(\"p\") @expires(\"{expires}\") {more}\n\
         permit (principal {who}, action, resource == Service::\"{service}\");\n"
    )
}

const CHECKOUT: &str = "== Workload::\"spiffe://example.org/checkout\"";

fn counter(labels: &[(&str, &str)], grown: [f64; 4]) -> Counter {
    let labels = labels.iter();
    Counter {
        labels: labels
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        target: target("a"),
        grown: grown.to_vec(),
        at_least: false,
    }
}

fn decision(principal: &str, grant: &str, decision: &str, count: f64) -> Counter {
    let reason = if grant.is_empty() {
        "no_grant"
    } else {
        "grant"
    };
    let labels = [
        ("service", "invoices"),
        ("principal", principal),
        ("grant", grant),
        ("decision", decision),
        ("reason", reason),
    ];
    counter(&labels, [0.0, count, 0.0, 0.0])
}

fn target(name: &str) -> Target {
    Target([("instance".to_owned(), name.to_owned())].into())
}

/// A sidecar in order, beside `invoices`.
fn sidecar() -> Sidecar {
    Sidecar {
        covered: vec![1.0; 4],
        blind: Vec::new(),
        state: State::Up,
        ids: ["spiffe://example.org/invoices".to_owned()].into(),
        serves: ["invoices".to_owned()].into(),
        not_after: Some(count_f64(NOW as u64 / 1000) + 3000.0),
        updated: Some(count_f64(NOW as u64 / 1000) - 600.0),
        policies: Some(1.0),
        loaded: Some(1.0),
        audit: Some(true),
        counted: HashMap::new(),
    }
}

fn seen(sidecar: Sidecar) -> Seen {
    Seen {
        sidecars: [(target("a"), sidecar)].into(),
        ..Seen::default()
    }
}

fn report(seen: &Seen, engine: &Engine) -> Report {
    Report::new("http://p.example".into(), window(), seen, engine)
}

/// The rows of one section: whether to act, and the texts of `cells`.
fn rows(report: &Report, kind: Kind, cells: &[&str]) -> Vec<String> {
    let section = report.section(kind).unwrap();
    let row = |row: &Row| {
        let cells = cells.iter().map(|name| {
            let cell = row.cells.iter().find(|(named, _)| named == name);
            cell.unwrap_or_else(|| panic!("{kind:?} has no cell {name}"))
                .1
                .to_string()
        });
        let mark = if row.act { "*" } else { " " };
        std::iter::once(mark.to_owned())
            .chain(cells)
            .collect::<Vec<_>>()
            .join(" | ")
    };
    section.rows.iter().map(row).collect()
}

#[test]
fn a_fleet_in_order_gives_nothing_to_act_on() {
    let engine = engine(
        &grant("reads", "2099-01-01", "", CHECKOUT, "invoices"),
        "workloads:\n- { id: spiffe://example.org/checkout, owner: o, purpose: p }\n\
         - { id: spiffe://example.org/invoices, owner: o, purpose: p }\n",
    );
    let mut seen = seen(sidecar());
    seen.decisions = vec![decision(
        "spiffe://example.org/checkout",
        "reads",
        "allowed",
        3.0,
    )];
    let report = report(&seen, &engine);
    assert_eq!(report.findings(), 0, "{report}");
    assert!(report.notes.is_empty(), "{report}");
    let used = rows(
        &report,
        Kind::GrantsInUse,
        &["grant", "allowed", "principals", "last_used", "owner"],
    );
    assert_eq!(used, ["  | reads | 3 | 1 | 2026-11-20 | reads@example.org"]);
    let told = report.to_string();
    assert!(told.ends_with("\nnothing to act on\n"), "{told}");
}

#[test]
fn an_unused_grant_is_told_by_what_was_covered() {
    let policies = [
        grant("used", "2099-01-01", "", CHECKOUT, "invoices"),
        grant("unused", "2099-01-01", "", CHECKOUT, "invoices"),
        grant("elsewhere", "2099-01-01", "", CHECKOUT, "ledger"),
        grant("ended", "2026-11-01", "", CHECKOUT, "invoices"),
        grant(
            "dry",
            "2099-01-01",
            "@mode(\"observe\")",
            CHECKOUT,
            "invoices",
        ),
    ];
    let engine = engine(&policies.concat(), "");
    let nearly = "not seen in the 60 h that are covered";
    for (covered, blind, used) in [
        (vec![1.0; 4], vec![], "never in 4 d"),
        (vec![1.0; 4], vec![0.0, 0.02, 0.0, 0.0], "never in 4 d"),
        (vec![1.0, 1.0, 0.5, 0.0], vec![], nearly),
        // Another replica covers the time, but this one may have been asked.
        (vec![1.0; 4], vec![0.0, 0.0, 0.5, 1.0], nearly),
    ] {
        let mut seen = seen(Sidecar {
            covered,
            blind,
            ..sidecar()
        });
        seen.decisions = vec![decision(
            "spiffe://example.org/checkout",
            "used",
            "allowed",
            1.0,
        )];
        let report = report(&seen, &engine);
        let unused = rows(&report, Kind::UnusedGrants, &["grant", "used", "owner"]);
        let expected = [
            format!("* | unused | {used} | unused@example.org"),
            "  | elsewhere | unknown: no sidecar was seen | elsewhere@example.org".to_owned(),
        ];
        assert_eq!(unused, expected);
        let unseen = rows(
            &report,
            Kind::Coverage,
            &["sidecar", "service", "state", "owner"],
        );
        assert_eq!(
            unseen[0],
            "* | none | ledger | not seen | elsewhere@example.org"
        );
    }
}

#[test]
fn a_grant_is_due_when_it_ends_or_should_have_been_reviewed() {
    let policies = [
        grant("long", "2026-12-31", "", CHECKOUT, "invoices"),
        grant("soon", "2026-12-05", "", CHECKOUT, "invoices"),
        grant("last-day", "2026-11-22", "", CHECKOUT, "invoices"),
        grant(
            "ended",
            "2026-11-21",
            "@review(\"2026-01-01\")",
            CHECKOUT,
            "invoices",
        ),
        grant(
            "old",
            "2099-01-01",
            "@review(\"2026-11-21\") @ticket(\"SEC-1\")",
            CHECKOUT,
            "invoices",
        ),
        grant(
            "new",
            "2099-01-01",
            "@review(\"2026-11-22\")",
            CHECKOUT,
            "invoices",
        ),
    ];
    let report = report(&seen(sidecar()), &engine(&policies.concat(), ""));
    let due = rows(
        &report,
        Kind::GrantsDue,
        &["grant", "what", "when", "ticket"],
    );
    assert_eq!(
        due,
        [
            "* | soon | ends soon | 2026-12-05 | -",
            "* | last-day | ends soon | 2026-11-22 | -",
            "* | ended | has ended | 2026-11-21 | -",
            "* | old | review overdue | 2026-11-21 | SEC-1",
        ]
    );
}

#[test]
fn a_principal_is_dormant_if_it_may_and_does_not() {
    let policies = [
        grant("a", "2099-01-01", "", CHECKOUT, "invoices"),
        grant(
            "b",
            "2099-01-01",
            "",
            "== Workload::\"spiffe://example.org/gone\"",
            "invoices",
        ),
        grant("c", "2099-01-01", "", "in Role::\"readers\"", "invoices"),
        grant(
            "d",
            "2026-01-01",
            "",
            "== Workload::\"spiffe://example.org/past\"",
            "invoices",
        ),
    ];
    let workload = |name: &str, more: &str| {
        format!(
            "- {{ id: spiffe://example.org/{name}, owner: {name}@example.org, purpose: p{more} }}\n"
        )
    };
    let workloads = [
        "workloads:\n".to_owned(),
        workload("checkout", ""),
        workload("reader", ", roles: [readers]"),
        workload("refused", ", roles: [readers]"),
        workload("invoices", ""),
        workload("nobody", ""),
    ];
    let engine = engine(&policies.concat(), &workloads.concat());
    let mut seen = seen(sidecar());
    seen.decisions = vec![
        decision("spiffe://example.org/checkout", "a", "allowed", 1.0),
        decision("spiffe://example.org/refused", "", "denied", 2.0),
    ];
    let report = report(&seen, &engine);
    let dormant = rows(
        &report,
        Kind::DormantPrincipals,
        &["principal", "seen", "grants", "registered", "owner"],
    );
    assert_eq!(
        dormant,
        [
            "* | spiffe://example.org/gone | never in 4 d | b | no | b@example.org",
            "* | spiffe://example.org/nobody | never in 4 d | - | yes | nobody@example.org",
            "* | spiffe://example.org/reader | never in 4 d | c | yes | reader@example.org",
            "* | spiffe://example.org/refused | asks, and is always denied | c | yes | refused@example.org",
        ]
    );
}

#[test]
fn whoever_is_not_registered_is_named_with_who_let_it_in() {
    let engine = engine(
        &grant(
            "open",
            "2099-01-01",
            "",
            "in TrustDomain::\"example.org\"",
            "invoices",
        ),
        "workloads: [{ id: spiffe://example.org/checkout, owner: shop@example.org, purpose: p }]\n",
    );
    let mut seen = seen(sidecar());
    seen.decisions = vec![
        decision("spiffe://example.org/checkout", "open", "allowed", 1.0),
        decision("spiffe://example.org/helper", "open", "allowed", 5.0),
        decision("spiffe://example.com/stranger", "", "denied", 7.0),
        decision("spiffe://example.org/checkout", "", "denied", 9.0),
        decision("other", "", "denied", 1.0),
        decision("spiffe://example.org/helper", "gone", "allowed", 1.0),
    ];
    let report = report(&seen, &engine);
    assert_eq!(
        rows(
            &report,
            Kind::UnregisteredPrincipals,
            &["principal", "allowed", "denied", "owner"]
        ),
        [
            "* | spiffe://example.com/stranger | 0 | 7 | nobody",
            "* | spiffe://example.org/helper | 6 | 0 | nobody, open@example.org",
        ]
    );
    assert_eq!(
        rows(
            &report,
            Kind::Denials,
            &["principal", "reason", "denied", "owner"]
        ),
        [
            "* | spiffe://example.org/checkout | no_grant | 9 | shop@example.org",
            "* | spiffe://example.com/stranger | no_grant | 7 | nobody",
            "* | other | no_grant | 1 | nobody",
        ]
    );
    assert_eq!(
        rows(&report, Kind::Policy, &["what", "where"]),
        ["* | grant gone decided 1 times, and is not in the directory | invoices"]
    );
    assert!(
        report.notes[0].starts_with("Some principals are counted together"),
        "{report}"
    );
}

#[test]
fn dry_runs_are_told_whether_they_decided_or_not() {
    let policies = grant(
        "dry",
        "2099-01-01",
        "@mode(\"observe\")",
        CHECKOUT,
        "invoices",
    ) + &grant(
        "idle",
        "2099-01-01",
        "@mode(\"observe\")",
        CHECKOUT,
        "invoices",
    );
    let mut seen = seen(sidecar());
    let labels = [
        ("service", "invoices"),
        ("principal", "spiffe://example.org/checkout"),
        ("grant", "dry"),
        ("decision", "would_allow"),
    ];
    seen.rehearsed = vec![counter(&labels, [1.0; 4])];
    let report = report(&seen, &engine(&policies, ""));
    assert_eq!(
        rows(
            &report,
            Kind::DryRun,
            &["would", "grant", "requests", "owner"]
        ),
        [
            "* | allow | dry | 4 | dry@example.org",
            "* | change nothing | idle | 0 | idle@example.org",
        ]
    );
}

#[test]
fn the_secretless_score_is_the_share_of_requests_without_a_secret() {
    for (requests, with, told) in [
        (100.0, 0.0, "100 %"),
        (100_000.0, 1.0, "99.99 %"),
        (3.0, 1.0, "66.66 %"),
        (100_000.0, 99_999.9, "0.01 %"),
        (4.0, 4.0, "0 %"),
        (4.0, 5.0, "0 %"),
        (0.0, 0.0, "100 %"),
    ] {
        assert_eq!(
            text::percent(score(requests, with)),
            told,
            "{with} of {requests}"
        );
    }
    let mut seen = seen(sidecar());
    let of = |direction| [("direction", direction), ("service", "invoices")];
    let denied = [&of("inbound")[..], &[("outcome", "denied")]].concat();
    seen.requests = vec![
        counter(&denied, [7.0; 4]),
        counter(&of("inbound"), [4.0, 0.0, 0.0, 4.0]),
        counter(&of("outbound"), [2.0, 0.0, 0.0, 0.0]),
    ];
    let told = report(&seen, &engine("", ""));
    assert!(
        told.section(Kind::Secretless).unwrap().notes[0].contains("too old"),
        "{told}"
    );
    seen.with_secrets = vec![counter(&of("inbound"), [1.0, 0.0, 0.0, 1.0])];
    let labels = [
        &of("inbound")[..],
        &[("kind", "basic"), ("principal", "spiffe://example.org/a")],
    ];
    seen.secrets = vec![counter(&labels.concat(), [1.0, 0.0, 0.0, 2.0])];
    let report = report(&seen, &engine("", ""));
    assert_eq!(
        rows(
            &report,
            Kind::Secretless,
            &["service", "direction", "requests", "with_secret", "score"]
        ),
        [
            "  | invoices | inbound | 8 | 2 | 75 %",
            "  | invoices | outbound | 2 | 0 | 100 %"
        ]
        .map(|row| row.replace("75 %", "75.00 %"))
    );
    assert_eq!(
        rows(&report, Kind::StandingSecrets, &["kind", "seen", "owner"]),
        ["* | basic | 3 | nobody"]
    );
    assert!(report.section(Kind::Secretless).unwrap().notes.is_empty());
}

#[test]
fn a_sidecar_in_trouble_is_told_of() {
    let now = count_f64(NOW as u64 / 1000);
    let counted = |family, count| HashMap::from([(family, count)]);
    let engine = engine(&grant("a", "2099-01-01", "", CHECKOUT, "invoices"), "");
    for (sidecar, kind, cells, told) in [
        (
            Sidecar {
                state: State::Down,
                ..sidecar()
            },
            Kind::Coverage,
            &["sidecar", "state"][..],
            "* | a | down",
        ),
        (
            Sidecar {
                state: State::Gone,
                ..sidecar()
            },
            Kind::Coverage,
            &["sidecar", "state"],
            "  | a | gone",
        ),
        (
            Sidecar {
                policies: Some(3.0),
                ..sidecar()
            },
            Kind::Policy,
            &["what", "where"],
            "* | 3 in force, 1 in the directory | a",
        ),
        (
            Sidecar {
                counted: counted(seen::LOAD_FAILURES, 2.0),
                ..sidecar()
            },
            Kind::Policy,
            &["what", "where"],
            "* | a change was not put in force, 2 times | a",
        ),
        (
            Sidecar {
                not_after: Some(0.0),
                ..sidecar()
            },
            Kind::Rotation,
            &["certificate", "ends"],
            "* | no identity | -",
        ),
        (
            Sidecar {
                not_after: Some(now - 1.0),
                ..sidecar()
            },
            Kind::Rotation,
            &["certificate"],
            "* | has ended",
        ),
        (
            Sidecar {
                not_after: Some(now + 100.0),
                ..sidecar()
            },
            Kind::Rotation,
            &["certificate"],
            "* | not renewed",
        ),
        (
            Sidecar {
                counted: counted(seen::WITHDRAWALS, 1.0),
                ..sidecar()
            },
            Kind::Rotation,
            &["certificate", "withdrawals"],
            "  | in force | 1",
        ),
        (
            Sidecar {
                audit: Some(false),
                ..sidecar()
            },
            Kind::Audit,
            &["now", "lost"],
            "* | cannot be written | 0",
        ),
        (
            Sidecar {
                counted: counted(seen::AUDIT_LOST, 4.0),
                ..sidecar()
            },
            Kind::Audit,
            &["now", "lost", "refused"],
            "* | is written | 4 | 0",
        ),
    ] {
        let report = report(&seen(sidecar), &engine);
        assert_eq!(rows(&report, kind, cells)[0], told, "{report}");
    }
}

#[test]
fn what_the_reader_must_keep_in_mind_is_told_first() {
    let mut seen = seen(Sidecar {
        covered: vec![1.0, 0.0, 0.0, 1.0],
        ..sidecar()
    });
    seen.retention = Some(Duration::from_secs(86_400));
    seen.warnings = vec!["a store is down".into()];
    let mut unsure = decision("spiffe://example.org/a", "", "denied", 1.0);
    unsure.at_least = true;
    seen.decisions = vec![unsure];
    let report = report(&seen, &engine("", ""));
    let beginnings = [
        "There are samples for 2 d of 4 d.",
        "The server keeps samples for 1 d only",
        "Some counts are lower bounds: 1 series",
        "The server warns: a store is down",
    ];
    assert_eq!(report.notes.len(), beginnings.len(), "{report}");
    for (note, beginning) in report.notes.iter().zip(beginnings) {
        assert!(note.starts_with(beginning), "{note}");
    }
}

#[test]
fn the_json_has_a_version_and_every_section() {
    let mut seen = seen(sidecar());
    seen.decisions = vec![decision("spiffe://example.org/a", "", "denied", 2.0)];
    let json = report(&seen, &engine("", "")).json();
    assert_eq!(json["version"], 1);
    assert_eq!(json["from"], "2026-11-18T00:00:00Z");
    assert_eq!(json["to"], "2026-11-22T00:00:00Z");
    assert_eq!(json["window_seconds"], 4 * 86_400);
    assert_eq!(json["covered_seconds"], 4 * 86_400);
    assert_eq!(json["sections"].as_object().unwrap().len(), 13);
    assert_eq!(
        json["sections"]["denials"]["rows"][0],
        json!({
            "act": true, "principal": "spiffe://example.org/a", "service": "invoices",
            "reason": "no_grant", "grant": "", "denied": 2, "owner": "nobody",
        })
    );
}

/// Everything that somebody else may have written, hostile.
fn hostile() -> Report {
    let mut seen = seen(sidecar());
    seen.warnings = vec![HOSTILE.into()];
    seen.decisions = vec![
        decision(HOSTILE, "", "denied", 2.0),
        decision("spiffe://example.org/a", HOSTILE, "allowed", 2.0),
    ];
    let labels = [("direction", "inbound"), ("service", HOSTILE)];
    seen.requests = vec![counter(&labels, [1.0; 4])];
    report(&seen, &engine("", ""))
}

const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&\u{1b}[2J";

#[test]
fn the_page_runs_nothing_and_fetches_nothing_whatever_names_say() {
    let page = hostile().page();
    let lower = page.to_lowercase();
    for never in [
        "<script",
        "<img",
        "javascript:",
        "url(",
        "@import",
        " style=",
        "<link",
        "<iframe",
        "src=\"",
    ] {
        assert!(!lower.contains(never), "{never}");
    }
    // The one address in it names a kind of document and is never fetched.
    let addresses = lower.matches("http://").count() + lower.matches("https://").count();
    let known = lower.matches("http://www.w3.org/2000/svg").count()
        + lower.matches("http://p.example").count();
    assert_eq!(addresses, known, "{page}");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(page.contains("default-src 'none'; style-src 'sha256-"));
    assert!(
        page.matches("<svg").count() >= 3
            && page.matches("<svg").count() == page.matches("<desc>").count()
    );
    assert_eq!(
        page.matches("<table").count(),
        page.matches("<caption>").count()
    );
}

#[test]
fn no_name_moves_the_cursor_of_a_terminal() {
    let told = hostile().to_string();
    assert!(told.contains("<script>alert(1)</script>"), "{told}");
    assert!(!told.chars().any(|c| c.is_control() && c != '\n'), "{told}");
}

#[test]
fn durations_are_told_in_their_two_largest_units() {
    for (seconds, told) in [
        (0, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3700, "1 h 1 min"),
        (86_400 * 30, "30 d"),
        (86_400 * 2 + 3600 * 5 + 60, "2 d 5 h"),
    ] {
        assert_eq!(lasting(Duration::from_secs(seconds)), told);
    }
}
