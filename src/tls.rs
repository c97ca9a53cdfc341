//! How does a socket become a peer we know?
//!
//! [`Acceptor`] and [`Connector`] hold a handshake each and hand out a [`Secured`]: the stream, and the
//! [`Peer`] that was proved. TLS 1.3 only, both sides authenticated, always in full: resumption would skip
//! the verifier, even after a certificate has ended or a root has lost our trust, so it is off.
//!
//! Both rustls configurations are made once from one [`Material`] (an [`Endpoint`]); a rotation is in
//! force on the next handshake and touches no stream that is open. What a chain was found to be is
//! remembered with it (`tls/proven.rs`), so the signatures under a chain are checked once, not each time.

pub mod detect;
pub mod name;
mod proven;
mod stream;
mod verdicts;
pub mod verify;
mod web;

use std::fmt;
use std::io;
use std::iter;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, core::Collector,
};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::server::{NoServerSessionStorage, UnbufferedServerConnection};
use rustls::sign::SingleCertAndKey;
use rustls::{
    AlertDescription, ClientConfig, CommonState, InvalidMessage, RootCertStore, ServerConfig,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};

use self::proven::Proven;
pub use self::proven::Verifications;
pub use self::stream::{ClientStream, ServerStream, TlsStream};
use self::verdicts::Verdicts;
pub use self::verdicts::still_holds;
use self::verify::{AnyClient, ExpectedServer, Rules, Side, VerifyError};
pub(crate) use self::web::{WebAcceptor, WebServer, web_server};
use crate::identity::svid::{Leaf, SvidError};
use crate::identity::{Bundles, IdError, Material, SpiffeId, TrustDomain};
use crate::live::{Change, Live, Snapshot, Source};
use crate::outcome::Outcome;

/// Whom a handshake proved to be at the other end, and the proof. Only a handshake makes one.
#[derive(Debug)]
pub struct Peer {
    leaf: Arc<Leaf>,
    chain: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
    fingerprint: [u8; 32],
    /// Its [`Peer::digest`].
    proof: [u8; 32],
    side: Side,
}

impl Peer {
    /// The peer's SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// What its leaf certificate says.
    #[must_use]
    pub fn leaf(&self) -> &Arc<Leaf> {
        &self.leaf
    }

    /// From this instant on its proof holds no longer: the end of its leaf, or of an intermediate that
    /// vouches for it, whichever comes first.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether its certificates are within their time at `now`. Whether they are still trusted is for
    /// [`verify::still_holds`].
    #[must_use]
    pub fn valid_at(&self, now: SystemTime) -> bool {
        self.leaf.not_before <= now && now < self.not_after
    }

    /// How long its certificate was made to live.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.leaf.lifetime()
    }

    /// The chain it presented, leaf first, in DER.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    fn split_chain(
        &self,
    ) -> Result<(&CertificateDer<'static>, &[CertificateDer<'static>]), VerifyError> {
        let split = self.chain.split_first();
        split.ok_or(VerifyError::Svid(SvidError::Malformed))
    }

    /// SHA-256 of its leaf certificate in DER, as in `x-forwarded-client-cert`'s `Hash`.
    #[must_use]
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Who `endpoint` has just verified. rustls' verifier cannot hand its results over, so they are
    /// remembered for us; a chain too long for that is verified again.
    fn proved(
        tls: &CommonState,
        side: Side,
        endpoint: &Endpoint,
    ) -> Result<Arc<Self>, HandshakeError> {
        let chain = tls.peer_certificates().unwrap_or_default();
        let (first, intermediates) = chain.split_first().ok_or(HandshakeError::NoCertificate)?;
        let (rules, now) = (&endpoint.rules, SystemTime::now());
        let proof = Self::digest(first, intermediates, side);
        match rules.proven.known(&proof, now) {
            Some(peer) => Ok(peer),
            None => Ok(rules.prove(first, intermediates, side, now)?),
        }
    }

    /// SHA-256 of all that a verdict about a peer depends on.
    fn digest(
        first: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
    ) -> [u8; 32] {
        let mut text = vec![side as u8];
        for der in iter::once(first).chain(intermediates) {
            text.extend(der.len().to_be_bytes());
            text.extend_from_slice(der);
        }
        sha256(&text)
    }
}

