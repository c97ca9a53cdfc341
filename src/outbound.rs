//! Application to peer: route, connect as ourselves, check who answers, relay.

pub mod balance;
mod http;
mod intercepted;
mod peers;
pub mod retry;
pub mod routes;
mod tcp;
mod tunnels;

use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::uri::Scheme;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::client::TlsStream;

pub use self::intercepted::Intercepted;
use self::peers::Peers;
pub use self::tunnels::Tunnel;
use crate::audit::{self, Direction, Verdict};
use crate::document::Node;
use crate::exchange::Meter;
use crate::limits::{Requests, Tally};
use crate::listen::{self, Address, Entrance, Protocol, Source, Stream};
use crate::live::{Live, Snapshot};
use crate::secrets::{self, Guard};
use crate::serve;
use crate::session::{Roll, Standing};
use crate::telemetry::chain;
use crate::tls::detect::{self, Detected};
use crate::tls::{self, Connector, Endpoint, Expected, HandshakeError, Offer, Peer, Secured};
use crate::upstream::{self, Dial, DialError, Dialed, Place, Queue, Wanted};
use crate::worker::Worker;

/// One listener for our application, and the one place it leads to.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where our application connects to, in plain; intercepted is what it connects to there.
    pub entrance: Entrance<Vec<Destination>>,
    /// What it may speak.
    pub listener: listen::Settings,
    /// Where the peer's sidecar listens.
    pub to: Destination,
    /// Who may answer there. Nobody else gets a byte.
    pub peer: Arc<Expected>,
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
            node.one_or_more(|destination| destination.parse())
        });
        let listener = listen::Settings::read(&mut section);
        let to = section.required("to", |node| node.parse());
        let peer = section.required("peer", |node| {
            let several = node.one_or_more(|node| node.parse::<Expected>())?;
            Some(Arc::new(Expected::any_of(several)))
        });
        let connections = section.or("max_peer_connections", MAX_CONNECTIONS, |node| {
            usize::try_from(node.count(1..=1_000_000)?).ok()
        });
        let pending = section.or("max_pending", MAX_PENDING, |node| {
            usize::try_from(node.count(1..=1_000_000)?).ok()
        });
        let eject_after = section.or("eject_after", EJECT_AFTER, |node| {
            u32::try_from(node.count(0..=1_000_000)?).ok()
        });
        let eject_for = listen::timeout(&mut section, "eject_for", EJECT_FOR, listen::MINUTE * 5);
        let retry = retry::Settings::read(&mut section);
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
            entrance: entrance?,
            http: serve::Limits::of(&listener),
            limits: upstream::Limits {
                connections: connections?,
                pending: pending?,
                patience: listener.connect_timeout,
            },
            listener,
            to: to?,
            peer: peer?,
            ejection: balance::Rules {
                after: eject_after?,
                first: eject_for?,
            },
            retry: retry?,
            tunnel: tunnel?,
            standing_secrets: standing_secrets?,
        })
    }
}

/// Open connections to the peers in each worker, unless the settings say otherwise.
const MAX_CONNECTIONS: usize = 20_000;
/// Requests and sessions that wait for one.
const MAX_PENDING: usize = 4096;
/// Failures in a row that leave an address out, unless the settings say otherwise.
const EJECT_AFTER: u32 = 5;
/// For how long the first time.
const EJECT_FOR: Duration = Duration::from_secs(10);

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

/// One outbound listener in one worker.
#[derive(Debug)]
pub struct Outbound {
    settings: Settings,
    worker: Arc<Worker>,
    peers: Arc<Peers>,
    service: Arc<str>,
    meter: Arc<Meter>,
    secrets: Guard,
    tally: Tally,
    requests: Arc<Requests>,
}

