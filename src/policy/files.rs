//! The policy directory: read, checked, watched.
//!
//! `*.cedar` and `workloads.yaml`, all of it or nothing: a directory with one mistake changes nothing.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use cedar_policy::{
    ActionConstraint, EntityUid, Policy, PolicyId, PolicySet, ValidationMode, Validator,
};
use miette::Diagnostic;

use super::Settings;
use super::cedar::{self, Engine, SCHEMA};
use super::code::Code;
use super::finding::{Finding, Text};
use super::governance::{self, Registry};
use super::lint;
use super::scope;
use super::slice::Rule;
use super::symbolic::Solver;
use crate::document::{Document, Mistakes};
use crate::identity::{SpiffeId, TrustDomain};
use crate::live::{Change, Source};
use crate::watch;

/// The file that registers workloads.
pub const WORKLOADS: &str = "workloads.yaml";

/// Reads and checks the policy directory.
///
/// # Errors
/// Every mistake found in it, and the warnings beside them.
pub fn load(settings: &Settings) -> Result<Engine, LoadError> {
    load_at(settings, SystemTime::now(), None)
}

/// Reads and checks the policy directory as if it were `now`, which matters to warnings alone: what a
/// decision is made of is asked when it is made. With a solver, more is proved.
///
/// # Errors
/// As [`load`].
pub fn load_at(
    settings: &Settings,
    now: SystemTime,
    solver: Option<&mut Solver>,
) -> Result<Engine, LoadError> {
    let files = Files::read(&settings.dir).map_err(LoadError::unread)?;
    check(&files, settings, now, solver)
}

/// Checks policies that do not stand in a directory, each with the name that messages call it.
///
/// # Errors
/// As [`load`].
pub fn check_texts<'a>(
    texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    settings: &Settings,
) -> Result<Engine, LoadError> {
    check_texts_at(texts, settings, SystemTime::now())
}

/// [`check_texts`] as if it were `now`.
///
/// # Errors
/// As [`load`].
pub fn check_texts_at<'a>(
    texts: impl IntoIterator<Item = (&'a str, &'a str)>,
    settings: &Settings,
    now: SystemTime,
) -> Result<Engine, LoadError> {
    let mut files = Files::default();
    for (name, text) in texts {
        files.add(name, text.to_owned());
    }
    check(&files, settings, now, None)
}

/// Why a policy directory does not load: every mistake in it.
#[derive(Debug, Default)]
pub struct LoadError {
    mistakes: Vec<Finding>,
    workloads: Option<Mistakes>,
    warnings: Vec<Finding>,
}

impl LoadError {
    /// Every mistake, each with its source quoted.
    pub fn diagnostics(&self) -> impl Iterator<Item = &(dyn Diagnostic + Send + Sync)> {
        let mistakes = self.mistakes.iter().map(|finding| finding as _);
        mistakes.chain(self.workloads.iter().flat_map(Mistakes::diagnostics))
    }

