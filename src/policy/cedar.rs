//! Which policies concern this principal at this service, and what do they say?
//!
//! Cedar asks every policy it is given. So policies are put under the principal and the resource that
//! their scope names when they are loaded; what concerns one principal at one service, its `Slice`, is
//! picked from there once, and of that only what concerns the action is asked.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, PoisonError, RwLock};
use std::time::SystemTime;

use cedar_policy::{
    ActionConstraint, Effect, Entities, Entity, EntityId, EntityTypeName, EntityUid, Policy,
    PrincipalConstraint, Request, ResourceConstraint, RestrictedExpression, Schema,
};

use super::Act;
use super::finding::Finding;
use super::governance::{Grant, Registry, Workload};
use super::reads::Needs;
use super::scope;
use super::slice::{Question, Rule, Slice, string};
use crate::identity::SpiffeId;

/// Policies, ready to decide.
#[derive(Debug)]
pub struct Engine {
    index: HashMap<(Who, What), Vec<Arc<Rule>>>,
    registry: Registry,
    environment: Entity,
    actions: Entities,
    slices: RwLock<Slices>,
    policies: usize,
    warnings: Vec<Finding>,
}

/// Slices by principal and service.
type Slices = HashMap<(SpiffeId, Arc<str>), Arc<Slice>>;

/// The principals that a scope can match.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Who {
    Anyone,
    /// This workload, or who is in this role or trust domain.
    In(EntityUid),
}

/// The resources that a scope can match.
#[derive(Debug, PartialEq, Eq, Hash)]
enum What {
    Anything,
    Is(EntityUid),
}

impl Engine {
    /// Puts `rules` in order. Their policies' ids are unique.
    pub(super) fn new(
        rules: impl IntoIterator<Item = Rule>,
        registry: Registry,
        environment: &BTreeMap<String, String>,
        warnings: Vec<Finding>,
    ) -> Self {
        let mut index: HashMap<_, Vec<_>> = HashMap::new();
        let mut policies = 0;
        for rule in rules {
            policies += 1;
            if let (Some(who), Some(what)) = (who(&rule.policy), what(&rule.policy)) {
                index.entry((who, what)).or_default().push(Arc::new(rule));
            }
        }
        Self {
            index,
            registry,
            environment: environment_entity(environment),
            actions: action_entities(),
            slices: RwLock::default(),
            policies,
            warnings,
        }
    }

    /// How many policies it holds.
    #[must_use]
    pub fn policies(&self) -> usize {
        self.policies
    }

    /// The registered workloads.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Every policy that can apply to anybody, in order.
    pub(super) fn rules(&self) -> Vec<&Arc<Rule>> {
        let mut rules: Vec<_> = self.index.values().flatten().collect();
        rules.sort_unstable_by_key(|rule| rule.order);
        rules
    }

