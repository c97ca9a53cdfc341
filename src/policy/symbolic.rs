//! What can a solver prove of policies, where one is installed?
//!
//! `reach` proves what is obvious to it, at once and for ten thousand grants. A solver reasons about
//! all that Cedar has: address ranges, times, sets, arithmetic. It takes milliseconds to seconds for each
//! question, so only whoever asks for it waits for it.

use cedar_policy::pst::{
    ActionConstraint, PrincipalConstraint, ResourceConstraint, StaticPolicy, Template,
};
use cedar_policy::{Policy, RequestEnv};
use cedar_policy_symcc::err::{EncodeError, Error as Failure};
use cedar_policy_symcc::solver::LocalSolver;
use cedar_policy_symcc::{CedarSymCompiler, CompiledPolicy};
use tokio::runtime::Runtime;

use super::cedar::SCHEMA;
use super::reach::Reach;
use super::scope;

/// The solver cvc5 in a process of its own.
pub struct Solver {
    runtime: Runtime,
    compiler: CedarSymCompiler<LocalSolver>,
    environments: Vec<RequestEnv>,
    trouble: Option<Box<Failure>>,
}

/// Why the solver proves nothing, or nothing more.
#[derive(Debug, thiserror::Error)]
pub enum SolverError {
    /// It is not there.
    #[error(
        "cannot start the solver cvc5: install it (version 1.0.3 or newer), or name it in the environment \
         variable CVC5"
    )]
    Start(#[source] Box<Failure>),
    /// It was there, and is no more.
    #[error("the solver failed; what was found before stands, and there may be more")]
    Failed(#[source] Box<Failure>),
}

/// What one question may take, in milliseconds; what takes longer is not proved.
const PATIENCE: &str = "--tlimit-per=10000";

impl Solver {
    /// Starts it.
    ///
    /// # Errors
    /// If it cannot be started, or does not answer.
    pub fn start(runtime: Runtime) -> Result<Self, SolverError> {
        let compiler = {
            // The process is watched by the runtime that it is started in.
            let _entered = runtime.enter();
            let solver = LocalSolver::cvc5_with_args([PATIENCE]).map_err(Failure::from);
            solver.and_then(CedarSymCompiler::new)
        };
        let mut solver = Self {
            runtime,
            compiler: compiler.map_err(|failure| SolverError::Start(Box::new(failure)))?,
            environments: SCHEMA.request_envs().collect(),
            trouble: None,
        };
        // A question with a known answer: whatever is called cvc5 may be something else.
        let question = Policy::parse(
            None,
            "permit (principal, action, resource) when { context.port == 1 };",
        );
        if let Some(policy) = question.ok()
            && let Some(reach) = Reach::of(&policy)
            && solver.never_matches(&policy, &reach)
        {
            solver.trouble = Some(Box::new(Failure::SolverUnknown));
        }
        match solver.trouble.take() {
            Some(trouble) => Err(SolverError::Start(trouble)),
            None => Ok(solver),
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it failed before.
    pub fn finish(self) -> Result<(), SolverError> {
        self.trouble
            .map_or(Ok(()), |trouble| Err(SolverError::Failed(trouble)))
    }

    /// Whether it is proved that no request matches `policy`.
    pub(super) fn never_matches(&mut self, policy: &Policy, reach: &Reach) -> bool {
        reach.is_conditional()
            && self.all(reach, |runtime, compiler, environment| {
                let policy = CompiledPolicy::compile(policy, environment, &SCHEMA)?;
                Ok(runtime.block_on(compiler.check_never_matches_opt(&policy))?)
            })
    }

    /// Whether it is proved that the conditions of `wide` hold wherever `narrow` matches. Whether the scope
    /// of `wide` covers the other is for the registry to say, which the solver does not know.
    pub(super) fn follows(&mut self, wide: &Policy, narrow: &Policy, reach: &Reach) -> bool {
        let Some(wide) = without_scope(wide) else {
            return false;
        };
        self.all(reach, |runtime, compiler, environment| {
            let wide = CompiledPolicy::compile(&wide, environment, &SCHEMA)?;
            let narrow = CompiledPolicy::compile(narrow, environment, &SCHEMA)?;
            Ok(runtime.block_on(compiler.check_matches_implies_opt(&narrow, &wide))?)
        })
    }

    /// Whether `proved` says so of every kind of request that `reach` is for.
    fn all(
        &mut self,
        reach: &Reach,
        mut proved: impl FnMut(
            &Runtime,
            &mut CedarSymCompiler<LocalSolver>,
            &RequestEnv,
        ) -> Result<bool, Box<Failure>>,
    ) -> bool {
        for environment in &self.environments {
            if self.trouble.is_some() {
                return false;
            }
            if !reach.is_for(environment.action().id().unescaped()) {
                continue;
            }
            match proved(&self.runtime, &mut self.compiler, environment) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) if is_the_solvers_own(&error) => {
                    self.trouble = Some(error);
                    return false;
                }
                // It does not know, or this is not for solvers.
                Err(_) => return false,
            }
        }
        true
    }
}

impl std::fmt::Debug for Solver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Solver").finish_non_exhaustive()
    }
}

