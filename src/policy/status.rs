//! Which policy is in force, in metrics?

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, GaugeVec, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

use super::cedar::Engine;
use super::governance::Grant;
use crate::live::Snapshot;

/// The metrics of the policy as a whole, once in a process.
#[derive(Clone, Debug)]
pub struct Status {
    generation: IntGauge,
    loaded: Gauge,
    policies: IntGauge,
    failures: IntCounter,
    terms: Terms,
}

impl Status {
    /// Registers the families.
    ///
    /// # Errors
    /// If a family of the same name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let status = Self {
            generation: IntGauge::new(
                "doorward_policy_generation",
                "How many times policy was put in force; audit records name it.",
            )?,
            loaded: Gauge::new(
                "doorward_policy_loaded_timestamp_seconds",
                "When the policy in force was loaded.",
            )?,
            policies: IntGauge::new(
                "doorward_policy_policies",
                "Policies in force, permits and forbids together.",
            )?,
            failures: IntCounter::new(
                "doorward_policy_load_failures_total",
                "Changes of the policy directory that were not put in force, because something in it is wrong.",
            )?,
            terms: Terms::new()?,
        };
        registry.register(Box::new(status.generation.clone()))?;
        registry.register(Box::new(status.loaded.clone()))?;
        registry.register(Box::new(status.policies.clone()))?;
        registry.register(Box::new(status.failures.clone()))?;
        registry.register(Box::new(status.terms.clone()))?;
        Ok(status)
    }

    /// Tells of the policy that is now in force.
    pub fn published(&self, snapshot: &Snapshot<Engine>) {
        self.generation
            .set(i64::try_from(snapshot.generation).unwrap_or(i64::MAX));
        self.loaded.set(
            snapshot
                .since
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs_f64(),
        );
        self.policies
            .set(i64::try_from(snapshot.value.policies()).unwrap_or(i64::MAX));
        let rules = snapshot.value.rules().into_iter();
        self.terms
            .keep(rules.map(|rule| rule.grant.clone()).collect());
    }

    /// Tells of a directory that could not be loaded.
    pub fn failed(&self) {
        self.failures.inc();
    }
}

/// Until when grants are in force, told as it is when somebody asks: a grant ends without any change of
/// policy.
#[derive(Clone, Debug)]
struct Terms {
    grants: Arc<Mutex<Vec<Arc<Grant>>>>,
    states: IntGaugeVec,
    ends: GaugeVec,
}

/// Grants whose ends are told one by one; of more of them, none is.
const MOST_ENDS: usize = 1000;

impl Terms {
    fn new() -> prometheus::Result<Self> {
        Ok(Self {
            grants: Arc::default(),
            states: IntGaugeVec::new(
                Opts::new(
                    "doorward_policy_grants",
                    "Policies by `state`: in_force; of these, ends_soon (within 14 days) and \
                     review_overdue (@review is past); and ended, which allow nothing and are still in the \
                     directory.",
                ),
                &["state"],
            )?,
            ends: GaugeVec::new(
                Opts::new(
                    "doorward_grant_expires_timestamp_seconds",
                    "When a grant ends or has ended; `grant` is its @id. Left out altogether where there \
                     are more than 1,000.",
                ),
                &["grant", "owner"],
            )?,
        })
    }

    fn keep(&self, grants: Vec<Arc<Grant>>) {
        let ending = grants
            .iter()
            .filter(|grant| grant.expires.is_some())
            .count();
        if ending > MOST_ENDS {
            tracing::warn!(
                grants = ending,
                "too many grants to tell of each when it ends: \
                 doorward_grant_expires_timestamp_seconds is left out"
            );
        }
        *self.grants.lock().unwrap_or_else(PoisonError::into_inner) = grants;
    }

