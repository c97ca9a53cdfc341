//! Is every access used, owned, reviewed and recorded? What a fleet's metrics say about its policy.
//!
//! This file concludes and asks nobody: [`seen`] is what Prometheus has sampled, an [`Engine`] is what the
//! operator has written, and a [`Report`] is where the two do not fit. What was not sampled is not claimed:
//! where samples cover less than the window, a grant is not "never used".
//!
//! | file | answers |
//! |---|---|
//! | `report/prometheus.rs` | how the server is asked |
//! | `report/history.rs` | what was counted in the window, exactly where that is possible |
//! | `report/seen.rs` | which questions are asked |
//! | `report/text.rs`, `report/page.rs`, `report/chart.rs` | how it is told: text, JSON, one HTML page |

mod chart;
pub mod history;
mod page;
pub mod prometheus;
pub mod seen;
mod text;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::history::{Counter, Window};
use self::seen::{Seen, Sidecar, State};
use crate::identity::SpiffeId;
use crate::outcome::Outcome;
use crate::policy::cedar::Engine;
use crate::policy::governance::Registry;
use crate::policy::listing::{Listed, Named};

/// What is to be told.
#[derive(Clone, Debug)]
pub struct Report {
    /// Who was asked.
    pub server: String,
    /// The time that was looked at.
    pub window: Window,
    /// For how much of it there are samples of some sidecar, and none was asked in vain.
    pub covered: Duration,
    /// What to keep in mind when reading the rest.
    pub notes: Vec<String>,
    /// One for each [`Kind`], in this order.
    pub sections: Vec<Section>,
    /// What is drawn.
    pub courses: Courses,
}

/// One question, and what was found.
#[derive(Clone, Debug)]
pub struct Section {
    /// Which question.
    pub kind: Kind,
    /// What was found: first what somebody should act on. All rows of a section have the same cells.
    pub rows: Vec<Row>,
    /// What cannot be said in rows.
    pub notes: Vec<String>,
}

impl Section {
    /// How many of its rows somebody should act on.
    #[must_use]
    pub fn findings(&self) -> usize {
        self.rows.iter().filter(|row| row.act).count()
    }
}

/// The questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// For which sidecars and times there is something to say.
    Coverage,
    /// Whether sidecars hold the policy that the report was given.
    Policy,
    /// Grants that nobody used.
    UnusedGrants,
    /// Principals that may and do not.
    DormantPrincipals,
    /// Principals that are not registered.
    UnregisteredPrincipals,
    /// Grants that ended, end soon, or should have been reviewed.
    GrantsDue,
    /// Who was denied what.
    Denials,
    /// What would be otherwise if dry runs were enforced.
    DryRun,
    /// Standing secrets in requests.
    StandingSecrets,
    /// The share of requests without one.
    Secretless,
    /// Whether certificates are renewed.
    Rotation,
    /// Whether records are kept.
    Audit,
    /// Which grants are used, and how much.
    GrantsInUse,
}

impl Kind {
    /// The key in `--json`: never rename one.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Coverage => "coverage",
            Self::Policy => "policy",
            Self::UnusedGrants => "unused_grants",
            Self::DormantPrincipals => "dormant_principals",
            Self::UnregisteredPrincipals => "unregistered_principals",
            Self::GrantsDue => "grants_due",
            Self::Denials => "denials",
            Self::DryRun => "dry_run",
            Self::StandingSecrets => "standing_secrets",
            Self::Secretless => "secretless",
            Self::Rotation => "rotation",
            Self::Audit => "audit",
            Self::GrantsInUse => "grants_in_use",
        }
    }

    /// What people call it.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Coverage => "Coverage",
            Self::Policy => "Policy in force",
            Self::UnusedGrants => "Grants not used",
            Self::DormantPrincipals => "Dormant principals",
            Self::UnregisteredPrincipals => "Principals not registered",
            Self::GrantsDue => "Grants due",
            Self::Denials => "Denials",
            Self::DryRun => "Dry run",
            Self::StandingSecrets => "Standing secrets",
            Self::Secretless => "Secretless score",
            Self::Rotation => "Certificates",
            Self::Audit => "Audit",
            Self::GrantsInUse => "Grants in use",
        }
    }

    /// What to do about what was found.
    #[must_use]
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Coverage => {
                "Let Prometheus reach what is down or not seen. Of what it does not see, nothing is said here."
            }
            Self::Policy => {
                "Give these sidecars the policy of this directory, or run the report with theirs."
            }
            Self::UnusedGrants => {
                "Ask the owner whether it is still needed. If not, delete it; `doorward policy diff` shows who loses what."
            }
            Self::DormantPrincipals => {
                "Ask the owner whether it still runs. If not, delete its registration and its grants."
            }
            Self::UnregisteredPrincipals => {
                "Register it in workloads.yaml with an owner and a purpose, or take its grants away."
            }
            Self::GrantsDue => {
                "Let the owner confirm it with a new date, or delete it. What has ended allows nothing."
            }
            Self::Denials => {
                "Ask the owner whether this access is meant. `doorward explain` says what a grant would need; \
                 if it is not meant, find out who asks."
            }
            Self::DryRun => {
                "Enforce what decides as meant (take @mode(\"observe\") away), change what does not, \
                 delete what never decided."
            }
            Self::StandingSecrets => {
                "Give the caller a grant instead of the secret, then revoke the secret; `standing_secrets: deny` \
                 keeps it out."
            }
            Self::Secretless => {
                "The share of requests without a standing secret, of those that were let in and searched."
            }
            Self::Rotation => {
                "Look at the identity source of these sidecars: without it their certificates end, and their traffic."
            }
            Self::Audit => "Look at the disk or collector that the audit goes to.",
            Self::GrantsInUse => "For review: who relies on what.",
        }
    }
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Whether somebody should act on it.
    pub act: bool,
    /// What it is, each with its name: the key in `--json` and the head of the column.
    pub cells: Vec<(&'static str, Value)>,
}

