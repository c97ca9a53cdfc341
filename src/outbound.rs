//! Application to peer: route, connect as ourselves, check who answers, relay.

pub mod balance;
mod http;
mod intercepted;
mod originals;
mod peers;
pub mod retry;
pub mod routes;
mod tcp;
mod tunnels;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

pub use self::intercepted::Intercepted;
use self::originals::Originals;
use self::peers::Peers;
use self::routes::{Names, Pattern};
pub use self::tunnels::Tunnel;
use crate::audit::{self, Direction, Verdict};
use crate::document::{Document, Node, Section};
use crate::exchange::Meter;
use crate::limits::{Requests, Tally};
use crate::listen::{self, Address, Entrance, Protocol, Source, Stream};
use crate::live::{Live, Snapshot};
use crate::secrets::{self, Guard};
use crate::serve;
use crate::session::{Roll, Standing};
use crate::telemetry::chain;
use crate::tls::detect::{self, Detected};
use crate::tls::{
    self, ClientStream, Connector, Endpoint, Expected, HandshakeError, Offer, Peer, Secured,
};
use crate::upstream::{self, Dial, DialError, Dialed, Place, Queue, Wanted};
use crate::worker::Worker;

/// One way out for our application, and where it leads.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where our application connects to, in plain; intercepted is what it connects to there.
    pub entrance: Entrance<Vec<Pattern>>,
    /// What it may speak.
    pub listener: listen::Settings,
    /// Where the peer's sidecar listens.
    pub to: To,
    /// Who may answer there. Nobody else gets a byte. None for [`Settings::passthrough`]: nobody is asked.
    pub peer: Option<Arc<Expected>>,
    /// How many connections to the peers may be open, and how many requests may wait for one.
    pub limits: upstream::Limits,
    /// When one of several addresses is left out for a while.
    pub ejection: balance::Rules,
    /// When requests are given up, and how many may be sent once more.
    pub retry: retry::Settings,
    /// Whether TCP sessions share connections.
    pub tunnel: Tunnel,
    /// What becomes of standing secrets in requests.
    pub standing_secrets: secrets::Settings,
    /// Limits of HTTP connections.
    pub http: serve::Limits,
}

