//! Which grants would have been enough? Turns what was seen into the tightest grants that allow it.
//!
//! Everything seen was chosen by peers, so nothing of it is trusted: a name becomes a principal only if it
//! is a SPIFFE ID, a path becomes part of a grant only if the sidecar would decide on it, every text is
//! escaped where it is quoted, and what is suggested is loaded once before it is shown.

mod grants;
mod names;
mod parts;
mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use jiff::Timestamp;

use self::paths::Paths;
use crate::audit::entry::Entry;
use crate::audit::{Direction, Kind};
use crate::identity::SpiffeId;
use crate::outcome::Outcome;
use crate::policy::{DenialReason, path};

pub use self::grants::{Grant, SuggestError, Suggestion};

/// What counts, and what is said of it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Only what passed because nothing is enforced, and no grant allows.
    pub missing: bool,
    /// Only what this grant allowed: what is suggested could take its place.
    pub grant: Option<String>,
    /// Also what was denied because no grant allows it.
    pub denied: bool,
    /// Also what the application refused, or the sidecar for a standing secret.
    pub refused: bool,
    /// The time at which this is suggested.
    pub now: Timestamp,
    /// How long what is suggested is in force.
    pub expires_in: Duration,
}

/// Collects what was seen. Holds one tree of paths for each principal, service and method, each of
/// limited size.
#[derive(Debug)]
pub struct Sightings {
    settings: Settings,
    seen: BTreeMap<(SpiffeId, Arc<str>), BTreeMap<Verb, Seen>>,
    /// The names of grants that were met, which what is suggested may have to stand beside.
    taken: BTreeSet<Box<str>>,
    /// How many records count.
    counted: u64,
    left_out: BTreeMap<LeftOut, u64>,
}

/// Why a record does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// It was decided elsewhere.
    Outbound,
    /// Nobody was authenticated.
    Unauthenticated,
    /// Nothing was decided.
    Undecided,
    /// No grant allowed it.
    Denied,
    /// A policy forbids it, or would, or failed.
    Forbidden,
    /// Policy allowed it, and it was refused all the same.
    Refused,
    /// A grant allows it already.
    Granted,
    /// Another grant allowed it than the one asked for.
    OtherGrant,
    /// The principal is not a SPIFFE ID.
    NotSpiffe,
    /// The sidecar would refuse the path whatever policy says.
    Ambiguous,
    /// The path is longer than records keep.
    Cut,
    /// It names no service, or no method and path.
    Incomplete,
    /// There are more different ones than a grant should name.
    TooMany,
}

impl LeftOut {
    /// The reason in a few words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Outbound => "outbound: decided by the other side",
            Self::Unauthenticated => "nobody was authenticated",
            Self::Undecided => "nothing was decided",
            Self::Denied => "denied for want of a grant (--denied)",
            Self::Forbidden => "a policy forbids it",
            Self::Refused => {
                "allowed, and refused all the same: by the application, or for a standing secret (--refused)"
            }
            Self::Granted => "a grant allows it already",
            Self::OtherGrant => "allowed by another grant, or by none",
            Self::NotSpiffe => "the principal is not a SPIFFE ID",
            Self::Ambiguous => "the sidecar refuses such a path",
            Self::Cut => "the path is longer than a record keeps",
            Self::Incomplete => "the record does not say what was asked",
            Self::TooMany => "too many different paths or methods: write this grant by hand",
        }
    }

    /// The word in `--json`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Unauthenticated => "unauthenticated",
            Self::Undecided => "undecided",
            Self::Denied => "denied",
            Self::Forbidden => "forbidden",
            Self::Refused => "refused",
            Self::Granted => "granted",
            Self::OtherGrant => "other_grant",
            Self::NotSpiffe => "not_spiffe",
            Self::Ambiguous => "ambiguous_path",
            Self::Cut => "cut_path",
            Self::Incomplete => "incomplete",
            Self::TooMany => "too_many",
        }
    }
}

