//! What does the process tell about itself? Log lines on stderr, and Prometheus families.

pub mod asked;
pub mod merge;
pub mod names;

use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::process_collector::ProcessCollector;
use prometheus::{IntGauge, Opts, Registry, TextEncoder};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::document::Node;

/// The section `log`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What is told, in the directives of `tracing_subscriber::EnvFilter`: `info`, or
    /// `info,doorward::tls=debug`. The environment variable `RUST_LOG` overrides it.
    pub level: String,
    /// What a line looks like.
    pub format: Format,
}

/// What a log line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people, coloured on a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: Format::Human,
        }
    }
}

impl Settings {
    /// Reads the section `log`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let default = Self::default();
        let mut section = node.section()?;
        let level = section.or("level", default.level, |node| {
            let text = node.text()?;
            match EnvFilter::builder().parse(text) {
                Ok(_) => Some(text.to_owned()),
                Err(error) => node.mistake(
                    format_args!("`{text}` is not a log level: {error}"),
                    Some("write one of `error`, `warn`, `info`, `debug`, or `info,doorward::tls=debug`"),
                ),
            }
        });
        let format = section.or("format", default.format, |node| {
            node.choice(&[("human", Format::Human), ("json", Format::Json)])
        });
        Some(Self {
            level: level?,
            format: format?,
        })
    }
}

/// Starts logging to stderr, for the whole process and once.
///
/// # Errors
/// [`StartError::Directives`] if `RUST_LOG` cannot be read, [`StartError::Twice`] on the second call.
pub fn start(settings: &Settings) -> Result<(), StartError> {
    let directives = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => text,
        _ => settings.level.clone(),
    };
    let filter = EnvFilter::builder()
        .parse(&directives)
        .map_err(|source| StartError::Directives { directives, source })?;
    let ansi = std::io::stderr().is_terminal();
    subscriber(filter, settings.format, ansi, std::io::stderr)
        .try_init()
        .map_err(|_| StartError::Twice)
}

fn subscriber<W>(
    filter: EnvFilter,
    format: Format,
    ansi: bool,
    to: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(to);
    let lines = match format {
        Format::Human => lines.with_ansi(ansi).boxed(),
        Format::Json => lines.json().flatten_event(true).boxed(),
    };
    // Without a hint all levels count as wanted, and each of the libraries' many calls asks for itself.
    let harmless = filter_fn(harmless).with_max_level_hint(LevelFilter::TRACE);
    let filter = filter.and(harmless);
    tracing_subscriber::registry().with(lines.with_filter(filter))
}

/// The libraries that carry requests and keys may show them at `debug` and below: header fields, tokens,
/// handshake secrets. No setting makes them.
fn harmless(metadata: &Metadata<'_>) -> bool {
    is_harmless(metadata.target(), metadata.level())
}

fn is_harmless(target: &str, level: &Level) -> bool {
    let library = target.split("::").next().unwrap_or_default();
    *level <= Level::INFO || !CARRIERS.contains(&library)
}

const CARRIERS: [&str; 10] = [
    "h2",
    "hyper",
    "hyper_util",
    "jsonwebtoken",
    "rustls",
    "spiffe",
    "tokio_rustls",
    "tonic",
    "tower",
    "webpki",
];

/// The registries of one process: one for what there is once, and one a worker, so that no two workers
/// ever write the same counter. They are summed when somebody asks. Clones share them.
#[derive(Clone)]
pub struct Registries {
    process: Registry,
    workers: Arc<Mutex<Vec<Registry>>>,
}

impl Registries {
    /// Registries with the process' own families: `process_*` and `doorward_build_info`.
    ///
    /// # Errors
    /// Those of [`Registry::register`].
    pub fn new() -> prometheus::Result<Self> {
        let process = Registry::new();
        process.register(Box::new(ProcessCollector::for_self()))?;
        let build = IntGauge::with_opts(
            Opts::new(
                "doorward_build_info",
                "Which Doorward this is, in its labels; the value is always 1.",
            )
            .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build.set(1);
        process.register(Box::new(build))?;
        Ok(Self {
            process,
            workers: Arc::default(),
        })
    }

    /// Where families go that exist once in the process.
    #[must_use]
    pub fn process(&self) -> &Registry {
        &self.process
    }

    /// A fresh registry for one more worker, which registers in it the same families as every other.
    #[must_use]
    pub fn worker(&self) -> Registry {
        let registry = Registry::new();
        self.workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(registry.clone());
        registry
    }

    /// Everything as it stands now, summed, in the text exposition format 0.0.4
    /// ([`prometheus::TEXT_FORMAT`]).
    #[must_use]
    pub fn render(&self) -> String {
        let workers = self
            .workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let gathered = std::iter::once(&self.process)
            .chain(&workers)
            .map(Registry::gather);
        let (families, collisions) = merge::sum(gathered);
        for collision in collisions {
            tracing::error!(%collision, "a metric family is left out of the sum");
        }
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&families, &mut text) {
            tracing::error!(%error, "the metrics shown are not complete");
        }
        text
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries").finish_non_exhaustive()
    }
}

