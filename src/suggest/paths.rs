//! Which paths were seen, and which of their segments only name one thing of many?
//!
//! A tree of segments. A segment that looks like an identifier, or of which there are many, stands for
//! any; but never the first one, which would lead into places that nobody was seen in.

use std::collections::BTreeMap;
use std::fmt::Write;

/// The paths seen of one method.
#[derive(Debug, Default)]
pub(super) struct Paths {
    root: Node,
    /// What does not begin with `/`: `*`, or nothing at all.
    odd: BTreeMap<String, u64>,
    nodes: usize,
}

#[derive(Debug, Default)]
struct Node {
    /// Paths that end here.
    ends: u64,
    /// One of them.
    example: String,
    children: BTreeMap<String, Node>,
    /// What follows a segment that may be any.
    any: Option<Box<Node>>,
    /// There were many: new ones are not told apart any more.
    many: bool,
}

/// Too many different paths.
#[derive(Debug)]
pub(super) struct TooMany;

/// What a grant says of one path or of several that are alike.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pattern(Vec<Segment>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Segment {
    Is(String),
    Any,
}

/// A pattern with what it was made from.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) pattern: Pattern,
    pub(super) count: u64,
    pub(super) example: String,
}

impl Paths {
    pub(super) fn add(&mut self, path: &str) -> Result<(), TooMany> {
        let Some(segments) = path.strip_prefix('/') else {
            if self.odd.len() >= MANY && !self.odd.contains_key(path) {
                return Err(TooMany);
            }
            *self.odd.entry(path.to_owned()).or_default() += 1;
            return Ok(());
        };
        if segments.split('/').count() > DEEPEST {
            return Err(TooMany);
        }
        let mut node = &mut self.root;
        for (depth, segment) in segments.split('/').enumerate() {
            node = node.child(segment, depth, &mut self.nodes)?;
        }
        if node.ends == 0 {
            path.clone_into(&mut node.example);
        }
        node.ends += 1;
        Ok(())
    }

    /// What the paths have in common, none of it said twice.
    pub(super) fn patterns(&self) -> Vec<Found> {
        let mut all: Vec<_> = self
            .odd
            .iter()
            .map(|(path, count)| Found {
                pattern: Pattern(vec![Segment::Is(path.clone())]),
                count: *count,
                example: path.clone(),
            })
            .collect();
        self.root
            .collect(&mut vec![Segment::Is(String::new())], &mut all);
        merge(all)
    }
}

/// Leaves out patterns that others cover, and counts what they stand for with those.
pub(super) fn merge(mut all: Vec<Found>) -> Vec<Found> {
    // What covers most comes first.
    all.sort_by_key(|found| std::cmp::Reverse(found.pattern.wildcards()));
    let mut kept: Vec<Found> = Vec::new();
    for found in all {
        match kept
            .iter_mut()
            .find(|wide| wide.pattern.covers(&found.pattern))
        {
            Some(wide) => wide.count += found.count,
            None => kept.push(found),
        }
    }
    kept.sort_by(|a, b| a.pattern.cmp(&b.pattern));
    kept
}

impl Node {
    fn child(
        &mut self,
        segment: &str,
        depth: usize,
        nodes: &mut usize,
    ) -> Result<&mut Self, TooMany> {
        let is_any = depth > 0 && !segment.is_empty() && (self.many || names_one_of_many(segment));
        if is_any {
            return Ok(self.any.get_or_insert_default());
        }
        // Not by `entry`: most segments are there already, and need no copy.
        if !self.children.contains_key(segment) {
            if *nodes >= MOST_NODES || (depth == 0 && self.children.len() >= MOST_FIRST) {
                return Err(TooMany);
            }
            *nodes += 1;
            self.children.insert(segment.to_owned(), Self::default());
            if depth > 0 && self.children.len() > MANY {
                self.fold();
                if !segment.is_empty() {
                    return Ok(self.any.get_or_insert_default());
                }
            }
        }
        self.children.get_mut(segment).ok_or(TooMany)
    }

    /// From here on any segment will do.
    fn fold(&mut self) {
        self.many = true;
        // A path that ends with `/` asks for something else than what stands behind it.
        let ends = self.children.remove_entry("");
        let children = std::mem::take(&mut self.children);
        let any = self.any.get_or_insert_default();
        for child in children.into_values() {
            any.absorb(child);
        }
        self.children.extend(ends);
    }

    fn absorb(&mut self, other: Self) {
        if self.ends == 0 {
            self.example = other.example;
        }
        self.ends += other.ends;
        for (name, child) in other.children {
            self.children.entry(name).or_default().absorb(child);
        }
        if let Some(any) = other.any {
            self.any.get_or_insert_default().absorb(*any);
        }
        if self.many || other.many || self.children.len() > MANY {
            self.fold();
        }
    }

