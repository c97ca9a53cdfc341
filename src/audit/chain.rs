//! How does a line vouch for all lines before it? Each carries the hash of itself and of the hash before.
//!
//! ```text
//! {"kind":"file",…,"seq":1,"chain":"H1"}          H1 = SHA-256(0³² ‖ {"kind":"file",…,"seq":1})
//! {"time":…,"outcome":"completed","seq":2,"chain":"H2"}   H2 = SHA-256(H1 ‖ {"time":…,"seq":2})
//! ```
//!
//! A *log* is what one chain holds: all files of one sidecar, one after the other, through rotations and
//! restarts. Its lines are numbered, so that a gap says how much is missing. Lines that are no records are
//! [`Mark`]s: the head of each file, and where a process went on or stopped. A later version may add kinds
//! (a checkpoint that is signed, for one); whoever reads passes over those it does not know.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::str::FromStr;
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256, digest};
use jiff::Timestamp;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

/// A value of the chain: SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link([u8; 32]);

impl Link {
    /// What the first line of a log follows.
    pub const NONE: Self = Self([0; 32]);

    /// The hash of `bytes` alone.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut link = Self::NONE;
        link.0.copy_from_slice(digest(&SHA256, bytes).as_ref());
        link
    }

    /// The value of a line that follows this one. `body` is the line up to its key `chain`.
    fn then(self, body: &[u8]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(&self.0);
        context.update(body);
        context.update(b"}");
        let mut link = Self::NONE;
        link.0.copy_from_slice(context.finish().as_ref());
        link
    }

    fn hex(self) -> [u8; 64] {
        let mut text = [0; 64];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        text
    }

    /// Reads 64 lower-case digits: what is written otherwise is another line.
    fn parse(text: &[u8]) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut link = Self::NONE;
        if text.len() != 64 {
            return None;
        }
        for (byte, pair) in link.0.iter_mut().zip(text.chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(link)
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.hex()))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Link {
    type Err = NotALink;

    fn from_str(text: &str) -> Result<Self, NotALink> {
        Self::parse(text.to_ascii_lowercase().as_bytes()).ok_or(NotALink)
    }
}

/// The text is no value of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write the 64 hexadecimal digits of a chain's value")]
pub struct NotALink;

/// Where a chain stands: what the next line goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    log: u128,
    /// The number of the file that is being written, from 1; 0 before the first.
    file: u64,
    /// The number of the next line.
    next: u64,
    value: Link,
}

impl Serialize for Chain {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut shown = serializer.serialize_struct("Chain", 4)?;
        shown.serialize_field("log", &self.log())?;
        shown.serialize_field("file", &self.file)?;
        shown.serialize_field("lines", &self.lines())?;
        shown.serialize_field("head", &self.value.to_string())?;
        shown.end()
    }
}

impl Chain {
    /// The beginning of a log of its own.
    pub(super) fn new() -> Self {
        // Unique is enough: nobody trusts this name.
        let random = || u128::from(RandomState::new().hash_one(()));
        Self {
            log: random() << 64 | random(),
            file: 0,
            next: 1,
            value: Link::NONE,
        }
    }

    /// What follows `last`, in the file that `head` begins.
    pub(super) fn after(head: &Mark, last: &Sealed<'_>) -> Option<Self> {
        Some(Self {
            log: u128::from_str_radix(&head.log, 16).ok()?,
            file: head.file,
            next: last.seq.checked_add(1)?,
            value: last.chain,
        })
    }

    /// What follows `last` in the same log.
    pub(super) fn at(self, last: &Sealed<'_>) -> Self {
        Self {
            next: last.seq.saturating_add(1),
            value: last.chain,
            ..self
        }
    }

    /// The number of the file that is being written.
    pub(super) fn file(&self) -> u64 {
        self.file
    }

    /// The name of the log.
    #[must_use]
    pub fn log(&self) -> String {
        format!("{:032x}", self.log)
    }

    /// How many lines the log has.
    #[must_use]
    pub fn lines(&self) -> u64 {
        self.next - 1
    }

    /// The value of the last line.
    #[must_use]
    pub fn head(&self) -> Link {
        self.value
    }

    /// Makes the line that begins at `start`, the last in `buffer`, the next of the chain. `lost` is how
    /// many records could not be kept before it.
    pub(super) fn seal(&mut self, buffer: &mut Vec<u8>, start: usize, lost: u64) {
        if !buffer[start..].ends_with(b"}\n") {
            return;
        }
        buffer.truncate(buffer.len() - 2);
        let written = match lost {
            0 => write!(buffer, ",\"seq\":{}", self.next),
            lost => write!(buffer, ",\"lost\":{lost},\"seq\":{}", self.next),
        };
        written.expect("a vector takes whatever is written to it");
        self.value = self.value.then(&buffer[start..]);
        buffer.extend_from_slice(CHAIN);
        buffer.extend_from_slice(&self.value.hex());
        buffer.extend_from_slice(b"\"}\n");
        self.next += 1;
    }

    /// Appends the head of the next file.
    pub(super) fn begin_file(
        &mut self,
        buffer: &mut Vec<u8>,
        now: SystemTime,
        own: Option<String>,
        torn: Option<Torn>,
    ) {
        self.file += 1;
        let mark = Mark {
            format: Some(FORMAT),
            previous: (self.next > 1).then(|| self.value.to_string()),
            own,
            torn,
            ..self.mark(MarkKind::File, now)
        };
        self.append(buffer, &mark, 0);
    }

    /// Appends that another process goes on here.
    pub(super) fn resume(&mut self, buffer: &mut Vec<u8>, now: SystemTime, torn: Option<Torn>) {
        let mark = Mark {
            torn,
            ..self.mark(MarkKind::Resumed, now)
        };
        self.append(buffer, &mark, 0);
    }

