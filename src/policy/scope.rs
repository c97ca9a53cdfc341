//! Whom, what and where does the scope of a policy name, in the words of people?

use std::collections::BTreeSet;
use std::fmt;

use cedar_policy::{ActionConstraint, EntityUid, Policy, PrincipalConstraint, ResourceConstraint};

use super::cedar::{ROLE, TRUST_DOMAIN, Verb};
use super::governance::Registry;
use crate::identity::SpiffeId;

/// Whom a scope names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whom {
    /// Every workload that this sidecar lets in.
    Everybody,
    /// One workload, by its SPIFFE ID.
    Workload(String),
    /// Who has a role in the registry.
    Role(String),
    /// Every workload of a trust domain.
    TrustDomain(String),
}

impl Whom {
    pub(super) fn of(policy: &Policy) -> Self {
        let named = |uid: EntityUid| {
            let name = uid.id().unescaped().to_owned();
            if *uid.type_name() == *ROLE {
                Self::Role(name)
            } else if *uid.type_name() == *TRUST_DOMAIN {
                Self::TrustDomain(name)
            } else {
                Self::Workload(name)
            }
        };
        match policy.principal_constraint() {
            PrincipalConstraint::Any | PrincipalConstraint::Is(_) => Self::Everybody,
            PrincipalConstraint::Eq(uid)
            | PrincipalConstraint::In(uid)
            | PrincipalConstraint::IsIn(_, uid) => named(uid),
        }
    }

    /// Whether it names `id`, with the roles that `registry` gives it.
    pub(super) fn names(&self, id: &SpiffeId, registry: &Registry) -> bool {
        match self {
            Self::Everybody => true,
            Self::Workload(name) => id.as_str() == name,
            Self::TrustDomain(name) => id.trust_domain().as_str() == name,
            Self::Role(name) => {
                let registered = registry.get(id);
                registered.is_some_and(|workload| workload.roles.contains(name))
            }
        }
    }
}

impl fmt::Display for Whom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("everybody"),
            Self::Workload(name) => f.write_str(name),
            Self::Role(name) => write!(f, "the role {name}"),
            Self::TrustDomain(name) => write!(f, "the trust domain {name}"),
        }
    }
}

/// The service that a scope names; none: every service.
pub(super) fn service(policy: &Policy) -> Option<String> {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        ResourceConstraint::Eq(uid)
        | ResourceConstraint::In(uid)
        | ResourceConstraint::IsIn(_, uid) => Some(uid.id().unescaped().to_owned()),
    }
}

/// The actions that a scope names, as in `read, POST`; `anything` for all.
pub(super) fn actions(policy: &Policy) -> String {
    let name = |uid: &EntityUid| uid.id().unescaped().to_owned();
    match policy.action_constraint() {
        ActionConstraint::Any => ANYTHING.to_owned(),
        ActionConstraint::Eq(uid) => name(&uid),
        ActionConstraint::In(uids) => uids.iter().map(name).collect::<Vec<_>>().join(", "),
    }
}

/// The shortest words for `verbs`, groups in place of all that are in them.
pub(super) fn words(verbs: &BTreeSet<Verb>) -> String {
    if verbs.len() == Verb::ALL.len() {
        return ANYTHING.to_owned();
    }
    let mut words = Vec::new();
    for verb in verbs {
        let whole = verb.group().filter(|group| {
            let all = Verb::ALL.iter().filter(|verb| verb.group() == Some(group));
            all.into_iter().all(|verb| verbs.contains(verb))
        });
        let word = whole.unwrap_or(verb.name());
        if words.last() != Some(&word) {
            words.push(word);
        }
    }
    words.join(", ")
}

const ANYTHING: &str = "anything";
