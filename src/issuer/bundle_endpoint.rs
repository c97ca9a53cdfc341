//! How do other trust domains learn our keys? A SPIFFE bundle endpoint (SPIFFE Federation §5) of the
//! profile `https_spiffe`: HTTPS whose server proves itself by an X509-SVID of the trust domain it is
//! about. Whoever asks needs no identity; the keys are public.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::authority::{Authority, AuthorityError, seconds};
use super::service::Shared;
use crate::identity::{SpiffeId, TrustDomain};
use crate::live::Snapshot;
use crate::tls::{self, Offer};

/// The section `federation`. Without it there is no bundle endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen. What is served there is public.
    pub listen: SocketAddr,
}

impl Settings {
    pub(super) fn read(node: &crate::document::Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let listen = section.required("listen", |node| node.address());
        Some(Self { listen: listen? })
    }
}

/// The path of the SPIFFE ID that the endpoint proves itself by, within its trust domain.
pub const PATH: &str = "/doorward/issuer";

/// How long its certificate lives. It is replaced at half of that.
const LIFETIME: Duration = Duration::from_secs(3600);
/// Connections at once; the others wait.
const CONNECTIONS: usize = 256;
/// How long a handshake, and then a request's head, may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one connection is served.
const VISIT: Duration = Duration::from_secs(30);

/// A bundle endpoint that listens.
#[derive(Debug)]
pub(super) struct BundleEndpoint(TcpListener);

impl BundleEndpoint {
    pub(super) async fn bind(settings: Settings) -> io::Result<Self> {
        let listener = TcpListener::bind(settings.listen).await?;
        info!(address = %listener.local_addr()?, what = "bundle endpoint", "bound");
        Ok(Self(listener))
    }

    /// Serves until the issuer stops.
    pub(super) async fn serve(self, shared: Arc<Shared>, tasks: TaskTracker) {
        let seats = Arc::new(Semaphore::new(CONNECTIONS));
        let mut published = None;
        loop {
            let accepted = async {
                let seat = seats.clone().acquire_owned().await;
                (seat, self.0.accept().await)
            };
            let (seat, accepted) = tokio::select! {
                () = shared.stop.cancelled() => return,
                accepted = accepted => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "the bundle endpoint cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(authority) = shared.authority.get() else {
                continue;
            };
            let now = SystemTime::now();
            if let Err(cause) = Published::refresh(&mut published, &authority, now) {
                error!(
                    error = &cause as &dyn std::error::Error,
                    "the bundle endpoint cannot answer"
                );
            }
            let Some(Published { tls, document, .. }) = &published else {
                continue;
            };
            let visit = visit(stream, tls.clone(), document.clone());
            let stop = shared.stop.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = timeout(VISIT, visit) => {}
                }
                drop(seat);
            });
        }
    }
}

/// What is served at the moment.
#[derive(Debug)]
struct Published {
    /// Of the CA that it was made from.
    generation: u64,
    sequence: u64,
    document: Bytes,
    tls: Arc<ServerConfig>,
    /// When the certificate is to be replaced.
    due: SystemTime,
}

impl Published {
    /// Makes `published` what it should be by `now`. On an error it stays as it was.
    fn refresh(
        published: &mut Option<Self>,
        authority: &Snapshot<Authority>,
        now: SystemTime,
    ) -> Result<(), PublishError> {
        let last = published.as_ref();
        let same = last.filter(|last| last.generation == authority.generation);
        if same.is_some_and(|same| now < same.due) {
            return Ok(());
        }
        // Seconds of the clock, so that it grows over restarts without being kept anywhere.
        let sequence = match (same, last) {
            (Some(same), _) => same.sequence,
            (None, Some(last)) => seconds(now).max(last.sequence + 1),
            (None, None) => seconds(now),
        };
        let id = endpoint_id(authority.value.domain())?;
        let svid = authority.value.x509_svid(&id, LIFETIME, now)?;
        let key: PrivateKeyDer<'_> = PrivatePkcs8KeyDer::from(svid.key.to_vec()).into();
        let key = any_supported_type(&key)?;
        let certified = Arc::new(CertifiedKey::new(vec![svid.certificate.into()], key));
        let tls = tls::web_server(certified, None, Offer::Http1)?;
        let left = svid.not_after.duration_since(now).unwrap_or_default();
        *published = Some(Self {
            generation: authority.generation,
            sequence,
            document: authority.value.document(sequence)?.render().into(),
            tls: Arc::new(tls),
            due: now + left / 2,
        });
        Ok(())
    }
}

