//! `doorward check`: is this configuration sound, without starting it?

use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::show;
use crate::config::Config;
use crate::policy;

/// Check a configuration and its policies, showing every mistake in place
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", required_unless_present = "policy")]
    config: Option<PathBuf>,
    /// A policy directory, without a configuration
    #[arg(short, long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Let warnings fail the check too
    #[arg(long)]
    strict: bool,
}

/// Checks. Exit code 0: sound; 1: not.
///
/// # Errors
/// Never; mistakes are shown.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut sound = true;
    let mut policies: Vec<policy::Settings> =
        args.policy.iter().map(policy::Settings::of).collect();
    if let Some(path) = &args.config {
        match Config::open(path) {
            Ok(config) => policies.extend(config.policy),
            Err(mistakes) => {
                show(mistakes.diagnostics());
                sound = false;
            }
        }
    }
    for settings in &policies {
        match policy::files::load(settings) {
            Ok(engine) => {
                sound &= !(args.strict && engine.warnings().next().is_some());
                show(engine.warnings().map(|warning| warning as _));
            }
            Err(error) => {
                show(error.diagnostics());
                show(error.warnings().map(|warning| warning as _));
                sound = false;
            }
        }
    }
    if sound {
        eprintln!("sound");
    }
    Ok(ExitCode::from(u8::from(!sound)))
}
