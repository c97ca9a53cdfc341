//! Where does an intercepted connection of an application go? In a network of our own, whose packet filter
//! leads connections to the sidecar, as in a pod.
//!
//! ```text
//!  ours                                     theirs
//!  test, a ── data0 ═════════════════ data1 ── b (10.9.0.2, fd09::2), c (10.9.0.3), applications
//! ```
//!
//! The application is the test, with sockets of a user of its own; the sidecar's user is left alone.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod e2e {
    pub(crate) mod alone;
    pub(crate) mod mesh;
}

use std::fs::File;
use std::future::Future;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::unistd::{Uid, setfsuid};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::e2e::alone::{Network, Test, Verdict, make, may_act_as, run};
use crate::e2e::mesh::{
    App, Client, Dirs, Dns, Http, Issuer, Plan, PolicyDir, Says, Sidecar, eventually, grant, id,
    request,
};

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        const TESTS: &[(&str, Test)] = &[$((stringify!($name), || Box::pin(alone($name())))),*];
    };
}

tests![
    an_address_and_a_port_are_enough_for_a_server_that_speaks_first,
    a_network_leads_to_whoever_is_there_and_connections_are_shared,
    each_request_on_a_kept_connection_goes_where_its_host_says,
    a_name_at_another_address_reaches_nobody_but_its_peer,
    tls_goes_where_its_server_name_says_and_stays_as_it_is,
    what_says_no_name_goes_where_the_addresses_of_names_lead,
    what_no_entry_leads_on_is_refused,
    what_passes_through_does_so_in_plain_and_is_told,
    sessions_to_an_original_destination_share_a_connection,
];

fn main() -> ExitCode {
    make(TESTS)
}

async fn alone(test: impl Future<Output = ()>) -> Verdict {
    if let Err(why) = may_act_as(APPLICATION).and_then(|()| run("nft list tables")) {
        return Verdict::Skipped(why);
    }
    test.await;
    Verdict::Passed
}

/// A socket that listens in a network.
fn listen(network: &Network, address: &str) -> TcpListener {
    let (network, address) = (File::open(network.file()).unwrap(), address.to_owned());
    let listening = std::thread::spawn(move || {
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        std::net::TcpListener::bind(address).unwrap()
    });
    let listener = listening.join().unwrap();
    listener.set_nonblocking(true).unwrap();
    TcpListener::from_std(listener).unwrap()
}

/// The sidecar of our application, two others' in another network, and applications there.
struct World {
    a: Sidecar,
    _b: Sidecar,
    _c: Sidecar,
    /// Behind `b` and behind `c`.
    apps: [App; 2],
    /// Without a sidecar.
    plain: App,
    dns: Dns,
    _there: Network,
    _issuer: Issuer,
    _dirs: Dirs,
}

impl World {
    async fn new(otherwise: &str) -> Self {
        Self::that_knows(Says::Addresses(vec![B]), otherwise).await
    }

