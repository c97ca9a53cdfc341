//! What was found of a chain by the bundles in force? Found out once for each chain, not for each
//! connection that stands on it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::Semaphore;

use super::verify::VerifyError;
use super::{Endpoint, Peer};
use crate::live::Snapshot;

/// The verdicts of one endpoint on the peers that were connected before it.
#[derive(Debug)]
pub(super) struct Verdicts {
    found: Mutex<HashMap<[u8; 32], Verdict>>,
    /// Verifying is work for other threads than those that carry requests, and for few of them.
    turns: Semaphore,
}

#[derive(Clone, Debug)]
struct Verdict {
    holds: Result<(), VerifyError>,
    /// It says nothing about later: a root ends.
    until: Option<SystemTime>,
}

impl Default for Verdicts {
    fn default() -> Self {
        Self {
            found: Mutex::default(),
            turns: Semaphore::new(VERIFIERS),
        }
    }
}

impl Verdicts {
    fn known(&self, peer: &Peer, now: SystemTime) -> Option<Result<(), VerifyError>> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let verdict = found.get(&peer.proof)?;
        let good = verdict.until.is_none_or(|until| now < until);
        good.then(|| verdict.holds.clone())
    }

    /// How many chains were verified.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.found.lock().unwrap().len()
    }

    fn remember(&self, peer: &Peer, verdict: Verdict) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.insert(peer.proof, verdict);
    }
}

/// As [`Endpoint::still_holds`], for when every open session asks at once: a chain is verified once for
/// all connections that stand on it, and not by the thread that asks.
///
/// # Errors
/// [`VerifyError`] says what holds no longer.
pub async fn still_holds(
    endpoint: Arc<Snapshot<Endpoint>>,
    peer: Arc<Peer>,
    now: SystemTime,
) -> Result<(), VerifyError> {
    if endpoint
        .value
        .rules
        .proven
        .known(&peer.proof, now)
        .is_some()
    {
        return Ok(());
    }
    let verdicts = &endpoint.value.verdicts;
    if let Some(known) = verdicts.known(&peer, now) {
        return known;
    }
    // It is never closed; and without a turn there is still an answer.
    let _turn = verdicts.turns.acquire().await;
    if let Some(known) = verdicts.known(&peer, now) {
        return known;
    }
    let (by, whom) = (endpoint.clone(), peer.clone());
    let verified = tokio::task::spawn_blocking(move || by.value.verdict(&whom, now));
    let verdict = match verified.await {
        Ok(verdict) => verdict,
        // The runtime is on its way out.
        Err(_) => endpoint.value.verdict(&peer, now),
    };
    verdicts.remember(&peer, verdict.clone());
    verdict.holds
}

impl Endpoint {
    fn verdict(&self, peer: &Peer, now: SystemTime) -> Verdict {
        let bundle = self.material.bundles().get(peer.id().trust_domain());
        Verdict {
            holds: self.still_holds(peer, now),
            until: bundle.and_then(|bundle| bundle.next_end(now)),
        }
    }
}

/// How many threads of a worker verify at once.
const VERIFIERS: usize = 2;