    /// What would load and may not mean what was meant.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.warnings.iter()
    }

    /// These mistakes, and nothing else.
    pub(super) fn of(mistakes: impl IntoIterator<Item = Finding>) -> Self {
        Self {
            mistakes: mistakes.into_iter().collect(),
            ..Self::default()
        }
    }

    fn unread(error: Unread) -> Self {
        Self {
            mistakes: vec![Finding::mistake(format!(
                "cannot read {}: {}",
                error.path, error.error
            ))],
            ..Self::default()
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, mistake) in self.diagnostics().enumerate() {
            if number > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

/// The files of a policy directory, as read at one time.
#[derive(Debug, Default, Hash)]
struct Files {
    policies: Vec<Text>,
    workloads: Option<Text>,
}

#[derive(Debug)]
struct Unread {
    path: String,
    error: io::Error,
}

impl Files {
    fn read(dir: &Path) -> Result<Self, Unread> {
        let unread = |path: &Path| {
            let path = path.display().to_string();
            move |error| Unread { path, error }
        };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(unread(dir))? {
            let name = entry.map_err(unread(dir))?.file_name();
            // Kubernetes keeps the files in hidden directories and links to them.
            if let Some(name) = name.to_str()
                && !name.starts_with('.')
                && (name == WORKLOADS || Path::new(name).extension().is_some_and(|e| e == "cedar"))
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        let mut files = Self::default();
        for name in names {
            let path = dir.join(&name);
            files.add(
                &name,
                std::fs::read_to_string(&path).map_err(unread(&path))?,
            );
        }
        Ok(files)
    }

    fn add(&mut self, name: &str, text: String) {
        let file = Text::new(name, text);
        if name == WORKLOADS {
            self.workloads = Some(file);
        } else {
            self.policies.push(file);
        }
    }
}

/// One policy as parsed, with its place in its file.
pub(super) struct Parsed<'a> {
    pub(super) policy: Policy,
    pub(super) text: &'a Text,
    number: usize,
}

fn check(
    files: &Files,
    settings: &Settings,
    now: SystemTime,
    solver: Option<&mut Solver>,
) -> Result<Engine, LoadError> {
    let (mut mistakes, mut warnings) = (Vec::new(), Vec::new());
    let mut unreadable = None;
    let registry = files.workloads.as_ref().map(|text| {
        let document = Document::new(&*text.name, &*text.text);
        document.read(Registry::read).unwrap_or_else(|mistakes| {
            unreadable = Some(mistakes);
            Registry::default()
        })
    });
    let parsed: Vec<Parsed<'_>> = files
        .policies
        .iter()
        .flat_map(|text| parse(text, &mut mistakes))
        .collect();
    if files.policies.is_empty() {
        warnings.push(
            Finding::warning(
                Code::NoPolicy,
                "there is no policy here: everything is denied",
            )
            .help("write grants into files whose names end in `.cedar`"),
        );
    }
    let rules = govern(&parsed, settings, now, &mut mistakes, &mut warnings);
    let impossible = validate(&rules, &mut mistakes, &mut warnings);
    for (_, parsed) in &rules {
        check_action(parsed, &mut mistakes);
    }
    if unreadable.is_none() {
        let known = registry.as_ref().unwrap_or(&EMPTY);
        for (_, parsed) in &rules {
            check_principal(parsed, known, &mut mistakes, &mut warnings);
        }
        if mistakes.is_empty() {
            warnings.extend(lint::policies(&rules, known, &impossible, now, solver));
        }
        let texts = files.workloads.iter();
        warnings.extend(texts.flat_map(|text| lint::workloads(text, known, &rules)));
    }
    let denied = |warning: &mut Finding| warning.code().is_some_and(|code| settings.deny.has(code));
    mistakes.extend(warnings.extract_if(.., denied).map(Finding::denied));
    mistakes.sort_by(|a, b| a.place().cmp(&b.place()));
    warnings.sort_by(|a, b| a.place().cmp(&b.place()));
    if !mistakes.is_empty() || unreadable.is_some() {
        return Err(LoadError {
            mistakes,
            workloads: unreadable,
            warnings,
        });
    }
    Ok(Engine::new(
        rules.into_iter().map(|(rule, _)| rule),
        registry.unwrap_or_default(),
        &settings.environment,
        warnings,
    ))
}

fn parse<'a>(text: &'a Text, mistakes: &mut Vec<Finding>) -> Vec<Parsed<'a>> {
    let set: PolicySet = match text.text.parse() {
        Ok(set) => set,
        Err(errors) => {
            let errors: cedar_policy::ParseErrors = errors;
            let found = errors.iter();
            mistakes.extend(found.map(|error| Finding::of_cedar(error, text)));
            return Vec::new();
        }
    };
    for template in set.templates() {
        let at = template.as_ref().loc();
        let at = at.map_or(0..0, |loc| loc.start()..loc.end());
        mistakes.push(
            Finding::mistake("a template grants nothing by itself")
                .at(text, at, "has a slot")
                .help("name a workload, a role or a service in place of the slot that begins with `?`"),
        );
    }
    let mut policies: Vec<Policy> = set.policies().cloned().collect();
    policies.sort_by_key(|policy| governance::first_line(policy, text).start);
    let policies = policies.into_iter().enumerate();
    let parsed = policies.map(|(index, policy)| Parsed {
        policy,
        text,
        number: index + 1,
    });
    parsed.collect()
}

