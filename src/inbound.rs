//! Peer to application: authenticate, authorize, connect, relay.

mod app;
mod http;
mod intercepted;
pub(crate) mod proxy_header;
mod tcp;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;

use self::app::{App, Apps};
pub use self::app::{Application, ClientAddress};
pub use self::intercepted::Intercepted;
use crate::audit::{self, Direction, Kind, Verdict};
use crate::document::Node;
use crate::exchange::Meter;
use crate::headers::IdentityHeader;
use crate::intercept::Ports;
use crate::limits::{Handshakes, Requests, Tally};
use crate::listen::{self, Entrance, Protocol, Source, Stream};
use crate::policy::{self, Act, Denial, Gate, Permit, Place, Policy, Subject};
use crate::secrets::{self, Guard};
use crate::serve;
use crate::session::Standing;
use crate::telemetry::chain;
use crate::tls::detect::{self, Detected};
use crate::tls::{self, Acceptor, Agreed, Offer, Secured};
use crate::upstream::{self, Pool};
use crate::worker::Worker;

/// One listener for peers.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where connections come in; intercepted are those to these ports.
    pub entrance: Entrance<Vec<Ports>>,
    /// How they are served.
    pub listener: listen::Settings,
    /// The name that policies know our application by: the Cedar resource.
    pub service: Arc<str>,
    /// Where our application listens, in plain.
    pub app: Application,
    /// Whose address the application sees.
    pub client_address: ClientAddress,
    /// What the application speaks where the caller's sidecar does not say.
    pub app_protocol: AppProtocol,
    /// How the application learns who calls.
    pub identity_header: IdentityHeader,
    /// Whether a TCP session to the application begins with a PROXY protocol v2 header.
    pub proxy_protocol: bool,
    /// Whether paths are decided as written, even where the application could read them as others.
    pub unsafe_ambiguous_paths: bool,
    /// A handshake that takes longer is given up.
    pub handshake_timeout: Duration,
    /// Handshakes under way at most, in each worker.
    pub max_handshakes: usize,
    /// What becomes of standing secrets in requests.
    pub standing_secrets: secrets::Settings,
    /// Limits of HTTP connections.
    pub http: serve::Limits,
}

/// Which HTTP the application speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppProtocol {
    /// The one that the calling application spoke; HTTP/2 for gRPC and HTTP/1.1 for others where that is
    /// not known.
    Auto,
    /// HTTP/1.1 always.
    Http1,
    /// HTTP/2 without TLS always.
    Http2,
}

impl Settings {
    /// Reads one item of the list `inbound`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let entrance = Entrance::read(&mut section, |node| node.one_or_more(|ports| ports.parse()));
        let listener = listen::Settings::read(&mut section);
        let service = section.required("service", |node| node.text().map(Arc::from));
        let is_intercepted = entrance
            .as_ref()
            .is_none_or(|entrance| entrance.intercepted().is_some());
        let app = section.optional("app", |node| Application::read(&node, is_intercepted));
        let app = match app {
            Some(None) if is_intercepted => Some(Application::Loopback),
            Some(None) => section.required("app", |_| None),
            Some(written) => written,
            None => None,
        };
        let client_address = section.or("client_address", ClientAddress::Sidecar, |node| {
            let kept = ClientAddress::read(&node)?;
            kept.check(&node, app.as_ref(), is_intercepted)
        });
        let app_protocol = section.or("app_protocol", AppProtocol::Auto, |node| {
            node.choice(&[
                ("auto", AppProtocol::Auto),
                ("http1", AppProtocol::Http1),
                ("http2", AppProtocol::Http2),
            ])
        });
        let identity_header = section.or("identity_header", IdentityHeader::Xfcc, |node| {
            node.choice(&[
                ("xfcc", IdentityHeader::Xfcc),
                ("client_cert", IdentityHeader::ClientCert),
                ("both", IdentityHeader::Both),
                ("none", IdentityHeader::None),
            ])
        });
        let proxy_protocol = section.or("proxy_protocol", false, |node| node.flag());
        let unsafe_ambiguous_paths =
            section.or("unsafe_ambiguous_paths", false, |node| node.flag());
        let standing_secrets =
            section.or("standing_secrets", secrets::Settings::default(), |node| {
                secrets::Settings::read(&node)
            });
        let handshake_timeout = listen::timeout(
            &mut section,
            "handshake_timeout",
            Duration::from_secs(5),
            listen::MINUTE,
        );
        let max_handshakes = section.or("max_handshakes", 1000, |node| {
            usize::try_from(node.count(1..=1_000_000)?).ok()
        });
        let listener = listener?;
        Some(Self {
            entrance: entrance?,
            http: serve::Limits::of(&listener),
            listener,
            service: service?,
            app: app?,
            client_address: client_address?,
            app_protocol: app_protocol?,
            identity_header: identity_header?,
            proxy_protocol: proxy_protocol?,
            unsafe_ambiguous_paths: unsafe_ambiguous_paths?,
            handshake_timeout: handshake_timeout?,
            max_handshakes: max_handshakes?,
            standing_secrets: standing_secrets?,
        })
    }
}

