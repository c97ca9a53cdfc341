//! How does the API server know who vouches for us? By `caBundle` in the webhook's configuration, which is
//! kept what our trust bundle is: that changes, with every rotation of a root.
//!
//! Looked at again and again, because others write the configuration too: whoever installs a new version of
//! it from a chart or a manifest takes the bundle away with that.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backon::{BackoffBuilder, ExponentialBuilder};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pem::{EncodeConfig, LineEnding, Pem};
use prometheus::{Gauge, IntCounter, Registry};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::cluster::{Cluster, ClusterError};
use crate::identity::{Bundle, Material};
use crate::live::Live;
use crate::telemetry::chain;
use crate::tls::WebServer;

/// Publishes our bundle in one `MutatingWebhookConfiguration`.
#[derive(Debug)]
pub(super) struct Publisher {
    cluster: Cluster,
    name: String,
    metrics: Metrics,
}

/// How often the configuration is looked at. Until then, whoever overwrote it keeps pods from being made.
const EVERY: Duration = Duration::from_secs(10);

impl Publisher {
    /// For the configuration called `name`.
    pub(super) fn new(cluster: Cluster, name: String, metrics: Metrics) -> Self {
        Self {
            cluster,
            name,
            metrics,
        }
    }

    /// Publishes whatever bundle is in force, for ever. `done` is called each time that the configuration
    /// says what it should.
    pub(super) async fn keep(self, identity: Arc<Live<WebServer>>, done: impl Fn() + Send) {
        let pace = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(EVERY)
            .without_max_times()
            .with_jitter();
        let mut delays = pace.build();
        let mut changes = identity.changes();
        loop {
            changes.mark_unchanged();
            let server = identity.wait().await;
            let pause = match self.publish(&bundle(server.value.material())).await {
                Ok(changed) => {
                    delays = pace.build();
                    self.metrics.published(SystemTime::now());
                    done();
                    if changed {
                        tracing::info!(
                            configuration = self.name,
                            "our trust bundle is published: the API server knows us by it"
                        );
                    }
                    EVERY
                }
                Err(error) => {
                    let pause = delays.next().unwrap_or(EVERY).min(EVERY);
                    self.metrics.failures.inc();
                    tracing::error!(
                        configuration = self.name,
                        error = %chain(&error),
                        again = ?pause,
                        "our trust bundle cannot be published: once it changes, no pod is admitted"
                    );
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = changes.changed() => {}
            }
        }
    }

    /// Whether anything had to be changed.
    async fn publish(&self, bundle: &str) -> Result<bool, PublishError> {
        let path = format!(
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}",
            self.name
        );
        let found = self.cluster.get(&path).await.map_err(PublishError::Get)?;
        let Some(patch) = patch(&found, bundle)? else {
            return Ok(false);
        };
        let patched = self.cluster.patch(&path, &patch).await;
        patched.map_err(PublishError::Patch)?;
        Ok(true)
    }
}

/// The roots that vouch for us, as `caBundle` wants them: PEM in base64.
fn bundle(material: &Material) -> String {
    let own = material.bundles().get(material.id().trust_domain());
    // `Material` has one for the trust domain of its own.
    let roots = own.into_iter().flat_map(Bundle::certificates);
    let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
    let pem = |root: &CertificateDer<'_>| {
        pem::encode_config(&Pem::new("CERTIFICATE", root.to_vec()), lines)
    };
    STANDARD.encode(roots.map(pem).collect::<String>())
}

/// What makes each webhook of the configuration know us by `bundle`; none, if all do.
fn patch(configuration: &Value, bundle: &str) -> Result<Option<Value>, PublishError> {
    let webhooks = configuration["webhooks"].as_array();
    let webhooks = webhooks.filter(|webhooks| !webhooks.is_empty());
    let webhooks = webhooks.ok_or(PublishError::NoWebhook)?;
    let mut steps = Vec::new();
    for (index, webhook) in webhooks.iter().enumerate() {
        if webhook["clientConfig"]["caBundle"] != *bundle {
            steps.push(json!({
                "op": "add",
                "path": format!("/webhooks/{index}/clientConfig/caBundle"),
                "value": bundle,
            }));
        }
    }
    if steps.is_empty() {
        return Ok(None);
    }
    // Places in a list mean something else once somebody has changed it.
    let version = &configuration["metadata"]["resourceVersion"];
    steps.insert(
        0,
        json!({ "op": "test", "path": "/metadata/resourceVersion", "value": version }),
    );
    Ok(Some(steps.into()))
}

/// Why the bundle is not published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("the webhook's configuration cannot be read")]
    Get(#[source] ClusterError),
    #[error("it cannot be changed")]
    Patch(#[source] ClusterError),
    #[error("it lists no webhook")]
    NoWebhook,
}

/// What is counted of publishing.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    published: Gauge,
    failures: IntCounter,
}

impl Metrics {
    /// Declares the families.
    pub(super) fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            published: Gauge::new(
                "doorward_webhook_bundle_published_timestamp_seconds",
                "When the webhook's configuration was last seen to hold our trust bundle; 0 if never.",
            )?,
            failures: IntCounter::new(
                "doorward_webhook_bundle_failures_total",
                "Times that our trust bundle could not be published.",
            )?,
        };
        registry.register(Box::new(metrics.published.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        Ok(metrics)
    }

    fn published(&self, now: SystemTime) {
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.published.set(since.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::{self, Ca};

    fn configuration(bundles: &[Option<&str>]) -> Value {
        let webhooks = bundles.iter().map(|bundle| match bundle {
            Some(bundle) => json!({ "name": "a", "clientConfig": { "caBundle": bundle } }),
            None => json!({ "name": "a", "clientConfig": { "service": { "name": "doorward" } } }),
        });
        let webhooks: Vec<_> = webhooks.collect();
        json!({ "metadata": { "resourceVersion": "7" }, "webhooks": webhooks })
    }

    #[test]
    fn only_what_is_not_as_it_should_be_is_changed_and_only_if_nobody_else_has() {
        assert_eq!(patch(&configuration(&[Some("new")]), "new").unwrap(), None);
        let found = configuration(&[Some("new"), None, Some("old")]);
        let steps = patch(&found, "new").unwrap().unwrap();
        let steps: json_patch::Patch = serde_json::from_value(steps).unwrap();
        assert_eq!(steps.len(), 3);
        let mut changed = found;
        json_patch::patch(&mut changed, &steps).unwrap();
        assert_eq!(patch(&changed, "new").unwrap(), None);
        changed["metadata"]["resourceVersion"] = "8".into();
        assert!(json_patch::patch(&mut changed, &steps).is_err());
    }

    #[test]
    fn a_configuration_without_webhooks_is_told() {
        for found in [configuration(&[]), json!({}), Value::Null] {
            let told = patch(&found, "new").unwrap_err();
            assert!(matches!(told, PublishError::NoWebhook));
        }
    }

    #[test]
    fn the_bundle_is_every_root_of_our_own_trust_domain() {
        let (own, other) = (Ca::new("example.org"), Ca::new("example.com"));
        let minted = own.mint(&testing::leaf("spiffe://example.org/webhook"));
        let material = minted.material([own.bundle(), other.bundle()].into_iter().collect());
        let text = STANDARD.decode(bundle(&material.unwrap())).unwrap();
        let roots = pem::parse_many(text).unwrap();
        assert_eq!(roots.len(), 1);
        assert_eq!(roots[0].contents(), own.certificate().as_ref());
    }
}
