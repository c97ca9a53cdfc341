//! The demo as a newcomer runs it: every step holds, and nothing of it stays.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// The demo, with a directory for temporary files that is its own.
fn demo(args: &[&str], tmp: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command
        .arg("demo")
        .args(args)
        .env("TMPDIR", tmp.path())
        .stdin(Stdio::null());
    command
}

/// The demo makes its directory in `tmp`, and its children run from there.
fn assert_nothing_is_left(tmp: &TempDir) {
    let left: Vec<_> = fs::read_dir(tmp.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(processes_in(tmp.path()), Vec::<PathBuf>::new());
}

/// The executables of all processes that run from below `dir`.
fn processes_in(dir: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let executables =
        processes.filter_map(|process| fs::read_link(process.path().join("exe")).ok());
    executables.filter(|path| path.starts_with(dir)).collect()
}

fn summary(output: &Output) -> Value {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// What a step measured. A step that did not hold says why.
fn detail<'a>(summary: &'a Value, name: &str) -> &'a Value {
    let steps = summary["steps"].as_array().unwrap();
    let step = steps.iter().find(|step| step["name"] == name);
    let step = step.unwrap_or_else(|| panic!("there is no step {name}"));
    assert_eq!(step["ok"], true, "{step:#}");
    &step["detail"]
}

#[test]
fn every_step_holds_with_measured_numbers_and_nothing_is_left_behind() {
    let tmp = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let output = demo(&["--once", "--json", "--svid-lifetime", "6s"], &tmp)
        .output()
        .unwrap();
    assert!(began.elapsed() < Duration::from_secs(60));
    let told = summary(&output);
    let ms = |step: &str, key: &str| detail(&told, step)[key].as_f64().unwrap();

    let start = detail(&told, "start");
    let dir = Path::new(start["dir"].as_str().unwrap());
    assert_eq!(dir.parent(), Some(tmp.path()));
    assert_eq!(start["processes"].as_object().unwrap().len(), 4);
    let allowed = detail(&told, "allowed");
    assert_eq!(allowed["grant"]["id"], "checkout-reads-invoices");
    assert_eq!(allowed["caller"], "spiffe://demo.doorward/checkout");
    assert!(ms("allowed", "latency_ms") > 0.0);
    let denied = detail(&told, "denied");
    assert_eq!(denied["status"], 403);
    assert_eq!(denied["reason"], "no_grant");
    let stranger = detail(&told, "stranger_refused");
    assert_eq!(stranger["handshakes"][0]["reason"], "unknown_ca");
    assert_eq!(stranger["handshakes"][1]["reason"], "no_certificate");
    let rotation = detail(&told, "rotation");
    assert!(rotation["rotations"].as_u64().unwrap() >= 3, "{rotation:#}");
    assert!(rotation["requests"].as_u64().unwrap() > 100, "{rotation:#}");
    assert!(
        rotation["certificates_seen"].as_u64().unwrap() >= 3,
        "{rotation:#}"
    );
    assert_eq!(rotation["failed"], 0);
    assert!(ms("rotation", "p50_ms") <= ms("rotation", "p99_ms"));
    let withdrawn = detail(&told, "grant_withdrawn");
    assert_eq!(withdrawn["http_status"], 403);
    assert_eq!(withdrawn["tcp_outcome"], "permit_withdrawn");
    let stopped = detail(&told, "issuance_stopped");
    assert_eq!(stopped["error"], "identity_unavailable");
    assert!(ms("issuance_stopped", "refused_ms") < ms("issuance_stopped", "tcp_closed_ms"));
    let recorded = detail(&told, "recorded");
    assert_eq!(recorded["grant"]["owner"], "payments@demo.doorward");

    assert_eq!(told["ok"], true);
    assert!(output.status.success());
    assert_nothing_is_left(&tmp);
}

/// Waits until four processes run from below `tmp`.
fn wait_until_it_plays(tmp: &TempDir) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while processes_in(tmp.path()).len() < 4 {
        assert!(Instant::now() < deadline, "the demo does not begin");
        sleep(Duration::from_millis(10));
    }
}

fn signal(demo: &Child, signal: Signal) {
    kill(Pid::from_raw(demo.id().try_into().unwrap()), signal).unwrap();
}

#[test]
fn a_demo_that_is_told_to_stop_says_so_and_leaves_nothing_behind() {
    for stop in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let tmp = tempfile::tempdir().unwrap();
        let playing = demo(&["--once", "--json"], &tmp)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        wait_until_it_plays(&tmp);
        signal(&playing, stop);
        let output = playing.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{stop}");
        let told = summary(&output);
        assert_eq!(told["ok"], false);
        let last = told["steps"].as_array().unwrap().last().unwrap();
        assert_eq!(last["detail"]["error"], "interrupted");
        assert_nothing_is_left(&tmp);
    }
}

#[test]
fn children_end_with_a_demo_that_is_killed() {
    let tmp = tempfile::tempdir().unwrap();
    let mut playing = demo(&["--once"], &tmp)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_until_it_plays(&tmp);
    playing.kill().unwrap();
    playing.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !processes_in(tmp.path()).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", processes_in(tmp.path()));
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_step_that_fails_says_what_was_expected_and_what_the_children_said() {
    let tmp = tempfile::tempdir().unwrap();
    let playing = demo(&["--once", "--json"], &tmp)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until_it_plays(&tmp);
    let app = fs::read_dir("/proc").unwrap().flatten().find(|process| {
        let executable = fs::read_link(process.path().join("exe"));
        executable.is_ok_and(|path| path.starts_with(tmp.path()) && path.ends_with("app/doorward"))
    });
    let pid = app.unwrap().file_name().to_str().unwrap().parse().unwrap();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    let output = playing.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = summary(&output);
    let steps = told["steps"].as_array().unwrap();
    let failed = steps.iter().find(|step| step["ok"] == false).unwrap();
    assert!(!failed["detail"]["error"].as_str().unwrap().is_empty());
    assert!(!failed["detail"]["logs"].as_object().unwrap().is_empty());
    assert_nothing_is_left(&tmp);
}

#[test]
fn without_once_it_stays_to_be_tried_until_it_is_told_to_stop() {
    let tmp = tempfile::tempdir().unwrap();
    let mut playing = demo(&["--svid-lifetime", "4s"], &tmp)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(playing.stdout.take().unwrap()).lines();
    let mut told = String::new();
    while !told.ends_with("Ctrl-C ends it and removes everything.") {
        told.push('\n');
        told.push_str(&lines.next().expect("the story goes on").unwrap());
    }
    assert!(!told.contains("FAILED") && !told.contains('\x1b'), "{told}");
    let curl = told
        .lines()
        .find(|line| line.contains("curl -i http://"))
        .unwrap();
    let address = curl.split('/').nth(2).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    let request = "GET /v1/invoices/8 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    signal(&playing, Signal::SIGINT);
    assert!(playing.wait().unwrap().success());
    assert_nothing_is_left(&tmp);
}
