//! Which rules lead connections to us? One `inet` table of ours for nftables, for IPv4 and IPv6 alike.
//!
//! The text replaces the table whole in one transaction, so it may be applied again at any time, and there
//! is no moment with half of the rules. Other tables are not touched.

use std::fmt::Display;

use ipnet::IpNet;

use super::tool::{NFT, ToolError};
use super::{Inbound, Outbound, Ports, Settings};

/// The rules that `settings` ask for, in the language of `nft`.
#[must_use]
pub fn render(settings: &Settings) -> String {
    let mut text = REMOVE.to_owned();
    text += "table inet doorward {\n";
    if let Some(outbound) = &settings.outbound {
        text += &outgoing(settings.user, outbound);
    }
    if let Some(inbound) = &settings.inbound {
        text += &incoming(inbound);
    }
    text += &guard(settings);
    text += "}\n";
    text
}

/// Removes the table, whether it is there or not.
pub const REMOVE: &str = "add table inet doorward\ndelete table inet doorward\n";

/// Only TCP, and only the beginning of a connection: what the kernel's memory of connections begins with the
/// middle of one, because that was open before there were any rules, goes on as it was.
const BEGINS: [&str; 2] = [
    "meta l4proto != tcp return",
    "tcp flags & (fin | syn | rst | ack) != syn return",
];

/// Connections that begin on this host. Who talks to this host itself is left alone, and so are we.
fn outgoing(user: u32, outbound: &Outbound) -> String {
    let mut chain = Chain::new("outgoing", "nat", "output", "-100");
    for rule in BEGINS {
        chain.rule(rule);
    }
    let mut users = outbound.exclude_users.clone();
    users.push(user);
    users.sort_unstable();
    users.dedup();
    chain.unless("meta skuid", users);
    chain.rule("fib daddr type local return");
    let networks = IpNet::aggregate(&outbound.exclude_addresses);
    let (v4, v6): (Vec<_>, Vec<_>) = networks
        .into_iter()
        .partition(|network| network.addr().is_ipv4());
    chain.unless("ip daddr", v4);
    chain.unless("ip6 daddr", v6);
    chain.unless("tcp dport", Ports::merged(&outbound.exclude_ports));
    chain.rule(&format!("meta l4proto tcp redirect to :{}", outbound.port));
    chain.finish()
}

/// Connections from elsewhere to an address of this host.
fn incoming(inbound: &Inbound) -> String {
    let mut chain = Chain::new("incoming", "nat", "prerouting", "-100");
    for rule in BEGINS {
        chain.rule(rule);
    }
    chain.rule("fib daddr type != local return");
    chain.unless("tcp dport", Ports::merged(&inbound.exclude_ports));
    let to = inbound.port;
    match set(Ports::merged(&inbound.ports)) {
        Some(ports) => chain.rule(&format!("tcp dport {ports} redirect to :{to}")),
        None => chain.rule(&format!("meta l4proto tcp redirect to :{to}")),
    }
    chain.finish()
}

/// Whoever dials our ports himself could claim to have been going anywhere, or nowhere.
fn guard(settings: &Settings) -> String {
    let mut chain = Chain::new("guard", "filter", "input", "0");
    let ports = [
        settings.outbound.as_ref().map(|outbound| outbound.port),
        settings.inbound.as_ref().map(|inbound| inbound.port),
    ];
    if let Some(ports) = set(ports.into_iter().flatten()) {
        chain.rule(&format!(
            "tcp dport {ports} ct status & dnat == 0 counter drop"
        ));
    }
    chain.finish()
}

/// A chain of rules being written.
struct Chain(String);

impl Chain {
    fn new(name: &str, kind: &str, hook: &str, priority: &str) -> Self {
        Self(format!(
            "\tchain {name} {{\n\t\ttype {kind} hook {hook} priority {priority}; policy accept;\n"
        ))
    }

