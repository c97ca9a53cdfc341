//! Is an audit whole? Walks the chain through one or several files, line by line, and says where it breaks
//! and what that means.
//!
//! What can be concluded: whoever changes, removes, inserts or moves a line without writing the chain anew
//! from there to its end is found. Whoever can write the file can do just that, and can cut lines off its
//! end; that shows against a value of the chain that was noted elsewhere ([`Report::anchors`]).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::chain::{Link, Mark, MarkKind, Sealed, Torn};
use super::read::LONGEST_LINE;

/// Where lines are read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// Standard input: what one or several processes wrote to their standard output, or to the journal.
    Stdin,
}

/// Why nothing can be said.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// Its name.
        file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is nothing to read.
    #[error("there is no audit file in {0}")]
    Nothing(String),
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Each log: the files of one chain.
    pub logs: Vec<Log>,
    /// Where a chain breaks, in the order of the files.
    pub findings: Vec<Finding>,
    /// How many findings more there are than are kept.
    pub more_findings: u64,
    /// Values that were noted elsewhere, and where they stand.
    pub anchors: Vec<Anchor>,
}

/// What one chain holds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Log {
    /// Its name, if its head is there.
    pub log: Option<String>,
    /// Its files, in their order.
    pub files: Vec<Read>,
    /// The number of the first file that is there.
    pub first_file: u64,
    /// How many records there are.
    pub records: u64,
    /// How many records could not be kept, as the log itself says.
    pub lost: u64,
    /// When the first record began.
    pub first: Option<String>,
    /// When the last one began.
    pub last: Option<String>,
    /// The value of its last line.
    #[serde(serialize_with = "text")]
    pub head: Option<Link>,
    /// Whether its last line says that the process stopped in good order.
    pub stopped: bool,
    /// Lines that a crash tore, marked by the process that came after.
    pub torn: u64,
    /// The last line is not whole: it is being written, or was cut.
    pub unfinished: bool,
}

/// A file that was read.
#[derive(Clone, Debug, Serialize)]
pub struct Read {
    /// Its name.
    pub name: String,
    /// How many lines it has.
    pub lines: u64,
    /// How many of them are records.
    pub records: u64,
}

/// A place where a chain breaks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// The line, counted from 1; 0 for the file itself.
    pub line: u64,
    /// What it means.
    #[serde(flatten)]
    pub fault: Fault,
}

/// What a break means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// The line has the number it should have, and is not what was written.
    Changed {
        /// Its number within the log.
        seq: u64,
    },
    /// Lines are missing before it.
    Removed {
        /// The number of the first of them.
        from: u64,
        /// The number of the last.
        to: u64,
    },
    /// The line belongs to the chain elsewhere, or was made to look so.
    Displaced {
        /// The number it says it has.
        seq: u64,
    },
    /// Lines that are of no chain.
    Foreign {
        /// How many there are, one after the other.
        lines: u64,
    },
    /// The log does not begin with the head of a file: what stood before is missing.
    NoHead,
    /// Another log begins in the middle of the file.
    OtherLog,
    /// The file is empty, though the first that is written is its head.
    Empty,
}

impl Fault {
    /// What it means, in words.
    #[must_use]
    pub fn meaning(self) -> String {
        match self {
            Self::Changed { seq } => format!(
                "changed: this is not the line {seq} that was written here, or the line before it was \
                 replaced together with its chain value"
            ),
            Self::Removed { from, to } if from == to => {
                format!("removed: line {from} of the log is missing before this one")
            }
            Self::Removed { from, to } => {
                format!("removed: lines {from} to {to} of the log are missing before this one")
            }
            Self::Displaced { seq } => format!(
                "inserted or moved: this line, which says it is number {seq}, was not written here"
            ),
            Self::Foreign { lines: 1 } => {
                "inserted or damaged: this line is of no chain".to_owned()
            }
            Self::Foreign { lines } => {
                format!("inserted or damaged: {lines} lines from here on are of no chain")
            }
            Self::NoHead => {
                "removed: the log should begin with the head of a file, and this is not one"
                    .to_owned()
            }
            Self::OtherLog => "another log begins here, in the middle of the file".to_owned(),
            Self::Empty => "the file is empty, though its first line was to be its head".to_owned(),
        }
    }
}

/// A value of the chain that somebody noted.
#[derive(Clone, Debug, Serialize)]
pub struct Anchor {
    /// The value.
    #[serde(serialize_with = "shown")]
    pub head: Link,
    /// Where the line stands that has it; all before that line is as it was when it was noted.
    pub file: Option<String>,
    /// Its place in the file.
    pub line: u64,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty() && self.anchors.iter().all(|anchor| anchor.file.is_some())
    }
}

