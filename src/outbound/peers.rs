//! The addresses that one outbound entry leads to, each with the connections of this worker to it.
//!
//! A request goes to one of two addresses drawn by lot ([`balance::choose`]). If a connection has to be
//! opened first and that fails or takes long, the next address is tried beside it, and whoever answers first
//! has the request.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::{Request, Response, StatusCode};
use prometheus::IntCounter;

use super::balance::{self, Health, Rules};
use super::originals::Originals;
use super::retry::{self, Budget};
use super::tunnels::{Carried, Sharing, Tunnels};
use super::{Destination, Route, Settings, Way};
use crate::discovery::Addresses;
use crate::exchange::{Coming, Exchange, Upload};
use crate::lifecycle::Tasks;
use crate::live::Live;
use crate::outcome::Outcome;
use crate::session::Standing;
use crate::telemetry::chain;
use crate::upstream::{
    self, Again, Asking, Busy, Connection, Dial, DialError, Lease, Pool, Queue, Refused, SendError,
    Wanted,
};
use crate::worker::Worker;

/// All that one worker knows of the peers behind one outbound entry, or at one address that it leads to.
pub(super) struct Peers {
    way: Arc<Way>,
    service: Arc<str>,
    port: u16,
    /// What holds for connections.
    kept: upstream::Settings,
    rules: Rules,
    retry: retry::Settings,
    budget: Budget,
    queue: Arc<Queue>,
    tasks: Tasks,
    sharing: Arc<Sharing>,
    known: Arc<Live<Addresses>>,
    instances: ArcSwap<Vec<Arc<Instance>>>,
    /// Held while `instances` are replaced.
    changing: Mutex<()>,
    began: Instant,
    metrics: upstream::Metrics,
    ejections: IntCounter,
    /// How often somebody asked for them.
    used: AtomicU64,
    /// Those with whom they share what may be open.
    others: Weak<Originals>,
}

/// One address.
struct Instance {
    address: SocketAddr,
    pool: Arc<Pool<Route>>,
    tunnels: Tunnels,
    health: Health,
}

/// A way for opaque bytes.
pub(super) struct Session {
    pub(super) carried: Carried,
    /// Counts while it is open.
    pub(super) busy: Busy,
}

type Answered = (Response<Coming>, Lease<Route>);

impl Peers {
    /// The peers at `to`. From now on they follow what is known of the name.
    pub(super) fn named(
        to: &Destination,
        way: Arc<Way>,
        settings: &Settings,
        kept: upstream::Settings,
        worker: &Worker,
    ) -> Arc<Self> {
        let known = worker.directory.find(to.host());
        let name = to.to_string();
        let peers = Self::new(&name, to.port(), known, way, settings, kept, worker);
        let peers = Arc::new(peers);
        let of_these = Arc::downgrade(&peers);
        let metrics = &worker.metrics.upstream;
        metrics.ejected(&peers.service, move || Some(of_these.upgrade()?.left_out()));
        tokio::spawn(Self::follow(Arc::downgrade(&peers), peers.known.clone()));
        peers
    }

    /// Whoever is at `address`, one of those that `others` are at.
    pub(super) fn at(
        address: SocketAddr,
        way: Arc<Way>,
        settings: &Settings,
        kept: upstream::Settings,
        worker: &Worker,
        others: Weak<Originals>,
    ) -> Arc<Self> {
        let known = Arc::new(Live::default());
        known.publish(Ok(vec![address.ip()]));
        let name = address.to_string();
        let peers = Self::new(&name, address.port(), known, way, settings, kept, worker);
        Arc::new(Self { others, ..peers })
    }

