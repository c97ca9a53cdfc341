//! What happened in the window, counted from what Prometheus has sampled?
//!
//! `increase()` is an estimate: it extrapolates, so counts are no whole numbers, and it takes the first
//! sample of a series for what was there before, so a counter that appears with the value 5 counts nothing.
//! Both are fatal here, where one request decides whether a grant is used. So the window is cut into steps,
//! the last value of each step is asked for, and the differences are summed. Where a step has a reset or
//! comes after a gap, its raw samples are fetched, which makes these exact, too. What a series had counted
//! before it was first sampled counts if its process began in the window, or had been sampled before
//! without it; otherwise nobody knows when it was counted, and the result says that it is a lower bound.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::prometheus::{AskError, Client, Labels, Series};

/// The time that is looked at, cut into steps of equal length. Times are milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// When it ends.
    pub end: i64,
    /// How long a step is.
    pub step: i64,
    /// How many there are.
    pub steps: usize,
}

impl Window {
    /// The window of length `since` that ends at `at`. Fewer and shorter steps for a short one.
    #[must_use]
    pub fn new(at: SystemTime, since: Duration) -> Self {
        let length = i64::try_from(since.as_millis()).unwrap_or(i64::MAX);
        let steps = (length / SHORTEST_STEP).clamp(FEWEST_STEPS, MOST_STEPS);
        Self {
            end: milliseconds(at),
            step: length / steps,
            steps: usize::try_from(steps).unwrap_or(1),
        }
    }

    /// When it begins.
    #[must_use]
    pub fn start(self) -> i64 {
        self.end_of(0) - self.step
    }

    /// How long it is.
    #[must_use]
    pub fn length(self) -> Duration {
        Duration::from_millis(u64::try_from(self.end - self.start()).unwrap_or(0))
    }

    /// When the step with this number ends.
    #[must_use]
    pub fn end_of(self, step: usize) -> i64 {
        let left = self.steps - 1 - step.min(self.steps - 1);
        self.end - self.step * i64::try_from(left).unwrap_or(0)
    }

    /// The step in which `time` is, if it is in the window.
    #[must_use]
    pub fn step_of(self, time: i64) -> Option<usize> {
        let into = time.checked_sub(self.start() + 1)?;
        let step = usize::try_from(into / self.step).ok()?;
        (into >= 0 && step < self.steps).then_some(step)
    }
}

const SHORTEST_STEP: i64 = 300_000;
const FEWEST_STEPS: i64 = 12;
const MOST_STEPS: i64 = 120;

/// A time in milliseconds since the epoch.
#[must_use]
pub fn milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// What is scraped: the labels that tell one sidecar from another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target(pub Labels);

impl Target {
    /// The target of a series: its labels without those that sidecars give.
    #[must_use]
    pub fn of(labels: &Labels) -> Self {
        let own = |key: &str| {
            let plain = key.strip_prefix(EXPORTED).unwrap_or(key);
            OURS.contains(&plain)
        };
        let labels = labels.iter().filter(|(key, _)| !own(key));
        Self(
            labels
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        )
    }

    /// How people call it.
    #[must_use]
    pub fn name(&self) -> &str {
        ["instance", "pod"]
            .iter()
            .find_map(|key| self.0.get(*key))
            .map_or("unknown", String::as_str)
    }
}

/// The labels that sidecars give to their series, and the name.
const OURS: [&str; 16] = [
    "__name__",
    "action",
    "decision",
    "direction",
    "flow",
    "grant",
    "kind",
    "le",
    "outcome",
    "principal",
    "reason",
    "result",
    "service",
    "spiffe_id",
    "status",
    "version",
];

/// What Prometheus puts before a label of ours that the target has as well, as targets that are found
/// through a Kubernetes service have `service`.
const EXPORTED: &str = "exported_";

/// A label that a sidecar gave.
#[must_use]
pub fn label<'a>(labels: &'a Labels, key: &str) -> &'a str {
    let exported = labels.get(&format!("{EXPORTED}{key}"));
    exported
        .or_else(|| labels.get(key))
        .map_or("", String::as_str)
}

/// One counter of one sidecar, by what was counted in each step.
#[derive(Clone, Debug, PartialEq)]
pub struct Counter {
    /// All its labels.
    pub labels: Labels,
    /// Whose it is.
    pub target: Target,
    /// What was counted in each step of the window.
    pub grown: Vec<f64>,
    /// Whether there may have been more.
    pub at_least: bool,
}

