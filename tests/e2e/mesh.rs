//! Two applications, two sidecars, one issuer: real processes on ports that the kernel picks, in
//! directories of their own.
//!
//! ```text
//! test ──plain──▶ a (outbound) ══ mTLS ══▶ b (inbound) ──plain──▶ App
//!                 └──── Workload API ── issuer ────┘
//! ```
//!
//! Nothing is shared between two meshes, so tests run side by side. Nothing waits for luck: whoever
//! expects something says so with [`eventually`].
#![allow(
    dead_code,
    unused_imports,
    reason = "a fixture offers more than each module of tests takes"
)]

mod app;
mod ca;
mod client;
mod dns;
mod held;
mod process;
mod provider;

use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

pub(crate) use self::app::{App, Seen};
pub(crate) use self::ca::{Ca, Minted, leaf, uri};
pub(crate) use self::client::{Answer, Client, Http, Tls, ask, get, raw, request, status_of};
pub(crate) use self::dns::{Dns, NAME, Says};
pub(crate) use self::held::{Held, nothing_is_left};
pub(crate) use self::process::{Metrics, Process};
pub(crate) use self::provider::Provider;

/// The trust domain of every mesh.
pub(crate) const DOMAIN: &str = "example.org";

/// The service behind `b`, as policies name it.
pub(crate) const SERVICE: &str = "invoices";

/// How long anything may take that should happen soon. Generous: the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Asks again and again until there is an answer.
///
/// # Panics
/// After [`SOON`], saying what did not happen.
pub(crate) async fn eventually<T>(what: impl Display, ask: impl AsyncFnMut() -> Option<T>) -> T {
    within(SOON, what, ask).await.0
}

/// As [`eventually`], with a limit of its own; says also how long it took.
pub(crate) async fn within<T>(
    limit: Duration,
    what: impl Display,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> (T, Duration) {
    let began = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return (answer, began.elapsed());
        }
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The SPIFFE ID of a workload of the mesh.
pub(crate) fn id(workload: &str) -> String {
    format!("spiffe://{DOMAIN}/{workload}")
}

/// A permit with everything that governance asks for. `rest` is what follows the annotations:
/// `permit (…);`, or further annotations before it.
pub(crate) fn governed(id: &str, rest: &str) -> String {
    format!(
        "@id(\"{id}\")\n@owner(\"payments@example.org\")\n@purpose(\"A test\")\n@expires(\"2099-01-01\")\n{rest}\n"
    )
}

/// A grant that lets `workload` do anything at [`SERVICE`].
pub(crate) fn grant(id: &str, workload: &str) -> String {
    let principal = self::id(workload);
    governed(
        id,
        &format!(
            "permit (principal == Workload::\"{principal}\", action, resource == Service::\"{SERVICE}\");"
        ),
    )
}

/// Directories that go with the test: one for files, and one on the file system of the binary, so that
/// it can be linked there.
#[derive(Debug)]
pub(crate) struct Dirs {
    files: TempDir,
    programs: TempDir,
}

impl Dirs {
    pub(crate) fn new() -> Self {
        Self {
            files: tempfile::Builder::new().prefix("dw").tempdir().unwrap(),
            programs: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap(),
        }
    }

    /// Where a file of that name lies, or would lie.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The binary (that of this build, or the one that `DOORWARD` names) under a path of the workload's own,
    /// as the kernel will tell it: that is how the issuer
    /// knows one sidecar from the other.
    pub(crate) fn program(&self, workload: &str) -> PathBuf {
        let dir = self.programs.path().canonicalize().unwrap().join(workload);
        let program = dir.join("doorward");
        if !program.exists() {
            std::fs::create_dir_all(&dir).unwrap();
            let original = std::env::var_os("DOORWARD")
                .unwrap_or_else(|| env!("CARGO_BIN_EXE_doorward").into());
            if std::fs::hard_link(&original, &program).is_err() {
                std::fs::copy(&original, &program).unwrap();
            }
        }
        program
    }
}

/// Who gets an identity, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) workload: String,
    program: PathBuf,
    pub(crate) lifetime: String,
    pub(crate) rotate_every: Option<String>,
}