/// rustls has no door to a bare hash but its cipher suites.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let suite = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13();
    let hash = suite.map(|suite| suite.common.hash_provider.hash(bytes));
    let digest = hash.and_then(|hash| hash.as_ref().try_into().ok());
    digest.expect("TLS13_AES_128_GCM_SHA256 is a suite of TLS 1.3, and SHA-256 has 32 bytes")
}

/// Which protocols a listener or a route offers in ALPN (RFC 7301), most wanted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offer {
    /// `h2`, then `http/1.1`.
    Http,
    /// `http/1.1` alone.
    Http1,
    /// `doorward-tcp` alone: bytes that nobody looks into.
    Opaque,
    /// `doorward-tcp/1`, then `doorward-tcp`: such bytes on a shared connection, or on one of their own.
    Tunnel,
    /// `h2`, `http/1.1`, then as [`Offer::Tunnel`].
    Auto,
    /// No ALPN at all, for a peer that knows none of these names.
    Nothing,
}

impl Offer {
    const ALL: [Self; 6] = [
        Self::Http,
        Self::Http1,
        Self::Opaque,
        Self::Tunnel,
        Self::Auto,
        Self::Nothing,
    ];

    fn alpn(self) -> Vec<Vec<u8>> {
        let names: &[Agreed] = match self {
            Self::Http => &[Agreed::Http2, Agreed::Http1],
            Self::Http1 => &[Agreed::Http1],
            Self::Opaque => &[Agreed::Opaque],
            Self::Tunnel => &[Agreed::Tunnel, Agreed::Opaque],
            Self::Auto => &[Agreed::Http2, Agreed::Http1, Agreed::Tunnel, Agreed::Opaque],
            Self::Nothing => &[],
        };
        names.iter().map(|name| name.as_alpn().to_vec()).collect()
    }
}

/// What ALPN agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Agreed {
    /// `h2`.
    Http2,
    /// `http/1.1`.
    Http1,
    /// `doorward-tcp`.
    Opaque,
    /// `doorward-tcp/1`: see [`crate::tunnel`].
    Tunnel,
    /// One side offered nothing: the configuration, or the first bytes, must tell.
    Nothing,
}

impl Agreed {
    fn as_alpn(self) -> &'static [u8] {
        match self {
            Self::Http2 => b"h2",
            Self::Http1 => b"http/1.1",
            Self::Opaque => b"doorward-tcp",
            Self::Tunnel => b"doorward-tcp/1",
            Self::Nothing => b"",
        }
    }

    /// rustls agrees only to what we offered, so there is no other name.
    fn of(tls: &CommonState) -> Self {
        let name = tls.alpn_protocol().unwrap_or_default();
        [Self::Http2, Self::Http1, Self::Opaque, Self::Tunnel]
            .into_iter()
            .find(|agreed| agreed.as_alpn() == name)
            .unwrap_or(Self::Nothing)
    }
}

/// One [`Material`] made ready for rustls: built once for each `Material`, never for each connection.
#[derive(Debug)]
pub struct Endpoint {
    material: Material,
    rules: Rules,
    /// In the order of [`Offer::ALL`].
    servers: [Arc<ServerConfig>; 6],
    verdicts: Verdicts,
}

impl Endpoint {
    /// Prepares `material` for both sides. Peers whose SVID was made to live longer than
    /// `max_peer_lifetime` will be refused.
    ///
    /// # Errors
    /// [`EndpointError`] if rustls cannot work with the material.
    pub fn new(
        material: Material,
        max_peer_lifetime: Duration,
        verifications: Verifications,
    ) -> Result<Self, EndpointError> {
        let rules = Rules {
            bundles: material.bundles().clone(),
            max_peer_lifetime,
            proven: Arc::new(Proven::new(verifications)),
        };
        let identity = SingleCertAndKey::from(material.certified().clone());
        let mut config = ServerConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(EndpointError)?
            .with_client_cert_verifier(Arc::new(AnyClient(rules.clone())))
            .with_cert_resolver(Arc::new(identity));
        // OpenSSL asks for AES-256 first.
        config.ignore_client_order = true;
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        let servers = Offer::ALL.map(|offer| {
            let mut config = config.clone();
            config.alpn_protocols = offer.alpn();
            Arc::new(config)
        });
        Ok(Self {
            material,
            rules,
            servers,
            verdicts: Verdicts::default(),
        })
    }

