//! The file as written becomes [`Config`] as checked: one YAML file, every mistake told at once.
//!
//! Each module reads its own section; this one puts them together, and nobody imports it but the command
//! line and the composition.

mod entrances;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use self::entrances::Taken;
use crate::document::{Document, Mistakes, Node};
use crate::listen::Protocol;
use crate::{
    admin, audit, discovery, federation, identity, inbound, intercept, outbound, policy, probes,
    sandbox, telemetry,
};

/// What one sidecar does.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where our identity comes from.
    pub identity: identity::Settings,
    /// Trust domains whose bundles are fetched from their own endpoints.
    pub federation: Vec<federation::Settings>,
    /// Listeners for peers.
    pub inbound: Vec<inbound::Settings>,
    /// Listeners for our application.
    pub outbound: Vec<outbound::Settings>,
    /// Which connections the packet filter leads to us.
    pub intercept: Option<intercept::Settings>,
    /// Whom to ask where peers are.
    pub dns: discovery::Settings,
    /// What decides inbound requests. There whenever there are inbound listeners.
    pub policy: Option<policy::Settings>,
    /// Where records go.
    pub audit: audit::Settings,
    /// The listener for people on this machine.
    pub admin: Option<admin::Settings>,
    /// The listener for Prometheus and probes.
    pub metrics: Option<admin::MetricsSettings>,
    /// The listener for probes of our application.
    pub probes: Option<probes::Settings>,
    /// What is logged.
    pub log: telemetry::Settings,
    /// Worker threads; without a number, as many as the CPUs that the cgroup grants.
    pub workers: Option<usize>,
    /// How long a drain waits for what is open.
    pub drain_grace: Duration,
    /// What is given up after the start.
    pub sandbox: sandbox::Settings,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Every mistake in it, with line and key.
    pub fn open(path: &Path) -> Result<Self, Mistakes> {
        Document::open(path)?.read(Self::read)
    }

    /// Whether an application sees its clients' own addresses.
    #[must_use]
    pub fn keeps_client_addresses(&self) -> bool {
        let mut inbound = self.inbound.iter();
        inbound.any(|entry| entry.client_address == inbound::ClientAddress::Kept)
    }

    /// Reads the whole document.
    #[must_use]
    pub fn read(node: Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let identity = section.required("identity", |node| identity::Settings::read(node));
        let federation = section.or("federation", Vec::new(), |node| {
            federation::Settings::read_all(&node)
        });
        let intercept = section.optional("intercept", |node| intercept::Settings::read(&node));
        let mut taken = Taken::default();
        let inbound = section.or("inbound", Vec::new(), |node| {
            node.list(|item| {
                let settings = inbound::Settings::read(&item)?;
                taken.check(&item, &settings.entrance)?;
                Some(settings)
            })
        });
        let outbound = section.or("outbound", Vec::new(), |node| {
            node.list(|item| {
                let settings = outbound::Settings::read(&item)?;
                taken.check(&item, &settings.entrance)?;
                Some(settings)
            })
        });
        let dns = section.or("dns", discovery::Settings::default(), |node| {
            discovery::Settings::read(&node)
        });
        let policy = section.optional("policy", |node| policy::Settings::read(node));
        let environment = section.optional("environment", |node| {
            policy::Settings::read_environment(node)
        });
        let audit = section.or("audit", audit::Settings::default(), |node| {
            audit::Settings::read(&node)
        });
        let admin = section.optional("admin", |node| admin::Settings::read(&node));
        let metrics = section.optional("metrics", |node| admin::MetricsSettings::read(&node));
        let probes = section.optional("probes", |node| probes::Settings::read(&node));
        let log = section.or("log", telemetry::Settings::default(), |node| {
            telemetry::Settings::read(&node)
        });
        let workers =
            section.optional("workers", |node| usize::try_from(node.count(1..=256)?).ok());
        let drain_grace = section.or("drain_grace", DEFAULT_DRAIN_GRACE, |node| {
            node.duration(Duration::ZERO..=Duration::from_secs(3600))
        });

        let sandbox = section.or("sandbox", sandbox::Settings::default(), |node| {
            sandbox::Settings::read(&node)
        });

        let (inbound, outbound, mut policy) = (inbound?, outbound?, policy?);
        if inbound.is_empty() && outbound.is_empty() {
            let help = "write a list under `inbound`, under `outbound`, or under both";
            return section.node().mistake("there is nothing to do", Some(help));
        }
        if !inbound.is_empty() && policy.is_none() {
            let help = "write `policy:` with `dir:`, the directory of your *.cedar files";
            return section.node().mistake(
                "`inbound` needs a policy: without one, nobody is let in",
                Some(help),
            );
        }
        if let (Some(policy), Some(environment)) = (&mut policy, environment?) {
            policy.environment = environment;
        }
        let mut config = Self {
            identity: identity?,
            federation: federation?,
            inbound,
            outbound,
            intercept: intercept?,
            dns: dns?,
            policy,
            audit: audit?,
            admin: admin?,
            metrics: metrics?,
            probes: probes?,
            log: log?,
            workers: workers?,
            drain_grace: drain_grace?,
            sandbox: sandbox?,
        };
        entrances::check(section.node(), &mut config)?;
        Some(config)
    }
}

