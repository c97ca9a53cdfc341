//! Do requests come one by one, so that a connection of its own for each is cheaper than one that all share?
//!
//! One request at a time takes a third fewer instructions on HTTP/1.1 than on HTTP/2, whose work for each
//! stream helps nobody then. Several at once share system calls, TLS records and wake-ups on HTTP/2, and
//! cost half as much as on HTTP/1.1. So a request that finds nothing else under way takes an HTTP/1.1
//! connection, if one is kept beside the HTTP/2 one; here is decided when to open it.

/// How requests to one place have come lately.
#[derive(Debug, Default)]
pub(super) struct Calm {
    /// Requests one after the other that would have taken an HTTP/1.1 connection.
    missed: u32,
    opening: bool,
    /// The other side does not speak HTTP/1.1.
    never: bool,
}

impl Calm {
    /// A request found nothing else under way, and no HTTP/1.1 connection. Whether one is to be opened now,
    /// for the next ones; then [`Calm::opened`] is to follow.
    pub(super) fn miss(&mut self) -> bool {
        self.missed = self.missed.saturating_add(1);
        if self.missed < PAYS || self.opening || self.never {
            return false;
        }
        self.missed = 0;
        self.opening = true;
        true
    }

    /// A request found others under way.
    pub(super) fn disturb(&mut self) {
        self.missed = 0;
    }

    /// Opening has ended, well or not; `never` if it need not be tried again.
    pub(super) fn opened(&mut self, never: bool) {
        self.opening = false;
        self.never = never;
    }
}

/// So many requests save what a handshake costs, even if the connection is lost soon after.
const PAYS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn opens(calm: &mut Calm, requests: u32) -> usize {
        (0..requests).filter(|_| calm.miss()).count()
    }

    #[test]
    fn a_connection_is_opened_once_enough_requests_in_a_row_have_missed_it() {
        let mut calm = Calm::default();
        assert_eq!(opens(&mut calm, PAYS - 1), 0);
        calm.disturb();
        assert_eq!(opens(&mut calm, PAYS - 1), 0);
        assert!(calm.miss());
        // Not twice at a time.
        assert_eq!(opens(&mut calm, PAYS * 9), 0);
        calm.opened(false);
        // However it ended, the next one comes after as many requests at the earliest.
        assert!(calm.miss());
        calm.opened(false);
        assert_eq!(opens(&mut calm, PAYS - 1), 0);
    }

    #[test]
    fn whoever_does_not_speak_it_is_not_asked_again() {
        let mut calm = Calm::default();
        assert_eq!(opens(&mut calm, PAYS), 1);
        calm.opened(true);
        assert_eq!(opens(&mut calm, PAYS * 9), 0);
    }
}
