//! How does one audit file follow another? Locked against a second writer, continued after a restart,
//! rotated by size and age.
//!
//! Rotated files are named after the file and sort by age: `audit.jsonl.20270630T120000Z-000007` is the
//! seventh of its log, moved aside at noon. Whoever rotates by moving the file away and sending SIGHUP is
//! served as well.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::Rotate;
use super::chain::{Chain, Mark, MarkKind, Sealed, Torn};
use super::read::LONGEST_LINE;
use super::writer::Output;

/// The file that lines are appended to.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    rotate: Option<Rotate>,
    file: File,
    /// A pipe or a device is not locked, read or rotated.
    is_regular: bool,
    length: u64,
    began: SystemTime,
}

/// What was found where lines shall go.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Where the log stands that goes on here.
    pub(super) chain: Option<Chain>,
    /// Half a line at its end.
    pub(super) torn: Option<Torn>,
    /// Its last line, half or whole, lacks the newline.
    pub(super) is_unended: bool,
    /// How the file begins.
    pub(super) start: Start,
}

/// What must be written first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Start {
    /// The head of a file: nothing is there.
    #[default]
    Empty,
    /// The end of the line that is torn, then a head: nothing else is there.
    Fragment,
    /// That another process goes on here.
    Lines,
}

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("another process writes to it")]
    Taken,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl LogFile {
    /// Opens the file at `path`, or begins it with mode 0600. What stands there and is no audit file of
    /// ours is moved aside.
    pub(super) fn open(path: &Path, rotate: Option<Rotate>) -> Result<(Self, Found), OpenError> {
        if path.metadata().is_ok_and(|about| !about.is_file()) {
            return Ok((Self::special(path, rotate)?, Found::default()));
        }
        loop {
            let mut options = OpenOptions::new();
            options.read(true).append(true).create(true).mode(0o600);
            let file = options.open(path)?;
            lock(&file)?;
            let about = file.metadata()?;
            // Another writer may have rotated it before the lock was ours.
            if !is_at(&file, path)? {
                continue;
            }
            let mut this = Self {
                path: path.to_owned(),
                rotate,
                file,
                is_regular: true,
                length: about.len(),
                began: SystemTime::now(),
            };
            match this.look_back()? {
                Some(found) => return Ok((this, found)),
                None => this.move_aside(0)?,
            }
        }
    }

    fn special(path: &Path, rotate: Option<Rotate>) -> io::Result<Self> {
        if rotate.is_some() {
            return Err(io::Error::other("only a regular file can be rotated"));
        }
        Ok(Self {
            path: path.to_owned(),
            rotate: None,
            file: OpenOptions::new().append(true).open(path)?,
            is_regular: false,
            length: 0,
            began: SystemTime::now(),
        })
    }

    /// Says where the log stands; `None` if this is no file of ours.
    fn look_back(&mut self) -> io::Result<Option<Found>> {
        if self.length == 0 {
            return Ok(Some(Found {
                chain: self.newest_aside()?,
                ..Found::default()
            }));
        }
        let end = End::of(&self.file, self.length)?;
        let mut torn = Torn::of(end.fragment());
        let is_unended = torn.is_some();
        if end.lines().is_empty() && end.is_whole {
            return Ok(Some(Found {
                chain: self.newest_aside()?,
                torn,
                is_unended,
                start: Start::Fragment,
            }));
        }
        let Some((head, mut chain)) = end.place(&self.file)? else {
            return Ok(None);
        };
        if let Some(last) = Sealed::unended(end.fragment(), chain.head()) {
            chain = chain.at(&last);
            torn = None;
        }
        if let Ok(began) = head.time.parse::<Timestamp>() {
            self.began = began.into();
        }
        Ok(Some(Found {
            chain: Some(chain),
            torn,
            is_unended,
            start: Start::Lines,
        }))
    }

    /// Where the log stands at the end of the newest file that was moved aside.
    fn newest_aside(&self) -> io::Result<Option<Chain>> {
        let mut aside = self.aside()?;
        // Number 0 was no file of ours.
        aside.retain(|path| !path.as_os_str().as_encoded_bytes().ends_with(b"-000000"));
        let Some(newest) = aside.pop() else {
            return Ok(None);
        };
        let file = File::open(newest)?;
        let end = End::of(&file, file.metadata()?.len())?;
        Ok(end.place(&file)?.map(|(_, chain)| {
            let last = Sealed::unended(end.fragment(), chain.head());
            last.map_or(chain, |last| chain.at(&last))
        }))
    }

    /// The files that were moved aside, the oldest first.
    fn aside(&self) -> io::Result<Vec<PathBuf>> {
        let (dir, name) = split(&self.path);
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if is_aside(&entry.file_name(), name) && entry.file_type()?.is_file() {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }

    /// Names the file anew, as number `number` of its log. It is never written over.
    fn move_aside(&self, number: u64) -> io::Result<()> {
        let (dir, name) = split(&self.path);
        let now = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        let mut aside = name.to_owned();
        aside.push(format!(".{now}-{number:06}"));
        let aside = dir.join(aside);
        // The lock keeps other writers of this file away.
        if aside.try_exists()? {
            let what = format!("{} exists already", aside.display());
            return Err(io::Error::new(ErrorKind::AlreadyExists, what));
        }
        fs::rename(&self.path, aside)
    }

    fn remove_old(&self, keep: usize) -> io::Result<()> {
        let mut aside = self.aside()?;
        aside.truncate(aside.len().saturating_sub(keep));
        for old in aside {
            tracing::info!(file = %old.display(), "removing an old audit file");
            fs::remove_file(old)?;
        }
        Ok(())
    }
}

impl Output for LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let written = self.file.write(lines)?;
        self.length += written as u64;
        Ok(written)
    }

    fn reopen(&mut self) -> io::Result<bool> {
        if !self.is_regular || is_at(&self.file, &self.path)? {
            return Ok(false);
        }
        let taken = |error| match error {
            OpenError::Io(error) => error,
            OpenError::Taken => io::Error::other(error),
        };
        let (mut next, found) = Self::open(&self.path, self.rotate).map_err(taken)?;
        if found.start != Start::Empty {
            // It holds what we did not write in this order.
            next.move_aside(0)?;
            (next, _) = Self::open(&self.path, self.rotate).map_err(taken)?;
        }
        *self = next;
        Ok(true)
    }

    fn is_gone(&self) -> bool {
        self.is_regular && self.file.metadata().is_ok_and(|about| about.nlink() == 0)
    }

    fn due(&self, now: SystemTime) -> Option<Duration> {
        let rotate = self.rotate.as_ref()?;
        if rotate.size.is_some_and(|size| self.length >= size) {
            return Some(Duration::ZERO);
        }
        let age = now.duration_since(self.began).unwrap_or_default();
        Some(rotate.age?.saturating_sub(age))
    }

    fn rotate(&mut self, number: u64) -> io::Result<()> {
        // Somebody else moved it away, and may have put another in its place.
        if self.reopen()? {
            return Ok(());
        }
        let (dir, name) = split(&self.path);
        let mut next = OsString::from(".");
        next.push(name);
        next.push(".next");
        let next = dir.join(next);
        // Left by a crash, if it is there.
        match fs::remove_file(&next) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Made first: if there is no room for it, nothing has changed.
        let mut options = OpenOptions::new();
        options.read(true).append(true).create_new(true).mode(0o600);
        let file = options.open(&next)?;
        lock(&file).map_err(io::Error::other)?;
        self.move_aside(number)?;
        fs::rename(&next, &self.path)?;
        self.file = file;
        self.length = 0;
        self.began = SystemTime::now();
        let keep = self
            .rotate
            .as_ref()
            .map_or(usize::MAX, |rotate| rotate.keep);
        if let Err(error) = self.remove_old(keep) {
            tracing::error!(%error, "cannot remove old audit files");
        }
        Ok(())
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        // Closing does it too, unless a process that is being started still holds a copy of the handle.
        let _ = self.file.unlock();
    }
}

