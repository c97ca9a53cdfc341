//! HTTP as RFC 9110 has it, where two hops of ours could spoil it: old applications, answers without a body,
//! answers that come early, expectations, and gRPC's own words for refusals and failures.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::apps::{self, AnyError, AnyIo, App, Raw, get2, http2};
use crate::mesh::{self, Mesh, Options, SOON, Tls, grant, raw, status_of};
use crate::pair::Pair;

/// An application that answers every request with the same bytes, without a look at its body.
async fn saying(answer: &'static str, then: Then) -> App {
    App::tcp(move |io| say(io, answer, then)).await
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    GoesOn,
    HangsUp,
}

async fn say(mut io: AnyIo, answer: &'static str, then: Then) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        while !read.ends_with(b"\r\n\r\n") {
            read.push(io.read_u8().await?);
        }
        read.clear();
        io.write_all(answer.as_bytes()).await?;
        if then == Then::HangsUp {
            return io.shutdown().await;
        }
    }
}

/// A route to `app`, which is spoken to in HTTP/1.1 whatever its caller speaks.
async fn route(app: &App) -> Pair {
    let keys = "protocol: http, app_protocol: http1";
    Pair::with(&[(app, keys, "protocol: http")], Default::default()).await
}

#[tokio::test]
async fn an_application_of_http_1_0_is_understood() {
    for answer in [
        "HTTP/1.0 200 OK\r\n\r\nhello",
        "HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhello",
    ] {
        let app = saying(answer, Then::HangsUp).await;
        let pair = route(&app).await;
        for _ in 0..2 {
            let told = mesh::get(pair.a.outbound[0], "/").await;
            assert_eq!(
                (told.status, &told.body[..]),
                (200, &b"hello"[..]),
                "{answer}"
            );
        }
        let mut client = http2(pair.connect().await).await.unwrap();
        let told = client.send_request(get2("/")).await.unwrap();
        let told = apps::Answer::of(told).await.unwrap();
        assert_eq!(
            (told.status.as_u16(), told.text()),
            (200, "hello"),
            "{answer}"
        );
    }
}

#[tokio::test]
async fn an_answer_without_a_body_keeps_its_length_and_the_connection() {
    for (method, answer, status, length) in [
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n",
            200,
            Some("5"),
        ),
        (
            "HEAD",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            200,
            None,
        ),
        (
            "HEAD",
            "HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\n",
            404,
            Some("9"),
        ),
        // hyper leaves it out, which RFC 9110 §8.6 permits.
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
            304,
            None,
        ),
        (
            "GET",
            "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n",
            304,
            None,
        ),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", 204, None),
        (
            "GET",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            200,
            Some("0"),
        ),
    ] {
        let app = saying(answer, Then::GoesOn).await;
        let pair = route(&app).await;
        let mut one = Raw::new(pair.connect().await);
        let mut two = http2(pair.connect().await).await.unwrap();
        for _ in 0..3 {
            one.send(&format!("{method} / HTTP/1.1\r\nhost: app.test\r\n\r\n"))
                .await;
            // What is not there is not waited for: the next head follows at once.
            let head = one.head().await;
            assert!(
                head.starts_with(&format!("http/1.1 {status}")),
                "{answer}: {head}"
            );
            let told = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            assert_eq!(told, length, "{answer}: {head}");
            assert!(
                !head.contains("transfer-encoding") || method == "HEAD",
                "{answer}: {head}"
            );

            let mut request = get2("/");
            *request.method_mut() = method.parse().unwrap();
            let told = two.send_request(request).await.unwrap();
            let told = apps::Answer::of(told).await.unwrap();
            assert_eq!(
                (told.status.as_u16(), told.text()),
                (status, ""),
                "{answer}"
            );
            let told = told.headers.get(header::CONTENT_LENGTH);
            if let Some(length) = length {
                assert_eq!(told.unwrap(), length, "{answer}");
            }
        }
    }
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_has_ended() {
    let answer = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 8\r\n\r\ntoo much";
    for then in [Then::GoesOn, Then::HangsUp] {
        let app = saying(answer, then).await;
        let pair = route(&app).await;
        let mut one = Raw::new(pair.connect().await);
        one.send(
            "POST / HTTP/1.1\r\nhost: app.test\r\ncontent-length: 1000000\r\n\r\nthe beginning",
        )
        .await;
        assert!(one.head().await.starts_with("http/1.1 413"), "{then:?}");
        assert_eq!(one.exactly(8).await, "too much", "{then:?}");

        let mut two = http2(pair.connect().await).await.unwrap();
        let (say, said) = tokio::sync::mpsc::unbounded_channel();
        let body = futures_util::stream::unfold(said, |mut said| async {
            Some((said.recv().await?, said))
        });
        say.send(Ok::<_, AnyError>(Frame::data(Bytes::from_static(
            b"the beginning",
        ))))
        .unwrap();
        let request = Request::post("http://app.test/").body(StreamBody::new(body).boxed_unsync());
        let told = two.send_request(request.unwrap()).await.unwrap();
        let told = apps::Answer::of(told).await.unwrap();
        assert_eq!(
            (told.status.as_u16(), told.text()),
            (413, "too much"),
            "{then:?}"
        );
        drop(say);

        // Whoever asks next has nothing to do with it.
        let told = mesh::get(pair.a.outbound[0], "/").await;
        assert_eq!(
            (told.status, told.text().as_str()),
            (413, "too much"),
            "{then:?}"
        );
    }
}

