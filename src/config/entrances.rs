//! Do the ways in fit each other? Two listeners may want one address; and what the section `intercept` leads
//! here and what the entries serve should be the same.

use std::collections::HashSet;
use std::net::SocketAddr;

use super::Config;
use crate::document::Node;
use crate::intercept::Ports;
use crate::listen::{Address, Entrance};
use crate::outbound::routes::Order;

/// The addresses that listeners want, to find two that want the same.
#[derive(Default)]
pub(super) struct Taken(HashSet<Address>);

impl Taken {
    pub(super) fn check<I>(&mut self, item: &Node<'_>, entrance: &Entrance<I>) -> Option<()> {
        let Entrance::Listen(address) = entrance else {
            return Some(());
        };
        // Port 0 is a different port each time.
        let any_port = matches!(address, Address::Tcp(address) if address.port() == 0);
        if any_port || self.0.insert(address.clone()) {
            return Some(());
        }
        item.mistake(
            format_args!("another listener wants {address} already"),
            Some("give each listener an address of its own"),
        )
    }
}

/// Sees to it that no connection to a listener of our own is led elsewhere, and tells what is led here and not
/// served, or served and not led here. `root` is where `config` was read.
pub(super) fn check(root: &Node<'_>, config: &mut Config) -> Option<()> {
    let own: Vec<u16> = own_ports(config).collect();
    if let Some(inbound) = config
        .intercept
        .as_mut()
        .and_then(|intercept| intercept.inbound.as_mut())
    {
        inbound
            .exclude_ports
            .extend(own.into_iter().filter_map(Ports::one));
    }
    let inbound = check_inbound(root, config);
    let outbound = check_outbound(root, config);
    inbound.and(outbound)
}

fn own_ports(config: &Config) -> impl Iterator<Item = u16> {
    let tcp = |address: &Address| match address {
        Address::Tcp(address) => Some(address.port()),
        Address::Unix(_) => None,
    };
    let inbound = config
        .inbound
        .iter()
        .filter_map(move |entry| match &entry.entrance {
            Entrance::Listen(address) => tcp(address),
            Entrance::Intercept(_) => None,
        });
    let admin = config.admin.map(|admin| admin.listen);
    let metrics = config.metrics.map(|metrics| metrics.listen);
    let probes = config.probes.as_ref().map(|probes| probes.listen);
    let others = admin.into_iter().chain(metrics).chain(probes);
    inbound.chain(others.map(|address: SocketAddr| address.port()))
}

fn check_inbound(root: &Node<'_>, config: &Config) -> Option<()> {
    let intercept = config.intercept.as_ref();
    let led = intercept.and_then(|intercept| intercept.inbound.as_ref());
    let mut sound = Some(());
    // Each port's entry.
    let mut served: Vec<Option<usize>> = vec![None; 1 << 16];
    let entries = entries(root, "inbound");
    for (index, (entry, settings)) in entries.iter().zip(&config.inbound).enumerate() {
        let Some(ports) = settings.entrance.intercepted() else {
            continue;
        };
        let Some(led) = led else {
            sound = nothing_leads(entry, "inbound", "15006");
            continue;
        };
        for port in ports.iter().flat_map(|ports| ports.iter()) {
            let place = &mut served[usize::from(port)];
            let told = match place.replace(index) {
                _ if !led.leads(port) => Some((
                    format!("`intercept.inbound` leads no connection to port {port} here"),
                    "add the port to `intercept.inbound.ports`, take it out of `exclude_ports`, or out of here; \
                     the sidecar's own listeners are never intercepted",
                )),
                Some(other) => Some((
                    format!("inbound[{other}] serves port {port} already"),
                    "give each port one entry",
                )),
                None => None,
            };
            if let Some((message, help)) = told {
                sound = entry.mistake(message, Some(help));
                break;
            }
        }
    }
    let section = root
        .under("intercept")
        .and_then(|node| node.under("inbound"));
    let (Some(led), Some(section)) = (led, section) else {
        return sound;
    };
    if served.iter().all(Option::is_none) {
        // Who wrote an entry that is wrong was told so.
        return sound.and_then(|()| {
            section.mistake(
                "no entry of `inbound` serves what is led here",
                Some("write `intercept:` with ports in the place of `listen:` in an entry of `inbound`"),
            )
        });
    }
    let mut named = led.ports.iter().flat_map(|ports| ports.iter());
    let unserved = named.find(|port| led.leads(*port) && served[usize::from(*port)].is_none());
    if let (Some(port), true) = (unserved, sound.is_some()) {
        let place = section.under("ports").unwrap_or(section);
        return place.mistake(
            format_args!("no entry of `inbound` serves port {port}: connections to it would be refused"),
            Some("write the port under `intercept:` in an entry of `inbound`, or take it out of here"),
        );
    }
    sound
}

