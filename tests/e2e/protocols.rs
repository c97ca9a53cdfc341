//! What two applications say to each other passes two sidecars as it was said, whatever they speak.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt, stream};
use http::{HeaderMap, Request, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::apps::{
    self, Answer, AnyError, App, Raw, Summary, get, get2, http1, http2, summary_of_pattern,
    write_pattern,
};
use crate::mesh::{Ca, Dirs, Issuer, Plan, PolicyDir, SOON, Sidecar, Tls, eventually, grant, id};
use crate::pair::{Pair, Terms};

const MIB: usize = 1 << 20;

/// A sidecar may grow by this much while 100 MiB pass it, however slow their reader. It is the credit of
/// an HTTP/2 connection, what sockets hold, and room for the allocator.
const MAY_GROW: usize = 32 * MIB;

#[tokio::test]
async fn the_application_is_spoken_to_as_its_caller_speaks() {
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;
    let mut one = http1(pair.connect().await).await.unwrap();
    let mut two = http2(pair.connect().await).await.unwrap();
    let answer = Answer::of(one.send_request(get("/seen")).await.unwrap())
        .await
        .unwrap();
    assert!(
        answer.text().starts_with("HTTP/1.1 GET /seen\n"),
        "{}",
        answer.text()
    );
    let answer = Answer::of(two.send_request(get2("/seen")).await.unwrap())
        .await
        .unwrap();
    assert!(
        answer
            .text()
            .starts_with("HTTP/2.0 GET http://app.test/seen\n"),
        "{}",
        answer.text()
    );
}

#[tokio::test]
async fn http1_keeps_its_connection_through_every_kind_of_answer() {
    let app = App::http().await;
    let pair = Pair::of(&app, "http").await;
    let mut client = Raw::new(pair.connect().await);

    client
        .send("GET /hello HTTP/1.1\r\nhost: app.test\r\n\r\n")
        .await;
    let head = client.head().await;
    assert!(
        head.starts_with("http/1.1 200 ok\r\n") && head.contains("content-length: 5"),
        "{head}"
    );
    assert_eq!(client.exactly(5).await, "hello");

    client
        .send("POST /echo HTTP/1.1\r\nhost: app.test\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n")
        .await;
    let head = client.head().await;
    assert!(head.contains("transfer-encoding: chunked"), "{head}");
    assert_eq!(client.chunked().await, ("four".into(), String::new()));

    client
        .send("HEAD /hello HTTP/1.1\r\nhost: app.test\r\n\r\n")
        .await;
    let head = client.head().await;
    assert!(head.contains("content-length: 5"), "{head}");

    for status in ["204", "304"] {
        client
            .send(&format!(
                "GET /status/{status} HTTP/1.1\r\nhost: app.test\r\n\r\n"
            ))
            .await;
        let head = client.head().await;
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
    }

    let large = "v".repeat(40_000);
    client
        .send(&format!(
            "GET /seen HTTP/1.1\r\nhost: app.test\r\nx-large: {large}\r\n\r\n"
        ))
        .await;
    let head = client.head().await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let length = head
        .split("content-length: ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    assert!(
        client
            .exactly(length.parse().unwrap())
            .await
            .contains(&large)
    );

    client
        .send("GET /headers/40 HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\n\r\n")
        .await;
    let head = client.head().await;
    assert_eq!(head.matches(&"v".repeat(1000)).count(), 40, "{head}");
    assert_eq!(client.rest().await, "many");
}

#[tokio::test]
async fn http1_without_keep_alive_is_answered_and_closed() {
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;
    for (request, body) in [
        ("GET /hello HTTP/1.0\r\n\r\n", "hello"),
        (
            "POST /echo HTTP/1.0\r\nhost: app.test\r\ncontent-length: 3\r\n\r\nold",
            "old",
        ),
        ("GET /download/5 HTTP/1.0\r\n\r\n", "\0\0\0\0\0"),
    ] {
        let mut client = Raw::new(pair.connect().await);
        client.send(request).await;
        let head = client.head().await;
        assert!(
            head.contains(" 200 ok\r\n") && !head.contains("chunked"),
            "{request}: {head}"
        );
        assert_eq!(client.rest().await, body, "{request}");
    }
}

#[tokio::test]
async fn whoever_waits_for_100_continue_is_told_to() {
    let app = App::http().await;
    let pair = Pair::of(&app, "http").await;
    let mut client = Raw::new(pair.connect().await);
    let head = "host: app.test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    client.send(&format!("POST /echo HTTP/1.1\r\n{head}")).await;
    let told = client.head().await;
    assert!(told.starts_with("http/1.1 100 continue"), "{told}");
    client.send("after").await;
    let told = client.head().await;
    assert!(told.starts_with("http/1.1 200"), "{told}");
    if told.contains("chunked") {
        assert_eq!(client.chunked().await.0, "after");
    } else {
        assert_eq!(client.exactly(5).await, "after");
    }

    client
        .send(&format!("POST /refuse HTTP/1.1\r\n{head}"))
        .await;
    let mut told = client.head().await;
    if told.starts_with("http/1.1 100") {
        told = client.head().await;
    }
    assert!(told.starts_with("http/1.1 413"), "{told}");
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;

    let mut client = Raw::new(pair.connect().await);
    client
        .send(
            "POST /echo HTTP/1.1\r\nhost: app.test\r\nte: trailers\r\nconnection: te\r\ntrailer: x-sum\r\n\
             transfer-encoding: chunked\r\n\r\n3\r\none\r\n0\r\nx-sum: 3\r\n\r\n",
        )
        .await;
    let head = client.head().await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert_eq!(
        client.chunked().await,
        ("one".into(), "x-sum: 3\r\n".into()),
        "over HTTP/1.1"
    );

    let mut client = http2(pair.connect().await).await.unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "3".parse().unwrap());
    let frames = [Frame::data("one".into()), Frame::trailers(trailers.clone())];
    let body = StreamBody::new(stream::iter(frames.map(Ok::<_, AnyError>))).boxed_unsync();
    let request = Request::post("http://app.test/echo").header(header::TE, "trailers");
    let response = client
        .send_request(request.body(body).unwrap())
        .await
        .unwrap();
    let answer = Answer::of(response).await.unwrap();
    assert_eq!(
        (answer.text(), answer.trailers.as_ref()),
        ("one", Some(&trailers)),
        "over HTTP/2"
    );
}