impl Settings {
    /// Reads one item of the list `outbound`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let entrance = Entrance::read(&mut section, |node| {
            node.one_or_more(|pattern| pattern.parse())
        });
        // Who has written none was told so.
        let is_intercepted = entrance
            .as_ref()
            .is_none_or(|entrance| entrance.intercepted().is_some());
        let to = match is_intercepted {
            true => section.or("to", To::Original, |node| To::read(&node, true)),
            false => section.required("to", |node| To::read(&node, false)),
        };
        let peer = section.required("peer", |node| {
            let several = node.one_or_more(|node| node.parse::<Expected>())?;
            Some(Arc::new(Expected::any_of(several)))
        });
        let settings = Self::read_rest(&mut section);
        let settings = Self {
            entrance: entrance?,
            to: to?,
            peer: Some(peer?),
            ..settings?
        };
        let names = settings.names();
        let mut patterns = settings.entrance.intercepted().into_iter().flatten();
        match patterns.find(|pattern| names == Names::Located && pattern.needs_name()) {
            Some(pattern) => node.under("intercept").unwrap_or_else(|| node.clone()).mistake(
                format_args!("nothing is ever `{pattern}`: with `protocol: tcp`, no connection says a name"),
                Some("write whole names, whose addresses can be asked for, or addresses"),
            ),
            None => Some(settings),
        }
    }

    /// What takes an intercepted connection that no entry leads on, where that may pass: to where it was
    /// going, in plain, whoever is there.
    #[must_use]
    pub fn passthrough() -> Self {
        Document::new("", "")
            .read(|node| {
                node.section()
                    .and_then(|mut section| Self::read_rest(&mut section))
            })
            .expect("every key has a default")
    }

    /// Reads what every way out has, with what [`Settings::passthrough`] has for the others.
    fn read_rest(section: &mut Section<'_>) -> Option<Self> {
        let listener = listen::Settings::read(section);
        let connections = section.or("max_peer_connections", MAX_CONNECTIONS, |node| {
            usize::try_from(node.count(1..=1_000_000)?).ok()
        });
        let pending = section.or("max_pending", MAX_PENDING, |node| {
            usize::try_from(node.count(1..=1_000_000)?).ok()
        });
        let eject_after = section.or("eject_after", EJECT_AFTER, |node| {
            u32::try_from(node.count(0..=1_000_000)?).ok()
        });
        let eject_for = listen::timeout(section, "eject_for", EJECT_FOR, listen::MINUTE * 5);
        let retry = retry::Settings::read(section);
        let tunnel = section.or("tunnel", Tunnel::Auto, |node| {
            node.choice(&[
                ("auto", Tunnel::Auto),
                ("always", Tunnel::Always),
                ("off", Tunnel::Off),
            ])
        });
        let standing_secrets =
            section.or("standing_secrets", secrets::Settings::default(), |node| {
                secrets::Settings::read(&node)
            });
        let listener = listener?;
        Some(Self {
            entrance: Entrance::Intercept(Vec::new()),
            to: To::Original,
            peer: None,
            http: serve::Limits::of(&listener),
            limits: upstream::Limits {
                connections: connections?,
                pending: pending?,
                patience: listener.connect_timeout,
            },
            listener,
            ejection: balance::Rules {
                after: eject_after?,
                first: eject_for?,
            },
            retry: retry?,
            tunnel: tunnel?,
            standing_secrets: standing_secrets?,
        })
    }

    /// What it is called in metrics, audit and log: where it leads, as the configuration writes it.
    #[must_use]
    pub fn label(&self) -> Arc<str> {
        match (&self.to, self.entrance.intercepted()) {
            (To::Host(to), _) => to.to_string().into(),
            (To::Original, Some(patterns)) if !patterns.is_empty() => {
                let patterns: Vec<_> = patterns.iter().map(Pattern::to_string).collect();
                patterns.join(", ").into()
            }
            (To::Original, _) => PASSTHROUGH.into(),
        }
    }

    /// The hosts whose addresses have to be known.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        let patterns = self.entrance.intercepted().into_iter().flatten();
        let to = match &self.to {
            To::Host(to) => Some(to.host()),
            To::Original => None,
        };
        patterns.filter_map(Pattern::name).chain(to)
    }

    /// How it is found out whether a connection means a name that is intercepted.
    #[must_use]
    pub fn names(&self) -> Names {
        match self.listener.protocol {
            Protocol::Tcp => Names::Located,
            Protocol::Auto | Protocol::Http => Names::Said,
        }
    }
}

/// What passes through has this name, as the configuration says it; no host has it, for lack of a port.
const PASSTHROUGH: &str = "passthrough";

/// Open connections to the peers in each worker, unless the settings say otherwise.
const MAX_CONNECTIONS: usize = 20_000;
/// Requests and sessions that wait for one.
const MAX_PENDING: usize = 4096;
/// Failures in a row that leave an address out, unless the settings say otherwise.
const EJECT_AFTER: u32 = 5;
/// For how long the first time.
const EJECT_FOR: Duration = Duration::from_secs(10);

/// Where an entry leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// Here, whatever was connected to.
    Host(Destination),
    /// Where the intercepted connection was going.
    Original,
}

impl To {
    fn read(node: &Node<'_>, is_intercepted: bool) -> Option<Self> {
        match (node.text()?, is_intercepted) {
            ("original", true) => Some(Self::Original),
            ("original", false) => node.mistake(
                "only what is intercepted was going somewhere else",
                Some("write a host and a port, or `intercept:` in the place of `listen:`"),
            ),
            _ => node.parse().map(Self::Host),
        }
    }
}

/// A host with a port: an IP address, or a name whose addresses the process keeps asking for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    host: String,
    port: u16,
}

impl Destination {
    /// The port, whatever addresses the host has.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The name, or the IP address without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl FromStr for Destination {
    type Err = DestinationError;

