use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::sync::Condvar;
use std::time::UNIX_EPOCH;

use serde_json::Value;

use super::chain::{Link, Sealed};
use super::file::Found;
use super::verify::{Fault, Input, Report, verify, verify_lines};
use super::writer::Output;
use super::*;
use crate::document::Document;
use crate::secrets;

/// A sink that a test can look into, fail and block.
#[derive(Clone, Default)]
struct Tape(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    mood: Mood,
    writes: usize,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Mood {
    #[default]
    Willing,
    /// Takes so many bytes more, then fails.
    FullAfter(usize),
    /// Lets the writer wait.
    Stuck,
}

impl Output for Tape {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (state, changed) = &*self.0;
        let mut state = lock(state);
        state.writes += 1;
        changed.notify_all();
        while state.mood == Mood::Stuck {
            state = changed.wait(state).unwrap();
        }
        let room = match &mut state.mood {
            Mood::FullAfter(0) => return Err(ErrorKind::StorageFull.into()),
            Mood::FullAfter(room) => {
                let taken = bytes.len().min(*room);
                *room -= taken;
                taken
            }
            _ => bytes.len(),
        };
        state.bytes.extend(&bytes[..room]);
        Ok(room)
    }
}

/// One tape after another.
struct Tapes(Vec<Tape>);

impl Output for Tapes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0[0].write(bytes)
    }

    fn reopen(&mut self) -> io::Result<bool> {
        if self.0.len() == 1 {
            return Err(ErrorKind::NotFound.into());
        }
        self.0.remove(0);
        Ok(true)
    }
}

impl Tape {
    fn mood(&self, mood: Mood) {
        lock(&self.0.0).mood = mood;
        self.0.1.notify_all();
    }

    fn wait_for_writes(&self, count: usize) {
        let (state, changed) = &*self.0;
        let state = lock(state);
        let (state, _) = changed
            .wait_timeout_while(state, PATIENCE, |state| state.writes < count)
            .unwrap();
        assert!(state.writes >= count);
    }

    fn bytes(&self) -> Vec<u8> {
        lock(&self.0.0).bytes.clone()
    }

    /// The records.
    fn lines(&self) -> Vec<Value> {
        parsed(&self.bytes())
    }
}

struct Kept {
    audit: Audit,
    writer: Writer,
    tape: Tape,
}

fn keeping(level: Level, on_failure: OnFailure) -> Kept {
    let tape = Tape::default();
    let settings = Settings {
        level,
        on_failure,
        queue: 16,
        ..Settings::default()
    };
    let (audit, writer) = start(&settings, Box::new(tape.clone()));
    // The head of the file is out, so that a test sees what it writes itself.
    eventually("the head is written", || audit.chain().is_some());
    Kept {
        audit,
        writer,
        tape,
    }
}

fn start(settings: &Settings, output: Box<dyn Output>) -> (Audit, Writer) {
    writer::start_with(settings, &Registry::new(), output, Found::default()).unwrap()
}

impl Kept {
    fn stop(self) -> Vec<Value> {
        self.writer.stop(PATIENCE).unwrap();
        self.tape.lines()
    }

    /// Blocks the writer and fills the queue behind it.
    fn jam(&self) {
        self.tape.mood(Mood::Stuck);
        request(&self.audit, "/first").finish(Outcome::Completed, 0, 0);
        self.tape.wait_for_writes(2);
        for _ in 0..16 {
            request(&self.audit, "/waiting").finish(Outcome::Completed, 0, 0);
        }
    }
}

/// The records in `bytes`, which must be whole lines.
fn parsed(bytes: &[u8]) -> Vec<Value> {
    let text = str::from_utf8(bytes).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "{text}");
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .filter(|line: &Value| ["request", "connection"].contains(&line["kind"].as_str().unwrap()))
        .collect()
}

fn connection() -> Arc<Connection> {
    Arc::new(Connection {
        direction: Direction::Inbound,
        own: Some(SpiffeId::parse("spiffe://example.org/invoices").unwrap()),
        peer: Some(Arc::new(leaf())),
        service: "invoices".into(),
        source: Some("10.0.0.7:4242".parse().unwrap()),
        destination: Some("10.0.0.8:8080".parse().unwrap()),
        plaintext: false,
    })
}

fn leaf() -> Leaf {
    Leaf {
        id: SpiffeId::parse("spiffe://example.org/checkout").unwrap(),
        not_before: UNIX_EPOCH,
        not_after: UNIX_EPOCH + Duration::from_secs(3600),
        serial: "0a1b".into(),
        issuer: "CN=Example".into(),
    }
}

fn asked(path: &str) -> Request<()> {
    Request::get(path)
        .header("host", "invoices.svc")
        .body(())
        .unwrap()
}

fn request(audit: &Audit, path: &str) -> Record {
    let mut record = audit.open(Kind::Request, &connection()).unwrap();
    record.request(&asked(path));
    record
}

