//! What may one address have of what all callers share? A part, so that one of them that sends slowly, or nothing,
//! keeps no API server waiting.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;

/// Whoever has connections here.
#[derive(Debug, Default)]
pub(super) struct Callers(Mutex<HashMap<IpAddr, Weak<Caller>>>);

/// All that one address has.
#[derive(Debug)]
pub(super) struct Caller {
    /// Places for connections.
    pub(super) connections: Semaphore,
    /// Places for reviews that arrive.
    pub(super) reviews: Semaphore,
}

/// Connections at once of one address. An API server keeps one or a few.
pub(super) const CONNECTIONS: usize = 64;

/// Reviews of one address that are held at once. One that arrives at the pace of a network is gone at once.
pub(super) const REVIEWS: usize = 4;

impl Callers {
    /// Whoever calls from `address`.
    pub(super) fn at(&self, address: IpAddr) -> Arc<Caller> {
        let mut callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(caller) = callers.get(&address).and_then(Weak::upgrade) {
            return caller;
        }
        // As few as there are connections, with this one.
        callers.retain(|_, caller| caller.strong_count() > 0);
        let caller = Arc::new(Caller {
            connections: Semaphore::new(CONNECTIONS),
            reviews: Semaphore::new(REVIEWS),
        });
        callers.insert(address, Arc::downgrade(&caller));
        caller
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_known_while_it_has_something() {
        let callers = Callers::default();
        let [first, second] = ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().unwrap());
        let (one, other) = (callers.at(first), callers.at(second));
        assert!(Arc::ptr_eq(&one, &callers.at(first)) && !Arc::ptr_eq(&one, &other));
        drop(one);
        let _third = callers.at("192.0.2.3".parse().unwrap());
        assert_eq!(callers.0.lock().unwrap().len(), 2);
    }
}
