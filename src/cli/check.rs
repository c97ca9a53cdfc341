//! `doorward check`: is this configuration sound, without starting it?

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use miette::{Diagnostic, Severity};
use serde_json::{Value, json};

use crate::cli::show;
use crate::config::Config;
use crate::policy::symbolic::Solver;
use crate::policy::{self, Codes};
use crate::runtime;

/// Check a configuration and its policies, showing every mistake in place
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file
    #[arg(short, long, value_name = "FILE", required_unless_present = "policy")]
    config: Option<PathBuf>,
    /// A policy directory, without a configuration
    #[arg(short, long, value_name = "DIR")]
    policy: Option<PathBuf>,
    /// Let warnings with this code fail the check: one, several with commas between, or `all`; may be
    /// given more than once
    #[arg(long, value_name = "CODE")]
    deny: Vec<Codes>,
    /// Let every warning fail the check, as `--deny all` does
    #[arg(long)]
    strict: bool,
    /// Say what there will be to say at this time, as in 2027-06-30T12:00:00Z
    #[arg(long, value_name = "RFC3339")]
    at: Option<jiff::Timestamp>,
    /// Prove more with the solver cvc5, found on the PATH or named in the environment variable CVC5; takes
    /// up to seconds for each grant
    #[arg(long)]
    symbolic: bool,
    /// Print an array of what was found, for programs
    #[arg(long)]
    json: bool,
}

/// Checks. Exit code 0: sound; 1: not.
///
/// # Errors
/// If the solver was asked for and cannot be had, or fails. Mistakes are shown.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let now = args.at.map_or_else(SystemTime::now, SystemTime::from);
    let mut solver = match args.symbolic {
        true => Some(Solver::start(runtime::control()?)?),
        false => None,
    };
    let mut report = Report::new(args.json);
    let mut open = false;
    let mut configured = None;
    let mut policies: Vec<policy::Settings> =
        args.policy.iter().map(policy::Settings::of).collect();
    if let Some(path) = &args.config {
        match Config::open(path) {
            Ok(config) => {
                let warnings: Vec<_> = config.warnings().collect();
                report.add(warnings.iter().map(|warning| warning as _));
                open |= !warnings.is_empty();
                policies.extend(config.policy.clone());
                configured = Some(config);
            }
            Err(mistakes) => report.add(mistakes.diagnostics()),
        }
    }
    let mut denied: Codes = args.deny.iter().cloned().flatten().collect();
    if args.strict {
        denied = Codes::all();
    }
    for settings in &mut policies {
        settings.deny.extend(denied.clone());
        match policy::files::load_at(settings, now, solver.as_mut()) {
            Ok(engine) => {
                report.add(engine.warnings().map(|warning| warning as _));
                // Another directory may be checked beside it.
                let config = configured.as_ref().filter(|config| {
                    let own = config.policy.as_ref();
                    own.is_some_and(|own| own.dir == settings.dir)
                });
                let warnings = config.map(|config| config.opaque(&engine, now));
                let warnings = warnings.unwrap_or_default();
                report.add(warnings.iter().map(|warning| warning as _));
                open |= !warnings.is_empty();
            }
            Err(error) => {
                report.add(error.diagnostics());
                report.add(error.warnings().map(|warning| warning as _));
            }
        }
    }
    // Codes are those of policies; what is not about one is denied with all of them.
    report.sound &= !(open && denied == Codes::all());
    let code = report.finish();
    solver.map_or(Ok(()), Solver::finish)?;
    Ok(code)
}

/// What was found so far: shown at once to people, kept for programs.
struct Report {
    sound: bool,
    /// None: for people.
    json: Option<Vec<Value>>,
    /// How many were found of each code.
    counts: BTreeMap<String, usize>,
}

/// So many of one code are shown to people; the rest is counted.
const MOST_SHOWN: usize = 20;

impl Report {
    fn new(json: bool) -> Self {
        Self {
            sound: true,
            json: json.then(Vec::new),
            counts: BTreeMap::new(),
        }
    }

    fn add<'a>(
        &mut self,
        found: impl IntoIterator<Item = &'a (dyn Diagnostic + Send + Sync + 'a)>,
    ) {
        for diagnostic in found {
            self.sound &= is_warning(diagnostic);
            if let Some(json) = &mut self.json {
                json.push(described(diagnostic));
                continue;
            }
            let code = diagnostic.code().map(|code| code.to_string());
            let count = code.map(|code| self.counts.entry(code).or_default());
            if count.is_none_or(|count| {
                *count += 1;
                *count <= MOST_SHOWN
            }) {
                show([diagnostic]);
            }
        }
    }

    fn finish(self) -> ExitCode {
        for (code, count) in self.counts {
            if let Some(more @ 1..) = count.checked_sub(MOST_SHOWN) {
                eprintln!("and {more} more with the code {code}; --json lists them");
            }
        }
        match self.json {
            Some(json) => println!("{:#}", Value::from(json)),
            None if self.sound => eprintln!("sound"),
            None => {}
        }
        ExitCode::from(u8::from(!self.sound))
    }
}

fn is_warning(diagnostic: &dyn Diagnostic) -> bool {
    diagnostic.severity() == Some(Severity::Warning)
}

/// One finding for programs. `line` and `column` count from 1, the column in bytes; `code` is null for what
/// is a mistake whatever is denied.
fn described(diagnostic: &dyn Diagnostic) -> Value {
    let (mut file, mut line, mut column) = (None, None, None);
    let label = diagnostic.labels().and_then(|mut labels| labels.next());
    if let (Some(source), Some(label)) = (diagnostic.source_code(), label)
        && let Ok(place) = source.read_span(label.inner(), 0, 0)
    {
        file = place.name().map(str::to_owned);
        line = Some(place.line() + 1);
        column = Some(place.column() + 1);
    }
    let message = diagnostic.to_string();
    let place = format!(
        "{}:{}: ",
        file.as_deref().unwrap_or_default(),
        line.unwrap_or_default()
    );
    json!({
        "code": diagnostic.code().map(|code| code.to_string()),
        "severity": if is_warning(diagnostic) { "warning" } else { "error" },
        "file": file,
        "line": line,
        "column": column,
        "message": message.strip_prefix(&place).unwrap_or(&message),
        "help": diagnostic.help().map(|help| help.to_string()),
    })
}
