//! How does the demo ask? Over one keep-alive HTTP/1.1 connection, as an unmodified application would.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    address: SocketAddr,
    sender: SendRequest<Empty<Bytes>>,
    driver: JoinHandle<()>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    /// From the first byte sent to the last received.
    pub(super) took: Duration,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody answers at `address`.
    pub(super) async fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let connecting = async {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = handshake(TokioIo::new(stream)).await?;
            // What breaks it off is told by the request under way.
            let driver = tokio::spawn(async move { drop(connection.await) });
            anyhow::Ok(Self {
                address,
                sender,
                driver,
            })
        };
        timeout(PATIENCE, connecting)
            .await
            .map_err(Into::into)
            .flatten()
            .with_context(|| format!("cannot connect to {address}"))
    }

    /// Asks on this very connection.
    ///
    /// # Errors
    /// When no whole answer came.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> anyhow::Result<Answer> {
        let mut request = Request::builder()
            .method(&method)
            .uri(path)
            .header("host", "invoices.demo");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new())?;
        let began = Instant::now();
        let asking = async {
            self.sender.ready().await?;
            let response = self.sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            anyhow::Ok((head, body.collect().await?.to_bytes()))
        };
        let (head, body) = timeout(PATIENCE, asking)
            .await
            .map_err(Into::into)
            .flatten()
            .with_context(|| format!("no answer to {method} {path} from {}", self.address))?;
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            body,
            took: began.elapsed(),
        })
    }

    /// `GET path` without more ado.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub(super) async fn get(&mut self, path: &str) -> anyhow::Result<Answer> {
        self.send(Method::GET, path, &[]).await
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Answer {
    /// The body as JSON, or nothing in it.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The body as text.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Asks once, on a connection of its own.
///
/// # Errors
/// As [`Client::connect`] and [`Client::send`].
pub(super) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<Answer> {
    Client::connect(address).await?.get(path).await
}

const PATIENCE: Duration = Duration::from_secs(10);