    async fn that_knows(names: Says, otherwise: &str) -> Self {
        // The kernel takes a network down in its own time, and its links go with it.
        eventually("the links of the test before have gone", async || {
            run("ip link show data0").is_err().then_some(())
        })
        .await;
        let there = Network::new();
        let holder = there.holder();
        run(&format!(
            "ip link add data0 type veth peer name data1 netns {holder}"
        ))
        .unwrap();
        for address in ["10.9.0.1/24", "fd09::1/64"] {
            run(&format!("ip address add {address} dev data0 nodad")).unwrap();
        }
        run("ip link set data0 up").unwrap();
        for address in ["10.9.0.2/24", "10.9.0.3/24", "10.9.0.9/24", "fd09::2/64"] {
            let add = format!("ip address add {address} dev data1 nodad");
            there.run(&add).unwrap();
        }
        there.run("ip link set data1 up").unwrap();

        let apps = [0; 2].map(|_| App::on(listen(&there, "127.0.0.1:0")));
        let plain = App::on(listen(&there, "10.9.0.9:8080"));
        speak_first(listen(&there, "10.9.0.9:9000"));
        let speaks = listen(&there, "127.0.0.1:0");
        let speaker = speaks.local_addr().unwrap();
        speak_first(speaks);
        let echoes = listen(&there, "127.0.0.1:0");
        let echo = echoes.local_addr().unwrap();
        echo_all(echoes);

        let dirs = Dirs::new();
        let mut issuer = Issuer::new(&dirs);
        for workload in ["a", "b", "c"] {
            issuer.add(&dirs, workload, "1h", None);
        }
        issuer.start().await;
        let policy = PolicyDir::new(dirs.file("policy"));
        policy.write("policy.cedar", &grant("all-for-a", "a"));
        let peer = |name: &str, at: &str| {
            Plan::new(name)
                .network(there.file())
                .with("workers: 1")
                .with(format!("metrics: {{ listen: '{at}:0' }}"))
                .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
        };
        let mut b = peer("b", "10.9.0.2")
            .inbound_at("10.9.0.2:8080", apps[0].address, "")
            .inbound_at("10.9.0.2:8081", apps[0].address, "")
            .inbound_at("10.9.0.2:443", echo, "protocol: tcp");
        for port in [7000, 5433, 5434] {
            for host in ["10.9.0.2", "[fd09::2]"] {
                b = b.inbound_at(format_args!("{host}:{port}"), speaker, "protocol: tcp");
            }
        }
        let mut b = b.start(&dirs, &issuer).await;
        let mut c = peer("c", "10.9.0.3")
            .inbound_at("10.9.0.3:8080", apps[1].address, "")
            .start(&dirs, &issuer)
            .await;
        let dns = Dns::start(names).await;
        let (as_b, as_c) = (id("b"), id("c"));
        let mut a = Plan::new("a")
            .with("workers: 1")
            .with(dns.section())
            .with(format!(
                "intercept: {{ user: 0, outbound: {{ port: 15001, otherwise: {otherwise} }} }}"
            ))
            .leads(format!(
                "{{ intercept: ['10.9.0.2:7000', '[fd09::2]:7000'], peer: '{as_b}', protocol: tcp, \
                 tunnel: always }}"
            ))
            .leads(format!("{{ intercept: '10.9.0.0/29:8081', peer: '{as_b}' }}"))
            .leads(format!(
                "{{ intercept: ['ledger.test:8080', 'ledger.test:443'], peer: '{as_b}' }}"
            ))
            .leads(format!(
                "{{ intercept: '*.rates.test:8080', to: '10.9.0.3:8080', peer: '{as_c}' }}"
            ))
            .leads(format!("{{ intercept: 'liar.test:8080', peer: '{as_c}' }}"))
            .leads(format!(
                "{{ intercept: 'peers.test:5433', peer: '{as_b}', protocol: tcp, detect_timeout: 1m }}"
            ))
            .leads(format!(
                "{{ intercept: 'peers.test:5434', peer: '{as_b}', detect_timeout: 100ms }}"
            ))
            .start(&dirs, &issuer)
            .await;
        for sidecar in [&mut a, &mut b, &mut c] {
            sidecar.ready().await;
        }
        let applied = Command::new(env!("CARGO_BIN_EXE_doorward"))
            .args(["intercept", "apply", "--config"])
            .arg(dirs.file("a.yaml"))
            .output()
            .unwrap();
        assert!(applied.status.success(), "{applied:?}");
        Self {
            a,
            _b: b,
            _c: c,
            apps,
            plain,
            dns,
            _there: there,
            _issuer: issuer,
            _dirs: dirs,
        }
    }

    /// The record of what was going to `destination` and ended so.
    async fn record(&self, destination: &str, outcome: &str) -> Value {
        let what = format!("{outcome} at {destination}");
        let is_it =
            |record: &Value| record["destination"] == destination && record["outcome"] == outcome;
        self.a.record(&what, is_it).await
    }
}

const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 9, 0, 2));

