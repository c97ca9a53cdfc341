//! What did the sidecars themselves say about it? Their audit files and their metrics.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::client;

/// One sidecar's audit file.
#[derive(Clone, Debug)]
pub(super) struct Audit(PathBuf);

/// A place in it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark(u64);

impl Audit {
    /// The file at `path`, whether or not anything has been written.
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// The end of what is written by now.
    pub(super) fn mark(&self) -> Mark {
        Mark(std::fs::metadata(&self.0).map_or(0, |file| file.len()))
    }

    /// Every record since `mark`. A line that is still being written is left for later.
    pub(super) fn since(&self, mark: Mark) -> Vec<Value> {
        let text = self.read(mark).unwrap_or_default();
        let lines = String::from_utf8_lossy(&text);
        let lines = lines.lines().map(serde_json::from_str);
        // The head of the file, and what else is no record, has no name.
        let records = lines.filter_map(Result::ok);
        records
            .filter(|line: &Value| line.get("id").is_some())
            .collect()
    }

    fn read(&self, mark: Mark) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.0)?;
        file.seek(SeekFrom::Start(mark.0))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(text)
    }
}

/// What a sidecar's metrics listener said at one time.
#[derive(Clone, Debug)]
pub(super) struct Metrics(String);

impl Metrics {
    /// Asks for them.
    ///
    /// # Errors
    /// When nobody answers.
    pub(super) async fn of(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self(client::get(address, "/metrics").await?.text()))
    }

    /// The sum over all series of `family` whose labels hold all of `labels`, each as `name="value"`.
    pub(super) fn sum(&self, family: &str, labels: &[&str]) -> f64 {
        let series = self.series(family, labels);
        let values = series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
        values.sum()
    }

    /// The same for a family that counts.
    pub(super) fn count(&self, family: &str, labels: &[&str]) -> u64 {
        let series = self.series(family, labels);
        let values = series.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        values.sum()
    }

    /// The lines of `family` as they stand there.
    pub(super) fn series<'a>(
        &'a self,
        family: &'a str,
        labels: &'a [&'a str],
    ) -> impl Iterator<Item = &'a str> {
        self.0.lines().filter(move |line| {
            let rest = line.strip_prefix(family);
            rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
                && labels.iter().all(|label| line.contains(label))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_from_where_one_stood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let audit = Audit::at(path.clone());
        assert!(audit.since(audit.mark()).is_empty());
        std::fs::write(&path, "{\"kind\":\"file\"}\n{\"id\":1}\n").unwrap();
        let mark = audit.mark();
        std::fs::write(
            &path,
            "{\"kind\":\"file\"}\n{\"id\":1}\n{\"id\":2}\n{\"id\":",
        )
        .unwrap();
        assert_eq!(audit.since(mark), [serde_json::json!({"id": 2})]);
        assert_eq!(audit.since(Mark::default()).len(), 2);
    }

    #[test]
    fn series_are_picked_by_whole_name_and_by_label() {
        let text = "# HELP a_total x\na_total{d=\"in\",s=\"x\"} 2\na_total{d=\"out\"} 3\na_total_more 9\nb 1.5\n";
        let metrics = Metrics(text.into());
        assert_eq!(metrics.count("a_total", &[]), 5);
        assert_eq!(metrics.count("a_total", &["d=\"in\""]), 2);
        assert_eq!(metrics.count("c", &[]), 0);
        assert!((metrics.sum("b", &[]) - 1.5).abs() < f64::EPSILON);
        assert_eq!(metrics.series("b", &[]).next(), Some("b 1.5"));
    }
}
