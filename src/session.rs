//! What is open, and may it stay open? A session lives as long as the proof it stands on.
//!
//! The proof has four parts: the peer's certificate, the trust bundle that vouches for it, our own
//! identity, and the grant. [`Standing::lost`] waits until the session stands on nothing any more, and on
//! the way ends those of its exchanges whose own grant is gone ([`Running`]). Each session asks for itself,
//! by its own timers and when the [`Roll`] calls it.

mod clock;
mod roll;
mod running;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use self::clock::Clock;
pub use self::roll::Roll;
pub use self::running::{Asked, Place, Running};
use crate::identity::Bundles;
use crate::lifecycle::{Lifecycle, Phase};
use crate::live::{Live, Snapshot};
use crate::outcome::Outcome;
use crate::policy::{Act, Gate, Policy};
use crate::tls::verify::VerifyError;
use crate::tls::{self, Endpoint, Peer};

/// What one connection between two sidecars stands on.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Who is at the other end.
    pub peer: Arc<Peer>,
    /// The identity of ours that the connection was made with.
    pub own: Arc<Snapshot<Endpoint>>,
    /// The identity in force.
    pub identity: Arc<Live<Endpoint>>,
    /// The sessions of this worker.
    pub roll: Roll,
}

/// Which certificate of ours a session needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// The one it was made with: the peer has no other proof of who we are.
    Shown,
    /// Whichever is in force: each request is checked when it comes.
    InForce,
}

/// What policy granted on a session, to be asked again whenever the answer may have changed.
#[derive(Debug)]
pub enum Granted<'a> {
    /// Nothing: policy has no say in it.
    Nothing,
    /// The session as a whole.
    Whole(Grant<'a>),
    /// Each exchange on it for itself.
    Each {
        /// The policy.
        policy: &'a Policy,
        /// The connection's view of it.
        gate: &'a Gate,
        /// The exchanges under way.
        running: &'a Running,
    },
}

/// The grant that an open stream stands on.
#[derive(Debug)]
pub struct Grant<'a> {
    /// The connection's view of it.
    pub gate: &'a Gate,
    /// What was granted.
    pub act: Act<'a>,
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

    /// Waits until the connection stands on nothing any more, and says what it lost. Every session has one of these
    /// futures, so it is made to be small.
    pub fn lost<'a>(
        &'a self,
        own: Own,
        granted: Granted<'a>,
    ) -> impl Future<Output = Outcome> + Send + 'a {
        let turn = self.roll.enter();
        // The handshake has judged the peer by these.
        let mut trusted: Arc<Bundles> = self.own.value.material().bundles().clone();
        let mut root_end = self.root_end(&trusted, SystemTime::now());
        async move {
            loop {
                // Nothing of what is looked at here is held while it waits.
                let next = {
                    let now = SystemTime::now();
                    if !self.peer.valid_at(now) {
                        return Outcome::PeerExpired;
                    }
                    let Some(endpoint) = self.identity.get() else {
                        return Outcome::IdentityUnavailable;
                    };
                    let shown = match own {
                        Own::Shown => &self.own,
                        Own::InForce => &endpoint,
                    };
                    if !shown.value.valid_at(now) {
                        return Outcome::OwnIdentityExpired;
                    }
                    let own_end = shown.value.material().leaf().not_after;
                    let bundles = endpoint.value.material().bundles();
                    if trusted != *bundles || root_end.is_some_and(|end| end <= now) {
                        trusted = bundles.clone();
                        root_end = self.root_end(&trusted, now);
                        // Rare: it has no place in the future of every session.
                        let judged = tls::still_holds(endpoint, self.peer.clone(), now);
                        match Box::pin(judged).await {
                            Ok(()) => {}
                            Err(VerifyError::Expired) if !self.peer.valid_at(SystemTime::now()) => {
                                return Outcome::PeerExpired;
                            }
                            Err(_) => return Outcome::TrustWithdrawn,
                        }
                    }
                    let grant_end = match granted.reconsider(now) {
                        Ok(end) => end,
                        Err(outcome) => return outcome,
                    };
                    let ends = [
                        Some(self.peer.not_after()),
                        Some(own_end),
                        root_end,
                        grant_end,
                    ];
                    until(ends.into_iter().flatten().min(), now)
                };
                tokio::select! {
                    () = tokio::time::sleep(next) => {}
                    () = granted.wanted() => {}
                    () = turn.come() => {}
                }
            }
        }
    }

    /// When the next root ends that may be what vouches for the peer.
    fn root_end(&self, bundles: &Bundles, now: SystemTime) -> Option<SystemTime> {
        bundles.get(self.peer.id().trust_domain())?.next_end(now)
    }
}

impl Granted<'_> {
    /// Asks policy again, and says when to ask the next time if nothing changes before.
    fn reconsider(&self, now: SystemTime) -> Result<Option<SystemTime>, Outcome> {
        match self {
            Self::Nothing => Ok(None),
            Self::Whole(grant) => match grant.gate.reconsider(&grant.act, now) {
                Ok(_) => Ok(grant.gate.reconsider_at(now)),
                Err(_) => Err(Outcome::PermitWithdrawn),
            },
            Self::Each {
                policy,
                gate,
                running,
            } => Ok(running.reconsider(policy, gate, now)),
        }
    }

    /// Completes when there is something to ask that was not there before.
    async fn wanted(&self) {
        match self {
            Self::Each { running, .. } => running.wanted().await,
            Self::Nothing | Self::Whole(_) => std::future::pending().await,
        }
    }
}

/// How long to sleep until `instant` by the wall clock. A clock that is set is told by [`Clock`]; one that is merely
/// made to go faster is met by looking again after half a minute.
fn until(instant: Option<SystemTime>, now: SystemTime) -> Duration {
    let left = instant.map_or(LOOK_AGAIN, |instant| {
        // A certificate is valid through the very instant it names.
        instant.duration_since(now).unwrap_or_default() + Duration::from_millis(1)
    });
    left.min(LOOK_AGAIN)
}

const LOOK_AGAIN: Duration = Duration::from_secs(30);

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
