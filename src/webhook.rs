//! `doorward inject --webhook`: the API server asks about each new pod, and is told what the sidecar adds to it.
//!
//! A pod that comes here is one that somebody wants injected: the webhook's configuration says which, by
//! namespace or label. So what cannot be injected is refused, and says why; only who opted out, or has the
//! sidecar already, stays as it is. Nothing is ever written anywhere, so a dry run is like any other.
//!
//! The server proves itself by an identity from the same sources as a sidecar's, which must name the host
//! that the API server calls, and every rotation is in force on the next handshake. One thread does: a pod is
//! a matter of a fraction of a millisecond.

mod callers;
mod cluster;
mod identity;
mod publish;
mod review;
mod reviewer;
mod server;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

use self::cluster::Cluster;
use self::identity::{Clients, Servers};
use self::publish::Publisher;
use self::reviewer::Reviewer;
use self::server::Server;
use crate::admin::{self, Health, MetricsSettings, Routes};
use crate::document::{Document, Mistakes, Node};
use crate::identity::{Bundle, Provider, Status};
use crate::lifecycle::{CUT_TAKES_AT_MOST, Lifecycle, Phase, Tasks};
use crate::listen::{self, Address, Bound, Listener};
use crate::live::{self, Kept, Live};
use crate::sandbox::{self, Needs};
use crate::telemetry::{Registries, chain};
use crate::tls::{self, WebAcceptor, WebServer};
use crate::{descriptors, inject, limits, runtime, telemetry};

/// The whole file: what pods get, and how the server is.
#[derive(Clone, Debug)]
pub struct Config {
    /// What pods get.
    pub injection: inject::Settings,
    /// Needed for the server alone.
    pub webhook: Option<Settings>,
}

impl Config {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Every mistake in it, with line and key.
    pub fn open(path: &Path) -> Result<Self, Mistakes> {
        Document::open(path)?.read(|node| Self::read(&node))
    }

    /// Reads the whole document.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let injection = inject::Settings::read_from(&mut section);
        let webhook = section.optional("webhook", |node| Settings::read(&node));
        Some(Self {
            injection: injection?,
            webhook: webhook?,
        })
    }
}

/// The section `webhook`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the API server calls.
    pub listen: SocketAddr,
    /// Where the certificate comes from that the server proves itself by.
    pub identity: crate::identity::Settings,
    /// Roots that must vouch for whoever calls. Without them, nobody need prove who they are.
    pub clients: Option<PathBuf>,
    /// The listener for Prometheus and probes.
    pub metrics: MetricsSettings,
    /// Where the pod's service account is, by which the trust bundle is published.
    pub service_account: PathBuf,
    /// How long connections are still accepted after the signal to stop: until all have heard that we go.
    pub leave_after: Duration,
    /// How long a drain waits after that for reviews that are under way.
    pub drain_grace: Duration,
    /// What is logged.
    pub log: telemetry::Settings,
    /// What is given up after the start.
    pub sandbox: sandbox::Settings,
}

