//! Whatever stands in the configuration: it is taken whole, or every mistake is told with its line, and can be
//! shown in its place.

use doorward::config::Config;
use doorward::document::Document;
use miette::NarratableReportHandler;

pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    match Document::new("doorward.yaml", text).read(Config::read) {
        Ok(config) => {
            assert!(!config.inbound.is_empty() || !config.outbound.is_empty());
            assert!(config.inbound.is_empty() || config.policy.is_some());
        }
        Err(mistakes) => {
            let mut before = 1;
            for mistake in mistakes.diagnostics() {
                let told = mistake.to_string();
                let line = told.strip_prefix("doorward.yaml:").and_then(|told| told.split(':').next());
                let line: usize = line.and_then(|line| line.parse().ok()).expect("a line");
                assert!((before..=text.lines().count() + 1).contains(&line), "{told}");
                before = line;
            }
            let first = mistakes.diagnostics().next().expect("a mistake");
            let mut shown = String::new();
            let rendered = NarratableReportHandler::new().render_report(&mut shown, first);
            assert!(rendered.is_ok() && !shown.is_empty());
        }
    }
}