    /// What it was made from.
    #[must_use]
    pub fn material(&self) -> &Material {
        &self.material
    }

    /// Our own SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        self.material.id()
    }

    /// The longest lifetime of a peer's SVID that is accepted.
    #[must_use]
    pub fn max_peer_lifetime(&self) -> Duration {
        self.rules.max_peer_lifetime
    }

    /// Whether our own SVID has not ended at `now`. Whether it has begun is for the peers' clocks to say.
    #[must_use]
    pub fn valid_at(&self, now: SystemTime) -> bool {
        now < self.material.leaf().not_after
    }

    /// Whether the proof of a connected `peer` still holds by the bundles of this endpoint, as
    /// [`verify::still_holds`], unless that is known already.
    ///
    /// # Errors
    /// [`VerifyError`] says what holds no longer.
    pub fn still_holds(&self, peer: &Peer, now: SystemTime) -> Result<(), VerifyError> {
        let (first, intermediates) = peer.split_chain()?;
        self.rules
            .prove(first, intermediates, peer.side, now)
            .map(drop)
    }

    fn clients(&self, expected: &Arc<Expected>) -> Result<[Arc<ClientConfig>; 6], rustls::Error> {
        let identity = SingleCertAndKey::from(self.material.certified().clone());
        let verifier = ExpectedServer {
            rules: self.rules.clone(),
            expected: expected.clone(),
        };
        let mut config = ClientConfig::builder_with_provider(provider().clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(identity));
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        config.enable_early_data = false;
        Ok(Offer::ALL.map(|offer| {
            let mut config = config.clone();
            config.alpn_protocols = offer.alpn();
            Arc::new(config)
        }))
    }
}