/// One thing that is said.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Words.
    Text(String),
    /// How many.
    Count(u64),
    /// A share, from 0 to 1.
    Share(f64),
    /// When, in seconds since the epoch; none if not at all.
    Time(Option<i64>),
    /// From when on not any more. An end at midnight is shown as the day before, as it is written in policies.
    End(Option<i64>),
}

impl Row {
    fn of(act: bool) -> Self {
        Self {
            act,
            cells: Vec::new(),
        }
    }

    fn with(mut self, name: &'static str, value: Value) -> Self {
        self.cells.push((name, value));
        self
    }

    fn text(self, name: &'static str, text: impl Into<String>) -> Self {
        self.with(name, Value::Text(text.into()))
    }

    fn count(self, name: &'static str, count: f64) -> Self {
        self.with(name, Value::Count(whole(count)))
    }

    fn time(self, name: &'static str, time: Option<SystemTime>) -> Self {
        self.with(name, Value::Time(time.map(seconds)))
    }

    fn end(self, name: &'static str, end: Option<SystemTime>) -> Self {
        self.with(name, Value::End(end.map(seconds)))
    }
}

/// What is drawn over the steps of the window.
#[derive(Clone, Debug, Default)]
pub struct Courses {
    /// Decisions that allowed.
    pub allowed: Vec<f64>,
    /// Decisions that denied.
    pub denied: Vec<f64>,
    /// Certificates put in force after the first.
    pub rotations: Vec<f64>,
    /// By direction and service: requests, and those of them with a standing secret.
    pub secretless: BTreeMap<String, (Vec<f64>, Vec<f64>)>,
    /// What each grant allowed, most first.
    pub grants: Vec<(String, f64)>,
}

/// Nobody answers for it.
const NOBODY: &str = "nobody";

/// Less than this share of the window, and what was not seen is not "never".
const GOOD_COVERAGE: f64 = 0.99;

/// A grant that ends within this time is told of before.
const SOON: Duration = Duration::from_secs(14 * 24 * 3600);

impl Report {
    /// Holds what was seen against what is written in `policy`.
    #[must_use]
    pub fn new(server: String, window: Window, seen: &Seen, policy: &Engine) -> Self {
        let judge = Judge::new(window, seen, policy);
        let sections = [
            (Kind::Coverage, judge.coverage()),
            (Kind::Policy, judge.policy()),
            (Kind::UnusedGrants, judge.unused_grants()),
            (Kind::DormantPrincipals, judge.dormant_principals()),
            (
                Kind::UnregisteredPrincipals,
                judge.unregistered_principals(),
            ),
            (Kind::GrantsDue, judge.grants_due()),
            (Kind::Denials, judge.denials()),
            (Kind::DryRun, judge.dry_run()),
            (Kind::StandingSecrets, judge.standing_secrets()),
            (Kind::Secretless, judge.secretless()),
            (Kind::Rotation, judge.rotation()),
            (Kind::Audit, judge.audit()),
            (Kind::GrantsInUse, judge.grants_in_use()),
        ];
        let sections = sections.map(|(kind, (mut rows, notes))| {
            rows.sort_by_key(|row| !row.act);
            Section { kind, rows, notes }
        });
        Self {
            server,
            window,
            covered: judge.covered,
            notes: judge.notes(),
            sections: sections.into(),
            courses: judge.courses(),
        }
    }

    /// How many things somebody should act on.
    #[must_use]
    pub fn findings(&self) -> usize {
        self.sections.iter().map(Section::findings).sum()
    }