impl Config {
    /// What is sound, and leaves a door open that is to be closed one day.
    pub fn warnings(&self) -> impl Iterator<Item = Warning> {
        let open = self.inbound.iter();
        open.filter(|settings| settings.plaintext.is_allowed())
            .map(|settings| Warning::Plaintext {
                service: settings.service.clone(),
            })
    }

    /// What `engine` lets pass at `now` that nobody looks into, where requests would be looked into.
    pub fn opaque(&self, engine: &policy::cedar::Engine, now: SystemTime) -> Vec<Warning> {
        let auto = |entry: &&inbound::Settings| entry.listener.protocol == Protocol::Auto;
        let warning = |entry: &inbound::Settings| {
            let grants = engine.connecting(&entry.service, now);
            Some(Warning::Opaque {
                service: entry.service.clone(),
                grant: grants.first()?.id.clone(),
            })
        };
        let entries = self.inbound.iter().filter(auto);
        entries.filter_map(warning).collect()
    }
}

/// What `doorward check` and the log at the start say of a configuration that is sound.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum Warning {
    /// An inbound entry lets callers in that speak no TLS.
    #[error("the entry for `{service}` admits callers that prove nothing")]
    #[diagnostic(
        code(plaintext),
        severity(Warning),
        help(
            "no policy holds for them; write `plaintext: deny` once `doorward_inbound_plaintext_total` stands still"
        )
    )]
    Plaintext {
        /// The name of the service.
        service: Arc<str>,
    },
    /// Whoever may connect may send a request that nobody sees.
    #[error(
        "the entry for `{service}` has `protocol: auto`, and grant `{grant}` lets opaque bytes pass: if the application speaks HTTP, they may hold any request, with any header"
    )]
    #[diagnostic(
        code(opaque),
        severity(Warning),
        help(
            "write `protocol: tcp` if the application speaks no HTTP; if it does, `protocol: http`, and grants for requests"
        )
    )]
    Opaque {
        /// The name of the service.
        service: Arc<str>,
        /// The first of such grants.
        grant: Arc<str>,
    },
}

