//! Which requests can a policy match? What its scope and its conditions say, taken together.
//!
//! A policy matches where its scope does and every one of its conditions holds. From these facts follows
//! what other conditions evaluate to: that is how one policy is proved to match wherever another does, or
//! never to match at all. Nothing is guessed: what does not follow is unknown, and what might fail while it
//! is evaluated is unknown too.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use cedar_policy::pst::{
    BinaryOp, Clause, EntityType, EntityUID, Expr, Literal, Name, PatternElem, SmolStr, UnaryOp,
    Var,
};
use cedar_policy::{ActionConstraint, EntityUid, Policy, PrincipalConstraint};

use super::cedar::{ROLE, SCHEMA, TRUST_DOMAIN, WORKLOAD};
use super::governance::{Registry, Workload};
use super::scope;
use crate::identity::SpiffeId;

/// What one policy can match.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) who: Who,
    actions: Actions,
    /// The one service; none if it is any.
    pub(super) service: Option<Arc<str>>,
    facts: Vec<Fact>,
}

/// The principals that a scope names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Who {
    Anyone,
    Workload(Box<str>),
    Role(Box<str>),
    TrustDomain(Box<str>),
    /// Something that no workload is or is in.
    Nobody,
}

/// What holds, or does not, wherever a policy matches.
#[derive(Debug)]
struct Fact {
    expr: Arc<Expr>,
    holds: bool,
    test: Option<(Arc<Expr>, Test)>,
}

/// Which values an expression may have.
#[derive(Debug)]
enum Test {
    /// Texts that match one of these patterns.
    Like(Vec<Vec<PatternElem>>),
    /// Numbers from the one to the other.
    Between(i64, i64),
    Is(Literal),
}

/// Why no request can match.
#[derive(Debug, PartialEq)]
pub(super) enum Never {
    /// A text that no request has: the pattern as written, and what requests have.
    Text(String, &'static str),
    /// Facts that exclude each other.
    Contradiction,
    /// The solver found no request.
    Unsatisfiable,
}

impl Reach {
    /// What `policy` can match. None if it is not understood.
    pub(super) fn of(policy: &Policy) -> Option<Self> {
        let mut facts = Vec::new();
        if policy.has_non_scope_constraint() {
            for clause in scope::tree(policy)?.body().clauses() {
                match clause {
                    Clause::When(expr) => add(&mut facts, expr, true),
                    Clause::Unless(expr) => add(&mut facts, expr, false),
                }
            }
        }
        Some(Self {
            who: Who::of(&policy.principal_constraint()),
            actions: Actions::of(&policy.action_constraint()),
            service: scope::service(policy),
            facts,
        })
    }

    /// Whether it matches whatever `other` matches: proved, not guessed.
    pub(super) fn covers(&self, other: &Self, registry: &Registry) -> bool {
        self.has_scope_of(other, registry)
            && self
                .facts
                .iter()
                .all(|fact| other.value(&fact.expr, None, registry) == Some(fact.holds))
    }

    /// Whether its scope matches whatever the scope of `other` matches.
    pub(super) fn has_scope_of(&self, other: &Self, registry: &Registry) -> bool {
        self.who.covers(&other.who, registry)
            && self.actions.0 & other.actions.0 == other.actions.0
            && (self.service.is_none() || self.service == other.service)
    }

    /// Whether it asks for more than its scope.
    pub(super) fn is_conditional(&self) -> bool {
        !self.facts.is_empty()
    }

    /// Whether its scope names this action.
    pub(super) fn is_for(&self, action: &str) -> bool {
        self.actions.0 & Actions::equal(action).0 != 0
    }

    /// Whether its scope names every action.
    pub(super) fn is_for_every_action(&self) -> bool {
        self.actions == Actions::all()
    }

    /// Why no request can match it, if that can be proved.
    pub(super) fn never(&self, registry: &Registry) -> Option<Never> {
        self.facts.iter().enumerate().find_map(|(number, fact)| {
            if let (true, Some((subject, test))) = (fact.holds, &fact.test)
                && let Some(never) = self.impossible(subject, test)
            {
                return Some(never);
            }
            let otherwise = self.value(&fact.expr, Some(number), registry);
            (otherwise == Some(!fact.holds)).then_some(Never::Contradiction)
        })
    }