    fn rule(&mut self, rule: &str) {
        self.0 += &format!("\t\t{rule}\n");
    }

    /// Leaves alone what is one of `those`.
    fn unless<T: Display>(&mut self, what: &str, those: impl IntoIterator<Item = T>) {
        if let Some(those) = set(those) {
            self.rule(&format!("{what} {those} return"));
        }
    }

    fn finish(self) -> String {
        self.0 + "\t}\n"
    }
}

/// The members, of which no two may overlap, as an anonymous set; of none there is no set.
fn set<T: Display>(members: impl IntoIterator<Item = T>) -> Option<String> {
    let members: Vec<String> = members
        .into_iter()
        .map(|member| member.to_string())
        .collect();
    (!members.is_empty()).then(|| format!("{{ {} }}", members.join(", ")))
}

/// Hands `text` to `nft`, which does all of it or nothing.
///
/// # Errors
/// [`ToolError`] if there is no `nft`, or it refuses.
pub fn apply(text: &str) -> Result<(), ToolError> {
    NFT.call(&["-f", "-"], text).map(drop)
}

/// Our table as the kernel has it; none, if there is none.
///
/// # Errors
/// [`ToolError`] if there is no `nft`, or it may not look.
pub fn installed() -> Result<Option<String>, ToolError> {
    let tables = NFT.call(&["list", "tables", "inet"], "")?;
    let ours = |table: &str| table.trim() == "table inet doorward";
    if !tables.lines().any(ours) {
        return Ok(None);
    }
    let table = ["--numeric", "list", "table", "inet", "doorward"];
    NFT.call(&table, "").map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn rendered(text: &str) -> String {
        let settings = Document::new("x.yaml", text).read(|node| Settings::read(&node));
        render(&settings.unwrap())
    }

    #[test]
    fn the_rules_say_what_the_settings_say() {
        let text = rendered(
            "user: 2102\n\
             inbound: { port: 15006, ports: [8080, 9000-9010], exclude_ports: [22, 20-23, 24] }\n\
             outbound: { port: 15001, exclude_ports: [53], exclude_users: [0, 2102],\n\
             \x20 exclude_addresses: [169.254.169.254, 10.0.0.0/8, 10.1.0.0/16, 'fd00::/8'] }",
        );
        let expected = "\
add table inet doorward
delete table inet doorward
table inet doorward {
\tchain outgoing {
\t\ttype nat hook output priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\ttcp flags & (fin | syn | rst | ack) != syn return
\t\tmeta skuid { 0, 2102 } return
\t\tfib daddr type local return
\t\tip daddr { 10.0.0.0/8, 169.254.169.254/32 } return
\t\tip6 daddr { fd00::/8 } return
\t\ttcp dport { 53 } return
\t\tmeta l4proto tcp redirect to :15001
\t}
\tchain incoming {
\t\ttype nat hook prerouting priority -100; policy accept;
\t\tmeta l4proto != tcp return
\t\ttcp flags & (fin | syn | rst | ack) != syn return
\t\tfib daddr type != local return
\t\ttcp dport { 20-24 } return
\t\ttcp dport { 8080, 9000-9010 } redirect to :15006
\t}
\tchain guard {
\t\ttype filter hook input priority 0; policy accept;
\t\ttcp dport { 15001, 15006 } ct status & dnat == 0 counter drop
\t}
}
";
        assert_eq!(text, expected);
    }

    #[test]
    fn one_direction_alone_has_no_rules_for_the_other() {
        let text = rendered("user: 1\ninbound: { port: 15006 }");
        assert!(!text.contains("outgoing"), "{text}");
        assert!(
            text.contains("meta l4proto tcp redirect to :15006"),
            "{text}"
        );
        let text = rendered("user: 1\noutbound: { port: 15001 }");
        assert!(!text.contains("incoming"), "{text}");
        assert!(text.contains("meta skuid { 1 } return"), "{text}");
    }
}
