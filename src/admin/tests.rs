use std::future::pending;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;
use crate::document::Document;
use crate::identity::{self, Source};

struct Served {
    address: SocketAddr,
    ready: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

async fn served() -> Served {
    let ready = Arc::new(AtomicBool::new(true));
    let condition = ready.clone();
    let health =
        Health::default().ready_if("policy", move |_| match condition.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("not loaded".into()),
        });
    let registries = Registries::new().unwrap();
    for worker in [registries.worker(), registries.worker()] {
        let requests = IntCounter::new("doorward_requests_total", "Requests.").unwrap();
        worker.register(Box::new(requests.clone())).unwrap();
        requests.inc_by(3);
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Arc::new(Routes::new(Arc::new(health), registries));
    Served {
        address,
        ready,
        task: tokio::spawn(serve(listener, routes, pending())),
    }
}

impl Served {
    /// One request on a connection of its own: the status, and everything else as text.
    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer)
    }
}

#[tokio::test]
async fn readiness_is_told_with_every_condition_by_name() {
    let served = served().await;
    let (status, answer) = served.ask("GET", "/ready").await;
    assert_eq!(status, 200, "{answer}");
    served.ready.store(false, Ordering::Relaxed);
    let (status, answer) = served.ask("GET", "/ready").await;
    assert_eq!(status, 503);
    assert!(
        answer.contains("content-type: application/json"),
        "{answer}"
    );
    let body = answer.split("\r\n\r\n").nth(1).unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["ready"], false);
    assert_eq!(body["conditions"][0]["name"], "policy");
    assert_eq!(body["conditions"][0]["detail"], "not loaded");
    let (status, _) = served.ask("GET", "/live").await;
    assert_eq!(status, 200, "not ready is not dead");
}

