//! Which chains were found good already, by the bundles in force?
//!
//! The signatures under a chain say the same each time they are checked, and checking them is a quarter of
//! a handshake. So a chain that was found good is remembered. What is remembered gives nobody more than
//! verifying anew would:
//!
//! - it is found by a digest of all the certificates that were presented, in their order, and of the side
//!   that presented them;
//! - it belongs to one [`Endpoint`](super::Endpoint), so to one set of roots and of revocation lists and
//!   one longest lifetime, and ends with it;
//! - it counts only within the validity of every certificate on the path, and until the next root of the
//!   trust domain ends. At any other time the chain is verified anew, whatever that finds;
//! - refusals are never remembered. Who may answer, and that the peer holds the key of its certificate
//!   (TLS' `CertificateVerify`), is asked in every handshake.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::Peer;

/// The peers whose chains were found good.
#[derive(Debug, Default)]
pub(super) struct Proven {
    kept: Mutex<Kept>,
    verifications: Verifications,
}

#[derive(Debug, Default)]
struct Kept {
    peers: HashMap<[u8; 32], Entry>,
    /// Of their chains.
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    peer: Arc<Peer>,
    window: Window,
}

/// From its first instant on, and before its last.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Window {
    pub(super) from: SystemTime,
    pub(super) until: SystemTime,
}

impl Window {
    pub(super) fn contains(&self, now: SystemTime) -> bool {
        self.from <= now && now < self.until
    }

    /// What both have in common.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            from: self.from.max(other.from),
            until: self.until.min(other.until),
        }
    }
}

impl Proven {
    pub(super) fn new(verifications: Verifications) -> Self {
        Self {
            kept: Mutex::default(),
            verifications,
        }
    }

    /// The peer with this [`Peer::proof`], if its chain is known to be good at `now`.
    pub(super) fn known(&self, proof: &[u8; 32], now: SystemTime) -> Option<Arc<Peer>> {
        let kept = self.kept();
        let entry = kept.peers.get(proof)?;
        entry.window.contains(now).then(|| entry.peer.clone())
    }

    /// The same for whoever would have to verify the chain otherwise.
    pub(super) fn spares(&self, proof: &[u8; 32], now: SystemTime) -> Option<Arc<Peer>> {
        let known = self.known(proof, now);
        match known {
            Some(_) => self.verifications.remembered.inc(),
            None => self.verifications.anew.inc(),
        }
        known
    }

    /// Keeps `peer`, whose chain was just found good and stays so within `window`.
    pub(super) fn remember(&self, peer: &Arc<Peer>, window: Window) {
        let size = |peer: &Peer| peer.chain.iter().map(|der| der.len()).sum::<usize>();
        if size(peer) > LONGEST_CHAIN {
            return;
        }
        let mut kept = self.kept();
        let peer = peer.clone();
        kept.bytes += size(&peer);
        let replaced = kept.peers.insert(peer.proof, Entry { peer, window });
        kept.bytes -= replaced.map_or(0, |entry| size(&entry.peer));
        while kept.bytes > MOST_BYTES {
            // Any will do: their order is that of a keyed hash.
            let Some(proof) = kept.peers.keys().next().copied() else {
                return;
            };
            let forgotten = kept.peers.remove(&proof);
            kept.bytes -= forgotten.map_or(0, |entry| size(&entry.peer));
        }
    }

    /// For when another set of bundles is in force. Open connections may keep the old one for long.
    pub(super) fn forget(&self) {
        *self.kept() = Kept::default();
    }

    /// How many there are, and how large their chains are together.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        let kept = self.kept();
        (kept.peers.len(), kept.bytes)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How often chains had to be verified. One for the process; cloning shares it.
#[derive(Clone, Debug)]
pub struct Verifications {
    total: IntCounterVec,
    anew: IntCounter,
    remembered: IntCounter,
}

impl Verifications {
    /// Registers the family.
    ///
    /// # Errors
    /// If it is there already.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let verifications = Self::default();
        registry.register(Box::new(verifications.total.clone()))?;
        Ok(verifications)
    }
}

impl Default for Verifications {
    /// Counts for nobody to read.
    fn default() -> Self {
        let total = IntCounterVec::new(
            Opts::new(
                "doorward_chain_verifications_total",
                "Times that a peer's chain had to be good, by result: verified anew, or remembered from before.",
            ),
            &["result"],
        )
        .expect("the name and the label are well-formed");
        Self {
            anew: total.with_label_values(&["anew"]),
            remembered: total.with_label_values(&["remembered"]),
            total,
        }
    }
}

/// Of all chains together, in bytes: some thousands of SPIRE's.
pub(super) const MOST_BYTES: usize = 4 << 20;

/// Chains that are larger are verified each time, so that no peer can push out many with one of its own.
pub(super) const LONGEST_CHAIN: usize = 16 << 10;

#[cfg(test)]
mod tests;
