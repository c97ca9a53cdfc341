//! What has no moment at which it changes is asked for when somebody looks.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, IntGaugeVec, Opts};

/// A family of gauges with labels, each the sum of what those asked say.
#[derive(Clone)]
pub struct AskedGauges {
    gauges: IntGaugeVec,
    asked: Arc<Mutex<Vec<Asked>>>,
}

struct Asked {
    gauge: IntGauge,
    /// `None` once there is nothing to ask any more.
    value: Box<dyn Fn() -> Option<i64> + Send + Sync>,
}

impl AskedGauges {
    /// A family without gauges.
    ///
    /// # Errors
    /// When name or labels are none.
    pub fn new(opts: Opts, labels: &[&str]) -> prometheus::Result<Self> {
        Ok(Self {
            gauges: IntGaugeVec::new(opts, labels)?,
            asked: Arc::default(),
        })
    }

    /// Asks `value` at each scrape for its part in the gauge with these labels, until it is `None`.
    pub fn ask(&self, labels: &[&str], value: impl Fn() -> Option<i64> + Send + Sync + 'static) {
        let asked = Asked {
            gauge: self.gauges.with_label_values(labels),
            value: Box::new(value),
        };
        let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(asked);
    }
}

impl Collector for AskedGauges {
    fn desc(&self) -> Vec<&Desc> {
        self.gauges.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut all = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        for asked in &*all {
            asked.gauge.set(0);
        }
        all.retain(|asked| {
            let value = (asked.value)();
            asked.gauge.add(value.unwrap_or_default());
            value.is_some()
        });
        // Two scrapes at once would show each other's halves.
        let families = self.gauges.collect();
        drop(all);
        families
    }
}

impl fmt::Debug for AskedGauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AskedGauges").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    #[test]
    fn equal_labels_are_summed_as_they_are_now_and_who_is_gone_counts_nothing() {
        let gauges = AskedGauges::new(Opts::new("left_out", "Left out."), &["service"]).unwrap();
        let value = Arc::new(AtomicI64::new(2));
        let weak = Arc::downgrade(&value);
        gauges.ask(&["x"], move || {
            weak.upgrade().map(|value| value.load(Ordering::Relaxed))
        });
        gauges.ask(&["x"], || Some(1));
        let shown = || gauges.collect()[0].get_metric()[0].get_gauge().get_value();
        assert!((shown() - 3.0).abs() < f64::EPSILON);
        value.store(5, Ordering::Relaxed);
        assert!((shown() - 6.0).abs() < f64::EPSILON);
        drop(value);
        for _ in 0..2 {
            assert!((shown() - 1.0).abs() < f64::EPSILON);
        }
    }
}
