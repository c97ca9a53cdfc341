//! What stands behind the sidecar? A plain application that knows nothing of identity: it answers HTTP,
//! and says which headers it was given.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::headers::XFCC;
use crate::runtime;
use crate::telemetry::{self, Format};

/// The demo's application: plain HTTP, and a plain TCP service that sends back what it gets
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where HTTP is served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where TCP is served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    feed: SocketAddr,
}

/// Where the application tells how much it has seen. It does not count this question.
pub(super) const SEEN: &str = "/seen";

/// Serves until it is ended.
///
/// # Errors
/// When it cannot listen.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    telemetry::start(&telemetry::Settings {
        format: Format::Json,
        ..telemetry::Settings::default()
    })?;
    runtime::control()?.block_on(async {
        let http = listen(args.listen, "app").await?;
        let feed = listen(args.feed, "feed").await?;
        let seen = Arc::new(Seen::default());
        loop {
            tokio::select! {
                stream = http.accept() => {
                    tokio::spawn(answer(stream?.0, seen.clone()));
                }
                stream = feed.accept() => {
                    seen.sessions.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(echo(stream?.0));
                }
            }
        }
    })
}

async fn listen(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    tracing::info!(address = %listener.local_addr()?, what, "bound");
    Ok(listener)
}

#[derive(Debug, Default)]
struct Seen {
    requests: AtomicU64,
    sessions: AtomicU64,
}

async fn answer(stream: TcpStream, seen: Arc<Seen>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = respond(&request, &seen);
        async move { Ok::<_, Infallible>(response) }
    });
    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if let Err(error) = serving.await {
        tracing::debug!(%error, "a connection broke off");
    }
}

fn respond(request: &Request<Incoming>, seen: &Seen) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    let answer = if path == SEEN {
        json!({
            "requests": seen.requests.load(Ordering::Relaxed),
            "sessions": seen.sessions.load(Ordering::Relaxed),
        })
    } else {
        seen.requests.fetch_add(1, Ordering::Relaxed);
        let claimed = request.headers().get(XFCC);
        json!({
            "application": "invoices",
            "method": request.method().as_str(),
            "path": path,
            "x-forwarded-client-cert": claimed.map(|value| String::from_utf8_lossy(value.as_bytes())),
        })
    };
    let mut response = Response::new(Full::from(format!("{answer}\n")));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

async fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(read) if read > 0 => {
                if stream.write_all(&buffer[..read]).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}
