//! Which entry takes an intercepted connection? The first that matches, in the order of the file.
//!
//! An entry names destinations by address or by name. An address and a port are known of a connection before
//! its first byte; which name it was meant for only the application can say, in what it sends. So choosing
//! goes in two steps: [`Table::candidates`] are what the destination alone leaves open, and where that is more
//! than one, [`Candidates::named`] or [`Candidates::located`] takes one of them.
//!
//! Nothing here waits, and nothing asks for a name.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use crate::intercept::Ports;

/// One destination of an entry: `ledger.bank.svc:8443`, `*.bank.svc:80`, `10.0.0.0/8:5432`,
/// `[2001:db8::/32]:443`, `*:9000-9010`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    host: Host,
    ports: Ports,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    /// Whatever was asked for.
    Any,
    /// An address of this network.
    Network(IpNet),
    /// This name, in lower case; with the root's dot behind it if that was written.
    Name(Box<str>),
    /// Any name below this one, in lower case, without that dot.
    Below(Box<str>),
}

impl Pattern {
    /// Its ports.
    #[must_use]
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// The name whose addresses it stands for too, as it is to be asked for.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Any | Host::Network(_) | Host::Below(_) => None,
        }
    }

    /// Whether it matches only what says a name.
    #[must_use]
    pub fn needs_name(&self) -> bool {
        matches!(self.host, Host::Below(_))
    }

    /// Whether it takes what goes to `ip`, at one of its ports, without asking for a name.
    fn is_at(&self, ip: IpAddr) -> bool {
        match &self.host {
            Host::Any => true,
            Host::Network(network) => network.contains(&ip),
            Host::Name(_) | Host::Below(_) => false,
        }
    }

    /// Whether an application that says `name` means it.
    fn is_called(&self, name: &str) -> bool {
        match &self.host {
            Host::Name(own) => without_root(own).eq_ignore_ascii_case(name),
            Host::Below(top) => is_below(name, top),
            Host::Any | Host::Network(_) => false,
        }
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (host, ports) = text.rsplit_once(':').ok_or(PatternError::Shape)?;
        Ok(Self {
            host: host.parse()?,
            ports: ports.parse().map_err(|_| PatternError::Ports)?,
        })
    }
}

impl FromStr for Host {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let bracketed = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'));
        if let Some(text) = bracketed.or_else(|| could_be_ipv4(text).then_some(text)) {
            let network: Option<IpNet> = text
                .parse()
                .ok()
                .or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
            return match network {
                // Brackets say that there are colons in it.
                Some(network) if network.addr().is_ipv6() != bracketed.is_some() => {
                    Err(PatternError::Shape)
                }
                Some(network) if network != network.trunc() => {
                    Err(PatternError::Bits(network.trunc()))
                }
                Some(network) => Ok(Self::Network(network)),
                None => Err(PatternError::Shape),
            };
        }
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let sound = |label: &str| {
            let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
            !label.is_empty() && label.bytes().all(sound)
        };
        if !without_root(name).split('.').all(sound) {
            return Err(PatternError::Shape);
        }
        let name = name.to_ascii_lowercase();
        Ok(if below {
            Self::Below(without_root(&name).into())
        } else {
            Self::Name(name.into())
        })
    }
}

/// Whether it has digits where a name ends in letters: what is no address then is a mistake.
fn could_be_ipv4(text: &str) -> bool {
    let (address, _) = text.split_once('/').unwrap_or((text, ""));
    let last = address.rsplit('.').next().unwrap_or_default();
    text.contains('/') || (!last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A name is the same with the root's dot behind it.
fn without_root(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

fn is_below(name: &str, top: &str) -> bool {
    let Some(at) = name.len().checked_sub(top.len() + 1) else {
        return false;
    };
    // It may be anything that an application sends.
    at > 0
        && name.as_bytes()[at] == b'.'
        && name.as_bytes()[at + 1..].eq_ignore_ascii_case(top.as_bytes())
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = self.ports;
        match &self.host {
            Host::Any => write!(f, "*:{ports}"),
            Host::Name(name) => write!(f, "{name}:{ports}"),
            Host::Below(name) => write!(f, "*.{name}:{ports}"),
            Host::Network(network) => {
                let alone = network.prefix_len() == network.max_prefix_len();
                match (network, alone) {
                    (IpNet::V4(network), true) => write!(f, "{}:{ports}", network.addr()),
                    (IpNet::V4(network), false) => write!(f, "{network}:{ports}"),
                    (IpNet::V6(network), true) => write!(f, "[{}]:{ports}", network.addr()),
                    (IpNet::V6(network), false) => write!(f, "[{network}]:{ports}"),
                }
            }
        }
    }
}

/// The text is no [`Pattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It has no host and port that we could tell apart.
    #[error(
        "write what connections ask for, as in `ledger.bank.svc:8443`, `*.bank.svc:80`, `10.0.0.0/8:5432`, \
         `[2001:db8::1]:443` or `*:9000`"
    )]
    Shape,
    /// The ports are none.
    #[error("write a port from 1 to 65535 behind the last colon, or a range, as in `*:8000-8099`")]
    Ports,
    /// The network is not written by its first address.
    #[error("has bits set behind its prefix: write `{0}`")]
    Bits(IpNet),
}