/// A real `doorward issuer`.
#[derive(Debug)]
pub(crate) struct Issuer {
    domain: String,
    federation: Option<SocketAddr>,
    config: PathBuf,
    pub(crate) socket: PathBuf,
    ca_file: PathBuf,
    log: PathBuf,
    program: PathBuf,
    entries: Vec<Entry>,
    process: Option<Process>,
}

impl Issuer {
    /// An issuer that knows nobody and does not run yet.
    pub(crate) fn new(dirs: &Dirs) -> Self {
        Self {
            domain: DOMAIN.into(),
            federation: None,
            config: dirs.file("issuer.yaml"),
            socket: dirs.file("issuer.sock"),
            ca_file: dirs.file("ca.pem"),
            log: dirs.file("issuer.log"),
            program: dirs.program("issuer"),
            entries: Vec::new(),
            process: None,
        }
    }

    /// The same of another trust domain.
    pub(crate) fn of(dirs: &Dirs, domain: &str) -> Self {
        let mut issuer = Self::new(dirs);
        issuer.domain = domain.into();
        issuer
    }

    /// Lets it serve its bundle at `address`. Effective with [`Issuer::start`].
    pub(crate) fn federate(&mut self, address: SocketAddr) {
        self.federation = Some(address);
    }

    /// Adds an entry, or replaces the one of the same workload. Write `lifetime` as in `1h`. Effective
    /// with [`Issuer::start`] or [`Issuer::reload`].
    pub(crate) fn add(
        &mut self,
        dirs: &Dirs,
        workload: &str,
        lifetime: &str,
        rotate_every: Option<&str>,
    ) {
        self.remove(workload);
        self.entries.push(Entry {
            workload: workload.into(),
            program: dirs.program(workload),
            lifetime: lifetime.into(),
            rotate_every: rotate_every.map(Into::into),
        });
    }

    /// Removes the entry of `workload`. Effective with [`Issuer::reload`].
    pub(crate) fn remove(&mut self, workload: &str) {
        self.entries.retain(|entry| entry.workload != workload);
    }

    /// Starts it and waits until it serves. The CA is the same after a restart.
    pub(crate) async fn start(&mut self) {
        self.write();
        let mut process = Process::spawn(
            "issuer",
            &self.program,
            &["issuer", "--config", self.config.to_str().unwrap()],
            &self.log,
        );
        eventually("the issuer serves", async || {
            process.assert_running();
            process.log().contains("the issuer is ready").then_some(())
        })
        .await;
        self.process = Some(process);
    }

    /// Puts the entries as they are now in force.
    pub(crate) fn reload(&self) {
        self.write();
        let process = self.process.as_ref().expect("it runs");
        process.signal(nix::sys::signal::Signal::SIGHUP);
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").pid()
    }

    /// Kills it, without a goodbye.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Kills it and loses its CA: the next start makes another.
    pub(crate) fn forget(&mut self) {
        self.kill();
        std::fs::remove_file(&self.ca_file).unwrap();
    }

    /// The CA that it signs with, once it has started.
    pub(crate) fn ca(&self) -> Ca {
        Ca::open(&self.ca_file)
    }

    fn write(&self) {
        let mut text = format!(
            "trust_domain: {}\nsocket: '{}'\nca: {{ file: '{}' }}\n",
            self.domain,
            self.socket.display(),
            self.ca_file.display()
        );
        if let Some(listen) = self.federation {
            text += &format!("federation: {{ listen: '{listen}' }}\n");
        }
        text += "entries:\n";
        for entry in &self.entries {
            text += &format!(
                "- {{ id: /{}, selectors: {{ path: '{}' }}, lifetime: {}",
                entry.workload,
                entry.program.display(),
                entry.lifetime
            );
            if let Some(every) = &entry.rotate_every {
                text += &format!(", rotate_every: {every}");
            }
            text += " }\n";
        }
        if self.entries.is_empty() {
            text = text.replace("entries:", "entries: []");
        }
        std::fs::write(&self.config, text).unwrap();
    }
}