/// rustls cannot work with the identity it was given.
#[derive(Debug, thiserror::Error)]
#[error("the identity cannot be used for TLS")]
pub struct EndpointError(#[source] rustls::Error);

/// A source of [`Material`] as a source of [`Endpoint`]s.
#[derive(Debug)]
pub struct Endpoints<S> {
    materials: S,
    max_peer_lifetime: Duration,
    verifications: Verifications,
    /// What the last one remembers.
    proven: Arc<Proven>,
}

impl<S> Endpoints<S> {
    /// Prepares whatever `materials` yields; see [`Endpoint::new`].
    pub fn new(materials: S, max_peer_lifetime: Duration, verifications: Verifications) -> Self {
        Self {
            materials,
            max_peer_lifetime,
            verifications,
            proven: Arc::default(),
        }
    }
}

impl<S: Source<Item = Material>> Source for Endpoints<S> {
    type Item = Endpoint;
    type Error = EndpointsError<S::Error>;

    async fn next(&mut self) -> Result<Change<Endpoint>, Self::Error> {
        let next = self.materials.next().await;
        let change = match next.map_err(EndpointsError::Source)? {
            Change::Replace(material) => {
                let verifications = self.verifications.clone();
                Endpoint::new(material, self.max_peer_lifetime, verifications)
                    .map(Change::Replace)
                    .map_err(EndpointsError::Endpoint)?
            }
            Change::Withdraw => Change::Withdraw,
        };
        self.proven.forget();
        self.proven = match &change {
            Change::Replace(endpoint) => endpoint.rules.proven.clone(),
            Change::Withdraw => Arc::default(),
        };
        Ok(change)
    }

    fn urgent(&mut self) -> impl Future<Output = ()> + Send {
        self.materials.urgent()
    }
}

/// Why there is no next [`Endpoint`].
#[derive(Debug, thiserror::Error)]
pub enum EndpointsError<E> {
    /// The source of the material failed.
    #[error(transparent)]
    Source(E),
    /// Its material is of no use.
    #[error(transparent)]
    Endpoint(EndpointError),
}

/// A connection on which both sides have proved who they are.
#[derive(Debug)]
pub struct Secured<S> {
    /// Who is at the other end.
    pub peer: Arc<Peer>,
    /// Which protocol both agreed to speak.
    pub agreed: Agreed,
    /// The encrypted stream.
    pub stream: S,
    /// The identity of ours that it was made with.
    pub endpoint: Arc<Snapshot<Endpoint>>,
}

/// Takes the server's side of handshakes.
#[derive(Clone, Debug)]
pub struct Acceptor {
    live: Arc<Live<Endpoint>>,
    offer: Offer,
    timeout: Duration,
    metrics: Metrics,
}

impl Acceptor {
    /// A handshake that takes longer than `timeout` is given up.
    #[must_use]
    pub fn new(
        live: Arc<Live<Endpoint>>,
        offer: Offer,
        timeout: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            live,
            offer,
            timeout,
            metrics,
        }
    }

    /// Makes the handshake on an accepted connection. Whoever dialled is who [`Secured::peer`] says.
    ///
    /// # Errors
    /// [`HandshakeError`] says why there is no connection; the peer was sent the fitting alert.
    pub async fn accept<IO>(&self, io: IO) -> Result<Secured<ServerStream<IO>>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.accept_unless(std::future::pending(), Instant::now(), io)
            .await
    }

    /// The same, unless `given_up` completes first. Its time counts from `began`.
    ///
    /// # Errors
    /// As [`Acceptor::accept`], and [`HandshakeError::Crowded`].
    pub async fn accept_unless<IO>(
        &self,
        given_up: impl Future<Output = ()>,
        began: Instant,
        io: IO,
    ) -> Result<Secured<ServerStream<IO>>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let outcome = tokio::select! {
            biased;
            outcome = self.handshake(began, io) => outcome,
            () = given_up => Err(HandshakeError::Crowded),
        };
        self.metrics.inbound.record(began, &outcome);
        outcome
    }

    /// Counts a handshake that failed before it could begin.
    pub fn failed(&self, error: &HandshakeError) {
        self.metrics.inbound.failed(error);
    }

    async fn handshake<IO>(
        &self,
        began: Instant,
        io: IO,
    ) -> Result<Secured<ServerStream<IO>>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let endpoint = in_force(&self.live)?;
        let config = endpoint.value.servers[self.offer as usize].clone();
        let tls = UnbufferedServerConnection::new(config)?;
        let stream = within(self.timeout, began, TlsStream::handshake(io, tls)).await?;
        let tls = stream.agreed();
        Ok(Secured {
            peer: Peer::proved(tls, Side::Client, &endpoint.value)?,
            agreed: Agreed::of(tls),
            stream,
            endpoint,
        })
    }
}

/// Takes the client's side of handshakes: a route of its own for each set of peers that may answer.
#[derive(Debug)]
pub struct Connector {
    live: Arc<Live<Endpoint>>,
    expected: Arc<Expected>,
    offer: Offer,
    timeout: Duration,
    metrics: Metrics,
    /// Made from the endpoint in force when it was last used.
    configs: ArcSwapOption<Configs>,
}

#[derive(Debug)]
struct Configs {
    generation: u64,
    /// In the order of [`Offer::ALL`].
    clients: [Arc<ClientConfig>; 6],
}

