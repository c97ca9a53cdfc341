//! `doorward audit show`: who did what, for people to read.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, BufWriter, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;

use super::filter::{Input, Moment, Pattern, Trouble};
use crate::audit::entry::{Entry, grouped, harmless, shown};
use crate::audit::read::{Item, Reader};
use crate::audit::{Direction, Kind};
use crate::outcome::Outcome;

/// Show audit records, those that all the given filters let through. Exits with 1 if there were lines that
/// are not understood, which are told on standard error.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: Input,
    #[command(flatten)]
    filter: Filter,
    /// Print the lines as they are in the file.
    #[arg(long)]
    json: bool,
    /// Show the last N of them only.
    #[arg(short = 'n', long, value_name = "N")]
    last: Option<usize>,
    /// Go on with what is written later, through rotations; for one file.
    #[arg(short, long)]
    follow: bool,
}

#[derive(Clone, Debug, clap::Args)]
struct Filter {
    /// Who asked: a SPIFFE ID, in which `*` stands for any text.
    #[arg(long, value_name = "SPIFFE_ID")]
    principal: Option<Pattern>,
    /// What decided, or would have: the @id of a grant or a forbid; `*` as above.
    #[arg(long, value_name = "ID")]
    grant: Option<Pattern>,
    /// What was asked, by the name in the configuration; `*` as above.
    #[arg(long, value_name = "NAME")]
    service: Option<Pattern>,
    /// How it ended; may be given more than once.
    #[arg(long, value_parser = PossibleValuesParser::new(Outcome::ALL.map(Outcome::label)))]
    outcome: Vec<String>,
    /// What policy said; `none` where nobody decided.
    #[arg(long, value_parser = ["allow", "deny", "none"])]
    decision: Option<String>,
    /// Which way it went.
    #[arg(long, value_parser = ["inbound", "outbound"])]
    direction: Option<String>,
    /// From when on: an instant of RFC 3339, a day, or how long ago, as in 2h or 30d.
    #[arg(long, value_name = "TIME")]
    since: Option<Moment>,
    /// Before when, in the same words.
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// The name of the exchange: the `request_id` of a refusal.
    #[arg(long)]
    id: Option<String>,
    /// The trace that it belongs to.
    #[arg(long, value_name = "TRACE_ID")]
    trace: Option<String>,
    /// Only what carried standing secrets.
    #[arg(long)]
    secrets: bool,
    /// Only callers that spoke no TLS, let in or refused.
    #[arg(long)]
    plaintext: bool,
}

/// Reads, and shows on standard output; the counts go to standard error.
///
/// # Errors
/// If a file cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut reader = match (&*args.input.files, args.follow) {
        ([file], true) if file.as_os_str() != "-" => Reader::follow(file)?,
        (_, true) => anyhow::bail!("--follow is for one file"),
        (_, false) => args.input.open()?,
    };
    let stdout = io::stdout().lock();
    let terminal = stdout.is_terminal();
    let style = match (args.json, terminal) {
        (true, true) => Style::Escaped,
        (true, false) => Style::Raw,
        (false, _) => Style::Columns {
            colour: terminal && wants_colour(),
        },
    };
    let mut page = Page::new(BufWriter::new(stdout), style, args.last);
    let mut trouble = Trouble::default();
    match show(args, &mut reader, &mut page, &mut trouble) {
        Err(error) if error.downcast_ref::<io::Error>().is_some_and(is_gone) => {
            return Ok(ExitCode::SUCCESS);
        }
        shown => shown?,
    }
    let counts = reader.counts();
    let mut footer = format!(
        "{} shown of {} records",
        grouped(page.shown),
        grouped(counts.records)
    );
    if counts.others > 0 {
        let _ = write!(footer, ", {} other lines skipped", grouped(counts.others));
    }
    if counts.unreadable > 0 {
        let unreadable = grouped(counts.unreadable);
        let _ = write!(footer, ", {unreadable} lines not understood");
    }
    eprintln!("{footer}");
    Ok(match counts.unreadable {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn show(
    args: &Args,
    reader: &mut Reader,
    page: &mut Page<impl Write>,
    trouble: &mut Trouble,
) -> anyhow::Result<()> {
    loop {
        while let Some(item) = reader.line()? {
            match item {
                Item::Record(entry, line) if args.filter.passes(&entry) => {
                    page.add(&entry, line)?;
                }
                Item::Record(..) | Item::Other => {}
                Item::Unreadable { file, line, why } => trouble.tell(file, line, &why),
            }
        }
        page.flush()?;
        if !args.follow {
            return Ok(());
        }
        reader.wait()?;
    }
}

/// Whoever read what we write went away: `| head`.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

/// See <https://no-color.org>.
fn wants_colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

impl Filter {
    fn passes(&self, entry: &Entry<'_>) -> bool {
        let like = |wanted: &Option<Pattern>, found: &[Option<&str>]| {
            wanted.as_ref().is_none_or(|pattern| {
                let mut found = found.iter().flatten();
                found.any(|text| pattern.matches(text))
            })
        };
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|text| found == Some(text))
        };
        let observed = entry.observed.as_ref();
        let grants = [
            entry.grant(),
            observed.and_then(|observed| observed.grant.as_deref()),
        ];
        self.since.is_none_or(|since| entry.time >= since.0)
            && self.until.is_none_or(|until| entry.time < until.0)
            && (!self.secrets || entry.secrets.as_ref().is_some_and(|list| !list.is_empty()))
            && (!self.plaintext || entry.plaintext)
            && is(&self.decision, entry.decision.as_deref())
            && is(&self.direction, entry.direction.map(Direction::label))
            && is(&self.id, entry.id.as_deref())
            && is(&self.trace, entry.trace_id.as_deref())
            && like(&self.service, &[entry.service.as_deref()])
            && like(&self.principal, &[entry.principal()])
            && like(&self.grant, &grants)
            && (self.outcome.is_empty()
                || entry
                    .outcome
                    .as_deref()
                    .is_some_and(|outcome| self.outcome.iter().any(|wanted| wanted == outcome)))
    }
}

