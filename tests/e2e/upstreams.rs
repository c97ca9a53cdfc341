//! Where a peer is, is for DNS to say, and who it is, never: all its addresses are used, as they are now,
//! and none of them that fails costs a request.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::mesh::*;

/// One sidecar `b` with a listener, and an application of its own, at each of several addresses that share
/// a port; and a sidecar `a` that knows their name.
struct Several {
    a: Sidecar,
    _b: Sidecar,
    issuer: Issuer,
    apps: Vec<App>,
    dns: Dns,
    rules: String,
    dirs: Dirs,
}

/// A port that nobody uses at any of [`HERE`]: at an address beside them it is taken for as long as the
/// tests run.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.7:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::mem::forget(listener);
    port
}

/// Where `b` listens. Nobody takes a port there by chance.
const HERE: [&str; 3] = ["127.0.0.2", "127.0.0.3", "127.0.0.4"];

fn addresses(texts: &[&str]) -> Says {
    Says::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect())
}

impl Several {
    async fn start(port: u16, here: &[&str], says: Says, keys: &str) -> Self {
        Self::of(&id("b"), port, here, says, keys, 2).await
    }

    /// One worker of `a` that leads to one address.
    async fn single(port: u16, says: Says, keys: &str) -> Self {
        let several = Self::of(&id("b"), port, &HERE[..1], says, keys, 1).await;
        several.know(1.0).await;
        several
    }

    /// The same where others than `b` may answer.
    async fn of(
        peer: &str,
        port: u16,
        here: &[&str],
        says: Says,
        keys: &str,
        workers: usize,
    ) -> Self {
        let dirs = Dirs::new();
        let dns = Dns::start(says).await;
        let mut issuer = Issuer::new(&dirs);
        for workload in ["a", "b", "other"] {
            issuer.add(&dirs, workload, "1h", None);
        }
        let policy = PolicyDir::new(dirs.file("policy"));
        let rules = format!("policy: {{ dir: '{}' }}", policy.0.display());
        policy.write("policy.cedar", &grant("all-for-a", "a"));
        let mut apps = Vec::new();
        let mut plan = Plan::new("b").with(&rules);
        for ip in here {
            let app = App::start().await;
            let listen = SocketAddr::new(ip.parse().unwrap(), port);
            plan = plan.inbound_at(listen, app.address, "");
            apps.push(app);
        }
        let mut b = plan.start(&dirs, &issuer).await;
        let mut a = Plan::new("a")
            .outbound(format_args!("{NAME}:{port}"), peer, keys)
            .with(dns.section())
            .with(format!("workers: {workers}"))
            .start(&dirs, &issuer)
            .await;
        issuer.start().await;
        a.ready().await;
        b.ready().await;
        Self {
            a,
            _b: b,
            issuer,
            apps,
            dns,
            rules,
            dirs,
        }
    }

    /// A sidecar of somebody else, before the same application.
    async fn other(&self, listen: SocketAddr) -> Sidecar {
        let mut other = Plan::new("other")
            .inbound_at(listen, self.apps[0].address, "")
            .with(&self.rules)
            .start(&self.dirs, &self.issuer)
            .await;
        other.ready().await;
        other
    }

    async fn ask(&self) -> u16 {
        get(self.a.outbound[0], "/").await.status
    }

    fn seen(&self) -> Vec<usize> {
        self.apps.iter().map(|app| app.seen().len()).collect()
    }

    /// Waits until this many addresses are in force.
    async fn know(&self, count: f64) {
        let labels = [("name", NAME)];
        self.a
            .counts("doorward_dns_addresses", &labels, count)
            .await;
    }
}

