//! How do we ask a web server something? One request on a connection of its own, its answer bounded in size.
//!
//! Whoever asks sets the time limit: dropping the future ends the connection.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls;

/// Where a server listens, and how it proves itself, if it must.
#[derive(Clone, Debug)]
pub struct Server {
    /// Its name or address, an IPv6 address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// None for plain HTTP.
    pub tls: Option<Tls>,
}

/// What a server must prove.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Whose certificate it must show.
    pub name: ServerName<'static>,
    /// And who may vouch for it.
    pub config: Arc<ClientConfig>,
}

impl Server {
    /// Sends `request` and reads the whole answer, whose body may have `largest` bytes.
    ///
    /// # Errors
    /// [`Problem`], by how far it came. A status that tells of an error is an answer.
    pub async fn ask(
        &self,
        request: Request<Full<Bytes>>,
        largest: usize,
    ) -> Result<Response<Bytes>, Problem> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(Problem::Connect)?;
        match &self.tls {
            None => exchange(stream, request, largest).await,
            Some(Tls { name, config }) => {
                let stream = TlsConnector::from(config.clone())
                    .connect(name.clone(), stream)
                    .await
                    .map_err(|error| Problem::Handshake(error.into()))?;
                exchange(stream, request, largest).await
            }
        }
    }

    /// What the header `host` says.
    #[must_use]
    pub fn host_header(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match (self.port, &self.tls) {
            (443, Some(_)) | (80, None) => host,
            (port, _) => format!("{host}:{port}"),
        }
    }
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
    largest: usize,
) -> Result<Response<Bytes>, Problem> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Problem::Http)?;
    let answer = async {
        let response = sender.send_request(request).await;
        let (head, body) = response.map_err(Problem::Http)?.into_parts();
        let body = Limited::new(body, largest).collect().await;
        let body = body.map_err(Problem::Body)?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    // The connection only makes the answer come, so it goes with it.
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        answer = answer => answer,
        never = driven => never,
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Nobody listens there, or the name is not known.
    #[error("it cannot be reached")]
    Connect(#[source] io::Error),
    /// It did not prove itself, or speaks no TLS 1.3.
    #[error("no TLS connection could be made")]
    Handshake(#[source] tls::HandshakeError),
    /// What came is no HTTP, or broke off.
    #[error("it does not speak HTTP as it should")]
    Http(#[source] hyper::Error),
    /// The body broke off, or is larger than allowed.
    #[error("its answer could not be read to its end, or is too large")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_header_leaves_out_the_usual_port_and_brackets_ipv6() {
        for (host, port, expected) in [
            ("b.example", 80, "b.example"),
            ("b.example", 8080, "b.example:8080"),
            ("::1", 9090, "[::1]:9090"),
            ("127.0.0.1", 443, "127.0.0.1:443"),
        ] {
            let server = Server {
                host: host.into(),
                port,
                tls: None,
            };
            assert_eq!(server.host_header(), expected);
        }
    }
}
