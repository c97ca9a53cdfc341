use super::*;

const MINUTE: i64 = 60_000;

fn window() -> Window {
    // Three steps of one minute, from 0 to 3 minutes after a round time.
    Window {
        end: BEGIN + 3 * MINUTE,
        step: MINUTE,
        steps: 3,
    }
}

const BEGIN: i64 = 1_700_000_000_000;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let pairs = pairs.iter();
    pairs
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn a_window_is_cut_into_steps_that_end_with_it() {
    let at = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for (since, steps, step) in [
        (60, 12, 5_000),
        (3600, 12, 300_000),
        (86_400, 120, 720_000),
        (30 * 86_400, 120, 21_600_000),
    ] {
        let window = Window::new(at, Duration::from_secs(since));
        assert_eq!((window.steps, window.step), (steps, step), "{since}");
        assert_eq!(window.length(), Duration::from_secs(since));
        assert_eq!(window.end_of(steps - 1), window.end);
    }
    let window = window();
    for (time, step) in [
        (BEGIN, None),
        (BEGIN + 1, Some(0)),
        (BEGIN + MINUTE, Some(0)),
        (BEGIN + MINUTE + 1, Some(1)),
        (BEGIN + 3 * MINUTE, Some(2)),
        (BEGIN + 3 * MINUTE + 1, None),
    ] {
        assert_eq!(window.step_of(time), step, "{time}");
    }
}

/// A series as it was sampled, and what is to be counted.
struct Case {
    what: &'static str,
    base: Option<f64>,
    lasts: [Option<f64>; 3],
    resets: &'static [usize],
    raw: &'static [(usize, &'static [(i64, f64)])],
    /// When the process began, before and in each step.
    lives: [Option<f64>; 4],
    /// The steps in which it began anew, and since when of the raw samples then.
    changed: &'static [usize],
    anew: i64,
    /// Which steps need raw samples.
    unclear: &'static [usize],
    grown: [f64; 3],
    at_least: bool,
}

const CASE: Case = Case {
    what: "",
    base: Some(10.0),
    lasts: [Some(11.0), Some(13.0), Some(13.0)],
    resets: &[],
    raw: &[],
    lives: [Some(1.0); 4],
    changed: &[],
    anew: 0,
    unclear: &[],
    grown: [1.0, 2.0, 0.0],
    at_least: false,
};

