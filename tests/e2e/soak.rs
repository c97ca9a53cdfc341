//! Hours in minutes: all kinds of load, while everything that may change does, again and again.
//!
//! ```text
//!  clients ──▶ a ══▶ b ──▶ applications, killed and started again
//!              ╚════▶ c ──▶ the same         c is drained and started again
//! ```
//!
//! Certificates change each second. A failure is noted with its moment, and each must lie within a fault that
//! explains it: nothing else may fail, and nobody may get what was not granted. What runs all the time, `a` and
//! `b`, must not grow.

mod faults;
mod figures;
mod load;

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, interval, sleep_until};

use self::faults::{Fault, Journal};
use self::figures::Series;
use crate::apps::{self, App};
use crate::mesh::{Dirs, Issuer, Plan, PolicyDir, SERVICE, Sidecar, eventually, governed, id};

/// For as many minutes as `DOORWARD_SOAK_MINUTES` says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: run tests/soak.sh"]
async fn soak() {
    let minutes = std::env::var("DOORWARD_SOAK_MINUTES").expect("DOORWARD_SOAK_MINUTES is set");
    let time = Duration::from_secs_f64(minutes.parse::<f64>().unwrap() * 60.0);
    let mut stage = Stage::new().await;
    let until = Instant::now() + time;
    let clients = load::start(&stage.a.outbound, until, &stage.journal);
    let samples = tokio::spawn({
        let sidecars = [("a", stage.a.metrics), ("b", stage.b.metrics)];
        figures::sample(sidecars, until)
    });
    let rotated = [rotations(&stage.a).await, rotations(&stage.b).await];
    let faults = stage.play(until).await;
    let done = clients.finish().await;
    let samples = samples.await.unwrap();
    let rotated = [
        rotations(&stage.a).await - rotated[0],
        rotations(&stage.b).await - rotated[1],
    ];

    println!("soak: {minutes} min; faults: {faults}");
    println!("rotations: a {}, b {}", rotated[0], rotated[1]);
    for (client, count) in &done {
        println!("{client:>14}: {count} done");
    }
    let unexplained = stage.journal.tell();
    samples.iter().for_each(Series::tell);
    for sidecar in [&mut stage.a, &mut stage.b, &mut stage.c] {
        assert_eq!(
            sidecar.terminate().await,
            Some(0),
            "the end of {}",
            sidecar.process.name()
        );
    }
    assert!(
        unexplained.is_empty(),
        "{}: {unexplained:#?}",
        unexplained.len()
    );
    assert!(done.values().all(|count| *count >= 10), "{done:?}");
    assert!(
        rotated
            .iter()
            .all(|count| *count >= 0.75 * time.as_secs_f64()),
        "{rotated:?}"
    );
    for series in &samples {
        assert!(!series.grows(), "{series:?}");
    }
}

/// Everything that there is.
struct Stage {
    // In this order they go: who depends on another goes first.
    a: Sidecar,
    b: Sidecar,
    c: Sidecar,
    issuer: Issuer,
    apps: [App; 3],
    policy: PolicyDir,
    journal: Arc<Journal>,
    dirs: Dirs,
}

impl Stage {
    async fn new() -> Self {
        let dirs = Dirs::new();
        let mut issuer = Issuer::new(&dirs);
        for workload in ["a", "b", "c"] {
            // Longer than all of it: a session that is never idle lasts as long as what it began with.
            issuer.add(&dirs, workload, "12h", Some("1s"));
        }
        issuer.start().await;
        let policy = PolicyDir::new(dirs.file("policy"));
        policy.write("always.cedar", &always());
        policy.write("guarded.cedar", &guarded());
        let apps = applications([ANY; 3]).await;
        let mut b = called("b", &apps, [ANY; 3], &policy)
            .start(&dirs, &issuer)
            .await;
        let mut c = called("c", &apps, [ANY; 3], &policy)
            .start(&dirs, &issuer)
            .await;
        let mut plan = Plan::new("a");
        for (peer, gates) in [("b", &b.inbound), ("c", &c.inbound)] {
            for (gate, protocol) in gates.iter().zip(PROTOCOLS) {
                plan = plan.outbound(*gate, &id(peer), &format!("protocol: {protocol}"));
            }
        }
        let mut a = plan.start(&dirs, &issuer).await;
        for sidecar in [&mut a, &mut b, &mut c] {
            sidecar.ready().await;
        }
        Self {
            a,
            b,
            c,
            issuer,
            apps,
            policy,
            journal: Arc::default(),
            dirs,
        }
    }

