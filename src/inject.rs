//! How does a pod get its sidecar? One pod template in, the same with a sidecar out.
//!
//! `doorward inject` does it to manifests ([`manifest`]); an admission webhook does the same to pods as they
//! are created. Both call [`pod`], which works on JSON and so keeps whatever it does not know. What a pod
//! wants is in its annotations ([`annotations`]), what it gets otherwise in [`Settings`].
//!
//! Injection begins by taking out what an earlier one put in ([`undo`]): so doing it twice is doing it once,
//! and doing it with other settings brings a pod up to date. What others changed in between stays.

pub mod annotations;
mod generated;
pub mod manifest;
mod others;
mod probing;
mod settings;
mod sidecar;
pub mod undo;
pub mod yaml;

use std::fmt;

use serde_json::{Map, Value, json};

pub use self::annotations::{Annotations, PREFIX};
pub use self::settings::{Identity, Resources, Settings, SocketError};
use crate::config::Config;
use crate::document::{Document, Mistakes};

/// What a pod belongs to, as far as its manifest or its owner references say.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owner<'a> {
    /// The name of the Deployment, Job and so on, or of the pod itself.
    pub name: Option<&'a str>,
}

/// What became of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has a sidecar now.
    Injected {
        /// What whoever runs it should know.
        notes: Vec<String>,
    },
    /// It has none from us, and no longer has one from earlier.
    LeftAlone(Reason),
}

/// Why a pod was left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its annotation or its label says so.
    Disabled,
    /// Its network is the node's.
    HostNetwork,
    /// It runs on Windows.
    Windows,
    /// It mirrors a static pod of a node.
    Mirror,
    /// Somebody has put a sidecar of this name there by hand.
    HasSidecar,
    /// It says nothing that a sidecar could do for it.
    NothingToDo,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Disabled => "its annotation or label `doorward.dev/inject` says `disabled`",
            Self::HostNetwork => {
                "it has `hostNetwork: true`: its connections are not told apart from the node's"
            }
            Self::Windows => "it runs on Windows",
            Self::Mirror => "it is a static pod, which can have no identity of its own",
            Self::HasSidecar => {
                "it has a container or a volume named as ours are, which an injection did not put there"
            }
            Self::NothingToDo => {
                "it names no port, no outbound destination and no configuration for a sidecar, and does not say `doorward.dev/inject: enabled`"
            }
        })
    }
}

/// Why a pod cannot have the sidecar that it should have.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No pod template.
    #[error("this is no pod template: `spec.containers` is missing")]
    NoPod,
    /// Mistakes in annotations.
    #[error("{}", .0.join("; "))]
    Annotations(Vec<String>),
    /// A container runs as the sidecar's user.
    #[error(
        "the container `{container}` runs as user {user}, as the sidecar does: its connections could not be told apart from the sidecar's. Give it another `runAsUser`, or set `doorward.dev/user`"
    )]
    User {
        /// Which.
        container: String,
        /// As which user.
        user: u32,
    },
    /// A container wants a port of ours.
    #[error("the container `{container}` has port {port}, which is the sidecar's: {help}")]
    Port {
        /// Which.
        container: String,
        /// Which port.
        port: u16,
        /// What to do.
        help: &'static str,
    },
    /// What annotations make of the configuration is not sound.
    #[error("the configuration made from the annotations is not sound: {0}")]
    Config(Mistakes),
}

/// Puts a sidecar into `pod`, a pod or pod template: a mapping with `metadata` and `spec`.
///
/// # Errors
/// If it should have one and cannot; then it is as it was.
pub fn pod(settings: &Settings, owner: Owner<'_>, pod: &mut Value) -> Result<Outcome, Error> {
    let mut fresh = pod.clone();
    undo::undo(&mut fresh);
    let outcome = inject(settings, owner, &mut fresh)?;
    others::keep(pod, &mut fresh);
    *pod = fresh;
    Ok(outcome)
}