    /// One section.
    #[must_use]
    pub fn section(&self, kind: Kind) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind)
    }
}

type Found = (Vec<Row>, Vec<String>);

struct Judge<'a> {
    window: Window,
    now: SystemTime,
    seen: &'a Seen,
    listed: Vec<Listed>,
    registry: &'a Registry,
    policies: usize,
    covered: Duration,
    /// What each policy decided: allowed by a grant, or denied by a forbid.
    decided: HashMap<&'a str, f64>,
}

impl<'a> Judge<'a> {
    fn new(window: Window, seen: &'a Seen, policy: &'a Engine) -> Self {
        let mut decided: HashMap<_, f64> = HashMap::new();
        for counter in &seen.decisions {
            *decided.entry(counter.label("grant")).or_default() += counter.total();
        }
        Self {
            window,
            now: time(window.end),
            seen,
            listed: policy.listing(),
            registry: policy.registry(),
            policies: policy.policies(),
            covered: union(window, seen.sidecars.values()),
            decided,
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let share = self.share(self.covered);
        if share < GOOD_COVERAGE {
            notes.push(format!(
                "There are samples for {} of {}. What was not seen may have happened in the rest.",
                lasting(self.covered),
                lasting(self.window.length())
            ));
        }
        if let Some(retention) = self
            .seen
            .retention
            .filter(|kept| *kept < self.window.length())
        {
            notes.push(format!(
                "The server keeps samples for {} only: shorten --since, or raise --storage.tsdb.retention.time.",
                lasting(retention)
            ));
        }
        let families = [
            &self.seen.decisions,
            &self.seen.requests,
            &self.seen.secrets,
        ];
        let unsure = families.into_iter().flatten().filter(|one| one.at_least);
        match unsure.count() {
            0 => {}
            count => notes.push(format!(
                "Some counts are lower bounds: {count} series had counted before Prometheus first saw them, and \
                 nobody knows when."
            )),
        }
        if self
            .seen
            .decisions
            .iter()
            .any(|one| one.label("principal") == OTHER)
        {
            notes.push(
                "Some principals are counted together as `other`: a sidecar names 1,000, and the audit names all."
                    .to_owned(),
            );
        }
        let warned = self.seen.warnings.iter();
        notes.extend(warned.map(|warning| format!("The server warns: {warning}")));
        notes
    }

    fn coverage(&self) -> Found {
        let sidecars = &self.seen.sidecars;
        let mut rows: Vec<_> = sidecars
            .iter()
            .map(|(target, sidecar)| {
                let covered = union(self.window, [sidecar]);
                Row::of(sidecar.state == State::Down)
                    .text("sidecar", target.name())
                    .text("identity", joined(&sidecar.ids))
                    .text("service", joined(&sidecar.serves))
                    .text("state", sidecar.state.label())
                    .with("covered", Value::Share(self.share(covered)))
                    .text("owner", self.owner_of_any(&sidecar.ids))
            })
            .collect();
        let named: BTreeSet<_> = self
            .listed
            .iter()
            .filter(|listed| self.in_force(listed))
            .filter_map(|listed| Some((listed.service.as_deref()?, &listed.grant.owner)))
            .collect();
        let mut unseen: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for (service, owner) in named {
            if !sidecars.values().any(|one| one.serves.contains(service)) {
                let owners = unseen.entry(service).or_default();
                owners.extend(owner.iter().map(ToString::to_string));
            }
        }
        rows.extend(unseen.into_iter().map(|(service, owners)| {
            Row::of(true)
                .text("sidecar", "none")
                .text("identity", "")
                .text("service", service)
                .text("state", "not seen")
                .with("covered", Value::Share(0.0))
                .text("owner", joined(&owners))
        }));
        let of = |state| sidecars.values().filter(|one| one.state == state).count();
        let notes = vec![format!(
            "{} seen: {} up, {} down, {} gone. Samples for {} of {}.",
            several(sidecars.len(), "sidecar"),
            of(State::Up),
            of(State::Down),
            of(State::Gone),
            lasting(self.covered),
            lasting(self.window.length())
        )];
        (rows, notes)
    }

    fn policy(&self) -> Found {
        let mut rows = Vec::new();
        let finding = |what: &str, where_: &str, since: Option<f64>, owner: String| {
            Row::of(true)
                .text("what", what)
                .text("where", where_)
                .time("since", since.map(of_seconds))
                .text("owner", owner)
        };
        let mut agree = 0_usize;
        for (target, sidecar) in &self.seen.sidecars {
            let owner = || self.owner_of_any(&sidecar.ids);
            let failures = sidecar.counted.get(seen::LOAD_FAILURES).copied();
            if let Some(failures) = failures.map(whole).filter(|failures| *failures > 0) {
                let what = format!("a change was not put in force, {failures} times");
                rows.push(finding(&what, target.name(), sidecar.loaded, owner()));
            }
            let Some(held) = sidecar.policies.filter(|_| !sidecar.serves.is_empty()) else {
                continue;
            };
            if whole(held) == self.policies as u64 {
                agree += 1;
            } else {
                let what = format!(
                    "{} in force, {} in the directory",
                    whole(held),
                    self.policies
                );
                rows.push(finding(&what, target.name(), sidecar.loaded, owner()));
            }
        }
        let known: BTreeSet<&str> = self.listed.iter().map(|one| &*one.grant.id).collect();
        let mut strangers: BTreeMap<&str, (f64, BTreeSet<&str>)> = BTreeMap::new();
        for counter in &self.seen.decisions {
            let grant = counter.label("grant");
            if !grant.is_empty() && !known.contains(grant) && counter.total() > 0.0 {
                let (count, services) = strangers.entry(grant).or_default();
                *count += counter.total();
                services.insert(counter.label("service"));
            }
        }
        for (grant, (count, services)) in strangers {
            let what = format!(
                "grant {grant} decided {} times, and is not in the directory",
                whole(count)
            );
            rows.push(finding(&what, &joined(&services), None, NOBODY.to_owned()));
        }
        let notes = vec![format!(
            "{} in the directory; {} with as many in force.",
            several(self.policies, "policy"),
            several(agree, "sidecar")
        )];
        (rows, notes)
    }

    fn unused_grants(&self) -> Found {
        let permits = self
            .listed
            .iter()
            .filter(|listed| listed.permits && !listed.dry_run);
        let unused = permits
            .filter(|listed| {
                self.decided
                    .get(&*listed.grant.id)
                    .is_none_or(|count| *count <= 0.0)
            })
            .filter(|listed| self.in_force(listed));
        let rows = unused.map(|listed| {
            let covered = self.covered_at(listed.service.as_deref());
            Row::of(covered.is_some())
                .text("grant", &*listed.grant.id)
                .text("principal", listed.principal.to_string())
                .text("service", listed.service.as_deref().unwrap_or("any"))
                .text("used", self.never(covered))
                .end("expires", listed.grant.expires)
                .text("owner", owner(listed))
        });
        let rows = rows.collect();
        let mut notes = vec![
            "A request is counted for the first grant that allows it: a grant that only overlaps with others is \
             not used either."
                .to_owned(),
        ];
        let serving = self
            .seen
            .sidecars
            .values()
            .filter(|one| !one.serves.is_empty());
        let changed = serving.filter_map(|one| one.loaded).fold(0.0, f64::max);
        if of_seconds(changed) > time(self.window.start()) {
            notes.push(format!(
                "Policy was last loaded on {} (a restart loads it, too): a grant that came with it is younger than the window.",
                text::shown_time(seconds(of_seconds(changed)))
            ));
        }
        (rows, notes)
    }

    fn dormant_principals(&self) -> Found {
        let permits: Vec<_> = self
            .listed
            .iter()
            .filter(|listed| listed.permits && self.in_force(listed))
            .collect();
        let mut who: BTreeSet<String> = BTreeSet::new();
        who.extend(self.registry.iter().map(|one| one.id.as_str().to_owned()));
        who.extend(permits.iter().filter_map(|listed| match &listed.principal {
            Named::Workload(id) => Some(id.to_string()),
            _ => None,
        }));
        let mut asked: HashMap<(&str, &str), f64> = HashMap::new();
        for counter in &self.seen.decisions {
            let key = (counter.label("principal"), counter.label("decision"));
            *asked.entry(key).or_default() += counter.total();
        }
        let asked = |id: &str, decision| asked.get(&(id, decision)).copied().unwrap_or(0.0);
        let covered = self.never((!self.covered.is_zero()).then_some(self.covered));
        let mut rows = Vec::new();
        for id in &who {
            let denied = asked(id, "denied");
            if asked(id, "allowed") > 0.0 {
                continue;
            }
            let registered = SpiffeId::parse(id).ok();
            let registered = registered.and_then(|id| self.registry.get(&id));
            let roles = registered.map_or(&[][..], |one| &one.roles);
            let mut grants: Vec<&Listed> = permits.clone();
            grants.retain(|listed| match &listed.principal {
                Named::Workload(named) => **named == **id,
                Named::Role(role) => roles.iter().any(|one| **one == **role),
                Named::Anyone | Named::TrustDomain(_) => false,
            });
            let runs = self.seen.sidecars.values().any(|one| one.ids.contains(id));
            // Who only answers needs no grant.
            if grants.is_empty() && (runs || denied > 0.0) {
                continue;
            }
            let seen = match (runs, denied > 0.0) {
                (_, true) => "asks, and is always denied".to_owned(),
                (true, false) => "its sidecar was seen, and asked nothing".to_owned(),
                (false, false) => covered.clone(),
            };
            let ids: BTreeSet<_> = grants.iter().map(|listed| &*listed.grant.id).collect();
            let owners: BTreeSet<_> = match registered {
                Some(workload) => [workload.owner.to_string()].into(),
                None => grants.iter().map(|listed| owner(listed)).collect(),
            };
            rows.push(
                Row::of(!self.covered.is_zero())
                    .text("principal", id)
                    .text("seen", seen)
                    .count("denied", denied)
                    .text("grants", joined(&ids))
                    .text(
                        "registered",
                        if registered.is_some() { "yes" } else { "no" },
                    )
                    .text("owner", joined(&owners)),
            );
        }
        (rows, Vec::new())
    }

    fn unregistered_principals(&self) -> Found {
        let mut who: BTreeMap<&str, (f64, f64, BTreeSet<&str>)> = BTreeMap::new();
        for counter in &self.seen.decisions {
            let principal = counter.label("principal");
            let registered =
                SpiffeId::parse(principal).is_ok_and(|id| self.registry.get(&id).is_some());
            if registered || principal == OTHER || counter.total() <= 0.0 {
                continue;
            }
            let (allowed, denied, grants) = who.entry(principal).or_default();
            match counter.label("decision") {
                "allowed" => {
                    *allowed += counter.total();
                    grants.insert(counter.label("grant"));
                }
                _ => *denied += counter.total(),
            }
        }
        let rows = who
            .into_iter()
            .map(|(principal, (allowed, denied, grants))| {
                let owners: BTreeSet<_> = grants
                    .iter()
                    .map(|grant| self.owner_of_grant(grant))
                    .collect();
                Row::of(true)
                    .text("principal", principal)
                    .count("allowed", allowed)
                    .count("denied", denied)
                    .text("grants", joined(&grants))
                    .text(
                        "owner",
                        if owners.is_empty() {
                            NOBODY.into()
                        } else {
                            joined(&owners)
                        },
                    )
            });
        let rows = rows.collect();
        let mut notes = Vec::new();
        if self.registry.is_empty() {
            notes.push("Nobody is registered: the directory has no workloads.yaml.".to_owned());
        }
        (rows, notes)
    }

    fn grants_due(&self) -> Found {
        let mut rows = Vec::new();
        for listed in &self.listed {
            let grant = &listed.grant;
            let mut due = |what: &str, when: SystemTime| {
                rows.push(
                    Row::of(true)
                        .text("grant", &*grant.id)
                        .text("what", what)
                        .end("when", Some(when))
                        .count("used", self.decided.get(&*grant.id).copied().unwrap_or(0.0))
                        .text("ticket", grant.ticket.as_deref().unwrap_or(""))
                        .text("owner", owner(listed)),
                );
            };
            match grant.expires {
                Some(end) if end <= self.now => due("has ended", end),
                Some(end) if end <= self.now + SOON => due("ends soon", end),
                _ => {}
            }
            let review = grant.review.filter(|_| self.in_force(listed));
            if let Some(review) = review.filter(|review| *review <= self.now) {
                due("review overdue", review);
            }
        }
        (rows, Vec::new())
    }

    fn denials(&self) -> Found {
        let denied = self
            .seen
            .decisions
            .iter()
            .filter(|one| one.label("decision") == "denied");
        let keys = ["principal", "service", "reason", "grant"];
        let rows = grouped(denied, keys).into_iter().map(|(key, count)| {
            let [principal, service, reason, grant] = key;
            Row::of(true)
                .text("principal", principal)
                .text("service", service)
                .text("reason", reason)
                .text("grant", grant)
                .count("denied", count)
                .text("owner", self.owner_for(principal, grant))
        });
        (rows.collect(), Vec::new())
    }

    fn dry_run(&self) -> Found {
        let mut rows = Vec::new();
        let mut decided = BTreeSet::new();
        let keys = ["decision", "grant", "principal", "service"];
        for (key, count) in grouped(&self.seen.rehearsed, keys) {
            let [would, grant, principal, service] = key;
            decided.insert(grant);
            let owner = match self.owner_of_grant(grant) {
                owner if owner == NOBODY => self.owner_of(principal),
                owner => owner,
            };
            rows.push(
                Row::of(true)
                    .text("would", would.trim_start_matches("would_"))
                    .text("grant", grant)
                    .text("principal", principal)
                    .text("service", service)
                    .count("requests", count)
                    .text("owner", owner),
            );
        }
        let dry = self
            .listed
            .iter()
            .filter(|listed| listed.dry_run && self.in_force(listed));
        for listed in dry.filter(|listed| !decided.contains(&*listed.grant.id)) {
            rows.push(
                Row::of(self.covered_at(listed.service.as_deref()).is_some())
                    .text("would", "change nothing")
                    .text("grant", &*listed.grant.id)
                    .text("principal", listed.principal.to_string())
                    .text("service", listed.service.as_deref().unwrap_or("any"))
                    .count("requests", 0.0)
                    .text("owner", owner(listed)),
            );
        }
        (rows, Vec::new())
    }

    fn standing_secrets(&self) -> Found {
        let keys = ["kind", "direction", "service", "principal", "grant"];
        let rows = grouped(&self.seen.secrets, keys)
            .into_iter()
            .map(|(key, count)| {
                let [kind, direction, service, principal, grant] = key;
                Row::of(true)
                    .text("kind", kind)
                    .text("direction", direction)
                    .text("service", service)
                    .text("principal", principal)
                    .text("grant", grant)
                    .count("seen", count)
                    .text("owner", self.owner_for(principal, grant))
            });
        (rows.collect(), Vec::new())
    }

    fn secretless(&self) -> Found {
        let mut notes = Vec::new();
        if self.seen.with_secrets.is_empty() && !self.seen.requests.is_empty() {
            notes.push(
                "No standing secret was counted at all. A sidecar that is too old to look for them looks the same."
                    .to_owned(),
            );
        }
        let keys = ["direction", "service"];
        let with: BTreeMap<_, _> = grouped(&self.seen.with_secrets, keys).into_iter().collect();
        let rows = grouped(self.examined(), keys)
            .into_iter()
            .map(|(key, requests)| {
                let with = with.get(&key).copied().unwrap_or(0.0);
                let [direction, service] = key;
                Row::of(false)
                    .text("service", service)
                    .text("direction", direction)
                    .count("requests", requests)
                    .count("with_secret", with)
                    .with("score", Value::Share(score(requests, with)))
            });
        (rows.collect(), notes)
    }

    /// The requests that came far enough to be searched for secrets.
    fn examined(&self) -> impl Iterator<Item = &'a Counter> {
        let before = REFUSED_BEFORE.map(Outcome::label);
        let requests = self.seen.requests.iter();
        requests.filter(move |one| !before.contains(&one.label("outcome")))
    }

