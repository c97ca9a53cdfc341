//! What is open, and may it stay open? A session lives as long as the proof it stands on.
//!
//! The proof has three parts: the peer's certificate, the trust bundle that vouches for it, and the grant.
//! [`Standing::lost`] waits for the first of them to end; whoever serves the session decides how it says
//! goodbye. Nothing walks a central list: each session asks for itself.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::identity::Bundles;
use crate::lifecycle::{Lifecycle, Phase};
use crate::live::{Live, Snapshot};
use crate::outcome::Outcome;
use crate::policy::{Act, Gate, Policy};
use crate::tls::{Endpoint, Peer};

/// What one connection between two sidecars stands on.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Who is at the other end.
    pub peer: Arc<Peer>,
    /// The identity of ours that the connection was made with.
    pub own: Arc<Snapshot<Endpoint>>,
    /// The identity in force.
    pub identity: Arc<Live<Endpoint>>,
}

impl Standing {
    /// Whether a new request may be served at `now`.
    ///
    /// # Errors
    /// The outcome to refuse it with.
    pub fn check(&self, now: SystemTime) -> Result<(), Outcome> {
        if !self.peer.valid_at(now) {
            return Err(Outcome::PeerExpired);
        }
        match &*self.identity.peek() {
            None => Err(Outcome::IdentityUnavailable),
            Some(endpoint) if !endpoint.value.valid_at(now) => Err(Outcome::OwnIdentityExpired),
            Some(_) => Ok(()),
        }
    }

    /// Waits until the connection stands on nothing any more, and says what it lost. An HTTP connection
    /// outlives the certificate of ours that it was made with, because each request is checked; for
    /// opaque bytes (`opaque`) that certificate is the only proof that the peer has.
    pub async fn lost(&self, opaque: bool, grant: Option<&Grant<'_>>) -> Outcome {
        let mut identities = self.identity.changes();
        let mut policies = grant.map(|grant| grant.policy.changes());
        // The handshake has judged the peer by these.
        let mut trusted: Arc<Bundles> = self.own.value.material().bundles().clone();
        loop {
            let now = SystemTime::now();
            if !self.peer.valid_at(now) {
                return Outcome::PeerExpired;
            }
            if opaque && !self.own.value.valid_at(now) {
                return Outcome::OwnIdentityExpired;
            }
            if let Some(endpoint) = &*self.identity.peek() {
                let bundles = endpoint.value.material().bundles();
                if trusted != *bundles {
                    if endpoint.value.still_holds(&self.peer, now).is_err() {
                        return Outcome::TrustWithdrawn;
                    }
                    trusted = bundles.clone();
                }
            }
            if let Some(grant) = grant
                && grant.gate.authorize(&grant.act, now).is_err()
            {
                return Outcome::PermitWithdrawn;
            }
            let own_end = opaque.then(|| self.own.value.material().leaf().not_after);
            let grant_end = grant.and_then(|grant| grant.gate.reconsider_at(now));
            let ends = [Some(self.peer.not_after()), own_end, grant_end];
            let next = ends.into_iter().flatten().min();
            tokio::select! {
                () = until(next, now) => {}
                _ = identities.changed() => {}
                () = changed(policies.as_mut()) => {}
            }
        }
    }
}

/// The grant that an open stream stands on, asked again whenever the answer may have changed.
#[derive(Debug)]
pub struct Grant<'a> {
    /// The policy, which tells of its changes.
    pub policy: &'a Policy,
    /// The connection's view of it.
    pub gate: &'a Gate,
    /// What was granted.
    pub act: Act<'a>,
}

/// Sleeps until `instant` by the wall clock, but looks again after half a minute: the clock may be set.
async fn until(instant: Option<SystemTime>, now: SystemTime) {
    let left = instant.map_or(LOOK_AGAIN, |instant| {
        // A certificate is valid through the very instant it names.
        instant.duration_since(now).unwrap_or_default() + Duration::from_millis(1)
    });
    tokio::time::sleep(left.min(LOOK_AGAIN)).await;
}

const LOOK_AGAIN: Duration = Duration::from_secs(30);

async fn changed(receiver: Option<&mut tokio::sync::watch::Receiver<u64>>) {
    let told = match receiver {
        Some(receiver) => receiver.changed().await.is_ok(),
        None => false,
    };
    if !told {
        // No grant to lose, or nobody left who could change it.
        std::future::pending::<()>().await;
    }
}

/// Does `work` until it is done, its standing is lost, or the drain's grace is over.
pub async fn run(
    work: impl Future<Output = Outcome>,
    lost: impl Future<Output = Outcome>,
    lifecycle: &Lifecycle,
) -> Outcome {
    tokio::select! {
        biased;
        outcome = lost => outcome,
        outcome = work => outcome,
        () = lifecycle.reached(Phase::Cut) => Outcome::Cut,
    }
}
