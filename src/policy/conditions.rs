//! What do the conditions of a policy ask, and which of them hold?
//!
//! For people who ask: the data path leaves this to Cedar. Here each condition is taken by itself, and
//! where a part of the question is left open, what can be settled is settled and the rest stays.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use cedar_policy::pst::{BinaryOp, Clause, Expr, Literal, UnaryOp, Var};
use cedar_policy::{Entities, EvalResult, Expression, Policy, Request, eval_expression};

/// One of the things that must hold for a policy to apply: a part of a `when` between its `&&`, which must
/// be true, or a part of an `unless` between its `||`, which must be false.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Condition {
    pub(super) expr: Arc<Expr>,
    pub(super) sense: Sense,
}

/// Under which word a condition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sense {
    When,
    Unless,
}

/// What is known of a condition.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Settled {
    Holds,
    Fails,
    /// It depends on what is left open: this is what remains.
    Open(Condition),
    /// It cannot be evaluated.
    Failed,
}

/// A part of a question that a condition can read, the service and the action aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Input {
    Principal,
    Method,
    Host,
    Path,
    Source,
    Port,
    Now,
    TrustDomain,
    Expires,
    Lifetime,
    Environment,
}

impl Condition {
    /// The conditions of `policy`, in the order in which they stand.
    pub(super) fn all(policy: &Policy) -> Vec<Self> {
        let mut all = Vec::new();
        if !policy.has_non_scope_constraint() {
            return all;
        }
        // Not `scope::tree`, which has `unless` and `>` written in other ways.
        let Ok(parsed) = policy.to_pst() else {
            // Whatever it says stays open.
            let name = "conditions".into();
            let expr = Arc::new(Expr::Unknown { name });
            let sense = Sense::When;
            return vec![Self { expr, sense }];
        };
        for clause in parsed.body().clauses() {
            let (expr, sense) = match clause {
                Clause::When(expr) => (expr, Sense::When),
                Clause::Unless(expr) => (expr, Sense::Unless),
            };
            split(expr, sense, &mut all);
        }
        all
    }

    /// What of the question it reads.
    pub(super) fn reads(&self) -> BTreeSet<Input> {
        reads(&self.expr)
    }

    /// Whether evaluating it may fail: then the whole decision is a denial.
    pub(super) fn may_fail(&self) -> bool {
        may_fail(&self.expr)
    }

    /// Whether it asks if there is an HTTP request at all.
    pub(super) fn asks_for_http(&self) -> bool {
        matches!(&*self.expr, Expr::HasAttr { expr, attrs } if is_context(expr) && attrs.head == "http")
    }
}

/// As written, but for white space and parentheses.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sense {
            Sense::When => write!(f, "when {}", self.expr),
            Sense::Unless => write!(f, "unless {}", self.expr),
        }
    }
}

fn split(expr: &Arc<Expr>, sense: Sense, into: &mut Vec<Condition>) {
    match (&**expr, sense) {
        (
            Expr::BinaryOp {
                op: BinaryOp::And,
                left,
                right,
            },
            Sense::When,
        )
        | (
            Expr::BinaryOp {
                op: BinaryOp::Or,
                left,
                right,
            },
            Sense::Unless,
        ) => {
            split(left, sense, into);
            split(right, sense, into);
        }
        _ => into.push(Condition {
            expr: expr.clone(),
            sense,
        }),
    }
}

/// A question, and what of it is left open, to settle conditions with.
pub(super) struct Probe {
    request: Request,
    entities: Entities,
    open: BTreeSet<Input>,
}

impl Probe {
    /// What is in `request` for an input that is left `open` does not matter.
    pub(super) fn new(request: Request, entities: Entities, open: BTreeSet<Input>) -> Self {
        Self {
            request,
            entities,
            open,
        }
    }

    /// What is known of `condition`.
    pub(super) fn settle(&self, condition: &Condition) -> Settled {
        let sense = condition.sense;
        match (self.truth(&condition.expr), sense) {
            (Truth::True, Sense::When) | (Truth::False, Sense::Unless) => Settled::Holds,
            (Truth::False, Sense::When) | (Truth::True, Sense::Unless) => Settled::Fails,
            (Truth::Open(expr), _) => Settled::Open(Condition { expr, sense }),
            (Truth::Failed, _) => Settled::Failed,
        }
    }

    /// Cedar's own left-to-right evaluation, with a third value for what is open. What could fail in an
    /// open part is never dropped: a failure denies.
    fn truth(&self, expr: &Arc<Expr>) -> Truth {
        match &**expr {
            Expr::BinaryOp {
                op: op @ (BinaryOp::And | BinaryOp::Or),
                left,
                right,
            } => self.joined(*op, left, right),
            Expr::UnaryOp {
                op: op @ UnaryOp::Not,
                expr,
            } => match self.truth(expr) {
                Truth::True => Truth::False,
                Truth::False => Truth::True,
                Truth::Open(expr) => Truth::Open(Arc::new(Expr::UnaryOp { op: *op, expr })),
                Truth::Failed => Truth::Failed,
            },
            Expr::IfThenElse {
                cond,
                then_expr,
                else_expr,
            } => match self.truth(cond) {
                Truth::True => self.truth(then_expr),
                Truth::False => self.truth(else_expr),
                Truth::Open(_) => Truth::Open(expr.clone()),
                Truth::Failed => Truth::Failed,
            },
            _ if reads(expr).is_disjoint(&self.open) => self.evaluate(expr),
            _ => Truth::Open(expr.clone()),
        }
    }

