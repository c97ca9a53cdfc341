//! What does a line of the audit file say? The counterpart of `line.rs`, for whoever reads.
//!
//! A record comes from a file that others may have written to, and most of what it says was chosen by
//! peers: nothing here trusts it, and whoever shows it escapes it first ([`shown`]).

use std::borrow::Cow;
use std::fmt::Write;
use std::ops::Deref;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};

use super::read::LONGEST_LINE;
use super::{Direction, Kind};

/// One record as read from its line. What the line does not say is `None`; keys that are not known here
/// are passed over.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Entry<'a> {
    /// When the exchange began.
    #[serde(deserialize_with = "instant")]
    pub time: Timestamp,
    /// Its name.
    #[serde(borrow, default)]
    pub id: Option<Text<'a>>,
    /// The trace it belongs to.
    #[serde(borrow, default)]
    pub trace_id: Option<Text<'a>>,
    /// Which way it went.
    #[serde(default, deserialize_with = "direction")]
    pub direction: Option<Direction>,
    /// What the record is about.
    #[serde(deserialize_with = "kind")]
    pub kind: Kind,
    /// Who asked.
    #[serde(borrow, default)]
    pub principal: Option<Party<'a>>,
    /// Outbound: who answered.
    #[serde(borrow, default)]
    pub peer: Option<Party<'a>>,
    /// Inbound: the sidecar's own SPIFFE ID.
    #[serde(borrow, default)]
    pub own: Option<Text<'a>>,
    /// What was asked: the Cedar resource, or the destination as configured.
    #[serde(borrow, default)]
    pub service: Option<Text<'a>>,
    /// The address it came from.
    #[serde(borrow, default)]
    pub source: Option<Text<'a>>,
    /// Where it was going when it was intercepted.
    #[serde(borrow, default)]
    pub destination: Option<Text<'a>>,
    /// Whether the caller spoke no TLS, and so proved nothing.
    #[serde(default)]
    pub plaintext: bool,
    /// What an HTTP request asked for, and what the answer said.
    #[serde(borrow, default)]
    pub context: Option<Context<'a>>,
    /// What policy said: `allow`, `deny` or `none`.
    #[serde(borrow, default)]
    pub decision: Option<Text<'a>>,
    /// Why not.
    #[serde(borrow, default)]
    pub reason: Option<Text<'a>>,
    /// What decided.
    #[serde(borrow, default)]
    pub grant: Option<Grant<'a>>,
    /// The generation of the policy that decided.
    #[serde(default)]
    pub generation: Option<u64>,
    /// What policies in dry run would have said.
    #[serde(borrow, default)]
    pub observed: Option<Trial<'a>>,
    /// The standing secrets that it carried.
    #[serde(borrow, default)]
    pub secrets: Option<Vec<Secret<'a>>>,
    /// What was done about them.
    #[serde(borrow, default)]
    pub secrets_action: Option<Text<'a>>,
    /// How it ended.
    #[serde(borrow, default)]
    pub outcome: Option<Text<'a>>,
    /// Bytes that came from whoever opened it.
    #[serde(default)]
    pub bytes_in: Option<u64>,
    /// Bytes that went there.
    #[serde(default)]
    pub bytes_out: Option<u64>,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub duration_ms: Option<f64>,
    /// How many records could not be kept before this one.
    #[serde(default)]
    pub lost: Option<u64>,
    /// The number of the line in its log.
    #[serde(default)]
    pub seq: Option<u64>,
    /// The hash that chains the line to those before it.
    #[serde(borrow, default)]
    pub chain: Option<Text<'a>>,
}

/// Somebody with a SPIFFE ID, and the certificate that proved it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Party<'a> {
    /// The SPIFFE ID.
    #[serde(borrow, default)]
    pub id: Option<Text<'a>>,
    /// Who answers for it.
    #[serde(borrow, default)]
    pub owner: Option<Text<'a>>,
    /// The certificate's serial number, in hex.
    #[serde(borrow, default)]
    pub serial: Option<Text<'a>>,
    /// Who issued it.
    #[serde(borrow, default)]
    pub issuer: Option<Text<'a>>,
    /// When it ends, RFC 3339.
    #[serde(borrow, default)]
    pub not_after: Option<Text<'a>>,
}