/// How records are shown.
#[derive(Clone, Copy)]
enum Style {
    Columns {
        colour: bool,
    },
    /// As in the file.
    Raw,
    /// The same JSON, without what a terminal would obey.
    Escaped,
}

/// Where records are shown. Rows are laid out in blocks, each at least as wide as those before.
struct Page<W> {
    out: W,
    style: Style,
    last: Option<usize>,
    waiting: VecDeque<Shown>,
    widths: [usize; COLUMNS],
    shown: u64,
}

/// What is shown of one record.
enum Shown {
    Row(Box<Row>),
    Line(Vec<u8>),
}

struct Row {
    cells: [String; COLUMNS],
    /// What has no end that others could be aligned to.
    rest: String,
    tone: Tone,
}

#[derive(Clone, Copy)]
enum Tone {
    Good,
    Bad,
    Warning,
    Plain,
}

impl<W: Write> Page<W> {
    fn new(out: W, style: Style, last: Option<usize>) -> Self {
        Self {
            out,
            style,
            last,
            waiting: VecDeque::new(),
            widths: HEAD.map(str::len),
            shown: 0,
        }
    }

    fn add(&mut self, entry: &Entry<'_>, line: &[u8]) -> io::Result<()> {
        self.waiting.push_back(match self.style {
            Style::Columns { .. } => Shown::Row(Box::new(Row::of(entry))),
            Style::Raw => Shown::Line(line.to_vec()),
            Style::Escaped => Shown::Line(harmless(&String::from_utf8_lossy(line)).into_bytes()),
        });
        match self.last {
            Some(last) if self.waiting.len() > last => {
                self.waiting.pop_front();
            }
            None if self.waiting.len() >= BLOCK => self.lay_out()?,
            _ => {}
        }
        Ok(())
    }

    /// Shows what waits. From here on nothing is the last for now.
    fn flush(&mut self) -> io::Result<()> {
        self.last = None;
        self.lay_out()?;
        self.out.flush()
    }

    fn lay_out(&mut self) -> io::Result<()> {
        for shown in &self.waiting {
            if let Shown::Row(row) = shown {
                for (width, cell) in self.widths.iter_mut().zip(&row.cells) {
                    *width = (*width).max(cell.chars().count().min(WIDEST));
                }
            }
        }
        let colour = matches!(self.style, Style::Columns { colour: true });
        for shown in std::mem::take(&mut self.waiting) {
            match shown {
                Shown::Line(line) => {
                    self.out.write_all(&line)?;
                    self.out.write_all(b"\n")?;
                }
                Shown::Row(row) => {
                    if self.shown == 0 {
                        let head = Row {
                            cells: HEAD.map(str::to_owned),
                            rest: "WHAT".to_owned(),
                            tone: Tone::Plain,
                        };
                        head.write(&mut self.out, &self.widths, false)?;
                    }
                    row.write(&mut self.out, &self.widths, colour)?;
                }
            }
            self.shown += 1;
        }
        Ok(())
    }
}

