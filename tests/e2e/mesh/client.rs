//! Whoever asks: a plain HTTP client, bytes as they are, and TLS with any certificate.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

use super::{Ca, Minted, SOON};

/// A response, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The header `name`, empty if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }

    /// Reads `response` to its end.
    pub(crate) async fn of(response: Response<Incoming>) -> hyper::Result<Self> {
        let (parts, body) = response.into_parts();
        let body = body.collect().await?;
        let trailers = body.trailers().cloned();
        Ok(Self {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.to_bytes(),
            trailers,
        })
    }
}

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
}

/// One connection on which requests follow each other.
#[derive(Debug)]
pub(crate) enum Client {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    /// A client on a plain connection to `address`.
    pub(crate) async fn connect(address: SocketAddr, http: Http) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::on(stream, http).await
    }

    /// A client on `io`, whatever that is.
    pub(crate) async fn on<IO>(io: IO, http: Http) -> Self
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(io);
        match http {
            Http::One => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                tokio::spawn(connection.with_upgrades());
                Self::One(sender)
            }
            Http::Two => {
                let executor = TokioExecutor::new();
                let (sender, connection) = http2::handshake(executor, io).await.unwrap();
                tokio::spawn(connection);
                Self::Two(sender)
            }
        }
    }

    /// Sends a request and returns the response as it begins.
    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// Sends a request and reads the answer to its end.
    pub(crate) async fn ask(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Answer> {
        let asked = async { Answer::of(self.send(request).await?).await };
        tokio::time::timeout(SOON, asked)
            .await
            .expect("an answer in time")
    }

    /// GET `path`.
    pub(crate) async fn get(&mut self, path: &str) -> hyper::Result<Answer> {
        let request = match self {
            Self::One(_) => request("GET", path),
            Self::Two(_) => request("GET", &format!("http://app.example{path}")),
        };
        self.ask(request).await
    }
}

/// A request without a body to the host `app.example`.
pub(crate) fn request(method: &str, uri: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(uri);
    let request = if uri.starts_with('/') {
        request.header("host", "app.example")
    } else {
        request.version(http::Version::HTTP_2)
    };
    request.body(Full::default()).unwrap()
}

/// GET `path` over HTTP/1.1 on a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, request("GET", path)).await
}

/// Asks over HTTP/1.1 on a connection of its own. A connection that breaks off is status 0: there was no
/// answer.
pub(crate) async fn ask(address: SocketAddr, request: Request<Full<Bytes>>) -> Answer {
    let nothing = || Answer {
        status: 0,
        headers: HeaderMap::new(),
        body: Bytes::new(),
        trailers: None,
    };
    let Ok(stream) = TcpStream::connect(address).await else {
        return nothing();
    };
    let mut client = Client::on(stream, Http::One).await;
    client.ask(request).await.unwrap_or_else(|_| nothing())
}

/// Writes `bytes` as they are, and reads what comes until the other side closes, or until a whole
/// response that has a length is there.
pub(crate) async fn raw<IO>(io: &mut IO, bytes: &[u8]) -> String
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    // Whoever is refused may be gone before all is written.
    let _ = io.write_all(bytes).await;
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    let reading = async {
        while !is_whole(&read) {
            match io.read(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(length) => read.extend_from_slice(&piece[..length]),
            }
        }
    };
    tokio::time::timeout(SOON, reading)
        .await
        .expect("an answer or an end in time");
    String::from_utf8_lossy(&read).into_owned()
}

fn is_whole(read: &[u8]) -> bool {
    let text = String::from_utf8_lossy(read).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"))
        .and_then(|length| length.trim().parse::<usize>().ok());
    length.is_some_and(|length| body.len() >= length)
}

/// One side of TLS 1.3 with whatever certificate a case needs; believes everybody.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    config: ClientConfig,
}

impl Tls {
    /// With `identity`, or with no certificate at all.
    pub(crate) fn new(identity: Option<&Minted>, alpn: &[&str]) -> Self {
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match identity {
            Some(minted) => config
                .with_client_auth_cert(minted.chain.clone(), minted.key())
                .unwrap(),
            None => config.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { config }
    }

    /// Shows the certificate of `shown` but holds the key of `held`.
    pub(crate) fn with_foreign_key(shown: &Minted, held: &Minted, alpn: &[&str]) -> Self {
        let mut this = Self::new(None, alpn);
        let key = aws_lc_rs::sign::any_ecdsa_type(&held.key()).unwrap();
        let certified = CertifiedKey::new(shown.chain.clone(), key);
        this.config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(certified));
        this
    }

    /// Connects. In TLS 1.3 this succeeds before the server has judged our certificate.
    ///
    /// # Errors
    /// When the server refuses what came before that.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
    ) -> io::Result<client::TlsStream<TcpStream>> {
        self.on(TcpStream::connect(address).await?).await
    }

    /// The same on a connection that there is.
    pub(crate) async fn on(&self, stream: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(Ipv4Addr::LOCALHOST.into());
        TlsConnector::from(Arc::new(self.config.clone()))
            .connect(name, stream)
            .await
    }

    /// Connects and asks over the HTTP that was offered first.
    pub(crate) async fn client(&self, address: SocketAddr) -> Client {
        let stream = self.connect(address).await.unwrap();
        let http = match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Http::Two,
            _ => Http::One,
        };
        Client::on(stream, http).await
    }

    /// The other side: a server that proves `identity` and lets everybody in.
    pub(crate) fn server(identity: &Minted, alpn: &[&str]) -> TlsAcceptor {
        Self::server_for(WebPkiClientVerifier::no_client_auth(), identity, alpn)
    }

    /// A server that lets in only whom `ca` has signed.
    pub(crate) fn strict_server(identity: &Minted, ca: &Ca, alpn: &[&str]) -> TlsAcceptor {
        let mut roots = RootCertStore::empty();
        roots.add(ca.certificate().clone()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        Self::server_for(clients.build().unwrap(), identity, alpn)
    }

    fn server_for(
        clients: Arc<dyn ClientCertVerifier>,
        identity: &Minted,
        alpn: &[&str],
    ) -> TlsAcceptor {
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .with_client_cert_verifier(clients)
                .with_single_cert(identity.chain.clone(), identity.key())
                .unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        TlsAcceptor::from(Arc::new(config))
    }
}

/// Believes every certificate.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The status code of an answer read with [`raw`]; 0 if there is none.
pub(crate) fn status_of(text: &str) -> u16 {
    let code = text
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3));
    let code = code.and_then(|code| code.parse().ok());
    code.map_or(0, |code: u16| StatusCode::from_u16(code).unwrap().as_u16())
}
