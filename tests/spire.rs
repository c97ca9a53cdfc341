//! Does it hold with real SPIRE? Runs `tests/interop/spire.sh` where SPIRE is there, and says in a word that
//! it does not where it is not. That word is why there is no harness: it would keep it to itself.
//!
//! | `DOORWARD_SPIRE` | |
//! |---|---|
//! | not set | runs if SPIRE has been built before |
//! | `1` | builds it first, which needs Go, gcc and some minutes |
//! | `0` | does not run |

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const NAME: &str = "sidecars_live_on_what_spire_gives_them";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        println!("{NAME}: test");
        return ExitCode::SUCCESS;
    }
    if !asked_for(&arguments) {
        return ExitCode::SUCCESS;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cache = env::var_os("DOORWARD_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| root.join("target/interop"));
    let wanted = env::var("DOORWARD_SPIRE");
    let why_not = match wanted.as_deref() {
        Ok("1") => None,
        Ok("0") => Some("DOORWARD_SPIRE=0 says so"),
        _ if cache.join("bin/spire.sum").exists() => None,
        _ => Some("it is not there; DOORWARD_SPIRE=1 builds it"),
    };
    if let Some(why_not) = why_not {
        eprintln!("SKIPPED: the SPIRE suite: {why_not}");
        return ExitCode::SUCCESS;
    }
    let script = root.join("tests/interop/spire.sh");
    let status = Command::new("bash")
        .arg(script)
        .env("DOORWARD", env!("CARGO_BIN_EXE_doorward"))
        .env("DOORWARD_CACHE", cache)
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("FAILED: the SPIRE suite ended with {status}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("FAILED: the SPIRE suite cannot be started: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether this test is among those that the arguments of a usual harness name.
fn asked_for(arguments: &[String]) -> bool {
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
                if option == "--skip" && value.is_some_and(|skipped| NAME.contains(skipped)) {
                    return false;
                }
            }
            option if option.starts_with('-') => {}
            filter => filters.push(filter),
        }
    }
    filters.is_empty() || filters.iter().any(|filter| NAME.contains(filter))
}