/// What an HTTP request asked for, and what the answer said.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Context<'a> {
    /// The method.
    #[serde(borrow, default)]
    pub method: Option<Text<'a>>,
    /// The host as the request named it.
    #[serde(borrow, default)]
    pub host: Option<Text<'a>>,
    /// The path as the request wrote it, without the query; cut after 2,048 bytes.
    #[serde(borrow, default)]
    pub path: Option<Text<'a>>,
    /// Which HTTP.
    #[serde(borrow, default)]
    pub protocol: Option<Text<'a>>,
    /// The status that was answered.
    #[serde(default)]
    pub status: Option<u16>,
    /// The gRPC status that was answered.
    #[serde(default)]
    pub grpc_status: Option<u8>,
}

/// The grant, or the `forbid`, that decided.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Grant<'a> {
    /// Its `@id`.
    #[serde(borrow, default)]
    pub id: Option<Text<'a>>,
    /// Its `@owner`.
    #[serde(borrow, default)]
    pub owner: Option<Text<'a>>,
}

/// What a policy in dry run would have decided.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Trial<'a> {
    /// `allow` or `deny`.
    #[serde(borrow, default)]
    pub decision: Option<Text<'a>>,
    /// The `@id` of the policy that says so.
    #[serde(borrow, default)]
    pub grant: Option<Text<'a>>,
}

/// A standing secret that was seen, never its value.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Secret<'a> {
    /// What kind of secret.
    #[serde(borrow, default)]
    pub kind: Option<Text<'a>>,
    /// Where it stood.
    #[serde(borrow, default)]
    pub r#where: Option<Text<'a>>,
    /// A keyed hash of it, in hex.
    #[serde(borrow, default)]
    pub fingerprint: Option<Text<'a>>,
}

/// Text of a record: a part of its line, unless something in it is written with an escape.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// What a line of an audit file is.
#[derive(Clone, Debug, PartialEq)]
pub enum Line<'a> {
    /// A record.
    Record(Box<Entry<'a>>),
    /// Something else that belongs there: the head of a file, or a kind that came later than this program.
    Other,
}

/// Why a line is neither.
#[derive(Debug, thiserror::Error)]
pub enum NotARecord {
    /// It is not JSON, or lacks what every record has, or says it in another type.
    #[error("not an audit record")]
    Malformed(#[source] serde_json::Error),
    /// It is longer than any record.
    #[error("longer than {LONGEST_LINE} bytes")]
    TooLong,
}

impl<'a> Line<'a> {
    /// Reads one line, with or without the newline at its end.
    ///
    /// # Errors
    /// [`NotARecord::Malformed`].
    pub fn parse(line: &'a [u8]) -> Result<Self, NotARecord> {
        #[derive(Deserialize)]
        struct Sort<'a> {
            #[serde(borrow)]
            kind: Text<'a>,
        }
        let error = match serde_json::from_slice(line) {
            Ok(entry) => return Ok(Self::Record(entry)),
            Err(error) => error,
        };
        // What is not a record may say anything in any type beside its kind.
        match serde_json::from_slice::<Sort<'_>>(line) {
            Ok(Sort { kind }) if kind_of(&kind).is_none() => Ok(Self::Other),
            _ => Err(NotARecord::Malformed(error)),
        }
    }
}

impl Entry<'_> {
    /// The SPIFFE ID of who asked.
    #[must_use]
    pub fn principal(&self) -> Option<&str> {
        self.principal.as_ref()?.id.as_deref()
    }

    /// The `@id` of what decided.
    #[must_use]
    pub fn grant(&self) -> Option<&str> {
        self.grant.as_ref()?.id.as_deref()
    }

    /// The method of an HTTP request.
    #[must_use]
    pub fn method(&self) -> Option<&str> {
        self.context.as_ref()?.method.as_deref()
    }

    /// The path of an HTTP request, as it was written.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        self.context.as_ref()?.path.as_deref()
    }
}