impl Counter {
    /// A label that the sidecar gave; empty if there is none.
    #[must_use]
    pub fn label(&self, key: &str) -> &str {
        label(&self.labels, key)
    }

    /// What was counted in the window.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.grown.iter().sum()
    }
}

/// Since when processes count, as far as is known.
#[derive(Debug, Default)]
pub struct Births {
    /// Targets whose first process that is seen in the window began in it.
    pub began: HashSet<Target>,
    /// In which step a target was first sampled; none if before the window.
    pub sampled: HashMap<Target, Option<usize>>,
    /// When the process of a target began that was sampled last in each step, in seconds since the epoch.
    pub lives: HashMap<Target, Lives>,
}

/// When the processes of one target began.
#[derive(Clone, Debug, Default)]
pub struct Lives {
    /// Of the last sample before the window.
    base: Option<f64>,
    /// Of the last sample in each step.
    lasts: Vec<Option<f64>>,
    /// The steps in which one followed another.
    changed: BTreeSet<usize>,
}

impl Lives {
    fn at(&self, step: Option<usize>) -> Option<f64> {
        step.map_or(self.base, |step| *self.lasts.get(step)?)
    }
}

/// Asks when processes began.
///
/// # Errors
/// If the server gives no answer.
pub async fn births(client: &Client, window: Window, matching: &str) -> Result<Births, AskError> {
    let mut births = Births::default();
    let step = window.step;
    let last = format!("last_over_time({BEGAN}{{{matching}}}[{step}ms])");
    for series in client
        .range(&last, window.start(), window.end, step)
        .await?
    {
        let mut lives = Lives {
            base: None,
            lasts: vec![None; window.steps],
            changed: BTreeSet::new(),
        };
        for (time, began) in series.samples {
            match window.step_of(time) {
                Some(step) => lives.lasts[step] = Some(began),
                None => lives.base = Some(began),
            }
        }
        births.lives.insert(Target::of(&series.labels), lives);
    }
    let changes = format!("changes({BEGAN}{{{matching}}}[{step}ms]) > 0");
    let changes = client.range(&changes, window.end_of(0), window.end, step);
    for series in changes.await? {
        if let Some(lives) = births.lives.get_mut(&Target::of(&series.labels)) {
            let steps = series.samples.iter();
            lives.changed = steps
                .filter_map(|(time, _)| window.step_of(*time))
                .collect();
        }
    }
    let length = window.end - window.start();
    let first = format!("min_over_time({BEGAN}{{{matching}}}[{length}ms])");
    for series in client.instant(&first, window.end).await? {
        let began = series.samples.last().map_or(0.0, |(_, began)| *began);
        if began * 1000.0 >= as_f64(window.start()) {
            births.began.insert(Target::of(&series.labels));
        }
    }
    Ok(births)
}

const BEGAN: &str = "process_start_time_seconds";

/// Whether two processes are told apart by when they began; a clock that is set may move it a little.
fn differ(one: Option<f64>, other: Option<f64>) -> bool {
    one.zip(other)
        .is_some_and(|(one, other)| (one - other).abs() > 1.5)
}

/// Milliseconds as a number that may be compared with what Prometheus says.
#[expect(
    clippy::cast_precision_loss,
    reason = "a time in milliseconds is far from where an f64 and an i64 differ"
)]
fn as_f64(milliseconds: i64) -> f64 {
    milliseconds as f64
}

