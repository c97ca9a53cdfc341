//! `doorward explain`: would this be allowed, by which grant, or what is missing?
//!
//! Asked through the same [`Gate`](crate::policy::Gate) that decides while the proxy runs.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde_json::{Value, json};

use crate::config::Config;
use crate::identity::SpiffeId;
use crate::inbound;
use crate::policy::cedar::{Engine, Missed};
use crate::policy::files;
use crate::policy::{
    Act, Denial, DenialReason, Governance, Grant, Metrics, Mode, Permit, Place, Policy, Settings,
    Subject,
};

/// Say whether policy allows one request, and why. Exits with 0 if it is allowed, 1 if it is denied, 2
/// after a mistake.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The sidecar's configuration: names the policy directory and the environment.
    #[arg(short, long, value_name = "FILE", required_unless_present = "policy")]
    config: Option<PathBuf>,
    /// A policy directory, without a configuration.
    #[arg(short, long, value_name = "DIR", conflicts_with = "config")]
    policy: Option<PathBuf>,
    /// Load grants that do not say who answers for them, too (`policy.governance: advisory`).
    #[arg(long)]
    advisory: bool,
    /// A label of the sidecar's environment, in place of the configured one; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    environment: Vec<(String, String)>,
    #[command(flatten)]
    asked: Asked,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The request that is asked about.
#[derive(Clone, Debug, clap::Args)]
pub struct Asked {
    /// Who asks, by SPIFFE ID.
    #[arg(long, value_name = "SPIFFE_ID")]
    pub principal: SpiffeId,
    /// The service that is asked, by the name that the configuration gives it.
    #[arg(long, value_name = "NAME")]
    pub service: Arc<str>,
    /// The HTTP method.
    #[arg(long, default_value = "GET", conflicts_with = "connect")]
    pub method: http::Method,
    /// The path, without the query.
    #[arg(long, default_value = "/", conflicts_with = "connect")]
    pub path: String,
    /// The host that the request names; the service's name if it is not given.
    #[arg(long, conflicts_with = "connect")]
    pub host: Option<String>,
    /// Ask for an opaque TCP connection instead of an HTTP request.
    #[arg(long)]
    pub connect: bool,
    /// The address that the peer connects from.
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub source: IpAddr,
    /// The port that it connects to.
    #[arg(long, default_value_t = 8443)]
    pub port: u16,
    /// How long the peer's certificate lives.
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    pub lifetime: Duration,
    /// When it is asked, as in 2027-06-30T12:00:00Z; now if it is not given.
    #[arg(long, value_name = "RFC3339")]
    pub at: Option<jiff::Timestamp>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// Answers on standard output. Mistakes in the policy go to standard error.
///
/// # Errors
/// If the answer cannot be had for another reason than the policy.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut settings = match (args.config, args.policy) {
        (Some(path), _) => Config::open(&path)?
            .policy
            .with_context(|| format!("{} has no section `policy`", path.display()))?,
        (None, dir) => Settings::of(dir.unwrap_or_default()),
    };
    if args.advisory {
        settings.governance = Governance::Advisory;
    }
    settings.environment.extend(args.environment);
    answer(&settings, &args.asked, args.json)
}

/// Answers what `asked` asks of the policy in `settings`: what [`run`] does once the settings are known.
///
/// # Errors
/// As [`run`].
pub fn answer(settings: &Settings, asked: &Asked, as_json: bool) -> anyhow::Result<ExitCode> {
    let engine = files::load(settings)?;
    let explanation = Explanation::new(settings, engine, asked)?;
    if as_json {
        println!("{:#}", explanation.json());
    } else {
        print!("{}", explanation.text());
    }
    Ok(match explanation.answer {
        Ok(_) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(1),
    })
}

/// An answer with its reasons.
struct Explanation {
    /// Who asks what, where.
    question: String,
    answer: Result<Permit, Denial>,
    /// The grants that do not apply, where none does.
    missed: Vec<(Arc<Grant>, Missed)>,
}

