//! How is a report told to people at a terminal, and to programs?

use std::fmt;

use jiff::Timestamp;
use serde_json::{Map, Value as Json, json};

use super::{Report, Row, Section, Value, lasting};

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} to {} ({}), from {}",
            shown_time(self.window.start() / 1000),
            shown_time(self.window.end / 1000),
            lasting(self.window.length()),
            line(&self.server)
        )?;
        for note in &self.notes {
            writeln!(f, "  ! {}", line(note))?;
        }
        for section in &self.sections {
            write!(f, "\n{section}")?;
        }
        match self.findings() {
            0 => writeln!(f, "\nnothing to act on"),
            1 => writeln!(f, "\n1 thing to act on (marked with *)"),
            findings => writeln!(f, "\n{findings} things to act on (marked with *)"),
        }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = self.kind.title();
        match (self.rows.len(), self.findings()) {
            (0, _) => writeln!(f, "{title}: nothing found")?,
            (_, 0) => writeln!(f, "{title}")?,
            (_, findings) => writeln!(f, "{title}: {findings} to act on")?,
        }
        if self.findings() > 0 {
            writeln!(f, "  {}", self.kind.advice())?;
        }
        for note in &self.notes {
            writeln!(f, "  {}", line(note))?;
        }
        let shown = &self.rows[..self.rows.len().min(MOST_ROWS)];
        let lines: Vec<Vec<String>> = std::iter::once(head(&self.rows))
            .filter(|head| !head.is_empty())
            .chain(shown.iter().map(|row| {
                let cells = row.cells.iter().map(|(_, value)| line(&value.to_string()));
                cells.collect()
            }))
            .collect();
        let columns = lines.first().map_or(0, Vec::len);
        let width = |column: usize| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for (number, cells) in lines.iter().enumerate() {
            let act = number > 0 && shown.get(number - 1).is_some_and(|row| row.act);
            let mut text = String::from(if act { "  * " } else { "    " });
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let value = shown.first().and_then(|row| row.cells.get(column));
                match value.is_some_and(|(_, value)| value.is_number()) {
                    true => text += &format!("{cell:>width$}  "),
                    false => text += &format!("{cell:<width$}  "),
                }
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        if self.rows.len() > MOST_ROWS {
            let more = self.rows.len() - MOST_ROWS;
            writeln!(f, "    … and {more} more, which --json shows")?;
        }
        Ok(())
    }
}

/// More are not read.
pub(super) const MOST_ROWS: usize = 50;

/// The heads of a section's columns.
pub(super) fn head(rows: &[Row]) -> Vec<String> {
    let first = rows.first();
    let names = first.into_iter().flat_map(|row| &row.cells);
    names.map(|(name, _)| name.replace('_', " ")).collect()
}

/// What somebody else wrote moves no cursor here.
fn line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

impl Value {
    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Count(_) | Self::Share(_))
    }

    pub(super) fn is_time(&self) -> bool {
        matches!(self, Self::Time(_) | Self::End(_))
    }

    fn json(&self) -> Json {
        match self {
            Self::Text(text) => json!(text),
            Self::Count(count) => json!(count),
            Self::Share(share) => json!(share),
            Self::Time(time) | Self::End(time) => json!(time.and_then(rfc3339)),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) if text.is_empty() => f.write_str("-"),
            Self::Text(text) => f.write_str(text),
            Self::Count(count) => write!(f, "{count}"),
            Self::Share(share) => f.write_str(&percent(*share)),
            Self::Time(Some(time)) => f.write_str(&shown_time(*time)),
            Self::End(Some(end)) if end % 86_400 == 0 => f.write_str(&shown_time(end - 86_400)),
            Self::End(Some(end)) => f.write_str(&shown_time(*end)),
            Self::Time(None) | Self::End(None) => f.write_str("-"),
        }
    }
}

/// A share in percent: only what is whole is shown as 100 %, and only nothing as 0 %.
pub(super) fn percent(share: f64) -> String {
    let percent = (share * 10_000.0).floor() / 100.0;
    match share {
        _ if share >= 1.0 => "100 %".to_owned(),
        _ if share <= 0.0 => "0 %".to_owned(),
        _ => format!("{:.2} %", percent.max(0.01)),
    }
}

/// A time as people read it, in UTC; without the time of day where that is midnight.
pub(super) fn shown_time(seconds: i64) -> String {
    let Ok(time) = Timestamp::from_second(seconds) else {
        return "-".to_owned();
    };
    match seconds % 86_400 {
        0 => time.strftime("%Y-%m-%d").to_string(),
        _ => time.strftime("%Y-%m-%d %H:%MZ").to_string(),
    }
}

fn rfc3339(seconds: i64) -> Option<String> {
    Some(Timestamp::from_second(seconds).ok()?.to_string())
}

impl Report {
    /// One JSON object. Its shape is described in the README, and keys are only added to it.
    #[must_use]
    pub fn json(&self) -> Json {
        let sections: Map<_, _> = self
            .sections
            .iter()
            .map(|section| (section.kind.label().to_owned(), section.json()))
            .collect();
        json!({
            "version": 1,
            "server": self.server,
            "from": rfc3339(self.window.start() / 1000),
            "to": rfc3339(self.window.end / 1000),
            "window_seconds": self.window.length().as_secs(),
            "covered_seconds": self.covered.as_secs(),
            "findings": self.findings(),
            "notes": self.notes,
            "sections": sections,
        })
    }
}

impl Section {
    fn json(&self) -> Json {
        let rows = self.rows.iter().map(|row| {
            let cells = row.cells.iter();
            let mut object: Map<_, _> = cells
                .map(|(name, value)| ((*name).to_owned(), value.json()))
                .collect();
            object.insert("act".to_owned(), json!(row.act));
            object
        });
        json!({
            "title": self.kind.title(),
            "advice": self.kind.advice(),
            "findings": self.findings(),
            "notes": self.notes,
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}