    /// One fault after the other, until nothing is left of the time but to see all well again. Says how many.
    async fn play(&mut self, until: Instant) -> String {
        let mut counts = [0; 3];
        let mut beat = interval(Duration::from_secs(5));
        for number in 0.. {
            beat.tick().await;
            if Instant::now() + Duration::from_secs(15) > until {
                break;
            }
            match number % 4 {
                0 => self.withdraw_and_give_back().await,
                1 => self.kill_the_applications().await,
                2 => self.restart_a_sidecar().await,
                // Once in a while nothing happens.
                _ => continue,
            }
            counts[number % 4] += 1;
        }
        sleep_until(until).await;
        let [grants, applications, sidecars] = counts;
        format!(
            "{grants} withdrawals, {applications} restarts of the applications, {sidecars} of c"
        )
    }

    async fn withdraw_and_give_back(&mut self) {
        let generations = self.generations().await;
        let fault = self.journal.begin(Fault::Withdrawn);
        self.policy.remove("guarded.cedar");
        self.after(generations).await;
        let in_force = self.journal.begin(Fault::WithdrawnInForce);
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.journal.end(in_force);

        let generations = self.generations().await;
        self.policy.write("guarded.cedar", &guarded());
        self.after(generations).await;
        self.journal.end(fault);

        let another =
            "permit (principal == Workload::\"spiffe://example.org/d\", action, resource);";
        let generations = self.generations().await;
        self.policy
            .write("another.cedar", &governed("another", another));
        self.after(generations).await;
        self.policy.remove("another.cedar");
    }

    async fn kill_the_applications(&mut self) {
        let fault = self.journal.begin(Fault::ApplicationsGone);
        let addresses = self.apps.each_ref().map(|app| app.address.clone());
        for app in &mut self.apps {
            app.kill().await;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.apps = applications(addresses.each_ref().map(String::as_str)).await;
        self.journal.end(fault);
    }

    async fn restart_a_sidecar(&mut self) {
        let fault = self.journal.begin(Fault::SidecarGone);
        self.c.process.signal(Signal::SIGTERM);
        assert_eq!(self.c.process.exit().await, Some(0), "the end of c");
        let gates = self
            .c
            .inbound
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>();
        let gates = [0, 1, 2].map(|at| &gates[at][..]);
        let plan = called("c", &self.apps, gates, &self.policy);
        self.c = plan.start(&self.dirs, &self.issuer).await;
        self.c.ready().await;
        self.journal.end(fault);
    }

    async fn generations(&self) -> [f64; 2] {
        [generation(&self.b).await, generation(&self.c).await]
    }

    /// Waits until both have a later policy.
    async fn after(&self, [b, c]: [f64; 2]) {
        eventually("the policy is in force", async || {
            (generation(&self.b).await > b && generation(&self.c).await > c).then_some(())
        })
        .await;
    }
}

const ANY: &str = "127.0.0.1:0";

/// Of the routes to the applications for HTTP, for TCP and for WebSocket.
const PROTOCOLS: [&str; 3] = ["auto", "tcp", "auto"];

async fn applications([http, tcp, websocket]: [&str; 3]) -> [App; 3] {
    [
        App::http_at(http).await,
        App::tcp_at(tcp, apps::echo).await,
        App::tcp_at(websocket, apps::websocket_echo).await,
    ]
}

fn called(name: &str, apps: &[App; 3], gates: [&str; 3], policy: &PolicyDir) -> Plan {
    let mut plan = Plan::new(name)
        .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
        .with("drain_grace: 2s")
        .with("log: { format: json, level: info }");
    for ((app, gate), protocol) in apps.iter().zip(gates).zip(PROTOCOLS) {
        plan = plan.inbound_at(gate, &app.address, &format!("protocol: {protocol}"));
    }
    plan
}

/// Everything but what [`guarded`] is about, and what nobody may.
fn always() -> String {
    let principal = id("a");
    governed(
        "always",
        &format!(
            "permit (principal == Workload::\"{principal}\", action, resource == Service::\"{SERVICE}\")\n\
             unless {{ context has http && context.http.path like \"/seen/*\" }};"
        ),
    )
}

fn guarded() -> String {
    let principal = id("a");
    governed(
        "guarded",
        &format!(
            "permit (principal == Workload::\"{principal}\", action, resource == Service::\"{SERVICE}\")\n\
             when {{ context has http && context.http.path like \"/seen/guarded*\" }};"
        ),
    )
}

async fn generation(sidecar: &Sidecar) -> f64 {
    sidecar
        .metrics()
        .await
        .sum("doorward_policy_generation", &[])
}

async fn rotations(sidecar: &Sidecar) -> f64 {
    sidecar
        .metrics()
        .await
        .sum("doorward_identity_rotations_total", &[])
}
