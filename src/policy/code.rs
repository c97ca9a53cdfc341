//! What kinds of warnings are there? Each has a name by which it can be denied.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::document::Node;

/// The kind of a warning about a policy directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// There is no policy: everything is denied.
    NoPolicy,
    /// A `permit` does not say who answers for it, and governance is advisory.
    Ungoverned,
    /// An annotation that looks like one of ours and is none: a control silently lost.
    UnknownAnnotation,
    /// A grant has ended.
    Ended,
    /// A grant ends within [`super::governance::SOON`].
    EndsSoon,
    /// A grant ends more than a year from now.
    LongGrant,
    /// A grant was due to be looked at again.
    ReviewOverdue,
    /// An owner who is not in the registry's list of owners.
    UnknownOwner,
    /// A grant to everybody.
    Everybody,
    /// A grant for every action.
    AnyAction,
    /// A principal that is named for a place.
    Location,
    /// A principal that is not registered.
    Unregistered,
    /// A role that no registered workload has.
    UnknownRole,
    /// A registered workload that no grant can match.
    Unmentioned,
    /// A policy that no request can match, or a grant that is forbidden whenever it matches.
    NeverMatches,
    /// A grant that allows nothing that another one does not allow.
    Shadowed,
    /// Two grants that say the same.
    Duplicate,
    /// Text that may be read as another text, as Cedar's validator says.
    ConfusableText,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::NoPolicy,
        Self::Ungoverned,
        Self::UnknownAnnotation,
        Self::Ended,
        Self::EndsSoon,
        Self::LongGrant,
        Self::ReviewOverdue,
        Self::UnknownOwner,
        Self::Everybody,
        Self::AnyAction,
        Self::Location,
        Self::Unregistered,
        Self::UnknownRole,
        Self::Unmentioned,
        Self::NeverMatches,
        Self::Shadowed,
        Self::Duplicate,
        Self::ConfusableText,
    ];

    /// The word in `doorward check --deny`, in `policy.deny` and in the output: never rename one.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::NoPolicy => "no-policy",
            Self::Ungoverned => "ungoverned",
            Self::UnknownAnnotation => "unknown-annotation",
            Self::Ended => "ended",
            Self::EndsSoon => "ends-soon",
            Self::LongGrant => "long-grant",
            Self::ReviewOverdue => "review-overdue",
            Self::UnknownOwner => "unknown-owner",
            Self::Everybody => "everybody",
            Self::AnyAction => "any-action",
            Self::Location => "location",
            Self::Unregistered => "unregistered",
            Self::UnknownRole => "unknown-role",
            Self::Unmentioned => "unmentioned",
            Self::NeverMatches => "never-matches",
            Self::Shadowed => "shadowed",
            Self::Duplicate => "duplicate",
            Self::ConfusableText => "confusable-text",
        }
    }

    /// Whether it comes by itself as time passes, though nobody changed anything.
    #[must_use]
    pub const fn comes_with_time(self) -> bool {
        matches!(self, Self::Ended | Self::EndsSoon | Self::ReviewOverdue)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A set of codes, as in `shadowed,duplicate`, or `all`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Codes(BTreeSet<Code>);

impl Codes {
    /// Every code.
    #[must_use]
    pub fn all() -> Self {
        Code::ALL.into_iter().collect()
    }

    /// Whether `code` is one of them.
    #[must_use]
    pub fn has(&self, code: Code) -> bool {
        self.0.contains(&code)
    }

    /// Reads `policy.deny`: codes that a directory must be free of to be put in force. Those that come
    /// with time are none of them: a sidecar would not start again though nobody changed anything.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let read = node.one_or_more(|node| {
            let codes: Self = node.parse()?;
            if node.text() == Some(ALL) {
                return Some(
                    codes
                        .into_iter()
                        .filter(|code| !code.comes_with_time())
                        .collect(),
                );
            }
            match codes.0.iter().find(|code| code.comes_with_time()) {
                None => Some(codes),
                Some(code) => node.mistake(
                    format_args!(
                        "`{code}` comes by itself: one day this sidecar would not start again"
                    ),
                    Some(
                        "let `doorward check --deny` say it, and alert on `doorward_policy_grants`",
                    ),
                ),
            }
        })?;
        Some(read.into_iter().flatten().collect())
    }
}

const ALL: &str = "all";

impl FromIterator<Code> for Codes {
    fn from_iter<I: IntoIterator<Item = Code>>(codes: I) -> Self {
        Self(codes.into_iter().collect())
    }
}

impl Extend<Code> for Codes {
    fn extend<I: IntoIterator<Item = Code>>(&mut self, codes: I) {
        self.0.extend(codes);
    }
}

impl IntoIterator for Codes {
    type Item = Code;
    type IntoIter = std::collections::btree_set::IntoIter<Code>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl FromStr for Codes {
    type Err = UnknownCode;

    fn from_str(text: &str) -> Result<Self, UnknownCode> {
        let mut codes = Self::default();
        for word in text.split(',').map(str::trim) {
            if word == ALL {
                codes.extend(Code::ALL);
                continue;
            }
            match Code::ALL.into_iter().find(|code| code.label() == word) {
                Some(code) => codes.extend([code]),
                None => return Err(UnknownCode(word.to_owned())),
            }
        }
        Ok(codes)
    }
}

/// A word that is no code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no warning has the code `{0}`; there are: {list}, and `all`", list = Code::ALL.map(Code::label).join(", "))]
pub struct UnknownCode(String);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    #[test]
    fn every_code_is_read_back_from_its_label() {
        for code in Code::ALL {
            assert_eq!(code.label().parse(), Ok(Codes::from_iter([code])));
        }
        assert_eq!(Codes::all(), Codes::from_iter(Code::ALL));
        assert_eq!("all".parse(), Ok(Codes::all()));
        let two: Codes = "shadowed, duplicate".parse().unwrap();
        assert!(two.has(Code::Shadowed) && two.has(Code::Duplicate) && !two.has(Code::Ended));
    }

    #[test]
    fn an_unknown_code_is_told_with_those_there_are() {
        for text in ["shadow", "", "ended,", "Ended"] {
            let error = text.parse::<Codes>().unwrap_err().to_string();
            assert!(error.contains("no-policy, ungoverned"), "{error}");
        }
    }

    #[test]
    fn what_comes_with_time_does_not_keep_a_sidecar_from_starting() {
        let read = |text: &str| {
            Document::new("d.yaml", text)
                .read(|node| Codes::read(&node))
                .map_err(|mistakes| mistakes.to_string())
        };
        assert!(read("[shadowed, everybody]").unwrap().has(Code::Everybody));
        assert!(read("all").unwrap().has(Code::Shadowed));
        assert!(!read("all").unwrap().has(Code::Ended));
        assert!(read("[ended]").unwrap_err().contains("comes by itself"));
        assert!(
            read("[shadow]")
                .unwrap_err()
                .contains("no warning has the code")
        );
    }
}
