//! Who answers for a grant, and until when? What a policy says about itself, and the workload registry.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cedar_policy::{Effect, Policy};

use super::Governance;
use super::finding::{Finding, Text};
use crate::document::Node;
use crate::identity::SpiffeId;

/// What a policy says about itself.
#[derive(Debug, PartialEq)]
pub struct Grant {
    /// Its `@id`, unique over all policies; where it has none, its file and number (`a.cedar#3`).
    pub id: Arc<str>,
    /// Who answers for it.
    pub owner: Option<Arc<str>>,
    /// What it is for.
    pub purpose: Option<Arc<str>>,
    /// From this instant on it is not in force. Always there for a `permit`, unless governance is
    /// advisory; never for a `forbid`.
    pub expires: Option<SystemTime>,
    /// From this instant on somebody should have looked at it again.
    pub review: Option<SystemTime>,
    /// Where it was asked for.
    pub ticket: Option<Arc<str>>,
}

/// A policy's place in its file, and what it says about itself.
pub(super) struct Governed {
    pub(super) grant: Grant,
    /// `@mode("observe")`: decided and recorded, not enforced.
    pub(super) dry_run: bool,
}

/// Reads what `policy`, the `number`th in `text`, says about itself.
pub(super) fn govern(
    policy: &Policy,
    text: &Text,
    number: usize,
    governance: Governance,
    mistakes: &mut Vec<Finding>,
    warnings: &mut Vec<Finding>,
) -> Governed {
    let said = |key: &str| policy.annotation(key).filter(|value| !value.is_empty());
    let at = |key: &str| annotation(policy, key).unwrap_or_else(|| first_line(policy, text));

    if policy.effect() == Effect::Permit {
        let mandatory = ["id", "owner", "purpose", "expires"];
        let missing: Vec<_> = mandatory
            .into_iter()
            .filter(|key| said(key).is_none())
            .collect();
        if !missing.is_empty() {
            let finding = unsaid(&missing, governance);
            let finding = finding.at(text, first_line(policy, text), "this one");
            match governance {
                Governance::Enforce => mistakes.push(finding),
                Governance::Advisory => warnings.push(finding),
            }
        }
    }
    let id = said("id");
    if id.is_some_and(|id| id.chars().count() > LONGEST_ID || id.chars().any(char::is_control)) {
        let message =
            format!("an @id has at most {LONGEST_ID} characters, none of them a control character");
        mistakes.push(Finding::mistake(message).at(text, at("id"), "this one"));
    }
    let mut expires = None;
    if let Some(written) = said("expires") {
        expires = end(written);
        if policy.effect() == Effect::Forbid {
            mistakes.push(
                Finding::mistake(
                    "a forbid does not expire: what it keeps out would come in silently",
                )
                .at(text, at("expires"), "remove this")
                .help("delete the forbid when it is no longer needed"),
            );
        } else if expires.is_none() {
            mistakes.push(
                Finding::mistake(format!("`{written}` is not a date"))
                    .at(text, at("expires"), "not a date")
                    .help(
                        "write the last day in force, as in @expires(\"2027-06-30\"), or an instant, as \
                         in @expires(\"2027-06-30T12:00:00Z\")",
                    ),
            );
        } else if expires.is_some_and(|end| end <= SystemTime::now()) {
            warnings.push(
                Finding::warning(format!("this grant has ended: `{written}` is past"))
                    .at(text, at("expires"), "not in force")
                    .help("delete it, or let its owner say until when it is needed"),
            );
        }
    }
    let mode = policy.annotation("mode");
    if let Some(mode) = mode.filter(|mode| *mode != "observe") {
        mistakes.push(
            Finding::mistake(format!("`{mode}` is not a mode"))
                .at(text, at("mode"), "not known")
                .help("write @mode(\"observe\") for a dry run, or no @mode to enforce it"),
        );
    }
    let generated = || format!("{}#{number}", text.name).into();
    Governed {
        grant: Grant {
            id: id.map_or_else(generated, Into::into),
            owner: said("owner").map(Into::into),
            purpose: said("purpose").map(Into::into),
            expires,
            review: said("review").and_then(end),
            ticket: said("ticket").map(Into::into),
        },
        dry_run: mode.is_some(),
    }
}

