//! `doorward audit`: what can be asked of audit files? A file for each question.

pub(super) mod filter;
pub mod show;
pub mod verify;

use std::process::ExitCode;

/// Read audit files, and prove them whole.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    Show(Box<show::Args>),
    Verify(verify::Args),
}

/// Answers on standard output.
///
/// # Errors
/// If a file cannot be read.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Show(args) => show::run(&args),
        Command::Verify(args) => verify::run(&args),
    }
}
