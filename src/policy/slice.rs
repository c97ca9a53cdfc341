//! What do the policies say that concern one principal at one service?
//!
//! Cedar is asked about one policy at a time, and only about those whose answer is not known: where
//! conditions only *test* the request (see [`Reads`]), what a policy said is remembered for each outcome
//! of its tests. What the policies say is then put together as Cedar does it: a `forbid` that applies
//! wins, then a policy that failed, then the first `permit` that applies.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::SystemTime;

use cedar_policy::{
    AuthorizationError, Authorizer, Context, Effect, Entities, EntityUid, Policy, PolicySet,
    Request, RestrictedExpression,
};

use super::cedar::Verb;
use super::governance::Grant;
use super::reads::{Needs, Reads};
use super::{Act, DenialReason, Place, Subject};

/// One policy.
#[derive(Debug)]
pub(super) struct Rule {
    /// Its place among all policies: the first that applies is the one that is named.
    pub(super) order: usize,
    pub(super) policy: Policy,
    pub(super) grant: Arc<Grant>,
    /// Decided and recorded, not enforced.
    pub(super) dry_run: bool,
    /// Made when it is first asked: most sidecars ask a few of the policies they hold.
    prepared: OnceLock<Prepared>,
}

/// A policy as it is asked.
#[derive(Debug)]
struct Prepared {
    alone: PolicySet,
    reads: Reads,
}

/// What one policy says of one request.
#[derive(Clone, Debug, PartialEq)]
enum Says {
    Nothing,
    Applies,
    Fails(Arc<str>),
}

impl Rule {
    pub(super) fn new(order: usize, policy: Policy, grant: Arc<Grant>, dry_run: bool) -> Self {
        Self {
            order,
            policy,
            grant,
            dry_run,
            prepared: OnceLock::new(),
        }
    }

    fn prepared(&self) -> &Prepared {
        self.prepared.get_or_init(|| {
            let mut reads = Reads::default();
            reads.add(&self.policy);
            Prepared {
                alone: PolicySet::from_policies([self.policy.clone()])
                    .expect("one policy that is no template makes a set"),
                reads,
            }
        })
    }

    fn ask(&self, request: &Request, entities: &Entities) -> Says {
        let response = AUTHORIZER.is_authorized(request, &self.prepared().alone, entities);
        let diagnostics = response.diagnostics();
        // Cedar skips a policy that fails: a failing `forbid` would fail open.
        if let Some(AuthorizationError::PolicyEvaluationError(error)) = diagnostics.errors().next()
        {
            return Says::Fails(error.inner().to_string().into());
        }
        match diagnostics.reason().next() {
            Some(_) => Says::Applies,
            None => Says::Nothing,
        }
    }
}

static AUTHORIZER: LazyLock<Authorizer> = LazyLock::new(Authorizer::new);

/// The policies that concern one principal at one service, for as long as none of them ends.
#[derive(Debug)]
pub(super) struct Slice {
    principal: EntityUid,
    resource: EntityUid,
    environment: EntityUid,
    entities: Entities,
    rules: Vec<Arc<Rule>>,
    parts: [OnceLock<Part>; Verb::ALL.len()],
    clock: OnceLock<bool>,
    since: SystemTime,
    until: Option<SystemTime>,
}

/// What of a slice concerns one action.
#[derive(Debug)]
pub(super) struct Part {
    rules: Vec<Arc<Rule>>,
    /// Some of them are in dry run.
    rehearses: bool,
    /// What all of them read together.
    pub(super) reads: Reads,
}

/// What is decided, and what would be if the policies in dry run were enforced, where there are any.
#[derive(Debug)]
pub(super) struct Decision {
    pub(super) enforced: Verdict,
    pub(super) rehearsed: Option<Verdict>,
}

/// The grant that allows it, or why none does.
pub(super) type Verdict = Result<Arc<Grant>, Refusal>;

/// Why it is not allowed.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub(super) reason: DenialReason,
    pub(super) grant: Option<Arc<Grant>>,
    pub(super) detail: Option<Arc<str>>,
}

/// What policies said on one connection: for each, by the outcome of its tests.
#[derive(Debug, Default)]
pub(super) struct Memory {
    said: HashMap<Box<[u8]>, Says>,
    /// Kept to spare the allocations.
    key: Vec<u8>,
    now: Vec<Option<Says>>,
}

/// Sayings remembered for one connection; then it begins anew.
const MOST_SAID: usize = 256;

