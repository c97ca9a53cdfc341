//! Which connection carries this TCP session: one of its own, or one that it shares?

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::uri::Authority;

use super::{Held, Route};
use crate::lifecycle::{Lifecycle, Phase, Tasks};
use crate::serve::{FAREWELL, LAST_WORDS};
use crate::session::{Granted, Own, Standing};
use crate::telemetry::chain;
use crate::tls::{Agreed, ClientStream, Connector, Offer, Secured};
use crate::tunnel::{self, Opener};
use crate::upstream::{Dial, DialError, Term, http2};
use crate::worker::Worker;

/// Whether TCP sessions share connections with each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// Where the peer's sidecar knows how and it pays.
    Auto,
    /// Where the peer's sidecar knows how.
    Always,
    /// Never: each has a connection to itself.
    Off,
}

/// What carries a session to the peer, and what that stands on.
pub(super) struct Carried {
    /// Where it is proved who answers.
    pub(super) standing: Option<Standing>,
    pub(super) way: Way,
    pub(super) place: Place,
}

pub(super) enum Way {
    /// A connection of its own.
    Alone(Box<ClientStream<Held>>),
    /// The same, in plain.
    Plain(Held),
    /// A stream on one that others use too.
    Shared(tunnel::Stream),
}

/// A session's place among those of its address, while it is connecting or open.
pub(super) struct Place {
    history: Arc<History>,
    began: Instant,
    /// It came about.
    carried: bool,
}

/// What sessions to one address have been like.
#[derive(Default)]
struct History {
    under_way: AtomicUsize,
    /// The last one that ended was over soon.
    brief: AtomicBool,
}

impl History {
    /// Puts one more among them, and says how many others there are.
    fn enter(self: &Arc<Self>) -> (Place, usize) {
        let others = self.under_way.fetch_add(1, Ordering::Relaxed);
        let place = Place {
            history: self.clone(),
            began: Instant::now(),
            carried: false,
        };
        (place, others)
    }
}

impl Place {
    /// It came about: how long it lasts will count.
    pub(super) fn is_carried(&mut self) {
        self.carried = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.history.under_way.fetch_sub(1, Ordering::Relaxed);
        if self.carried {
            let brief = self.began.elapsed() < BRIEF;
            self.history.brief.store(brief, Ordering::Relaxed);
        }
    }
}

/// What is alike for all addresses of one destination.
pub(super) struct Sharing {
    wanted: Tunnel,
    authority: Option<Authority>,
    tasks: Tasks,
    lifecycle: Lifecycle,
}

impl Sharing {
    pub(super) fn new(name: &str, wanted: Tunnel, worker: &Worker) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            // A name with an underscore at an odd place is fine for DNS and may be none for HTTP.
            authority: name.parse().ok(),
            tasks: worker.tasks.clone(),
            lifecycle: worker.lifecycle.clone(),
        })
    }
}

/// The shared connections of one worker to one address.
pub(super) struct Tunnels {
    sharing: Arc<Sharing>,
    open: Mutex<Vec<Shared>>,
    /// Held while one is being opened: those who come meanwhile share it.
    opening: tokio::sync::Mutex<()>,
    /// The peer did not know of sharing last time, so opening needs no waiting for each other.
    knows_none: AtomicBool,
    history: Arc<History>,
}

#[derive(Clone)]
struct Shared {
    opener: Opener,
    term: Term,
    standing: Standing,
}

impl Shared {
    async fn ask(&self) -> Option<Answered> {
        let stream = self.opener.ask().await.ok()?;
        Some((self.standing.clone(), Way::Shared(stream)))
    }
}

type Answered = (Standing, Way);

impl Tunnels {
    /// None is open yet.
    pub(super) fn new(sharing: Arc<Sharing>) -> Self {
        Self {
            sharing,
            open: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
            knows_none: AtomicBool::new(false),
            history: Arc::default(),
        }
    }

    /// Whether a session is better off with a connection to itself while `others` are under way: then there
    /// is nothing to gather, and HTTP/2 costs some 10 % more. Where sessions are brief, a handshake for each
    /// would cost far more than that.
    fn is_alone(&self, others: usize) -> bool {
        match self.sharing.wanted {
            Tunnel::Auto => others == 0 && !self.history.brief.load(Ordering::Relaxed),
            Tunnel::Always => false,
            Tunnel::Off => true,
        }
    }

