//! Who did what, and by which grant? One record for each exchange, written whatever happens.
//!
//! A [`Record`] is opened before an exchange is decided and written once it has ended: by
//! [`Record::finish`], or by being dropped. The caller never waits and formats nothing: it moves what it
//! holds into a list that its worker alone uses, and [`Writer`]'s thread makes lines of it.
//!
//! **Nothing passes unrecorded** (`on_failure: deny`). [`Audit::open`] refuses while the writer cannot
//! write, or while a full queue waits for it; a record once open always has its place. So the queue
//! holds at most `queue` records and one more for each exchange that was open at that moment, whose
//! number is limited elsewhere. No counter is shared between workers for it. Reserving a place in a
//! channel for each open exchange would bound it harder, but ten thousand idle connections would then
//! fill a queue that has nothing in it; and one channel for all costs a busy caller four times as much
//! with one worker and eight times with two.

pub mod chain;
pub mod entry;
mod file;
mod line;
pub mod read;
mod socket;
pub mod verify;
mod writer;

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use prometheus::{IntCounter, Registry};

use self::chain::Chain;
pub use self::writer::{StartError, Unwritten, Writer};
use crate::document::Node;
use crate::identity::SpiffeId;
use crate::identity::svid::Leaf;
use crate::outcome::Outcome;
use crate::secrets::{Action, Carried};

/// The section `audit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where lines go.
    pub sink: Sink,
    /// When the file is moved aside and another begun; never by us if this is not said.
    pub rotate: Option<Rotate>,
    /// Which exchanges leave a record.
    pub level: Level,
    /// What happens to exchanges that cannot be recorded.
    pub on_failure: OnFailure,
    /// How many records of one worker may wait for the writer.
    pub queue: usize,
    /// What fingerprints of standing secrets are made with; without it, a key of this process alone.
    pub fingerprint_key: Option<PathBuf>,
}

/// Where audit lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// A file, appended to; created with mode 0600.
    File(PathBuf),
    /// A Unix datagram socket, one datagram for each record.
    Socket(PathBuf, Format),
}

/// What a datagram holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The line.
    #[default]
    Json,
    /// An entry of systemd's journal.
    Journald,
}

/// When an audit file is moved aside. At least one of `size` and `age` is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotate {
    /// Once it is as long, in bytes.
    pub size: Option<u64>,
    /// Once it is as old.
    pub age: Option<Duration>,
    /// How many files that were moved aside stay.
    pub keep: usize,
}

/// Which exchanges leave a record. Refusals, dry-run findings, requests that were changed, TCP sessions and
/// whatever came in plaintext from elsewhere always do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Every exchange.
    All,
    /// HTTP requests that were allowed leave none.
    Denials,
}

/// What happens to exchanges that cannot be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    /// They are refused.
    Deny,
    /// They pass; the lost records are counted.
    Continue,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sink: Sink::Stdout,
            rotate: None,
            level: Level::All,
            on_failure: OnFailure::Deny,
            queue: 8192,
            fingerprint_key: None,
        }
    }
}

impl Settings {
    /// Reads the section `audit`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let default = Self::default();
        let mut section = node.section()?;
        let path = section.optional("path", |node| node.path());
        let has_path = !matches!(path, Some(None));
        let rotate = section.optional("rotate", |node| {
            if !has_path {
                return node.mistake("there is no file to rotate", Some("name it: `path`"));
            }
            Rotate::read(&node)
        });
        let socket = section.optional("socket", |node| {
            if has_path {
                let help = "records go to one place: remove `path` or `socket`";
                return node.mistake("a file is named already", Some(help));
            }
            let path = node.path()?;
            if path.as_os_str().len() > socket::LONGEST_PATH {
                return node.mistake("this is too long for the path of a socket", None);
            }
            Some(path)
        });
        let has_socket = !matches!(socket, Some(None));
        let format = section.or("format", Format::Json, |node| {
            if !has_socket {
                return node.mistake("this is for a socket, and none is named", None);
            }
            node.choice(&[("json", Format::Json), ("journald", Format::Journald)])
        });
        let level = section.or("level", default.level, |node| {
            node.choice(&[("all", Level::All), ("denials", Level::Denials)])
        });
        let on_failure = section.or("on_failure", default.on_failure, |node| {
            node.choice(&[("deny", OnFailure::Deny), ("continue", OnFailure::Continue)])
        });
        let queue = section.or("queue", default.queue, |node| {
            let count = node.count(16..=1_048_576)?;
            usize::try_from(count).ok()
        });
        let fingerprint_key = section.optional("fingerprint_key", |node| node.path());
        let sink = match (path?, socket?) {
            (Some(path), _) => Sink::File(path),
            (None, Some(socket)) => Sink::Socket(socket, format?),
            (None, None) => Sink::Stdout,
        };
        format?;
        Some(Self {
            sink,
            rotate: rotate?,
            level: level?,
            on_failure: on_failure?,
            queue: queue?,
            fingerprint_key: fingerprint_key?,
        })
    }
}