/// What was asked for, as a Cedar action.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verb {
    Read(&'static str),
    Write(&'static str),
    /// A method that has no action of its own.
    Other(String),
    Connect,
}

/// What was seen of one verb.
#[derive(Debug, Default)]
struct Seen {
    paths: Paths,
    times: Times,
    /// By which grants it was allowed, as far as that was by few.
    by: BTreeMap<Box<str>, u64>,
}

/// How often, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Times {
    count: u64,
    denied: u64,
    between: Option<(Timestamp, Timestamp)>,
}

/// One record that counts.
struct Sighting<'a> {
    principal: SpiffeId,
    service: &'a str,
    verb: Verb,
    path: Option<String>,
    denied: bool,
    by: Option<&'a str>,
}

impl Sightings {
    /// Nothing seen so far.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            seen: BTreeMap::new(),
            taken: BTreeSet::new(),
            counted: 0,
            left_out: BTreeMap::new(),
        }
    }

    /// Takes in one record.
    pub fn add(&mut self, entry: &Entry<'_>) {
        if let Some(id) = entry.grant()
            && !self.taken.contains(id)
            && self.taken.len() < MOST_TAKEN
        {
            self.taken.insert(id.into());
        }
        let added = self.sighting(entry).and_then(|sighting| {
            let key = (sighting.principal, sighting.service.into());
            let verbs = self.seen.entry(key).or_default();
            if matches!(sighting.verb, Verb::Other(_))
                && verbs.len() >= MOST_VERBS
                && !verbs.contains_key(&sighting.verb)
            {
                return Err(LeftOut::TooMany);
            }
            let seen = verbs.entry(sighting.verb).or_default();
            if let Some(path) = sighting.path {
                seen.paths.add(&path).map_err(|_| LeftOut::TooMany)?;
            }
            seen.times.add(entry.time, sighting.denied);
            if let Some(by) = sighting.by {
                let has_room = seen.by.len() < MOST_NAMED;
                if let Some(count) = seen.by.get_mut(by) {
                    *count += 1;
                } else if has_room {
                    seen.by.insert(by.into(), 1);
                }
            }
            Ok(())
        });
        match added {
            Ok(()) => self.counted += 1,
            Err(why) => *self.left_out.entry(why).or_default() += 1,
        }
    }

    /// How many records count.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.counted
    }

    /// How many do not, by the reason.
    pub fn left_out(&self) -> impl Iterator<Item = (LeftOut, u64)> {
        self.left_out.iter().map(|(why, count)| (*why, *count))
    }

    /// The grants that would have been enough.
    ///
    /// # Errors
    /// [`SuggestError`]: a mistake in here, never in what was seen.
    pub fn suggest(&self) -> Result<Suggestion, SuggestError> {
        grants::suggest(self)
    }

    fn sighting<'a>(&self, entry: &'a Entry<'_>) -> Result<Sighting<'a>, LeftOut> {
        if entry.direction != Some(Direction::Inbound) {
            return Err(LeftOut::Outbound);
        }
        let principal = entry.principal().ok_or(LeftOut::Unauthenticated)?;
        let denied = self.is_denied(entry)?;
        let by = entry.grant();
        if !denied {
            self.check_allowed(entry, by)?;
        }
        let principal = SpiffeId::parse(principal).map_err(|_| LeftOut::NotSpiffe)?;
        let service = entry.service.as_deref().filter(|name| !name.is_empty());
        let (verb, path) = match entry.kind {
            Kind::Connection => (Verb::Connect, None),
            Kind::Request => {
                let (verb, path) = asked(entry)?;
                (verb, Some(path))
            }
        };
        Ok(Sighting {
            principal,
            service: service.ok_or(LeftOut::Incomplete)?,
            verb,
            path,
            denied,
            by,
        })
    }

    /// Whether it was denied in a way that counts.
    fn is_denied(&self, entry: &Entry<'_>) -> Result<bool, LeftOut> {
        match entry.decision.as_deref() {
            Some("allow") => Ok(false),
            Some("deny") if entry.reason.as_deref() != Some(DenialReason::NoGrant.label()) => {
                Err(LeftOut::Forbidden)
            }
            Some("deny") if self.settings.grant.is_some() => Err(LeftOut::OtherGrant),
            Some("deny") if self.settings.denied => Ok(true),
            Some("deny") => Err(LeftOut::Denied),
            _ => Err(LeftOut::Undecided),
        }
    }

    fn check_allowed(&self, entry: &Entry<'_>, by: Option<&str>) -> Result<(), LeftOut> {
        let observed = entry.observed.as_ref();
        // It passed only because nothing is enforced, and not for want of a grant.
        if by.is_none() && observed.is_some_and(|observed| observed.grant.is_some()) {
            return Err(LeftOut::Forbidden);
        }
        if let Some(wanted) = &self.settings.grant
            && by != Some(wanted)
        {
            return Err(LeftOut::OtherGrant);
        }
        if self.settings.missing && by.is_some() {
            return Err(LeftOut::Granted);
        }
        if !self.settings.refused && was_refused(entry) {
            return Err(LeftOut::Refused);
        }
        Ok(())
    }
}

