//! What was seen, written as grants.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use cedar_policy_formatter::{Config, policies_str_to_pretty};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::names::Names;
use super::parts::{Part, parts, pieces};
use super::paths::quoted;
use super::{Settings, Sightings, Times, Verb};
use crate::audit::entry::{grouped, shown};
use crate::identity::SpiffeId;
use crate::policy::{self, files};

/// The grants that would have been enough for what was seen, in the order of principals and services.
#[derive(Debug)]
pub struct Suggestion {
    grants: Vec<Grant>,
    head: String,
}

/// One suggested grant.
#[derive(Debug)]
pub struct Grant {
    id: String,
    principal: SpiffeId,
    service: Arc<str>,
    part: Part,
    /// More was seen of the same than one grant should name.
    divided: bool,
    expires: Date,
    text: String,
}

/// What was suggested makes no policy. It is a mistake in this program.
#[derive(Debug, thiserror::Error)]
pub enum SuggestError {
    /// Cedar does not understand it.
    #[error(
        "what would be suggested for {principal} at {} cannot be formatted: {why}",
        shown(service)
    )]
    Format {
        /// Who was seen.
        principal: SpiffeId,
        /// Where.
        service: Arc<str>,
        /// What the formatter says.
        why: String,
    },
    /// It does not load, even with owners.
    #[error("what would be suggested does not load")]
    Load(#[source] files::LoadError),
}

pub(super) fn suggest(sightings: &Sightings) -> Result<Suggestion, SuggestError> {
    let settings = &sightings.settings;
    let day = |from_now: Duration| {
        let then = settings.now.checked_add(from_now);
        let then = then.unwrap_or(Timestamp::MAX);
        then.to_zoned(TimeZone::UTC).date()
    };
    let expires = day(settings.expires_in);
    let review = day(REVIEW_IN).min(expires);
    let mut names = Names::beside(&sightings.taken);
    let (mut grants, mut times) = (Vec::new(), Times::default());
    for ((principal, service), verbs) in &sightings.seen {
        for part in parts(verbs) {
            times.merge(part.times);
            let pieces = pieces(part);
            for part in &pieces {
                let mut grant = Grant {
                    id: names.next(principal, service, &part.verbs),
                    principal: principal.clone(),
                    service: service.clone(),
                    part: part.clone(),
                    divided: pieces.len() > 1,
                    expires,
                    text: String::new(),
                };
                grant.text = grant.formatted(settings, review)?;
                grants.push(grant);
            }
        }
    }
    let suggestion = Suggestion {
        head: head(times),
        grants,
    };
    suggestion.check()?;
    Ok(suggestion)
}

fn head(times: Times) -> String {
    format!(
        "// Suggested by `doorward suggest` from what was seen {}.\n\
         // Nothing of this loads yet: fill in `@owner` where somebody has read the grant and answers for it.\n",
        when(times)
    )
}

impl Suggestion {
    /// Whether there is nothing to suggest.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// The grants.
    #[must_use]
    pub fn grants(&self) -> &[Grant] {
        &self.grants
    }

    /// A policy file, formatted. Each `@owner` is empty, so that it does not load.
    #[must_use]
    pub fn cedar(&self) -> String {
        let grants = self.grants.iter();
        grants.fold(self.head.clone(), |text, grant| {
            format!("{text}\n{}\n", grant.text)
        })
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        self.grants.iter().map(Grant::json).collect()
    }

    /// Loads it once, as it will be when its owners are known: what was seen may be odd, but nothing
    /// that is suggested may.
    fn check(&self) -> Result<(), SuggestError> {
        let owned = self.cedar().replace(NO_OWNER, "@owner(\"somebody\")");
        let settings = policy::Settings::of("");
        let loaded = files::check_texts([("suggested.cedar", &*owned)], &settings);
        loaded.map(|_| ()).map_err(SuggestError::Load)
    }
}