/// Counts what the family counted in the window. `matching` are matchers that every series must fulfil, as
/// they stand in braces.
///
/// # Errors
/// If the server gives no answer.
pub async fn count(
    client: &Client,
    window: Window,
    family: &str,
    matching: &str,
    births: &Births,
) -> Result<Vec<Counter>, AskError> {
    let Window { step, end, .. } = window;
    let selected = format!("{family}{{{matching}}}");
    let last = format!("last_over_time({selected}[{step}ms])");
    let sampled = client.range(&last, window.start(), end, step).await?;
    let resets = format!("resets({selected}[{}ms]) > 0", 2 * step);
    let resets = client.range(&resets, window.end_of(0), end, step).await?;
    let mut resets: HashMap<Labels, BTreeSet<usize>> = resets
        .into_iter()
        .map(|series| {
            let steps = series.samples.iter();
            let steps = steps.filter_map(|(time, _)| window.step_of(*time));
            (unnamed(series.labels), steps.collect())
        })
        .collect();
    let mut old: Option<HashMap<Labels, f64>> = None;
    let mut known = Vec::new();
    for series in sampled {
        let labels = unnamed(series.labels);
        let mut lasts = vec![None; window.steps];
        let mut base = None;
        for (time, value) in series.samples {
            match window.step_of(time) {
                Some(step) => lasts[step] = Some(value),
                None => base = Some(value),
            }
        }
        let mut stale = false;
        if base.is_none() {
            // Not in the last step before the window, but perhaps on the day before.
            if old.is_none() {
                let query = format!("last_over_time({selected}[1d])");
                let found = client.instant(&query, window.start()).await?;
                let found = found.into_iter().filter_map(|series| {
                    let (_, value) = *series.samples.last()?;
                    Some((unnamed(series.labels), value))
                });
                old = Some(found.collect());
            }
            base = old.as_ref().and_then(|old| old.get(&labels).copied());
            stale = base.is_some();
        }
        known.push(Sampled {
            resets: resets.remove(&labels).unwrap_or_default(),
            target: Target::of(&labels),
            labels,
            base,
            stale,
            lasts,
        });
    }
    let raw = raw(client, window, (family, matching), &known, births).await?;
    Ok(known
        .into_iter()
        .map(|sampled| sampled.counted(window, births, &raw))
        .collect())
}

/// Raw samples by series and step.
#[derive(Default)]
struct Raw {
    counted: HashMap<Labels, HashMap<usize, Vec<(i64, f64)>>>,
    /// When the process began that is sampled at a time, by target and step.
    began: HashMap<Target, HashMap<usize, Vec<(i64, f64)>>>,
}

impl Raw {
    fn began(&self, target: &Target, step: usize, time: i64) -> Option<f64> {
        let samples = self.began.get(target)?.get(&step)?;
        let at = samples
            .binary_search_by_key(&time, |(time, _)| *time)
            .ok()?;
        Some(samples[at].1)
    }
}

/// Fetches the raw samples of the steps that the last value alone does not tell enough of.
async fn raw(
    client: &Client,
    window: Window,
    (family, matching): (&str, &str),
    known: &[Sampled],
    births: &Births,
) -> Result<Raw, AskError> {
    // How far back each step must be looked at, and for whom.
    let mut wanted: BTreeMap<usize, (usize, BTreeSet<&str>)> = BTreeMap::new();
    for sampled in known {
        for (step, before) in sampled.unclear(births) {
            let (back, instances) = wanted.entry(step).or_default();
            *back = (*back).max(before.map_or(step + 1, |before| step - before));
            // One without the label is matched by an empty pattern.
            let instance = sampled.labels.get("instance");
            instances.insert(instance.map_or("", String::as_str));
        }
    }
    let mut raw = Raw::default();
    let comma = if matching.is_empty() { "" } else { "," };
    for (step, (back, instances)) in wanted {
        let instances: Vec<_> = instances.into_iter().map(quoted).collect();
        let back = window.step * i64::try_from(back).unwrap_or(i64::MAX);
        let end = window.end_of(step);
        for some in instances.chunks(MOST_AT_ONCE) {
            let matchers = format!("{{{matching}{comma}instance=~\"{}\"}}", some.join("|"));
            let query = format!("{family}{matchers}[{back}ms]");
            for series in client.instant(&query, end).await? {
                let steps = raw.counted.entry(unnamed(series.labels)).or_default();
                steps.insert(step, series.samples);
            }
            let query = format!("{BEGAN}{matchers}[{back}ms]");
            for series in client.instant(&query, end).await? {
                let steps = raw.began.entry(Target::of(&series.labels)).or_default();
                steps.insert(step, series.samples);
            }
        }
    }
    Ok(raw)
}

/// Raw samples of more sidecars in one answer could be too many.
const MOST_AT_ONCE: usize = 50;

/// A value as it stands in a regular expression within a string of PromQL.
fn quoted(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        if r".+*?()|[]{}^$\".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
        .replace('\\', r"\\")
        .replace('"', "\\\"")
        .replace('\n', r"\n")
}

fn unnamed(mut labels: Labels) -> Labels {
    labels.remove("__name__");
    labels
}