/// What a sidecar is to do, as YAML.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    workload: String,
    inbound: Vec<String>,
    outbound: Vec<String>,
    /// Entries of `outbound` that share one socket.
    intercepted: Vec<String>,
    audit: Option<String>,
    identity: Option<String>,
    prelude: Option<String>,
    network: Option<String>,
    socket: Option<Arc<TcpListener>>,
    rest: Vec<String>,
}

impl Plan {
    /// A plan for the sidecar of `workload`, with metrics, an audit file and two workers.
    pub(crate) fn new(workload: &str) -> Self {
        Self {
            workload: workload.into(),
            inbound: Vec::new(),
            outbound: Vec::new(),
            intercepted: Vec::new(),
            audit: None,
            identity: None,
            prelude: None,
            network: None,
            socket: None,
            rest: Vec::new(),
        }
    }

    /// Writes the section `identity` itself, in place of the issuer's socket.
    #[must_use]
    pub(crate) fn identity(mut self, section: &str) -> Self {
        self.identity = Some(section.into());
        self
    }

    /// Adds an inbound listener for [`SERVICE`]; `rest` is further keys, as in `protocol: tcp`.
    #[must_use]
    pub(crate) fn inbound(self, app: impl Display, rest: &str) -> Self {
        self.inbound_at("127.0.0.1:0", app, rest)
    }

    /// The same at an address of the test's choice.
    #[must_use]
    pub(crate) fn inbound_at(
        mut self,
        listen: impl Display,
        app: impl Display,
        rest: &str,
    ) -> Self {
        let comma = if rest.is_empty() { "" } else { ", " };
        self.inbound.push(format!(
            "{{ listen: '{listen}', service: {SERVICE}, app: '{app}'{comma}{rest} }}"
        ));
        self
    }

    /// Adds an outbound listener; `rest` is further keys.
    #[must_use]
    pub(crate) fn outbound(mut self, to: impl Display, peer: &str, rest: &str) -> Self {
        let comma = if rest.is_empty() { "" } else { ", " };
        self.outbound.push(format!(
            "{{ listen: '127.0.0.1:0', to: '{to}', peer: '{peer}'{comma}{rest} }}"
        ));
        self
    }

    /// Adds an outbound entry as it stands, for what is intercepted.
    #[must_use]
    pub(crate) fn leads(mut self, entry: impl Into<String>) -> Self {
        self.intercepted.push(entry.into());
        self
    }

    /// Writes the section `audit` itself: `{ path: /dev/full, level: all }`.
    #[must_use]
    pub(crate) fn audit(mut self, section: &str) -> Self {
        self.audit = Some(section.into());
        self
    }

    /// A command of the shell before the sidecar, in its process: `export NAME=value`.
    #[must_use]
    pub(crate) fn after(mut self, prelude: impl Into<String>) -> Self {
        self.prelude = Some(prelude.into());
        self
    }

    /// Adds a key at the top, as in `drain_grace: 1s`.
    #[must_use]
    pub(crate) fn with(mut self, line: impl Into<String>) -> Self {
        self.rest.push(line.into());
        self
    }

    /// Runs it in the network namespace that the file `network` stands for.
    #[must_use]
    pub(crate) fn network(mut self, network: impl Into<String>) -> Self {
        self.network = Some(network.into());
        self
    }

    /// Hands the socket over, as a service manager does.
    #[must_use]
    pub(crate) fn activated(mut self, socket: &Arc<TcpListener>) -> Self {
        self.socket = Some(socket.clone());
        // What is handed over begins at 3, and is for the process that the variable names.
        self.after("exec 3<&0 </dev/null && export LISTEN_FDS=1 LISTEN_PID=$$")
    }

