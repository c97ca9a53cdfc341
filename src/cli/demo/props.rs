//! What do the files say that the demo runs on? Real configuration and real policies, as an operator would
//! write them.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

/// The trust domain of the demo.
pub(super) const TRUST_DOMAIN: &str = "demo.doorward";
/// Who calls.
pub(super) const CHECKOUT: &str = "spiffe://demo.doorward/checkout";
/// Who is called.
pub(super) const INVOICES: &str = "spiffe://demo.doorward/invoices";
/// The grant for HTTP.
pub(super) const READS: &str = "checkout-reads-invoices";
/// Who answers for both grants.
pub(super) const OWNER: &str = "payments@demo.doorward";
/// The service behind the TCP listener.
pub(super) const FEED: &str = "invoice-feed";

/// How the issuer treats the workloads at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Issuing {
    /// How long an SVID lives.
    pub(super) lifetime: Duration,
    /// When it is replaced; without a value at half of its life.
    pub(super) rotate_every: Option<Duration>,
    /// Whether checkout is registered.
    pub(super) checkout: bool,
}

/// The issuer's configuration. Both sidecars run as the same user: their executables tell them apart.
pub(super) fn issuer(dir: &Path, issuing: Issuing) -> String {
    let lifetime = humantime::format_duration(issuing.lifetime);
    let rotation = issuing.rotate_every.map_or_else(String::new, |every| {
        format!("\n    rotate_every: {}", humantime::format_duration(every))
    });
    let entry = |name: &str| {
        let path = quoted(dir.join(name).join("doorward").display());
        format!(
            "  - id: /{name}\n    selectors: {{ path: {path} }}\n    lifetime: {lifetime}{rotation}\n"
        )
    };
    let entries: String = [("checkout", issuing.checkout), ("invoices", true)]
        .into_iter()
        .filter(|(_, registered)| *registered)
        .map(|(name, _)| entry(name))
        .collect();
    let socket = quoted(dir.join("issuer.sock").display());
    format!("trust_domain: {TRUST_DOMAIN}\nsocket: {socket}\nentries:\n{entries}")
}

/// The configuration of the sidecar in front of the application.
pub(super) fn invoices(dir: &Path, app: SocketAddr, feed: SocketAddr) -> String {
    let policy = quoted(dir.join("policy").display());
    let audit = quoted(dir.join("invoices/audit.jsonl").display());
    format!(
        "inbound:\n\
         - {{ listen: 127.0.0.1:0, service: invoices, app: {app}, protocol: http }}\n\
         - {{ listen: 127.0.0.1:0, service: {FEED}, app: {feed}, protocol: tcp }}\n\
         policy: {{ dir: {policy} }}\n\
         audit: {{ path: {audit} }}\n{}",
        common(dir)
    )
}

/// The configuration of a sidecar that wants to reach the application: checkout's, and a stranger's.
pub(super) fn caller(dir: &Path, name: &str, http: SocketAddr, tcp: SocketAddr) -> String {
    let audit = quoted(dir.join(name).join("audit.jsonl").display());
    format!(
        "outbound:\n\
         - {{ listen: 127.0.0.1:0, to: {http}, peer: {INVOICES}, protocol: http }}\n\
         - {{ listen: 127.0.0.1:0, to: {tcp}, peer: {INVOICES}, protocol: tcp }}\n\
         audit: {{ path: {audit} }}\n{}",
        common(dir)
    )
}

/// Two workers show what several do without asking much of a laptop. The issuer runs as the same user, and
/// could not see the executable of a process that hides its memory.
fn common(dir: &Path) -> String {
    let socket = quoted(format_args!("unix://{}/issuer.sock", dir.display()));
    format!(
        "identity: {{ workload_api: {socket} }}\n\
         metrics: {{ listen: 127.0.0.1:0 }}\n\
         log: {{ format: json }}\n\
         workers: 2\n\
         drain_grace: 1s\n\
         sandbox: {{ unsafe_dumpable: true }}\n"
    )
}

