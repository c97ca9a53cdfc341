//! Which standing secrets does an HTTP request carry, and what becomes of them?
//!
//! A caller whose identity is proved by mutual TLS needs no password and no API key; one that is sent all
//! the same can be copied, and works until somebody remembers to change it. A [`Guard`] finds them, counts
//! them, and takes them off or refuses where the operator says so.
//!
//! | file | answers |
//! |---|---|
//! | `secrets/shape.rs` | what a standing secret looks like, and where it stands |
//! | `secrets/jwt.rs` | how long a token says that it lives |
//! | `secrets/key.rs` | by what a secret is recognised that is not kept |
//! | `secrets/metrics.rs` | how many there were |
//!
//! **The secret itself goes nowhere.** A [`Finding`] has its kind, its place and a keyed fingerprint; what
//! is decoded to look at it is overwritten afterwards. This finds what is written as usual. Who wants to
//! hide a secret from it can: in a body, in a path, under another name.

mod jwt;
mod key;
mod metrics;
mod shape;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};

pub use self::key::{Fingerprint, Key, KeyError};
pub use self::metrics::{Metrics, Tally};
use crate::document::Node;

/// What kind of standing secret it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// User and password: `authorization: Basic …` (RFC 7617).
    Basic,
    /// A key in a header.
    ApiKeyHeader,
    /// A key in the query, where logs and browsers keep it.
    ApiKeyQuery,
    /// A JWT without `exp`.
    BearerNoExpiry,
    /// A JWT that lives longer than a day.
    BearerLongLived,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Basic,
        Self::ApiKeyHeader,
        Self::ApiKeyQuery,
        Self::BearerNoExpiry,
        Self::BearerLongLived,
    ];

    /// The word in metrics, audit and configuration. Part of the public surface: never rename one.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Basic => "basic",
            Self::ApiKeyHeader => "api_key_header",
            Self::ApiKeyQuery => "api_key_query",
            Self::BearerNoExpiry => "bearer_no_expiry",
            Self::BearerLongLived => "bearer_long_lived",
        }
    }
}

/// Where in a request it stands; as records say it: `header authorization`, `query api_key`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Where {
    /// In the header of that name.
    Header(HeaderName),
    /// In the parameter of that name in the query: as it is known, whatever way it was written.
    Query(Cow<'static, str>),
}

impl fmt::Display for Where {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Query(name) => write!(f, "query {name}"),
        }
    }
}

/// One standing secret, without the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Where it stands.
    pub place: Where,
    /// The same for the same secret.
    pub fingerprint: Fingerprint,
}

/// What becomes of a request that carries a standing secret.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// It passes as it is.
    #[default]
    Observed,
    /// It passes without the secret.
    Stripped,
    /// It is refused.
    Denied,
}

impl Action {
    /// The word in metrics and audit. Part of the public surface: never rename one.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Observed => "observed",
            Self::Stripped => "stripped",
            Self::Denied => "denied",
        }
    }
}

/// What one request carried, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Carried {
    findings: Vec<Finding>,
    action: Action,
}

impl Carried {
    /// What was found: at least one, at most [`MOST`].
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What became of the request.
    #[must_use]
    pub fn action(&self) -> Action {
        self.action
    }

    /// For whoever is refused: which secret it is about, and what to do. It says nothing that the sender
    /// does not know.
    #[must_use]
    pub fn advice(&self) -> String {
        let listed: Vec<_> = self
            .findings
            .iter()
            .map(|finding| format!("{} in {}", finding.kind.label(), finding.place))
            .collect();
        format!(
            "The Doorward proxy refuses requests that carry a standing secret: {}. Send it without: the \
             proxies prove who calls.",
            listed.join(", ")
        )
    }
}

/// What is looked for at one listener, and what becomes of it: the key `standing_secrets`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    action: Action,
    /// Names of further headers that hold keys.
    headers: Vec<String>,
    /// Names of further parameters of the query that do.
    query: Vec<String>,
    ignore: Vec<Ignored>,
}