    /// Appends that the process ends in good order.
    pub(super) fn stop(&mut self, buffer: &mut Vec<u8>, now: SystemTime, lost: u64) {
        self.append(buffer, &self.mark(MarkKind::Stopped, now), lost);
    }

    /// Appends `lines`, sealed before, as lines that follow here. Heads of files are left out: they say
    /// what another file begins with.
    pub(super) fn seal_again(&mut self, buffer: &mut Vec<u8>, lines: &[u8]) {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let Some(sealed) = Sealed::parse(line.trim_ascii_end()) else {
                continue;
            };
            if Mark::parse(line).is_some_and(|mark| mark.kind == MarkKind::File) {
                continue;
            }
            let start = buffer.len();
            buffer.extend_from_slice(sealed.content());
            buffer.extend_from_slice(b"}\n");
            self.seal(buffer, start, sealed.lost);
        }
    }

    fn mark(&self, kind: MarkKind, now: SystemTime) -> Mark {
        let now = Timestamp::try_from(now).unwrap_or(Timestamp::MAX);
        Mark {
            kind,
            time: format!("{now:.3}"),
            format: None,
            log: self.log(),
            file: self.file,
            previous: None,
            own: None,
            torn: None,
        }
    }

    fn append(&mut self, buffer: &mut Vec<u8>, mark: &Mark, lost: u64) {
        let start = buffer.len();
        serde_json::to_writer(&mut *buffer, mark).expect("a mark is plain text and numbers");
        buffer.push(b'\n');
        self.seal(buffer, start, lost);
    }
}

/// A line of an audit file that is no record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What it marks.
    pub kind: MarkKind,
    /// When, RFC 3339.
    pub time: String,
    /// Heads: the version of this format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<u8>,
    /// The name of the log.
    pub log: String,
    /// The number of the file within the log, from 1.
    pub file: u64,
    /// Heads: the value of the last line of the file before, unless it is the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// Heads: the SPIFFE ID of the sidecar, if it had one by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub own: Option<String>,
    /// What stands before it is the beginning of a line whose rest was never written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub torn: Option<Torn>,
}

/// What a [`Mark`] marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MarkKind {
    /// The head of a file.
    File,
    /// A process that goes on with a file it found.
    Resumed,
    /// The end of a process in good order.
    Stopped,
}

/// The beginning of a line that was never finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Torn {
    /// How long it is.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
}

impl Mark {
    /// Reads a line; `None` if it is no mark, or one of a kind that is not known here.
    #[must_use]
    pub fn parse(line: &[u8]) -> Option<Self> {
        // Records begin with their time.
        if !line.starts_with(b"{\"kind\":") {
            return None;
        }
        serde_json::from_slice(line).ok()
    }

    /// What a head says that it follows.
    #[must_use]
    pub fn previous(&self) -> Option<Link> {
        match &self.previous {
            None => Some(Link::NONE),
            Some(text) => Link::parse(text.as_bytes()),
        }
    }
}

impl Torn {
    /// Describes `fragment`; `None` if there is none.
    #[must_use]
    pub fn of(fragment: &[u8]) -> Option<Self> {
        (!fragment.is_empty()).then(|| Self {
            bytes: fragment.len() as u64,
            sha256: Link::of(fragment).to_string(),
        })
    }
}

/// A line as a part of its chain.
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'a> {
    /// Up to the key `chain`.
    body: &'a [u8],
    /// Its number.
    pub seq: u64,
    /// How many records could not be kept before it.
    pub lost: u64,
    /// Its value, as it says.
    pub chain: Link,
}

impl<'a> Sealed<'a> {
    /// Takes a line apart, given without its newline; `None` if it is of no chain.
    #[must_use]
    pub fn parse(line: &'a [u8]) -> Option<Self> {
        let rest = line.strip_suffix(b"\"}")?;
        let (rest, hex) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
        let body = rest.strip_suffix(CHAIN)?;
        let (before, seq) = last_number(body, b"\"seq\":")?;
        Some(Self {
            body,
            seq,
            lost: last_number(before, b"\"lost\":").map_or(0, |(_, lost)| lost),
            chain: Link::parse(hex)?,
        })
    }

    /// Takes apart what stands behind the last newline, if nothing but its own newline is missing.
    pub(super) fn unended(fragment: &'a [u8], before: Link) -> Option<Self> {
        Self::parse(fragment).filter(|line| line.follows(before))
    }

    /// Whether it is the line that follows `before`, unchanged.
    #[must_use]
    pub fn follows(&self, before: Link) -> bool {
        before.then(self.body) == self.chain
    }

    /// The line without what the chain added to it, and without its last brace.
    fn content(&self) -> &'a [u8] {
        let Some((before, _)) = last_number(self.body, b"\"seq\":") else {
            return self.body;
        };
        last_number(before, b"\"lost\":").map_or(before, |(before, _)| before)
    }
}

/// The number behind `key`, if that is what `body` ends with, and what stands before them.
fn last_number<'a>(body: &'a [u8], key: &[u8]) -> Option<(&'a [u8], u64)> {
    let comma = body.iter().rposition(|byte| *byte == b',')?;
    let digits = body[comma + 1..].strip_prefix(key)?;
    // Neither a sign nor a second way to write the same number.
    let plain =
        digits.iter().all(u8::is_ascii_digit) && (digits == b"0" || !digits.starts_with(b"0"));
    let number = str::from_utf8(digits).ok()?.parse().ok()?;
    plain.then_some((&body[..comma], number))
}

/// What stands before the value of the chain.
const CHAIN: &[u8] = b",\"chain\":\"";

/// The version of what is described above.
const FORMAT: u8 = 1;

const DIGITS: &[u8; 16] = b"0123456789abcdef";