#[tokio::test]
async fn grpc_messages_pass_one_by_one_and_trailers_at_the_end() {
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", pair.a.outbound[0]))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let mut client = tonic::client::Grpc::new(channel);

    let (say, said) = mpsc::channel(1);
    let said = stream::unfold(said, |mut said| async { Some((said.recv().await?, said)) });
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/test.PingPong/Play");
    let call = client.streaming(tonic::Request::new(said), path.clone(), apps::codec());
    let mut answers = call.await.unwrap().into_inner();
    // The next message is only said once the last was answered: nothing on the way may wait for more.
    for number in 0..50 {
        say.send(format!("ping {number}")).await.unwrap();
        assert_eq!(
            answers.message().await.unwrap().unwrap(),
            format!("PING {number}")
        );
    }
    drop(say);
    assert_eq!(answers.message().await.unwrap(), None);
    assert!(answers.trailers().await.unwrap().is_some());

    client.ready().await.unwrap();
    let said = stream::iter(["one", "fail"].map(String::from));
    let call = client.streaming(tonic::Request::new(said), path, apps::codec());
    let mut answers = call.await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap(), "ONE");
    let status = answers.message().await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (tonic::Code::DataLoss, "as asked")
    );
}

#[tokio::test]
async fn websockets_speak_both_ways_until_they_close() {
    let app = App::tcp(apps::websocket_echo).await;
    let pair = Pair::of(&app, "auto").await;
    let (mut socket, response) =
        tokio_tungstenite::client_async("ws://app.test/chat", pair.connect().await)
            .await
            .unwrap();
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    for message in ["one".into(), "2".repeat(300_000)] {
        socket.send(message.clone().into()).await.unwrap();
        assert_eq!(
            socket.next().await.unwrap().unwrap().into_text().unwrap(),
            message
        );
    }
    socket.close(None).await.unwrap();
    while let Some(message) = socket.next().await {
        assert!(message.unwrap().is_close());
    }
    drop(socket);
    let record = pair
        .b
        .record("the upgrade", |record| record["context"]["status"] == 101)
        .await;
    assert_eq!(record["outcome"], "completed", "{record}");
    assert!(record["bytes_in"].as_u64() > Some(300_000), "{record}");
}