/// What is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Ignored {
    Kind(Kind),
    /// As [`Where`] says it.
    Place(String),
}

impl Settings {
    /// Reads the section `standing_secrets` of a listener, or the one word that stands for it.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let action = |node: &Node<'_>| {
            node.choice(&[
                ("observe", Action::Observed),
                ("strip", Action::Stripped),
                ("deny", Action::Denied),
            ])
        };
        if !node.is_section() {
            return Some(Self {
                action: action(node)?,
                ..Self::default()
            });
        }
        let mut section = node.section()?;
        let action = section.or("mode", Action::default(), |node| action(&node));
        let headers = section.or("headers", Vec::new(), |node| node.one_or_more(name));
        let query = section.or("query", Vec::new(), |node| node.one_or_more(name));
        let ignore = section.or("ignore", Vec::new(), |node| node.one_or_more(ignored));
        Some(Self {
            action: action?,
            headers: headers?,
            query: query?,
            ignore: ignore?,
        })
    }

    fn ignores(&self, kind: Kind, place: &Where) -> bool {
        // Few have anything here.
        self.ignore.iter().any(|ignored| match ignored {
            Ignored::Kind(ignored) => *ignored == kind,
            Ignored::Place(ignored) => shape::alike(place.to_string().as_bytes(), ignored),
        })
    }

    /// The headers that hold secrets where they hold anything, each once. One look at each name costs less
    /// than a look-up for each that there might be.
    fn suspects<'h>(
        &self,
        headers: &'h HeaderMap,
    ) -> impl Iterator<Item = (&'h HeaderName, shape::Place)> {
        let suspect = |name: &'h HeaderName| {
            let place = shape::of_header(name.as_str(), &self.headers)?;
            Some((name, place))
        };
        headers.keys().filter_map(suspect)
    }

    /// What the `value` of such a header is.
    fn in_header<'v>(
        &self,
        (name, place): (&HeaderName, shape::Place),
        value: &'v HeaderValue,
        now: SystemTime,
    ) -> Option<(Where, shape::Claim<'v>)> {
        let claim = shape::in_header(place, value.as_bytes(), now)?;
        let place = Where::Header(name.clone());
        (!self.ignores(claim.kind, &place)).then_some((place, claim))
    }

    /// What `name=value` of a query carries.
    fn in_query<'v>(&self, pair: &'v str, now: SystemTime) -> Option<(Where, shape::Claim<'v>)> {
        let (name, claim) = shape::in_parameter(pair, &self.query, now)?;
        let place = Where::Query(name);
        (!self.ignores(claim.kind, &place)).then_some((place, claim))
    }

    /// The first [`MOST`] secrets in a request.
    fn find(&self, headers: &HeaderMap, uri: &Uri, key: &Key, now: SystemTime) -> Vec<Finding> {
        let in_headers = self.suspects(headers).flat_map(|suspect| {
            let values = headers.get_all(suspect.0).iter();
            values.filter_map(move |value| self.in_header(suspect, value, now))
        });
        let pairs = uri.query().into_iter().flat_map(|query| query.split('&'));
        let in_query = pairs.filter_map(|pair| self.in_query(pair, now));
        let found = in_headers.chain(in_query).take(MOST);
        let finding = |(place, claim): (Where, shape::Claim<'_>)| Finding {
            kind: claim.kind,
            place,
            fingerprint: key.fingerprint(&claim.secret),
        };
        found.map(finding).collect()
    }

    /// Takes all of them off a request, and nothing else.
    ///
    /// # Errors
    /// When what would be left is no target.
    fn strip<B>(&self, request: &mut Request<B>, now: SystemTime) -> Result<(), http::Error> {
        self.strip_headers(request.headers_mut(), now);
        let Some(target) = request.uri().path_and_query() else {
            return Ok(());
        };
        let Some(query) = target.query() else {
            return Ok(());
        };
        let is_harmless = |pair: &&str| self.in_query(pair, now).is_none();
        let kept: Vec<_> = query.split('&').filter(is_harmless).collect();
        if kept.len() < query.split('&').count() {
            let mark = if kept.is_empty() { "" } else { "?" };
            let target = format!("{}{mark}{}", target.path(), kept.join("&"));
            let mut parts = request.uri().clone().into_parts();
            parts.path_and_query = Some(PathAndQuery::try_from(target)?);
            *request.uri_mut() = Uri::from_parts(parts)?;
        }
        Ok(())
    }

    fn strip_headers(&self, headers: &mut HeaderMap, now: SystemTime) {
        let suspects = self.suspects(headers);
        let suspects: Vec<_> = suspects
            .map(|(name, place)| (name.clone(), place))
            .collect();
        for (name, place) in suspects {
            let is_harmless =
                |value: &&HeaderValue| self.in_header((&name, place), value, now).is_none();
            let values = headers.get_all(&name);
            let kept: Vec<_> = values.iter().filter(is_harmless).cloned().collect();
            if kept.len() < values.iter().count() {
                headers.remove(&name);
                for value in kept {
                    headers.append(&name, value);
                }
            }
        }
    }
}