fn allowed() -> Verdict {
    Verdict {
        allowed: true,
        ..Verdict::default()
    }
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::yield_now();
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_line_says_who_did_what_by_which_grant() {
    let mut record = Facts {
        id: ExchangeId(0xabc),
        kind: Kind::Request,
        connection: connection(),
        time: UNIX_EPOCH + Duration::from_millis(1_750_000_000_042),
        peer: None,
        trace: Some(0x0af7),
        verdict: Some(Verdict {
            allowed: true,
            grant: Some("checkout-reads".into()),
            owner: Some("payments@example.org".into()),
            principal_owner: Some("shop@example.org".into()),
            generation: 7,
            reason: None,
            observed: Some(Observed {
                allowed: false,
                grant: Some("trial".into()),
            }),
        }),
        status: Some(StatusCode::OK),
        grpc_status: Some(0),
        carried: None,
    };
    let ended = |facts: &Facts, target| Ended {
        lost: 0,
        facts: facts.clone(),
        target,
        outcome: Outcome::Completed,
        bytes: Some((12, 345)),
        duration: Duration::from_micros(1234),
    };
    let target = Target::of(Asked {
        method: Method::GET,
        uri: Uri::from_static("/v1/invoices/7?token=secret"),
        host: Some(HeaderValue::from_static("invoices.svc")),
        version: Version::HTTP_2,
    });
    let mut written = Vec::new();
    line::write(&mut written, &ended(&record, Some(target)));
    assert_eq!(
        str::from_utf8(&written).unwrap(),
        concat!(
            r#"{"time":"2025-06-15T15:06:40.042Z","id":"00000000000000000000000000000abc","#,
            r#""trace_id":"00000000000000000000000000000af7","direction":"inbound","kind":"request","#,
            r#""principal":{"id":"spiffe://example.org/checkout","owner":"shop@example.org","#,
            r#""serial":"0a1b","issuer":"CN=Example","not_after":"1970-01-01T01:00:00.000Z"},"#,
            r#""own":"spiffe://example.org/invoices","service":"invoices","source":"10.0.0.7:4242","#,
            r#""destination":"10.0.0.8:8080","#,
            r#""context":{"method":"GET","host":"invoices.svc","path":"/v1/invoices/7","#,
            r#""protocol":"http/2","status":200,"grpc_status":0},"decision":"allow","#,
            r#""grant":{"id":"checkout-reads","owner":"payments@example.org"},"generation":7,"#,
            r#""observed":{"decision":"deny","grant":"trial"},"outcome":"completed","#,
            r#""bytes_in":12,"bytes_out":345,"duration_ms":1.234}"#,
            "\n"
        )
    );

    record.kind = Kind::Connection;
    record.verdict = None;
    record.trace = None;
    record.connection = Arc::new(Connection {
        direction: Direction::Outbound,
        peer: None,
        source: None,
        destination: None,
        ..(*connection()).clone()
    });
    record.peer = Some(Arc::new(leaf()));
    written.clear();
    line::write(&mut written, &ended(&record, None));
    assert_eq!(
        str::from_utf8(&written).unwrap(),
        concat!(
            r#"{"time":"2025-06-15T15:06:40.042Z","id":"00000000000000000000000000000abc","#,
            r#""direction":"outbound","kind":"connection","#,
            r#""principal":{"id":"spiffe://example.org/invoices"},"#,
            r#""peer":{"id":"spiffe://example.org/checkout","#,
            r#""serial":"0a1b","issuer":"CN=Example","not_after":"1970-01-01T01:00:00.000Z"},"#,
            r#""service":"invoices","decision":"none","outcome":"completed","#,
            r#""bytes_in":12,"bytes_out":345,"duration_ms":1.234}"#,
            "\n"
        )
    );
}

#[test]
fn a_line_says_which_standing_secrets_were_carried_but_not_the_secrets() {
    let kept = keeping(Level::All, OnFailure::Deny);
    let registry = Registry::new();
    let tally = secrets::Metrics::register(&registry)
        .unwrap()
        .of("inbound", "invoices".into());
    let key = Arc::new(secrets::Key::generate().unwrap());
    let guard = secrets::Guard::new(secrets::Settings::default(), key.clone(), tally);
    let mut carrying = asked("/?api_key=hunter2");
    let carried = guard.pass(&mut carrying, SystemTime::now(), "a", "g");
    let mut record = request(&kept.audit, "/");
    record.carries(carried.unwrap());
    record.finish(Outcome::Completed, 0, 0);
    request(&kept.audit, "/").finish(Outcome::Completed, 0, 0);
    let lines = kept.stop();
    let fingerprint = key.fingerprint(b"hunter2").to_string();
    let expected = serde_json::json!([
        { "kind": "api_key_query", "where": "query api_key", "fingerprint": fingerprint }
    ]);
    assert_eq!(lines[0]["secrets"], expected);
    assert_eq!(lines[0]["secrets_action"], "observed");
    assert!(!lines[0].to_string().contains("hunter2"));
    assert!(lines[1].get("secrets").is_none());
    assert!(lines[1].get("secrets_action").is_none());
}

#[test]
fn hostile_strings_stay_inside_their_line_and_their_limits() {
    let kept = keeping(Level::All, OnFailure::Deny);
    let hostile = Arc::new(Connection {
        service: "a\"b\n{\"outcome\":\"completed\"}\u{0}".into(),
        peer: Some(Arc::new(Leaf {
            issuer: "CN=x\r\n\\\u{1b}[31m".into(),
            ..leaf()
        })),
        ..(*connection()).clone()
    });
    let mut record = kept.audit.open(Kind::Request, &hostile).unwrap();
    let long = format!("http://user:password@host/{}", "x".repeat(9000));
    record.request(&asked(&long));
    record.finish(Outcome::Denied, 0, 0);
    let mut record = kept.audit.open(Kind::Request, &hostile).unwrap();
    let mut request = asked("/quote\"s?key=secret");
    let host = HeaderValue::from_bytes(b"a\"\x80\xffb\t").unwrap();
    request.headers_mut().insert("host", host);
    record.request(&request);
    record.finish(Outcome::Denied, 0, 0);
    let lines = kept.stop();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["service"], *hostile.service);
    assert_eq!(lines[0]["principal"]["issuer"], "CN=x\r\n\\\u{1b}[31m");
    assert_eq!(lines[0]["context"]["host"], "host");
    let path = lines[0]["context"]["path"].as_str().unwrap();
    assert_eq!(path.len(), PATH_LIMIT);
    assert_eq!(lines[1]["context"]["host"], "a\"\u{fffd}\u{fffd}b\t");
    assert_eq!(lines[1]["context"]["path"], "/quote\"s");
}

