//! Does every request succeed while something changes? Several keep-alive connections ask without end,
//! and one failure is remembered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::client::Client;

/// Load that is under way.
#[derive(Debug)]
pub(super) struct Load {
    counts: Arc<Counts>,
    tasks: JoinSet<Tally>,
    stop: DropGuard,
}

/// What is known of it so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    requests: AtomicU64,
    failed: AtomicU64,
}

/// What it came to.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Requests that ended, well or not.
    pub(super) requests: u64,
    /// Those that did not end with 200 on the connection they were sent on.
    pub(super) failed: u64,
    /// How one of them failed.
    pub(super) failure: Option<String>,
    /// How long each of the others took.
    latencies: Vec<Duration>,
}

impl Load {
    /// Begins to ask for `path` over `connections` connections.
    pub(super) fn start(address: SocketAddr, path: &'static str, connections: usize) -> Self {
        let counts = Arc::new(Counts::default());
        let stop = CancellationToken::new();
        let tasks = (0..connections)
            .map(|_| ask(address, path, counts.clone(), stop.clone()))
            .collect();
        Self {
            counts,
            tasks,
            stop: stop.drop_guard(),
        }
    }

    /// How many requests there were until now, and how many failed.
    pub(super) fn so_far(&self) -> (u64, u64) {
        let counts = &self.counts;
        (
            counts.requests.load(Ordering::Relaxed),
            counts.failed.load(Ordering::Relaxed),
        )
    }

    /// Lets what is under way end, and adds everything up.
    pub(super) async fn finish(self) -> Tally {
        drop(self.stop);
        let mut total = Tally::default();
        for tally in self.tasks.join_all().await {
            total.add(tally);
        }
        total.latencies.sort_unstable();
        total
    }
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.failure = self.failure.take().or(other.failure);
        self.latencies.extend(other.latencies);
    }

    /// The latency that `percent` of the requests that succeeded stayed within; none without requests.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.latencies.len() * percent).div_ceil(100);
        self.latencies.get(rank.saturating_sub(1)).copied()
    }
}

/// One connection's work. A connection that breaks is one failure, and another one is opened.
async fn ask(
    address: SocketAddr,
    path: &'static str,
    counts: Arc<Counts>,
    stop: CancellationToken,
) -> Tally {
    let mut tally = Tally::default();
    let mut client = None;
    while !stop.is_cancelled() {
        let failure = match once(&mut client, address, path).await {
            Ok(took) => {
                tally.latencies.push(took);
                None
            }
            Err(failure) => Some(failure),
        };
        tally.requests += 1;
        counts.requests.fetch_add(1, Ordering::Relaxed);
        if let Some(failure) = failure {
            client = None;
            tally.failed += 1;
            counts.failed.fetch_add(1, Ordering::Relaxed);
            tally.failure.get_or_insert(failure);
        }
        sleep(PAUSE).await;
    }
    tally
}

async fn once(
    client: &mut Option<Client>,
    address: SocketAddr,
    path: &str,
) -> Result<Duration, String> {
    let connected = match client {
        Some(client) => client,
        None => {
            let fresh = Client::connect(address).await;
            client.insert(fresh.map_err(|error| format!("{error:#}"))?)
        }
    };
    match connected.get(path).await {
        Ok(answer) if answer.status == http::StatusCode::OK => Ok(answer.took),
        Ok(answer) => Err(format!("{}: {}", answer.status, answer.text().trim())),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Between two requests of a connection: load, not a benchmark, so that a laptop stays usable.
const PAUSE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_latencies_that_were_measured() {
        let of = |count: u64| Tally {
            latencies: (1..=count).map(Duration::from_millis).collect(),
            ..Tally::default()
        };
        for (count, percent, expected) in [
            (0, 50, None),
            (1, 50, Some(1)),
            (1, 99, Some(1)),
            (4, 50, Some(2)),
            (100, 99, Some(99)),
            (1000, 99, Some(990)),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(
                of(count).percentile(percent),
                expected,
                "p{percent} of {count}"
            );
        }
    }

    #[tokio::test]
    async fn a_connection_that_breaks_is_a_failure_that_is_told() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let load = Load::start(listener.local_addr().unwrap(), "/", 2);
        while load.so_far().1 < 4 {
            drop(listener.accept().await.unwrap());
        }
        drop(listener);
        let tally = load.finish().await;
        assert_eq!(tally.requests, tally.failed);
        assert!(tally.failure.unwrap().starts_with("no answer to GET /"));
        assert_eq!(tally.latencies.len(), 0);
    }
}
