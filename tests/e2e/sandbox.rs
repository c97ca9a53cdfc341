//! A sidecar gives up what it does not need, and does all the same all that it is for. No key of its own
//! leaves it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use nix::sys::signal::Signal;

use crate::files::Volume;
use crate::mesh::*;

const PARTS: [&str; 7] = [
    "files",
    "ports",
    "scopes",
    "syscalls",
    "privileges",
    "capabilities",
    "memory",
];

/// Whether this kernel has Landlock as new as we know it.
fn is_whole(log: &str) -> bool {
    let whole = log.contains("in the sandbox: files, ports, scopes, syscalls, privileges");
    if !whole {
        eprintln!("SKIPPED: this kernel does not have all of the sandbox");
    }
    whole
}

/// What the kernel says of each thread of a process.
fn threads(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let told = tasks.map(|task| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let pairs = status.lines().filter_map(|line| line.split_once(':'));
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.trim().to_owned()));
        pairs.collect()
    });
    told.collect()
}

#[tokio::test]
async fn every_thread_is_in_the_sandbox() {
    let mesh = Mesh::new().await;
    assert_eq!(mesh.get("/").await.status, 200);
    let pid = mesh.b.process.pid();
    let is_root = nix::unistd::geteuid().is_root();
    let mut names = BTreeSet::new();
    for thread in threads(pid) {
        let name = &thread["Name"];
        assert_eq!(thread["NoNewPrivs"], "1", "{name}");
        assert_eq!(thread["Seccomp"], "2", "{name}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(thread[set], "0000000000000000", "{name} {set}");
        }
        if is_root {
            assert_eq!(thread["CapBnd"], "0000000000000000", "{name}");
        }
        names.insert(name.clone());
    }
    for expected in ["doorward", "worker-0", "worker-1", "audit"] {
        assert!(names.contains(expected), "{names:?}");
    }
    // Where we are not root, the sidecar shows its memory, so that the issuer can tell who asks.
    if is_root {
        assert_eq!(core_limits(pid), ["0", "0"]);
    }

    // The issuer reads whatever its callers are made of, but no more than that.
    for thread in threads(mesh.issuer.pid()) {
        let name = &thread["Name"];
        assert_eq!(thread["NoNewPrivs"], "1", "{name}");
        assert_eq!(thread["Seccomp"], "2", "{name}");
    }
    assert_eq!(core_limits(mesh.issuer.pid()), ["0", "0"]);
}

/// How large a file of its memory may be, and may be asked to be.
fn core_limits(pid: u32) -> [String; 2] {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.contains("core file"));
    let mut words = core.unwrap().split_whitespace().skip(4).map(str::to_owned);
    std::array::from_fn(|_| words.next().unwrap())
}

#[tokio::test]
async fn which_parts_it_is_in_is_told_in_the_log_by_readiness_and_by_metrics() {
    let mesh = Mesh::with(Options {
        b: vec!["sandbox: { mode: auto, unsafe_dumpable: true }".into()],
        ..Options::default()
    })
    .await;
    let metrics = mesh.b.metrics().await;
    let enforced = |part| metrics.sum("doorward_sandbox_enforced", &[("part", part)]);
    for part in ["syscalls", "privileges", "capabilities"] {
        assert_eq!(enforced(part), 1.0, "{part}");
    }
    assert_eq!(enforced("memory"), 0.0);
    assert_eq!(
        metrics.0.matches("\ndoorward_sandbox_enforced{").count(),
        PARTS.len()
    );
    // What the process collector reads is its own.
    assert!(metrics.sum("process_open_fds", &[]) > 0.0);
    let readiness = mesh.b.readiness().await;
    assert_eq!(readiness.status, 200);
    let conditions = readiness.json();
    let conditions = conditions["conditions"].as_array().unwrap();
    let told = conditions.iter().find(|one| one["name"] == "sandbox");
    let told = told.unwrap()["detail"].as_str().unwrap().to_owned();
    let why = "memory (`sandbox.unsafe_dumpable` is `true`)";
    assert!(told.contains("; not ") && told.contains(why), "{told}");
    assert!(mesh.b.process.log().contains(&told));
}