#[test]
fn what_was_counted_is_exact_wherever_it_can_be() {
    for case in [
        Case {
            what: "a counter that goes on",
            ..CASE
        },
        Case {
            what: "one that begins in the window with what it had counted by then",
            base: None,
            lasts: [None, Some(5.0), Some(6.0)],
            lives: [None, None, Some(2e9), Some(2e9)],
            grown: [0.0, 5.0, 1.0],
            ..CASE
        },
        Case {
            what: "one of an old process that nobody sampled before",
            base: None,
            lasts: [None, Some(5.0), Some(6.0)],
            lives: [None, None, Some(1.0), Some(1.0)],
            grown: [0.0, 0.0, 1.0],
            at_least: true,
            ..CASE
        },
        Case {
            what: "one that begins later than its process was sampled",
            base: None,
            lasts: [None, Some(5.0), Some(6.0)],
            grown: [0.0, 5.0, 1.0],
            ..CASE
        },
        Case {
            what: "a reset in a step, with what was counted before it",
            lasts: [Some(11.0), Some(3.0), Some(4.0)],
            resets: &[1, 2],
            raw: &[
                (
                    1,
                    &[(MINUTE + 1, 20.0), (MINUTE + 2, 1.0), (2 * MINUTE, 3.0)],
                ),
                (2, &[(2 * MINUTE, 3.0), (3 * MINUTE, 4.0)]),
            ],
            unclear: &[1, 2],
            grown: [1.0, 12.0, 1.0],
            ..CASE
        },
        Case {
            what: "a gap, with raw samples that reach further back than it",
            lasts: [Some(11.0), None, Some(15.0)],
            raw: &[(2, &[(1, 10.5), (MINUTE, 11.0), (3 * MINUTE, 15.0)])],
            unclear: &[2],
            grown: [1.0, 0.0, 4.0],
            ..CASE
        },
        Case {
            what: "a restart that the counter alone does not show",
            lasts: [Some(11.0), Some(30.0), Some(31.0)],
            lives: [Some(1.0), Some(1.0), Some(100.0), Some(100.0)],
            raw: &[(1, &[(2 * MINUTE, 30.0)])],
            unclear: &[1],
            grown: [1.0, 30.0, 1.0],
            ..CASE
        },
        Case {
            what: "one that begins, and so does its process, within one step and to the same value",
            base: None,
            lasts: [Some(1.0), Some(1.0), Some(1.0)],
            lives: [Some(1.0), Some(100.0), Some(100.0), Some(100.0)],
            changed: &[0],
            anew: MINUTE / 2,
            raw: &[(0, &[(1, 1.0), (2, 1.0), (MINUTE, 1.0)])],
            unclear: &[0],
            grown: [2.0, 0.0, 0.0],
            ..CASE
        },
        Case {
            what: "a clock that was set by a second is no restart",
            lives: [Some(1.0), Some(1.0), Some(2.0), Some(2.0)],
            ..CASE
        },
        Case {
            what: "one that ended",
            lasts: [Some(12.0), None, None],
            grown: [2.0, 0.0, 0.0],
            ..CASE
        },
    ] {
        let what = case.what;
        let target = Target(labels(&[("instance", "a")]));
        let mut births = Births::default();
        if case.lives.iter().flatten().any(|began| *began >= 1.8e9) {
            births.began.insert(target.clone());
        }
        let first = match case.lives[0] {
            Some(_) => Some(None),
            None => case.lives[1..].iter().position(Option::is_some).map(Some),
        };
        births
            .sampled
            .extend(first.map(|first| (target.clone(), first)));
        let lives = Lives {
            base: case.lives[0],
            lasts: case.lives[1..].to_vec(),
            changed: case.changed.iter().copied().collect(),
        };
        births.lives.insert(target.clone(), lives);
        let of_series = labels(&[("instance", "a"), ("grant", "g")]);
        let mut raw = Raw::default();
        for (step, samples) in case.raw {
            let samples: Vec<_> = samples
                .iter()
                .map(|(at, value)| (BEGIN + at, *value))
                .collect();
            let began = samples.iter().filter_map(|(time, _)| {
                let step = match *time - BEGIN < case.anew {
                    true => None,
                    false => window().step_of(*time),
                };
                Some((*time, births.lives[&target].at(step)?))
            });
            let began = began.collect();
            raw.began
                .entry(target.clone())
                .or_default()
                .insert(*step, began);
            raw.counted
                .entry(of_series.clone())
                .or_default()
                .insert(*step, samples);
        }
        let sampled = Sampled {
            labels: of_series,
            target,
            base: case.base,
            stale: false,
            lasts: case.lasts.to_vec(),
            resets: case.resets.iter().copied().collect(),
        };
        let unclear: Vec<_> = sampled
            .unclear(&births)
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(unclear, case.unclear, "{what}");
        let counter = sampled.counted(window(), &births, &raw);
        assert_eq!(counter.grown, case.grown, "{what}");
        assert_eq!(counter.at_least, case.at_least, "{what}");
    }
}

#[test]
fn labels_of_the_target_are_kept_from_those_of_the_sidecar() {
    let labels = labels(&[
        ("__name__", "doorward_decisions_total"),
        ("exported_service", "invoices"),
        ("service", "doorward-metrics"),
        ("principal", "spiffe://example.org/a"),
        ("namespace", "bank"),
        ("instance", "10.0.0.1:9901"),
    ]);
    assert_eq!(label(&labels, "service"), "invoices");
    assert_eq!(label(&labels, "principal"), "spiffe://example.org/a");
    assert_eq!(label(&labels, "grant"), "");
    let target = Target::of(&labels);
    assert_eq!(
        target.0.keys().collect::<Vec<_>>(),
        ["instance", "namespace"]
    );
    assert_eq!(target.name(), "10.0.0.1:9901");
}

#[test]
fn coverage_is_the_share_of_the_usual_number_of_samples() {
    let counts = |counts: [f64; 3]| {
        let samples = counts.into_iter().zip(1..);
        let samples = samples.filter(|(count, _)| *count > 0.0);
        Series {
            labels: Labels::new(),
            samples: samples
                .map(|(count, step)| (BEGIN + step * MINUTE, count))
                .collect(),
        }
    };
    for (seen, expected) in [
        ([4.0, 4.0, 4.0], [1.0, 1.0, 1.0]),
        ([5.0, 4.0, 5.0], [1.0, 1.0, 1.0]),
        ([0.0, 5.0, 2.0], [0.0, 1.0, 0.5]),
        ([0.0, 1.0, 1.0], [0.0, 1.0, 1.0]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
    ] {
        assert_eq!(covered(window(), &counts(seen)), expected, "{seen:?}");
    }
}

#[test]
fn an_instance_stands_for_itself_in_a_pattern() {
    for (instance, pattern) in [
        ("10.0.0.1:9901", r"10\\.0\\.0\\.1:9901"),
        ("[::1]:9901", r"\\[::1\\]:9901"),
        (r#"a"b\c"#, r#"a\"b\\\\c"#),
        ("a|.*", r"a\\|\\.\\*"),
    ] {
        assert_eq!(quoted(instance), pattern);
    }
}
