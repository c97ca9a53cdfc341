//! Which inputs can change what a policy says?
//!
//! An evaluation depends on nothing but what its conditions read, so two requests that agree on that
//! get the same answer. Where a condition only *tests* a text (`like "/v1/*"`, `== "/health"`), the
//! requests need only agree on the outcome of the test: paths with identifiers in them share an entry.
//! What is not understood here counts as reading everything, and is never remembered.

use cedar_policy::Policy;
use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, PatternElem, Var};

use super::scope;

/// What a set of policies reads of the context.
#[derive(Debug, Default)]
pub(super) struct Reads {
    needs: Needs,
    method: Field,
    host: Field,
    path: Field,
}

/// The parts of the context that a set of policies looks at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    /// The context as a whole, or in a way that is not understood.
    pub(super) everything: bool,
    pub(super) clock: bool,
    pub(super) source: bool,
    pub(super) port: bool,
    pub(super) peer: bool,
    pub(super) environment: bool,
    pub(super) http: bool,
    pub(super) method: bool,
    pub(super) host: bool,
    pub(super) path: bool,
}

/// What is read of one text.
#[derive(Debug, Default)]
struct Field {
    whole: bool,
    tests: Vec<Test>,
}

#[derive(Clone, Debug, PartialEq)]
enum Test {
    Equals(Box<str>),
    Like(Pattern),
}

/// Which text of a request an expression names.
#[derive(Clone, Copy)]
enum Text {
    Method,
    Host,
    Path,
}

impl Reads {
    /// Adds what `policy` reads.
    pub(super) fn add(&mut self, policy: &Policy) {
        if !policy.has_non_scope_constraint() {
            return;
        }
        let Some(parsed) = scope::tree(policy) else {
            self.needs.everything = true;
            return;
        };
        for clause in parsed.body().clauses() {
            let (Clause::When(expr) | Clause::Unless(expr)) = clause;
            self.walk(expr);
        }
    }

    /// Adds what other policies read.
    pub(super) fn join(&mut self, other: &Self) {
        self.needs.join(other.needs);
        self.method.join(&other.method);
        self.host.join(&other.host);
        self.path.join(&other.path);
    }

    /// The parts of the context that are looked at.
    pub(super) fn needs(&self) -> Needs {
        self.needs
    }

    /// Whether an answer holds for the next request that has the same key.
    pub(super) fn may_be_remembered(&self) -> bool {
        !self.needs.everything && !self.needs.clock
    }

    /// Whether moreover there are few keys: no text of a request is read as a whole.
    pub(super) fn only_tests(&self) -> bool {
        let texts = [&self.method, &self.host, &self.path];
        self.may_be_remembered() && !texts.iter().any(|text| text.whole)
    }

    /// Appends to `key` all that the policies can see of one HTTP request. `method` is given where the
    /// action does not name it already.
    pub(super) fn key(&self, key: &mut Vec<u8>, method: Option<&str>, host: &str, path: &str) {
        if let Some(method) = method {
            self.method.key(key, method);
        }
        self.host.key(key, host);
        self.path.key(key, path);
    }

    fn walk(&mut self, expr: &Expr) {
        if let Some(text) = text(expr) {
            self.field(text).whole = true;
            return;
        }
        match expr {
            Expr::Literal(_) => {}
            Expr::Var(Var::Context) => self.needs.everything = true,
            Expr::Var(Var::Principal | Var::Action | Var::Resource) => {}
            Expr::GetAttr { expr, attr } if is_context(expr) => self.attribute(attr),
            // A part of `source` or `peer`, fixed for the connection, or an attribute of an entity.
            Expr::GetAttr { expr, .. } => self.walk(expr),
            Expr::HasAttr { expr, attrs } if is_context(expr) => match attrs.head.as_str() {
                // What follows, as in `has http.path`, is asked of the record as it is.
                "http" => self.needs.join(Needs::HTTP),
                first => self.attribute(first),
            },
            Expr::HasAttr { expr, .. } if is_http(expr) => self.needs.join(Needs::HTTP),
            Expr::HasAttr { expr, .. } => self.walk(expr),
            Expr::Like { expr, pattern } => match text(expr) {
                Some(text) => self.test(text, Test::Like(Pattern::new(pattern))),
                None => self.walk(expr),
            },
            Expr::BinaryOp { op, left, right } => self.binary(*op, left, right),
            Expr::UnaryOp { expr, .. } => self.walk(expr),
            Expr::Is { expr, in_expr, .. } => {
                self.walk(expr);
                if let Some(expr) = in_expr {
                    self.walk(expr);
                }
            }
            Expr::IfThenElse {
                cond,
                then_expr,
                else_expr,
            } => [cond, then_expr, else_expr]
                .into_iter()
                .for_each(|expr| self.walk(expr)),
            Expr::Set(items) => items.iter().for_each(|item| self.walk(item)),
            Expr::Record(fields) => fields.values().for_each(|value| self.walk(value)),
            _ => self.needs.everything = true,
        }
    }

