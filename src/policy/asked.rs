//! What do people ask of a policy, and what does it answer? Decided by the [`Gate`](super::Gate) that
//! decides on connections.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::cedar::{Engine, Verb};
use super::conditions::Input;
use super::{Act, Denial, Metrics, Mode, Permit, Place, Policy, Settings, Subject};
use crate::identity::SpiffeId;
use crate::live::Snapshot;

/// One question, with everything that an answer can depend on.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who asks.
    pub principal: SpiffeId,
    /// The service that is asked, by the name that the configuration gives it.
    pub service: Arc<str>,
    /// What it is asked for.
    pub what: What,
    /// The address that the peer connects from.
    pub source: IpAddr,
    /// The port that it connects to.
    pub port: u16,
    /// How long the peer's certificate lives.
    pub lifetime: Duration,
    /// When.
    pub at: SystemTime,
}

/// What is asked for.
#[derive(Clone, Debug)]
pub enum What {
    /// One HTTP request, by what policy sees of it: see [`Act::Http`].
    Http {
        /// The method.
        method: http::Method,
        /// The host.
        host: String,
        /// The path.
        path: String,
    },
    /// One opaque TCP connection.
    Connect,
}

impl Asked {
    /// What is asked for, as the gate takes it.
    #[must_use]
    pub fn act(&self) -> Act<'_> {
        match &self.what {
            What::Http { method, host, path } => Act::Http { method, host, path },
            What::Connect => Act::Connect,
        }
    }

    pub(super) fn subject(&self) -> Subject {
        Subject {
            id: self.principal.clone(),
            expires: self.at.checked_add(self.lifetime).unwrap_or(self.at),
            lifetime: self.lifetime,
        }
    }

    pub(super) fn place(&self) -> Place {
        Place {
            service: self.service.clone(),
            port: self.port,
            source: self.source,
        }
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Connect => write!(f, "{} connect at {}", self.principal, self.service),
            What::Http { method, path, .. } => {
                write!(f, "{} {method} {path} at {}", self.principal, self.service)
            }
        }
    }
}

/// A question without a principal, and with gaps: what is not said is left open.
#[derive(Clone, Debug)]
pub struct Sought {
    /// The service that is asked.
    pub service: Arc<str>,
    /// What it is asked for.
    pub action: Action,
    /// The host.
    pub host: Option<String>,
    /// The path.
    pub path: Option<String>,
    /// The address that the peer connects from.
    pub source: Option<IpAddr>,
    /// The port that it connects to.
    pub port: Option<u16>,
    /// How long the peer's certificate lives.
    pub lifetime: Option<Duration>,
    /// Whether the environment is the sidecar's; otherwise it is open.
    pub environment: bool,
    /// When: what has ended then is not in force.
    pub at: SystemTime,
    /// Whether conditions on the time are settled too; otherwise they are open.
    pub clock: bool,
}

/// The actions that are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// All of them.
    Any,
    /// All that are HTTP requests.
    AnyHttp,
    /// One method.
    Http(http::Method),
    /// An opaque TCP connection.
    Connect,
}

impl Sought {
    /// Anything at `service`, by the policies that are in force at `at`.
    #[must_use]
    pub fn anything(service: Arc<str>, at: SystemTime) -> Self {
        Self {
            service,
            action: Action::Any,
            host: None,
            path: None,
            source: None,
            port: None,
            lifetime: None,
            environment: false,
            at,
            clock: false,
        }
    }

    pub(super) fn verbs(&self) -> Vec<Verb> {
        let all = Verb::ALL.into_iter();
        match &self.action {
            Action::Any => all.collect(),
            Action::AnyHttp => all.filter(|verb| verb.group().is_some()).collect(),
            Action::Http(method) => {
                let (host, path) = ("", "");
                vec![Verb::of(&Act::Http { method, host, path })]
            }
            Action::Connect => vec![Verb::TcpConnect],
        }
    }

    /// The question for one principal and one action, anything in its gaps, and which those are.
    pub(super) fn of(&self, principal: &SpiffeId, verb: Verb) -> (Asked, BTreeSet<Input>) {
        let mut open = BTreeSet::new();
        let mut gap = |input: Input, is: bool| {
            if is {
                open.insert(input);
            }
        };
        gap(Input::Host, self.host.is_none());
        gap(Input::Path, self.path.is_none());
        gap(Input::Source, self.source.is_none());
        gap(Input::Port, self.port.is_none());
        gap(Input::Lifetime, self.lifetime.is_none());
        gap(Input::Expires, self.lifetime.is_none());
        gap(Input::Environment, !self.environment);
        gap(Input::Now, !self.clock);
        let method = match &self.action {
            Action::Http(method) => method.clone(),
            _ => {
                gap(Input::Method, verb == Verb::Other);
                // No method of HTTP is called `other`, so it stands for those without an action.
                verb.name().parse().unwrap_or_default()
            }
        };
        let what = match verb {
            Verb::TcpConnect => What::Connect,
            _ => What::Http {
                method,
                host: self
                    .host
                    .clone()
                    .unwrap_or_else(|| self.service.to_string()),
                path: self.path.clone().unwrap_or_else(|| "/".to_owned()),
            },
        };
        let asked = Asked {
            principal: principal.clone(),
            service: self.service.clone(),
            what,
            source: self.source.unwrap_or(SOURCE),
            port: self.port.unwrap_or(PORT),
            lifetime: self.lifetime.unwrap_or(LIFETIME),
            at: self.at,
        };
        (asked, open)
    }
}

/// Where a peer connects from if nothing is said.
pub const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The port that it connects to if nothing is said.
pub const PORT: u16 = 8443;

/// How long its certificate lives if nothing is said.
pub const LIFETIME: Duration = Duration::from_secs(3600);

/// A policy that people ask, apart from any connection.
#[derive(Debug)]
pub struct Inquiry {
    policy: Arc<Policy>,
    snapshot: Arc<Snapshot<Engine>>,
    environment: BTreeMap<String, String>,
    metrics: Metrics,
}

impl Inquiry {
    /// Puts `engine`, loaded with `settings`, where it can be asked. It answers as it says, whatever a
    /// sidecar in observation ([`Mode::Observe`]) makes of that.
    ///
    /// # Errors
    /// If the metrics of policy clash with each other.
    pub fn new(settings: &Settings, engine: Engine) -> prometheus::Result<Self> {
        let policy = Policy::new(&Settings {
            mode: Mode::Enforce,
            ..settings.clone()
        });
        policy.engine().publish(engine);
        let snapshot = policy.engine().get();
        let snapshot =
            snapshot.expect("it was published just now, and nobody else can withdraw it");
        let metrics = Metrics::register(&prometheus::Registry::new())?;
        Ok(Self {
            policy,
            snapshot,
            environment: settings.environment.clone(),
            metrics,
        })
    }

    /// The policy that is asked.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.snapshot.value
    }

    /// What the operator says about where the sidecar runs.
    #[must_use]
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Decides as a connection's gate does.
    ///
    /// # Errors
    /// The denial.
    pub fn decide(&self, asked: &Asked) -> Result<Permit, Denial> {
        let gate = self
            .policy
            .gate(asked.subject(), asked.place(), &self.metrics);
        gate.authorize(&asked.act(), asked.at)
    }
}
