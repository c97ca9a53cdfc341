//! `doorward run`: the sidecar itself.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::{TROUBLE, show};
use crate::config::Config;
use crate::policy::files::LoadError;
use crate::{app, telemetry};

/// Run the sidecar that a configuration file describes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = "/etc/doorward/doorward.yaml"
    )]
    config: PathBuf,
}

/// Runs until told to stop.
///
/// # Errors
/// What stops the start, apart from mistakes in the configuration, which are shown in place.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = match Config::open(&args.config) {
        Ok(config) => config,
        Err(mistakes) => {
            show(mistakes.diagnostics());
            return Ok(ExitCode::from(TROUBLE));
        }
    };
    telemetry::start(&config.log)?;
    app::run(config).or_else(|error| match error.downcast::<LoadError>() {
        Ok(error) => {
            show(error.diagnostics());
            Ok(ExitCode::from(TROUBLE))
        }
        Err(error) => Err(error),
    })
}