/// What one entry of the file takes.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Any of these.
    pub patterns: Vec<Pattern>,
    /// How a name of theirs is found out.
    pub names: Names,
}

/// How it is found out which name a connection was meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// By what it begins with, and if that says no name, by where it was going.
    Said,
    /// By where it was going alone: its protocol says no name.
    Located,
}

impl Entry {
    fn at(&self, port: u16) -> impl Iterator<Item = &Pattern> {
        let patterns = self.patterns.iter();
        patterns.filter(move |pattern| pattern.ports.contains(port))
    }

    /// Whether a name of it at `to` is located there.
    fn is_located(
        &self,
        to: SocketAddr,
        at: &impl Fn(&str, IpAddr) -> Located,
    ) -> Result<bool, Unlocated> {
        for name in self.at(to.port()).filter_map(Pattern::name) {
            match at(name, to.ip()) {
                Located::Here => return Ok(true),
                Located::Elsewhere => {}
                Located::Unknown => return Err(Unlocated(name.into())),
            }
        }
        Ok(false)
    }
}

/// Whether an address is one of a name's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// It is.
    Here,
    /// It is not.
    Elsewhere,
    /// Nobody has said yet where the name is.
    Unknown,
}

/// Nobody has said where a name is, so that it is open which entry comes first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the addresses of `{0}` are not known, and an entry that names it may come first")]
pub struct Unlocated(pub Box<str>);

/// All entries, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Table(Vec<Entry>);

impl Table {
    /// A table of `entries`.
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Self {
        Self(entries)
    }

    /// The names whose addresses may have a say in where a connection to `port` goes.
    pub fn names(&self, port: u16) -> impl Iterator<Item = &str> {
        let patterns = self.0.iter().flat_map(move |entry| entry.at(port));
        patterns.filter_map(Pattern::name)
    }

    /// The entries that may take a connection that was going to `to`, by that alone. `at` tells whether a
    /// name is at an address.
    ///
    /// # Errors
    /// [`Unlocated`] where that decides and is not known.
    pub fn candidates(
        &self,
        to: SocketAddr,
        at: &impl Fn(&str, IpAddr) -> Located,
    ) -> Result<Candidates, Unlocated> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let mut open = Vec::new();
        for (index, entry) in self.0.iter().enumerate() {
            let certain = entry.at(to.port()).any(|pattern| pattern.is_at(to.ip()))
                || entry.names == Names::Located && entry.is_located(to, at)?;
            if certain {
                let last = Some(index);
                return Ok(Candidates { to, open, last });
            }
            let named = |pattern: &Pattern| !matches!(pattern.host, Host::Network(_));
            if entry.names == Names::Said && entry.at(to.port()).any(named) {
                open.push(index);
            }
        }
        let last = None;
        Ok(Candidates { to, open, last })
    }
}

/// Which entries a connection may be for, by number, before it has said anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidates {
    to: SocketAddr,
    /// Those that depend on a name.
    open: Vec<usize>,
    /// The one that takes it if none of them does.
    last: Option<usize>,
}

impl Candidates {
    /// Whether no name makes a difference.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// All of them, in the order of the file.
    pub fn all(&self) -> impl Iterator<Item = usize> + Clone {
        self.open.iter().copied().chain(self.last)
    }

    /// The entry for what says that it is meant for `name`: a host without port, in any case.
    #[must_use]
    pub fn named(&self, table: &Table, name: &str) -> Option<usize> {
        let name = without_root(name);
        let called = |index: &&usize| {
            let mut patterns = table.0[**index].at(self.to.port());
            patterns.any(|pattern| pattern.is_called(name))
        };
        self.open.iter().find(called).copied().or(self.last)
    }

    /// The entry for what says no name. `at` tells whether a name is at an address.
    ///
    /// # Errors
    /// [`Unlocated`] where that decides and is not known.
    pub fn located(
        &self,
        table: &Table,
        at: &impl Fn(&str, IpAddr) -> Located,
    ) -> Result<Option<usize>, Unlocated> {
        for index in &self.open {
            if table.0[*index].is_located(self.to, at)? {
                return Ok(Some(*index));
            }
        }
        Ok(self.last)
    }
}

/// Finds destinations that nothing can reach, because what stands before them takes all that they match.
#[derive(Debug, Default)]
pub struct Order(Vec<Placed>);

