//! Something about the policy directory that the operator should know, shown in place.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, Severity};

/// One file as read, to quote from.
#[derive(Clone, Debug, Hash)]
pub(super) struct Text {
    pub(super) name: Arc<str>,
    pub(super) text: Arc<str>,
}

impl Text {
    /// The line of the byte `at`, counted from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        let before = self.text.get(..at).unwrap_or_default();
        before.matches('\n').count() + 1
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
        }
    }

    /// A warning: it loads, and may not mean what was meant.
    pub(super) fn warning(message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            ..Self::mistake(message)
        }
    }

    /// What Cedar says about `text`.
    pub(super) fn of_cedar(found: &dyn Diagnostic, severity: Severity, text: &Text) -> Self {
        let labels: Vec<_> = found.labels().into_iter().flatten().collect();
        let mut finding = Self::mistake(found.to_string());
        finding.severity = severity;
        finding.help = found.help().map(|help| help.to_string());
        let start = labels.first().map_or(0, LabeledSpan::offset);
        finding.place = Some((text.clone(), start));
        finding.labels = labels;
        finding.source = Some(source(text));
        finding
    }

    /// What Cedar's validator says about `text`, which it says for one action of several.
    pub(super) fn of_validator(found: &dyn Diagnostic, severity: Severity, text: &Text) -> Self {
        let mut finding = Self::of_cedar(found, severity, text);
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