    /// The text with which every path begins that it matches.
    pub(super) fn path_prefix(&self) -> String {
        let prefixes = self.facts.iter().filter_map(|fact| match &fact.test {
            Some((subject, Test::Like(patterns)))
                if fact.holds && http(subject) == Some("path") =>
            {
                let prefixes = patterns.iter().map(|pattern| literal_prefix(pattern));
                prefixes.reduce(common_prefix)
            }
            _ => None,
        });
        prefixes.max_by_key(String::len).unwrap_or_default()
    }

    /// Whether a condition speaks of something that `concerns` it.
    pub(super) fn mentions(&self, concerns: &dyn Fn(&Expr) -> bool) -> bool {
        self.facts.iter().any(|fact| any(&fact.expr, concerns))
    }

    /// What `expr` evaluates to wherever this policy matches, without the fact with the number `but`.
    /// None: unknown, or it might fail.
    fn value(&self, expr: &Expr, but: Option<usize>, registry: &Registry) -> Option<bool> {
        let facts = || {
            let facts = self.facts.iter().enumerate();
            facts.filter_map(move |(number, fact)| (Some(number) != but).then_some(fact))
        };
        if let Some(fact) = facts().find(|fact| *fact.expr == *expr) {
            return Some(fact.holds);
        }
        let value = |expr: &Expr| self.value(expr, but, registry);
        match expr {
            Expr::Literal(Literal::Bool(value)) => return Some(*value),
            Expr::UnaryOp {
                op: UnaryOp::Not,
                expr,
            } => return value(expr).map(|value| !value),
            Expr::BinaryOp {
                op: BinaryOp::NotEq,
                left,
                right,
            } => {
                let equal = Expr::BinaryOp {
                    op: BinaryOp::Eq,
                    left: left.clone(),
                    right: right.clone(),
                };
                return value(&equal).map(|value| !value);
            }
            // What stands on the left is evaluated first, and what stands on the right perhaps not.
            Expr::BinaryOp {
                op: BinaryOp::And,
                left,
                right,
            } => {
                return if value(left)? {
                    value(right)
                } else {
                    Some(false)
                };
            }
            Expr::BinaryOp {
                op: BinaryOp::Or,
                left,
                right,
            } => match value(left) {
                Some(true) => return Some(true),
                Some(false) => return value(right),
                // Both may ask for the same.
                None => {}
            },
            Expr::IfThenElse {
                cond,
                then_expr,
                else_expr,
            } => {
                return if value(cond)? {
                    value(then_expr)
                } else {
                    value(else_expr)
                };
            }
            Expr::HasAttr { expr, attrs } => {
                let attrs: Vec<&str> = attrs.iter().map(SmolStr::as_str).collect();
                return self.has(expr, &attrs, but, registry);
            }
            Expr::BinaryOp {
                op: BinaryOp::In,
                left,
                right,
            } => {
                if let Expr::Var(var) = &**left {
                    return self.is_in(var, right, registry);
                }
            }
            Expr::BinaryOp {
                op: BinaryOp::Eq,
                left,
                right,
            } => {
                if let (Expr::Var(var), Some(uid)) = (&**left, entity(right))
                    && let Some(value) = self.is(var, uid)
                {
                    return Some(value);
                }
            }
            Expr::BinaryOp {
                op: BinaryOp::HasTag,
                left,
                right,
            } if **left == Expr::Var(Var::Principal) => {
                return Some(self.tag(right, registry)?.is_some());
            }
            _ => {}
        }
        let (subject, asked) = test(expr)?;
        if let Some(known) = self.known(&subject, registry) {
            return Some(asked.accepts(&known));
        }
        if self.has_http(but) == Some(true) && self.impossible(&subject, &asked).is_some() {
            return Some(false);
        }
        facts().find_map(|fact| {
            let (_, given) = fact.test.as_ref().filter(|(of, _)| *of == subject)?;
            match fact.holds {
                true if given.within(&asked) => Some(true),
                true if given.excludes(&asked) => Some(false),
                false if asked.within(given) => Some(false),
                _ => None,
            }
        })
    }

