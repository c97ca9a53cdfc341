//! How do records reach the file? One thread takes what waits, makes lines, writes them in one call.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use prometheus::{IntCounter, PullingGauge, Registry};

use super::{Audit, Ended, Lane, Metrics, Settings, Shared, Sink, line, lock};

/// The writer's thread. Stop it last: when whatever keeps records has ended.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    stop: Arc<Stop>,
    done: Receiver<()>,
}

impl Writer {
    /// Writes everything that waits and ends the thread. Blocks for `patience` at most.
    ///
    /// # Errors
    /// [`Unwritten`] if records are left when patience ends. They are counted as lost.
    pub fn stop(self, patience: Duration) -> Result<(), Unwritten> {
        self.stop.asked.store(true, Ordering::Release);
        self.wake();
        let ended = self.done.recv_timeout(patience);
        if ended != Err(mpsc::RecvTimeoutError::Timeout) {
            return Ok(());
        }
        self.stop.abandoned.store(true, Ordering::Release);
        self.wake();
        let records = self.shared.waiting();
        self.shared.metrics.lost.inc_by(records);
        Err(Unwritten { records })
    }

    fn wake(&self) {
        if let Some(thread) = self.shared.thread.get() {
            thread.unpark();
        }
    }
}

/// Records were left when the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{records} audit records could not be written")]
pub struct Unwritten {
    /// How many, apart from those in the last batch.
    pub records: u64,
}

