//! `doorward suggest`: the tightest grants that would have allowed what was seen.

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use jiff::Timestamp;
use serde_json::{Map, json};

use super::audit::filter::{Input, Moment, Pattern, Trouble};
use crate::audit::entry::{Entry, grouped, harmless};
use crate::audit::read::Item;
use crate::outcome::Outcome;
use crate::suggest::{Settings, Sightings, Suggestion};

/// Turn what audit records show into the tightest grants that allow it, each with its owner left to fill
/// in. Counts what passed, whether a grant allowed it or nothing is enforced. Exits with 1 if there is
/// nothing to suggest.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: Input,
    /// Only what passed because nothing is enforced (`policy.mode: observe`) and that no grant allows.
    #[arg(long, conflicts_with = "grant")]
    missing: bool,
    /// Only what this grant allowed: suggests what could take its place.
    #[arg(long, value_name = "ID")]
    grant: Option<String>,
    /// Also what was denied because no grant allows it. Look closely at whom you let in.
    #[arg(long, conflicts_with = "grant")]
    denied: bool,
    /// Also what policy allowed and was refused all the same: by the application, with 401, 403, 404, 405,
    /// 410 or 501, or in gRPC with PERMISSION_DENIED, UNAUTHENTICATED or UNIMPLEMENTED, or by the sidecar
    /// for a standing secret.
    #[arg(long)]
    refused: bool,
    /// Only for principals like this one; `*` stands for any text.
    #[arg(long, value_name = "SPIFFE_ID")]
    principal: Option<Pattern>,
    /// Only for services like this one; `*` stands for any text.
    #[arg(long, value_name = "NAME")]
    service: Option<Pattern>,
    /// Only what ended like this; may be given more than once.
    #[arg(long, value_parser = PossibleValuesParser::new(Outcome::ALL.map(Outcome::label)))]
    outcome: Vec<String>,
    /// From when on: an instant of RFC 3339, a day, or how long ago, as in 2h or 30d.
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Before when, in the same words.
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// How long the grants are in force.
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = lifetime)]
    expires_in: Duration,
    /// Write a file `suggested.cedar` into this directory, which is made if need be; an existing file is
    /// not touched.
    #[arg(long, value_name = "DIR", conflicts_with = "json")]
    out: Option<PathBuf>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let day = Duration::from_secs(24 * 3600);
    match humantime::parse_duration(text) {
        Ok(time) if (day..=366 * day).contains(&time) => Ok(time),
        Ok(_) => Err("from 1d to 366d".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Reads, and suggests on standard output; what was left out, and why, goes to standard error.
///
/// # Errors
/// If a file cannot be read or written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut reader = args.input.open()?;
    let mut sightings = Sightings::new(Settings {
        missing: args.missing,
        grant: args.grant.clone(),
        denied: args.denied,
        refused: args.refused,
        now: Timestamp::now(),
        expires_in: args.expires_in,
    });
    let mut trouble = Trouble::default();
    while let Some(item) = reader.line()? {
        match item {
            Item::Record(entry, _) if args.is_about(&entry) => sightings.add(&entry),
            Item::Record(..) | Item::Other => {}
            Item::Unreadable { file, line, why } => trouble.tell(file, line, &why),
        }
    }
    let suggestion = sightings.suggest()?;
    let counts = reader.counts();
    if args.json {
        let left_out = sightings.left_out();
        let left_out: Map<_, _> = left_out
            .map(|(why, count)| (why.label().to_owned(), count.into()))
            .collect();
        let told = json!({
            "grants": suggestion.json(),
            "records": counts.records,
            "counted": sightings.counted(),
            "left_out": left_out,
            "unreadable_lines": counts.unreadable,
        });
        answer(&harmless(&format!("{told:#}\n")))?;
    } else if let Some(dir) = args.out.as_deref().filter(|_| !suggestion.is_empty()) {
        let path = write(dir, &suggestion)?;
        eprintln!("written to {}", path.display());
    } else if !suggestion.is_empty() {
        answer(&suggestion.cedar())?;
    }
    eprintln!(
        "{} suggested from {} of {} records",
        several(suggestion.grants().len() as u64, "grant"),
        grouped(sightings.counted()),
        grouped(counts.records)
    );
    for (why, count) in sightings.left_out() {
        eprintln!("{:>9} left out: {}", grouped(count), why.words());
    }
    if counts.unreadable > 0 {
        eprintln!("{:>9} lines not understood", grouped(counts.unreadable));
    }
    Ok(match suggestion.is_empty() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// Whoever goes away before the end, as `head` does, has seen enough.
fn answer(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn several(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", grouped(count))
}

fn write(dir: &Path, suggestion: &Suggestion) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let path = dir.join("suggested.cedar");
    let written = OpenOptions::new().write(true).create_new(true).open(&path);
    written
        .and_then(|mut file| file.write_all(suggestion.cedar().as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

impl Args {
    fn is_about(&self, entry: &Entry<'_>) -> bool {
        let like = |wanted: &Option<Pattern>, found: Option<&str>| {
            let found = |pattern: &Pattern| found.is_some_and(|text| pattern.matches(text));
            wanted.as_ref().is_none_or(found)
        };
        let ended = |outcome: &str| self.outcome.iter().any(|wanted| wanted == outcome);
        self.since.is_none_or(|since| entry.time >= since.0)
            && self.until.is_none_or(|until| entry.time < until.0)
            && like(&self.principal, entry.principal())
            && like(&self.service, entry.service.as_deref())
            && (self.outcome.is_empty() || entry.outcome.as_deref().is_some_and(ended))
    }
}