    /// Whether a request that this policy matches has `http`.
    fn has_http(&self, but: Option<usize>) -> Option<bool> {
        if self.actions.0 & Actions::http().0 == self.actions.0 {
            return Some(true);
        }
        if self.actions.0 & Actions::http().0 == 0 {
            return Some(false);
        }
        // What reads it evaluates only where it is.
        let facts = self.facts.iter().enumerate();
        let mut facts = facts.filter(|(number, _)| Some(*number) != but);
        let reads = |fact: &Fact| {
            let read = fact.test.as_ref().map(|(subject, _)| &**subject);
            read.is_some_and(|read| http(read).is_some())
                || (fact.holds && is_asked_for_http(&fact.expr))
        };
        facts.any(|(_, fact)| reads(fact)).then_some(true)
    }

    fn has(
        &self,
        of: &Expr,
        attrs: &[&str],
        but: Option<usize>,
        registry: &Registry,
    ) -> Option<bool> {
        match (of, attrs) {
            (Expr::Var(Var::Context), ["http"] | ["http", "method" | "host" | "path"]) => {
                self.has_http(but)
            }
            (Expr::Var(Var::Principal), [attr]) => {
                let Who::Workload(id) = &self.who else {
                    return None;
                };
                let registered = registered(id, registry);
                let known = registered.and_then(|workload| attribute(workload, attr));
                Some(known.is_some())
            }
            _ => None,
        }
    }

    fn is(&self, var: &Var, uid: &EntityUID) -> Option<bool> {
        let name = uid.eid.as_str();
        match var {
            Var::Principal => match &self.who {
                Who::Workload(id) => Some(is_a(uid, "Workload") && **id == *name),
                _ => None,
            },
            Var::Action => self.actions.value(Actions::equal(name)),
            Var::Resource => Some(**self.service.as_ref()? == *name),
            Var::Context => None,
        }
    }

    fn is_in(&self, var: &Var, group: &Expr, registry: &Registry) -> Option<bool> {
        match (var, group) {
            (Var::Action, Expr::Set(groups)) => {
                let names = groups.iter().map(|group| Some(entity(group)?.eid.as_str()));
                let names: Option<Vec<_>> = names.collect();
                self.actions.value(Actions::members(names?))
            }
            (Var::Action, group) => self
                .actions
                .value(Actions::members([entity(group)?.eid.as_str()])),
            (Var::Resource, group) => self.is(var, entity(group)?),
            (Var::Principal, group) => {
                let uid = entity(group)?;
                let name = uid.eid.as_str();
                if is_a(uid, "Workload") {
                    return self.is(var, uid);
                }
                let wanted = match uid.ty.0.id.as_str() {
                    "Role" => Who::Role(name.into()),
                    "TrustDomain" => Who::TrustDomain(name.into()),
                    _ => return None,
                };
                if wanted.covers(&self.who, registry) {
                    return Some(true);
                }
                match (&self.who, &wanted) {
                    // What a workload is in is known.
                    (Who::Workload(_), _) | (Who::TrustDomain(_), Who::TrustDomain(_)) => {
                        Some(false)
                    }
                    _ => None,
                }
            }
            (Var::Context, _) => None,
        }
    }

