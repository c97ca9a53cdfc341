//! Which exchanges are under way on this connection, and what were they granted?
//!
//! An exchange enters when it has been decided and leaves when nothing of it is left: two uncontended
//! locks and no allocation for each request. Its bodies look at a flag, and only when they would wait
//! leave word where to be woken; see [`Exchange::revoke`].

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

use http::Method;
use slab::Slab;
use tokio::sync::Notify;

use crate::exchange::Exchange;
use crate::outcome::Outcome;
use crate::policy::{Act, Gate, Policy};

/// What a request asked for, kept so that it can be asked again.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The method.
    pub method: Method,
    /// The host it names, in lower case and without port.
    pub host: String,
    /// The path that policy decides on.
    pub path: String,
}

impl Asked {
    /// The same for policy.
    #[must_use]
    pub fn act(&self) -> Act<'_> {
        Act::Http {
            method: &self.method,
            host: &self.host,
            path: &self.path,
        }
    }
}

/// The exchanges under way on one connection.
#[derive(Debug, Default)]
pub struct Running {
    open: Mutex<Open>,
    /// Why none may enter any more. Set under the lock, read without it.
    closed: OnceLock<Outcome>,
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Open {
    entries: Slab<Entry>,
    /// The generation of the policy that all of them were held against last.
    generation: u64,
    /// Somebody knows when they are to be asked again.
    watched: bool,
}

#[derive(Debug)]
struct Entry {
    exchange: Weak<Exchange>,
    /// None: policy has no say, or has had its last.
    asked: Option<Asked>,
}

impl Running {
    /// Puts `exchange` among them. If it was `asked` and granted by the policy of `generation`, it will be
    /// asked again when that may say otherwise.
    ///
    /// # Errors
    /// Why the connection takes no exchange any more.
    pub fn enter(
        self: &Arc<Self>,
        exchange: &Arc<Exchange>,
        asked: Option<Asked>,
        generation: u64,
    ) -> Result<Place, Outcome> {
        let mut open = self.locked();
        if let Some(why) = self.closed.get() {
            return Err(*why);
        }
        // Decided before the last change, or after a time without any: nobody would ask it again.
        if asked.is_some() && !(open.watched && generation >= open.generation) {
            self.wanted.notify_one();
        }
        let exchange = Arc::downgrade(exchange);
        if open.entries.capacity() == 0 {
            // Otherwise it is for four, and many a connection never has more than one.
            open.entries.reserve_exact(1);
        }
        let key = open.entries.insert(Entry { exchange, asked });
        Ok(Place {
            running: self.clone(),
            key,
        })
    }

    /// Whether none may enter any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.get().is_some()
    }

    /// Ends all of them, and lets none in after.
    pub fn close(&self, why: Outcome) {
        let mut ended = Vec::new();
        {
            let open = self.locked();
            self.closed.get_or_init(|| why);
            let exchanges = open.entries.iter();
            ended.extend(exchanges.filter_map(|(_, entry)| entry.exchange.upgrade()));
        }
        // An exchange that ends leaves, so the lock must be free.
        for exchange in ended {
            exchange.revoke(why);
        }
    }

    /// Ends those that policy grants no longer at `now`. Says when to ask again at the latest.
    pub(super) fn reconsider(
        &self,
        policy: &Policy,
        gate: &Gate,
        now: SystemTime,
    ) -> Option<SystemTime> {
        // Taken first: what changes meanwhile wakes us again.
        let engine = policy.engine().peek();
        let generation = engine.as_ref().map_or(0, |engine| engine.generation);
        let mut refused = Vec::new();
        let watched = {
            let mut open = self.locked();
            for (_, entry) in &mut open.entries {
                let asked = entry.asked.as_ref();
                if asked.is_some_and(|asked| gate.reconsider(&asked.act(), now).is_err()) {
                    entry.asked = None;
                    refused.extend(entry.exchange.upgrade());
                }
            }
            open.generation = generation;
            open.watched = !open.entries.is_empty();
            open.watched
        };
        for exchange in refused {
            exchange.revoke(Outcome::PermitWithdrawn);
        }
        // A connection on which nothing runs needs no timer, and no view of the policy.
        watched.then(|| gate.reconsider_at(now)).flatten()
    }

    /// Completes when an exchange has entered whose end nobody watches yet.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    fn locked(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An exchange's place among those under way, left when this is dropped.
pub struct Place {
    running: Arc<Running>,
    key: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.running.locked().entries.try_remove(self.key);
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Place").field(&self.key).finish()
    }
}
