//! Where was a redirected connection really going? And what redirects it: [`rules`].
//!
//! The kernel's packet filter leads connections of the application, and those to it, to two ports of ours
//! (`intercept.outbound.port` and `intercept.inbound.port`). It remembers where each was going, and tells
//! whoever accepts it. So neither the application nor its callers are told a new address.

pub mod rules;
mod tool;
pub mod way_back;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::os::fd::AsFd;
use std::str::FromStr;

use ipnet::IpNet;
use socket2::SockRef;

pub use self::tool::ToolError;
use crate::document::Node;

/// Which connections are led to us, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The user that the sidecar runs as, by number. What this user connects to is left alone: without
    /// that, a sidecar would be led to itself.
    pub user: u32,
    /// Connections from elsewhere to this host.
    pub inbound: Option<Inbound>,
    /// Connections that begin on this host.
    pub outbound: Option<Outbound>,
}

/// Connections from elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Where the sidecar takes them.
    pub port: NonZeroU16,
    /// Only those to these ports; without any, all.
    pub ports: Vec<Ports>,
    /// Not those to these ports.
    pub exclude_ports: Vec<Ports>,
}

/// Connections that begin on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Where the sidecar takes them.
    pub port: NonZeroU16,
    /// Not those to these ports.
    pub exclude_ports: Vec<Ports>,
    /// Not those to these networks.
    pub exclude_addresses: Vec<IpNet>,
    /// Not those of these users, by number.
    pub exclude_users: Vec<u32>,
    /// What becomes of those that no entry of `outbound` leads on.
    pub otherwise: Otherwise,
}

/// What becomes of an intercepted connection that no entry leads on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// It is refused.
    Deny,
    /// It goes on to where it was going, in plain, whoever is there.
    Passthrough,
}

impl Settings {
    /// Reads the section `intercept`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let user = section.required("user", |node| number(&node));
        let inbound = section.optional("inbound", |node| Inbound::read(&node));
        let outbound = section.optional("outbound", |node| Outbound::read(&node));
        let settings = Self {
            user: user?,
            inbound: inbound?,
            outbound: outbound?,
        };
        let ports = |settings: &Self| {
            let inbound = settings.inbound.as_ref().map(|inbound| inbound.port);
            (
                inbound,
                settings.outbound.as_ref().map(|outbound| outbound.port),
            )
        };
        match ports(&settings) {
            (None, None) => node.mistake(
                "nothing is intercepted",
                Some("write `inbound:` or `outbound:` with its `port:`, or both"),
            ),
            (inbound, outbound) if inbound == outbound => node.mistake(
                "`inbound` and `outbound` want the same port",
                Some("give each a port of its own, for example 15006 and 15001"),
            ),
            _ => Some(settings),
        }
    }
}

impl Inbound {
    /// Whether connections to `port` are led to us.
    #[must_use]
    pub fn leads(&self, port: u16) -> bool {
        let among = |several: &[Ports]| several.iter().any(|ports| ports.contains(port));
        port != self.port.get()
            && (self.ports.is_empty() || among(&self.ports))
            && !among(&self.exclude_ports)
    }

    fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let port = section.required("port", |node| node.parse());
        let ports = section.or("ports", Vec::new(), |node| {
            node.one_or_more(|port| port.parse())
        });
        let exclude_ports = section.or("exclude_ports", Vec::new(), |node| {
            node.one_or_more(|port| port.parse())
        });
        Some(Self {
            port: port?,
            ports: ports?,
            exclude_ports: exclude_ports?,
        })
    }
}

impl Outbound {
    fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let port = section.required("port", |node| node.parse());
        let exclude_ports = section.or("exclude_ports", Vec::new(), |node| {
            node.one_or_more(|port| port.parse())
        });
        let exclude_addresses = section.or("exclude_addresses", Vec::new(), |node| {
            node.one_or_more(|node| network(&node))
        });
        let exclude_users = section.or("exclude_users", Vec::new(), |node| {
            node.one_or_more(|node| number(&node))
        });
        let otherwise = section.or("otherwise", Otherwise::Deny, |node| {
            node.choice(&[
                ("deny", Otherwise::Deny),
                ("passthrough", Otherwise::Passthrough),
            ])
        });
        Some(Self {
            port: port?,
            exclude_ports: exclude_ports?,
            exclude_addresses: exclude_addresses?,
            exclude_users: exclude_users?,
            otherwise: otherwise?,
        })
    }
}

/// A user by number: names are read differently in a container than outside of it.
fn number(node: &Node<'_>) -> Option<u32> {
    u32::try_from(node.count(0..=u64::from(u32::MAX - 1))?).ok()
}