fn inject(settings: &Settings, owner: Owner<'_>, pod: &mut Value) -> Result<Outcome, Error> {
    if containers(pod, "containers").next().is_none() {
        return Err(Error::NoPod);
    }
    let written = Annotations::of(pod);
    if let Some(reason) = left_alone(&written, pod) {
        return Ok(Outcome::LeftAlone(reason));
    }
    let wanted = written.read(settings, owner, pod)?;
    if wanted.is_nothing() {
        return match written.says_enabled() {
            true => Err(Error::Annotations(vec![
                "there is nothing to do: write `doorward.dev/port`, `doorward.dev/outbound` or `doorward.dev/config`".into(),
            ])),
            false => Ok(Outcome::LeftAlone(Reason::NothingToDo)),
        };
    }
    check_users(&wanted, pod)?;
    check_ports(&wanted, pod)?;

    let mut record = undo::Record::default();
    let (probes, mut notes) = match wanted.intercepts_inbound() {
        true => probing::take_over(pod, &mut record),
        false => (Vec::new(), Vec::new()),
    };
    let config = match &wanted.config {
        Some(name) => {
            notes.push(sidecar::asked_of_the_config_map(name, &wanted, &probes));
            None
        }
        None => {
            let text = yaml::write(&generated::config(&wanted, &probes));
            let read = Document::new("doorward.yaml", text.as_str()).read(Config::read);
            drop(read.map_err(Error::Config)?);
            Some(text)
        }
    };
    notes.extend(identity_notes(pod));
    if !wanted.inbound.is_empty() && !wanted.intercepts_inbound() {
        notes.push(OPEN.into());
    }
    if wanted.intercepts_inbound() || wanted.intercepts_outbound() {
        notes.extend(privilege_notes(pod));
    }
    sidecar::put_in(pod, &wanted, &mut record);
    record.put = others::put(pod);
    if let Some(delay) = wanted.stops_late(pod) {
        sidecar::delay_the_stop(pod, delay, &mut record);
    }
    let annotations = annotations_mut(pod, &mut record);
    if let Some(config) = config {
        annotations.insert(format!("{PREFIX}{CONFIG_FILE}"), config.into());
    }
    annotations.insert(format!("{PREFIX}{INJECTED}"), record.text().into());
    Ok(Outcome::Injected { notes })
}

/// Why the pod has no use for a sidecar, or must not have one.
fn left_alone(annotations: &Annotations, pod: &Value) -> Option<Reason> {
    if annotations.says_disabled() {
        return Some(Reason::Disabled);
    }
    if annotations.mirrors() {
        return Some(Reason::Mirror);
    }
    let spec = &pod["spec"];
    if spec["hostNetwork"] == json!(true) {
        return Some(Reason::HostNetwork);
    }
    if spec["os"]["name"] == json!("windows")
        || spec["nodeSelector"]["kubernetes.io/os"] == json!("windows")
    {
        return Some(Reason::Windows);
    }
    let is_ours = |name: &Value| name.as_str().is_some_and(is_our_name);
    let volumes = spec["volumes"].as_array().into_iter().flatten();
    let named = ALL_CONTAINERS
        .iter()
        .flat_map(|list| containers(pod, list))
        .chain(volumes)
        .any(|it| is_ours(&it["name"]));
    named.then_some(Reason::HasSidecar)
}

/// What an operator should know of the identity that the pod will have.
fn identity_notes(pod: &Value) -> Option<String> {
    let account = pod["spec"]["serviceAccountName"].as_str();
    matches!(account, None | Some("" | "default")).then(|| {
        "it runs as the service account `default`: every pod of the namespace that names none may have the same identity. Give it `serviceAccountName`".into()
    })
}

/// Nothing leads connections away from the application then.
const OPEN: &str = "without interception whoever reaches the application's own port goes past the sidecar: let it listen on 127.0.0.1 alone and ask it by `exec` probes, or keep others from the port with a NetworkPolicy";

/// Who could get past the sidecar.
fn privilege_notes(pod: &Value) -> impl Iterator<Item = String> {
    let may_change_rules = |container: &&Value| {
        let security = &container["securityContext"];
        let added = security["capabilities"]["add"].as_array();
        let mut added = added.into_iter().flatten().filter_map(Value::as_str);
        security["privileged"] == json!(true)
            // Container runtimes take them in any case, some with what the kernel puts before them.
            || added.any(|capability| {
                let capability = capability.to_ascii_uppercase();
                let capability = capability.strip_prefix("CAP_").unwrap_or(&capability);
                ["ALL", "NET_ADMIN"].contains(&capability)
            })
    };
    let all = ALL_CONTAINERS.iter().flat_map(|list| containers(pod, list));
    all.filter(may_change_rules).map(|container| {
        format!(
            "the container `{}` may change the packet filter's rules, and so go past the sidecar",
            name(container)
        )
    })
}