/// The grant for HTTP, in a file of its own.
pub(super) static READS_CEDAR: LazyLock<String> = LazyLock::new(|| {
    format!(
        r#"@id("checkout-reads-invoices")
@owner("payments@demo.doorward")
@purpose("Checkout shows a customer's invoices")
@expires("{}")
permit (principal == Workload::"spiffe://demo.doorward/checkout",
        action in Action::"read",
        resource == Service::"invoices")
when {{ context.http.path like "/v1/invoices/*" }};
"#,
        in_a_month()
    )
});

/// The grant for TCP, in another.
pub(super) static FOLLOWS_CEDAR: LazyLock<String> = LazyLock::new(|| {
    format!(
        r#"@id("checkout-follows-the-feed")
@owner("payments@demo.doorward")
@purpose("Checkout learns of new invoices")
@expires("{}")
permit (principal == Workload::"spiffe://demo.doorward/checkout",
        action == Action::"connect",
        resource == Service::"invoice-feed");
"#,
        in_a_month()
    )
});

/// The date in thirty days, in UTC: a grant that lasts for ever is a bad example.
fn in_a_month() -> String {
    let month = Duration::from_secs(30 * 24 * 3600);
    let then = humantime::format_rfc3339_seconds(SystemTime::now() + month).to_string();
    then.split('T').next().unwrap_or_default().to_owned()
}

/// A YAML string, whatever the path of the temporary directory looks like. JSON is a subset of YAML.
fn quoted(text: impl Display) -> String {
    serde_json::Value::from(text.to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::document::Document;
    use crate::policy;
    use crate::{inbound, issuer as ca};

    const ODD: &str = "/tmp/it's a \"demo\": yes #1";

    fn issuing(checkout: bool) -> Issuing {
        Issuing {
            lifetime: Duration::from_secs(10),
            rotate_every: None,
            checkout,
        }
    }

    #[test]
    fn every_configuration_is_sound_wherever_the_demo_plays() {
        let [a, b] = [1, 2].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        for dir in ["/tmp/doorward-demo-aBcDeF", ODD] {
            let dir = Path::new(dir);
            for text in [invoices(dir, a, b), caller(dir, "checkout", a, b)] {
                let read = Document::new("doorward.yaml", &*text).read(Config::read);
                assert!(read.is_ok(), "{text}\n{}", read.unwrap_err());
            }
            let rotate_every = Some(Duration::from_millis(1500));
            for (issuing, entries) in [
                (issuing(true), 2),
                (issuing(false), 1),
                (
                    Issuing {
                        rotate_every,
                        ..issuing(true)
                    },
                    2,
                ),
            ] {
                let text = issuer(dir, issuing);
                let read = Document::new("issuer.yaml", &*text).read(ca::Settings::read);
                assert_eq!(read.unwrap().registry.len(), entries, "{text}");
            }
        }
        let text = invoices(Path::new(ODD), a, b);
        let read = Document::new("doorward.yaml", &*text).read(Config::read);
        let services: Vec<_> = read.unwrap().inbound;
        let services = services
            .iter()
            .map(|inbound: &inbound::Settings| &*inbound.service);
        assert!(services.eq(["invoices", FEED]));
    }

    #[test]
    fn the_grants_pass_governance_without_a_warning() {
        let texts = [
            ("reads.cedar", READS_CEDAR.as_str()),
            ("follows.cedar", FOLLOWS_CEDAR.as_str()),
        ];
        let engine = policy::files::check_texts(texts, &policy::Settings::of("")).unwrap();
        assert_eq!(engine.warnings().count(), 0);
        for text in [READS_CEDAR.as_str(), FOLLOWS_CEDAR.as_str()] {
            assert!(text.contains(OWNER) && text.contains(CHECKOUT));
        }
        assert!(READS_CEDAR.contains(READS));
    }
}
