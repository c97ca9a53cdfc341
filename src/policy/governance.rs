//! Who answers for a grant, and until when? What a policy says about itself, and the workload registry.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cedar_policy::{Effect, Policy};

use super::Governance;
use super::code::Code;
use super::finding::{Finding, Text};
use crate::document::{self, Node};
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
    /// From this instant on it is overdue to be looked at again.
    pub review: Option<SystemTime>,
    /// Where it was asked for and agreed to: a ticket, a change request.
    pub ticket: Option<Arc<str>>,
}

impl Grant {
    /// Whether it is no longer in force at `now`.
    #[must_use]
    pub fn has_ended(&self, now: SystemTime) -> bool {
        self.expires.is_some_and(|end| end <= now)
    }

    /// Whether it is in force at `now` and ends within [`SOON`].
    #[must_use]
    pub fn ends_soon(&self, now: SystemTime) -> bool {
        !self.has_ended(now) && self.expires.is_some_and(|end| end <= now + SOON)
    }

    /// Whether it is in force at `now` and was due to be looked at again.
    #[must_use]
    pub fn is_overdue(&self, now: SystemTime) -> bool {
        !self.has_ended(now) && self.review.is_some_and(|due| due <= now)
    }
}

/// A grant that ends within this time is told of: enough to ask its owner.
pub const SOON: Duration = Duration::from_secs(14 * DAY);

/// A grant that ends later than this is longer than a year, the rest of its last day aside.
const YEAR: Duration = Duration::from_secs(367 * DAY);