#[tokio::test]
async fn a_websocket_may_last_longer_than_a_request() {
    let app = App::tcp(apps::websocket_echo).await;
    let limit = Duration::from_millis(300);
    let keys = format!("request_timeout: {}ms", limit.as_millis());
    let pair = Pair::with(&[(&app, &keys, &keys)], Terms::default()).await;
    let (mut socket, _) =
        tokio_tungstenite::client_async("ws://app.test/chat", pair.connect().await)
            .await
            .unwrap();
    tokio::time::sleep(limit * 2).await;
    socket.send("still there".into()).await.unwrap();
    let answer = socket.next().await.unwrap().unwrap();
    assert_eq!(answer.into_text().unwrap(), "still there");
}

#[tokio::test]
async fn events_arrive_while_the_response_is_open() {
    for over_http2 in [false, true] {
        let app = App::http().await;
        let pair = Pair::of(&app, "auto").await;
        let stream = pair.connect().await;
        let response = if over_http2 {
            http2(stream)
                .await
                .unwrap()
                .send_request(get2("/events"))
                .await
        } else {
            http1(stream)
                .await
                .unwrap()
                .send_request(get("/events"))
                .await
        };
        let response = response.unwrap();
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "text/event-stream"
        );
        let mut events = apps::frames(response.into_body());
        for number in 0..10 {
            // Not before this does the application say the next one.
            app.release(1);
            let event = tokio::time::timeout(SOON, events.next()).await;
            assert_eq!(
                event.expect("an event in time").unwrap(),
                format!("data: {number}\n\n")
            );
        }
    }
}

#[tokio::test]
async fn a_large_upload_waits_for_its_slow_reader_and_not_in_our_memory() {
    const SIZE: usize = 100 * MIB;
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;
    let before = [&pair.a, &pair.b].map(resident);

    let (mut read, mut write) = pair.connect().await.into_split();
    let sent = Arc::new(AtomicUsize::new(0));
    let upload = tokio::spawn({
        let sent = sent.clone();
        async move {
            let head = format!(
                "POST /slow-sink HTTP/1.1\r\nhost: app.test\r\nconnection: close\r\ncontent-length: {SIZE}\r\n\r\n"
            );
            write.write_all(head.as_bytes()).await.unwrap();
            write_pattern(&mut write, SIZE, &sent).await.unwrap();
            write
        }
    });
    // The application does not read at all: the writer has to stop soon.
    app.wait_for(1).await;
    let mut last = usize::MAX;
    eventually("the upload stands still", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = sent.load(Ordering::SeqCst);
        (std::mem::replace(&mut last, now) == now).then_some(())
    })
    .await;
    assert!(last < 30 * MIB, "{last} bytes were taken for nobody");

    app.release(1);
    let mut answer = String::new();
    read.read_to_string(&mut answer).await.unwrap();
    drop(upload.await.unwrap());
    assert!(answer.ends_with(&summary_of_pattern(SIZE)), "{answer}");
    for (sidecar, before) in [&pair.a, &pair.b].into_iter().zip(before) {
        let grown = largest(sidecar).saturating_sub(before);
        assert!(
            grown < MAY_GROW,
            "{} grew by {} KiB",
            sidecar.process.name(),
            grown / 1024
        );
    }
}

