//! `doorward policy diff`: who gains and loses what from one policy directory to another?

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::policy::access::Class;
use crate::policy::cedar::Engine;
use crate::policy::diff::{Amended, Change, Difference, Side, differences};
use crate::policy::{Governance, Settings, files};

/// Show which workloads gain or lose what between two policy directories. Exits with 0 if access is the
/// same, 1 if it is not, 2 after a mistake.
///
/// `+` is gained, `-` lost, `=` what remains of something lost, `~` the same with another end or owner.
/// Names of grants, order and layout make no difference. Conditions are compared part by part, as written:
/// where one is written in another way, it is shown as lost and gained.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The directory as it was.
    #[arg(value_name = "DIR_A")]
    first: PathBuf,
    /// The directory as it is to be.
    #[arg(value_name = "DIR_B")]
    second: PathBuf,
    /// Compare what is in force then, as in 2027-06-30T12:00:00Z; now if it is not given.
    #[arg(long, value_name = "RFC3339")]
    at: Option<jiff::Timestamp>,
    /// Load grants that do not say who answers for them, too (`policy.governance: advisory`).
    #[arg(long)]
    advisory: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// Compares, and shows the difference on standard output.
///
/// # Errors
/// What is wrong with either directory.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let load = |dir: &Path| load(dir, args.advisory);
    let (first, second) = (load(&args.first)?, load(&args.second)?);
    let at = args.at.map_or_else(SystemTime::now, SystemTime::from);
    let differences = differences(&first, &second, at);
    if args.json {
        let told: Vec<_> = differences.iter().map(difference_json).collect();
        println!(
            "{:#}",
            json!({ "same": told.is_empty(), "differences": told })
        );
    } else {
        print!("{}", text(&differences));
    }
    Ok(ExitCode::from(u8::from(!differences.is_empty())))
}

fn load(dir: &Path, advisory: bool) -> anyhow::Result<Engine> {
    let mut settings = Settings::of(dir);
    if advisory {
        settings.governance = Governance::Advisory;
    }
    let loaded = files::load(&settings);
    if loaded.is_err() {
        eprintln!("{} does not load:", dir.display());
    }
    Ok(loaded?)
}

fn text(differences: &[Difference]) -> String {
    let mut text = String::new();
    for (number, Difference { who, changes }) in differences.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        for class in who {
            text.push_str(&format!("{class}\n"));
        }
        for change in changes {
            text.push_str(&format!("{change}\n"));
        }
    }
    text
}

fn difference_json(difference: &Difference) -> Value {
    json!({
        "who": difference.who.iter().map(class_json).collect::<Vec<_>>(),
        "changes": difference.changes.iter().map(change_json).collect::<Vec<_>>(),
    })
}

fn class_json(class: &Class) -> Value {
    match class {
        Class::Workload(id) => json!({ "principal": id }),
        Class::OthersOf(domain) => json!({ "others_of": domain }),
        Class::Others => json!({ "others": true }),
    }
}

fn change_json(change: &Change) -> Value {
    let time = |end: SystemTime| {
        jiff::Timestamp::try_from(end)
            .ok()
            .map(|end| end.to_string())
    };
    let mut json = json!({
        "effect": change.effect(),
        "in": match change.side {
            Side::First => "first",
            Side::Second | Side::Remains => "second",
            Side::Both => "both",
        },
        "grant": change.grant,
        "owner": change.owner,
        "services": change.services,
        "actions": change.actions,
        "forbids": change.forbids,
        "dry_run": change.dry_run,
        "conditions": change.conditions,
        "expires": change.until.and_then(time),
        "forbidden_by": change.forbidden_by,
    });
    for amended in &change.amended {
        match amended {
            Amended::Until(before) => json["expired"] = before.and_then(time).into(),
            Amended::Owner(before) => json["owned"] = before.as_deref().into(),
        }
    }
    json
}