    /// The label of the principal that `name` asks for, if it has one; none where it is not known who that is.
    fn tag<'r>(&self, name: &Expr, registry: &'r Registry) -> Option<Option<&'r String>> {
        let (Expr::Literal(Literal::String(tag)), Who::Workload(id)) = (name, &self.who) else {
            return None;
        };
        let labels = registered(id, registry).map(|workload| &workload.labels);
        Some(labels.and_then(|labels| labels.get(tag.as_str())))
    }

    /// The value of `subject`, where scope and registry settle it.
    fn known(&self, subject: &Expr, registry: &Registry) -> Option<Literal> {
        match subject {
            Expr::GetAttr { expr, attr } if **expr == Expr::Var(Var::Principal) => {
                let Who::Workload(id) = &self.who else {
                    return None;
                };
                attribute(registered(id, registry)?, attr)
            }
            Expr::BinaryOp {
                op: BinaryOp::GetTag,
                left,
                right,
            } if **left == Expr::Var(Var::Principal) => {
                let label = self.tag(right, registry)??;
                Some(Literal::String(label.into()))
            }
            Expr::GetAttr { expr, attr } if attr == "trust_domain" && is_peer(expr) => {
                match &self.who {
                    Who::Workload(id) => {
                        let id = SpiffeId::parse(id).ok()?;
                        Some(Literal::String(id.trust_domain().as_str().into()))
                    }
                    Who::TrustDomain(name) => Some(Literal::String((&**name).into())),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Why `subject`, a text of a request, has none of the values that `test` accepts.
    fn impossible(&self, subject: &Expr, test: &Test) -> Option<Never> {
        let Test::Like(patterns) = test else {
            return None;
        };
        let no = |pattern: &[PatternElem]| match http(subject)? {
            "path" => no_path(pattern),
            "host" => no_host(pattern),
            "method" => self.actions.no_method(pattern),
            _ => None,
        };
        let mut why = None;
        for pattern in patterns {
            why = Some(Never::Text(written(pattern), no(pattern)?));
        }
        why
    }
}

impl Who {
    pub(super) fn of(scope: &PrincipalConstraint) -> Self {
        match scope {
            PrincipalConstraint::Any => Self::Anyone,
            PrincipalConstraint::Is(kind) if *kind == *WORKLOAD => Self::Anyone,
            PrincipalConstraint::Is(_) => Self::Nobody,
            PrincipalConstraint::Eq(uid)
            | PrincipalConstraint::In(uid)
            | PrincipalConstraint::IsIn(_, uid) => Self::named(uid),
        }
    }

    fn named(uid: &EntityUid) -> Self {
        let name = uid.id().unescaped().into();
        match uid.type_name() {
            kind if *kind == *WORKLOAD => Self::Workload(name),
            kind if *kind == *ROLE => Self::Role(name),
            kind if *kind == *TRUST_DOMAIN => Self::TrustDomain(name),
            _ => Self::Nobody,
        }
    }

    /// Whether whoever is one of `other` is one of these.
    fn covers(&self, other: &Self, registry: &Registry) -> bool {
        let in_domain = |id: &SpiffeId, name: &str| id.trust_domain().as_str() == name;
        match (self, other) {
            (Self::Anyone, _) => true,
            (Self::Role(role), Self::Workload(id)) => registered(id, registry)
                .is_some_and(|workload| workload.roles.iter().any(|given| **given == **role)),
            (Self::TrustDomain(name), Self::Workload(id)) => {
                SpiffeId::parse(id).is_ok_and(|id| in_domain(&id, name))
            }
            (Self::TrustDomain(name), Self::Role(role)) => {
                let mut members = registry
                    .iter()
                    .filter(|workload| workload.roles.iter().any(|given| **given == **role))
                    .peekable();
                members.peek().is_some() && members.all(|workload| in_domain(&workload.id, name))
            }
            _ => self == other,
        }
    }
}

/// Actions that are no groups, a bit for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Actions(u16);

/// The actions of the schema.
struct Vocabulary {
    /// Those that are no groups.
    names: Vec<String>,
    /// What is in a group; what is none is in itself.
    members: HashMap<String, u16>,
}

static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| {
    let entities = super::cedar::action_entities();
    let all: Vec<&EntityUid> = SCHEMA.actions().collect();
    let is_in = |action: &EntityUid, group: &EntityUid| entities.is_ancestor_of(group, action);
    let mut single: Vec<&EntityUid> = all
        .iter()
        .copied()
        .filter(|group| {
            !all.iter()
                .any(|action| action != group && is_in(action, group))
        })
        .collect();
    single.sort();
    let members = all.iter().map(|group| {
        let bits = single
            .iter()
            .enumerate()
            .map(|(place, action)| u16::from(action == group || is_in(action, group)) << place);
        (group.id().unescaped().to_owned(), bits.sum())
    });
    Vocabulary {
        members: members.collect(),
        names: single
            .iter()
            .map(|action| action.id().unescaped().to_owned())
            .collect(),
    }
});

impl Actions {
    /// All of them.
    fn all() -> Self {
        Self((1 << VOCABULARY.names.len()) - 1)
    }

    fn of(scope: &ActionConstraint) -> Self {
        match scope {
            ActionConstraint::Any => Self::all(),
            ActionConstraint::Eq(uid) => Self::equal(uid.id().unescaped()),
            ActionConstraint::In(uids) => {
                Self::members(uids.iter().map(|uid| uid.id().unescaped()))
            }
        }
    }

    /// The action with this name; none for a group.
    fn equal(name: &str) -> Self {
        let place = VOCABULARY.names.iter().position(|known| known == name);
        Self(place.map_or(0, |place| 1 << place))
    }

    /// The actions with these names, and those in the groups with these names.
    fn members<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let bits = |name| VOCABULARY.members.get(name).copied().unwrap_or(0);
        Self(names.into_iter().fold(0, |all, name| all | bits(name)))
    }

    /// Whether all are among `these`, or none is.
    fn value(self, these: Self) -> Option<bool> {
        match self.0 & these.0 {
            0 => Some(false),
            both if both == self.0 => Some(true),
            _ => None,
        }
    }

    /// Those of an HTTP request.
    fn http() -> Self {
        Self(Self::all().0 & !Self::equal(CONNECT).0)
    }

    /// Why no request with one of these actions has a method like `pattern`.
    fn no_method(self, pattern: &[PatternElem]) -> Option<&'static str> {
        let named = |name: &str| ![OTHER, CONNECT].contains(&name);
        let known = |name: &str| named(name) && Self::equal(name) != Self(0);
        let possible = VOCABULARY.names.iter().any(|name| {
            let ours = self.0 & Self::equal(name).0 != 0;
            ours && match name.as_str() {
                CONNECT => false,
                // Every method without a name of its own.
                OTHER => literal(pattern).is_none_or(|exact| !known(&exact)),
                name => covers(pattern, &elements(name)),
            }
        });
        (!possible).then_some("none of its actions has such a method")
    }
}