    fn binary(&mut self, op: BinaryOp, left: &Expr, right: &Expr) {
        match (op, text(left), text(right)) {
            (BinaryOp::Eq | BinaryOp::NotEq, Some(text), None) => {
                if let Some(literal) = string(right) {
                    return self.test(text, Test::Equals(literal.into()));
                }
            }
            (BinaryOp::Eq | BinaryOp::NotEq, None, Some(text)) => {
                if let Some(literal) = string(left) {
                    return self.test(text, Test::Equals(literal.into()));
                }
            }
            (BinaryOp::Contains, None, Some(text)) => {
                if let Expr::Set(items) = left
                    && let Some(literals) = items
                        .iter()
                        .map(|item| string(item))
                        .collect::<Option<Vec<_>>>()
                {
                    for literal in literals {
                        self.test(text, Test::Equals(literal.into()));
                    }
                    return;
                }
            }
            _ => {}
        }
        self.walk(left);
        self.walk(right);
    }

    fn attribute(&mut self, name: &str) {
        match name {
            "now" => self.needs.clock = true,
            "source" => self.needs.source = true,
            "port" => self.needs.port = true,
            "peer" => self.needs.peer = true,
            "environment" => self.needs.environment = true,
            // `http` as a value, or a name that the schema does not have.
            _ => self.needs.everything = true,
        }
    }

    fn field(&mut self, text: Text) -> &mut Field {
        self.needs.http = true;
        let (needed, field) = match text {
            Text::Method => (&mut self.needs.method, &mut self.method),
            Text::Host => (&mut self.needs.host, &mut self.host),
            Text::Path => (&mut self.needs.path, &mut self.path),
        };
        *needed = true;
        field
    }

    fn test(&mut self, text: Text, test: Test) {
        self.field(text).test(&test);
    }
}

impl Needs {
    const HTTP: Self = Self {
        everything: false,
        clock: false,
        source: false,
        port: false,
        peer: false,
        environment: false,
        http: true,
        method: true,
        host: true,
        path: true,
    };

    /// Adds what others need.
    pub(super) fn join(&mut self, other: Self) {
        self.everything |= other.everything;
        self.clock |= other.clock;
        self.source |= other.source;
        self.port |= other.port;
        self.peer |= other.peer;
        self.environment |= other.environment;
        self.http |= other.http;
        self.method |= other.method;
        self.host |= other.host;
        self.path |= other.path;
    }
}

impl Field {
    fn test(&mut self, test: &Test) {
        if !self.tests.contains(test) {
            self.tests.push(test.clone());
        }
    }

    fn join(&mut self, other: &Self) {
        self.whole |= other.whole;
        for test in &other.tests {
            self.test(test);
        }
    }

    fn key(&self, key: &mut Vec<u8>, text: &str) {
        if self.whole {
            // The length keeps two texts in a row apart; it settles every test, too.
            key.extend_from_slice(&text.len().to_le_bytes());
            key.extend_from_slice(text.as_bytes());
            return;
        }
        for eight in self.tests.chunks(8) {
            let bits = eight.iter().enumerate().fold(0, |bits, (place, test)| {
                bits | u8::from(test.holds(text)) << place
            });
            key.push(bits);
        }
    }
}

impl Test {
    fn holds(&self, text: &str) -> bool {
        match self {
            Self::Equals(literal) => **literal == *text,
            Self::Like(pattern) => pattern.matches(text),
        }
    }
}

fn is_context(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context))
}

fn is_http(expr: &Expr) -> bool {
    matches!(expr, Expr::GetAttr { expr, attr } if attr == "http" && is_context(expr))
}

fn text(expr: &Expr) -> Option<Text> {
    match expr {
        Expr::GetAttr { expr, attr } if is_http(expr) => match attr.as_str() {
            "method" => Some(Text::Method),
            "host" => Some(Text::Host),
            "path" => Some(Text::Path),
            _ => None,
        },
        _ => None,
    }
}

fn string(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Literal(Literal::String(text)) => Some(text),
        _ => None,
    }
}

/// A `like` pattern, cut at its wildcards: matches exactly what Cedar's matches, without allocating.
#[derive(Clone, Debug, PartialEq)]
struct Pattern {
    /// What stands before, between and behind the wildcards; always at least one.
    pieces: Box<[Box<str>]>,
}