/// The last lines of a file.
struct End {
    bytes: Vec<u8>,
    /// Where the last newline ends.
    lines: usize,
    /// Whether these are all lines of the file.
    is_whole: bool,
}

impl End {
    fn of(file: &File, length: u64) -> io::Result<Self> {
        let window = length.min(2 * LONGEST_LINE as u64);
        let mut bytes = vec![0; usize::try_from(window).unwrap_or_default()];
        file.read_exact_at(&mut bytes, length - window)?;
        let newline = bytes.iter().rposition(|byte| *byte == b'\n');
        Ok(Self {
            bytes,
            lines: newline.map_or(0, |at| at + 1),
            is_whole: window == length,
        })
    }

    fn lines(&self) -> &[u8] {
        &self.bytes[..self.lines]
    }

    fn fragment(&self) -> &[u8] {
        &self.bytes[self.lines..]
    }

    /// The head of `file`, and where the chain stands after the last line that belongs to one. What
    /// somebody else wrote behind it is left to be found.
    fn place(&self, file: &File) -> io::Result<Option<(Mark, Chain)>> {
        let mut lines = self.lines().rsplit(|byte| *byte == b'\n');
        let Some(last) = lines.find_map(Sealed::parse) else {
            return Ok(None);
        };
        let mut begin = vec![0; HEAD_ROOM];
        let read = file.read_at(&mut begin, 0)?;
        let head = begin[..read]
            .split(|byte| *byte == b'\n')
            .filter_map(Mark::parse)
            .find(|mark| mark.kind == MarkKind::File);
        Ok(head.and_then(|head| {
            let chain = Chain::after(&head, &last)?;
            Some((head, chain))
        }))
    }
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("End").finish_non_exhaustive()
    }
}

