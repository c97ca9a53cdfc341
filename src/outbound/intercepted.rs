//! Which entry leads a connection on that the packet filter led to us?
//!
//! ```text
//! accepted ─▶ where was it going? ─▶ one entry, whatever it says ──────────────────────▶ that entry
//!                    │
//!                    └─▶ several: look at its first bytes ─▶ HTTP: each request by its host
//!                                                         ─▶ TLS: by its SNI
//!                                                         ─▶ else: by the addresses of names
//! ```
//!
//! # What an application, and who is around it, can do with this
//!
//! The application chooses both: the address that it connects to and the name that it says. What is
//! checked is neither, but who answers: the entry's `peer`, by mutual TLS, before a byte is sent.
//!
//! - A *name* decides which SPIFFE IDs may answer, and with `to: original` the *address* decides where they are
//!   asked. An application (or whoever can make it send a `Host`) that says another entry's name at an address
//!   of its choice reaches there whoever proves that entry's identity, and nobody else. With `to: host:port` it
//!   reaches what it could have connected to anyway. On the other side policy decides by *our* identity, so
//!   none of this gains a right.
//! - Who *controls an address* without the identity gets a handshake and no byte. Two entries whose `peer` is
//!   the same, or a pattern that takes in both, are one for this purpose.
//! - Who *controls name service* decides which addresses a name stands for, where the protocol says no name. He
//!   can lead a connection away from an entry, to the next one or to `otherwise`: with `deny` it is refused,
//!   with `passthrough` it leaves in plain. Nothing is decided while nobody answers for a name.
//! - `passthrough` checks nobody, and that is what it is for. Its exchanges have a service of that name in
//!   metrics and audit, and no peer.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::http::uri::Authority;
use ::http::{Request, Response};
use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::http::{self, Front};
use super::routes::{self, Candidates, Located, Table, Unlocated};
use super::{Connection, Outbound, Route, Settings, tcp};
use crate::audit::{Direction, Verdict};
use crate::discovery::{Addresses, ResolveError};
use crate::exchange::{self, Coming, Exchange, Form, Reply};
use crate::intercept::Otherwise;
use crate::intercepted::Doorstep;
use crate::lifecycle::Tasks;
use crate::limits::{Limit, Tally};
use crate::listen::{self, Protocol, Source, Stream};
use crate::live::Live;
use crate::outcome::Outcome;
use crate::serve;
use crate::target;
use crate::tls::detect::{self, Detected, Prefixed};
use crate::tls::name;
use crate::worker::Worker;

/// All intercepted entries of one worker, behind the port `intercept.outbound.port`.
#[derive(Debug)]
pub struct Intercepted {
    doorstep: Doorstep,
    table: Table,
    /// In the order of the table.
    entries: Vec<Entry>,
    /// What takes the rest, unless it is refused.
    otherwise: Option<Entry>,
    /// What holds for connections that may have to be refused.
    listener: listen::Settings,
    limit: Arc<Semaphore>,
    names: HashMap<Box<str>, Arc<Live<Addresses>>>,
    worker: Arc<Worker>,
}

#[derive(Debug)]
struct Entry {
    outbound: Arc<Outbound>,
    /// Its open connections.
    limit: Arc<Semaphore>,
}

impl Entry {
    fn new(settings: Settings, worker: &Arc<Worker>) -> Self {
        Self {
            limit: Arc::new(Semaphore::new(settings.listener.max_connections)),
            outbound: Outbound::new(settings, worker.clone()),
        }
    }
}

impl Intercepted {
    /// Prepares to serve what `entries` say, and the rest as `otherwise` does.
    #[must_use]
    pub fn new(entries: Vec<Settings>, otherwise: Otherwise, worker: &Arc<Worker>) -> Arc<Self> {
        let listener = listen::Settings::default();
        let routes = entries.iter().map(|entry| routes::Entry {
            patterns: entry.entrance.intercepted().cloned().unwrap_or_default(),
            names: entry.names(),
        });
        let routes = routes.collect();
        let named = entries.iter().flat_map(Settings::hosts);
        let names = named.map(|name| (name.into(), worker.directory.find(name)));
        Arc::new(Self {
            doorstep: Doorstep::new(Direction::Outbound, worker.clone()),
            table: Table::new(routes),
            names: names.collect(),
            entries: entries
                .into_iter()
                .map(|settings| Entry::new(settings, worker))
                .collect(),
            otherwise: match otherwise {
                Otherwise::Deny => None,
                Otherwise::Passthrough => Some(Entry::new(Settings::passthrough(), worker)),
            },
            limit: Arc::new(Semaphore::new(listener.max_connections)),
            listener,
            worker: worker.clone(),
        })
    }