/// Text from a record, fit for a terminal and for a comment: whatever is not printable, and the backslash,
/// stands as an escape, so that it can neither move the cursor nor look like another text.
#[must_use]
pub fn shown(text: &str) -> Cow<'_, str> {
    let plain = |c: char| matches!(c, ' '..='~' if c != '\\');
    if text.chars().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        let written = match c {
            '"' | '\'' => escaped.write_char(c),
            _ => write!(escaped, "{}", c.escape_debug()),
        };
        written.expect("a string takes whatever is written to it");
    }
    Cow::Owned(escaped)
}

/// The same JSON with everything escaped that a terminal would obey or that hides what stands there. Only
/// texts have such characters, and there they may be written so; but a carriage return, which is white space
/// between them, becomes a space.
#[must_use]
pub fn harmless(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut units = [0; 2];
    for c in json.chars() {
        if matches!(c, '\t' | '\n' | ' '..='~') || c.escape_debug().len() == 1 {
            out.push(c);
            continue;
        }
        if c == '\r' {
            out.push(' ');
            continue;
        }
        for unit in c.encode_utf16(&mut units) {
            write!(out, "\\u{unit:04x}").expect("a string takes whatever is written to it");
        }
    }
    out
}

/// A number as people read it: `1,204`.
#[must_use]
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn kind_of(label: &str) -> Option<Kind> {
    let kinds = [Kind::Request, Kind::Connection];
    kinds.into_iter().find(|kind| kind.label() == label)
}

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Kind, D::Error> {
    let label = Text::deserialize(deserializer)?;
    kind_of(&label).ok_or_else(|| serde::de::Error::custom("another kind"))
}

fn direction<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Direction>, D::Error> {
    let label = Option::<Text<'de>>::deserialize(deserializer)?;
    let both = [Direction::Inbound, Direction::Outbound];
    let known = |label: Text<'_>| both.into_iter().find(|way| way.label() == &*label);
    Ok(label.and_then(known))
}