#[tokio::test]
async fn a_large_download_arrives_whole_and_waits_for_its_reader() {
    const SIZE: usize = 100 * MIB;
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;
    let before = [&pair.a, &pair.b].map(resident);
    let path = format!("/download/{SIZE}");
    let mut one = http1(pair.connect().await).await.unwrap();
    let mut two = http2(pair.connect().await).await.unwrap();
    for response in [
        one.send_request(get(&path)).await.unwrap(),
        two.send_request(get2(&path)).await.unwrap(),
    ] {
        // Time enough for all of it, if anybody took it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let mut summary = Summary::default();
        let mut frames = apps::frames(response.into_body());
        while let Some(data) = frames.next().await {
            summary.add(&data);
        }
        assert_eq!(summary.to_string(), summary_of_pattern(SIZE));
    }
    for (sidecar, before) in [&pair.a, &pair.b].into_iter().zip(before) {
        let grown = largest(sidecar).saturating_sub(before);
        assert!(
            grown < MAY_GROW,
            "{} grew by {} KiB",
            sidecar.process.name(),
            grown / 1024
        );
    }
}

#[tokio::test]
async fn slow_readers_do_not_hold_up_others() {
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;
    // More than an HTTP/2 connection between the sidecars could give credit for at once.
    let mut stalled = Vec::new();
    for _ in 0..12 {
        let mut client = http1(pair.connect().await).await.unwrap();
        let response = client
            .send_request(get(&format!("/download/{}", 20 * MIB)))
            .await
            .unwrap();
        stalled.push((client, response));
    }
    let mut client = http1(pair.connect().await).await.unwrap();
    for _ in 0..20 {
        let asked = client.send_request(get(&format!("/download/{MIB}")));
        let whole = async { Answer::of(asked.await.unwrap()).await.unwrap() };
        let answer = tokio::time::timeout(Duration::from_secs(10), whole).await;
        assert_eq!(answer.expect("an answer all the same").body.len(), MIB);
    }
}

#[tokio::test]
async fn slow_applications_do_not_hold_up_other_uploads() {
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;
    let mut stalled = Vec::new();
    for number in 1..=12 {
        let (read, mut write) = pair.connect().await.into_split();
        let upload = tokio::spawn(async move {
            let head = format!(
                "POST /slow-sink HTTP/1.1\r\nhost: app.test\r\ncontent-length: {}\r\n\r\n",
                20 * MIB
            );
            write.write_all(head.as_bytes()).await.unwrap();
            write_pattern(&mut write, 20 * MIB, &AtomicUsize::new(0)).await
        });
        app.wait_for(number).await;
        stalled.push((read, upload));
    }
    for _ in 0..5 {
        let mut client = http1(pair.connect().await).await.unwrap();
        let body = StreamBody::new(apps::pattern(MIB).map(|piece| Ok(Frame::data(piece))));
        let request = Request::post("/sink").header(header::HOST, "app.test");
        let asked = client.send_request(request.body(body.boxed_unsync()).unwrap());
        let whole = async { Answer::of(asked.await.unwrap()).await.unwrap() };
        let answer = tokio::time::timeout(Duration::from_secs(10), whole).await;
        assert_eq!(
            answer.expect("an answer all the same").text(),
            summary_of_pattern(MIB)
        );
    }
    for (_, upload) in stalled {
        upload.abort();
    }
}