    /// Counts what is reached of the port's limits.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.doorstep.tally().clone()
    }

    /// Closes the kept connections to peers.
    pub fn close(&self) {
        for entry in self.entries.iter().chain(&self.otherwise) {
            entry.outbound.close();
        }
    }

    /// Hands one accepted connection to the entry that leads on, among `tasks`; or refuses it.
    pub fn take(self: &Arc<Self>, stream: Stream, source: Source, tasks: &Tasks) {
        let Some(destination) = self.doorstep.destination(&stream, source) else {
            return;
        };
        let candidates = self.candidates(destination);
        let (first, settled) = match &candidates {
            Ok(candidates) => (self.first(candidates), self.settled(candidates).is_some()),
            Err(_) => (None, false),
        };
        // One entry that is full must not make the others' connections wait.
        let limit = first.map_or(&self.limit, |entry| &entry.limit);
        let Ok(slot) = limit.clone().try_acquire_owned() else {
            let tally = first.map_or(self.doorstep.tally(), |entry| &entry.outbound.tally);
            tally.hit(Limit::Connections);
            return listen::break_off(&stream);
        };
        match first {
            Some(entry) if settled => {
                let outbound = entry.outbound.clone();
                tasks.spawn(outbound.serve(stream, source, Some(destination), slot));
            }
            _ => {
                let arrived = Arrived {
                    source,
                    destination,
                    slot: Arc::new(slot),
                };
                tasks.spawn(self.clone().look(stream, arrived));
            }
        }
    }

    fn candidates(&self, destination: SocketAddr) -> Result<Candidates, Unlocated> {
        let at = |name: &str, ip| self.located(name, ip);
        self.table.candidates(destination, &at)
    }

    /// The first entry that may take a connection.
    fn first(&self, candidates: &Candidates) -> Option<&Entry> {
        let first = candidates.all().next().map(|index| &self.entries[index]);
        first.or(self.otherwise.as_ref())
    }

    /// The one that does, whatever the connection says.
    fn settled(&self, candidates: &Candidates) -> Option<&Entry> {
        let first = self.first(candidates);
        first.filter(|_| candidates.is_settled())
    }

    /// Whether a name is at an address, as far as is known now.
    fn located(&self, name: &str, ip: IpAddr) -> Located {
        let Some(known) = self.names.get(name) else {
            return Located::Unknown;
        };
        match known.peek().as_ref().map(|known| &known.value) {
            Some(Ok(addresses)) if addresses.contains(&ip) => Located::Here,
            Some(Ok(_)) => Located::Elsewhere,
            // There is no such name, and whoever says so should know.
            Some(Err(error)) => match **error {
                ResolveError::Nothing { .. } => Located::Elsewhere,
                ResolveError::Unanswered { .. } => Located::Unknown,
            },
            None => Located::Unknown,
        }
    }

    /// Decides with what is known of names, and if that is too little, waits once for the first answers.
    async fn once_known<T>(
        &self,
        port: u16,
        decide: impl Fn() -> Result<T, Unlocated>,
    ) -> Result<T, Unlocated> {
        if let Ok(decided) = decide() {
            return Ok(decided);
        }
        let names = self.table.names(port);
        let asked = names.filter_map(|name| self.names.get(name));
        let answers = join_all(asked.map(|known| known.wait()));
        // What is missing then shows in what is decided.
        let _ = tokio::time::timeout(self.listener.connect_timeout, answers).await;
        decide()
    }

    /// Serves a connection for which there may be several entries, or none, by what it begins with.
    async fn look(self: Arc<Self>, stream: Stream, arrived: Arrived) {
        let (port, destination) = (arrived.destination.port(), arrived.destination);
        let candidates = self.once_known(port, || self.candidates(destination)).await;
        let candidates = match candidates {
            Ok(candidates) => candidates,
            Err(unlocated) => return self.refuse(&stream, &arrived, &unlocated),
        };
        if let Some(entry) = self.settled(&candidates) {
            // Its protocol may be one in which the server speaks first.
            let Ok(slot) = entry.limit.clone().try_acquire_owned() else {
                entry.outbound.tally.hit(Limit::Connections);
                return listen::break_off(&stream);
            };
            let outbound = entry.outbound.clone();
            let serving = outbound.serve(stream, arrived.source, Some(destination), slot);
            return Box::pin(serving).await;
        }
        let (patience, began) = (self.patience(&candidates), Instant::now());
        let (detected, stream) = match detect::peek(stream, patience).await {
            Ok(found) => found,
            Err(error) => {
                return tracing::debug!(%error, "application went away before it spoke");
            }
        };
        let (name, stream) = match detected {
            Detected::Http1 | Detected::Http2Preface => {
                let http2 = detected == Detected::Http2Preface;
                // Looking is over soon: what serves must not have room for it.
                let serving = self.serve_requests(stream, arrived, candidates, http2);
                return Box::pin(serving).await;
            }
            Detected::Tls if !candidates.is_settled() => {
                let left = patience.saturating_sub(began.elapsed());
                match name::peek(stream, left).await {
                    Ok(found) => found,
                    Err(error) => {
                        return tracing::debug!(%error, "application went away in its first message");
                    }
                }
            }
            Detected::Tls | Detected::Opaque => (None, stream),
        };
        match self.choose(&candidates, port, name.as_deref()).await {
            Ok(Some(entry)) => Box::pin(self.hand_over(entry, stream, detected, arrived)).await,
            Ok(None) => {
                let Arrived {
                    source,
                    destination,
                    ..
                } = arrived;
                let (stream, to) = (stream.get_ref(), Some(destination));
                self.doorstep.refuse(stream, source, to, Outcome::NoRoute);
            }
            Err(unlocated) => self.refuse(stream.get_ref(), &arrived, &unlocated),
        }
    }

    /// How long the first bytes are waited for: where all is HTTP, as long as for a head.
    fn patience(&self, candidates: &Candidates) -> Duration {
        let listeners = candidates
            .all()
            .map(|index| &self.entries[index].outbound.settings.listener);
        let may_be_opaque = self.otherwise.is_some()
            || listeners
                .clone()
                .any(|listener| listener.protocol != Protocol::Http);
        let longest = listeners.map(|listener| match may_be_opaque {
            true => listener.detect_timeout,
            false => listener.header_timeout,
        });
        longest.max().unwrap_or(self.listener.detect_timeout)
    }

    /// The entry for what says that it is meant for `name`, if it says so.
    async fn choose(
        &self,
        candidates: &Candidates,
        port: u16,
        name: Option<&str>,
    ) -> Result<Option<&Entry>, Unlocated> {
        let at = |name: &str, ip| self.located(name, ip);
        let chosen = match name {
            Some(name) => candidates.named(&self.table, name),
            None => {
                let located = || candidates.located(&self.table, &at);
                self.once_known(port, located).await?
            }
        };
        let entry = chosen.map(|index| &self.entries[index]);
        Ok(entry.or(self.otherwise.as_ref()))
    }

    /// Serves what is no HTTP by `entry`, where it counts from now on.
    async fn hand_over(
        &self,
        entry: &Entry,
        stream: Prefixed<Stream>,
        detected: Detected,
        mut arrived: Arrived,
    ) {
        let same = |slot: &OwnedSemaphorePermit| Arc::ptr_eq(slot.semaphore(), &entry.limit);
        if !same(&arrived.slot) {
            let Ok(slot) = entry.limit.clone().try_acquire_owned() else {
                entry.outbound.tally.hit(Limit::Connections);
                return listen::break_off(&stream);
            };
            arrived.slot = Arc::new(slot);
        }
        let connection = arrived.at(&entry.outbound);
        match connection.http(detected) {
            Some(http2) => http::serve(connection, stream, http2).await,
            None => tcp::serve(connection, stream).await,
        }
    }

    /// It is not known which entry a connection is for.
    fn refuse(&self, stream: &Stream, arrived: &Arrived, unlocated: &Unlocated) {
        let Arrived {
            source,
            destination,
            ..
        } = arrived;
        tracing::warn!(%destination, error = %unlocated, "cannot decide where a connection goes");
        let why = Outcome::UpstreamUnreachable;
        self.doorstep
            .refuse(stream, *source, Some(*destination), why);
    }

    /// Serves HTTP, each request where it belongs. What holds for the connection as such is what the first
    /// entry says that it may be for.
    async fn serve_requests(
        self: Arc<Self>,
        stream: Prefixed<Stream>,
        arrived: Arrived,
        candidates: Candidates,
        http2: bool,
    ) {
        let limits = match self.first(&candidates) {
            Some(entry) => entry.outbound.settings.http,
            None => serve::Limits::of(&self.listener),
        };
        let routed = Arc::new(Routed {
            intercepted: self.clone(),
            arrived,
            candidates,
            known: Mutex::default(),
        });
        let front = Front {
            worker: &self.worker,
            meter: self.doorstep.meter(),
            tally: self.doorstep.tally(),
            limits,
        };
        let service = |request| routed.clone().answer(request);
        front.serve(stream, http2, service).await;
    }
}