    fn from_str(text: &str) -> Result<Self, DestinationError> {
        let (host, port) = text.rsplit_once(':').ok_or(DestinationError)?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or(DestinationError)?;
        let bracketed = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        if let Some(host) = bracketed {
            let ip: Ipv6Addr = host.parse().map_err(|_| DestinationError)?;
            let host = ip.to_string();
            return Ok(Self { host, port });
        }
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if !host.is_empty() && host.bytes().all(sound) {
            let host = host.to_owned();
            Ok(Self { host, port })
        } else {
            Err(DestinationError)
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The text is no [`Destination`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a host and a port, as in `ledger.bank.svc:8443` or `[2001:db8::1]:8443`")]
pub struct DestinationError;

/// One outbound entry in one worker.
#[derive(Debug)]
pub struct Outbound {
    settings: Arc<Settings>,
    worker: Arc<Worker>,
    reach: Reach,
    service: Arc<str>,
    meter: Arc<Meter>,
    secrets: Guard,
    tally: Tally,
    requests: Arc<Requests>,
}

/// Whom it leads to.
#[derive(Debug)]
enum Reach {
    Host(Arc<Peers>),
    Original(Arc<Originals>),
}

impl Outbound {
    /// Prepares to serve what `settings` say.
    #[must_use]
    pub fn new(settings: Settings, worker: Arc<Worker>) -> Arc<Self> {
        let settings = Arc::new(settings);
        let connector = settings.peer.as_ref().map(|peer| {
            Connector::new(
                worker.identity.clone(),
                peer.clone(),
                Offer::Http,
                settings.listener.connect_timeout,
                worker.metrics.tls.clone(),
            )
        });
        let service = settings.label();
        let connections = worker.metrics.upstream.connections(&service);
        let way = Arc::new(Way {
            timeout: settings.listener.connect_timeout,
            silence: settings.listener.tcp_user_timeout,
            queue: Queue::new(settings.limits, connections),
            connector,
            identity: worker.identity.clone(),
            roll: worker.roll.clone(),
        });
        let tally = worker
            .metrics
            .limits
            .of(Direction::Outbound.label(), &service);
        let kept = upstream::Settings::of(&settings.listener, worker.credit.clone(), tally.clone());
        let reach = match &settings.to {
            To::Host(to) => Reach::Host(Peers::named(to, way, &settings, kept, &worker)),
            To::Original => Reach::Original(Originals::new(way, &settings, kept, &worker)),
        };
        Arc::new(Self {
            reach,
            meter: worker.metrics.exchange.of(Direction::Outbound, &service),
            secrets: worker.guard(Direction::Outbound, &settings.standing_secrets, &service),
            requests: tally.requests(settings.listener.requests),
            tally,
            service,
            settings,
            worker,
        })
    }

    /// Counts what is reached of the listener's limits.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// Closes the kept connections to peers.
    pub fn close(&self) {
        match &self.reach {
            Reach::Host(peers) => peers.close(),
            Reach::Original(originals) => originals.close(),
        }
    }

    /// Serves one accepted connection to its end. One that was intercepted was going to `destination`.
    pub async fn serve(
        self: Arc<Self>,
        stream: Stream,
        source: Source,
        destination: Option<SocketAddr>,
        slot: OwnedSemaphorePermit,
    ) {
        let connection = Connection::new(self, source, destination, Arc::new(slot));
        let settings = &connection.outbound.settings;
        let timeout = match settings.listener.protocol {
            // What passes through does so byte for byte.
            Protocol::Auto if settings.peer.is_none() => {
                return tcp::serve(connection, stream).await;
            }
            Protocol::Tcp => return tcp::serve(connection, stream).await,
            Protocol::Http => settings.http.header_timeout,
            Protocol::Auto => settings.listener.detect_timeout,
        };
        match detect::peek(stream, timeout).await {
            Ok((detected, stream)) => match connection.http(detected) {
                Some(http2) => http::serve(connection, stream, http2).await,
                None => tcp::serve(connection, stream).await,
            },
            Err(error) => tracing::debug!(%error, "application went away before it spoke"),
        }
    }

    /// Whether it leads on in plain.
    fn is_plain(&self) -> bool {
        self.settings.peer.is_none()
    }
}

/// A connection from our application.
struct Connection {
    outbound: Arc<Outbound>,
    peers: Arc<Peers>,
    facts: Arc<audit::Connection>,
    /// Counted as open until the last request on it has ended.
    _slot: Arc<OwnedSemaphorePermit>,
}

impl Connection {
    fn new(
        outbound: Arc<Outbound>,
        source: Source,
        destination: Option<SocketAddr>,
        slot: Arc<OwnedSemaphorePermit>,
    ) -> Self {
        let own = outbound.worker.identity.get();
        Self {
            peers: match &outbound.reach {
                Reach::Host(peers) => peers.clone(),
                // Only what was intercepted comes here.
                Reach::Original(originals) => originals.at(destination.unwrap_or(NOWHERE)),
            },
            facts: Arc::new(audit::Connection {
                plaintext: false,
                direction: Direction::Outbound,
                own: own.map(|own| own.value.id().clone()),
                peer: None,
                service: outbound.service.clone(),
                source: source.address(),
                destination,
            }),
            outbound,
            _slot: slot,
        }
    }

    /// Whether it is served as HTTP/2 or HTTP/1.1, after its first bytes; or else as opaque bytes.
    fn http(&self, detected: Detected) -> Option<bool> {
        match (detected, self.outbound.settings.listener.protocol) {
            (Detected::Http2Preface, _) => Some(true),
            (Detected::Http1, _) => Some(false),
            // HTTP answers what is not HTTP.
            (Detected::Tls | Detected::Opaque, Protocol::Http) => Some(false),
            (Detected::Tls | Detected::Opaque, Protocol::Auto | Protocol::Tcp) => None,
        }
    }

    fn tell_unreachable(&self, error: &dyn std::error::Error) {
        let outbound = &self.outbound;
        let destination = self.facts.destination.map(tracing::field::display);
        let expected = outbound.settings.peer.as_ref().map(tracing::field::display);
        let error = chain(error);
        tracing::warn!(to = %outbound.service, destination, expected, %error, "cannot reach the peer");
    }
}

const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Why nobody answered, in a record's words. Policy was not asked.
fn unanswered(error: &DialError) -> Verdict {
    Verdict {
        reason: match error {
            DialError::Handshake(error) => Some(error.label()),
            _ => None,
        },
        ..Verdict::default()
    }
}

/// What an exchange is recorded with for which policy is not asked, and nobody who he is.
fn passed_through() -> Verdict {
    Verdict {
        allowed: true,
        reason: Some(PASSTHROUGH),
        ..Verdict::default()
    }
}

/// One address of the peers behind an outbound entry, as a place to connect to.
#[derive(Debug)]
struct Route {
    address: SocketAddr,
    way: Arc<Way>,
}

/// How to connect to any of them.
#[derive(Debug)]
struct Way {
    timeout: Duration,
    silence: Duration,
    queue: Arc<Queue>,
    /// None where nobody has to prove who he is.
    connector: Option<Connector>,
    identity: Arc<Live<Endpoint>>,
    roll: Roll,
}

impl Way {
    fn standing(&self, peer: Arc<Peer>, own: Arc<Snapshot<Endpoint>>) -> Standing {
        Standing {
            peer,
            own,
            identity: self.identity.clone(),
            roll: self.roll.clone(),
        }
    }
}

impl Route {
    async fn connect(
        &self,
        connector: &Connector,
        offer: Offer,
    ) -> Result<Secured<ClientStream<Held>>, DialError> {
        let stream = self.open().await?;
        match connector.connect_offering(stream, offer).await {
            // Only another Doorward knows our name for opaque bytes; others may insist on one of theirs.
            Err(HandshakeError::NoSharedAlpn) if matches!(offer, Offer::Opaque | Offer::Tunnel) => {
                let stream = self.open().await?;
                Ok(connector.connect_offering(stream, Offer::Nothing).await?)
            }
            secured => Ok(secured?),
        }
    }

    async fn open(&self) -> Result<Held, DialError> {
        let place = self.way.queue.open()?;
        let timeout = self.way.timeout;
        let address = Address::Tcp(self.address);
        let connecting = listen::connect(&address, self.way.silence);
        match tokio::time::timeout(timeout, connecting).await {
            Ok(connected) => Ok(Held {
                stream: connected.map_err(DialError::Connect)?,
                _place: place,
            }),
            Err(_) => Err(DialError::Timeout(timeout)),
        }
    }
}

/// A connection that counts as one of those to its destination, whoever holds it in the end.
#[derive(Debug)]
struct Held {
    stream: Stream,
    _place: Place,
}

impl AsyncRead for Held {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Held {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What HTTP is spoken on.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are mutual TLS, and a box would cost each of them"
)]
enum Line {
    Mutual(ClientStream<Held>),
    Plain(Held),
}

macro_rules! forward {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            Line::Mutual(stream) => Pin::new(stream).$method($($argument),*),
            Line::Plain(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        forward!(self, poll_read(cx, buffer))
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self, poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self, poll_write_vectored(cx, pieces))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Mutual(stream) => stream.is_write_vectored(),
            Self::Plain(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown(cx))
    }
}

impl Dial for Route {
    type Io = Line;

    async fn dial(&self, wanted: Wanted) -> Result<Dialed<Self::Io>, DialError> {
        let Some(connector) = &self.way.connector else {
            return Ok(Dialed {
                io: Line::Plain(self.open().await?),
                http2: wanted == Wanted::Http2,
                epoch: 0,
                not_after: None,
                standing: None,
            });
        };
        let offer = match wanted {
            Wanted::Any | Wanted::Cheapest | Wanted::Http2 => Offer::Http,
            Wanted::Http1 => Offer::Http1,
        };
        let secured = self.connect(connector, offer).await?;
        let ends = [
            secured.peer.not_after(),
            secured.endpoint.value.material().leaf().not_after,
        ];
        Ok(Dialed {
            http2: secured.agreed == tls::Agreed::Http2,
            epoch: secured.endpoint.generation,
            not_after: ends.into_iter().min(),
            standing: Some(self.way.standing(secured.peer, secured.endpoint)),
            io: Line::Mutual(secured.stream),
        })
    }

    fn scheme(&self) -> Scheme {
        match self.way.connector {
            Some(_) => Scheme::HTTPS,
            None => Scheme::HTTP,
        }
    }

    /// A connection made with an SVID that has been renewed, or judged by a bundle that has changed, takes
    /// no new requests.
    fn epoch(&self) -> u64 {
        match self.way.connector {
            Some(_) => {
                let endpoint = self.way.identity.peek();
                endpoint.as_ref().map_or(0, |endpoint| endpoint.generation)
            }
            // It does not know who we are.
            None => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_a_host_and_a_port() {
        for (text, sound) in [
            ("ledger.bank.svc:8443", true),
            ("127.0.0.1:8443", true),
            ("[::1]:8443", true),
            ("::1:8443", false),
            ("[::1:8443", false),
            ("ledger", false),
            ("ledger:0", false),
            ("ledger:http", false),
            (":8443", false),
            ("https://ledger:8443", false),
            ("a b:1", false),
        ] {
            assert_eq!(text.parse::<Destination>().is_ok(), sound, "{text}");
        }
        assert_eq!(
            "[::1]:8443".parse::<Destination>().unwrap().to_string(),
            "[::1]:8443"
        );
    }

    fn read(rest: &str) -> Result<Settings, String> {
        let text = format!("peer: spiffe://example.org/b\n{rest}\n");
        let read = Document::new("x.yaml", text).read(|node| Settings::read(&node));
        read.map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn what_is_intercepted_goes_on_to_where_it_was_going_unless_told_otherwise() {
        for (rest, label, hosts) in [
            (
                "intercept: ['ledger.bank.svc:80', '10.0.0.0/8:5432-5433', '*.svc:80']",
                "ledger.bank.svc:80, 10.0.0.0/8:5432-5433, *.svc:80",
                &["ledger.bank.svc"][..],
            ),
            ("intercept: '*:9000'\nto: original", "*:9000", &[]),
            (
                "intercept: 'ledger:80'\nto: ledger.bank.svc:8443",
                "ledger.bank.svc:8443",
                &["ledger", "ledger.bank.svc"],
            ),
            (
                "listen: '127.0.0.1:1'\nto: ledger.bank.svc:8443",
                "ledger.bank.svc:8443",
                &["ledger.bank.svc"],
            ),
        ] {
            let settings = read(rest).unwrap();
            assert_eq!(&*settings.label(), label);
            assert_eq!(settings.hosts().collect::<Vec<_>>(), hosts, "{label}");
        }
        let passing = Settings::passthrough();
        assert_eq!(
            (&*passing.label(), passing.peer.is_none()),
            ("passthrough", true)
        );
    }

    #[test]
    fn what_could_never_be_is_a_mistake() {
        for (rest, message) in [
            ("listen: '127.0.0.1:1'", "x.yaml:1: the key `to` is missing"),
            (
                "listen: '127.0.0.1:1'\nto: original",
                "x.yaml:3: to: only what is intercepted was going somewhere else",
            ),
            (
                "intercept: 'a:1'\nlisten: '127.0.0.1:1'",
                "x.yaml:1: connections come in by `listen` or by `intercept`, and here are both",
            ),
            (
                "intercept: ['a.svc:5432', '*.svc:5432']\nprotocol: tcp",
                "x.yaml:2: intercept: nothing is ever `*.svc:5432`: with `protocol: tcp`",
            ),
            (
                "intercept: 10.0.0.1",
                "x.yaml:2: intercept: `10.0.0.1`: write what connections ask for",
            ),
        ] {
            let told = read(rest).unwrap_err();
            assert!(told.starts_with(message), "{rest}\n{told}");
        }
    }
}
