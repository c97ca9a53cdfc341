//! A thread of the sidecar itself stands still, or it may write no more.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde_json::Value;

use super::BOUND;
use crate::mesh::{
    Client, Http, Mesh, Options, Sidecar, eventually, get, governed, request, within,
};

/// One thread of another process, stopped as long as this is there.
struct Stopped {
    go_on: Option<Sender<()>>,
    holder: Option<JoinHandle<()>>,
}

impl Stopped {
    /// Stops the thread called `name` of `sidecar`. Its main thread has the name of the program.
    fn thread(sidecar: &Sidecar, name: &str) -> Self {
        let tasks = format!("/proc/{}/task", sidecar.process.pid());
        let mut threads = fs::read_dir(tasks).unwrap().map(|task| task.unwrap());
        let thread = threads.find(|task| {
            let comm = fs::read_to_string(task.path().join("comm")).unwrap();
            comm.trim() == name
        });
        let thread = thread.unwrap().file_name();
        let thread = Pid::from_raw(thread.to_str().unwrap().parse().unwrap());
        let ((go_on, wait), (tell, stopped)) = (channel(), channel());
        // Only the thread that stopped it can let it go on.
        let holder = std::thread::spawn(move || {
            ptrace::seize(thread, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(thread).unwrap();
            waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
            tell.send(()).unwrap();
            // It is over when nobody can send any more, too.
            let _ = wait.recv();
            ptrace::detach(thread, None).unwrap();
        });
        stopped.recv().unwrap();
        Self {
            go_on: Some(go_on),
            holder: Some(holder),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        drop(self.go_on.take());
        // A failure there has been shown.
        let _ = self.holder.take().map(JoinHandle::join);
    }
}

/// Whether `address` answers a probe within its patience.
async fn answers(address: SocketAddr, path: &str) -> bool {
    let asked = tokio::time::timeout(Duration::from_secs(1), get(address, path));
    asked.await.is_ok_and(|answer| answer.status == 200)
}

#[tokio::test]
async fn a_control_thread_that_stands_still_holds_up_no_request_and_probes_tell() {
    let mesh = Mesh::new().await;
    let mut kept = Client::connect(mesh.entrance(), Http::Two).await;
    assert_eq!(kept.get("/").await.unwrap().status, 200);
    let main = fs::read_to_string(format!("/proc/{}/comm", mesh.b.process.pid())).unwrap();
    let stopped = [&mesh.a, &mesh.b].map(|sidecar| Stopped::thread(sidecar, main.trim()));

    // Nothing of the data path waits for it: requests, handshakes, decisions, records.
    for _ in 0..20 {
        assert_eq!(kept.get("/kept").await.unwrap().status, 200);
        assert_eq!(mesh.get("/new").await.status, 200);
    }
    let svid = mesh.issuer.ca().svid("a");
    let tls = crate::mesh::Tls::new(Some(&svid), &["h2"]);
    let mut direct = tls.client(mesh.gate()).await;
    assert_eq!(direct.get("/handshake").await.unwrap().status, 200);
    mesh.b
        .record("what passes meanwhile", |record| {
            record["context"]["path"] == "/handshake"
        })
        .await;
    // A probe has no answer, which is one: the sidecar is taken out of service.
    for path in ["/ready", "/live", "/metrics"] {
        assert!(!answers(mesh.b.metrics, path).await, "{path}");
    }
    // What is changed meanwhile is not in force yet.
    let nobody = governed(
        "nobody",
        "permit (principal, action, resource) when { false };",
    );
    mesh.policy.write("policy.cedar", &nobody);
    assert_eq!(mesh.get("/meanwhile").await.status, 200);

    drop(stopped);
    within(BOUND, "what was missed is made up for", async || {
        (mesh.get("/after").await.status == 403).then_some(())
    })
    .await;
    assert_eq!(mesh.b.readiness().await.status, 200);
}

#[tokio::test]
async fn a_worker_that_stands_still_holds_up_no_other_and_not_the_control_thread() {
    let mesh = Mesh::new().await;
    let mut clients = Vec::new();
    for _ in 0..16 {
        let mut client = Client::connect(mesh.entrance(), Http::One).await;
        assert_eq!(client.get("/").await.unwrap().status, 200);
        clients.push(client);
    }
    let stopped = Stopped::thread(&mesh.a, "worker-0");
    assert_eq!(mesh.a.readiness().await.status, 200);
    assert!(mesh.a.metrics().await.sum("process_threads", &[]) > 0.0);
    // The kernel spreads connections over both workers by chance: that all were on one is not to be feared.
    let mut asked = Vec::new();
    for mut client in clients {
        asked.push(tokio::spawn(async move {
            let answer = client.send(request("GET", "/meanwhile")).await;
            answer.unwrap().status().as_u16()
        }));
    }
    eventually("the other worker answers its own", async || {
        asked
            .iter()
            .any(tokio::task::JoinHandle::is_finished)
            .then_some(())
    })
    .await;
    assert!(asked.iter().any(|one| !one.is_finished()));
    drop(stopped);
    for one in asked {
        let answered = tokio::time::timeout(BOUND, one).await;
        assert_eq!(answered.unwrap().unwrap(), 200);
    }
}

#[tokio::test]
async fn a_file_that_may_grow_no_longer_stops_requests_or_loses_records_until_it_may_again() {
    for (on_failure, status) in [("deny", 503), ("continue", 200)] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("b.jsonl");
        let mut mesh = Mesh::with(Options {
            audit: Some(format!(
                "{{ path: '{}', on_failure: {on_failure}, queue: 16 }}",
                file.display()
            )),
            // Lines of the log are written to a file too.
            b: vec!["log: { format: json, level: info }".into()],
            ..Options::default()
        })
        .await;
        assert_eq!(mesh.get("/before").await.status, 200);
        let unhealthy = async |value: f64| {
            let healthy = mesh.b.metrics().await.sum("doorward_audit_healthy", &[]);
            (healthy - value).abs() < 0.1
        };
        limit_files(mesh.b.process.pid(), "20000");
        eventually("the file is full", async || {
            let answered = mesh.get("/while").await.status;
            assert!(answered == 200 || answered == status, "{answered}");
            (unhealthy(0.0).await && answered == status).then_some(())
        })
        .await;
        let lost = mesh.b.metrics().await.sum("doorward_audit_lost_total", &[]);
        match on_failure {
            "deny" => {
                assert_eq!(mesh.b.unready().await, ["audit"]);
                assert!(lost < 0.5, "{lost}");
            }
            _ => {
                assert_eq!(mesh.b.readiness().await.status, 200);
                eventually("losses are counted", async || {
                    assert_eq!(mesh.get("/lost").await.status, 200);
                    let metrics = mesh.b.metrics().await;
                    (metrics.sum("doorward_audit_lost_total", &[]) > 0.5).then_some(())
                })
                .await;
            }
        }
        limit_files(mesh.b.process.pid(), "unlimited");
        within(BOUND, "it is written again", async || {
            (mesh.get("/after").await.status == 200 && unhealthy(1.0).await).then_some(())
        })
        .await;
        mesh.b.process.assert_running();
        assert_eq!(mesh.get("/recorded").await.status, 200);
        // Every line of the file is whole, and the chain goes through.
        assert_eq!(mesh.b.terminate().await, Some(0));
        let verify = Command::new(env!("CARGO_BIN_EXE_doorward"))
            .args(["audit", "verify"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(verify.status.code(), Some(0), "{verify:?}");
        let text = fs::read_to_string(&file).unwrap();
        let last: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert!(
            last.iter()
                .any(|line| line["context"]["path"] == "/recorded")
        );
    }
}

/// How long any file may get that the process writes.
fn limit_files(pid: u32, bytes: &str) {
    let limited = Command::new("prlimit")
        .args([
            "--pid",
            &pid.to_string(),
            &format!("--fsize={bytes}:unlimited"),
        ])
        .status()
        .unwrap();
    assert!(limited.success(), "{limited}");
}
