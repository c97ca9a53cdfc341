//! Peer to application: authenticate, authorize, connect, relay.

mod app;
mod http;
mod intercepted;
mod plaintext;
pub(crate) mod proxy_header;
mod tcp;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;

use self::app::{App, Apps};
pub use self::app::{Application, ClientAddress};
pub use self::intercepted::Intercepted;
use self::plaintext::Unproved;
use crate::audit::{self, Direction, Kind, Verdict};
use crate::document::Node;
use crate::exchange::{self, Meter};
use crate::headers::IdentityHeader;
use crate::intercept::Ports;
use crate::limits::{Handshakes, Requests, Tally};
use crate::listen::{self, Entrance, Protocol, Source, Stream};
use crate::outcome::Outcome;
use crate::policy::{self, Act, Denial, Gate, Permit, Place, Plaintext, Policy, Subject};
use crate::secrets::{self, Guard};
use crate::serve;
use crate::session::{Granted, Own, Standing};
use crate::telemetry::chain;
use crate::tls::detect::{self, Detected};
use crate::tls::{Acceptor, Agreed, HandshakeError, Offer, Secured, ServerStream};
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
    /// What becomes of callers that speak no TLS.
    pub plaintext: Plaintext,
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
        let plaintext = section.or("plaintext", Plaintext::Deny, |node| Plaintext::read(&node));
        let listener = listener?;
        if plaintext?.is_allowed() && listener.protocol == Protocol::Auto {
            let help = "write `protocol: http` or `protocol: tcp` beside it";
            return section.node().mistake(
                "with `plaintext: allow_and_report` it must be said what the application speaks: \
                 opaque bytes of a caller that proved nothing may hold a request with forged headers",
                Some(help),
            );
        }
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
            plaintext: plaintext?,
            standing_secrets: standing_secrets?,
        })
    }

    /// How long the first bytes may take. Where the application may have to speak first, as long as it waits
    /// for them; elsewhere a caller in plaintext may open a connection before it needs it.
    fn first_bytes_within(&self) -> Duration {
        match (self.plaintext, self.listener.protocol) {
            (Plaintext::Deny, _) => self.handshake_timeout,
            (Plaintext::AllowAndReport(_), Protocol::Tcp) => self.listener.detect_timeout,
            (Plaintext::AllowAndReport(_), Protocol::Http | Protocol::Auto) => {
                self.handshake_timeout.max(self.http.header_timeout)
            }
        }
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
    plaintext: exchange::plaintext::Tally,
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
            plaintext: worker
                .metrics
                .plaintext
                .of(&settings.service, settings.plaintext),
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
        match admitted {
            Some(Admitted::Secured(connection, stream, agreed)) => {
                connection.serve(stream, agreed).await;
            }
            // In a place of its own: what is rare must not make the task of a peer larger.
            Some(Admitted::Plain(connection, stream, agreed)) => {
                Box::pin(connection.serve(stream, agreed)).await;
            }
            None => {}
        }
    }

    /// Looks how the caller begins. Unless that is plaintext, makes the handshake.
    async fn admit(
        self: Arc<Self>,
        stream: Stream,
        source: Source,
        destination: Option<SocketAddr>,
        slot: OwnedSemaphorePermit,
    ) -> Option<Admitted> {
        let to = destination.or_else(|| stream.local_addr());
        let port = to.map_or(0, |to| to.port());
        let began = Instant::now();
        let mut handshake = self.handshakes.begin();
        let patience = self.settings.first_bytes_within();
        let first = tokio::select! {
            biased;
            first = tokio::time::timeout(patience, plaintext::look(&stream)) => first.ok(),
            () = handshake.given_up() => {
                return self.no_handshake(&HandshakeError::Crowded, source, destination);
            }
        };
        let detected = match first {
            Some(Ok(detected)) => Some(detected),
            // There the application speaks first.
            None if self.settings.plaintext.is_allowed()
                && self.settings.listener.protocol == Protocol::Tcp =>
            {
                Some(Detected::Opaque)
            }
            None => {
                let late = HandshakeError::Timeout(patience);
                return self.no_handshake(&late, source, destination);
            }
            Some(Err(_)) => None,
        };
        let began = match (detected, self.settings.plaintext) {
            // Whoever went away says nothing of itself; the handshake meets it too, and knows how to tell.
            (Some(Detected::Tls) | None, Plaintext::Deny) => began,
            (Some(Detected::Tls) | None, Plaintext::AllowAndReport(_)) => Instant::now(),
            (Some(detected), Plaintext::Deny) => {
                drop(handshake);
                let facts = self.facts_of_nobody(source, destination, true);
                return self.refuse_plaintext(stream, &facts, detected).await;
            }
            (Some(detected), Plaintext::AllowAndReport(allowance)) => {
                drop(handshake);
                let agreed = plaintext::carried(self.settings.listener.protocol, detected);
                let kind = match agreed {
                    Agreed::Http1 | Agreed::Http2 => exchange::Kind::Http,
                    _ => exchange::Kind::Tcp,
                };
                let caller = Caller::Unproved(Unproved {
                    allowance,
                    _open: self.plaintext.open(kind),
                });
                let connection = Box::new(Connection {
                    caller,
                    facts: self.facts_of_nobody(source, destination, true),
                    addresses: source.address().zip(to),
                    app: self.apps.of(destination, source),
                    inbound: self,
                    _slot: slot,
                });
                return Some(Admitted::Plain(connection, Box::new(stream), agreed));
            }
        };
        let accepted = self
            .acceptor
            .accept_unless(handshake.given_up(), began, stream)
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
            plaintext: false,
        });
        let connection = Box::new(Connection {
            caller: Caller::Proved {
                standing: self.worker.standing(peer, endpoint),
                gate,
            },
            facts,
            addresses: source.address().zip(to),
            app: self.apps.of(destination, source),
            inbound: self,
            _slot: slot,
        });
        Some(Admitted::Secured(connection, Box::new(stream), agreed))
    }

    /// What is known of a connection whose other end proved nothing.
    fn facts_of_nobody(
        &self,
        source: Source,
        destination: Option<SocketAddr>,
        plaintext: bool,
    ) -> Arc<audit::Connection> {
        Arc::new(audit::Connection {
            direction: Direction::Inbound,
            own: self.worker.identity.get().map(|own| own.value.id().clone()),
            peer: None,
            service: self.settings.service.clone(),
            source: source.address(),
            destination,
            plaintext,
        })
    }

    /// The handshake that never began is counted and recorded like one that failed.
    fn no_handshake(
        &self,
        error: &HandshakeError,
        source: Source,
        destination: Option<SocketAddr>,
    ) -> Option<Admitted> {
        self.acceptor.failed(error);
        self.refused_handshake(error, source, destination);
        None
    }

    /// Nobody was authenticated: the record says from where, and why not.
    fn refused_handshake(
        &self,
        error: &HandshakeError,
        source: Source,
        destination: Option<SocketAddr>,
    ) {
        let facts = self.facts_of_nobody(source, destination, false);
        self.record_refusal(&facts, error.label(), error.outcome());
    }

    /// Refuses what is no TLS, and says so in words that the caller understands.
    async fn refuse_plaintext(
        &self,
        stream: Stream,
        facts: &Arc<audit::Connection>,
        detected: Detected,
    ) -> Option<Admitted> {
        let error = HandshakeError::NotTls;
        tracing::debug!(source = ?facts.source, service = %self.settings.service, ?detected, "refused a caller in plaintext");
        self.acceptor.failed(&error);
        self.plaintext.refused(plaintext::kind(detected));
        let outcome = Outcome::PlaintextRefused;
        let id = self.record_refusal(facts, error.label(), outcome);
        plaintext::tell(stream, detected, id).await;
        None
    }

    fn record_refusal(
        &self,
        facts: &Arc<audit::Connection>,
        reason: &'static str,
        outcome: Outcome,
    ) -> Option<audit::ExchangeId> {
        // If it cannot be recorded, there is nothing to refuse any more.
        let mut record = self.worker.audit.open(Kind::Connection, facts).ok()?;
        let id = record.id();
        record.verdict(Verdict {
            reason: Some(reason),
            ..Verdict::default()
        });
        record.finish(outcome, 0, 0);
        Some(id)
    }
}

