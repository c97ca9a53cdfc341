//! A `doorward` process: started, watched, asked, and gone with its handle.

use std::fs::{DirEntry, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::eventually;

/// A running process, whose stderr goes to a file. Dropped, it is killed; and if the test has failed, its
/// last words are shown.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; what it logs is added to the file `log`.
    pub(crate) fn spawn(name: &str, program: &Path, args: &[&str], log: &Path) -> Self {
        Self::spawn_with(Stdio::null(), name, program, args, log)
    }

    /// The same with something to read from.
    pub(crate) fn spawn_with(
        stdin: Stdio,
        name: &str,
        program: &Path,
        args: &[&str],
        log: &Path,
    ) -> Self {
        let stderr = File::create(log).unwrap();
        let child = Command::new(program)
            .args(args)
            .env_remove("RUST_LOG")
            .stdin(stdin)
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        Self {
            name: name.into(),
            child,
            log: log.into(),
        }
    }

    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The addresses it has bound, in the order in which it said so.
    pub(crate) fn bound(&self) -> Vec<SocketAddr> {
        let log = self.log();
        let complete = log.rsplit_once('\n').map_or("", |(lines, _)| lines);
        complete
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["message"] == "bound")
            // A Unix socket is where the plan says.
            .filter_map(|line| line["address"].as_str().unwrap().parse().ok())
            .collect()
    }

    /// # Panics
    /// When it has ended, with what it logged.
    pub(crate) fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("{} ended with {status}:\n{}", self.name, self.log());
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Suspends it. The kernel has one thread stop the others, when that one next gets a CPU: until then they go on.
    pub(crate) async fn suspend(&self) {
        self.signal(Signal::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        let stopped = |task: std::io::Result<DirEntry>| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
            // The name before the state may hold anything (proc(5)).
            stat.rsplit_once(") ")
                .is_some_and(|(_, stat)| stat.starts_with('T'))
        };
        eventually(format_args!("{} is suspended", self.name), async || {
            let mut tasks = std::fs::read_dir(&tasks).unwrap();
            tasks.all(stopped).then_some(())
        })
        .await;
    }

    /// Waits for its end; `None` if a signal ended it.
    pub(crate) async fn exit(&mut self) -> Option<i32> {
        let child = &mut self.child;
        let name = &self.name;
        eventually(format_args!("{name} ends"), async || {
            child.try_wait().unwrap()
        })
        .await
        .code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It fails when the process has ended before.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(SHOWN);
            eprintln!("--- {} ---\n{}", self.name, lines[last..].join("\n"));
        }
    }
}

/// How many lines of a log are shown when a test fails.
const SHOWN: usize = 40;

/// A page of `/metrics`.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum of the samples of `name` that have these labels; 0 if there are none.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples(name, labels).sum()
    }

    /// The one sample of `name` that has these labels.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.samples(name, labels).next()
    }

    fn samples<'a>(
        &'a self,
        name: &'a str,
        labels: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = f64> + 'a {
        self.0.lines().filter_map(move |line| {
            let rest = line.strip_prefix(name)?;
            let (found, value) = rest.rsplit_once(' ')?;
            if !found.is_empty() && !found.starts_with('{') {
                return None;
            }
            let has = |(key, value): &(&str, &str)| {
                [
                    format!("{{{key}=\"{value}\""),
                    format!(",{key}=\"{value}\""),
                ]
                .iter()
                .any(|pair| found.contains(pair))
            };
            labels.iter().all(has).then(|| value.parse().unwrap())
        })
    }
}