#[derive(Clone, Debug)]
struct Placed {
    pattern: Pattern,
    names: Names,
    /// Its key in the file.
    key: String,
}

impl Placed {
    /// Whether nothing that `later` matches at a port of both escapes it.
    fn covers(&self, later: &Self) -> bool {
        match (&self.pattern.host, &later.pattern.host) {
            (Host::Any, _) => true,
            (Host::Network(wide), Host::Network(narrow)) => wide.contains(narrow),
            (Host::Name(one), Host::Name(other)) => {
                without_root(one) == without_root(other)
                    && (self.names == Names::Said || later.names == Names::Located)
            }
            // Where a name is not said, those below it are not found.
            (Host::Below(top), Host::Name(name)) => {
                later.names == Names::Said && is_below(without_root(name), top)
            }
            (Host::Below(top), Host::Below(name)) => top == name || is_below(name, top),
            (Host::Network(_) | Host::Name(_) | Host::Below(_), _) => false,
        }
    }
}

impl Order {
    /// Takes the next pattern of the file, which stands at `key`.
    ///
    /// # Errors
    /// [`Unreached`] tells what comes before it.
    pub fn take(&mut self, pattern: &Pattern, names: Names, key: &str) -> Result<(), Unreached> {
        let next = Placed {
            pattern: pattern.clone(),
            names,
            key: key.to_owned(),
        };
        let before = || self.0.iter().filter(|earlier| earlier.covers(&next));
        let taken: Vec<_> = before().map(|earlier| earlier.pattern.ports).collect();
        let whole = |taken: Ports| taken.covers(pattern.ports);
        if Ports::merged(&taken).into_iter().any(whole)
            && let Some(by) = before()
                .find(|by| whole(by.pattern.ports))
                .or(before().next())
        {
            return Err(Unreached {
                by: by.pattern.clone(),
                key: by.key.clone(),
            });
        }
        self.0.push(next);
        Ok(())
    }
}

