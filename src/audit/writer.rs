//! How do records reach the file? One thread takes what waits, makes lines, chains them and writes them in
//! one call.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use prometheus::{IntCounter, PullingGauge, Registry};

use super::chain::{Chain, Sealed, Torn};
use super::file::{Found, LogFile, OpenError, Start};
use super::socket::Datagrams;
use super::{Audit, Ended, Lane, Metrics, Settings, Shared, Sink, line, lock};
use crate::identity::SpiffeId;

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
    /// [`Unwritten`] if records are left when patience ends. They are counted as lost. That the log ends
    /// without a word of the stop is no loss.
    pub fn stop(self, patience: Duration) -> Result<(), Unwritten> {
        self.stop.asked.store(true, Ordering::Release);
        self.wake();
        let ended = self.done.recv_timeout(patience);
        if ended != Err(mpsc::RecvTimeoutError::Timeout) {
            return Ok(());
        }
        self.stop.abandoned.store(true, Ordering::Release);
        self.wake();
        let records = self.shared.waiting() + self.shared.held.load(Ordering::Acquire);
        self.shared.metrics.lost.inc_by(records);
        match records {
            0 => Ok(()),
            records => Err(Unwritten { records }),
        }
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
    /// How many; of the last batch, some may be out all the same.
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
    /// Two writers would break each other's chain.
    #[error(
        "another process writes to the audit file {file}: give each sidecar a file of its own in `audit.path`"
    )]
    Taken {
        /// The file.
        file: String,
    },
    /// The thread cannot be started.
    #[error("cannot start the audit writer")]
    Thread(#[source] io::Error),
    /// The families are registered already.
    #[error("cannot register the metrics of the audit")]
    Metrics(#[source] prometheus::Error),
}

/// Where lines go.
pub(super) trait Output: Send {
    /// Writes some of `lines`, which begin where the call before ended; says how many bytes.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize>;

    /// How long one line may be, in bytes.
    fn longest(&self) -> usize {
        usize::MAX
    }

    /// Begins another file if ours was moved away; false if it was not. After an error, ours stays in use.
    fn reopen(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    /// Whether our file was removed: what goes there goes nowhere.
    fn is_gone(&self) -> bool {
        false
    }

    /// When the file is to be rotated, if it is.
    fn due(&self, _now: SystemTime) -> Option<Duration> {
        None
    }

    /// Moves the file aside as number `number` of its log, and begins another. After an error, the same
    /// stays in use.
    fn rotate(&mut self, _number: u64) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn start(
    settings: &Settings,
    registry: &Registry,
) -> Result<(Audit, Writer), StartError> {
    let (output, found): (Box<dyn Output>, _) = match &settings.sink {
        Sink::Stdout => {
            let output = Stdout::open().map_err(|source| StartError::Open {
                sink: "stdout".into(),
                source,
            })?;
            (Box::new(output), Found::default())
        }
        Sink::File(path) => {
            let file = path.display().to_string();
            match LogFile::open(path, settings.rotate) {
                Ok((output, found)) => (Box::new(output), found),
                Err(OpenError::Taken) => return Err(StartError::Taken { file }),
                Err(OpenError::Io(source)) => return Err(StartError::Open { sink: file, source }),
            }
        }
        Sink::Socket(path, format) => {
            let output = Datagrams::open(path.clone(), *format);
            let output = output.map_err(|source| StartError::Open {
                sink: path.display().to_string(),
                source,
            })?;
            (Box::new(output), Found::default())
        }
    };
    start_with(settings, registry, output, found)
}

pub(super) fn start_with(
    settings: &Settings,
    registry: &Registry,
    output: Box<dyn Output>,
    found: Found,
) -> Result<(Audit, Writer), StartError> {
    let shared = Arc::new(Shared {
        level: settings.level,
        on_failure: settings.on_failure,
        capacity: settings.queue,
        lanes: Mutex::default(),
        failure: Mutex::default(),
        healthy: AtomicBool::new(true),
        reopen: AtomicBool::new(false),
        asleep: AtomicBool::new(false),
        held: AtomicU64::new(0),
        thread: OnceLock::new(),
        chain: Mutex::default(),
        metrics: Metrics::new().map_err(StartError::Metrics)?,
    });
    register(&shared, registry).map_err(StartError::Metrics)?;
    let stop = Arc::new(Stop::default());
    let (tell_done, done) = mpsc::channel();
    let mut work = Work::new(shared.clone(), stop.clone(), output, found);
    let thread = thread::Builder::new()
        .name("audit".into())
        .spawn(move || {
            work.run();
            work.shared.ended();
            // The file is free for another process before anybody is told.
            drop(work);
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

struct Stdout(File);

impl Stdout {
    fn open() -> io::Result<Self> {
        // Not `io::Stdout`: its line buffer would keep what a failed write left.
        Ok(Self(io::stdout().as_fd().try_clone_to_owned()?.into()))
    }
}

impl Output for Stdout {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.0.write(lines)
    }
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
    output: Box<dyn Output>,
    batch: Option<Batch>,
    /// Lines on their way out; `written` bytes of them are out, `held` records are in them.
    buffer: Vec<u8>,
    written: usize,
    held: u64,
    /// Where the chain stands after the last line in the buffer, and before the first.
    chain: Chain,
    before: Chain,
    /// Our own SPIFFE ID, as the last record says.
    own: Option<SpiffeId>,
    /// Records that could not be written, and that no line has told of yet.
    lost: u64,
    /// Records are in the file, so that it is worth a rotation.
    has_records: bool,
    /// When a rotation that failed is tried again.
    rotate_after: Option<Instant>,
    /// The last value of the chain that the log tells of, and since when.
    told: (Chain, Instant),
    has_stopped: bool,
}

/// What was taken from one lane and is not in the buffer yet.
struct Batch {
    lane: Arc<Lane>,
    records: std::vec::IntoIter<Ended>,
}

impl Work {
    fn new(shared: Arc<Shared>, stop: Arc<Stop>, output: Box<dyn Output>, found: Found) -> Self {
        let now = SystemTime::now();
        let before = found.chain.unwrap_or_else(Chain::new);
        let mut chain = before;
        let mut buffer = Vec::new();
        if found.is_unended {
            // A crash has left half a line, which must not swallow the next one.
            buffer.push(b'\n');
        }
        match found.start {
            Start::Empty | Start::Fragment => {
                chain.begin_file(&mut buffer, now, None, found.torn);
            }
            Start::Lines => chain.resume(&mut buffer, now, found.torn),
        }
        Self {
            shared,
            stop,
            output,
            batch: None,
            buffer,
            written: 0,
            held: 0,
            chain,
            before,
            own: None,
            lost: 0,
            has_records: found.start == Start::Lines,
            rotate_after: None,
            told: (before, Instant::now()),
            has_stopped: false,
        }
    }

    fn run(&mut self) {
        while !self.stop.abandoned.load(Ordering::Acquire) {
            // Looked at first: what was recorded before the stop is then certain to be drained.
            let last = self.stop.asked.load(Ordering::Acquire);
            if self.shared.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            match self.drain() {
                Ok(_) if last && self.has_stopped => return self.tell(),
                Ok(_) if last => self.say_stopped(),
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
            if self.until_told() == Some(Duration::ZERO) {
                self.tell();
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
            if !self.buffer.is_empty() {
                self.shared.metrics.records.inc_by(self.held);
                *lock(&self.shared.chain) = Some(self.chain);
                self.shared.recovered();
            }
            records += self.held;
            self.held = 0;
            self.written = 0;
            self.buffer.clear();
            self.before = self.chain;
            // The line that says so stays the last.
            if !self.has_stopped {
                self.rotate_if_due();
            }
            if self.output.is_gone() {
                tracing::error!(
                    "the audit file was removed while it was written; beginning another"
                );
                self.reopen();
            }
            self.fill();
            self.shared.held.store(self.held, Ordering::Release);
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
                let start = self.buffer.len();
                line::write(&mut self.buffer, &ended);
                self.lost += ended.lost;
                let length = self.buffer.len() - start;
                if length > self.output.longest() {
                    tracing::error!(
                        length,
                        "an audit record is too long for the socket; it is lost"
                    );
                    self.buffer.truncate(start);
                    self.shared.metrics.lost.inc();
                    self.lost += 1;
                    continue;
                }
                let lost = std::mem::take(&mut self.lost);
                self.chain.seal(&mut self.buffer, start, lost);
                self.held += 1;
                self.has_records = true;
                if ended.facts.connection.own != self.own {
                    self.own.clone_from(&ended.facts.connection.own);
                }
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
            match self
                .until_rotated()
                .into_iter()
                .chain(self.until_told())
                .min()
            {
                Some(due) => thread::park_timeout(due),
                None => thread::park(),
            }
        }
        self.shared.asleep.store(false, Ordering::SeqCst);
    }

    /// Called where nothing waits in the buffer, so that the old file ends with a whole line.
    fn rotate_if_due(&mut self) {
        if self.until_rotated() != Some(Duration::ZERO) {
            return;
        }
        match self.output.rotate(self.chain.file()) {
            Ok(()) => {
                self.tell();
                self.shared.metrics.rotations.inc();
                self.rotate_after = None;
                self.begin_file(None);
            }
            Err(error) => {
                tracing::error!(%error, "cannot rotate the audit file; the same stays in use");
                self.rotate_after = Some(Instant::now() + ROTATE_AGAIN);
            }
        }
    }

    /// How long until the file is to be rotated; `None` if that is not for time to bring.
    fn until_rotated(&self) -> Option<Duration> {
        let due = self
            .output
            .due(SystemTime::now())
            .filter(|_| self.has_records)?;
        let again = self.rotate_after.map_or(Duration::ZERO, |after| {
            after.saturating_duration_since(Instant::now())
        });
        Some(due.max(again))
    }

    fn begin_file(&mut self, torn: Option<Torn>) {
        let own = self.own.as_ref().map(|own| own.as_str().to_owned());
        self.chain
            .begin_file(&mut self.buffer, SystemTime::now(), own, torn);
        self.has_records = false;
    }

    fn reopen(&mut self) {
        match self.output.reopen() {
            Ok(true) => {
                self.leave_file();
                tracing::info!("the audit file was opened anew");
            }
            Ok(false) => tracing::info!("the audit file is still the same"),
            Err(error) => {
                tracing::error!(%error, "cannot open the audit file anew; the old one stays in use");
            }
        }
    }

    /// Goes on in another file: a line begun in the old one is written whole in the new one.
    fn leave_file(&mut self) {
        let lines = std::mem::take(&mut self.buffer);
        let (written, waiting) = lines.split_at(self.written);
        let begun = written.iter().rposition(|b| *b == b'\n');
        let (whole, begun) = written.split_at(begun.map_or(0, |at| at + 1));
        let last = whole.split(|b| *b == b'\n').rev().find_map(Sealed::parse);
        let mut at = last.map_or(self.before, |last| self.chain.at(&last));
        let mut rest = [begun, waiting].concat();
        let mut torn = Torn::of(begun);
        if let Some(last) = Sealed::unended(begun, at.head()) {
            at = at.at(&last);
            (rest, torn) = (waiting.to_vec(), None);
        }
        (self.chain, self.before) = (at, at);
        self.written = 0;
        self.begin_file(torn);
        self.chain.seal_again(&mut self.buffer, &rest);
    }

    fn say_stopped(&mut self) {
        let lanes = lock(&self.shared.lanes);
        let lost: u64 = lanes.iter().map(|lane| lane.take_lost()).sum();
        drop(lanes);
        let lost = lost + std::mem::take(&mut self.lost);
        self.chain.stop(&mut self.buffer, SystemTime::now(), lost);
        self.has_stopped = true;
    }

    /// How long until the log tells where the chain stands; `None` if it has.
    fn until_told(&self) -> Option<Duration> {
        let (told, since) = self.told;
        (told != self.before).then(|| TELL_EVERY.saturating_sub(since.elapsed()))
    }

    /// Says where the chain stands: the log is kept elsewhere, so this anchors the file.
    fn tell(&mut self) {
        if self.told.0 != self.before {
            let (log, lines) = (self.before.log(), self.before.lines());
            tracing::info!(%log, lines, head = %self.before.head(), "the audit chain");
        }
        self.told = (self.before, Instant::now());
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
        // The reason first: whoever sees the failure asks for it.
        *lock(&self.failure) = Some(reason.clone());
        if self.healthy.swap(false, Ordering::AcqRel) {
            tracing::error!(%reason, "cannot write the audit");
        }
    }

    /// Nothing is written from here on.
    fn ended(&self) {
        *lock(&self.failure) = Some("the audit writer has ended".into());
        self.healthy.store(false, Ordering::Release);
    }

    fn recovered(&self) {
        if !self.is_healthy() && !self.healthy.swap(true, Ordering::AcqRel) {
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
                 what is left when the process ends, and for what is too long for a socket.",
            )?,
            rotations: IntCounter::new(
                "doorward_audit_rotations_total",
                "Audit files that were moved aside by `audit.rotate`.",
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
        rotations,
    } = shared.metrics.clone();
    for counter in [records, lost, refused, rotations] {
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
pub(super) const RETRY: Duration = Duration::from_millis(200);

/// How many bytes of lines go into one call.
const CHUNK: usize = 64 * 1024;

/// How soon a failed rotation is tried again.
const ROTATE_AGAIN: Duration = Duration::from_secs(60);

/// How often the log tells where the chain stands, while it grows.
const TELL_EVERY: Duration = Duration::from_secs(300);