#[test]
fn records_of_one_worker_keep_their_order() {
    let kept = keeping(Level::All, OnFailure::Deny);
    for number in 0..1000 {
        eventually("room in the queue", || kept.audit.has_room());
        request(&kept.audit, "/").finish(Outcome::Completed, number, 0);
    }
    let numbers: Vec<_> = kept
        .stop()
        .iter()
        .map(|line| line["bytes_in"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
}

#[test]
fn every_record_of_every_worker_is_written_once_under_a_name_of_its_own() {
    let kept = keeping(Level::All, OnFailure::Deny);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let audit = kept.audit.worker();
            scope.spawn(move || {
                for _ in 0..500 {
                    eventually("room in the queue", || audit.has_room());
                    request(&audit, "/").finish(Outcome::Completed, 0, 0);
                }
            });
        }
    });
    let lines = kept.stop();
    let names: HashSet<_> = lines.iter().map(|line| line["id"].to_string()).collect();
    assert_eq!((lines.len(), names.len()), (2000, 2000));
}

#[test]
fn a_dropped_record_is_written_all_the_same() {
    let kept = keeping(Level::All, OnFailure::Deny);
    drop(request(&kept.audit, "/"));
    let mut record = request(&kept.audit, "/");
    record.if_dropped(Outcome::ClientGone);
    drop(record);
    let lines = kept.stop();
    assert_eq!(lines[0]["outcome"], "aborted");
    assert_eq!(lines[0]["bytes_in"], Value::Null);
    assert_eq!(lines[1]["outcome"], "client_gone");
    assert_eq!(lines.len(), 2);
}

#[test]
fn at_deny_a_full_queue_refuses_but_keeps_what_was_opened_before() {
    let kept = keeping(Level::All, OnFailure::Deny);
    let open = request(&kept.audit, "/opened-before");
    kept.jam();
    let refused = kept.audit.open(Kind::Request, &connection());
    assert_eq!(refused.unwrap_err(), Unavailable);
    assert_eq!(kept.audit.shared.metrics.refused.get(), 1);
    assert!(kept.audit.worker().has_room(), "another worker has its own");
    open.finish(Outcome::Completed, 0, 0);
    assert_eq!(kept.audit.shared.metrics.lost.get(), 0);
    kept.tape.mood(Mood::Willing);
    eventually("the queue drains", || kept.audit.has_room());
    let lines = kept.stop();
    assert_eq!(lines.len(), 18);
    assert_eq!(lines[17]["context"]["path"], "/opened-before");
}

#[test]
fn at_continue_a_full_queue_loses_records_and_counts_them() {
    let kept = keeping(Level::All, OnFailure::Continue);
    kept.jam();
    request(&kept.audit, "/lost").finish(Outcome::Completed, 0, 0);
    drop(request(&kept.audit, "/lost"));
    assert_eq!(kept.audit.shared.metrics.lost.get(), 2);
    kept.tape.mood(Mood::Willing);
    eventually("the queue drains", || kept.audit.has_room());
    request(&kept.audit, "/next").finish(Outcome::Completed, 0, 0);
    let tape = kept.tape.clone();
    let lines = kept.stop();
    assert_eq!(lines.len(), 18);
    // The file itself tells how many are missing, and where.
    let told: Vec<_> = lines.iter().map(|line| line["lost"].as_u64()).collect();
    assert_eq!(told[..17], [None; 17]);
    assert_eq!(told[17], Some(2));
    let report = verify_lines("tape", &tape.bytes()[..], &[]).unwrap();
    assert_eq!((report.findings, report.logs[0].lost), (vec![], 2));
}

#[test]
fn what_was_lost_at_the_end_is_told_by_the_last_line() {
    let kept = keeping(Level::All, OnFailure::Continue);
    kept.jam();
    drop(request(&kept.audit, "/lost"));
    kept.tape.mood(Mood::Willing);
    let tape = kept.tape.clone();
    kept.stop();
    let text = String::from_utf8(tape.bytes()).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["kind"], &last["lost"]),
        (&"stopped".into(), &1.into())
    );
}