    fn new(
        name: &str,
        port: u16,
        known: Arc<Live<Addresses>>,
        way: Arc<Way>,
        settings: &Settings,
        kept: upstream::Settings,
        worker: &Worker,
    ) -> Self {
        let service = settings.label();
        let peers = Self {
            queue: way.queue.clone(),
            way,
            port,
            kept,
            rules: settings.ejection,
            retry: settings.retry,
            budget: Budget::new(settings.retry.budget),
            tasks: worker.tasks.clone(),
            sharing: Sharing::new(name, settings.tunnel, worker),
            known,
            instances: ArcSwap::default(),
            changing: Mutex::default(),
            began: Instant::now(),
            metrics: worker.metrics.upstream.clone(),
            ejections: worker.metrics.upstream.ejections(&service),
            service,
            used: AtomicU64::new(0),
            others: Weak::new(),
        };
        peers.refresh();
        peers
    }

    /// How often somebody has asked for them.
    pub(super) fn uses(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether nothing is under way to them.
    pub(super) fn is_idle(&self) -> bool {
        let instances = self.instances.load();
        instances.iter().all(|one| one.pool.outstanding() == 0)
    }

    async fn follow(peers: Weak<Self>, known: Arc<Live<Addresses>>) {
        let mut changes = known.changes();
        while let Some(peers) = peers.upgrade() {
            peers.refresh();
            drop(peers);
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes over what is known of the name now. Addresses that stay keep their connections.
    fn refresh(&self) {
        let _turn = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = self.known.get() else {
            return;
        };
        let Ok(addresses) = &known.value else {
            return;
        };
        let before = self.instances.load_full();
        let at = |address| before.iter().find(|one| one.address == address).cloned();
        let after: Vec<_> = addresses
            .iter()
            .map(|ip| SocketAddr::new(*ip, self.port))
            .map(|address| at(address).unwrap_or_else(|| self.instance(address)))
            .collect();
        for gone in before.iter() {
            if !after.iter().any(|one| Arc::ptr_eq(one, gone)) {
                gone.pool.retire();
                gone.tunnels.close();
            }
        }
        self.instances.store(Arc::new(after));
    }

    fn instance(&self, address: SocketAddr) -> Arc<Instance> {
        let way = self.way.clone();
        let settings = self.kept.clone();
        let queue = self.queue.clone();
        let route = Route { address, way };
        Arc::new(Instance {
            address,
            pool: Pool::queued(route, settings, self.tasks.clone(), queue),
            tunnels: Tunnels::new(self.sharing.clone()),
            health: Health::default(),
        })
    }

    /// Closes the kept connections that nobody uses.
    pub(super) fn close(&self) {
        for instance in self.instances.load().iter() {
            instance.pool.close();
            instance.tunnels.close();
        }
    }

    /// Sends the request of `exchange` to one of the addresses, as [`Pool::send`] does to one. Where there are
    /// several, what is idempotent and has no body is sent to another one, within the budget, when the first
    /// breaks off, does not answer in time, or asks to be left alone.
    ///
    /// # Errors
    /// As [`Pool::send`]; of several addresses that could not be connected to, the last one's.
    pub(super) async fn send(
        &self,
        mut request: Asking,
        wanted: Wanted,
        exchange: &Arc<Exchange>,
    ) -> Result<Answered, SendError> {
        self.used.fetch_add(1, Ordering::Relaxed);
        let until = Until::new(self.retry.response_timeout);
        let mut instance = match self.pick() {
            Some(instance) => instance,
            None => until.reach(Box::pin(self.first()), None).await??,
        };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let connection = match instance.pool.kept_at(attempt, wanted) {
                Some(connection) => connection,
                // Rare, and large: dialling has no place in the future of every request.
                None => {
                    let opening = Box::pin(self.open(&instance, wanted));
                    let (connected, connection) = until.reach(opening, None).await??;
                    instance = connected;
                    connection
                }
            };
            // Where there is no choice, nothing is copied and no clock is read.
            let (spare, asked) = match self.alone() {
                true => (None, None),
                false => (self.spare(&request), Some(Instant::now())),
            };
            let sent = {
                let sending = std::pin::pin!(instance.pool.send_on(connection, request, exchange));
                until.reach(sending, self.retry.try_timeout).await
            };
            let (ended, why) = match sent {
                Ok(Ok(answered)) => {
                    let judged = asked.and_then(|at| self.judge(&instance, &answered.0, at));
                    match judged {
                        Some(why) => (Ok(answered), why),
                        None => return Ok(answered),
                    }
                }
                // It was never sent, or is certainly not acted on.
                Ok(Err(Refused {
                    error,
                    again: Some(unsent),
                })) if attempt < upstream::ATTEMPTS => {
                    if let SendError::Unprocessed(_) = error {
                        instance = self.after_refusal(instance, error)?;
                    }
                    request = unsent;
                    continue;
                }
                Ok(Err(Refused { error, .. })) => match error {
                    SendError::Exchange(_) | SendError::Stream(_) => (Err(error), Again::Failed),
                    error => return Err(error),
                },
                Err(late) => (Err(late), Again::Late),
            };
            match &ended {
                // Our own application broke the body off.
                Err(_) if exchange.is_revoked() => return ended,
                Err(error) => self.failed(&instance, error),
                Ok(_) => {}
            }
            let more = attempt < upstream::ATTEMPTS && !until.is_past();
            let Some(spare) = spare.filter(|_| more) else {
                return ended;
            };
            let now = self.began.elapsed();
            let mut others = self.others(&instance).into_iter();
            let Some(other) = others.find(|other| !other.health.ejected(now)) else {
                return ended;
            };
            if !self.budget.spend(now) {
                self.metrics.not_retried(&self.service);
                return ended;
            }
            self.metrics.retried(&self.service, why);
            (request, instance) = (spare, other);
        }
    }

    /// Who gets a request that `instance` had no room for: another address if there is one, and it again, on
    /// another connection, if not. Whoever has too much to do is not to get more of it, so the budget counts.
    fn after_refusal(
        &self,
        instance: Arc<Instance>,
        refusal: SendError,
    ) -> Result<Arc<Instance>, SendError> {
        self.failed(&instance, &refusal);
        let now = self.began.elapsed();
        if !self.budget.spend(now) {
            self.metrics.not_retried(&self.service);
            return Err(refusal);
        }
        self.metrics.retried(&self.service, Again::Unprocessed);
        let mut others = self.others(&instance).into_iter();
        let other = others.find(|other| !other.health.ejected(now));
        Ok(other.unwrap_or(instance))
    }

    /// What to send elsewhere should it not be answered.
    fn spare(&self, request: &Request<Upload>) -> Option<Asking> {
        if !self.budget.is_any() {
            return None;
        }
        let spare = upstream::repeatable(request)?;
        self.budget.earn();
        Some(spare)
    }

    /// Sends a request that will take its connection over.
    ///
    /// # Errors
    /// As [`Peers::send`].
    pub(super) async fn send_alone(
        &self,
        request: Asking,
        exchange: &Arc<Exchange>,
    ) -> Result<(Response<Coming>, Option<Standing>), SendError> {
        let dial = |instance: Arc<Instance>| async move {
            instance.pool.dialler().dial(Wanted::Http1).await
        };
        let first = self.any().await?;
        let (instance, dialed) = self.queue.pass(|| self.race(first.clone(), dial)).await?;
        instance.pool.send_alone_on(dialed, request, exchange).await
    }

    /// Connects to one of the addresses, for whatever `offer` says.
    ///
    /// # Errors
    /// Of several addresses that could not be connected to, the last one's.
    pub(super) async fn connect(&self) -> Result<Session, DialError> {
        let dial = |instance: Arc<Instance>| async move {
            instance.tunnels.session(instance.pool.dialler()).await
        };
        let first = self.any().await?;
        let (instance, carried) = self.queue.pass(|| self.race(first.clone(), dial)).await?;
        let busy = instance.pool.busy();
        Ok(Session { carried, busy })
    }

    /// Opens a connection, to `first` if it can be; or takes one that has become free meanwhile.
    async fn open(
        &self,
        first: &Arc<Instance>,
        wanted: Wanted,
    ) -> Result<(Arc<Instance>, Connection), DialError> {
        let dial = |instance: Arc<Instance>| async move { instance.pool.open(wanted).await };
        let attempt = || async move {
            match self.race(first.clone(), dial).await {
                // Where nothing more may be opened, any connection will do.
                Err(DialError::Full) => self.free(wanted).ok_or(DialError::Full),
                done => done,
            }
        };
        self.queue.pass(attempt).await
    }

    /// A connection to any of the addresses that can take a request now.
    fn free(&self, wanted: Wanted) -> Option<(Arc<Instance>, Connection)> {
        let instances = self.instances.load();
        let free = |one: &Arc<Instance>| Some((one.clone(), one.pool.kept(wanted)?));
        instances.iter().find_map(free)
    }

    /// Connects to `first`. When that fails, or after [`STAGGER`] without an answer, the next address is
    /// tried too (as in RFC 8305 §5), and the first that answers is taken.
    async fn race<T, F: Future<Output = Result<T, DialError>>>(
        &self,
        first: Arc<Instance>,
        dial: impl Fn(Arc<Instance>) -> F,
    ) -> Result<(Arc<Instance>, T), DialError> {
        let mut others = self.others(&first).into_iter();
        let mut next = Some(first);
        let mut dialing = FuturesUnordered::new();
        loop {
            if let Some(instance) = next.take() {
                let dialed = dial(instance.clone());
                dialing.push(async move { (instance, dialed.await) });
            }
            let late = async {
                match others.len() {
                    0 => std::future::pending().await,
                    _ => tokio::time::sleep(STAGGER).await,
                }
            };
            let failed = tokio::select! {
                biased;
                Some((instance, dialed)) = dialing.next() => match dialed {
                    Ok(connected) => return Ok((instance, connected)),
                    Err(error) => Some((instance, error)),
                },
                () = late => None,
            };
            next = others.next();
            let Some((instance, error)) = failed else {
                continue;
            };
            if let DialError::Full = error {
                self.make_room();
                return Err(error);
            }
            self.metrics.not_connected(&self.service, &error);
            match error.outcome() {
                // It is not the address.
                Outcome::IdentityUnavailable | Outcome::OwnIdentityExpired => return Err(error),
                _ => self.failed(&instance, &error),
            }
            if next.is_none() && dialing.is_empty() {
                return Err(error);
            }
            tracing::debug!(to = %self.service, address = %instance.address, error = %chain(&error), "trying the next address");
        }
    }

    /// Closes one connection that nobody uses, if there is one.
    fn make_room(&self) {
        let instances = self.instances.load();
        if instances.iter().any(|one| one.pool.close_idle()) {
            return;
        }
        if let Some(others) = self.others.upgrade() {
            others.make_room();
        }
    }

    async fn any(&self) -> Result<Arc<Instance>, DialError> {
        self.used.fetch_add(1, Ordering::Relaxed);
        match self.pick() {
            Some(instance) => Ok(instance),
            None => self.first().await,
        }
    }

    /// Who takes the next request, if anybody is known.
    fn pick(&self) -> Option<Arc<Instance>> {
        let instances = self.instances.load();
        // Neither a clock nor a lot is needed where there is no choice.
        if let [only] = instances.as_slice() {
            return Some(only.clone());
        }
        let now = self.began.elapsed();
        let usable = |one: &Arc<Instance>| !one.health.ejected(now);
        let cost = |one: &Arc<Instance>| one.cost(now);
        balance::choose(&instances, fastrand::u64(..), usable, cost).cloned()
    }

    /// The first answer to where the name is may be on its way.
    async fn first(&self) -> Result<Arc<Instance>, DialError> {
        let timeout = self.way.timeout;
        let known = tokio::time::timeout(timeout, self.known.wait()).await;
        let known = known.map_err(|_| DialError::Unresolved(timeout))?;
        self.refresh();
        match (&known.value, self.pick()) {
            (_, Some(instance)) => Ok(instance),
            (Err(error), None) => Err(DialError::Resolve(error.clone())),
            (Ok(_), None) => Err(DialError::Unresolved(timeout)),
        }
    }

    /// The other addresses that a connection is tried to when `first` does not answer, best first.
    fn others(&self, first: &Arc<Instance>) -> Vec<Arc<Instance>> {
        let now = self.began.elapsed();
        let instances = self.instances.load();
        let mut others: Vec<_> = instances
            .iter()
            .filter(|one| !Arc::ptr_eq(one, first))
            .map(|one| (one.health.ejected(now), one.cost(now), one.clone()))
            .collect();
        others.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        others.truncate(OTHERS);
        others.into_iter().map(|(_, _, one)| one).collect()
    }

    /// What an answer says of its address. Whether it asks to be left alone, and the request is for another.
    fn judge(
        &self,
        instance: &Instance,
        answer: &Response<Coming>,
        asked: Instant,
    ) -> Option<Again> {
        let status = answer.status();
        match status {
            // What is behind the peer does not answer, or not now.
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {}
            _ => {
                let now = self.began.elapsed();
                instance.health.answered(asked.elapsed(), now);
                return None;
            }
        }
        let pause = retry::retry_after(answer.headers(), SystemTime::now());
        match pause {
            Some(pause) if status == StatusCode::SERVICE_UNAVAILABLE => {
                instance.health.rest(pause, self.began.elapsed());
                Some(Again::RetryAfter)
            }
            _ => {
                self.failed(instance, &Unwell(status));
                None
            }
        }
    }

    fn failed(&self, instance: &Instance, why: &dyn std::error::Error) {
        if self.alone() {
            return;
        }
        if let Some(out) = instance.health.failed(self.began.elapsed(), self.rules) {
            self.ejections.inc();
            let (address, error) = (instance.address, chain(why));
            tracing::warn!(to = %self.service, %address, ?out, %error, "an address keeps failing and is left out for a while");
        }
    }

    /// How many addresses are left out now, whether for failing or at their own wish.
    fn left_out(&self) -> i64 {
        let now = self.began.elapsed();
        let instances = self.instances.load();
        let out = instances.iter().filter(|one| one.health.ejected(now));
        i64::try_from(out.count()).unwrap_or(i64::MAX)
    }

    /// Whether there is no choice.
    fn alone(&self) -> bool {
        self.instances.load().len() < 2
    }
}

impl Instance {
    fn cost(&self, now: Duration) -> f64 {
        self.health.cost(self.pool.outstanding(), now)
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instances = self.instances.load();
        let addresses = instances.iter().map(|one| one.address);
        f.debug_list().entries(addresses).finish()
    }
}

/// When a request is given up, if ever.
#[derive(Clone, Copy)]
struct Until(Option<(tokio::time::Instant, Duration)>);

impl Until {
    fn new(limit: Option<Duration>) -> Self {
        Self(limit.map(|limit| (tokio::time::Instant::now() + limit, limit)))
    }

    fn is_past(self) -> bool {
        self.0
            .is_some_and(|(end, _)| end <= tokio::time::Instant::now())
    }

    /// Waits for `work`, but no longer than up to then, nor than `limit`.
    ///
    /// # Errors
    /// [`SendError::Late`] with the limit that has passed.
    async fn reach<F>(self, work: F, limit: Option<Duration>) -> Result<F::Output, SendError>
    where
        F: Future + Unpin,
    {
        let of_try = limit.map(|limit| (tokio::time::Instant::now() + limit, limit));
        let Some((end, limit)) = self.0.into_iter().chain(of_try).min() else {
            return Ok(work.await);
        };
        let reached = tokio::time::timeout_at(end, work).await;
        reached.map_err(|_| SendError::Late(limit))
    }
}

/// An answer that speaks against an address.
#[derive(Debug, thiserror::Error)]
#[error("it answers {0}")]
struct Unwell(StatusCode);

/// How long an address may take to connect before the next one is tried too (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(250);
/// How many further addresses are tried for one request.
const OTHERS: usize = 4;