    /// A way for one session along `route`.
    pub(super) async fn session(&self, route: &Route) -> Result<Carried, DialError> {
        let (place, others) = self.history.enter();
        let Some(connector) = &route.way.connector else {
            return Ok(Carried {
                standing: None,
                way: Way::Plain(route.open().await?),
                place,
            });
        };
        let (standing, way) = match &self.sharing.authority {
            Some(authority) if !self.is_alone(others) => {
                self.join(route, connector, authority).await?
            }
            _ => alone(route, route.connect(connector, Offer::Opaque).await?),
        };
        Ok(Carried {
            standing: Some(standing),
            way,
            place,
        })
    }

    /// A session on a shared connection, if the peer knows how.
    async fn join(
        &self,
        route: &Route,
        connector: &Connector,
        authority: &Authority,
    ) -> Result<Answered, DialError> {
        if let Some(answered) = self.kept(route).await {
            return Ok(answered);
        }
        let _turn = match self.knows_none.load(Ordering::Relaxed) {
            true => None,
            false => {
                let turn = self.opening.lock().await;
                if let Some(answered) = self.kept(route).await {
                    return Ok(answered);
                }
                Some(turn)
            }
        };
        let secured = route.connect(connector, Offer::Tunnel).await?;
        let shares = secured.agreed == Agreed::Tunnel;
        self.knows_none.store(!shares, Ordering::Relaxed);
        if !shares {
            return Ok(alone(route, secured));
        }
        let shared = self.share(route, secured, authority).await?;
        let answered = shared.ask().await;
        answered.ok_or_else(|| DialError::Connect(io::ErrorKind::ConnectionReset.into()))
    }

    async fn share(
        &self,
        route: &Route,
        secured: Secured<ClientStream<Held>>,
        authority: &Authority,
    ) -> Result<Shared, DialError> {
        let Secured {
            peer,
            endpoint,
            stream,
            ..
        } = secured;
        let (io, first) = http2::heard(stream);
        let (opener, driven) = tunnel::open(io, authority.clone())
            .await
            .map_err(|error| DialError::Connect(io::Error::other(error)))?;
        let leaf = endpoint.value.material().leaf();
        let end = peer.not_after().min(leaf.not_after);
        let term = Term::new(endpoint.generation, Some(end), SystemTime::now());
        let standing = route.way.standing(peer, endpoint);
        let shared = Shared {
            opener,
            term,
            standing: standing.clone(),
        };
        let cut = self.sharing.lifecycle.reached(Phase::Cut);
        self.sharing.tasks.spawn(keep(driven, standing, cut));
        first.wait().await?;
        self.locked().push(shared.clone());
        Ok(shared)
    }

    /// A session on a connection that is open already.
    async fn kept(&self, route: &Route) -> Option<Answered> {
        let epoch = route.epoch();
        loop {
            let shared = {
                let mut open = self.locked();
                // Dropping our handle lets the connection finish its sessions and close.
                open.retain(|shared| shared.term.holds(epoch, SystemTime::now));
                open.iter().find(|one| one.opener.has_room())?.clone()
            };
            match shared.ask().await {
                Some(answered) => return Some(answered),
                // It takes no more: the other side says goodbye, or is gone.
                None => self.locked().retain(|one| !one.opener.is(&shared.opener)),
            }
        }
    }

    /// Takes no new sessions on the connections that are open. Each ends with its last one.
    pub(super) fn close(&self) {
        self.locked().clear();
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Shared>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn alone(route: &Route, secured: Secured<ClientStream<Held>>) -> Answered {
    let standing = route.way.standing(secured.peer, secured.endpoint);
    (standing, Way::Alone(Box::new(secured.stream)))
}

/// Keeps a shared connection going until it ends by itself, or a little longer than its sessions may.
async fn keep(
    driven: impl Future<Output = Result<(), h2::Error>>,
    standing: Standing,
    cut: impl Future<Output = ()>,
) {
    let over = async {
        tokio::select! {
            _ = standing.lost(Own::Shown, Granted::Nothing) => {}
            () = cut => {}
        }
        tokio::time::sleep(FAREWELL + LAST_WORDS).await;
    };
    // Polled only when it has woken: the connection is polled for every frame.
    let mut over = FuturesUnordered::from_iter([over]);
    tokio::select! {
        biased;
        ended = driven => {
            if let Err(error) = ended {
                tracing::debug!(error = %chain(&error), "shared connection ended");
            }
        }
        Some(()) = over.next() => {}
    }
}

/// A session that lasted no longer than this would have paid more for a handshake than for all else.
const BRIEF: Duration = Duration::from_millis(500);
