//! `doorward demo`: the whole of Doorward in a minute, with nothing but this executable.
//!
//! Real processes talk over real sockets, and every number is measured while it plays.
//!
//! | file | answers |
//! |---|---|
//! | `demo/story.rs` | what happens, step by step, and whether it is what must happen |
//! | `demo/stage.rs` | where: the directory, the processes, the ports |
//! | `demo/props.rs` | what the configuration and policy files say |
//! | `demo/app.rs` | the application that is protected |
//! | `demo/client.rs`, `demo/load.rs`, `demo/stranger.rs` | who asks |
//! | `demo/evidence.rs` | what audit and metrics say about it |
//! | `demo/telling.rs` | what the reader sees |

pub mod app;
mod client;
mod evidence;
mod load;
mod props;
mod stage;
mod story;
mod stranger;
mod telling;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout_at};

use self::stage::Stage;
use self::story::{Story, Told};
use self::telling::{Progress, Telling, time};
use crate::runtime;

/// Watch two plain applications talk through two sidecars, in about half a minute
///
/// Needs nothing but this executable and leaves nothing behind. With --once it ends by itself, and exits
/// with 0 only if every step held.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// End after the story instead of staying open to be tried
    #[arg(long)]
    once: bool,
    /// Print one JSON object on stdout, and nothing else there
    #[arg(long, requires = "once")]
    json: bool,
    /// Leave the directory with configurations, logs and audit behind
    #[arg(long)]
    keep: bool,
    /// How long a workload's certificate lives; it is renewed at half of that
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = lifetime)]
    svid_lifetime: Duration,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let allowed = Duration::from_secs(4)..=Duration::from_secs(15);
    if allowed.contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err("write a time from 4s to 15s: the story waits until one certificate has run out".into())
    }
}

/// Plays the demo. Exit code 0: every step held; 1: one did not, or it was interrupted.
///
/// # Errors
/// When there is no place to play.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    runtime::control()?.block_on(demo(args))
}

async fn demo(args: &Args) -> anyhow::Result<ExitCode> {
    let mut stop = Stop::new()?;
    let mut stage = Stage::build(args.keep)?;
    let dir = stage.dir().to_owned();
    let telling = if args.json {
        Telling::on_the_side()
    } else {
        Telling::on_stdout()
    };
    let mut play = Play {
        telling,
        dir,
        progress: Progress::default(),
        deadline: Instant::now() + LONGEST,
        steps: Vec::new(),
    };
    let interrupted = tokio::select! {
        () = stop.told() => true,
        () = play.whole(args, &mut stage) => false,
    };
    if interrupted {
        play.interrupted();
    }
    let summary = Summary {
        ok: play.steps.len() == STEPS.len() && play.steps.iter().all(|step| step.ok),
        steps: play.steps,
    };
    stage.clear().await.context("something is left behind")?;
    if interrupted {
        play.telling.say("Stopped: nothing of it is left running.");
    }
    if args.json {
        let mut text = serde_json::to_string(&summary)?;
        text.push('\n');
        std::io::stdout().write_all(text.as_bytes())?;
    }
    if args.keep {
        let dir = play.dir.display();
        play.telling.say(&format!("Kept, as asked: {dir}"));
    }
    Ok(ExitCode::from(u8::from(!summary.ok)))
}

/// Every step, in order.
const STEPS: [&str; 8] = [
    "start",
    "allowed",
    "denied",
    "stranger_refused",
    "rotation",
    "grant_withdrawn",
    "issuance_stopped",
    "recorded",
];

/// No step begins or goes on after this: with the clearing up it stays below a minute.
const LONGEST: Duration = Duration::from_secs(52);

/// What a machine reads.
#[derive(Debug, Serialize)]
struct Summary {
    ok: bool,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    name: &'static str,
    ok: bool,
    /// What was measured; in a step that failed, what was expected and what happened instead.
    detail: Value,
}

/// The demo while it plays.
struct Play {
    telling: Telling,
    progress: Progress,
    dir: PathBuf,
    deadline: Instant,
    steps: Vec<Step>,
}

