//! `doorward report`: is every access of the fleet used, owned, reviewed and recorded?

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use crate::cli::asked::Directory;
use crate::policy::files;
use crate::report::history::Window;
use crate::report::prometheus::{self, Client, Url};
use crate::report::{Report, seen};
use crate::runtime;

/// Hold what a fleet did, as Prometheus has sampled it, against its policy: grants and principals nobody
/// used, denials, standing secrets, what ends or fails. Exits with 0 if there is nothing to act on, 1 if
/// there is, 2 after a mistake.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The Prometheus server, as in http://127.0.0.1:9090.
    #[arg(long, value_name = "URL")]
    prometheus: Url,
    /// How far to look back, as in 30d or 12h; from one minute to a year.
    #[arg(long, default_value = "30d", value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Duration,
    #[command(flatten)]
    directory: Directory,
    /// When the time that is looked at ends, as in 2027-06-30T12:00:00Z; now if it is not given.
    #[arg(long, value_name = "RFC3339")]
    at: Option<jiff::Timestamp>,
    /// Label matchers that sidecars must fulfil, as in 'namespace="bank"', where the server has others.
    #[arg(long = "match", value_name = "MATCHERS", default_value = "")]
    matching: String,
    /// Print one JSON object.
    #[arg(long, conflicts_with = "html")]
    json: bool,
    /// Write one HTML page that needs nothing else.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The CAs that may vouch for an https server, PEM; those of the system if it is not given.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A file with the bearer token that the server wants.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// How long one answer of the server may take.
    #[arg(long, default_value = "1m", value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Reports on standard output, or to the file named by `--html`.
///
/// # Errors
/// If the policy does not load, the server does not answer, or the page cannot be written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if !(SHORTEST..=LONGEST).contains(&args.since) {
        bail!("--since is from one minute to 366 days");
    }
    let settings = args.directory.settings()?;
    let engine = files::load(&settings)?;
    let client = Client::open(&prometheus::Settings {
        url: args.prometheus,
        ca: args.ca,
        token_file: args.token_file,
        timeout: args.timeout,
    })?;
    let at = args.at.map_or_else(SystemTime::now, SystemTime::from);
    let window = Window::new(at, args.since);
    let asked = seen::ask(&client, window, args.matching.trim().trim_end_matches(','));
    let seen = runtime::control()?.block_on(asked)?;
    if seen.sidecars.is_empty() {
        bail!(
            "{} has no sample of any sidecar in this time: is it this server, does it scrape `metrics.listen`, \
             does --match fit?",
            client.url()
        );
    }
    let report = Report::new(client.url().to_string(), window, &seen, &engine);
    if let Some(path) = &args.html {
        std::fs::write(path, report.page())
            .with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("{}: {} to act on", path.display(), report.findings());
    } else if args.json {
        println!("{:#}", report.json());
    } else {
        print!("{report}");
    }
    Ok(match report.findings() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
