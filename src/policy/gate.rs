//! What is decided on this connection, from memory where that is exact?

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use prometheus::IntCounter;

use super::cedar::{Engine, Verb};
use super::metrics::PeerMetrics;
use super::slice::{Decision, Memory, Question, Refusal, Slice, Verdict};
use super::{Act, Denial, DenialReason, Metrics, Mode, Permit, Place, Policy, Subject};
use crate::live::Snapshot;

/// One connection's view of the policy: the slice for its peer, and a memory of decisions. It renews
/// itself when the policy changed or a grant in its slice ended, so it may live as long as the
/// connection does. One that was never asked holds next to nothing.
pub struct Gate {
    policy: Arc<Policy>,
    subject: Subject,
    place: Place,
    metrics: PeerMetrics,
    view: Mutex<Option<Box<View>>>,
}

/// What one generation of the policy says about one peer.
struct View {
    generation: u64,
    /// Who answers for the peer, if it is registered.
    owner: Option<Arc<str>>,
    /// None: the registration of the peer does not accept its certificate.
    slice: Option<Arc<Slice>>,
    remembered: HashMap<Box<[u8]>, Answer>,
    /// For what is not remembered: what single policies said.
    memory: Memory,
    /// Where the next key is written, kept to spare the allocation.
    key: Vec<u8>,
}

/// One decision with the counters that it moves.
pub(super) struct Answer {
    verdict: Result<Arc<super::Grant>, Denial>,
    would_deny: Option<Arc<Denial>>,
    counter: IntCounter,
    rehearsed: Option<IntCounter>,
}

/// Which decisions the metrics count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    Every,
    Denials,
}

/// Decisions remembered for one connection; then it begins anew.
pub(super) const MOST_REMEMBERED: usize = 256;

/// The longest key that is remembered, in bytes: a peer chooses how long its paths are.
const LONGEST_KEY: usize = 256;

/// How soon to ask again where the clock itself is asked.
const CLOCK_STEP: Duration = Duration::from_secs(1);

impl Gate {
    pub(super) fn new(
        policy: Arc<Policy>,
        subject: Subject,
        place: Place,
        metrics: &Metrics,
    ) -> Self {
        Self {
            metrics: metrics.of(&subject, &place),
            policy,
            subject,
            place,
            view: Mutex::new(None),
        }
    }

    /// Decides whether the peer may do this at `now`, and counts it.
    ///
    /// # Errors
    /// The denial, unless nothing is enforced ([`Mode::Observe`]).
    pub fn authorize(&self, act: &Act<'_>, now: SystemTime) -> Result<Permit, Denial> {
        self.weigh(act, now, Count::Every)
    }

    /// Decides again on what was allowed before and still goes on. Only a denial counts, as what took the
    /// access away: that nothing changed is no further decision.
    ///
    /// # Errors
    /// As [`Gate::authorize`].
    pub fn reconsider(&self, act: &Act<'_>, now: SystemTime) -> Result<Permit, Denial> {
        self.weigh(act, now, Count::Denials)
    }

    fn weigh(&self, act: &Act<'_>, now: SystemTime, count: Count) -> Result<Permit, Denial> {
        let engine = self.policy.engine.peek();
        let Some(engine) = &*engine else {
            let refusal = Refusal {
                reason: DenialReason::NoPolicy,
                grant: None,
                detail: None,
            };
            return self.answer(Err(refusal), None, 0).give(0, count);
        };
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let view = self.renew(&mut view, engine, now);
        let generation = view.generation;
        let Some(slice) = &view.slice else {
            let refusal = Refusal {
                reason: DenialReason::LifetimeTooLong,
                grant: None,
                detail: None,
            };
            let answer = self.answer(Err(refusal), None, generation);
            return answer.give(generation, count);
        };
        let question = Question {
            subject: &self.subject,
            place: &self.place,
            act,
            now,
        };
        let verb = Verb::of(act);
        let reads = &slice.part(verb).reads;
        if !reads.may_be_remembered() {
            let answer = self.decide(slice, &question, &mut view.memory, generation);
            return answer.give(generation, count);
        }
        view.key.clear();
        view.key.push(verb as u8);
        question.seen(verb, reads, &mut view.key);
        if let Some(answer) = view.remembered.get(&*view.key) {
            return answer.give(generation, count);
        }
        let answer = self.decide(slice, &question, &mut view.memory, generation);
        let given = answer.give(generation, count);
        if view.key.len() <= LONGEST_KEY {
            if view.remembered.len() >= MOST_REMEMBERED {
                view.remembered.clear();
            }
            view.remembered.insert(view.key.as_slice().into(), answer);
        } else {
            view.key = Vec::new();
        }
        given
    }

    /// When, at the latest, an answer may change by time alone: a grant of the slice ends, or a policy
    /// reads the clock. `None`: never.
    #[must_use]
    pub fn reconsider_at(&self, now: SystemTime) -> Option<SystemTime> {
        let engine = self.policy.engine.peek();
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let slice = self
            .renew(&mut view, engine.as_ref()?, now)
            .slice
            .as_ref()?;
        let soon = slice.reads_the_clock().then(|| now + CLOCK_STEP);
        soon.into_iter().chain(slice.until()).min()
    }

