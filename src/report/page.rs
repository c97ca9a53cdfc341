//! How is a report put on one page that needs nothing else? HTML with its style sheet and drawings in it, no
//! script, nothing fetched: to be read in a browser, printed, signed and kept.

use std::sync::LazyLock;

use aws_lc_rs::digest;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::chart::{self, Chart};
use super::text::{MOST_ROWS, head, percent, shown_time};
use super::{Kind, Report, Section, lasting};

impl Report {
    /// The page.
    #[must_use]
    pub fn page(&self) -> String {
        self.markup().into_string()
    }

    fn markup(&self) -> Markup {
        let charts = chart::all(self.window, &self.courses);
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(*POLICY);
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="referrer" content="no-referrer";
                    title { "Access report, " (shown_time(self.window.end / 1000)) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    header {
                        h1 { "Access report" }
                        p {
                            (shown_time(self.window.start() / 1000)) " to " (shown_time(self.window.end / 1000))
                            " (" (lasting(self.window.length())) "), from " (self.server)
                        }
                    }
                    main {
                        (self.figures())
                        @if !self.notes.is_empty() {
                            ul.notes { @for note in &self.notes { li { (note) } } }
                        }
                        (self.contents())
                        @for chart in &charts { (chart.markup()) }
                        @for section in &self.sections { (section.markup()) }
                    }
                    footer {
                        p {
                            "Counted from samples that Prometheus took of the sidecars' metrics: what was not sampled "
                            "is not in it. Single requests are in the audit. Doorward " (env!("CARGO_PKG_VERSION")) "."
                        }
                    }
                }
            }
        }
    }

    fn figures(&self) -> Markup {
        let decisions = |course: &[f64]| super::whole(course.iter().sum()).to_string();
        let all = self.courses.secretless.values();
        let (requests, with) = all.fold((0.0, 0.0), |(requests, with), course| {
            (
                requests + course.0.iter().sum::<f64>(),
                with + course.1.iter().sum::<f64>(),
            )
        });
        let share = self.covered.as_secs_f64() / self.window.length().as_secs_f64().max(0.001);
        let figures = [
            ("things to act on", self.findings().to_string()),
            ("allowed", decisions(&self.courses.allowed)),
            ("denied", decisions(&self.courses.denied)),
            (
                "of requests secretless",
                percent(super::score(requests, with)),
            ),
            ("of the window sampled", percent(share)),
        ];
        html! {
            dl.figures {
                @for (what, figure) in &figures {
                    div { dt { (what) } dd { (figure) } }
                }
            }
        }
    }

    fn contents(&self) -> Markup {
        html! {
            table.contents {
                caption { "What was looked at" }
                thead { tr { th scope="col" { "section" } th.number scope="col" { "to act on" } } }
                tbody {
                    @for section in &self.sections {
                        tr {
                            td { a href=(format!("#{}", section.kind.label())) { (section.kind.title()) } }
                            td.number { (section.findings()) }
                        }
                    }
                }
            }
        }
    }
}

impl Section {
    fn markup(&self) -> Markup {
        let shown = &self.rows[..self.rows.len().min(MOST_ROWS)];
        let findings = self.findings();
        let caption = match (self.kind, findings) {
            (_, 0) => "Nothing to act on".to_owned(),
            (Kind::Coverage, 1) => "1 sidecar or service to act on".to_owned(),
            (_, 1) => "1 to act on, marked".to_owned(),
            (_, findings) => format!("{findings} to act on, marked"),
        };
        html! {
            section id=(self.kind.label()) {
                h2 { (self.kind.title()) }
                @if findings > 0 { p.advice { (words(self.kind.advice())) } }
                @for note in &self.notes { p { (words(note)) } }
                @if shown.is_empty() {
                    p.none { "Nothing found." }
                } @else {
                    div.wide {
                        table {
                            caption { (caption) }
                            thead {
                                tr {
                                    th scope="col" { span.unseen { "act" } }
                                    @for (name, (_, value)) in head(&self.rows).iter().zip(&shown[0].cells) {
                                        th.number[value.is_number()] scope="col" { (name) }
                                    }
                                }
                            }
                            tbody {
                                @for row in shown {
                                    tr.act[row.act] {
                                        td.mark { @if row.act { span title="to act on" { "●" } } }
                                        @for (_, value) in &row.cells {
                                            td.number[value.is_number()].time[value.is_time()] { (value.to_string()) }
                                        }
                                    }
                                }
                            }
                        }
                    }
                    @if self.rows.len() > shown.len() {
                        p { "… and " (self.rows.len() - shown.len()) " more, which --json shows." }
                    }
                }
            }
        }
    }
}

/// A text in which what stands between back-quotes is to be typed.
fn words(text: &str) -> Markup {
    html! {
        @for (number, part) in text.split('`').enumerate() {
            @if number % 2 == 1 { code { (part) } } @else { (part) }
        }
    }
}

impl Chart {
    fn markup(&self) -> Markup {
        // The element gets a name that whoever does not see it is told.
        let (open, rest) = self.svg.split_once('>').unwrap_or((&self.svg, ""));
        let words = html! { title { (self.title) } desc { (self.says) } };
        html! {
            figure {
                figcaption {
                    strong { (self.title) } " " (self.says)
                    @if !self.legend.is_empty() {
                        ul.legend {
                            @for (colour, name) in &self.legend {
                                li { span class=(format!("key c{colour}")) {} (name) }
                            }
                        }
                    }
                }
                (PreEscaped(open)) (PreEscaped(" role=\"img\">")) (words) (PreEscaped(rest))
            }
        }
    }
}

/// Nothing is fetched and nothing runs; the one style sheet is named by its digest.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = digest::digest(&digest::SHA256, STYLE.as_bytes());
    let digest = BASE64_STANDARD.encode(digest.as_ref());
    format!("default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'")
});

/// Contrast is at least 4.5 : 1 for text and 3 : 1 for drawings, light and dark.
const STYLE: &str = include_str!("page.css");