impl Rotate {
    fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let size = section.optional("size", |node| node.bytes(64 << 10..=1 << 40));
        let age = section.optional("age", |node| node.duration(SHORTEST_AGE..=LONGEST_AGE));
        let keep = section.or("keep", 14, |node| {
            usize::try_from(node.count(1..=100_000)?).ok()
        });
        let (size, age) = (size?, age?);
        if size.is_none() && age.is_none() {
            let help = Some("write for example `size: 100 MiB`, or `age: 24h`");
            return node.mistake("nothing says when to rotate", help);
        }
        Some(Self {
            size,
            age,
            keep: keep?,
        })
    }
}

/// Where records are opened. Clones share one queue; [`Audit::worker`] makes a handle with its own.
#[derive(Clone, Debug)]
pub struct Audit {
    shared: Arc<Shared>,
    lane: Arc<Lane>,
}

impl Audit {
    /// Opens the sink, starts the writer's thread and registers the families `doorward_audit_*`.
    ///
    /// # Errors
    /// [`StartError`]: an audit that was asked for and cannot be had stops the start.
    pub fn start(settings: &Settings, registry: &Registry) -> Result<(Self, Writer), StartError> {
        writer::start(settings, registry)
    }

    /// A handle with a queue of its own, for one more worker: workers then never wait for each other.
    #[must_use]
    pub fn worker(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            lane: self.shared.add_lane(),
        }
    }

    /// Opens the record of an exchange on `connection`, before anything about it is decided.
    ///
    /// # Errors
    /// [`Unavailable`] if it could not be written: refuse with [`Outcome::AuditUnavailable`]. Never at
    /// `on_failure: continue`; nor for requests of peers at level `denials`, because those that pass are not
    /// recorded and a refusal needs nobody's leave.
    pub fn open(&self, kind: Kind, connection: &Arc<Connection>) -> Result<Record, Unavailable> {
        let must_be_written = self.shared.on_failure == OnFailure::Deny
            && (kind == Kind::Connection
                || connection.plaintext
                || self.shared.level == Level::All);
        if must_be_written && !self.has_room() {
            self.shared.metrics.refused.inc();
            return Err(Unavailable);
        }
        Ok(Record {
            lane: Some(self.lane.clone()),
            shared: self.shared.clone(),
            reserved: must_be_written,
            dropped: Outcome::Aborted,
            facts: Facts {
                id: self.lane.next_id(),
                kind,
                connection: connection.clone(),
                time: SystemTime::now(),
                peer: None,
                trace: None,
                verdict: None,
                status: None,
                grpc_status: None,
                carried: None,
            },
            started: Instant::now(),
            asked: None,
        })
    }

    fn has_room(&self) -> bool {
        self.shared.is_healthy() && self.lane.length() < self.shared.capacity
    }

    /// Whether the last write succeeded.
    ///
    /// # Errors
    /// Says what went wrong, for the readiness condition `audit`. Never at `on_failure: continue`.
    pub fn healthy(&self) -> Result<(), String> {
        match (self.shared.on_failure, self.shared.is_healthy()) {
            (OnFailure::Continue, _) | (_, true) => Ok(()),
            (OnFailure::Deny, false) => Err(lock(&self.shared.failure).clone().unwrap_or_default()),
        }
    }

    /// Where the chain stands, as written by now; `None` before the first line is.
    #[must_use]
    pub fn chain(&self) -> Option<Chain> {
        *lock(&self.shared.chain)
    }

    /// Opens the file anew before the next line, for whoever rotates logs. If that fails, the old file
    /// stays in use.
    pub fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        self.shared.wake();
    }
}

