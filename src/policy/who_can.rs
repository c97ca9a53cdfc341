//! Who may do this here, by which grant, until when, and who answers for that?

use std::sync::Arc;

use super::Grant;
use super::access::{Access, Class, Member, Piece, members};
use super::asked::{Inquiry, Sought};
use super::cedar::Verb;
use super::conditions::Condition;
use super::governance::Workload;
use super::listing::Named;
use super::scope;

/// One way in: workloads, and a grant that would let them in.
#[derive(Debug)]
pub struct Way {
    /// Who.
    pub who: Class,
    /// The registration, where there is one.
    pub registered: Option<Workload>,
    /// By which grant.
    pub grant: Arc<Grant>,
    /// Named that grant names.
    pub granted_to: Named,
    /// It is a dry run: it lets nobody in.
    pub dry_run: bool,
    /// What it allows, as in `read, POST`.
    pub actions: String,
    /// What must hold besides, as far as it was not given.
    pub conditions: Vec<String>,
    /// What may keep them out all the same.
    pub limits: Vec<Limit>,
}

/// A policy that may keep them out, by what was not given, or that is a dry run.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// The policy.
    pub grant: Arc<Grant>,
    /// How it keeps them out.
    pub by: Obstacle,
    /// When it applies; always, if there is none.
    pub conditions: Vec<String>,
    /// It is a dry run: it keeps nobody out.
    pub dry_run: bool,
}

/// How a policy keeps somebody out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It is a `forbid`.
    Forbids,
    /// It is another grant, whose conditions may fail to be evaluated: that denies, whatever else allows.
    MayFail,
}

/// Every way in, in the order of the workloads; those that let somebody in, and those in dry run.
#[must_use]
pub fn ways(inquiry: &Inquiry, sought: &Sought) -> Vec<Way> {
    let engine = inquiry.engine();
    let mut ways = Vec::new();
    for member in members(&[engine]) {
        let mut found: Vec<Found> = Vec::new();
        for verb in sought.verbs() {
            for (piece, conditions, limits) in open(inquiry, sought, &member, verb) {
                let same = |found: &&mut Found| {
                    Arc::ptr_eq(&found.piece.rule, &piece.rule)
                        && found.conditions == conditions
                        && found.limits == limits
                };
                match found.iter_mut().find(same) {
                    Some(found) => found.verbs.push(verb),
                    None => found.push(Found {
                        piece,
                        conditions,
                        limits,
                        verbs: vec![verb],
                    }),
                }
            }
        }
        found.sort_by_key(|found| (found.piece.rule.dry_run, found.piece.rule.order));
        ways.extend(found.into_iter().map(|found| Way {
            who: member.class.clone(),
            registered: engine.registry().get(&member.id).cloned(),
            grant: found.piece.rule.grant.clone(),
            granted_to: Named::of(&found.piece.rule.policy),
            dry_run: found.piece.rule.dry_run,
            actions: scope::words(&found.verbs.into_iter().collect()),
            conditions: found.conditions,
            limits: found.limits,
        }));
    }
    ways
}

struct Found {
    piece: Piece,
    conditions: Vec<String>,
    limits: Vec<Limit>,
    verbs: Vec<Verb>,
}

/// The grants that let `member` in for `verb`, each with what must hold and what may be in the way.
fn open(
    inquiry: &Inquiry,
    sought: &Sought,
    member: &Member,
    verb: Verb,
) -> Vec<(Piece, Vec<String>, Vec<Limit>)> {
    let access = Access::of(inquiry.engine(), member, sought, verb);
    let enforced = |piece: &&Piece| !piece.rule.dry_run;
    let always = |piece: &Piece| piece.rest.is_empty();
    let pieces = || access.permits.iter().chain(&access.forbids);
    if access.refused
        || access.forbids.iter().filter(enforced).any(always)
        || pieces().filter(enforced).any(|piece| piece.failed)
    {
        return Vec::new();
    }
    // Where nothing that is enforced is open, whatever fills the gaps gets the same answer.
    if pieces().filter(enforced).all(always) && access.permits.iter().any(|piece| enforced(&piece))
    {
        let (asked, _) = sought.of(&member.id, verb);
        let lifetime = access
            .max_lifetime
            .map_or(asked.lifetime, |max| max.min(asked.lifetime));
        let asked = super::asked::Asked { lifetime, ..asked };
        if inquiry.decide(&asked).is_err() {
            return Vec::new();
        }
    }
    let forbids = access.forbids.iter();
    let forbidden: Vec<_> = forbids
        .map(|piece| limit(Obstacle::Forbids, piece))
        .collect();
    let (mut frail, lifetime) = (access.permits.clone(), access.of_certificate());
    frail.retain(|piece| piece.rest.iter().any(Condition::may_fail));
    let permits = access.permits.into_iter();
    let ways = permits.map(|piece| {
        let conditions = piece.rest.iter().map(Condition::to_string);
        let conditions = conditions.chain(lifetime.clone()).collect();
        let others = frail
            .iter()
            .filter(|other| !Arc::ptr_eq(&other.rule, &piece.rule));
        let failing = others.map(|other| limit(Obstacle::MayFail, other));
        let limits = forbidden.iter().cloned().chain(failing).collect();
        (piece, conditions, limits)
    });
    ways.collect()
}

fn limit(by: Obstacle, piece: &Piece) -> Limit {
    Limit {
        by,
        grant: piece.rule.grant.clone(),
        conditions: piece.rest.iter().map(Condition::to_string).collect(),
        dry_run: piece.rule.dry_run,
    }
}