impl Settings {
    /// Reads the section `webhook`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let identity = section.required("identity", |node| {
            let settings = crate::identity::Settings::read(node.clone())?;
            match settings.crl {
                None => Some(settings),
                Some(_) => node.mistake(
                    "`crl` has no effect here: those who call are not judged by revocation lists",
                    Some("remove it; `clients` says who may call"),
                ),
            }
        });
        let listen = section.or("listen", everywhere(8443), |node| node.address());
        let clients = section.optional("clients", |node| node.path());
        let metrics = MetricsSettings {
            listen: everywhere(9901),
        };
        let metrics = section.or("metrics", metrics, |node| MetricsSettings::read(&node));
        let service_account = section.or("service_account", cluster::ACCOUNT.into(), |node| {
            node.path()
        });
        let leave_after = section.or("leave_after", LEAVE_AFTER, |node| {
            node.duration(Duration::ZERO..=MOST_PATIENCE)
        });
        let drain_grace = section.or("drain_grace", DRAIN_GRACE, |node| {
            node.duration(Duration::ZERO..=MOST_PATIENCE)
        });
        let log = section.or("log", telemetry::Settings::default(), |node| {
            telemetry::Settings::read(&node)
        });
        let sandbox = section.or("sandbox", sandbox::Settings::default(), |node| {
            sandbox::Settings::read(&node)
        });
        Some(Self {
            listen: listen?,
            identity: identity?,
            clients: clients?,
            metrics: metrics?,
            service_account: service_account?,
            leave_after: leave_after?,
            drain_grace: drain_grace?,
            log: log?,
            sandbox: sandbox?,
        })
    }

    /// What is touched after the start.
    fn needs(&self, bound: &Bound, cluster: Option<&Cluster>) -> Needs {
        let mut needs = Needs::default();
        // It is bound a second time, when it begins to listen.
        if let Address::Tcp(address) = bound.address() {
            needs.bind.push(address.port());
        }
        if let crate::identity::Source::Files(files) = &self.identity.source {
            let files = [&files.cert, &files.key, &files.bundle];
            needs.read.extend(files.map(Clone::clone));
        }
        needs.read.extend(self.clients.clone());
        if let Some(cluster) = cluster {
            needs.read.extend(cluster.files());
            needs.connect.push(cluster.port());
        }
        needs
    }
}

const fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

const LEAVE_AFTER: Duration = Duration::from_secs(5);
const DRAIN_GRACE: Duration = Duration::from_secs(10);
const MOST_PATIENCE: Duration = Duration::from_secs(600);