/// One series as it was sampled.
struct Sampled {
    labels: Labels,
    target: Target,
    /// Its last value before the window.
    base: Option<f64>,
    /// Whether that was long before.
    stale: bool,
    /// Its last value in each step.
    lasts: Vec<Option<f64>>,
    /// The steps in or before which it began anew.
    resets: BTreeSet<usize>,
}

impl Sampled {
    /// The steps whose last values are not enough, each with the step before it that has one.
    fn unclear(&self, births: &Births) -> Vec<(usize, Option<usize>)> {
        let mut unclear = Vec::new();
        let lives = births.lives.get(&self.target);
        let life = |step| lives.and_then(|lives| lives.at(step));
        let restarted = |step: &usize| {
            self.resets.contains(step) || lives.is_some_and(|lives| lives.changed.contains(step))
        };
        let mut before: Option<(Option<usize>, f64)> = self.base.map(|base| (None, base));
        for (step, last) in self.lasts.iter().enumerate() {
            let Some(last) = *last else { continue };
            if let Some((at, value)) = before {
                let gap = at.map_or(step > 0 || self.stale, |at| step - at > 1);
                let anew = last < value || differ(life(at), life(Some(step)));
                if gap || anew || restarted(&step) {
                    unclear.push((step, at));
                }
            } else if restarted(&step) {
                unclear.push((step, None));
            }
            before = Some((Some(step), last));
        }
        unclear
    }

    fn counted(self, window: Window, births: &Births, raw: &Raw) -> Counter {
        let mut grown = vec![0.0; self.lasts.len()];
        let mut at_least = false;
        let unclear: HashMap<usize, Option<usize>> = self.unclear(births).into_iter().collect();
        let lives = births.lives.get(&self.target);
        let life_at = |step| lives.and_then(|lives| lives.at(step));
        // The last value, and when its process began.
        let mut value = self.base;
        let mut life = life_at(None);
        for (step, last) in self.lasts.iter().enumerate() {
            let Some(last) = *last else { continue };
            let samples = unclear.get(&step).and_then(|before| {
                let samples = raw.counted.get(&self.labels)?.get(&step)?;
                // What was fetched for another series may reach back further.
                let since = before.map_or(window.start(), |before| window.end_of(before));
                let samples = samples.iter().filter(move |(time, _)| *time > since);
                let samples = samples.map(|(time, value)| {
                    let began = raw.began(&self.target, step, *time);
                    (*value, began)
                });
                Some(samples.collect::<Vec<_>>())
            });
            for (sample, began) in samples.unwrap_or_else(|| vec![(last, life_at(Some(step)))]) {
                let before = value.unwrap_or_else(|| {
                    // What it had counted by then was counted in the window, or nobody knows when.
                    if born(&self.target, step, births) {
                        0.0
                    } else {
                        at_least = true;
                        sample
                    }
                });
                let anew = sample < before || (value.is_some() && differ(life, began));
                grown[step] += if anew { sample } else { sample - before };
                value = Some(sample);
                life = began.or(life);
            }
        }
        Counter {
            labels: self.labels,
            target: self.target,
            grown,
            at_least,
        }
    }
}

/// Whether a series of the target that is first sampled in `step` counts from zero in the window.
fn born(target: &Target, step: usize, births: &Births) -> bool {
    let began = births.began.contains(target);
    let earlier = births
        .sampled
        .get(target)
        .is_some_and(|first| first.is_none_or(|first| first < step));
    began || earlier
}

/// How much of each step a target has samples for, from 0 to 1, by how many samples it has there.
#[must_use]
pub fn covered(window: Window, counts: &Series) -> Vec<f64> {
    let mut present = vec![0.0; window.steps];
    for (time, count) in &counts.samples {
        if let Some(step) = window.step_of(*time) {
            present[step] = *count;
        }
    }
    let mut sorted: Vec<f64> = present
        .iter()
        .copied()
        .filter(|count| *count > 0.0)
        .collect();
    sorted.sort_by(f64::total_cmp);
    let Some(usual) = sorted.get(sorted.len() / 2).copied() else {
        return present;
    };
    // One more or less is a matter of where the step begins.
    let expected = (usual - 1.0).max(1.0);
    present
        .iter()
        .map(|count| (count / expected).min(1.0))
        .collect()
}

#[cfg(test)]
mod tests;