    fn yaml(&self, socket: &Path, audit: &Path) -> String {
        let default = format!("{{ workload_api: 'unix://{}' }}", socket.display());
        let identity = self.identity.as_ref().unwrap_or(&default);
        let mut text = format!("identity: {identity}\n");
        // An issuer that is not root sees no executable of a process that hides its memory.
        let dumpable = !nix::unistd::geteuid().is_root();
        for (key, section) in [
            ("metrics", "{ listen: '127.0.0.1:0' }".into()),
            (
                "log",
                "{ format: json, level: 'info,doorward=debug' }".into(),
            ),
            ("sandbox", format!("{{ unsafe_dumpable: {dumpable} }}")),
        ] {
            if !self
                .rest
                .iter()
                .any(|line| line.starts_with(&format!("{key}:")))
            {
                text += &format!("{key}: {section}\n");
            }
        }
        let default = format!("{{ path: '{}' }}", audit.display());
        let audit = self.audit.as_ref().unwrap_or(&default);
        text += &format!("audit: {audit}\n");
        let outbound = [&self.outbound[..], &self.intercepted].concat();
        for (key, list) in [("inbound", &self.inbound), ("outbound", &outbound)] {
            if !list.is_empty() {
                text += &format!("{key}:\n");
                for item in list {
                    text += &format!("- {item}\n");
                }
            }
        }
        if !self.rest.iter().any(|line| line.starts_with("workers:")) {
            text += "workers: 2\n";
        }
        for line in &self.rest {
            text += line;
            text.push('\n');
        }
        text
    }

    /// Starts the sidecar and waits until its sockets are bound. It may not be ready yet.
    pub(crate) async fn start(self, dirs: &Dirs, issuer: &Issuer) -> Sidecar {
        let name = &self.workload;
        let audit = dirs.file(&format!("{name}.audit.jsonl"));
        let config = dirs.file(&format!("{name}.yaml"));
        std::fs::write(&config, self.yaml(&issuer.socket, &audit)).unwrap();
        let (program, config) = (dirs.program(name), config.to_str().unwrap());
        let log = dirs.file(&format!("{name}.log"));
        let run = ["run", "--config", config];
        let mut process = match (&self.prelude, &self.network) {
            (None, None) => Process::spawn(name, &program, &run, &log),
            (None, Some(network)) => {
                let network = format!("--net={network}");
                let args = [&[&network, program.to_str().unwrap()], &run[..]].concat();
                Process::spawn(name, Path::new("nsenter"), &args, &log)
            }
            (Some(prelude), _) => {
                let script = format!("{prelude} && exec \"$0\" \"$@\"");
                let args = [&["-c", &script, program.to_str().unwrap()], &run[..]].concat();
                let stdin = match &self.socket {
                    Some(socket) => OwnedFd::from(socket.try_clone().unwrap()).into(),
                    None => Stdio::null(),
                };
                Process::spawn_with(stdin, name, Path::new("/bin/sh"), &args, &log)
            }
        };
        let has = |key: &str| self.rest.iter().any(|line| line.starts_with(key));
        let (has_probes, has_admin) = (has("probes:"), has("admin:"));
        let intercept = self.rest.iter().find(|line| line.starts_with("intercept:"));
        let intercepted = intercept.map_or(0, |section| section.matches("port:").count());
        let listeners = self.inbound.len()
            + self.outbound.len()
            + intercepted
            + usize::from(has_probes)
            + usize::from(has_admin);
        // Inbound listeners are bound first, then outbound ones, then those of what is intercepted, then probes,
        // admin, the metrics last.
        let mut bound = eventually(format_args!("{name} binds its sockets"), async || {
            process.assert_running();
            let bound = process.bound();
            (bound.len() > listeners).then_some(bound)
        })
        .await;
        let metrics = bound.pop().unwrap();
        let admin = if has_admin { bound.pop() } else { None };
        let probes = if has_probes { bound.pop() } else { None };
        let outbound = bound.split_off(self.inbound.len());
        Sidecar {
            inbound: bound,
            outbound,
            probes,
            admin,
            metrics,
            audit,
            process,
        }
    }
}

