//! How does kubelet reach the application when every connection to the pod is led to the sidecar?
//!
//! It has no certificate, so its probes would be refused. They are led to the sidecar's own listener for
//! probes ([`crate::probes`]) instead, which asks the application what the original probe would have asked.
//! No port is left open for that: a probe often shares its port with the service.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::annotations::{PROBES_PORT, named_port};
use super::{ALL_CONTAINERS, list_mut, name, undo};

/// What the sidecar asks the application in place of kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Check {
    /// Where kubelet asks the sidecar for it.
    path: String,
    /// The keys of one of `probes.checks` beside the path.
    asks: Map<String, Value>,
}

impl Check {
    /// As it stands in a configuration.
    pub(super) fn written(&self) -> Value {
        let mut written = Map::new();
        written.insert("path".into(), self.path.clone().into());
        written.extend(self.asks.clone());
        Value::Object(written)
    }
}

/// Leads the probes of `pod` to the sidecar. Those that run a command stay, and those that go elsewhere.
/// Returns what the sidecar is to check, and what there is to say.
pub(super) fn take_over(pod: &mut Value, record: &mut undo::Record) -> (Vec<Check>, Vec<String>) {
    let (mut checks, mut notes) = (Vec::new(), Vec::new());
    let before = pod.clone();
    for list in ALL_CONTAINERS {
        for container in list_mut(pod, list).into_iter().flatten() {
            let own = name(container).to_owned();
            for (key, word) in PROBES {
                let Some(probe) = container.get_mut(key).and_then(Value::as_object_mut) else {
                    continue;
                };
                let Some((handler, mut asks)) = asked(&before, probe) else {
                    continue;
                };
                if handler == "httpGet" && asks.get("kind") == Some(&json!("tcp")) {
                    notes.push(format!(
                        "`{key}` of `{own}` asks by HTTPS: the sidecar checks that its port is open, and asks no more"
                    ));
                }
                if let Some(seconds) = probe.get("timeoutSeconds").and_then(Value::as_u64) {
                    asks.insert("timeout".into(), format!("{seconds}s").into());
                }
                let path = format!("/app-health/{own}/{word}");
                let original = probe.shift_remove(handler).unwrap_or_default();
                record.probe(&own, key, Map::from_iter([(handler.to_owned(), original)]));
                let ours = json!({ "path": path, "port": PROBES_PORT });
                probe.shift_insert(0, "httpGet".into(), ours);
                checks.push(Check { path, asks });
            }
            for hook in ["postStart", "preStop"] {
                let handler = &container["lifecycle"][hook];
                if handler.get("httpGet").is_some() || handler.get("tcpSocket").is_some() {
                    notes.push(format!(
                        "`lifecycle.{hook}` of `{own}` comes from the node by HTTP, and the sidecar refuses it: write it with `exec`"
                    ));
                }
            }
        }
    }
    (checks, notes)
}

/// Gives a container the handlers back that were taken from it, where they were not replaced since.
pub(super) fn give_back(container: &mut Value, probes: &BTreeMap<String, Map<String, Value>>) {
    for (key, handler) in probes {
        let Some(probe) = container.get_mut(key).and_then(Value::as_object_mut) else {
            continue;
        };
        let path = probe.get("httpGet").and_then(|get| get["path"].as_str());
        if path.is_some_and(|path| path.starts_with("/app-health/")) {
            probe.shift_remove("httpGet");
            for (position, (name, handler)) in handler.iter().enumerate() {
                probe.shift_insert(position, name.clone(), handler.clone());
            }
        }
    }
}

/// Which handler a probe has, and what is to be asked in its place.
fn asked(pod: &Value, probe: &Map<String, Value>) -> Option<(&'static str, Map<String, Value>)> {
    let port = |handler: &Value| match &handler["port"] {
        Value::Number(port) => u16::try_from(port.as_u64()?).ok().filter(|port| *port > 0),
        Value::String(port) => named_port(pod, port),
        _ => None,
    };
    // Who names a host means another one than the pod.
    let here = |handler: &Value| handler["host"].as_str().is_none_or(str::is_empty);
    let mut asks = Map::new();
    let handler = if let Some(get) = probe.get("httpGet").filter(|get| here(get)) {
        asks.insert("port".into(), port(get)?.into());
        if get["scheme"] == json!("HTTPS") {
            asks.insert("kind".into(), "tcp".into());
            return Some(("httpGet", asks));
        }
        asks.insert("kind".into(), "http".into());
        let target = get["path"].as_str().filter(|path| !path.is_empty());
        let target = target.unwrap_or("/");
        let slash = if target.starts_with('/') { "" } else { "/" };
        asks.insert("target".into(), format!("{slash}{target}").into());
        let mut headers = Map::new();
        for header in get["httpHeaders"].as_array().into_iter().flatten() {
            if let Some(value) = header["value"].as_str() {
                headers.insert(name(header).to_lowercase(), value.into());
            }
        }
        if !headers.is_empty() {
            asks.insert("headers".into(), headers.into());
        }
        "httpGet"
    } else if let Some(socket) = probe.get("tcpSocket").filter(|socket| here(socket)) {
        asks.insert("port".into(), port(socket)?.into());
        asks.insert("kind".into(), "tcp".into());
        "tcpSocket"
    } else if let Some(grpc) = probe.get("grpc") {
        asks.insert("port".into(), port(grpc)?.into());
        asks.insert("kind".into(), "grpc".into());
        if let Some(service) = grpc["service"]
            .as_str()
            .filter(|service| !service.is_empty())
        {
            asks.insert("grpc_service".into(), service.into());
        }
        "grpc"
    } else {
        return None;
    };
    Some((handler, asks))
}

/// Kubernetes' names, and ours in paths.
const PROBES: [(&str, &str); 3] = [
    ("startupProbe", "startupz"),
    ("livenessProbe", "livez"),
    ("readinessProbe", "readyz"),
];
