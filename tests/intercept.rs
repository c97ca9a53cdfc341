//! Does the packet filter lead to the sidecar what it should, and nothing else? With real rules, set by
//! `doorward intercept`, in networks of our own.
//!
//! ```text
//!  test ── mgmt ──────────────────────────────────────────────┐
//!  client's network                         server's network  │
//!    a ── data0 (10.9.0.1, fd09::1) ═══ data1 (10.9.0.2, fd09::2) ── rules ─▶ b ─▶ application
//! ```
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
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use doorward::intercept::original_destination;
use nix::sched::{CloneFlags, setns};
use nix::unistd::{Uid, setfsuid};

use crate::e2e::alone::{Network, Test, Verdict, make, may_act_as, run};
use crate::e2e::mesh::{Dirs, Issuer, Plan, PolicyDir, SERVICE, Sidecar, eventually, governed, id};

const TESTS: [(&str, Test); 4] = [
    (
        "what_peers_send_to_the_application_is_led_to_the_sidecar_and_only_that",
        || Box::pin(what_peers_send_to_the_application_is_led_to_the_sidecar_and_only_that()),
    ),
    (
        "what_begins_here_is_led_to_the_sidecar_but_for_what_is_left_alone",
        || Box::pin(what_begins_here_is_led_to_the_sidecar_but_for_what_is_left_alone()),
    ),
    ("an_application_sees_its_clients_own_addresses", || {
        Box::pin(an_application_sees_its_clients_own_addresses())
    }),
    ("who_may_not_do_what_it_was_told_does_not_start", || {
        Box::pin(who_may_not_do_what_it_was_told_does_not_start())
    }),
];

fn main() -> ExitCode {
    make(&TESTS)
}

/// Two networks with a cable between them.
struct Networks {
    client: Network,
    server: Network,
    /// Where the server's network is reached from the test.
    mgmt: IpAddr,
}

const CLIENT: &str = "10.9.0.1";
const SERVER: &str = "10.9.0.2";
const SERVER6: &str = "fd09::2";

impl Networks {
    /// # Errors
    /// Why there can be none.
    fn new() -> Result<Self, String> {
        may_act_as(SOMEBODY)?;
        static COUNT: AtomicUsize = AtomicUsize::new(1);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let (client, server) = (Network::new(), Network::new());
        let peer = server.holder();
        client.run(&format!(
            "ip link add data0 type veth peer name data1 netns {peer}"
        ))?;
        run(&format!(
            "ip link add mgmt{number} type veth peer name mgmt netns {peer}"
        ))?;
        run(&format!(
            "ip address add 10.10.{number}.1/24 dev mgmt{number}"
        ))?;
        run(&format!("ip link set mgmt{number} up"))?;
        for (network, link, addresses) in [
            (
                &client,
                "data0",
                &["10.9.0.1/24", "10.9.0.3/24", "fd09::1/64"][..],
            ),
            (&server, "data1", &["10.9.0.2/24", "fd09::2/64"]),
            (&server, "mgmt", &[&*format!("10.10.{number}.2/24")]),
        ] {
            network.run(&format!("ip link set {link} up"))?;
            for address in addresses {
                let nodad = if address.contains(':') { "nodad" } else { "" };
                network.run(&format!("ip address add {address} dev {link} {nodad}"))?;
            }
        }
        server.run("nft list tables")?;
        // The strictest that a host can be about where packets come from.
        server.run("sysctl -q -w net.ipv4.conf.all.rp_filter=1")?;
        Ok(Self {
            client,
            server,
            mgmt: format!("10.10.{number}.2").parse().unwrap(),
        })
    }
}

/// Does `work` in a network, as a user.
fn inside<T: Send>(network: &Network, user: u32, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(network.file()).unwrap();
    thread::scope(|scope| {
        let working = scope.spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
            setfsuid(Uid::from_raw(user));
            work()
        });
        working.join().unwrap()
    })
}

const ROOT: u32 = 0;
const SOMEBODY: u32 = 4711;

fn connect(network: &Network, user: u32, to: &str) -> io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    inside(network, user, || {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

/// What whoever listens at `to` answers to a GET, without its head.
fn ask(network: &Network, user: u32, to: &str) -> io::Result<String> {
    let mut stream = connect(network, user, to)?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: app.example\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned());
    body.ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, answer))
}

/// An application that tells each of its clients, over HTTP/1.1, which address it has.
fn tell_addresses(network: &Network, at: &str) {
    let listener = inside(network, ROOT, || TcpListener::bind(at)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || tell_address(&stream.unwrap()));
        }
    });
}

