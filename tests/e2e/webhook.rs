//! The API server asks the webhook about new pods: over any HTTP, through rotations, and whatever else comes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::FutureExt as _;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::signal::Signal;
use rcgen::SanType;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::mesh::*;

/// A webhook with a certificate of its own CA.
struct Webhook {
    process: Process,
    reviews: SocketAddr,
    metrics: SocketAddr,
    dirs: Dirs,
    ca: Ca,
}

/// What the API server calls here, and what it does not.
const HOST: &str = "127.0.0.1";

impl Webhook {
    /// Ready, with `keys` in the section `webhook`.
    async fn start(keys: &str) -> Self {
        let mut webhook = Self::begin(keys, Some(HOST), &[]).await;
        webhook.ready().await;
        webhook
    }

    /// Its sockets are bound. `environment` is `export`ed, and what follows `publish` is published to.
    async fn begin(keys: &str, host: Option<&str>, environment: &[String]) -> Self {
        let (dirs, ca) = (Dirs::new(), Ca::stranger(DOMAIN));
        std::fs::write(dirs.file("bundle.pem"), ca.pem()).unwrap();
        show(&dirs, &ca, host);
        let file = |name: &str| dirs.file(name).display().to_string();
        let config = format!(
            "image: doorward:test\npolicy: ledger-policy\nwebhook:\n  listen: 127.0.0.1:0\n  metrics: {{ listen: 127.0.0.1:0 }}\n  log: {{ format: json }}\n  identity:\n    files: {{ cert: '{}', key: '{}', bundle: '{}' }}\n{keys}",
            file("cert.pem"),
            file("key.pem"),
            file("bundle.pem"),
        );
        std::fs::write(dirs.file("inject.yaml"), config).unwrap();
        let program = dirs.program("webhook");
        let (config, log) = (file("inject.yaml"), dirs.file("webhook.log"));
        let publish = if environment.is_empty() {
            ""
        } else {
            " --publish-bundle webhook"
        };
        let script = format!(
            "{} exec \"$0\" inject --webhook --config '{config}'{publish}",
            environment.concat()
        );
        let args = ["-c", &script, program.to_str().unwrap()];
        let mut process = Process::spawn("webhook", Path::new("/bin/sh"), &args, &log);
        let bound = eventually("the webhook binds its sockets", async || {
            process.assert_running();
            <[SocketAddr; 2]>::try_from(process.bound()).ok()
        });
        let [reviews, metrics] = bound.await;
        Self {
            process,
            reviews,
            metrics,
            dirs,
            ca,
        }
    }

    async fn ready(&mut self) {
        let (metrics, process) = (self.metrics, &mut self.process);
        eventually("the webhook is ready", async || {
            process.assert_running();
            (get(metrics, "/ready").await.status == 200).then_some(())
        })
        .await;
    }

    async fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        Metrics(get(self.metrics, "/metrics").await.text()).sum(name, labels)
    }

    /// A connection without a certificate.
    async fn client(&self, alpn: &str) -> Client {
        Tls::new(None, &[alpn]).client(self.reviews).await
    }

    /// The leaf that the next handshake shows.
    async fn shown(&self) -> CertificateDer<'static> {
        let stream = Tls::new(None, &[]).connect(self.reviews).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    }
}

/// Counters count whole things.
#[track_caller]
fn same(counted: f64, expected: f64) {
    assert!(
        (counted - expected).abs() < 0.5,
        "{counted}, not {expected}"
    );
}

/// Puts a new certificate for `host` in the place of the last one.
fn show(dirs: &Dirs, ca: &Ca, host: Option<&str>) -> Minted {
    let mut params = leaf(&id("webhook"));
    let address = host.map(|host| SanType::IpAddress(host.parse().unwrap()));
    params.subject_alt_names.extend(address);
    let minted = ca.mint(&params);
    for (name, label, der) in [
        ("cert.pem", "CERTIFICATE", minted.chain[0].to_vec()),
        ("key.pem", "PRIVATE KEY", minted.key().secret_der().to_vec()),
    ] {
        std::fs::write(dirs.file(name), pem::encode(&pem::Pem::new(label, der))).unwrap();
    }
    minted
}

fn review(annotations: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": "bank",
            "operation": "CREATE",
            "object": {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": { "name": "ledger", "annotations": annotations },
                "spec": { "serviceAccountName": "ledger", "containers": [{ "name": "app", "image": "app" }] },
            },
        },
    })
}

fn post(path: &str, content_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post(format!("https://{HOST}{path}"))
        .header("content-type", content_type)
        .body(Full::new(body.into()))
        .unwrap()
}

