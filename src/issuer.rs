//! Who gives identities where there is no SPIRE? A small CA for one machine, development and VMs, behind
//! a SPIFFE Workload API socket.
//!
//! ```text
//! socket ──▶ attest (who connects?) ──▶ filter (:authority) ──▶ service (the Workload API)
//!                                                       registry (for whom?) ┘  └ authority (signs)
//! ```
//!
//! A caller proves nothing itself: the kernel says who connected (`attest`), and registration entries
//! say which identities that is good for (`registry`). SVIDs are pushed again before they end, when
//! entries change, and when the CA gets a successor. The CA key stays in memory unless a file is named.
//!
//! The socket is open to all users of the machine, as SPIRE's is: attestation decides. The directory
//! around it is the operator's. What a caller can make us hold is bounded: connections in all and for
//! each user, streams of a connection, bytes of a request, the time to say the first word.
//!
//! ```yaml
//! trust_domain: example.org
//! socket: /run/doorward/issuer.sock
//! ca:                                  # may be left out
//!   file: /var/lib/doorward/ca.pem     # in memory only without it
//!   lifetime: 30d
//! federation:                          # may be left out
//!   listen: 0.0.0.0:8444               # our bundle for other trust domains, over https_spiffe
//! entries:
//!   - id: spiffe://example.org/checkout     # or /checkout
//!     selectors: { uid: 1000, path: /usr/bin/checkout }    # also gid, sha256; all must hold
//!     lifetime: 1h                     # of each SVID
//!     rotate_every: 30m                # half of the lifetime unless said otherwise
//!     hint: internal                   # tells a workload with several identities what this is for
//! ```

mod attest;
mod authority;
mod bundle_endpoint;
mod filter;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod keyfile;
mod registry;
mod service;
mod socket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures_util::stream::poll_fn;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::{debug, error, info, warn};

pub use self::authority::AuthorityError;
pub use self::bundle_endpoint::{PATH as BUNDLE_ENDPOINT_PATH, Settings as FederationSettings};
pub use self::keyfile::KeyFileError;
pub use self::registry::Registry;
pub use self::socket::SocketError;

use self::attest::{Caller, Credentials};
use self::authority::Authority;
use self::bundle_endpoint::BundleEndpoint;
use self::filter::Corrected;
use self::service::{Shared, WorkloadApi, wall_clock};
use self::socket::Socket;
use crate::document::{Document, Mistakes, Node};
use crate::identity::TrustDomain;

/// What the protobuf definition says, compiled.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    reason = "generated code"
)]
mod proto {
    tonic::include_proto!("_");

    pub use spiffe_workload_api_server::{
        SpiffeWorkloadApi, SpiffeWorkloadApiServer as WorkloadApiServer,
    };
}

/// The issuer's configuration file, as checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The trust domain that the CA vouches for.
    pub trust_domain: TrustDomain,
    /// Where the Workload API is served.
    pub socket: PathBuf,
    /// The CA itself.
    pub ca: CaSettings,
    /// Where the bundle is served for other trust domains, if it is.
    pub federation: Option<FederationSettings>,
    /// Who gets which identity.
    pub registry: Registry,
}

/// How the CA is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct CaSettings {
    /// Where it is kept, so that trust continues after a restart; in memory only if none is named.
    pub file: Option<PathBuf>,
    /// How long a CA certificate lives. Its successor is made at half of it.
    pub lifetime: Duration,
}

/// 30 days.
pub const DEFAULT_CA_LIFETIME: Duration = Duration::from_secs(30 * 86_400);

impl Default for CaSettings {
    fn default() -> Self {
        Self {
            file: None,
            lifetime: DEFAULT_CA_LIFETIME,
        }
    }
}

impl Settings {
    /// Reads the configuration file at `path`.
    ///
    /// # Errors
    /// Every mistake in it, with its line.
    pub fn open(path: &Path) -> Result<Self, Mistakes> {
        Document::open(path)?.read(Self::read)
    }

    /// Reads a whole configuration.
    #[must_use]
    pub fn read(node: Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let trust_domain = section.required("trust_domain", |node| node.parse());
        let socket = section.required("socket", |node| {
            let path = node.path()?;
            if path.is_absolute() {
                return Some(path);
            }
            node.mistake(
                format_args!("`{}` is not an absolute path", path.display()),
                Some("write for example `/run/doorward/issuer.sock`"),
            )
        });
        let ca = section.or("ca", CaSettings::default(), CaSettings::read);
        let federation = section.optional("federation", |node| FederationSettings::read(&node));
        let longest = ca.as_ref().map_or(LONGEST_CA, |ca| ca.lifetime);
        let registry = section.required("entries", |node| {
            Registry::read(&node, trust_domain.as_ref(), longest)
        });
        Some(Self {
            trust_domain: trust_domain?,
            socket: socket?,
            ca: ca?,
            federation: federation?,
            registry: registry?,
        })
    }
}