/// The action of an HTTP request whose method has no name in the schema.
const OTHER: &str = "other";

/// The action of a TCP connection.
const CONNECT: &str = "connect";

/// Adds what follows where `expr` holds, or does not.
fn add(facts: &mut Vec<Fact>, expr: &Arc<Expr>, holds: bool) {
    match (&**expr, holds) {
        (
            Expr::UnaryOp {
                op: UnaryOp::Not,
                expr,
            },
            _,
        ) => add(facts, expr, !holds),
        (
            Expr::BinaryOp {
                op: BinaryOp::And,
                left,
                right,
            },
            true,
        )
        | (
            Expr::BinaryOp {
                op: BinaryOp::Or,
                left,
                right,
            },
            false,
        ) => {
            add(facts, left, holds);
            add(facts, right, holds);
        }
        (
            Expr::BinaryOp {
                op: BinaryOp::NotEq,
                left,
                right,
            },
            _,
        ) => {
            let equal = Expr::BinaryOp {
                op: BinaryOp::Eq,
                left: left.clone(),
                right: right.clone(),
            };
            add(facts, &Arc::new(equal), !holds);
        }
        (expr_here, _) => facts.push(Fact {
            test: test(expr_here),
            expr: expr.clone(),
            holds,
        }),
    }
}

/// What `expr` asks of which expression, if it is a test of one against what is written there.
fn test(expr: &Expr) -> Option<(Arc<Expr>, Test)> {
    match expr {
        Expr::Like { expr, pattern } => Some((expr.clone(), Test::Like(vec![pattern.clone()]))),
        Expr::BinaryOp { op, left, right } => match (op, &**left, &**right) {
            (BinaryOp::Or, _, _) => {
                let ((subject, one), (other, two)) = (test(left)?, test(right)?);
                match (one, two) {
                    (Test::Like(mut one), Test::Like(two)) if subject == other => {
                        one.extend(two);
                        Some((subject, Test::Like(one)))
                    }
                    _ => None,
                }
            }
            (BinaryOp::Contains, Expr::Set(items), _) => {
                let texts = items.iter().map(|item| match &**item {
                    Expr::Literal(Literal::String(text)) => Some(elements(text)),
                    _ => None,
                });
                Some((right.clone(), Test::Like(texts.collect::<Option<_>>()?)))
            }
            (op, _, Expr::Literal(literal)) => Some((left.clone(), Test::of(*op, literal)?)),
            (BinaryOp::Eq, Expr::Literal(literal), _) => {
                Some((right.clone(), Test::of(BinaryOp::Eq, literal)?))
            }
            _ => None,
        },
        _ => None,
    }
}