impl Pattern {
    fn new(elements: &[PatternElem]) -> Self {
        let pieces = elements.split(|element| *element == PatternElem::Wildcard);
        let text = |piece: &[PatternElem]| {
            let chars = piece.iter().filter_map(|element| match element {
                PatternElem::Char(c) => Some(*c),
                PatternElem::Wildcard => None,
            });
            chars.collect::<String>().into_boxed_str()
        };
        Self {
            pieces: pieces.map(text).collect(),
        }
    }

    fn matches(&self, text: &str) -> bool {
        match &*self.pieces {
            [] => text.is_empty(),
            [only] => **only == *text,
            [first, middle @ .., last] => {
                let rest = text.strip_prefix(&**first);
                let Some(mut rest) = rest.and_then(|rest| rest.strip_suffix(&**last)) else {
                    return false;
                };
                // Taking the leftmost place for each piece leaves the most room for the others.
                middle.iter().all(|piece| match rest.find(&**piece) {
                    Some(at) => {
                        rest = &rest[at + piece.len()..];
                        true
                    }
                    None => false,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn reads(condition: &str) -> Reads {
        let text = format!("permit(principal, action, resource) when {{ {condition} }};");
        let mut reads = Reads::default();
        reads.add(&Policy::parse(None, text).unwrap());
        reads
    }

    fn key(reads: &Reads, host: &str, path: &str) -> Vec<u8> {
        let mut key = Vec::new();
        reads.key(&mut key, None, host, path);
        key
    }

    #[test]
    fn a_key_tells_apart_only_what_the_conditions_can() {
        for (condition, same, other) in [
            (r#"context.http.path like "/v1/*""#, "/v1/2", "/v2/1"),
            (r#"context.http.path == "/v1/1""#, "/v1/1", "/v1/2"),
            (r#""/v1/1" != context.http.path"#, "/v1/1", "/v1/2"),
            (
                r#"["/v1/1", "/v1/2"].contains(context.http.path)"#,
                "/v1/1",
                "/v1/3",
            ),
            (
                r#"[context.http.path].contains("/v1/1")"#,
                "/v1/1",
                "/v1/22",
            ),
            (
                r#"{ p: context.http.path } == { p: "/v1/1" }"#,
                "/v1/1",
                "/x",
            ),
        ] {
            let reads = reads(condition);
            assert!(reads.may_be_remembered(), "{condition}");
            let asked = key(&reads, "a", "/v1/1");
            assert_eq!(asked, key(&reads, "b", same), "{condition}");
            assert_ne!(asked, key(&reads, "a", other), "{condition}");
        }
    }

    #[test]
    fn what_moves_or_is_not_understood_is_never_remembered() {
        for condition in [
            r#"context.now < datetime("2030-01-01")"#,
            "context == context",
            "context has now",
            r#"context.http == { host: "a", method: "GET", path: "/" }"#,
            "[context].isEmpty()",
        ] {
            assert!(!reads(condition).may_be_remembered(), "{condition}");
        }
        for condition in [
            "context.port == 1",
            "context has http && context.http has path",
            r#"principal has owner && principal.owner == "a""#,
            r#"context.source.ip.isInRange(ip("10.0.0.0/8"))"#,
            r#"context.peer.lifetime < duration("1h")"#,
            r#"context.environment.hasTag("region")"#,
        ] {
            assert!(reads(condition).may_be_remembered(), "{condition}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]
        #[test]
        fn a_pattern_matches_what_cedar_says_it_matches(
            quoted in r#"([ab/é]|\*|\\\*|\\u\{e9\}){0,8}"#,
            text in "[ab/é*]{0,8}",
        ) {
            let policy = format!(
                r#"permit(principal, action, resource) when {{ "{text}" like "{quoted}" }};"#
            );
            let policy = Policy::parse(None, policy).unwrap();
            let parsed = policy.to_pst().unwrap();
            let Clause::When(expr) = &parsed.body().clauses()[0] else { unreachable!() };
            let Expr::Like { pattern, .. } = &**expr else { unreachable!() };
            let condition = format!(r#""{text}" like "{quoted}""#);
            let nobody: cedar_policy::EntityUid = r#"A::"a""#.parse().unwrap();
            let request = cedar_policy::Request::new(
                nobody.clone(), nobody.clone(), nobody, cedar_policy::Context::empty(), None,
            );
            let cedar = cedar_policy::eval_expression(
                &request.unwrap(), &cedar_policy::Entities::empty(), &condition.parse().unwrap(),
            );
            prop_assert_eq!(
                cedar.unwrap(),
                cedar_policy::EvalResult::Bool(Pattern::new(pattern).matches(&text))
            );
        }
    }
}