/// Reads what each policy says about itself and gives it its id. Those with a mistake get one too, so
/// that the rest of them is checked in the same run.
fn govern<'a>(
    parsed: &'a [Parsed<'a>],
    settings: &Settings,
    now: SystemTime,
    mistakes: &mut Vec<Finding>,
    warnings: &mut Vec<Finding>,
) -> Vec<(Rule, &'a Parsed<'a>)> {
    let mut taken: HashMap<Arc<str>, &Parsed<'_>> = HashMap::with_capacity(parsed.len());
    let mut rules = Vec::with_capacity(parsed.len());
    for (order, one) in parsed.iter().enumerate() {
        let governed = governance::govern(
            &one.policy,
            one.text,
            one.number,
            settings.governance,
            now,
            mistakes,
            warnings,
        );
        let id = &governed.grant.id;
        if let Some(other) = taken.get(id) {
            let line = other
                .text
                .line(governance::first_line(&other.policy, other.text).start);
            let at = governance::annotation(&one.policy, "id")
                .unwrap_or_else(|| governance::first_line(&one.policy, one.text));
            mistakes.push(
                Finding::mistake(format!("the id `{id}` is taken"))
                    .at(one.text, at, "the same id")
                    .help(format!("the other one is at {}:{line}", other.text.name)),
            );
            continue;
        }
        taken.insert(id.clone(), one);
        let policy = one.policy.new_id(PolicyId::new(id));
        let rule = Rule::new(order, policy, Arc::new(governed.grant), governed.dry_run);
        rules.push((rule, one));
    }
    rules
}

