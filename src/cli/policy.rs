//! `doorward policy`: what a team does with policies before they are in force.

pub mod diff;
pub mod fmt;
pub mod test;

use std::process::ExitCode;

/// Compare, format and test policies
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    Diff(diff::Args),
    Fmt(fmt::Args),
    Test(test::Args),
}

/// Does what the command line says.
///
/// # Errors
/// If it cannot be done, as after a mistake in a policy.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Diff(args) => diff::run(&args),
        Command::Fmt(args) => fmt::run(&args),
        Command::Test(args) => test::run(&args),
    }
}