#[test]
fn a_full_disk_turns_exchanges_away() {
    let settings = Settings {
        sink: Sink::File("/dev/full".into()),
        ..Settings::default()
    };
    let registry = Registry::new();
    let (audit, writer) = Audit::start(&settings, &registry).unwrap();
    // Found out by the head, before anybody asks for anything.
    eventually("the write fails", || audit.healthy().is_err());
    let reason = audit.healthy().unwrap_err();
    assert!(reason.contains("No space left"), "{reason}");
    assert!(audit.open(Kind::Request, &connection()).is_err());
    let shown = prometheus::TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    for line in [
        "doorward_audit_healthy 0",
        "doorward_audit_records_total 0",
        "doorward_audit_refused_total 1",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    // No record is lost.
    assert_eq!(writer.stop(Duration::ZERO), Ok(()));
}

#[test]
fn when_the_disk_has_room_again_nothing_is_missing_doubled_or_torn() {
    for on_failure in [OnFailure::Deny, OnFailure::Continue] {
        let kept = keeping(Level::All, on_failure);
        let open: Vec<_> = (0..8).map(|_| request(&kept.audit, "/")).collect();
        kept.tape.mood(Mood::FullAfter(100));
        for (number, record) in (0..).zip(open) {
            record.finish(Outcome::Completed, number, 0);
        }
        eventually("the write fails", || !kept.audit.shared.is_healthy());
        assert_eq!(
            kept.audit.healthy().is_ok(),
            on_failure == OnFailure::Continue
        );
        kept.tape.mood(Mood::Willing);
        eventually("it recovers", || kept.audit.shared.is_healthy());
        assert_eq!(kept.audit.healthy(), Ok(()));
        request(&kept.audit, "/").finish(Outcome::Completed, 8, 0);
        let metrics = kept.audit.shared.metrics.clone();
        let numbers: Vec<_> = kept
            .stop()
            .iter()
            .map(|line| line["bytes_in"].as_u64().unwrap())
            .collect();
        assert_eq!(numbers, (0..9).collect::<Vec<_>>());
        assert_eq!((metrics.records.get(), metrics.lost.get()), (9, 0));
    }
}

#[test]
fn at_level_denials_only_what_passed_quietly_leaves_no_record() {
    let denied = Verdict {
        reason: Some("no_grant"),
        ..Verdict::default()
    };
    let on_trial = Verdict {
        observed: Some(Observed {
            allowed: false,
            grant: None,
        }),
        ..allowed()
    };
    let kept = keeping(Level::Denials, OnFailure::Deny);
    let mut expected = 0;
    for (kind, verdict, outcome, recorded) in [
        (Kind::Request, allowed(), Outcome::Completed, false),
        (Kind::Request, allowed(), Outcome::UpstreamFailed, false),
        (Kind::Request, allowed(), Outcome::Aborted, false),
        (Kind::Request, allowed(), Outcome::PermitWithdrawn, true),
        (Kind::Request, denied, Outcome::Denied, true),
        (Kind::Request, on_trial, Outcome::Completed, true),
        (Kind::Connection, allowed(), Outcome::Completed, true),
    ] {
        let mut record = kept.audit.open(kind, &connection()).unwrap();
        record.verdict(verdict);
        record.finish(outcome, expected, 0);
        expected += u64::from(recorded);
    }
    let numbers: Vec<_> = kept
        .stop()
        .iter()
        .map(|line| line["bytes_in"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, (0..expected).collect::<Vec<_>>());
}

#[test]
fn at_level_denials_a_failing_audit_stops_only_what_would_be_recorded() {
    let kept = keeping(Level::Denials, OnFailure::Deny);
    kept.audit.shared.failed("disk full".into());
    assert!(kept.audit.open(Kind::Connection, &connection()).is_err());
    let record = kept.audit.open(Kind::Request, &connection()).unwrap();
    record.finish(Outcome::Completed, 0, 0);
    assert!(kept.stop().is_empty());
}

#[test]
fn a_rotated_file_is_left_whole_and_a_new_one_begun() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("audit"), dir.path().join("audit.1"));
    let settings = Settings {
        sink: Sink::File(path.clone()),
        ..Settings::default()
    };
    let (audit, writer) = Audit::start(&settings, &Registry::new()).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    request(&audit, "/before").finish(Outcome::Completed, 0, 0);
    eventually("it is written", || audit.shared.metrics.records.get() == 1);
    fs::rename(&path, &old).unwrap();
    audit.reopen();
    eventually("the file is opened", || path.exists());
    request(&audit, "/after").finish(Outcome::Completed, 0, 0);
    writer.stop(PATIENCE).unwrap();
    for (file, asked) in [(old, "/before"), (path, "/after")] {
        let lines = parsed(&fs::read(file).unwrap());
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["context"]["path"], asked);
    }
}

#[test]
fn a_line_torn_by_a_full_disk_is_whole_in_the_file_opened_after() {
    let tapes = [Tape::default(), Tape::default()];
    let (audit, writer) = start(&Settings::default(), Box::new(Tapes(tapes.to_vec())));
    eventually("the head is written", || audit.chain().is_some());
    tapes[0].mood(Mood::FullAfter(10));
    request(&audit, "/torn").finish(Outcome::Completed, 0, 0);
    eventually("the write fails", || audit.healthy().is_err());
    audit.reopen();
    eventually("it recovers", || audit.healthy().is_ok());
    // There is no third: the second stays in use.
    audit.reopen();
    request(&audit, "/next").finish(Outcome::Completed, 0, 0);
    writer.stop(PATIENCE).unwrap();
    let paths: Vec<_> = tapes[1]
        .lines()
        .iter()
        .map(|line| line["context"]["path"].clone())
        .collect();
    assert_eq!(paths, ["/torn", "/next"]);

    // The second file says what is at the end of the first, and goes on from what was whole there.
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..2)
        .map(|number| {
            let path = dir.path().join(number.to_string());
            fs::write(&path, tapes[number].bytes()).unwrap();
            Input::File(path)
        })
        .collect();
    let report = verify(&files, &[]).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!((report.logs[0].torn, report.logs[0].records), (1, 2));
}

