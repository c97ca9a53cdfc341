//! What stands in the pod when it has a sidecar? Containers, volumes, and a stop that comes in time.
//!
//! The sidecar is an init container that restarts: it is ready before the application starts, ends after it,
//! and keeps no Job from ending (Kubernetes 1.29). Its health is asked at the metrics listener.

use serde_json::{Map, Value, json};

use super::annotations::{METRICS_PORT, PROBES_PORT, Wanted};
use super::undo::{Grace, Record};
use super::{
    CONFIG_FILE, CONFIG_VOLUME, IDENTITY_VOLUME, INIT_CONTAINERS, INTERCEPTOR, Identity,
    POLICY_VOLUME, PREFIX, SIDECAR, generated, list_mut, name, probing, yaml,
};

/// Puts our containers before all others, and our volumes behind them.
pub(super) fn put_in(pod: &mut Value, wanted: &Wanted, record: &mut Record) {
    let Some(spec) = pod.pointer_mut("/spec").and_then(Value::as_object_mut) else {
        return;
    };
    let containers = list(spec, INIT_CONTAINERS, record);
    containers.insert(0, sidecar(wanted));
    if wanted.intercepts_inbound() || wanted.intercepts_outbound() {
        containers.insert(0, interceptor(wanted));
    }
    list(spec, "volumes", record).extend(volumes(wanted));
}

fn list<'a>(
    spec: &'a mut Map<String, Value>,
    key: &'static str,
    record: &mut Record,
) -> &'a mut Vec<Value> {
    let value = spec.entry(key).or_insert_with(|| {
        record.made(key);
        Value::Null
    });
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value
        .as_array_mut()
        .expect("it was made a list where it was none")
}

fn sidecar(wanted: &Wanted) -> Value {
    let mut security = security();
    security["runAsNonRoot"] = true.into();
    security["runAsUser"] = wanted.user.into();
    security["runAsGroup"] = wanted.user.into();
    let mut mounts = vec![
        mount(CONFIG_VOLUME, CONFIG_DIR),
        mount(IDENTITY_VOLUME, IDENTITY_DIR),
    ];
    if wanted.policy.is_some() {
        mounts.push(mount(POLICY_VOLUME, POLICY_DIR));
    }
    let asks = |path: &str| json!({ "path": path, "port": METRICS_PORT });
    with_image(
        json!({
            "name": SIDECAR,
            "args": ["run", "--config", config_path()],
            "restartPolicy": "Always",
            "ports": [{ "name": "doorward", "containerPort": METRICS_PORT }],
            // Nothing after it starts before it has an identity and serves.
            "startupProbe": { "httpGet": asks("/ready"), "periodSeconds": 1, "failureThreshold": 120 },
            "readinessProbe": { "httpGet": asks("/ready"), "periodSeconds": 5 },
            "livenessProbe": { "httpGet": asks("/live"), "periodSeconds": 10, "failureThreshold": 6 },
            "resources": resources(wanted),
            "securityContext": security,
            "volumeMounts": mounts,
        }),
        &wanted.image,
        wanted,
    )
}

/// It runs once, before all others, and is gone when the sidecar starts: nobody has its capability then.
fn interceptor(wanted: &Wanted) -> Value {
    let mut security = security();
    security["capabilities"]["add"] = json!(["NET_ADMIN"]);
    // A capability that a container is given is in force for root alone.
    security["runAsNonRoot"] = false.into();
    security["runAsUser"] = 0.into();
    security["runAsGroup"] = 0.into();
    with_image(
        json!({
            "name": INTERCEPTOR,
            "args": ["intercept", "apply", "--config", config_path()],
            "resources": resources(wanted),
            "securityContext": security,
            "volumeMounts": [mount(CONFIG_VOLUME, CONFIG_DIR)],
        }),
        &wanted.intercept_image,
        wanted,
    )
}

fn with_image(mut container: Value, image: &str, wanted: &Wanted) -> Value {
    if let Some(container) = container.as_object_mut() {
        container.shift_insert(1, "image".into(), image.into());
        if let Some(policy) = &wanted.pull_policy {
            container.shift_insert(2, "imagePullPolicy".into(), policy.clone().into());
        }
    }
    container
}

/// As little as there is.
fn security() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

fn resources(wanted: &Wanted) -> Value {
    let resources = &wanted.resources;
    json!({
        "requests": { "cpu": resources.cpu_request, "memory": resources.memory_request },
        "limits": { "cpu": resources.cpu_limit, "memory": resources.memory_limit },
    })
}

fn mount(volume: &str, dir: &str) -> Value {
    json!({ "name": volume, "mountPath": dir, "readOnly": true })
}

