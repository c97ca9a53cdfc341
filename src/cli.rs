//! What can be asked of `doorward` on the command line? A file for each command.

pub mod asked;
pub mod audit;
pub mod check;
pub mod demo;
pub mod explain;
pub mod identity;
pub mod inject;
pub mod intercept;
pub mod issuer;
pub mod policy;
pub mod report;
pub mod run;
pub mod suggest;
pub mod who_can;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::document::Mistakes;
use crate::policy::files::LoadError;
use crate::{runtime, telemetry};

/// A sidecar proxy that gives an unmodified application a short-lived SPIFFE identity, speaks mutual TLS
/// for it, and decides every request.
#[derive(Debug, Parser)]
#[command(name = "doorward", version, max_term_width = 100)]
struct Args {
    /// End when the process with this number does, which must be the one that starts this
    #[arg(long, value_name = "PID", hide = true)]
    end_with: Option<i32>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Check(check::Args),
    Explain(Box<explain::Args>),
    Audit(audit::Args),
    Suggest(Box<suggest::Args>),
    WhoCan(Box<who_can::Args>),
    Policy(policy::Args),
    Identity(identity::Args),
    Intercept(intercept::Args),
    Issuer(issuer::Args),
    Inject(Box<inject::Args>),
    Report(Box<report::Args>),
    Demo(demo::Args),
    #[command(hide = true)]
    DemoApp(demo::app::Args),
}

/// Exit codes: 0 it is so, 1 it is not (a check that fails, a request that is denied), 2 it could not be
/// done or the question was wrong.
pub const TROUBLE: u8 = 2;

/// Does what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    let args = Args::parse();
    let followed = args.end_with.map_or(Ok(()), demo::end_with);
    followed
        .and_then(|()| obey(args.command))
        .unwrap_or_else(|error| {
            tell(&error);
            ExitCode::from(TROUBLE)
        })
}

fn obey(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(*args),
        Command::Audit(args) => audit::run(args),
        Command::Suggest(args) => suggest::run(*args),
        Command::WhoCan(args) => who_can::run(*args),
        Command::Policy(args) => policy::run(args),
        Command::Identity(args) => identity::run(args),
        Command::Intercept(args) => intercept::run(&args),
        Command::Issuer(args) => issuer(args),
        Command::Inject(args) => inject::run(&args),
        Command::Report(args) => report::run(*args),
        Command::Demo(args) => demo::run(&args),
        Command::DemoApp(args) => demo::app::run(&args),
    }
}

fn issuer(args: issuer::Args) -> anyhow::Result<ExitCode> {
    telemetry::start(&telemetry::Settings::default())?;
    runtime::control()?.block_on(issuer::run(args))?;
    Ok(ExitCode::SUCCESS)
}

/// What the operator wrote is quoted; everything else is told in one line with its causes.
fn tell(error: &anyhow::Error) {
    if let Some(mistakes) = error.downcast_ref::<Mistakes>() {
        show(mistakes.diagnostics());
    } else if let Some(error) = error.downcast_ref::<LoadError>() {
        show(error.diagnostics());
        show(error.warnings().map(|warning| warning as _));
    } else {
        eprintln!("doorward: {error:#}");
    }
}

/// Shows diagnostics on stderr, source quoted; in colour on a terminal only.
pub(crate) fn show<'a>(
    diagnostics: impl IntoIterator<Item = &'a (dyn miette::Diagnostic + Send + Sync + 'a)>,
) {
    use std::io::IsTerminal;

    let handler = if std::io::stderr().is_terminal() {
        miette::GraphicalReportHandler::new()
    } else {
        miette::GraphicalReportHandler::new_themed(miette::GraphicalTheme::unicode_nocolor())
    };
    for diagnostic in diagnostics {
        let mut text = String::new();
        // Writing to a string cannot fail; a diagnostic that cannot be drawn is told in plain.
        match handler.render_report(&mut text, diagnostic) {
            Ok(()) => eprint!("{text}"),
            Err(_) => eprintln!("{diagnostic}"),
        }
    }
}