#[test]
fn half_a_line_left_by_a_crash_is_closed_and_marked() {
    let log = Scratch::new();
    log.run(&["/1", "/2"]);
    for (cut, torn) in [(0, 0), (1, 0), (30, 1), (200, 2), (0, 2)] {
        let whole = log.bytes();
        fs::write(&log.path, &whole[..whole.len() - cut]).unwrap();
        log.run(&["/more"]);
        let report = log.verify();
        assert_eq!(report.findings, [], "{cut}");
        assert_eq!((report.logs.len(), report.logs[0].torn), (1, torn), "{cut}");
    }
    // What was torn cannot be changed afterwards, nor taken for another.
    let text = String::from_utf8(log.bytes()).unwrap();
    let torn = text.lines().position(|line| !line.ends_with('}')).unwrap();
    let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
    lines[torn].push('x');
    fs::write(&log.path, lines.join("\n") + "\n").unwrap();
    assert_eq!(
        log.faults(),
        [(torn as u64 + 1, Fault::Foreign { lines: 1 })]
    );
}

#[test]
fn a_crash_while_the_head_was_written_is_no_end_of_the_log() {
    let log = Scratch::rotating(Rotate {
        size: None,
        age: Some(Duration::from_secs(3600)),
        keep: 14,
    });
    log.run(&["/1"]);
    let aside = log.dir.path().join("audit.jsonl.20200101T000000Z-000001");
    for left in ["", "{\"kind\":\"fi"] {
        fs::rename(&log.path, &aside).unwrap();
        fs::write(&log.path, left).unwrap();
        log.run(&["/2"]);
        let report = log.verify();
        assert_eq!(report.findings, [], "{left}");
        assert_eq!((report.logs.len(), report.logs[0].files.len()), (1, 2));
    }
}

#[test]
fn a_file_that_is_not_ours_is_moved_aside() {
    let log = Scratch::new();
    fs::write(&log.path, "{}\n{\"time").unwrap();
    log.run(&["/1"]);
    let [aside] = &log.aside()[..] else {
        panic!("{:?}", log.aside());
    };
    assert_eq!(fs::read(aside).unwrap(), b"{}\n{\"time");
    let report = verify(&[Input::File(log.path.clone())], &[]).unwrap();
    assert_eq!((report.findings, report.logs[0].records), (vec![], 1));
}

#[test]
fn an_audit_that_cannot_be_had_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_owned(), dir.path().join("no/such/dir")] {
        let settings = Settings {
            sink: Sink::File(path.clone()),
            ..Settings::default()
        };
        let error = Audit::start(&settings, &Registry::new()).unwrap_err();
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}

#[test]
fn a_stuck_sink_cannot_hold_up_the_stop() {
    let kept = keeping(Level::All, OnFailure::Deny);
    kept.jam();
    let metrics = kept.audit.shared.metrics.clone();
    let left = kept.writer.stop(Duration::ZERO);
    assert_eq!(left, Err(Unwritten { records: 17 }));
    assert_eq!(metrics.lost.get(), 17);
    kept.tape.mood(Mood::Willing);
}

#[test]
fn nothing_is_opened_after_the_writer_ended() {
    let Kept { audit, writer, .. } = keeping(Level::All, OnFailure::Deny);
    writer.stop(PATIENCE).unwrap();
    assert!(audit.open(Kind::Request, &connection()).is_err());
}

/// Runs itself in a process of its own, because that one's stdout can be read to its end.
#[test]
fn on_stdout_every_line_is_out_when_stop_returns() {
    const CHILD: &str = "DOORWARD_TEST_AUDIT_CHILD";
    if std::env::var_os(CHILD).is_some() {
        let (audit, writer) = Audit::start(&Settings::default(), &Registry::new()).unwrap();
        for _ in 0..500 {
            request(&audit, "/on-stdout").finish(Outcome::Completed, 0, 0);
        }
        writer.stop(PATIENCE).unwrap();
        std::process::exit(0);
    }
    let name = "audit::tests::on_stdout_every_line_is_out_when_stop_returns";
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert!(child.status.success());
    let text = String::from_utf8(child.stdout).unwrap();
    assert_eq!(text.matches("\"path\":\"/on-stdout\"").count(), 500);
    assert!(text.ends_with("}\n"), "{text}");
}

