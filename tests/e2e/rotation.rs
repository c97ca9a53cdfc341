//! Certificates change under load, and nobody notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::apps::{self, Answer, AnyError, App, get, get2, http1, http2};
use crate::mesh::Sidecar;
use crate::pair::{Pair, Terms};

#[tokio::test]
async fn no_request_fails_while_certificates_change_every_second() {
    let (http, tcp) = (App::http().await, App::tcp(apps::echo).await);
    let routes = [(&http, "", ""), (&tcp, "protocol: tcp", "protocol: tcp")];
    let terms = Terms {
        lifetime: "30s",
        rotate_every: Some("1s"),
        ..Terms::default()
    };
    let pair = Pair::with(&routes, terms).await;
    let before = [rotations(&pair.a).await, rotations(&pair.b).await];

    let mut load = Load::new(Duration::from_secs(20));
    let [http, tcp] = [pair.a.outbound[0], pair.a.outbound[1]];
    for _ in 0..24 {
        load.add("HTTP/1.1", over_http1(http, load.until));
    }
    for _ in 0..8 {
        load.add("HTTP/2", over_http2(http, load.until));
    }
    for _ in 0..8 {
        load.add("short TCP", short_sessions(tcp, load.until));
    }
    load.add("long TCP", long_session(tcp, load.until));
    load.finish().await;

    for (sidecar, before) in [&pair.a, &pair.b].into_iter().zip(before) {
        let rotated = rotations(sidecar).await - before;
        assert!(
            rotated >= 15.0,
            "{} rotated {rotated} times",
            sidecar.process.name()
        );
    }
}

#[tokio::test]
async fn no_request_fails_while_certificates_live_for_seconds() {
    let app = App::http().await;
    let terms = Terms {
        lifetime: "4s",
        ..Terms::default()
    };
    let pair = Pair::with(&[(&app, "", "")], terms).await;
    let mut load = Load::new(Duration::from_secs(10));
    for _ in 0..16 {
        load.add("HTTP/1.1", over_http1(pair.a.outbound[0], load.until));
        load.add("HTTP/2", over_http2(pair.a.outbound[0], load.until));
    }
    load.finish().await;
    assert!(rotations(&pair.a).await >= 4.0);
}

async fn rotations(sidecar: &Sidecar) -> f64 {
    sidecar
        .metrics()
        .await
        .sum("doorward_identity_rotations_total", &[])
}

/// Clients that go on until an instant. Each says how much it got done, or what went wrong.
struct Load {
    until: Instant,
    clients: JoinSet<(&'static str, Result<usize, AnyError>)>,
}

impl Load {
    fn new(time: Duration) -> Self {
        Self {
            until: Instant::now() + time,
            clients: JoinSet::new(),
        }
    }

    fn add(
        &mut self,
        what: &'static str,
        client: impl Future<Output = Result<usize, AnyError>> + Send + 'static,
    ) {
        self.clients.spawn(async move { (what, client.await) });
    }

    /// # Panics
    /// With the failures, if there was a single one.
    async fn finish(mut self) {
        let mut failed = Vec::new();
        while let Some(ended) = self.clients.join_next().await {
            match ended.unwrap() {
                (_, Ok(done)) if done >= 10 => {}
                (what, Ok(done)) => {
                    failed.push(format!("{what}: no more than {done} in all the time"));
                }
                (what, Err(error)) => failed.push(format!("{what}: {error:?}")),
            }
        }
        assert!(failed.is_empty(), "{}: {failed:#?}", failed.len());
    }
}

/// One connection, one request after the other.
async fn over_http1(to: SocketAddr, until: Instant) -> Result<usize, AnyError> {
    let mut client = http1(TcpStream::connect(to).await?).await?;
    let mut done = 0;
    while Instant::now() < until {
        client.ready().await?;
        sound(Answer::of(client.send_request(get("/download/1000")).await?).await?)?;
        done += 1;
    }
    Ok(done)
}

/// One connection, two requests at a time.
async fn over_http2(to: SocketAddr, until: Instant) -> Result<usize, AnyError> {
    let client = http2(TcpStream::connect(to).await?).await?;
    let done = Arc::new(AtomicUsize::new(0));
    let strand = async || {
        let mut client = client.clone();
        while Instant::now() < until {
            client.ready().await?;
            sound(Answer::of(client.send_request(get2("/download/1000")).await?).await?)?;
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok::<_, AnyError>(())
    };
    tokio::try_join!(strand(), strand())?;
    Ok(done.load(Ordering::Relaxed))
}

fn sound(answer: Answer) -> Result<(), AnyError> {
    if answer.status == 200 && answer.body.len() == 1000 {
        return Ok(());
    }
    Err(format!("{}: {:?}", answer.status, answer.body).into())
}

/// A connection for each exchange.
async fn short_sessions(to: SocketAddr, until: Instant) -> Result<usize, AnyError> {
    let mut done = 0;
    while Instant::now() < until {
        let mut stream = TcpStream::connect(to).await?;
        stream.write_all(b"and back").await?;
        stream.shutdown().await?;
        let mut back = String::new();
        stream.read_to_string(&mut back).await?;
        if back != "and back" {
            return Err(format!("after {done}: {back:?} came back").into());
        }
        done += 1;
    }
    Ok(done)
}

/// One connection for all exchanges.
async fn long_session(to: SocketAddr, until: Instant) -> Result<usize, AnyError> {
    let mut stream = TcpStream::connect(to).await?;
    let mut done = 0;
    while Instant::now() < until {
        stream.write_all(b"and back").await?;
        let mut back = [0; 8];
        stream.read_exact(&mut back).await?;
        done += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(done)
}
