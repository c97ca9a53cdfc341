//! Which services and actions does the scope of a policy name, in the words of people?

use std::collections::BTreeSet;
use std::sync::Arc;

use cedar_policy::{ActionConstraint, EntityUid, Policy, ResourceConstraint};

use super::cedar::Verb;

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