    fn collect(&self, path: &mut Vec<Segment>, all: &mut Vec<Found>) {
        if self.ends > 0 {
            all.push(Found {
                pattern: Pattern(path.clone()),
                count: self.ends,
                example: self.example.clone(),
            });
        }
        let children = self.children.iter();
        let children = children.map(|(name, child)| (Segment::Is(name.clone()), child));
        let any = self.any.iter().map(|child| (Segment::Any, &**child));
        for (segment, child) in children.chain(any) {
            path.push(segment);
            child.collect(path, all);
            path.pop();
        }
    }
}

impl Pattern {
    fn wildcards(&self) -> usize {
        let any = self.0.iter().filter(|segment| **segment == Segment::Any);
        any.count()
    }

    /// Whether every path that `other` stands for is one of these.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let covered = |(ours, theirs): (&Segment, &Segment)| match (ours, theirs) {
            (Segment::Any, Segment::Is(text)) => !text.is_empty(),
            (ours, theirs) => ours == theirs,
        };
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(covered)
    }

    /// The one path that it is, if it is one.
    pub(super) fn exact(&self) -> Option<String> {
        (self.wildcards() == 0).then(|| self.written("", str::to_owned))
    }

    /// As people read it.
    pub(super) fn text(&self) -> String {
        self.written("*", str::to_owned)
    }

    /// A Cedar expression that holds for these paths and for no others: in Cedar's `like`, `*` is any
    /// text, further segments included, so those are ruled out.
    pub(super) fn condition(&self) -> String {
        if let Some(path) = self.exact() {
            return format!("context.http.path == {}", quoted(&path));
        }
        let literal = |any: &str| format!("\"{}\"", self.written(any, pattern_text));
        let mut condition = format!("context.http.path like {}", literal("*"));
        let deeper = match self.wildcards() {
            1 => literal("*/*"),
            // With more than one, deeper is whatever has more slashes.
            _ => format!("\"{}\"", "/*".repeat(self.0.len())),
        };
        let _ = write!(condition, " && !(context.http.path like {deeper})");
        if self.0.last() == Some(&Segment::Any) {
            // `*` is also no text at all, and a path that ends with `/` is another one.
            let mut parent = Self(self.0.clone());
            parent.0.pop();
            parent.0.push(Segment::Is(String::new()));
            let parent = match parent.exact() {
                Some(path) => format!("context.http.path == {}", quoted(&path)),
                None => {
                    let parent = parent.written("*", pattern_text);
                    format!("context.http.path like \"{parent}\"")
                }
            };
            let _ = write!(condition, " && !({parent})");
        }
        condition
    }

    fn written(&self, any: &str, literal: impl Fn(&str) -> String) -> String {
        let segments = self.0.iter().map(|segment| match segment {
            Segment::Is(text) => literal(text),
            Segment::Any => any.to_owned(),
        });
        segments.collect::<Vec<_>>().join("/")
    }
}

/// A Cedar text.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

/// What stands within the quotes of a Cedar pattern, where `*` is no wildcard.
fn pattern_text(text: &str) -> String {
    escaped(text).replace('*', "\\*")
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            ' '..='~' => escaped.push(c),
            // Nothing is left to chance, nor to the eye.
            _ => escaped.extend(c.escape_unicode()),
        }
    }
    escaped
}

/// Whether a segment looks like the name of one thing of many: a number, a date, a UUID, a hash, something
/// random.
fn names_one_of_many(segment: &str) -> bool {
    let stem = match segment.rsplit_once('.') {
        Some((stem, end)) if (1..=5).contains(&end.len()) && !stem.is_empty() => stem,
        _ => segment,
    };
    let bytes = stem.as_bytes();
    let digits = bytes.iter().filter(|byte| byte.is_ascii_digit()).count();
    if digits == 0 {
        return false;
    }
    // A number, a date or a time.
    let is_numeric = bytes[0].is_ascii_digit()
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_digit() || b"-:._TZ+".contains(byte));
    let is_hex = bytes.len() >= 12
        && bytes
            .iter()
            .all(|byte| byte.is_ascii_hexdigit() || *byte == b'-');
    is_numeric || is_hex || is_random(bytes)
}

/// Whether digits and letters alternate as in nothing that a person named.
fn is_random(bytes: &[u8]) -> bool {
    let changes = bytes.windows(2).filter(|pair| {
        pair.iter().all(u8::is_ascii_alphanumeric)
            && pair[0].is_ascii_digit() != pair[1].is_ascii_digit()
    });
    bytes.len() >= 12 && changes.count() >= 4
}

/// More different segments than this in one place are names of one kind of thing.
const MANY: usize = 16;