/// One inbound listener in one worker.
#[derive(Debug)]
pub struct Inbound {
    settings: Settings,
    policy: Arc<Policy>,
    worker: Arc<Worker>,
    acceptor: Acceptor,
    apps: Apps,
    meter: Arc<Meter>,
    secrets: Guard,
    tally: Tally,
    requests: Arc<Requests>,
    handshakes: Arc<Handshakes>,
}

impl Inbound {
    /// Prepares to serve what `settings` say.
    #[must_use]
    pub fn new(settings: Settings, policy: Arc<Policy>, worker: Arc<Worker>) -> Arc<Self> {
        let offer = match settings.listener.protocol {
            Protocol::Auto => Offer::Auto,
            Protocol::Http => Offer::Http,
            Protocol::Tcp => Offer::Tunnel,
        };
        let acceptor = Acceptor::new(
            worker.identity.clone(),
            offer,
            settings.handshake_timeout,
            worker.metrics.tls.clone(),
        );
        let tally = worker
            .metrics
            .limits
            .of(Direction::Inbound.label(), &settings.service);
        let kept = upstream::Settings::of(&settings.listener, worker.credit.clone(), tally.clone());
        Arc::new(Self {
            acceptor,
            apps: Apps::new(&settings, kept, worker.tasks.clone()),
            meter: worker
                .metrics
                .exchange
                .of(Direction::Inbound, &settings.service),
            secrets: worker.guard(
                Direction::Inbound,
                &settings.standing_secrets,
                &settings.service,
            ),
            requests: tally.requests(settings.listener.requests),
            handshakes: tally.handshakes(settings.max_handshakes),
            tally,
            settings,
            policy,
            worker,
        })
    }

    /// Counts what is reached of the listener's limits.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// Closes the kept connections to the application.
    pub fn close(&self) {
        self.apps.close();
    }

    /// Serves one accepted connection to its end. One that was intercepted was going to `destination`.
    pub async fn serve(
        self: Arc<Self>,
        stream: Stream,
        source: Source,
        destination: Option<SocketAddr>,
        slot: OwnedSemaphorePermit,
    ) {
        // Large, and over long before the connection is: what serves must not have room for it.
        let admitted = Box::pin(self.admit(stream, source, destination, slot)).await;
        if let Some((connection, stream, agreed)) = admitted {
            connection.serve(stream, agreed).await;
        }
    }

