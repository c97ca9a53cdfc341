//! The caller breaks its request off, or sends it a byte at a time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{AT_ONCE, End, Faulty, ROUNDS, Routes, eventually, reset_at_the_end};
use crate::mesh::{App, raw, status_of};

#[tokio::test]
async fn an_upload_that_its_caller_breaks_off_reaches_the_application_broken() {
    // What each connection had when it ended; none may end where a request ends.
    let (whole, broken) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let arrived = Arc::new(Mutex::new(BTreeSet::new()));
    let counts = (whole.clone(), broken.clone(), arrived.clone());
    let app = Faulty::new(move |mut stream| {
        let (whole, broken, there) = counts.clone();
        async move {
            let mut read = Vec::new();
            let mut text = String::new();
            // An error is an end too.
            while stream.read_buf(&mut read).await.is_ok_and(|read| read > 0) {
                text = String::from_utf8_lossy(&read).into_owned();
                if let Some((_, rest)) = text.split_once("POST /")
                    && text.contains("half of it")
                {
                    let name = rest.split(' ').next().unwrap().to_owned();
                    there.lock().unwrap().insert(name);
                }
            }
            if text.ends_with("0\r\n\r\n") || text.len() > 1000 {
                whole.fetch_add(1, Ordering::SeqCst);
            } else if text.contains("half of it") {
                broken.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        }
    })
    .await;
    let routes = Routes::to(&[(app.address, "", "")]).await;
    let entrance = routes.a.outbound[0];
    let mut expected = 0;
    let names = AtomicUsize::new(0);
    for head in [
        "content-length: 1000\r\n\r\nhalf of it",
        "transfer-encoding: chunked\r\n\r\na\r\nhalf of it\r\n",
    ] {
        for end in [End::Reset, End::Close] {
            let round = async || {
                let mut client = TcpStream::connect(entrance).await.unwrap();
                let name = names.fetch_add(1, Ordering::SeqCst).to_string();
                let request = format!("POST /{name} HTTP/1.1\r\nhost: app.example\r\n{head}");
                client.write_all(request.as_bytes()).await.unwrap();
                eventually("it is under way", async || {
                    arrived.lock().unwrap().contains(&name).then_some(())
                })
                .await;
                if end == End::Reset {
                    reset_at_the_end(&client);
                }
            };
            routes.again_and_again(round).await;
            expected += ROUNDS;
        }
    }
    eventually("the application has seen them end", async || {
        (broken.load(Ordering::SeqCst) >= expected).then_some(())
    })
    .await;
    assert_eq!(whole.load(Ordering::SeqCst), 0);
    let gone = [("direction", "inbound"), ("outcome", "client_gone")];
    let metrics = routes.b.metrics().await;
    assert!(metrics.sum("doorward_requests_total", &gone) >= expected as f64);
    let failed = [("outcome", "upstream_failed")];
    assert!(metrics.sum("doorward_requests_total", &failed) < 1.0);
}

#[tokio::test]
async fn a_request_that_comes_a_byte_at_a_time_arrives_whole() {
    let app = App::start().await;
    let routes = Routes::to(&[(app.address, "", "")]).await;
    let entrance = routes.a.outbound[0];
    for framing in [
        "content-length: 5\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    ] {
        let round = async || {
            let mut client = TcpStream::connect(entrance).await.unwrap();
            client.set_nodelay(true).unwrap();
            let request = format!("POST /slowly HTTP/1.1\r\nhost: app.example\r\n{framing}");
            for byte in request.bytes() {
                client.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            let answer = raw(&mut client, b"").await;
            assert_eq!(status_of(&answer), 200);
            assert!(answer.contains("\"body\":5"), "{answer}");
        };
        routes.again_and_again_keeping(AT_ONCE, round).await;
    }
}