    fn rotation(&self) -> Found {
        let now = self
            .now
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        let mut rows = Vec::new();
        let (mut rotations, mut first) = (0.0, None::<f64>);
        for (target, sidecar) in &self.seen.sidecars {
            let of = |family| sidecar.counted.get(family).copied().unwrap_or(0.0);
            rotations += of(seen::ROTATIONS);
            let end = sidecar.not_after.filter(|_| sidecar.state == State::Up);
            let lived = end.zip(sidecar.updated);
            let what = match (end, lived) {
                (Some(end), _) if end <= 0.0 => Some("no identity"),
                (Some(end), _) if end <= now => Some("has ended"),
                (_, Some((end, updated))) if end - now < LAST_FIFTH * (end - updated) => {
                    Some("not renewed")
                }
                _ => None,
            };
            if let Some(end) = end.filter(|end| *end > now) {
                first = Some(first.map_or(end, |first| first.min(end)));
            }
            let troubled = of(seen::SOURCE_FAILURES) + of(seen::WITHDRAWALS) > 0.0;
            if what.is_some() || troubled {
                rows.push(
                    Row::of(what.is_some())
                        .text("sidecar", target.name())
                        .text("identity", joined(&sidecar.ids))
                        .text("certificate", what.unwrap_or("in force"))
                        .time("ends", end.filter(|end| *end > 0.0).map(of_seconds))
                        .count("rotations", of(seen::ROTATIONS))
                        .count("source_failures", of(seen::SOURCE_FAILURES))
                        .count("withdrawals", of(seen::WITHDRAWALS))
                        .text("owner", self.owner_of_any(&sidecar.ids)),
                );
            }
        }
        let mut note = format!("Certificates were renewed {} times.", whole(rotations));
        if let Some(first) = first {
            let ends = text::shown_time(seconds(of_seconds(first)));
            note += &format!(" Of those in force, the first ends on {ends}.");
        }
        (rows, vec![note])
    }

