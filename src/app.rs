//! Who is built from what, in which order; start and stop.

mod needs;
mod revocation;
mod supervisor;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;

use crate::admin::{self, Health, Pulse, Routes};
use crate::app::revocation::Revocation;
use crate::audit::Audit;
use crate::config::Config;
use crate::descriptors;
use crate::discovery::{self, Directory};
use crate::federation::{self, Federation};
use crate::identity::crl::{Crls, Revoking};
use crate::identity::shown::Shown;
use crate::inbound::{self, Inbound};
use crate::intercept::Otherwise;
use crate::lifecycle::{CUT_TAKES_AT_MOST, Lifecycle, Phase, Tasks};
use crate::limits::Credit;
use crate::listen::{self, Address, Bound, Entrance, Inherited, Listener};
use crate::live::{self, Change, Kept, Live, Source};
use crate::outbound::{self, Outbound};
use crate::policy::{self, Policy};
use crate::probes::Probes;
use crate::sandbox;
use crate::secrets;
use crate::session::{Clock, Roll};
use crate::telemetry::{Registries, chain};
use crate::tls::{Endpoint, Endpoints, Verifications};
use crate::worker::{self, Worker};
use crate::{identity, runtime};

/// Runs one sidecar until it is told to stop and has drained.
///
/// # Errors
/// Whatever was asked for and cannot be had stops the start.
pub fn run(config: Config) -> anyhow::Result<ExitCode> {
    check_rights(&config)?;
    let most = descriptors::raise().context("cannot raise the number of file descriptors")?;
    tracing::debug!(most, "file descriptors");
    let registries = Registries::new()?;
    let control = runtime::control().context("cannot start the control thread")?;
    let _entered = control.enter();
    let sockets = Sockets::bind(&config)?;
    let federation = federation::Metrics::register(registries.process())?;
    let longest = config.identity.max_peer_lifetime;
    let federation =
        Federation::open(&config.federation, longest, &federation).context("cannot federate")?;
    let names = discovery::Metrics::register(registries.process())?;
    let hosts = config.outbound.iter().flat_map(outbound::Settings::hosts);
    let directory = Arc::new(Directory::new(hosts));
    let fingerprints = Arc::new(match &config.audit.fingerprint_key {
        Some(path) => secrets::Key::open(path),
        None => secrets::Key::generate(),
    }?);
    // What is read or bound only once is, and no other thread runs yet: each begins in the sandbox.
    let sandbox = Arc::new(sandbox::enter(&config.sandbox, &sockets.needs(&config))?);
    sandbox.show(registries.process())?;
    runtime::give_memory_back();
    let policy = match &config.policy {
        Some(settings) => Some(control.block_on(Loaded::open(settings, &registries))?),
        None => None,
    };
    let revocation = match &config.identity.crl {
        Some(path) => Some(control.block_on(Revocation::open(path, &registries))?),
        None => None,
    };
    // Only now: mistakes in policies are told as `check` tells them, and nothing before.
    sockets.tell()?;
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    sandbox.tell();
    // Before there is anything that a signal should end in good order.
    let signals = Signals::new()?;
    let (audit, writer) = Audit::start(&config.audit, registries.process())?;
    let lifecycle = Lifecycle::default();
    let endpoints = Arc::new(Live::<Endpoint>::default());
    let clock = Clock::default();
    let credit = Credit::default();
    let open = Arc::new(AtomicUsize::new(0));
    let failed = Arc::new(AtomicBool::new(false));
    let workers = sockets.data.len();
    let decides = policy.as_ref().map(|loaded| loaded.policy.clone());
    let health = health(
        &endpoints,
        decides.as_ref(),
        &audit,
        &lifecycle,
        &open,
        workers,
    );
    let told = sandbox.clone();
    let health = health.tells("sandbox", move |_| Some(told.to_string()));
    let health = Arc::new(match &revocation {
        Some(revocation) => revocation.shown_by(health),
        None => health,
    });

    let jobs = sockets.data.into_iter().map(|bound| {
        let share = Share {
            identity: endpoints.clone(),
            directory: directory.clone(),
            policy: decides.clone(),
            audit: audit.worker(),
            fingerprints: fingerprints.clone(),
            lifecycle: lifecycle.clone(),
            clock: clock.clone(),
            credit: credit.clone(),
            open: open.clone(),
            failed: failed.clone(),
            registry: registries.worker(),
        };
        let pulse = health.pulse();
        move || share.run(bound, pulse)
    });
    let jobs: Vec<_> = jobs.collect();

    let calm = control.block_on(async {
        let status = identity::Status::register(registries.process())?;
        let verifications = Verifications::register(registries.process())?;
        let crls = match revocation {
            Some(revocation) => {
                let crls = revocation.crls.clone();
                tokio::spawn(revocation.keep());
                crls
            }
            None => Arc::default(),
        };
        let shown = show_identity(config.identity.clone(), endpoints.clone());
        tokio::spawn(keep_identity(
            config.identity,
            federation,
            crls,
            endpoints,
            status,
            verifications,
        ));
        directory.keep(config.dns, &names);
        tokio::spawn(clock.keep());
        tokio::spawn(supervisor::tell(health.clone(), lifecycle.clone()));
        if let Some(loaded) = policy {
            tokio::spawn(loaded.keep());
        }
        let routes = Routes::new(health, registries);
        let written = audit.clone();
        let told = routes
            .clone()
            .with_identity(shown)
            .with_audit(move || written.chain());
        for (listener, routes) in [(sockets.admin, told), (sockets.metrics, routes)] {
            if let Some(listener) = listener {
                let over = lifecycle.reached(Phase::Cut);
                tokio::spawn(admin::serve(listener, Arc::new(routes), over));
            }
        }
        if let (Some(listener), Some(settings)) = (sockets.probes, config.probes) {
            let over = lifecycle.reached(Phase::Cut);
            let probes = Arc::new(Probes::new(settings));
            tokio::spawn(admin::serve(listener, probes, over));
        }
        let mut workers = runtime::start(jobs).context("cannot start the workers")?;
        signals
            .stop(&lifecycle, &audit, config.drain_grace, workers.ended())
            .await;
        anyhow::Ok(workers.join() && !failed.load(Ordering::Relaxed))
    })?;
    writer
        .stop(AUDIT_PATIENCE)
        .context("the audit could not be finished")?;
    tracing::info!("stopped");
    Ok(if calm {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether we are who the packet filter takes us for, and may do what we were told to.
fn check_rights(config: &Config) -> anyhow::Result<()> {
    let intercept = config.intercept.as_ref();
    if let Some(settings) = intercept.filter(|settings| settings.outbound.is_some()) {
        let own = nix::unistd::geteuid().as_raw();
        ensure!(
            own == settings.user,
            "`intercept.user` is {}, and this runs as {own}: what we connect to would be led back to us; \
             run as that user, or write `intercept.user: {own}` and `doorward intercept apply`",
            settings.user
        );
    }
    ensure!(
        !config.keeps_client_addresses() || sandbox::may_use_foreign_addresses(),
        "`client_address: kept` takes the capability CAP_NET_RAW, and we do not have it: give it to this \
         process (systemd: `AmbientCapabilities=CAP_NET_RAW`), or write `client_address: sidecar`"
    );
    Ok(())
}

/// How long the last audit records may take to be written.
const AUDIT_PATIENCE: Duration = Duration::from_secs(5);

/// Every socket of the process, bound before anything starts: a taken port stops the start.
struct Sockets {
    /// For each worker, one socket for each listener.
    data: Vec<Vec<(Settings, Bound)>>,
    admin: Option<TcpListener>,
    metrics: Option<TcpListener>,
    probes: Option<TcpListener>,
}

/// What is served on a socket.
#[derive(Clone)]
enum Settings {
    Inbound(inbound::Settings),
    Outbound(outbound::Settings),
    /// Whatever the packet filter leads here.
    Intercepted(Intercepted),
}

/// The entries behind one port that connections are led to.
#[derive(Clone)]
enum Intercepted {
    Inbound(Vec<inbound::Settings>),
    Outbound(Vec<outbound::Settings>, Otherwise),
}

impl Settings {
    /// For how long an accepted connection may give no sign of life.
    fn silence(&self) -> Duration {
        let longest = match self {
            Self::Inbound(settings) => return settings.listener.silence(),
            Self::Outbound(settings) => return settings.listener.silence(),
            Self::Intercepted(Intercepted::Inbound(entries)) => {
                entries.iter().map(|entry| entry.listener.silence()).max()
            }
            Self::Intercepted(Intercepted::Outbound(entries, _)) => {
                entries.iter().map(|entry| entry.listener.silence()).max()
            }
        };
        longest.unwrap_or(listen::MINUTE)
    }

    /// How many connections may be open. Intercepted ones count where they are served.
    fn max_connections(&self) -> usize {
        match self {
            Self::Inbound(settings) => settings.listener.max_connections,
            Self::Outbound(settings) => settings.listener.max_connections,
            Self::Intercepted(_) => 1,
        }
    }
}

impl Sockets {
    fn bind(config: &Config) -> anyhow::Result<Self> {
        let mut inherited = Inherited::from_environment()?;
        let workers = config.workers.unwrap_or_else(runtime::default_workers);
        let mut data: Vec<Vec<_>> = std::iter::repeat_with(Vec::new).take(workers).collect();
        let mut serve = |settings: Settings, bound: Vec<Bound>| {
            for (worker, bound) in data.iter_mut().zip(bound) {
                worker.push((settings.clone(), bound));
            }
        };
        let mut listen = |address: &Address| {
            let mut bind = || match inherited.bind(address, workers)? {
                Some(bound) => Ok(bound),
                None => listen::bind(address, workers),
            };
            bind().with_context(|| format!("cannot listen on {address}"))
        };
        let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
        for settings in &config.inbound {
            match &settings.entrance {
                Entrance::Listen(address) => {
                    let bound = listen(address)?;
                    serve(Settings::Inbound(settings.clone()), bound);
                }
                Entrance::Intercept(_) => inbound.push(settings.clone()),
            }
        }
        for settings in &config.outbound {
            match &settings.entrance {
                Entrance::Listen(address) => {
                    let bound = listen(address)?;
                    serve(Settings::Outbound(settings.clone()), bound);
                }
                Entrance::Intercept(_) => outbound.push(settings.clone()),
            }
        }
        let intercept = config.intercept.as_ref();
        let otherwise = intercept.and_then(|settings| Some(settings.outbound.as_ref()?.otherwise));
        let otherwise = otherwise.unwrap_or(Otherwise::Deny);
        let ports = [
            (
                intercept.and_then(|settings| Some(settings.inbound.as_ref()?.port)),
                Intercepted::Inbound(inbound),
            ),
            (
                intercept.and_then(|settings| Some(settings.outbound.as_ref()?.port)),
                Intercepted::Outbound(outbound, otherwise),
            ),
        ];
        for (port, entries) in ports {
            if let Some(port) = port {
                let bound = listen::bind_everywhere(port, workers)
                    .with_context(|| format!("cannot listen on port {port}"))?;
                serve(Settings::Intercepted(entries), bound);
            }
        }
        let admin = config.admin.map(|admin| admin.listen);
        let metrics = config.metrics.map(|metrics| metrics.listen);
        let probes = config.probes.as_ref().map(|probes| probes.listen);
        let mut bind = |address| bind_admin(address, &mut inherited);
        let sockets = Self {
            admin: admin.map(&mut bind).transpose()?,
            metrics: metrics.map(&mut bind).transpose()?,
            probes: probes.map(&mut bind).transpose()?,
            data,
        };
        inherited.finish()?;
        Ok(sockets)
    }

    /// Says where they are.
    fn tell(&self) -> io::Result<()> {
        // The workers' sockets share their addresses.
        for (settings, bound) in self.data.first().into_iter().flatten() {
            tracing::info!(address = %bound.address(), what = %settings.what(), "bound");
        }
        let others = [
            (&self.probes, "probes"),
            (&self.admin, "admin"),
            (&self.metrics, "metrics"),
        ];
        for (listener, what) in others {
            if let Some(listener) = listener {
                tracing::info!(address = %listener.local_addr()?, what, "bound");
            }
        }
        Ok(())
    }
}

impl Settings {
    fn what(&self) -> String {
        match self {
            Self::Inbound(settings) => format!("inbound for {}", settings.service),
            Self::Outbound(settings) => format!("outbound to {}", settings.label()),
            Self::Intercepted(Intercepted::Inbound(_)) => "intercepted inbound".into(),
            Self::Intercepted(Intercepted::Outbound(_, Otherwise::Deny)) => {
                "intercepted outbound".into()
            }
            Self::Intercepted(Intercepted::Outbound(_, Otherwise::Passthrough)) => {
                "intercepted outbound; what no entry leads on passes through in plain".into()
            }
        }
    }
}

fn bind_admin(address: SocketAddr, inherited: &mut Inherited) -> anyhow::Result<TcpListener> {
    let Some(socket) = inherited.take(&Address::Tcp(address)) else {
        return Ok(admin::bind(address)?);
    };
    let listener = std::net::TcpListener::from(socket);
    let adopt = || {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    adopt().with_context(|| format!("cannot listen on {address}"))
}

/// The policy as it was when we started, and where its changes come from.
struct Loaded {
    policy: Arc<Policy>,
    changes: policy::files::Watched,
    status: policy::Status,
}

impl Loaded {
    async fn open(settings: &policy::Settings, registries: &Registries) -> anyhow::Result<Self> {
        let loaded = Self {
            policy: Policy::new(settings),
            changes: policy::files::Watched::new(settings.clone()),
            status: policy::Status::register(registries.process())?,
        };
        loaded.first().await
    }

    async fn first(mut self) -> anyhow::Result<Self> {
        if let Change::Replace(engine) = self.changes.next().await? {
            warn(&engine);
            self.policy.engine().publish(engine);
        }
        if let Some(snapshot) = self.policy.engine().get() {
            self.status.published(&snapshot);
        }
        Ok(self)
    }

    async fn keep(self) {
        let Self {
            policy,
            changes,
            status,
        } = self;
        let tell = |kept: Kept<'_, _, _>| match kept {
            Kept::Published(snapshot) => {
                status.published(snapshot);
                warn(&snapshot.value);
                tracing::info!(generation = snapshot.generation, "policy is in force");
            }
            // A directory that is there always says something.
            Kept::Withdrawn => {}
            Kept::Failed(error, _) => {
                status.failed();
                tracing::error!(%error, "policy cannot be loaded; the one in force stays");
            }
        };
        live::keep(changes, policy.engine(), tell).await;
    }
}

/// Logs what there is to warn of, within reason: a directory can be full of it.
fn warn(engine: &policy::cedar::Engine) {
    for warning in engine.warnings().take(MOST_WARNINGS) {
        let code = warning.code().map(policy::Code::label);
        tracing::warn!(code, %warning, "policy");
    }
    if let Some(more @ 1..) = engine.warnings().count().checked_sub(MOST_WARNINGS) {
        tracing::warn!("and {more} more warnings of policy; `doorward check` shows them");
    }
}

const MOST_WARNINGS: usize = 100;

async fn keep_identity(
    settings: identity::Settings,
    federation: Federation,
    crls: Arc<Live<Crls>>,
    endpoints: Arc<Live<Endpoint>>,
    mut status: identity::Status,
    verifications: Verifications,
) {
    let materials = federation.join(identity::Provider::new(&settings));
    let revoking = Revoking::new(materials, crls);
    let source = Endpoints::new(revoking, settings.max_peer_lifetime, verifications);
    federation.keep();
    let tell = |kept: Kept<'_, Endpoint, _>| match kept {
        Kept::Published(snapshot) => {
            let material = snapshot.value.material();
            status.published(material, snapshot.since);
            let not_after = humantime::format_rfc3339_seconds(material.leaf().not_after);
            tracing::info!(
                id = %material.id(),
                serial = %material.leaf().serial,
                %not_after,
                generation = snapshot.generation,
                "identity is in force"
            );
        }
        Kept::Withdrawn => {
            status.withdrawn();
            tracing::warn!("identity was withdrawn; nothing is served until there is a new one");
        }
        Kept::Failed(error, again) => {
            status.failed();
            tracing::warn!(error = %chain(error), ?again, "identity cannot be fetched; what is in force stays");
        }
    };
    live::keep(source, &endpoints, tell).await;
}

/// What people who ask are shown of the identity in force.
fn show_identity(
    settings: identity::Settings,
    endpoints: Arc<Live<Endpoint>>,
) -> impl Fn(SystemTime) -> Shown + Send + Sync + 'static {
    move |now| match endpoints.get() {
        Some(endpoint) => {
            Shown::of(endpoint.value.material(), &settings, now).in_force(&endpoint, now)
        }
        None => Shown::nobody(&settings),
    }
}

/// The truth for whoever sends requests here.
fn health(
    identity: &Arc<Live<Endpoint>>,
    policy: Option<&Arc<Policy>>,
    audit: &Audit,
    lifecycle: &Lifecycle,
    open: &Arc<AtomicUsize>,
    workers: usize,
) -> Health {
    let (identity, audit, lifecycle, open) = (
        identity.clone(),
        audit.clone(),
        lifecycle.clone(),
        open.clone(),
    );
    let health = Health::default()
        .ready_if("identity", move |now| match &*identity.peek() {
            None => Err("there is no identity: none was issued yet, or it was withdrawn".into()),
            Some(endpoint) if endpoint.value.valid_at(now) => Ok(()),
            Some(endpoint) => {
                let leaf = endpoint.value.material().leaf();
                let end = humantime::format_rfc3339_seconds(leaf.not_after);
                Err(format!(
                    "the certificate of {} is valid until {end} and was not renewed",
                    leaf.id
                ))
            }
        })
        .ready_if("listeners", move |_| match open.load(Ordering::Relaxed) {
            open if open == workers => Ok(()),
            open => Err(format!("{open} of {workers} workers accept connections")),
        })
        .ready_if("audit", move |_| audit.healthy())
        .ready_if("running", move |_| match lifecycle.phase() {
            Phase::Running => Ok(()),
            Phase::Draining | Phase::Cut => Err("draining".into()),
        });
    match policy.cloned() {
        Some(policy) => health.ready_if("policy", move |_| match policy.engine().get() {
            Some(_) => Ok(()),
            None => Err("no policy is loaded".into()),
        }),
        None => health,
    }
}

/// One worker's share of the process.
struct Share {
    identity: Arc<Live<Endpoint>>,
    directory: Arc<Directory>,
    policy: Option<Arc<Policy>>,
    audit: Audit,
    fingerprints: Arc<secrets::Key>,
    lifecycle: Lifecycle,
    clock: Clock,
    credit: Credit,
    /// Counts the workers that accept connections.
    open: Arc<AtomicUsize>,
    /// Set when one of them cannot.
    failed: Arc<AtomicBool>,
    registry: prometheus::Registry,
}

impl Share {
    /// Serves until the drain is over. Sockets are bound but refuse connections until there is an
    /// identity to answer with.
    async fn run(self, bound: Vec<(Settings, Bound)>, pulse: Pulse) {
        tokio::spawn(pulse.keep());
        let identified = async { drop(self.identity.wait().await) };
        tokio::select! {
            () = self.lifecycle.reached(Phase::Draining) => return,
            () = identified => {}
        }
        let tasks = Tasks::default();
        let roll = Roll::default();
        let mut changes = vec![self.identity.changes(), self.clock.steps()];
        changes.extend(self.policy.iter().map(|policy| policy.changes()));
        tokio::spawn(roll.clone().keep(changes));
        let metrics = match worker::Metrics::register(&self.registry) {
            Ok(metrics) => metrics,
            Err(error) => return self.give_up("cannot register metrics", &error),
        };
        let worker = Arc::new(Worker {
            identity: self.identity.clone(),
            directory: self.directory.clone(),
            audit: self.audit.clone(),
            fingerprints: self.fingerprints.clone(),
            lifecycle: self.lifecycle.clone(),
            tasks: tasks.clone(),
            roll,
            credit: self.credit.clone(),
            metrics,
        });
        let mut close: Vec<Box<dyn Fn()>> = Vec::new();
        for (settings, bound) in bound {
            let address = bound.address().clone();
            let silence = settings.silence();
            let listener = match Listener::new(bound, silence) {
                Ok(listener) => listener,
                Err(error) => return self.give_up(&format!("cannot listen on {address}"), &error),
            };
            let limit = Arc::new(Semaphore::new(settings.max_connections()));
            let stop = self.lifecycle.reached(Phase::Draining);
            match (settings, &self.policy) {
                (Settings::Inbound(settings), Some(policy)) => {
                    let inbound = Inbound::new(settings, policy.clone(), worker.clone());
                    let (pool, tally) = (inbound.clone(), inbound.tally());
                    close.push(Box::new(move || pool.close()));
                    let spawner = tasks.clone();
                    tasks.spawn(
                        listener.serve(limit, tally, stop, move |stream, source, slot| {
                            spawner.spawn(inbound.clone().serve(stream, source, None, slot));
                        }),
                    );
                }
                // `Config` has seen to it that whoever lets peers in has a policy.
                (Settings::Inbound(_) | Settings::Intercepted(Intercepted::Inbound(_)), None) => {}
                (Settings::Outbound(settings), _) => {
                    let outbound = Outbound::new(settings, worker.clone());
                    let (pool, tally) = (outbound.clone(), outbound.tally());
                    close.push(Box::new(move || pool.close()));
                    let spawner = tasks.clone();
                    tasks.spawn(
                        listener.serve(limit, tally, stop, move |stream, source, slot| {
                            spawner.spawn(outbound.clone().serve(stream, source, None, slot));
                        }),
                    );
                }
                (Settings::Intercepted(Intercepted::Inbound(entries)), Some(policy)) => {
                    let inbound = inbound::Intercepted::new(entries, policy, &worker);
                    let (pools, tally) = (inbound.clone(), inbound.tally());
                    close.push(Box::new(move || pools.close()));
                    let spawner = tasks.clone();
                    tasks.spawn(
                        listener.serve(limit, tally, stop, move |stream, source, _| {
                            inbound.take(stream, source, &spawner);
                        }),
                    );
                }
                (Settings::Intercepted(Intercepted::Outbound(entries, otherwise)), _) => {
                    let outbound = outbound::Intercepted::new(entries, otherwise, &worker);
                    let (pools, tally) = (outbound.clone(), outbound.tally());
                    close.push(Box::new(move || pools.close()));
                    let spawner = tasks.clone();
                    tasks.spawn(
                        listener.serve(limit, tally, stop, move |stream, source, _| {
                            outbound.take(stream, source, &spawner);
                        }),
                    );
                }
            }
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        self.lifecycle.reached(Phase::Draining).await;
        // Kept connections count as tasks: they go as soon as nothing in progress could use them again.
        let closing = async {
            loop {
                for close in &close {
                    close();
                }
                tokio::time::sleep(CLOSE_EVERY).await;
            }
        };
        let cut = async {
            self.lifecycle.reached(Phase::Cut).await;
            tokio::time::sleep(CUT_TAKES_AT_MOST).await;
        };
        tokio::select! {
            () = tasks.ended() => {}
            () = closing => {}
            () = cut => tracing::warn!(tasks = tasks.count(), "cut what would not end"),
        }
    }

    /// A worker that cannot serve stops the process: half a sidecar would answer half the requests.
    fn give_up(&self, what: &str, error: &dyn std::error::Error) {
        tracing::error!(error = %chain(error), "{what}");
        self.failed.store(true, Ordering::Relaxed);
        self.lifecycle.cut();
    }
}

/// How often a draining worker closes the connections that nobody uses any more.
const CLOSE_EVERY: Duration = Duration::from_millis(50);

/// The signals that a sidecar obeys.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let of = |kind| signal(kind).context("cannot receive signals");
        // A file that may grow no longer is an error of whoever writes, not the end of us. Once taken, a
        // signal stays so.
        drop(of(SignalKind::from_raw(nix::libc::SIGXFSZ))?);
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            interrupt: of(SignalKind::interrupt())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or SIGINT, drains for `grace`, cuts what is left. A second signal cuts at once.
    /// SIGHUP opens the audit file anew.
    async fn stop(
        mut self,
        lifecycle: &Lifecycle,
        audit: &Audit,
        grace: Duration,
        ended: impl Future<Output = ()>,
    ) {
        let mut ended = std::pin::pin!(ended);
        let mut deadline = std::pin::pin!(tokio::time::sleep(Duration::MAX / 2));
        loop {
            tokio::select! {
                () = &mut ended => return lifecycle.cut(),
                _ = self.terminate.recv() => {}
                _ = self.interrupt.recv() => {}
                _ = self.hangup.recv() => {
                    tracing::info!("SIGHUP: opening the audit file anew");
                    audit.reopen();
                    continue;
                }
                () = &mut deadline => {
                    tracing::warn!("the grace is over: cutting what is still open");
                    lifecycle.cut();
                    return ended.await;
                }
            }
            if lifecycle.phase() == Phase::Running {
                tracing::info!(?grace, "draining");
                supervisor::stopping();
                lifecycle.drain();
                deadline.as_mut().reset(tokio::time::Instant::now() + grace);
            } else {
                tracing::warn!("told to stop a second time: cutting what is still open");
                lifecycle.cut();
            }
        }
    }
}