    /// Makes the handshake.
    async fn admit(
        self: Arc<Self>,
        stream: Stream,
        source: Source,
        destination: Option<SocketAddr>,
        slot: OwnedSemaphorePermit,
    ) -> Option<(Box<Connection>, Box<TlsStream<Stream>>, Agreed)> {
        let to = destination.or_else(|| stream.local_addr());
        let port = to.map_or(0, |to| to.port());
        let mut handshake = self.handshakes.begin();
        let accepted = self
            .acceptor
            .accept_unless(handshake.given_up(), stream)
            .await;
        drop(handshake);
        let secured = match accepted {
            Ok(secured) => secured,
            Err(error) => {
                tracing::debug!(%source, service = %self.settings.service, error = %chain(&error), "handshake failed");
                self.refused_handshake(&error, source, destination);
                return None;
            }
        };
        let Secured {
            peer,
            agreed,
            stream,
            endpoint,
        } = secured;
        let subject = Subject {
            id: peer.id().clone(),
            expires: peer.not_after(),
            lifetime: peer.lifetime(),
        };
        let place = Place {
            service: self.settings.service.clone(),
            port,
            source: source.ip(),
        };
        let gate = self
            .policy
            .gate(subject, place, &self.worker.metrics.policy);
        let facts = Arc::new(audit::Connection {
            direction: Direction::Inbound,
            own: Some(endpoint.value.id().clone()),
            peer: Some(peer.leaf().clone()),
            service: self.settings.service.clone(),
            source: source.address(),
            destination,
        });
        let connection = Box::new(Connection {
            standing: self.worker.standing(peer, endpoint),
            gate,
            facts,
            addresses: source.address().zip(to),
            app: self.apps.of(destination, source),
            inbound: self,
            _slot: slot,
        });
        Some((connection, Box::new(stream), agreed))
    }

    /// Nobody was authenticated: the record says from where, and why not.
    fn refused_handshake(
        &self,
        error: &tls::HandshakeError,
        source: Source,
        destination: Option<SocketAddr>,
    ) {
        let facts = Arc::new(audit::Connection {
            direction: Direction::Inbound,
            own: self.worker.identity.get().map(|own| own.value.id().clone()),
            peer: None,
            service: self.settings.service.clone(),
            source: source.address(),
            destination,
        });
        // There is nothing to refuse any more.
        if let Ok(mut record) = self.worker.audit.open(Kind::Connection, &facts) {
            record.verdict(Verdict {
                reason: Some(error.label()),
                ..Verdict::default()
            });
            record.finish(error.outcome(), 0, 0);
        }
    }
}

/// An authenticated connection from a peer.
struct Connection {
    inbound: Arc<Inbound>,
    standing: Standing,
    gate: Gate,
    facts: Arc<audit::Connection>,
    addresses: Option<(SocketAddr, SocketAddr)>,
    app: Arc<Pool<App>>,
    /// Counted as open until the last request on it has ended.
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    /// Each way of serving has a place of its own: idle connections are many.
    async fn serve<IO>(self: Box<Self>, stream: IO, agreed: Agreed)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match (agreed, self.inbound.settings.listener.protocol) {
            (Agreed::Http2, _) => Box::pin(http::serve(self, stream, true)).await,
            (Agreed::Http1, _) => Box::pin(http::serve(self, stream, false)).await,
            (Agreed::Opaque, _) | (Agreed::Nothing, Protocol::Tcp) => {
                Box::pin(tcp::serve(self, stream)).await;
            }
            (Agreed::Tunnel, _) => Box::pin(tcp::serve_many(self, stream)).await,
            (Agreed::Nothing, protocol) => {
                let timeout = match protocol {
                    Protocol::Auto => self.inbound.settings.listener.detect_timeout,
                    _ => self.inbound.settings.http.header_timeout,
                };
                let (detected, stream) = match detect::peek(stream, timeout).await {
                    Ok(found) => found,
                    Err(error) => return tracing::debug!(%error, "peer went away before it spoke"),
                };
                match (detected, protocol) {
                    (Detected::Http2Preface, _) => Box::pin(http::serve(self, stream, true)).await,
                    (Detected::Http1, _) => Box::pin(http::serve(self, stream, false)).await,
                    (_, Protocol::Auto) => Box::pin(tcp::serve(self, stream)).await,
                    // HTTP answers what is not HTTP.
                    _ => Box::pin(http::serve(self, stream, false)).await,
                }
            }
        }
    }
}