    fn audit(&self) -> Found {
        let mut rows = Vec::new();
        for (target, sidecar) in &self.seen.sidecars {
            let of = |family| sidecar.counted.get(family).copied().unwrap_or(0.0);
            let (lost, refused) = (of(seen::AUDIT_LOST), of(seen::AUDIT_REFUSED));
            let silent = sidecar.audit == Some(false);
            if silent || lost + refused > 0.0 {
                rows.push(
                    Row::of(true)
                        .text("sidecar", target.name())
                        .text(
                            "now",
                            if silent {
                                "cannot be written"
                            } else {
                                "is written"
                            },
                        )
                        .count("lost", lost)
                        .count("refused", refused)
                        .text("owner", self.owner_of_any(&sidecar.ids)),
                );
            }
        }
        (rows, Vec::new())
    }

    fn grants_in_use(&self) -> Found {
        let allowed = self
            .seen
            .decisions
            .iter()
            .filter(|one| one.label("decision") == "allowed");
        let mut grants: BTreeMap<&str, (f64, BTreeSet<&str>, Option<usize>)> = BTreeMap::new();
        for counter in allowed.filter(|one| one.total() > 0.0 && !one.label("grant").is_empty()) {
            let (count, principals, last) = grants.entry(counter.label("grant")).or_default();
            *count += counter.total();
            principals.insert(counter.label("principal"));
            *last = (*last).max(counter.grown.iter().rposition(|grown| *grown > 0.0));
        }
        let mut grants: Vec<_> = grants.into_iter().collect();
        grants.sort_by(|(_, (one, ..)), (_, (other, ..))| other.total_cmp(one));
        let rows = grants
            .into_iter()
            .map(|(grant, (count, principals, last))| {
                Row::of(false)
                    .text("grant", grant)
                    .count("allowed", count)
                    .count("principals", count_of(principals.len()))
                    .time("last_used", last.map(|step| time(self.window.end_of(step))))
                    .text("owner", self.owner_of_grant(grant))
            });
        let rows: Vec<_> = rows.collect();
        let mut notes = Vec::new();
        if !rows.is_empty() {
            let step = Duration::from_millis(u64::try_from(self.window.step).unwrap_or(0));
            notes.push(format!("`last used` is right to {}.", lasting(step)));
        }
        (rows, notes)
    }