/// A connection that has arrived.
#[derive(Clone, Debug)]
struct Arrived {
    source: Source,
    destination: SocketAddr,
    slot: Arc<OwnedSemaphorePermit>,
}

impl Arrived {
    /// The same, served by `outbound`.
    fn at(self, outbound: &Arc<Outbound>) -> Connection {
        let destination = Some(self.destination);
        Connection::new(outbound.clone(), self.source, destination, self.slot)
    }
}

/// An HTTP connection whose requests go where each says.
struct Routed {
    intercepted: Arc<Intercepted>,
    arrived: Arrived,
    candidates: Candidates,
    /// The entries that requests of it went to.
    known: Mutex<Vec<Arc<Connection>>>,
}

impl Routed {
    async fn answer(self: Arc<Self>, request: Request<Coming>) -> Response<Reply<Route>> {
        match self.route(&request).await {
            Ok(connection) => connection.answer(request).await,
            Err(outcome) => self.refuse(request, outcome),
        }
    }

    async fn route(&self, request: &Request<Coming>) -> Result<Arc<Connection>, Outcome> {
        let host = target::check(request)?;
        let name = host.as_ref().and_then(name_of);
        let (port, intercepted) = (self.arrived.destination.port(), &self.intercepted);
        let chosen = intercepted.choose(&self.candidates, port, name).await;
        let entry = chosen.map_err(|unlocated| {
            tracing::warn!(destination = %self.arrived.destination, error = %unlocated, "cannot decide where a request goes");
            Outcome::UpstreamUnreachable
        })?;
        let outbound = &entry.ok_or(Outcome::NoRoute)?.outbound;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = |one: &&Arc<Connection>| Arc::ptr_eq(&one.outbound, outbound);
        if let Some(connection) = known.iter().find(is_there) {
            return Ok(connection.clone());
        }
        let connection = Arc::new(self.arrived.clone().at(outbound));
        known.push(connection.clone());
        Ok(connection)
    }

    /// Refuses a request that no entry takes.
    fn refuse(&self, request: Request<Coming>, outcome: Outcome) -> Response<Reply<Route>> {
        let doorstep = &self.intercepted.doorstep;
        let form = Form::of(&request);
        let facts = doorstep.facts(self.arrived.source, Some(self.arrived.destination));
        let audit = &self.intercepted.worker.audit;
        let opened = Exchange::record(request, audit, &Arc::new(facts), doorstep.meter());
        let exchange = match opened {
            Ok((exchange, _)) => exchange,
            Err(outcome) => return exchange::unrecorded(doorstep.meter(), outcome, form),
        };
        exchange.note(|record| {
            record.verdict(Verdict {
                reason: Some(outcome.label()),
                ..Verdict::default()
            });
        });
        exchange.refuse(outcome, form)
    }
}

impl fmt::Debug for Routed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routed")
            .field("arrived", &self.arrived)
            .finish_non_exhaustive()
    }
}

/// The name that an authority says. An address in its place says none.
fn name_of(authority: &Authority) -> Option<&str> {
    let host = authority.host();
    let is_address = host.starts_with('[') || host.parse::<IpAddr>().is_ok();
    (!is_address).then_some(host)
}
