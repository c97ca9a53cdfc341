use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::audit::chain::Chain;

/// A log of `records` records in one file.
fn log(records: u64) -> Vec<String> {
    lines(&written(records))
}

fn written(records: u64) -> Vec<u8> {
    let mut chain = Chain::new();
    let mut bytes = Vec::new();
    let now = UNIX_EPOCH + Duration::from_secs(1_750_000_000);
    chain.begin_file(&mut bytes, now, None, None);
    for number in 0..records {
        let start = bytes.len();
        let mut line = String::new();
        let time = "2027-01-01T00:00:00.000Z";
        writeln!(line, r#"{{"time":"{time}","kind":"request","n":{number}}}"#).unwrap();
        bytes.extend(line.as_bytes());
        chain.seal(&mut bytes, start, number % 3);
    }
    chain.stop(&mut bytes, now, 0);
    bytes
}

fn lines(bytes: &[u8]) -> Vec<String> {
    let text = str::from_utf8(bytes).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn walked(lines: &[String]) -> Report {
    let text = lines.iter().map(|line| line.clone() + "\n");
    verify_lines("f", text.collect::<String>().as_bytes(), &[]).unwrap()
}

fn faults(lines: &[String]) -> Vec<(u64, Fault)> {
    let findings = walked(lines).findings.into_iter();
    findings
        .map(|finding| (finding.line, finding.fault))
        .collect()
}

#[test]
fn a_log_as_written_is_sound() {
    let report = walked(&log(7));
    assert_eq!(report.findings, []);
    let [log] = &report.logs[..] else {
        panic!("{report:?}");
    };
    assert_eq!((log.records, log.lost, log.stopped), (7, 6, true));
    assert_eq!((log.first_file, log.files[0].lines), (1, 9));
    assert_eq!(log.first.as_deref(), Some("2027-01-01T00:00:00.000Z"));
}

#[test]
fn what_was_done_to_a_log_is_named() {
    type Tamper = fn(&mut Vec<String>);
    let tampers: [(Tamper, &[(u64, Fault)]); 12] = [
        (
            |lines| lines[4] = lines[4].replace("\"n\":3", "\"n\":4"),
            &[(5, Fault::Changed { seq: 5 })],
        ),
        (
            |lines| lines[4] = lines[4].replace("\"seq\":5", "\"seq\":6"),
            &[(5, Fault::Changed { seq: 5 })],
        ),
        (
            |lines| drop(lines.remove(4)),
            &[(5, Fault::Removed { from: 5, to: 5 })],
        ),
        (
            |lines| drop(lines.drain(3..6)),
            &[(4, Fault::Removed { from: 4, to: 6 })],
        ),
        (|lines| drop(lines.remove(0)), &[(1, Fault::NoHead)]),
        (
            |lines| lines.insert(4, lines[2].clone()),
            &[(5, Fault::Displaced { seq: 3 })],
        ),
        (
            |lines| lines.insert(4, lines[4].replace("\"n\":3", "\"n\":9")),
            &[(5, Fault::Displaced { seq: 5 })],
        ),
        (
            |lines| lines.swap(4, 5),
            &[
                (5, Fault::Displaced { seq: 6 }),
                (7, Fault::Removed { from: 6, to: 6 }),
            ],
        ),
        (
            |lines| lines.insert(4, "{}".into()),
            &[(5, Fault::Foreign { lines: 1 })],
        ),
        (
            |lines| lines[4] = "x".repeat(3 << 20),
            &[
                (5, Fault::Foreign { lines: 1 }),
                (6, Fault::Removed { from: 5, to: 5 }),
            ],
        ),
        (|lines| lines.extend(log(2)), &[(12, Fault::OtherLog)]),
        (|lines| lines.clear(), &[(0, Fault::Empty)]),
    ];
    for (number, (tamper, expected)) in tampers.into_iter().enumerate() {
        let mut lines = log(9);
        tamper(&mut lines);
        let mut found = faults(&lines);
        found.sort_by_key(|(line, _)| *line);
        assert_eq!(found, expected, "tamper {number}");
    }
}

#[test]
fn a_line_that_is_being_written_is_no_fault() {
    let bytes = written(3);
    let report = verify_lines("f", &bytes[..bytes.len() - 30], &[]).unwrap();
    assert_eq!(report.findings, []);
    assert!(report.logs[0].unfinished && !report.logs[0].stopped);
}

#[test]
fn a_number_has_one_way_to_be_written() {
    let line = log(1)[1].clone();
    assert!(Sealed::parse(line.as_bytes()).is_some());
    for other in [
        line.replace("\"seq\":2", "\"seq\":02"),
        line.replace("\"seq\":2", "\"seq\":+2"),
        line.replace("\"seq\":2", "\"seq\":"),
        line.replace("\"seq\":2", "\"seq\":99999999999999999999"),
        line.to_uppercase(),
        line[1..].replace(',', ""),
        line + " ",
    ] {
        assert!(Sealed::parse(other.as_bytes()).is_none(), "{other}");
    }
}

#[derive(Clone, Debug)]
enum Tamper {
    Delete(Index),
    Swap(Index, Index),
    Change(Index, Index, u8),
    Copy(Index, Index),
}

fn tampers() -> impl Strategy<Value = Tamper> {
    let at = any::<Index>;
    prop_oneof![
        at().prop_map(Tamper::Delete),
        (at(), at()).prop_map(|(a, b)| Tamper::Swap(a, b)),
        (at(), at(), b' '..=b'~').prop_map(|(a, b, c)| Tamper::Change(a, b, c)),
        (at(), at()).prop_map(|(a, b)| Tamper::Copy(a, b)),
    ]
}

proptest! {
    #[test]
    fn whatever_is_done_to_one_line_is_found_there(records in 1_u64..20, tamper in tampers()) {
        let original = log(records);
        let mut lines = original.clone();
        let count = lines.len();
        // The last line may go: that it did shows against a value noted elsewhere.
        let near = match tamper {
            Tamper::Delete(line) => {
                let line = line.index(count - 1);
                lines.remove(line);
                line
            }
            Tamper::Swap(one, other) => {
                let (one, other) = (one.index(count), other.index(count));
                lines.swap(one, other);
                one.min(other)
            }
            Tamper::Change(line, at, byte) => {
                let line = line.index(count);
                let at = at.index(lines[line].len());
                lines[line].replace_range(at..=at, &char::from(byte).to_string());
                line
            }
            Tamper::Copy(from, to) => {
                let (from, to) = (from.index(count), to.index(count));
                let copy = lines[from].clone();
                lines.insert(to, copy);
                (0..count).find(|at| lines[*at] != original[*at]).unwrap_or(count)
            }
        };
        prop_assume!(lines != original);
        let report = walked(&lines);
        prop_assert!(!report.is_sound());
        let first = report.findings.iter().map(|finding| finding.line).min().unwrap();
        let near = near as u64 + 1;
        // A chain value that was changed shows at the line behind it.
        prop_assert!(first == near || first == near + 1, "{first} for {near}: {:?}", report.findings);
    }

    #[test]
    fn nothing_that_is_read_stops_the_walk(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = verify_lines("f", &bytes[..], &[Link::NONE]);
    }
}