fn tell_address(mut stream: &TcpStream) -> io::Result<()> {
    let body = stream.peer_addr()?.ip().to_canonical().to_string();
    let mut asked = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        asked.extend(byte);
        if asked.ends_with(b"\r\n\r\n") {
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes())?;
            // Sidecars that speak HTTP do not pass this on.
            if String::from_utf8_lossy(&asked).contains("connection: close") {
                return Ok(());
            }
            asked.clear();
        }
    }
    Ok(())
}

/// `doorward intercept` in a network.
fn intercept(network: &Network, args: &[&str]) -> Output {
    Command::new("nsenter")
        .arg(format!("--net={}", network.file()))
        .args([env!("CARGO_BIN_EXE_doorward"), "intercept"])
        .args(args)
        .output()
        .unwrap()
}

/// The same where it must succeed; returns what it says.
fn intercepted(network: &Network, args: &[&str]) -> String {
    let output = intercept(network, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The rules without what they have counted.
fn rules(network: &Network) -> String {
    let shown = intercepted(network, &["show"]);
    let words = shown.split_whitespace().scan("", |before, word| {
        let is_count = ["packets", "bytes"].contains(before);
        *before = word;
        Some(if is_count { "N" } else { word })
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A sidecar `a` of the client, and `b` of the server, which serves what is intercepted.
struct Pair {
    b: Sidecar,
    /// Where `a` takes requests for the server's ports 8080, 8081 and 8083, by IPv4 and by IPv6.
    http: [String; 2],
    tcp: [String; 2],
    original: [String; 2],
    config: String,
    _a: Sidecar,
    _issuer: Issuer,
    _dirs: Dirs,
}

impl Pair {
    async fn new(networks: &Networks, entry: &str) -> Self {
        let dirs = Dirs::new();
        let mut issuer = Issuer::new(&dirs);
        for workload in ["a", "b"] {
            issuer.add(&dirs, workload, "1h", None);
        }
        issuer.start().await;
        let policy = PolicyDir::new(dirs.file("policy"));
        // The port that was dialled, not the one that connections are led to.
        let grant = format!(
            "permit (principal == Workload::\"{}\", action, resource == Service::\"{SERVICE}\")\n\
             when {{ [8080, 8081, 8083].contains(context.port) }};",
            id("a")
        );
        policy.write("policy.cedar", &governed("known-ports", &grant));
        let b = Plan::new("b");
        let network = networks.server.file();
        let b = match entry {
            // From its first moment on without any right of root.
            "" => b.after(format!(
                "exec nsenter --net={network} setpriv --bounding-set=-all \"$0\" \"$@\" #"
            )),
            _ => b.network(network),
        };
        let mut b = b
            .with(INTERCEPT)
            .with("workers: 1")
            .with(format!("metrics: {{ listen: '{}:9901' }}", networks.mgmt))
            .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
            .with(format!(
                "inbound:\n\
                 - {{ intercept: [8080, 8082], service: {SERVICE}, protocol: http{entry} }}\n\
                 - {{ intercept: 8081, service: {SERVICE}, protocol: tcp{entry} }}\n\
                 - {{ intercept: 8083, service: {SERVICE}, protocol: http, app: original }}\n\
                 - {{ intercept: 8084, service: crowded, max_connections: 1 }}"
            ))
            .start(&dirs, &issuer)
            .await;
        let mut a = Plan::new("a").network(networks.client.file());
        for (port, protocol) in [(8080, "http"), (8081, "tcp"), (8083, "http")] {
            for address in [SERVER.to_owned(), format!("[{SERVER6}]")] {
                let keys = format!("protocol: {protocol}");
                a = a.outbound(format_args!("{address}:{port}"), &id("b"), &keys);
            }
        }
        let a = a.start(&dirs, &issuer).await;
        b.ready().await;
        let at = |index: usize| a.outbound[index].to_string();
        Self {
            http: [at(0), at(1)],
            tcp: [at(2), at(3)],
            original: [at(4), at(5)],
            config: dirs.file("b.yaml").to_str().unwrap().to_owned(),
            b,
            _a: a,
            _issuer: issuer,
            _dirs: dirs,
        }
    }

    /// Which rights of root `b` has, as the kernel has them in hexadecimal digits.
    fn capabilities(&self) -> String {
        let status = format!("/proc/{}/status", self.b.process.pid());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
        line.unwrap().trim().trim_start_matches('0').to_owned()
    }
}

const INTERCEPT: &str = "intercept: { user: 0, inbound: { port: 15006, exclude_ports: [2222] } }";

async fn what_peers_send_to_the_application_is_led_to_the_sidecar_and_only_that() -> Verdict {
    let networks = match Networks::new() {
        Ok(networks) => networks,
        Err(why) => return Verdict::Skipped(why),
    };
    let Networks { client, server, .. } = &networks;
    tell_addresses(server, "127.0.0.1:8080");
    tell_addresses(server, "127.0.0.1:8081");
    tell_addresses(server, "[::]:2222");
    tell_addresses(server, "[::]:7070");
    tell_addresses(server, "10.9.0.2:8083");
    tell_addresses(server, "[fd09::2]:8083");
    let pair = Pair::new(&networks, "").await;
    assert_eq!(pair.capabilities(), "");
    intercepted(server, &["apply", "--config", &pair.config]);

    // Both families, HTTP and opaque bytes.
    for entrance in pair.http.iter().chain(&pair.tcp) {
        eventually("the pair answers", async || {
            let answer = ask(client, ROOT, entrance);
            (answer.ok()? == "127.0.0.1").then_some(())
        })
        .await;
    }
    for (kind, to) in [
        ("request", "10.9.0.2:8080"),
        ("request", "[fd09::2]:8080"),
        ("connection", "10.9.0.2:8081"),
        ("connection", "[fd09::2]:8081"),
    ] {
        let is_it = |record: &serde_json::Value| {
            record["destination"] == to && record["kind"] == kind && record["decision"] == "allow"
        };
        let record = pair.b.record("where it was going", is_it).await;
        let source = record["source"].as_str().unwrap();
        assert!(
            source.starts_with("10.9.0.1:") || source.starts_with("[fd09::1]:"),
            "{source}"
        );
    }

    for (entrance, own) in pair.original.iter().zip([SERVER, SERVER6]) {
        let told = eventually("the pair answers", async || {
            ask(client, ROOT, entrance).ok()
        });
        assert_eq!(told.await, own);
    }

    // An entry that is full: its next connections are reset, those to others are not.
    let _only = connect(client, ROOT, "10.9.0.2:8084").unwrap();
    let refused = ask(client, ROOT, "10.9.0.2:8084").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    let full = [("service", "crowded"), ("limit", "connections")];
    pair.b.counts("doorward_limits_hit_total", &full, 1.0).await;
    ask(client, ROOT, &pair.http[0]).unwrap();

    // A port that is led here and that nobody serves.
    let refused = ask(client, ROOT, "10.9.0.2:9999").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionReset);
    let record = pair
        .b
        .record("who was refused", |record| record["outcome"] == "no_route");
    let record = record.await;
    assert_eq!(record["destination"], "10.9.0.2:9999");
    assert_eq!(record["service"], "intercept.inbound");
    let counted = |outcome| [("service", "intercept.inbound"), ("outcome", outcome)];
    let ended = "doorward_sessions_ended_total";
    pair.b.counts(ended, &counted("no_route"), 1.0).await;

    // What is excluded, what the sidecar itself listens on, and what the server says to itself.
    assert_eq!(ask(client, ROOT, "10.9.0.2:2222").unwrap(), CLIENT);
    assert_eq!(ask(client, ROOT, "[fd09::2]:2222").unwrap(), "fd09::1");
    assert_eq!(pair.b.readiness().await.status, 200);
    for own in [
        "127.0.0.1:7070",
        "10.9.0.2:7070",
        "[::1]:7070",
        "[fd09::2]:7070",
    ] {
        let told = ask(server, SOMEBODY, own).unwrap();
        assert_eq!(
            told.parse::<IpAddr>().unwrap(),
            own.parse::<SocketAddr>().unwrap().ip()
        );
    }

    // Who dials the port itself is not heard.
    for (network, to) in [
        (client, "10.9.0.2:15006"),
        (client, "[fd09::2]:15006"),
        (server, "127.0.0.1:15006"),
    ] {
        let to = to.parse().unwrap();
        let dialled = inside(network, SOMEBODY, || {
            TcpStream::connect_timeout(&to, Duration::from_millis(300))
        });
        assert!(dialled.is_err(), "{to}");
    }
    let dropped = intercepted(server, &["show"]);
    assert!(
        dropped.contains("counter packets") && !dropped.contains("packets 0"),
        "{dropped}"
    );
    // Nor by the sidecar itself, where there are no rules.
    intercepted(server, &["remove"]);
    for to in ["10.9.0.2:15006", "[fd09::2]:15006"] {
        let refused = ask(client, ROOT, to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionReset, "{to}");
    }
    pair.b.counts(ended, &counted("not_redirected"), 2.0).await;
    let is_direct = |record: &serde_json::Value| record["outcome"] == "not_redirected";
    let record = pair.b.record("who came by himself", is_direct).await;
    assert_eq!(record["reason"], "not_redirected");
    assert_eq!(record.get("destination"), None);
    Verdict::Passed
}

/// What the sidecar would take, and what the world outside would.
struct Listening {
    led: TcpListener,
    outside: Vec<TcpListener>,
}

impl Listening {
    fn new(networks: &Networks, ports: &[u16]) -> Self {
        let outside = ports.iter().map(|port| {
            inside(&networks.client, ROOT, || TcpListener::bind(("::", *port))).unwrap()
        });
        Self {
            led: inside(&networks.server, ROOT, || TcpListener::bind("[::]:15001")).unwrap(),
            outside: outside.collect(),
        }
    }

    /// Where a connection of `user` to `to` came out: at the sidecar, which knows where it was going, or outside.
    fn find(&self, networks: &Networks, user: u32, to: &str) -> Option<SocketAddr> {
        let _connection = connect(&networks.server, user, to).unwrap();
        let limit = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < limit, "{to} came out nowhere");
            self.led.set_nonblocking(true).unwrap();
            if let Ok((accepted, _)) = self.led.accept() {
                let local = accepted.local_addr().unwrap();
                let local = SocketAddr::new(local.ip().to_canonical(), local.port());
                return Some(original_destination(&accepted, local).unwrap());
            }
            for listener in &self.outside {
                listener.set_nonblocking(true).unwrap();
                if listener.accept().is_ok() {
                    return None;
                }
            }
        }
    }
}

async fn what_begins_here_is_led_to_the_sidecar_but_for_what_is_left_alone() -> Verdict {
    let networks = match Networks::new() {
        Ok(networks) => networks,
        Err(why) => return Verdict::Skipped(why),
    };
    let Networks { client, server, .. } = &networks;
    let dirs = Dirs::new();
    let config = config(
        &dirs,
        "intercept: { user: 2102, outbound: { port: 15001, exclude_ports: [53], \
        exclude_addresses: [10.9.0.3], exclude_users: [4712] } }\n\
        outbound: [{ intercept: '10.9.0.1:80', to: '10.9.0.1:80', peer: 'spiffe://example.org/a' }]\n",
    );
    let apply = ["apply", "--config", config.to_str().unwrap()];
    let listening = Listening::new(&networks, &[80, 53]);
    let find = |user, to| listening.find(&networks, user, to);
    assert_eq!(intercept(server, &["show"]).status.code(), Some(1));
    // Open before there are any rules.
    let mut before = connect(server, SOMEBODY, "10.9.0.1:80").unwrap();
    let (mut outside, _) = listening.outside[0].accept().unwrap();

    let printed = intercepted(server, &[&apply[..], &["--dry-run"]].concat());
    assert!(printed.contains("redirect to :15001"), "{printed}");
    assert_eq!(intercept(server, &["show"]).status.code(), Some(1));
    intercepted(server, &apply);
    let set = rules(server);
    intercepted(server, &apply);
    assert_eq!(rules(server), set);

    for to in [
        "10.9.0.1:80",
        "[fd09::1]:80",
        "10.9.0.1:8443",
        "10.9.0.77:1",
    ] {
        assert_eq!(find(SOMEBODY, to), Some(to.parse().unwrap()));
    }
    for (user, to) in [
        // The sidecar itself, or there would be no end.
        (2102, "10.9.0.1:80"),
        (2102, "[fd09::1]:80"),
        (4712, "10.9.0.1:80"),
        (SOMEBODY, "10.9.0.1:53"),
        (SOMEBODY, "[fd09::1]:53"),
        (SOMEBODY, "10.9.0.3:80"),
    ] {
        assert_eq!(find(user, to), None, "{user} {to}");
    }
    // This host itself.
    tell_addresses(server, "[::]:7070");
    for own in [
        "127.0.0.1:7070",
        "10.9.0.2:7070",
        "[::1]:7070",
        "[fd09::2]:7070",
    ] {
        ask(server, SOMEBODY, own).unwrap();
    }
    // Whatever is not TCP, DNS first of all.
    for (at, to) in [
        ("10.9.0.1:53", "10.9.0.1:53"),
        ("[fd09::1]:53", "[fd09::1]:53"),
        ("10.9.0.1:5000", "10.9.0.1:5000"),
    ] {
        let waiting = inside(client, ROOT, || UdpSocket::bind(at)).unwrap();
        waiting.set_read_timeout(Some(PATIENCE)).unwrap();
        let asking = inside(server, SOMEBODY, || {
            UdpSocket::bind(if to.starts_with('[') {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            })
        });
        asking.unwrap().send_to(b"who is it?", to).unwrap();
        let (_, from) = waiting.recv_from(&mut [0; 64]).unwrap();
        assert!(
            [SERVER, SERVER6].contains(&&*from.ip().to_string()),
            "{from}"
        );
    }
    // What was open goes on.
    before.write_all(b"!").unwrap();
    outside.set_nonblocking(false).unwrap();
    outside.set_read_timeout(Some(PATIENCE)).unwrap();
    outside.read_exact(&mut [0]).unwrap();

    // Dialled by themselves, the ports are deaf.
    let to = "127.0.0.1:15001".parse().unwrap();
    let dialled = inside(server, SOMEBODY, || {
        TcpStream::connect_timeout(&to, Duration::from_millis(300))
    });
    assert!(dialled.is_err());

    intercepted(server, &["remove", "--dry-run"]);
    assert_eq!(rules(server), set);
    for _ in 0..2 {
        intercepted(server, &["remove"]);
        assert_eq!(intercept(server, &["show"]).status.code(), Some(1));
    }
    assert_eq!(find(SOMEBODY, "10.9.0.1:80"), None);
    // Who may not is told what it takes.
    let powerless = Command::new("setpriv")
        .args([
            "--bounding-set=-all",
            env!("CARGO_BIN_EXE_doorward"),
            "intercept",
        ])
        .args(apply)
        .output()
        .unwrap();
    let told = String::from_utf8(powerless.stderr).unwrap();
    assert_eq!(powerless.status.code(), Some(2), "{told}");
    assert!(told.contains("CAP_NET_ADMIN"), "{told}");
    Verdict::Passed
}

async fn an_application_sees_its_clients_own_addresses() -> Verdict {
    let networks = match Networks::new() {
        Ok(networks) => networks,
        Err(why) => return Verdict::Skipped(why),
    };
    let Networks { client, server, .. } = &networks;
    for port in [8080, 8081] {
        tell_addresses(server, &format!("127.0.0.1:{port}"));
        tell_addresses(server, &format!("[::1]:{port}"));
    }
    let pair = Pair::new(&networks, ", client_address: kept").await;
    // CAP_NET_RAW alone.
    assert_eq!(pair.capabilities(), "2000");
    assert!(pair.b.process.log().contains("CAP_NET_RAW stays"));
    let apply = ["apply", "--config", &pair.config];
    intercepted(server, &apply);
    let set = rules(server);
    intercepted(server, &apply);
    assert_eq!(rules(server), set);
    assert!(set.contains("ip -4 rule add"), "{set}");
    for [v4, v6] in [&pair.http, &pair.tcp] {
        for (entrance, own) in [(v4, CLIENT), (v6, "fd09::1")] {
            let told = eventually("the pair answers", async || {
                ask(client, ROOT, entrance).ok()
            });
            assert_eq!(told.await, own);
        }
    }
    intercepted(server, &["remove"]);
    for family in ["-4", "-6"] {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", server.file()))
            .args(["ip", family, "rule", "show", "pref", "3328"])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    }
    Verdict::Passed
}

/// A configuration that intercepts as `rest` says.
fn config(dirs: &Dirs, rest: &str) -> PathBuf {
    let path = dirs.file("intercept.yaml");
    std::fs::create_dir_all(dirs.file("policy")).unwrap();
    let head = format!(
        "identity: {{ workload_api: 'unix://{}' }}\npolicy: {{ dir: '{}' }}\n",
        dirs.file("issuer.sock").display(),
        dirs.file("policy").display()
    );
    std::fs::write(&path, head + rest).unwrap();
    path
}

async fn who_may_not_do_what_it_was_told_does_not_start() -> Verdict {
    let dirs = Dirs::new();
    for (rest, expected) in [
        (
            "intercept: { user: 2102, outbound: { port: 15001 } }\n\
             outbound: [{ intercept: '10.9.0.1:80', to: '10.9.0.1:80', peer: 'spiffe://example.org/a' }]\n",
            "`intercept.user` is 2102, and this runs as 0",
        ),
        (
            "intercept: { user: 0, inbound: { port: 15006 } }\n\
             inbound: [{ intercept: 80, service: a, client_address: kept }]\n",
            "`client_address: kept` takes the capability CAP_NET_RAW",
        ),
    ] {
        let output = Command::new("setpriv")
            .args([
                "--bounding-set=-all",
                env!("CARGO_BIN_EXE_doorward"),
                "run",
                "--config",
            ])
            .arg(config(&dirs, rest))
            .output()
            .unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(expected), "{told}");
    }
    Verdict::Passed
}

/// For what comes at once, on a machine that may be busy.
const PATIENCE: Duration = Duration::from_secs(20);
