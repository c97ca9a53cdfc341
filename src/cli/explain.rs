//! `doorward explain`: would this be allowed, by which grant, or what is missing?

use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::cli::asked::{Place, Request};
use crate::identity::SpiffeId;
use crate::policy::asked::Asked;
use crate::policy::explain::{Explanation, Lack, Near};
use crate::policy::{DenialReason, Grant};

/// Say whether policy allows one request, and why, or which grant comes closest and what it lacks. Exits
/// with 0 if it is allowed, 1 if it is denied, 2 after a mistake.
///
/// What is not given is taken to be GET of `/`, at the host that is called like the service, from 127.0.0.1
/// to port 8443, with a certificate that lives an hour.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    /// Who asks, by SPIFFE ID.
    #[arg(long, value_name = "SPIFFE_ID")]
    principal: SpiffeId,
    #[command(flatten)]
    request: Request,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Answers on standard output. Mistakes in the policy go to standard error.
///
/// # Errors
/// If the answer cannot be had, as after a mistake in the policy.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let inquiry = args.place.inquiry()?;
    let asked = args.request.of(args.principal)?;
    let explanation = Explanation::of(&inquiry, &asked);
    if args.json {
        println!("{:#}", as_json(&explanation));
    } else {
        print!("{}", as_text(&asked, &explanation));
    }
    Ok(ExitCode::from(u8::from(explanation.answer.is_err())))
}

/// The answer in lines, each behind its word.
pub(crate) fn as_text(asked: &Asked, explanation: &Explanation) -> String {
    let mut lines = Vec::new();
    match &explanation.answer {
        Ok(permit) => {
            lines.push(("allowed", asked.to_string()));
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
            lines.push(("denied", asked.to_string()));
            lines.push(("because", denial.reason().to_string()));
            lines.extend(
                denial
                    .grant()
                    .into_iter()
                    .flat_map(|grant| described(grant)),
            );
            lines.extend(
                explanation
                    .conditions
                    .iter()
                    .map(|it| ("applies", it.clone())),
            );
            lines.extend(denial.detail().map(|detail| ("failed", detail.to_owned())));
            if let Some(grant) = denial.would_allow() {
                lines.push(("dry run", format!("would be allowed by {}", grant.id)));
            }
            let named = |near: &&Near| !near.lacks.iter().any(is_elsewhere);
            if denial.reason() == DenialReason::NoGrant
                && !explanation.near.iter().any(|it| named(&it))
            {
                let none =
                    "no grant names this workload, a role of it or everybody at this service";
                lines.push(("missing", none.to_owned()));
            }
            let mut near = explanation.near.iter();
            if let Some(closest) = near.next() {
                lines.push(("closest", closest.grant.id.to_string()));
                lines.extend(closest.lacks.iter().map(|lack| ("but", lack.to_string())));
                lines.extend(described(&closest.grant).into_iter().skip(1));
            }
            for Near { grant, lacks, .. } in near {
                let lacks: Vec<_> = lacks.iter().map(Lack::to_string).collect();
                lines.push(("not by", format!("{}: {}", grant.id, lacks.join("; "))));
            }
        }
    }
    let lines = lines.into_iter();
    lines.fold(String::new(), |text, (word, line)| {
        format!("{text}{word:<9}{line}\n")
    })
}

fn is_elsewhere(lack: &Lack) -> bool {
    matches!(lack, Lack::Principal(_) | Lack::Service(_))
}

/// The same for a program.
pub(crate) fn as_json(explanation: &Explanation) -> Value {
    let missed = explanation.near.iter().map(|near| {
        let mut missed = described_json(&near.grant);
        missed["why"] = near.lacks.first().map(Lack::label).into();
        missed["lacks"] = near.lacks.iter().map(lack_json).collect();
        missed
    });
    let grant = |grant: Option<&Arc<Grant>>| grant.map(|grant| described_json(grant));
    match &explanation.answer {
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
            "conditions": explanation.conditions,
            "would_allow": grant(denial.would_allow()),
            "missed": missed.collect::<Vec<_>>(),
        }),
    }
}

fn lack_json(lack: &Lack) -> Value {
    let mut json = json!({ "what": lack.label(), "text": lack.to_string() });
    if let Lack::Condition {
        condition, given, ..
    } = lack
    {
        json["condition"] = condition.as_str().into();
        json["given"] = given
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Value::from(value.as_str())))
            .collect();
    }
    json
}