#[tokio::test]
async fn metrics_are_summed_over_workers_and_documented() {
    let (status, answer) = served().await.ask("GET", "/metrics").await;
    assert_eq!(status, 200);
    assert!(answer.contains("content-type: text/plain; version=0.0.4"));
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(body.contains("\ndoorward_requests_total 6\n"), "{body}");
    assert!(body.contains("\n# TYPE process_cpu_seconds_total counter\n"));
    assert!(body.contains("\ndoorward_build_info{version=\""));
    for line in body.lines() {
        let value = match line.strip_prefix("# ") {
            Some(comment) => {
                let words: Vec<_> = comment.splitn(3, ' ').collect();
                assert!(matches!(words[0], "HELP" | "TYPE"), "{line}");
                assert!(!words[2].is_empty(), "{line}");
                continue;
            }
            None => line.rsplit_once(' ').unwrap().1,
        };
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn other_methods_and_paths_are_refused_with_a_hint() {
    let served = served().await;
    for (method, path, status, told) in [
        ("GET", "/", 404, PATHS),
        ("GET", "/metrics/", 404, PATHS),
        ("POST", "/ready", 405, "allow: GET, HEAD"),
        ("POST", "/unknown", 404, PATHS),
    ] {
        let answer = served.ask(method, path).await;
        assert_eq!(answer.0, status, "{method} {path}");
        assert!(answer.1.contains(told), "{method} {path}: {}", answer.1);
    }
}

#[tokio::test]
async fn head_answers_as_get_does_without_the_body() {
    let (status, answer) = served().await.ask("HEAD", "/ready").await;
    assert_eq!(status, 200);
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("content-length: "), "{answer}");
    assert!(!answer.contains("content-length: 0"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_its_question_is_cut() {
    let served = served().await;
    for begun in ["", "GET /ready HT"] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = timeout(HEADER_TIME * 2, stream.read_to_string(&mut answer));
        read.await.unwrap().unwrap();
        assert!(!answer.contains("200"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_stops_asking_is_sent_away() {
    let served = served().await;
    let mut stream = TcpStream::connect(served.address).await.unwrap();
    let began = tokio::time::Instant::now();
    let mut answers = 0;
    let mut buffer = [0; 4096];
    loop {
        // An error or an end both mean that we were sent away.
        if stream
            .write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .is_err()
        {
            break;
        }
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => answers += 1,
            _ => break,
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(began.elapsed() < CONNECTION_TIME * 2);
    }
    assert!(answers > 30, "{answers}");
}

#[tokio::test]
async fn idle_connections_cannot_keep_a_probe_out() {
    let served = served().await;
    let mut idle = Vec::new();
    for _ in 0..CONNECTIONS * 2 {
        idle.push(TcpStream::connect(served.address).await.unwrap());
    }
    assert_eq!(served.ask("GET", "/ready").await.0, 200);
    let mut answer = Vec::new();
    let end = timeout(Duration::from_secs(4), idle[0].read_to_end(&mut answer)).await;
    assert!(end.is_ok(), "the oldest made room");
}

#[tokio::test]
async fn shutdown_ends_the_server_and_what_is_open() {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Routes::new(Arc::default(), Registries::new().unwrap());
    let serving = tokio::spawn(serve(listener, Arc::new(routes), async {
        let _ = stopped.await;
    }));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stop.send(()).unwrap();
    serving.await.unwrap();
    let mut answer = Vec::new();
    // Reset or closed, whichever the system prefers for a connection not yet accepted.
    let _ = timeout(Duration::from_secs(4), stream.read_to_end(&mut answer))
        .await
        .expect("the connection ends with the server");
    assert!(TcpStream::connect(address).await.is_err());
}

#[test]
fn the_admin_listener_stays_on_loopback_unless_exposed_by_name() {
    for (text, told) in [
        ("listen: 127.0.0.1:9900", Ok("127.0.0.1:9900")),
        ("listen: '[::1]:9900'", Ok("[::1]:9900")),
        (
            "listen: 0.0.0.0:9900",
            Err("a.yaml:1: listen: `0.0.0.0:9900` is open to other machines"),
        ),
        (
            "listen: 0.0.0.0:9900\nunsafe_expose: false",
            Err("a.yaml:1: listen: `0.0.0.0:9900` is open to other machines"),
        ),
        (
            "listen: 0.0.0.0:9900\nunsafe_expose: true",
            Ok("0.0.0.0:9900"),
        ),
        (
            "listen: 0.0.0.0:9900\nunsafe_expose: maybe",
            Err("a.yaml:2: unsafe_expose: `maybe` is not known here"),
        ),
        ("{}", Err("a.yaml:1: the key `listen` is missing")),
    ] {
        let read = Document::new("a.yaml", text).read(|node| Settings::read(&node));
        match (read, told) {
            (Ok(settings), Ok(address)) => assert_eq!(settings.listen.to_string(), address),
            (Err(mistakes), Err(told)) => assert_eq!(mistakes.to_string(), told),
            (read, _) => panic!("{text}: {read:?}"),
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn the_identity_is_shown_where_people_ask_and_nowhere_else() {
    let source = Source::workload_api("unix:///run/agent.sock").unwrap();
    let settings = identity::Settings::of(source);
    let routes = Routes::new(Arc::default(), Registries::new().unwrap());
    let admin = routes
        .clone()
        .with_identity(move |_| Shown::nobody(&settings));
    let ask = |routes: &Routes| routes.routed(&Request::get("/identity").body(()).unwrap());
    assert_eq!(ask(&routes).status(), StatusCode::NOT_FOUND);
    let answer = ask(&admin);
    assert_eq!(answer.status(), StatusCode::OK);
    let body = http_body_util::BodyExt::collect(answer.into_body()).await;
    assert_eq!(
        String::from_utf8(body.unwrap().to_bytes().to_vec())
            .unwrap()
            .trim_end(),
        r#"{"source":"unix:///run/agent.sock","svid":null,"bundles":[],"revocation_lists":0}"#
    );
}