impl CaSettings {
    fn read(node: Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let file = section.optional("file", |node| node.path());
        let lifetime = section.or("lifetime", DEFAULT_CA_LIFETIME, |node| {
            node.duration(SHORTEST_CA..=LONGEST_CA)
        });
        Some(Self {
            file: file?,
            lifetime: lifetime?,
        })
    }
}

const SHORTEST_CA: Duration = Duration::from_secs(10);
/// Ten years.
const LONGEST_CA: Duration = Duration::from_secs(3653 * 86_400);

/// An issuer that listens but does not serve yet.
#[derive(Debug)]
pub struct Issuer {
    socket: Socket,
    bundle_endpoint: Option<BundleEndpoint>,
    shared: Arc<Shared>,
    ca_file: Option<PathBuf>,
}

/// Changes what a serving [`Issuer`] does.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// Puts other registration entries in force. Open streams learn of it at once.
    pub fn replace(&self, registry: Registry) {
        self.0.registry.publish(registry);
    }
}

impl Issuer {
    /// Makes or finds the CA and listens on the socket: from now on clients can connect.
    ///
    /// # Errors
    /// [`StartError`], and nothing is left behind.
    pub async fn bind(settings: Settings) -> Result<Self, StartError> {
        let socket = Socket::bind(&settings.socket).await?;
        let CaSettings { file, lifetime } = settings.ca;
        let now = SystemTime::now();
        let authority = match &file {
            Some(file) => keyfile::open(file, &settings.trust_domain, lifetime, now)?,
            None => Authority::generate(&settings.trust_domain, lifetime, now)?,
        };
        let bundle_endpoint = match settings.federation {
            Some(federation) => {
                let bound = BundleEndpoint::bind(federation).await;
                Some(bound.map_err(|error| StartError::Federation(federation.listen, error))?)
            }
            None => None,
        };
        let shared = Arc::new(Shared::default());
        shared.authority.publish(authority);
        shared.registry.publish(settings.registry);
        Ok(Self {
            socket,
            bundle_endpoint,
            shared,
            ca_file: file,
        })
    }

    /// A handle to change it with while it serves.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle(self.shared.clone())
    }

    /// Serves until `stop` is done; then ends all streams and removes the socket file.
    ///
    /// # Errors
    /// [`ServeError`] if the server fails as a whole. Connections fail alone.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self {
            socket,
            bundle_endpoint,
            shared,
            ca_file,
        } = self;
        let token = shared.stop.clone();
        let _stop_on_return = token.clone().drop_guard();
        let tasks = TaskTracker::new();
        tasks.spawn(keep_authority(shared.clone(), ca_file));
        let (admitted, mut connections) = mpsc::channel(16);
        tasks.spawn(accept(socket, admitted, shared.clone(), tasks.clone()));
        if let Some(endpoint) = bundle_endpoint {
            tasks.spawn(endpoint.serve(shared.clone(), tasks.clone()));
        }
        tasks.close();

        let incoming = poll_fn(move |cx| {
            connections
                .poll_recv(cx)
                .map(|next| next.map(Ok::<_, Infallible>))
        });
        let service = proto::WorkloadApiServer::new(WorkloadApi(shared))
            .max_decoding_message_size(LARGEST_REQUEST);
        let serving = Server::builder()
            .max_concurrent_streams(STREAMS)
            .http2_max_header_list_size(LARGEST_HEADERS)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
            .serve_with_incoming_shutdown(service, incoming, token.clone().cancelled_owned());
        let mut serving = std::pin::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended.map_err(ServeError),
            () = stop => {}
        }
        token.cancel();
        if timeout(GRACE, serving).await.is_err() {
            debug!("some connections did not end in time");
        }
        tasks.wait().await;
        info!("the issuer has stopped");
        Ok(())
    }
}

/// How long clients have to close their connections after their streams have ended.
const GRACE: Duration = Duration::from_secs(1);
/// Streams of one connection. A client needs one for each method.
const STREAMS: u32 = 64;
/// Connections in all, and of one user: nobody can keep the others out.
const CONNECTIONS: usize = 1024;
const CONNECTIONS_OF_ONE_USER: usize = 512;
const LARGEST_REQUEST: usize = 64 * 1024;
const LARGEST_HEADERS: u32 = 64 * 1024;
/// How long a caller may take for its first word, and the system to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(20);