impl Connection {
    /// Asks policy, and says in the audit record what it answered.
    fn authorize(&self, act: &Act<'_>, now: SystemTime) -> (Result<Permit, Denial>, Verdict) {
        let answer = self.gate.authorize(act, now);
        let id = |grant: &Arc<policy::Grant>| grant.id.clone();
        let verdict = match &answer {
            Ok(permit) => Verdict {
                allowed: true,
                grant: permit.grant().map(id),
                owner: permit.grant().and_then(|grant| grant.owner.clone()),
                generation: permit.generation(),
                observed: permit.would_deny().map(|denial| audit::Observed {
                    allowed: false,
                    grant: denial.grant().map(id),
                }),
                principal_owner: self.gate.principal_owner(),
                reason: None,
            },
            Err(denial) => Verdict {
                allowed: false,
                grant: denial.grant().map(id),
                owner: denial.grant().and_then(|grant| grant.owner.clone()),
                generation: denial.generation(),
                observed: denial.would_allow().map(|grant| audit::Observed {
                    allowed: true,
                    grant: Some(id(grant)),
                }),
                principal_owner: self.gate.principal_owner(),
                reason: Some(denial.reason().label()),
            },
        };
        (answer, verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::document::Document;

    #[test]
    fn what_an_entry_cannot_be_is_told_where_it_is_written() {
        for (text, message) in [
            ("intercept: 80", ""),
            ("intercept: [80, 90-99]\napp: original", ""),
            ("intercept: 80\nclient_address: kept", ""),
            ("intercept: 80\nclient_address: kept\napp: '[::1]:80'", ""),
            ("listen: '[::]:80'\napp: '127.0.0.1:80'", ""),
            ("listen: '[::]:80'", "the key `app` is missing"),
            ("app: '127.0.0.1:80'", "the key `listen` is missing"),
            (
                "listen: '[::]:80'\nintercept: 80\napp: '127.0.0.1:80'",
                "connections come in by `listen` or by `intercept`, and here are both",
            ),
            (
                "listen: '[::]:80'\napp: original",
                "app: `original` is where an intercepted connection was going",
            ),
            (
                "listen: '[::]:80'\napp: '127.0.0.1:80'\nclient_address: kept",
                "client_address: only an entry with `intercept` keeps",
            ),
            (
                "intercept: 80\napp: original\nclient_address: kept",
                "client_address: an application that sees its clients' own addresses must be on the loopback",
            ),
            ("intercept: 0", "intercept: `0`: write a port"),
            ("intercept: 9-8", "intercept: `9-8`: write a port"),
            ("intercept: []", "intercept: at least one"),
        ] {
            let text = format!("service: a\n{text}");
            let read = Document::new("x.yaml", &*text).read(|node| Settings::read(&node));
            let told = read.map(|_| String::new());
            let told = told.unwrap_or_else(|mistakes| mistakes.to_string());
            assert_eq!(told.is_empty(), message.is_empty(), "{text}\n{told}");
            assert!(told.contains(message), "{text}\n{told}");
        }
    }

    type Io = Box<TlsStream<Stream>>;

    /// They are allocated for each open connection: whatever grows them costs every idle one.
    #[test]
    fn what_every_open_connection_keeps_stays_small() {
        fn output<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
            size_of::<F>()
        }
        let task = |inbound, (stream, source), destination, slot| {
            Inbound::serve(inbound, stream, source, destination, slot)
        };
        let any = |connection: Box<Connection>, io, agreed, ()| connection.serve::<Io>(io, agreed);
        let http = |connection, io, http2, ()| http::serve::<Io>(connection, io, http2);
        let tcp = |connection, io, (), ()| tcp::serve::<Io>(connection, io);
        for (what, bytes, most) in [
            ("the task", output(task), 512),
            ("serving", output(any), 256),
            ("HTTP", output(http), 1024),
            ("TCP", output(tcp), 2048),
            ("the connection", size_of::<Connection>(), 384),
        ] {
            assert!(bytes <= most, "{what} has {bytes} bytes");
        }
    }
}
