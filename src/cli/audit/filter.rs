//! Which records are meant? What commands that read audit files have in common.

use std::path::PathBuf;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::audit::entry::{NotARecord, shown};
use crate::audit::read::{self, ReadError, Reader};
use crate::telemetry::chain;

/// Audit files to read.
#[derive(Clone, Debug, clap::Args)]
pub(in crate::cli) struct Input {
    /// Audit files, in any order; `-` is standard input.
    #[arg(value_name = "FILE", required = true)]
    pub(in crate::cli) files: Vec<PathBuf>,
}

impl Input {
    pub(in crate::cli) fn open(&self) -> Result<Reader, ReadError> {
        Reader::new(self.files.iter().map(|file| read::Input::named(file)))
    }
}

/// A point in time: an instant, a day, which begins at midnight in UTC, or a length of time ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Moment(pub(in crate::cli) Timestamp);

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(instant) = text.parse() {
            return Ok(Self(instant));
        }
        let day = text.parse::<Date>();
        if let Some(day) = day.ok().and_then(|day| day.to_zoned(TimeZone::UTC).ok()) {
            return Ok(Self(day.timestamp()));
        }
        let ago = humantime::parse_duration(text).ok();
        let moment = ago.and_then(|ago| Timestamp::now().checked_sub(ago).ok());
        moment.map(Self).ok_or_else(|| {
            "write an instant as in 2027-06-30T12:00:00Z, a day as in 2027-06-30, or how long ago, as in \
             2h or 30d"
                .to_owned()
        })
    }
}

/// A text, or one in which `*` stands for any text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct Pattern(String);

impl FromStr for Pattern {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl Pattern {
    pub(in crate::cli) fn matches(&self, text: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else {
            return self.0 == text;
        };
        let Some(mut text) = text.strip_prefix(first) else {
            return false;
        };
        let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
        // The first place that fits leaves the most for what follows.
        for piece in middle.split('*') {
            match text.find(piece) {
                Some(at) => text = &text[at + piece.len()..],
                None => return false,
            }
        }
        text.ends_with(last)
    }
}

/// Tells of lines that are not understood: the first few each, the rest as a number.
#[derive(Debug, Default)]
pub(in crate::cli) struct Trouble {
    told: u32,
}

impl Trouble {
    pub(in crate::cli) fn tell(&mut self, file: &str, line: u64, why: &NotARecord) {
        if self.told < MOST_TOLD {
            eprintln!("doorward: {file}:{line}: {}", shown(&chain(why)));
        } else if self.told == MOST_TOLD {
            eprintln!("doorward: further lines like these are only counted");
        }
        self.told = self.told.saturating_add(1);
    }
}

const MOST_TOLD: u32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, text, expected) in [
            ("spiffe://a/b", "spiffe://a/b", true),
            ("spiffe://a/b", "spiffe://a/bc", false),
            ("spiffe://a/*", "spiffe://a/b/c", true),
            ("*/b", "spiffe://a/b", true),
            ("*a*b*", "xaxbx", true),
            ("*a*b*", "xbxax", false),
            ("ab*ba", "aba", false),
            ("ab*ba", "abba", true),
            ("a**b", "ab", true),
            ("*", "", true),
        ] {
            let matches = Pattern(pattern.into()).matches(text);
            assert_eq!(matches, expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_moment_is_an_instant_a_day_or_a_while_ago() {
        let read = |text: &str| text.parse::<Moment>().map(|moment| moment.0.to_string());
        for (text, expected) in [
            ("2026-06-30T12:00:00+02:00", "2026-06-30T10:00:00Z"),
            ("2026-06-30", "2026-06-30T00:00:00Z"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(expected));
        }
        let hours = |moment: Moment| (Timestamp::now() - moment.0).get_seconds() / 3600;
        assert_eq!(hours("2h".parse().unwrap()), 2);
        assert_eq!(hours("30d".parse().unwrap()), 720);
        for text in ["", "yesterday", "2", "99999999d"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
