//! What does a sidecar touch after its start? Everything that its configuration names, and nothing else.

use std::net::SocketAddr;

use super::{Settings, Sockets};
use crate::audit::Sink;
use crate::config::Config;
use crate::identity;
use crate::listen::Address;
use crate::sandbox::Needs;

impl Sockets {
    /// What is needed once these are bound.
    pub(super) fn needs(&self, config: &Config) -> Needs {
        let mut needs = Needs::default();
        // They are bound a second time, when they begin to listen.
        for (_, bound) in self.data.iter().flatten() {
            needs.bind.extend(port(bound.address()));
        }
        for settings in self.data.iter().flatten().map(|(settings, _)| settings) {
            needs.connect.extend(match settings {
                Settings::Inbound(inbound) => port(&inbound.app),
                Settings::Outbound(outbound) => Some(outbound.to.port()),
            });
        }
        let federated = config.federation.iter();
        needs
            .connect
            .extend(federated.map(|other| other.url.port()));
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

fn port(address: &Address) -> Option<u16> {
    match address {
        Address::Tcp(address) => Some(address.port()),
        Address::Unix(_) => None,
    }
}
