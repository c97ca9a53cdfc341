//! A script of this directory as a test of `cargo test`, where what it needs is there.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

pub(crate) struct Suite {
    /// The test's name.
    pub(crate) name: &'static str,
    /// What it is tried with.
    pub(crate) what: &'static str,
    pub(crate) script: &'static str,
    /// The environment variable that makes it run (`1`) or not (`0`).
    pub(crate) switch: &'static str,
    /// The files of the cache without which it does not run.
    pub(crate) there: &'static [&'static str],
    /// What the switch does if they are not there.
    pub(crate) otherwise: &'static str,
}

impl Suite {
    /// What a usual harness does with its arguments, for this one test.
    pub(crate) fn main(&self) -> ExitCode {
        let arguments: Vec<_> = env::args().skip(1).collect();
        if arguments.iter().any(|argument| argument == "--list") {
            println!("{}: test", self.name);
            return ExitCode::SUCCESS;
        }
        if !self.asked_for(&arguments) {
            return ExitCode::SUCCESS;
        }
        let Self { what, switch, .. } = self;
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let cache = env::var_os("DOORWARD_CACHE").map(PathBuf::from);
        let cache = cache.unwrap_or_else(|| root.join("target/interop"));
        let why_not = match env::var(switch).as_deref() {
            Ok("1") => None,
            Ok("0") => Some(format!("{switch}=0 says so")),
            _ if self.there.iter().all(|file| cache.join(file).exists()) => None,
            _ => Some(format!("it is not there; {switch}=1 {}", self.otherwise)),
        };
        if let Some(why_not) = why_not {
            eprintln!("SKIPPED: the {what} suite: {why_not}");
            return ExitCode::SUCCESS;
        }
        let status = Command::new("bash")
            .arg(root.join("tests/interop").join(self.script))
            .env("DOORWARD", env!("CARGO_BIN_EXE_doorward"))
            .env("DOORWARD_CACHE", cache)
            .status();
        match status {
            Ok(status) if status.success() => ExitCode::SUCCESS,
            Ok(status) => {
                eprintln!("FAILED: the {what} suite ended with {status}");
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("FAILED: the {what} suite cannot be started: {error}");
                ExitCode::FAILURE
            }
        }
    }

    /// Whether this test is among those that the arguments of a usual harness name.
    fn asked_for(&self, arguments: &[String]) -> bool {
        const WITH_VALUE: [&str; 6] = [
            "--color",
            "--format",
            "--logfile",
            "--skip",
            "--test-threads",
            "-Z",
        ];
        let mut filters = Vec::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--ignored" => return false,
                option if WITH_VALUE.contains(&option) => {
                    let value = arguments.next();
                    let skipped = value.is_some_and(|skipped| self.name.contains(skipped));
                    if option == "--skip" && skipped {
                        return false;
                    }
                }
                option if option.starts_with('-') => {}
                filter => filters.push(filter),
            }
        }
        filters.is_empty() || filters.iter().any(|filter| self.name.contains(filter))
    }
}