/// Whether the application itself said that there is nothing to be had, or it was refused for a secret that
/// it carried: what probes find is no need.
fn was_refused(entry: &Entry<'_>) -> bool {
    if entry.outcome.as_deref() == Some(Outcome::StandingSecret.label()) {
        return true;
    }
    let Some(context) = &entry.context else {
        return false;
    };
    let status = context.status.unwrap_or_default();
    let grpc = context.grpc_status.unwrap_or_default();
    // gRPC: PERMISSION_DENIED, UNIMPLEMENTED, UNAUTHENTICATED.
    [401, 403, 404, 405, 410, 501].contains(&status) || [7, 12, 16].contains(&grpc)
}

/// What a request asked for, as policy would see it.
fn asked(entry: &Entry<'_>) -> Result<(Verb, String), LeftOut> {
    let method = entry.method().ok_or(LeftOut::Incomplete)?;
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| LeftOut::Incomplete)?;
    let path = entry.path().ok_or(LeftOut::Incomplete)?;
    // Bytes that are no text were replaced when it was recorded.
    if path.len() >= crate::audit::PATH_LIMIT || path.contains(char::REPLACEMENT_CHARACTER) {
        return Err(LeftOut::Cut);
    }
    let path = path::decided(path).map_err(|_| LeftOut::Ambiguous)?;
    let path = path.into_owned();
    Ok((Verb::of(&method).ok_or(LeftOut::TooMany)?, path))
}

impl Verb {
    fn of(method: &Method) -> Option<Self> {
        let named = |names: &[&'static str]| {
            let mut names = names.iter();
            names.find(|name| **name == method.as_str()).copied()
        };
        if let Some(name) = named(&READ) {
            return Some(Self::Read(name));
        }
        if let Some(name) = named(&WRITE) {
            return Some(Self::Write(name));
        }
        let short = method.as_str().len() <= LONGEST_METHOD;
        short.then(|| Self::Other(method.as_str().to_owned()))
    }

    /// The name of the action, or the method where it has none of its own.
    fn name(&self) -> &str {
        match self {
            Self::Read(name) | Self::Write(name) => name,
            Self::Other(name) => name,
            Self::Connect => "connect",
        }
    }
}

impl Times {
    fn add(&mut self, time: Timestamp, denied: bool) {
        self.merge(Self {
            count: 1,
            denied: denied.into(),
            between: Some((time, time)),
        });
    }

    fn merge(&mut self, other: Self) {
        self.count += other.count;
        self.denied += other.denied;
        self.between = match (self.between, other.between) {
            (Some(ours), Some(theirs)) => Some((ours.0.min(theirs.0), ours.1.max(theirs.1))),
            (ours, theirs) => ours.or(theirs),
        };
    }
}

/// The actions in `Action::"read"`, as the schema has them.
const READ: [&str; 4] = ["GET", "HEAD", "OPTIONS", "TRACE"];

/// Those in `Action::"write"`, but for `other`.
const WRITE: [&str; 5] = ["POST", "PUT", "PATCH", "DELETE", "CONNECT"];

/// Methods told apart for one principal at one service: a peer may make up its own.
const MOST_VERBS: usize = 24;

const LONGEST_METHOD: usize = 32;

/// Names of grants remembered so as not to be given again.
const MOST_TAKEN: usize = 10_000;

/// Grants named as those that allowed something.
const MOST_NAMED: usize = 8;

#[cfg(test)]
mod tests;
