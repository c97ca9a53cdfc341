//! How are audit files read? Line by line, however long they are, and nothing is passed over in silence.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;

use super::entry::{Entry, Line, NotARecord};

/// Reads the lines of several files, one file after the other, and holds one line at a time.
#[derive(Debug)]
pub struct Reader {
    waiting: VecDeque<Input>,
    current: Option<Source>,
    counts: Counts,
}

/// Where lines come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file, or a named pipe.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// How many lines were read, by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records.
    pub records: u64,
    /// Heads of files and other lines that belong there and are no records.
    pub others: u64,
    /// Lines that are not understood.
    pub unreadable: u64,
}

/// The next line.
#[derive(Debug)]
pub enum Item<'a> {
    /// A record, and its line without the newline.
    Record(Box<Entry<'a>>, &'a [u8]),
    /// A line that belongs there and is no record.
    Other,
    /// A line that is not understood.
    Unreadable {
        /// The file's name.
        file: &'a str,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        why: NotARecord,
    },
}

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system says so.
    #[error("cannot read {file}")]
    Io {
        /// The file's name.
        file: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is compressed.
    #[error("{file} is compressed: unpack it, and give it as `-` on standard input")]
    Compressed {
        /// The file's name.
        file: String,
    },
}

impl Input {
    /// Standard input for `-`, else a file.
    #[must_use]
    pub fn named(name: &Path) -> Self {
        match name.as_os_str() == "-" {
            true => Self::Stdin,
            false => Self::File(name.to_owned()),
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Stdin => f.write_str("standard input"),
        }
    }
}

impl Reader {
    /// Reads `inputs`. Files are read in the order of their first records, so that rotated ones may be
    /// named in any order; standard input comes last.
    ///
    /// # Errors
    /// If a file cannot be read: nothing has been read then.
    pub fn new(inputs: impl IntoIterator<Item = Input>) -> Result<Self, ReadError> {
        let mut dated = Vec::new();
        for input in inputs {
            let first = match &input {
                Input::File(path) => {
                    let about = path.metadata().map_err(unread(&input.to_string()))?;
                    // To look into a pipe would take from it what it holds.
                    match about.is_file() {
                        true => Source::open(&input)?.first_time()?,
                        false => None,
                    }
                }
                Input::Stdin => None,
            };
            dated.push((input == Input::Stdin, first, input));
        }
        dated.sort_by_key(|(stdin, first, _)| (*stdin, *first));
        Ok(Self {
            waiting: dated.into_iter().map(|(.., input)| input).collect(),
            current: None,
            counts: Counts::default(),
        })
    }

    /// Reads the file at `path`, and goes on with what is written there later: see [`Reader::wait`].
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn follow(path: &Path) -> Result<Self, ReadError> {
        Ok(Self {
            waiting: VecDeque::new(),
            current: Some(Source::follow(path)?),
            counts: Counts::default(),
        })
    }

    /// How much was read so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The next line; none at the end of the last file, and at the end for now of one that is followed.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn line(&mut self) -> Result<Option<Item<'_>>, ReadError> {
        loop {
            let Some(source) = &mut self.current else {
                let Some(input) = self.waiting.pop_front() else {
                    return Ok(None);
                };
                self.current = Some(Source::open(&input)?);
                continue;
            };
            if source.advance()? {
                break;
            }
            if source.followed.is_some() {
                return Ok(None);
            }
            self.current = None;
        }
        let Some(source) = &self.current else {
            return Ok(None);
        };
        let counts = &mut self.counts;
        Ok(Some(match source.parse() {
            Ok(Line::Record(entry)) => {
                counts.records += 1;
                Item::Record(entry, &source.line)
            }
            Ok(Line::Other) => {
                counts.others += 1;
                Item::Other
            }
            Err(why) => {
                counts.unreadable += 1;
                Item::Unreadable {
                    file: &source.name,
                    line: source.lines,
                    why,
                }
            }
        }))
    }

    /// Waits a moment for a file that is followed to grow, or to be replaced: the new file is then read
    /// from its beginning, once the old one has been read to its end.
    ///
    /// # Errors
    /// If the new file cannot be opened.
    pub fn wait(&mut self) -> Result<(), ReadError> {
        std::thread::sleep(POLL);
        let Some(Source {
            followed: Some(followed),
            offset,
            ..
        }) = &mut self.current
        else {
            return Ok(());
        };
        // Between two files of a rotation there is none.
        let Ok(about) = followed.path.metadata() else {
            return Ok(());
        };
        let replaced = followed.file != (about.dev(), about.ino()) || about.len() < *offset;
        if replaced && followed.replaced {
            let path = followed.path.clone();
            self.current = Some(Source::follow(&path)?);
        } else {
            // What was written up to the replacement is read before the old file is left.
            followed.replaced = replaced;
        }
        Ok(())
    }
}

