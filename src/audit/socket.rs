//! How do records reach a receiver on this machine? One datagram each, on a Unix socket.
//!
//! Either the line as it is, which Vector (`unix_datagram`) and syslog-ng (`unix-dgram`) take, or an entry of
//! systemd's journal (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>). The journal takes longer entries in a
//! sealed memory file; no record comes near that, so here a datagram must do.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;

use serde::Deserialize;

use super::Format;
use super::writer::{Output, RETRY};

/// A socket that lines are sent to.
#[derive(Debug)]
pub(super) struct Datagrams {
    socket: UnixDatagram,
    path: PathBuf,
    format: Format,
    entry: Vec<u8>,
}

impl Datagrams {
    /// Nobody need be there yet: the first lines wait until they can be sent.
    pub(super) fn open(path: PathBuf, format: Format) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A receiver that is full is waited for, but not until it pleases: the stop would wait with us.
        socket.set_write_timeout(Some(RETRY))?;
        Ok(Self {
            socket,
            path,
            format,
            entry: Vec::new(),
        })
    }

    fn explain(&self, error: &io::Error) -> io::Error {
        let path = self.path.display();
        let why = match error.kind() {
            ErrorKind::NotFound => "there is no such socket".into(),
            ErrorKind::ConnectionRefused => "nobody receives there".into(),
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                return io::Error::new(
                    ErrorKind::TimedOut,
                    format!("{path}: the receiver is full and does not read"),
                );
            }
            _ => error.to_string(),
        };
        io::Error::new(error.kind(), format!("{path}: {why}"))
    }
}

impl Output for Datagrams {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let line = lines
            .split(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        let datagram = match self.format {
            Format::Json => line,
            Format::Journald => {
                self.entry.clear();
                entry(&mut self.entry, line);
                &self.entry
            }
        };
        // By name each time: a receiver that comes back makes its socket anew.
        match self.socket.send_to(datagram, &self.path) {
            Ok(_) => Ok(lines.len().min(line.len() + 1)),
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => Err(self.explain(&error)),
        }
    }

    fn longest(&self) -> usize {
        LONGEST
    }
}

/// What the journal indexes of a line; all of it is in the message.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Indexed<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    trace_id: Cow<'a, str>,
    #[serde(borrow)]
    direction: Cow<'a, str>,
    #[serde(borrow)]
    principal: Named<'a>,
    #[serde(borrow)]
    peer: Named<'a>,
    #[serde(borrow)]
    service: Cow<'a, str>,
    #[serde(borrow)]
    decision: Cow<'a, str>,
    #[serde(borrow)]
    reason: Cow<'a, str>,
    #[serde(borrow)]
    grant: Named<'a>,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
}

/// Appends the entry of the journal that says what `line` says.
fn entry(entry: &mut Vec<u8>, line: &[u8]) {
    let indexed: Indexed<'_> = serde_json::from_slice(line).unwrap_or_default();
    // As syslog counts: 5 is a notice, 6 information.
    let priority = if indexed.decision == "deny" { "5" } else { "6" };
    field(entry, "MESSAGE", line);
    for (name, value) in [
        ("PRIORITY", priority),
        ("SYSLOG_IDENTIFIER", "doorward-audit"),
        ("DOORWARD_KIND", &indexed.kind),
        ("DOORWARD_ID", &indexed.id),
        ("DOORWARD_TRACE_ID", &indexed.trace_id),
        ("DOORWARD_DIRECTION", &indexed.direction),
        ("DOORWARD_PRINCIPAL", &indexed.principal.id),
        ("DOORWARD_PEER", &indexed.peer.id),
        ("DOORWARD_SERVICE", &indexed.service),
        ("DOORWARD_DECISION", &indexed.decision),
        ("DOORWARD_REASON", &indexed.reason),
        ("DOORWARD_GRANT", &indexed.grant.id),
        ("DOORWARD_OUTCOME", &indexed.outcome),
    ] {
        if !value.is_empty() {
            field(entry, name, value.as_bytes());
        }
    }
}

/// A value that holds a newline is given with its length, so that it cannot be taken for another field.
fn field(entry: &mut Vec<u8>, name: &str, value: &[u8]) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains(&b'\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// How long a line may be. With its fields in the journal it stays below what Linux sends in one datagram
/// (about 200 KiB) and what Vector takes (100 KiB) unless either is configured to less.
const LONGEST: usize = 48 * 1024;

/// The longest path of a Unix socket on Linux.
pub(super) const LONGEST_PATH: usize = 107;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_of_the_journal_holds_the_line_and_what_is_searched_for() {
        let line = br#"{"time":"t","kind":"request","principal":{"id":"spiffe://a/b"},"service":"x\nDOORWARD_DECISION=allow","decision":"deny","grant":{"id":"g"},"outcome":"denied"}"#;
        let mut written = Vec::new();
        entry(&mut written, line);
        let mut expected = b"MESSAGE=".to_vec();
        expected.extend(line);
        expected.extend(b"\nPRIORITY=5\nSYSLOG_IDENTIFIER=doorward-audit\nDOORWARD_KIND=request\n");
        expected.extend(b"DOORWARD_PRINCIPAL=spiffe://a/b\nDOORWARD_SERVICE\n");
        expected.extend(25_u64.to_le_bytes());
        expected.extend(b"x\nDOORWARD_DECISION=allow\nDOORWARD_DECISION=deny\n");
        expected.extend(b"DOORWARD_GRANT=g\nDOORWARD_OUTCOME=denied\n");
        assert_eq!(
            String::from_utf8_lossy(&written),
            String::from_utf8_lossy(&expected)
        );
    }
}