/// Checks all policies against the schema at once: the validator's own preparation is paid once. Returns
/// those that can never match.
fn validate(
    rules: &[(Rule, &Parsed<'_>)],
    mistakes: &mut Vec<Finding>,
    warnings: &mut Vec<Finding>,
) -> HashSet<PolicyId> {
    let mut impossible = HashSet::new();
    let policies = rules.iter().map(|(rule, _)| rule.policy.clone());
    let set = match PolicySet::from_policies(policies) {
        Ok(set) => set,
        Err(error) => {
            mistakes.push(Finding::mistake(error.to_string()));
            return impossible;
        }
    };
    let result = VALIDATOR.validate(&set, ValidationMode::Strict);
    if result.validation_passed_without_warnings() {
        return impossible;
    }
    let texts: HashMap<&PolicyId, &Text> = rules
        .iter()
        .map(|(rule, parsed)| (rule.policy.id(), parsed.text))
        .collect();
    // The validator asks anew for each action, and says the same of each.
    let mut said = HashSet::new();
    let mut fresh = |found: &dyn Diagnostic, text: &Text| {
        let spans = found.labels().into_iter().flatten();
        let spans: Vec<_> = spans.map(|label| (label.offset(), label.len())).collect();
        said.insert((text.name.clone(), spans))
    };
    for error in result.validation_errors() {
        if let Some(&text) = texts.get(error.policy_id())
            && fresh(error, text)
        {
            mistakes.push(Finding::of_validator(error, text));
        }
    }
    for warning in result.validation_warnings() {
        if let Some(&text) = texts.get(warning.policy_id())
            && fresh(warning, text)
        {
            let finding = Finding::of_warning(warning, text);
            if finding.code() == Some(Code::NeverMatches) {
                impossible.insert(warning.policy_id().clone());
            }
            warnings.push(finding);
        }
    }
    impossible
}

static VALIDATOR: LazyLock<Validator> = LazyLock::new(|| Validator::new(SCHEMA.clone()));

/// Checks that a scope does not ask for the action to *be* a group: no action is, so it would grant
/// nothing, and forbid nothing.
fn check_action(parsed: &Parsed<'_>, mistakes: &mut Vec<Finding>) {
    let ActionConstraint::Eq(uid) = parsed.policy.action_constraint() else {
        return;
    };
    let name = uid.id().unescaped();
    if ["read", "write"].contains(&name) {
        let at = governance::quoted(&parsed.policy, parsed.text, name);
        mistakes.push(
            Finding::mistake(format!(
                "`{name}` is a group of actions, and no request is a group"
            ))
            .at(parsed.text, at, "a group")
            .help(format!("write `action in Action::\"{name}\"`")),
        );
    }
}

/// Checks the principal that a scope names: a name that nobody bears grants nothing, which is told, and
/// forbids nothing, which would not be noticed.
fn check_principal(
    parsed: &Parsed<'_>,
    registry: &Registry,
    mistakes: &mut Vec<Finding>,
    warnings: &mut Vec<Finding>,
) {
    let Some(uid) = scope::principal(&parsed.policy) else {
        return;
    };
    let name = uid.id().unescaped();
    let at = || governance::quoted(&parsed.policy, parsed.text, name);
    let mistake = |error: crate::identity::IdError| {
        Finding::mistake(format!("`{name}` names nobody: {error}")).at(parsed.text, at(), "")
    };
    let warning = |code, message: String| Finding::warning(code, message).at(parsed.text, at(), "");
    if is(&uid, &cedar::WORKLOAD) {
        match SpiffeId::parse(name) {
            Err(error) => mistakes.push(
                mistake(error)
                    .help("write for example Workload::\"spiffe://example.org/checkout\""),
            ),
            Ok(id) => {
                if let Some(place) = governance::location(name) {
                    let warning = lint::located(place).at(parsed.text, at(), "");
                    warnings.push(warning.help(lint::LOCATION_HELP));
                }
                if !registry.is_empty() && registry.get(&id).is_none() {
                    warnings.push(
                        warning(Code::Unregistered, format!("{name} is not registered"))
                            .help(format!("add it to {WORKLOADS}, or correct the name")),
                    );
                }
            }
        }
    } else if is(&uid, &cedar::TRUST_DOMAIN) {
        if let Err(error) = TrustDomain::parse(name) {
            mistakes.push(mistake(error).help("write for example TrustDomain::\"example.org\""));
        }
    } else if is(&uid, &cedar::ROLE) && !registry.has_role(name) {
        let message = format!("no registered workload has the role `{name}`");
        warnings.push(
            warning(Code::UnknownRole, message).help(format!("roles are given in {WORKLOADS}")),
        );
    }
}

fn is(uid: &EntityUid, kind: &cedar_policy::EntityTypeName) -> bool {
    uid.type_name() == kind
}

static EMPTY: LazyLock<Registry> = LazyLock::new(Registry::default);

/// A policy directory as a source of engines. What is not complete and sound changes nothing.
#[derive(Debug)]
pub struct Watched {
    settings: Arc<Settings>,
    files: watch::Watched,
}

impl Watched {
    /// Watches the directory in `settings`. Its first value is what stands there now.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            files: watch::Watched::new([settings.dir.clone()]),
            settings: Arc::new(settings),
        }
    }
}

impl Source for Watched {
    type Item = Engine;
    type Error = LoadError;

    async fn next(&mut self) -> Result<Change<Engine>, LoadError> {
        let read = || {
            let settings = self.settings.clone();
            apart(move || Files::read(&settings.dir).map_err(LoadError::unread))
        };
        let files = self.files.news(read).await?;
        let settings = self.settings.clone();
        let engine = apart(move || check(&files, &settings, SystemTime::now(), None)).await?;
        self.files.take();
        Ok(Change::Replace(engine))
    }
}