const DAY: u64 = 24 * 3600;

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
    now: SystemTime,
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
        }
    }
    let mut review = None;
    if let Some(written) = said("review") {
        review = end(written);
        if review.is_none() {
            mistakes.push(
                Finding::mistake(format!("`{written}` is not a date"))
                    .at(text, at("review"), "not a date")
                    .help(
                        "write the day by which to look at it again, as in @review(\"2027-01-31\")",
                    ),
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
    let grant = Grant {
        id: id.map_or_else(generated, Into::into),
        owner: said("owner").map(Into::into),
        purpose: said("purpose").map(Into::into),
        expires,
        review,
        ticket: said("ticket").map(Into::into),
    };
    warnings.extend(dates(&grant, now).map(|(code, key, told, label, help)| {
        let written = said(key).unwrap_or_default();
        Finding::warning(code, told.replace("{}", written))
            .at(text, at(key), label)
            .help(help)
    }));
    warnings.extend(policy.annotations().filter_map(|(key, _)| {
        let meant = meant(key)?;
        Some(
            Finding::warning(
                Code::UnknownAnnotation,
                format!("`@{key}` is not known, and controls nothing"),
            )
            .at(text, at(key), "not known")
            .help(format!(
                "write `@{meant}`, or a word that looks less like it"
            )),
        )
    }));
    Governed {
        grant,
        dry_run: mode.is_some(),
    }
}

/// What there is to say at `now` about the dates of a grant: code, annotation, message with `{}` for what
/// is written there, label, help.
fn dates(
    grant: &Grant,
    now: SystemTime,
) -> impl Iterator<Item = (Code, &'static str, &'static str, &'static str, &'static str)> {
    let end = if grant.has_ended(now) {
        Some((
            Code::Ended,
            "this grant has ended: `{}` is past",
            "not in force",
            "delete it, or let its owner say until when it is needed",
        ))
    } else if grant.ends_soon(now) {
        Some((
            Code::EndsSoon,
            "this grant ends within 14 days: `{}` is near",
            "ends soon",
            "ask its owner whether it is still needed, and until when",
        ))
    } else if grant.expires.is_some_and(|end| end > now + YEAR) {
        Some((
            Code::LongGrant,
            "this grant lasts for more than a year: `{}` is far away",
            "more than a year",
            "let it end within a year: whoever needs it then says so again",
        ))
    } else {
        None
    };
    let end = end.map(|(code, told, label, help)| (code, "expires", told, label, help));
    let review = grant.is_overdue(now).then_some((
        Code::ReviewOverdue,
        "review",
        "the review is overdue: `{}` is past",
        "overdue",
        "ask its owner whether it is still needed, then write when to ask again",
    ));
    end.into_iter().chain(review)
}

/// The annotation that was meant by `key`, if it is none of ours and looks like one.
pub(super) fn meant(key: &str) -> Option<&'static str> {
    if ANNOTATIONS.contains(&key) {
        return None;
    }
    let lower = key.to_lowercase();
    if let Some((_, meant)) = ALSO_MEANT.iter().find(|(word, _)| *word == lower) {
        return Some(meant);
    }
    let distance = |known: &&&'static str| document::distance(known, &lower);
    let nearest = ANNOTATIONS.iter().min_by_key(distance)?;
    // None wrong in two letters, one in four to six, two in seven.
    (distance(&nearest) <= (nearest.len() + 1) / 4).then_some(*nearest)
}

/// All that a policy can say about itself.
const ANNOTATIONS: [&str; 7] = [
    "id", "owner", "purpose", "expires", "review", "ticket", "mode",
];

/// Words that others use for the same.
const ALSO_MEANT: [(&str, &str); 8] = [
    ("expiration", "expires"),
    ("expires_at", "expires"),
    ("expires_on", "expires"),
    ("valid_until", "expires"),
    ("until", "expires"),
    ("review_by", "review"),
    ("dry_run", "mode"),
    ("observe", "mode"),
];

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
        Governance::Advisory => Finding::warning(Code::Ungoverned, message),
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

/// Where `policy` begins behind what it says about itself, to the end of that line.
pub(super) fn head(policy: &Policy, text: &Text) -> Range<usize> {
    let (start, written) = written(policy, text);
    let annotations = policy.annotations();
    let ends = annotations.filter_map(|(key, _)| Some(annotation(policy, key)?.end));
    let behind = ends.max().unwrap_or(start).max(start);
    let rest = written.get(behind - start..).unwrap_or_default();
    let blank = rest.len() - rest.trim_start().len();
    let line = rest
        .trim_start()
        .lines()
        .next()
        .unwrap_or_default()
        .trim_end();
    behind + blank..behind + blank + line.len()
}

/// Where the scope of `policy` says `word` first.
pub(super) fn in_scope(policy: &Policy, text: &Text, word: &str) -> Range<usize> {
    let head = head(policy, text);
    let rest = text.text.get(head.start..).unwrap_or_default();
    match rest.find(word) {
        Some(at) => head.start + at..head.start + at + word.len(),
        None => head,
    }
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
    owners: Option<BTreeMap<Arc<str>, Owner>>,
}

/// Somebody who answers for workloads or grants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// What grants and workloads call them: an address, a team's name.
    pub id: Arc<str>,
    /// Their name in full.
    pub name: Option<String>,
    /// Where to reach them.
    pub contact: Option<String>,
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
    /// The line on which its registration begins, counted from 1.
    pub(super) line: usize,
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
        let owners = section.optional("owners", |node| {
            let mut owners: BTreeMap<Arc<str>, Owner> = BTreeMap::new();
            let read = node.list(|node| {
                let owner = Owner::read(&node)?;
                if owners.contains_key(&owner.id) {
                    return node.mistake(format_args!("`{}` is listed already", owner.id), None);
                }
                owners.insert(owner.id.clone(), owner);
                Some(())
            });
            read.map(|_| owners)
        });
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
            owners: owners?,
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

    /// The owners that the registry lists; none if it has no list.
    pub fn owners(&self) -> Option<impl Iterator<Item = &Owner>> {
        self.owners.as_ref().map(BTreeMap::values)
    }

    /// What the list of owners says of `id`.
    #[must_use]
    pub fn owner(&self, id: &str) -> Option<&Owner> {
        self.owners.as_ref()?.get(id)
    }

    /// Whether there is a list of owners, and `id` is not in it.
    pub(super) fn misses_owner(&self, id: &str) -> bool {
        self.owners.is_some() && self.owner(id).is_none()
    }

    /// One of the workloads that have the role.
    pub(super) fn member(&self, role: &str) -> Option<&Workload> {
        let has = |workload: &&Workload| workload.roles.iter().any(|given| given == role);
        self.workloads.values().find(has)
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

impl Owner {
    fn read(node: &Node<'_>) -> Option<Self> {
        let text = |node: Node<'_>| node.text().map(str::to_owned);
        let mut section = node.section()?;
        let id = section.required("id", text);
        let name = section.optional("name", text);
        let contact = section.optional("contact", text);
        Some(Self {
            id: id?.into(),
            name: name?,
            contact: contact?,
        })
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
        let accountable = section.optional("accountable", |node| {
            let person = node.text()?;
            if person.starts_with("spiffe://") {
                return node.mistake(
                    format_args!("`{person}` is a workload, and nobody can hold it to account"),
                    Some("name a person's role or address, as in `jane.doe@example.org`"),
                );
            }
            Some(person.to_owned())
        });
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
            line: node.line(),
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
        assert!(read.owners().is_none() && !read.misses_owner("anybody"));
    }

    #[test]
    fn a_list_of_owners_says_who_may_be_one() {
        let read = registry(
            "owners:\n- { id: a@example.org, name: A-Team, contact: '#a' }\n- { id: b@example.org }\n\
             workloads: []\n",
        )
        .unwrap();
        assert_eq!(
            read.owner("a@example.org").unwrap().name.as_deref(),
            Some("A-Team")
        );
        assert_eq!(read.owners().unwrap().count(), 2);
        assert!(!read.misses_owner("b@example.org") && read.misses_owner("c@example.org"));
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
                format!("workloads:\n{entry}, kind: agent, accountable: spiffe://example.org/b }}"),
                "workloads.yaml:2: workloads[0].accountable: `spiffe://example.org/b` is a workload",
            ),
            (
                format!("owners: [{{ id: o }}, {{ id: o }}]\nworkloads:\n{entry} }}"),
                "workloads.yaml:1: owners[1]: `o` is listed already",
            ),
            (
                format!("owners: [o]\nworkloads:\n{entry} }}"),
                "workloads.yaml:1: owners[0]: expected keys with values",
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
