//! `doorward audit`: what can be asked of audit files? A file for each question.

pub(super) mod filter;
pub mod show;

use std::process::ExitCode;

/// Read audit files.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    Show(show::Args),
}

/// Answers on standard output.
///
/// # Errors
/// If a file cannot be read.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Show(args) => show::run(&args),
    }
}