#[tokio::test]
async fn either_end_of_a_tcp_session_may_fall_silent_first() {
    for protocol in ["tcp", "auto"] {
        let app = App::tcp(apps::summarize).await;
        let pair = Pair::of(&app, protocol).await;
        let mut client = pair.connect().await;
        write_pattern(&mut client, 100_000, &AtomicUsize::new(0))
            .await
            .unwrap();
        client.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, summary_of_pattern(100_000), "{protocol}");

        let (tell, mut told) = mpsc::unbounded_channel();
        let app = App::tcp(move |mut io| {
            let tell = tell.clone();
            async move {
                io.write_all(b"that was all").await?;
                io.shutdown().await?;
                tell.send(Summary::of(&mut io, usize::MAX).await?.to_string())
                    .unwrap();
                Ok(())
            }
        })
        .await;
        let pair = Pair::of(&app, protocol).await;
        let mut client = pair.connect().await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "that was all", "{protocol}");
        write_pattern(&mut client, 100_000, &AtomicUsize::new(0))
            .await
            .unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(
            told.recv().await.unwrap(),
            summary_of_pattern(100_000),
            "{protocol}"
        );
    }
}

#[tokio::test]
async fn a_server_may_speak_first() {
    for protocol in ["tcp", "auto"] {
        let app = App::tcp(apps::banner).await;
        let pair = Pair::of(&app, protocol).await;
        let mut client = pair.connect().await;
        let mut banner = [0; 11];
        client.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"220 ready\r\n", "{protocol}");
        client.write_all(b"\x01hello").await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"\x01hello", "{protocol}");
    }
}

#[tokio::test]
async fn bulk_passes_both_ways_at_once() {
    const SIZE: usize = 50 * MIB;
    let app = App::tcp(apps::echo).await;
    let pair = Pair::of(&app, "tcp").await;
    let (read, mut write) = pair.connect().await.into_split();
    let (received, ()) = tokio::join!(Summary::of(read, usize::MAX), async {
        write_pattern(&mut write, SIZE, &AtomicUsize::new(0))
            .await
            .unwrap();
        write.shutdown().await.unwrap();
    });
    assert_eq!(received.unwrap().to_string(), summary_of_pattern(SIZE));
    let record = pair
        .b
        .record("the session", |record| record["outcome"] == "completed")
        .await;
    assert_eq!(
        (&record["bytes_in"], &record["bytes_out"]),
        (&SIZE.into(), &SIZE.into()),
        "{record}"
    );
}

#[tokio::test]
async fn tls_of_the_applications_own_passes_untouched() {
    let own = Ca::stranger("inside.test");
    let acceptor = Tls::server(&own.svid("app"), &["inside"]);
    let app = App::tcp(move |io| {
        let acceptor = acceptor.clone();
        async move { apps::echo(Box::new(acceptor.accept(io).await?)).await }
    })
    .await;
    let pair = Pair::of(&app, "auto").await;
    let mut stream = Tls::new(None, &["inside"])
        .connect(pair.a.outbound[0])
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"inside"[..]));
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut back = [0; 18];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"GET / HTTP/1.1\r\n\r\n");
}

#[tokio::test]
async fn both_applications_may_be_reached_through_unix_sockets() {
    let dirs = Dirs::new();
    let mut issuer = Issuer::new(&dirs);
    for workload in ["a", "b"] {
        issuer.add(&dirs, workload, "1h", None);
    }
    issuer.start().await;
    let policy = PolicyDir::new(dirs.file("policy"));
    policy.write("policy.cedar", &grant("all-for-a", "a"));
    let app = App::http_on_unix(&dirs.file("app.sock"));
    let mut b = Plan::new("b")
        .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
        .inbound(&app.address, "")
        .start(&dirs, &issuer)
        .await;
    let entrance = dirs.file("entrance.sock");
    let mut a = Plan::new("a")
        .with(format!(
            "outbound: [{{ listen: 'unix:{}', to: '{}', peer: '{}' }}]",
            entrance.display(),
            b.inbound[0],
            id("b")
        ))
        .start(&dirs, &issuer)
        .await;
    a.ready().await;
    b.ready().await;
    for _ in 0..3 {
        let mut client = http1(UnixStream::connect(&entrance).await.unwrap())
            .await
            .unwrap();
        let answer = Answer::of(client.send_request(get("/seen")).await.unwrap())
            .await
            .unwrap();
        assert!(
            answer.text().starts_with("HTTP/1.1 GET /seen\n"),
            "{}",
            answer.text()
        );
    }
    assert_eq!(a.terminate().await, Some(0));
}