/// Does `work` on a thread of its own: ten thousand policies take a second, and the control thread has
/// other things to do.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LoadError> + Send + 'static,
) -> Result<T, LoadError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(LoadError {
            mistakes: vec![Finding::mistake(format!("the check was cut off: {error}"))],
            ..LoadError::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::watch::QUIET;

    const ONE: &str = "@id(\"one\") @owner(\"o\") @purpose(\"p\") @expires(\"2030-01-01\") \
                       permit (principal, action, resource);";
    const TWO: &str = "@id(\"two\") forbid (principal, action, resource);";

    async fn next(watched: &mut Watched) -> Result<usize, String> {
        let next = tokio::time::timeout(Duration::from_secs(20), watched.next());
        match next.await.expect("a change within 20 seconds") {
            Ok(Change::Replace(engine)) => Ok(engine.policies()),
            Ok(Change::Withdraw) => panic!("a directory never withdraws"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn the_shipped_schema_is_sound() {
        assert_eq!(SCHEMA.actions().count(), 13);
        Engine::new([], Registry::default(), &Default::default(), Vec::new());
    }

    #[test]
    fn only_visible_policies_and_the_registry_are_read() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("a.cedar", ONE),
            ("b.cedar", TWO),
            (".hidden.cedar", "oops"),
            ("README.md", "oops"),
            ("c.cedar~", "oops"),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let engine = load(&Settings::of(dir.path())).unwrap();
        assert_eq!(engine.policies(), 2);
        let gone = dir.path().join("gone");
        let error = load(&Settings::of(&gone)).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("cannot read {}", gone.display())),
            "{error}"
        );
    }

    #[tokio::test]
    async fn what_changes_is_yielded_and_what_is_broken_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.cedar");
        std::fs::write(&path, ONE).unwrap();
        let mut watched = Watched::new(Settings::of(dir.path()));
        assert_eq!(next(&mut watched).await, Ok(1));
        std::fs::write(&path, "oops").unwrap();
        assert!(
            next(&mut watched)
                .await
                .unwrap_err()
                .starts_with("a.cedar:1: ")
        );
        // What is in force comes back: no news. The next change is.
        std::fs::write(&path, ONE).unwrap();
        let quiet = tokio::time::timeout(QUIET * 5, watched.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
        std::fs::write(dir.path().join("b.cedar"), TWO).unwrap();
        assert_eq!(next(&mut watched).await, Ok(2));
    }

    #[tokio::test]
    async fn a_kubernetes_volume_is_followed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let fill = |name: &str, text: &str| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("a.cedar"), text).unwrap();
        };
        fill("..1", ONE);
        symlink("..1", dir.path().join("..data")).unwrap();
        symlink("..data/a.cedar", dir.path().join("a.cedar")).unwrap();
        let mut watched = Watched::new(Settings::of(dir.path()));
        assert_eq!(next(&mut watched).await, Ok(1));
        fill("..2", &format!("{ONE}\n{TWO}"));
        symlink("..2", dir.path().join("..data_tmp")).unwrap();
        std::fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        std::fs::remove_dir_all(dir.path().join("..1")).unwrap();
        assert_eq!(next(&mut watched).await, Ok(2));
    }

    #[tokio::test]
    async fn a_directory_that_appears_late_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let late = dir.path().join("late");
        let mut watched = Watched::new(Settings::of(&late));
        assert!(
            next(&mut watched)
                .await
                .unwrap_err()
                .starts_with("cannot read ")
        );
        std::fs::create_dir(&late).unwrap();
        std::fs::write(late.join("a.cedar"), ONE).unwrap();
        assert_eq!(next(&mut watched).await, Ok(1));
        std::fs::write(late.join("b.cedar"), TWO).unwrap();
        assert_eq!(next(&mut watched).await, Ok(2));
    }
}