/// A `permit` that does not say who answers for it.
fn unsaid(missing: &[&str], governance: Governance) -> Finding {
    let list: Vec<_> = missing.iter().map(|key| format!("@{key}")).collect();
    let message = format!("this permit does not say {}", list.join(", "));
    let help: Vec<_> = missing
        .iter()
        .map(|key| match *key {
            "id" => "@id(\"who-does-what\") names it in records and metrics",
            "owner" => "@owner(\"team@example.org\") says who answers for it",
            "purpose" => "@purpose(\"Why this access is needed\") says what it is for",
            _ => "@expires(\"2027-06-30\") says until when it is in force",
        })
        .collect();
    let finding = match governance {
        Governance::Enforce => Finding::mistake(message),
        Governance::Advisory => Finding::warning(message),
    };
    finding.help(help.join("\n"))
}

/// Grants are labels of metrics.
const LONGEST_ID: usize = 128;

/// Where `policy` begins, to the end of that line.
pub(super) fn first_line(policy: &Policy, text: &Text) -> Range<usize> {
    let (start, written) = written(policy, text);
    start..start + written.lines().next().unwrap_or_default().len()
}

/// Where `policy` says `literal` first, quotes included.
pub(super) fn quoted(policy: &Policy, text: &Text, literal: &str) -> Range<usize> {
    let (start, written) = written(policy, text);
    let literal = format!("\"{literal}\"");
    match written.find(&literal) {
        Some(at) => start + at..start + at + literal.len(),
        None => first_line(policy, text),
    }
}

/// Where `policy` begins, and all of it.
fn written<'a>(policy: &Policy, text: &'a Text) -> (usize, &'a str) {
    let all = policy
        .as_ref()
        .loc()
        .map_or(0..0, |loc| loc.start()..loc.end());
    (all.start, text.text.get(all).unwrap_or_default())
}

/// Where an annotation stands.
pub(super) fn annotation(policy: &Policy, key: &str) -> Option<Range<usize>> {
    let annotation = policy.as_ref().annotation(&key.parse().ok()?)?;
    let loc = annotation.loc.as_ref()?;
    Some(loc.start()..loc.end())
}

/// When a grant ends that says `written`: a date is the last day in force, in UTC.
fn end(written: &str) -> Option<SystemTime> {
    let day = written.len() == "2027-06-30".len();
    let end = if day {
        let day: jiff::civil::Date = written.parse().ok()?;
        let next = day.tomorrow().ok()?.at(0, 0, 0, 0);
        next.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp()
    } else {
        written.parse().ok()?
    };
    Some(end.into())
}

/// The workloads that the operator registered, by their SPIFFE IDs.
#[derive(Debug, Default)]
pub struct Registry {
    workloads: HashMap<SpiffeId, Workload>,
    roles: HashSet<String>,
}

/// One registered workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// Who answers for it.
    pub owner: Arc<str>,
    /// What it is for.
    pub purpose: String,
    /// What it is.
    pub kind: Kind,
    /// The person who is accountable for what an agent does.
    pub accountable: Option<String>,
    /// The roles that policies may name.
    pub roles: Vec<String>,
    /// The longest lifetime of its certificate that is accepted.
    pub max_lifetime: Option<Duration>,
    /// Free labels, the tags of the Cedar entity.
    pub labels: BTreeMap<String, String>,
}

/// What a workload is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// It serves and asks in the course of serving.
    #[default]
    Service,
    /// It runs and ends.
    Job,
    /// It decides by itself what to ask for; somebody is accountable for it.
    Agent,
}

impl Kind {
    /// The word in `workloads.yaml`, and the Cedar entity `Kind::"…"`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Job => "job",
            Self::Agent => "agent",
        }
    }
}

impl Registry {
    /// Reads `workloads.yaml`.
    #[must_use]
    pub fn read(node: Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let list = section.required("workloads", |node| {
            let mut seen = HashMap::new();
            node.list(|node| {
                let workload = Workload::read(&node)?;
                if let Some(line) = seen.insert(workload.id.clone(), node.line()) {
                    let message = format!("{} is registered already, on line {line}", workload.id);
                    return node.mistake(message, None);
                }
                Some((workload.id.clone(), workload))
            })
        })?;
        let workloads: HashMap<_, Workload> = list.into_iter().collect();
        let roles = workloads.values().flat_map(|workload| &workload.roles);
        Some(Self {
            roles: roles.cloned().collect(),
            workloads,
        })
    }

    /// The registration of one workload.
    #[must_use]
    pub fn get(&self, id: &SpiffeId) -> Option<&Workload> {
        self.workloads.get(id)
    }

