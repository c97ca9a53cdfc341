//! `doorward who-can`: who may do this here, by which grant, until when?

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::cli::asked::{Place, Request};
use crate::cli::explain::{described_json, end};
use crate::policy::access::Class;
use crate::policy::asked::{Action, Sought};
use crate::policy::listing::Named;
use crate::policy::who_can::{Limit, Obstacle, Way, ways};

/// List who may do this here, by which grant, until when, and who answers for it. Exits with 0 if somebody
/// may, 1 if nobody may, 2 after a mistake.
///
/// What is not given is left open: conditions that ask for it are shown as what remains.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
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
    let sought = args.request.sought(args.place.has_environment())?;
    let inquiry = args.place.inquiry()?;
    let ways = ways(&inquiry, &sought);
    let somebody = ways.iter().any(|way| !way.dry_run);
    if args.json {
        let ways: Vec<_> = ways.iter().map(way_json).collect();
        println!("{:#}", json!({ "somebody": somebody, "who": ways }));
    } else {
        print!("{}", text(&sought, &ways, somebody));
    }
    Ok(ExitCode::from(u8::from(!somebody)))
}

fn text(sought: &Sought, ways: &[Way], somebody: bool) -> String {
    let mut text = String::new();
    if !somebody {
        text = format!("nobody may {}\n", asked(sought));
        if ways.is_empty() {
            return text;
        }
        text.push_str("in dry run, which lets nobody in:\n");
    }
    let dash = || "-".to_owned();
    let titles = [
        "WHO",
        "KIND",
        "OWNER",
        "MAY",
        "BY GRANT",
        "ITS OWNER",
        "UNTIL",
    ];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(ways.iter().map(|way| {
        let registered = way.registered.as_ref();
        [
            way.who.to_string(),
            registered.map_or_else(dash, |it| it.kind.label().to_owned()),
            registered.map_or_else(dash, |it| it.owner.to_string()),
            way.actions.clone(),
            way.grant.id.to_string(),
            way.grant
                .owner
                .as_ref()
                .map_or_else(dash, ToString::to_string),
            end(&way.grant).unwrap_or_else(dash),
        ]
    }));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or_default()
    };
    let widths: [usize; 7] = std::array::from_fn(width);
    for (number, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(widths);
        let cells = cells.map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
        let Some(way) = number.checked_sub(1).and_then(|number| ways.get(number)) else {
            continue;
        };
        for line in remarks(way) {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

fn asked(sought: &Sought) -> String {
    let what = match &sought.action {
        Action::Any => "do anything".to_owned(),
        Action::AnyHttp => "ask for anything".to_owned(),
        Action::Http(method) => method.to_string(),
        Action::Connect => "connect".to_owned(),
    };
    let path = sought.path.as_ref().map(|path| format!(" {path}"));
    format!("{what}{} at {}", path.unwrap_or_default(), sought.service)
}

/// What stands below a line of the table.
fn remarks(way: &Way) -> Vec<String> {
    let mut lines = Vec::new();
    if way.dry_run {
        lines.push("dry run: decided and recorded, not enforced".to_owned());
    }
    match &way.granted_to {
        Named::Workload(_) => {}
        whom => lines.push(format!("granted to {whom}")),
    }
    let registered = way.registered.as_ref();
    let accountable = registered.and_then(|it| it.accountable.as_ref());
    lines.extend(accountable.map(|person| format!("accountable: {person}")));
    lines.extend(way.conditions.iter().cloned());
    lines.extend(way.limits.iter().map(limited));
    lines
}

fn limited(limit: &Limit) -> String {
    let id = &limit.grant.id;
    let mut line = match (limit.by, limit.dry_run) {
        (Obstacle::Forbids, true) => format!("would be forbidden by {id}, a dry run"),
        (Obstacle::Forbids, false) => format!("but forbidden by {id}"),
        (Obstacle::MayFail, true) => format!("would be denied if {id}, a dry run, fails"),
        (Obstacle::MayFail, false) => format!("but denied if {id} fails"),
    };
    if !limit.conditions.is_empty() {
        line.push(' ');
        line.push_str(&limit.conditions.join(", "));
    }
    line
}

fn way_json(way: &Way) -> Value {
    let (principal, trust_domain) = match &way.who {
        Class::Workload(id) => (Some(id), None),
        Class::OthersOf(domain) => (None, Some(domain)),
        Class::Others => (None, None),
    };
    let registered = way.registered.as_ref();
    let limits = way.limits.iter().map(|limit| {
        let mut json = described_json(&limit.grant);
        json["conditions"] = limit.conditions.clone().into();
        json["dry_run"] = limit.dry_run.into();
        json["by"] = match limit.by {
            Obstacle::Forbids => "forbid",
            Obstacle::MayFail => "failure",
        }
        .into();
        json
    });
    json!({
        "who": way.who.to_string(),
        "principal": principal,
        "trust_domain": trust_domain,
        "kind": registered.map(|it| it.kind.label()),
        "owner": registered.map(|it| &*it.owner),
        "accountable": registered.and_then(|it| it.accountable.as_ref()),
        "actions": way.actions,
        "grant": described_json(&way.grant),
        "granted_to": way.granted_to.to_string(),
        "dry_run": way.dry_run,
        "conditions": way.conditions,
        "limits": limits.collect::<Vec<_>>(),
    })
}
