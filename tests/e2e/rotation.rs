//! Certificates change under load, and nobody notices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::apps::{self, Answer, AnyError, App, get, get2, http1, http2};
use crate::mesh::{Client, Http, Mesh, Options, Sidecar, grant};
use crate::pair::{Pair, Terms};

#[tokio::test]
async fn no_request_fails_while_certificates_change_every_second() {
    rotate_under_load(Duration::from_secs(20)).await;
}

/// A new certificate every second on both sides of 64 connections that are never idle. Returns figures.
///
/// # Panics
/// When a single request, session or message fails.
async fn rotate_under_load(time: Duration) -> String {
    let (http, tcp) = (App::http().await, App::tcp(apps::echo).await);
    let routes = [(&http, "", ""), (&tcp, "protocol: tcp", "protocol: tcp")];
    let terms = Terms {
        // Longer than all of it: a session that is never idle lasts as long as what it began with.
        lifetime: "6h",
        rotate_every: Some("1s"),
        ..Terms::default()
    };
    let pair = Pair::with(&routes, terms).await;
    let sidecars = [&pair.a, &pair.b];
    let [http, tcp] = [pair.a.outbound[0], pair.a.outbound[1]];
    let mut before = Vec::new();
    for sidecar in sidecars {
        before.push((rotations(sidecar).await, memory(sidecar).await));
    }

    let mut load = Load::new(time);
    for _ in 0..32 {
        load.add("HTTP/1.1", over_http1(http, load.until));
    }
    for _ in 0..12 {
        load.add("HTTP/2", over_http2(http, load.until));
    }
    for _ in 0..12 {
        load.add("short TCP", short_sessions(tcp, load.until));
    }
    for _ in 0..7 {
        load.add("long TCP", long_session(tcp, load.until));
    }
    load.add("gRPC stream", one_grpc_stream(http, load.until));
    let done = load.finish().await;

    let mut figures = String::new();
    for (sidecar, (rotated, memory_before)) in sidecars.into_iter().zip(before) {
        let rotated = rotations(sidecar).await - rotated;
        let name = sidecar.process.name();
        assert!(
            rotated >= 0.75 * time.as_secs_f64(),
            "{name} rotated {rotated} times"
        );
        figures += &format!(
            "{name} rotated {rotated} times, memory {memory_before:.0} to {:.0} MB, ",
            memory(sidecar).await
        );
    }
    for (what, done) in done {
        figures += &format!("{done} {what}, ");
    }
    figures + "0 failed"
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

#[tokio::test]
async fn certificates_and_grants_hold_for_a_connection_beside_the_shared_one_too() {
    let mesh = Mesh::with(Options {
        rotate_every: Some("1s"),
        a: vec!["workers: 1".to_owned()],
        ..Options::default()
    })
    .await;
    let mut client = Client::connect(mesh.entrance(), Http::One).await;
    // With each new certificate both are opened anew.
    for again in 0..3 {
        let before = rotations(&mesh.a).await;
        let mut beside = false;
        while !beside || rotations(&mesh.a).await <= before {
            for _ in 0..50 {
                assert_eq!(client.get("/").await.unwrap().status, 200);
            }
            let metrics = mesh.a.metrics().await;
            beside |= metrics.sum("doorward_upstream_connections", &[]) >= 2.0;
        }
        mesh.repolicy(&grant(&format!("others-{again}"), "c")).await;
        for _ in 0..50 {
            assert_eq!(client.get("/").await.unwrap().status, 403);
        }
        mesh.repolicy(&grant(&format!("again-{again}"), "a")).await;
    }
}

/// In megabytes.
async fn memory(sidecar: &Sidecar) -> f64 {
    let metrics = sidecar.metrics().await;
    metrics.sum("process_resident_memory_bytes", &[]) / 1e6
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

    /// What was done by whom.
    ///
    /// # Panics
    /// With the failures, if there was a single one.
    async fn finish(mut self) -> BTreeMap<&'static str, usize> {
        let mut all = BTreeMap::new();
        let mut failed = Vec::new();
        while let Some(ended) = self.clients.join_next().await {
            match ended.unwrap() {
                (what, Ok(done)) if done >= 10 => *all.entry(what).or_default() += done,
                (what, Ok(done)) => {
                    failed.push(format!("{what}: no more than {done} in all the time"));
                }
                (what, Err(error)) => failed.push(format!("{what}: {error:?}")),
            }
        }
        assert!(failed.is_empty(), "{}: {failed:#?}", failed.len());
        all
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

/// One stream for all messages, each answered before the next.
async fn one_grpc_stream(to: SocketAddr, until: Instant) -> Result<usize, AnyError> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{to}"))?
        .connect()
        .await?;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let (say, said) = mpsc::channel(1);
    let said = stream::unfold(said, |mut said| async { Some((said.recv().await?, said)) });
    let path = http::uri::PathAndQuery::from_static("/test.PingPong/Play");
    let call = client.streaming(tonic::Request::new(said), path, apps::codec());
    let mut answers = call.await?.into_inner();
    let mut done = 0;
    while Instant::now() < until {
        say.send(format!("ping {done}")).await?;
        let answer = answers.message().await?;
        if answer != Some(format!("PING {done}")) {
            return Err(format!("after {done}: {answer:?} came back").into());
        }
        done += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(say);
    match answers.message().await? {
        None => Ok(done),
        more => Err(format!("after the end: {more:?}").into()),
    }
}
