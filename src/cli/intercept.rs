//! `doorward intercept`: the rules that lead connections to us, set, taken away or shown.
//!
//! It is for whoever may change a host's network, once, before the sidecar runs: the sidecar may not.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use caps::{CapSet, Capability};
use clap::Subcommand;

use crate::cli::run::CONFIG;
use crate::config::Config;
use crate::intercept::{rules, way_back};

/// Lead connections to the sidecar, or no longer
///
/// The rules are those of the section `intercept` of the configuration. They are nftables rules, in one table of
/// our own, and with `client_address: kept` rules of routing. Setting them takes CAP_NET_ADMIN, running the
/// sidecar does not.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set the rules that the configuration asks for, in the place of those that are set
    Apply {
        /// The configuration file
        #[arg(short, long, value_name = "FILE", default_value = CONFIG)]
        config: PathBuf,
        /// Print what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Take the rules away, whatever the configuration says
    Remove {
        /// The configuration file: not read, and need not be there
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Show the rules that are set; exit code 1 if there are none
    Show,
}

/// Does it.
///
/// # Errors
/// Mistakes in the configuration, that it intercepts nothing, or that the rules cannot be set.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    match &args.command {
        Command::Apply { config, dry_run } => apply(&Config::open(config)?, *dry_run),
        Command::Remove { dry_run, .. } => remove(*dry_run),
        Command::Show => show(),
    }
}

fn apply(config: &Config, dry_run: bool) -> anyhow::Result<ExitCode> {
    let Some(settings) = &config.intercept else {
        bail!("the configuration has no section `intercept`: there is nothing to lead here");
    };
    let table = rules::render(settings);
    let keeps = config.keeps_client_addresses();
    if dry_run {
        if keeps {
            print!("{}", way_back::written());
        }
        print!("nft -f - <<'END'\n{table}END\n");
        return Ok(ExitCode::SUCCESS);
    }
    let set = || -> anyhow::Result<()> {
        // What is led here must find its way back from the first connection on.
        if keeps {
            way_back::apply()?;
        }
        rules::apply(&table)?;
        if !keeps {
            way_back::remove()?;
        }
        Ok(())
    };
    set().with_context(|| trouble("the rules cannot be set"))?;
    Ok(ExitCode::SUCCESS)
}

fn remove(dry_run: bool) -> anyhow::Result<ExitCode> {
    if dry_run {
        let table = rules::installed().with_context(|| trouble(UNKNOWN))?;
        let routes = way_back::is_set().with_context(|| trouble(UNKNOWN))?;
        if table.is_some() {
            println!("nft delete table inet doorward");
        }
        if routes {
            print!("{}", way_back::unwritten());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let remove = || -> anyhow::Result<()> {
        rules::apply(rules::REMOVE)?;
        Ok(way_back::remove()?)
    };
    remove().with_context(|| trouble("the rules cannot be removed"))?;
    Ok(ExitCode::SUCCESS)
}

fn show() -> anyhow::Result<ExitCode> {
    let table = rules::installed().with_context(|| trouble(UNKNOWN))?;
    let routes = way_back::is_set().with_context(|| trouble(UNKNOWN))?;
    if routes {
        print!("{}", way_back::written());
    }
    match table {
        Some(table) => {
            print!("{table}");
            Ok(ExitCode::SUCCESS)
        }
        None => {
            eprintln!("no connections are led to a sidecar here");
            Ok(ExitCode::FAILURE)
        }
    }
}

const UNKNOWN: &str = "the rules cannot be looked at";

/// What cannot be done, and why that may be.
fn trouble(what: &str) -> String {
    match caps::has_cap(None, CapSet::Effective, Capability::CAP_NET_ADMIN) {
        Ok(false) => format!("{what}, which takes the capability CAP_NET_ADMIN"),
        Ok(true) | Err(_) => what.to_owned(),
    }
}