#[test]
fn a_trace_is_taken_only_from_a_well_formed_traceparent() {
    const ID: &str = "0af7651916cd43dd8448eb211c80319c";
    for (text, expected) in [
        (format!("00-{ID}-b7ad6b7169203331-01"), true),
        (format!("01-{ID}-b7ad6b7169203331-01-more"), true),
        (format!("00-{ID}-b7ad6b7169203331-01-more"), false),
        (format!("ff-{ID}-b7ad6b7169203331-01"), false),
        (format!("00-{}-b7ad6b7169203331-01", "0".repeat(32)), false),
        (
            format!("00-{}-b7ad6b7169203331-01", ID.to_uppercase()),
            false,
        ),
        (format!("00-+{}-b7ad6b7169203331-01", &ID[1..]), false),
        (format!("00-{ID}-b7ad"), false),
        (String::new(), false),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", text.parse().unwrap());
        let trace = trace_id(&headers).map(|trace| format!("{trace:032x}"));
        assert_eq!(trace.as_deref(), expected.then_some(ID), "{text}");
    }
}

#[test]
fn settings_default_to_recording_everything_and_refusing_otherwise() {
    let read = |text| Document::new("a.yaml", text).read(|node| Settings::read(&node));
    assert_eq!(read("{}").unwrap(), Settings::default());
    assert_eq!(
        read("path: /a/b\nlevel: denials\non_failure: continue\nqueue: 100\nfingerprint_key: /k")
            .unwrap(),
        Settings {
            sink: Sink::File("/a/b".into()),
            rotate: None,
            level: Level::Denials,
            on_failure: OnFailure::Continue,
            queue: 100,
            fingerprint_key: Some("/k".into()),
        }
    );
    let rotate = read("path: /a\nrotate: { size: 100 MiB, age: 24h, keep: 3 }").unwrap();
    assert_eq!(
        rotate.rotate,
        Some(Rotate {
            size: Some(100 << 20),
            age: Some(Duration::from_secs(24 * 3600)),
            keep: 3,
        })
    );
    assert_eq!(
        read("socket: /a/b\nformat: journald").unwrap().sink,
        Sink::Socket("/a/b".into(), Format::Journald)
    );
    for (text, mistakes) in [
        (
            "path: /a\nsocket: /b",
            "a.yaml:2: socket: a file is named already",
        ),
        (
            "socket: /b\nrotate: { age: 1h }",
            "a.yaml:2: rotate: there is no file to rotate",
        ),
        (
            "format: json",
            "a.yaml:1: format: this is for a socket, and none is named",
        ),
        (
            "path: /a\nrotate: { keep: 3 }",
            "a.yaml:2: rotate: nothing says when to rotate",
        ),
        (
            "path: /a\nrotate: { size: 100 }",
            "a.yaml:2: rotate.size: `100` is not an amount of bytes",
        ),
        (
            "path: /a\nrotate: { size: 1 KiB }",
            "a.yaml:2: rotate.size: `1 KiB` is out of range: from 65536 to 1099511627776 bytes",
        ),
    ] {
        assert_eq!(read(text).unwrap_err().to_string(), mistakes);
    }
    assert_eq!(
        read("level: some\nqueue: 0").unwrap_err().to_string(),
        "a.yaml:1: level: `some` is not known here\n\
         a.yaml:2: queue: 0 is out of range: from 16 to 1048576"
    );
}

#[test]
fn a_record_is_small_because_every_open_exchange_holds_one() {
    let size = size_of::<Record>();
    assert!(size <= 512, "{size}");
}

/// A directory with an audit file that processes write to, one after the other.
struct Scratch {
    dir: tempfile::TempDir,
    path: PathBuf,
    settings: Settings,
}

impl Scratch {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        Self {
            settings: Settings {
                sink: Sink::File(path.clone()),
                ..Settings::default()
            },
            dir,
            path,
        }
    }

    fn rotating(rotate: Rotate) -> Self {
        let mut log = Self::new();
        log.settings.rotate = Some(rotate);
        log
    }

    fn start(&self) -> (Audit, Writer) {
        Audit::start(&self.settings, &Registry::new()).unwrap()
    }

    /// The life of one process.
    fn run(&self, paths: &[&str]) {
        let (audit, writer) = self.start();
        for path in paths {
            request(&audit, path).finish(Outcome::Completed, 0, 0);
        }
        writer.stop(PATIENCE).unwrap();
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(&self.path).unwrap()
    }

    /// What rotation left, the oldest first.
    fn aside(&self) -> Vec<PathBuf> {
        let mut aside: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| *path != self.path)
            .collect();
        aside.sort();
        aside
    }

    /// Of all files, given in an order that is not theirs.
    fn verify(&self) -> Report {
        let mut files = vec![Input::File(self.path.clone())];
        files.extend(self.aside().into_iter().map(Input::File));
        verify(&files, &[]).unwrap()
    }

    fn faults(&self) -> Vec<(u64, Fault)> {
        let findings = self.verify().findings.into_iter();
        findings
            .map(|finding| (finding.line, finding.fault))
            .collect()
    }
}

fn heads(bytes: &[u8]) -> Vec<Link> {
    let lines = bytes.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| Some(Sealed::parse(line)?.chain))
        .collect()
}

#[test]
fn a_log_goes_on_through_restarts() {
    let log = Scratch::new();
    log.run(&["/1"]);
    log.run(&["/2"]);
    log.run(&[]);
    let report = log.verify();
    assert_eq!(report.findings, []);
    assert_eq!((report.logs.len(), report.logs[0].records), (1, 2));
    assert!(report.logs[0].stopped);
    assert_eq!(report.logs[0].head, heads(&log.bytes()).last().copied());
}