impl Slice {
    /// What the policies `rules`, in their order, say of `principal` at `resource`. Grants that have ended
    /// at `now` are left out.
    pub(super) fn new(
        mut rules: Vec<Arc<Rule>>,
        principal: EntityUid,
        resource: EntityUid,
        environment: EntityUid,
        entities: impl FnOnce(&[Arc<Rule>]) -> Entities,
        now: SystemTime,
    ) -> Self {
        let (mut since, mut until) = (SystemTime::UNIX_EPOCH, None);
        rules.retain(|rule| match rule.grant.expires {
            Some(end) if end <= now => {
                since = since.max(end);
                false
            }
            Some(end) => {
                until = Some(until.map_or(end, |until: SystemTime| until.min(end)));
                true
            }
            None => true,
        });
        Self {
            principal,
            resource,
            environment,
            entities: entities(&rules),
            parts: Default::default(),
            clock: OnceLock::new(),
            rules,
            since,
            until,
        }
    }

    /// Whether the same policies are in force at `now` as when it was cut.
    pub(super) fn holds_at(&self, now: SystemTime) -> bool {
        self.since <= now && self.until.is_none_or(|until| now < until)
    }

    /// When the first of its grants ends.
    pub(super) fn until(&self) -> Option<SystemTime> {
        self.until
    }

    /// Whether the clock alone may change an answer.
    pub(super) fn reads_the_clock(&self) -> bool {
        *self.clock.get_or_init(|| {
            let mut rules = self.rules.iter();
            rules.any(|rule| !rule.prepared().reads.may_be_remembered())
        })
    }

    pub(super) fn part(&self, verb: Verb) -> &Part {
        self.parts[verb as usize].get_or_init(|| {
            let rules = self.rules.iter();
            let rules: Vec<_> = rules
                .filter(|rule| verb.is_in(&rule.policy.action_constraint()))
                .cloned()
                .collect();
            let mut reads = Reads::default();
            for rule in &rules {
                reads.join(&rule.prepared().reads);
            }
            Part {
                rehearses: rules.iter().any(|rule| rule.dry_run),
                rules,
                reads,
            }
        })
    }

    /// Decides, asking Cedar for what is not in `memory`, which belongs to one connection.
    pub(super) fn decide(&self, question: &Question<'_>, memory: &mut Memory) -> Decision {
        let verb = Verb::of(question.act);
        let part = self.part(verb);
        let Memory { said, key, now } = memory;
        now.clear();
        let mut needs = Needs::default();
        for (index, rule) in part.rules.iter().enumerate() {
            let reads = &rule.prepared().reads;
            let known = question
                .key(verb, index, reads, key)
                .and_then(|key| said.get(key));
            if known.is_none() {
                needs.join(reads.needs());
            }
            now.push(known.cloned());
        }
        if now.iter().any(Option::is_none) {
            let request = match self.request(verb, question, needs) {
                Ok(request) => request,
                Err(error) => return Decision::failed(&*error),
            };
            for (index, rule) in part.rules.iter().enumerate() {
                if now[index].is_some() {
                    continue;
                }
                let says = rule.ask(&request, &self.entities);
                if let Some(key) = question.key(verb, index, &rule.prepared().reads, key) {
                    if said.len() >= MOST_SAID {
                        said.clear();
                    }
                    said.insert(key.into(), says.clone());
                }
                now[index] = Some(says);
            }
        }
        let says = || part.rules.iter().zip(now.iter().flatten());
        Decision {
            enforced: verdict(says().filter(|(rule, _)| !rule.dry_run)),
            rehearsed: part.rehearses.then(|| verdict(says())),
        }
    }

    fn request(
        &self,
        verb: Verb,
        question: &Question<'_>,
        needs: Needs,
    ) -> Result<Request, Box<dyn std::error::Error>> {
        Ok(Request::new(
            self.principal.clone(),
            verb.uid().clone(),
            self.resource.clone(),
            question.context(needs, &self.environment)?,
            None,
        )?)
    }
}

