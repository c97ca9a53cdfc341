//! Which verbs and which paths belong into one grant?

use std::collections::BTreeMap;

use super::paths::{Found, merge, quoted};
use super::{Seen, Times, Verb};

/// What one grant is for.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) verbs: Vec<Verb>,
    pub(super) found: Vec<Found>,
    pub(super) times: Times,
    pub(super) by: BTreeMap<Box<str>, u64>,
}

/// What was seen at one service, divided so that each verb gets the paths that it was seen with, and
/// verbs with the same ones are together. Reading less than another verb reads adds nothing to it.
pub(super) fn parts(verbs: &BTreeMap<Verb, Seen>) -> Vec<Part> {
    let mut each: Vec<Part> = verbs
        .iter()
        .map(|(verb, seen)| Part {
            verbs: vec![verb.clone()],
            found: seen.paths.patterns(),
            times: seen.times,
            by: seen.by.clone(),
        })
        .filter(|part| part.times.count > 0)
        .collect();
    each.sort_by_key(|part| std::cmp::Reverse(part.found.len()));
    let mut parts: Vec<Part> = Vec::new();
    for part in each {
        match parts.iter_mut().find(|wider| wider.takes(&part)) {
            Some(wider) => wider.add(part),
            None => parts.push(part),
        }
    }
    parts.sort_by(|a, b| a.verbs.cmp(&b.verbs));
    parts
}

/// A part with no more patterns than a grant should have, or several.
pub(super) fn pieces(part: Part) -> Vec<Part> {
    if part.found.len() <= MOST_PATTERNS {
        return vec![part];
    }
    let chunks = part.found.chunks(MOST_PATTERNS);
    let pieces = chunks.map(|found| Part {
        found: found.to_vec(),
        times: Times {
            count: found.iter().map(|found| found.count).sum(),
            ..part.times
        },
        ..part.clone()
    });
    pieces.collect()
}

impl Part {
    fn takes(&self, other: &Self) -> bool {
        let covers = |wide: &Self, narrow: &Self| {
            narrow.found.iter().all(|found| {
                let mut ours = wide.found.iter();
                ours.any(|wide| wide.pattern.covers(&found.pattern))
            })
        };
        match (&self.verbs[0], &other.verbs[0]) {
            (Verb::Read(_), Verb::Read(_)) => covers(self, other),
            (Verb::Write(_), Verb::Write(_)) => covers(self, other) && covers(other, self),
            _ => false,
        }
    }

    fn add(&mut self, other: Self) {
        self.verbs.extend(other.verbs);
        self.verbs.sort();
        let found = self.found.drain(..).chain(other.found).collect();
        self.found = merge(found);
        self.times.merge(other.times);
        for (id, count) in other.by {
            *self.by.entry(id).or_default() += count;
        }
    }

    /// The scope's constraint on the action.
    pub(super) fn action(&self) -> String {
        let action = |verb: &Verb| match verb {
            Verb::Other(_) => "Action::\"other\"".to_owned(),
            verb => format!("Action::\"{}\"", verb.name()),
        };
        match &*self.verbs {
            [only] => format!("== {}", action(only)),
            [Verb::Read(_), ..] => "in Action::\"read\"".to_owned(),
            verbs => {
                let actions: Vec<_> = verbs.iter().map(action).collect();
                format!("in [{}]", actions.join(", "))
            }
        }
    }

    pub(super) fn condition(&self) -> Option<String> {
        let exact: Vec<_> = self
            .found
            .iter()
            .filter_map(|found| found.pattern.exact())
            .collect();
        let wide = self
            .found
            .iter()
            .filter(|found| found.pattern.exact().is_none());
        let wide = wide.map(|found| found.pattern.condition());
        let one = |path: &String| format!("context.http.path == {}", quoted(path));
        let exact = match &*exact {
            [] => None,
            [path] => Some(one(path)),
            paths => {
                let paths: Vec<_> = paths.iter().map(|path| quoted(path)).collect();
                Some(format!(
                    "[{}].contains(context.http.path)",
                    paths.join(", ")
                ))
            }
        };
        let paths: Vec<_> = exact.into_iter().chain(wide).collect();
        let method = match &self.verbs[0] {
            Verb::Other(method) => format!("context.http.method == {} && ", quoted(method)),
            Verb::Read(_) | Verb::Write(_) | Verb::Connect => String::new(),
        };
        match &*paths {
            [] => None,
            [only] => Some(method + only),
            // Each alternative in parentheses, so that nobody has to know what binds closer.
            several => {
                let several: Vec<_> = several.iter().map(|path| format!("({path})")).collect();
                let several = several.join(" || ");
                Some(match method.is_empty() {
                    true => several,
                    false => format!("{method}({several})"),
                })
            }
        }
    }
}

/// Patterns in one grant: beyond that nobody reads it.
const MOST_PATTERNS: usize = 64;