/// Verifies the chains in `inputs`, in whatever order they are given, and looks for `anchors`.
///
/// # Errors
/// [`VerifyError`] if a file cannot be read.
pub fn verify(inputs: &[Input], anchors: &[Link]) -> Result<Report, VerifyError> {
    let mut begins = Vec::new();
    for input in inputs {
        let begin = match input {
            Input::File(path) => Begin::of(path).map_err(unread(path))?,
            Input::Stdin => Begin::default(),
        };
        begins.push((begin, input));
    }
    adopt(&mut begins);
    begins.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut walk = Walk::looking_for(anchors);
    let mut before = None;
    for (begin, input) in begins {
        if before.as_ref() != Some(&begin.log) {
            walk.leave_log();
            before = Some(begin.log);
        }
        match input {
            Input::File(path) => {
                let file = File::open(path).map_err(unread(path))?;
                let reader = BufReader::with_capacity(BUFFER, file);
                walk.read(&path.display().to_string(), reader, false)
                    .map_err(unread(path))?;
            }
            Input::Stdin => walk
                .read("stdin", io::stdin().lock(), true)
                .map_err(unread(Path::new("stdin")))?,
        }
    }
    walk.leave_log();
    walk.report.logs.sort_by(|a, b| a.first.cmp(&b.first));
    Ok(walk.report)
}

/// Verifies one file, given as what it holds.
///
/// # Errors
/// If it cannot be read.
pub fn verify_lines(name: &str, lines: impl BufRead, anchors: &[Link]) -> io::Result<Report> {
    let mut walk = Walk::looking_for(anchors);
    walk.read(name, lines, false)?;
    walk.leave_log();
    Ok(walk.report)
}

fn unread(path: &Path) -> impl FnOnce(io::Error) -> VerifyError {
    let file = path.display().to_string();
    move |source| VerifyError::Read { file, source }
}

/// What the first lines of a file say about its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Begin {
    log: Option<String>,
    /// The number of its first line.
    seq: Option<u64>,
    name: PathBuf,
}

impl Begin {
    fn of(path: &Path) -> io::Result<Self> {
        let mut begin = Self {
            name: path.to_owned(),
            ..Self::default()
        };
        let mut lines = Lines::of(BufReader::new(File::open(path)?));
        for _ in 0..FIRST_LINES {
            let Some(line) = lines.next()? else { break };
            if let Some(sealed) = line.sealed() {
                begin.seq = Some(sealed.seq);
                begin.log = Mark::parse(line.text).map(|mark| mark.log);
                break;
            }
        }
        Ok(begin)
    }
}

/// Gives a file without a head to the one log that is there.
fn adopt(begins: &mut [(Begin, &Input)]) {
    let logs: BTreeSet<_> = begins
        .iter()
        .filter_map(|(begin, _)| begin.log.clone())
        .collect();
    if logs.len() == 1 {
        for (begin, _) in begins {
            begin.log = logs.first().cloned();
        }
    }
}

/// The state of a walk along a chain.
struct Walk {
    report: Report,
    log: Log,
    /// What the next line must follow, and its number; `None` where a log begins.
    expected: Option<(Link, u64)>,
    /// A line that does not follow, until the next one tells why.
    suspect: Option<Suspect>,
    loose: Option<Loose>,
}

struct Suspect {
    file: String,
    line: u64,
    seq: u64,
    /// What was expected in its place.
    before: (Link, u64),
}

/// Lines without a chain, one after the other.
struct Loose {
    file: String,
    line: u64,
    lines: u64,
    /// The last of them.
    last: Option<Torn>,
}

impl Walk {
    fn looking_for(anchors: &[Link]) -> Self {
        let anchor = |head: &Link| Anchor {
            head: *head,
            file: None,
            line: 0,
        };
        Self {
            report: Report {
                anchors: anchors.iter().map(anchor).collect(),
                ..Report::default()
            },
            log: Log::default(),
            expected: None,
            suspect: None,
            loose: None,
        }
    }

    /// Reads one file to its end. A stream may hold what several processes wrote.
    fn read(&mut self, name: &str, lines: impl BufRead, is_stream: bool) -> io::Result<()> {
        let mut lines = Lines::of(lines);
        self.begin_file(name);
        let mut has_chain = false;
        while let Some(line) = lines.next()? {
            self.file_at(name).lines = line.number;
            self.log.unfinished = false;
            let Some(sealed) = line.sealed() else {
                self.loosen(name, &line);
                continue;
            };
            let mark = Mark::parse(line.text);
            self.take(name, &line, &sealed, mark.as_ref(), has_chain, is_stream);
            has_chain = true;
        }
        if self.file_at(name).lines == 0 {
            self.find(name, 0, Fault::Empty);
        }
        Ok(())
    }