#[tokio::test]
async fn any_spiffe_client_may_call_whatever_it_offers() {
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;
    let svid = pair.issuer.ca().svid("a");
    for (alpn, agreed, http2) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..]), true),
        (&["http/1.1"], Some(b"http/1.1"), false),
        (&[], None, false),
        (&[], None, true),
    ] {
        let stream = Tls::new(Some(&svid), alpn)
            .connect(pair.b.inbound[0])
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), agreed);
        let response = if http2 {
            apps::http2(stream)
                .await
                .unwrap()
                .send_request(get2("/seen"))
                .await
        } else {
            http1(stream)
                .await
                .unwrap()
                .send_request(get("/seen"))
                .await
        };
        let answer = Answer::of(response.unwrap()).await.unwrap();
        assert!(
            answer.text().contains(&id("a")),
            "{alpn:?}: {}",
            answer.text()
        );
    }

    for (protocol, alpn) in [("tcp", &[][..]), ("auto", &[])] {
        let app = App::tcp(apps::banner).await;
        let pair = Pair::of(&app, protocol).await;
        let svid = pair.issuer.ca().svid("a");
        let mut stream = Tls::new(Some(&svid), alpn)
            .connect(pair.b.inbound[0])
            .await
            .unwrap();
        let mut banner = [0; 11];
        stream.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"220 ready\r\n", "{protocol}");
    }
}

#[tokio::test]
async fn any_spiffe_server_may_answer_whatever_it_offers() {
    for alpn in [&["h2", "http/1.1"][..], &["http/1.1"], &[]] {
        let mut foreign = Foreign::new("auto", alpn, App::http().await).await;
        let mut one = http1(foreign.connect().await).await.unwrap();
        let mut two = http2(foreign.connect().await).await.unwrap();
        for response in [
            one.send_request(get("/seen")).await.unwrap(),
            two.send_request(get2("/seen")).await.unwrap(),
        ] {
            let answer = Answer::of(response).await.unwrap();
            let version = if alpn.contains(&"h2") {
                "HTTP/2.0"
            } else {
                "HTTP/1.1"
            };
            assert!(
                answer.text().starts_with(version),
                "{alpn:?}: {}",
                answer.text()
            );
        }
        assert_eq!(foreign.a.terminate().await, Some(0));
    }
    for alpn in [&["h2", "http/1.1"][..], &["postgresql"], &[]] {
        let foreign = Foreign::new("tcp", alpn, App::tcp(apps::banner).await).await;
        let mut client = foreign.connect().await;
        let mut banner = [0; 11];
        client.read_exact(&mut banner).await.unwrap();
        assert_eq!(&banner, b"220 ready\r\n", "{alpn:?}");
    }
}