const DEFAULT_DRAIN_GRACE: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        let read = Document::new("doorward.yaml", text).read(Config::read);
        read.map(|_| String::new())
            .unwrap_or_else(|mistakes| mistakes.to_string())
    }

    const IDENTITY: &str = "identity: { workload_api: 'unix:///run/spire/agent.sock' }\n";
    const FILES: &str = "identity: { files: { cert: /c, key: /k, bundle: /b } }\n";

    #[test]
    fn the_smallest_sound_files_are_read() {
        for rest in [
            "inbound: [{ listen: '0.0.0.0:8443', service: a, app: '127.0.0.1:1' }]\npolicy: { dir: /p }",
            "outbound: [{ listen: '127.0.0.1:1', to: 'a:1', peer: 'spiffe://a/b' }]",
            "outbound: [{ listen: 'unix:/run/a', to: 'a:1', peer: ['spiffe://a/b', 'spiffe://a/*'] }]",
        ] {
            for identity in [IDENTITY, FILES] {
                assert_eq!(told(&format!("{identity}{rest}")), "");
            }
        }
    }

    #[test]
    fn every_mistake_has_its_message() {
        let outbound = "outbound: [{ listen: '127.0.0.1:1', to: 'a:1', peer: 'spiffe://a/b' }]\n";
        let inbound = "inbound: [{ listen: '0.0.0.0:8443', service: a, app: '127.0.0.1:1' }]\n";
        let two = "outbound:\n- { listen: '127.0.0.1:1', to: 'a:1', peer: 'spiffe://a/b' }\n- { listen: '127.0.0.1:1', to: 'b:1', peer: 'spiffe://a/b' }\n";
        for (text, line) in [
            (String::new(), "1: the key `identity` is missing"),
            (IDENTITY.into(), "1: there is nothing to do"),
            (
                format!("{IDENTITY}{inbound}"),
                "1: `inbound` needs a policy",
            ),
            (
                format!("{IDENTITY}{two}"),
                "4: outbound[1]: another listener wants 127.0.0.1:1 already",
            ),
            (
                format!("{IDENTITY}{outbound}wrokers: 2"),
                "3: wrokers: unknown key",
            ),
            (
                format!("{IDENTITY}{outbound}workers: 0"),
                "3: workers: 0 is out of range",
            ),
            (
                format!("{IDENTITY}{outbound}drain_grace: 5"),
                "3: drain_grace: `5` is not a length of time",
            ),
            (
                format!("{IDENTITY}{outbound}drain_grace: 2h"),
                "3: drain_grace: `2h` is out of range",
            ),
            (
                format!("identity: {{ workload_api: run/x }}\n{outbound}"),
                "1: identity.workload_api: `run/x` is not a Workload API socket",
            ),
            (
                format!(
                    "identity: {{ workload_api: 'unix:///x', spiffe_id: 'spiffe://a' }}\n{outbound}"
                ),
                "1: identity.spiffe_id: `spiffe://a`: names a trust domain",
            ),
            (
                format!("identity: {{ spiffe_id: 'spiffe://a/b' }}\n{outbound}"),
                "1: identity: nothing says where our identity comes from",
            ),
            (
                format!(
                    "identity: {{ workload_api: 'unix:///x', files: {{ cert: a, key: b, bundle: c }} }}\n{outbound}"
                ),
                "1: identity: our identity comes from one source, and here are two",
            ),
            (
                format!("identity: {{ files: {{ cert: a, key: b }} }}\n{outbound}"),
                "1: identity.files: the key `bundle` is missing",
            ),
            (
                format!(
                    "identity: {{ files: {{ cert: a, key: b, bundle: c }}, hint: d }}\n{outbound}"
                ),
                "1: identity.hint: files hold one certificate",
            ),
            (
                format!("{IDENTITY}outbound: {{ listen: x }}"),
                "2: outbound: expected a list here",
            ),
            (
                format!("{IDENTITY}outbound: [{{ listen: x, to: y, peer: z }}]"),
                "2: outbound[0].listen: `x`: write an IP address",
            ),
            (
                format!("{IDENTITY}outbound: [{{ listen: x, to: y, peer: z }}]"),
                "2: outbound[0].to: `y`: write a host and a port",
            ),
            (
                format!("{IDENTITY}outbound: [{{ listen: x, to: y, peer: z }}]"),
                "2: outbound[0].peer: `z`",
            ),
            (
                format!("{IDENTITY}outbound: [{{ listen: '127.0.0.1:1', to: 'a:1', peer: [] }}]"),
                "2: outbound[0].peer: at least one",
            ),
            (
                format!(
                    "{IDENTITY}outbound: [{{ listen: '127.0.0.1:1', to: 'a:1', peer: 'spiffe://a/b', protocol: udp }}]"
                ),
                "2: outbound[0].protocol: `udp` is not known here",
            ),
            (
                format!("{IDENTITY}{outbound}audit: {{ level: some }}"),
                "3: audit.level: `some` is not known here",
            ),
            (
                format!("{IDENTITY}{outbound}admin: {{ listen: '0.0.0.0:1' }}"),
                "3: admin.listen: `0.0.0.0:1` is open to other machines",
            ),
            (
                format!("{IDENTITY}{outbound}metrics: {{ listen: 9901 }}"),
                "3: metrics.listen: `9901` is not an IP address",
            ),
            (
                format!("{IDENTITY}{outbound}log: {{ format: xml }}"),
                "3: log.format: `xml` is not known here",
            ),
            (
                format!("{IDENTITY}{outbound}dns: {{ servers: [ns.example.org] }}"),
                "3: dns.servers[0]: `ns.example.org` is not an IP address",
            ),
            (
                format!("{IDENTITY}{outbound}policy: {{ directory: /p }}"),
                "3: policy: the key `dir` is missing",
            ),
            (
                format!("{IDENTITY}{outbound}environment: [eu]"),
                "3: environment: expected keys with values",
            ),
            ("identity: [\n".into(), "2: not valid YAML"),
        ] {
            let all = told(&text);
            let found = all
                .lines()
                .any(|told| told.starts_with(&format!("doorward.yaml:{line}")));
            assert!(found, "{text}\nexpected: {line}\ntold: {all}");
        }
    }
}