/// A real `doorward run`.
#[derive(Debug)]
pub(crate) struct Sidecar {
    /// Where its inbound listeners are, in the order of the plan.
    pub(crate) inbound: Vec<SocketAddr>,
    /// Where its outbound listeners are.
    pub(crate) outbound: Vec<SocketAddr>,
    /// Where its listener for probes of the application is, if the plan has one.
    pub(crate) probes: Option<SocketAddr>,
    /// Where its admin listener is, if the plan has one.
    pub(crate) admin: Option<SocketAddr>,
    /// Where `/metrics`, `/ready` and `/live` are.
    pub(crate) metrics: SocketAddr,
    /// Where its records go, unless the plan says otherwise.
    pub(crate) audit: PathBuf,
    pub(crate) process: Process,
}

impl Sidecar {
    /// The answer to `/ready`.
    pub(crate) async fn readiness(&self) -> Answer {
        get(self.metrics, "/ready").await
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&mut self) {
        let metrics = self.metrics;
        let process = &mut self.process;
        eventually(format_args!("{} is ready", process.name()), async || {
            process.assert_running();
            (get(metrics, "/ready").await.status == 200).then_some(())
        })
        .await;
    }

    /// The names of the conditions of readiness that do not hold.
    pub(crate) async fn unready(&self) -> Vec<String> {
        let answer = self.readiness().await.json();
        let conditions = answer["conditions"].as_array().unwrap();
        let failing = conditions.iter().filter(|one| one["ready"] == false);
        failing
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Everything it counts, as it stands now.
    pub(crate) async fn metrics(&self) -> Metrics {
        Metrics(get(self.metrics, "/metrics").await.text())
    }

    /// Waits until the samples of `name` with these labels add up to `expected`.
    pub(crate) async fn counts(&self, name: &str, labels: &[(&str, &str)], expected: f64) {
        let mut last = f64::NAN;
        let limit = Instant::now() + SOON;
        while Instant::now() < limit {
            last = self.metrics().await.sum(name, labels);
            if (last - expected).abs() < f64::EPSILON {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name}{labels:?} is {last}, not {expected}");
    }

    /// The records written so far.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.audit).unwrap_or_default();
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        complete
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            // The head of the file, and what else is no record, has no name.
            .filter(|line: &Value| line.get("id").is_some())
            .collect()
    }

    /// Waits for a record that `is_it`.
    pub(crate) async fn record(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Value {
        let name = self.process.name();
        eventually(format_args!("{name} records {what}"), async || {
            self.audit().into_iter().find(|record| is_it(record))
        })
        .await
    }

    /// SIGTERM, then its exit code.
    pub(crate) async fn terminate(&mut self) -> Option<i32> {
        self.process.signal(nix::sys::signal::Signal::SIGTERM);
        self.process.exit().await
    }
}

/// Where policies lie. Files appear there whole.
#[derive(Debug)]
pub(crate) struct PolicyDir(pub(crate) PathBuf);

impl PolicyDir {
    pub(crate) fn new(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Puts `text` where the file `name` is.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let beside = self.0.join(".new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.0.join(name)).unwrap();
    }

    /// Removes the file `name`.
    pub(crate) fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.join(name)).unwrap();
    }
}

/// How a [`Mesh`] is built, where it is not as usual.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How long SVIDs live.
    pub(crate) lifetime: &'static str,
    /// When they are replaced; at half of their life if not said.
    pub(crate) rotate_every: Option<&'static str>,
    /// The policy at the start; [`grant`]s everything to `a` if not said.
    pub(crate) policy: Option<String>,
    /// Further keys of `b`'s inbound listener.
    pub(crate) inbound: String,
    /// Further keys of `a`'s outbound listener.
    pub(crate) outbound: String,
    /// Further keys of the section `policy`.
    pub(crate) policy_keys: &'static str,
    /// `b`'s section `audit`.
    pub(crate) audit: Option<String>,
    /// Further lines in `a`'s configuration.
    pub(crate) a: Vec<String>,
    /// Further lines in `b`'s configuration.
    pub(crate) b: Vec<String>,
    /// What `b`'s shell sets before, as in `-n 128`.
    pub(crate) ulimit: Option<&'static str>,
    /// Where `b` finds its application, if that is not [`Mesh::app`].
    pub(crate) app: Option<SocketAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            lifetime: "1h",
            rotate_every: None,
            policy: None,
            inbound: String::new(),
            outbound: String::new(),
            policy_keys: "",
            audit: None,
            a: Vec::new(),
            b: Vec::new(),
            ulimit: None,
            app: None,
        }
    }
}

