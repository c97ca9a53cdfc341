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

/// A `forbid` that applies under conditions that were not given, or that is a dry run.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit {
    /// The policy.
    pub grant: Arc<Grant>,
    /// When it applies; always, if there is none.
    pub conditions: Vec<String>,
    /// It is a dry run: it keeps nobody out.
    pub dry_run: bool,
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
    let limits: Vec<_> = access.forbids.iter().map(limit).collect();
    let lifetime = access.of_certificate();
    let permits = access.permits.into_iter();
    let ways = permits.map(|piece| {
        let conditions = piece.rest.iter().map(Condition::to_string);
        let conditions = conditions.chain(lifetime.clone()).collect();
        (piece, conditions, limits.clone())
    });
    ways.collect()
}

fn limit(piece: &Piece) -> Limit {
    Limit {
        grant: piece.rule.grant.clone(),
        conditions: piece.rest.iter().map(Condition::to_string).collect(),
        dry_run: piece.rule.dry_run,
    }
}