    /// What loads and may not mean what was meant.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.warnings.iter()
    }

    /// What concerns `id` at `service` at `now`.
    pub(super) fn slice(&self, id: &SpiffeId, service: &Arc<str>, now: SystemTime) -> Arc<Slice> {
        let key = (id.clone(), service.clone());
        let kept = self.slices.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = kept.get(&key)
            && slice.holds_at(now)
        {
            return slice.clone();
        }
        drop(kept);
        let slice = Arc::new(self.cut(id, service, now));
        let mut kept = self.slices.write().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST_SLICES {
            kept.clear();
        }
        kept.insert(key, slice.clone());
        slice
    }

    fn cut(&self, id: &SpiffeId, service: &Arc<str>, now: SystemTime) -> Slice {
        Slice::new(
            self.candidates(id, service),
            workload_uid(id.as_str()),
            uid(&SERVICE, service),
            self.environment.uid(),
            |rules| self.entities(id, rules),
            now,
        )
    }

    /// The policies whose scope can match `id` at `service`, in force or not, in order.
    pub(super) fn candidates(&self, id: &SpiffeId, service: &str) -> Vec<Arc<Rule>> {
        let roles = self.registry.get(id).map(|workload| &*workload.roles);
        let mut who = vec![
            Who::Anyone,
            Who::In(workload_uid(id.as_str())),
            Who::In(uid(&TRUST_DOMAIN, id.trust_domain().as_str())),
        ];
        let roles = roles.unwrap_or_default();
        let roles: std::collections::BTreeSet<_> = roles.iter().collect();
        who.extend(roles.into_iter().map(|role| Who::In(uid(&ROLE, role))));
        let mut rules = Vec::new();
        for who in who {
            // One key holds both, so `who` moves from lookup to lookup.
            let mut key = (who, What::Anything);
            rules.extend(self.index.get(&key).into_iter().flatten().cloned());
            key.1 = What::Is(uid(&SERVICE, service));
            rules.extend(self.index.get(&key).into_iter().flatten().cloned());
        }
        rules.sort_unstable_by_key(|rule| rule.order);
        rules
    }

    /// What every policy says about itself, in order.
    #[must_use]
    pub fn grants(&self) -> Vec<&Arc<Grant>> {
        let rules = self.rules().into_iter();
        rules.map(|rule| &rule.grant).collect()
    }

    /// The grants in force at `now` that let somebody connect to `service`, in order: those that name the action,
    /// and those that name none and ask for nothing else, which could be about requests.
    #[must_use]
    pub fn connecting(&self, service: &str, now: SystemTime) -> Vec<&Arc<Grant>> {
        let lets = |rule: &&Arc<Rule>| {
            let policy = &rule.policy;
            let scope = policy.action_constraint();
            policy.effect() == Effect::Permit
                && !rule.dry_run
                && !rule.grant.has_ended(now)
                && scope::service(policy).is_none_or(|named| *named == *service)
                && Verb::TcpConnect.is_in(&scope)
                && (scope != ActionConstraint::Any || !policy.has_non_scope_constraint())
        };
        let rules = self.rules().into_iter().filter(lets);
        rules.map(|rule| &rule.grant).collect()
    }

    /// The question as Cedar takes it, with all that the conditions of `rules` could look into.
    pub(super) fn pose(
        &self,
        question: &Question<'_>,
        rules: &[Arc<Rule>],
    ) -> Result<(Request, Entities), Box<dyn std::error::Error>> {
        let everything = Needs {
            everything: true,
            ..Needs::default()
        };
        let request = Request::new(
            workload_uid(question.subject.id.as_str()),
            Verb::of(question.act).uid().clone(),
            uid(&SERVICE, &question.place.service),
            question.context(everything, &self.environment.uid())?,
            None,
        )?;
        Ok((request, self.entities(&question.subject.id, rules)))
    }

    /// All the entities that `rules` can reach: the principal's, and those that they name. No attribute
    /// leads from one workload to another, so there are no others.
    fn entities(&self, id: &SpiffeId, rules: &[Arc<Rule>]) -> Entities {
        let mut named = HashMap::new();
        let mut add = |entity: Entity| named.insert(entity.uid(), entity);
        add(self.environment.clone());
        let literals = rules.iter().flat_map(|rule| rule.policy.entity_literals());
        for literal in literals {
            if *literal.type_name() == *WORKLOAD
                && let Ok(id) = SpiffeId::parse(literal.id().unescaped())
            {
                add(self.workload(&id));
            }
        }
        add(self.workload(id));
        self.actions
            .clone()
            .add_entities(named.into_values(), None)
            .expect("the entities have distinct names and only workloads have parents")
    }

    fn workload(&self, id: &SpiffeId) -> Entity {
        workload_entity(id, self.registry.get(id))
    }
}

/// Slices kept for the next connection of the same principal.
const MOST_SLICES: usize = 1024;

/// The Cedar actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verb {
    Get,
    Head,
    Options,
    Trace,
    Post,
    Put,
    Patch,
    Delete,
    HttpConnect,
    Other,
    TcpConnect,
}

impl Verb {
    pub(super) const ALL: [Self; 11] = [
        Self::Get,
        Self::Head,
        Self::Options,
        Self::Trace,
        Self::Post,
        Self::Put,
        Self::Patch,
        Self::Delete,
        Self::HttpConnect,
        Self::Other,
        Self::TcpConnect,
    ];

    pub(super) fn of(act: &Act<'_>) -> Self {
        match act {
            Act::Connect => Self::TcpConnect,
            Act::Http { method, .. } => match **method {
                http::Method::GET => Self::Get,
                http::Method::HEAD => Self::Head,
                http::Method::OPTIONS => Self::Options,
                http::Method::TRACE => Self::Trace,
                http::Method::POST => Self::Post,
                http::Method::PUT => Self::Put,
                http::Method::PATCH => Self::Patch,
                http::Method::DELETE => Self::Delete,
                http::Method::CONNECT => Self::HttpConnect,
                _ => Self::Other,
            },
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::HttpConnect => "CONNECT",
            Self::Other => "other",
            Self::TcpConnect => "connect",
        }
    }