#[tokio::test]
async fn whoever_is_denied_is_not_told_to_continue() {
    let mesh = Mesh::with(Options {
        policy: Some(grant("all-for-somebody", "somebody")),
        ..Options::default()
    })
    .await;
    let svid = mesh.issuer.ca().svid("a");
    let mut io = Tls::new(Some(&svid), &["http/1.1"])
        .connect(mesh.gate())
        .await
        .unwrap();
    let asked =
        "POST / HTTP/1.1\r\nhost: app.example\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let told = raw(&mut io, asked.as_bytes()).await;
    assert_eq!(status_of(&told), 403, "{told}");
    assert_eq!(mesh.app.seen().len(), 0);
}

/// A gRPC call whose body stays open, with a deadline.
fn call() -> Request<apps::AnyBody> {
    let body = StreamBody::new(futures_util::stream::pending::<
        Result<Frame<Bytes>, AnyError>,
    >());
    Request::post("http://app.test/test.PingPong/Play")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "20S")
        .body(body.boxed_unsync())
        .unwrap()
}

#[tokio::test]
async fn grpc_is_told_of_a_failure_in_its_own_words_and_long_before_its_deadline() {
    // One application that is not there, one that hangs up, one behind a sidecar that is not there.
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let rude = App::tcp(|io| async move {
        drop(io);
        Ok(())
    })
    .await;
    for (app, b_runs) in [
        (gone, true),
        (rude.address.parse().unwrap(), true),
        (gone, false),
    ] {
        let mut mesh = Mesh::with(Options {
            app: Some(app),
            ..Options::default()
        })
        .await;
        if !b_runs {
            mesh.b.terminate().await;
        }
        let stream = tokio::net::TcpStream::connect(mesh.entrance())
            .await
            .unwrap();
        let mut client = http2(stream).await.unwrap();
        let told = tokio::time::timeout(SOON / 2, client.send_request(call())).await;
        let told = told.expect("an answer before the deadline").unwrap();
        let told = apps::Answer::of(told).await.unwrap();
        assert_eq!(told.status.as_u16(), 200);
        assert_eq!(told.headers["content-type"], "application/grpc");
        assert_eq!(told.headers["grpc-status"], "14", "{:?}", told.headers);
    }
}

#[tokio::test]
async fn a_deadline_that_passes_ends_the_call_all_the_way_to_the_application() {
    let app = App::http().await;
    let pair = Pair::of(&app, "auto").await;
    let mut client = http2(pair.connect().await).await.unwrap();
    let mut request = call();
    *request.uri_mut() = "http://app.test/slow/x".parse().unwrap();
    request
        .headers_mut()
        .insert("content-type", "application/octet-stream".parse().unwrap());
    // A caller keeps its own time, and gives up with a reset.
    let given_up = tokio::time::timeout(Duration::from_millis(200), client.send_request(request));
    assert!(given_up.await.is_err());
    for sidecar in [&pair.a, &pair.b] {
        let record = sidecar
            .record("the call", |record| record["context"]["path"] == "/slow/x")
            .await;
        assert_eq!(record["outcome"], "client_gone", "{record}");
    }
}
