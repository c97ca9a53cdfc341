//! What happens when the network between two sidecars is cut, loses packets, or a disk is full? The kernel
//! is asked for a network and for a disk of our own, which nobody else sees; they go with the process.
//!
//! ```text
//!  ours                      a switch                  the peer's
//!  test, a ── data0 ════ port0 ── br0 ── port1 ════ data1 ── b
//!    application ── mgmt0 ═════════════════════════ mgmt1 ──┘
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

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::e2e::alone::{Network, Test, Verdict, make, run};
use crate::e2e::mesh::{
    App, Client, Dirs, Held, Http, Issuer, Mesh, Options, Plan, PolicyDir, Sidecar, eventually,
    get, grant, id, nothing_is_left, request, within,
};

const TESTS: [(&str, Test); 4] = [
    (
        "a_network_that_is_cut_ends_what_hangs_on_it_in_time_and_is_used_again_once_healed",
        || {
            Box::pin(
                a_network_that_is_cut_ends_what_hangs_on_it_in_time_and_is_used_again_once_healed(),
            )
        },
    ),
    (
        "packets_that_a_filter_drops_are_missed_in_the_same_time",
        || Box::pin(packets_that_a_filter_drops_are_missed_in_the_same_time()),
    ),
    ("a_bad_network_delays_bytes_and_loses_none", || {
        Box::pin(a_bad_network_delays_bytes_and_loses_none())
    }),
    (
        "a_full_disk_stops_requests_or_loses_records_until_there_is_room",
        || Box::pin(a_full_disk_stops_requests_or_loses_records_until_there_is_room()),
    ),
];

fn main() -> ExitCode {
    make(&TESTS)
}

/// Two sidecars, each in a network of its own, and a switch between them.
struct Apart {
    a: Sidecar,
    b: Sidecar,
    switch: Network,
    there: Network,
    _echo: tokio::task::AbortHandle,
    _app: App,
    _issuer: Issuer,
    _dirs: Dirs,
}

const OURS: &str = "10.9.0.1";
const THEIRS: &str = "10.9.0.2";
const OURS_MAC: &str = "02:00:00:00:09:01";
const THEIRS_MAC: &str = "02:00:00:00:09:02";

/// Routes of [`Apart`], in their order.
const HTTP: usize = 0;
const TCP: usize = 1;

impl Apart {
    async fn new() -> Self {
        // The kernel takes a network down in its own time, and its links go with it.
        eventually("the links of the test before have gone", async || {
            let gone = |link| run(&format!("ip link show {link}")).is_err();
            (gone("data0") && gone("mgmt0")).then_some(())
        })
        .await;
        let (switch, there) = (Network::new(), Network::new());
        for (here, port, network, address, mac) in [
            ("data0", "port0", None, OURS, OURS_MAC),
            ("data1", "port1", Some(&there), THEIRS, THEIRS_MAC),
        ] {
            let other = if here == "data0" { THEIRS } else { OURS };
            let other_mac = if here == "data0" {
                THEIRS_MAC
            } else {
                OURS_MAC
            };
            let here_run = |command: &str| match network {
                None => run(command).unwrap(),
                Some(network) => network.run(command).unwrap(),
            };
            let holder = switch.holder();
            here_run(&format!(
                "ip link add {here} address {mac} type veth peer name {port} netns {holder}"
            ));
            here_run(&format!("ip address add {address}/24 dev {here}"));
            here_run(&format!("ip link set {here} up"));
            // As behind a router that stays: nobody says that a host is gone.
            here_run(&format!(
                "ip neighbour replace {other} lladdr {other_mac} dev {here} nud permanent"
            ));
        }
        switch.run("ip link add br0 type bridge").unwrap();
        for port in ["port0", "port1", "br0"] {
            if port != "br0" {
                switch
                    .run(&format!("ip link set {port} master br0"))
                    .unwrap();
            }
            switch.run(&format!("ip link set {port} up")).unwrap();
        }
        let holder = there.holder();
        run(&format!(
            "ip link add mgmt0 type veth peer name mgmt1 netns {holder}"
        ))
        .unwrap();
        run("ip address add 10.9.1.1/24 dev mgmt0").unwrap();
        run("ip link set mgmt0 up").unwrap();
        there.run("ip address add 10.9.1.2/24 dev mgmt1").unwrap();
        there.run("ip link set mgmt1 up").unwrap();

        let app = App::at("10.9.1.1:0").await;
        let (echo, echo_task) = echo().await;
        let dirs = Dirs::new();
        let mut issuer = Issuer::new(&dirs);
        for workload in ["a", "b"] {
            issuer.add(&dirs, workload, "1h", None);
        }
        issuer.start().await;
        let policy = PolicyDir::new(dirs.file("policy"));
        policy.write("policy.cedar", &grant("all-for-a", "a"));
        let any = format!("{THEIRS}:0");
        let mut b = Plan::new("b")
            .network(there.file())
            .with("workers: 1")
            .with("metrics: { listen: '10.9.1.2:0' }")
            .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
            .inbound_at(&any, app.address, "stall_timeout: 2s")
            .inbound_at(&any, echo, "protocol: tcp, stall_timeout: 2s")
            .start(&dirs, &issuer)
            .await;
        let mut a = Plan::new("a")
            .with("workers: 1")
            .outbound(
                b.inbound[HTTP],
                &id("b"),
                "protocol: http, connect_timeout: 1s, response_timeout: 1s",
            )
            .outbound(
                b.inbound[TCP],
                &id("b"),
                "protocol: tcp, connect_timeout: 1s, tcp_user_timeout: 2s",
            )
            .start(&dirs, &issuer)
            .await;
        a.ready().await;
        b.ready().await;
        let apart = Self {
            a,
            b,
            switch,
            there,
            _echo: echo_task,
            _app: app,
            _issuer: issuer,
            _dirs: dirs,
        };
        // A port of a switch that is up may not pass anything yet.
        eventually("the switch passes frames", async || {
            (apart.ask().await.0 == 200).then_some(())
        })
        .await;
        apart
    }