fn asked(review: &Value) -> Request<Full<Bytes>> {
    post(
        "/mutate?timeout=10s",
        "application/json",
        review.to_string(),
    )
}

#[tokio::test]
async fn a_review_is_answered_with_a_patch_or_a_refusal_over_any_http() {
    let webhook = Webhook::start("").await;
    for alpn in ["h2", "http/1.1"] {
        let mut client = webhook.client(alpn).await;
        let answer = client
            .ask(asked(&review(&json!({ "doorward.dev/port": "8080" }))))
            .await;
        let answer = answer.unwrap();
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, "application/json")
        );
        let response = answer.json()["response"].clone();
        assert_eq!(
            (&response["uid"], &response["allowed"]),
            (&json!("705ab4f5"), &json!(true))
        );
        let patch = STANDARD
            .decode(response["patch"].as_str().unwrap())
            .unwrap();
        assert!(String::from_utf8(patch).unwrap().contains("doorward:test"));
        let answer = client
            .ask(asked(&review(&json!({ "doorward.dev/prot": "8080" }))))
            .await;
        let response = answer.unwrap().json()["response"].clone();
        assert_eq!(response["allowed"], false);
        let why = response["status"]["message"].as_str().unwrap();
        assert!(why.contains("doorward.dev/prot"), "{why}");
    }
    let reviews = "doorward_webhook_reviews_total";
    same(webhook.sum(reviews, &[("result", "injected")]).await, 2.0);
    same(webhook.sum(reviews, &[("result", "refused")]).await, 2.0);
    same(
        webhook
            .sum("doorward_webhook_review_duration_seconds_count", &[])
            .await,
        4.0,
    );
}

#[tokio::test]
async fn whatever_else_comes_is_told_what_it_is_not_and_the_next_review_is_answered() {
    let mut webhook = Webhook::start("").await;
    let deep = [b"[".repeat(200_000), b"]".repeat(200_000)].concat();
    let json = "application/json";
    for (request, status) in [
        (post("/mutate", json, "{"), 400),
        (post("/mutate", json, "null"), 400),
        (post("/mutate", json, deep), 400),
        (post("/mutate", json, &[0xff, 0xfe][..]), 400),
        (post("/mutate", json, vec![b' '; 5 << 20]), 413),
        (post("/mutate", "application/yaml", "a: b"), 415),
        (post("/", json, "{}"), 404),
        (request("GET", &format!("https://{HOST}/mutate")), 405),
    ] {
        // Whoever is not read to the end loses the connection.
        let mut client = webhook.client("h2").await;
        assert_eq!(client.ask(request).await.unwrap().status, status);
    }
    let mut pieces = review(&json!({ "doorward.dev/port": "8080" }));
    for object in [
        json!(null),
        json!([]),
        json!({ "spec": { "containers": "none" } }),
        json!(7),
    ] {
        pieces["request"]["object"] = object;
        let answer = webhook
            .client("h2")
            .await
            .ask(asked(&pieces))
            .await
            .unwrap();
        assert_eq!(answer.json()["response"]["allowed"], false, "{pieces}");
    }
    // Bytes that are no TLS.
    let mut stranger = tokio::net::TcpStream::connect(webhook.reviews)
        .await
        .unwrap();
    raw(&mut stranger, b"POST /mutate HTTP/1.1\r\n\r\n").await;
    webhook.process.assert_running();
    let answer = webhook
        .client("h2")
        .await
        .ask(asked(&review(&json!({}))))
        .await
        .unwrap();
    assert_eq!(answer.json()["response"]["allowed"], true);
    let malformed = webhook.sum("doorward_webhook_reviews_total", &[("result", "malformed")]);
    same(malformed.await, 4.0);
}