#[tokio::test]
async fn requests_that_come_one_by_one_take_http1_between_the_sidecars_if_the_peer_speaks_it() {
    for (alpn, speaks_http1, patience) in [
        (&["h2", "http/1.1"][..], true, 10_000),
        (&["h2"], false, 500),
    ] {
        let foreign = Foreign::new("auto", alpn, App::http().await).await;
        let mut one = http1(foreign.connect().await).await.unwrap();
        let mut two = http2(foreign.connect().await).await.unwrap();
        let spoken = async |response: hyper::Result<_>| {
            let answer = Answer::of(response.unwrap()).await.unwrap();
            let text = answer.text().to_owned();
            text.split_once(' ').unwrap().0.to_owned()
        };
        let mut before = 0;
        // The connection beside is opened while the next ones are answered.
        while spoken(one.send_request(get("/seen")).await).await == "HTTP/2.0" && before < patience
        {
            before += 1;
        }
        assert!(before >= 100, "{alpn:?}: {before}");
        assert_eq!(before < patience, speaks_http1, "{alpn:?}");

        // What could not be asked again, what has very many headers, and what an HTTP/2 application asks, keep to
        // HTTP/2.
        let ask = || Request::get("/seen").header(header::HOST, "app.test");
        let post = ask().method("POST").body(apps::whole("x")).unwrap();
        let fields = (0..95).fold(ask(), |request, number| {
            request.header(format!("x-{number}"), "y")
        });
        let long = fields.body(apps::whole("")).unwrap();
        for request in [post, long] {
            let answered = one.send_request(request).await;
            assert_eq!(spoken(answered).await, "HTTP/2.0", "{alpn:?}");
        }
        let answered = two.send_request(get2("/seen")).await;
        assert_eq!(spoken(answered).await, "HTTP/2.0", "{alpn:?}");

        // So do all, once many are under way at a time.
        let mut held = Vec::new();
        for _ in 0..5 {
            held.push(two.send_request(get2("/events")).await.unwrap());
        }
        for _ in 0..300 {
            drop(Answer::of(one.send_request(get("/")).await.unwrap()).await);
        }
        for _ in 0..20 {
            let answered = one.send_request(get("/seen")).await;
            assert_eq!(spoken(answered).await, "HTTP/2.0", "{alpn:?}");
        }

        // Unless responses are long.
        let mut again = false;
        for _ in 0..100 {
            let long = one.send_request(get(&format!("/download/{MIB}"))).await;
            assert_eq!(Answer::of(long.unwrap()).await.unwrap().body.len(), MIB);
            again |= spoken(one.send_request(get("/seen")).await).await == "HTTP/1.1";
            if again {
                break;
            }
        }
        assert_eq!(again, speaks_http1, "{alpn:?}");
    }
}

/// A sidecar `a` whose peer is no Doorward: rustls alone, before the application.
struct Foreign {
    a: Sidecar,
    _issuer: Issuer,
    _dirs: Dirs,
    _app: App,
    task: tokio::task::JoinHandle<()>,
}

impl Foreign {
    async fn new(protocol: &str, alpn: &[&str], app: App) -> Self {
        let dirs = Dirs::new();
        let mut issuer = Issuer::new(&dirs);
        issuer.add(&dirs, "a", "1h", None);
        issuer.start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gate = listener.local_addr().unwrap();
        let keys = format!("protocol: {protocol}");
        let mut a = Plan::new("a")
            .with("workers: 1")
            .outbound(gate, &id("b"), &keys)
            .start(&dirs, &issuer)
            .await;
        a.ready().await;
        let acceptor = foreign_server(&issuer.ca(), alpn);
        let address = app.address.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, address) = (acceptor.clone(), address.clone());
                tokio::spawn(async move {
                    // Who offers nothing that suits is refused, and may try again.
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut app = tokio::net::TcpStream::connect(address).await.unwrap();
                    drop(tokio::io::copy_bidirectional(&mut stream, &mut app).await);
                });
            }
        });
        Self {
            a,
            _issuer: issuer,
            _dirs: dirs,
            _app: app,
            task,
        }
    }

    async fn connect(&self) -> tokio::net::TcpStream {
        tokio::net::TcpStream::connect(self.a.outbound[0])
            .await
            .unwrap()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Proves to be `b`, and wants a certificate of the same CA.
fn foreign_server(ca: &Ca, alpn: &[&str]) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let svid = ca.svid("b");
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(svid.chain.clone(), svid.key())
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// The memory of a sidecar now, in bytes.
fn resident(sidecar: &Sidecar) -> usize {
    status(sidecar, "VmRSS:")
}

/// The most it ever had.
fn largest(sidecar: &Sidecar) -> usize {
    status(sidecar, "VmHWM:")
}

fn status(sidecar: &Sidecar, key: &str) -> usize {
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", sidecar.process.pid())).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .parse::<usize>()
        .unwrap()
        * 1024
}
