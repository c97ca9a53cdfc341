//! What does a pod ask for? Its annotations, read as strictly as a configuration: a name or a value that is
//! not known is a mistake, because a pod that was mistaken for one without wishes would run without a
//! sidecar.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use serde_json::{Value, json};

use super::settings::{MOST_STOP_DELAY, MOST_USER, PULL_POLICIES, QUANTITY_HELP, is_quantity};
use super::{
    CONFIG_FILE, Error, INJECTED, Identity, Owner, Resources, Settings, containers, name, ports,
    yaml,
};
use crate::document::distance;
use crate::identity::SpiffeId;

/// What our annotations begin with.
pub const PREFIX: &str = "doorward.dev/";

/// The annotations of a pod that are for us, without [`PREFIX`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    ours: BTreeMap<String, String>,
    mirror: bool,
    /// A label, so that an admission webhook need not be asked.
    labelled_disabled: bool,
}

/// Every annotation that an operator may write, in the order of the README.
pub const KNOWN: [&str; 24] = [
    "inject",
    "port",
    "service",
    "protocol",
    "policy",
    "outbound",
    "outbound-otherwise",
    "inbound",
    "config",
    "identity",
    "spiffe-id",
    "intercept",
    "exclude-inbound-ports",
    "exclude-outbound-ports",
    "exclude-outbound-addresses",
    "user",
    "image",
    "intercept-image",
    "pull-policy",
    "cpu-request",
    "cpu-limit",
    "memory-request",
    "memory-limit",
    "stop-delay",
];

impl Annotations {
    /// Those of `pod`.
    #[must_use]
    pub fn of(pod: &Value) -> Self {
        let all = pod["metadata"]["annotations"].as_object();
        let all = || all.into_iter().flatten();
        let ours = all().filter_map(|(name, value)| {
            let value = value.as_str().map_or_else(|| value.to_string(), Into::into);
            Some((name.strip_prefix(PREFIX)?.to_owned(), value))
        });
        Self {
            ours: ours.collect(),
            labelled_disabled: pod["metadata"]["labels"][format!("{PREFIX}inject")]
                == json!("disabled"),
            mirror: all().any(|(name, _)| name == "kubernetes.io/config.mirror"),
        }
    }

    /// Whether the pod is to be left alone.
    #[must_use]
    pub fn says_disabled(&self) -> bool {
        self.labelled_disabled || self.get("inject") == Some("disabled")
    }

    /// Whether the pod asks for a sidecar in so many words.
    #[must_use]
    pub fn says_enabled(&self) -> bool {
        self.get("inject") == Some("enabled")
    }

    /// Whether a node made the pod to show one that it runs by itself.
    pub(super) fn mirrors(&self) -> bool {
        self.mirror
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.ours.get(name).map(String::as_str)
    }

    /// All of them together, with `settings` where they say nothing.
    pub(super) fn read(
        &self,
        settings: &Settings,
        owner: Owner<'_>,
        pod: &Value,
    ) -> Result<Wanted, Error> {
        let sizes = self.ours.iter().map(|(name, text)| name.len() + text.len());
        if sizes.sum::<usize>() > MOST_BYTES {
            return Err(Error::Annotations(vec![format!(
                "the annotations `{PREFIX}…` have more than {} KiB, and Kubernetes takes no more",
                MOST_BYTES >> 10
            )]));
        }
        let mut reader = Reader {
            annotations: self,
            mistakes: Vec::new(),
        };
        let wanted = reader.wanted(settings, owner, pod);
        reader.check_names();
        match reader.mistakes.is_empty() {
            true => Ok(wanted),
            false => Err(Error::Annotations(reader.mistakes)),
        }
    }
}

/// What one pod gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The ConfigMap with `doorward.yaml`, in place of what the rest makes of it.
    pub(super) config: Option<String>,
    /// The list `inbound`.
    pub(super) inbound: Vec<Value>,
    /// The list `outbound`.
    pub(super) outbound: Vec<Value>,
    /// `intercept.outbound.otherwise`.
    pub(super) otherwise: &'static str,
    /// The ConfigMap with policies.
    pub(super) policy: Option<String>,
    pub(super) identity: Identity,
    pub(super) spiffe_id: Option<SpiffeId>,
    pub(super) intercept: bool,
    pub(super) exclude_inbound_ports: Vec<String>,
    pub(super) exclude_outbound_ports: Vec<String>,
    pub(super) exclude_outbound_addresses: Vec<String>,
    pub(super) user: u32,
    pub(super) image: String,
    pub(super) intercept_image: String,
    pub(super) pull_policy: Option<String>,
    pub(super) resources: Resources,
    stop_delay: Duration,
}

impl Wanted {
    /// Whether a sidecar would have nothing to do.
    pub(super) fn is_nothing(&self) -> bool {
        self.config.is_none() && self.inbound.is_empty() && self.outbound.is_empty()
    }

