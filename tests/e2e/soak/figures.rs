//! Does what runs all the time stay as large as it is?

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, interval};

use crate::mesh::{Metrics, get};

/// One figure of one sidecar, second by second.
#[derive(Debug)]
pub(super) struct Series {
    name: String,
    unit: &'static str,
    /// What may be added without being growth.
    slack: f64,
    values: Vec<f64>,
}

/// Memory and descriptors of each sidecar, until the end.
pub(super) async fn sample(
    sidecars: [(&'static str, SocketAddr); 2],
    until: Instant,
) -> Vec<Series> {
    let mut all = Vec::new();
    for (name, _) in sidecars {
        let series = |what, unit, slack| Series {
            name: format!("{name}: {what}"),
            unit,
            slack,
            values: Vec::new(),
        };
        all.push([series("memory", "MB", 4.0), series("descriptors", "", 10.0)]);
    }
    let mut second = interval(Duration::from_secs(1));
    while Instant::now() < until {
        second.tick().await;
        for ((_, address), [memory, descriptors]) in sidecars.into_iter().zip(&mut all) {
            let metrics = Metrics(get(address, "/metrics").await.text());
            memory
                .values
                .push(metrics.sum("process_resident_memory_bytes", &[]) / 1e6);
            descriptors
                .values
                .push(metrics.sum("process_open_fds", &[]));
        }
    }
    all.into_iter().flatten().collect()
}

impl Series {
    /// The means of the first and of the last third, after a fifth to become warm in.
    fn thirds(&self) -> (f64, f64) {
        let warm = self.warm();
        let third = (warm.len() / 3).max(1);
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        (mean(&warm[..third]), mean(&warm[warm.len() - third..]))
    }

    fn warm(&self) -> &[f64] {
        &self.values[self.values.len() / 5..]
    }

    /// By the method of least squares, in an hour.
    fn slope(&self) -> f64 {
        let warm = self.warm();
        let count = warm.len() as f64;
        let mean = warm.iter().sum::<f64>() / count;
        let middle = (count - 1.0) / 2.0;
        let (mut above, mut below) = (0.0, 0.0);
        for (second, value) in warm.iter().enumerate() {
            let from = second as f64 - middle;
            above += from * (value - mean);
            below += from * from;
        }
        3600.0 * above / below
    }

    /// Whether the last third is larger than the first by more than a tenth.
    pub(super) fn grows(&self) -> bool {
        let (first, last) = self.thirds();
        last > first * 1.1 + self.slack
    }

    pub(super) fn tell(&self) {
        let (first, last) = self.thirds();
        let most = self.values.iter().copied().fold(0.0, f64::max);
        println!(
            "{} {first:.1} to {last:.1} {}, {:+.1} an hour, at most {most:.1}",
            self.name,
            self.unit,
            self.slope()
        );
    }
}
