//! May this peer do this here, now? A question in, a [`Permit`] or a [`Denial`] out.
//!
//! A [`Policy`] holds the engine in force. A connection asks it through a [`Gate`] of its own, which
//! keeps the slice of the policies that concern its peer and remembers what was decided. The parts:
//!
//! | file | answers |
//! |---|---|
//! | `policy/gate.rs` | what is decided on this connection, from memory where that is exact |
//! | `policy/path.rs` | which path is decided on, if the application cannot read it as another |
//! | `policy/cedar.rs` | which policies concern this principal at this service |
//! | `policy/slice.rs` | what do those say, and what follows from it |
//! | `policy/reads.rs` | which inputs can change what a slice says |
//! | `policy/governance.rs` | who answers for a grant and until when; who is registered |
//! | `policy/listing.rs` | what does each policy say of itself, and whom and what does it name |
//! | `policy/files.rs` | the policy directory, read, checked and watched |
//! | `policy/lint.rs` | what loads and may not mean what was meant; each such warning has a `Code` |
//! | `policy/reach.rs` | which requests a policy can match, and what follows from that |
//! | `policy/symbolic.rs` | the same, proved by a solver where one is installed |
//! | `policy/shadow.rs` | which grants add nothing, or are taken back, by the side of the others |
//!
//! What people ask of it, apart from any connection:
//!
//! | file | answers |
//! |---|---|
//! | `policy/asked.rs` | what is asked, and what does a gate answer |
//! | `policy/explain.rs` | why, or which grant came closest and what it lacked |
//! | `policy/who_can.rs` | who may do this here |
//! | `policy/diff.rs` | who gains and loses what from one directory to another |
//! | `policy/format.rs` | how it is laid out |
//! | `policy/access.rs` | what is left of each grant once everything known is settled; whom to ask about |
//! | `policy/conditions.rs`, `policy/scope.rs` | what a policy asks, condition by condition, and what it is for |

pub mod access;
pub mod asked;
pub mod cedar;
mod code;
mod conditions;
pub mod diff;
pub mod explain;
pub mod files;
mod finding;
pub mod format;
pub mod gate;
pub mod governance;
mod lint;
pub mod listing;
mod metrics;
pub mod path;
mod reach;
mod reads;
mod scope;
mod shadow;
mod slice;
mod status;
pub mod symbolic;
pub mod who_can;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use crate::document::Node;
use crate::identity::SpiffeId;
use crate::live::Live;

pub use self::code::{Code, Codes, UnknownCode};
pub use self::finding::Finding;
pub use self::gate::Gate;
pub use self::governance::Grant;
pub use self::metrics::Metrics;
pub use self::status::Status;

/// Who asks: what the handshake proved.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// When its certificate ends.
    pub expires: SystemTime,
    /// How long its certificate was made to live.
    pub lifetime: Duration,
}

/// Where it asks; fixed for one connection.
#[derive(Clone, Debug)]
pub struct Place {
    /// The name of the service, the resource of every question.
    pub service: Arc<str>,
    /// The port that the peer connected to.
    pub port: u16,
    /// The address that the peer connects from.
    pub source: IpAddr,
}

/// What it asks for.
#[derive(Clone, Copy, Debug)]
pub enum Act<'a> {
    /// One HTTP request.
    Http {
        /// The method.
        method: &'a http::Method,
        /// The host that the request names, without port, in lower case.
        host: &'a str,
        /// The path without the query. Whoever asks has refused what the application could read as
        /// another path.
        path: &'a str,
    },
    /// One opaque TCP connection.
    Connect,
}

/// The policy of this sidecar: the engine in force, and whether its answers are enforced.
#[derive(Debug)]
pub struct Policy {
    engine: Live<cedar::Engine>,
    mode: Mode,
}

impl Policy {
    /// A policy that has no engine yet: until one is published, everything is [`DenialReason::NoPolicy`].
    #[must_use]
    pub fn new(settings: &Settings) -> Arc<Self> {
        Arc::new(Self {
            engine: Live::default(),
            mode: settings.mode,
        })
    }

    /// The engine in force; [`files::Watched`] is kept in it by [`crate::live::keep`].
    #[must_use]
    pub fn engine(&self) -> &Live<cedar::Engine> {
        &self.engine
    }

    /// A receiver that is told of every change of policy.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.engine.changes()
    }

    /// Whether answers are enforced.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// One connection's view of the policy.
    #[must_use]
    pub fn gate(self: &Arc<Self>, subject: Subject, place: Place, metrics: &Metrics) -> Gate {
        Gate::new(self.clone(), subject, place, metrics)
    }
}

/// What becomes of callers that speak no TLS, and so prove nothing: the key `plaintext` of a listener.
#[derive(Clone, Copy, Debug, Default)]
pub enum Plaintext {
    /// They are refused.
    #[default]
    Deny,
    /// They pass, so that a fleet can be moved over while it works. Policy is not asked: it has no principal
    /// to ask about. Each exchange is recorded and counted as what it is.
    AllowAndReport(Allowance),
}

/// The operator's word that callers who prove nothing may pass. Only the configuration makes one:
///
/// ```compile_fail
/// let forged = doorward::policy::Allowance(());
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Allowance(());

impl Plaintext {
    /// Reads the key.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        node.choice(&[
            ("deny", Self::Deny),
            ("allow_and_report", Self::AllowAndReport(Allowance(()))),
        ])
    }

    /// Whether they pass.
    #[must_use]
    pub fn is_allowed(self) -> bool {
        matches!(self, Self::AllowAndReport(_))
    }
}

