//! Which peers does an entry reach that leads connections to where they were going? Those at each such address,
//! for as long as somebody asks for them.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::peers::Peers;
use super::{Settings, Way};
use crate::upstream;
use crate::worker::Worker;

/// The addresses that one entry has led to lately, in one worker.
pub(super) struct Originals {
    way: Arc<Way>,
    settings: Arc<Settings>,
    kept: upstream::Settings,
    worker: Arc<Worker>,
    places: Mutex<HashMap<SocketAddr, Place>>,
}

struct Place {
    peers: Arc<Peers>,
    /// [`Peers::uses`] when it was looked at last.
    seen: u64,
}

impl Place {
    /// Whether nobody has asked for it since it was looked at last, nor waits for an answer.
    fn is_idle(&self) -> bool {
        self.seen == self.peers.uses() && self.peers.is_idle()
    }

    /// Whether nobody could ask for it without asking us first.
    fn is_free(&self) -> bool {
        Arc::strong_count(&self.peers) == 1
    }
}

impl Originals {
    /// None yet. Each will be connected to along `way`.
    pub(super) fn new(
        way: Arc<Way>,
        settings: &Arc<Settings>,
        kept: upstream::Settings,
        worker: &Arc<Worker>,
    ) -> Arc<Self> {
        let originals = Arc::new(Self {
            way,
            settings: settings.clone(),
            kept,
            worker: worker.clone(),
            places: Mutex::default(),
        });
        tokio::spawn(Self::keep(Arc::downgrade(&originals)));
        originals
    }

    /// Who is at `address`.
    pub(super) fn at(self: &Arc<Self>, address: SocketAddr) -> Arc<Peers> {
        let mut places = self.locked();
        if let Some(place) = places.get(&address) {
            return place.peers.clone();
        }
        if places.len() >= MOST {
            // What is in use is bounded by the limits of whoever uses it.
            let unused = places
                .iter()
                .find(|(_, place)| place.is_free() && place.peers.is_idle());
            let unused = unused.map(|(address, _)| *address);
            unused.and_then(|address| places.remove(&address));
        }
        let peers = Peers::at(
            address,
            self.way.clone(),
            &self.settings,
            self.kept.clone(),
            &self.worker,
            Arc::downgrade(self),
        );
        let (seen, place) = (0, peers.clone());
        places.insert(address, Place { peers: place, seen });
        peers
    }

    /// Closes the kept connections to all of them.
    pub(super) fn close(&self) {
        for place in self.locked().values() {
            place.peers.close();
        }
    }

    /// Closes kept connections that nobody uses: all may not have as many as somebody wants.
    pub(super) fn make_room(&self) {
        for place in self.locked().values() {
            if place.peers.is_idle() {
                place.peers.close();
            }
        }
    }

    async fn keep(originals: Weak<Self>) {
        loop {
            tokio::time::sleep(KEPT_FOR).await;
            match originals.upgrade() {
                Some(originals) => originals.give_back(),
                None => return,
            }
        }
    }

    /// Lets go of what nobody has asked for since the last time.
    fn give_back(&self) {
        self.locked().retain(|_, place| {
            let idle = place.is_idle();
            place.seen = place.peers.uses();
            if idle {
                place.peers.close();
            }
            !(idle && place.is_free())
        });
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<SocketAddr, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Originals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.locked().keys()).finish()
    }
}

/// How many addresses are remembered beside those in use.
const MOST: usize = 1000;
/// For how long an address is kept at least that nobody asks for, and at most for twice as long.
const KEPT_FOR: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use prometheus::Registry;

    use super::*;
    use crate::audit::{self, Audit, Sink};
    use crate::discovery::Directory;
    use crate::lifecycle::{Lifecycle, Tasks};
    use crate::limits::Credit;
    use crate::outbound::{Outbound, Reach};
    use crate::session::Roll;
    use crate::{secrets, worker};

    fn worker() -> Arc<Worker> {
        let registry = Registry::new();
        let settings = audit::Settings {
            sink: Sink::File("/dev/null".into()),
            ..audit::Settings::default()
        };
        let (audit, _) = Audit::start(&settings, &registry).unwrap();
        Arc::new(Worker {
            identity: Arc::default(),
            directory: Arc::new(Directory::new([])),
            audit,
            fingerprints: Arc::new(secrets::Key::generate().unwrap()),
            lifecycle: Lifecycle::default(),
            tasks: Tasks::default(),
            roll: Roll::default(),
            credit: Credit::default(),
            metrics: worker::Metrics::register(&registry).unwrap(),
        })
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_kept_while_somebody_asks_for_it_or_may() {
        let outbound = Outbound::new(Settings::passthrough(), worker());
        let Reach::Original(originals) = &outbound.reach else {
            panic!("it leads to where connections were going");
        };
        let kept = || originals.locked().len();
        let held = originals.at(address(1));
        drop(originals.at(address(2)));
        assert!(Arc::ptr_eq(&held, &originals.at(address(1))));
        assert_eq!(kept(), 2);
        tokio::time::sleep(KEPT_FOR * 2 + Duration::from_secs(1)).await;
        assert_eq!(kept(), 1);
        drop(held);
        // It was asked for, although nobody answered.
        assert!(originals.at(address(1)).connect().await.is_err());
        tokio::time::sleep(KEPT_FOR).await;
        assert_eq!(kept(), 1);
        tokio::time::sleep(KEPT_FOR).await;
        assert_eq!(kept(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_remembered_than_may_be() {
        let outbound = Outbound::new(Settings::passthrough(), worker());
        let Reach::Original(originals) = &outbound.reach else {
            panic!("it leads to where connections were going");
        };
        let held: Vec<_> = (1..=3).map(|port| originals.at(address(port))).collect();
        for port in 4..=1100 {
            drop(originals.at(address(port)));
        }
        assert_eq!(originals.locked().len(), MOST);
        for peers in held {
            let kept = originals.locked();
            assert!(kept.values().any(|place| Arc::ptr_eq(&place.peers, &peers)));
        }
    }
}
