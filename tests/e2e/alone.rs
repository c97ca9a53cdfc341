//! Tests that the kernel gives networks and a tree of mounts of their own, which nobody else sees; they go with the
//! process.
//!
//! No harness: namespaces are entered before there is a second thread, and where they are not allowed that is said
//! in a word that a harness would keep to itself.
#![allow(
    dead_code,
    reason = "a fixture offers more than each program of tests takes"
)]

use std::env;
use std::fs;
use std::future::Future;
use std::io::Write;
use std::pin::Pin;
use std::process::{Child, Command, ExitCode, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};

/// A test, not yet begun.
pub(crate) type Test = fn() -> Pin<Box<dyn Future<Output = Verdict>>>;

/// What has become of a test that did not fail.
pub(crate) enum Verdict {
    Passed,
    /// It cannot be made here, and why.
    Skipped(String),
}

/// Makes those of `tests` that the command line asks for, one after the other, and says what became of them.
pub(crate) fn make(tests: &[(&str, Test)]) -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments
        .iter()
        .filter(|word| !word.starts_with('-'))
        .collect();
    let chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(*word));
    if arguments.iter().any(|argument| argument == "--list") {
        for (name, _) in tests {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let alone = leave();
    for (name, test) in tests.iter().filter(|(name, _)| chosen(name)) {
        let verdict = match &alone {
            // A failure panics, which ends the process with a code of its own.
            Ok(()) => tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap()
                .block_on(test()),
            Err(why) => Verdict::Skipped(why.clone()),
        };
        match verdict {
            Verdict::Passed => println!("test {name} ... ok"),
            Verdict::Skipped(why) => println!("test {name} ... SKIPPED: {why}"),
        }
    }
    ExitCode::SUCCESS
}

/// Enters a network and a tree of mounts of our own.
///
/// # Errors
/// Why that is not possible here.
fn leave() -> Result<(), String> {
    let (uid, gid) = (getuid(), getgid());
    let mut flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(|error| format!("no namespaces of our own: {error}"))?;
    if !uid.is_root() {
        let map = |file: &str, text: String| {
            fs::write(format!("/proc/self/{file}"), text)
                .map_err(|error| format!("cannot write {file}: {error}"))
        };
        map("setgroups", "deny".into())?;
        map("uid_map", format!("0 {uid} 1"))?;
        map("gid_map", format!("0 {gid} 1"))?;
    }
    run("mount --make-rprivate /")?;
    run("ip link set lo up")
}

/// Whether sockets of ours can be that user's.
///
/// # Errors
/// Nobody has that number in our namespace: whoever is not root brings no other user along.
pub(crate) fn may_act_as(user: u32) -> Result<(), String> {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap();
    let has = |line: &str| {
        let numbers: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&user.into()))
    };
    if map.lines().any(has) {
        return Ok(());
    }
    Err("there is no other user here than our own".into())
}

/// Runs a command.
///
/// # Errors
/// What it says when it fails.
pub(crate) fn run(command: &str) -> Result<(), String> {
    let words: Vec<_> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output();
    let output = output.map_err(|error| format!("{}: {error}", words[0]))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command}: {}", said.trim()))
}

/// A network namespace, as long as this is there.
pub(crate) struct Network(Child);

impl Network {
    pub(crate) fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut network = Self(holder.unwrap());
        // Once it echoes, it is there.
        network.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        let echo = network.0.stdout.as_mut().unwrap();
        std::io::Read::read_exact(echo, &mut [0]).unwrap();
        network.run("ip link set lo up").unwrap();
        network
    }

    /// The number of a process in it.
    pub(crate) fn holder(&self) -> u32 {
        self.0.id()
    }

    /// What stands for it in the file system.
    pub(crate) fn file(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// Runs a command in it.
    ///
    /// # Errors
    /// As [`run`].
    pub(crate) fn run(&self, command: &str) -> Result<(), String> {
        run(&format!("nsenter --net={} {command}", self.file()))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It fails when it has ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
