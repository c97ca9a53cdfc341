//! What an issuer takes back is refused, on connections that are open already too.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::mesh::*;

/// A mesh whose `b` goes by the list at the path, which revokes nobody yet.
struct Scene {
    b: Sidecar,
    list: PathBuf,
    ca: Ca,
    app: TcpListener,
    _issuer: Issuer,
    _dirs: Dirs,
}

impl Scene {
    async fn new() -> Self {
        let dirs = Dirs::new();
        let mut issuer = Issuer::new(&dirs);
        issuer.add(&dirs, "b", "1h", None);
        issuer.start().await;
        let ca = issuer.ca();
        let list = dirs.file("revoked.pem");
        put(&list, &ca.crl(&[]));
        let policy = PolicyDir::new(dirs.file("policy"));
        policy.write("policy.cedar", &(grant("a", "a") + &grant("c", "c")));
        let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let section = format!(
            "{{ workload_api: 'unix://{}', crl: '{}' }}",
            issuer.socket.display(),
            list.display()
        );
        let mut b = Plan::new("b")
            .identity(&section)
            .inbound(app.local_addr().unwrap(), "protocol: tcp")
            .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
            .start(&dirs, &issuer)
            .await;
        b.ready().await;
        Self {
            b,
            list,
            ca,
            app,
            _issuer: issuer,
            _dirs: dirs,
        }
    }
}

fn put(list: &Path, text: &str) {
    let beside = list.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(beside, list).unwrap();
}

#[tokio::test]
async fn a_revoked_peer_loses_its_open_session_within_a_second_and_gets_no_other() {
    let scene = Scene::new().await;
    let (bad, good) = (scene.ca.svid("a"), scene.ca.svid("c"));
    let open = async |svid: &Minted| {
        let tls = Tls::new(Some(svid), &["doorward-tcp"]);
        let mut client = tls.connect(scene.b.inbound[0]).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let (mut app, _) = scene.app.accept().await.unwrap();
        assert_eq!(app.read_u8().await.unwrap(), b'x');
        (client, app)
    };
    let (mut kept, mut app_of_kept) = open(&good).await;
    let (_client, mut app) = open(&bad).await;

    put(&scene.list, &scene.ca.crl(&[&bad]));
    let closed = tokio::time::timeout(Duration::from_secs(1), app.read_u8());
    assert!(closed.await.expect("closed within a second").is_err());
    let record = scene
        .b
        .record("the end", |record| record["outcome"] == "trust_withdrawn")
        .await;
    assert_eq!(record["principal"]["id"], id("a"), "{record}");
    // In TLS 1.3 a client hears of its refusal on the first read.
    let again = Tls::new(Some(&bad), &["doorward-tcp"]);
    if let Ok(mut again) = again.connect(scene.b.inbound[0]).await {
        assert!(again.read_u8().await.is_err());
    }
    let refused = [("direction", "inbound"), ("result", "revoked")];
    scene
        .b
        .counts("doorward_handshakes_total", &refused, 1.0)
        .await;
    // Another certificate of the same workload is as good as ever, and nobody else loses anything.
    open(&scene.ca.svid("a")).await;
    kept.write_all(b"y").await.unwrap();
    assert_eq!(app_of_kept.read_u8().await.unwrap(), b'y');
}

#[tokio::test]
async fn a_list_that_breaks_leaves_the_last_one_in_force_and_is_told() {
    let scene = Scene::new().await;
    let bad = scene.ca.svid("a");
    let refused = async || {
        let tls = Tls::new(Some(&bad), &["doorward-tcp"]);
        match tls.connect(scene.b.inbound[0]).await {
            // Whoever is let in hears nothing: the application waits for it to speak first.
            Ok(mut stream) => {
                let heard = tokio::time::timeout(Duration::from_secs(1), stream.read_u8());
                matches!(heard.await, Ok(Err(_)))
            }
            Err(_) => true,
        }
    };
    assert!(!refused().await);
    put(&scene.list, &scene.ca.crl(&[&bad]));
    eventually("the list is in force", async || {
        refused().await.then_some(())
    })
    .await;
    let updated = async || {
        let metrics = scene.b.metrics().await;
        metrics.sum("doorward_crl_updated_timestamp_seconds", &[])
    };
    let before = updated().await;

    put(&scene.list, "-----BEGIN X509 CRL-----\n");
    scene
        .b
        .counts("doorward_crl_failures_total", &[], 1.0)
        .await;
    let readiness = scene.b.readiness().await;
    assert_eq!(readiness.status, 200, "{readiness:?}");
    let conditions = readiness.json()["conditions"].clone();
    let told = conditions.as_array().unwrap().iter();
    let told = told.filter(|condition| condition["name"] == "crl");
    let detail = told.map(|condition| condition["detail"].as_str().unwrap().to_owned());
    let detail: String = detail.collect();
    assert!(detail.contains(scene.list.to_str().unwrap()), "{detail}");
    assert!(refused().await);
    assert!((updated().await - before).abs() < f64::EPSILON);

    put(&scene.list, &scene.ca.crl(&[&bad, &scene.ca.svid("c")]));
    eventually("the next one is in force", async || {
        (updated().await > before).then_some(())
    })
    .await;
    assert!(!scene.b.readiness().await.text().contains("stay"));
}

#[tokio::test]
async fn a_list_that_cannot_be_read_stops_the_start() {
    let dirs = Dirs::new();
    let list = dirs.file("revoked.pem");
    let config = dirs.file("b.yaml");
    let text = format!(
        "identity: {{ workload_api: 'unix:///nowhere', crl: '{}' }}\n\
         outbound: [{{ listen: '127.0.0.1:0', to: '127.0.0.1:1', peer: '{}' }}]\n",
        list.display(),
        id("b")
    );
    std::fs::write(&config, text).unwrap();
    for content in [None, Some(""), Some("-----BEGIN X509 CRL-----\n")] {
        if let Some(content) = content {
            std::fs::write(&list, content).unwrap();
        }
        let mut process = Process::spawn(
            "b",
            &dirs.program("b"),
            &["run", "--config", config.to_str().unwrap()],
            &dirs.file("b.log"),
        );
        assert_eq!(process.exit().await, Some(2), "{content:?}");
        assert!(process.log().contains("revoked.pem"), "{}", process.log());
    }
}