#[tokio::test]
async fn it_does_in_the_sandbox_all_that_it_does_without() {
    let dirs = Dirs::new();
    let issuer = Issuer::new(&dirs);
    let ca = Ca::stranger(DOMAIN);
    let mut volumes = ["a", "b"].map(|name| Volume::new(dirs.file(&format!("{name}.secret"))));
    for (volume, name) in volumes.iter_mut().zip(["a", "b"]) {
        volume.renew(&ca.svid(name), &ca);
    }
    let policy = PolicyDir::new(dirs.file("policy"));
    policy.write("policy.cedar", &grant("all-for-a", "a"));
    let records = dirs.file("records");
    fs::create_dir(&records).unwrap();
    let records = records.join("audit.jsonl");
    let app = App::start().await;
    let mut b = Plan::new("b")
        .identity(&volumes[1].section())
        .inbound(app.address, "")
        .audit(&format!("{{ path: '{}' }}", records.display()))
        .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
        .start(&dirs, &issuer)
        .await;
    let port = b.inbound[0].port();
    // By name: the resolver reads its files.
    let mut a = Plan::new("a")
        .identity(&volumes[0].section())
        .outbound(format!("localhost:{port}"), &id("b"), "")
        .start(&dirs, &issuer)
        .await;
    a.ready().await;
    b.ready().await;
    let entrance = a.outbound[0];
    assert_eq!(get(entrance, "/").await.status, 200);

    // Certificates are renewed as Kubernetes does it.
    for (volume, name) in volumes.iter_mut().zip(["a", "b"]) {
        volume.renew(&ca.svid(name), &ca);
    }
    b.counts("doorward_identity_rotations_total", &[], 1.0)
        .await;
    a.counts("doorward_identity_rotations_total", &[], 1.0)
        .await;
    assert_eq!(get(entrance, "/").await.status, 200);

    // The audit is moved aside by somebody else, then opened anew.
    let aside = records.with_extension("old");
    fs::rename(&records, &aside).unwrap();
    b.process.signal(Signal::SIGHUP);
    eventually("there is another file", async || {
        records.exists().then_some(())
    })
    .await;
    assert_eq!(get(entrance, "/after").await.status, 200);
    eventually("the record is in it", async || {
        let text = fs::read_to_string(&records).unwrap();
        text.contains("\"/after\"").then_some(())
    })
    .await;

    // The policy is loaded anew.
    let before = b.metrics().await.sum("doorward_policy_generation", &[]);
    policy.write("policy.cedar", &grant("all-for-c", "c"));
    eventually("the policy is in force", async || {
        let now = b.metrics().await.sum("doorward_policy_generation", &[]);
        (now > before).then_some(())
    })
    .await;
    assert_eq!(get(entrance, "/").await.status, 403);
    assert_eq!(a.terminate().await, Some(0));
    assert_eq!(b.terminate().await, Some(0));
    for sidecar in [&a, &b] {
        is_whole(&sidecar.process.log());
    }
}

/// Every way in which a key of the curve P-256 could be written: a part of it is enough.
struct Needles(Vec<(String, Vec<u8>)>);

impl Needles {
    fn of(pkcs8: &[u8]) -> Self {
        // The number that is secret. The point behind it is in the certificate.
        let secret = &pkcs8[36..68];
        let mut needles = vec![("as it is".to_owned(), secret[8..24].to_vec())];
        for part in secret.windows(12) {
            let decimal = |between: &str| {
                let bytes: Vec<_> = part.iter().map(u8::to_string).collect();
                bytes.join(between)
            };
            let hex = |between: &str| {
                let bytes: Vec<_> = part.iter().map(|byte| format!("{byte:02x}")).collect();
                bytes.join(between)
            };
            for (how, text) in [
                ("base64", STANDARD.encode(part)),
                ("base64 for URLs", URL_SAFE.encode(part)),
                ("hexadecimal", hex("")),
                ("hexadecimal in capitals", hex("").to_uppercase()),
                ("hexadecimal with colons", hex(":")),
                ("numbers", decimal(", ")),
                ("dense numbers", decimal(",")),
            ] {
                needles.push((how.into(), text.into_bytes()));
            }
        }
        Self(needles)
    }

    fn found_in(&self, text: &[u8]) -> Option<&str> {
        let found = self.0.iter().find(|(_, needle)| {
            let mut windows = text.windows(needle.len());
            windows.any(|window| window == needle)
        });
        found.map(|(how, _)| how.as_str())
    }
}