/// Gives the CA its successors.
async fn keep_authority(shared: Arc<Shared>, file: Option<PathBuf>) {
    loop {
        let Some(current) = shared.authority.get() else {
            return;
        };
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = wall_clock(current.value.next_change()) => {}
        }
        match renew(&current.value, file.as_deref()) {
            Ok(Some(next)) => {
                info!(until = %humantime::format_rfc3339_seconds(next.next_change()), "the CA's bundle has changed");
                shared.authority.publish(next);
            }
            Ok(None) => {}
            Err(cause) => {
                error!(
                    error = &cause as &dyn std::error::Error,
                    "the CA cannot be renewed"
                );
                sleep(PATIENCE).await;
            }
        }
    }
}

/// What is not kept is not published: after a restart nobody would trust what it signed.
fn renew(current: &Authority, file: Option<&Path>) -> Result<Option<Authority>, StartError> {
    let next = current.renewed(SystemTime::now())?;
    if let (Some(next), Some(file)) = (&next, file) {
        keyfile::replace(file, next)?;
    }
    Ok(next)
}

/// Accepts until the stop, and removes the socket file then.
async fn accept(
    socket: Socket,
    admitted: mpsc::Sender<Connection>,
    shared: Arc<Shared>,
    tasks: TaskTracker,
) {
    let seats = Arc::new(Seats::default());
    loop {
        let stream = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely: give others time to close theirs.
                    warn!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (admitted, seats, stop) = (admitted.clone(), seats.clone(), shared.stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = admit(stream, &seats, &admitted) => {}
            }
        });
    }
}

/// Finds out who connected.
async fn admit(stream: UnixStream, seats: &Arc<Seats>, admitted: &mpsc::Sender<Connection>) {
    let credentials = match Credentials::of(&stream) {
        Ok(credentials) => credentials,
        Err(error) => {
            warn!(%error, "the kernel does not say who connected");
            return;
        }
    };
    let uid = credentials.uid();
    let Some(seat) = seats.take(uid) else {
        warn!(uid, "refused: too many connections");
        return;
    };
    // A caller's file system may let us wait for ever, so its seat stays taken until it answers.
    let attesting = tokio::task::spawn_blocking(move || (credentials.attest(), seat));
    let Ok(Ok((caller, seat))) = timeout(PATIENCE, attesting).await else {
        warn!(uid, "refused: the caller cannot be attested");
        return;
    };
    debug!(%caller, "connected");
    let connection = Connection {
        io: Corrected::new(stream, PATIENCE),
        caller: Arc::new(caller),
        _seat: seat,
    };
    // Fails only when the server has ended.
    let _ = admitted.send(connection).await;
}

/// How many connections there are.
#[derive(Debug, Default)]
struct Seats {
    /// By uid; nobody is listed with none.
    taken: Mutex<HashMap<u32, usize>>,
}

/// One connection's place among them, given back when dropped.
#[derive(Debug)]
struct Seat {
    uid: u32,
    seats: Arc<Seats>,
}

impl Seats {
    fn take(self: &Arc<Self>, uid: u32) -> Option<Seat> {
        // Whoever panicked left a map that is whole.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&uid).copied().unwrap_or_default();
        if all >= CONNECTIONS || own >= CONNECTIONS_OF_ONE_USER {
            return None;
        }
        taken.insert(uid, own + 1);
        Some(Seat {
            uid,
            seats: self.clone(),
        })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let taken = &self.seats.taken;
        let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.uid) {
            Some(own) if *own > 1 => *own -= 1,
            _ => {
                taken.remove(&self.uid);
            }
        }
    }
}

/// A connection whose caller is known.
struct Connection {
    io: Corrected<UnixStream>,
    caller: Arc<Caller>,
    _seat: Seat,
}

impl Connected for Connection {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Arc<Caller> {
        self.caller.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read {
            debug!(caller = %self.caller, %error, "the connection ends");
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Why the issuer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The file that the CA is kept in.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The bundle endpoint.
    #[error("cannot serve the bundle for other trust domains at {0}")]
    Federation(std::net::SocketAddr, #[source] io::Error),
}

/// Why the issuer stopped serving.
#[derive(Debug, thiserror::Error)]
#[error("the Workload API server failed")]
pub struct ServeError(#[source] tonic::transport::Error);

#[cfg(test)]
mod tests;