/// The packet filter leaves the sidecar's user alone, so nobody else may be that user.
fn check_users(wanted: &annotations::Wanted, pod: &Value) -> Result<(), Error> {
    let user = json!(wanted.user);
    let everybody = &pod["spec"]["securityContext"]["runAsUser"];
    for container in ALL_CONTAINERS.iter().flat_map(|list| containers(pod, list)) {
        let own = &container["securityContext"]["runAsUser"];
        if *own == user || (own.is_null() && *everybody == user) {
            return Err(Error::User {
                container: name(container).to_owned(),
                user: wanted.user,
            });
        }
    }
    Ok(())
}

fn check_ports(wanted: &annotations::Wanted, pod: &Value) -> Result<(), Error> {
    let ours = wanted.ports();
    for container in ALL_CONTAINERS.iter().flat_map(|list| containers(pod, list)) {
        for port in ports(container) {
            let taken = ours.iter().find(|(ours, _)| *ours == port);
            if let Some((port, help)) = taken {
                return Err(Error::Port {
                    container: name(container).to_owned(),
                    port: *port,
                    help,
                });
            }
        }
    }
    Ok(())
}

/// The TCP ports that a container declares.
fn ports(container: &Value) -> impl Iterator<Item = u16> {
    let ports = container["ports"].as_array().into_iter().flatten();
    ports
        .filter(|port| matches!(port["protocol"].as_str(), None | Some("TCP")))
        .filter_map(|port| u16::try_from(port["containerPort"].as_u64()?).ok())
}

fn containers<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    pod["spec"][list].as_array().into_iter().flatten()
}

fn list_mut<'a>(pod: &'a mut Value, list: &str) -> Option<&'a mut Vec<Value>> {
    pod.get_mut("spec")?.get_mut(list)?.as_array_mut()
}

fn name(container: &Value) -> &str {
    container["name"].as_str().unwrap_or_default()
}

/// The mapping at `key`, made where there is none; the record learns of it.
fn section<'a>(
    parent: &'a mut Map<String, Value>,
    key: &'static str,
    record: &mut undo::Record,
) -> &'a mut Map<String, Value> {
    let value = parent.entry(key).or_insert_with(|| {
        record.made(key);
        Value::Null
    });
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    value
        .as_object_mut()
        .expect("it was made a mapping where it was none")
}

fn annotations_mut<'a>(
    pod: &'a mut Value,
    record: &mut undo::Record,
) -> &'a mut Map<String, Value> {
    if !pod.is_object() {
        *pod = json!({});
    }
    let pod = pod
        .as_object_mut()
        .expect("it was made a mapping where it was none");
    section(section(pod, "metadata", record), "annotations", record)
}

/// Whether an injection gives containers and volumes such a name.
fn is_our_name(name: &str) -> bool {
    [
        SIDECAR,
        INTERCEPTOR,
        CONFIG_VOLUME,
        POLICY_VOLUME,
        IDENTITY_VOLUME,
    ]
    .contains(&name)
}

/// The sidecar's container.
pub const SIDECAR: &str = "doorward";
/// The container that makes the packet filter's rules.
pub const INTERCEPTOR: &str = "doorward-intercept";
const CONFIG_VOLUME: &str = "doorward-config";
const POLICY_VOLUME: &str = "doorward-policy";
const IDENTITY_VOLUME: &str = "doorward-identity";

/// The annotation that holds the configuration made from the others.
const CONFIG_FILE: &str = "doorward.yaml";
/// The annotation that says what was there before.
const INJECTED: &str = "injected";

/// The list that ours are in.
const INIT_CONTAINERS: &str = "initContainers";
const ALL_CONTAINERS: [&str; 2] = [INIT_CONTAINERS, "containers"];

#[cfg(test)]
mod tests;