    /// How it is at `now`.
    fn tell(&self, now: SystemTime) -> Vec<MetricFamily> {
        // Held to the end: two who ask at once must not mix.
        let grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |state: &str, is: &dyn Fn(&Grant) -> bool| {
            let count = grants.iter().filter(|grant| is(grant)).count();
            let gauge = self.states.with_label_values(&[state]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        };
        count("in_force", &|grant| !grant.has_ended(now));
        count("ends_soon", &|grant| grant.ends_soon(now));
        count("review_overdue", &|grant| grant.is_overdue(now));
        count("ended", &|grant| grant.has_ended(now));
        self.ends.reset();
        let ending = grants
            .iter()
            .filter_map(|grant| Some((grant, grant.expires?)));
        if ending.clone().count() <= MOST_ENDS {
            for (grant, end) in ending {
                let owner = grant.owner.as_deref().unwrap_or_default();
                let end = end.duration_since(UNIX_EPOCH).unwrap_or_default();
                let gauge = self.ends.with_label_values(&[&*grant.id, owner]);
                gauge.set(end.as_secs_f64());
            }
        }
        let mut families = self.states.collect();
        families.extend(self.ends.collect());
        // What has no samples cannot be written.
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

impl Collector for Terms {
    fn desc(&self) -> Vec<&Desc> {
        let mut desc = self.states.desc();
        desc.extend(self.ends.desc());
        desc
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.tell(SystemTime::now())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus::TextEncoder;

    use super::*;
    use crate::live::Live;
    use crate::policy::{Settings, files};

    fn told(status: &Status, now: SystemTime) -> String {
        let families = status.terms.tell(now);
        TextEncoder::new().encode_to_string(&families).unwrap()
    }

    fn published(cedar: &str) -> Status {
        let engine = files::check_texts([("a.cedar", cedar)], &Settings::of("")).unwrap();
        let live = Live::default();
        live.publish(engine);
        let status = Status::register(&Registry::new()).unwrap();
        status.published(&live.get().unwrap());
        status
    }

    #[test]
    fn the_state_of_grants_is_true_as_time_passes() {
        let status = published(
            r#"@id("g") @owner("o@x") @purpose("p") @expires("2023-11-30T00:00:00Z")
            @review("2023-11-20T00:00:00Z")
            permit (principal == Workload::"spiffe://example.org/a", action, resource);
            @id("f") forbid (principal, action, resource) when { context.port == 1 };"#,
        );
        let day = |day: &str| -> SystemTime {
            let time = format!("2023-{day}T00:00:00Z");
            time.parse::<jiff::Timestamp>().unwrap().into()
        };
        for (now, in_force, soon, overdue, ended) in [
            ("11-01", 2, 0, 0, 0),
            ("11-16", 2, 1, 0, 0),
            ("11-20", 2, 1, 1, 0),
            ("11-30", 1, 0, 0, 1),
        ] {
            let text = told(&status, day(now));
            for (state, count) in [
                ("in_force", in_force),
                ("ends_soon", soon),
                ("review_overdue", overdue),
                ("ended", ended),
            ] {
                let line = format!("doorward_policy_grants{{state=\"{state}\"}} {count}\n");
                assert!(text.contains(&line), "{now}: {text}");
            }
        }
        let text = told(&status, day("11-01"));
        let end =
            "doorward_grant_expires_timestamp_seconds{grant=\"g\",owner=\"o@x\"} 1701302400\n";
        assert!(text.contains(end), "{text}");
    }

    #[test]
    fn of_too_many_grants_no_end_is_told() {
        let grant = |number: usize| {
            format!(
                "@id(\"g{number}\") @owner(\"o\") @purpose(\"p\") @expires(\"2099-01-01\") permit \
                 (principal == Workload::\"spiffe://example.org/a\", action, resource);\n"
            )
        };
        let now = UNIX_EPOCH + Duration::from_secs(1);
        let all: String = (0..MOST_ENDS).map(grant).collect();
        assert!(told(&published(&all), now).contains("grant=\"g999\""));
        let one_more = all + &grant(MOST_ENDS);
        let text = told(&published(&one_more), now);
        assert!(!text.contains("grant="), "{text}");
        assert!(text.contains("state=\"in_force\"} 1001"), "{text}");
    }
}