#[test]
fn a_value_noted_elsewhere_is_found_again_or_missed() {
    let log = Scratch::new();
    log.run(&["/1"]);
    let (audit, writer) = log.start();
    eventually("it says where it stands", || audit.chain().is_some());
    let noted = audit.chain().unwrap().head();
    request(&audit, "/2").finish(Outcome::Completed, 0, 0);
    writer.stop(PATIENCE).unwrap();
    let files = [Input::File(log.path.clone())];
    let report = verify(&files, &[noted]).unwrap();
    assert!(report.is_sound());
    assert_eq!(report.anchors[0].line, 4);

    // Cut off at the end, it is sound in itself.
    let text = String::from_utf8(log.bytes()).unwrap();
    let cut: Vec<_> = text.lines().take(3).collect();
    fs::write(&log.path, cut.join("\n") + "\n").unwrap();
    assert!(verify(&files, &[]).unwrap().is_sound());
    let report = verify(&files, &[noted]).unwrap();
    assert!(!report.is_sound() && report.anchors[0].file.is_none());
}

#[test]
fn a_second_writer_is_turned_away_and_told_why() {
    let log = Scratch::new();
    let (_audit, writer) = log.start();
    let error = Audit::start(&log.settings, &Registry::new()).unwrap_err();
    let told = error.to_string();
    assert!(matches!(error, StartError::Taken { .. }), "{told}");
    assert!(told.contains(log.path.to_str().unwrap()), "{told}");
    writer.stop(PATIENCE).unwrap();
    log.run(&["/free-again"]);
}

#[test]
fn a_file_is_rotated_by_size_and_old_ones_go() {
    let log = Scratch::rotating(Rotate {
        size: Some(64 << 10),
        age: None,
        keep: 2,
    });
    let other = log.dir.path().join("audit.jsonl.1");
    fs::write(&other, "not ours").unwrap();
    let (audit, writer) = log.start();
    let mut written = 0;
    while audit.shared.metrics.rotations.get() < 5 {
        eventually("room in the queue", || audit.has_room());
        request(&audit, "/").finish(Outcome::Completed, written, 0);
        written += 1;
    }
    writer.stop(PATIENCE).unwrap();
    assert_eq!(fs::read(&other).unwrap(), b"not ours");
    fs::remove_file(other).unwrap();
    let aside = log.aside();
    assert_eq!(aside.len(), 2, "{aside:?}");
    let mut numbers = Vec::new();
    for file in aside.iter().chain([&log.path]) {
        let bytes = fs::read(file).unwrap();
        assert!(bytes.len() < 200 << 10, "{}", bytes.len());
        let records = parsed(&bytes);
        numbers.extend(
            records
                .iter()
                .map(|line| line["bytes_in"].as_u64().unwrap()),
        );
    }
    // No line is missing, doubled or torn.
    assert_eq!(numbers, (numbers[0]..written).collect::<Vec<_>>());
    let report = log.verify();
    assert_eq!(report.findings, []);
    assert_eq!(report.logs.len(), 1);
    assert!(report.logs[0].first_file > 1);
    assert!(!log.dir.path().join(".audit.jsonl.next").exists());
}

#[test]
fn a_file_that_the_last_line_fills_is_not_rotated() {
    let whole = Scratch::new();
    whole.run(&["/1"]);
    let length = whole.bytes().len() as u64;
    let log = Scratch::rotating(Rotate {
        // Reached by the line that tells of the stop, and by none before it.
        size: Some(length - 20),
        age: None,
        keep: 14,
    });
    log.run(&["/1"]);
    assert_eq!(fs::read_dir(log.dir.path()).unwrap().count(), 1);
    assert!(log.verify().logs[0].stopped);
}

#[test]
fn a_file_is_rotated_by_age_even_if_nothing_happens() {
    let log = Scratch::rotating(Rotate {
        size: None,
        age: Some(Duration::from_secs(1)),
        keep: 14,
    });
    let (audit, writer) = log.start();
    request(&audit, "/").finish(Outcome::Completed, 0, 0);
    eventually("it is rotated", || {
        audit.shared.metrics.rotations.get() == 1
    });
    writer.stop(PATIENCE).unwrap();
    assert_eq!(log.aside().len(), 1);
    assert_eq!(log.verify().findings, []);
}

#[test]
fn a_rotation_that_fails_changes_nothing() {
    let log = Scratch::rotating(Rotate {
        size: Some(64 << 10),
        age: None,
        keep: 2,
    });
    // Nothing can be made where the next file would be.
    let next = log.dir.path().join(".audit.jsonl.next");
    fs::create_dir_all(next.join("full")).unwrap();
    let (audit, writer) = log.start();
    for number in 0..1000 {
        eventually("room in the queue", || audit.has_room());
        request(&audit, "/").finish(Outcome::Completed, number, 0);
    }
    writer.stop(PATIENCE).unwrap();
    fs::remove_dir_all(next).unwrap();
    assert!(log.aside().is_empty());
    assert_eq!(parsed(&log.bytes()).len(), 1000);
    assert_eq!(log.verify().findings, []);
}