impl Test {
    /// The test of something on the left of `op` against `literal`.
    fn of(op: BinaryOp, literal: &Literal) -> Option<Self> {
        match (op, literal) {
            (BinaryOp::Eq, Literal::String(text)) => Some(Self::Like(vec![elements(text)])),
            (BinaryOp::Eq, Literal::Long(number)) => Some(Self::Between(*number, *number)),
            (BinaryOp::Eq, literal) => Some(Self::Is(literal.clone())),
            (BinaryOp::Less, Literal::Long(end)) => {
                Some(Self::Between(i64::MIN, end.checked_sub(1)?))
            }
            (BinaryOp::LessEq, Literal::Long(last)) => Some(Self::Between(i64::MIN, *last)),
            (BinaryOp::Greater, Literal::Long(before)) => {
                Some(Self::Between(before.checked_add(1)?, i64::MAX))
            }
            (BinaryOp::GreaterEq, Literal::Long(first)) => Some(Self::Between(*first, i64::MAX)),
            _ => None,
        }
    }

    /// Whether `other` accepts all that this accepts.
    fn within(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Like(these), Self::Like(those)) => these
                .iter()
                .all(|narrow| those.iter().any(|wide| covers(wide, narrow))),
            (Self::Between(first, last), Self::Between(from, to)) => from <= first && last <= to,
            (Self::Is(this), Self::Is(that)) => this == that,
            _ => false,
        }
    }

    /// Whether `other` accepts nothing that this accepts.
    fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Like(these), Self::Like(those)) => these
                .iter()
                .all(|this| !those.iter().any(|that| meet(this, that))),
            (Self::Between(first, last), Self::Between(from, to)) => to < first || last < from,
            (Self::Is(this), Self::Is(that)) => this != that,
            _ => false,
        }
    }

    fn accepts(&self, value: &Literal) -> bool {
        match (self, value) {
            (Self::Like(patterns), Literal::String(text)) => patterns
                .iter()
                .any(|pattern| covers(pattern, &elements(text))),
            (Self::Between(first, last), Literal::Long(number)) => (first..=last).contains(&number),
            (Self::Is(literal), value) => literal == value,
            _ => false,
        }
    }
}

/// Whether `wide` matches every text that `narrow` matches. A wildcard of `narrow` stands for any text, so
/// only a wildcard can take it in.
fn covers(wide: &[PatternElem], narrow: &[PatternElem]) -> bool {
    let (mut w, mut n) = (0, 0);
    // The last wildcard of `wide`, and what it has not taken in yet.
    let mut again = None;
    while n < narrow.len() {
        match wide.get(w) {
            Some(PatternElem::Wildcard) => {
                w += 1;
                again = Some((w, n));
            }
            Some(char) if *char == narrow[n] => {
                w += 1;
                n += 1;
            }
            _ => match again {
                Some((behind, taken)) => {
                    w = behind;
                    n = taken + 1;
                    again = Some((behind, n));
                }
                None => return false,
            },
        }
    }
    wide[w..]
        .iter()
        .all(|element| *element == PatternElem::Wildcard)
}

/// Whether there is a text that both match.
fn meet(one: &[PatternElem], two: &[PatternElem]) -> bool {
    use PatternElem::Wildcard;
    // `next[j]`: whether what is left of `one` meets what is left of `two` from `j` on.
    let mut next = vec![false; two.len() + 1];
    for i in (0..=one.len()).rev() {
        let mut here = vec![false; two.len() + 1];
        for j in (0..=two.len()).rev() {
            here[j] = match (one.get(i), two.get(j)) {
                (None, None) => true,
                (Some(Wildcard), Some(Wildcard)) => next[j] || here[j + 1],
                (Some(Wildcard), other) => next[j] || (other.is_some() && here[j + 1]),
                (other, Some(Wildcard)) => here[j + 1] || (other.is_some() && next[j]),
                (Some(one), Some(two)) => one == two && next[j + 1],
                _ => false,
            };
        }
        next = here;
    }
    next[0]
}

/// Why no request has a path like `pattern`.
fn no_path(pattern: &[PatternElem]) -> Option<&'static str> {
    if pattern.contains(&PatternElem::Char('?')) || pattern.contains(&PatternElem::Char('#')) {
        return Some("the path comes without query and fragment");
    }
    // `OPTIONS *`, and CONNECT, which has none.
    let any = [PatternElem::Char('/'), PatternElem::Wildcard];
    let possible = meet(pattern, &any) || covers(pattern, &elements("*")) || covers(pattern, &[]);
    (!possible).then_some("a path begins with `/`")
}