/// What is being read.
struct Source {
    name: String,
    stream: BufReader<Box<dyn Read>>,
    /// The last line read, without its newline; or the beginning of one that is still being written.
    line: Vec<u8>,
    /// Whether it is the former.
    complete: bool,
    /// The last line read is longer than is kept.
    too_long: bool,
    lines: u64,
    /// How many bytes were read.
    offset: u64,
    followed: Option<Followed>,
}

struct Followed {
    path: PathBuf,
    /// Device and inode.
    file: (u64, u64),
    /// Another file stood under its name, or it was cut, when last looked at.
    replaced: bool,
}

impl Source {
    fn open(input: &Input) -> Result<Self, ReadError> {
        let name = input.to_string();
        let stream: Box<dyn Read> = match input {
            Input::File(path) => Box::new(File::open(path).map_err(unread(&name))?),
            Input::Stdin => Box::new(io::stdin()),
        };
        Self::reading(name, stream)
    }

    fn reading(name: String, stream: Box<dyn Read>) -> Result<Self, ReadError> {
        let mut stream = BufReader::with_capacity(BUFFER, stream);
        let begin = stream.fill_buf().map_err(unread(&name))?;
        if [GZIP, ZSTD, XZ]
            .iter()
            .any(|magic| begin.starts_with(magic))
        {
            return Err(ReadError::Compressed { file: name });
        }
        Ok(Self {
            name,
            stream,
            line: Vec::new(),
            complete: true,
            too_long: false,
            lines: 0,
            offset: 0,
            followed: None,
        })
    }

    fn follow(path: &Path) -> Result<Self, ReadError> {
        let name = path.display().to_string();
        let file = File::open(path).map_err(unread(&name))?;
        let about = file.metadata().map_err(unread(&name))?;
        let mut source = Self::reading(name, Box::new(file))?;
        source.followed = Some(Followed {
            path: path.to_owned(),
            file: (about.dev(), about.ino()),
            replaced: false,
        });
        Ok(source)
    }

    /// Reads the next line; false at the end. Half a line at the end of a file that is followed is kept
    /// until the rest is there; elsewhere it is a line.
    fn advance(&mut self) -> Result<bool, ReadError> {
        if std::mem::take(&mut self.complete) {
            self.line.clear();
        }
        let room = (LONGEST_LINE + 1 - self.line.len()) as u64;
        let read = (&mut self.stream)
            .take(room)
            .read_until(b'\n', &mut self.line);
        self.offset += read.map_err(unread(&self.name))? as u64;
        self.too_long = false;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
        } else if self.line.len() > LONGEST_LINE {
            self.too_long = true;
            let rest = self.stream.skip_until(b'\n');
            self.offset += rest.map_err(unread(&self.name))? as u64;
        } else if self.line.is_empty() || self.followed.is_some() {
            return Ok(false);
        }
        self.complete = true;
        self.lines += 1;
        Ok(true)
    }

    fn parse(&self) -> Result<Line<'_>, NotARecord> {
        match self.too_long {
            true => Err(NotARecord::TooLong),
            false => Line::parse(&self.line),
        }
    }

    /// When the first record began, if there is one near the beginning.
    fn first_time(mut self) -> Result<Option<Timestamp>, ReadError> {
        for _ in 0..FIRST_LINES {
            if !self.advance()? {
                break;
            }
            if let Ok(Line::Record(entry)) = self.parse() {
                return Ok(Some(entry.time));
            }
        }
        Ok(None)
    }
}

fn unread(name: &str) -> impl FnOnce(io::Error) -> ReadError {
    move |source| ReadError::Io {
        file: name.to_owned(),
        source,
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .field("lines", &self.lines)
            .finish_non_exhaustive()
    }
}

/// Several times what the longest record takes, whose path and host are cut and may be escaped throughout.
pub(super) const LONGEST_LINE: usize = 1 << 20;

/// How many lines are looked at for the time of a file's first record.
const FIRST_LINES: usize = 16;

/// How much is read with one call.
const BUFFER: usize = 256 << 10;

/// How soon a file that is followed is looked at again.
const POLL: Duration = Duration::from_millis(200);