/// The exchange could not be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit record cannot be written")]
pub struct Unavailable;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One HTTP request.
    Request,
    /// A TCP session, or a connection that ended before its first request.
    Connection,
}

impl Kind {
    /// The word in the audit.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Connection => "connection",
        }
    }
}

/// Which way an exchange goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From a peer to our application.
    Inbound,
    /// From our application to a peer.
    Outbound,
}

impl Direction {
    /// The word in metrics and audit.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// What all records of one connection have in common; made once and shared.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Which way.
    pub direction: Direction,
    /// Our own SPIFFE ID, if we had one.
    pub own: Option<SpiffeId>,
    /// What the peer's certificate says, if it proved one.
    pub peer: Option<Arc<Leaf>>,
    /// The service the peer asks for: the Cedar resource, or the destination as configured.
    pub service: Arc<str>,
    /// Where the connection came from; a Unix socket has no address.
    pub source: Option<SocketAddr>,
    /// Where it was going when the packet filter led it to us.
    pub destination: Option<SocketAddr>,
    /// Whether the caller spoke no TLS, and so proved nothing.
    pub plaintext: bool,
}

/// What policy said, in the words a record needs.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Whether it passes.
    pub allowed: bool,
    /// The `@id` of the grant, or of the `forbid`, that decided.
    pub grant: Option<Arc<str>>,
    /// The `@owner` of that grant.
    pub owner: Option<Arc<str>>,
    /// Who answers for the principal, from the workload registry.
    pub principal_owner: Option<Arc<str>>,
    /// The generation of the policies that decided.
    pub generation: u64,
    /// Why not, as the label that metrics use.
    pub reason: Option<&'static str>,
    /// What policies on trial would have said, where they disagree.
    pub observed: Option<Observed>,
}

/// What a policy in mode `observe` would have decided.
#[derive(Clone, Debug)]
pub struct Observed {
    /// Whether it would have passed.
    pub allowed: bool,
    /// The `@id` of the policy that says so; none for a denial by default.
    pub grant: Option<Arc<str>>,
}

/// The name of one exchange: in its record, and in what the proxy answers about it. Unique, and tells
/// nothing about how many there were.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExchangeId(u128);

impl fmt::Display for ExchangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ExchangeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A record being kept. Finish it; a record that is dropped says [`Outcome::Aborted`].
#[derive(Debug)]
#[must_use]
pub struct Record {
    /// `None` once written.
    lane: Option<Arc<Lane>>,
    shared: Arc<Shared>,
    /// Whether a place in the queue was promised.
    reserved: bool,
    dropped: Outcome,
    started: Instant,
    asked: Option<Asked>,
    facts: Facts,
}

/// What is known of an exchange, as the writer gets it.
#[derive(Clone, Debug)]
struct Facts {
    id: ExchangeId,
    kind: Kind,
    connection: Arc<Connection>,
    time: SystemTime,
    peer: Option<Arc<Leaf>>,
    trace: Option<u128>,
    verdict: Option<Verdict>,
    status: Option<StatusCode>,
    grpc_status: Option<u8>,
    /// In a box: few have any.
    carried: Option<Box<Carried>>,
}

/// A request's target, shared with the request itself while that lives.
#[derive(Debug)]
struct Asked {
    method: Method,
    uri: Uri,
    host: Option<HeaderValue>,
    version: Version,
}

impl Record {
    /// The name of this exchange.
    #[must_use]
    pub fn id(&self) -> ExchangeId {
        self.facts.id
    }

    /// When the exchange began.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// Keeps what `request` asks for, and the trace it belongs to (W3C Trace Context). Its query is not
    /// kept: queries carry secrets.
    pub fn request<B>(&mut self, request: &Request<B>) {
        self.facts.trace = trace_id(request.headers());
        self.asked = Some(Asked {
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: request.headers().get(header::HOST).cloned(),
            version: request.version(),
        });
    }

