//! Would this be allowed, and by which grant? If not: which grant came closest, and what did it lack?

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use cedar_policy::Effect;

use super::asked::{Asked, Inquiry, What};
use super::cedar::Verb;
use super::conditions::{Condition, Input, Probe, Sense, Settled};
use super::listing::Named;
use super::scope;
use super::slice::{Question, Rule};
use super::{Denial, DenialReason, Grant, Permit};

/// An answer with its reasons.
#[derive(Debug)]
pub struct Explanation {
    /// What the gate says.
    pub answer: Result<Permit, Denial>,
    /// Where no grant allows it: those that come near, the closest first.
    pub near: Vec<Near>,
    /// Where a `forbid` applies: its conditions, as written.
    pub conditions: Vec<String>,
}

/// A grant that does not allow what is asked.
#[derive(Debug)]
pub struct Near {
    /// The grant.
    pub grant: Arc<Grant>,
    /// What it lacks, in the order in which it is written; never empty.
    pub lacks: Vec<Lack>,
    /// How little it says about whom it is for: what is for everybody is seldom what was meant.
    breadth: u32,
}

/// Why a grant does not allow what is asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Lack {
    /// It is for somebody else.
    Principal(Named),
    /// It is for another service.
    Service(Arc<str>),
    /// It is for other actions: these.
    Action(String),
    /// It has ended.
    Ended(SystemTime),
    /// It is a dry run.
    DryRun,
    /// One of its conditions does not hold.
    Condition {
        /// The condition, as written, with its `when` or `unless`.
        condition: String,
        /// What it would have to be.
        must_be: bool,
        /// What it reads: each part of the question with its value.
        given: Vec<(&'static str, String)>,
    },
    /// One of its conditions cannot be evaluated.
    Failed(String),
}

impl Lack {
    /// The word in the output of `doorward explain --json`.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Principal(_) => "principal",
            Self::Service(_) => "service",
            Self::Action(_) => "action",
            Self::Ended(_) => "ended",
            Self::DryRun => "dry_run",
            Self::Condition { .. } => "condition",
            Self::Failed(_) => "failed",
        }
    }

    /// How far it keeps a grant from allowing: the request could have been another, the grant is somebody
    /// else's.
    const fn distance(&self) -> u32 {
        match self {
            Self::Condition { .. } | Self::Failed(_) | Self::DryRun => 2,
            Self::Action(_) | Self::Ended(_) => 3,
            Self::Principal(Named::Role(_)) => 5,
            Self::Principal(_) | Self::Service(_) => 6,
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal(Named::Role(role)) => {
                write!(
                    f,
                    "it is for role {role}, which this workload does not have"
                )
            }
            Self::Principal(whom) => write!(f, "it is for {whom}"),
            Self::Service(service) => write!(f, "it is for the service {service}"),
            Self::Action(actions) => write!(f, "it allows {actions} only"),
            Self::Ended(end) => match jiff::Timestamp::try_from(*end) {
                Ok(end) => write!(f, "it ended at {end}"),
                Err(_) => f.write_str("it has ended"),
            },
            Self::DryRun => f.write_str("it is a dry run"),
            Self::Condition {
                condition,
                must_be,
                given,
            } => {
                write!(f, "`{condition}` is {}", !must_be)?;
                for (number, (name, value)) in given.iter().enumerate() {
                    let word = if number == 0 { " for" } else { "," };
                    match *name {
                        "method" | "host" | "path" => write!(f, "{word} {name} {value:?}")?,
                        _ => write!(f, "{word} {name} {value}")?,
                    }
                }
                Ok(())
            }
            Self::Failed(condition) => write!(f, "`{condition}` cannot be evaluated"),
        }
    }
}

impl Explanation {
    /// Asks, and looks for reasons.
    #[must_use]
    pub fn of(inquiry: &Inquiry, asked: &Asked) -> Self {
        let answer = inquiry.decide(asked);
        let reason = answer.as_ref().err().map(Denial::reason);
        let near = match reason {
            Some(DenialReason::NoGrant) => near(inquiry, asked),
            _ => Vec::new(),
        };
        let forbid = match (&answer, reason) {
            (Err(denial), Some(DenialReason::Forbidden)) => denial.grant(),
            _ => None,
        };
        let rules = inquiry.engine().rules();
        let rule = rules
            .into_iter()
            .find(|rule| forbid.is_some_and(|forbid| Arc::ptr_eq(forbid, &rule.grant)));
        let conditions = rule.map(|rule| Condition::all(&rule.policy));
        let conditions = conditions.into_iter().flatten();
        Self {
            answer,
            near,
            conditions: conditions.map(|condition| condition.to_string()).collect(),
        }
    }
}