    /// A TCP session through both, on which a byte has come back.
    async fn session(&self) -> TcpStream {
        let mut session = TcpStream::connect(self.a.outbound[TCP]).await.unwrap();
        session.write_all(b"x").await.unwrap();
        session.read_exact(&mut [0]).await.unwrap();
        session
    }

    /// How a request ends that must end in time: its status and the word for what went wrong.
    async fn ask(&self) -> (u16, String) {
        let answer = timeout(BOUND, get(self.a.outbound[HTTP], "/")).await;
        let answer = answer.expect("an answer within the deadline");
        let error = answer.json()["error"].as_str().unwrap_or("none").to_owned();
        (answer.status, error)
    }

    /// Has `cut` happen to sessions and requests and lets it `heal`.
    async fn survives(&self, cut: impl Fn(), heal: impl Fn()) {
        assert_eq!(self.ask().await, (200, "none".into()));
        let before = [Held::at_rest(&self.a).await, Held::at_rest(&self.b).await];
        let sessions = || join_all((0..10).map(|_| self.session()));
        let (idle, mut busy) = (sessions().await, sessions().await);
        cut();
        for session in &mut busy {
            session.write_all(b"into the void").await.unwrap();
        }
        // Both ends by the kernel's own questions, whether anything was sent or not.
        for mut session in busy.into_iter().chain(idle) {
            let ended = timeout(BOUND, session.read(&mut [0; 64])).await;
            let ended = ended.expect("an end within `tcp_user_timeout`");
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        for _ in 0..3 {
            assert_eq!(self.ask().await, (504, "upstream_timeout".into()));
        }
        let unreachable = timeout(BOUND, async {
            let mut session = TcpStream::connect(self.a.outbound[TCP]).await.unwrap();
            session.read(&mut [0; 64]).await
        });
        let unreachable = unreachable.await.expect("an end within `connect_timeout`");
        assert_eq!(unreachable.unwrap_err().kind(), ErrorKind::ConnectionReset);
        // The peer learns of it in its own time.
        let tcp = [("kind", "tcp")];
        self.b.counts("doorward_open_sessions", &tcp, 0.0).await;
        let gone = [("kind", "tcp"), ("outcome", "client_gone")];
        let ended = self.b.metrics().await;
        assert!(ended.sum("doorward_sessions_ended_total", &gone) >= 20.0);

        heal();
        within(BOUND, "the network is used again", async || {
            (self.ask().await.0 == 200).then_some(())
        })
        .await;
        self.session().await;
        nothing_is_left(&self.a, &before[0]).await;
        nothing_is_left(&self.b, &before[1]).await;
    }
}

/// An application that says what it is told.
async fn echo() -> (SocketAddr, tokio::task::AbortHandle) {
    let listener = TcpListener::bind("10.9.1.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                // Whoever breaks off is not the application's concern.
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    (address, serving.abort_handle())
}

async fn a_network_that_is_cut_ends_what_hangs_on_it_in_time_and_is_used_again_once_healed()
-> Verdict {
    let apart = Apart::new().await;
    for (cut, heal) in [
        // The cable is pulled out behind the switch: the link stays up, and nobody says a word.
        ("ip link set port1 nomaster", "ip link set port1 master br0"),
        // And before it: the link goes down.
        ("ip link set port0 down", "ip link set port0 up"),
    ] {
        let change = |command| apart.switch.run(command).unwrap();
        apart.survives(|| change(cut), || change(heal)).await;
    }
    Verdict::Passed
}

async fn packets_that_a_filter_drops_are_missed_in_the_same_time() -> Verdict {
    let apart = Apart::new().await;
    if let Err(why) = apart.there.run("nft add table inet cut") {
        return Verdict::Skipped(why);
    }
    let nft = |command: &str| apart.there.run(&format!("nft {command}")).unwrap();
    let cut = || {
        for (chain, side) in [("input", "iifname"), ("output", "oifname")] {
            nft(&format!(
                "add chain inet cut {chain} {{ type filter hook {chain} priority 0 ; }}"
            ));
            nft(&format!("add rule inet cut {chain} {side} data1 drop"));
        }
    };
    apart.survives(cut, || nft("delete table inet cut")).await;
    Verdict::Passed
}

async fn a_bad_network_delays_bytes_and_loses_none() -> Verdict {
    let apart = Apart::new().await;
    for port in ["port0", "port1"] {
        let bad = "netem delay 10ms 5ms loss 2% duplicate 2% reorder 5%";
        let set = format!("tc qdisc add dev {port} root {bad}");
        if let Err(why) = apart.switch.run(&set) {
            return Verdict::Skipped(why);
        }
    }
    // Packets are sent again before anything of ours gives up.
    let before = Held::at_rest(&apart.a).await;
    let mut client = Client::connect(apart.a.outbound[HTTP], Http::One).await;
    for _ in 0..20 {
        let answer = client.ask(request("GET", "/bytes/20000")).await.unwrap();
        assert!(answer.status == 504 || answer.body.len() == 20_000);
    }
    let session = apart.session().await;
    let (mut from, mut to) = session.into_split();
    let sent: Vec<u8> = (0..500_000_u32).map(|n| (n % 251) as u8).collect();
    let expected = sent.clone();
    let writing = tokio::spawn(async move {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    });
    let mut read = Vec::new();
    let all = timeout(BOUND * 3, from.read_to_end(&mut read)).await;
    all.expect("all bytes in time").unwrap();
    writing.await.unwrap();
    assert!(read == expected, "bytes differ");
    drop(client);
    nothing_is_left(&apart.a, &before).await;
    Verdict::Passed
}

async fn a_full_disk_stops_requests_or_loses_records_until_there_is_room() -> Verdict {
    for (on_failure, status) in [("deny", 503), ("continue", 200)] {
        let disk = tempfile::tempdir().unwrap();
        let at = disk.path().display();
        if let Err(why) = run(&format!("mount -t tmpfs -o size=1m tmpfs {at}")) {
            return Verdict::Skipped(why);
        }
        fill(&disk.path().join("filler"), 1000);
        let mut mesh = Mesh::with(Options {
            audit: Some(format!(
                "{{ path: '{at}/b.jsonl', on_failure: {on_failure}, queue: 16 }}"
            )),
            ..Options::default()
        })
        .await;
        assert_eq!(mesh.get("/before").await.status, 200);
        let healthy = async || {
            let metrics = mesh.b.metrics().await;
            metrics.sum("doorward_audit_healthy", &[]) > 0.5
        };
        within(BOUND * 2, "the disk is full", async || {
            let answered = mesh.get("/while").await.status;
            assert!(answered == 200 || answered == status, "{answered}");
            (!healthy().await && answered == status).then_some(())
        })
        .await;
        let expected: &[&str] = if on_failure == "deny" {
            &["audit"]
        } else {
            &[]
        };
        assert_eq!(mesh.b.unready().await, expected);
        fs::remove_file(disk.path().join("filler")).unwrap();
        within(BOUND, "it is written again", async || {
            (mesh.get("/after").await.status == 200 && healthy().await).then_some(())
        })
        .await;
        assert_eq!(mesh.b.terminate().await, Some(0));
        let verify = Command::new(env!("CARGO_BIN_EXE_doorward"))
            .args(["audit", "verify"])
            .arg(disk.path().join("b.jsonl"))
            .output()
            .unwrap();
        assert_eq!(verify.status.code(), Some(0), "{verify:?}");
        drop(mesh);
        run(&format!("umount {at}")).unwrap();
    }
    Verdict::Passed
}

/// Writes so many KiB.
fn fill(path: &Path, kib: usize) {
    fs::write(path, vec![0; kib * 1024]).unwrap();
}

/// No setting of these tests lets anything take so long.
const BOUND: Duration = Duration::from_secs(15);
