//! What do several registries say together? Equal families become one, equal label sets their sum.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use prometheus::proto::MetricType;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily};

/// Sums families of the same name over all of `gathered`: counters, gauges and histogram buckets, each
/// label set for itself. A gauge that must not be summed (an age, an instant) belongs in one registry
/// only. Families come out ordered by name.
///
/// The second list names what could not be summed and keeps its first value.
pub fn sum(
    gathered: impl IntoIterator<Item = Vec<MetricFamily>>,
) -> (Vec<MetricFamily>, Vec<Collision>) {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    let mut collisions = Vec::new();
    for family in gathered.into_iter().flatten() {
        match sums.entry(family.name().to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert(Sum::of(family));
            }
            Entry::Occupied(mut entry) => {
                let name = family.name().to_owned();
                if let Err(reason) = entry.get_mut().add(family) {
                    collisions.push(Collision { name, reason });
                }
            }
        }
    }
    (sums.into_values().map(Sum::finish).collect(), collisions)
}

/// Two registries disagree about a family.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {reason}")]
pub struct Collision {
    name: String,
    reason: Reason,
}

/// What two registries disagree about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("registered with two types")]
    Type,
    #[error("registered with two sets of buckets")]
    Buckets,
    #[error("a type that cannot be summed")]
    NotSummable,
}

/// One family while it is summed, its metrics by label set.
struct Sum {
    family: MetricFamily,
    metrics: BTreeMap<Vec<(String, String)>, Metric>,
}

impl Sum {
    fn of(mut family: MetricFamily) -> Self {
        let metrics = family
            .take_metric()
            .into_iter()
            .map(|metric| (labels(&metric), metric))
            .collect();
        Self { family, metrics }
    }

    /// Adds all of `family` or nothing of it.
    fn add(&mut self, mut family: MetricFamily) -> Result<(), Reason> {
        let kind = self.family.get_field_type();
        if kind != family.get_field_type() {
            return Err(Reason::Type);
        }
        let mut sums = Vec::new();
        for metric in family.take_metric() {
            let labels = labels(&metric);
            let sum = match self.metrics.get(&labels) {
                Some(present) => added(kind, present, &metric)?,
                None => metric,
            };
            sums.push((labels, sum));
        }
        self.metrics.extend(sums);
        Ok(())
    }

    fn finish(mut self) -> MetricFamily {
        self.family.set_metric(self.metrics.into_values().collect());
        self.family
    }
}

fn labels(metric: &Metric) -> Vec<(String, String)> {
    let pair = |pair: &LabelPair| (pair.name().to_owned(), pair.value().to_owned());
    metric.get_label().iter().map(pair).collect()
}

fn added(kind: MetricType, a: &Metric, b: &Metric) -> Result<Metric, Reason> {
    let mut sum = a.clone();
    match kind {
        MetricType::COUNTER => {
            let mut counter = Counter::default();
            counter.set_value(a.get_counter().get_value() + b.get_counter().get_value());
            sum.set_counter(counter);
        }
        MetricType::GAUGE => {
            let mut gauge = Gauge::default();
            gauge.set_value(a.get_gauge().get_value() + b.get_gauge().get_value());
            sum.set_gauge(gauge);
        }
        MetricType::HISTOGRAM => {
            sum.set_histogram(histogram(a.get_histogram(), b.get_histogram())?);
        }
        MetricType::SUMMARY | MetricType::UNTYPED => return Err(Reason::NotSummable),
    }
    Ok(sum)
}

fn histogram(a: &Histogram, b: &Histogram) -> Result<Histogram, Reason> {
    let bounds = |histogram: &Histogram| -> Vec<u64> {
        let bits = |bucket: &Bucket| bucket.upper_bound().to_bits();
        histogram.get_bucket().iter().map(bits).collect()
    };
    if bounds(a) != bounds(b) {
        return Err(Reason::Buckets);
    }
    let buckets = a.get_bucket().iter().zip(b.get_bucket()).map(|(a, b)| {
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(a.upper_bound());
        bucket.set_cumulative_count(a.cumulative_count() + b.cumulative_count());
        bucket
    });
    let mut sum = Histogram::default();
    sum.set_bucket(buckets.collect());
    sum.set_sample_count(a.get_sample_count() + b.get_sample_count());
    sum.set_sample_sum(a.get_sample_sum() + b.get_sample_sum());
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector;
    use prometheus::{
        CounterVec, Gauge as GaugeOf, Histogram as HistogramOf, HistogramOpts, IntCounter, Opts,
    };

    use super::*;

    fn shown(families: &[MetricFamily]) -> String {
        prometheus::TextEncoder::new()
            .encode_to_string(families)
            .unwrap()
    }

    #[test]
    fn counters_are_summed_for_each_label_set_of_its_own() {
        let worker = |counts: &[(&str, f64)]| {
            let counter = CounterVec::new(Opts::new("a_total", "A."), &["outcome"]).unwrap();
            for (label, count) in counts {
                counter.with_label_values(&[label]).inc_by(*count);
            }
            counter.collect()
        };
        let (families, collisions) = sum([
            worker(&[("completed", 1.0), ("denied", 2.0)]),
            worker(&[("denied", 40.0)]),
            worker(&[("aborted", 5.0)]),
            worker(&[]),
        ]);
        assert_eq!(collisions, []);
        assert_eq!(
            shown(&families),
            "# HELP a_total A.\n# TYPE a_total counter\n\
             a_total{outcome=\"aborted\"} 5\n\
             a_total{outcome=\"completed\"} 1\n\
             a_total{outcome=\"denied\"} 42\n"
        );
    }

    #[test]
    fn histograms_are_summed_bucket_by_bucket() {
        let worker = |values: &[f64]| {
            let options = HistogramOpts::new("s_seconds", "S.").buckets(vec![0.1, 1.0]);
            let histogram = HistogramOf::with_opts(options).unwrap();
            values.iter().for_each(|value| histogram.observe(*value));
            histogram.collect()
        };
        let (families, _) = sum([worker(&[0.0625, 0.5]), worker(&[0.0625, 2.0])]);
        assert_eq!(
            shown(&families),
            "# HELP s_seconds S.\n# TYPE s_seconds histogram\n\
             s_seconds_bucket{le=\"0.1\"} 2\n\
             s_seconds_bucket{le=\"1\"} 3\n\
             s_seconds_bucket{le=\"+Inf\"} 4\n\
             s_seconds_sum 2.625\ns_seconds_count 4\n"
        );
    }

    #[test]
    fn what_cannot_be_summed_keeps_its_first_value_and_is_told() {
        let counter = |count| {
            let counter = IntCounter::new("a", "A.").unwrap();
            counter.inc_by(count);
            counter.collect()
        };
        let gauge = GaugeOf::new("a", "A.").unwrap();
        gauge.set(7.0);
        let (families, collisions) = sum([counter(1), gauge.collect(), counter(2)]);
        assert_eq!(families[0].get_metric()[0].get_counter().get_value(), 3.0);
        let told: Vec<_> = collisions.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["a: registered with two types"]);

        let histogram = |bound| {
            let options = HistogramOpts::new("h", "H.").buckets(vec![bound]);
            HistogramOf::with_opts(options).unwrap().collect()
        };
        let (_, collisions) = sum([histogram(1.0), histogram(2.0)]);
        let told: Vec<_> = collisions.iter().map(ToString::to_string).collect();
        assert_eq!(told, ["h: registered with two sets of buckets"]);
    }
}