impl Outbound {
    /// Prepares to serve what `settings` say.
    #[must_use]
    pub fn new(settings: Settings, worker: Arc<Worker>) -> Arc<Self> {
        let connector = Connector::new(
            worker.identity.clone(),
            settings.peer.clone(),
            Offer::Http,
            settings.listener.connect_timeout,
            worker.metrics.tls.clone(),
        );
        let service: Arc<str> = settings.to.to_string().into();
        let connections = worker.metrics.upstream.connections(&service);
        let way = Way {
            timeout: settings.listener.connect_timeout,
            silence: settings.listener.tcp_user_timeout,
            queue: Queue::new(settings.limits, connections),
            connector,
            identity: worker.identity.clone(),
            roll: worker.roll.clone(),
        };
        let tally = worker
            .metrics
            .limits
            .of(Direction::Outbound.label(), &service);
        let kept = upstream::Settings::of(&settings.listener, worker.credit.clone(), tally.clone());
        Arc::new(Self {
            peers: Peers::new(way, &settings, kept, &worker),
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
        self.peers.close();
    }

    /// Serves one accepted connection to its end. One that was intercepted was going to `destination`.
    pub async fn serve(
        self: Arc<Self>,
        stream: Stream,
        source: Source,
        destination: Option<SocketAddr>,
        slot: OwnedSemaphorePermit,
    ) {
        let connection = Connection {
            facts: Arc::new(audit::Connection {
                direction: Direction::Outbound,
                own: self.worker.identity.get().map(|own| own.value.id().clone()),
                peer: None,
                service: self.service.clone(),
                source: source.address(),
                destination,
            }),
            outbound: self,
            _slot: slot,
        };
        let settings = &connection.outbound.settings;
        let timeout = match settings.listener.protocol {
            Protocol::Tcp => return tcp::serve(connection, stream).await,
            Protocol::Http => settings.http.header_timeout,
            Protocol::Auto => settings.listener.detect_timeout,
        };
        match detect::peek(stream, timeout).await {
            Ok((Detected::Http2Preface, stream)) => http::serve(connection, stream, true).await,
            Ok((Detected::Http1, stream)) => http::serve(connection, stream, false).await,
            Ok((_, stream)) if settings.listener.protocol == Protocol::Auto => {
                tcp::serve(connection, stream).await;
            }
            // HTTP answers what is not HTTP.
            Ok((_, stream)) => http::serve(connection, stream, false).await,
            Err(error) => tracing::debug!(%error, "application went away before it spoke"),
        }
    }
}

/// A connection from our application.
struct Connection {
    outbound: Arc<Outbound>,
    facts: Arc<audit::Connection>,
    /// Counted as open until the last request on it has ended.
    _slot: OwnedSemaphorePermit,
}

impl Outbound {
    fn tell_unreachable(&self, error: &dyn std::error::Error) {
        let error = chain(error);
        tracing::warn!(to = %self.settings.to, expected = %self.settings.peer, %error, "cannot reach the peer");
    }
}

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

/// One address of the peers behind an outbound listener, as a place to connect to.
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
    connector: Connector,
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
    async fn connect(&self, offer: Offer) -> Result<Secured<TlsStream<Held>>, DialError> {
        let connector = &self.way.connector;
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

impl Dial for Route {
    type Io = TlsStream<Held>;

    async fn dial(&self, wanted: Wanted) -> Result<Dialed<Self::Io>, DialError> {
        let offer = match wanted {
            Wanted::Any | Wanted::Http2 => Offer::Http,
            Wanted::Http1 => Offer::Http1,
        };
        let secured = self.connect(offer).await?;
        let ends = [
            secured.peer.not_after(),
            secured.endpoint.value.material().leaf().not_after,
        ];
        Ok(Dialed {
            http2: secured.agreed == tls::Agreed::Http2,
            epoch: secured.endpoint.generation,
            not_after: ends.into_iter().min(),
            standing: Some(self.way.standing(secured.peer, secured.endpoint)),
            io: secured.stream,
        })
    }

    fn scheme(&self) -> Scheme {
        Scheme::HTTPS
    }

    /// A connection made with an SVID that has been renewed, or judged by a bundle that has changed, takes
    /// no new requests.
    fn epoch(&self) -> u64 {
        self.way
            .identity
            .peek()
            .as_ref()
            .map_or(0, |endpoint| endpoint.generation)
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
}