impl Explanation {
    fn new(settings: &Settings, engine: Engine, asked: &Asked) -> anyhow::Result<Self> {
        let now = asked.at.map_or_else(SystemTime::now, SystemTime::from);
        let host = asked.host.as_deref().unwrap_or(&asked.service);
        let path = inbound::decided_path(&asked.path).with_context(|| {
            format!(
                "{}: the sidecar answers 400 to this, whatever policy says",
                asked.path
            )
        })?;
        let act = match asked.connect {
            true => Act::Connect,
            false => Act::Http {
                method: &asked.method,
                host,
                path: &path,
            },
        };
        let what = match act {
            Act::Connect => "connect".to_owned(),
            Act::Http { method, path, .. } => format!("{method} {path}"),
        };
        let subject = Subject {
            id: asked.principal.clone(),
            expires: now + asked.lifetime,
            lifetime: asked.lifetime,
        };
        let place = Place {
            service: asked.service.clone(),
            port: asked.port,
            source: asked.source,
        };
        let metrics = Metrics::register(&prometheus::Registry::new())
            .context("the metrics of policy clash with each other")?;
        // The answer of the policy itself, whatever this sidecar makes of it.
        let policy = Policy::new(&Settings {
            mode: Mode::Enforce,
            ..settings.clone()
        });
        let missed = engine.missed(&asked.principal, &asked.service, &act, now);
        policy.engine().publish(engine);
        let answer = policy.gate(subject, place, &metrics).authorize(&act, now);
        let nothing = answer
            .as_ref()
            .is_err_and(|denial| denial.reason() == DenialReason::NoGrant);
        Ok(Self {
            question: format!("{} {what} at {}", asked.principal, asked.service),
            missed: if nothing { missed } else { Vec::new() },
            answer,
        })
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        match &self.answer {
            Ok(permit) => {
                lines.push(("allowed", self.question.clone()));
                lines.extend(
                    permit
                        .grant()
                        .into_iter()
                        .flat_map(|grant| described(grant)),
                );
                if let Some(denial) = permit.would_deny() {
                    lines.push(("dry run", format!("would be denied: {denial}")));
                }
            }
            Err(denial) => {
                lines.push(("denied", self.question.clone()));
                lines.push(("because", denial.reason().to_string()));
                lines.extend(
                    denial
                        .grant()
                        .into_iter()
                        .flat_map(|grant| described(grant)),
                );
                lines.extend(denial.detail().map(|detail| ("failed", detail.to_owned())));
                if let Some(grant) = denial.would_allow() {
                    lines.push(("dry run", format!("would be allowed by {}", grant.id)));
                }
                for (grant, why) in &self.missed {
                    lines.push(("not by", format!("{}: {}", grant.id, reason(grant, *why))));
                }
                if denial.reason() == DenialReason::NoGrant && self.missed.is_empty() {
                    let none =
                        "no grant names this workload, a role of it or everybody at this service";
                    lines.push(("missing", none.to_owned()));
                }
            }
        }
        let lines = lines.into_iter();
        lines.fold(String::new(), |text, (word, line)| {
            format!("{text}{word:<9}{line}\n")
        })
    }

    fn json(&self) -> Value {
        let missed = self.missed.iter().map(|(grant, why)| {
            let mut missed = described_json(grant);
            missed["why"] = why.label().into();
            missed
        });
        let grant = |grant: Option<&Arc<Grant>>| grant.map(|grant| described_json(grant));
        match &self.answer {
            Ok(permit) => json!({
                "allowed": true,
                "grant": grant(permit.grant()),
                "would_deny": permit.would_deny().map(|denial| json!({
                    "reason": denial.reason().label(),
                    "grant": grant(denial.grant()),
                })),
            }),
            Err(denial) => json!({
                "allowed": false,
                "reason": denial.reason().label(),
                "detail": denial.detail(),
                "grant": grant(denial.grant()),
                "would_allow": grant(denial.would_allow()),
                "missed": missed.collect::<Vec<_>>(),
            }),
        }
    }
}

fn described(grant: &Grant) -> Vec<(&'static str, String)> {
    let mut lines = vec![("by", grant.id.to_string())];
    lines.extend(grant.owner.iter().map(|owner| ("owner", owner.to_string())));
    lines.extend(
        grant
            .purpose
            .iter()
            .map(|purpose| ("purpose", purpose.to_string())),
    );
    lines.extend(end(grant).map(|end| ("until", end)));
    lines
}

fn described_json(grant: &Grant) -> Value {
    json!({
        "id": grant.id,
        "owner": grant.owner,
        "purpose": grant.purpose,
        "expires": end(grant),
    })
}

fn reason(grant: &Grant, why: Missed) -> String {
    match why {
        Missed::Action => "it is for other actions".to_owned(),
        Missed::Ended => match end(grant) {
            Some(end) => format!("it ended at {end}"),
            None => "it has ended".to_owned(),
        },
        Missed::DryRun => "it is a dry run".to_owned(),
        Missed::Condition => "its conditions do not hold".to_owned(),
    }
}

