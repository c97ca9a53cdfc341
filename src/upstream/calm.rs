//! Do requests come so singly that connections of their own are cheaper for them than one that all share?
//!
//! A request takes fewer instructions on HTTP/1.1 than on HTTP/2, where those that come together share system calls,
//! TLS records and wake-ups. Where a request finds no other under way, HTTP/1.1 costs 0.9 of HTTP/2; where it finds
//! one on average, 1.1, and those that come together wait longer. It is the average that decides, and not each request
//! for itself: those that are together would share less, and cost more than all on HTTP/2.
//!
//! A long response gains more than it could share: one of 1 MiB costs a fifth less on HTTP/1.1 with seven others under
//! way.

/// How requests to one place have come lately.
#[derive(Debug)]
pub(super) struct Calm {
    /// How many others a request has found under way, on average of the last ones.
    found: f32,
    /// How long responses have been, on average, in [`LONG`].
    long: f32,
    /// Bytes of all responses, when the last request came.
    passed: u64,
    calm: bool,
    /// Requests that had no connection of their own, since the last one was opened.
    missed: f32,
    /// So many of them have one opened.
    patience: f32,
    opening: bool,
    never: bool,
}

impl Default for Calm {
    fn default() -> Self {
        Self {
            found: MANY.into(),
            long: 0.0,
            passed: 0,
            calm: false,
            missed: 0.0,
            patience: PAYS,
            opening: false,
            never: false,
        }
    }
}

/// How an attempt to open a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// There it is.
    Connected,
    /// It may be tried again later.
    Failed,
    /// The other side does not speak HTTP/1.1.
    Never,
}

impl Calm {
    /// A request comes and finds `others` under way. So many bytes of responses have `passed` until now.
    pub(super) fn arrives(&mut self, others: usize, passed: u64) {
        let others = u8::try_from(others).map_or(MANY, |others| others.min(MANY));
        self.found += (f32::from(others) - self.found) * NEWEST;
        let long = passed.saturating_sub(self.passed) / LONG;
        let long = u8::try_from(long).map_or(LONGEST, |long| long.min(LONGEST));
        self.long += (f32::from(long) - self.long) * NEWEST;
        self.passed = passed;
        let bound = if self.calm { LEAVES } else { ENTERS };
        self.calm = self.found < bound + self.long;
    }

    /// Whether requests may take connections of their own now.
    pub(super) fn is_calm(&self) -> bool {
        self.calm && !self.never
    }

    /// It is calm, and none was free for a request that finds `others` under way. Whether one more is to be
    /// opened, for those to come; then [`Calm::opened`] is to follow.
    pub(super) fn misses(&mut self, others: usize) -> bool {
        // All there are may be in use by these.
        if others >= MOST || self.opening {
            return false;
        }
        self.missed += 1.0 + self.long;
        self.opening = self.missed >= self.patience;
        self.opening
    }

    /// Opening has ended.
    pub(super) fn opened(&mut self, how: Opened) {
        self.missed = 0.0;
        self.opening = false;
        match how {
            Opened::Connected => self.patience = PAYS,
            Opened::Failed => self.patience = (self.patience * 2.0).min(PAYS * 1024.0),
            Opened::Never => self.never = true,
        }
    }
}

/// The share of the newest request in the average: 89 that find no other under way halve it.
const NEWEST: f32 = 1.0 / 128.0;
/// More under way than so many count as so many: those that came together because we had to wait for a CPU are
/// not to weigh for long.
const MANY: u8 = 4;
/// It becomes calm below so many under way on average, …
const ENTERS: f32 = 0.25;
/// … and ends to be at so many.
const LEAVES: f32 = 0.5;

/// So many bytes of a response make up for one other under way.
const LONG: u64 = 64 * 1024;
/// Longer ones than so many times that count as so many.
const LONGEST: u8 = 16;

