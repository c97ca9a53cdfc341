//! What is answered to one review, and what is told of it?

use std::time::Instant;

use json_patch::Patch;
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};
use serde_json::Value;

use super::review::{Malformed, Review, Verdict};
use crate::inject::{self, Outcome, Owner, Reason};

/// Answers reviews.
#[derive(Debug)]
pub(super) struct Reviewer {
    injection: inject::Settings,
    reviews: IntCounterVec,
    duration: Histogram,
}

const MALFORMED: &str = "malformed";

impl Reviewer {
    /// Injects as `injection` says, and counts in `registry`.
    pub(super) fn new(
        injection: inject::Settings,
        registry: &Registry,
    ) -> prometheus::Result<Self> {
        let reviews = IntCounterVec::new(
            Opts::new(
                "doorward_webhook_reviews_total",
                "Reviews that were answered, by what became of the pod.",
            ),
            &["result"],
        )?;
        let duration = Histogram::with_opts(
            HistogramOpts::new(
                "doorward_webhook_review_duration_seconds",
                "Time from the head of a review to its answer.",
            )
            .buckets(vec![
                0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
                10.0,
            ]),
        )?;
        for label in [
            Verdict::INJECTED,
            Verdict::LEFT_ALONE,
            Verdict::REFUSED,
            MALFORMED,
        ] {
            let _ = reviews.with_label_values(&[label]);
        }
        registry.register(Box::new(reviews.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        Ok(Self {
            injection,
            reviews,
            duration,
        })
    }

    /// The answer to `text`, which began to arrive when it `began`.
    pub(super) fn review(&self, text: &[u8], began: Instant) -> Result<Vec<u8>, Malformed> {
        let review = Review::parse(text).inspect_err(|_| {
            self.reviews.with_label_values(&[MALFORMED]).inc();
        })?;
        let (verdict, warnings) = self.decide(&review);
        self.reviews.with_label_values(&[verdict.label()]).inc();
        self.duration.observe(began.elapsed().as_secs_f64());
        tell(&review, &verdict);
        Ok(review.answer(&verdict, &warnings))
    }

    fn decide(&self, review: &Review) -> (Verdict, Vec<String>) {
        if !review.is_new_pod() {
            let why = format!("{} is none of ours: only new pods are", review.what());
            return (Verdict::LeftAlone(why, Patch::default()), Vec::new());
        }
        let owner = owner(&review.object);
        let owner = Owner {
            name: owner.as_deref(),
        };
        let mut pod = review.object.clone();
        match inject::pod(&self.injection, owner, &mut pod) {
            Ok(Outcome::Injected { notes }) => {
                let warnings = notes.iter().map(|note| format!("doorward: {note}"));
                let patch = json_patch::diff(&review.object, &pod);
                (Verdict::Injected(patch), warnings.collect())
            }
            Ok(Outcome::LeftAlone(reason)) => {
                // Somebody wants it injected, and may not know.
                let surprise = !matches!(reason, Reason::Disabled | Reason::Mirror);
                let warning = format!("doorward: this pod gets no sidecar: {reason}");
                let patch = json_patch::diff(&review.object, &pod);
                let verdict = Verdict::LeftAlone(reason.to_string(), patch);
                (verdict, surprise.then_some(warning).into_iter().collect())
            }
            Err(error) => (Verdict::Refused(format!("doorward: {error}")), Vec::new()),
        }
    }
}

/// What the pod belongs to: a Deployment makes it through a ReplicaSet, a CronJob through a Job, whose names
/// are theirs with something behind.
fn owner(pod: &Value) -> Option<String> {
    let metadata = &pod["metadata"];
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    let controller = owners
        .filter(|owner| owner["controller"] == true)
        .find_map(|owner| Some((owner["kind"].as_str()?, owner["name"].as_str()?)));
    let name = match controller {
        Some(("ReplicaSet", name)) => {
            let hash = metadata["labels"]["pod-template-hash"].as_str();
            let deployment = hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
            deployment.unwrap_or(name)
        }
        Some(("Job", name)) => match name.rsplit_once('-') {
            // The minutes since 1970 at which it was due.
            Some((cron_job, due)) if due.len() >= 8 && due.bytes().all(|b| b.is_ascii_digit()) => {
                cron_job
            }
            _ => name,
        },
        Some((_, name)) => name,
        None => metadata["name"].as_str()?,
    };
    Some(name.to_owned())
}

fn tell(review: &Review, verdict: &Verdict) {
    let (uid, namespace, pod) = (&review.uid, &review.namespace, review.name());
    let dry_run = review.is_dry_run();
    match verdict {
        Verdict::Injected(patch) => {
            tracing::info!(
                uid,
                namespace,
                pod,
                dry_run,
                steps = patch.len(),
                "injected"
            );
        }
        Verdict::LeftAlone(why, _) => {
            tracing::info!(uid, namespace, pod, dry_run, why, "left alone");
        }
        Verdict::Refused(why) => {
            tracing::warn!(uid, namespace, pod, dry_run, why, "refused");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn review(object: &Value) -> (Value, String) {
        let registry = Registry::new();
        let settings = inject::Settings {
            policy: Some("ledger-policy".into()),
            ..inject::Settings::default()
        };
        let reviewer = Reviewer::new(settings, &registry).unwrap();
        let review = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1",
                "kind": { "group": "", "version": "v1", "kind": "Pod" },
                "operation": "CREATE",
                "namespace": "bank",
                "object": object,
            },
        });
        let answer = reviewer.review(review.to_string().as_bytes(), Instant::now());
        let mut answer: Value = serde_json::from_slice(&answer.unwrap()).unwrap();
        let counted = registry.gather();
        let reviews = counted
            .iter()
            .find(|family| family.name().ends_with("reviews_total"));
        let counted = reviews.unwrap().get_metric().iter();
        let counted = counted.filter(|metric| metric.get_counter().get_value() > 0.0);
        let labels: Vec<_> = counted
            .map(|metric| metric.get_label()[0].value().to_owned())
            .collect();
        (answer["response"].take(), labels.join(" "))
    }

    fn pod(annotations: &Value) -> Value {
        json!({
            "metadata": { "name": "ledger", "annotations": annotations },
            "spec": { "containers": [{ "name": "app", "image": "app" }], "serviceAccountName": "ledger" },
        })
    }

    fn patched(object: &Value, answer: &Value) -> Value {
        use base64::Engine as _;
        let patch =
            base64::engine::general_purpose::STANDARD.decode(answer["patch"].as_str().unwrap());
        let patch: Patch = serde_json::from_slice(&patch.unwrap()).unwrap();
        let mut object = object.clone();
        json_patch::patch(&mut object, &patch).unwrap();
        object
    }

    #[test]
    fn a_pod_is_injected_once_however_often_it_is_asked_about() {
        let plain = pod(&json!({ "doorward.dev/port": "8080" }));
        let (answer, counted) = review(&plain);
        assert_eq!(
            (answer["allowed"].as_bool(), counted.as_str()),
            (Some(true), "injected")
        );
        let injected = patched(&plain, &answer);
        let containers = injected["spec"]["initContainers"].as_array().unwrap();
        assert!(
            containers
                .iter()
                .any(|container| container["name"] == inject::SIDECAR)
        );
        let (again, counted) = review(&injected);
        assert_eq!(
            (again["allowed"].as_bool(), counted.as_str()),
            (Some(true), "injected")
        );
        assert!(again.get("patch").is_none(), "{again}");
    }

    #[test]
    fn who_opted_out_is_left_alone_and_loses_what_was_injected_before() {
        let plain = pod(&json!({ "doorward.dev/port": "8080", "doorward.dev/inject": "disabled" }));
        let (answer, counted) = review(&plain);
        assert_eq!(
            (answer["allowed"].as_bool(), counted.as_str()),
            (Some(true), "left_alone")
        );
        assert!(answer.get("patch").is_none() && answer.get("warnings").is_none());
        let wanted = pod(&json!({ "doorward.dev/port": "8080" }));
        let mut injected = patched(&wanted, &review(&wanted).0);
        injected["metadata"]["annotations"]["doorward.dev/inject"] = "disabled".into();
        assert_eq!(patched(&injected, &review(&injected).0), plain);
    }

    #[test]
    fn whoever_may_be_surprised_is_warned() {
        let mut on_the_node = pod(&json!({ "doorward.dev/port": "8080" }));
        on_the_node["spec"]["hostNetwork"] = true.into();
        for (object, told) in [
            (on_the_node, "hostNetwork: true"),
            (pod(&json!({})), "it names no port"),
        ] {
            let (answer, counted) = review(&object);
            assert_eq!(
                (answer["allowed"].as_bool(), counted.as_str()),
                (Some(true), "left_alone")
            );
            let warning = answer["warnings"][0].as_str().unwrap();
            assert!(warning.contains(told), "{warning}");
        }
    }

    #[test]
    fn what_cannot_be_injected_does_not_come_to_be() {
        for (object, told) in [
            (
                pod(&json!({ "doorward.dev/prot": "8080" })),
                "doorward.dev/prot",
            ),
            (
                pod(&json!({ "doorward.dev/port": "none" })),
                "doorward.dev/port",
            ),
            (json!({ "spec": {} }), "this is no pod template"),
            (Value::Null, "this is no pod template"),
            (json!([1, 2]), "this is no pod template"),
            (json!("pod"), "this is no pod template"),
        ] {
            let (answer, counted) = review(&object);
            assert_eq!(
                (answer["allowed"].as_bool(), counted.as_str()),
                (Some(false), "refused")
            );
            let message = answer["status"]["message"].as_str().unwrap();
            assert!(
                message.starts_with("doorward: ") && message.contains(told),
                "{message}"
            );
        }
    }

    #[test]
    fn a_pod_belongs_to_what_its_controller_was_made_for() {
        let owned = |kind: &str, name: &str| {
            json!({ "metadata": {
                "generateName": "x-",
                "labels": { "pod-template-hash": "5d4f8c7b9" },
                "ownerReferences": [
                    { "kind": "Other", "name": "no" },
                    { "kind": kind, "name": name, "controller": true },
                ],
            }})
        };
        for (object, expected) in [
            (owned("ReplicaSet", "ledger-5d4f8c7b9"), Some("ledger")),
            (owned("ReplicaSet", "ledger-abc"), Some("ledger-abc")),
            (owned("StatefulSet", "db-5d4f8c7b9"), Some("db-5d4f8c7b9")),
            (owned("Job", "report-29367365"), Some("report")),
            (owned("Job", "report-2026"), Some("report-2026")),
            (json!({ "metadata": { "name": "alone" } }), Some("alone")),
            (json!({ "metadata": { "generateName": "alone-" } }), None),
            (Value::Null, None),
        ] {
            assert_eq!(owner(&object).as_deref(), expected, "{object}");
        }
    }
}