    fn courses(&self) -> Courses {
        let steps = self.window.steps;
        let of = |decision: &str| {
            let decided = self.seen.decisions.iter();
            sum(
                steps,
                decided.filter(|one| one.label("decision") == decision),
            )
        };
        let mut secretless = BTreeMap::new();
        let keys = ["direction", "service"];
        for ([direction, service], _) in grouped(self.examined(), keys) {
            let at = |one: &&Counter| {
                one.label("direction") == direction && one.label("service") == service
            };
            let requests = sum(steps, self.examined().filter(at));
            let with = sum(steps, self.seen.with_secrets.iter().filter(at));
            secretless.insert(format!("{service} ({direction})"), (requests, with));
        }
        let (grants, _) = self.grants_in_use();
        let grants = grants.into_iter().filter_map(|row| match &row.cells[..2] {
            [(_, Value::Text(grant)), (_, Value::Count(count))] => {
                Some((grant.clone(), count_f64(*count)))
            }
            _ => None,
        });
        Courses {
            allowed: of("allowed"),
            denied: of("denied"),
            rotations: sum(steps, &self.seen.rotations),
            secretless,
            grants: grants.collect(),
        }
    }

    /// Whether the grant could have decided anything at the end of the window.
    fn in_force(&self, listed: &Listed) -> bool {
        listed.grant.expires.is_none_or(|end| end > self.now)
    }

