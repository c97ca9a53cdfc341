//! What people are told about a policy is what its gate does.

use super::*;
use crate::policy::access::{Class, members};
use crate::policy::asked::{Action, Asked as Case, Inquiry, Sought, What};
use crate::policy::diff::{Side, differences};
use crate::policy::who_can::{Obstacle, ways};

fn settings() -> Settings {
    Settings {
        environment: [("region".to_owned(), "eu".to_owned())].into(),
        ..Settings::of("")
    }
}

fn inquiry(cedar: &str, workloads: &str) -> Inquiry {
    let settings = settings();
    match engine_of(cedar, workloads, &settings) {
        Ok(engine) => Inquiry::new(&settings, engine).unwrap(),
        Err(error) => panic!("{error}"),
    }
}

/// The class that `id` belongs to.
fn class(engines: &[&Engine], id: &SpiffeId) -> Class {
    let classes = members(engines).into_iter().map(|member| member.class);
    let classes: Vec<_> = classes.collect();
    let own = [
        Class::Workload(id.to_string()),
        Class::OthersOf(id.trust_domain().to_string()),
    ];
    let own = own.into_iter().find(|class| classes.contains(class));
    own.unwrap_or(Class::Others)
}

/// Who can do anything with `invoices`: one line a way, then its conditions and limits.
fn who(cedar: &str, workloads: &str, sought: impl FnOnce(&mut Sought)) -> String {
    let mut asked = Sought::anything("invoices".into(), at(0));
    sought(&mut asked);
    let ways = ways(&inquiry(cedar, workloads), &asked);
    let ways = ways.iter().map(|way| {
        let limits = way.limits.iter().map(|limit| {
            let conditions = limit.conditions.join(" ");
            format!("\n  not by {} {conditions}", limit.grant.id)
        });
        let conditions = way.conditions.iter().map(|it| format!("\n  {it}"));
        let notes: String = conditions.chain(limits).collect();
        let dry_run = if way.dry_run { " (dry run)" } else { "" };
        format!(
            "{}: {} by {}{dry_run}{notes}",
            way.who, way.actions, way.grant.id
        )
    });
    ways.collect::<Vec<_>>().join("\n")
}