impl Play {
    async fn whole(&mut self, args: &Args, stage: &mut Stage) {
        self.telling
            .title("Doorward: two plain applications, each with a sidecar, and a small CA");
        self.telling.say("");
        self.telling.picture(&PICTURE);
        self.telling.say("");
        let progress = self.progress.clone();
        let began = Instant::now();
        let started = Story::start(stage, progress, args.svid_lifetime);
        let Some(mut story) = self.step(started).await else {
            return;
        };
        self.telling
            .quote("policy/reads.cedar", &props::READS_CEDAR);
        self.telling.say("");
        self.step(story.allowed()).await;
        self.step(story.denied()).await;
        self.step(story.stranger_refused()).await;
        self.step(story.rotation()).await;
        self.step(story.grant_withdrawn()).await;
        self.step(story.issuance_stopped()).await;
        self.step(story.recorded()).await;

        let held = self.steps.iter().filter(|step| step.ok).count();
        let took = time(began.elapsed());
        self.telling
            .title(&format!("{held} of {} steps held, in {took}.", STEPS.len()));
        if !args.once {
            self.stay(&mut story).await;
        }
    }

    /// Takes the next step, which yields what later ones need.
    async fn step<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<(T, Told)>>,
    ) -> Option<T> {
        let name = STEPS.get(self.steps.len()).copied()?;
        self.progress.say("");
        let limited = timeout_at(self.deadline, work);
        let done = self.telling.during(name, &self.progress, limited).await;
        let done =
            done.unwrap_or_else(|_| Err(anyhow::anyhow!("the time for the whole demo is over")));
        match done {
            Ok((value, Told { lines, detail })) => {
                self.telling.step(name, true, &lines);
                self.steps.push(Step {
                    name,
                    ok: true,
                    detail,
                });
                Some(value)
            }
            Err(error) => {
                self.failed(name, &format!("{error:#}"));
                None
            }
        }
    }

    fn failed(&mut self, name: &'static str, error: &str) {
        let logs = stage::logs(&self.dir, LOG_LINES);
        let mut lines = vec![error.to_owned()];
        for log in &logs {
            lines.push(format!("{} ends with:", log.path.display()));
            lines.extend(log.lines.iter().cloned());
        }
        self.telling.step(name, false, &lines);
        let logs: serde_json::Map<_, _> = logs
            .into_iter()
            .map(|log| (log.path.display().to_string(), log.lines.into()))
            .collect();
        self.steps.push(Step {
            name,
            ok: false,
            detail: json!({ "error": error, "logs": logs }),
        });
    }

    /// Ctrl-C after the story is how it ends; before, a step is missing.
    fn interrupted(&mut self) {
        self.telling.break_off();
        if let Some(name) = STEPS.get(self.steps.len()).copied() {
            let error = "interrupted";
            self.telling.step(name, false, &[error.into()]);
            self.steps.push(Step {
                name,
                ok: false,
                detail: json!({ "error": error }),
            });
        }
    }

    /// Keeps everything running to be tried, until interrupted or until a process falls.
    async fn stay(&mut self, story: &mut Story<'_>) {
        let telling = &mut self.telling;
        telling.say("Everything goes on running. Try it:");
        for (command, purpose) in story.offers() {
            telling.offer(&command, purpose);
        }
        telling.say("");
        telling.say("Ctrl-C ends it and removes everything.");
        let fallen = loop {
            match story.fallen() {
                Some(fallen) => break fallen,
                None => sleep(LOOK_EVERY).await,
            }
        };
        self.failed("afterwards", &fallen);
    }
}

const PICTURE: [&str; 2] = [
    "  checkout ──plain──▶ doorward ══ mutual TLS 1.3 ══▶ doorward ──plain──▶ invoices",
    "                          └────── doorward issuer ──────┘",
];
const LOG_LINES: usize = 3;
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What ends the demo from outside.
struct Stop([Signal; 3]);

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn told(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}

/// Makes sure that this process ends with the one that started it, whose number is `parent`.
///
/// # Errors
/// When the kernel cannot be asked, or when that process is gone already.
pub fn end_with(parent: i32) -> anyhow::Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)
        .context("cannot follow the process that started this one")?;
    // It may have gone before it was followed.
    anyhow::ensure!(
        nix::unistd::getppid().as_raw() == parent,
        "process {parent}, which started this one, is gone"
    );
    Ok(())
}