impl Row {
    fn of(entry: &Entry<'_>) -> Self {
        let cell = |text: Option<&str>| match text {
            Some(text) if !text.is_empty() => shown(text).into_owned(),
            _ => "-".to_owned(),
        };
        let context = entry.context.as_ref();
        let status = context.and_then(|context| context.status);
        let cells = [
            format!("{:.3}", entry.time),
            entry.direction.map_or("-", Direction::label).to_owned(),
            cell(entry.decision.as_deref()),
            cell(entry.outcome.as_deref()),
            status.map_or("-".to_owned(), |status| status.to_string()),
            cell(entry.principal()),
            cell(entry.service.as_deref()),
            cell(entry.grant().or(entry.reason.as_deref())),
            entry
                .duration_ms
                .map_or("-".to_owned(), |ms| format!("{ms:.1}")),
        ];
        Self {
            tone: tone(entry),
            rest: what(entry),
            cells,
        }
    }

    fn write(
        &self,
        out: &mut impl Write,
        widths: &[usize; COLUMNS],
        colour: bool,
    ) -> io::Result<()> {
        for (column, (cell, &width)) in self.cells.iter().zip(widths).enumerate() {
            let tone = match column {
                DECISION if colour => self.tone.code(),
                _ => None,
            };
            // The escape is no part of the width.
            match tone {
                _ if column == DURATION => write!(out, "{cell:>width$}  ")?,
                Some(code) => write!(out, "\x1b[{code}m{cell:<width$}\x1b[0m  ")?,
                None => write!(out, "{cell:<width$}  ")?,
            }
        }
        writeln!(out, "{}", self.rest)
    }
}

impl Tone {
    const fn code(self) -> Option<u8> {
        match self {
            Self::Good => Some(32),
            Self::Bad => Some(31),
            Self::Warning => Some(33),
            Self::Plain => None,
        }
    }
}

fn tone(entry: &Entry<'_>) -> Tone {
    match entry.decision.as_deref() {
        _ if entry.observed.is_some() => Tone::Warning,
        Some("allow") => Tone::Good,
        Some("deny") => Tone::Bad,
        _ => Tone::Plain,
    }
}