/// So many requests save what a handshake costs, if the connection is lost soon after.
const PAYS: f32 = 64.0;
/// Connections that are opened for requests of their own.
const MOST: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `requests` find it calm, each of which finds as many others as the next of `others`, in turns.
    fn calm_ones(calm: &mut Calm, requests: usize, others: &[usize]) -> usize {
        let others = others.iter().cycle().take(requests);
        let is_calm = others.map(|others| {
            calm.arrives(*others, calm.passed);
            calm.is_calm()
        });
        is_calm.filter(|is_calm| *is_calm).count()
    }

    fn found_calm() -> Calm {
        let mut calm = Calm::default();
        calm_ones(&mut calm, 1000, &[0]);
        assert!(calm.is_calm());
        calm
    }

    #[test]
    fn requests_that_meet_few_others_make_it_calm_and_those_that_meet_many_end_that() {
        for (name, others, before, after) in [
            ("one by one", &[0][..], true, true),
            ("now and then two", &[0, 0, 0, 0, 1, 0, 0, 0], true, true),
            // Between the bounds it stays as it was.
            ("neither few nor many", &[0, 0, 1], false, true),
            ("two by turns", &[0, 1], false, false),
            ("always two", &[1], false, false),
            ("eight at once", &[3, 4, 5, 6, 7], false, false),
            ("very many", &[usize::MAX], false, false),
        ] {
            for (begun, expected) in [(Calm::default(), before), (found_calm(), after)] {
                let mut calm = begun;
                calm_ones(&mut calm, 2000, others);
                assert_eq!(calm.is_calm(), expected, "{name}: {calm:?}");
                // By then it has come to rest, too.
                let calm_ones = calm_ones(&mut calm, 2000, others);
                assert_eq!(calm_ones, 2000 * usize::from(expected), "{name}");
            }
        }
    }

    #[test]
    fn it_takes_some_requests_to_find_it_calm_and_one_burst_does_not_end_it() {
        let mut calm = Calm::default();
        assert_eq!(calm_ones(&mut calm, 340, &[0]), 0);
        assert!(calm_ones(&mut calm, 40, &[0]) > 0);
        let mut calm = found_calm();
        let burst: Vec<_> = (0..16).collect();
        assert_eq!(calm_ones(&mut calm, 16, &burst), 16);
        assert!(calm_ones(&mut calm, 16, &burst) < 16);
    }

    #[test]
    fn long_responses_make_up_for_others_under_way() {
        for (others, long, expected) in [
            (1, 0, false),
            (1, 1, true),
            (2, 1, false),
            (2, 2, true),
            (63, 3, false),
            (63, 4, true),
            (63, 1 << 20, true),
        ] {
            let mut calm = Calm::default();
            for request in 1..=2000 {
                calm.arrives(others, request * long * LONG);
            }
            assert_eq!(calm.is_calm(), expected, "{others} {long} {calm:?}");
            calm_ones(&mut calm, 2000, &[63]);
            assert!(!calm.is_calm(), "{others} {long} {calm:?}");
        }
    }

    /// How many of so many requests, each of which misses a connection, have one opened.
    fn opened(calm: &mut Calm, requests: u32, others: usize) -> usize {
        (0..requests).filter(|_| calm.misses(others)).count()
    }

    /// [`PAYS`], to count with.
    const MANY_MISSED: u32 = 64;

    #[test]
    fn one_connection_is_opened_at_a_time_each_for_as_many_requests_as_pay_for_it() {
        let mut calm = found_calm();
        assert_eq!(opened(&mut calm, MANY_MISSED - 1, 0), 0);
        assert!(calm.misses(0));
        assert_eq!(opened(&mut calm, MANY_MISSED * 9, 0), 0);
        calm.opened(Opened::Connected);
        assert_eq!(opened(&mut calm, MANY_MISSED - 1, 0), 0);
        assert!(calm.misses(MOST - 1));
        calm.opened(Opened::Connected);
        // There may be as many already.
        assert_eq!(opened(&mut calm, MANY_MISSED * 9, MOST), 0);
    }

    #[test]
    fn what_fails_is_tried_again_ever_later_until_it_comes_about() {
        let mut calm = found_calm();
        assert_eq!(opened(&mut calm, MANY_MISSED, 0), 1);
        for times in (1..=10).chain([10]).map(|failures| 1 << failures) {
            calm.opened(Opened::Failed);
            assert_eq!(opened(&mut calm, MANY_MISSED * times - 1, 0), 0);
            assert!(calm.misses(0));
        }
        calm.opened(Opened::Connected);
        assert_eq!(opened(&mut calm, MANY_MISSED, 0), 1);
    }

    #[test]
    fn whoever_does_not_speak_it_is_not_asked_again() {
        let mut calm = found_calm();
        assert_eq!(opened(&mut calm, MANY_MISSED, 0), 1);
        calm.opened(Opened::Never);
        assert!(!calm.is_calm());
        assert_eq!(calm_ones(&mut calm, 1000, &[0]), 0);
    }
}