    /// All of them, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = &Workload> {
        self.workloads.values()
    }

    /// Whether a registered workload has the role.
    pub(super) fn has_role(&self, role: &str) -> bool {
        self.roles.contains(role)
    }

    /// Whether nobody is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
    }
}

impl Workload {
    fn read(node: &Node<'_>) -> Option<Self> {
        let text = |node: Node<'_>| node.text().map(str::to_owned);
        let mut section = node.section()?;
        let id = section.required("id", |node| node.parse());
        let owner = section.required("owner", text);
        let purpose = section.required("purpose", text);
        let kind = section.or("kind", Kind::default(), |node| {
            let kinds = [Kind::Service, Kind::Job, Kind::Agent];
            node.choice(&kinds.map(|kind| (kind.label(), kind)))
        });
        let accountable = section.optional("accountable", text);
        let roles = section.or("roles", Vec::new(), |node| node.one_or_more(text));
        let max_lifetime = section.optional("max_lifetime", |node| {
            node.duration(Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 3600))
        });
        let labels = section.or("labels", Vec::new(), |node| node.map(text));
        let (kind, accountable) = (kind?, accountable?);
        if kind == Kind::Agent && accountable.is_none() {
            return node.mistake(
                "an agent needs somebody who is accountable for it: the key `accountable` is missing",
                Some("write for example `accountable: jane.doe@example.org`"),
            );
        }
        Some(Self {
            id: id?,
            owner: owner?.into(),
            purpose: purpose?,
            kind,
            accountable,
            roles: roles?,
            max_lifetime: max_lifetime?,
            labels: labels?.into_iter().collect(),
        })
    }
}

/// The part of a SPIFFE ID that says where something runs rather than what it is, if there is one: a
/// principal that names a place changes whenever the workload moves.
pub(super) fn location(id: &str) -> Option<&str> {
    let name = id.strip_prefix("spiffe://").unwrap_or(id);
    name.split(['/', '.'])
        .find(|part| names_a_place(part))
        .or_else(|| {
            name.split('/')
                .find(|part| part.parse::<std::net::Ipv4Addr>().is_ok())
        })
}

fn names_a_place(part: &str) -> bool {
    let words: Vec<&str> = part.split(['-', '_']).collect();
    let number = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    // `east1`, `1a`, `1`: a direction or nothing, a number, a letter or nothing.
    let direction = |word: &str| {
        let word = word.trim_end_matches(|c: char| c.is_ascii_digit());
        DIRECTIONS.contains(&word)
    };
    let numbered = |word: &str| {
        let digits = word.trim_end_matches(|c: char| c.is_ascii_lowercase());
        number(digits) && word.len() - digits.len() <= 1
    };
    match &*words {
        // `region`, `zone`: the next segment is the place.
        [only] if PLACES.contains(only) => true,
        // `node3`, `rack12`; `eastus2`, `westeurope`.
        [only] => {
            let word = only.trim_end_matches(|c: char| c.is_ascii_digit());
            (word.len() < only.len() && PLACES.contains(&word))
                || DIRECTIONS.iter().any(|direction| {
                    word.strip_prefix(direction)
                        .is_some_and(|area| AREAS.contains(&area))
                })
        }
        // `ip-10-0-0-1`.
        ["ip", octets @ ..] if octets.len() >= 4 => octets[..4].iter().all(|octet| number(octet)),
        // `node-3`, `zone-a`.
        [place, which] if PLACES.contains(place) => number(which) || which.len() == 1,
        // `eu-west-1`, `eu-west-1a`, `us-gov-east-1`; `us-east1`, `europe-west4-b`.
        [area, rest @ ..] if AREAS.contains(area) => {
            let rest = match rest {
                ["gov" | "iso" | "isob", rest @ ..] => rest,
                rest => rest,
            };
            match rest {
                [way, last] => {
                    direction(way)
                        && (numbered(last)
                            || (way.ends_with(|c: char| c.is_ascii_digit()) && last.len() == 1))
                }
                [way] => direction(way) && way.ends_with(|c: char| c.is_ascii_digit()),
                _ => false,
            }
        }
        _ => false,
    }
}

const PLACES: &[&str] = &[
    "region",
    "zone",
    "node",
    "host",
    "rack",
    "az",
    "dc",
    "datacenter",
];

const AREAS: &[&str] = &[
    "us",
    "eu",
    "ap",
    "sa",
    "ca",
    "me",
    "af",
    "il",
    "mx",
    "cn",
    "europe",
    "asia",
    "australia",
    "northamerica",
    "southamerica",
    "africa",
    "india",
    "japan",
    "uk",
    "brazil",
    "canada",
];

