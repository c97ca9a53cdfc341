//! Where does the demo play? In a directory of its own, with child processes of its own, on ports that
//! the kernel chooses; and nothing of it stays.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkdtemp};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

/// The directory and the processes.
#[derive(Debug)]
pub(super) struct Stage {
    children: Vec<Process>,
    /// Last, so that the processes are gone before their directory is.
    dir: Directory,
}

impl Stage {
    /// An empty stage. `keep` leaves the directory behind.
    ///
    /// # Errors
    /// When there is no place for temporary files.
    pub(super) fn build(keep: bool) -> anyhow::Result<Self> {
        let place = std::env::temp_dir();
        let path = mkdtemp(&place.join("doorward-demo-XXXXXX"))
            .with_context(|| format!("cannot make a directory in {}", place.display()))?;
        let dir = Directory { path, keep };
        Ok(Self {
            children: Vec::new(),
            dir,
        })
    }

    /// The directory that everything is in.
    pub(super) fn dir(&self) -> &Path {
        &self.dir.path
    }

    /// Writes a file below the directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir().join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)
                .with_context(|| format!("cannot make {}", parent.display()))?;
        }
        // Moved into place: whoever watches sees the old content or the new.
        let draft = path.with_extension("draft");
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Removes a file below the directory.
    ///
    /// # Errors
    /// When it is not there.
    pub(super) fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.dir().join(name);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Starts `doorward ARGS` as `name`: from an executable of that name's own, by which the issuer
    /// knows it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn start<A: AsRef<OsStr>>(
        &mut self,
        name: &'static str,
        args: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Handle> {
        let executable = self.executable(name)?;
        let path = self.dir().join(name).join("log");
        let log =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let child = Command::new(&executable)
            .arg("--end-with")
            .arg(std::process::id().to_string())
            .args(args)
            // What the user set for other runs must not hide what is waited for here.
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the demo, which ends its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| {
                let executable = executable.display();
                format!("cannot run {executable} (if programs may not run there, set TMPDIR)")
            })?;
        let handle = Handle {
            name,
            pid: child
                .id()
                .and_then(|pid| pid.try_into().ok())
                .map(Pid::from_raw),
            log: Log(path),
        };
        self.children.push(Process {
            child,
            handle: handle.clone(),
        });
        Ok(handle)
    }

    /// A name for our own executable: a hard link, or a copy where the file system has none.
    fn executable(&self, name: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir().join(name).join("doorward");
        if path.exists() {
            return Ok(path);
        }
        fs::create_dir_all(self.dir().join(name))?;
        let original = self.dir().join("doorward");
        if !original.exists() {
            let own = std::env::current_exe().context("cannot find this executable")?;
            if fs::hard_link(&own, &original).is_err() {
                // The file that runs, even if another one has taken its name.
                fs::copy("/proc/self/exe", &original)
                    .with_context(|| format!("cannot copy {}", own.display()))?;
            }
        }
        fs::hard_link(&original, &path)
            .or_else(|_| fs::copy(&original, &path).map(drop))
            .with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Every process that was started and has not been ended.
    pub(super) fn processes(&self) -> impl Iterator<Item = &Handle> {
        self.children.iter().map(|process| &process.handle)
    }

    /// The first process that ended although nobody ended it, and how.
    pub(super) fn fallen(&mut self) -> Option<String> {
        self.children.iter_mut().find_map(|process| {
            let status = process.child.try_wait().ok()??;
            Some(format!("{} has ended: {status}", process.handle.name))
        })
    }

    /// Waits until `look` finds something, but not longer than [`PATIENCE`] and not for the dead.
    ///
    /// # Errors
    /// What was waited for (`what`), in vain.
    pub(super) async fn wait<T>(
        &mut self,
        what: &str,
        mut look: impl AsyncFnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look().await {
                return Ok(found);
            }
            if let Some(fallen) = self.fallen() {
                bail!("expected {what}, but {fallen}");
            }
            if Instant::now() > deadline {
                bail!("expected {what} within {PATIENCE:?}, in vain");
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Ends one process.
    pub(super) async fn end(&mut self, handle: &Handle) {
        if let Some(at) = self
            .children
            .iter()
            .position(|process| process.handle.pid == handle.pid)
        {
            let mut process = self.children.swap_remove(at);
            process.handle.signal(Signal::SIGTERM);
            process.reap().await;
        }
    }

    /// Ends all processes and removes the directory.
    ///
    /// # Errors
    /// When the directory cannot be removed.
    pub(super) async fn clear(mut self) -> io::Result<()> {
        for process in &self.children {
            process.handle.signal(Signal::SIGTERM);
        }
        for process in &mut self.children {
            process.reap().await;
        }
        self.children.clear();
        self.dir.remove()
    }
}

/// How long anything may take that is waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long a process has to end when it is told to; its own grace is one second.
const GRACE: Duration = Duration::from_secs(3);

#[derive(Debug)]
struct Process {
    child: Child,
    handle: Handle,
}

impl Process {
    async fn reap(&mut self) {
        if timeout(GRACE, self.child.wait()).await.is_err() {
            // Fails only for a process that has just ended by itself.
            let _ = self.child.kill().await;
        }
    }
}

/// One process of ours.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    /// Its name in the story.
    pub(super) name: &'static str,
    /// What it says.
    pub(super) log: Log,
    /// Unless it ended before it was looked at.
    pid: Option<Pid>,
}

impl Handle {
    /// Sends a signal. The process is a child that has not been waited for, so its number is its own.
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid {
            // A process that has ended needs no signal.
            let _ = kill(pid, signal);
        }
    }

    /// Its number.
    pub(super) fn pid(&self) -> Option<i32> {
        self.pid.map(Pid::as_raw)
    }
}

