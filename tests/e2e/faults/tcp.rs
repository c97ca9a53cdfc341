//! A TCP session breaks off: a reset at one end is a reset at the other, and never an end in order.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{End, Faulty, ROUNDS, Routes, eventually, reset_at_the_end};

const TCP: &str = "protocol: tcp";

#[tokio::test]
async fn a_tcp_session_that_the_application_resets_is_reset_for_the_caller() {
    let mut apps = Vec::new();
    for end in [End::Reset, End::Close] {
        let app = Faulty::new(move |mut stream| async move {
            let mut asked = [0; 3];
            stream.read_exact(&mut asked).await?;
            stream.write_all(b"half of it").await?;
            // The caller has it once it says so.
            stream.read_exact(&mut asked).await?;
            end.of(stream).await
        });
        apps.push(app.await);
    }
    let nobody = super::apps::free_address();
    let routes = Routes::to(&[
        (apps[0].address, TCP, TCP),
        (apps[1].address, TCP, TCP),
        (nobody, TCP, TCP),
    ])
    .await;
    for (entrance, expected) in routes.a.outbound.iter().zip([
        Err(ErrorKind::ConnectionReset),
        Ok(()),
        Err(ErrorKind::ConnectionReset),
    ]) {
        let round = async || {
            let mut client = TcpStream::connect(*entrance).await.unwrap();
            let mut read = [0; 10];
            let ended = async {
                client.write_all(b"ask").await?;
                client.read_exact(&mut read).await?;
                client.write_all(b"got").await?;
                client.read_to_end(&mut Vec::new()).await
            };
            let ended = tokio::time::timeout(super::BOUND, ended).await.unwrap();
            assert_eq!(ended.map(drop).map_err(|error| error.kind()), expected);
        };
        routes.again_and_again(round).await;
    }
    let ended = routes.a.metrics().await;
    for outcome in ["upstream_failed", "completed"] {
        let ended = ended.sum("doorward_sessions_ended_total", &[("outcome", outcome)]);
        assert!(ended >= ROUNDS as f64, "{outcome}: {ended}");
    }
}

#[tokio::test]
async fn a_tcp_session_that_the_caller_resets_is_reset_for_the_application() {
    let (resets, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (resets.clone(), ends.clone());
    let app = Faulty::new(move |mut stream| {
        let (resets, ends) = counts.clone();
        async move {
            let mut asked = [0; 10];
            stream.read_exact(&mut asked).await?;
            stream.write_all(b"got").await?;
            match stream.read(&mut asked).await {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => &resets,
                _ => &ends,
            }
            .fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    })
    .await;
    let routes = Routes::to(&[(app.address, TCP, TCP)]).await;
    let round = async || {
        let mut client = TcpStream::connect(routes.a.outbound[0]).await.unwrap();
        client.write_all(b"half of it").await.unwrap();
        client.read_exact(&mut [0; 3]).await.unwrap();
        reset_at_the_end(&client);
    };
    routes.again_and_again(round).await;
    eventually("the application has seen them all", async || {
        (resets.load(Ordering::SeqCst) >= ROUNDS).then_some(())
    })
    .await;
    assert_eq!(ends.load(Ordering::SeqCst), 0);
}