    fn joined(&self, op: BinaryOp, left: &Arc<Expr>, right: &Arc<Expr>) -> Truth {
        // What ends the evaluation at once, and what leaves it to the right side.
        let ends = |truth: &Truth| match op {
            BinaryOp::And => *truth == Truth::False,
            _ => *truth == Truth::True,
        };
        let left = match self.truth(left) {
            Truth::Failed => return Truth::Failed,
            Truth::Open(left) => left,
            truth if ends(&truth) => return truth,
            _ => return self.truth(right),
        };
        let right = match self.truth(right) {
            Truth::Open(right) => right,
            Truth::Failed => right.clone(),
            truth if !ends(&truth) => return Truth::Open(left),
            truth if !may_fail(&left) => return truth,
            _ => right.clone(),
        };
        Truth::Open(Arc::new(Expr::BinaryOp { op, left, right }))
    }

    fn evaluate(&self, expr: &Expr) -> Truth {
        let Ok(expression) = expr.to_string().parse::<Expression>() else {
            return Truth::Failed;
        };
        match eval_expression(&self.request, &self.entities, &expression) {
            Ok(EvalResult::Bool(true)) => Truth::True,
            Ok(EvalResult::Bool(false)) => Truth::False,
            _ => Truth::Failed,
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Truth {
    True,
    False,
    Open(Arc<Expr>),
    Failed,
}

/// What of the question `expr` reads; everything where it is not understood.
fn reads(expr: &Expr) -> BTreeSet<Input> {
    match expr {
        Expr::Var(Var::Principal) => [Input::Principal].into(),
        Expr::Var(Var::Context) => CONTEXT.into_iter().collect(),
        Expr::GetAttr { expr, attr } if is_context(expr) => attribute(attr).into_iter().collect(),
        Expr::GetAttr { expr: of, attr } if is_part(of, "http") => match attr.as_str() {
            "method" => [Input::Method].into(),
            "host" => [Input::Host].into(),
            _ => [Input::Path].into(),
        },
        Expr::GetAttr { expr: of, attr } if is_part(of, "peer") => match attr.as_str() {
            "trust_domain" => [Input::TrustDomain].into(),
            "expires" => [Input::Expires].into(),
            _ => [Input::Lifetime].into(),
        },
        // Which attributes the context has follows from the action.
        Expr::HasAttr { expr, .. } if is_context(expr) || is_any_part(expr) => BTreeSet::new(),
        _ => match parts(expr) {
            Some(parts) => parts.into_iter().flat_map(|part| reads(part)).collect(),
            None => [Input::Principal].into_iter().chain(CONTEXT).collect(),
        },
    }
}

const CONTEXT: [Input; 10] = [
    Input::Method,
    Input::Host,
    Input::Path,
    Input::Source,
    Input::Port,
    Input::Now,
    Input::TrustDomain,
    Input::Expires,
    Input::Lifetime,
    Input::Environment,
];

fn attribute(name: &str) -> Vec<Input> {
    match name {
        "http" => vec![Input::Method, Input::Host, Input::Path],
        "source" => vec![Input::Source],
        "port" => vec![Input::Port],
        "now" => vec![Input::Now],
        "peer" => vec![Input::TrustDomain, Input::Expires, Input::Lifetime],
        "environment" => vec![Input::Environment],
        _ => CONTEXT.to_vec(),
    }
}

/// Whether evaluating `expr`, which is valid by the schema, may fail: numbers overflow, and what makes an
/// address, a date or a number of a text that is not written out may not understand it.
fn may_fail(expr: &Expr) -> bool {
    let itself = match expr {
        Expr::UnaryOp { op, expr } => match op {
            UnaryOp::Neg => true,
            UnaryOp::Datetime | UnaryOp::Decimal | UnaryOp::Duration | UnaryOp::Ip => {
                !matches!(&**expr, Expr::Literal(Literal::String(_)))
            }
            _ => false,
        },
        Expr::BinaryOp { op, .. } => matches!(
            op,
            BinaryOp::Add
                | BinaryOp::Sub
                | BinaryOp::Mul
                | BinaryOp::Offset
                | BinaryOp::DurationSince
        ),
        _ => false,
    };
    itself || parts(expr).is_none_or(|parts| parts.into_iter().any(|part| may_fail(part)))
}

/// The expressions that `expr` is made of; none where it is not understood.
fn parts(expr: &Expr) -> Option<Vec<&Arc<Expr>>> {
    Some(match expr {
        Expr::Literal(_) | Expr::Var(_) => Vec::new(),
        Expr::UnaryOp { expr, .. }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => vec![expr],
        Expr::BinaryOp { left, right, .. } => vec![left, right],
        Expr::Is { expr, in_expr, .. } => [expr].into_iter().chain(in_expr).collect(),
        Expr::IfThenElse {
            cond,
            then_expr,
            else_expr,
        } => vec![cond, then_expr, else_expr],
        Expr::Set(items) => items.iter().collect(),
        Expr::Record(fields) => fields.values().collect(),
        _ => return None,
    })
}

fn is_context(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context))
}

fn is_any_part(expr: &Expr) -> bool {
    matches!(expr, Expr::GetAttr { expr, .. } if is_context(expr))
}

fn is_part(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::GetAttr { expr, attr } if attr == name && is_context(expr))
}
