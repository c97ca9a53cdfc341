//! `doorward run`: the sidecar itself.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Config;
use crate::{app, runtime, telemetry};

/// Run the sidecar that a configuration file describes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", default_value = CONFIG)]
    config: PathBuf,
}

/// Where the configuration is, unless the command line says otherwise.
pub(super) const CONFIG: &str = "/etc/doorward/doorward.yaml";

/// Runs until told to stop.
///
/// # Errors
/// What stops the start: mistakes in the configuration, or whatever was asked for and cannot be had.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::open(&args.config)?;
    telemetry::start(&config.log)?;
    runtime::raise_file_limit();
    app::run(config)
}
