//! What loads and may not mean what was meant.
//!
//! Everything here is a warning with a [`Code`], and everything is proved from what is written: a warning
//! that is wrong teaches people not to read warnings.

use std::collections::HashSet;
use std::time::SystemTime;

use cedar_policy::{Effect, PolicyId};

use super::cedar;
use super::code::Code;
use super::files::Parsed;
use super::finding::{Finding, Text};
use super::governance::{self, Registry, Workload};
use super::reach::{self, Never, Reach, Who};
use super::shadow::{self, Known, Shadow};
use super::slice::Rule;
use super::symbolic::Solver;

/// The warnings about policies that are in force at `now`, each by itself and all together. Those in
/// `impossible` are known to match nothing. The solver, where there is one, proves what is not obvious.
pub(super) fn policies(
    rules: &[(Rule, &Parsed<'_>)],
    registry: &Registry,
    impossible: &HashSet<PolicyId>,
    now: SystemTime,
    mut solver: Option<&mut Solver>,
) -> Vec<Finding> {
    let mut warnings = Vec::new();
    let reach = |(rule, parsed): &(Rule, &Parsed<'_>)| {
        if rule.grant.has_ended(now) {
            return None;
        }
        warnings.extend(owner(rule, parsed, registry));
        let reach = Reach::of(&rule.policy)?;
        warnings.extend(breadth(rule, parsed, &reach));
        if impossible.contains(rule.policy.id()) {
            return None;
        }
        let never = reach.never(registry).or_else(|| {
            let none = solver.as_mut()?.never_matches(&rule.policy, &reach);
            none.then_some(Never::Unsatisfiable)
        });
        warnings.extend(never.iter().map(|never| unmatched(rule, parsed, never)));
        never.is_none().then_some(reach)
    };
    let reaches: Vec<Option<Reach>> = rules.iter().map(reach).collect();
    let known = rules.iter().zip(&reaches).map(|((rule, _), reach)| {
        let reach = reach.as_ref()?;
        Some(Known { rule, reach })
    });
    let known: Vec<Option<Known<'_>>> = known.collect();
    let mut covers = |wide: &Known<'_>, narrow: &Known<'_>| {
        let (outer, inner) = (wide.reach, narrow.reach);
        outer.covers(inner, registry)
            || (outer.has_scope_of(inner, registry)
                && solver.as_mut().is_some_and(|solver| {
                    solver.follows(&wide.rule.policy, &narrow.rule.policy, inner)
                }))
    };
    let shadows = shadow::find(&known, registry, &mut covers).into_iter();
    warnings.extend(shadows.filter_map(|(number, shadow)| {
        let (Shadow::Duplicate(other) | Shadow::Shadowed(other) | Shadow::Forbidden(other)) =
            shadow;
        Some(outdone(rules.get(number)?, shadow, rules.get(other)?))
    }));
    warnings
}

/// The warnings about what is registered in `text`.
pub(super) fn workloads(
    text: &Text,
    registry: &Registry,
    rules: &[(Rule, &Parsed<'_>)],
) -> Vec<Finding> {
    let mut warnings = Vec::new();
    let grants = Grants::of(rules);
    for workload in registry.iter() {
        let id = workload.id.as_str();
        let at = || text.find(workload.line, id);
        if let Some(place) = governance::location(id) {
            warnings.push(located(place).at(text, at(), "").help(LOCATION_HELP));
        }
        if registry.misses_owner(&workload.owner) {
            let at = text.find(workload.line, &workload.owner);
            warnings.push(
                unlisted(&workload.owner)
                    .at(text, at, "")
                    .help(UNLISTED_HELP),
            );
        }
        if !rules.is_empty() && !grants.mention(workload) {
            warnings.push(
                Finding::warning(Code::Unmentioned, format!("no grant is for {id}"))
                    .at(text, at(), "")
                    .help("grant what it needs to it or to a role of it, or register it no longer"),
            );
        }
    }
    warnings
}

/// That a principal is named for a place.
pub(super) fn located(place: &str) -> Finding {
    Finding::warning(
        Code::Location,
        format!("`{place}` looks like a place: this name changes when the workload moves"),
    )
}

pub(super) const LOCATION_HELP: &str = "name the workload for what it is, and ask for places with `context.source` \
     or `context.environment`";

fn owner(rule: &Rule, parsed: &Parsed<'_>, registry: &Registry) -> Option<Finding> {
    let owner = rule.grant.owner.as_deref();
    let owner = owner.filter(|owner| registry.misses_owner(owner))?;
    let at = governance::quoted(&parsed.policy, parsed.text, owner);
    Some(unlisted(owner).at(parsed.text, at, "").help(UNLISTED_HELP))
}

fn unlisted(owner: &str) -> Finding {
    let message = format!("`{owner}` is not in the list of owners");
    Finding::warning(Code::UnknownOwner, message)
}

const UNLISTED_HELP: &str =
    "name somebody who is listed under `owners` in workloads.yaml, or list them there";

/// Whether a grant is for everybody, or for everything.
fn breadth(rule: &Rule, parsed: &Parsed<'_>, reach: &Reach) -> Vec<Finding> {
    let mut warnings = Vec::new();
    if rule.policy.effect() == Effect::Forbid {
        return warnings;
    }
    let at = |word| governance::in_scope(&parsed.policy, parsed.text, word);
    if reach.who == Who::Anyone && !reach.mentions(&reach::is_about_the_principal) {
        warnings.push(
            Finding::warning(Code::Everybody, "this grant is for everybody")
                .at(parsed.text, at("principal"), "whoever it is")
                .help("name a workload, as in `principal == Workload::\"spiffe://…\"`, or a role of some"),
        );
    }
    if reach.is_for_every_action() && !reach.mentions(&reach::is_about_the_action) {
        warnings.push(
            Finding::warning(Code::AnyAction, "this grant is for every action")
                .at(parsed.text, at("action"), "whatever it is")
                .help("name the actions, as in `action in Action::\"read\"`"),
        );
    }
    warnings
}

/// That a policy matches nothing.
fn unmatched(rule: &Rule, parsed: &Parsed<'_>, never: &Never) -> Finding {
    let (policy, text) = (&parsed.policy, parsed.text);
    let (why, at) = match never {
        Never::Text(written, why) => (*why, governance::quoted(policy, text, written)),
        Never::Unsatisfiable => (
            "the solver finds no request that it matches",
            governance::head(policy, text),
        ),
        Never::Contradiction => (
            "its scope, its conditions and the registry exclude each other",
            governance::head(policy, text),
        ),
    };
    let message = match rule.policy.effect() {
        Effect::Permit => format!("this grant can never match: {why}"),
        Effect::Forbid => format!("this forbid can never match, and forbids nothing: {why}"),
    };
    Finding::warning(Code::NeverMatches, message)
        .at(text, at, "")
        .help("delete it, or correct what it asks for")
}

/// That another policy makes a grant needless, or void.
fn outdone(
    (_, parsed): &(Rule, &Parsed<'_>),
    shadow: Shadow,
    (other, place): &(Rule, &Parsed<'_>),
) -> Finding {
    let name = &other.grant.id;
    let (code, message, help) = match shadow {
        Shadow::Duplicate(_) => (
            Code::Duplicate,
            format!("this grant says the same as `{name}`"),
            "delete it, or the other one",
        ),
        Shadow::Shadowed(_) => (
            Code::Shadowed,
            format!("all that this grant allows, `{name}` allows too"),
            "delete it, or narrow the other one",
        ),
        Shadow::Forbidden(_) => (
            Code::NeverMatches,
            format!("this grant allows nothing: `{name}` forbids all of it"),
            "delete it, or narrow the other one",
        ),
    };
    let line = place
        .text
        .line(governance::head(&place.policy, place.text).start);
    Finding::warning(code, message)
        .at(
            parsed.text,
            governance::head(&parsed.policy, parsed.text),
            "",
        )
        .help(format!("{help}, which is at {}:{line}", place.text.name))
}

/// Whom grants are for.
struct Grants {
    to: HashSet<Who>,
    /// Workloads that a policy names anywhere.
    named: HashSet<String>,
}

impl Grants {
    fn of(rules: &[(Rule, &Parsed<'_>)]) -> Self {
        let permits = rules.iter().map(|(rule, _)| &rule.policy);
        let permits = permits.filter(|policy| policy.effect() == Effect::Permit);
        let conditional = rules.iter().map(|(rule, _)| &rule.policy);
        let conditional = conditional.filter(|policy| policy.has_non_scope_constraint());
        let literals = conditional.flat_map(cedar_policy::Policy::entity_literals);
        Self {
            to: permits
                .map(|policy| Who::of(&policy.principal_constraint()))
                .collect(),
            named: literals
                .filter(|uid| *uid.type_name() == *cedar::WORKLOAD)
                .map(|uid| uid.id().unescaped().to_owned())
                .collect(),
        }
    }

    fn mention(&self, workload: &Workload) -> bool {
        let id = workload.id.as_str();
        let mut roles = workload.roles.iter();
        self.to.contains(&Who::Anyone)
            || self.named.contains(id)
            || self.to.contains(&Who::Workload(id.into()))
            || self.to.contains(&Who::TrustDomain(
                workload.id.trust_domain().as_str().into(),
            ))
            || roles.any(|role| self.to.contains(&Who::Role(role.as_str().into())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::check_texts_at;
    use super::super::{Codes, Settings};
    use super::*;

    fn now() -> SystemTime {
        let now: jiff::Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        now.into()
    }

    /// The warnings of policies that end within a year, as `code: message`, sorted by place.
    fn warned(cedar: &str, workloads: &str) -> Vec<String> {
        let texts = [("a.cedar", cedar), ("workloads.yaml", workloads)];
        let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
        let engine = check_texts_at(texts, &Settings::of(""), now());
        let engine = engine.unwrap_or_else(|error| panic!("{cedar}: {error}"));
        let told = engine.warnings();
        told.map(|told| format!("{}: {told}", told.code().unwrap()))
            .collect()
    }

    fn codes(cedar: &str, workloads: &str) -> Vec<String> {
        let code = |told: String| told.split(':').next().unwrap_or_default().to_owned();
        warned(cedar, workloads).into_iter().map(code).collect()
    }

    fn grant(id: &str, scope: &str, rest: &str) -> String {
        format!(
            "@id(\"{id}\") @owner(\"o\") @purpose(\"p\") @expires(\"2026-06-30\")\npermit ({scope}) {rest};\n"
        )
    }

    /// A scope that nothing is to be said of.
    const A: &str = r#"principal == Workload::"spiffe://x/a", action in Action::"read", resource == Service::"s""#;

    const ROLES: &str = "workloads:\n\
        - { id: spiffe://x/a, owner: o, purpose: p, roles: [r, q], labels: { tier: front } }\n\
        - { id: spiffe://x/b, owner: o, purpose: p, roles: r, kind: agent, accountable: j }\n";

    #[test]
    fn a_grant_that_says_who_may_do_what_until_when_is_not_warned_of() {
        for (scope, rest) in [
            (A, ""),
            (A, r#"when { context.http.path like "/v1/*" }"#),
            (
                A,
                r#"when { context.http.path == "*" || context.http.path == "" }"#,
            ),
            (
                A,
                r#"when { context.http.host like "[::1]" && context.http.method like "G*" }"#,
            ),
            (
                A,
                r#"when { context.http.path like "/a*" && context.http.path like "*b" }"#,
            ),
            (A, r#"unless { context.http.path like "/admin/*" }"#),
            (A, r#"when { context.port > 1 && context.port <= 2 }"#),
            (
                A,
                r#"when { principal has kind && principal.kind == Kind::"service" }"#,
            ),
            (
                A,
                r#"when { principal.hasTag("tier") && principal.getTag("tier") == "front" }"#,
            ),
            (
                A,
                r#"when { principal in Role::"r" && principal in TrustDomain::"x" }"#,
            ),
            (
                r#"principal in Role::"r", action == Action::"connect", resource"#,
                "",
            ),
            (
                r#"principal in Role::"r", action == Action::"other", resource"#,
                r#"when { context.http.method == "PURGE" }"#,
            ),
            (
                r#"principal, action in [Action::"read", Action::"write"], resource"#,
                r#"when { context.peer.trust_domain == "x" }"#,
            ),
            (
                r#"principal in TrustDomain::"x", action, resource"#,
                r#"when { context has http && context.http.method == "PURGE" }"#,
            ),
            (
                r#"principal, action == Action::"GET", resource"#,
                r#"when { principal has owner && principal.owner == "o" }"#,
            ),
        ] {
            let rest = format!(
                "{rest}; @id(\"b\") forbid (principal == Workload::\"spiffe://x/b\", action, resource) when {{ context.port == 7 }}"
            );
            assert_eq!(
                warned(&grant("g", scope, &rest), ROLES),
                [""; 0],
                "{scope} {rest}"
            );
        }
    }

    #[test]
    fn breadth_is_warned_of() {
        for (scope, rest, expected) in [
            (
                "principal, action, resource",
                "",
                &["everybody", "any-action"][..],
            ),
            (
                "principal is Workload, action, resource",
                "when { context.port == 1 }",
                &["everybody", "any-action"],
            ),
            (
                r#"principal, action == Action::"GET", resource"#,
                r#"when { context.http.path == "/" }"#,
                &["everybody"],
            ),
            (
                r#"principal in TrustDomain::"x", action, resource"#,
                "",
                &["any-action"],
            ),
        ] {
            assert_eq!(
                codes(&grant("g", scope, rest), ""),
                expected,
                "{scope} {rest}"
            );
        }
        let forbid = "@id(\"f\") forbid (principal, action, resource) when { context.port == 1 };";
        assert_eq!(codes(forbid, ""), [""; 0]);
    }

    #[test]
    fn what_is_written_about_a_grant_is_held_against_the_clock() {
        for (annotations, expected) in [
            ("@expires(\"2025-12-31\")", &["ended"][..]),
            ("@expires(\"2026-01-14\")", &["ends-soon"]),
            ("@expires(\"2026-01-15\")", &[]),
            ("@expires(\"2027-01-01\")", &[]),
            ("@expires(\"2027-01-02\")", &[]),
            ("@expires(\"2027-01-04\")", &["long-grant"]),
            (
                "@expires(\"2026-06-30\") @review(\"2025-12-31\")",
                &["review-overdue"],
            ),
            (
                "@expires(\"2026-06-30\") @review(\"2026-01-01\") @ticket(\"SEC-7\")",
                &[],
            ),
            (
                "@expires(\"2025-12-31\") @review(\"2025-12-30\")",
                &["ended"],
            ),
        ] {
            let cedar = grant("g", A, "").replace("@expires(\"2026-06-30\")", annotations);
            assert_eq!(codes(&cedar, ""), expected, "{annotations}");
        }
    }

    #[test]
    fn an_annotation_that_looks_like_ours_is_warned_of() {
        for (key, meant) in [
            ("expire", Some("expires")),
            ("Expires", Some("expires")),
            ("expiry", Some("expires")),
            ("valid_until", Some("expires")),
            ("owners", Some("owner")),
            ("Mode", Some("mode")),
            ("modes", Some("mode")),
            ("reviews", Some("review")),
            ("tickets", Some("ticket")),
            ("ID", Some("id")),
            ("team", None),
            ("reviewer", None),
            ("description", None),
            ("region", None),
            ("it", None),
            ("note", None),
        ] {
            let cedar = format!("@{key}(\"observe\") {}", grant("g", A, ""));
            let told = warned(&cedar, "");
            match meant {
                Some(_) => {
                    let expected = format!(
                        "unknown-annotation: a.cedar:1: `@{key}` is not known, and controls nothing"
                    );
                    assert_eq!(told, [expected]);
                }
                None => assert!(told.is_empty(), "{told:?}"),
            }
            assert_eq!(governance::meant(key), meant, "{key}");
        }
    }

    #[test]
    fn names_are_held_against_the_registry() {
        let workload = |rest: &str| {
            format!("workloads:\n- {{ id: spiffe://x/a, owner: o, purpose: p{rest} }}\n")
        };
        let owners = |list: &str| format!("owners: [{list}]\n{}", workload(""));
        let to = |principal: &str| {
            grant(
                "g",
                &A.replace("principal == Workload::\"spiffe://x/a\"", principal),
                "",
            )
        };
        for (cedar, workloads, expected) in [
            (
                to("principal == Workload::\"spiffe://x/eu-west-1/a\""),
                String::new(),
                &["location"][..],
            ),
            (
                to("principal == Workload::\"spiffe://x/b\""),
                workload(""),
                &["unregistered", "unmentioned"],
            ),
            (
                to("principal in Role::\"r\""),
                workload(""),
                &["unknown-role", "unmentioned"],
            ),
            (to("principal in Role::\"r\""), workload(", roles: r"), &[]),
            (to("principal in TrustDomain::\"x\""), workload(""), &[]),
            (
                to("principal in TrustDomain::\"y\""),
                workload(""),
                &["unmentioned"],
            ),
            (
                grant("g", A, ""),
                owners("{ id: o, name: Operations, contact: '#ops' }"),
                &[],
            ),
            (
                grant("g", A, ""),
                owners("{ id: q }"),
                &["unknown-owner", "unknown-owner"],
            ),
            (
                grant("g", A, ""),
                owners(""),
                &["unknown-owner", "unknown-owner"],
            ),
        ] {
            assert_eq!(codes(&cedar, &workloads), expected, "{cedar} {workloads}");
        }
        // Whoever is named anywhere is mentioned; a forbid for all alone mentions nobody.
        let named = "@id(\"f\") forbid (principal, action, resource) when { principal == Workload::\"spiffe://x/a\" };";
        assert_eq!(codes(named, &workload("")), [""; 0]);
        let all = "@id(\"f\") forbid (principal, action, resource) when { context.port == 1 };";
        assert_eq!(codes(all, &workload("")), ["unmentioned"]);
        let at = warned(
            &grant("g", A, ""),
            "workloads:\n- id: spiffe://x/a\n  owner: o\n  purpose: p\n- owner: o\n  purpose: p\n  id: spiffe://x/c\n",
        );
        assert_eq!(
            at,
            ["unmentioned: workloads.yaml:7: no grant is for spiffe://x/c"]
        );
    }

    #[test]
    fn what_can_never_match_is_warned_of() {
        for (scope, rest) in [
            (A, r#"when { context.http.path like "v1/*" }"#),
            (A, r#"when { context.http.path == "v1" }"#),
            (A, r#"when { ["v1", "v2"].contains(context.http.path) }"#),
            (A, r#"when { context.http.path like "/v1?x=*" }"#),
            (A, r#"when { context.http.host == "Example.org" }"#),
            (A, r#"when { context.http.host like "*.org:8443" }"#),
            (A, r#"when { context.http.method == "POST" }"#),
            (A, r#"when { context.http.method == "get" }"#),
            (
                A,
                r#"when { context.http.path like "/a/*" && context.http.path like "/b/*" }"#,
            ),
            (
                A,
                r#"when { context.http.path == "/a" && "/b" == context.http.path }"#,
            ),
            (
                A,
                r#"when { context.http.path like "/a/*" } unless { context.http.path like "/*" }"#,
            ),
            (
                A,
                r#"when { context.http.path == "/a" } unless { context.http.path != "/b" }"#,
            ),
            (A, r#"when { context.port < 5 && context.port > 4 }"#),
            (
                A,
                r#"when { context.source.ip.isIpv6() } unless { context.source.ip.isIpv6() }"#,
            ),
            (A, r#"when { principal == Workload::"spiffe://x/b" }"#),
            (A, r#"when { principal in TrustDomain::"y" }"#),
            (A, r#"when { principal in Role::"none" }"#),
            (A, r#"when { action == Action::"POST" }"#),
            (A, r#"when { resource == Service::"t" }"#),
            (A, r#"when { context.peer.trust_domain == "y" }"#),
            (
                A,
                r#"when { principal has kind && principal.kind == Kind::"agent" }"#,
            ),
            (A, r#"when { principal has accountable }"#),
            (
                A,
                r#"when { principal.hasTag("tier") && principal.getTag("tier") == "back" }"#,
            ),
            (A, r#"unless { principal in Role::"r" }"#),
            (A, "when { false }"),
        ] {
            let told = warned(
                &grant("g", scope, rest),
                "workloads:\n- { id: spiffe://x/a, owner: o, purpose: p, roles: r, labels: { tier: front } }\n",
            );
            assert_eq!(told.len(), 1, "{rest}: {told:?}");
            assert!(
                told[0].starts_with("never-matches: a.cedar:"),
                "{rest}: {told:?}"
            );
        }
        let forbid = r#"@id("f") forbid (principal, action, resource) when { context has http && context.http.path like "admin*" };"#;
        assert_eq!(
            warned(forbid, ""),
            [
                "never-matches: a.cedar:1: this forbid can never match, and forbids nothing: a path begins with `/`"
            ]
        );
    }

    #[test]
    fn what_another_policy_makes_needless_or_void_is_warned_of() {
        let role = A.replace("== Workload::\"spiffe://x/a\"", "in Role::\"r\"");
        let domain = A.replace("== Workload::\"spiffe://x/a\"", "in TrustDomain::\"x\"");
        let http = A.replace(
            "action in Action::\"read\"",
            "action in [Action::\"read\", Action::\"write\"]",
        );
        let like = |pattern: &str| format!("when {{ context.http.path like \"{pattern}\" }}");
        let both = |one: &str, other: &str| format!("{one}{other}");
        let wide = |scope: &str, rest: &str| grant("wide", scope, rest);
        let slim = |rest: &str| grant("slim", A, rest);
        let of = |one: &str, two: &str| both(&grant("one", A, one), &grant("two", A, two));
        for (cedar, expected) in [
            (both(&wide(&role, ""), &slim("")), &["shadowed"][..]),
            (both(&slim(""), &wide(&role, "")), &["shadowed"]),
            (
                both(&wide(&domain, ""), &grant("slim", &role, "")),
                &["shadowed"],
            ),
            (both(&wide(&domain, ""), &slim("")), &["shadowed"]),
            (both(&wide(&http, ""), &slim("")), &["shadowed"]),
            (
                both(&wide(&http, &like("/v1/*")), &slim(&like("/v1/items/*"))),
                &["shadowed"],
            ),
            (
                both(
                    &wide(&http, &like("*/items/*")),
                    &slim(&like("/v1/items/*/x")),
                ),
                &["shadowed"],
            ),
            (of("", &like("/v1/*")), &["shadowed"]),
            (
                of(&like("/v1/*"), "when { context.http.path == \"/v1/7\" }"),
                &["shadowed"],
            ),
            (
                of(
                    &like("/v1/*"),
                    "when { [\"/v1/7\", \"/v1/8\"].contains(context.http.path) }",
                ),
                &["shadowed"],
            ),
            (
                of(
                    "unless { context.http.path like \"/admin/*\" }",
                    &like("/v1/*"),
                ),
                &["shadowed"],
            ),
            (
                of(
                    "when { context.port == 1 || context.http.path == \"/\" }",
                    "when { context.port == 1 }",
                ),
                &["shadowed"],
            ),
            (
                of(
                    "when { context.port < 9 }",
                    "when { context.port == 1 && context.source.ip.isIpv4() }",
                ),
                &["shadowed"],
            ),
            (
                of(
                    "when { principal in Role::\"r\" }",
                    "when { context.port == 1 }",
                ),
                &["shadowed"],
            ),
            (of("", ""), &["duplicate"]),
            (
                of(
                    "when { \"/\" == context.http.path }",
                    "when { context.http.path == \"/\" }",
                ),
                &["duplicate"],
            ),
            (
                both(
                    &slim(""),
                    "@id(\"f\") forbid (principal, action, resource);",
                ),
                &["never-matches"],
            ),
            (
                both(
                    &slim(&like("/v1/x/*")),
                    "@id(\"f\") forbid (principal, action, resource) when { context has http && context.http.path like \"/v1/*\" };",
                ),
                &["never-matches"],
            ),
            // Not proved, or not so.
            (of(&like("/v1/*"), &like("/v2/*")), &[]),
            (of(&like("/v1/items/*"), &like("/v1/*/items/*")), &[]),
            (
                of(
                    "when { context.port == 1 }",
                    "when { context.source.ip.isIpv4() }",
                ),
                &[],
            ),
            (
                of(
                    "when { context.port + 1 == 2 || context.http.path == \"/\" }",
                    "when { context.http.path == \"/\" }",
                ),
                &[],
            ),
            (
                both(
                    &wide(&role, ""),
                    &grant("slim", &domain.replace("\"x\"", "\"y\""), ""),
                ),
                &[],
            ),
            (
                both(
                    &format!("@mode(\"observe\") {}", wide(&role, "")),
                    &slim(""),
                ),
                &[],
            ),
            (
                both(&wide(&role, "").replace("06-30", "06-29"), &slim("")),
                &[],
            ),
            (
                both(
                    &slim(""),
                    "@id(\"f\") @mode(\"observe\") forbid (principal, action, resource);",
                ),
                &[],
            ),
            (
                both(
                    &slim(""),
                    "@id(\"f\") forbid (principal, action, resource) when { context.port == 7 };",
                ),
                &[],
            ),
        ] {
            let workloads = ROLES.replace("[r, q]", "r");
            let told: Vec<_> = codes(&cedar, &workloads)
                .into_iter()
                .filter(|code| code != "unmentioned")
                .collect();
            assert_eq!(told, expected, "{cedar}");
        }
        // The one that ends first is told of, wherever it stands.
        let ends_first = of("", "").replacen("06-30", "06-29", 1);
        let told = warned(&ends_first, "");
        assert_eq!(
            told,
            ["duplicate: a.cedar:2: this grant says the same as `two`"]
        );
    }

    #[test]
    fn what_is_denied_does_not_load() {
        let settings = |codes: &str| Settings {
            deny: codes.parse::<Codes>().unwrap(),
            ..Settings::of("")
        };
        let cedar = grant("g", &A.replace("action in Action::\"read\"", "action"), "");
        let load = |codes| check_texts_at([("a.cedar", &*cedar)], &settings(codes), now());
        assert!(load("everybody,ended").is_ok());
        let error = load("any-action").unwrap_err();
        assert_eq!(
            error.to_string(),
            "a.cedar:2: this grant is for every action"
        );
        let denied = error.diagnostics().next().unwrap();
        assert_eq!(denied.severity(), Some(miette::Severity::Error));
        assert_eq!(denied.code().unwrap().to_string(), "any-action");
        assert_eq!(error.warnings().count(), 0);
    }
}