const GZIP: &[u8] = b"\x1f\x8b";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const XZ: &[u8] = b"\xfd7zXZ";

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    const RECORD: &str = r#"{"time":"2026-01-01T00:00:00Z","kind":"request","id":"1"}"#;

    fn record(time: &str, id: &str) -> String {
        let record = RECORD.replace("2026-01-01", time);
        record.replace(r#""id":"1""#, &format!(r#""id":"{id}""#))
    }

    /// The ids of the records, and `LINE: WHY` of what is not understood.
    fn told(reader: &mut Reader) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(item) = reader.line().unwrap() {
            match item {
                Item::Record(entry, _) => told.push(entry.id.unwrap().to_string()),
                Item::Other => {}
                Item::Unreadable { file, line, why } => {
                    let file = file.rsplit('/').next().unwrap();
                    told.push(format!("{file}:{line}: {why}"));
                }
            }
        }
        told
    }

    #[test]
    fn what_is_no_record_is_told_with_its_place_and_what_belongs_there_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(LONGEST_LINE));
        let lines = [
            r#"{"kind":"file","time":17,"previous":"ab"}"#,
            RECORD,
            "",
            "oops",
            &long,
            r#"{"kind":"request","id":"no time"}"#,
            r#"{"time":"2026-01-01T00:00:00Z","kind":"request","service":7}"#,
            r#"{"time":"2026-01-01T00:00:00Z","kind":"weather","service":7}"#,
            &record("2026-01-01", "2"),
            r#"{"time":"2026-01-01T00:00:00Z","kin"#,
        ];
        fs::write(&path, lines.join("\n")).unwrap();
        let mut reader = Reader::new([Input::File(path)]).unwrap();
        assert_eq!(
            told(&mut reader),
            [
                "1",
                "a.jsonl:3: not an audit record",
                "a.jsonl:4: not an audit record",
                "a.jsonl:5: longer than 1048576 bytes",
                "a.jsonl:6: not an audit record",
                "a.jsonl:7: not an audit record",
                "2",
                "a.jsonl:10: not an audit record",
            ]
        );
        let counts = Counts {
            records: 2,
            others: 2,
            unreadable: 6,
        };
        assert_eq!(reader.counts(), counts);
    }

    #[test]
    fn files_are_read_in_the_order_of_their_records() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            Input::File(path)
        };
        let head = r#"{"kind":"file"}"#;
        let inputs = [
            write("a", format!("{head}\n{}\n", record("2026-03-01", "3"))),
            write("a.1", record("2026-02-01", "2")),
            write("a.2", format!("{}\n", record("2026-01-01", "1"))),
            write("a.3", String::new()),
        ];
        assert_eq!(told(&mut Reader::new(inputs).unwrap()), ["1", "2", "3"]);
    }

    #[test]
    fn what_cannot_be_read_is_told_before_anything_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let packed = dir.path().join("a.gz");
        fs::write(&packed, GZIP).unwrap();
        let error = Reader::new([Input::File(packed.clone())]).unwrap_err();
        assert!(matches!(error, ReadError::Compressed { .. }), "{error}");
        let gone = dir.path().join("gone");
        let error = Reader::new([Input::File(gone.clone())]).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot read {}", gone.display()));
    }

    #[test]
    fn a_file_that_grows_and_is_rotated_is_followed_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let (one, two) = (record("2026-01-01", "1"), record("2026-01-01", "2"));
        let (half, rest) = two.split_at(20);
        let mut old = File::create(&path).unwrap();
        write!(old, "{one}\n{half}").unwrap();
        let mut reader = Reader::follow(&path).unwrap();
        assert_eq!(told(&mut reader), ["1"]);
        reader.wait().unwrap();
        assert_eq!(told(&mut reader), [""; 0]);
        writeln!(old, "{rest}").unwrap();
        fs::rename(&path, dir.path().join("a.jsonl.1")).unwrap();
        reader.wait().unwrap();
        fs::write(&path, format!("{}\n", record("2026-01-01", "4"))).unwrap();
        reader.wait().unwrap();
        // Written to the old file after the new one was there.
        writeln!(old, "{}", record("2026-01-01", "3")).unwrap();
        assert_eq!(told(&mut reader), ["2", "3"]);
        reader.wait().unwrap();
        assert_eq!(told(&mut reader), ["4"]);
        // Emptied in place, as `copytruncate` does.
        fs::write(&path, "").unwrap();
        reader.wait().unwrap();
        assert_eq!(told(&mut reader), [""; 0]);
        reader.wait().unwrap();
        fs::write(&path, format!("{}\n", record("2026-01-01", "5"))).unwrap();
        assert_eq!(told(&mut reader), ["5"]);
    }
}