/// A connection that is served, and what was agreed on it.
enum Admitted {
    /// With a peer that proved who it is.
    Secured(Box<Connection>, Box<ServerStream<Stream>>, Agreed),
    /// With a caller that proved nothing.
    Plain(Box<Connection>, Box<Stream>, Agreed),
}

/// A connection from a peer, or from somebody whom the operator lets in without proof.
struct Connection {
    inbound: Arc<Inbound>,
    caller: Caller,
    facts: Arc<audit::Connection>,
    addresses: Option<(SocketAddr, SocketAddr)>,
    app: Arc<Pool<App>>,
    /// Counted as open until the last request on it has ended.
    _slot: OwnedSemaphorePermit,
}

/// Who is at the other end.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are peers, and each would cost one more allocation"
)]
enum Caller {
    /// A peer that proved who it is.
    Proved { standing: Standing, gate: Gate },
    /// Somebody in plaintext.
    Unproved(Unproved),
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
                // Over long before the connection is.
                let (detected, stream) = match Box::pin(detect::peek(stream, timeout)).await {
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
    /// The peer and what it stands on; `None` for somebody who proved nothing.
    fn standing(&self) -> Option<&Standing> {
        match &self.caller {
            Caller::Proved { standing, .. } => Some(standing),
            Caller::Unproved(_) => None,
        }
    }

    /// Whether something new may be served at `now`.
    fn check(&self, now: SystemTime) -> Result<(), Outcome> {
        self.standing()
            .map_or(Ok(()), |standing| standing.check(now))
    }

    /// The caller's name in metrics.
    fn principal(&self) -> &str {
        self.standing()
            .map_or(plaintext::NOBODY, |standing| standing.peer.id().as_str())
    }

    /// Waits until the connection stands on nothing any more. What stands on nothing but the operator's word
    /// ends with the process.
    fn lost<'a>(
        &'a self,
        own: Own,
        granted: impl FnOnce(&'a Gate) -> Granted<'a>,
    ) -> impl Future<Output = Outcome> + Send + 'a {
        match &self.caller {
            Caller::Proved { standing, gate } => standing.lost(own, granted(gate)).left_future(),
            Caller::Unproved(_) => std::future::pending().right_future(),
        }
    }

    /// Asks policy, if there is somebody to ask about, and says what the audit record is to say.
    fn authorize(
        &self,
        act: &Act<'_>,
        now: SystemTime,
    ) -> (Result<Permit, Denial>, Option<Verdict>) {
        let gate = match &self.caller {
            Caller::Proved { gate, .. } => gate,
            Caller::Unproved(unproved) => {
                self.inbound.plaintext.allowed(match act {
                    Act::Http { .. } => exchange::Kind::Http,
                    Act::Connect => exchange::Kind::Tcp,
                });
                return (Ok(unproved.allowance.permit()), None);
            }
        };
        let answer = gate.authorize(act, now);
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
                principal_owner: gate.principal_owner(),
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
                principal_owner: gate.principal_owner(),
                reason: Some(denial.reason().label()),
            },
        };
        (answer, Some(verdict))
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

    type Io = Box<ServerStream<Stream>>;

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
