//! An identity in files is renewed by whoever puts new files there, and by nothing less than a whole one.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pem::{Pem, encode};

use crate::mesh::*;

/// A directory as Kubernetes mounts a secret: all files change at once, by moving one link.
pub(crate) struct Volume {
    pub(crate) dir: PathBuf,
    version: u32,
}

impl Volume {
    pub(crate) fn new(dir: PathBuf) -> Self {
        std::fs::create_dir(&dir).unwrap();
        for name in ["tls.crt", "tls.key", "ca.pem"] {
            symlink(format!("..data/{name}"), dir.join(name)).unwrap();
        }
        Self { dir, version: 0 }
    }

    /// Puts certificate, key and bundle in place.
    pub(crate) fn put(&mut self, shown: &Minted, held: &Minted, ca: &Ca) {
        let (old, new) = (self.version, self.version + 1);
        self.version = new;
        let version = self.dir.join(format!("..{new}"));
        std::fs::create_dir(&version).unwrap();
        write(&version.join("tls.crt"), &chain(shown));
        let key = Pem::new("PRIVATE KEY", held.key().secret_der().to_vec());
        write(&version.join("tls.key"), &encode(&key));
        let root = Pem::new("CERTIFICATE", ca.certificate().to_vec());
        write(&version.join("ca.pem"), &encode(&root));
        symlink(format!("..{new}"), self.dir.join("..data_tmp")).unwrap();
        std::fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data")).unwrap();
        if old > 0 {
            std::fs::remove_dir_all(self.dir.join(format!("..{old}"))).unwrap();
        }
    }

    pub(crate) fn renew(&mut self, svid: &Minted, ca: &Ca) {
        self.put(svid, svid, ca);
    }

    pub(crate) fn section(&self) -> String {
        let dir = self.dir.display();
        format!(
            "{{ files: {{ cert: '{dir}/tls.crt', key: '{dir}/tls.key', bundle: '{dir}/ca.pem' }} }}"
        )
    }
}

