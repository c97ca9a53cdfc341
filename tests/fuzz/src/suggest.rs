//! Whatever stands in an audit file, what is suggested from it loads once it has owners: `suggest` says so
//! itself.

use std::time::Duration;

use doorward::audit::entry::{Line, shown};
use doorward::suggest::{Settings, Sightings};

pub fn check(log: &[u8]) {
    let lines = log.split(|byte| *byte == b'\n').map(Line::parse);
    let mut entries = lines.filter_map(|line| match line {
        Ok(Line::Record(entry)) => Some(entry),
        _ => None,
    });
    let Some(first) = entries.next() else {
        return;
    };
    let mut sightings = Sightings::new(Settings {
        missing: false,
        grant: None,
        denied: true,
        refused: true,
        now: first.time,
        expires_in: Duration::from_secs(90 * 24 * 3600),
    });
    for entry in std::iter::once(first).chain(entries) {
        let path = entry.path().unwrap_or_default();
        assert!(!shown(path).contains(char::is_control));
        sightings.add(&entry);
    }
    let suggestion = sightings
        .suggest()
        .unwrap_or_else(|error| panic!("{error:?}"));
    assert!(suggestion.is_empty() || sightings.counted() > 0);
}