/// In one request; what is behind them is taken off or refused like them, but neither counted nor
/// recorded. A sender chooses how many there are.
pub const MOST: usize = 16;

fn name(node: Node<'_>) -> Option<String> {
    let text = node.text()?;
    match HeaderName::try_from(text) {
        Ok(name) if text.len() <= shape::LONGEST_NAME => Some(name.to_string()),
        _ => node.mistake(
            format_args!("`{text}` is not a name of a header or of a parameter"),
            Some("write at most 64 letters, digits, `-`, `_` or `.`"),
        ),
    }
}

fn ignored(node: Node<'_>) -> Option<Ignored> {
    let text = node.text()?;
    if let Some(kind) = Kind::ALL.iter().find(|kind| kind.label() == text) {
        return Some(Ignored::Kind(*kind));
    }
    match text.split_once(' ') {
        Some(("header" | "query", name)) if HeaderName::try_from(name).is_ok() => {
            Some(Ignored::Place(text.into()))
        }
        _ => {
            let kinds = Kind::ALL
                .map(|kind| format!("`{}`", kind.label()))
                .join(", ");
            let help = format!("write one of {kinds}, or a place: `header NAME`, `query NAME`");
            node.mistake(
                format_args!("`{text}` is neither a kind of secret nor a place"),
                Some(&help),
            )
        }
    }
}

/// What stands at one listener and looks.
#[derive(Debug)]
pub struct Guard {
    settings: Settings,
    key: Arc<Key>,
    tally: Tally,
}

impl Guard {
    /// Does what `settings` say, with fingerprints by `key`.
    #[must_use]
    pub fn new(settings: Settings, key: Arc<Key>, tally: Tally) -> Self {
        Self {
            settings,
            key,
            tally,
        }
    }

    /// Looks for standing secrets in a request that policy allowed, counts what it finds under the name of
    /// `principal` and the id of the `grant`, and takes it off where that is asked for. `None`: there is
    /// none. On [`Action::Denied`] the caller refuses.
    pub fn pass<B>(
        &self,
        request: &mut Request<B>,
        now: SystemTime,
        principal: &str,
        grant: &str,
    ) -> Option<Carried> {
        let settings = &self.settings;
        let findings = settings.find(request.headers(), request.uri(), &self.key, now);
        if findings.is_empty() {
            return None;
        }
        let action = match settings.action {
            // What cannot be taken off does not go on.
            Action::Stripped if settings.strip(request, now).is_err() => Action::Denied,
            action => action,
        };
        let carried = Carried { findings, action };
        self.tally.count(principal, grant, &carried);
        Some(carried)
    }
}

#[cfg(test)]
mod tests;
