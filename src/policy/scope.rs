//! What is a policy for: which services and actions does its scope name, in the words of people, and under
//! which conditions?

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::{
    ActionConstraint, EntityUid, Policy, PrincipalConstraint, ResourceConstraint, pst,
};

use super::cedar::Verb;

/// `policy` as a tree, to read its conditions. None if it is not understood.
pub(super) fn tree(policy: &Policy) -> Option<pst::Policy> {
    // `Policy::to_pst` would parse the text anew, which takes ten times as long.
    pst::Policy::try_from(policy.as_ref().clone()).ok()
}

/// The workload, role or trust domain that a scope names; none: whoever asks.
pub(super) fn principal(policy: &Policy) -> Option<EntityUid> {
    match policy.principal_constraint() {
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => None,
        PrincipalConstraint::Eq(uid)
        | PrincipalConstraint::In(uid)
        | PrincipalConstraint::IsIn(_, uid) => Some(uid),
    }
}

/// The service that a scope names; none: every service.
pub(super) fn service(policy: &Policy) -> Option<Arc<str>> {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        ResourceConstraint::Eq(uid)
        | ResourceConstraint::In(uid)
        | ResourceConstraint::IsIn(_, uid) => Some(uid.id().unescaped().into()),
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
