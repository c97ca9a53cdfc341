//! What stands in files that others change while we run?
//!
//! Directories are watched, never files: an editor, a certificate tool and Kubernetes (which moves the link
//! `..data`) all put something new in the place of the old. Whatever is heard only means "read again", and
//! what was read counts by its content.

use std::future::Future;
use std::hash::{BuildHasher, Hash, RandomState};
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

/// Files or directories whose content is read again after each change.
#[derive(Debug)]
pub struct Watched {
    paths: Vec<PathBuf>,
    hasher: RandomState,
    /// The content that was looked at last; none if it could not be read.
    seen: Option<u64>,
    /// The content that was taken last.
    taken: Option<u64>,
    watcher: Option<RecommendedWatcher>,
    bell: (mpsc::Sender<()>, mpsc::Receiver<()>),
    /// Whether the bell rang since the last reading: whoever waits may be cut off.
    rang: bool,
}

/// How often content is read even if nothing was heard of it: not every file system tells.
pub const SAFETY_NET: Duration = Duration::from_secs(30);

/// Changes are waited out until nothing came for this long, so that several files change together.
pub const QUIET: Duration = Duration::from_millis(100);

/// The longest that changes are waited out.
const PATIENCE: Duration = Duration::from_secs(1);

impl Watched {
    /// Watches directories, and files by the directories that they stand in. None of them need be there
    /// yet.
    #[must_use]
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            paths: paths.into_iter().collect(),
            hasher: RandomState::new(),
            seen: None,
            taken: None,
            watcher: None,
            bell: mpsc::channel(1),
            rang: false,
        }
    }

    /// Waits until `read` yields content that is neither what it yielded before nor what was
    /// [`Watched::take`]n last. The first time, and after an error, it reads at once. Whoever drops the
    /// future misses nothing.
    ///
    /// # Errors
    /// Those of `read`.
    pub async fn news<T, E, F>(&mut self, mut read: impl FnMut() -> F) -> Result<T, E>
    where
        T: Hash,
        F: Future<Output = Result<T, E>>,
    {
        loop {
            if self.seen.is_some() {
                self.changed().await;
            }
            // Before reading, so that no change is missed in between; and anew each time, because a
            // directory may have been replaced by another of the same name.
            self.watch();
            self.rang = false;
            let content = read().await.inspect_err(|_| self.forget())?;
            let digest = Some(self.hasher.hash_one(&content));
            let news = digest != self.seen && digest != self.taken;
            self.seen = digest;
            if news {
                return Ok(content);
            }
        }
    }

    /// Takes what was looked at last: it is no news any more, even after something else was looked at.
    pub fn take(&mut self) {
        self.taken = self.seen;
    }

    /// Forgets what was looked at last: it is read again at once, and judged again.
    pub fn forget(&mut self) {
        self.seen = None;
    }

    fn watch(&mut self) {
        let bell = self.bell.0.clone();
        let heard = move |event: notify::Result<notify::Event>| {
            // Our own reading is heard too.
            if !event.is_ok_and(|event| event.kind.is_access()) {
                // A full channel means that the bell rings already.
                let _ = bell.try_send(());
            }
        };
        self.watcher = notify::recommended_watcher(heard).ok();
        if let Some(watcher) = &mut self.watcher {
            for dir in directories(&self.paths) {
                // One that is not there yet is found by the safety net, or by whoever tries again.
                let _ = watcher.watch(&dir, RecursiveMode::NonRecursive);
            }
        }
    }

    async fn changed(&mut self) {
        let bell = &mut self.bell.1;
        if !self.rang {
            self.rang = tokio::time::timeout(SAFETY_NET, bell.recv()).await.is_ok();
        }
        if self.rang {
            let settled = async { while tokio::time::timeout(QUIET, bell.recv()).await.is_ok() {} };
            let _ = tokio::time::timeout(PATIENCE, settled).await;
        }
    }
}

/// Where changes of `paths` are heard: where each one stands, and where it stands in truth if it is a link.
fn directories(paths: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for path in paths {
        let real = path.canonicalize().ok();
        for path in [Some(path), real.as_ref()].into_iter().flatten() {
            let dir = if path.is_dir() {
                path
            } else {
                match path.parent() {
                    Some(parent) if !parent.as_os_str().is_empty() => parent,
                    _ => Path::new("."),
                }
            };
            if !found.iter().any(|known| known == dir) {
                found.push(dir.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::symlink;

    use super::*;

    async fn news(watched: &mut Watched, path: &Path) -> io::Result<String> {
        let next = watched.news(|| async { std::fs::read_to_string(path) });
        let next = tokio::time::timeout(Duration::from_secs(20), next);
        next.await.expect("news within 20 seconds")
    }

    #[tokio::test]
    async fn a_file_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut watched = Watched::new([path.clone()]);
        assert!(news(&mut watched, &path).await.is_err());
        std::fs::write(&path, "one").unwrap();
        assert_eq!(news(&mut watched, &path).await.unwrap(), "one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(news(&mut watched, &path).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn what_was_taken_is_no_news_when_it_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "good").unwrap();
        let mut watched = Watched::new([path.clone()]);
        assert_eq!(news(&mut watched, &path).await.unwrap(), "good");
        watched.take();
        std::fs::write(&path, "bad").unwrap();
        assert_eq!(news(&mut watched, &path).await.unwrap(), "bad");
        std::fs::write(&path, "good").unwrap();
        let quiet = tokio::time::timeout(QUIET * 5, news(&mut watched, &path)).await;
        assert!(quiet.is_err(), "{quiet:?}");
    }

    #[tokio::test]
    async fn what_was_forgotten_is_judged_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "early").unwrap();
        let mut watched = Watched::new([path.clone()]);
        for _ in 0..2 {
            assert_eq!(news(&mut watched, &path).await.unwrap(), "early");
            watched.forget();
        }
    }

    #[tokio::test]
    async fn whoever_is_cut_off_while_waiting_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "one").unwrap();
        let mut watched = Watched::new([path.clone()]);
        assert_eq!(news(&mut watched, &path).await.unwrap(), "one");
        std::fs::write(&path, "two").unwrap();
        // Cut off again and again, each time before the change has settled, until the bell has rung.
        while !watched.rang {
            let cut = tokio::time::timeout(QUIET / 4, news(&mut watched, &path)).await;
            assert!(cut.is_err(), "{cut:?}");
        }
        assert_eq!(news(&mut watched, &path).await.unwrap(), "two");
    }

    #[tokio::test]
    async fn a_file_behind_a_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let there = tempfile::tempdir().unwrap();
        let (link, path) = (dir.path().join("link"), there.path().join("file"));
        std::fs::write(&path, "one").unwrap();
        symlink(&path, &link).unwrap();
        let mut watched = Watched::new([link.clone()]);
        assert_eq!(news(&mut watched, &link).await.unwrap(), "one");
        std::fs::write(&path, "two").unwrap();
        assert_eq!(news(&mut watched, &link).await.unwrap(), "two");
    }
}