#[tokio::test]
async fn whoever_sends_slowly_takes_nothing_from_other_addresses() {
    let webhook = Webhook::start("").await;
    // Of an address of its own, and more than are held at once.
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{{"
    );
    let connect = async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let stream = socket.connect(webhook.reviews).await.unwrap();
        Tls::new(None, &["http/1.1"]).on(stream).await
    };
    let mut slow = Vec::new();
    for _ in 0..64 {
        let mut stream = connect().await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    assert!(connect().await.is_err(), "a connection too many");
    let limit = [("limit", "connections")];
    same(webhook.sum("doorward_limits_hit_total", &limit).await, 1.0);
    // They have taken all that they get: those of before these wait in front of them.
    let mut client = webhook.client("h2").await;
    for _ in 0..100 {
        let answer = client.ask(asked(&review(&json!({})))).await.unwrap();
        assert_eq!(answer.status, 200);
    }
    for stream in &mut slow {
        let answered = stream.read_u8().now_or_never();
        assert!(answered.is_none(), "a slow one was given up first");
    }
}

#[tokio::test]
async fn a_new_certificate_is_shown_to_whoever_connects_and_ends_nothing() {
    let webhook = Webhook::start("").await;
    let mut kept = webhook.client("h2").await;
    let before = webhook.shown().await;
    let minted = show(&webhook.dirs, &webhook.ca, Some(HOST));
    eventually("the new certificate is shown", async || {
        let shown = webhook.shown().await;
        assert!(shown == before || shown == minted.chain[0]);
        (shown == minted.chain[0]).then_some(())
    })
    .await;
    let answer = kept.ask(asked(&review(&json!({})))).await.unwrap();
    assert_eq!(answer.status, 200);
    same(
        webhook.sum("doorward_identity_rotations_total", &[]).await,
        1.0,
    );
}

#[tokio::test]
async fn a_certificate_that_names_no_host_is_told_before_the_api_server_refuses_it() {
    let webhook = Webhook::begin("", None, &[]).await;
    let told = eventually("it is told", async || {
        let answer = get(webhook.metrics, "/ready").await;
        let conditions = answer.json()["conditions"].clone();
        let told = conditions[0]["detail"].as_str()?.to_owned();
        told.contains("names no host")
            .then_some((answer.status, told))
    });
    let (status, told) = told.await;
    assert_eq!(status, 503);
    assert!(
        told.contains("the DNS name of the webhook's Service"),
        "{told}"
    );
}

#[tokio::test]
async fn where_roots_of_clients_are_named_nobody_else_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let roots = dir.path().join("clients.pem");
    let (first, second) = (
        Ca::stranger("api-server.test"),
        Ca::stranger("api-server.test"),
    );
    std::fs::write(&roots, first.pem()).unwrap();
    let webhook = Webhook::start(&format!("  clients: '{}'\n", roots.display())).await;
    let answered = async |identity: Option<&Minted>| {
        let stream = Tls::new(identity, &["http/1.1"])
            .connect(webhook.reviews)
            .await;
        let mut client = Client::on(stream.unwrap(), Http::One).await;
        client.ask(asked(&review(&json!({})))).await.is_ok()
    };
    let (old, new) = (first.svid("api-server"), second.svid("api-server"));
    assert!(answered(Some(&old)).await);
    assert!(!answered(None).await);
    assert!(!answered(Some(&new)).await);
    std::fs::write(&roots, second.pem()).unwrap();
    eventually("the new roots count", async || {
        answered(Some(&new)).await.then_some(())
    })
    .await;
    assert!(!answered(Some(&old)).await);
}

#[tokio::test]
async fn told_to_stop_it_is_not_ready_still_answers_and_ends_when_all_have_heard() {
    let mut webhook = Webhook::start("  leave_after: 2s\n").await;
    let mut kept = webhook.client("h2").await;
    assert!(kept.ask(asked(&review(&json!({})))).await.is_ok());
    webhook.process.signal(Signal::SIGTERM);
    let metrics = webhook.metrics;
    eventually("it is not ready", async || {
        (get(metrics, "/ready").await.status == 503).then_some(())
    })
    .await;
    // A new connection of somebody who has not heard.
    let answer = webhook
        .client("h2")
        .await
        .ask(asked(&review(&json!({}))))
        .await;
    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(webhook.process.exit().await, Some(0));
}