fn check_outbound(root: &Node<'_>, config: &Config) -> Option<()> {
    let intercept = config.intercept.as_ref();
    let led = intercept.is_some_and(|intercept| intercept.outbound.is_some());
    let mut sound = Some(());
    let mut order = Order::default();
    for (entry, settings) in entries(root, "outbound").iter().zip(&config.outbound) {
        let Some(patterns) = settings.entrance.intercepted() else {
            continue;
        };
        if !led {
            sound = nothing_leads(entry, "outbound", "15001");
            continue;
        }
        let places = entry.one_or_more(Some).unwrap_or_default();
        for (place, pattern) in places.iter().zip(patterns) {
            if let Err(unreached) = order.take(pattern, settings.names(), place.key()) {
                let help = "entries are tried in the order of the file: put the narrower one first, or remove it";
                sound = place.mistake(unreached, Some(help));
            }
        }
    }
    sound
}

/// What the entries of a list say under `intercept`, or the entries where they do not.
fn entries<'a>(root: &Node<'a>, list: &str) -> Vec<Node<'a>> {
    let items = root.under(list).and_then(|list| list.list(Some));
    let items = items.unwrap_or_default().into_iter();
    items
        .map(|item| item.under("intercept").unwrap_or(item))
        .collect()
}

fn nothing_leads<T>(entry: &Node<'_>, direction: &str, port: &str) -> Option<T> {
    entry.mistake(
        format_args!("nothing leads connections here: there is no `intercept.{direction}`"),
        Some(&format!(
            "write `intercept: {{ user: UID, {direction}: {{ port: {port} }} }}` at the top of the file, or \
             `listen:` here"
        )),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn told(text: &str) -> String {
        let head = "identity: { workload_api: 'unix:///x' }\npolicy: { dir: /p }\n";
        let text = format!("{head}{text}");
        let read = Document::new("x.yaml", text).read(Config::read);
        read.map(|_| String::new())
            .unwrap_or_else(|mistakes| mistakes.to_string())
    }

    #[test]
    fn what_is_led_here_and_what_is_served_are_the_same() {
        let one = "inbound: [{ intercept: 8080, service: a }]\n";
        let both = "inbound: [{ intercept: [8080, 9000-9009], service: a }, { intercept: 5432, service: b }]\n";
        for (intercept, entries, message) in [
            ("{ port: 15006 }", one, ""),
            ("{ port: 15006, ports: 8080 }", one, ""),
            ("{ port: 15006, ports: [8080, 5432, 9000-9009] }", both, ""),
            (
                "{ port: 15006, ports: [8080, 22], exclude_ports: 22 }",
                one,
                "",
            ),
            (
                "{ port: 15006, ports: [8080, 9000-9010, 5432] }",
                both,
                "x.yaml:3: intercept.inbound.ports: no entry of `inbound` serves port 9010: ",
            ),
            (
                "{ port: 15006, exclude_ports: 8000-8099 }",
                one,
                "x.yaml:4: inbound[0].intercept: `intercept.inbound` leads no connection to port 8080 here",
            ),
            (
                "{ port: 15006, ports: 8081 }",
                one,
                "x.yaml:4: inbound[0].intercept: `intercept.inbound` leads no connection to port 8080 here",
            ),
            (
                "{ port: 15006 }",
                "inbound: [{ intercept: 15006, service: a }]\n",
                "x.yaml:4: inbound[0].intercept: `intercept.inbound` leads no connection to port 15006 here",
            ),
            (
                "{ port: 15006 }",
                "inbound: [{ listen: '0.0.0.0:8443', service: a, app: '127.0.0.1:1' }]\n",
                "x.yaml:3: intercept.inbound: no entry of `inbound` serves what is led here",
            ),
            (
                "{ port: 15006 }",
                "inbound:\n- { intercept: 7000-7999, service: a }\n- { intercept: [1, 7500], service: b }\n",
                "x.yaml:6: inbound[1].intercept: inbound[0] serves port 7500 already",
            ),
        ] {
            let text = format!("intercept: {{ user: 1, inbound: {intercept} }}\n{entries}");
            let told = told(&text);
            assert_eq!(
                told.lines().count(),
                usize::from(!message.is_empty()),
                "{text}\n{told}"
            );
            assert!(told.starts_with(message), "{text}\n{told}");
        }
    }

    #[test]
    fn an_entry_that_nothing_leads_to_is_told() {
        let told = told(
            "inbound: [{ intercept: 80, service: a }]\n\
             outbound: [{ intercept: '10.0.0.1:80', to: 'a:1', peer: 'spiffe://a/b' }]\n",
        );
        for line in [
            "x.yaml:3: inbound[0].intercept: nothing leads connections here: there is no `intercept.inbound`",
            "x.yaml:4: outbound[0].intercept: nothing leads connections here: there is no `intercept.outbound`",
        ] {
            assert!(told.lines().any(|told| told == line), "{line}\n{told}");
        }
    }

    #[test]
    fn what_nothing_reaches_is_told_with_what_comes_before_it() {
        let told = told(
            "intercept: { user: 1, outbound: { port: 15001 } }\n\
             outbound:\n\
             - { intercept: ['10.0.0.0/8:80', 'a.svc:443'], peer: 'spiffe://a/b' }\n\
             - { intercept: ['10.1.0.0/16:80', '10.1.0.0/16:81'], peer: 'spiffe://a/c' }\n\
             - { intercept: 'A.svc:443', peer: 'spiffe://a/d' }\n",
        );
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(
            lines,
            [
                "x.yaml:6: outbound[1].intercept[0]: nothing reaches it: `10.0.0.0/8:80` at \
                 `outbound[0].intercept[0]` comes before it",
                "x.yaml:7: outbound[2].intercept: nothing reaches it: `a.svc:443` at \
                 `outbound[0].intercept[1]` comes before it",
            ]
        );
    }

    #[test]
    fn our_own_listeners_are_not_intercepted() {
        let text = "identity: { workload_api: 'unix:///x' }\npolicy: { dir: /p }\n\
            intercept: { user: 1, inbound: { port: 15006 } }\n\
            metrics: { listen: '0.0.0.0:9901' }\n\
            probes: { listen: '0.0.0.0:9902', checks: [{ path: /live, port: 80, kind: tcp }] }\n\
            inbound: [{ intercept: 80, service: a }, { listen: '0.0.0.0:8443', service: a, app: '127.0.0.1:80' }]\n";
        let config = Document::new("x.yaml", text).read(Config::read).unwrap();
        let led = config.intercept.unwrap().inbound.unwrap();
        assert!(led.leads(80));
        for port in [8443, 9901, 9902, 15006] {
            assert!(!led.leads(port), "{port}");
        }
        let again = told(
            "intercept: { user: 1, inbound: { port: 15006 } }\n\
            inbound: [{ intercept: 8443, service: a }, { listen: '0.0.0.0:8443', service: a, app: '127.0.0.1:80' }]\n",
        );
        assert!(again.contains(
            "inbound[0].intercept: `intercept.inbound` leads no connection to port 8443"
        ));
    }
}
