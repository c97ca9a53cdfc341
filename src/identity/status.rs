//! How is our identity doing, in metrics?

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{Gauge, GaugeVec, IntCounter, IntGaugeVec, Opts, Registry};

use super::{Bundles, Material};

/// The metrics of the identity in force, once in a process.
#[derive(Clone, Debug)]
pub struct Status {
    info: IntGaugeVec,
    not_after: Gauge,
    updated: Gauge,
    rotations: IntCounter,
    withdrawals: IntCounter,
    failures: IntCounter,
    bundle_updated: GaugeVec,
    bundle_generation: IntGaugeVec,
    last: Option<Last>,
}

/// What was last put in force, to tell a new certificate from a new bundle.
#[derive(Clone, Debug)]
struct Last {
    serial: String,
    bundles: std::sync::Arc<Bundles>,
}

impl Status {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let status = Self {
            info: IntGaugeVec::new(
                Opts::new(
                    "doorward_identity_info",
                    "Always 1; names the SPIFFE ID in force.",
                ),
                &["spiffe_id"],
            )?,
            not_after: Gauge::new(
                "doorward_identity_not_after_timestamp_seconds",
                "When the certificate in force ends; 0 while there is none.",
            )?,
            updated: Gauge::new(
                "doorward_identity_updated_timestamp_seconds",
                "When the identity source last gave us a certificate or a bundle.",
            )?,
            rotations: IntCounter::new(
                "doorward_identity_rotations_total",
                "Certificates put in force after the first one.",
            )?,
            withdrawals: IntCounter::new(
                "doorward_identity_withdrawals_total",
                "Times that the identity source took our certificate back.",
            )?,
            failures: IntCounter::new(
                "doorward_identity_source_failures_total",
                "Times that the identity source could not be asked, or gave something unusable.",
            )?,
            bundle_updated: GaugeVec::new(
                Opts::new(
                    "doorward_bundle_updated_timestamp_seconds",
                    "When the trust bundle of a trust domain last changed.",
                ),
                &["trust_domain"],
            )?,
            bundle_generation: IntGaugeVec::new(
                Opts::new(
                    "doorward_bundle_generation",
                    "How many times the trust bundle of a trust domain has changed; the first counts.",
                ),
                &["trust_domain"],
            )?,
            last: None,
        };
        registry.register(Box::new(status.info.clone()))?;
        registry.register(Box::new(status.not_after.clone()))?;
        registry.register(Box::new(status.updated.clone()))?;
        registry.register(Box::new(status.rotations.clone()))?;
        registry.register(Box::new(status.withdrawals.clone()))?;
        registry.register(Box::new(status.failures.clone()))?;
        registry.register(Box::new(status.bundle_updated.clone()))?;
        registry.register(Box::new(status.bundle_generation.clone()))?;
        Ok(status)
    }

    /// Tells of the identity that is in force since `since`.
    pub fn published(&mut self, material: &Material, since: SystemTime) {
        let seconds = |time: SystemTime| {
            time.duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64()
        };
        self.info.reset();
        self.info
            .with_label_values(&[material.id().as_str()])
            .set(1);
        self.not_after.set(seconds(material.leaf().not_after));
        // A new revocation list is nothing that the source gave.
        let of_source = self.last.as_ref().is_none_or(|last| {
            last.serial != material.leaf().serial
                || last.bundles.crls() == material.bundles().crls()
        });
        if of_source {
            self.updated.set(seconds(since));
        }
        let last = self.last.replace(Last {
            serial: material.leaf().serial.clone(),
            bundles: material.bundles().clone(),
        });
        if last
            .as_ref()
            .is_some_and(|last| last.serial != material.leaf().serial)
        {
            self.rotations.inc();
        }
        for (domain, bundle) in material.bundles().iter() {
            let before = last.as_ref().and_then(|last| last.bundles.get(domain));
            if before != Some(bundle) {
                self.bundle_updated
                    .with_label_values(&[domain.as_str()])
                    .set(seconds(since));
                self.bundle_generation
                    .with_label_values(&[domain.as_str()])
                    .inc();
            }
        }
        for (gone, _) in last.iter().flat_map(|last| last.bundles.iter()) {
            if material.bundles().get(gone).is_none() {
                // It may be gone from one of the two already: then there is nothing to remove.
                let _ = self.bundle_updated.remove_label_values(&[gone.as_str()]);
                let _ = self.bundle_generation.remove_label_values(&[gone.as_str()]);
            }
        }
    }

    /// Tells that there is no identity any more.
    pub fn withdrawn(&mut self) {
        self.info.reset();
        self.not_after.set(0.0);
        self.withdrawals.inc();
    }

    /// Tells of a source that failed.
    pub fn failed(&self) {
        self.failures.inc();
    }
}