fn volumes(wanted: &Wanted) -> Vec<Value> {
    let config = match &wanted.config {
        Some(name) => json!({ "configMap": { "name": name } }),
        None => json!({ "downwardAPI": { "items": [{
            "path": CONFIG_FILE,
            "fieldRef": { "fieldPath": format!("metadata.annotations['{PREFIX}{CONFIG_FILE}']") },
        }] } }),
    };
    let identity = match &wanted.identity {
        Identity::SpiffeCsi => json!({ "csi": { "driver": "csi.spiffe.io", "readOnly": true } }),
        Identity::CertManager => json!({ "csi": {
            "driver": "spiffe.csi.cert-manager.io",
            "readOnly": true,
            // Without it the key is for root alone.
            "volumeAttributes": { "spiffe.csi.cert-manager.io/fs-group": wanted.user.to_string() },
        } }),
        Identity::Socket(path) => {
            let dir = path.parent().map(|dir| dir.display().to_string());
            json!({ "hostPath": { "path": dir, "type": "Directory" } })
        }
    };
    let policy = wanted.policy.as_ref();
    let policy = policy.map(|name| json!({ "configMap": { "name": name } }));
    let all = [
        (CONFIG_VOLUME, Some(config)),
        (IDENTITY_VOLUME, Some(identity)),
        (POLICY_VOLUME, policy),
    ];
    all.into_iter()
        .filter_map(|(name, volume)| {
            let mut volume = volume?;
            volume
                .as_object_mut()?
                .shift_insert(0, "name".into(), name.into());
            Some(volume)
        })
        .collect()
}

/// How the socket of a Workload API is called in its directory.
pub(super) fn socket_name(identity: &Identity) -> String {
    match identity {
        Identity::Socket(path) => path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        // As SPIRE's charts and the driver's examples call it.
        Identity::SpiffeCsi | Identity::CertManager => "spire-agent.sock".into(),
    }
}

/// What a configuration must say that is not made here.
pub(super) fn asked_of_the_config_map(
    name: &str,
    wanted: &Wanted,
    probes: &[probing::Check],
) -> String {
    let mut asked = json!({ "metrics": { "listen": format!("0.0.0.0:{METRICS_PORT}") } });
    if wanted.intercept {
        let mut excluded = vec![METRICS_PORT];
        if !probes.is_empty() {
            excluded.push(PROBES_PORT);
        }
        asked["intercept"] = json!({
            "user": wanted.user,
            "inbound": { "exclude_ports": excluded },
        });
    }
    if !probes.is_empty() {
        asked["probes"] = generated::probes(probes);
    }
    let asked = yaml::write(&asked);
    format!(
        "the ConfigMap `{name}` must have the key `{CONFIG_FILE}`, and in it beside all else:\n{}",
        asked.trim_end()
    )
}

/// Lets the application serve for `delay` seconds after its pod was told to stop: until then not everybody
/// has learned that it goes, and the sidecar ends after it. It keeps the time that it had to stop.
pub(super) fn delay_the_stop(pod: &mut Value, delay: u64, record: &mut Record) {
    let mut any = false;
    for container in list_mut(pod, "containers").into_iter().flatten() {
        if container["lifecycle"]["preStop"].is_object() {
            continue;
        }
        let own = name(container).to_owned();
        if let Some(container) = container.as_object_mut() {
            let lifecycle = container.entry("lifecycle").or_insert_with(|| json!({}));
            if lifecycle.is_null() {
                *lifecycle = json!({});
            }
            lifecycle["preStop"] = json!({ "sleep": { "seconds": delay } });
            record.late(&own);
            any = true;
        }
    }
    let spec = pod.pointer_mut("/spec").and_then(Value::as_object_mut);
    if let (true, Some(spec)) = (any, spec) {
        let was = spec.get(GRACE).and_then(Value::as_u64);
        record.grace(was.map_or(Grace::Absent, Grace::Seconds));
        let grace = was.unwrap_or(USUAL_GRACE).saturating_add(delay);
        spec.insert(GRACE.into(), grace.into());
    }
}

/// Takes the delay back, if it is still ours.
pub(super) fn stop_at_once(container: &mut Value) {
    let Some(container) = container.as_object_mut() else {
        return;
    };
    if let Some(lifecycle) = container
        .get_mut("lifecycle")
        .and_then(Value::as_object_mut)
    {
        if lifecycle
            .get("preStop")
            .is_some_and(|hook| hook.get("sleep").is_some())
        {
            lifecycle.shift_remove("preStop");
        }
        if lifecycle.is_empty() {
            container.shift_remove("lifecycle");
        }
    }
}

fn config_path() -> String {
    format!("{CONFIG_DIR}/{CONFIG_FILE}")
}

/// Not within each other: a volume that is only read has no place for another one.
const CONFIG_DIR: &str = "/etc/doorward/config";
pub(super) const POLICY_DIR: &str = "/etc/doorward/policy";
pub(super) const IDENTITY_DIR: &str = "/run/doorward/identity";

pub(super) const GRACE: &str = "terminationGracePeriodSeconds";

/// What Kubernetes gives, in seconds.
const USUAL_GRACE: u64 = 30;
