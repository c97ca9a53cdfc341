//! Where is our application, and which kept connections lead there?

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ::http::uri::Scheme;

use crate::document::Node;
use crate::lifecycle::Tasks;
use crate::listen::{self, Address, Source, Stream};
use crate::upstream::{self, Dial, DialError, Dialed, Pool, Wanted};

/// Where our application listens, in plain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Application {
    /// Here, wherever a connection was going.
    At(Address),
    /// On the loopback, at the port that an intercepted connection was going to.
    Loopback,
    /// Where an intercepted connection was going.
    Original,
}

impl Application {
    /// Reads the key `app`; only what is intercepted has been going somewhere.
    #[must_use]
    pub fn read(node: &Node<'_>, is_intercepted: bool) -> Option<Self> {
        match (node.text()?, is_intercepted) {
            ("original", true) => Some(Self::Original),
            ("original", false) => node.mistake(
                "`original` is where an intercepted connection was going, and this entry has `listen`",
                Some("write the address of the application, for example `127.0.0.1:8080`"),
            ),
            _ => node.parse().map(Self::At),
        }
    }

    /// Where it is for a connection that was going to `destination`.
    fn of(&self, destination: Option<SocketAddr>) -> Address {
        match (self, destination) {
            (Self::At(address), _) => address.clone(),
            (Self::Original, Some(destination)) => Address::Tcp(destination),
            (_, destination) => {
                let port = destination.map_or(0, |destination| destination.port());
                Address::Tcp((Ipv4Addr::LOCALHOST, port).into())
            }
        }
    }

    /// Whether it is on the loopback, at any port.
    fn is_on_loopback(&self) -> bool {
        match self {
            Self::At(Address::Tcp(address)) => address.ip().is_loopback(),
            Self::At(Address::Unix(_)) | Self::Original => false,
            Self::Loopback => true,
        }
    }
}

/// Whose address the application sees at the other end of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAddress {
    /// The sidecar's.
    Sidecar,
    /// The client's own, as the peer's sidecar has it; the port is another.
    Kept,
}

impl ClientAddress {
    /// Reads the key `client_address`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        node.choice(&[("sidecar", Self::Sidecar), ("kept", Self::Kept)])
    }

    /// Whether it can be so where connections come to `app`, if that is known.
    pub(super) fn check(
        self,
        node: &Node<'_>,
        app: Option<&Application>,
        is_intercepted: bool,
    ) -> Option<Self> {
        if self == Self::Sidecar {
            return Some(self);
        }
        if !is_intercepted {
            return node.mistake(
                "only an entry with `intercept` keeps its clients' addresses",
                Some("`doorward intercept apply` sets the routes that it takes"),
            );
        }
        if app.is_some_and(|app| !app.is_on_loopback()) {
            return node.mistake(
                "an application that sees its clients' own addresses must be on the loopback",
                Some("leave `app` out, or write `app: 127.0.0.1:PORT`: answers from there find their way back to us"),
            );
        }
        Some(self)
    }

    /// What the application at `address` sees of `source`, and where it is then: an address is kept within its
    /// family only.
    fn of(self, address: Address, source: Source) -> Place {
        match (self, source, &address) {
            (Self::Kept, Source::Tcp(client), Address::Tcp(app)) => {
                let loopback: IpAddr = match client {
                    SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                    SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                };
                let ip = match app.is_ipv4() == client.is_ipv4() {
                    true => app.ip(),
                    false => loopback,
                };
                Place {
                    address: Address::Tcp(SocketAddr::new(ip, app.port())),
                    client: Some(client.ip()),
                }
            }
            _ => Place {
                address,
                client: None,
            },
        }
    }
}

/// Where the application is for some connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    address: Address,
    /// The address to connect from, if not one of ours.
    client: Option<IpAddr>,
}

/// As in the configuration.
impl fmt::Display for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Loopback => f.write_str("127.0.0.1"),
            Self::Original => f.write_str("original"),
        }
    }
}