fn instant<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = Text::deserialize(deserializer)?;
    text.parse()
        .map_err(|_| serde::de::Error::custom("`time` is not an instant of RFC 3339"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    use http::{Request, StatusCode};
    use prometheus::Registry;
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;
    use crate::audit::{Audit, Connection, Observed, Settings, Sink, Verdict};
    use crate::identity::SpiffeId;
    use crate::identity::svid::Leaf;
    use crate::outcome::Outcome;
    use crate::secrets;

    /// What an entry says, under the names of the file. Taken apart without `..`, so that a field that is
    /// added must be named here.
    fn written(entry: &Entry<'_>) -> Value {
        let text = |text: &Option<Text<'_>>| text.as_deref().map(Value::from);
        let object = |pairs: Vec<(&str, Option<Value>)>| {
            let pairs = pairs.into_iter();
            let pairs = pairs.filter_map(|(key, value)| Some((key.to_owned(), value?)));
            Value::Object(pairs.collect::<Map<_, _>>())
        };
        let party = |party: &Option<Party<'_>>| {
            let Party {
                id,
                owner,
                serial,
                issuer,
                not_after,
            } = party.as_ref()?;
            Some(object(vec![
                ("id", text(id)),
                ("owner", text(owner)),
                ("serial", text(serial)),
                ("issuer", text(issuer)),
                ("not_after", text(not_after)),
            ]))
        };
        let Entry {
            time,
            id,
            trace_id,
            direction,
            kind,
            principal,
            peer,
            own,
            service,
            source,
            destination,
            plaintext,
            context,
            decision,
            reason,
            grant,
            generation,
            observed,
            secrets,
            secrets_action,
            outcome,
            bytes_in,
            bytes_out,
            duration_ms,
            lost,
            seq,
            chain,
        } = entry;
        let context = context.as_ref().map(|context| {
            let Context {
                method,
                host,
                path,
                protocol,
                status,
                grpc_status,
            } = context;
            object(vec![
                ("method", text(method)),
                ("host", text(host)),
                ("path", text(path)),
                ("protocol", text(protocol)),
                ("status", status.map(Value::from)),
                ("grpc_status", grpc_status.map(Value::from)),
            ])
        });
        let secrets = secrets.as_ref().map(|secrets| {
            let secrets = secrets.iter().map(|secret| {
                let Secret {
                    kind,
                    r#where,
                    fingerprint,
                } = secret;
                object(vec![
                    ("kind", text(kind)),
                    ("where", text(r#where)),
                    ("fingerprint", text(fingerprint)),
                ])
            });
            Value::Array(secrets.collect())
        });
        let grant = grant
            .as_ref()
            .map(|Grant { id, owner }| object(vec![("id", text(id)), ("owner", text(owner))]));
        let observed = observed.as_ref().map(|Trial { decision, grant }| {
            object(vec![("decision", text(decision)), ("grant", text(grant))])
        });
        object(vec![
            ("time", Some(format!("{time:.3}").into())),
            ("id", text(id)),
            ("trace_id", text(trace_id)),
            ("direction", direction.map(|way| way.label().into())),
            ("kind", Some(kind.label().into())),
            ("principal", party(principal)),
            ("peer", party(peer)),
            ("own", text(own)),
            ("service", text(service)),
            ("source", text(source)),
            ("destination", text(destination)),
            ("plaintext", plaintext.then(|| true.into())),
            ("context", context),
            ("decision", text(decision)),
            ("reason", text(reason)),
            ("grant", grant),
            ("generation", generation.map(Value::from)),
            ("observed", observed),
            ("secrets", secrets),
            ("secrets_action", text(secrets_action)),
            ("outcome", text(outcome)),
            ("bytes_in", bytes_in.map(Value::from)),
            ("bytes_out", bytes_out.map(Value::from)),
            ("duration_ms", duration_ms.map(Value::from)),
            ("lost", lost.map(Value::from)),
            ("seq", seq.map(Value::from)),
            ("chain", text(chain)),
        ])
    }

    /// Lines that the writer makes of exchanges with everything that a record can say, and with nothing.
    fn lines() -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let settings = Settings {
            sink: Sink::File(path.clone()),
            ..Settings::default()
        };
        let registry = Registry::new();
        let (audit, writer) = Audit::start(&settings, &registry).unwrap();
        let tally = secrets::Metrics::register(&registry).unwrap();
        let tally = tally.of("inbound", "invoices".into());
        let key = Arc::new(secrets::Key::generate().unwrap());
        let guard = secrets::Guard::new(secrets::Settings::default(), key, tally);
        let leaf = Leaf {
            id: SpiffeId::parse("spiffe://example.org/checkout").unwrap(),
            not_before: UNIX_EPOCH,
            not_after: UNIX_EPOCH + Duration::from_secs(3600),
            serial: "0a1b".into(),
            issuer: "CN=\"Example\"\u{1b}[31m".into(),
        };
        for direction in [Direction::Inbound, Direction::Outbound] {
            let full = Arc::new(Connection {
                direction,
                own: Some(SpiffeId::parse("spiffe://example.org/invoices").unwrap()),
                peer: Some(Arc::new(leaf.clone())),
                service: "invoices".into(),
                source: Some("10.0.0.7:4242".parse().unwrap()),
                destination: Some("10.0.0.8:8080".parse().unwrap()),
                plaintext: false,
            });
            let mut record = audit.open(Kind::Request, &full).unwrap();
            let request = Request::get("/v1/\"invoices\"/7?token=secret")
                .header("host", "invoices.svc")
                .header(
                    "traceparent",
                    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                );
            let mut request = request
                .header("authorization", "Basic YTpi")
                .body(())
                .unwrap();
            record.request(&request);
            let carried = guard.pass(&mut request, UNIX_EPOCH, "a", "g");
            record.carries(carried.unwrap());
            record.verdict(Verdict {
                allowed: true,
                grant: Some("checkout-reads".into()),
                owner: Some("payments@example.org".into()),
                principal_owner: Some("shop@example.org".into()),
                generation: 7,
                reason: Some("no_grant"),
                observed: Some(Observed {
                    allowed: false,
                    grant: Some("trial".into()),
                }),
            });
            record.status(StatusCode::OK);
            record.grpc_status(0);
            record.finish(Outcome::Completed, 12, 345);
            let bare = Arc::new(Connection {
                direction,
                own: None,
                peer: None,
                service: "".into(),
                source: None,
                destination: None,
                plaintext: true,
            });
            drop(audit.open(Kind::Connection, &bare).unwrap());
        }
        writer.stop(Duration::from_secs(20)).unwrap();
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn every_key_that_is_written_is_read() {
        let lines = lines();
        let mut records = 0;
        for line in lines.lines() {
            let expected: Value = serde_json::from_str(line).unwrap();
            let Line::Record(entry) = Line::parse(line.as_bytes()).unwrap() else {
                continue;
            };
            assert_eq!(written(&entry), expected);
            records += 1;
        }
        assert_eq!(records, 4);
    }

    #[test]
    fn keys_that_are_not_known_and_keys_that_are_not_there_are_no_mistake() {
        let line = br#"{"later":{"a":[1]},"kind":"request","time":"2026-01-01T00:00:00+02:00",
            "direction":"sideways","principal":{},"service":null,"generation":null}"#;
        let Line::Record(entry) = Line::parse(line).unwrap() else {
            panic!("a record");
        };
        assert_eq!(entry.time.to_string(), "2025-12-31T22:00:00Z");
        assert_eq!(entry.kind, Kind::Request);
        assert_eq!(entry.direction, None);
        assert_eq!((entry.principal(), entry.service.as_deref()), (None, None));
    }

    #[test]
    fn what_is_shown_keeps_to_its_place() {
        for (text, expected) in [
            ("/v1/it's \"x\"", "/v1/it's \"x\""),
            ("a\u{1b}[2Jb\r\n\t", "a\\u{1b}[2Jb\\r\\n\\t"),
            ("\\n", "\\\\n"),
            (
                "\u{202e}\u{9b}\u{200b}\u{7f}",
                "\\u{202e}\\u{9b}\\u{200b}\\u{7f}",
            ),
            ("café", "café"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }

    #[test]
    fn numbers_are_read_in_threes() {
        let numbers = [0, 999, 1_000, 1_234_567];
        assert_eq!(numbers.map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn on_a_terminal_the_same_json_is_written_without_what_it_would_obey() {
        let odd = "{\"a\":\r\n\"\u{9b}31m \u{202e}é\u{7f}\u{e0001}\\n\"}";
        let told = harmless(odd);
        assert!(!told.contains(['\r', '\u{9b}', '\u{202e}', '\u{7f}', '\u{e0001}']));
        let value = |text| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(value(&told), value(odd));
        assert!(told.contains('é'));
    }

    proptest! {
        #[test]
        fn no_line_is_too_odd_to_be_looked_at(line: Vec<u8>, text: String) {
            let _ = Line::parse(&line);
            let _ = Line::parse(text.as_bytes());
            let quoted = serde_json::to_string(&text).unwrap();
            let line = format!(
                r#"{{"time":"2026-01-01T00:00:00Z","kind":"request","service":{quoted}}}"#
            );
            let Ok(Line::Record(entry)) = Line::parse(line.as_bytes()) else {
                panic!("a record: {line}");
            };
            prop_assert_eq!(entry.service.as_deref(), Some(&*text));
            prop_assert!(!shown(&text).chars().any(char::is_control));
        }
    }
}