#[test]
fn files_moved_away_by_somebody_else_stay_in_the_chain() {
    let log = Scratch::new();
    let (audit, writer) = log.start();
    for number in 1..4_u64 {
        request(&audit, "/").finish(Outcome::Completed, number, 0);
        eventually("it is written", || {
            audit.shared.metrics.records.get() == number
        });
        fs::rename(&log.path, log.dir.path().join(format!("moved.{number}"))).unwrap();
        // As logrotate's `create` does.
        if number == 2 {
            fs::write(&log.path, "").unwrap();
        }
        audit.reopen();
        eventually("the file is begun anew", || {
            fs::metadata(&log.path).is_ok_and(|about| about.len() > 0)
        });
    }
    // Nothing was moved: nothing changes.
    audit.reopen();
    writer.stop(PATIENCE).unwrap();
    let report = log.verify();
    assert_eq!(report.findings, []);
    assert_eq!((report.logs.len(), report.logs[0].files.len()), (1, 4));
    assert_eq!(report.logs[0].records, 3);
    // Without the second, the third does not follow.
    fs::remove_file(log.dir.path().join("moved.2")).unwrap();
    assert_eq!(log.faults(), [(1, Fault::Removed { from: 3, to: 4 })]);
}

#[test]
fn a_file_that_is_removed_is_missed_and_another_begun() {
    let log = Scratch::new();
    let (audit, writer) = log.start();
    request(&audit, "/1").finish(Outcome::Completed, 0, 0);
    eventually("it is written", || audit.shared.metrics.records.get() == 1);
    fs::remove_file(&log.path).unwrap();
    request(&audit, "/2").finish(Outcome::Completed, 0, 0);
    eventually("it is written", || audit.shared.metrics.records.get() == 2);
    request(&audit, "/3").finish(Outcome::Completed, 0, 0);
    writer.stop(PATIENCE).unwrap();
    let report = log.verify();
    assert_eq!(report.findings, []);
    assert_eq!(report.logs[0].first_file, 2);
    let last = parsed(&log.bytes()).pop().unwrap();
    assert_eq!(last["context"]["path"], "/3");
}

#[test]
fn a_receiver_may_be_away_full_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let settings = Settings {
        sink: Sink::Socket(path.clone(), Format::Json),
        ..Settings::default()
    };
    let (audit, writer) = Audit::start(&settings, &Registry::new()).unwrap();
    eventually("it is missed", || audit.healthy().is_err());
    let reason = audit.healthy().unwrap_err();
    assert!(reason.contains("there is no such socket"), "{reason}");
    assert!(audit.open(Kind::Request, &connection()).is_err());

    let mut received = Vec::new();
    let receive = |socket: &UnixDatagram, received: &mut Vec<u8>| {
        let mut bytes = vec![0; 64 << 10];
        let length = socket.recv(&mut bytes).unwrap();
        assert!(!bytes[..length].contains(&b'\n'));
        received.extend(&bytes[..length]);
        received.push(b'\n');
    };
    let bind = |path: &Path| {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    };
    let receiver = bind(&path);
    receive(&receiver, &mut received);
    eventually("it is well", || audit.healthy().is_ok());
    request(&audit, "/1").finish(Outcome::Completed, 0, 0);
    receive(&receiver, &mut received);

    // It reads no more: in the end there is no room.
    let mut sent = 1;
    while let Ok(record) = audit.open(Kind::Request, &connection()) {
        record.finish(Outcome::Completed, 0, 0);
        sent += 1;
    }
    eventually("it is full", || audit.healthy().is_err());
    let reason = audit.healthy().unwrap_err();
    assert!(reason.contains("does not read"), "{reason}");
    for _ in 1..sent {
        receive(&receiver, &mut received);
    }
    eventually("it is well again", || audit.healthy().is_ok());

    // It goes, and comes back with another socket.
    drop(receiver);
    request(&audit, "/waiting").finish(Outcome::Completed, 0, 0);
    eventually("it is missed", || audit.healthy().is_err());
    let reason = audit.healthy().unwrap_err();
    assert!(reason.contains("nobody receives there"), "{reason}");
    fs::remove_file(&path).unwrap();
    let receiver = bind(&path);
    receive(&receiver, &mut received);
    writer.stop(PATIENCE).unwrap();
    receive(&receiver, &mut received);
    assert_eq!(audit.shared.metrics.lost.get(), 0);
    let report = verify_lines("socket", &received[..], &[]).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(report.logs[0].records, sent + 1);
}

#[test]
fn what_is_too_long_for_a_datagram_is_lost_and_said_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let receiver = UnixDatagram::bind(&path).unwrap();
    receiver.set_read_timeout(Some(PATIENCE)).unwrap();
    let settings = Settings {
        sink: Sink::Socket(path, Format::Json),
        ..Settings::default()
    };
    let (audit, writer) = Audit::start(&settings, &Registry::new()).unwrap();
    let long = Arc::new(Connection {
        service: "x".repeat(100_000).into(),
        ..(*connection()).clone()
    });
    let record = audit.open(Kind::Request, &long).unwrap();
    record.finish(Outcome::Completed, 0, 0);
    request(&audit, "/next").finish(Outcome::Completed, 0, 0);
    writer.stop(PATIENCE).unwrap();
    let mut bytes = vec![0; 64 << 10];
    receiver.recv(&mut bytes).unwrap();
    let length = receiver.recv(&mut bytes).unwrap();
    let line: Value = serde_json::from_slice(&bytes[..length]).unwrap();
    assert_eq!(line["context"]["path"], "/next");
    assert_eq!(line["lost"], 1);
    assert_eq!(audit.shared.metrics.lost.get(), 1);
}