/// What follows from what each policy says, in their order.
fn verdict<'a>(says: impl Iterator<Item = (&'a Arc<Rule>, &'a Says)>) -> Verdict {
    let (mut granted, mut failed) = (None, None);
    for (rule, says) in says {
        match (says, rule.policy.effect()) {
            (Says::Applies, Effect::Forbid) => {
                return Err(Refusal {
                    reason: DenialReason::Forbidden,
                    grant: Some(rule.grant.clone()),
                    detail: None,
                });
            }
            (Says::Applies, Effect::Permit) => granted = granted.or(Some(rule)),
            (Says::Fails(why), _) => failed = failed.or(Some((rule, why))),
            (Says::Nothing, _) => {}
        }
    }
    match (failed, granted) {
        (Some((rule, why)), _) => Err(Refusal {
            reason: DenialReason::Error,
            grant: Some(rule.grant.clone()),
            detail: Some(why.clone()),
        }),
        (None, Some(rule)) => Ok(rule.grant.clone()),
        (None, None) => Err(Refusal {
            reason: DenialReason::NoGrant,
            grant: None,
            detail: None,
        }),
    }
}

impl Decision {
    fn failed(error: &dyn std::error::Error) -> Self {
        Self {
            enforced: Err(Refusal {
                reason: DenialReason::Error,
                grant: None,
                detail: Some(error.to_string().into()),
            }),
            rehearsed: None,
        }
    }
}

/// Everything that an answer can depend on, the policies aside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    pub(super) subject: &'a Subject,
    pub(super) place: &'a Place,
    pub(super) act: &'a Act<'a>,
    pub(super) now: SystemTime,
}

impl Question<'_> {
    /// Writes into `key` what the policy at `index` can see of this; none where that has no end.
    fn key<'k>(
        &self,
        verb: Verb,
        index: usize,
        reads: &Reads,
        key: &'k mut Vec<u8>,
    ) -> Option<&'k [u8]> {
        if !reads.only_tests() {
            return None;
        }
        key.clear();
        key.push(verb as u8);
        key.extend_from_slice(&index.to_le_bytes());
        self.seen(verb, reads, key);
        Some(key)
    }

    /// Appends to `key` all that a policy that reads `reads` can see of the request.
    pub(super) fn seen(&self, verb: Verb, reads: &Reads, key: &mut Vec<u8>) {
        if let Act::Http { method, host, path } = self.act {
            let method = (verb == Verb::Other).then(|| method.as_str());
            reads.key(key, method, host, path);
        }
    }

    /// The Cedar context, without what is not asked for: building it costs as much as deciding.
    pub(super) fn context(
        &self,
        needs: Needs,
        environment: &EntityUid,
    ) -> Result<Context, Box<dyn std::error::Error>> {
        let all = needs.everything;
        let mut pairs = Vec::new();
        let mut add = |name: &str, value| pairs.push((name.to_owned(), value));
        if (all || needs.http)
            && let Act::Http { method, host, path } = self.act
        {
            let fields = [
                (all || needs.method, "method", method.as_str()),
                (all || needs.host, "host", *host),
                (all || needs.path, "path", *path),
            ];
            let fields = fields.into_iter().filter(|(needed, ..)| *needed);
            let http = record(fields.map(|(_, name, value)| (name, string(value))))?;
            add("http", http);
        }
        if all || needs.source {
            let ip = RestrictedExpression::new_ip(self.place.source.to_canonical().to_string());
            add("source", record([("ip", ip)])?);
        }
        if all || needs.port {
            add(
                "port",
                RestrictedExpression::new_long(self.place.port.into()),
            );
        }
        if all || needs.clock {
            add("now", datetime(self.now)?);
        }
        if all || needs.peer {
            let lifetime = format!("{}ms", self.subject.lifetime.as_millis());
            let fields = [
                (
                    "trust_domain",
                    string(self.subject.id.trust_domain().as_str()),
                ),
                ("expires", datetime(self.subject.expires)?),
                ("lifetime", RestrictedExpression::new_duration(lifetime)),
            ];
            add("peer", record(fields)?);
        }
        if all || needs.environment {
            let entity = RestrictedExpression::new_entity_uid(environment.clone());
            add("environment", entity);
        }
        Ok(Context::from_pairs(pairs)?)
    }
}

fn record<'a>(
    fields: impl IntoIterator<Item = (&'a str, RestrictedExpression)>,
) -> Result<RestrictedExpression, Box<dyn std::error::Error>> {
    let fields = fields.into_iter();
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    Ok(RestrictedExpression::new_record(fields)?)
}

pub(super) fn string(text: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(text.to_owned())
}

fn datetime(time: SystemTime) -> Result<RestrictedExpression, jiff::Error> {
    let time = jiff::Timestamp::try_from(time)?;
    Ok(RestrictedExpression::new_datetime(
        time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
    ))
}