/// Serves until told to stop, and has drained. What `publish` names is the `MutatingWebhookConfiguration` that is
/// kept up to date with the trust bundle of our identity.
///
/// # Errors
/// Whatever was asked for and cannot be had stops the start.
pub fn run(
    settings: Settings,
    injection: inject::Settings,
    publish: Option<String>,
) -> anyhow::Result<ExitCode> {
    telemetry::start(&settings.log)?;
    runtime::raise_file_limit();
    descriptors::raise().context("cannot raise the number of file descriptors")?;
    let control = runtime::control().context("cannot start the control thread")?;
    let _entered = control.enter();
    let registries = Registries::new()?;
    let address = Address::Tcp(settings.listen);
    let bound = listen::bind(&address, 1)
        .with_context(|| format!("cannot listen on {address}"))?
        .pop()
        .context("one socket was asked for")?;
    let probes = admin::bind(settings.metrics.listen)?;
    let cluster = match &publish {
        Some(_) => Some(
            Cluster::of_this_pod(&settings.service_account)
                .context("`--publish-bundle` has nobody to publish to")?,
        ),
        None => None,
    };
    let needs = settings.needs(&bound, cluster.as_ref());
    // No other thread runs yet: each begins in the sandbox.
    let sandbox = sandbox::enter(&settings.sandbox, &needs)?;
    sandbox.show(registries.process())?;
    runtime::give_memory_back();
    tracing::info!(address = %bound.address(), what = "reviews", "bound");
    tracing::info!(address = %probes.local_addr()?, what = "metrics", "bound");
    sandbox.tell();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let lifecycle = Lifecycle::default();
    let identity = Arc::new(Live::<WebServer>::default());
    let published = Arc::new(AtomicBool::new(publish.is_none()));
    let leaving = Arc::new(AtomicBool::new(false));
    let health = Arc::new(health(&identity, &published, &leaving));
    let tally = limits::Metrics::register(registries.process())?.of("inbound", "webhook");
    let acceptor = WebAcceptor::new(
        identity.clone(),
        server::HANDSHAKE,
        tls::Metrics::register(registries.process())?,
    );
    let reviewer = Reviewer::new(injection, registries.process())?;
    let server = Server::new(acceptor, reviewer, lifecycle.clone(), tally.clone());
    let status = Status::register(registries.process())?;
    let publishing = publish::Metrics::register(registries.process())?;

    control.block_on(async move {
        tokio::spawn(health.pulse().keep());
        tokio::spawn(keep_identity(&settings, identity.clone(), status));
        if let (Some(cluster), Some(name)) = (cluster, publish) {
            let publisher = Publisher::new(cluster, name, publishing);
            let done = move || published.store(true, Ordering::Relaxed);
            tokio::spawn(publisher.keep(identity.clone(), done));
        }
        let routes = Arc::new(Routes::new(health, registries));
        tokio::spawn(admin::serve(probes, routes, lifecycle.reached(Phase::Cut)));

        let tasks = Tasks::default();
        let early = async {
            tokio::select! {
                _ = terminate.recv() => true,
                _ = interrupt.recv() => true,
                _ = identity.wait() => false,
            }
        };
        if early.await {
            return Ok(ExitCode::SUCCESS);
        }
        // Sockets are bound but refuse connections until there is an identity to answer with.
        let listener = Listener::new(bound, server::SILENCE).context("cannot listen")?;
        let spawner = tasks.clone();
        let stop = lifecycle.reached(Phase::Draining);
        let limit = Arc::new(Semaphore::new(server::CONNECTIONS));
        tasks.spawn(
            listener.serve(limit, tally, stop, move |stream, source, slot| {
                spawner.spawn(server.clone().serve(stream, source, slot));
            }),
        );
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        leaving.store(true, Ordering::Relaxed);
        tracing::info!(leave_after = ?settings.leave_after, "told to stop: not ready any more");
        tokio::select! {
            () = tokio::time::sleep(settings.leave_after) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!(grace = ?settings.drain_grace, "draining");
        lifecycle.drain();
        tokio::select! {
            () = tasks.ended() => {}
            () = tokio::time::sleep(settings.drain_grace) => {
                tracing::warn!("the grace is over: cutting what is still open");
                lifecycle.cut();
                let _ = tokio::time::timeout(CUT_TAKES_AT_MOST, tasks.ended()).await;
            }
        }
        tracing::info!("stopped");
        anyhow::Ok(ExitCode::SUCCESS)
    })
}

/// Keeps the certificate in force what the source says, for ever.
fn keep_identity(
    settings: &Settings,
    identity: Arc<Live<WebServer>>,
    mut status: Status,
) -> impl Future<Output = ()> + Send + 'static {
    let clients = settings.clients.clone().map(keep_clients);
    let source = Servers::new(Provider::new(&settings.identity), clients);
    async move {
        let tell = |kept: Kept<'_, WebServer, _>| match kept {
            Kept::Published(snapshot) => {
                let material = snapshot.value.material();
                status.published(material, snapshot.since);
                let not_after = humantime::format_rfc3339_seconds(material.leaf().not_after);
                tracing::info!(
                    id = %material.id(),
                    names = ?snapshot.value.names(),
                    serial = %material.leaf().serial,
                    %not_after,
                    generation = snapshot.generation,
                    "identity is in force"
                );
                if snapshot.value.names().is_empty() {
                    tracing::error!("{NAMELESS}");
                }
            }
            Kept::Withdrawn => {
                status.withdrawn();
                tracing::warn!(
                    "identity was withdrawn; nothing is answered until there is a new one"
                );
            }
            Kept::Failed(error, again) => {
                status.failed();
                tracing::warn!(error = %chain(error), ?again, "identity cannot be fetched; what is in force stays");
            }
        };
        live::keep(source, &identity, tell).await;
    }
}