    /// Who answers for the peer, by the workload registry that the last decision was made with.
    #[must_use]
    pub fn principal_owner(&self) -> Option<Arc<str>> {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        view.as_ref()?.owner.clone()
    }

    /// How many decisions are remembered, and how long a key is held ready.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        let view = self.view.lock().unwrap();
        let view = view.as_ref();
        view.map_or((0, 0), |view| (view.remembered.len(), view.key.capacity()))
    }

    /// The view of `engine` at `now`.
    fn renew<'v>(
        &self,
        view: &'v mut Option<Box<View>>,
        engine: &Snapshot<Engine>,
        now: SystemTime,
    ) -> &'v mut View {
        let holds = view.as_ref().is_some_and(|view| {
            let in_force = |slice: &Arc<Slice>| slice.holds_at(now);
            view.generation == engine.generation && view.slice.as_ref().is_none_or(in_force)
        });
        if !holds {
            *view = None;
        }
        view.get_or_insert_with(|| {
            let registered = engine.value.registry().get(&self.subject.id);
            let accepted = registered.and_then(|workload| workload.max_lifetime);
            let refused = accepted.is_some_and(|accepted| self.subject.lifetime > accepted);
            let slice = || {
                engine
                    .value
                    .slice(&self.subject.id, &self.place.service, now)
            };
            Box::new(View {
                generation: engine.generation,
                owner: registered.map(|workload| workload.owner.clone()),
                slice: (!refused).then(slice),
                remembered: HashMap::new(),
                memory: Memory::default(),
                key: Vec::new(),
            })
        })
    }

    fn decide(
        &self,
        slice: &Slice,
        question: &Question<'_>,
        memory: &mut Memory,
        generation: u64,
    ) -> Answer {
        let Decision {
            enforced,
            rehearsed,
        } = slice.decide(question, memory);
        self.answer(enforced, rehearsed, generation)
    }

    fn answer(&self, enforced: Verdict, rehearsed: Option<Verdict>, generation: u64) -> Answer {
        let deny = |refusal: Refusal| Denial {
            reason: refusal.reason,
            generation,
            grant: refusal.grant,
            detail: refusal.detail,
            would_allow: None,
        };
        let metrics = &self.metrics;
        let rehearsed = rehearsed.unwrap_or_else(|| enforced.clone());
        match (self.policy.mode, enforced, rehearsed) {
            // Everything passes; the answer is what would be if all of it were enforced.
            (Mode::Observe, _, Err(refusal)) => {
                let denial = deny(refusal);
                Answer {
                    counter: metrics.allowed(None),
                    rehearsed: Some(metrics.would("would_deny", denial.grant.as_ref())),
                    verdict: Err(denial.clone()),
                    would_deny: Some(Arc::new(denial)),
                }
            }
            (Mode::Observe, _, Ok(grant)) | (Mode::Enforce, Ok(grant), Ok(_)) => Answer {
                counter: metrics.allowed(Some(&grant)),
                rehearsed: None,
                verdict: Ok(grant),
                would_deny: None,
            },
            (Mode::Enforce, Ok(grant), Err(refusal)) => {
                let denial = deny(refusal);
                Answer {
                    counter: metrics.allowed(Some(&grant)),
                    rehearsed: Some(metrics.would("would_deny", denial.grant.as_ref())),
                    verdict: Ok(grant),
                    would_deny: Some(Arc::new(denial)),
                }
            }
            (Mode::Enforce, Err(refusal), rehearsed) => {
                let would_allow = rehearsed.ok();
                let denial = Denial {
                    would_allow: would_allow.clone(),
                    ..deny(refusal)
                };
                Answer {
                    counter: metrics.denied(denial.reason, denial.grant.as_ref()),
                    rehearsed: would_allow.map(|grant| metrics.would("would_allow", Some(&grant))),
                    verdict: Err(denial),
                    would_deny: None,
                }
            }
        }
    }
}

impl Answer {
    fn give(&self, generation: u64, count: Count) -> Result<Permit, Denial> {
        let passes = self.verdict.is_ok() || self.would_deny.is_some();
        if count == Count::Every || !passes {
            self.counter.inc();
            if let Some(rehearsed) = &self.rehearsed {
                rehearsed.inc();
            }
        }
        match (&self.verdict, &self.would_deny) {
            (Ok(grant), would_deny) => Ok(Permit {
                grant: Some(grant.clone()),
                generation,
                would_deny: would_deny.clone(),
            }),
            // Denied, and not enforced.
            (Err(_), Some(denial)) => Ok(Permit {
                grant: None,
                generation,
                would_deny: Some(denial.clone()),
            }),
            (Err(denial), None) => Err(denial.clone()),
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate")
            .field("subject", &self.subject)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}