fn chain(minted: &Minted) -> String {
    let blocks = minted.chain.iter();
    blocks
        .map(|der| encode(&Pem::new("CERTIFICATE", der.to_vec())))
        .collect()
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// `a` calls `b`, and nobody issues anything but a CA in this test's hands.
struct Scene {
    a: Sidecar,
    b: Sidecar,
    volumes: [Volume; 2],
    ca: Ca,
    _app: App,
    _dirs: Dirs,
}

impl Scene {
    /// Both sidecars run and have no files yet.
    async fn unidentified() -> Self {
        let dirs = Dirs::new();
        // It never runs: nobody asks it.
        let issuer = Issuer::new(&dirs);
        let volumes = ["a", "b"].map(|name| Volume::new(dirs.file(&format!("{name}.secret"))));
        let policy = PolicyDir::new(dirs.file("policy"));
        policy.write("policy.cedar", &grant("all-for-a", "a"));
        let app = App::start().await;
        let b = Plan::new("b")
            .identity(&volumes[1].section())
            .inbound(app.address, "")
            .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
            .start(&dirs, &issuer)
            .await;
        let a = Plan::new("a")
            .identity(&volumes[0].section())
            .outbound(b.inbound[0], &id("b"), "")
            .start(&dirs, &issuer)
            .await;
        Self {
            a,
            b,
            volumes,
            ca: Ca::stranger(DOMAIN),
            _app: app,
            _dirs: dirs,
        }
    }

    async fn new() -> Self {
        let mut scene = Self::unidentified().await;
        scene.renew();
        scene.a.ready().await;
        scene.b.ready().await;
        scene
    }

    /// New certificates for both.
    fn renew(&mut self) {
        for (volume, name) in self.volumes.iter_mut().zip(["a", "b"]) {
            volume.renew(&self.ca.svid(name), &self.ca);
        }
    }

    async fn get(&self) -> Answer {
        get(self.a.outbound[0], "/").await
    }
}

async fn failures(sidecar: &Sidecar) -> f64 {
    let metrics = sidecar.metrics().await;
    metrics.sum("doorward_identity_source_failures_total", &[])
}

async fn rotations(sidecar: &Sidecar) -> f64 {
    let metrics = sidecar.metrics().await;
    metrics.sum("doorward_identity_rotations_total", &[])
}

#[tokio::test]
async fn files_that_are_not_there_at_the_start_are_found_when_they_come() {
    let mut scene = Scene::unidentified().await;
    assert_eq!(scene.b.unready().await, ["identity", "listeners"]);
    eventually("it looks again and again", async || {
        (failures(&scene.b).await >= 2.0).then_some(())
    })
    .await;
    let missing = scene.volumes[1].dir.join("tls.crt");
    let told = format!("cannot read {}", missing.display());
    assert!(scene.b.process.log().contains(&told));
    scene.renew();
    within(Duration::from_secs(3), "both are ready", async || {
        let both = (
            scene.a.readiness().await.status,
            scene.b.readiness().await.status,
        );
        (both == (200, 200)).then_some(())
    })
    .await;
    assert_eq!(scene.get().await.status, 200);
}

#[tokio::test]
async fn renewal_by_moving_a_link_costs_no_request() {
    let mut scene = Scene::new().await;
    let stop = Arc::new(AtomicBool::new(false));
    let entrance = scene.a.outbound[0];
    let clients: Vec<_> = [Http::One, Http::Two]
        .into_iter()
        .cycle()
        .take(16)
        .map(|http| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let mut client = Client::connect(entrance, http).await;
                let mut served = 0_u32;
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(client.get("/").await.unwrap().status, 200, "{http:?}");
                    served += 1;
                }
                served
            })
        })
        .collect();
    for round in 1..=8 {
        scene.renew();
        for sidecar in [&scene.a, &scene.b] {
            eventually(format_args!("renewal {round}"), async || {
                (rotations(sidecar).await >= f64::from(round)).then_some(())
            })
            .await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_pair_that_does_not_fit_leaves_the_old_one_in_force_and_is_told_by_the_files_name() {
    let mut scene = Scene::new().await;
    let before = failures(&scene.b).await;
    let (shown, held) = (scene.ca.svid("b"), scene.ca.svid("b"));
    scene.volumes[1].put(&shown, &held, &scene.ca);
    eventually("the failure is counted", async || {
        (failures(&scene.b).await > before).then_some(())
    })
    .await;
    let key = scene.volumes[1].dir.join("tls.key");
    let log = scene.b.process.log();
    let told = log.lines().any(|line| {
        line.contains(key.to_str().unwrap()) && line.contains("the private key does not fit")
    });
    assert!(told, "{log}");
    assert_eq!(scene.b.readiness().await.status, 200);
    assert_eq!(rotations(&scene.b).await, 0.0);
    assert_eq!(scene.get().await.status, 200);

    scene.volumes[1].renew(&shown, &scene.ca);
    eventually("the whole pair is in force", async || {
        (rotations(&scene.b).await == 1.0).then_some(())
    })
    .await;
    assert_eq!(scene.get().await.status, 200);
}

#[tokio::test]
async fn a_pair_that_has_ended_is_presented_no_more_and_replaces_nothing() {
    let mut scene = Scene::new().await;
    let before = failures(&scene.a).await;
    let ended = scene.ca.svid_for("a", Duration::from_secs(2));
    scene.volumes[0].renew(&ended, &scene.ca);
    eventually("the short one is in force", async || {
        (rotations(&scene.a).await == 1.0).then_some(())
    })
    .await;
    assert_eq!(scene.get().await.status, 200);
    eventually("it has ended", async || {
        (scene.a.unready().await == ["identity"]).then_some(())
    })
    .await;
    let answer = scene.get().await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.json()["error"], "own_identity_expired");

    scene.volumes[0].renew(&scene.ca.svid("a"), &scene.ca);
    within(Duration::from_secs(3), "it is back", async || {
        (scene.get().await.status == 200).then_some(())
    })
    .await;
    // Put back by mistake, the ended one does not come into force again.
    scene.volumes[0].renew(&ended, &scene.ca);
    eventually("the mistake is counted", async || {
        (failures(&scene.a).await > before).then_some(())
    })
    .await;
    assert_eq!(scene.a.readiness().await.status, 200);
    assert_eq!(scene.get().await.status, 200);
}