/// Keeps the roots of clients what the file says.
fn keep_clients(path: PathBuf) -> Arc<Live<Bundle>> {
    let clients = Arc::new(Live::default());
    let kept = clients.clone();
    tokio::spawn(async move {
        let tell = |kept: Kept<'_, Bundle, _>| match kept {
            Kept::Published(snapshot) => {
                let roots = snapshot.value.certificates().count();
                tracing::info!(roots, "whoever calls must show a certificate of these");
            }
            // A file that is there always says something.
            Kept::Withdrawn => {}
            Kept::Failed(error, again) => {
                tracing::error!(error = %chain(error), ?again, "the roots of clients cannot be read; what is in force stays");
            }
        };
        live::keep(Clients::new(path), &kept, tell).await;
    });
    clients
}

/// The truth for Kubernetes, which sends reviews to whoever is ready.
fn health(
    identity: &Arc<Live<WebServer>>,
    published: &Arc<AtomicBool>,
    leaving: &Arc<AtomicBool>,
) -> Health {
    let (identity, published, leaving) = (identity.clone(), published.clone(), leaving.clone());
    Health::default()
        .ready_if("identity", move |now| match &*identity.peek() {
            None => Err("there is no certificate: none was issued yet, or it was withdrawn".into()),
            Some(server) if !server.value.valid_at(now) => {
                let leaf = server.value.material().leaf();
                let end = humantime::format_rfc3339_seconds(leaf.not_after);
                Err(format!(
                    "the certificate of {} is valid until {end} and was not renewed",
                    leaf.id
                ))
            }
            Some(server) if server.value.names().is_empty() => Err(NAMELESS.into()),
            Some(_) => Ok(()),
        })
        // Once it is, whoever cannot reach the API server is not called by it either.
        .ready_if("bundle", move |_| match published.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("our trust bundle is not published yet".into()),
        })
        .ready_if("running", move |_| match leaving.load(Ordering::Relaxed) {
            true => Err("draining".into()),
            false => Ok(()),
        })
}

const NAMELESS: &str = "the certificate names no host, so the API server will not take it: give the identity the DNS name of the webhook's Service, as in `doorward-webhook.doorward.svc`";

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let read = Document::new("inject.yaml", text).read(|node| Config::read(&node));
        read.map_err(|mistakes| mistakes.to_string())
    }

    const IDENTITY: &str = "identity: { workload_api: 'unix:///run/spire/agent.sock' }";

    #[test]
    fn the_server_needs_an_identity_and_has_defaults_for_the_rest() {
        assert!(read("image: a").unwrap().webhook.is_none());
        let config = read(&format!("image: a/b:1\nwebhook: {{ {IDENTITY} }}")).unwrap();
        assert_eq!(config.injection.image, "a/b:1");
        let webhook = config.webhook.unwrap();
        assert_eq!(webhook.listen.to_string(), "0.0.0.0:8443");
        assert_eq!(webhook.metrics.listen.to_string(), "0.0.0.0:9901");
        assert!(webhook.clients.is_none());
        let rest = "listen: '[::]:9443', metrics: { listen: '127.0.0.1:1' }, leave_after: 0s";
        let webhook = read(&format!("webhook: {{ {IDENTITY}, {rest} }}"));
        let webhook = webhook.unwrap().webhook.unwrap();
        assert_eq!(webhook.listen.to_string(), "[::]:9443");
        assert_eq!(webhook.leave_after, Duration::ZERO);
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        for (text, told) in [
            ("webhook: {}", "1: webhook: the key `identity` is missing"),
            (
                &format!("webhook: {{ {IDENTITY}, listen: 8443 }}"),
                "1: webhook.listen: `8443`",
            ),
            (
                &format!("webhook: {{ {IDENTITY}, prot: 1 }}"),
                "1: webhook.prot: unknown key",
            ),
            (
                &format!("webhook: {{ {IDENTITY} }}\nimag: a"),
                "2: imag: unknown key",
            ),
            (
                "webhook: { identity: { workload_api: 'unix:///a', crl: /b } }",
                "1: webhook.identity: `crl` has no effect here",
            ),
        ] {
            let mistakes = read(text).unwrap_err();
            assert!(mistakes.contains(told), "{text}\n{mistakes}");
        }
    }
}