#[test]
fn everybody_is_told_apart_as_far_as_the_policy_does() {
    for (scope, told) in [
        (
            "principal",
            "spiffe://example.org/a: anything by g\n\
             any other workload of example.org: anything by g\n\
             any workload of another trust domain: anything by g",
        ),
        (
            r#"principal in TrustDomain::"partner.net""#,
            "any other workload of partner.net: anything by g",
        ),
        (
            r#"principal in Role::"readers""#,
            "spiffe://example.org/a: anything by g",
        ),
        (
            r#"principal == Workload::"spiffe://partner.net/b""#,
            "spiffe://partner.net/b: anything by g",
        ),
        (r#"principal in Role::"writers""#, ""),
    ] {
        let cedar = grant("g", &format!("permit ({scope}, action, resource);"));
        let workloads =
            "workloads:\n- { id: spiffe://example.org/a, owner: o, purpose: p, roles: [readers] }";
        assert_eq!(who(&cedar, workloads, |_| {}), told, "{scope}");
    }
}

#[test]
fn what_was_given_is_settled_and_the_rest_remains() {
    let anybody = "any workload of another trust domain: ";
    for (condition, told) in [
        (
            r#"context.port == 1 && context.http.path like "/v1/*""#,
            "when context.port == 1",
        ),
        (r#"context.port == 1 || context.http.path like "/v1/*""#, ""),
        (
            r#"context.port == 1 || context.http.path like "/v2/*""#,
            "when context.port == 1",
        ),
        (
            r#"(context.port == 1 || context.http.path == "/") && context.http.method == "GET""#,
            "when context.port == 1",
        ),
        (
            r#"!(context.port == 1 && context.source.ip.isLoopback())"#,
            "when !((context.port == 1) && context.source.ip.isLoopback())",
        ),
        (
            r#"if context.port == 1 then context.http.path == "/" else true"#,
            "when if context.port == 1 then context.http.path == \"/\" else true",
        ),
        (
            r#"if context.http.path == "/" then context.port == 1 else true"#,
            "",
        ),
    ] {
        let cedar = grant(
            "g",
            &format!(
                "permit (principal, action == Action::\"GET\", resource) when {{ {condition} }};"
            ),
        );
        let told = match told {
            "" => format!("{anybody}GET by g"),
            told => format!("{anybody}GET by g\n  {told}"),
        };
        let given = who(&cedar, "", |sought| sought.path = Some("/v1/7".into()));
        assert_eq!(given, told, "{condition}");
    }
    let cedar = grant(
        "g",
        r#"permit (principal, action == Action::"GET", resource) when { context.http.path == "/" };"#,
    );
    assert_eq!(
        who(&cedar, "", |sought| sought.path = Some("/v1/7".into())),
        ""
    );
}

#[test]
fn what_may_keep_somebody_out_is_told() {
    let permits = [
        grant(
            "g",
            r#"permit (principal, action == Action::"GET", resource);"#,
        ),
        grant(
            "later",
            r#"@mode("observe") permit (principal, action == Action::"POST", resource);"#,
        ),
    ];
    let forbid = r#"@id("f") forbid (principal, action == Action::"GET", resource)"#;
    let anybody = "any workload of another trust domain: ";
    let later = format!("{anybody}POST by later (dry run)");
    for (rest, told) in [
        (
            "when { context.port == 1 };",
            format!("{anybody}GET by g\n  not by f when context.port == 1\n{later}"),
        ),
        (
            r#"when { context.http.path == "/" };"#,
            format!("{anybody}GET by g\n{later}"),
        ),
        (r#"when { context.http.path like "/v1/*" };"#, later.clone()),
    ] {
        let cedar = format!("{}{forbid} {rest}", permits.concat());
        let given = who(&cedar, "", |sought| sought.path = Some("/v1/7".into()));
        assert_eq!(given, told, "{rest}");
    }
}

/// What changes from `first` to `second`, without the grants' names and ends where they are as drawn.
fn diff(first: &str, second: &str, workloads: [&str; 2]) -> String {
    let engine = |cedar, workloads| engine_of(cedar, workloads, &settings()).unwrap();
    let (first, second) = (engine(first, workloads[0]), engine(second, workloads[1]));
    let mut told = Vec::new();
    for difference in differences(&first, &second, at(0)) {
        told.extend(difference.who.iter().map(ToString::to_string));
        told.extend(difference.changes.iter().map(ToString::to_string));
    }
    told.join("\n").replace(", until 2030-01-02T00:00:00Z", "")
}

#[test]
fn what_gives_the_same_access_is_no_difference() {
    let one = r#"permit (principal, action in Action::"read", resource == Service::"s")
        when { context.http.path like "/a*" && context.port == 1 };"#;
    for (first, second) in [
        // Another name.
        (grant("a", one), grant("b", one)),
        // The parts of a condition in another order and layout.
        (
            grant("a", one),
            grant(
                "a",
                r#"permit (principal is Workload, action in [Action::"read"], resource in Service::"s")
                   when { context.port==1 } when { (context["http"].path like "/a*") };"#,
            ),
        ),
        // One grant in place of several.
        (
            grant(
                "a",
                r#"permit (principal, action in Action::"read", resource);"#,
            ),
            ["GET", "HEAD", "OPTIONS", "TRACE"]
                .map(|action| {
                    let rest =
                        format!(r#"permit (principal, action == Action::"{action}", resource);"#);
                    grant(action, &rest)
                })
                .concat(),
        ),
        // A narrower one beside it.
        (
            grant("a", "permit (principal, action, resource);"),
            grant("a", "permit (principal, action, resource);") + &grant("b", one),
        ),
        // What is forbidden anyhow.
        (
            String::from(r#"@id("f") forbid (principal, action, resource);"#),
            grant("a", one) + r#"@id("f") forbid (principal, action, resource);"#,
        ),
        // Nothing to forbid.
        (
            String::new(),
            r#"@id("f") forbid (principal, action, resource);"#.into(),
        ),
        // What had ended.
        (
            String::new(),
            format!(r#"@id("a") @owner("o") @purpose("p") @expires("2020-01-01") {one}"#),
        ),
    ] {
        assert_eq!(diff(&first, &second, ["", ""]), "", "{first}\n{second}");
    }
}

#[test]
fn who_gains_and_loses_what_is_told() {
    let all = "permit (principal, action, resource);";
    let anybody = "any workload of another trust domain\n";
    for (first, second, told) in [
        (
            String::new(),
            grant("g", all),
            "+ anything at any service (g of o)",
        ),
        (
            grant("g", all),
            String::new(),
            "- anything at any service (g of o)",
        ),
        (
            grant("g", all),
            grant("h", all).replace(r#""o""#, r#""x""#),
            "~ anything at any service (h of x); was of o",
        ),
        (
            grant("g", all),
            grant("g", all).replace("2030-01-01", "2031-01-01"),
            "~ anything at any service, until 2031-01-02T00:00:00Z (g of o); was until 2030-01-02T00:00:00Z",
        ),
        (
            grant("g", all),
            grant("g", all).replace("@id", "@mode(\"observe\") @id"),
            "- anything at any service (g of o)\n+ dry run: anything at any service (g of o)",
        ),
        (
            grant("g", all),
            grant(
                "g",
                r#"permit (principal, action in Action::"read", resource != Service::"s");"#,
            )
            .replace(
                r#"resource != Service::"s");"#,
                r#"resource) unless { resource == Service::"s" };"#,
            ),
            "- write, connect at any other service (g of o)\n- anything at s (g of o)",
        ),
        (
            grant("g", all),
            grant("g", all)
                + r#"@id("f") forbid (principal, action == Action::"DELETE", resource);"#,
            "- DELETE at any service (g of o); now forbidden by f",
        ),
        (
            grant("g", all),
            grant("g", all)
                + r#"@id("f") forbid (principal, action == Action::"DELETE", resource) when { context.port == 1 };"#,
            "+ forbidden: DELETE at any service, when context.port == 1 (f)",
        ),
        (
            grant(
                "g",
                "permit (principal, action, resource) when { context.port == 1 };",
            ),
            grant(
                "g",
                "permit (principal, action, resource) when { 1 == context.port };",
            ),
            "- anything at any service, when context.port == 1 (g of o)\n\
             + anything at any service, when 1 == context.port (g of o)",
        ),
        (
            grant("g", all),
            grant(
                "g",
                "permit (principal, action, resource) when { context.port == 1 };",
            ),
            "- anything at any service (g of o)\n= anything at any service, when context.port == 1 (g of o)",
        ),
        (
            grant(
                "g",
                "permit (principal, action, resource) when { context.port == 1 };",
            ),
            grant("g", all),
            "+ anything at any service (g of o)",
        ),
        // Neither has ended, and yet it is not the same.
        (
            grant(
                "g",
                r#"permit (principal, action, resource) when { context.now < datetime("2029-01-01") };"#,
            ),
            grant(
                "g",
                r#"permit (principal, action, resource) when { context.now < datetime("2029-06-01") };"#,
            ),
            "- anything at any service, when context.now < datetime(\"2029-01-01\") (g of o)\n\
             + anything at any service, when context.now < datetime(\"2029-06-01\") (g of o)",
        ),
        // It may fail, and then it denies what the first would allow.
        (
            grant("g", all),
            grant("g", all)
                + &grant(
                    "h",
                    "permit (principal, action, resource) when { context.port + 9223372036854775807 > 5 };",
                ),
            "+ anything at any service, when (context.port + 9223372036854775807) > 5 (h of o)",
        ),
    ] {
        assert_eq!(
            diff(&first, &second, ["", ""]),
            format!("{anybody}{told}"),
            "{first}\n{second}"
        );
    }
}

#[test]
fn a_role_gained_and_a_lifetime_changed_are_differences() {
    let cedar = grant(
        "g",
        r#"permit (principal in Role::"r", action == Action::"GET", resource);"#,
    );
    let a = |rest: &str| {
        format!("workloads:\n- {{ id: spiffe://example.org/a, owner: o, purpose: p{rest} }}")
    };
    let (none, role) = (a(""), a(", roles: [r]"));
    assert_eq!(
        diff(&cedar, &cedar, [&none, &role]),
        "spiffe://example.org/a\n+ GET at any service (g of o)"
    );
    assert_eq!(
        diff(
            &cedar,
            &cedar,
            [&role, &a(", roles: [r], max_lifetime: 1h")]
        ),
        "spiffe://example.org/a\n- GET at any service (g of o)\n\
         = GET at any service, when the certificate lives 1h at most (g of o)"
    );
}

/// Puts what was asked of `id` into a case.
fn case(id: &str, service: &str, source: &str, (http, seconds): Asked) -> Case {
    Case {
        principal: id.parse().unwrap(),
        service: service.into(),
        what: http.map_or(What::Connect, |(method, path, host)| What::Http {
            method: Method::from_bytes(method.as_bytes()).unwrap(),
            host: host.into(),
            path: path.into(),
        }),
        source: source.parse().unwrap(),
        port: 1,
        lifetime: Duration::from_secs(600),
        at: at(seconds),
    }
}

/// The same question without the principal, with `gaps`.
fn sought(case: &Case, gaps: [bool; 8]) -> Sought {
    let (action, host, path) = match &case.what {
        What::Connect => (Action::Connect, None, None),
        What::Http { method, host, path } => (
            Action::Http(method.clone()),
            Some(host.clone()),
            Some(path.clone()),
        ),
    };
    let [
        any,
        no_host,
        no_path,
        no_source,
        no_port,
        no_lifetime,
        no_environment,
        no_clock,
    ] = gaps;
    Sought {
        service: case.service.clone(),
        action: if any { Action::Any } else { action },
        host: host.filter(|_| !no_host),
        path: path.filter(|_| !no_path),
        source: Some(case.source).filter(|_| !no_source),
        port: Some(case.port).filter(|_| !no_port),
        lifetime: Some(case.lifetime).filter(|_| !no_lifetime),
        environment: !no_environment,
        at: case.at,
        clock: !no_clock,
    }
}

/// A policy that says of what `case` asks for what remains of the grant of `way`.
fn remains(way: &who_can::Way, case: &Case) -> Inquiry {
    let clause = |condition: &String| {
        let (word, expr) = condition.split_once(' ').unwrap();
        format!(" {word} {{ {expr} }}")
    };
    let clauses: String = way.conditions.iter().map(clause).collect();
    let action = cedar::Verb::of(&case.act()).name();
    let rest = format!("permit (principal, action == Action::\"{action}\", resource){clauses};");
    inquiry(&grant("rest", &rest), REGISTERED)
}

#[test]
fn a_grant_that_may_fail_stands_in_the_way_of_the_others() {
    let frail =
        "permit (principal, action, resource) when { context.port + 9223372036854775807 > 5 };";
    let sound = "permit (principal, action, resource);";
    let inquiry = inquiry(&[grant("sound", sound), grant("frail", frail)].concat(), "");
    let ways = ways(&inquiry, &Sought::anything("s".into(), at(0)));
    assert!(!ways.is_empty());
    for way in ways {
        let limits = way.limits.iter().map(|limit| (&*limit.grant.id, limit.by));
        let expected = match &*way.grant.id {
            "sound" => vec![("frail", Obstacle::MayFail)],
            _ => Vec::new(),
        };
        assert_eq!(limits.collect::<Vec<_>>(), expected);
    }
}

const IDS: &[&str] = &[
    "spiffe://example.org/a",
    "spiffe://example.org/b",
    "spiffe://example.org/c",
    "spiffe://example.com/a",
    "spiffe://elsewhere.net/a",
];

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        ..ProptestConfig::with_cases(32)
    })]
    #[test]
    fn who_can_says_what_the_gate_decides(
        policies in prop::collection::vec(drawn(), 0..6),
        questions in prop::collection::vec(asked(), 1..4),
        service in select(&["s", "t", "u"][..]),
        source in select(&["10.0.0.1", "2001:db8::1"][..]),
        gaps in prop::array::uniform8(prop::bool::weighted(0.3)),
    ) {
        let inquiry = inquiry(&text(&policies), REGISTERED);
        for (question, id) in questions.iter().flat_map(|it| IDS.iter().map(move |id| (*it, id))) {
            let case = case(id, service, source, question);
            let class = class(&[inquiry.engine()], &case.principal);
            let full = ways(&inquiry, &sought(&case, [false; 8]));
            let gappy = ways(&inquiry, &sought(&case, gaps));
            let allowed = inquiry.decide(&case).is_ok();
            let of = |ways: Vec<who_can::Way>| {
                let own = ways.into_iter().filter(|way| way.who == class && !way.dry_run);
                own.collect::<Vec<_>>()
            };
            let sure = |way: &who_can::Way| {
                way.conditions.is_empty() && way.limits.iter().all(|limit| limit.dry_run)
            };
            let (full, gappy) = (of(full), of(gappy));
            if class != Class::Others {
                prop_assert_eq!(allowed, !full.is_empty());
                prop_assert!(full.iter().all(sure));
            }
            prop_assert!(!allowed || !full.is_empty());
            prop_assert!(!allowed || !gappy.is_empty());
            prop_assert!(allowed || !full.iter().any(sure));
            // With any action, a way may be for another one.
            if gaps[0] {
                continue;
            }
            prop_assert!(allowed || !gappy.iter().any(sure));
            // What remains of a grant says, of what fills the gaps, what the grant says.
            let rest: Vec<_> = gappy.iter().map(|way| remains(way, &case).decide(&case)).collect();
            prop_assert!(!allowed || rest.iter().any(Result::is_ok));
            let unsure = |answer: &Result<Permit, Denial>| {
                answer.as_ref().is_err_and(|denial| denial.reason() == DenialReason::Error)
            };
            if gappy.iter().all(|way| way.limits.is_empty()) && !rest.iter().any(unsure) {
                prop_assert_eq!(allowed, rest.iter().any(Result::is_ok));
            }
        }
    }

    #[test]
    fn where_no_difference_is_told_the_gates_agree(
        policies in prop::collection::vec(drawn(), 0..6),
        added in prop::collection::vec(drawn(), 0..2),
        dropped in 0..8_usize,
        seconds in 0_u64..12,
        questions in prop::collection::vec(asked(), 1..8),
        service in select(&["s", "t", "u"][..]),
    ) {
        let mut others = policies.clone();
        if dropped < others.len() {
            others.remove(dropped);
        }
        others.reverse();
        others.extend(added);
        let (first, second) = (inquiry(&text(&policies), REGISTERED), inquiry(&text(&others), REGISTERED));
        let engines = [first.engine(), second.engine()];
        let told = differences(engines[0], engines[1], at(seconds));
        for (http, _) in questions {
            for id in IDS {
                let case = case(id, service, "10.0.0.1", (http, seconds));
                let class = class(&engines, &case.principal);
                let own = told.iter().filter(|difference| difference.who.contains(&class));
                let differs = own.flat_map(|difference| &difference.changes)
                    .any(|change| change.side != Side::Both && !change.dry_run);
                let allowed = [&first, &second].map(|inquiry| inquiry.decide(&case).is_ok());
                prop_assert!(differs || allowed[0] == allowed[1], "{}", case);
            }
        }
    }
}
