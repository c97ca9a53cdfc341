//! `doorward inject`: manifests with sidecars in them.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::TROUBLE;
use crate::inject::manifest::{Done, Task, manifests};
use crate::inject::{Identity, Settings};
use crate::webhook::{self, Config};

/// Put a sidecar into every pod of Kubernetes manifests, as their annotations say, and print them
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Manifests in YAML or JSON; `-` or none for standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What pods get that say nothing else; flags count more
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The sidecar's image
    #[arg(long)]
    image: Option<String>,
    /// Where identities come from: `spiffe-csi`, `cert-manager`, or a socket of the node, `unix:///…`
    #[arg(long, value_name = "SOURCE")]
    identity: Option<Identity>,
    /// Whether the packet filter leads connections to the sidecar
    #[arg(long, value_name = "BOOL", num_args = 1)]
    intercept: Option<bool>,
    /// Take sidecars out again
    #[arg(long, conflicts_with_all = ["config", "image", "identity", "intercept"])]
    undo: bool,
    /// Answer the API server, which asks about each new pod, as the section `webhook` says
    #[arg(
        long,
        conflicts_with_all = ["files", "image", "identity", "intercept", "undo"]
    )]
    webhook: bool,
    /// The MutatingWebhookConfiguration whose `caBundle` is kept what our trust bundle is
    #[arg(long, value_name = "NAME", requires = "webhook")]
    publish_bundle: Option<String>,
}

/// Injects, and tells on standard error what became of each. Nothing is printed unless all is sound.
///
/// # Errors
/// If a file cannot be read.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.webhook {
        return serve(args);
    }
    let settings = args.settings()?;
    let task = match args.undo {
        true => Task::Undo,
        false => Task::Inject(&settings),
    };
    let (mut text, mut sound) = (String::new(), true);
    let standard = [PathBuf::from("-")];
    let files = match args.files.is_empty() {
        true => &standard[..],
        false => &args.files,
    };
    for file in files {
        let (name, read) = if file.as_os_str() == "-" {
            let mut read = String::new();
            let input = std::io::stdin().read_to_string(&mut read);
            ("standard input".into(), input.map(|_| read))
        } else {
            (file.display().to_string(), std::fs::read_to_string(file))
        };
        let read = read.with_context(|| format!("cannot read {name}"))?;
        let report = manifests(task, &name, &read);
        for told in &report.told {
            let (done, notes) = match &told.done {
                Done::Injected(notes) => ("injected".into(), &notes[..]),
                Done::LeftAlone(reason) => (format!("left alone: {reason}"), &[][..]),
                Done::Undone => ("without a sidecar again".into(), &[][..]),
                Done::Untouched => ("had no sidecar of ours".into(), &[][..]),
            };
            eprintln!("{}: {done}", told.object);
            for note in notes {
                eprintln!("  note: {}", note.replace('\n', "\n    "));
            }
        }
        for mistake in &report.mistakes {
            eprintln!("doorward: {mistake}");
            sound = false;
        }
        // Documents of two files are two documents.
        if !text.is_empty() && !report.text.starts_with("---") && !report.text.starts_with('{') {
            text += "---\n";
        }
        text += &report.text;
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    if !sound {
        return Ok(ExitCode::from(TROUBLE));
    }
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// Serves reviews until told to stop.
fn serve(args: &Args) -> anyhow::Result<ExitCode> {
    let path = args.config.as_deref().unwrap_or(Path::new(CONFIG));
    let Config { injection, webhook } = Config::open(path)?;
    let webhook = webhook.with_context(|| {
        let path = path.display();
        format!("{path} has no section `webhook`: it says who the server is, and where it listens")
    })?;
    webhook::run(webhook, injection, args.publish_bundle.clone())
}

const CONFIG: &str = "/etc/doorward/inject.yaml";

impl Args {
    fn settings(&self) -> anyhow::Result<Settings> {
        let mut settings = match &self.config {
            Some(path) => Config::open(path)?.injection,
            None => Settings::default(),
        };
        if let Some(image) = &self.image {
            settings.image.clone_from(image);
        }
        if let Some(identity) = &self.identity {
            settings.identity = identity.clone();
        }
        settings.intercept = self.intercept.unwrap_or(settings.intercept);
        Ok(settings)
    }
}
