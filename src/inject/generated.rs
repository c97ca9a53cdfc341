//! What does `doorward.yaml` say that is made from annotations?

use serde_json::{Map, Value, json};

use super::annotations::{
    ADMIN_PORT, INBOUND_PORT, METRICS_PORT, OUTBOUND_PORT, PROBES_PORT, Wanted, intercepts,
};
use super::sidecar::{IDENTITY_DIR, POLICY_DIR, socket_name};
use super::{Identity, probing};

/// The whole file.
pub(super) fn config(wanted: &Wanted, probes: &[probing::Check]) -> Value {
    let mut config = Map::new();
    config.insert("identity".into(), identity(wanted));
    if let Some(intercept) = intercept(wanted) {
        config.insert("intercept".into(), intercept);
    }
    for (key, list) in [("inbound", &wanted.inbound), ("outbound", &wanted.outbound)] {
        if !list.is_empty() {
            config.insert(key.into(), list.clone().into());
        }
    }
    if wanted.policy.is_some() {
        config.insert("policy".into(), json!({ "dir": POLICY_DIR }));
    }
    let admin = json!({ "listen": format!("127.0.0.1:{ADMIN_PORT}") });
    config.insert("admin".into(), admin);
    let metrics = json!({ "listen": format!("0.0.0.0:{METRICS_PORT}") });
    config.insert("metrics".into(), metrics);
    if !probes.is_empty() {
        config.insert("probes".into(), self::probes(probes));
    }
    // It is told to stop when the application has ended: what is still open waits for nobody.
    config.insert("drain_grace".into(), "5s".into());
    Value::Object(config)
}

fn identity(wanted: &Wanted) -> Value {
    let mut identity = match &wanted.identity {
        Identity::SpiffeCsi | Identity::Socket(_) => {
            let socket = socket_name(&wanted.identity);
            json!({ "workload_api": format!("unix://{IDENTITY_DIR}/{socket}") })
        }
        Identity::CertManager => json!({
            "files": {
                "cert": format!("{IDENTITY_DIR}/tls.crt"),
                "key": format!("{IDENTITY_DIR}/tls.key"),
                "bundle": format!("{IDENTITY_DIR}/ca.crt"),
            },
        }),
    };
    if let Some(id) = &wanted.spiffe_id {
        identity["spiffe_id"] = id.to_string().into();
    }
    identity
}

fn intercept(wanted: &Wanted) -> Option<Value> {
    let (inbound, outbound) = (intercepts(&wanted.inbound), intercepts(&wanted.outbound));
    if !wanted.intercept || !(inbound || outbound) {
        return None;
    }
    let mut section = json!({ "user": wanted.user });
    if inbound {
        let ours = [METRICS_PORT, PROBES_PORT].map(Value::from);
        let theirs = wanted
            .exclude_inbound_ports
            .iter()
            .cloned()
            .map(Value::from);
        let listening = wanted
            .inbound
            .iter()
            .filter_map(super::annotations::listen_port);
        let excluded: Vec<_> = ours
            .into_iter()
            .chain(listening.map(Value::from))
            .chain(theirs)
            .collect();
        section["inbound"] = json!({ "port": INBOUND_PORT, "exclude_ports": excluded });
    }
    if outbound {
        // Names are asked for by TCP where an answer is long.
        let excluded = std::iter::once(Value::from(53)).chain(
            wanted
                .exclude_outbound_ports
                .iter()
                .cloned()
                .map(Value::from),
        );
        let mut outbound = json!({
            "port": OUTBOUND_PORT,
            "exclude_ports": excluded.collect::<Vec<_>>(),
            "otherwise": wanted.otherwise,
        });
        if !wanted.exclude_outbound_addresses.is_empty() {
            outbound["exclude_addresses"] = wanted.exclude_outbound_addresses.clone().into();
        }
        section["outbound"] = outbound;
    }
    Some(section)
}

/// The section `probes`.
pub(super) fn probes(probes: &[probing::Check]) -> Value {
    let checks: Vec<_> = probes.iter().map(probing::Check::written).collect();
    json!({ "listen": format!("0.0.0.0:{PROBES_PORT}"), "checks": checks })
}
