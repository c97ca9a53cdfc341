//! Where do connections come from? Sockets bound before anything starts, and the one accept loop.

mod inherited;
mod loopback;
mod silence;

use std::fmt;
use std::future::Future;
use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::inherited::{InheritError, Inherited};
use crate::descriptors::{self, Use};
use crate::document::{Document, Node, Section};
use crate::limits::{self, Limit, Tally};

/// An address to listen on or to connect to: `127.0.0.1:8080`, `[::1]:8080` or `unix:/run/app.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address with a port.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.strip_prefix("unix:") {
            Some(path) => {
                let path = path.strip_prefix("//").unwrap_or(path);
                if !path.starts_with('/') {
                    return Err(AddressError);
                }
                Ok(Self::Unix(path.into()))
            }
            None => text.parse().map(Self::Tcp).map_err(|_| AddressError),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The text is no [`Address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write an IP address with a port, as in `127.0.0.1:8080`, or `unix:` and an absolute path")]
pub struct AddressError;

/// What a listener carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP where ALPN or the first bytes say so, else opaque TCP.
    Auto,
    /// HTTP only: every request is decided by itself.
    Http,
    /// Opaque TCP only: each connection is decided once.
    Tcp,
}

/// Where connections to an entry of the configuration come in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entrance<I> {
    /// They are made to this address.
    Listen(Address),
    /// They are made to others, and the packet filter leads them to us: those that this says are the entry's.
    Intercept(I),
}

impl<I> Entrance<I> {
    /// Reads `listen` or `intercept`, of which there must be one.
    pub fn read<'a>(
        section: &mut Section<'a>,
        intercept: impl FnOnce(Node<'a>) -> Option<I>,
    ) -> Option<Self> {
        let listen = section.optional("listen", |node| node.parse());
        let intercept = section.optional("intercept", intercept);
        match (listen?, intercept?) {
            (Some(address), None) => Some(Self::Listen(address)),
            (None, Some(those)) => Some(Self::Intercept(those)),
            (Some(_), Some(_)) => section.node().mistake(
                "connections come in by `listen` or by `intercept`, and here are both",
                Some("write an entry for each"),
            ),
            (None, None) => section.node().mistake(
                "the key `listen` is missing",
                Some("write `listen:` with an address, or `intercept:` if the packet filter leads connections to us"),
            ),
        }
    }

    /// What is intercepted for it.
    #[must_use]
    pub fn intercepted(&self) -> Option<&I> {
        match self {
            Self::Listen(_) => None,
            Self::Intercept(those) => Some(those),
        }
    }
}

/// What every entry has, whichever way it leads.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What it carries.
    pub protocol: Protocol,
    /// Open connections at most, in each worker.
    pub max_connections: usize,
    /// What holds for HTTP requests.
    pub requests: limits::Terms,
    /// Opening a connection onwards may take this long.
    pub connect_timeout: Duration,
    /// With `protocol: auto`, whoever says nothing for this long waits for the other side to speak.
    pub detect_timeout: Duration,
    /// A TCP session on which nothing passes for this long is closed; and so is an HTTP/2 connection that
    /// carries no request.
    pub idle_timeout: Duration,
    /// How long a request's head may take, and how long a kept HTTP/1.1 connection may idle.
    pub header_timeout: Duration,
    /// A connection opened onwards whose other side gives no sign of life, or takes nothing, for this long is
    /// closed.
    pub tcp_user_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Document::new("", "")
            .read(|node| {
                node.section()
                    .and_then(|mut section| Self::read(&mut section))
            })
            .expect("every key has a default")
    }
}

impl Settings {
    /// Reads the keys that inbound and outbound listeners share.
    pub fn read(section: &mut Section<'_>) -> Option<Self> {
        let protocol = section.or("protocol", Protocol::Auto, |node| {
            node.choice(&[
                ("auto", Protocol::Auto),
                ("http", Protocol::Http),
                ("tcp", Protocol::Tcp),
            ])
        });
        let max_connections = section.or("max_connections", 20_000, |node| {
            usize::try_from(node.count(1..=1_000_000)?).ok()
        });
        let max_requests = section.or("max_requests", 10_000, |node| {
            usize::try_from(node.count(1..=1_000_000)?).ok()
        });
        let connect_timeout = timeout(section, "connect_timeout", Duration::from_secs(5), MINUTE);
        let detect_timeout = timeout(
            section,
            "detect_timeout",
            Duration::from_millis(500),
            MINUTE,
        );
        let header_timeout = timeout(section, "header_timeout", MINUTE, MINUTE * 60);
        let max_lag = section.or("max_lag", MAX_LAG, |node| {
            node.duration(Duration::from_micros(1)..=MINUTE)
        });
        let request_timeout = section.optional("request_timeout", |node| {
            node.duration(Duration::from_millis(1)..=MINUTE * 60 * 24)
        });
        let stall_timeout = timeout(section, "stall_timeout", MINUTE * 5, MINUTE * 60 * 24);
        let tcp_user_timeout = section.or("tcp_user_timeout", MINUTE * 2, |node| {
            node.duration(Duration::from_secs(1)..=MINUTE * 60 * 24)
        });
        let rate = |node: Node<'_>| u32::try_from(node.count(0..=1_000_000_000)?).ok();
        let min_body_rate = section.or("min_body_rate", MIN_BODY_RATE, rate);
        let min_stream_rate = section.optional("min_stream_rate", rate);
        let idle_timeout = timeout(section, "idle_timeout", MINUTE * 60, MINUTE * 60 * 24 * 366);
        Some(Self {
            protocol: protocol?,
            max_connections: max_connections?,
            requests: limits::Terms {
                most: max_requests?,
                max_lag: max_lag?,
                request_timeout: request_timeout?,
                stall_timeout: stall_timeout?,
                min_body_rate: min_body_rate?,
                min_stream_rate: min_stream_rate?,
            },
            connect_timeout: connect_timeout?,
            detect_timeout: detect_timeout?,
            idle_timeout: idle_timeout?,
            header_timeout: header_timeout?,
            tcp_user_timeout: tcp_user_timeout?,
        })
    }
}

impl Settings {
    /// For how long an accepted connection may give no sign of life. A little more than `stall_timeout`: who
    /// lives and takes nothing is for us to give up, and to tell of.
    #[must_use]
    pub fn silence(&self) -> Duration {
        self.requests.stall_timeout + Duration::from_secs(5)
    }
}

/// A worker may be late by so much, unless the settings say otherwise: as good as for ever. Where CPUs are shared
/// with much else, a worker is late without fault of those who ask, and only operators know how late is too late.
const MAX_LAG: Duration = MINUTE;
/// Bytes a second of a body of known length, unless the settings say otherwise.
const MIN_BODY_RATE: u32 = 100;

/// Reads a limit of time of at least a millisecond.
pub(crate) fn timeout(
    section: &mut Section<'_>,
    key: &str,
    default: Duration,
    longest: Duration,
) -> Option<Duration> {
    section.or(key, default, |node| {
        node.duration(Duration::from_millis(1)..=longest)
    })
}

/// The longest limit for anything that is about to happen.
pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// A bound socket, not yet given to a runtime. TCP connections to it are refused.
#[derive(Debug)]
pub struct Bound(Socket, Address, Claim);

/// Whether nobody else listens at the address, found out once for all workers, when the first of them
/// begins to listen: sockets that share a port would share it with a second Doorward of the same user too.
type Claim = Arc<OnceLock<Result<(), io::ErrorKind>>>;

impl Bound {
    /// Where it really listens: port 0 has become a port.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.1
    }
}

/// Binds `address` once for each of `workers`: TCP sockets share the port (`SO_REUSEPORT`), so that the
/// kernel spreads connections; a Unix socket is one queue that all workers take from.
///
/// # Errors
/// When the address is taken, by ourselves too, or may not be used.
pub fn bind(address: &Address, workers: usize) -> io::Result<Vec<Bound>> {
    match address {
        Address::Tcp(address) => bind_tcp(*address, workers),
        Address::Unix(path) => {
            let first = bind_unix(path)?;
            let clones = (1..workers).map(|_| first.try_clone());
            let mut sockets = clones.collect::<io::Result<Vec<_>>>()?;
            sockets.push(first);
            let address = Address::Unix(path.clone());
            Ok(sockets
                .into_iter()
                .map(|socket| Bound(socket, address.clone(), Claim::default()))
                .collect())
        }
    }
}

/// Binds `port` at every address of both families, or of IPv4 where there is no other, as [`bind`] does.
///
/// # Errors
/// As [`bind`].
pub fn bind_everywhere(port: NonZeroU16, workers: usize) -> io::Result<Vec<Bound>> {
    let at = |ip: IpAddr| bind_tcp(SocketAddr::new(ip, port.get()), workers);
    match at(Ipv6Addr::UNSPECIFIED.into()) {
        Err(error) if has_no_ipv6(&error) => at(Ipv4Addr::UNSPECIFIED.into()),
        bound => bound,
    }
}

fn has_no_ipv6(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EAFNOSUPPORT | Errno::EADDRNOTAVAIL))
}

fn bind_tcp(address: SocketAddr, workers: usize) -> io::Result<Vec<Bound>> {
    probe(address)?;
    let share = workers > 1;
    let claim = Claim::default();
    let mut bound: Vec<Bound> = Vec::with_capacity(workers);
    for _ in 0..workers {
        let address = match bound.first() {
            Some(Bound(_, Address::Tcp(first), _)) => *first,
            _ => address,
        };
        let socket = open_tcp(address, share)?;
        let local = socket
            .local_addr()?
            .as_socket()
            .ok_or(io::ErrorKind::InvalidInput)?;
        bound.push(Bound(socket, Address::Tcp(local), claim.clone()));
    }
    Ok(bound)
}

fn open_tcp(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Whether nobody listens there yet: our own sockets are bound but do not listen.
fn claim(address: SocketAddr) -> Result<(), io::ErrorKind> {
    open_tcp(address, false)
        .map(drop)
        .map_err(|error| error.kind())
}

/// A socket that does not share its port cannot be had where anybody listens already.
fn probe(address: SocketAddr) -> io::Result<()> {
    open_tcp(address, false)?.listen(1)
}

/// A socket file that nobody answers on is left over from a process that was killed.
fn bind_unix(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let address = SockAddr::unix(path)?;
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket()
            || Socket::new(Domain::UNIX, Type::STREAM, None)?
                .connect(&address)
                .is_ok()
        {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        std::fs::remove_file(path)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address)?;
    // Otherwise it would look left over to others.
    socket.listen(BACKLOG)?;
    Ok(socket)
}

const BACKLOG: i32 = 4096;

/// A bound socket on a worker's runtime.
#[derive(Debug)]
pub struct Listener(Inner);

#[derive(Debug)]
enum Inner {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Hands `bound` to the runtime that calls this, and lets connections in. A TCP connection whose other
    /// side gives no sign of life for `silence` fails.
    ///
    /// # Errors
    /// When somebody else was faster, or the runtime cannot watch the socket.
    pub fn new(bound: Bound, silence: Duration) -> io::Result<Self> {
        if let Address::Tcp(address) = bound.1 {
            let claim = bound.2.get_or_init(|| claim(address));
            claim.map_err(io::Error::from)?;
            silence::bound(&bound.0, silence)?;
            loopback::unpaced(&bound.0, address);
        }
        bound.0.listen(BACKLOG)?;
        Ok(Self(match bound.1 {
            Address::Tcp(_) => Inner::Tcp(TcpListener::from_std(bound.0.into())?),
            Address::Unix(_) => Inner::Unix(UnixListener::from_std(bound.0.into())?),
        }))
    }

    /// Accepts connections until `stop` completes, then closes. `limit` bounds how many may be open; the
    /// slot travels with the connection. When none is free, accepting pauses and the kernel's queue
    /// fills. Errors of `accept` never end the loop.
    pub async fn serve(
        self,
        limit: Arc<Semaphore>,
        tally: Tally,
        stop: impl Future<Output = ()>,
        serve: impl FnMut(Stream, Source, OwnedSemaphorePermit),
    ) {
        accept_from(&self, limit, tally, stop, serve).await;
    }
}

/// What connections are accepted from.
trait Accept: AsFd {
    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<(Stream, Source)>> + Send;
}

/// The accept loop, as [`Listener::serve`] tells.
async fn accept_from(
    listener: &impl Accept,
    limit: Arc<Semaphore>,
    tally: Tally,
    stop: impl Future<Output = ()>,
    mut serve: impl FnMut(Stream, Source, OwnedSemaphorePermit),
) {
    let pace = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(5))
        .with_max_delay(Duration::from_secs(1))
        .without_max_times();
    let mut delays = pace.build();
    let mut stop = std::pin::pin!(stop);
    let mut scarce = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => return,
            accepted = async {
                let slot = slot(&limit, &tally).await?;
                if scarce {
                    // Whoever waits in the kernel's queue is not lost.
                    Use::Accepted.is_left(listener)?;
                }
                let (stream, source) = listener.accept().await?;
                io::Result::Ok((stream, source, slot))
            } => accepted,
        };
        match accepted {
            Ok((stream, source, slot)) => {
                delays = pace.build();
                scarce = Use::Accepted.may_have(&stream).is_err();
                serve(stream, source, slot);
            }
            // The peer went away before we took it: nothing is wrong with us.
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                if descriptors::ran_out(&error) {
                    tally.hit(Limit::Descriptors);
                }
                let delay = delays.next().unwrap_or(Duration::from_secs(1));
                tracing::warn!(%error, ?delay, "cannot accept connections, trying again");
                tokio::select! {
                    () = &mut stop => return,
                    () = tokio::time::sleep(delay) => {}
                }
            }
        }
    }
}

impl Accept for Listener {
    async fn accept(&self) -> io::Result<(Stream, Source)> {
        match &self.0 {
            Inner::Tcp(listener) => {
                let (stream, source) = listener.accept().await?;
                // Requests and handshakes are small writes that must not wait for each other.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Source::Tcp(canonical(source))))
            }
            Inner::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), Source::Unix))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Inner::Tcp(listener) => listener.as_fd(),
            Inner::Unix(listener) => listener.as_fd(),
        }
    }
}

/// An IPv4 address that came by a socket for both families is an IPv4 address.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, address.port()),
        IpAddr::V6(_) => address,
    }
}

/// Waits for one of the connections that may be open.
async fn slot(limit: &Arc<Semaphore>, tally: &Tally) -> io::Result<OwnedSemaphorePermit> {
    if let Ok(slot) = limit.clone().try_acquire_owned() {
        return Ok(slot);
    }
    tally.hit(Limit::Connections);
    // The semaphore is never closed.
    limit
        .clone()
        .acquire_owned()
        .await
        .map_err(io::Error::other)
}

fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotConnected
            | io::ErrorKind::InvalidInput
    )
}

/// Where a connection came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Over TCP, from this address.
    Tcp(SocketAddr),
    /// Over a Unix socket of this machine.
    Unix,
}

impl Source {
    /// The address, where there is one.
    #[must_use]
    pub fn address(self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(address),
            Self::Unix => None,
        }
    }

    /// The address that context rules see. A Unix socket counts as this machine itself.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Tcp(address) => address.ip(),
            Self::Unix => IpAddr::V4(Ipv4Addr::LOCALHOST),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Connects to `address`, with `TCP_NODELAY` set before the first byte: without it full handshakes stall. A TCP
/// connection whose other side gives no sign of life for `silence` fails.
///
/// # Errors
/// What the operating system says, or that only those descriptors are left that connections do not get.
pub async fn connect(address: &Address, silence: Duration) -> io::Result<Stream> {
    let stream = match address {
        Address::Tcp(address) => {
            Stream::Tcp(dial(tcp_socket(address.ip())?, *address, silence).await?)
        }
        Address::Unix(path) => Stream::Unix(UnixStream::connect(path).await?),
    };
    Use::Onwards.may_have(&stream)?;
    Ok(stream)
}

/// Connects to `address`, which is on this host, from the address `client`, which is not: as [`connect`] does, and
/// whoever accepts sees who that is. The port is the kernel's choice.
///
/// # Errors
/// As [`connect`]; without `CAP_NET_RAW` the operating system refuses.
pub async fn connect_as(
    client: IpAddr,
    address: SocketAddr,
    silence: Duration,
) -> io::Result<Stream> {
    let socket = tcp_socket(client)?;
    match client {
        IpAddr::V4(_) => SockRef::from(&socket).set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => SockRef::from(&socket).set_ip_transparent_v6(true)?,
    }
    // The port is chosen when it is known where to, so that one serves for many places.
    setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(SocketAddr::new(client, 0))?;
    let stream = dial(socket, address, silence).await?;
    Use::Onwards.may_have(&stream)?;
    Ok(Stream::Tcp(stream))
}

/// A socket of the family of `ip`.
fn tcp_socket(ip: IpAddr) -> io::Result<TcpSocket> {
    match ip {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// Connects `socket` to `address`, with all that is set for a connection of ours.
async fn dial(socket: TcpSocket, address: SocketAddr, silence: Duration) -> io::Result<TcpStream> {
    loopback::unpaced(&socket, address);
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    silence::bound(&stream, silence)?;
    Ok(stream)
}

/// Makes closing `socket` a reset where it is a TCP connection: whoever is at its other end must not take what
/// was broken off for what is complete.
pub fn break_off(socket: &impl AsFd) {
    // If it has been reset by the other end already, nobody is left to be told.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// A TCP or Unix stream.
#[derive(Debug)]
pub enum Stream {
    /// Over TCP.
    Tcp(TcpStream),
    /// Over a Unix socket.
    Unix(UnixStream),
}

impl Stream {
    /// The address of our end, where it is an IP address.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(stream) => stream.local_addr().ok().map(canonical),
            Self::Unix(_) => None,
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

macro_rules! forward {
    ($self:ident, $method:ident($($argument:expr),*)) => {
        match $self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).$method($($argument),*),
            Stream::Unix(stream) => Pin::new(stream).$method($($argument),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        forward!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        forward!(self, poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [buf] = bufs {
            return self.poll_write(cx, buf);
        }
        let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        if bytes > FEW {
            return forward!(self, poll_write_vectored(cx, bufs));
        }
        let mut space = [MaybeUninit::uninit(); FEW];
        let mut all = ReadBuf::uninit(&mut space);
        for buf in bufs {
            all.put_slice(buf);
        }
        self.poll_write(cx, all.filled())
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self, poll_shutdown(cx))
    }
}

/// So many bytes are copied faster than the kernel reads a list of where they are.
const FEW: usize = 2048;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn addresses_are_ip_with_port_or_an_absolute_socket_path() {
        for (text, expected) in [
            ("127.0.0.1:80", Some("127.0.0.1:80")),
            ("[::1]:80", Some("[::1]:80")),
            ("unix:/run/a.sock", Some("unix:/run/a.sock")),
            ("unix:///run/a.sock", Some("unix:/run/a.sock")),
            ("unix:a.sock", None),
            ("localhost:80", None),
            ("127.0.0.1", None),
            ("", None),
        ] {
            let read = text
                .parse::<Address>()
                .ok()
                .map(|address| address.to_string());
            assert_eq!(read.as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_port_that_is_taken_stops_the_start_for_any_number_of_workers() {
        for workers in [1, 2] {
            let any = "127.0.0.1:0".parse().unwrap();
            let first = bind(&any, workers).unwrap();
            assert_eq!(first.len(), workers);
            assert!(
                first
                    .iter()
                    .all(|bound| bound.address() == first[0].address())
            );
            first[0].0.listen(1).unwrap();
            let taken = bind(first[0].address(), workers).unwrap_err();
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[tokio::test]
    async fn two_that_bound_the_same_port_before_either_listened_do_not_share_it() {
        for workers in [1, 2] {
            let any = "127.0.0.1:0".parse().unwrap();
            let mut first = bind(&any, workers).unwrap();
            let mut second = bind(first[0].address(), workers).unwrap();
            let listening = first
                .drain(..)
                .map(|bound| Listener::new(bound, MINUTE).unwrap());
            let _listening: Vec<_> = listening.collect();
            for bound in second.drain(..) {
                let refused = Listener::new(bound, MINUTE).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
            }
        }
    }

    /// Fails in these ways, one after the other; then somebody connects, and then nobody.
    struct Failing {
        errors: Mutex<Vec<Errno>>,
        connects: Mutex<Option<UnixStream>>,
        open: std::fs::File,
    }

    impl AsFd for Failing {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.open.as_fd()
        }
    }

    impl Accept for Failing {
        async fn accept(&self) -> io::Result<(Stream, Source)> {
            if let Some(error) = self.errors.lock().unwrap().pop() {
                return Err(error.into());
            }
            let connects = self.connects.lock().unwrap().take();
            match connects {
                Some(stream) => Ok((Stream::Unix(stream), Source::Unix)),
                None => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_error_of_accept_ends_the_listener() {
        let of_connections = [Errno::ECONNABORTED, Errno::ECONNRESET, Errno::ENOTCONN];
        let out = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
        let others = [Errno::EPROTO, Errno::EINTR, Errno::EPERM, Errno::EIO];
        let registry = prometheus::Registry::new();
        let tally = limits::Metrics::register(&registry)
            .unwrap()
            .of("inbound", "a");
        let (stream, _other_end) = UnixStream::pair().unwrap();
        let failing = Failing {
            errors: Mutex::new([&of_connections[..], &out, &others].concat().repeat(3)),
            connects: Mutex::new(Some(stream)),
            open: tempfile::tempfile().unwrap(),
        };
        let (served, told) = tokio::sync::oneshot::channel();
        let mut served = Some(served);
        let limit = Arc::new(Semaphore::new(1));
        let stop = async { told.await.unwrap() };
        accept_from(&failing, limit, tally, stop, |_, source, _slot| {
            assert_eq!(source, Source::Unix);
            served.take().unwrap().send(()).unwrap();
        })
        .await;
        assert!(failing.errors.lock().unwrap().is_empty());
        let families = registry.gather();
        let hits = families
            .iter()
            .find(|family| family.name() == "doorward_limits_hit_total");
        let hits = hits.unwrap().get_metric().iter();
        let hits: f64 = hits.map(|metric| metric.get_counter().get_value()).sum();
        assert_eq!(hits, 12.0, "those that ran out, and no others");
    }

    #[test]
    fn a_left_over_socket_file_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let address = Address::Unix(dir.path().join("a.sock"));
        let living = bind(&address, 2).unwrap();
        assert_eq!(
            bind(&address, 1).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(living);
        bind(&address, 1).unwrap();
        let file = Address::Unix(dir.path().join("precious"));
        std::fs::write(dir.path().join("precious"), "data").unwrap();
        assert_eq!(bind(&file, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[tokio::test]
    async fn what_is_written_in_pieces_arrives_in_their_order() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let mut stream = connect(&address, Duration::from_secs(1)).await.unwrap();
        let (mut other, _) = listener.accept().await.unwrap();
        for lengths in [
            [0, 0, 1],
            [1, 700, 0],
            [1, FEW - 1, 0],
            [1, FEW, 0],
            [FEW, 1, FEW],
        ] {
            let sent: Vec<u8> = (0..=u8::MAX).cycle().take(lengths.iter().sum()).collect();
            let (first, rest) = sent.split_at(lengths[0]);
            let (second, third) = rest.split_at(lengths[1]);
            let pieces = [first, second, third].map(io::IoSlice::new);
            let written = stream.write_vectored(&pieces).await.unwrap();
            assert_eq!(written, sent.len(), "{lengths:?}");
            let mut come = vec![0; sent.len()];
            other.read_exact(&mut come).await.unwrap();
            assert_eq!(come, sent, "{lengths:?}");
        }
    }
}
