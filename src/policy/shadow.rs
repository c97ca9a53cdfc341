//! Which grants add nothing, or are taken back, by the side of the other policies?
//!
//! Ten thousand grants make fifty million pairs. A policy can cover another only if its scope names the same
//! principal and service or more, and asks for no longer beginning of the path: an index by these finds the
//! few that are worth comparing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::SystemTime;

use cedar_policy::Effect;

use super::governance::Registry;
use super::reach::{Reach, Who};
use super::slice::Rule;
use crate::identity::SpiffeId;

/// What another policy makes of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shadow {
    /// It says the same, and is in force as long. The number is that of the other policy.
    Duplicate(usize),
    /// It allows all that this one allows, for as long.
    Shadowed(usize),
    /// It forbids all that this one allows.
    Forbidden(usize),
}

/// One policy with what it can match.
pub(super) struct Known<'a> {
    pub(super) rule: &'a Rule,
    pub(super) reach: &'a Reach,
}

/// What the others make of each grant, by its place in `policies`. None is a policy that is not in force,
/// or not understood. `covers` says whether the first matches whatever the second matches.
pub(super) fn find(
    policies: &[Option<Known<'_>>],
    registry: &Registry,
    covers: &mut dyn FnMut(&Known<'_>, &Known<'_>) -> bool,
) -> Vec<(usize, Shadow)> {
    let mut index = Index::default();
    let known = || {
        let policies = policies.iter().enumerate();
        policies.filter_map(|(number, known)| Some((number, known.as_ref()?)))
    };
    for (number, known) in known() {
        index.add(number, known);
    }
    let grants = known().filter(|(_, known)| known.rule.policy.effect() == Effect::Permit);
    let shadows = grants.filter_map(|(number, grant)| {
        let mut candidates = Vec::new();
        index.candidates(grant, registry, |other| candidates.push(other));
        let shadows = candidates.into_iter().filter_map(|other| {
            let wide = policies.get(other)?.as_ref()?;
            (other != number && covers(wide, grant))
                .then(|| judge((number, grant), (other, wide), covers))?
        });
        // What is forbidden matters most, then what is said twice.
        let told = shadows.min_by_key(|shadow| match shadow {
            Shadow::Forbidden(number) => (0, *number),
            Shadow::Duplicate(number) => (1, *number),
            Shadow::Shadowed(number) => (2, *number),
        });
        Some((number, told?))
    });
    shadows.collect()
}

/// What `wide`, which matches whatever `grant` matches, makes of it.
fn judge(
    (number, grant): (usize, &Known<'_>),
    (other, wide): (usize, &Known<'_>),
    covers: &mut dyn FnMut(&Known<'_>, &Known<'_>) -> bool,
) -> Option<Shadow> {
    // A dry run takes nothing away and gives nothing.
    if wide.rule.dry_run && !grant.rule.dry_run {
        return None;
    }
    if wide.rule.policy.effect() == Effect::Forbid {
        return (!wide.rule.dry_run).then_some(Shadow::Forbidden(other));
    }
    let lasts = |one: &Known<'_>, other: &Known<'_>| match (end(one), end(other)) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(one), Some(other)) => one >= other,
    };
    if !lasts(wide, grant) {
        return None;
    }
    let same = grant.rule.dry_run == wide.rule.dry_run && covers(grant, wide);
    match same {
        false => Some(Shadow::Shadowed(other)),
        // Of two that say the same and end together, the later one is told of.
        true => (!lasts(grant, wide) || other < number).then_some(Shadow::Duplicate(other)),
    }
}

fn end(known: &Known<'_>) -> Option<SystemTime> {
    known.rule.grant.expires
}

/// Policies by principal and service.
#[derive(Default)]
struct Index(HashMap<(Who, Option<Arc<str>>), Bucket>);

/// Policies by the text with which their paths begin.
#[derive(Default)]
struct Bucket(BTreeMap<usize, HashMap<String, Vec<usize>>>);

/// So many policies of one scope whose paths begin alike are compared, and no more: what else there is in a
/// directory that is built like this is not told.
const MOST_COMPARED: usize = 256;

impl Index {
    fn add(&mut self, number: usize, known: &Known<'_>) {
        let reach = known.reach;
        let bucket = self.0.entry((reach.who.clone(), reach.service.clone()));
        let Bucket(prefixes) = bucket.or_default();
        let prefix = reach.path_prefix();
        let alike = prefixes.entry(prefix.len()).or_default().entry(prefix);
        let alike = alike.or_default();
        if alike.len() < MOST_COMPARED {
            alike.push(number);
        }
    }

    /// Calls `each` with every policy that may match all that `grant` matches.
    fn candidates(&self, grant: &Known<'_>, registry: &Registry, mut each: impl FnMut(usize)) {
        let prefix = grant.reach.path_prefix();
        for who in wider(&grant.reach.who, registry) {
            let mut key = (who, None);
            let mut look = |key: &(Who, Option<Arc<str>>)| {
                let bucket = self.0.get(key).into_iter();
                let lengths = bucket.flat_map(|bucket| bucket.0.range(..=prefix.len()));
                let alike = lengths.filter_map(|(length, by)| by.get(prefix.get(..*length)?));
                alike.flatten().copied().for_each(&mut each);
            };
            look(&key);
            key.1.clone_from(&grant.reach.service);
            if key.1.is_some() {
                look(&key);
            }
        }
    }
}

/// Whom a scope may name that covers `who`.
fn wider(who: &Who, registry: &Registry) -> Vec<Who> {
    let mut wider = vec![who.clone()];
    if *who != Who::Anyone {
        wider.push(Who::Anyone);
    }
    let domain = |id: &SpiffeId| Who::TrustDomain(id.trust_domain().as_str().into());
    match who {
        Who::Workload(id) => {
            let Ok(id) = SpiffeId::parse(id) else {
                return wider;
            };
            let roles = registry.get(&id).map(|workload| &*workload.roles);
            let roles = roles.unwrap_or_default().iter();
            wider.extend(roles.map(|role| Who::Role(role.as_str().into())));
            wider.push(domain(&id));
        }
        Who::Role(role) => wider.extend(registry.member(role).map(|member| domain(&member.id))),
        Who::Anyone | Who::TrustDomain(_) | Who::Nobody => {}
    }
    wider
}