/// The application of one entry, wherever it is, and the kept connections of one worker to it.
pub(super) struct Apps {
    application: Application,
    client_address: ClientAddress,
    timeout: Duration,
    silence: Duration,
    kept: upstream::Settings,
    tasks: Tasks,
    pools: Mutex<Pools>,
}

#[derive(Default)]
struct Pools {
    /// As long as a connection needs them, or for ever where there is but one place.
    by_place: HashMap<Place, Weak<Pool<App>>>,
    only: Option<Arc<Pool<App>>>,
    /// With so many, those that nobody needs any more are looked for.
    sweep_at: usize,
}

impl Apps {
    pub(super) fn new(settings: &super::Settings, kept: upstream::Settings, tasks: Tasks) -> Self {
        Self {
            application: settings.app.clone(),
            client_address: settings.client_address,
            timeout: settings.listener.connect_timeout,
            silence: settings.listener.tcp_user_timeout,
            kept,
            tasks,
            pools: Mutex::default(),
        }
    }

    /// Where a connection from `source` goes on that was going to `destination`.
    pub(super) fn of(&self, destination: Option<SocketAddr>, source: Source) -> Arc<Pool<App>> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(only) = &pools.only {
            return only.clone();
        }
        let address = self.application.of(destination);
        let place = self.client_address.of(address, source);
        if let Some(pool) = pools.by_place.get(&place).and_then(Weak::upgrade) {
            return pool;
        }
        let app = App {
            place: place.clone(),
            timeout: self.timeout,
            silence: self.silence,
        };
        let pool = Pool::new(app, self.kept.clone(), self.tasks.clone());
        if let (Application::At(_), None) = (&self.application, place.client) {
            pools.only = Some(pool.clone());
            return pool;
        }
        if pools.by_place.len() >= pools.sweep_at {
            pools.by_place.retain(|_, pool| pool.strong_count() > 0);
            pools.sweep_at = (2 * pools.by_place.len()).max(FEW);
        }
        pools.by_place.insert(place, Arc::downgrade(&pool));
        pool
    }

    /// Closes the kept connections.
    pub(super) fn close(&self) {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let several = pools.by_place.values().filter_map(Weak::upgrade);
        for pool in several.chain(pools.only.clone()) {
            pool.close();
        }
    }
}

impl fmt::Debug for Apps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Apps")
            .field("application", &self.application)
            .finish_non_exhaustive()
    }
}

/// So many places are not worth looking through.
const FEW: usize = 64;

/// Our application, as a place to connect to.
#[derive(Debug)]
pub(super) struct App {
    place: Place,
    timeout: Duration,
    silence: Duration,
}

impl App {
    pub(super) async fn connect(&self) -> Result<Stream, DialError> {
        let Place { address, client } = &self.place;
        let connecting = async {
            match (address, client) {
                (Address::Tcp(address), Some(client)) => {
                    listen::connect_as(*client, *address, self.silence).await
                }
                _ => listen::connect(address, self.silence).await,
            }
        };
        match tokio::time::timeout(self.timeout, connecting).await {
            Ok(connected) => connected.map_err(DialError::Connect),
            Err(_) => Err(DialError::Timeout(self.timeout)),
        }
    }
}

/// Where it is.
impl fmt::Display for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.address.fmt(f)
    }
}

impl Dial for App {
    type Io = Stream;

    async fn dial(&self, wanted: Wanted) -> Result<Dialed<Stream>, DialError> {
        Ok(Dialed {
            io: self.connect().await?,
            http2: wanted == Wanted::Http2,
            epoch: 0,
            not_after: None,
            standing: None,
        })
    }

    fn scheme(&self) -> Scheme {
        Scheme::HTTP
    }

    /// Nothing about the application is ever renewed.
    fn epoch(&self) -> u64 {
        0
    }
}
