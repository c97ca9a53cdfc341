//! Something about the policy directory that the operator should know, shown in place.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use cedar_policy::ValidationWarning;
use miette::{Diagnostic, LabeledSpan, NamedSource, Severity};

use super::code::Code;

/// One file as read, to quote from. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Text {
    pub(super) name: Arc<str>,
    pub(super) text: Arc<str>,
    /// Where each line begins: counted once, for there may be thousands of findings.
    lines: Arc<OnceLock<Vec<usize>>>,
}

impl Text {
    pub(super) fn new(name: &str, text: String) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
            lines: Arc::default(),
        }
    }

    /// The line of the byte `at`, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.lines().partition_point(|start| *start <= at)
    }

    /// Where the text from `line` on, counted from 1, says `words` first; where the line begins if it
    /// does not.
    pub(super) fn find(&self, line: usize, words: &str) -> Range<usize> {
        let lines = self.lines();
        let start = lines.get(line.saturating_sub(1)).copied().unwrap_or(0);
        match self.text.get(start..).and_then(|rest| rest.find(words)) {
            Some(at) => start + at..start + at + words.len(),
            None => start..start,
        }
    }

    fn lines(&self) -> &[usize] {
        self.lines.get_or_init(|| {
            let ends = self.text.match_indices('\n');
            std::iter::once(0)
                .chain(ends.map(|(at, _)| at + 1))
                .collect()
        })
    }
}

impl Hash for Text {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.name, &self.text).hash(state);
    }
}

/// A mistake, or a warning, with the source it is about.
#[derive(Debug)]
pub struct Finding {
    message: String,
    help: Option<String>,
    labels: Vec<LabeledSpan>,
    source: Option<NamedSource<Arc<str>>>,
    /// The file, and where in it; the line is counted only when it is shown.
    place: Option<(Text, usize)>,
    severity: Severity,
    code: Option<Code>,
}

impl Finding {
    /// A mistake: what it is about does not load.
    pub(super) fn mistake(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: None,
            labels: Vec::new(),
            source: None,
            place: None,
            severity: Severity::Error,
            code: None,
        }
    }

    /// A warning: it loads, and may not mean what was meant.
    pub(super) fn warning(code: Code, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            code: Some(code),
            ..Self::mistake(message)
        }
    }

    /// The kind of warning; none if it is a mistake whatever the operator thinks of warnings.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        self.code
    }

    /// The same, as a mistake.
    pub(super) fn denied(self) -> Self {
        Self {
            severity: Severity::Error,
            ..self
        }
    }

    /// What Cedar says is wrong with `text`.
    pub(super) fn of_cedar(found: &dyn Diagnostic, text: &Text) -> Self {
        let labels: Vec<_> = found.labels().into_iter().flatten().collect();
        let mut finding = Self::mistake(found.to_string());
        finding.help = found.help().map(|help| help.to_string());
        let start = labels.first().map_or(0, LabeledSpan::offset);
        finding.place = Some((text.clone(), start));
        finding.labels = labels;
        finding.source = Some(source(text));
        finding
    }

    /// What Cedar's validator warns of in `text`.
    pub(super) fn of_warning(found: &ValidationWarning, text: &Text) -> Self {
        let code = match found {
            ValidationWarning::ImpossiblePolicy(_)
            | ValidationWarning::InvalidActionApplication(_) => Code::NeverMatches,
            _ => Code::ConfusableText,
        };
        Self {
            severity: Severity::Warning,
            code: Some(code),
            ..Self::of_validator(found, text)
        }
    }

    /// What Cedar's validator says about `text`, which it says for one action of several.
    pub(super) fn of_validator(found: &dyn Diagnostic, text: &Text) -> Self {
        let mut finding = Self::of_cedar(found, text);
        let Some((before, after)) = finding.message.split_once(" for Action::\"") else {
            return finding;
        };
        let after = after.split_once('"').map_or("", |(_, after)| after);
        let message = format!("{before}{after}");
        if message.contains("attribute `http` in context") {
            let help = "a TCP connection (Action::\"connect\") has no `http`: name the actions, as in \
                        `action in [Action::\"read\", Action::\"write\"]`, or ask first, as in \
                        `context has http && …`";
            finding.help = Some(help.to_owned());
        }
        finding.message = message;
        finding
    }

    /// Shows it in `text`.
    pub(super) fn at(mut self, text: &Text, at: Range<usize>, label: &str) -> Self {
        self.place = Some((text.clone(), at.start));
        let label = (!label.is_empty()).then(|| label.to_owned());
        self.labels
            .push(LabeledSpan::new(label, at.start, at.len()));
        self.source = Some(source(text));
        self
    }

    /// The file, and where in it, to sort by.
    pub(super) fn place(&self) -> Option<(&str, usize)> {
        self.place.as_ref().map(|(text, at)| (&*text.name, *at))
    }

    /// Says what to write instead.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

fn source(text: &Text) -> NamedSource<Arc<str>> {
    NamedSource::new(&text.name, text.text.clone())
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((text, at)) = &self.place {
            write!(f, "{}:{}: ", text.name, text.line(*at))?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for Finding {}

impl Diagnostic for Finding {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.code.map(|code| Box::new(code) as _)
    }

    fn severity(&self) -> Option<Severity> {
        Some(self.severity)
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as _)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        self.source.as_ref().map(|source| source as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(self.labels.iter().cloned()))
    }
}