/// A network as in `10.0.0.0/8`, or a single address.
fn network(node: &Node<'_>) -> Option<IpNet> {
    let text = node.text()?;
    let network: Option<IpNet> = text
        .parse()
        .ok()
        .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    match network {
        Some(network) if network == network.trunc() => Some(network),
        Some(network) => node.mistake(
            format_args!("`{text}` has bits set behind its prefix"),
            Some(&format!("write `{}`", network.trunc())),
        ),
        None => node.mistake(
            format_args!("`{text}` is neither an IP address nor a network"),
            Some("write for example `169.254.169.254`, `10.0.0.0/8` or `fd00::/8`"),
        ),
    }
}

/// A port, or a range of them: `8080`, `8000-8099`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    first: u16,
    last: u16,
}

impl Ports {
    /// One port alone; 0 is none.
    #[must_use]
    pub fn one(port: u16) -> Option<Self> {
        (port != 0).then_some(Self {
            first: port,
            last: port,
        })
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// Whether `port` is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Whether all of `other` are among them.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// The same ports in as few ranges as can be, in their order.
    #[must_use]
    pub fn merged(several: &[Self]) -> Vec<Self> {
        let mut sorted = several.to_vec();
        sorted.sort_unstable_by_key(|ports| ports.first);
        let mut merged: Vec<Self> = Vec::new();
        for next in sorted {
            match merged.last_mut() {
                Some(last) if next.first <= last.last.saturating_add(1) => {
                    last.last = last.last.max(next.last);
                }
                _ => merged.push(next),
            }
        }
        merged
    }
}

impl FromStr for Ports {
    type Err = PortsError;

    fn from_str(text: &str) -> Result<Self, PortsError> {
        let port = |text: &str| text.parse().map(NonZeroU16::get).map_err(|_| PortsError);
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            return Err(PortsError);
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// The text is no [`Ports`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write a port from 1 to 65535, as in `8080`, or a range, as in `8000-8099`")]
pub struct PortsError;

/// Where the connection accepted on `socket` was going before the packet filter led it here
/// (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`). `local` is where it arrived, an IPv4 address as one also where the
/// socket takes both families.
///
/// # Errors
/// [`Direct`] if nobody led it here: it was made to our port. Whoever did so may be anybody.
pub fn original_destination(socket: &impl AsFd, local: SocketAddr) -> Result<SocketAddr, Direct> {
    let socket = SockRef::from(socket);
    let told = match local {
        SocketAddr::V4(_) => socket.original_dst_v4(),
        SocketAddr::V6(_) => socket.original_dst_v6(),
    };
    let told = told.map_err(Direct::Unknown)?.as_socket();
    match told {
        Some(told) if (told.ip(), told.port()) != (local.ip(), local.port()) => Ok(told),
        _ => Err(Direct::Here),
    }
}

/// A connection that was not led to us.
#[derive(Debug, thiserror::Error)]
pub enum Direct {
    /// It was going to this very port.
    #[error("the connection was made to the port that intercepted connections are led to")]
    Here,
    /// The packet filter does not know it.
    #[error("the packet filter knows of no redirection of the connection")]
    Unknown(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::document::Document;

    fn told(text: &str) -> String {
        let read = Document::new("x.yaml", text).read(|node| Settings::read(&node));
        read.map(|_| String::new())
            .unwrap_or_else(|mistakes| mistakes.to_string())
    }

    #[test]
    fn every_mistake_has_its_message() {
        for (text, message) in [
            ("user: 1", "1: nothing is intercepted"),
            ("inbound: { port: 15006 }", "1: the key `user` is missing"),
            (
                "user: me\ninbound: { port: 1 }",
                "1: user: `me` is not a whole number",
            ),
            (
                "user: 1\ninbound: { port: 7 }\noutbound: { port: 7 }",
                "1: `inbound` and `outbound` want the same port",
            ),
            (
                "user: 1\ninbound: { port: 7, ports: [9-8] }",
                "2: inbound.ports[0]: `9-8`: write a port from 1 to 65535",
            ),
            (
                "user: 1\noutbound: { port: 7, exclude_addresses: 10.1.0.0/8 }",
                "2: outbound.exclude_addresses: `10.1.0.0/8` has bits set behind its prefix",
            ),
            (
                "user: 1\noutbound: { port: 7, exclude_addresses: [a.b] }",
                "2: outbound.exclude_addresses[0]: `a.b` is neither an IP address nor a network",
            ),
            ("user: 1\noutbound: { port: 0 }", "2: outbound.port: `0`"),
        ] {
            let told = told(text);
            assert!(told.contains(message), "{text}\n{told}");
        }
        assert_eq!(
            told("user: 1\noutbound: { port: 7, exclude_ports: [22, 8000-8099] }"),
            ""
        );
    }

    #[test]
    fn a_connection_that_nobody_led_here_has_no_destination() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else {
                continue;
            };
            let local = listener.local_addr().unwrap();
            let _client = TcpStream::connect(local).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            assert!(original_destination(&accepted, local).is_err());
        }
    }
}