/// The grants to this principal at this service, the closest first; if there are none, the closest of
/// those to others here, and of those to this principal elsewhere.
fn near(inquiry: &Inquiry, asked: &Asked) -> Vec<Near> {
    let engine = inquiry.engine();
    let permits = engine
        .rules()
        .into_iter()
        .filter(|rule| rule.policy.effect() == Effect::Permit);
    let permits: Vec<_> = permits.cloned().collect();
    let elsewhere = |near: &Near| {
        let is = |lack: &&Lack| matches!(lack, Lack::Principal(_) | Lack::Service(_));
        near.lacks.iter().filter(is).count()
    };
    let question = Question {
        subject: &asked.subject(),
        place: &asked.place(),
        act: &asked.act(),
        now: asked.at,
    };
    let posed = engine.pose(&question, &permits).ok();
    let probe = posed.map(|(request, entities)| Probe::new(request, entities, [].into()));
    let all = permits.iter().map(|rule| Near {
        grant: rule.grant.clone(),
        breadth: match Named::of(&rule.policy) {
            Named::Workload(_) | Named::Role(_) => 0,
            Named::TrustDomain(_) | Named::Anyone => 3,
        },
        lacks: lacks(rule, asked, inquiry, probe.as_ref()),
    });
    let mut here = Vec::new();
    let mut others = Vec::new();
    for near in all.filter(|near| !near.lacks.is_empty()) {
        match elsewhere(&near) {
            0 => here.push(near),
            1 => others.push(near),
            _ => {}
        }
    }
    // Stable: of those that are equally close, the first in the files comes first.
    let distance = |near: &Near| {
        let lacks: u32 = near.lacks.iter().map(Lack::distance).sum();
        lacks + near.breadth
    };
    if here.is_empty() {
        others.sort_by_key(distance);
        others.truncate(MOST_ELSEWHERE);
        return others;
    }
    here.sort_by_key(distance);
    here
}

/// Grants to others, or elsewhere, that are worth reading.
const MOST_ELSEWHERE: usize = 3;

fn lacks(rule: &Rule, asked: &Asked, inquiry: &Inquiry, probe: Option<&Probe>) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let whom = Named::of(&rule.policy);
    if !whom.names(&asked.principal, inquiry.engine().registry()) {
        lacks.push(Lack::Principal(whom));
    }
    if let Some(service) = scope::service(&rule.policy)
        && service != asked.service
    {
        lacks.push(Lack::Service(service));
    }
    if !Verb::of(&asked.act()).is_in(&rule.policy.action_constraint()) {
        lacks.push(Lack::Action(scope::actions(&rule.policy)));
    }
    lacks.extend(
        rule.grant
            .expires
            .filter(|end| *end <= asked.at)
            .map(Lack::Ended),
    );
    if rule.dry_run {
        lacks.push(Lack::DryRun);
    }
    let Some(probe) = probe else { return lacks };
    for condition in Condition::all(&rule.policy) {
        match probe.settle(&condition) {
            Settled::Holds => {}
            Settled::Fails => {
                lacks.push(Lack::Condition {
                    must_be: condition.sense == Sense::When,
                    given: given(&condition, asked, inquiry),
                    condition: condition.to_string(),
                });
            }
            // It was written for what it lacks already: for another action, or behind what guards it.
            Settled::Failed | Settled::Open(_) if !lacks.is_empty() => {}
            Settled::Failed | Settled::Open(_) => lacks.push(Lack::Failed(condition.to_string())),
        }
    }
    lacks
}

/// What `condition` reads of the question, each part with its value.
fn given(condition: &Condition, asked: &Asked, inquiry: &Inquiry) -> Vec<(&'static str, String)> {
    let (registry, environment) = (inquiry.engine().registry(), inquiry.environment());
    if condition.asks_for_http() {
        return vec![("protocol", "TCP".to_owned())];
    }
    let time = |time: SystemTime| {
        jiff::Timestamp::try_from(time).map_or_else(|_| "?".to_owned(), |time| time.to_string())
    };
    let http = |input: Input| match (&asked.what, input) {
        (What::Connect, _) => None,
        (What::Http { method, .. }, Input::Method) => Some(("method", method.to_string())),
        (What::Http { host, .. }, Input::Host) => Some(("host", host.clone())),
        (What::Http { path, .. }, _) => Some(("path", path.clone())),
    };
    let reads = condition.reads().into_iter();
    let given = reads.filter_map(|input| match input {
        Input::Method | Input::Host | Input::Path => http(input),
        Input::Source => Some(("source", asked.source.to_string())),
        Input::Port => Some(("port", asked.port.to_string())),
        Input::Now => Some(("time", time(asked.at))),
        Input::TrustDomain => Some(("trust domain", asked.principal.trust_domain().to_string())),
        Input::Expires => Some(("certificate end", time(asked.subject().expires))),
        Input::Lifetime => Some((
            "certificate lifetime",
            humantime::format_duration(asked.lifetime).to_string(),
        )),
        Input::Environment => Some(("environment", labels(environment))),
        Input::Principal => {
            let id = &asked.principal;
            let registered = registry.get(id).map(|workload| {
                let kind = workload.kind.label();
                let roles = workload.roles.iter().map(|role| format!(", role {role}"));
                let roles: String = roles.collect();
                format!("{id}, {kind} of {}{roles}", workload.owner)
            });
            let unknown = || format!("{id}, which is not registered");
            Some(("principal", registered.unwrap_or_else(unknown)))
        }
    });
    given.collect()
}

fn labels(environment: &BTreeMap<String, String>) -> String {
    if environment.is_empty() {
        return "without labels".to_owned();
    }
    let labels = environment
        .iter()
        .map(|(name, value)| format!("{name}={value}"));
    labels.collect::<Vec<_>>().join(" ")
}