#[tokio::test]
async fn no_private_key_is_in_any_log_record_metric_or_answer() {
    let dirs = Dirs::new();
    let issuer = Issuer::new(&dirs);
    let ca = Ca::stranger(DOMAIN);
    let mut volume = Volume::new(dirs.file("b.secret"));
    let policy = PolicyDir::new(dirs.file("policy"));
    policy.write("policy.cedar", &grant("all-for-a", "a"));
    let app = App::start().await;
    let mut svids = vec![ca.svid("b")];
    volume.renew(&svids[0], &ca);
    let mut b = Plan::new("b")
        .identity(&volume.section())
        .inbound(app.address, "")
        .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
        .with("admin: { listen: '127.0.0.1:0' }")
        .with("log: { format: json, level: trace }")
        .start(&dirs, &issuer)
        .await;
    b.ready().await;
    for round in 1..=3 {
        svids.push(ca.svid("b"));
        volume.renew(&svids[svids.len() - 1], &ca);
        b.counts("doorward_identity_rotations_total", &[], f64::from(round))
            .await;
    }
    // Mistakes are told of too: a key that does not fit, one that is none, a file that breaks off.
    let held = ca.svid("b");
    volume.put(&svids[0], &held, &ca);
    svids.push(held);
    let failures = "doorward_identity_source_failures_total";
    eventually("the mistake is told", async || {
        (b.metrics().await.sum(failures, &[]) > 0.0).then_some(())
    })
    .await;
    let before = b.metrics().await.sum(failures, &[]);
    let key = fs::read_to_string(volume.dir.join("tls.key")).unwrap();
    fs::write(volume.dir.join("tls.key"), &key[..key.len() - 20]).unwrap();
    eventually("that mistake is told too", async || {
        (b.metrics().await.sum(failures, &[]) > before).then_some(())
    })
    .await;
    let caller = Tls::new(Some(&ca.svid("a")), &["http/1.1"]);
    let mut client = caller.client(b.inbound[0]).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);

    let mut told = vec![
        ("the log", b.process.log().into_bytes()),
        ("/metrics", b.metrics().await.0.into_bytes()),
    ];
    for path in ["/identity", "/ready", "/live", "/audit", "/nothing"] {
        told.push((path, get(b.admin.unwrap(), path).await.body.to_vec()));
    }
    assert_eq!(b.terminate().await, Some(0));
    told.push(("the audit", fs::read(&b.audit).unwrap()));
    assert!(b.process.log().contains("TRACE"), "it told all that it can");
    for (index, svid) in svids.iter().enumerate() {
        let secret = svid.key();
        let needles = Needles::of(secret.secret_der());
        for (place, text) in &told {
            assert!(!text.is_empty(), "{place}");
            assert_eq!(needles.found_in(text), None, "key {index} in {place}");
        }
        // The needles find a key where there is one.
        let pem = pem::encode(&pem::Pem::new("PRIVATE KEY", secret.secret_der().to_vec()));
        assert_eq!(needles.found_in(pem.as_bytes()), Some("base64"));
        let debug = format!("{:?}", secret.secret_der());
        assert_eq!(needles.found_in(debug.as_bytes()), Some("numbers"));
    }
}

#[tokio::test]
async fn the_issuers_own_keys_are_in_no_log() {
    let mesh = Mesh::with(Options {
        rotate_every: Some("1s"),
        ..Options::default()
    })
    .await;
    mesh.b
        .counts("doorward_identity_rotations_total", &[], 1.0)
        .await;
    let kept = fs::read(mesh.dirs.file("ca.pem")).unwrap();
    let keys = pem::parse_many(kept).unwrap();
    let keys: Vec<_> = keys
        .iter()
        .filter(|block| block.tag() == "PRIVATE KEY")
        .collect();
    assert!(!keys.is_empty());
    for key in keys {
        let needles = Needles::of(key.contents());
        for file in ["issuer.log", "a.log", "b.log"] {
            let text = read(&mesh.dirs.file(file));
            assert_eq!(needles.found_in(&text), None, "{file}");
        }
    }
}

fn read(path: &Path) -> Vec<u8> {
    let text = fs::read(path).unwrap();
    assert!(!text.is_empty(), "{}", path.display());
    text
}