/// What was asked, and what else there is to know of it.
fn what(entry: &Entry<'_>) -> String {
    let part = |text: Option<&str>| shown(text.unwrap_or("-")).into_owned();
    let mut what = match (entry.kind, &entry.context) {
        (Kind::Request, Some(_)) => format!("{} {}", part(entry.method()), part(entry.path())),
        (kind, _) => kind.label().to_owned(),
    };
    let peer = entry.peer.as_ref().and_then(|peer| peer.id.as_deref());
    if let Some(peer) = peer {
        what.push_str(" answered by ");
        what.push_str(&shown(peer));
    }
    if let Some(observed) = &entry.observed {
        what.push_str("  [dry run: ");
        what.push_str(&part(observed.decision.as_deref()));
        if let Some(grant) = &observed.grant {
            what.push_str(" by ");
            what.push_str(&shown(grant));
        }
        what.push(']');
    }
    for secret in entry.secrets.iter().flatten() {
        what.push_str("  [secret ");
        what.push_str(&part(entry.secrets_action.as_deref()));
        what.push_str(": ");
        what.push_str(&part(secret.kind.as_deref()));
        what.push_str(" in ");
        what.push_str(&part(secret.r#where.as_deref()));
        what.push(']');
    }
    if let Some(lost) = entry.lost {
        let _ = write!(what, "  [{} records before it were lost]", grouped(lost));
    }
    what
}

const HEAD: [&str; COLUMNS] = [
    "TIME",
    "DIRECTION",
    "DECISION",
    "OUTCOME",
    "STATUS",
    "PRINCIPAL",
    "SERVICE",
    "BY",
    "MS",
];
const COLUMNS: usize = 9;
const DECISION: usize = 2;
const DURATION: usize = 8;

/// How many rows are laid out together.
const BLOCK: usize = 200;

/// One odd name does not make a column this wide for all that follows.
const WIDEST: usize = 64;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::audit::entry::Line;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    const LINE: &str = r#"{"time":"2026-06-15T15:06:40.042Z","id":"0abc","trace_id":"0af7",
        "direction":"inbound","kind":"request","principal":{"id":"spiffe://example.org/checkout"},
        "service":"invoices","context":{"method":"GET","path":"/v1/\u001b[2J","status":200},
        "decision":"allow","grant":{"id":"reads"},"observed":{"decision":"deny","grant":"trial"},
        "secrets":[{"kind":"basic","where":"header authorization","fingerprint":"ab"}],
        "secrets_action":"observed","outcome":"completed","duration_ms":1.234,"lost":2}"#;

    fn filter(words: &str) -> Filter {
        let words = ["show", "a.jsonl"]
            .into_iter()
            .chain(words.split_whitespace());
        Command::try_parse_from(words).unwrap().args.filter
    }

    fn entry(line: &str) -> Entry<'_> {
        match Line::parse(line.as_bytes()) {
            Ok(Line::Record(entry)) => *entry,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_filter_lets_through_what_it_names_and_nothing_else() {
        let entry = entry(LINE);
        for (words, expected) in [
            ("", true),
            ("--principal spiffe://example.org/*", true),
            ("--principal spiffe://example.org/check", false),
            ("--grant reads", true),
            ("--grant trial", true),
            ("--grant other", false),
            ("--service inv*", true),
            ("--service invoice", false),
            ("--outcome denied --outcome completed", true),
            ("--outcome denied", false),
            ("--decision allow", true),
            ("--decision none", false),
            ("--direction inbound", true),
            ("--direction outbound", false),
            ("--since 2026-06-15", true),
            ("--since 2026-06-15T15:06:40.042Z", true),
            ("--since 2026-06-16", false),
            ("--until 2026-06-15T15:06:40.042Z", false),
            ("--until 2026-06-16", true),
            ("--id 0abc", true),
            ("--id 0ab", false),
            ("--trace 0af7", true),
            ("--trace 0af8", false),
            ("--secrets", true),
            ("--secrets --outcome denied", false),
        ] {
            assert_eq!(filter(words).passes(&entry), expected, "{words}");
        }
    }

    fn page(style: Style, last: Option<usize>, lines: &[&str]) -> String {
        let mut out = Vec::new();
        let mut page = Page::new(&mut out, style, last);
        for line in lines {
            page.add(&entry(line), line.as_bytes()).unwrap();
        }
        page.flush().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_nothing_recorded_reaches_the_terminal_as_a_command() {
        let bare = r#"{"time":"2026-06-15T15:06:41Z","kind":"connection","decision":"deny"}"#;
        let text = page(Style::Columns { colour: false }, None, &[LINE, bare]);
        let expected = "\
TIME                      DIRECTION  DECISION  OUTCOME    STATUS  PRINCIPAL                      SERVICE   BY      MS  WHAT
2026-06-15T15:06:40.042Z  inbound    allow     completed  200     spiffe://example.org/checkout  invoices  reads  1.2  GET /v1/\\u{1b}[2J  [dry run: deny by trial]  [secret observed: basic in header authorization]  [2 records before it were lost]
2026-06-15T15:06:41.000Z  -          deny      -          -       -                              -         -        -  connection
";
        assert_eq!(text, expected);
        let coloured = page(Style::Columns { colour: true }, None, &[LINE, bare]);
        assert_eq!(
            coloured
                .replace("\x1b[33m", "")
                .replace("\x1b[31m", "")
                .replace("\x1b[0m", ""),
            expected
        );
        assert_eq!(coloured.matches('\x1b').count(), 4);
    }

    #[test]
    fn the_last_few_are_those_at_the_end() {
        let line = |second: usize| LINE.replace(":40.042Z", &format!(":{second}Z"));
        let lines: Vec<_> = (10..60).map(line).collect();
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let text = page(Style::Raw, Some(2), &lines);
        assert_eq!(text, format!("{}\n{}\n", lines[48], lines[49]));
        assert_eq!(page(Style::Raw, Some(0), &lines), "");
        assert_eq!(page(Style::Columns { colour: false }, Some(0), &lines), "");
    }
}