impl Connector {
    /// Only `expected` may answer. A handshake that takes longer than `timeout` is given up.
    #[must_use]
    pub fn new(
        live: Arc<Live<Endpoint>>,
        expected: Arc<Expected>,
        offer: Offer,
        timeout: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            live,
            expected,
            offer,
            timeout,
            metrics,
            configs: ArcSwapOption::empty(),
        }
    }

    /// Who may answer.
    #[must_use]
    pub fn expected(&self) -> &Arc<Expected> {
        &self.expected
    }

    /// Makes the handshake on a connection that we dialled. Not a byte is sent to anybody but an expected
    /// peer.
    ///
    /// In TLS 1.3 the client is done first: a server that refuses *us* says so on the first read.
    ///
    /// # Errors
    /// [`HandshakeError`] says why there is no connection.
    pub async fn connect<IO>(&self, io: IO) -> Result<Secured<ClientStream<IO>>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        self.connect_offering(io, self.offer).await
    }

    /// The same, offering other protocols than usual: an upgrade needs HTTP/1.1, for one.
    ///
    /// # Errors
    /// As [`Connector::connect`].
    pub async fn connect_offering<IO>(
        &self,
        io: IO,
        offer: Offer,
    ) -> Result<Secured<ClientStream<IO>>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let began = Instant::now();
        let outcome = self.handshake(io, offer).await;
        self.metrics.outbound.record(began, &outcome);
        outcome
    }

    async fn handshake<IO>(
        &self,
        io: IO,
        offer: Offer,
    ) -> Result<Secured<ClientStream<IO>>, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let endpoint = in_force(&self.live)?;
        let config = self.config(&endpoint, offer)?;
        let tls = UnbufferedClientConnection::new(config, nobody())?;
        let handshake = TlsStream::handshake(io, tls);
        let stream = within(self.timeout, Instant::now(), handshake).await?;
        let tls = stream.agreed();
        Ok(Secured {
            peer: Peer::proved(tls, Side::Server, &endpoint.value)?,
            agreed: Agreed::of(tls),
            stream,
            endpoint,
        })
    }

    /// Two tasks may both build it after a rotation; that is cheaper than waiting for each other.
    fn config(
        &self,
        endpoint: &Snapshot<Endpoint>,
        offer: Offer,
    ) -> Result<Arc<ClientConfig>, HandshakeError> {
        if let Some(configs) = &*self.configs.load()
            && configs.generation == endpoint.generation
        {
            return Ok(configs.clients[offer as usize].clone());
        }
        let clients = endpoint.value.clients(&self.expected);
        let clients = clients.map_err(HandshakeError::Protocol)?;
        let config = clients[offer as usize].clone();
        self.configs.store(Some(Arc::new(Configs {
            generation: endpoint.generation,
            clients,
        })));
        Ok(config)
    }
}

/// For whoever has nothing to show but must know who answers: a server with an X509-SVID.
pub(crate) fn anonymous_client(
    bundles: Arc<Bundles>,
    expected: Expected,
    max_peer_lifetime: Duration,
) -> Result<ClientConfig, rustls::Error> {
    let verifier = ExpectedServer {
        rules: Rules {
            bundles,
            max_peer_lifetime,
            proven: Arc::default(),
        },
        expected: Arc::new(expected),
    };
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For whoever asks a server of the web, whose certificate one of `roots` must vouch for.
pub(crate) fn web_client(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider().clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Peers are named by SPIFFE ID, never by host, so there is no server name to send. rustls wants one
/// nevertheless; it never sends an address as SNI (RFC 6066 §3), and SNI is off besides.
fn nobody() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST).into())
}

/// The one cryptography provider: aws-lc-rs, X25519MLKEM768 preferred, and AES-128-GCM with SHA-256 before
/// the suites that cost more: processors have no instructions for SHA-384, which then takes a tenth of a
/// handshake. BoringSSL and Go choose likewise.
fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

fn in_force(live: &Live<Endpoint>) -> Result<Arc<Snapshot<Endpoint>>, HandshakeError> {
    let endpoint = live.get().ok_or(HandshakeError::OwnIdentityMissing)?;
    if !endpoint.value.valid_at(SystemTime::now()) {
        return Err(HandshakeError::OwnIdentityExpired);
    }
    Ok(endpoint)
}

async fn within<S>(
    timeout: Duration,
    began: Instant,
    handshake: impl Future<Output = io::Result<S>>,
) -> Result<S, HandshakeError> {
    let left = timeout.saturating_sub(began.elapsed());
    match tokio::time::timeout(left, handshake).await {
        Ok(done) => done.map_err(HandshakeError::from),
        Err(_) => Err(HandshakeError::Timeout(timeout)),
    }
}