/// Why the audit does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The sink cannot be opened.
    #[error("cannot open the audit sink {}", .sink)]
    Open {
        /// The file, or `stdout`.
        sink: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The thread cannot be started.
    #[error("cannot start the audit writer")]
    Thread(#[source] io::Error),
    /// The families are registered already.
    #[error("cannot register the metrics of the audit")]
    Metrics(#[source] prometheus::Error),
}

pub(super) fn start(
    settings: &Settings,
    registry: &Registry,
) -> Result<(Audit, Writer), StartError> {
    match settings.sink.clone() {
        Sink::Stdout => start_with(settings, registry, "stdout", Box::new(stdout)),
        Sink::File(path) => {
            let name = path.display().to_string();
            start_with(settings, registry, &name, Box::new(move || file(&path)))
        }
    }
}

/// Opens the sink, at the start and again for [`Audit::reopen`].
type Open = Box<dyn FnMut() -> io::Result<Output> + Send>;
type Output = Box<dyn Write + Send>;

pub(super) fn start_with(
    settings: &Settings,
    registry: &Registry,
    sink: &str,
    mut open: Open,
) -> Result<(Audit, Writer), StartError> {
    let output = open().map_err(|source| StartError::Open {
        sink: sink.into(),
        source,
    })?;
    let shared = Arc::new(Shared {
        level: settings.level,
        on_failure: settings.on_failure,
        capacity: settings.queue,
        lanes: Mutex::default(),
        failure: Mutex::default(),
        healthy: AtomicBool::new(true),
        reopen: AtomicBool::new(false),
        asleep: AtomicBool::new(false),
        thread: OnceLock::new(),
        metrics: Metrics::new().map_err(StartError::Metrics)?,
    });
    register(&shared, registry).map_err(StartError::Metrics)?;
    let stop = Arc::new(Stop::default());
    let (tell_done, done) = mpsc::channel();
    let mut work = Work {
        shared: shared.clone(),
        stop: stop.clone(),
        open,
        output,
        batch: None,
        buffer: Vec::new(),
        written: 0,
        held: 0,
    };
    let thread = thread::Builder::new()
        .name("audit".into())
        .spawn(move || {
            work.run();
            // Nothing is written from here on.
            work.shared.failed("the audit writer has ended".into());
            let _ = tell_done.send(());
        })
        .map_err(StartError::Thread)?;
    let _ = shared.thread.set(thread.thread().clone());
    let audit = Audit {
        lane: shared.add_lane(),
        shared: shared.clone(),
    };
    Ok((audit, Writer { shared, stop, done }))
}

fn stdout() -> io::Result<Output> {
    // Not `io::Stdout`: its line buffer would keep what a failed write left.
    let fd = io::stdout().as_fd().try_clone_to_owned()?;
    Ok(Box::new(File::from(fd)))
}

fn file(path: &Path) -> io::Result<Output> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    let mut file = options.open(path)?;
    let about = file.metadata()?;
    // A crash may have left half a line, which must not swallow the next one.
    if about.is_file()
        && about.len() > 0
        // A file that we may only write is written as it is.
        && let Ok(readable) = File::open(path)
    {
        let mut last = [0];
        readable.read_exact_at(&mut last, about.len() - 1)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(Box::new(file))
}

#[derive(Debug, Default)]
struct Stop {
    /// Write what waits, then end.
    asked: AtomicBool,
    /// End now.
    abandoned: AtomicBool,
}

/// What the thread works on.
struct Work {
    shared: Arc<Shared>,
    stop: Arc<Stop>,
    open: Open,
    output: Output,
    batch: Option<Batch>,
    /// Lines on their way out; `written` bytes of them are out, `held` records are in them.
    buffer: Vec<u8>,
    written: usize,
    held: u64,
}

/// What was taken from one lane and is not in the buffer yet.
struct Batch {
    lane: Arc<Lane>,
    records: std::vec::IntoIter<Ended>,
}

impl Work {
    fn run(&mut self) {
        while !self.stop.abandoned.load(Ordering::Acquire) {
            // Looked at first: what was recorded before the stop is then certain to be drained.
            let last = self.stop.asked.load(Ordering::Acquire);
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            match self.drain() {
                Ok(_) if last => return,
                // More will have come by then, and goes out with one call.
                Ok(wrote) if wrote > 0 => thread::park_timeout(LINGER),
                Ok(_) => self.sleep(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::park_timeout(LINGER);
                }
                Err(error) => {
                    self.shared.failed(error.to_string());
                    thread::park_timeout(RETRY);
                }
            }
        }
    }

    /// Writes everything that waits; says how many records that were. After an error, the next call goes
    /// on at the byte where this one stopped.
    fn drain(&mut self) -> io::Result<u64> {
        let mut records = 0;
        loop {
            while self.written < self.buffer.len() {
                match self.output.write(&self.buffer[self.written..]) {
                    Ok(0) => return Err(ErrorKind::WriteZero.into()),
                    Ok(count) => self.written += count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if self.held > 0 {
                self.shared.metrics.records.inc_by(self.held);
                self.shared.recovered();
            }
            records += self.held;
            self.held = 0;
            self.written = 0;
            self.buffer.clear();
            self.fill();
            if self.buffer.is_empty() {
                return Ok(records);
            }
        }
    }

    /// Makes lines of what waits, one chunk at most.
    fn fill(&mut self) {
        while self.buffer.len() < CHUNK {
            let Some(batch) = &mut self.batch else {
                self.batch = self.shared.next_batch();
                if self.batch.is_none() {
                    return;
                }
                continue;
            };
            let before = batch.records.len();
            while self.buffer.len() < CHUNK
                && let Some(ended) = batch.records.next()
            {
                line::write(&mut self.buffer, &ended);
                self.held += 1;
            }
            let taken = before - batch.records.len();
            batch.lane.length.fetch_sub(taken, Ordering::Relaxed);
            if batch.records.len() == 0 {
                self.batch = None;
            }
        }
    }

    fn sleep(&mut self) {
        // An idle sidecar holds nothing.
        self.buffer = Vec::new();
        self.shared.asleep.store(true, Ordering::SeqCst);
        // Whoever pushed before this store may have seen us awake.
        let idle = self.shared.is_empty()
            && !self.shared.reopen.load(Ordering::Acquire)
            && !self.stop.asked.load(Ordering::Acquire);
        if idle {
            thread::park();
        }
        self.shared.asleep.store(false, Ordering::SeqCst);
    }

    fn reopen(&mut self) {
        match (self.open)() {
            Ok(output) => {
                self.output = output;
                // A line begun in the old file is written whole in the new one.
                let begun = &self.buffer[..self.written];
                self.written = begun
                    .iter()
                    .rposition(|b| *b == b'\n')
                    .map_or(0, |at| at + 1);
                tracing::info!("the audit file was opened anew");
            }
            Err(error) => {
                tracing::error!(%error, "cannot open the audit file anew; the old one stays in use");
            }
        }
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").finish_non_exhaustive()
    }
}

impl Shared {
    fn next_batch(&self) -> Option<Batch> {
        let lanes = lock(&self.lanes);
        lanes.iter().find_map(|lane| {
            let mut waiting = lock(&lane.waiting);
            if waiting.is_empty() {
                return None;
            }
            let room = waiting.len().min(256);
            let records = std::mem::replace(&mut *waiting, Vec::with_capacity(room));
            Some(Batch {
                lane: lane.clone(),
                records: records.into_iter(),
            })
        })
    }

    fn is_empty(&self) -> bool {
        let lanes = lock(&self.lanes);
        lanes.iter().all(|lane| lock(&lane.waiting).is_empty())
    }

    /// Records handed over by the workers and not yet made into lines.
    fn waiting(&self) -> u64 {
        let lanes = lock(&self.lanes);
        lanes.iter().map(|lane| lane.length() as u64).sum()
    }

    pub(super) fn failed(&self, reason: String) {
        if self.healthy.swap(false, Ordering::Relaxed) {
            tracing::error!(%reason, "cannot write the audit");
        }
        *lock(&self.failure) = Some(reason);
    }

    fn recovered(&self) {
        if !self.is_healthy() && !self.healthy.swap(true, Ordering::Relaxed) {
            *lock(&self.failure) = None;
            tracing::info!("the audit is written again");
        }
    }
}

impl Metrics {
    fn new() -> prometheus::Result<Self> {
        Ok(Self {
            records: IntCounter::new("doorward_audit_records_total", "Audit records written.")?,
            lost: IntCounter::new(
                "doorward_audit_lost_total",
                "Audit records that could not be kept. Stays 0 with `audit.on_failure: deny`, except for \
                 what is left when the process ends.",
            )?,
            refused: IntCounter::new(
                "doorward_audit_refused_total",
                "Exchanges refused because their audit record could not have been written.",
            )?,
        })
    }
}

fn register(shared: &Arc<Shared>, registry: &Registry) -> prometheus::Result<()> {
    let Metrics {
        records,
        lost,
        refused,
    } = shared.metrics.clone();
    for counter in [records, lost, refused] {
        registry.register(Box::new(counter))?;
    }
    let at = shared.clone();
    #[expect(
        clippy::cast_precision_loss,
        reason = "a queue's length is far below 2^52"
    )]
    let length = move || at.waiting() as f64;
    registry.register(Box::new(PullingGauge::new(
        "doorward_audit_queue_length",
        "Audit records waiting for the writer, over all workers.",
        Box::new(length),
    )?))?;
    let at = shared.clone();
    registry.register(Box::new(PullingGauge::new(
        "doorward_audit_healthy",
        "1 while audit records can be written, 0 after a failed write until the next that succeeds.",
        Box::new(move || f64::from(u8::from(at.is_healthy()))),
    )?))
}

/// How long the writer lets records gather after it wrote some. A crash of the machine loses as much.
const LINGER: Duration = Duration::from_millis(5);

/// How soon a failed write is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// How many bytes of lines go into one call.
const CHUNK: usize = 64 * 1024;