/// Whether no further question will be answered either.
fn is_the_solvers_own(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::SolverError(_) | Failure::EncodeError(EncodeError::Io(_))
    )
}

/// The conditions of `policy`, for everybody and everything.
fn without_scope(policy: &Policy) -> Option<Policy> {
    let parsed = scope::tree(policy)?;
    let body = parsed.body();
    let open = Template::new(
        body.id.clone(),
        body.effect,
        PrincipalConstraint::Any,
        ActionConstraint::Any,
        ResourceConstraint::Any,
    );
    let open = open.try_with_clauses(body.clauses().clone()).ok()?;
    Policy::from_pst(StaticPolicy::try_from(open).ok()?.into()).ok()
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::super::{Finding, Settings, files};
    use super::*;

    const SCOPE: &str = r#"principal == Workload::"spiffe://x/a", action in Action::"read", resource == Service::"s""#;

    /// The codes of what is proved of grants with these conditions.
    fn proved(solver: &mut Solver, conditions: &[&str]) -> Vec<&'static str> {
        let dir = tempfile::tempdir().unwrap();
        for (number, condition) in conditions.iter().enumerate() {
            let grant = format!(
                "@id(\"g{number}\") @owner(\"o\") @purpose(\"p\") @expires(\"2026-06-30\")\n\
                 permit ({SCOPE}) when {{ {condition} }};"
            );
            std::fs::write(dir.path().join(format!("{number}.cedar")), grant).unwrap();
        }
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let settings = Settings::of(dir.path());
        let engine = files::load_at(&settings, SystemTime::from(now), Some(solver)).unwrap();
        let codes = engine.warnings().filter_map(Finding::code);
        codes.map(super::super::Code::label).collect()
    }

    #[test]
    fn a_solver_proves_what_is_not_obvious() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let Ok(mut solver) = Solver::start(runtime.unwrap()) else {
            eprintln!("SKIPPED: there is no solver cvc5 here");
            return;
        };
        for (conditions, expected) in [
            (
                &[
                    r#"context.source.ip.isInRange(ip("10.0.0.0/8"))"#,
                    r#"context.source.ip.isInRange(ip("10.1.0.0/16")) && context.http.path like "/v1/*""#,
                ][..],
                &["shadowed"][..],
            ),
            (
                &[
                    r#"context.port > 5 && context.port < 7"#,
                    r#"context.port == 6"#,
                ],
                &["duplicate"],
            ),
            (
                &[
                    r#"context.now < datetime("2026-03-01") && context.now > datetime("2026-04-01")"#,
                ],
                &["never-matches"],
            ),
            (
                &[
                    r#"context.source.ip.isInRange(ip("10.0.0.0/8"))"#,
                    r#"context.source.ip.isInRange(ip("192.168.0.0/16"))"#,
                ],
                &[],
            ),
            // What may fail follows from nothing.
            (
                &[
                    r#"context.port * 2 > 1 || context.port <= 0"#,
                    r#"context.port == 6"#,
                ],
                &["shadowed"],
            ),
            (
                &[
                    r#"context.port * 9223372036854775807 > 1"#,
                    r#"context.port > 5"#,
                ],
                &[],
            ),
        ] {
            assert_eq!(proved(&mut solver, conditions), expected, "{conditions:?}");
        }
        solver.finish().unwrap();
    }
}