/// Who may answer: SPIFFE IDs, or patterns that the operator writes out.
///
/// In a pattern such as `spiffe://example.org/ns/*/ledger` a `*` stands for exactly one whole segment of
/// the path. The trust domain is always written out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected(Vec<Pattern>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    Exactly(SpiffeId),
    Segments {
        text: String,
        trust_domain: TrustDomain,
        /// `None` is the `*`.
        segments: Vec<Option<String>>,
    },
}

impl Expected {
    /// Any of these. None at all is nobody.
    pub fn any_of(several: impl IntoIterator<Item = Self>) -> Self {
        Self(several.into_iter().flat_map(|one| one.0).collect())
    }

    /// Whether `id` may answer.
    #[must_use]
    pub fn matches(&self, id: &SpiffeId) -> bool {
        self.0.iter().any(|pattern| pattern.matches(id))
    }
}

impl Pattern {
    fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exactly(expected) => expected == id,
            Self::Segments {
                trust_domain,
                segments,
                ..
            } => {
                // A path begins with `/`, so the first piece is empty and no segment.
                let mut found = id.path().split('/').skip(1);
                trust_domain == id.trust_domain()
                    && segments
                        .iter()
                        .all(|segment| match (segment, found.next()) {
                            (None, Some(_)) => true,
                            (Some(expected), Some(found)) => expected == found,
                            (_, None) => false,
                        })
                    && found.next().is_none()
            }
        }
    }
}

impl From<SpiffeId> for Expected {
    fn from(id: SpiffeId) -> Self {
        Self(vec![Pattern::Exactly(id)])
    }
}

impl FromStr for Expected {
    type Err = ExpectedError;

    /// Reads one SPIFFE ID or one pattern.
    fn from_str(text: &str) -> Result<Self, ExpectedError> {
        if !text.contains('*') {
            return Ok(SpiffeId::parse(text)?.into());
        }
        // With a word in the place of each `*` the rest must be a SPIFFE ID.
        let pieces = text.split('/').map(|piece| match piece {
            "*" => Ok("any"),
            piece if piece.contains('*') => Err(ExpectedError::PartOfSegment),
            piece => Ok(piece),
        });
        let pieces = pieces.collect::<Result<Vec<_>, _>>()?;
        if text.split('/').nth(2) == Some("*") {
            return Err(ExpectedError::TrustDomain);
        }
        let id = SpiffeId::parse(&pieces.join("/"))?;
        let segments = text
            .split('/')
            .skip(3)
            .map(|piece| (piece != "*").then(|| piece.to_owned()))
            .collect();
        Ok(Self(vec![Pattern::Segments {
            text: text.to_owned(),
            trust_domain: id.trust_domain().clone(),
            segments,
        }]))
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nobody");
        }
        for (index, pattern) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(" or ")?;
            }
            match pattern {
                Pattern::Exactly(id) => write!(f, "{id}")?,
                Pattern::Segments { text, .. } => f.write_str(text)?,
            }
        }
        Ok(())
    }
}

/// Why a text does not say who may answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ExpectedError {
    /// `*` stands alone between two slashes.
    #[error(
        "`*` stands for one whole segment of the path, as in `spiffe://example.org/ns/*/ledger`"
    )]
    PartOfSegment,
    /// Trust is given to domains by name.
    #[error("`*` cannot stand for a trust domain: write it out")]
    TrustDomain,
    /// Without its `*` it is no SPIFFE ID.
    #[error(transparent)]
    Id(#[from] IdError),
}

