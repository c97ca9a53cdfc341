//! Which workloads gain or lose what, from one policy to another?
//!
//! Compared is what each class of workloads may do with each service, by each action: under which
//! conditions and until when. Whatever does not change that is no difference: the name of a grant, the file
//! it stands in, one grant in place of two. Conditions are compared as written, part by part, so that two
//! ways to write the same condition are told as a loss and a gain, and never the other way round.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::Grant;
use super::access::{Access, Class, Member, Piece, members};
use super::asked::Sought;
use super::cedar::{Engine, SERVICE, Verb};
use super::conditions::Condition;
use super::scope;
use super::slice::Rule;

/// What changes for some classes of workloads, which is the same for all of them.
#[derive(Clone, Debug)]
pub struct Difference {
    /// For whom.
    pub who: Vec<Class>,
    /// What.
    pub changes: Vec<Change>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The policy that it comes from: of the new ones, unless it is lost.
    pub grant: Arc<str>,
    /// The services; none for all of them, named or not.
    pub services: Option<Vec<String>>,
    /// The actions, as in `read, POST`.
    pub actions: String,
    /// Whether it is there in the first policy, in the second, or in both with another end or owner.
    pub side: Side,
    /// Whether it is a `forbid`.
    pub forbids: bool,
    /// Whether it is a dry run.
    pub dry_run: bool,
    /// Under which conditions, as written.
    pub conditions: Vec<String>,
    /// Until when; none: without end.
    pub until: Option<SystemTime>,
    /// Who answers for it.
    pub owner: Option<Arc<str>>,
    /// What is otherwise in both.
    pub amended: Vec<Amended>,
    /// The `forbid` that takes it away, or took it away.
    pub forbidden_by: Option<Arc<str>>,
}

/// Where a change is to be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Only in the first policy.
    First,
    /// Only in the second.
    Second,
    /// Only in the second, and it is what remains of something that is only in the first.
    Remains,
    /// In both, with another end or owner.
    Both,
}

/// What is not the same of something that is in both.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Amended {
    /// It ended then, and ends now (see [`Change::until`]).
    Until(Option<SystemTime>),
    /// Who answered for it.
    Owner(Option<Arc<str>>),
}

impl Change {
    /// The word in the output of `doorward policy diff --json`.
    #[must_use]
    pub fn effect(&self) -> &'static str {
        match (self.side, self.forbids, self.dry_run) {
            (Side::Both, ..) => "changes",
            (Side::Remains, ..) => "remains",
            (_, _, true) => "rehearses",
            (Side::First, false, _) => "loses",
            (Side::Second, false, _) => "gains",
            (Side::First, true, _) => "no_longer_forbids",
            (Side::Second, true, _) => "forbids",
        }
    }
}

/// As a line of a diff.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.side {
            Side::First => '-',
            Side::Second => '+',
            Side::Remains => '=',
            Side::Both => '~',
        };
        write!(f, "{sign} ")?;
        if self.dry_run {
            f.write_str("dry run: ")?;
        }
        if self.forbids {
            f.write_str("forbidden: ")?;
        }
        write!(f, "{} at ", self.actions)?;
        match &self.services {
            Some(services) => f.write_str(&services.join(", "))?,
            None => f.write_str("any service")?,
        }
        for condition in &self.conditions {
            write!(f, ", {condition}")?;
        }
        if !self.forbids {
            write!(f, ", {}", until(self.until))?;
        }
        write!(f, " ({}", self.grant)?;
        if let Some(owner) = &self.owner {
            write!(f, " of {owner}")?;
        }
        f.write_str(")")?;
        for amended in &self.amended {
            match amended {
                Amended::Until(before) => write!(f, "; was {}", until(*before))?,
                Amended::Owner(Some(owner)) => write!(f, "; was of {owner}")?,
                Amended::Owner(None) => f.write_str("; had no owner")?,
            }
        }
        if let Some(forbid) = &self.forbidden_by {
            let word = match self.side {
                Side::First => "now",
                Side::Second | Side::Remains | Side::Both => "no longer",
            };
            write!(f, "; {word} forbidden by {forbid}")?;
        }
        Ok(())
    }
}

fn until(end: Option<SystemTime>) -> String {
    match end.map(jiff::Timestamp::try_from) {
        Some(Ok(end)) => format!("until {end}"),
        Some(Err(_)) | None => "without end".to_owned(),
    }
}