#[tokio::test]
async fn a_review_that_is_under_way_is_answered_before_the_end() {
    let mut webhook = Webhook::start("  leave_after: 0s\n").await;
    let stream = Tls::new(None, &["http/1.1"]).connect(webhook.reviews).await;
    let mut stream = stream.unwrap();
    let body = review(&json!({ "doorward.dev/port": "8080" })).to_string();
    let head = format!(
        "POST /mutate HTTP/1.1\r\nhost: {HOST}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // It has begun to read.
    let mut continued = [0; 25];
    stream.read_exact(&mut continued).await.unwrap();
    assert!(continued.starts_with(b"HTTP/1.1 100 Continue"));
    webhook.process.signal(Signal::SIGTERM);
    eventually("it accepts nobody any more", async || {
        tokio::net::TcpStream::connect(webhook.reviews)
            .await
            .is_err()
            .then_some(())
    })
    .await;
    let answer = raw(&mut stream, body.as_bytes()).await;
    assert_eq!(status_of(&answer), 200, "{answer}");
    assert!(answer.contains("JSONPatch"), "{answer}");
    drop(stream);
    assert_eq!(webhook.process.exit().await, Some(0));
}

/// An API server with one object, and what was sent to it.
struct ApiServer {
    address: SocketAddr,
    ca: Ca,
    object: Arc<Mutex<Value>>,
}

impl ApiServer {
    async fn start(token: &'static str) -> Self {
        let ca = Ca::stranger("cluster.test");
        let mut params = leaf("spiffe://cluster.test/api-server");
        params.subject_alt_names = vec![SanType::IpAddress(HOST.parse().unwrap())];
        let acceptor = Tls::server(&ca.mint(&params), &[]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let object = Arc::new(Mutex::new(json!({
            "metadata": { "name": "webhook", "resourceVersion": "1" },
            "webhooks": [{ "name": "a", "clientConfig": {} }, { "name": "b", "clientConfig": { "caBundle": "b2xk" } }],
        })));
        let shared = object.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let object = shared.clone();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let object = object.clone();
                    async move { Self::answer(request, &object, token).await }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            address,
            ca,
            object,
        }
    }

    async fn answer(
        request: Request<hyper::body::Incoming>,
        object: &Mutex<Value>,
        token: &str,
    ) -> hyper::Result<http::Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/webhook";
        let status = if head.headers["authorization"] != format!("Bearer {token}") {
            401
        } else if head.uri.path() != path {
            404
        } else {
            200
        };
        let mut object = object.lock().unwrap();
        if status == 200 && head.method == "PATCH" {
            assert_eq!(head.headers["content-type"], "application/json-patch+json");
            let patch: json_patch::Patch = serde_json::from_slice(&body).unwrap();
            json_patch::patch(&mut object, &patch).unwrap();
            let version = &mut object["metadata"]["resourceVersion"];
            *version = format!("{}1", version.as_str().unwrap()).into();
        }
        let text = match status {
            200 => object.to_string(),
            _ => json!({ "kind": "Status", "message": "not for you" }).to_string(),
        };
        let answer = http::Response::builder().status(status);
        Ok(answer.body(text.into()).unwrap())
    }

    fn bundles(&self) -> [String; 2] {
        let object = self.object.lock().unwrap();
        [0, 1].map(|index| {
            let text = &object["webhooks"][index]["clientConfig"]["caBundle"];
            let text = STANDARD.decode(text.as_str().unwrap_or_default()).unwrap();
            String::from_utf8(text).unwrap()
        })
    }
}

#[tokio::test]
async fn the_bundle_is_published_whenever_it_changes_or_somebody_changed_it() {
    let api_server = ApiServer::start("first").await;
    let account = tempfile::tempdir().unwrap();
    std::fs::write(account.path().join("ca.crt"), api_server.ca.pem()).unwrap();
    std::fs::write(account.path().join("token"), "wrong\n").unwrap();
    let environment = [
        format!("export KUBERNETES_SERVICE_HOST={HOST};"),
        format!(
            "export KUBERNETES_SERVICE_PORT={};",
            api_server.address.port()
        ),
    ];
    let keys = format!("  service_account: '{}'\n", account.path().display());
    let mut webhook = Webhook::begin(&keys, Some(HOST), &environment).await;

    // Without a token that counts it says so and is not ready.
    eventually("the failure is counted", async || {
        let failures = webhook.sum("doorward_webhook_bundle_failures_total", &[]);
        (failures.await > 0.0).then_some(())
    })
    .await;
    assert_eq!(get(webhook.metrics, "/ready").await.status, 503);
    assert!(
        webhook.process.log().contains("not for you"),
        "{}",
        webhook.process.log()
    );

    // Tokens are replaced where they lie.
    std::fs::write(account.path().join("token"), "first\n").unwrap();
    webhook.ready().await;
    let trimmed = |text: &str| text.replace("\r\n", "\n");
    let first = trimmed(&webhook.ca.pem());
    assert_eq!(api_server.bundles(), [first.clone(), first.clone()]);

    // A second root, and then somebody who takes all away.
    let both = format!("{first}{}", trimmed(&Ca::stranger(DOMAIN).pem()));
    std::fs::write(webhook.dirs.file("bundle.pem"), &both).unwrap();
    eventually("both roots are published", async || {
        (api_server.bundles() == [both.clone(), both.clone()]).then_some(())
    })
    .await;
    api_server.object.lock().unwrap()["webhooks"][1]["clientConfig"] = json!({});
    eventually("they are published again", async || {
        (api_server.bundles() == [both.clone(), both.clone()]).then_some(())
    })
    .await;
    let published = webhook.sum("doorward_webhook_bundle_published_timestamp_seconds", &[]);
    assert!(published.await > 1e9);
}