/// Why a handshake made no connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// There is no identity in force: none has come yet, or it was withdrawn.
    #[error("we have no identity to present: none was received yet, or it was withdrawn")]
    OwnIdentityMissing,
    /// Our own SVID has ended and no new one came.
    #[error("our own certificate has expired and was not renewed")]
    OwnIdentityExpired,
    /// The peer did not answer in time.
    #[error("the handshake was not done within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// Too many handshakes were under way, and this was the oldest.
    #[error("the handshake was given up for a newer one: too many were under way")]
    Crowded,
    /// What came was not TLS at all.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// The peer presented no certificate.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// The peer's certificate was refused, here.
    #[error("the peer was refused")]
    Refused(#[from] VerifyError),
    /// No TLS version, cipher suite or key exchange in common: we speak TLS 1.3 alone.
    #[error("the peer has no TLS 1.3 in common with us")]
    NoSharedProtocol(#[source] rustls::Error),
    /// No application protocol in common.
    #[error("no application protocol (ALPN) in common")]
    NoSharedAlpn,
    /// The peer refused us, or gave up.
    #[error("the peer ended the handshake with the alert {0:?}")]
    RefusedByPeer(AlertDescription),
    /// The peer broke a rule of TLS.
    #[error("the TLS handshake failed")]
    Protocol(#[source] rustls::Error),
    /// The transport failed, or was closed too early.
    #[error("the transport failed during the handshake")]
    Io(#[source] io::Error),
}

impl HandshakeError {
    /// The word for metrics and audit.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.reason().label()
    }

    /// How an exchange ends that needed this handshake.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::OwnIdentityMissing => Outcome::IdentityUnavailable,
            Self::OwnIdentityExpired => Outcome::OwnIdentityExpired,
            Self::Refused(_) => Outcome::PeerRefused,
            Self::Timeout(_) => Outcome::UpstreamTimeout,
            Self::Crowded => Outcome::Overloaded,
            Self::NotTls
            | Self::NoCertificate
            | Self::NoSharedProtocol(_)
            | Self::NoSharedAlpn
            | Self::RefusedByPeer(_)
            | Self::Protocol(_)
            | Self::Io(_) => Outcome::HandshakeFailed,
        }
    }

    /// What it comes down to.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::OwnIdentityMissing => Reason::OwnIdentityMissing,
            Self::OwnIdentityExpired => Reason::OwnIdentityExpired,
            Self::Timeout(_) => Reason::Timeout,
            Self::Crowded => Reason::Crowded,
            Self::NotTls => Reason::NotTls,
            Self::NoCertificate => Reason::NoCertificate,
            Self::Refused(error) => error.reason(),
            Self::NoSharedProtocol(_) => Reason::NoSharedProtocol,
            Self::NoSharedAlpn => Reason::NoSharedAlpn,
            Self::RefusedByPeer(_) => Reason::RefusedByPeer,
            Self::Protocol(_) => Reason::Protocol,
            Self::Io(_) => Reason::Io,
        }
    }
}

impl From<io::Error> for HandshakeError {
    /// What rustls says comes wrapped, from our own stream and from tokio-rustls.
    fn from(error: io::Error) -> Self {
        match error.downcast::<rustls::Error>() {
            Ok(error) => error.into(),
            Err(error) => Self::Io(error),
        }
    }
}

impl From<rustls::Error> for HandshakeError {
    fn from(error: rustls::Error) -> Self {
        if let Some(reason) = verify::from_rustls(&error) {
            return Self::Refused(reason);
        }
        match error {
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::NoApplicationProtocol
            | rustls::Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                Self::NoSharedAlpn
            }
            rustls::Error::AlertReceived(
                AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
            )
            | rustls::Error::PeerIncompatible(_) => Self::NoSharedProtocol(error),
            rustls::Error::AlertReceived(alert) => Self::RefusedByPeer(alert),
            rustls::Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) => Self::NotTls,
            error => Self::Protocol(error),
        }
    }
}

/// Why a handshake failed, in one word. Part of the public metrics surface: never rename one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// `own_identity_missing`
    OwnIdentityMissing,
    /// `own_identity_expired`
    OwnIdentityExpired,
    /// `timeout`
    Timeout,
    /// `crowded`
    Crowded,
    /// `not_tls`
    NotTls,
    /// `no_certificate`
    NoCertificate,
    /// `not_an_svid`
    NotAnSvid,
    /// `unknown_trust_domain`
    UnknownTrustDomain,
    /// `unknown_ca`
    UnknownCa,
    /// `expired`
    Expired,
    /// `not_yet_valid`
    NotYetValid,
    /// `revoked`
    Revoked,
    /// `bad_chain`
    BadChain,
    /// `lifetime_too_long`
    LifetimeTooLong,
    /// `unexpected_peer`
    UnexpectedPeer,
    /// `no_shared_protocol`
    NoSharedProtocol,
    /// `no_shared_alpn`
    NoSharedAlpn,
    /// `refused_by_peer`
    RefusedByPeer,
    /// `protocol`
    Protocol,
    /// `io`
    Io,
}