/// A destination that never is the first to match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing reaches it: `{by}` at `{key}` comes before it")]
pub struct Unreached {
    by: Pattern,
    key: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    fn entry(patterns: &[&str], names: Names) -> Entry {
        Entry {
            patterns: patterns.iter().map(|text| pattern(text)).collect(),
            names,
        }
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn destinations_are_read_and_shown_alike() {
        for text in [
            "ledger.bank.svc:8443",
            "*.bank.svc:80",
            "10.0.0.0/8:5432",
            "10.0.0.1:5432",
            "[2001:db8::1]:443",
            "[2001:db8::/32]:443",
            "0.0.0.0/0:1-65535",
            "*:9000-9010",
            "ledger:80",
            "_sip.bank.svc:80",
        ] {
            assert_eq!(pattern(text).to_string(), text);
        }
        assert_eq!(
            pattern("Ledger.Bank.svc.:80").to_string(),
            "ledger.bank.svc.:80"
        );
    }

    #[test]
    fn what_is_no_destination_is_told_apart() {
        for (text, error) in [
            ("ledger", PatternError::Shape),
            (":80", PatternError::Shape),
            ("a b:80", PatternError::Shape),
            ("a..b:80", PatternError::Shape),
            ("*ledger:80", PatternError::Shape),
            ("a.*.b:80", PatternError::Shape),
            ("*.:80", PatternError::Shape),
            ("https://ledger:80", PatternError::Shape),
            ("10.0.0:80", PatternError::Shape),
            ("10.0.0.256:80", PatternError::Shape),
            ("10.0.0.0/33:80", PatternError::Shape),
            ("a/8:80", PatternError::Shape),
            ("2001:db8::1:80", PatternError::Shape),
            ("[10.0.0.1]:80", PatternError::Shape),
            ("[2001:db8::1:80", PatternError::Shape),
            ("ledger:http", PatternError::Ports),
            ("ledger:0", PatternError::Ports),
            ("ledger:*", PatternError::Ports),
            ("ledger:9-8", PatternError::Ports),
            (
                "10.1.0.0/8:80",
                PatternError::Bits("10.0.0.0/8".parse().unwrap()),
            ),
        ] {
            assert_eq!(text.parse::<Pattern>(), Err(error), "{text}");
        }
    }

    /// `ledger` is at 10.0.0.1, and nobody knows where `lost` is.
    fn at(name: &str, ip: IpAddr) -> Located {
        match name {
            "lost" => Located::Unknown,
            "ledger" if ip == IpAddr::from([10, 0, 0, 1]) => Located::Here,
            _ => Located::Elsewhere,
        }
    }

    fn table() -> Table {
        Table::new(vec![
            entry(&["ledger:443", "*.bank.svc:443"], Names::Said),
            entry(&["10.0.0.0/8:443", "[fd00::/8]:443"], Names::Said),
            entry(&["other:443", "10.0.0.7:80", "ledger:5432"], Names::Located),
            entry(&["a.svc:80", "*:9000"], Names::Said),
            entry(&["*:443", "lost:81"], Names::Said),
            entry(&["lost:82"], Names::Located),
        ])
    }

    #[test]
    fn an_address_and_a_port_leave_open_what_depends_on_a_name() {
        for (to, open, last) in [
            ("10.0.0.1:443", &[0][..], Some(1)),
            ("[::ffff:10.0.0.1]:443", &[0], Some(1)),
            ("[fd00::1]:443", &[0], Some(1)),
            ("192.0.2.1:443", &[0], Some(4)),
            ("10.0.0.7:80", &[], Some(2)),
            ("10.0.0.8:80", &[3], None),
            ("10.0.0.8:9000", &[], Some(3)),
            ("10.0.0.1:5432", &[], Some(2)),
            ("10.0.0.2:5432", &[], None),
            ("10.0.0.2:81", &[4], None),
            ("10.0.0.2:22", &[], None),
        ] {
            let found = table().candidates(address(to), &at).unwrap();
            assert_eq!((&found.open[..], found.last), (open, last), "{to}");
            assert_eq!(found.is_settled(), open.is_empty());
        }
        let unknown = table().candidates(address("10.0.0.2:82"), &at);
        assert_eq!(unknown, Err(Unlocated("lost".into())));
    }

    #[test]
    fn the_first_entry_of_that_name_takes_it_and_else_the_one_that_asks_for_none() {
        for (to, name, taken) in [
            ("10.9.9.9:443", "ledger", Some(0)),
            ("10.9.9.9:443", "LEDGER.", Some(0)),
            ("10.9.9.9:443", "a.Bank.svc", Some(0)),
            ("10.9.9.9:443", "a.b.bank.svc", Some(0)),
            ("10.9.9.9:443", "bank.svc", Some(1)),
            ("10.9.9.9:443", ".bank.svc", Some(1)),
            ("10.9.9.9:443", "xbank.svc", Some(1)),
            ("10.9.9.9:443", "\u{e9}.bank.svc", Some(0)),
            ("10.9.9.9:443", "", Some(1)),
            ("192.0.2.1:443", "other", Some(4)),
            ("192.0.2.1:80", "a.svc", Some(3)),
            ("192.0.2.1:80", "ledger", None),
        ] {
            let table = table();
            let candidates = table.candidates(address(to), &at).unwrap();
            assert_eq!(candidates.named(&table, name), taken, "{to} {name}");
        }
    }

    #[test]
    fn without_a_name_the_addresses_of_names_decide() {
        for (to, taken) in [
            ("10.0.0.1:443", Ok(Some(0))),
            ("10.0.0.2:443", Ok(Some(1))),
            ("192.0.2.1:443", Ok(Some(4))),
            ("192.0.2.1:80", Ok(None)),
            ("192.0.2.1:81", Err(Unlocated("lost".into()))),
        ] {
            let table = table();
            let candidates = table.candidates(address(to), &at).unwrap();
            assert_eq!(candidates.located(&table, &at), taken, "{to}");
        }
    }

    #[test]
    fn a_destination_that_an_earlier_one_takes_whole_is_found() {
        use Names::{Located as L, Said as S};
        for (earlier, later, reached) in [
            (&[("*:80", S)][..], ("ledger:80", S), false),
            (&[("*:80", S)], ("10.0.0.1:80", S), false),
            (&[("*:80", S)], ("ledger:80-81", S), true),
            (&[("*:1-80", S), ("*:81-99", S)], ("ledger:80-81", S), false),
            (&[("10.0.0.0/8:80", S)], ("10.1.0.0/16:80", L), false),
            (&[("10.1.0.0/16:80", S)], ("10.0.0.0/8:80", S), true),
            (&[("0.0.0.0/0:80", S)], ("ledger:80", S), true),
            (&[("ledger:80", S)], ("Ledger.:80", S), false),
            (&[("ledger:80", S)], ("ledger:80", L), false),
            (&[("ledger:80", L)], ("ledger:80", S), true),
            (&[("ledger:80", S)], ("ledger:81", S), true),
            (&[("*.svc:80", S)], ("a.svc:80", S), false),
            (&[("*.svc:80", S)], ("*.a.svc:80", S), false),
            (&[("*.svc:80", S)], ("a.svc:80", L), true),
            (&[("*.svc:80", S)], ("svc:80", S), true),
            (&[("a.svc:80", S)], ("*.svc:80", S), true),
        ] {
            let mut order = Order::default();
            for (text, names) in earlier {
                order
                    .take(&pattern(text), *names, "outbound[0].intercept")
                    .unwrap();
            }
            let told = order.take(&pattern(later.0), later.1, "outbound[1].intercept");
            assert_eq!(told.is_ok(), reached, "{earlier:?} {later:?}");
        }
    }
}
