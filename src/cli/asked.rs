//! What several commands are asked alike: which policy, and what request.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;

use crate::config::Config;
use crate::identity::SpiffeId;
use crate::policy::asked::{self, Action, Asked, Inquiry, Sought, What};
use crate::policy::{Governance, Settings, files, path};

/// Which policy it is about.
#[derive(Clone, Debug, clap::Args)]
pub struct Directory {
    /// The sidecar's configuration: names the policy directory and the environment.
    #[arg(short, long, value_name = "FILE", required_unless_present = "policy")]
    config: Option<PathBuf>,
    /// A policy directory, without a configuration.
    #[arg(short, long, value_name = "DIR", conflicts_with = "config")]
    policy: Option<PathBuf>,
    /// Load grants that do not say who answers for them, too (`policy.governance: advisory`).
    #[arg(long)]
    advisory: bool,
}

impl Directory {
    /// Where it is, and how strictly it is taken.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = match (&self.config, &self.policy) {
            (Some(path), _) => Config::open(path)?
                .policy
                .with_context(|| format!("{} has no section `policy`", path.display()))?,
            (None, dir) => Settings::of(dir.clone().unwrap_or_default()),
        };
        if self.advisory {
            settings.governance = Governance::Advisory;
        }
        Ok(settings)
    }
}

/// Which policy is asked, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    #[command(flatten)]
    directory: Directory,
    /// A label of the sidecar's environment, in place of the configured one; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    environment: Vec<(String, String)>,
}

/// The request.
#[derive(Clone, Debug, clap::Args)]
pub struct Request {
    /// The service that is asked, by the name that the configuration gives it.
    #[arg(long, value_name = "NAME")]
    pub service: Arc<str>,
    /// The HTTP method.
    #[arg(long, conflicts_with = "connect")]
    pub method: Option<http::Method>,
    /// The path, without the query.
    #[arg(long, conflicts_with = "connect")]
    pub path: Option<String>,
    /// The host that the request names.
    #[arg(long, conflicts_with = "connect")]
    pub host: Option<String>,
    /// Ask for an opaque TCP connection instead of an HTTP request.
    #[arg(long)]
    pub connect: bool,
    /// The address that the peer connects from.
    #[arg(long, value_name = "IP")]
    pub source: Option<IpAddr>,
    /// The port that it connects to.
    #[arg(long)]
    pub port: Option<u16>,
    /// How long the peer's certificate lives.
    #[arg(long, value_parser = humantime::parse_duration)]
    pub lifetime: Option<Duration>,
    /// When it is asked, as in 2027-06-30T12:00:00Z; now if it is not given.
    #[arg(long, value_name = "RFC3339")]
    pub at: Option<jiff::Timestamp>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

impl Place {
    /// Whether the environment is known.
    pub fn has_environment(&self) -> bool {
        self.directory.config.is_some() || !self.environment.is_empty()
    }

    /// Loads the policy.
    ///
    /// # Errors
    /// What is wrong with the configuration or the policy.
    pub fn inquiry(self) -> anyhow::Result<Inquiry> {
        let mut settings = self.directory.settings()?;
        settings.environment.extend(self.environment);
        inquiry(&settings)
    }
}

/// Loads the policy that `settings` name.
///
/// # Errors
/// What is wrong with it.
pub fn inquiry(settings: &Settings) -> anyhow::Result<Inquiry> {
    let engine = files::load(settings)?;
    Inquiry::new(settings, engine).context("the metrics of policy clash with each other")
}

impl Request {
    /// The question of `principal`; what is not said is taken as most requests have it.
    ///
    /// # Errors
    /// If policy would not even be asked.
    pub fn of(self, principal: SpiffeId) -> anyhow::Result<Asked> {
        let what = match self.connect {
            true => What::Connect,
            false => What::Http {
                path: decided(self.path.as_deref().unwrap_or("/"))?,
                host: self.host.unwrap_or_else(|| self.service.to_string()),
                method: self.method.unwrap_or_default(),
            },
        };
        Ok(Asked {
            principal,
            service: self.service,
            what,
            source: self.source.unwrap_or(asked::SOURCE),
            port: self.port.unwrap_or(asked::PORT),
            lifetime: self.lifetime.unwrap_or(asked::LIFETIME),
            at: self.at.map_or_else(SystemTime::now, SystemTime::from),
        })
    }

    /// The question of nobody in particular; what is not said stays open.
    ///
    /// # Errors
    /// As [`Request::of`].
    pub fn sought(self, environment: bool) -> anyhow::Result<Sought> {
        let http = self.path.is_some() || self.host.is_some();
        Ok(Sought {
            service: self.service,
            action: match (self.connect, self.method) {
                (true, _) => Action::Connect,
                (false, Some(method)) => Action::Http(method),
                (false, None) if http => Action::AnyHttp,
                (false, None) => Action::Any,
            },
            host: self.host,
            path: self.path.as_deref().map(decided).transpose()?,
            source: self.source,
            port: self.port,
            lifetime: self.lifetime,
            environment,
            clock: true,
            at: self.at.map_or_else(SystemTime::now, SystemTime::from),
        })
    }
}

/// The path that policy decides on.
///
/// # Errors
/// If the sidecar refuses it before policy is asked.
pub fn decided(path: &str) -> anyhow::Result<String> {
    let decided = path::decided(path);
    let decided = decided.with_context(|| {
        format!("{path}: the sidecar answers 400 to this, whatever policy says")
    })?;
    Ok(decided.into_owned())
}
