//! How do we serve whoever knows us by a host name? Our own X509-SVID proves us, which names hosts too then.
//! Clients need no SVID; where they must prove themselves, roots that the operator names vouch for them.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Agreed, HandshakeError, Metrics, Offer, provider, within};
use crate::identity::{Bundle, Material, svid};
use crate::live::Live;

/// The configuration of a server that `certified` proves. Without `clients`, whoever connects is served.
/// Always in full, as everywhere: resumption would ask for no certificate.
pub(crate) fn web_server(
    certified: Arc<CertifiedKey>,
    clients: Option<&Bundle>,
    offer: Offer,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            let mut roots = RootCertStore::empty();
            for root in clients.certificates() {
                roots.add(root.clone())?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(roots.into(), provider().clone());
            // It refuses an empty store: then nobody could connect.
            let verifier = verifier.build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| rustls::Error::General(error.to_string()))?,
            )
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    config.alpn_protocols = offer.alpn();
    Ok(config)
}

/// One [`Material`] made ready to serve clients of the web over HTTP.
#[derive(Debug)]
pub(crate) struct WebServer {
    material: Material,
    names: Vec<String>,
    config: Arc<ServerConfig>,
}

impl WebServer {
    /// Serves as `material`; only clients that `clients` vouch for, if there are any given.
    pub(crate) fn new(material: Material, clients: Option<&Bundle>) -> Result<Self, rustls::Error> {
        let config = web_server(material.certified().clone(), clients, Offer::Http)?;
        let leaf = material.certified().cert.first();
        Ok(Self {
            names: leaf.map_or_else(Vec::new, |leaf| svid::hosts(leaf)),
            material,
            config: Arc::new(config),
        })
    }

    /// What it was made from.
    pub(crate) fn material(&self) -> &Material {
        &self.material
    }

    /// The hosts that our certificate is for: clients of the web ask for no SPIFFE ID.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether our certificate has not ended at `now`.
    pub(crate) fn valid_at(&self, now: SystemTime) -> bool {
        now < self.material.leaf().not_after
    }
}

/// Takes the server's side of handshakes with clients of the web.
#[derive(Clone, Debug)]
pub(crate) struct WebAcceptor {
    live: Arc<Live<WebServer>>,
    timeout: Duration,
    metrics: Metrics,
}

impl WebAcceptor {
    /// A handshake that takes longer than `timeout` is given up.
    pub(crate) fn new(live: Arc<Live<WebServer>>, timeout: Duration, metrics: Metrics) -> Self {
        Self {
            live,
            timeout,
            metrics,
        }
    }

    /// Makes the handshake on an accepted connection, unless `given_up` completes first.
    pub(crate) async fn accept_unless<IO>(
        &self,
        given_up: impl Future<Output = ()>,
        io: IO,
    ) -> Result<(TlsStream<IO>, Agreed), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let began = Instant::now();
        let outcome = tokio::select! {
            biased;
            outcome = self.handshake(began, io) => outcome,
            () = given_up => Err(HandshakeError::Crowded),
        };
        self.metrics.inbound.record(began, &outcome);
        outcome
    }

    async fn handshake<IO>(
        &self,
        began: Instant,
        io: IO,
    ) -> Result<(TlsStream<IO>, Agreed), HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let server = self.live.get().ok_or(HandshakeError::OwnIdentityMissing)?;
        if !server.value.valid_at(SystemTime::now()) {
            return Err(HandshakeError::OwnIdentityExpired);
        }
        let handshake = TlsAcceptor::from(server.value.config.clone()).accept(io);
        let stream = within(self.timeout, began, handshake).await?;
        let agreed = Agreed::of(stream.get_ref().1);
        Ok((stream, agreed))
    }
}
