//! What has Prometheus seen of the sidecars? Every question that a report asks, and the answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::history::{self, Births, Counter, Target, Window, count, covered};
use super::prometheus::{AskError, Client};

/// All that a report judges.
#[derive(Debug, Default)]
pub struct Seen {
    /// The sidecars that had a sample in the window.
    pub sidecars: BTreeMap<Target, Sidecar>,
    /// `doorward_decisions_total`.
    pub decisions: Vec<Counter>,
    /// `doorward_decisions_observed_total`.
    pub rehearsed: Vec<Counter>,
    /// `doorward_requests_total`.
    pub requests: Vec<Counter>,
    /// `doorward_requests_with_standing_secrets_total`.
    pub with_secrets: Vec<Counter>,
    /// `doorward_standing_secrets_total`.
    pub secrets: Vec<Counter>,
    /// `doorward_identity_rotations_total`, for its course over time.
    pub rotations: Vec<Counter>,
    /// How long the server keeps what it has, where it says so.
    pub retention: Option<Duration>,
    /// What the server warned of.
    pub warnings: Vec<String>,
}

/// One sidecar.
#[derive(Clone, Debug, Default)]
pub struct Sidecar {
    /// How much of each step it has samples for, from 0 to 1.
    pub covered: Vec<f64>,
    /// How much of each step it was asked in vain, from 0 to 1: it may have served then, and nobody knows.
    pub blind: Vec<f64>,
    /// What became of it.
    pub state: State,
    /// The SPIFFE IDs that it had.
    pub ids: BTreeSet<String>,
    /// The services that it lets peers in to.
    pub serves: BTreeSet<String>,
    /// When its certificate ends; 0 if it has none. Only while it is up, as everything below.
    pub not_after: Option<f64>,
    /// When its source last gave it one.
    pub updated: Option<f64>,
    /// How many policies it has in force.
    pub policies: Option<f64>,
    /// When they were loaded.
    pub loaded: Option<f64>,
    /// Whether it can write its audit.
    pub audit: Option<bool>,
    /// What it counted in the window, by family; see [`OF_SIDECARS`].
    pub counted: HashMap<&'static str, f64>,
}

/// What became of a sidecar by the end of the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It answers.
    Up,
    /// Prometheus asks it in vain.
    Down,
    /// Prometheus does not know it any more: it was stopped, or moved.
    #[default]
    Gone,
}

impl State {
    /// The word in `--json`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Gone => "gone",
        }
    }
}

/// The families that are counted for each sidecar as a whole, without `doorward_`.
pub const OF_SIDECARS: [&str; 6] = [
    ROTATIONS,
    WITHDRAWALS,
    SOURCE_FAILURES,
    AUDIT_LOST,
    AUDIT_REFUSED,
    LOAD_FAILURES,
];
/// Certificates put in force after the first.
pub const ROTATIONS: &str = "identity_rotations_total";
/// Times that a certificate was taken back.
pub const WITHDRAWALS: &str = "identity_withdrawals_total";
/// Times that the identity source could not be asked.
pub const SOURCE_FAILURES: &str = "identity_source_failures_total";
/// Records that could not be kept.
pub const AUDIT_LOST: &str = "audit_lost_total";
/// Exchanges refused because their record could not have been written.
pub const AUDIT_REFUSED: &str = "audit_refused_total";
/// Changes of policy that were not put in force.
pub const LOAD_FAILURES: &str = "policy_load_failures_total";

/// Asks the server for all of it. `matching` are matchers for the labels of targets, as they stand in
/// braces, to leave out other fleets.
///
/// # Errors
/// If one question has no answer: half a report would be taken for a whole one.
pub async fn ask(client: &Client, window: Window, matching: &str) -> Result<Seen, AskError> {
    let (mut sidecars, births) = sidecars(client, window, matching).await?;
    let births = &births;
    let of = async |name: &str| {
        let family = format!("doorward_{name}");
        count(client, window, &family, matching, births).await
    };
    let mut rotations = Vec::new();
    for family in OF_SIDECARS {
        let counters = of(family).await?;
        for counter in &counters {
            if let Some(sidecar) = sidecars.get_mut(&counter.target) {
                *sidecar.counted.entry(family).or_default() += counter.total();
            }
        }
        if family == ROTATIONS {
            rotations = counters;
        }
    }
    Ok(Seen {
        decisions: of("decisions_total").await?,
        rehearsed: of("decisions_observed_total").await?,
        requests: of("requests_total").await?,
        with_secrets: of("requests_with_standing_secrets_total").await?,
        secrets: of("standing_secrets_total").await?,
        rotations,
        sidecars,
        retention: client.retention().await?,
        warnings: client.warnings(),
    })
}