fn lock(file: &File) -> Result<(), OpenError> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => OpenError::Taken,
        TryLockError::Error(error) => OpenError::Io(error),
    })
}

/// Whether `file` is what stands at `path`.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match path.metadata() {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn split(path: &Path) -> (&Path, &OsStr) {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    (
        dir.unwrap_or(Path::new(".")),
        path.file_name().unwrap_or_default(),
    )
}

/// Whether `candidate` is a name that this module gives to what was `name`.
fn is_aside(candidate: &OsStr, name: &OsStr) -> bool {
    let rest = candidate
        .as_encoded_bytes()
        .strip_prefix(name.as_encoded_bytes());
    let Some(rest) = rest.and_then(|rest| rest.strip_prefix(b".")) else {
        return false;
    };
    let shape = b"00000000T000000Z-000000";
    rest.len() >= shape.len()
        && rest
            .iter()
            .enumerate()
            .all(|(at, byte)| match shape.get(at) {
                Some(b'0') | None => byte.is_ascii_digit(),
                Some(letter) => byte == letter,
            })
}

/// How far into a file its head ends: behind half a line, if a crash came that early.
const HEAD_ROOM: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_rotation_gives_are_its_own() {
        let name = OsStr::new("audit.jsonl");
        for (candidate, ours) in [
            ("audit.jsonl.20270630T120000Z-000007", true),
            ("audit.jsonl.20270630T120000Z-1234567", true),
            ("audit.jsonl", false),
            ("audit.jsonl.1", false),
            ("audit.jsonl.20270630T120000Z-00007", false),
            ("audit.jsonl.20270630T120000Z-000007.gz", false),
            ("other.jsonl.20270630T120000Z-000007", false),
            (".audit.jsonl.next", false),
        ] {
            assert_eq!(is_aside(OsStr::new(candidate), name), ours, "{candidate}");
        }
    }
}