    /// For how long sidecars were seen that let peers in to `service`, or any; none if there was none.
    fn covered_at(&self, service: Option<&str>) -> Option<Duration> {
        let sidecars = self.seen.sidecars.values();
        let serving = sidecars.filter(|one| match service {
            Some(service) => one.serves.contains(service),
            None => !one.serves.is_empty(),
        });
        let covered = union(self.window, serving);
        (!covered.is_zero()).then_some(covered)
    }

    /// In words: it did not happen, as far as is known.
    fn never(&self, covered: Option<Duration>) -> String {
        match covered {
            None => "unknown: no sidecar was seen".to_owned(),
            Some(covered) if self.share(covered) >= GOOD_COVERAGE => {
                format!("never in {}", lasting(self.window.length()))
            }
            Some(covered) => format!("not seen in the {} that are covered", hours(covered)),
        }
    }

    fn share(&self, covered: Duration) -> f64 {
        (covered.as_secs_f64() / self.window.length().as_secs_f64().max(0.001)).min(1.0)
    }

    fn owner_of(&self, principal: &str) -> String {
        let id = SpiffeId::parse(principal).ok();
        let workload = id.and_then(|id| self.registry.get(&id));
        workload.map_or(NOBODY.into(), |workload| workload.owner.to_string())
    }

    /// Who registered the principal, or else let it in.
    fn owner_for(&self, principal: &str, grant: &str) -> String {
        match self.owner_of(principal) {
            owner if owner == NOBODY => self.owner_of_grant(grant),
            owner => owner,
        }
    }