async fn sidecars(
    client: &Client,
    window: Window,
    matching: &str,
) -> Result<(BTreeMap<Target, Sidecar>, Births), AskError> {
    let (length, step, end) = (window.end - window.start(), window.step, window.end);
    let now = async |query: String| client.instant(&query, end).await;
    let mut sidecars = BTreeMap::new();
    let mut births = history::births(client, window, matching).await?;

    let counts = format!("count_over_time({BUILD}{{{matching}}}[{step}ms])");
    for series in client.range(&counts, window.end_of(0), end, step).await? {
        let target = Target::of(&series.labels);
        // A new version is a new series of the same target.
        let sidecar: &mut Sidecar = sidecars.entry(target).or_default();
        let covered = covered(window, &series);
        sidecar.covered.resize(window.steps, 0.0);
        for (all, this) in sidecar.covered.iter_mut().zip(covered) {
            *all = (*all + this).min(1.0);
        }
    }
    for (target, sidecar) in &sidecars {
        let first = sidecar.covered.iter().position(|share| *share > 0.0);
        births.sampled.insert(target.clone(), first);
    }
    let asked = format!("avg_over_time(up{{{matching}}}[{step}ms]) < 1");
    for series in client.range(&asked, window.end_of(0), end, step).await? {
        if let Some(sidecar) = sidecars.get_mut(&Target::of(&series.labels)) {
            sidecar.blind = vec![0.0; window.steps];
            for (time, answered) in series.samples {
                if let Some(step) = window.step_of(time) {
                    sidecar.blind[step] = 1.0 - answered;
                }
            }
        }
    }
    let before = format!("last_over_time({BUILD}{{{matching}}}[1d])");
    for series in client.instant(&before, window.start()).await? {
        births.sampled.insert(Target::of(&series.labels), None);
    }
    for series in now(format!("up{{{matching}}} == 0")).await? {
        if let Some(sidecar) = sidecars.get_mut(&Target::of(&series.labels)) {
            sidecar.state = State::Down;
        }
    }
    for series in now(format!("{BUILD}{{{matching}}}")).await? {
        if let Some(sidecar) = sidecars.get_mut(&Target::of(&series.labels)) {
            sidecar.state = State::Up;
        }
    }
    let ids = format!("last_over_time(doorward_identity_info{{{matching}}}[{length}ms])");
    for series in now(ids).await? {
        if let Some(sidecar) = sidecars.get_mut(&Target::of(&series.labels)) {
            let id = history::label(&series.labels, "spiffe_id");
            sidecar.ids.insert(id.to_owned());
        }
    }
    // Each listener has its histogram from the start, asked or not.
    let serves = format!(
        "last_over_time(doorward_request_duration_seconds_count{{{}}}[{length}ms])",
        with(matching, "direction=\"inbound\"")
    );
    for series in now(serves).await? {
        if let Some(sidecar) = sidecars.get_mut(&Target::of(&series.labels)) {
            let service = history::label(&series.labels, "service");
            sidecar.serves.insert(service.to_owned());
        }
    }
    for (family, field) in GAUGES {
        for series in now(format!("{family}{{{matching}}}")).await? {
            if let Some(sidecar) = sidecars.get_mut(&Target::of(&series.labels)) {
                field(sidecar, value(&series.samples));
            }
        }
    }
    Ok((sidecars, births))
}

const BUILD: &str = "doorward_build_info";

type Field = fn(&mut Sidecar, f64);

/// What holds at the end of the window.
const GAUGES: [(&str, Field); 5] = [
    (
        "doorward_identity_not_after_timestamp_seconds",
        |sidecar, value| {
            sidecar.not_after = Some(value);
        },
    ),
    (
        "doorward_identity_updated_timestamp_seconds",
        |sidecar, value| {
            sidecar.updated = Some(value);
        },
    ),
    ("doorward_policy_policies", |sidecar, value| {
        sidecar.policies = Some(value);
    }),
    (
        "doorward_policy_loaded_timestamp_seconds",
        |sidecar, value| {
            sidecar.loaded = Some(value);
        },
    ),
    ("doorward_audit_healthy", |sidecar, value| {
        sidecar.audit = Some(value > 0.0);
    }),
];

fn with(matching: &str, more: &str) -> String {
    match matching.is_empty() {
        true => more.to_owned(),
        false => format!("{matching},{more}"),
    }
}

fn value(samples: &[(i64, f64)]) -> f64 {
    samples.last().map_or(0.0, |(_, value)| *value)
}