/// What a process writes on stderr.
#[derive(Clone, Debug)]
pub(super) struct Log(PathBuf);

impl Log {
    /// The address that it says it has bound for `what`. Its half-written last line is no JSON yet.
    pub(super) fn bound(&self, what: &str) -> Option<SocketAddr> {
        let text = fs::read_to_string(&self.0).ok()?;
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok());
        let mut lines = lines.filter(|line: &Value| line["message"] == "bound");
        let line = lines.find(|line| line["what"] == what)?;
        line["address"].as_str()?.parse().ok()
    }

    /// The error in its last line whose message begins with `message`.
    pub(super) fn cause(&self, message: &str) -> Option<String> {
        let text = fs::read_to_string(&self.0).ok()?;
        let mut lines = text
            .lines()
            .rev()
            .filter_map(|line| serde_json::from_str(line).ok());
        let says = |line: &Value| {
            line["message"]
                .as_str()
                .is_some_and(|it| it.starts_with(message))
        };
        let line = lines.find(says)?;
        Some(line["error"].as_str()?.to_owned())
    }
}

/// What a process said last.
#[derive(Debug)]
pub(super) struct LastWords {
    /// The file that holds the rest.
    pub(super) path: PathBuf,
    pub(super) lines: Vec<String>,
}

/// The last lines of every log in `dir` that has any.
pub(super) fn logs(dir: &Path, lines: usize) -> Vec<LastWords> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path().join("log")).collect();
    paths.sort_unstable();
    let words = paths.into_iter().filter_map(|path| {
        let text = fs::read_to_string(&path)
            .ok()
            .filter(|text| !text.is_empty())?;
        let skip = text.lines().count().saturating_sub(lines);
        let lines = text.lines().skip(skip).map(Into::into).collect();
        Some(LastWords { path, lines })
    });
    words.collect()
}

/// A directory that goes away.
#[derive(Debug)]
struct Directory {
    path: PathBuf,
    keep: bool,
}

impl Directory {
    fn remove(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.keep, true) {
            return Ok(());
        }
        fs::remove_dir_all(&self.path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Whoever can be told has called `remove`.
        let _ = self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_from_complete_lines_only() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("app")).unwrap();
        let log = Log(dir.path().join("app/log"));
        assert_eq!(log.bound("app"), None);
        let lines = "noise\n{\"message\":\"bound\",\"address\":\"127.0.0.1:1\",\"what\":\"admin\"}\n{\"message\":\"bou";
        fs::write(&log.0, lines).unwrap();
        assert_eq!(
            log.bound("admin"),
            Some(SocketAddr::from(([127, 0, 0, 1], 1)))
        );
        assert_eq!(log.bound("app"), None);
        let [last] = &logs(dir.path(), 2)[..] else {
            panic!("there is one log");
        };
        assert_eq!(last.lines.len(), 2);
    }

    #[tokio::test]
    async fn a_cleared_stage_leaves_nothing() {
        let stage = Stage::build(false).unwrap();
        let dir = stage.dir().to_owned();
        stage.write("a/b", "text").unwrap();
        assert!(dir.join("a/b").exists());
        stage.clear().await.unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn a_dropped_stage_leaves_nothing_either() {
        let stage = Stage::build(false).unwrap();
        let dir = stage.dir().to_owned();
        drop(stage);
        assert!(!dir.exists());
    }
}