impl Allowance {
    /// Lets one exchange pass that policy has no say in.
    pub fn permit(self) -> Permit {
        Permit {
            grant: None,
            generation: 0,
            would_deny: None,
        }
    }
}

/// Proof that policy allowed one exchange. Only [`Gate::authorize`] makes one, and [`Allowance::permit`] where the
/// operator leaves policy out:
///
/// ```compile_fail
/// let forged = doorward::policy::Permit { grant: None, generation: 1, would_deny: None };
/// ```
#[derive(Debug)]
#[must_use]
pub struct Permit {
    grant: Option<Arc<Grant>>,
    generation: u64,
    would_deny: Option<Arc<Denial>>,
}

impl Permit {
    /// The grant that allows it. None only where nothing is enforced ([`Mode::Observe`]) and no grant
    /// allows it, or where policy is left out ([`Allowance`]).
    #[must_use]
    pub fn grant(&self) -> Option<&Arc<Grant>> {
        self.grant.as_ref()
    }

    /// The generation of the policy that was asked; 0 if there was none.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The denial that this would have been, if the policies in dry run (`@mode("observe")`), or the
    /// whole policy under [`Mode::Observe`], were enforced.
    #[must_use]
    pub fn would_deny(&self) -> Option<&Denial> {
        self.would_deny.as_deref()
    }
}

/// Policy does not allow it.
#[derive(Clone, Debug)]
pub struct Denial {
    reason: DenialReason,
    generation: u64,
    grant: Option<Arc<Grant>>,
    detail: Option<Arc<str>>,
    would_allow: Option<Arc<Grant>>,
}

impl Denial {
    /// Why.
    #[must_use]
    pub fn reason(&self) -> DenialReason {
        self.reason
    }

    /// The generation of the policy that was asked; 0 if there was none.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The `forbid` that applies, or the policy that failed.
    #[must_use]
    pub fn grant(&self) -> Option<&Arc<Grant>> {
        self.grant.as_ref()
    }

    /// What failed, for the operator's eyes: never for the peer's.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// The grant in dry run (`@mode("observe")`) that would have allowed it.
    #[must_use]
    pub fn would_allow(&self) -> Option<&Arc<Grant>> {
        self.would_allow.as_ref()
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.reason)?;
        if let Some(grant) = &self.grant {
            write!(f, ": {}", grant.id)?;
        }
        Ok(())
    }
}

impl std::error::Error for Denial {}

/// Why policy denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DenialReason {
    /// No grant in force allows it.
    NoGrant,
    /// A `forbid` applies.
    Forbidden,
    /// A policy failed while it was evaluated; what it would have said is unknown.
    Error,
    /// No policy has been loaded.
    NoPolicy,
    /// The peer's certificate lives longer than its registration accepts.
    LifetimeTooLong,
}

impl DenialReason {
    /// Part of the public metrics and audit surface: never rename one.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoGrant => "no_grant",
            Self::Forbidden => "forbidden",
            Self::Error => "error",
            Self::NoPolicy => "no_policy",
            Self::LifetimeTooLong => "lifetime_too_long",
        }
    }
}

impl fmt::Display for DenialReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoGrant => "no grant in force allows this",
            Self::Forbidden => "a policy forbids this",
            Self::Error => "a policy failed while it was evaluated",
            Self::NoPolicy => "no policy is loaded",
            Self::LifetimeTooLong => {
                "the peer's certificate lives longer than its registration accepts"
            }
        })
    }
}

/// Where policy comes from and how strictly it is taken.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory with `*.cedar` and `workloads.yaml`.
    pub dir: PathBuf,
    /// What becomes of a grant that does not say who answers for it.
    pub governance: Governance,
    /// Whether answers are enforced.
    pub mode: Mode,
    /// The warnings that keep a directory from being put in force.
    pub deny: Codes,
    /// What the operator says about where this sidecar runs: `context.environment`. Not part of the
    /// section `policy`; see [`Settings::read_environment`].
    pub environment: BTreeMap<String, String>,
}

/// What becomes of a `permit` without `@id`, `@owner`, `@purpose` or `@expires`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Governance {
    /// It does not load.
    #[default]
    Enforce,
    /// It loads, with a warning.
    Advisory,
}

/// Whether the answers of policy are enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// What is denied does not pass.
    #[default]
    Enforce,
    /// Everything passes; what would have been denied is counted and recorded.
    Observe,
}

impl Settings {
    /// Settings for the policy in `dir`, everything else as it is by default.
    pub fn of(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            governance: Governance::default(),
            mode: Mode::default(),
            deny: Codes::default(),
            environment: BTreeMap::new(),
        }
    }

    /// Reads the section `policy`.
    #[must_use]
    pub fn read(node: Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let dir = section.required("dir", |node| node.path());
        let governance = section.or("governance", Governance::default(), |node| {
            node.choice(&[
                ("enforce", Governance::Enforce),
                ("advisory", Governance::Advisory),
            ])
        });
        let mode = section.or("mode", Mode::default(), |node| {
            node.choice(&[("enforce", Mode::Enforce), ("observe", Mode::Observe)])
        });
        let deny = section.or("deny", Codes::default(), |node| Codes::read(&node));
        Some(Self {
            dir: dir?,
            governance: governance?,
            mode: mode?,
            deny: deny?,
            environment: BTreeMap::new(),
        })
    }

    /// Reads the top-level section `environment`: free labels, as in `region: eu`.
    #[must_use]
    pub fn read_environment(node: Node<'_>) -> Option<BTreeMap<String, String>> {
        let labels = node.map(|node| node.text().map(Into::into))?;
        Some(labels.into_iter().collect())
    }
}

#[cfg(test)]
mod tests;
