//! How often may requests be sent once more? Within a budget: when everything fails, asking everything twice
//! is what keeps it down.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;
use jiff::Timestamp;
use jiff::fmt::rfc2822;

use crate::document::Section;
use crate::listen;

/// When requests are given up, and how many may be sent once more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Retries at most, in percent of requests, beside [`AT_LEAST`] a second.
    pub budget: u32,
    /// From a request to the head of its response, whatever is tried.
    pub response_timeout: Option<Duration>,
    /// The same for each try.
    pub try_timeout: Option<Duration>,
}

impl Settings {
    /// Reads the keys of an outbound listener that are about this.
    pub fn read(section: &mut Section<'_>) -> Option<Self> {
        let longest = listen::MINUTE * 60;
        let budget = section.or("retry_budget", BUDGET, |node| {
            u32::try_from(node.count(0..=100)?).ok()
        });
        let limit = Duration::from_millis(1)..=longest;
        let response_timeout =
            section.optional("response_timeout", |node| node.duration(limit.clone()));
        let try_timeout = section.optional("try_timeout", |node| node.duration(limit.clone()));
        Some(Self {
            budget: budget?,
            response_timeout: response_timeout?,
            try_timeout: try_timeout?,
        })
    }
}

/// Percent of requests that may be retried, unless the settings say otherwise.
const BUDGET: u32 = 20;
/// Retries a second that are allowed however few requests there are, unless none are.
pub const AT_LEAST: u32 = 3;

/// What may still be retried. Times are since the worker began.
#[derive(Debug)]
pub struct Budget {
    percent: u32,
    left: Mutex<Left>,
}

#[derive(Debug)]
struct Left {
    /// In hundredths of a retry.
    hundredths: u64,
    /// The second up to which [`AT_LEAST`] has been added.
    second: u64,
}

impl Budget {
    /// A budget of `percent` of the requests, full.
    #[must_use]
    pub fn new(percent: u32) -> Self {
        Self {
            percent,
            left: Mutex::new(Left {
                hundredths: MOST,
                second: 0,
            }),
        }
    }

    /// Whether anything is ever retried.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.percent > 0
    }

    /// A request that could be retried.
    pub fn earn(&self) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.hundredths = MOST.min(left.hundredths + u64::from(self.percent));
    }

    /// Takes one retry, if there is one left at `now`.
    pub fn spend(&self, now: Duration) -> bool {
        if !self.is_any() {
            return false;
        }
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.as_secs().saturating_sub(left.second);
        let added = passed.saturating_mul(u64::from(AT_LEAST) * 100);
        left.hundredths = MOST.min(left.hundredths.saturating_add(added));
        left.second += passed;
        match left.hundredths.checked_sub(100) {
            Some(rest) => {
                left.hundredths = rest;
                true
            }
            None => false,
        }
    }
}

/// What can be saved up, in hundredths: a burst of failures is answered with ten retries, not with all that
/// an hour of calm has earned.
const MOST: u64 = 1000;

/// When an answer asks to be left alone, for how long (RFC 9110 §10.2.3): seconds, or a date.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at: Timestamp = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    SystemTime::from(at).duration_since(now).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_of_the_requests_and_a_few_a_second() {
        let budget = Budget::new(20);
        let spent = |seconds| {
            let now = Duration::from_secs(seconds);
            (0..1000).take_while(|_| budget.spend(now)).count()
        };
        assert_eq!(spent(0), 10);
        assert_eq!(spent(0), 0);
        for _ in 0..24 {
            budget.earn();
        }
        assert_eq!(spent(0), 4);
        assert_eq!(spent(1), 3);
        assert_eq!(spent(1), 0);
        // What was not used is not saved up for ever.
        (0..10_000).for_each(|_| budget.earn());
        assert_eq!(spent(1), 10);
        assert_eq!(spent(3600), 10);

        let none = Budget::new(0);
        none.earn();
        assert!(!none.spend(Duration::from_secs(9)));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", None),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            let told = retry_after(&headers, now).map(|time| time.as_secs());
            assert_eq!(told, seconds, "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