/// The whole: `a` calls `b`, which decides and asks the application.
#[derive(Debug)]
pub(crate) struct Mesh {
    // In this order they go: who depends on another goes first.
    pub(crate) a: Sidecar,
    pub(crate) b: Sidecar,
    pub(crate) issuer: Issuer,
    pub(crate) app: App,
    pub(crate) policy: PolicyDir,
    pub(crate) dirs: Dirs,
}

impl Mesh {
    /// A mesh that is ready.
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    /// A mesh with these options, ready.
    pub(crate) async fn with(options: Options) -> Self {
        let mut mesh = Self::unidentified(options).await;
        mesh.issuer.start().await;
        mesh.a.ready().await;
        mesh.b.ready().await;
        mesh
    }

    /// A mesh whose issuer does not run yet.
    pub(crate) async fn unidentified(options: Options) -> Self {
        let dirs = Dirs::new();
        let mut issuer = Issuer::new(&dirs);
        for workload in ["a", "b"] {
            issuer.add(&dirs, workload, options.lifetime, options.rotate_every);
        }
        let policy = PolicyDir::new(dirs.file("policy"));
        let text = options.policy.unwrap_or_else(|| grant("all-for-a", "a"));
        policy.write("policy.cedar", &text);

        let app = App::start().await;
        let mut plan = Plan::new("b")
            .inbound(options.app.unwrap_or(app.address), &options.inbound)
            .with(format!(
                "policy: {{ dir: '{}'{} }}",
                policy.0.display(),
                options.policy_keys
            ));
        plan.audit = options.audit;
        plan.prelude = options.ulimit.map(|ulimit| format!("ulimit {ulimit}"));
        plan.rest.extend(options.b);
        let b = plan.start(&dirs, &issuer).await;
        let mut plan = Plan::new("a").outbound(b.inbound[0], &id("b"), &options.outbound);
        plan.rest.extend(options.a);
        let a = plan.start(&dirs, &issuer).await;
        Self {
            a,
            b,
            issuer,
            app,
            policy,
            dirs,
        }
    }

    /// Asks the application through both sidecars, on a connection of its own.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        get(self.a.outbound[0], path).await
    }

    /// Where `a` listens for its application.
    pub(crate) fn entrance(&self) -> SocketAddr {
        self.a.outbound[0]
    }

    /// Where `b` listens for peers.
    pub(crate) fn gate(&self) -> SocketAddr {
        self.b.inbound[0]
    }

    /// Changes the policy and waits until it is in force.
    pub(crate) async fn repolicy(&self, text: &str) {
        let generation = self.generation().await;
        self.policy.write("policy.cedar", text);
        self.policy_after(generation).await;
    }

    /// The generation of the policy in force at `b`.
    pub(crate) async fn generation(&self) -> f64 {
        self.b
            .metrics()
            .await
            .sum("doorward_policy_generation", &[])
    }

    /// Waits until a later policy than `generation` is in force.
    pub(crate) async fn policy_after(&self, generation: f64) {
        eventually("the policy is in force", async || {
            (self.generation().await > generation).then_some(())
        })
        .await;
    }
}
