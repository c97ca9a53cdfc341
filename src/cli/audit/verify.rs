//! `doorward audit verify`: was a line removed, changed, inserted or moved?

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::audit::chain::Link;
use crate::audit::verify::{self, Input, Log, Report, VerifyError};

/// Prove that audit files are whole: follow their chain and name every line that breaks it. Exits with 0 if
/// they are sound, 1 if not, 2 if they cannot be read.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Audit files in any order, directories of nothing else, or `-` for standard input.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// A value of the chain that was noted elsewhere, from the log or from the admin listener: all that was
    /// written up to it must be there. May be given more than once.
    #[arg(long, value_name = "HEX")]
    head: Vec<Link>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Answers on standard output.
///
/// # Errors
/// If a file cannot be read, or there is none.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let report = verify::verify(&inputs(&args.files)?, &args.head)?;
    if args.json {
        println!("{:#}", json(&report)?);
    } else {
        print!("{}", text(&report));
    }
    Ok(match report.is_sound() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn inputs(paths: &[PathBuf]) -> anyhow::Result<Vec<Input>> {
    let mut inputs = Vec::new();
    for path in paths {
        if path == Path::new("-") {
            inputs.push(Input::Stdin);
        } else if path.is_dir() {
            inputs.extend(files_in(path)?.into_iter().map(Input::File));
        } else {
            inputs.push(Input::File(path.clone()));
        }
    }
    // A file that is named twice is read once.
    let mut once = Vec::new();
    for input in inputs {
        if !once.contains(&input) {
            once.push(input);
        }
    }
    Ok(once)
}

/// All files in `dir`, but for hidden ones: one that is passed over could be one that was damaged.
fn files_in(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let unread = || format!("cannot read {}", dir.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(unread)? {
        let entry = entry.with_context(unread)?;
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !is_hidden && entry.path().is_file() {
            files.push(entry.path());
        }
    }
    if files.is_empty() {
        return Err(VerifyError::Nothing(dir.display().to_string()).into());
    }
    files.sort();
    Ok(files)
}

fn json(report: &Report) -> serde_json::Result<serde_json::Value> {
    let mut value = serde_json::to_value(report)?;
    value["sound"] = report.is_sound().into();
    if let Some(findings) = value["findings"].as_array_mut() {
        for (value, finding) in findings.iter_mut().zip(&report.findings) {
            value["meaning"] = finding.fault.meaning().into();
        }
    }
    Ok(value)
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let meaning = finding.fault.meaning();
        text += &match finding.line {
            0 => format!("{}: {meaning}\n", finding.file),
            line => format!("{}:{line}: {meaning}\n", finding.file),
        };
    }
    if report.more_findings > 0 {
        let _ = writeln!(text, "… and {} more", report.more_findings);
    }
    for log in &report.logs {
        if !text.is_empty() {
            text.push('\n');
        }
        for (word, line) in described(log) {
            let _ = writeln!(text, "{word:<9}{line}");
        }
    }
    for anchor in &report.anchors {
        let _ = match &anchor.file {
            Some(file) => writeln!(
                text,
                "anchor   {} is line {} of {file}",
                anchor.head, anchor.line
            ),
            None => writeln!(
                text,
                "anchor   {} is nowhere: what was written up to it was removed or written anew",
                anchor.head
            ),
        };
    }
    text += match report.is_sound() {
        true => "\nsound\n",
        false => "\nNOT SOUND\n",
    };
    text
}

fn described(log: &Log) -> Vec<(&'static str, String)> {
    let mut lines = vec![(
        "log",
        log.log.clone().unwrap_or_else(|| "without a head".into()),
    )];
    if log.first_file > 1 {
        let before = log.first_file - 1;
        lines.push(("before", format!("its first {before} files are not here")));
    }
    for file in &log.files {
        lines.push(("file", format!("{}: {} records", file.name, file.records)));
    }
    let of = |moment: &Option<String>| moment.clone().unwrap_or_default();
    let mut records = format!("{} in all", log.records);
    if log.records > 0 {
        records += &format!(", begun from {} to {}", of(&log.first), of(&log.last));
    }
    lines.push(("records", records));
    if log.lost > 0 {
        lines.push((
            "lost",
            format!("{} records, as the log itself says", log.lost),
        ));
    }
    if log.torn > 0 {
        let torn = format!(
            "{} lines by a crash, marked when it was written on",
            log.torn
        );
        lines.push(("torn", torn));
    }
    lines.push((
        "end",
        match (log.stopped, log.unfinished) {
            (true, false) => "the process stopped in good order",
            (false, false) => "no word of a stop: it runs, or was killed, or lines are missing",
            (_, true) => "in the middle of a line: it is being written, or was cut",
        }
        .to_owned(),
    ));
    lines.extend(log.head.map(|head| ("head", head.to_string())));
    lines
}