impl Grant {
    /// Its `@id`.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    fn formatted(&self, settings: &Settings, review: Date) -> Result<String, SuggestError> {
        let format = Config {
            line_width: 100,
            indent_width: 2,
        };
        let text = self.comment(settings) + &self.written(review);
        let text = policies_str_to_pretty(&text, &format);
        text.map(|text| text.trim().to_owned())
            .map_err(|why| SuggestError::Format {
                principal: self.principal.clone(),
                service: self.service.clone(),
                why: format!("{why:#}"),
            })
    }

    fn written(&self, review: Date) -> String {
        let annotations = [
            ("id", &self.id),
            ("owner", &String::new()),
            ("purpose", &self.purpose()),
            ("expires", &self.expires.to_string()),
            ("review", &review.to_string()),
        ];
        let mut text = String::new();
        for (key, value) in annotations {
            let _ = writeln!(text, "@{key}({})", quoted(value));
        }
        let _ = write!(
            text,
            "permit (principal == Workload::{}, action {}, resource == Service::{})",
            quoted(self.principal.as_str()),
            self.part.action(),
            quoted(&self.service),
        );
        if let Some(condition) = self.part.condition() {
            let _ = write!(text, " when {{ {condition} }}");
        }
        text + ";\n"
    }

    /// What it is for, as far as that can be known from what was seen.
    fn purpose(&self) -> String {
        let times = self.part.times;
        let often = match times.count {
            1 => "once".to_owned(),
            count => format!("{} times", grouped(count)),
        };
        let denied = match times.denied {
            0 => String::new(),
            _ if self.divided => ", some of these denied".to_owned(),
            denied if denied == times.count => ", and denied".to_owned(),
            denied => format!(", {} of these denied", grouped(denied)),
        };
        format!("Seen {often} {}{denied}", when(times))
    }

    /// The evidence. Everything recorded is escaped: nothing in it can end the comment.
    fn comment(&self, settings: &Settings) -> String {
        let mut text = String::new();
        let mut line = |line: std::fmt::Arguments<'_>| {
            let _ = writeln!(text, "// {line}");
        };
        if let Some((first, last)) = self.part.times.between {
            line(format_args!("First seen {first:.3}, last seen {last:.3}."));
        }
        if let Some(replaced) = &settings.grant {
            line(format_args!(
                "Made from what `{}` allowed, to take its place. Records do not tell what that asks for \
                 besides",
                shown(replaced)
            ));
            line(format_args!(
                "action and path, as the address or the time: look there, and add it here."
            ));
        } else if !self.part.by.is_empty() {
            let by = self.part.by.iter();
            let by = by.map(|(id, count)| format!("`{}` ({})", shown(id), grouped(*count)));
            line(format_args!(
                "Allowed so far by {}.",
                by.collect::<Vec<_>>().join(", ")
            ));
        }
        let mut found: Vec<_> = self.part.found.iter().collect();
        found.sort_by_key(|found| std::cmp::Reverse(found.count));
        for found in found.iter().take(MOST_LISTED) {
            let pattern = found.pattern.text();
            let example = match pattern == found.example {
                true => String::new(),
                false => format!(", as in {}", cut(&shown(&found.example))),
            };
            line(format_args!(
                "{:>9}  {}{example}",
                grouped(found.count),
                cut(&shown(&pattern)),
            ));
        }
        if found.len() > MOST_LISTED {
            line(format_args!("and {} more", found.len() - MOST_LISTED));
        }
        text
    }

    fn json(&self) -> Value {
        let times = self.part.times;
        let between = times.between;
        let paths = self.part.found.iter().map(|found| {
            json!({
                "pattern": found.pattern.text(),
                "count": found.count,
                "example": found.example,
            })
        });
        json!({
            "id": self.id,
            "principal": self.principal.as_str(),
            "service": self.service,
            "methods": self.part.verbs.iter().map(Verb::name).collect::<Vec<_>>(),
            "paths": paths.collect::<Vec<_>>(),
            "count": times.count,
            "denied": times.denied,
            "first": between.map(|(first, _)| first.to_string()),
            "last": between.map(|(_, last)| last.to_string()),
            "allowed_by": self.part.by,
            "expires": self.expires.to_string(),
            "policy": self.text,
        })
    }
}

/// When something was seen, in days.
fn when(times: Times) -> String {
    let Some((first, last)) = times.between else {
        return "never".to_owned();
    };
    let day = |time: Timestamp| time.to_zoned(TimeZone::UTC).date();
    match (day(first), day(last)) {
        (first, last) if first == last => format!("on {first}"),
        (first, last) => format!("between {first} and {last}"),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(LONGEST_SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

const NO_OWNER: &str = "@owner(\"\")";

const REVIEW_IN: Duration = Duration::from_secs(30 * 24 * 3600);

/// Patterns listed as evidence.
const MOST_LISTED: usize = 20;

const LONGEST_SHOWN: usize = 100;