    /// Keeps who proved to be at the other end, where that was not known when the connection's facts
    /// were put together, or where it differs for each exchange.
    pub fn peer(&mut self, leaf: Arc<Leaf>) {
        self.facts.peer = Some(leaf);
    }

    /// Keeps what policy said. A later verdict replaces it: a stream is decided more than once.
    pub fn verdict(&mut self, verdict: Verdict) {
        self.facts.verdict = Some(verdict);
    }

    /// Keeps the status that was answered.
    pub fn status(&mut self, status: StatusCode) {
        self.facts.status = Some(status);
    }

    /// Keeps the gRPC status that was answered.
    pub fn grpc_status(&mut self, status: u8) {
        self.facts.grpc_status = Some(status);
    }

    /// Keeps which standing secrets a request carried.
    pub fn carries(&mut self, carried: Carried) {
        self.facts.carried = Some(Box::new(carried));
    }

    /// The standing secrets that the request carried, if any.
    #[must_use]
    pub fn carried(&self) -> Option<&Carried> {
        self.facts.carried.as_deref()
    }

    /// Says what it means if this record is dropped from here on.
    pub fn if_dropped(&mut self, outcome: Outcome) {
        self.dropped = outcome;
    }

    /// Writes the record. `bytes_in` came from whoever opened the exchange, `bytes_out` went there.
    pub fn finish(mut self, outcome: Outcome, bytes_in: u64, bytes_out: u64) {
        self.write(outcome, Some((bytes_in, bytes_out)));
    }

    fn write(&mut self, outcome: Outcome, bytes: Option<(u64, u64)>) {
        let Some(lane) = self.lane.take() else {
            return;
        };
        if self.shared.level == Level::Denials && !self.is_kept_at_denials(outcome) {
            return;
        }
        if !self.reserved && lane.length() >= self.shared.capacity {
            self.shared.metrics.lost.inc();
            lane.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        lane.push(Ended {
            lost: lane.take_lost(),
            duration: self.started.elapsed(),
            target: self.asked.take().map(Target::of),
            outcome,
            bytes,
            facts: Facts {
                connection: self.facts.connection.clone(),
                peer: self.facts.peer.take(),
                verdict: self.facts.verdict.take(),
                carried: self.facts.carried.take(),
                ..self.facts
            },
        });
        self.shared.wake();
    }

    fn is_kept_at_denials(&self, outcome: Outcome) -> bool {
        let verdict = self.facts.verdict.as_ref();
        self.facts.kind == Kind::Connection
            || self.facts.connection.plaintext
            || outcome.is_refusal()
            || verdict.is_some_and(|verdict| {
                // What passes for another reason than a grant is told always.
                !verdict.allowed || verdict.observed.is_some() || verdict.reason.is_some()
            })
            || self
                .carried()
                .is_some_and(|carried| carried.action() != Action::Observed)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.write(self.dropped, None);
    }
}

/// An exchange that is over, on its way to the writer.
#[derive(Debug)]
struct Ended {
    /// How many records of this worker could not be kept since the one before.
    lost: u64,
    facts: Facts,
    target: Option<Target>,
    outcome: Outcome,
    bytes: Option<(u64, u64)>,
    duration: Duration,
}

/// A request's target as a copy of its own: what waits in the queue must not hold on to the connection's
/// read buffer, of which [`Asked`] is a slice.
#[derive(Debug)]
struct Target {
    method: Method,
    version: Version,
    /// Host, then path.
    text: String,
    host: usize,
}

impl Target {
    fn of(asked: Asked) -> Self {
        let host = match (asked.uri.authority(), &asked.host) {
            (Some(authority), _) => authority.as_str().as_bytes(),
            (None, Some(host)) => host.as_bytes(),
            (None, None) => &[],
        };
        // A user's name and password may stand before the `@`.
        let host = host.rsplit(|b| *b == b'@').next().unwrap_or_default();
        let host = cut(host, HOST_LIMIT);
        let path = cut(asked.uri.path().as_bytes(), PATH_LIMIT);
        let mut text = String::with_capacity(host.len() + path.len());
        text.push_str(&host);
        text.push_str(&path);
        Self {
            method: asked.method,
            version: asked.version,
            host: host.len(),
            text,
        }
    }