impl Reason {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 20] = [
        Self::OwnIdentityMissing,
        Self::OwnIdentityExpired,
        Self::Timeout,
        Self::Crowded,
        Self::NotTls,
        Self::NoCertificate,
        Self::NotAnSvid,
        Self::UnknownTrustDomain,
        Self::UnknownCa,
        Self::Expired,
        Self::NotYetValid,
        Self::Revoked,
        Self::BadChain,
        Self::LifetimeTooLong,
        Self::UnexpectedPeer,
        Self::NoSharedProtocol,
        Self::NoSharedAlpn,
        Self::RefusedByPeer,
        Self::Protocol,
        Self::Io,
    ];

    /// The word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::OwnIdentityMissing => "own_identity_missing",
            Self::OwnIdentityExpired => "own_identity_expired",
            Self::Timeout => "timeout",
            Self::Crowded => "crowded",
            Self::NotTls => "not_tls",
            Self::NoCertificate => "no_certificate",
            Self::NotAnSvid => "not_an_svid",
            Self::UnknownTrustDomain => "unknown_trust_domain",
            Self::UnknownCa => "unknown_ca",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Revoked => "revoked",
            Self::BadChain => "bad_chain",
            Self::LifetimeTooLong => "lifetime_too_long",
            Self::UnexpectedPeer => "unexpected_peer",
            Self::NoSharedProtocol => "no_shared_protocol",
            Self::NoSharedAlpn => "no_shared_alpn",
            Self::RefusedByPeer => "refused_by_peer",
            Self::Protocol => "protocol",
            Self::Io => "io",
        }
    }
}

/// What is counted of handshakes. One for each worker; cloning shares it.
#[derive(Clone, Debug)]
pub struct Metrics {
    inbound: Arc<Direction>,
    outbound: Arc<Direction>,
}

/// The counters of one direction, resolved once.
#[derive(Debug)]
struct Direction {
    completed: IntCounter,
    /// In the order of [`Reason::ALL`].
    failed: [IntCounter; Reason::ALL.len()],
    duration: prometheus::Histogram,
}

impl Metrics {
    /// Declares the families in `registry`.
    ///
    /// # Errors
    /// [`prometheus::Error`] if they are there already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let total = IntCounterVec::new(
            Opts::new(
                "doorward_handshakes_total",
                "TLS handshakes by direction (inbound: we were dialled) and result: completed, or why not.",
            ),
            &["direction", "result"],
        )?;
        let duration = HistogramVec::new(
            HistogramOpts::new(
                "doorward_handshake_duration_seconds",
                "Time of completed TLS handshakes, the waiting for the peer included.",
            )
            .buckets(vec![
                0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
            ]),
            &["direction"],
        )?;
        let direction = |name| {
            Arc::new(Direction {
                completed: total.with_label_values(&[name, "completed"]),
                failed: Reason::ALL.map(|reason| total.with_label_values(&[name, reason.label()])),
                duration: duration.with_label_values(&[name]),
            })
        };
        let metrics = Self {
            inbound: direction("inbound"),
            outbound: direction("outbound"),
        };
        let families: [Box<dyn Collector>; 2] = [Box::new(total), Box::new(duration)];
        families
            .into_iter()
            .try_for_each(|family| registry.register(family))?;
        Ok(metrics)
    }
}

impl Direction {
    fn record<T>(&self, began: Instant, outcome: &Result<T, HandshakeError>) {
        match outcome {
            Ok(_) => {
                self.completed.inc();
                self.duration.observe(began.elapsed().as_secs_f64());
            }
            Err(error) => self.failed(error),
        }
    }

    fn failed(&self, error: &HandshakeError) {
        self.failed[error.reason() as usize].inc();
    }
}

#[cfg(test)]
mod tests;
