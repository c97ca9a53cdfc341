//! What does policy leave of each grant, once everything that is known of a question is settled?
//!
//! And whom must one ask about, to have asked about everybody? A policy tells workloads apart by the IDs
//! that it names, by what the registry says of them, and by their trust domains. So each workload that is
//! registered or named stands for itself, and one that is neither stands for all others of its trust domain.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cedar_policy::Effect;

use super::asked::Sought;
use super::cedar::{Engine, TRUST_DOMAIN, Verb, WORKLOAD};
use super::conditions::{Condition, Input, Probe, Settled};
use super::scope;
use super::slice::{Question, Rule};
use crate::identity::{SpiffeId, TrustDomain};

/// Workloads that no policy tells apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// One workload, registered or named in a policy.
    Workload(String),
    /// All others of a trust domain that is named, or that such a workload belongs to.
    OthersOf(String),
    /// All of other trust domains.
    Others,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload(id) => f.write_str(id),
            Self::OthersOf(domain) => write!(f, "any other workload of {domain}"),
            Self::Others => f.write_str("any workload of another trust domain"),
        }
    }
}

/// A class, with a workload that stands for it.
pub(super) struct Member {
    pub(super) class: Class,
    pub(super) id: SpiffeId,
}

/// Every class of workloads that `engines` can tell apart.
pub(super) fn members(engines: &[&Engine]) -> Vec<Member> {
    let mut ids = BTreeSet::new();
    let mut domains = BTreeSet::new();
    for engine in engines {
        ids.extend(engine.registry().iter().map(|it| it.id.to_string()));
        for rule in engine.rules() {
            let scope = scope::principal(&rule.policy);
            for uid in rule.policy.entity_literals().into_iter().chain(scope) {
                let name = uid.id().unescaped();
                if *uid.type_name() == *WORKLOAD {
                    ids.insert(name.to_owned());
                } else if *uid.type_name() == *TRUST_DOMAIN && TrustDomain::parse(name).is_ok() {
                    domains.insert(name.to_owned());
                }
            }
        }
    }
    let workloads: Vec<_> = ids
        .iter()
        .filter_map(|id| SpiffeId::parse(id).ok())
        .collect();
    domains.extend(workloads.iter().map(|id| id.trust_domain().to_string()));
    let stranger = |domain: &str| {
        let mut names = (0..).map(|number| format!("spiffe://{domain}/other-{number}"));
        let free = names.find(|name| !ids.contains(name));
        SpiffeId::parse(&free.unwrap_or_default()).ok()
    };
    let unnamed = (0..).map(|number| format!("other-{number}.invalid"));
    let unnamed = unnamed.into_iter().find(|name| !domains.contains(name));
    let named = workloads.iter().map(|id| Member {
        class: Class::Workload(id.to_string()),
        id: id.clone(),
    });
    let others = domains.iter().filter_map(|domain| {
        let id = stranger(domain)?;
        let class = Class::OthersOf(domain.clone());
        Some(Member { class, id })
    });
    let rest = unnamed.and_then(|domain| {
        let id = stranger(&domain)?;
        let class = Class::Others;
        Some(Member { class, id })
    });
    named.chain(others).chain(rest).collect()
}

/// What applies to one class of workloads, for one action at one service.
pub(super) struct Access {
    pub(super) permits: Vec<Piece>,
    pub(super) forbids: Vec<Piece>,
    /// Certificates that live longer are refused.
    pub(super) max_lifetime: Option<Duration>,
    /// The registration refuses the certificate that is asked about.
    pub(super) refused: bool,
}

/// One policy, and what remains of its conditions.
#[derive(Clone)]
pub(super) struct Piece {
    pub(super) rule: Arc<Rule>,
    pub(super) rest: Vec<Condition>,
    /// What is known already makes it fail, and so denies.
    pub(super) failed: bool,
}

impl Access {
    /// What the registration asks of a certificate whose lifetime is open.
    pub(super) fn of_certificate(&self) -> Option<String> {
        let max = humantime::format_duration(self.max_lifetime?);
        Some(format!("when the certificate lives {max} at most"))
    }

    /// What applies to `member` of what `sought` asks, for `verb`. What has ended does not.
    pub(super) fn of(engine: &Engine, member: &Member, sought: &Sought, verb: Verb) -> Self {
        let registered = engine.registry().get(&member.id);
        let accepted = registered.and_then(|workload| workload.max_lifetime);
        let mut access = Self {
            permits: Vec::new(),
            forbids: Vec::new(),
            max_lifetime: accepted.filter(|_| sought.lifetime.is_none()),
            refused: accepted.is_some_and(|accepted| sought.lifetime > Some(accepted)),
        };
        let mut rules = engine.candidates(&member.id, &sought.service);
        rules.retain(|rule| {
            let ended = rule.grant.expires.is_some_and(|end| end <= sought.at);
            !ended && verb.is_in(&rule.policy.action_constraint())
        });
        if rules.is_empty() {
            return access;
        }
        let (asked, mut open) = sought.of(&member.id, verb);
        if member.class == Class::Others {
            open.insert(Input::TrustDomain);
        }
        let question = Question {
            subject: &asked.subject(),
            place: &asked.place(),
            act: &asked.act(),
            now: asked.at,
        };
        let probe = match engine.pose(&question, &rules) {
            Ok((request, entities)) => Some(Probe::new(request, entities, open)),
            Err(_) => None,
        };
        for rule in rules {
            let permits = rule.policy.effect() == Effect::Permit;
            if let Some(piece) = piece(rule, probe.as_ref()) {
                match permits {
                    true => access.permits.push(piece),
                    false => access.forbids.push(piece),
                }
            }
        }
        access
    }
}

/// What remains of `rule`; none if it cannot apply.
fn piece(rule: Arc<Rule>, probe: Option<&Probe>) -> Option<Piece> {
    let (mut rest, mut failed): (Vec<Condition>, bool) = (Vec::new(), false);
    for condition in Condition::all(&rule.policy) {
        match probe.map_or(Settled::Failed, |probe| probe.settle(&condition)) {
            Settled::Holds => {}
            // What could fail before it would deny.
            Settled::Fails if rest.iter().any(Condition::may_fail) => rest.push(condition),
            Settled::Fails => return None,
            Settled::Open(condition) => rest.push(condition),
            // What stands before it decides whether it is evaluated.
            Settled::Failed if !rest.is_empty() => rest.push(condition),
            Settled::Failed => {
                failed = true;
                break;
            }
        }
    }
    Some(Piece { rule, rest, failed })
}