const DIRECTIONS: &[&str] = &[
    "north",
    "south",
    "east",
    "west",
    "central",
    "northeast",
    "northwest",
    "southeast",
    "southwest",
    "northcentral",
    "southcentral",
    "westcentral",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    #[test]
    fn a_date_ends_with_its_day_and_an_instant_at_once() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        for (written, expected) in [
            ("1970-01-01", Some(at(86_400))),
            ("1970-01-01T00:00:10Z", Some(at(10))),
            ("1970-01-01T01:00:10+01:00", Some(at(10))),
            ("1970-02-30", None),
            ("1970-01-01T00:00:10", None),
            ("01.01.1970", None),
            ("9999-12-31", None),
            ("soon", None),
            ("", None),
        ] {
            assert_eq!(end(written), expected, "{written}");
        }
    }

    #[test]
    fn names_of_places_are_found_in_ids() {
        for (id, place) in [
            ("spiffe://example.org/eu-west-1/checkout", Some("eu-west-1")),
            (
                "spiffe://example.org/checkout/us-east1-b",
                Some("us-east1-b"),
            ),
            (
                "spiffe://example.org/checkout/europe-west4",
                Some("europe-west4"),
            ),
            (
                "spiffe://example.org/us-gov-east-1a/a",
                Some("us-gov-east-1a"),
            ),
            ("spiffe://eu-central-1.example.org/a", Some("eu-central-1")),
            ("spiffe://example.org/eastus2/a", Some("eastus2")),
            ("spiffe://example.org/westeurope/a", Some("westeurope")),
            ("spiffe://example.org/node-3/a", Some("node-3")),
            ("spiffe://example.org/node3/a", Some("node3")),
            ("spiffe://example.org/zone/a", Some("zone")),
            ("spiffe://example.org/ip-10-0-0-1", Some("ip-10-0-0-1")),
            ("spiffe://example.org/10.0.0.1/a", Some("10.0.0.1")),
            ("spiffe://example.org/checkout", None),
            ("spiffe://example.org/ns/bank/sa/ledger", None),
            ("spiffe://example.org/node-exporter", None),
            ("spiffe://example.org/us-tax", None),
            ("spiffe://example.org/west-wing", None),
            ("spiffe://example.org/worker-3", None),
        ] {
            assert_eq!(location(id), place, "{id}");
        }
    }

    fn registry(text: &str) -> Result<Registry, String> {
        Document::new("workloads.yaml", text)
            .read(Registry::read)
            .map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn a_registry_knows_its_workloads() {
        let read = registry(
            "workloads:\n\
             - id: spiffe://example.org/helper\n  owner: a@example.org\n  purpose: answers\n  \
               kind: agent\n  accountable: jane@example.org\n  roles: [readers]\n  \
               max_lifetime: 1h\n  labels: { team: a }\n",
        )
        .unwrap();
        let id = SpiffeId::parse("spiffe://example.org/helper").unwrap();
        let workload = read.get(&id).unwrap();
        assert_eq!(workload.kind, Kind::Agent);
        assert_eq!(workload.roles, ["readers"]);
        assert_eq!(workload.max_lifetime, Some(Duration::from_secs(3600)));
        assert_eq!(workload.labels["team"], "a");
    }

    #[test]
    fn mistakes_in_the_registry_are_told() {
        let entry = "- { id: spiffe://example.org/a, owner: o, purpose: p";
        for (text, told) in [
            (
                "{}".to_owned(),
                "workloads.yaml:1: the key `workloads` is missing",
            ),
            (
                format!("workloads:\n{entry}, kind: agent }}"),
                "workloads.yaml:2: workloads[0]: an agent needs somebody who is accountable",
            ),
            (
                format!("workloads:\n{entry} }}\n{entry} }}"),
                "workloads.yaml:3: workloads[1]: spiffe://example.org/a is registered already, on line 2",
            ),
            (
                format!("workloads:\n{entry}, kind: robot }}"),
                "workloads.yaml:2: workloads[0].kind: `robot` is not known here",
            ),
            (
                "workloads:\n- { id: checkout, owner: o, purpose: p }".into(),
                "workloads.yaml:2: workloads[0].id: `checkout`: not a SPIFFE ID",
            ),
        ] {
            let error = registry(&text).unwrap_err();
            assert!(error.starts_with(told), "{text}: {error}");
        }
    }
}