    fn begin_file(&mut self, name: &str) {
        self.log.files.push(Read {
            name: name.to_owned(),
            lines: 0,
            records: 0,
        });
    }

    /// The file that is being read, as a part of the log that is.
    fn file_at(&mut self, name: &str) -> &mut Read {
        if self.log.files.is_empty() {
            self.begin_file(name);
        }
        self.log.files.last_mut().expect("one was just added")
    }

    fn take(
        &mut self,
        name: &str,
        line: &Line<'_>,
        sealed: &Sealed<'_>,
        mark: Option<&Mark>,
        has_chain: bool,
        is_stream: bool,
    ) {
        let follows = |before: (Link, u64)| sealed.follows(before.0);
        let is_head = mark.is_some_and(|mark| mark.kind == MarkKind::File);
        let begins = is_head
            && mark
                .and_then(Mark::previous)
                .is_some_and(|previous| sealed.follows(previous));
        if self.expected.is_some_and(follows) {
            self.settle(Some(sealed.seq));
        } else if let Some(suspect) = self.suspect.take_if(|suspect| follows(suspect.before)) {
            // The chain goes on behind it as if it were not there.
            let fault = Fault::Displaced { seq: suspect.seq };
            self.find(&suspect.file, suspect.line, fault);
        } else if begins {
            self.settle(None);
            match self.expected {
                None => {}
                Some((_, next)) if !has_chain => {
                    // The file before does not end as this one says.
                    let fault = match sealed.seq.checked_sub(1) {
                        Some(to) if to >= next => Fault::Removed { from: next, to },
                        _ => Fault::Changed { seq: sealed.seq },
                    };
                    self.find(name, line.number, fault);
                }
                Some(_) => {
                    if !is_stream {
                        self.find(name, line.number, Fault::OtherLog);
                    }
                    self.leave_log();
                    self.file_at(name).lines = line.number;
                }
            }
        } else {
            self.settle(None);
            match self.expected {
                None => self.find(name, line.number, Fault::NoHead),
                Some(before) => {
                    self.suspect = Some(Suspect {
                        file: name.to_owned(),
                        line: line.number,
                        seq: sealed.seq,
                        before,
                    });
                }
            }
        }
        self.settle_loose(mark.and_then(|mark| mark.torn.as_ref()));
        self.expected = Some((sealed.chain, sealed.seq.saturating_add(1)));
        if self.suspect.is_none() {
            self.anchor(name, line.number, sealed.chain);
        }
        self.count(name, line, sealed, mark);
    }

    fn count(&mut self, name: &str, line: &Line<'_>, sealed: &Sealed<'_>, mark: Option<&Mark>) {
        let log = &mut self.log;
        log.lost = log.lost.saturating_add(sealed.lost);
        log.head = Some(sealed.chain);
        log.stopped = mark.is_some_and(|mark| mark.kind == MarkKind::Stopped);
        if let Some(mark) = mark
            && mark.kind == MarkKind::File
        {
            if log.log.is_none() {
                log.first_file = mark.file;
            }
            log.log.get_or_insert_with(|| mark.log.clone());
        }
        if let Some(time) = line.time() {
            log.records += 1;
            // All in UTC and of one length: their order as text is their order in time.
            if log.first.as_deref().is_none_or(|first| time < first) {
                log.first = Some(time.to_owned());
            }
            if log.last.as_deref().is_none_or(|last| time > last) {
                log.last = Some(time.to_owned());
            }
            self.file_at(name).records += 1;
        }
    }

    /// A line that is of no chain: half a line that a mark will speak of, or one that does not belong here.
    fn loosen(&mut self, name: &str, line: &Line<'_>) {
        self.log.unfinished = !line.is_ended;
        let loose = self.loose.get_or_insert_with(|| Loose {
            file: name.to_owned(),
            line: line.number,
            lines: 0,
            last: None,
        });
        loose.lines += 1;
        loose.last = Torn::of(line.text).filter(|_| !line.is_cut);
    }

    /// Says what is wrong with the line before, now that `next` is known to follow it, or that nothing does.
    fn settle(&mut self, next: Option<u64>) {
        let Some(suspect) = self.suspect.take() else {
            return;
        };
        let (_, due) = suspect.before;
        // Then only the number it gives is another.
        let in_place = next.is_some_and(|next| next == due.saturating_add(1));
        let fault = if suspect.seq == due || in_place {
            Fault::Changed { seq: due }
        } else if suspect.seq > due {
            Fault::Removed {
                from: due,
                to: suspect.seq - 1,
            }
        } else {
            Fault::Displaced { seq: suspect.seq }
        };
        self.find(&suspect.file, suspect.line, fault);
    }