/// Different first segments. There, many things are many places.
const MOST_FIRST: usize = 256;

const MOST_NODES: usize = 4096;

const DEEPEST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns<'a>(paths: impl IntoIterator<Item = &'a str>) -> Vec<String> {
        let mut tree = Paths::default();
        for path in paths {
            tree.add(path).unwrap();
        }
        let found = tree.patterns();
        found.iter().map(|found| found.pattern.text()).collect()
    }

    #[test]
    fn what_names_one_of_many_stands_for_any_and_what_names_a_place_does_not() {
        for segment in [
            "7",
            "2041",
            "2026-11-22",
            "2026-11-22T10:00:00Z",
            "0191d2a4-6f3e-7cc1-9f0a-4d2f5b6c7d8e",
            "d41d8cd98f00b204e9800998ecf8427e",
            "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "cus_9s6XKzkNRiz8i3",
            "2041.json",
            "d41d8cd98f00b204e9800998ecf8427e.tar",
        ] {
            assert!(names_one_of_many(segment), "{segment}");
        }
        for segment in [
            "",
            "v1",
            "v2beta1",
            "invoices",
            "oauth2",
            "a-long-name-of-a-place",
            "s3",
            "p99",
            "deadbeef",
            "index.html",
            "report-2026",
            "utf8",
            ".",
            "*",
        ] {
            assert!(!names_one_of_many(segment), "{segment}");
        }
    }

    #[test]
    fn paths_that_differ_in_a_name_are_one_pattern() {
        assert_eq!(
            patterns([
                "/v1/invoices/7/lines",
                "/v1/invoices/8/lines",
                "/v1/invoices/9",
                "/v1/invoices/",
                "/v1/invoices/summary",
                "/v1/invoices",
                "/health",
                "/",
                "*",
            ]),
            [
                "/",
                "/health",
                "/v1/invoices",
                "/v1/invoices/",
                "/v1/invoices/*",
                "/v1/invoices/*/lines",
                "*",
            ]
        );
    }

    #[test]
    fn many_values_of_one_segment_stand_for_any_but_never_the_first() {
        let letters: Vec<char> = ('a'..='z').collect();
        let name = |at: usize| String::from_iter([letters[at / 26], letters[at % 26]]);
        let paths = |count: usize, form: fn(&str) -> String| -> Vec<String> {
            (0..count).map(|at| form(&name(at))).collect()
        };
        let few = paths(MANY, |name| format!("/users/{name}/keys"));
        assert_eq!(patterns(few.iter().map(String::as_str)).len(), MANY);
        let many = paths(MANY + 1, |name| format!("/users/{name}/keys"));
        assert_eq!(patterns(many.iter().map(String::as_str)), ["/users/*/keys"]);
        let first = paths(MOST_FIRST, |name| format!("/{name}/x"));
        assert_eq!(patterns(first.iter().map(String::as_str)).len(), MOST_FIRST);
        let numbers: Vec<_> = (0..30).map(|at| format!("/{at}")).collect();
        assert_eq!(patterns(numbers.iter().map(String::as_str)).len(), 30);
    }

    #[test]
    fn a_tree_does_not_grow_without_end() {
        let mut tree = Paths::default();
        let refused = (0..100_000).filter(|at| tree.add(&format!("/{at}/{at}x")).is_err());
        assert_eq!(refused.count(), 100_000 - MOST_FIRST);
        assert!(tree.add(&"/a".repeat(DEEPEST + 1)).is_err());
        let mut tree = Paths::default();
        let words = |number: usize| format!("{number:b}").replace('0', "a").replace('1', "b");
        for at in 0..200_000_usize {
            let path = words(at)
                .chars()
                .map(|c| format!("/x{c}"))
                .collect::<String>();
            let _ = tree.add(&path);
        }
        assert!(tree.nodes <= MOST_NODES);
    }

    #[test]
    fn a_wildcard_ends_with_its_segment() {
        let mut tree = Paths::default();
        for path in ["/a*b/1", "/c/1/d/2", "/e/1/f", "/\"q\""] {
            tree.add(path).unwrap();
        }
        let found = tree.patterns();
        let conditions: Vec<_> = found
            .iter()
            .map(|found| found.pattern.condition())
            .collect();
        assert_eq!(
            conditions,
            [
                r#"context.http.path == "/\"q\"""#,
                r#"context.http.path like "/a\*b/*" && !(context.http.path like "/a\*b/*/*") && !(context.http.path == "/a*b/")"#,
                r#"context.http.path like "/c/*/d/*" && !(context.http.path like "/*/*/*/*/*") && !(context.http.path like "/c/*/d/")"#,
                r#"context.http.path like "/e/*/f" && !(context.http.path like "/e/*/*/f")"#,
            ]
        );
    }
}
