//! `doorward issuer`: identities for the workloads of this machine.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

use crate::issuer::{Handle, Issuer, Settings};
use crate::{runtime, sandbox};

/// Serve a SPIFFE Workload API for this machine from a small CA of its own.
///
/// SIGHUP reads the registration entries again, SIGTERM and SIGINT stop.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The configuration: trust domain, socket, CA and registration entries, in YAML.
    #[arg(long, value_name = "FILE", default_value = "/etc/doorward/issuer.yaml")]
    pub config: PathBuf,
}

/// Runs the issuer until it is told to stop.
///
/// # Errors
/// Every mistake in the configuration file, or why it cannot listen or serve.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let settings = Settings::open(&args.config)?;
    runtime::raise_file_limit();
    // There is one thread yet, and no key.
    sandbox::enter_as_issuer().tell();
    runtime::give_memory_back();
    // Before anybody can know of us: a signal that comes early must not kill.
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let issuer = Issuer::bind(settings.clone())
        .await
        .context("the issuer cannot start")?;
    info!(
        trust_domain = %settings.trust_domain,
        socket = %settings.socket.display(),
        entries = settings.registry.len(),
        "the issuer is ready"
    );
    let handle = issuer.handle();
    issuer
        .serve(async move {
            loop {
                tokio::select! {
                    _ = terminate.recv() => return,
                    _ = interrupt.recv() => return,
                    _ = hangup.recv() => reload(&args.config, &settings, &handle),
                }
            }
        })
        .await?;
    Ok(())
}

/// Takes over new entries; everything else in the file is for the next start.
fn reload(path: &Path, running: &Settings, handle: &Handle) {
    let read = match Settings::open(path) {
        Ok(read) => read,
        Err(mistakes) => {
            for mistake in mistakes.diagnostics() {
                error!("{mistake}");
            }
            error!("the entries stay as they were");
            return;
        }
    };
    if read.trust_domain != running.trust_domain {
        error!("another trust domain needs a restart: the entries stay as they were");
        return;
    }
    let fixed = |settings: &Settings| {
        let Settings {
            socket,
            ca,
            federation,
            ..
        } = settings;
        (socket.clone(), ca.clone(), *federation)
    };
    if fixed(&read) != fixed(running) {
        warn!("changes of `socket`, `ca` and `federation` need a restart");
    }
    info!(entries = read.registry.len(), "new entries are in force");
    handle.replace(read.registry);
}
