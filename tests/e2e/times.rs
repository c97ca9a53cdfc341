//! Nobody takes for ever: requests as a whole, bodies that trickle, HTTP/2 connections that carry nothing.

use std::time::Duration;

use http::header::{self, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::floods::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PING, ask, begin, frame, mesh, read_frame,
};
use crate::mesh::{Client, Http, Mesh, Options, SOON, Tls, request, status_of};

const GOAWAY: u8 = 7;

#[tokio::test]
async fn a_request_that_takes_too_long_as_a_whole_is_given_up() {
    let mesh = mesh("request_timeout: 500ms").await;
    let mut client = Client::connect(mesh.entrance(), Http::Two).await;
    assert_eq!(client.get("/quick").await.unwrap().status, 200);

    // No head of a response comes.
    let late = client.get("/slow?ms=60000").await.unwrap();
    assert_eq!(late.status, 504);
    assert_eq!(late.json()["error"], "request_timeout");
    assert!(
        late.header("proxy-status")
            .contains("error=http_response_timeout")
    );
    let mut call = request("POST", "http://app.example/slow?ms=60000");
    let grpc = HeaderValue::from_static("application/grpc");
    call.headers_mut().insert(header::CONTENT_TYPE, grpc);
    assert_eq!(client.ask(call).await.unwrap().header("grpc-status"), "4");
    // Its end does not, though it always goes on.
    assert!(client.get("/stream?n=10000&ms=20").await.is_err());
    // What has ended in time is not given up later.
    assert_eq!(client.get("/quick").await.unwrap().status, 200);

    let record = mesh
        .b
        .record("the stream", |record| {
            record["context"]["path"] == "/stream" && record["outcome"] == "request_timeout"
        })
        .await;
    assert!(record["bytes_out"].as_u64() > Some(0), "{record}");
    let limit = [("limit", "request_time"), ("direction", "inbound")];
    mesh.b
        .counts("doorward_limits_hit_total", &limit, 3.0)
        .await;
    let ended = [("outcome", "request_timeout")];
    mesh.b.counts("doorward_requests_total", &ended, 3.0).await;
    mesh.b.counts("doorward_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn a_body_that_trickles_is_given_up_and_one_without_length_only_where_that_is_asked_for() {
    let length = "content-length: 1000000";
    let chunked = "transfer-encoding: chunked";
    let strict = "stall_timeout: 500ms, min_body_rate: 10000, min_stream_rate: 10000";
    for (keys, body, given_up) in [
        ("stall_timeout: 500ms, min_body_rate: 10000", length, true),
        ("stall_timeout: 500ms, min_body_rate: 1", length, false),
        ("stall_timeout: 500ms, min_body_rate: 10000", chunked, false),
        (strict, chunked, true),
    ] {
        let mesh = mesh(keys).await;
        let svid = mesh.issuer.ca().svid("a");
        let slow = Tls::new(Some(&svid), &["http/1.1"]);
        let (mut from, mut to) = tokio::io::split(slow.connect(mesh.gate()).await.unwrap());
        let head = format!("POST /upload HTTP/1.1\r\nhost: app.example\r\n{body}\r\n\r\n");
        to.write_all(head.as_bytes()).await.unwrap();
        let trickle = async {
            let piece = if body == chunked { "1\r\na\r\n" } else { "a" };
            // Much longer than the limit.
            for _ in 0..200 {
                if to.write_all(piece.as_bytes()).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let mut answer = [0; 12];
        let answered = tokio::select! {
            read = from.read_exact(&mut answer) => read.is_ok(),
            () = trickle => false,
        };
        assert_eq!(answered, given_up, "{keys}, {body}");
        let limit = [("limit", "unsent")];
        mesh.b
            .counts(
                "doorward_limits_hit_total",
                &limit,
                f64::from(u8::from(given_up)),
            )
            .await;
        if given_up {
            assert_eq!(status_of(&String::from_utf8_lossy(&answer)), 408);
        }
    }
}

#[tokio::test]
async fn a_response_that_trickles_is_broken_off_where_that_is_asked_for() {
    let mesh = mesh("stall_timeout: 500ms, min_stream_rate: 10000").await;
    let mut client = Client::connect(mesh.entrance(), Http::Two).await;
    assert!(client.get("/stream?n=10000&ms=20").await.is_err());
    let ended = [("outcome", "upstream_timeout"), ("direction", "inbound")];
    mesh.b.counts("doorward_requests_total", &ended, 1.0).await;
    let limit = [("limit", "unsent")];
    mesh.b
        .counts("doorward_limits_hit_total", &limit, 1.0)
        .await;
    let fast = client.get("/bytes/1000000").await.unwrap();
    assert_eq!(fast.body.len(), 1_000_000);
}

#[tokio::test]
async fn an_http2_connection_that_carries_nothing_is_said_goodbye_to() {
    let mesh = mesh("idle_timeout: 300ms").await;
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["h2"]);
    let (mut from, mut to) = begin(tls.connect(mesh.gate()).await.unwrap()).await;
    // What is carried may pause for longer.
    let whole = END_HEADERS | END_STREAM;
    let paused = frame(HEADERS, whole, 1, &ask("/stream?n=2&ms=1500"));
    to.write_all(&paused).await.unwrap();
    let mut carried = false;
    let ended = async {
        while let Some(read) = read_frame(&mut from).await {
            match read {
                (DATA | HEADERS, flags, 1, _) => carried |= flags & END_STREAM != 0,
                (PING, 0, _, payload) => {
                    let pong = frame(PING, 1, 0, &payload);
                    to.write_all(&pong).await.unwrap();
                }
                (GOAWAY, _, _, payload) => {
                    assert!(carried, "the response had not ended");
                    assert_eq!(payload[4..], [0; 4], "no error");
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(SOON, ended).await.unwrap();
    assert!(carried);
    let ended = [("kind", "http"), ("outcome", "idle_timeout")];
    mesh.b
        .counts("doorward_sessions_ended_total", &ended, 1.0)
        .await;
}

#[tokio::test]
async fn connections_to_peers_that_carry_nothing_close_and_no_request_is_lost_by_it() {
    let keys = "idle_timeout: 100ms";
    let mesh = Mesh::with(Options {
        inbound: keys.into(),
        outbound: keys.into(),
        a: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await;
    let mut client = Client::connect(mesh.entrance(), Http::One).await;
    for gap in 0..20 {
        let mut call = request("POST", "/");
        let grpc = HeaderValue::from_static("application/grpc");
        call.headers_mut().insert(header::CONTENT_TYPE, grpc);
        let answer = client.ask(call).await.unwrap();
        assert_eq!((answer.status, answer.header("grpc-status")), (200, ""));
        // Around the times when both sides close it.
        tokio::time::sleep(Duration::from_millis(80 + gap * 7)).await;
    }
    mesh.a
        .counts("doorward_upstream_connections", &[], 0.0)
        .await;
    let completed = [("outcome", "completed"), ("direction", "outbound")];
    mesh.a
        .counts("doorward_requests_total", &completed, 20.0)
        .await;
}