    /// Says what lines without a chain mean, unless the last of them is the half line that `torn` marks.
    fn settle_loose(&mut self, torn: Option<&Torn>) {
        let Some(mut loose) = self.loose.take() else {
            return;
        };
        if torn.is_some() && loose.last.as_ref() == torn {
            loose.lines -= 1;
            self.log.torn += 1;
        }
        if loose.lines > 0 {
            let fault = Fault::Foreign { lines: loose.lines };
            self.find(&loose.file, loose.line, fault);
        }
    }

    fn anchor(&mut self, name: &str, line: u64, link: Link) {
        for anchor in &mut self.report.anchors {
            if anchor.head == link && anchor.file.is_none() {
                anchor.file = Some(name.to_owned());
                anchor.line = line;
            }
        }
    }

    fn find(&mut self, file: &str, line: u64, fault: Fault) {
        if self.report.findings.len() >= FINDINGS {
            self.report.more_findings += 1;
            return;
        }
        self.report.findings.push(Finding {
            file: file.to_owned(),
            line,
            fault,
        });
    }

    fn leave_log(&mut self) {
        self.settle(None);
        if self.log.unfinished
            && let Some(loose) = &mut self.loose
        {
            // The beginning of a line that is being written, as far as can be seen.
            loose.lines -= 1;
        }
        self.settle_loose(None);
        self.expected = None;
        let log = std::mem::take(&mut self.log);
        if !log.files.is_empty() {
            self.report.logs.push(log);
        }
    }
}

/// Reads lines, and holds one of them at a time.
struct Lines<R> {
    reader: R,
    line: Vec<u8>,
    number: u64,
}

/// A line as read.
struct Line<'a> {
    /// Without the newline, and cut at [`LONGEST_LINE`].
    text: &'a [u8],
    number: u64,
    is_ended: bool,
    is_cut: bool,
}

impl<R: BufRead> Lines<R> {
    fn of(reader: R) -> Self {
        Self {
            reader,
            line: Vec::new(),
            number: 0,
        }
    }

    fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        self.line.clear();
        let limit = LONGEST_LINE as u64 + 1;
        let read = io::Read::take(&mut self.reader, limit).read_until(b'\n', &mut self.line)?;
        if read == 0 {
            return Ok(None);
        }
        self.number += 1;
        let mut is_ended = self.line.last() == Some(&b'\n');
        let is_cut = !is_ended && self.line.len() > LONGEST_LINE;
        if is_ended {
            self.line.pop();
        } else if is_cut {
            is_ended = self.skip_line()?;
        }
        Ok(Some(Line {
            text: &self.line,
            number: self.number,
            is_ended,
            is_cut,
        }))
    }

    /// Passes over the rest of a line; says whether it has an end.
    fn skip_line(&mut self) -> io::Result<bool> {
        loop {
            let bytes = self.reader.fill_buf()?;
            if bytes.is_empty() {
                return Ok(false);
            }
            let newline = bytes.iter().position(|byte| *byte == b'\n');
            let length = newline.map_or(bytes.len(), |at| at + 1);
            self.reader.consume(length);
            if newline.is_some() {
                return Ok(true);
            }
        }
    }
}

impl Line<'_> {
    fn sealed(&self) -> Option<Sealed<'_>> {
        Sealed::parse(self.text).filter(|_| !self.is_cut)
    }

    /// When it began, if it is a record.
    fn time(&self) -> Option<&str> {
        let rest = self.text.strip_prefix(b"{\"time\":\"")?;
        let end = rest.iter().take(MOMENT).position(|byte| *byte == b'"')?;
        str::from_utf8(&rest[..end]).ok()
    }
}

#[expect(clippy::ref_option, reason = "what serde calls it with")]
fn text<S: Serializer>(link: &Option<Link>, serializer: S) -> Result<S::Ok, S::Error> {
    match link {
        Some(link) => shown(link, serializer),
        None => serializer.serialize_none(),
    }
}

fn shown<S: Serializer>(link: &Link, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(link)
}

/// How many findings are kept: whoever sees as many has seen enough.
const FINDINGS: usize = 1000;

/// How many lines at the beginning of a file may be torn before its head.
const FIRST_LINES: usize = 16;

/// How long an instant is as text, at most.
const MOMENT: usize = 32;

/// How much is read with one call.
const BUFFER: usize = 256 * 1024;

#[cfg(test)]
mod tests;