/// Why no request has a host like `pattern`.
fn no_host(pattern: &[PatternElem]) -> Option<&'static str> {
    let upper = |element: &PatternElem| matches!(element, PatternElem::Char('A'..='Z'));
    if pattern.iter().any(upper) {
        return Some("a host comes in lower case");
    }
    let digit = |element: &&PatternElem| matches!(element, PatternElem::Char('0'..='9'));
    let mut end = pattern.iter().rev().skip_while(digit);
    let port =
        pattern.last().as_ref().is_some_and(digit) && end.next() == Some(&PatternElem::Char(':'));
    port.then_some("a host comes without its port")
}

fn elements(text: &str) -> Vec<PatternElem> {
    text.chars().map(PatternElem::Char).collect()
}

/// The one text that `pattern` matches.
fn literal(pattern: &[PatternElem]) -> Option<String> {
    let chars = pattern.iter().map(|element| match element {
        PatternElem::Char(char) => Some(*char),
        PatternElem::Wildcard => None,
    });
    chars.collect()
}

fn literal_prefix(pattern: &[PatternElem]) -> String {
    let chars = pattern.iter().map_while(|element| match element {
        PatternElem::Char(char) => Some(*char),
        PatternElem::Wildcard => None,
    });
    chars.collect()
}

fn common_prefix(one: String, two: String) -> String {
    let pairs = one.chars().zip(two.chars());
    pairs
        .take_while(|(one, two)| one == two)
        .map(|(char, _)| char)
        .collect()
}

fn written(pattern: &[PatternElem]) -> String {
    let chars = pattern.iter().map(|element| match element {
        PatternElem::Char(char) => *char,
        PatternElem::Wildcard => '*',
    });
    chars.collect()
}

/// Whether `expr` or a part of it is of interest. What is not understood always is.
fn any(expr: &Expr, concerns: &dyn Fn(&Expr) -> bool) -> bool {
    if concerns(expr) {
        return true;
    }
    let any = |expr: &Expr| any(expr, concerns);
    match expr {
        Expr::Literal(_) | Expr::Var(_) => false,
        Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. }
        | Expr::UnaryOp { expr, .. } => any(expr),
        Expr::BinaryOp { left, right, .. } => any(left) || any(right),
        Expr::Is { expr, in_expr, .. } => {
            any(expr) || in_expr.as_ref().is_some_and(|expr| any(expr))
        }
        Expr::IfThenElse {
            cond,
            then_expr,
            else_expr,
        } => any(cond) || any(then_expr) || any(else_expr),
        Expr::Set(items) => items.iter().any(|item| any(item)),
        Expr::Record(fields) => fields.values().any(|value| any(value)),
        _ => true,
    }
}

/// Whether `expr` is about who asks.
pub(super) fn is_about_the_principal(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Principal)) || is_peer(expr)
}

/// Whether `expr` is about what is done.
pub(super) fn is_about_the_action(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Action)) || http(expr) == Some("method")
}

fn is_context(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context))
}

fn is_peer(expr: &Expr) -> bool {
    matches!(expr, Expr::GetAttr { expr, attr } if attr == "peer" && is_context(expr))
}

fn is_asked_for_http(expr: &Expr) -> bool {
    matches!(expr, Expr::HasAttr { expr, attrs } if attrs.head == "http" && is_context(expr))
}

/// Which text of a request `expr` is.
fn http(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::GetAttr { expr, attr } => match &**expr {
            Expr::GetAttr { expr, attr: http } if http == "http" && is_context(expr) => Some(attr),
            _ => None,
        },
        _ => None,
    }
}

fn entity(expr: &Expr) -> Option<&EntityUID> {
    match expr {
        Expr::Literal(Literal::EntityUID(uid)) => Some(uid),
        _ => None,
    }
}

fn is_a(uid: &EntityUID, kind: &str) -> bool {
    uid.ty.0.id.as_str() == kind
}

fn registered<'r>(id: &str, registry: &'r Registry) -> Option<&'r Workload> {
    registry.get(&SpiffeId::parse(id).ok()?)
}

/// The attribute of a registered workload.
fn attribute(workload: &Workload, name: &str) -> Option<Literal> {
    let text = |text: &str| Literal::String(text.into());
    match name {
        "owner" => Some(text(&workload.owner)),
        "purpose" => Some(text(&workload.purpose)),
        "accountable" => workload.accountable.as_deref().map(text),
        "kind" => Some(Literal::EntityUID(EntityUID {
            ty: EntityType(Name::unqualified("Kind").ok()?),
            eid: workload.kind.label().into(),
        })),
        _ => None,
    }
}
