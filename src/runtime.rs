//! How many threads and runtimes? Nobody else knows.
//!
//! Each worker is a thread with a single-threaded runtime of its own: its listeners, its connections and
//! its pools never meet those of another. Control work (identity, policy, health) has the main thread, so
//! that a slow scrape never delays a request.

use std::future::Future;
use std::io;
use std::thread::JoinHandle;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tikv_jemalloc_ctl::{Access, AsName, background_thread};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;

/// The runtime of the control thread.
///
/// # Errors
/// When the operating system has no room for it.
pub fn control() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        // Those that block work seldom, and are gone soon.
        .on_thread_start(|| {
            let shared = "thread.arena\0".name().write(0_u32);
            if let Err(error) = shared.and_then(|()| hoard_nothing()) {
                tracing::warn!(%error, "a thread has memory of its own");
            }
        })
        .build()
}

/// As many workers as CPUs are granted to this process; at least one.
#[must_use]
pub fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// Lets the process have as many open files as the system grants it. Each connection takes one or two, and
/// the usual soft limit of 1024 is there only for programs that call `select`.
pub fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

/// Lets the allocator give memory back soon after connections close, on a thread of its own. It must not
/// begin by itself: it would run before [`crate::sandbox::enter`], and stay outside.
pub fn give_memory_back() {
    let begin = || {
        // Of this thread's arena, and of those that other threads will have.
        for arena in ["arena.0.dirty_decay_ms\0", "arenas.dirty_decay_ms\0"] {
            arena.name().write(KEEP_FREED_MS)?;
        }
        hoard_nothing()?;
        "max_background_threads\0".name().write(1_usize)?;
        background_thread::write(true)
    };
    if let Err(error) = begin() {
        tracing::warn!(%error, "the allocator keeps the memory of connections for longer");
    }
}

/// Lets this thread give back at once what it frees. Others keep some of each size for themselves, which makes
/// them faster and is worth nothing where little is done.
fn hoard_nothing() -> tikv_jemalloc_ctl::Result<()> {
    "thread.tcache.enabled\0".name().write(false)
}

/// How long freed memory is kept to be used again, in milliseconds. It goes little by little.
const KEEP_FREED_MS: isize = 1000;

/// Threads that work.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    ended: mpsc::Receiver<()>,
}

/// Starts a thread for each of `jobs`. A worker ends when its job does; its runtime would take unfinished
/// tasks along.
///
/// # Errors
/// When a thread or a runtime cannot be had.
pub fn start<J, F>(jobs: impl IntoIterator<Item = J>) -> io::Result<Workers>
where
    J: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()>,
{
    let (working, ended) = mpsc::channel(1);
    let mut threads = Vec::new();
    for (index, job) in jobs.into_iter().enumerate() {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let working = working.clone();
        let name = format!("worker-{index}");
        threads.push(std::thread::Builder::new().name(name).spawn(move || {
            runtime.block_on(job());
            drop(working);
        })?);
    }
    Ok(Workers { threads, ended })
}

impl Workers {
    /// Completes when all have ended.
    pub async fn ended(&mut self) {
        // Nothing is ever sent: the channel closes when the last worker drops its end.
        while self.ended.recv().await.is_some() {}
    }

    /// Waits for the threads, after [`Workers::ended`]. False if one of them panicked.
    #[must_use]
    pub fn join(self) -> bool {
        let mut all = true;
        for thread in self.threads {
            all &= thread.join().is_ok();
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn all_open_files_that_the_system_grants_may_be_used() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(1024), hard).unwrap();
        raise_file_limit();
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
    }

    #[test]
    fn every_job_runs_on_a_thread_of_its_own_and_is_waited_for() {
        let done = Arc::new(AtomicUsize::new(0));
        let jobs = (0..3).map(|_| {
            let done = done.clone();
            move || async move {
                tokio::task::yield_now().await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut workers = start(jobs).unwrap();
        control().unwrap().block_on(workers.ended());
        assert!(workers.join());
        assert_eq!(done.load(Ordering::Relaxed), 3);
    }
}