    fn owner_of_any(&self, ids: &BTreeSet<String>) -> String {
        let owners: BTreeSet<_> = ids.iter().map(|id| self.owner_of(id)).collect();
        match owners.is_empty() {
            true => NOBODY.into(),
            false => joined(&owners),
        }
    }

    fn owner_of_grant(&self, id: &str) -> String {
        let listed = self.listed.iter().find(|listed| *listed.grant.id == *id);
        listed.map_or(NOBODY.into(), owner)
    }
}

/// Principals beyond those that a sidecar names.
const OTHER: &str = "other";

/// A certificate is renewed at half of its life; with less than this left, it was not.
const LAST_FIFTH: f64 = 0.2;

/// How requests end before anybody searches them.
const REFUSED_BEFORE: [Outcome; 7] = [
    Outcome::Denied,
    Outcome::BadRequest,
    Outcome::PeerExpired,
    Outcome::TrustWithdrawn,
    Outcome::OwnIdentityExpired,
    Outcome::IdentityUnavailable,
    Outcome::AuditUnavailable,
];

fn owner(listed: &Listed) -> String {
    listed.grant.owner.as_deref().unwrap_or(NOBODY).to_owned()
}

/// The counters' totals by the labels `keys`, without those that counted nothing; most first.
fn grouped<'a, const N: usize>(
    counters: impl IntoIterator<Item = &'a Counter>,
    keys: [&str; N],
) -> Vec<([&'a str; N], f64)> {
    let mut groups: BTreeMap<[&str; N], f64> = BTreeMap::new();
    for counter in counters {
        *groups
            .entry(keys.map(|key| counter.label(key)))
            .or_default() += counter.total();
    }
    let mut groups: Vec<_> = groups
        .into_iter()
        .filter(|(_, count)| *count > 0.0)
        .collect();
    groups.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    groups
}

fn sum<'a>(steps: usize, counters: impl IntoIterator<Item = &'a Counter>) -> Vec<f64> {
    let mut sums = vec![0.0; steps];
    for counter in counters {
        for (sum, grown) in sums.iter_mut().zip(&counter.grown) {
            *sum += grown;
        }
    }
    sums
}

/// For how long at least one of them has samples, and none was asked in vain.
fn union<'a>(window: Window, sidecars: impl IntoIterator<Item = &'a Sidecar>) -> Duration {
    let mut best = vec![0.0_f64; window.steps];
    let mut open = vec![1.0_f64; window.steps];
    for sidecar in sidecars {
        for (best, covered) in best.iter_mut().zip(&sidecar.covered) {
            *best = best.max(*covered);
        }
        for (open, blind) in open.iter_mut().zip(&sidecar.blind) {
            *open = open.min(1.0 - blind);
        }
    }
    let covered = best.iter().zip(&open).map(|(best, open)| best.min(*open));
    let step = Duration::from_millis(u64::try_from(window.step).unwrap_or(0));
    step.mul_f64(covered.sum())
}

/// The share of requests without a standing secret, from 0 to 1.
fn score(requests: f64, with: f64) -> f64 {
    // The two are counted at different moments of a request.
    match requests > 0.0 {
        true => (1.0 - with / requests).max(0.0),
        false => 1.0,
    }
}

fn joined(words: &BTreeSet<impl AsRef<str>>) -> String {
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    words.join(", ")
}

fn several(count: usize, what: &str) -> String {
    match (count, what.strip_suffix('y')) {
        (1, _) => format!("1 {what}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {what}s"),
    }
}

/// A duration for people: its two largest units.
fn lasting(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let units = [("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)];
    let first = units
        .iter()
        .position(|(_, unit)| seconds >= *unit)
        .unwrap_or(3);
    let (name, unit) = units[first];
    let mut text = format!("{} {name}", seconds / unit);
    if let Some((name, smaller)) = units.get(first + 1) {
        let rest = seconds % unit / smaller;
        if rest > 0 {
            text += &format!(" {rest} {name}");
        }
    }
    text
}

/// The same in hours, if it is that long.
fn hours(duration: Duration) -> String {
    match duration.as_secs() / 3600 {
        0 => lasting(duration),
        hours => format!("{hours} h"),
    }
}

fn time(milliseconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(milliseconds).unwrap_or(0))
}

fn seconds(time: SystemTime) -> i64 {
    history::milliseconds(time) / 1000
}

/// A time that a gauge tells.
fn of_seconds(seconds: f64) -> SystemTime {
    UNIX_EPOCH + Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast of an f64 saturates, and counts are not negative"
)]
fn whole(count: f64) -> u64 {
    count.round() as u64
}

fn count_of(count: usize) -> f64 {
    count_f64(count as u64)
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn count_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests;