    /// Whether connections to the pod are led to the sidecar. What a ConfigMap says is not known here.
    pub(super) fn intercepts_inbound(&self) -> bool {
        self.intercept && (self.config.is_some() || intercepts(&self.inbound))
    }

    /// The same for connections that begin in the pod.
    pub(super) fn intercepts_outbound(&self) -> bool {
        self.intercept && (self.config.is_some() || intercepts(&self.outbound))
    }

    /// For how long the application should still serve after its pod was told to stop: nobody sends new
    /// requests to a Job, or to a pod that serves nothing.
    pub(super) fn stops_late(&self, pod: &Value) -> Option<u64> {
        let serves = self.config.is_some() || !self.inbound.is_empty();
        let goes_on = matches!(pod["spec"]["restartPolicy"].as_str(), None | Some("Always"));
        let delay = self.stop_delay.as_secs();
        (serves && goes_on && delay > 0).then_some(delay)
    }

    /// The ports that the sidecar listens on, each with what to do where an application has it too. Those of
    /// a ConfigMap are not known here, but for the ones that are agreed upon.
    pub(super) fn ports(&self) -> Vec<(u16, &'static str)> {
        let other = "give the application another one";
        let mut ports = vec![(ADMIN_PORT, other), (METRICS_PORT, other)];
        if self.intercepts_inbound() {
            ports.extend([(PROBES_PORT, other), (INBOUND_PORT, other)]);
        } else if !self.inbound.is_empty() && self.config.is_none() {
            let help = "write the list `doorward.dev/inbound` with a `listen` of your choice";
            let listen = self.inbound.iter().filter_map(listen_port);
            ports.extend(listen.map(|port| (port, help)));
        }
        if self.intercepts_outbound() {
            ports.push((OUTBOUND_PORT, other));
        }
        ports
    }
}

/// Whether a list of listeners has one that the packet filter leads connections to.
pub(super) fn intercepts(listeners: &[Value]) -> bool {
    listeners.iter().any(|it| it.get("intercept").is_some())
}

pub(super) fn listen_port(listener: &Value) -> Option<u16> {
    let (_, port) = listener["listen"].as_str()?.rsplit_once(':')?;
    port.parse().ok()
}

struct Reader<'a> {
    annotations: &'a Annotations,
    mistakes: Vec<String>,
}

