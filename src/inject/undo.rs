//! What was there before? An injection writes into an annotation what it replaced, so that it can be undone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    ALL_CONTAINERS, CONFIG_FILE, INIT_CONTAINERS, INJECTED, PREFIX, is_our_name, list_mut, name,
    others, probing, sidecar,
};

/// Takes out of `pod`, a pod or pod template, what an injection put in. Says whether there was anything.
pub fn undo(pod: &mut Value) -> bool {
    let Some(record) = Record::of(pod) else {
        return false;
    };
    for list in ALL_CONTAINERS {
        let Some(containers) = list_mut(pod, list) else {
            continue;
        };
        containers.retain(|container| !is_our_name(name(container)));
        for container in containers {
            let own = name(container).to_owned();
            if let Some(probes) = record.probes.get(&own) {
                probing::give_back(container, probes);
            }
            if record.late.contains(&own) {
                sidecar::stop_at_once(container);
            }
        }
    }
    if let Some(volumes) = list_mut(pod, "volumes") {
        volumes.retain(|volume| !is_our_name(name(volume)));
    }
    if let Some(spec) = pod.pointer_mut("/spec").and_then(Value::as_object_mut) {
        match &record.grace {
            None => {}
            Some(Grace::Absent) => drop(spec.shift_remove(sidecar::GRACE)),
            Some(Grace::Seconds(seconds)) => {
                spec.insert(sidecar::GRACE.into(), (*seconds).into());
            }
        }
        record.unmake(spec, &[INIT_CONTAINERS, "volumes"]);
    }
    let annotations = pod.pointer_mut("/metadata/annotations");
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        for ours in [CONFIG_FILE, INJECTED] {
            annotations.shift_remove(&format!("{PREFIX}{ours}"));
        }
    }
    if let Some(metadata) = pod.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        record.unmake(metadata, &["annotations"]);
    }
    if let Some(pod) = pod.as_object_mut() {
        record.unmake(pod, &["metadata"]);
    }
    true
}

/// What one injection replaced or made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Record {
    /// The handlers of probes that were taken over, by container and probe.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    probes: Probes,
    /// The containers that wait before they stop.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    late: Vec<String>,
    /// `terminationGracePeriodSeconds`, if it was changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grace: Option<Grace>,
    /// Lists and mappings that were not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    made: Vec<String>,
    /// What others may have changed since.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) put: others::Put,
}

type Probes = BTreeMap<String, BTreeMap<String, Map<String, Value>>>;

/// How long a pod had to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Grace {
    /// What Kubernetes gives: half a minute.
    Absent,
    /// So many.
    Seconds(u64),
}

impl Record {
    /// What the injection of `pod` wrote down, if there was one. Whoever destroys it has a pod with a sidecar
    /// that is not known as ours.
    pub(super) fn of(pod: &Value) -> Option<Self> {
        let text = pod["metadata"]["annotations"][format!("{PREFIX}{INJECTED}")].as_str()?;
        serde_json::from_str(text).ok()
    }

    pub(super) fn made(&mut self, key: &str) {
        self.made.push(key.into());
    }

    pub(super) fn probe(&mut self, container: &str, probe: &str, handler: Map<String, Value>) {
        let probes = self.probes.entry(container.into()).or_default();
        probes.insert(probe.into(), handler);
    }

    pub(super) fn late(&mut self, container: &str) {
        self.late.push(container.into());
    }

    pub(super) fn grace(&mut self, was: Grace) {
        self.grace = Some(was);
    }

    /// As it stands in the annotation.
    pub(super) fn text(&self) -> String {
        serde_json::to_string(self).expect("its keys are text and its values JSON")
    }

    /// Removes what was made and is empty again.
    fn unmake(&self, parent: &mut Map<String, Value>, keys: &[&str]) {
        for key in keys {
            let is_empty = match &parent.get(*key) {
                Some(Value::Array(list)) => list.is_empty(),
                Some(Value::Object(entries)) => entries.is_empty(),
                _ => false,
            };
            if is_empty && self.made.iter().any(|made| made == key) {
                parent.shift_remove(*key);
            }
        }
    }
}