/// A server that speaks first, as a mail server does.
fn speak_first(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // Whoever breaks off is not its concern.
                let _ = stream.write_all(GREETING).await;
                let _ = stream.read(&mut [0]).await;
            });
        }
    });
}

const GREETING: &[u8] = b"220 ready\r\n";

fn echo_all(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                // Whoever breaks off is not its concern.
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
}

/// A connection of our application, which is another user's.
async fn connect(address: &str) -> TcpStream {
    let address: SocketAddr = address.parse().unwrap();
    // A socket belongs to whoever opens it.
    setfsuid(Uid::from_raw(APPLICATION));
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    setfsuid(Uid::from_raw(0));
    let connected = timeout(BOUND, socket.unwrap().connect(address)).await;
    connected.unwrap().unwrap()
}

const APPLICATION: u32 = 2999;
/// Nothing here takes so long.
const BOUND: Duration = Duration::from_secs(20);

async fn greeting(address: &str) -> TcpStream {
    let mut stream = connect(address).await;
    let mut read = [0; GREETING.len()];
    let greeted = timeout(BOUND, stream.read_exact(&mut read)).await;
    greeted.unwrap().unwrap();
    assert_eq!(read, GREETING);
    stream
}

async fn is_reset(mut stream: TcpStream) {
    let ended = timeout(BOUND, stream.read(&mut [0; 64])).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// Status and word for what went wrong, for a request that says `host`.
async fn ask(client: &mut Client, host: &str) -> (u16, String) {
    let mut request = request("GET", "/x");
    match client {
        Client::One(_) => {
            let host = host.parse().unwrap();
            request.headers_mut().insert("host", host);
        }
        Client::Two(_) => {
            request.headers_mut().remove("host");
            *request.uri_mut() = format!("http://{host}/x").parse().unwrap();
        }
    }
    let answer = timeout(BOUND, client.ask(request)).await.unwrap().unwrap();
    let word = answer.json()["error"].as_str().unwrap_or("none").to_owned();
    (answer.status, word)
}

async fn an_address_and_a_port_are_enough_for_a_server_that_speaks_first() {
    let world = World::new("deny").await;
    for address in ["10.9.0.2:7000", "[fd09::2]:7000"] {
        drop(greeting(address).await);
        let record = world.record(address, "completed").await;
        assert_eq!(record["service"], "10.9.0.2:7000, [fd09::2]:7000");
        assert_eq!(record["peer"]["id"], id("b"));
    }
    // Whoever is of the sidecar's own user is left alone, and meets mutual TLS.
    let mut direct = TcpStream::connect("10.9.0.2:7000").await.unwrap();
    direct.write_all(b"hello").await.unwrap();
    let read = timeout(BOUND, direct.read(&mut [0; 64])).await.unwrap();
    assert!(!matches!(read, Ok(n) if n == GREETING.len()), "{read:?}");
}

async fn a_network_leads_to_whoever_is_there_and_connections_are_shared() {
    let world = World::new("deny").await;
    for _ in 0..3 {
        let mut client = Client::on(connect("10.9.0.2:8081").await, Http::One).await;
        assert_eq!(ask(&mut client, "any.test").await, (200, "none".into()));
    }
    assert_eq!(world.apps[0].seen().len(), 3);
    let service = [("service", "10.9.0.0/29:8081")];
    let metrics = world.a.metrics().await;
    let open = metrics.sum("doorward_upstream_connections", &service);
    assert!((open - 1.0).abs() < f64::EPSILON, "{open} connections");
    // Nobody is at that address, and the next one is tried for it nowhere.
    let mut client = Client::on(connect("10.9.0.4:8081").await, Http::One).await;
    let (status, _) = ask(&mut client, "any.test").await;
    assert!(status == 502 || status == 504, "{status}");
}

async fn each_request_on_a_kept_connection_goes_where_its_host_says() {
    let world = World::new("deny").await;
    for http in [Http::One, Http::Two] {
        let before = world.apps.each_ref().map(|app| app.seen().len());
        let mut client = Client::on(connect("10.9.0.2:8080").await, http).await;
        for (host, status, word) in [
            ("ledger.test", 200, "none"),
            ("eu.rates.test:8080", 200, "none"),
            ("LEDGER.test.", 200, "none"),
            ("rates.test", 403, "no_route"),
            ("ledger.test:8080", 200, "none"),
            // Of `ledger.test`, which is at the address that was asked for.
            ("10.9.0.2", 200, "none"),
        ] {
            assert_eq!(
                ask(&mut client, host).await,
                (status, word.into()),
                "{host}"
            );
        }
        let seen = world.apps.each_ref().map(|app| app.seen().len());
        assert_eq!(seen, [before[0] + 4, before[1] + 1]);
    }
    let record = world.record("10.9.0.2:8080", "no_route").await;
    assert_eq!(record["service"], "intercept.outbound");
    assert_eq!(record["context"]["host"], "rates.test");
    assert_eq!(record["reason"], "no_route");
    for (service, outcome, requests) in [
        ("ledger.test:8080, ledger.test:443", "completed", 8.0),
        ("10.9.0.3:8080", "completed", 2.0),
        ("intercept.outbound", "no_route", 2.0),
    ] {
        let labels = [("service", service), ("outcome", outcome)];
        world
            .a
            .counts("doorward_requests_total", &labels, requests)
            .await;
    }
}

async fn a_name_at_another_address_reaches_nobody_but_its_peer() {
    let world = World::new("passthrough").await;
    // `b` answers there, and `liar.test` is to be `c`; nobody with an identity answers at the other.
    for (address, host) in [
        ("10.9.0.2:8080", "liar.test"),
        ("10.9.0.9:8080", "ledger.test"),
    ] {
        let mut client = Client::on(connect(address).await, Http::One).await;
        let (status, word) = ask(&mut client, host).await;
        assert_eq!(status, 502, "{host}: {word}");
    }
    assert!(world.apps.iter().all(|app| app.seen().is_empty()));
    assert!(world.plain.seen().is_empty());
    let record = world.record("10.9.0.2:8080", "peer_refused").await;
    assert_eq!(record["service"], "liar.test:8080");
}

/// A ClientHello to whoever has this name, or an address, which is not said.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = name.to_owned().try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

async fn tls_goes_where_its_server_name_says_and_stays_as_it_is() {
    let world = World::new("deny").await;
    // Without a name, `ledger.test` is meant where it is.
    for name in ["ledger.test", "10.9.0.2"] {
        let mut stream = connect("10.9.0.2:443").await;
        let sent = hello(name);
        let (first, second) = sent.split_at(100);
        stream.write_all(first).await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(second).await.unwrap();
        let mut back = vec![0; sent.len()];
        let read = timeout(BOUND, stream.read_exact(&mut back)).await;
        read.unwrap().unwrap();
        assert!(back == sent, "bytes differ");
        drop(stream);
    }
    for (address, name) in [("10.9.0.2:443", "other.test"), ("10.9.0.3:443", "10.9.0.3")] {
        let mut stream = connect(address).await;
        stream.write_all(&hello(name)).await.unwrap();
        is_reset(stream).await;
        world.record(address, "no_route").await;
    }
}

async fn what_says_no_name_goes_where_the_addresses_of_names_lead() {
    let world = World::that_knows(Says::Nothing, "passthrough").await;
    // Nothing passes while it may be meant for an entry.
    let unknown = connect("10.9.0.2:5433").await;
    is_reset(unknown).await;
    world.record("10.9.0.2:5433", "upstream_unreachable").await;
    world
        .dns
        .say(Says::Addresses(vec![B, "fd09::2".parse().unwrap()]));
    eventually("the name is known", async || {
        let metrics = world.a.metrics().await;
        (metrics.sum("doorward_dns_addresses", &[("name", "peers.test")]) > 1.5).then_some(())
    })
    .await;
    for address in [
        "10.9.0.2:5433",
        "[fd09::2]:5433",
        "10.9.0.2:5434",
        "[fd09::2]:5434",
    ] {
        drop(greeting(address).await);
        let record = world.record(address, "completed").await;
        assert_eq!(record["peer"]["id"], id("b"), "{address}");
    }
}

async fn what_no_entry_leads_on_is_refused() {
    let world = World::new("deny").await;
    for (address, named) in [("10.9.0.9:8080", true), ("10.9.0.9:8099", false)] {
        let mut client = Client::on(connect(address).await, Http::One).await;
        let answered = ask(&mut client, "unknown.test").await;
        assert_eq!(answered, (403, "no_route".into()), "{address} {named}");
        let record = world.record(address, "no_route").await;
        assert_eq!(record["kind"], "request");
    }
    let mut speaking = connect("10.9.0.9:9000").await;
    speaking.write_all(b"\x00\x01\x02\x03").await.unwrap();
    is_reset(speaking).await;
    let silent = connect("10.9.0.9:9001").await;
    is_reset(silent).await;
    let record = world.record("10.9.0.9:9001", "no_route").await;
    assert_eq!(
        (&record["kind"], &record["decision"]),
        (&"connection".into(), &"deny".into())
    );
    assert!(world.plain.seen().is_empty());
    let labels = [("service", "intercept.outbound"), ("outcome", "no_route")];
    world
        .a
        .counts("doorward_requests_total", &labels, 2.0)
        .await;
    let tcp = [&labels[..], &[("kind", "tcp")]].concat();
    world
        .a
        .counts("doorward_sessions_ended_total", &tcp, 2.0)
        .await;
}

async fn what_passes_through_does_so_in_plain_and_is_told() {
    let mut world = World::new("passthrough").await;
    for http in [Http::One, Http::Two] {
        let mut client = Client::on(connect("10.9.0.9:8080").await, http).await;
        for (host, status) in [
            ("plain.test", 200),
            ("ledger.test", 502),
            ("plain.test", 200),
        ] {
            assert_eq!(ask(&mut client, host).await.0, status, "{host}");
        }
    }
    let seen = world.plain.seen();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|seen| seen.all("via").is_empty()));
    // Where no name can make a difference, byte for byte.
    drop(greeting("10.9.0.9:9000").await);
    for (address, kind) in [
        ("10.9.0.9:8080", "request"),
        ("10.9.0.9:9000", "connection"),
    ] {
        let record = world.record(address, "completed").await;
        assert_eq!(record["service"], "passthrough");
        assert_eq!(record["reason"], "passthrough");
        assert_eq!(
            (&record["kind"], &record["peer"]),
            (&kind.into(), &Value::Null)
        );
    }
    let service = [("service", "passthrough"), ("outcome", "completed")];
    world
        .a
        .counts("doorward_requests_total", &service, 4.0)
        .await;
    world
        .a
        .counts("doorward_sessions_ended_total", &service, 1.0)
        .await;
    // Entries are entries still.
    let mut client = Client::on(connect("10.9.0.2:8080").await, Http::One).await;
    assert_eq!(ask(&mut client, "ledger.test").await.0, 200);
    assert_eq!(world.apps[0].seen().len(), 1);
    // Connections that are kept to wherever hold up no drain.
    drop(client);
    assert_eq!(world.a.terminate().await, Some(0));
}

async fn sessions_to_an_original_destination_share_a_connection() {
    let world = World::new("deny").await;
    let mut sessions = Vec::new();
    for _ in 0..5 {
        sessions.push(greeting("10.9.0.2:7000").await);
    }
    let service = [("service", "10.9.0.2:7000, [fd09::2]:7000")];
    let metrics = world.a.metrics().await;
    let open = metrics.sum("doorward_open_sessions", &service);
    let connections = metrics.sum("doorward_upstream_connections", &service);
    assert_eq!((open.round(), connections.round()), (5.0, 1.0));
    drop(sessions);
    world
        .a
        .counts("doorward_open_sessions", &service, 0.0)
        .await;
}