/// Why logging does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// `RUST_LOG` is not understood.
    #[error("cannot read the log level `{directives}`")]
    Directives {
        /// What was written.
        directives: String,
        /// What is wrong with it.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else has started it.
    #[error("logging has been started before")]
    Twice,
}

/// An error with all its causes, in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    #[test]
    fn gauges_of_all_workers_are_shown_as_one() {
        let registries = Registries::new().unwrap();
        for worker in [registries.worker(), registries.worker()] {
            let open = IntGauge::new("doorward_sessions", "Open sessions.").unwrap();
            worker.register(Box::new(open.clone())).unwrap();
            open.set(4);
        }
        let text = registries.render();
        assert!(text.contains("\ndoorward_sessions 8\n"), "{text}");
        assert_eq!(text.matches("# TYPE doorward_sessions ").count(), 1);
    }

    #[test]
    fn settings_have_defaults_and_refuse_what_is_no_level() {
        let read = |text| Document::new("a.yaml", text).read(|node| Settings::read(&node));
        assert_eq!(read("{}").unwrap(), Settings::default());
        let written = read("level: info,doorward::tls=debug\nformat: json").unwrap();
        assert_eq!(written.level, "info,doorward::tls=debug");
        assert_eq!(written.format, Format::Json);
        let told = read("level: info,doorward=loud\nformat: xml").unwrap_err();
        let told = told.to_string();
        assert!(told.starts_with("a.yaml:1: level: "), "{told}");
        assert!(told.contains("\na.yaml:2: format: "), "{told}");
    }

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn told(directives: &str, format: Format) -> String {
        let page = Page::default();
        let to = page.clone();
        let filter = EnvFilter::builder().parse(directives).unwrap();
        let subscriber = subscriber(filter, format, false, move || to.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("ours, in detail");
            tracing::info!(port = 7, "ours");
            tracing::trace!(target: "h2::codec", "authorization: secret");
            tracing::debug!(target: "rustls", "secret");
            tracing::warn!(target: "h2::codec", "theirs");
        });
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_follow_the_level_but_never_show_what_libraries_carry() {
        for directives in ["trace", "trace,h2=trace,rustls=debug"] {
            let text = told(directives, Format::Human);
            assert_eq!(text.lines().count(), 3, "{text}");
            assert!(!text.contains("secret"), "{text}");
        }
        assert_eq!(told("info", Format::Human).lines().count(), 2);
        assert_eq!(told("error", Format::Human), "");
    }

    #[test]
    fn what_is_not_wanted_costs_the_libraries_one_comparison() {
        let filter = EnvFilter::builder().parse("info").unwrap();
        let subscriber = subscriber(filter, Format::Human, false, Page::default);
        assert_eq!(subscriber.max_level_hint(), Some(LevelFilter::INFO));
    }

    #[test]
    fn a_json_line_is_one_object_with_the_fields_beside_the_message() {
        let text = told("info", Format::Json);
        let first = text.lines().next().unwrap();
        let line: serde_json::Value = serde_json::from_str(first).unwrap();
        assert_eq!(line["message"], "ours");
        assert_eq!(line["port"], 7);
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn no_setting_makes_the_carriers_of_secrets_talk() {
        for (target, level, expected) in [
            ("h2::codec::framed_read", Level::DEBUG, false),
            ("rustls::client::hs", Level::TRACE, false),
            ("hyper", Level::DEBUG, false),
            ("h2::server", Level::INFO, true),
            ("h2o", Level::TRACE, true),
            ("doorward::tls", Level::TRACE, true),
        ] {
            assert_eq!(is_harmless(target, &level), expected, "{target} {level}");
        }
    }
}