#[tokio::test]
async fn all_addresses_of_a_name_are_used_as_they_are_now() {
    let port = free_port();
    let several = Several::start(port, &HERE, addresses(&HERE[..2]), "").await;
    several.know(2.0).await;
    eventually("both addresses are used", async || {
        assert_eq!(several.ask().await, 200);
        (several.seen()[0] > 3 && several.seen()[1] > 3).then_some(())
    })
    .await;

    // Another answer counts as soon as the first one has run out, a second after it came.
    several.dns.say(addresses(&HERE[2..]));
    several.know(1.0).await;
    // Each worker follows by itself, at once.
    eventually("only the new address is used", async || {
        let before = several.seen();
        for _ in 0..8 {
            assert_eq!(several.ask().await, 200);
        }
        let after = several.seen();
        (after[..2] == before[..2] && after[2] == before[2] + 8).then_some(())
    })
    .await;
}

#[tokio::test]
async fn ipv6_and_ipv4_addresses_are_used_alike() {
    let here = ["::1", HERE[0]];
    let several = Several::start(free_port(), &here, addresses(&here), "").await;
    eventually("both are used", async || {
        assert_eq!(several.ask().await, 200);
        several.seen().iter().all(|seen| *seen > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_last_answer_stays_while_dns_is_down_and_nobody_floods_it() {
    let several = Several::start(free_port(), &HERE[..1], addresses(&HERE[..1]), "").await;
    several.know(1.0).await;
    for says in [Says::NoSuchName, Says::Nothing] {
        let result = match says {
            Says::NoSuchName => "no_address",
            _ => "unanswered",
        };
        several.dns.say(says);
        eventually(result, async || {
            assert_eq!(several.ask().await, 200);
            let asked = [("name", NAME), ("result", result)];
            let metrics = several.a.metrics().await;
            (metrics.sum("doorward_dns_lookups_total", &asked) > 0.0).then_some(())
        })
        .await;
    }
    let log = several.a.process.log();
    assert!(log.contains("the last ones stay in force"), "{log}");

    several.dns.say(addresses(&HERE[..1]));
    eventually("it is asked again", async || {
        several.a.metrics().await;
        let asked = [("name", NAME), ("result", "ok")];
        let metrics = several.a.metrics().await;
        (metrics.sum("doorward_dns_lookups_total", &asked) > 1.0).then_some(())
    })
    .await;
    // Two questions at a time, IPv4 and IPv6, tried a few times each while nobody answers: however many
    // workers, requests and connections.
    let lookups = several
        .a
        .metrics()
        .await
        .sum("doorward_dns_lookups_total", &[]);
    let queries = several.dns.queries() as f64;
    assert!(
        queries <= lookups * 8.0,
        "{queries} queries in {lookups} lookups"
    );
}

#[tokio::test]
async fn a_name_without_an_address_is_told_at_once() {
    let several = Several::start(free_port(), &HERE[..1], Says::NoSuchName, "").await;
    assert_eq!(several.ask().await, 502);
    let is_it = |record: &Value| record["outcome"] == "upstream_unreachable";
    several.a.record("why", is_it).await;
    several.dns.say(addresses(&HERE[..1]));
    eventually("it is served once there is one", async || {
        (several.ask().await == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_address_where_nobody_or_nobody_we_expect_answers_costs_no_request() {
    let port = free_port();
    // One accepts and says nothing, one is not there, and one is somebody else.
    let silent = TcpListener::bind((HERE[1], port)).await.unwrap();
    let here = [HERE[0], HERE[1], "127.0.0.5", HERE[2]];
    let keys = "eject_after: 2, eject_for: 5m, connect_timeout: 1m";
    let mut several = Several::start(port, &HERE[..1], addresses(&here), keys).await;
    let there: IpAddr = HERE[2].parse().unwrap();
    let _impostor = several.other(SocketAddr::new(there, port)).await;
    several.know(4.0).await;

    for _ in 0..40 {
        // Longer than the pause before the next address is tried, far shorter than the limit.
        let answer = tokio::time::timeout(SOON, several.ask()).await;
        assert_eq!(answer.unwrap(), 200);
    }
    assert_eq!(several.seen(), [40]);
    let metrics = several.a.metrics().await;
    let refused = [("outcome", "peer_refused")];
    let failures = "doorward_upstream_connect_failures_total";
    assert!(metrics.sum(failures, &refused) > 0.0);
    assert!(metrics.sum("doorward_upstream_ejections_total", &[]) > 0.0);
    drop(silent);
    assert_eq!(several.a.terminate().await, Some(0));
}

#[tokio::test]
async fn a_request_that_may_be_sent_again_outlives_the_address_it_was_sent_to() {
    let port = free_port();
    let any = format!("spiffe://{DOMAIN}/*");
    let mut several = Several::of(&any, port, &HERE[..1], addresses(&HERE[..2]), "", 2).await;
    let there: IpAddr = HERE[1].parse().unwrap();
    let other = several.other(SocketAddr::new(there, port)).await;
    several.know(2.0).await;
    let entrance = several.a.outbound[0];
    let answered = async || {
        let passed = [("direction", "inbound"), ("outcome", "completed")];
        let metrics = other.metrics().await;
        metrics.sum("doorward_requests_total", &passed)
    };
    eventually("both addresses are used", async || {
        assert_eq!(several.ask().await, 200);
        (answered().await > 2.0).then_some(())
    })
    .await;

    let before = several.seen()[0];
    let mut asked = tokio::task::JoinSet::new();
    // No more of what may be sent again than one worker has retries to spare: it could have them all.
    let methods = [["GET"; 8].as_slice(), &["POST"; 24]].concat();
    let number = methods.len();
    for method in methods {
        asked.spawn(async move {
            let request = request(method, "/slow?ms=3000");
            (method, ask(entrance, request).await.status)
        });
    }
    eventually("the application has them all", async || {
        (several.seen()[0] == before + number).then_some(())
    })
    .await;
    other.process.signal(nix::sys::signal::Signal::SIGKILL);
    let mut lost = 0;
    while let Some(answer) = asked.join_next().await {
        match answer.unwrap() {
            (_, 200) => {}
            ("POST", 502) => lost += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(lost > 0, "nothing was under way there");
    let seen = several.apps[0].seen();
    let posts = seen.iter().filter(|seen| seen.method == "POST").count();
    assert_eq!(posts, 24, "what may do something twice is sent once");
    let metrics = several.a.metrics().await;
    let again = metrics.sum("doorward_upstream_retries_total", &[("why", "failed")]);
    assert!(
        again > 0.0 && again == (seen.len() - before - number) as f64,
        "{again}"
    );
    assert_eq!(several.a.terminate().await, Some(0));
}

#[tokio::test]
async fn an_address_that_asks_to_be_left_alone_is() {
    let here = &HERE[..2];
    let several = Several::start(free_port(), here, addresses(here), "").await;
    several.know(2.0).await;
    let busy = get(several.a.outbound[0], "/busy?s=30").await;
    assert_eq!((busy.status, busy.header("retry-after")), (503, "30"));
    several
        .a
        .counts("doorward_upstream_ejected", &[], 2.0)
        .await;
    // Each was asked once, the second in place of the first, and neither is at fault.
    assert_eq!(several.seen(), [1, 1]);
    let metrics = several.a.metrics().await;
    let why = [("why", "retry_after")];
    assert!((metrics.sum("doorward_upstream_retries_total", &why) - 1.0).abs() < 0.1);
    assert!(metrics.sum("doorward_upstream_ejections_total", &[]) < 0.1);
    // Where all want to be left alone, none is.
    assert_eq!(several.ask().await, 200);
}

#[tokio::test]
async fn what_is_late_is_tried_elsewhere_and_given_up_in_the_end() {
    let here = &HERE[..2];
    let keys = "try_timeout: 100ms, response_timeout: 10s";
    let several = Several::start(free_port(), here, addresses(here), keys).await;
    several.know(2.0).await;
    let answer = get(several.a.outbound[0], "/slow?ms=60000").await;
    assert_eq!(answer.status, 504);
    assert!(
        several.seen().iter().all(|seen| *seen > 0),
        "{:?}",
        several.seen()
    );
    let late = [("why", "late")];
    let metrics = several.a.metrics().await;
    assert!(metrics.sum("doorward_upstream_retries_total", &late) > 0.0);

    let keys = "response_timeout: 100ms, retry_budget: 0";
    let several = Several::start(free_port(), here, addresses(here), keys).await;
    several.know(2.0).await;
    let answer = get(several.a.outbound[0], "/slow?ms=60000").await;
    assert_eq!(answer.status, 504);
    assert_eq!(several.seen().iter().sum::<usize>(), 1);
    let is_it = |record: &Value| record["outcome"] == "upstream_timeout";
    several.a.record("why", is_it).await;
}

#[tokio::test]
async fn sessions_wait_for_a_connection_where_no_more_may_be_open() {
    let keys =
        "protocol: tcp, tunnel: off, max_peer_connections: 1, max_pending: 1, connect_timeout: 1m";
    let several = Several::single(free_port(), addresses(&HERE[..1]), keys).await;
    let entrance = several.a.outbound[0];
    let session = async |path: &str| {
        let mut stream = TcpStream::connect(entrance).await?;
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        std::io::Result::Ok(stream)
    };
    let ended = [("kind", "tcp"), ("outcome", "overloaded")];
    let open = [("kind", "tcp")];

    let first = session("/stream?n=100000&ms=10").await.unwrap();
    several
        .a
        .counts("doorward_upstream_connections", &[], 1.0)
        .await;
    eventually("it is served", async || {
        (several.seen() == [1]).then_some(())
    })
    .await;
    let mut second = session("/").await.unwrap();
    several.a.counts("doorward_open_sessions", &open, 2.0).await;
    // One more than may wait.
    let mut nothing = Vec::new();
    // It may be reset before it has spoken.
    if let Ok(mut third) = session("/").await {
        let _ = third.read_to_end(&mut nothing).await;
    }
    assert!(nothing.is_empty());
    several
        .a
        .counts("doorward_sessions_ended_total", &ended, 1.0)
        .await;

    assert_eq!(several.seen(), [1]);
    drop(first);
    let mut answer = String::new();
    second.read_to_string(&mut answer).await.unwrap();
    assert_eq!(status_of(&answer), 200);
    drop(second);
    several
        .a
        .counts("doorward_upstream_connections", &[], 0.0)
        .await;
}

#[tokio::test]
async fn requests_share_the_connections_that_may_be_open() {
    let keys = "max_peer_connections: 1";
    let several = Several::single(free_port(), addresses(&HERE[..1]), keys).await;
    let entrance = several.a.outbound[0];
    let mut asked = tokio::task::JoinSet::new();
    // More than the connection takes at a time.
    for _ in 0..240 {
        asked.spawn(async move { get(entrance, "/slow?ms=200").await.status });
    }
    while let Some(status) = asked.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    several
        .a
        .counts("doorward_upstream_connections", &[], 1.0)
        .await;
}

#[tokio::test]
async fn requests_beyond_those_that_may_wait_get_503() {
    let port = free_port();
    // It accepts and says nothing: the first request waits for it, and fills the queue.
    let _silent = TcpListener::bind((HERE[1], port)).await.unwrap();
    let keys = "max_pending: 1, connect_timeout: 1m";
    let several = Several::single(port, addresses(&HERE[1..2]), keys).await;
    let entrance = several.a.outbound[0];
    let waits = tokio::spawn(async move { get(entrance, "/").await.status });
    several
        .a
        .counts("doorward_upstream_connections", &[], 1.0)
        .await;
    assert_eq!(several.ask().await, 503);
    let is_it = |record: &Value| record["outcome"] == "overloaded";
    several.a.record("why", is_it).await;
    waits.abort();
}