/// Who the endpoint of a trust domain is.
fn endpoint_id(domain: &TrustDomain) -> Result<SpiffeId, AuthorityError> {
    SpiffeId::parse(&format!("spiffe://{domain}{PATH}")).map_err(|_| AuthorityError::Encoding)
}

async fn visit(stream: TcpStream, tls: Arc<ServerConfig>, document: Bytes) {
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let stream = match timeout(PATIENCE, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "no handshake at the bundle endpoint"),
        Err(_) => return debug!("no handshake at the bundle endpoint in time"),
    };
    let answer = service_fn(|request: Request<hyper::body::Incoming>| {
        let response = answer(&request, &document);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(error) = served.await {
        debug!(%error, "a visit to the bundle endpoint ended early");
    }
}

fn answer<B>(request: &Request<B>, document: &Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.uri().path() != "/" {
        *response.status_mut() = StatusCode::NOT_FOUND;
    } else if matches!(*request.method(), Method::GET | Method::HEAD) {
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        *response.body_mut() = document.clone().into();
    } else {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        let allow = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allow);
    }
    response
}

/// Why the endpoint has nothing new to serve.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("its certificate cannot be used for TLS")]
    Tls(#[from] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::bundle_document::BundleDocument;
    use crate::live::Live;

    const MONTH: Duration = Duration::from_secs(30 * 86_400);

    fn read(published: Option<&Published>) -> BundleDocument {
        BundleDocument::parse(&published.unwrap().document).unwrap()
    }

    #[test]
    fn the_sequence_number_grows_with_each_change_of_the_ca_and_with_nothing_else() {
        let now = SystemTime::now();
        let domain = TrustDomain::parse("example.org").unwrap();
        let authority = Authority::generate(&domain, MONTH, now).unwrap();
        let live = Live::default();
        live.publish(authority.clone());
        let mut published = None;
        let mut refresh = |live: &Live<Authority>, now| {
            Published::refresh(&mut published, &live.get().unwrap(), now).unwrap();
            let document = read(published.as_ref());
            (
                document.sequence.unwrap(),
                document.x509.certificates().count(),
            )
        };
        let (first, roots) = refresh(&live, now);
        assert_eq!((first, roots), (seconds(now), 1));
        // A new certificate of the endpoint is no change of the keys.
        assert_eq!(refresh(&live, now + LIFETIME), (first, 1));
        let half = now + MONTH / 2;
        live.publish(authority.renewed(half + LIFETIME).unwrap().unwrap());
        // Even when the clock has not moved, or was set back.
        assert_eq!(refresh(&live, now - LIFETIME), (first + 1, 2));
    }

    #[test]
    fn its_certificate_is_replaced_at_half_of_its_life() {
        let now = SystemTime::now();
        let domain = TrustDomain::parse("example.org").unwrap();
        let live = Live::default();
        live.publish(Authority::generate(&domain, MONTH, now).unwrap());
        let authority = live.get().unwrap();
        let mut published = None;
        let mut config = |now| {
            Published::refresh(&mut published, &authority, now).unwrap();
            published.as_ref().unwrap().tls.clone()
        };
        let first = config(now);
        assert!(Arc::ptr_eq(&first, &config(now + LIFETIME / 3)));
        assert!(!Arc::ptr_eq(&first, &config(now + LIFETIME / 3 * 2)));
    }

    #[test]
    fn only_the_document_is_there_and_only_to_be_read() {
        let document = Bytes::from_static(b"{}");
        for (method, path, status) in [
            ("GET", "/", 200),
            ("HEAD", "/", 200),
            ("GET", "/keys", 404),
            ("POST", "/", 405),
        ] {
            let request = Request::builder()
                .method(method)
                .uri(path)
                .body(())
                .unwrap();
            assert_eq!(
                answer(&request, &document).status(),
                status,
                "{method} {path}"
            );
        }
    }
}
