//! What is a suggested grant called? So that people see in records and metrics who does what where.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::Verb;
use crate::identity::SpiffeId;

/// The names that were given.
#[derive(Debug)]
pub(super) struct Names {
    taken: HashSet<String>,
    principals: HashMap<String, SpiffeId>,
}

impl Names {
    /// Names that none of `taken` has.
    pub(super) fn beside(taken: &BTreeSet<Box<str>>) -> Self {
        Self {
            taken: taken.iter().map(|id| String::from(&**id)).collect(),
            principals: HashMap::new(),
        }
    }

    /// A name that says who does what where.
    pub(super) fn next(&mut self, principal: &SpiffeId, service: &str, verbs: &[Verb]) -> String {
        let does = match verbs {
            [Verb::Read(_), ..] => "reads".to_owned(),
            [Verb::Connect, ..] => "connects-to".to_owned(),
            [Verb::Write("POST")] => "posts-to".to_owned(),
            [Verb::Write("PUT")] => "puts-to".to_owned(),
            [Verb::Write("PATCH")] => "patches".to_owned(),
            [Verb::Write("DELETE")] => "deletes-from".to_owned(),
            [Verb::Other(method)] => format!("uses-{}-of", slug(method)),
            _ => "writes-to".to_owned(),
        };
        let name = format!("{}-{does}-{}", self.principal(principal), slug(service));
        let numbered = (2..).map(|number: u64| format!("{name}-{number}"));
        let mut names = std::iter::once(name.clone()).chain(numbered);
        let free = names.find(|name| self.taken.insert(name.clone()));
        free.expect("there are more numbers than grants")
    }

    /// The last part of a workload's name, unless another one has it, too.
    fn principal(&mut self, id: &SpiffeId) -> String {
        let path = id.path();
        let last = path.rsplit('/').next().unwrap_or(path);
        for name in [last, path].map(slug) {
            if self
                .principals
                .entry(name.clone())
                .or_insert_with(|| id.clone())
                == id
            {
                return name;
            }
        }
        slug(id.as_str())
    }
}

/// A text as part of a name.
fn slug(text: &str) -> String {
    let text = text.to_ascii_lowercase();
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    let slug: String = words.join("-").chars().take(LONGEST_SLUG).collect();
    match slug.trim_end_matches('-') {
        "" => "x".to_owned(),
        slug => slug.to_owned(),
    }
}

/// An `@id` has 128 characters at most, and three such parts.
const LONGEST_SLUG: usize = 36;