    fn host(&self) -> &str {
        &self.text[..self.host]
    }

    fn path(&self) -> &str {
        &self.text[self.host..]
    }
}

fn cut(bytes: &[u8], limit: usize) -> Cow<'_, str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(limit)])
}

/// The trace that `traceparent` names (W3C Trace Context, level 1 §3.2), if it is well formed.
fn trace_id(headers: &HeaderMap) -> Option<u128> {
    let text = headers.get(TRACEPARENT)?.to_str().ok()?;
    let mut parts = text.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let hex = |text: &str, digits: usize| {
        text.len() == digits
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let well_formed = hex(version, 2) && hex(trace, 32) && hex(parent, 16) && hex(flags, 2);
    // Version 0 ends here; a later one may go on.
    if !well_formed || version == "ff" || (version == "00" && parts.next().is_some()) {
        return None;
    }
    u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What workers and the writer share.
#[derive(Debug)]
struct Shared {
    level: Level,
    on_failure: OnFailure,
    capacity: usize,
    lanes: Mutex<Vec<Arc<Lane>>>,
    /// What the last write that failed did so with; `healthy` says whether it was the last of all.
    failure: Mutex<Option<String>>,
    healthy: AtomicBool,
    reopen: AtomicBool,
    /// The writer sleeps and wants to be woken.
    asleep: AtomicBool,
    /// Records that the writer has made into lines and not yet written.
    held: AtomicU64,
    thread: OnceLock<Thread>,
    /// Where the chain stands after what is written.
    chain: Mutex<Option<Chain>>,
    metrics: Metrics,
}

impl Shared {
    fn add_lane(&self) -> Arc<Lane> {
        let lane = Arc::new(Lane::new());
        lock(&self.lanes).push(lane.clone());
        lane
    }

    fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// Wakes the writer if it sleeps for want of work. While it is busy it looks again by itself, so this
    /// costs a system call only for the first record of a batch.
    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst)
            && self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

/// The queue of one worker. Only the writer ever contends for it, for the time of a swap.
#[derive(Debug)]
struct Lane {
    waiting: Mutex<Vec<Ended>>,
    /// Records handed over and not yet written.
    length: AtomicUsize,
    /// Records that could not be kept, and that no record has told of yet.
    lost: AtomicU64,
    ids: AtomicU64,
    seed: (u64, u64),
}

impl Lane {
    fn new() -> Self {
        // Random keys from the operating system: unique is enough, nobody trusts these.
        let random = || RandomState::new().hash_one(());
        Self {
            waiting: Mutex::default(),
            length: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            ids: AtomicU64::new(0),
            seed: (random(), random()),
        }
    }

    fn next_id(&self) -> ExchangeId {
        let count = self.ids.fetch_add(1, Ordering::Relaxed);
        let low = scramble(count ^ self.seed.1);
        ExchangeId(u128::from(self.seed.0) << 64 | u128::from(low))
    }

    fn length(&self) -> usize {
        self.length.load(Ordering::Relaxed)
    }

    fn take_lost(&self) -> u64 {
        // Next to never are there any.
        match self.lost.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.lost.swap(0, Ordering::Relaxed),
        }
    }

    fn push(&self, ended: Ended) {
        self.length.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiting).push(ended);
    }
}

/// A bijection (the finalizer of SplitMix64): different counts stay different and show no order.
const fn scramble(count: u64) -> u64 {
    let count = (count ^ (count >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let count = (count ^ (count >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    count ^ (count >> 31)
}

/// No holder of these locks can leave a value half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The families of the audit.
#[derive(Clone, Debug)]
struct Metrics {
    records: IntCounter,
    lost: IntCounter,
    refused: IntCounter,
    rotations: IntCounter,
}

/// The shortest and the longest time after which a file may be rotated.
const SHORTEST_AGE: Duration = Duration::from_secs(1);
const LONGEST_AGE: Duration = Duration::from_secs(366 * 24 * 3600);

/// How many bytes of a path a record keeps.
pub(crate) const PATH_LIMIT: usize = 2048;
const HOST_LIMIT: usize = 512;

#[cfg(test)]
mod tests;
