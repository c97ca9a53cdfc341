//! Whoever is told to stop finishes what it has begun, takes nothing new, and forgets no record.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::header;
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::apps::{self, Answer, AnyError, App, get, get2, http1, http2};
use crate::mesh::{Sidecar, eventually};
use crate::pair::{Pair, Terms};

#[tokio::test]
async fn under_load_every_request_is_answered_and_recorded() {
    let app = App::http().await;
    let mut pair = Pair::of(&app, "auto").await;
    let done = Arc::new(AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..16 {
        clients.spawn(over_http1(pair.a.outbound[0], done.clone()));
    }
    for _ in 0..4 {
        clients.spawn(over_http2(pair.a.outbound[0], done.clone()));
    }
    eventually("there is load", async || {
        (done.load(Ordering::SeqCst) > 1000).then_some(())
    })
    .await;

    let began = Instant::now();
    pair.a.process.signal(Signal::SIGTERM);
    let failed: Vec<_> = clients
        .join_all()
        .await
        .into_iter()
        .filter_map(Result::err)
        .collect();
    assert!(failed.is_empty(), "{}: {failed:#?}", failed.len());
    assert_eq!(pair.a.process.exit().await, Some(0));
    // The grace is 30 s; nobody had to wait for its end.
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );

    let done = done.load(Ordering::SeqCst);
    assert_eq!(completed(&pair.a), done, "records of the caller's side");
    assert_eq!(pair.b.terminate().await, Some(0));
    assert_eq!(completed(&pair.b), done, "records of the other side");
}

#[tokio::test]
async fn slow_requests_end_in_order_and_new_connections_are_refused() {
    for who in ["a", "b"] {
        let app = App::http().await;
        let mut pair = Pair::of(&app, "auto").await;
        let mut slow = JoinSet::new();
        for _ in 0..8 {
            let (one, two) = (pair.connect().await, pair.connect().await);
            slow.spawn(async {
                let mut client = http1(one).await?;
                Answer::of(client.send_request(get("/slow/1")).await?).await
            });
            slow.spawn(async {
                let mut client = http2(two).await?;
                Answer::of(client.send_request(get2("/slow/2")).await?).await
            });
        }
        app.wait_for(16).await;
        let (closed, leaving) = if who == "a" {
            (pair.a.outbound[0], &mut pair.a)
        } else {
            (pair.b.inbound[0], &mut pair.b)
        };
        leaving.process.signal(Signal::SIGTERM);
        refused(closed).await;
        // Some wait longer than a kept connection does.
        app.release(8);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        leaving.process.assert_running();
        app.release(8);
        for answer in slow.join_all().await {
            let answer = answer.unwrap();
            assert_eq!(answer.status, 200, "{who}: {}", answer.text());
        }
        assert_eq!(leaving.process.exit().await, Some(0), "{who}");
        assert_eq!(completed(leaving), 16, "{who}");
    }
}

#[tokio::test]
async fn what_outlasts_the_grace_is_cut_and_the_record_says_so() {
    for who in ["a", "b"] {
        let (mut pair, mut client, _app) = long_session("1s").await;
        let leaving = if who == "a" { &mut pair.a } else { &mut pair.b };
        let began = Instant::now();
        leaving.process.signal(Signal::SIGTERM);
        ends(&mut client).await;
        assert!(
            began.elapsed() >= Duration::from_millis(900),
            "{who}: {:?}",
            began.elapsed()
        );
        assert_eq!(leaving.process.exit().await, Some(0), "{who}");
        assert_eq!(outcomes(leaving), ["cut"], "{who}");
    }
}

#[tokio::test]
async fn a_second_signal_cuts_at_once() {
    let (mut pair, mut client, _app) = long_session("600s").await;
    pair.b.process.signal(Signal::SIGTERM);
    refused(pair.b.inbound[0]).await;
    // It still lives.
    client.write_all(b"yes?").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
    let began = Instant::now();
    pair.b.process.signal(Signal::SIGTERM);
    ends(&mut client).await;
    assert_eq!(pair.b.process.exit().await, Some(0));
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    // Whoever knocked before the listener was closed has a record too.
    assert_eq!(outcomes(&pair.b).last().unwrap(), "cut");
}

/// A TCP session through a pair with that grace, on which bytes have passed.
async fn long_session(drain_grace: &'static str) -> (Pair, TcpStream, App) {
    let app = App::tcp(apps::echo).await;
    let terms = Terms {
        drain_grace,
        ..Terms::default()
    };
    let pair = Pair::with(&[(&app, "protocol: tcp", "protocol: tcp")], terms).await;
    let mut client = pair.connect().await;
    client.write_all(b"here").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
    (pair, client, app)
}

/// The session ends without another byte.
async fn ends(client: &mut TcpStream) {
    match client.read(&mut [0; 1]).await {
        Ok(0) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("{other:?}"),
    }
}

async fn refused(address: SocketAddr) {
    eventually("new connections are refused", async || {
        let connected = TcpStream::connect(address).await;
        connected
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
            .then_some(())
    })
    .await;
}

/// How its connections ended, by its records.
fn outcomes(sidecar: &Sidecar) -> Vec<String> {
    outcomes_of(sidecar, "connection")
}

/// How many requests it has passed on whole, by its records.
fn completed(sidecar: &Sidecar) -> usize {
    let outcomes = outcomes_of(sidecar, "request");
    outcomes
        .iter()
        .filter(|outcome| *outcome == "completed")
        .count()
}

fn outcomes_of(sidecar: &Sidecar, kind: &str) -> Vec<String> {
    let records = sidecar
        .audit()
        .into_iter()
        .filter(|record| record["kind"] == kind);
    records
        .map(|record| record["outcome"].as_str().unwrap().to_owned())
        .collect()
}

/// Asks until it is told to go.
async fn over_http1(to: SocketAddr, done: Arc<AtomicUsize>) -> Result<(), AnyError> {
    let mut client = http1(TcpStream::connect(to).await?).await?;
    loop {
        client.ready().await?;
        let answer = Answer::of(client.send_request(get("/download/1000")).await?).await?;
        if answer.status != 200 || answer.body.len() != 1000 {
            return Err(format!("{}: {}", answer.status, answer.text()).into());
        }
        done.fetch_add(1, Ordering::SeqCst);
        if answer
            .headers
            .get(header::CONNECTION)
            .is_some_and(|value| value == "close")
        {
            return Ok(());
        }
    }
}

/// Asks until it is told to go: after GOAWAY no request is taken any more.
async fn over_http2(to: SocketAddr, done: Arc<AtomicUsize>) -> Result<(), AnyError> {
    let mut client = http2(TcpStream::connect(to).await?).await?;
    while client.ready().await.is_ok() {
        let response = match client.try_send_request(get2("/download/1000")).await {
            Ok(response) => response,
            // Where it comes back, it was never sent.
            Err(mut failed) => match failed.take_message() {
                Some(_) => break,
                None => return Err(failed.into_error().into()),
            },
        };
        let answer = Answer::of(response).await?;
        if answer.status != 200 || answer.body.len() != 1000 {
            return Err(format!("{}: {}", answer.status, answer.text()).into());
        }
        done.fetch_add(1, Ordering::SeqCst);
    }
    Ok(())
}