/// Compares what `first` and `second` give to everybody, at `at`.
#[must_use]
pub fn differences(first: &Engine, second: &Engine, at: SystemTime) -> Vec<Difference> {
    let engines = [first, second];
    let services = services(&engines);
    let mut by_changes: BTreeMap<Vec<Change>, Vec<Class>> = BTreeMap::new();
    for member in members(&engines) {
        let changes = changes(engines, &member, &services, at);
        if !changes.is_empty() {
            by_changes.entry(changes).or_default().push(member.class);
        }
    }
    let mut differences: Vec<_> = by_changes
        .into_iter()
        .map(|(changes, who)| Difference { who, changes })
        .collect();
    differences.sort_by(|a, b| a.who.cmp(&b.who));
    differences
}

/// Each service that a policy names, and one that stands for all others, which comes last.
fn services(engines: &[&Engine]) -> Vec<Arc<str>> {
    let mut named: BTreeSet<Arc<str>> = BTreeSet::new();
    for rule in engines.iter().flat_map(|engine| engine.rules()) {
        named.extend(scope::service(&rule.policy));
        let literals = rule.policy.entity_literals().into_iter();
        let literals = literals.filter(|uid| *uid.type_name() == *SERVICE);
        named.extend(literals.map(|uid| uid.id().unescaped().into()));
    }
    let mut free = (0..).map(|number| format!("other-{number}"));
    let other = free
        .find(|name| !named.contains(&**name))
        .unwrap_or_default();
    named.into_iter().chain([other.into()]).collect()
}

fn names_a_service(rule: &Rule) -> bool {
    let literals = rule.policy.entity_literals();
    literals.iter().any(|uid| *uid.type_name() == *SERVICE)
}

/// What changes for `member`, in the order of the grants.
fn changes(
    engines: [&Engine; 2],
    member: &Member,
    services: &[Arc<str>],
    at: SystemTime,
) -> Vec<Change> {
    // One action at one service at a time; then what is the same for several is told once.
    let told = |service: &Arc<str>| {
        let mut told: BTreeMap<Change, BTreeSet<Verb>> = BTreeMap::new();
        let sought = Sought::anything(service.clone(), at);
        for verb in Verb::ALL {
            let [before, after] = engines.map(|engine| Held::of(engine, member, &sought, verb));
            for change in compare(&before, &after) {
                told.entry(change).or_default().insert(verb);
            }
        }
        told
    };
    let Some((other, _)) = services.split_last() else {
        return Vec::new();
    };
    let of_others = told(other);
    let mut places: BTreeMap<(Change, BTreeSet<Verb>), BTreeSet<usize>> = BTreeMap::new();
    for (place, service) in services.iter().enumerate() {
        let like_others = engines.iter().all(|engine| {
            let own = engine.candidates(&member.id, service);
            let others = engine.candidates(&member.id, other);
            let same = own
                .iter()
                .map(|rule| rule.order)
                .eq(others.iter().map(|rule| rule.order));
            same && !own.iter().any(|rule| names_a_service(rule))
        });
        let told = match like_others {
            true => of_others.clone(),
            false => told(service),
        };
        for told in told {
            places.entry(told).or_default().insert(place);
        }
    }
    let name = |place: usize| match services.get(place) {
        Some(name) if place + 1 < services.len() => name.to_string(),
        _ => "any other service".to_owned(),
    };
    let told = places.into_iter().map(|((change, verbs), places)| Change {
        services: (places.len() < services.len()).then(|| places.into_iter().map(name).collect()),
        actions: scope::words(&verbs),
        ..change
    });
    let mut changes: Vec<_> = told.collect();
    changes.sort();
    changes
}

/// What one policy says of one class of workloads, one service and one action, and nothing twice.
struct Held {
    statements: BTreeMap<Key, Statement>,
    /// The `forbid` that applies whatever is asked: then nothing else matters.
    closed: Option<Arc<str>>,
}

/// What a statement says, its end aside.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    forbids: bool,
    dry_run: bool,
    conditions: BTreeSet<String>,
}

struct Statement {
    key: Key,
    grant: Arc<Grant>,
    may_fail: bool,
}