impl Reader<'_> {
    fn wanted(&mut self, settings: &Settings, owner: Owner<'_>, pod: &Value) -> Wanted {
        // Asked before this; a third word is a mistake.
        let _ = self.choice("inject", &["enabled", "disabled"]);
        let intercept = match self.choice("intercept", &["enabled", "disabled"]) {
            Some(word) => word == "enabled",
            None => settings.intercept,
        };
        let image = self.text("image").unwrap_or_else(|| settings.image.clone());
        let intercept_image = self
            .text("intercept-image")
            .or_else(|| settings.intercept_image.clone());
        let default = &settings.resources;
        let resources = Resources {
            cpu_request: self.quantity("cpu-request", &default.cpu_request),
            cpu_limit: self.quantity("cpu-limit", &default.cpu_limit),
            memory_request: self.quantity("memory-request", &default.memory_request),
            memory_limit: self.quantity("memory-limit", &default.memory_limit),
        };
        let config = self.text("config");
        let policy = self.text("policy").or_else(|| settings.policy.clone());
        let inbound = match config {
            Some(_) => Vec::new(),
            None => self.inbound(intercept, owner, pod),
        };
        let outbound = self.list("outbound");
        if config.is_some() {
            let made = [
                "port",
                "service",
                "protocol",
                "inbound",
                "outbound",
                "outbound-otherwise",
                "spiffe-id",
            ];
            let made = made.into_iter().chain(
                KNOWN
                    .into_iter()
                    .filter(|name| name.starts_with("exclude-")),
            );
            for name in made.filter(|name| self.annotations.get(name).is_some()) {
                self.mistakes.push(format!(
                    "`{PREFIX}{name}` makes a configuration, and `{PREFIX}config` names one: keep one of the two"
                ));
            }
        } else if !inbound.is_empty() && policy.is_none() {
            self.mistakes.push(format!(
                "`{PREFIX}policy` is missing: name the ConfigMap with your *.cedar files; without one, nobody is let in"
            ));
        }
        Wanted {
            config,
            inbound,
            outbound: outbound.unwrap_or_default(),
            otherwise: self
                .choice("outbound-otherwise", &["deny", "passthrough"])
                .unwrap_or("deny"),
            policy,
            identity: self
                .parsed("identity")
                .unwrap_or_else(|| settings.identity.clone()),
            spiffe_id: self.parsed("spiffe-id"),
            intercept,
            exclude_inbound_ports: self.items(
                "exclude-inbound-ports",
                is_ports,
                "ports or ranges of ports",
            ),
            exclude_outbound_ports: self.items(
                "exclude-outbound-ports",
                is_ports,
                "ports or ranges of ports",
            ),
            exclude_outbound_addresses: self.items(
                "exclude-outbound-addresses",
                is_network,
                "addresses or networks",
            ),
            user: self.user(settings.user),
            intercept_image: intercept_image.unwrap_or_else(|| image.clone()),
            image,
            pull_policy: self
                .choice("pull-policy", &PULL_POLICIES)
                .map(Into::into)
                .or_else(|| settings.pull_policy.clone()),
            resources,
            stop_delay: self.stop_delay(settings.stop_delay),
        }
    }

    /// The list `inbound`, as it is written or as made from ports.
    fn inbound(&mut self, intercept: bool, owner: Owner<'_>, pod: &Value) -> Vec<Value> {
        if let Some(list) = self.list("inbound") {
            for name in ["port", "service", "protocol"] {
                if self.annotations.get(name).is_some() {
                    self.mistakes.push(format!(
                        "`{PREFIX}{name}` and `{PREFIX}inbound` say the same: keep one of the two"
                    ));
                }
            }
            return list;
        }
        let protocol = self.choice("protocol", &["auto", "http", "tcp"]);
        let served = self.served(pod);
        let service = self.text("service");
        if served.len() > 1 && !intercept {
            self.mistake("port", "several ports need interception, or the list `doorward.dev/inbound` with a `listen` for each");
        }
        let default = service.or_else(|| {
            let labels = &pod["metadata"]["labels"];
            let label = ["app.kubernetes.io/name", "app"]
                .iter()
                .find_map(|label| labels[label].as_str());
            label.or(owner.name).map(ToOwned::to_owned)
        });
        let several = served.iter().filter(|(_, own)| own.is_none()).count() > 1;
        if several {
            self.mistake("port", "each of several ports needs a service of its own: write for example `8080=invoices, 9090=invoices-admin`");
        }
        let mut list = Vec::new();
        for (port, own) in served {
            let Some(service) = own.or_else(|| default.clone()) else {
                self.mistake("service", "is missing: say what policies call this service");
                continue;
            };
            let mut listener = match intercept {
                true => json!({ "intercept": port, "service": service }),
                false => json!({
                    "listen": format!("0.0.0.0:{PEERS_PORT}"),
                    "service": service,
                    "app": format!("127.0.0.1:{port}"),
                }),
            };
            if let Some(protocol) = protocol {
                listener["protocol"] = protocol.into();
            }
            list.push(listener);
        }
        list
    }

    /// The ports of the application, each with its service where that is written; without the annotation,
    /// the only one that the containers declare.
    fn served(&mut self, pod: &Value) -> Vec<(u16, Option<String>)> {
        let Some(text) = self.annotations.get("port") else {
            let mut declared: Vec<u16> = containers(pod, "containers").flat_map(ports).collect();
            declared.dedup();
            let wants_one = ["service", "protocol", "policy"]
                .iter()
                .any(|name| self.annotations.get(name).is_some());
            return match declared[..] {
                [port] if wants_one => vec![(port, None)],
                _ if wants_one => {
                    self.mistake("port", "is missing: say where the application listens");
                    Vec::new()
                }
                _ => Vec::new(),
            };
        };
        let items = text.split(',').map(str::trim);
        let read = items.map(|item| {
            let (port, service) = match item.split_once('=') {
                Some((port, service)) => (port.trim(), Some(service.trim())),
                None => (item, None),
            };
            let port = named_port(pod, port)?;
            let is_named = service.is_none_or(|service| !service.is_empty());
            is_named.then(|| (port, service.map(ToOwned::to_owned)))
        });
        match read.collect::<Option<Vec<_>>>() {
            Some(ports) => ports,
            None => {
                self.mistake("port", "write a port or its name, as in `8080`, or several with their services, as in `8080=invoices, 9090=invoices-admin`");
                Vec::new()
            }
        }
    }

    /// A list in YAML, as it stands in a configuration.
    fn list(&mut self, name: &str) -> Option<Vec<Value>> {
        let text = self.annotations.get(name)?;
        let mut documents = match yaml::read_up_to(MOST_VALUES, text) {
            Ok(documents) => documents,
            Err(error) => {
                self.mistake(name, format_args!("is no YAML: {error}"));
                return Some(Vec::new());
            }
        };
        match documents.pop() {
            Some(Value::Array(list)) if documents.is_empty() => Some(list),
            _ => {
                self.mistake(name, "write a list in YAML, as it stands in doorward.yaml");
                Some(Vec::new())
            }
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        let text = self.annotations.get(name)?.trim();
        if text.is_empty() {
            self.mistake(name, "is empty");
        }
        Some(text.to_owned())
    }

    fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Option<T> {
        let text = self.annotations.get(name)?;
        match text.trim().parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.mistake(name, format_args!("`{text}`: {error}"));
                None
            }
        }
    }

    fn choice(&mut self, name: &str, words: &[&'static str]) -> Option<&'static str> {
        let text = self.annotations.get(name)?;
        let found = words.iter().find(|word| **word == text.trim());
        if found.is_none() {
            self.mistake(
                name,
                format_args!(
                    "`{text}` is not known here; write one of {}",
                    words.join(", ")
                ),
            );
        }
        found.copied()
    }

    fn quantity(&mut self, name: &str, default: &str) -> String {
        match self.text(name) {
            Some(text) => {
                if !is_quantity(&text) {
                    self.mistake(
                        name,
                        format_args!("`{text}` is no quantity; {QUANTITY_HELP}"),
                    );
                }
                text
            }
            None => default.to_owned(),
        }
    }

    fn user(&mut self, default: u32) -> u32 {
        let user: u32 = self.parsed("user").unwrap_or(default);
        if !(1..=MOST_USER).contains(&user) {
            self.mistake("user", "the sidecar cannot run as this user");
        }
        user
    }

    fn stop_delay(&mut self, default: Duration) -> Duration {
        let Some(text) = self.text("stop-delay") else {
            return default;
        };
        match humantime::parse_duration(&text) {
            Ok(delay) if delay <= MOST_STOP_DELAY && delay.subsec_nanos() == 0 => delay,
            _ => {
                self.mistake(
                    "stop-delay",
                    "write whole seconds up to `5m`, as in `5s`, or `0s`",
                );
                default
            }
        }
    }

    /// What stands between commas, each of which must be good.
    fn items(&mut self, name: &str, is_good: fn(&str) -> bool, what: &str) -> Vec<String> {
        let Some(text) = self.annotations.get(name) else {
            return Vec::new();
        };
        let items: Vec<_> = text.split(',').map(|item| item.trim().to_owned()).collect();
        if !items.iter().all(|item| is_good(item)) {
            self.mistake(
                name,
                format_args!("`{text}`: write {what} with commas between"),
            );
        }
        items
    }

    fn check_names(&mut self) {
        for name in self.annotations.ours.keys() {
            if KNOWN.contains(&name.as_str()) || [CONFIG_FILE, INJECTED].contains(&name.as_str()) {
                continue;
            }
            let nearest = KNOWN
                .iter()
                .map(|known| (distance(known, name), known))
                .min()
                .filter(|(distance, _)| *distance <= 2);
            let help = match nearest {
                Some((_, known)) => format!("; did you mean `{PREFIX}{known}`?"),
                None => String::new(),
            };
            self.mistakes.push(format!(
                "the annotation `{PREFIX}{name}` is not known{help}"
            ));
        }
    }

    fn mistake(&mut self, name: &str, what: impl Display) {
        self.mistakes.push(format!("`{PREFIX}{name}`: {what}"));
    }
}

/// A port by number, or by the name that a container gives it.
pub(super) fn named_port(pod: &Value, text: &str) -> Option<u16> {
    if let Ok(port) = text.parse() {
        return (port > 0).then_some(port);
    }
    let all = super::ALL_CONTAINERS
        .iter()
        .flat_map(|list| containers(pod, list));
    let ports = all.filter_map(|container| container["ports"].as_array());
    let port = ports.flatten().find(|port| name(port) == text)?;
    u16::try_from(port["containerPort"].as_u64()?).ok()
}

fn is_ports(text: &str) -> bool {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.parse::<u16>(), last.parse::<u16>()) {
        (Ok(first), Ok(last)) => 0 < first && first <= last,
        _ => false,
    }
}

fn is_network(text: &str) -> bool {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, prefix.parse::<u8>().ok()),
        None => (text, Some(0)),
    };
    address.parse::<IpAddr>().is_ok() && prefix.is_some()
}

/// As many as Kubernetes takes of all annotations together, which it looks at when webhooks were asked.
const MOST_BYTES: usize = 256 << 10;

/// Of a list in an annotation: some thousand listeners. A webhook reads what anybody writes who may make pods.
const MOST_VALUES: usize = 10_000;

/// For people inside the pod.
pub(super) const ADMIN_PORT: u16 = 9900;
/// For Prometheus and for the probes of the sidecar itself.
pub(super) const METRICS_PORT: u16 = 9901;
/// For the probes of the application.
pub(super) const PROBES_PORT: u16 = 9902;
/// Where the packet filter leads connections to the pod.
pub(super) const INBOUND_PORT: u16 = 15006;
/// Where it leads those that begin in the pod.
pub(super) const OUTBOUND_PORT: u16 = 15001;
/// Where peers connect without interception.
pub(super) const PEERS_PORT: u16 = 8443;