/// What a grant says about itself, each part behind its word; its name comes first.
pub(crate) fn described(grant: &Grant) -> Vec<(&'static str, String)> {
    let mut lines = vec![("by", grant.id.to_string())];
    lines.extend(grant.owner.iter().map(|owner| ("owner", owner.to_string())));
    lines.extend(
        grant
            .purpose
            .iter()
            .map(|purpose| ("purpose", purpose.to_string())),
    );
    lines.extend(end(grant).map(|end| ("until", end)));
    lines.extend(
        grant
            .review
            .and_then(instant)
            .map(|review| ("review", review)),
    );
    lines.extend(
        grant
            .ticket
            .iter()
            .map(|ticket| ("ticket", ticket.to_string())),
    );
    lines
}

/// The same for a program.
pub(crate) fn described_json(grant: &Grant) -> Value {
    json!({
        "id": grant.id,
        "owner": grant.owner,
        "purpose": grant.purpose,
        "expires": end(grant),
        "review": grant.review.and_then(instant),
        "ticket": grant.ticket,
    })
}

/// When a grant ends, in UTC.
pub(crate) fn end(grant: &Grant) -> Option<String> {
    instant(grant.expires?)
}

/// In UTC.
fn instant(time: SystemTime) -> Option<String> {
    let time = jiff::Timestamp::try_from(time).ok()?;
    Some(time.to_string())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::policy::asked::Inquiry;
    use crate::policy::{Settings, files};

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
        @id("audits") @owner("o") @purpose("p") @expires("2027-06-30")
        permit (principal in Role::"auditors", action, resource == Service::"ledger")
        unless { context.port == 1 };
        @id("no-drafts") forbid (principal, action, resource)
        when { context has http && context.http.path like "*draft*" };
    "#;

    fn asked(line: &str) -> (Asked, Explanation) {
        let words = "explain --policy p --at 2026-01-01T00:00:00Z --principal";
        let words = words.split(' ').chain(line.split(' '));
        let args = Command::try_parse_from(words).unwrap().args;
        let settings = Settings::of("p");
        let engine = files::check_texts([("a.cedar", POLICIES)], &settings).unwrap();
        let inquiry = Inquiry::new(&settings, engine).unwrap();
        let asked = args.request.of(args.principal).unwrap();
        let explanation = Explanation::of(&inquiry, &asked);
        (asked, explanation)
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
                 closest  reads\n\
                 but      `when context.http.path like \"/v1/*\"` is false for path \"/v2/7\"\n\
                 owner    team@example.org\n\
                 purpose  Shows invoices\n\
                 until    2027-07-01T00:00:00Z\n\
                 not by   old: it ended at 2020-07-01T00:00:00Z\n",
            ),
            (
                "spiffe://example.org/checkout --service invoices --connect",
                "denied   spiffe://example.org/checkout connect at invoices\n\
                 because  no grant in force allows this\n\
                 closest  reads\n\
                 but      it allows read only\n\
                 owner    team@example.org\n\
                 purpose  Shows invoices\n\
                 until    2027-07-01T00:00:00Z\n\
                 not by   old: it ended at 2020-07-01T00:00:00Z\n",
            ),
            (
                "spiffe://example.org/checkout --service invoices --path /v1/draft",
                "denied   spiffe://example.org/checkout GET /v1/draft at invoices\n\
                 because  a policy forbids this\n\
                 by       no-drafts\n\
                 applies  when context has http\n\
                 applies  when context.http.path like \"*draft*\"\n",
            ),
            (
                "spiffe://example.org/other --service ledger --path /v1/7 --port 1",
                "denied   spiffe://example.org/other GET /v1/7 at ledger\n\
                 because  no grant in force allows this\n\
                 missing  no grant names this workload, a role of it or everybody at this service\n\
                 closest  audits\n\
                 but      it is for role auditors, which this workload does not have\n\
                 but      `unless context.port == 1` is true for port 1\n\
                 owner    o\n\
                 purpose  p\n\
                 until    2027-07-01T00:00:00Z\n\
                 not by   old: it is for the service invoices; it ended at 2020-07-01T00:00:00Z\n",
            ),
        ] {
            let (asked, explanation) = asked(line);
            assert_eq!(as_text(&asked, &explanation), text, "{line}");
        }
    }

    #[test]
    fn json_says_the_same() {
        let json = |line| as_json(&asked(line).1);
        let allowed = json("spiffe://example.org/checkout --service invoices --path /v1/7");
        assert_eq!(allowed["allowed"], true);
        assert_eq!(allowed["grant"]["owner"], "team@example.org");
        let denied = json("spiffe://example.org/checkout --service invoices --path /");
        assert_eq!(
            (&denied["allowed"], &denied["reason"]),
            (&json!(false), &json!("no_grant"))
        );
        assert_eq!(
            denied["missed"][0]["lacks"][0],
            json!({
                "what": "condition",
                "condition": "when context.http.path like \"/v1/*\"",
                "given": { "path": "/" },
                "text": "`when context.http.path like \"/v1/*\"` is false for path \"/\"",
            })
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
