//! `doorward policy test`: do policies decide as a team says they must?

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::cli::asked::{decided, inquiry};
use crate::cli::explain::{as_json, as_text};
use crate::document::{Document, Node, Section};
use crate::identity::SpiffeId;
use crate::policy::asked::{self, Asked, Inquiry, What};
use crate::policy::explain::Explanation;
use crate::policy::{DenialReason, Governance, Grant, Settings};

/// Ask a policy directory what tables of requests say, and compare the decisions. Exits with 0 if all are
/// as expected, 1 if one is not, 2 after a mistake.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The tables, in YAML.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Name the policies that decide no case.
    #[arg(long)]
    coverage: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Asks, and tells on standard output what is not as expected.
///
/// # Errors
/// What is wrong with a table or the policy that it names.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let (mut passed, mut failed) = (0, 0);
    let mut told = Vec::new();
    for path in &args.files {
        let table = Document::open(path)?.read(|node| Table::read(&node, path))?;
        let inquiry = inquiry(&table.settings)?;
        let mut deciding = BTreeSet::new();
        let mut cases = Vec::new();
        for case in &table.cases {
            let explanation = Explanation::of(&inquiry, &case.asked);
            deciding.extend(named(&explanation));
            let surprises = case.surprises(&explanation);
            match surprises.is_empty() {
                true => passed += 1,
                false => failed += 1,
            }
            if args.json {
                cases.push(case.json(&explanation, &surprises));
            } else if !surprises.is_empty() {
                print!("{}", case.text(path, &explanation, &surprises));
            }
        }
        let idle = args.coverage.then(|| idle(&inquiry, &deciding));
        if args.json {
            let file = path.display().to_string();
            told.push(json!({ "file": file, "cases": cases, "not_covered": idle }));
        } else if let Some(idle) = idle.filter(|idle| !idle.is_empty()) {
            println!("{}: no case is decided by", path.display());
            idle.iter().for_each(|id| println!("  {id}"));
        }
    }
    if args.json {
        let told = json!({ "passed": passed, "failed": failed, "files": told });
        println!("{told:#}");
    } else {
        println!("{passed} passed, {failed} failed");
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// The policies that had a say in an answer, in dry run or not.
fn named(explanation: &Explanation) -> Vec<Arc<str>> {
    let id = |grant: Option<&Arc<Grant>>| grant.map(|grant| grant.id.clone());
    match &explanation.answer {
        Ok(permit) => {
            let forbid = permit.would_deny().and_then(|denial| id(denial.grant()));
            id(permit.grant()).into_iter().chain(forbid).collect()
        }
        Err(denial) => {
            let would_allow = id(denial.would_allow());
            id(denial.grant()).into_iter().chain(would_allow).collect()
        }
    }
}

/// The policies that had none, in their order.
fn idle(inquiry: &Inquiry, deciding: &BTreeSet<Arc<str>>) -> Vec<Arc<str>> {
    let grants = inquiry.engine().grants().into_iter();
    let idle = grants.filter(|grant| !deciding.contains(&grant.id));
    idle.map(|grant| grant.id.clone()).collect()
}

/// A file of cases.
struct Table {
    settings: Settings,
    cases: Vec<Case>,
}

/// One request, and what policy must say to it.
struct Case {
    line: usize,
    name: Option<String>,
    asked: Asked,
    allowed: bool,
    /// Whether it would be allowed if the policies in dry run were enforced.
    rehearsed: Option<bool>,
    grant: Option<String>,
    reason: Option<DenialReason>,
}

impl Table {
    /// Reads the file at `path`, which the path of the policy is relative to.
    fn read(node: &Node<'_>, path: &Path) -> Option<Self> {
        let mut section = node.section()?;
        let beside = path.parent().unwrap_or(Path::new(""));
        let dir = section.required("policy", |node| Some(beside.join(node.path()?)));
        let governance = section.or("governance", Governance::default(), |node| {
            node.choice(&[
                ("enforce", Governance::Enforce),
                ("advisory", Governance::Advisory),
            ])
        });
        let environment = section.or("environment", BTreeMap::new(), Settings::read_environment);
        let at = section.or("at", SystemTime::now(), time);
        let cases = section.required("cases", |node| {
            let cases =
                node.list(|node| Case::read(&node, at.unwrap_or(SystemTime::UNIX_EPOCH)))?;
            match cases.is_empty() {
                true => node.mistake("a table without cases proves nothing", None),
                false => Some(cases),
            }
        });
        Some(Self {
            settings: Settings {
                governance: governance?,
                environment: environment?,
                ..Settings::of(dir?)
            },
            cases: cases?,
        })
    }
}

impl Case {
    fn read(node: &Node<'_>, at: SystemTime) -> Option<Self> {
        let text = |node: Node<'_>| node.text().map(str::to_owned);
        let verdict = |node: Node<'_>| node.choice(&[("allow", true), ("deny", false)]);
        let mut section = node.section()?;
        let name = section.optional("name", text);
        let principal = section.required("principal", |node| node.parse::<SpiffeId>());
        let service = section.required("service", text);
        let what = Self::what(&mut section, service.as_deref());
        let source = section.or("source", asked::SOURCE, |node| node.parse::<IpAddr>());
        let port = section.or("port", asked::PORT, |node| node.parse());
        let lifetime = section.or("lifetime", asked::LIFETIME, |node| {
            node.duration(Duration::from_secs(1)..=Duration::from_secs(366 * 24 * 3600))
        });
        let at = section.or("at", at, time);
        let allowed = section.required("expect", verdict);
        let rehearsed = section.optional("dry_run", verdict);
        let grant = section.optional("grant", text);
        let reason = section.optional("reason", |node| {
            let reason = node.choice(&REASONS.map(|reason| (reason.label(), reason)));
            match allowed {
                Some(true) => node.mistake("what is allowed has no such reason", None),
                _ => reason,
            }
        });
        Some(Self {
            line: node.line(),
            name: name?,
            asked: Asked {
                principal: principal?,
                service: service?.into(),
                what: what?,
                source: source?,
                port: port?,
                lifetime: lifetime?,
                at: at?,
            },
            allowed: allowed?,
            rehearsed: rehearsed?,
            grant: grant?,
            reason: reason?,
        })
    }

    /// An HTTP request, or `connect: true`.
    fn what(section: &mut Section<'_>, service: Option<&str>) -> Option<What> {
        let connect = section.or("connect", false, |node| node.flag());
        let connect = connect.unwrap_or_default();
        let in_http = |node: &Node<'_>| match connect {
            true => node.mistake("a TCP connection has none: remove it, or `connect`", None),
            false => Some(()),
        };
        let method = section.or("method", http::Method::GET, |node| {
            in_http(&node)?;
            node.parse()
        });
        let path = section.or("path", "/".to_owned(), |node| {
            in_http(&node)?;
            match decided(node.text()?) {
                Ok(path) => Some(path),
                Err(error) => node.mistake(error, None),
            }
        });
        let host = section.or("host", service.unwrap_or_default(), |node| {
            in_http(&node)?;
            node.text()
        });
        let (method, path, host) = (method?, path?, host?.to_owned());
        Some(match connect {
            true => What::Connect,
            false => What::Http { method, host, path },
        })
    }

    /// What of the answer is not as expected: each with what it was to be, and what it is.
    fn surprises(&self, explanation: &Explanation) -> Vec<(String, String)> {
        let word = |allowed: bool| if allowed { "allow" } else { "deny" }.to_owned();
        let id = |grant: Option<&Arc<Grant>>| grant.map(|grant| grant.id.to_string());
        let (allowed, rehearsed, grant, reason) = match &explanation.answer {
            Ok(permit) => (true, permit.would_deny().is_none(), permit.grant(), None),
            Err(denial) => {
                let rehearsed = denial.would_allow().is_some();
                (false, rehearsed, denial.grant(), Some(denial.reason()))
            }
        };
        let grant = id(grant);
        let mut surprises = Vec::new();
        if allowed != self.allowed {
            surprises.push((word(self.allowed), word(allowed)));
        }
        if let Some(expected) = self.rehearsed.filter(|expected| *expected != rehearsed) {
            let in_dry_run = |allowed| format!("{} in dry run", word(allowed));
            surprises.push((in_dry_run(expected), in_dry_run(rehearsed)));
        }
        if self.grant.is_some() && self.grant != grant {
            let by = |grant: Option<String>| match grant {
                Some(grant) => format!("by {grant}"),
                None => "by no grant".to_owned(),
            };
            surprises.push((by(self.grant.clone()), by(grant)));
        }
        if let Some(expected) = self.reason.filter(|expected| reason != Some(*expected)) {
            let because = |reason: &str| format!("because {reason}");
            let given = reason.map_or("it is allowed", DenialReason::label);
            surprises.push((because(expected.label()), because(given)));
        }
        surprises
    }

    fn text(
        &self,
        path: &Path,
        explanation: &Explanation,
        surprises: &[(String, String)],
    ) -> String {
        let mut text = format!("{}:{}: ", path.display(), self.line);
        if let Some(name) = &self.name {
            text.push_str(&format!("{name}: "));
        }
        let pairs = surprises.iter();
        let pairs = pairs.map(|(expected, given)| format!("expected {expected}, got {given}"));
        text.push_str(&pairs.collect::<Vec<_>>().join("; "));
        text.push('\n');
        for line in as_text(&self.asked, explanation).lines() {
            text.push_str(&format!("  {line}\n"));
        }
        text
    }

    fn json(&self, explanation: &Explanation, surprises: &[(String, String)]) -> Value {
        let surprises = surprises.iter();
        let surprises = surprises.map(|(expected, given)| json!([expected, given]));
        json!({
            "line": self.line,
            "name": self.name,
            "asked": self.asked.to_string(),
            "passed": surprises.len() == 0,
            "expected_and_given": surprises.collect::<Vec<_>>(),
            "answer": as_json(explanation),
        })
    }
}

/// An instant, as in 2027-06-30T12:00:00Z.
fn time(node: Node<'_>) -> Option<SystemTime> {
    let text = node.text()?;
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => Some(time.into()),
        Err(_) => node.mistake(
            format_args!("`{text}` is not an instant"),
            Some("write for example `2027-06-30T12:00:00Z`"),
        ),
    }
}

const REASONS: [DenialReason; 4] = [
    DenialReason::NoGrant,
    DenialReason::Forbidden,
    DenialReason::Error,
    DenialReason::LifetimeTooLong,
];
