//! What does a sidecar touch after its start? Everything that its configuration names, and nothing else.

use std::net::SocketAddr;

use super::{Intercepted, Settings, Sockets};
use crate::audit::Sink;
use crate::config::Config;
use crate::identity;
use crate::inbound::{self, Application};
use crate::intercept::Otherwise;
use crate::listen::Address;
use crate::outbound::{self, To};
use crate::sandbox::Needs;

impl Sockets {
    /// What is needed once these are bound.
    pub(super) fn needs(&self, config: &Config) -> Needs {
        let mut needs = Needs {
            foreign_addresses: config.keeps_client_addresses(),
            ..Needs::default()
        };
        if needs.foreign_addresses {
            // Before it is connected from one it is bound to it, at whatever port.
            needs.bind.push(0);
        }
        // They are bound a second time, when they begin to listen.
        for (_, bound) in self.data.iter().flatten() {
            needs.bind.extend(port(bound.address()));
        }
        for settings in self.data.iter().flatten().map(|(settings, _)| settings) {
            match settings {
                Settings::Inbound(inbound) => needs.connect.extend(of_app(inbound)),
                Settings::Outbound(outbound) => needs.connect.extend(of_peers(outbound)),
                Settings::Intercepted(Intercepted::Inbound(entries)) => {
                    needs.connect.extend(entries.iter().flat_map(of_app));
                }
                Settings::Intercepted(Intercepted::Outbound(entries, otherwise)) => {
                    needs.connect.extend(entries.iter().flat_map(of_peers));
                    needs.connect_anywhere |= *otherwise == Otherwise::Passthrough;
                }
            }
        }
        let federated = config.federation.iter();
        needs
            .connect
            .extend(federated.map(|other| other.url.port()));
        let checks = config.probes.iter().flat_map(|probes| &probes.checks);
        needs.connect.extend(checks.map(|check| check.port.get()));
        // An answer that does not fit into a datagram is asked for by TCP.
        let servers = config.dns.servers.iter();
        needs.connect.extend(servers.map(SocketAddr::port));
        if let identity::Source::Files(files) = &config.identity.source {
            needs
                .read
                .extend([&files.cert, &files.key, &files.bundle].map(Clone::clone));
        }
        needs.read.extend(config.identity.crl.clone());
        needs
            .read
            .extend(config.policy.as_ref().map(|policy| policy.dir.clone()));
        if let Sink::File(path) = &config.audit.sink {
            needs.written.push(path.clone());
        }
        needs
    }
}

/// The ports at which an application may be connected to.
fn of_app(inbound: &inbound::Settings) -> Vec<u16> {
    match (&inbound.app, inbound.entrance.intercepted()) {
        (Application::At(address), _) => port(address).into_iter().collect(),
        (_, intercepted) => {
            let ports = intercepted.into_iter().flatten();
            ports.flat_map(|ports| ports.iter()).collect()
        }
    }
}

/// The ports at which peers may be connected to.
fn of_peers(outbound: &outbound::Settings) -> Vec<u16> {
    match (&outbound.to, outbound.entrance.intercepted()) {
        (To::Host(to), _) => vec![to.port()],
        (To::Original, patterns) => {
            let patterns = patterns.into_iter().flatten();
            patterns
                .flat_map(|pattern| pattern.ports().iter())
                .collect()
        }
    }
}

fn port(address: &Address) -> Option<u16> {
    match address {
        Address::Tcp(address) => Some(address.port()),
        Address::Unix(_) => None,
    }
}