impl Held {
    fn of(engine: &Engine, member: &Member, sought: &Sought, verb: Verb) -> Self {
        let access = Access::of(engine, member, sought, verb);
        let lifetime = access.of_certificate();
        let statement = |piece: &Piece, forbids: bool| {
            let own = piece.rest.iter().map(Condition::to_string);
            let failed = piece.failed.then(|| "when it can be evaluated".to_owned());
            let lifetime = lifetime.clone().filter(|_| !forbids);
            Statement {
                key: Key {
                    forbids,
                    dry_run: piece.rule.dry_run,
                    conditions: own.chain(failed).chain(lifetime).collect(),
                },
                grant: piece.rule.grant.clone(),
                may_fail: piece.failed || piece.rest.iter().any(Condition::may_fail),
            }
        };
        let forbids = access.forbids.iter().map(|piece| statement(piece, true));
        let permits = access.permits.iter().map(|piece| statement(piece, false));
        let all: Vec<_> = permits.chain(forbids).collect();
        let closed = all
            .iter()
            .find(|it| it.key.forbids && !it.key.dry_run && it.key.conditions.is_empty())
            .map(|it| it.grant.id.clone());
        let mut kept: Vec<Statement> = Vec::new();
        for statement in all {
            if kept.iter().any(|other| other.says(&statement)) {
                continue;
            }
            kept.retain(|other| !statement.says(other));
            kept.push(statement);
        }
        // Where nothing is permitted, there is nothing to forbid.
        if kept.iter().all(|it| it.key.forbids) {
            kept.clear();
        }
        let mut statements: BTreeMap<Key, Statement> = BTreeMap::new();
        for statement in kept {
            // What may fail is kept although another says it too; the one that ends last counts.
            let longer = |known: &Statement| ends_before(&known.grant, &statement.grant);
            if statements.get(&statement.key).is_none_or(longer) {
                statements.insert(statement.key.clone(), statement);
            }
        }
        Self { statements, closed }
    }

    fn in_force(&self) -> impl Iterator<Item = &Statement> {
        let statements = self.statements.values();
        statements.filter(|_| self.closed.is_none())
    }

    fn get(&self, key: &Key) -> Option<&Statement> {
        self.in_force().find(|statement| statement.key == *key)
    }

    /// Whether it says as much as `statement`, or more.
    fn covers(&self, statement: &Statement) -> bool {
        let mut alike = self
            .in_force()
            .filter(|own| own.key.dry_run == statement.key.dry_run);
        alike.any(|own| own.says(statement))
    }
}

impl Statement {
    /// Whether `other` adds nothing to this. What may fail always adds: its failure denies.
    fn says(&self, other: &Self) -> bool {
        self.key.forbids == other.key.forbids
            && (!self.key.dry_run || other.key.dry_run)
            && self.key.conditions.is_subset(&other.key.conditions)
            && !ends_before(&self.grant, &other.grant)
            && !other.may_fail
    }
}

fn ends_before(one: &Grant, other: &Grant) -> bool {
    match (one.expires, other.expires) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(one), Some(other)) => one < other,
    }
}

/// What is not the same, for one action at one service; [`changes`] says which.
fn compare(before: &Held, after: &Held) -> Vec<Change> {
    let change = |side, statement: &Statement, forbidden_by: &Option<Arc<str>>| Change {
        grant: statement.grant.id.clone(),
        services: None,
        actions: String::new(),
        side,
        forbids: statement.key.forbids,
        dry_run: statement.key.dry_run,
        conditions: statement.key.conditions.iter().cloned().collect(),
        until: statement.grant.expires,
        owner: statement.grant.owner.clone(),
        amended: Vec::new(),
        forbidden_by: forbidden_by.clone(),
    };
    let mut changes = Vec::new();
    for old in before.in_force() {
        let Some(new) = after.get(&old.key) else {
            // What is covered is not lost, and what covers it is told.
            if !after.covers(old) {
                changes.push(change(Side::First, old, &after.closed));
            }
            continue;
        };
        let (was, is) = (&old.grant, &new.grant);
        let end = (was.expires != is.expires).then_some(Amended::Until(was.expires));
        let owner = (was.owner != is.owner).then(|| Amended::Owner(was.owner.clone()));
        let amended: Vec<_> = end.into_iter().chain(owner).collect();
        if !amended.is_empty() {
            changes.push(Change {
                amended,
                ..change(Side::Both, new, &None)
            });
        }
    }
    for new in after
        .in_force()
        .filter(|new| before.get(&new.key).is_none())
    {
        changes.push(match before.covers(new) {
            true => change(Side::Remains, new, &None),
            false => change(Side::Second, new, &before.closed),
        });
    }
    changes
}