/// When a grant ends, in UTC.
fn end(grant: &Grant) -> Option<String> {
    let end = jiff::Timestamp::try_from(grant.expires?).ok()?;
    Some(end.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    const POLICIES: &str = r#"
        @id("reads") @owner("team@example.org") @purpose("Shows invoices") @expires("2027-06-30")
        permit (principal == Workload::"spiffe://example.org/checkout", action in Action::"read",
                resource == Service::"invoices")
        when { context.http.path like "/v1/*" };
        @id("old") @owner("o") @purpose("p") @expires("2020-06-30")
        permit (principal, action, resource == Service::"invoices");
        @id("no-drafts") forbid (principal, action, resource)
        when { context has http && context.http.path like "*draft*" };
    "#;

    fn asked(line: &str) -> Explanation {
        let words = "explain --policy p --at 2026-01-01T00:00:00Z --principal";
        let words = words.split(' ').chain(line.split(' '));
        let args = Command::try_parse_from(words).unwrap().args;
        let settings = Settings::of("p");
        let engine = files::check_texts([("a.cedar", POLICIES)], &settings).unwrap();
        Explanation::new(&settings, engine, &args.asked).unwrap()
    }

    #[test]
    fn an_answer_says_by_which_grant_or_what_is_missing() {
        for (line, text) in [
            (
                "spiffe://example.org/checkout --service invoices --path /v1/7",
                "allowed  spiffe://example.org/checkout GET /v1/7 at invoices\n\
                 by       reads\n\
                 owner    team@example.org\n\
                 purpose  Shows invoices\n\
                 until    2027-07-01T00:00:00Z\n",
            ),
            (
                "spiffe://example.org/checkout --service invoices --path /v2/7",
                "denied   spiffe://example.org/checkout GET /v2/7 at invoices\n\
                 because  no grant in force allows this\n\
                 not by   reads: its conditions do not hold\n\
                 not by   old: it ended at 2020-07-01T00:00:00Z\n",
            ),
            (
                "spiffe://example.org/checkout --service invoices --connect",
                "denied   spiffe://example.org/checkout connect at invoices\n\
                 because  no grant in force allows this\n\
                 not by   reads: it is for other actions\n\
                 not by   old: it ended at 2020-07-01T00:00:00Z\n",
            ),
            (
                "spiffe://example.org/checkout --service invoices --path /v1/draft",
                "denied   spiffe://example.org/checkout GET /v1/draft at invoices\n\
                 because  a policy forbids this\n\
                 by       no-drafts\n",
            ),
            (
                "spiffe://example.org/other --service ledger",
                "denied   spiffe://example.org/other GET / at ledger\n\
                 because  no grant in force allows this\n\
                 missing  no grant names this workload, a role of it or everybody at this service\n",
            ),
        ] {
            assert_eq!(asked(line).text(), text, "{line}");
        }
    }

    #[test]
    fn json_says_the_same() {
        let allowed = asked("spiffe://example.org/checkout --service invoices --path /v1/7").json();
        assert_eq!(allowed["allowed"], true);
        assert_eq!(allowed["grant"]["owner"], "team@example.org");
        let denied = asked("spiffe://example.org/checkout --service invoices --path /").json();
        assert_eq!(
            (&denied["allowed"], &denied["reason"]),
            (&json!(false), &json!("no_grant"))
        );
        assert_eq!(denied["missed"][1]["why"], "ended");
    }

    #[test]
    fn allowed_denied_and_mistaken_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.cedar");
        let code = |path: &str| {
            let words = [
                "explain",
                "--principal",
                "spiffe://example.org/checkout",
                "--service",
            ];
            let words = words
                .into_iter()
                .chain(["invoices", "--at", "2026-01-01T00:00:00Z"]);
            let words = words.chain(["--path", path, "--policy", dir.path().to_str().unwrap()]);
            let code = run(Command::try_parse_from(words).unwrap().args);
            code.map(|code| format!("{code:?}"))
        };
        std::fs::write(&file, POLICIES).unwrap();
        assert_eq!(code("/v1/7").unwrap(), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code("/").unwrap(), format!("{:?}", ExitCode::from(1)));
        std::fs::write(&file, "oops").unwrap();
        // The command line shows the mistake in place and makes it exit code 2.
        assert!(code("/v1/7").unwrap_err().is::<files::LoadError>());
    }
}