    pub(super) const fn group(self) -> Option<&'static str> {
        match self {
            Self::Get | Self::Head | Self::Options | Self::Trace => Some("read"),
            Self::Post
            | Self::Put
            | Self::Patch
            | Self::Delete
            | Self::HttpConnect
            | Self::Other => Some("write"),
            Self::TcpConnect => None,
        }
    }

    pub(super) fn uid(self) -> &'static EntityUid {
        static UIDS: LazyLock<[EntityUid; Verb::ALL.len()]> =
            LazyLock::new(|| Verb::ALL.map(|verb| uid(&ACTION, verb.name())));
        &UIDS[self as usize]
    }

    /// Whether a scope with this action matches.
    pub(super) fn is_in(self, scope: &ActionConstraint) -> bool {
        match scope {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(action) => action == self.uid(),
            ActionConstraint::In(actions) => actions.iter().any(|action| {
                action == self.uid()
                    || (*action.type_name() == *ACTION
                        && Some(action.id().unescaped()) == self.group())
            }),
        }
    }
}

/// Where a policy is put; none if its scope can match no workload.
fn who(policy: &Policy) -> Option<Who> {
    match policy.principal_constraint() {
        PrincipalConstraint::Any => Some(Who::Anyone),
        PrincipalConstraint::In(uid) => Some(Who::In(uid)),
        PrincipalConstraint::Eq(uid) => (*uid.type_name() == *WORKLOAD).then_some(Who::In(uid)),
        PrincipalConstraint::Is(kind) => (kind == *WORKLOAD).then_some(Who::Anyone),
        PrincipalConstraint::IsIn(kind, uid) => (kind == *WORKLOAD).then_some(Who::In(uid)),
    }
}

/// Where a policy is put; none if its scope can match no service. Services are in nothing else.
fn what(policy: &Policy) -> Option<What> {
    match policy.resource_constraint() {
        ResourceConstraint::Any => Some(What::Anything),
        ResourceConstraint::In(uid) | ResourceConstraint::Eq(uid) => Some(What::Is(uid)),
        ResourceConstraint::Is(kind) => (kind == *SERVICE).then_some(What::Anything),
        ResourceConstraint::IsIn(kind, uid) => (kind == *SERVICE).then_some(What::Is(uid)),
    }
}

/// The shipped schema.
pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(|| {
    let (schema, _) = Schema::from_cedarschema_str(include_str!("schema.cedarschema"))
        .expect("the shipped schema is read by a test");
    schema
});

pub(super) static WORKLOAD: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Workload"));
pub(super) static ROLE: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Role"));
pub(super) static TRUST_DOMAIN: LazyLock<EntityTypeName> =
    LazyLock::new(|| type_name("TrustDomain"));
pub(super) static SERVICE: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Service"));
static ENVIRONMENT: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Environment"));
static KIND: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Kind"));
static ACTION: LazyLock<EntityTypeName> = LazyLock::new(|| type_name("Action"));

fn type_name(name: &str) -> EntityTypeName {
    name.parse().expect("a plain word is a type's name")
}

fn uid(kind: &EntityTypeName, id: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
}

fn workload_uid(id: &str) -> EntityUid {
    uid(&WORKLOAD, id)
}

fn workload_entity(id: &SpiffeId, registered: Option<&Workload>) -> Entity {
    let mut parents = vec![uid(&TRUST_DOMAIN, id.trust_domain().as_str())];
    let (mut attributes, mut tags) = (Vec::new(), Vec::new());
    if let Some(workload) = registered {
        parents.extend(workload.roles.iter().map(|role| uid(&ROLE, role)));
        attributes.extend([
            ("owner".to_owned(), string(&workload.owner)),
            ("purpose".to_owned(), string(&workload.purpose)),
            (
                "kind".to_owned(),
                RestrictedExpression::new_entity_uid(uid(&KIND, workload.kind.label())),
            ),
        ]);
        if let Some(person) = &workload.accountable {
            attributes.push(("accountable".to_owned(), string(person)));
        }
        let labels = workload.labels.iter();
        tags.extend(labels.map(|(name, value)| (name.clone(), string(value))));
    }
    Entity::new_with_tags(workload_uid(id.as_str()), attributes, parents, tags)
        .expect("texts and names evaluate to themselves")
}

fn environment_entity(labels: &BTreeMap<String, String>) -> Entity {
    let tags = labels
        .iter()
        .map(|(name, value)| (name.clone(), string(value)));
    Entity::new_with_tags(uid(&ENVIRONMENT, "this"), [], [], tags)
        .expect("texts evaluate to themselves")
}

pub(super) fn action_entities() -> Entities {
    SCHEMA
        .action_entities()
        .expect("the shipped schema is read by a test")
}
