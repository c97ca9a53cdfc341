//! Does the README say what is so? Its tables are held against the code and a running sidecar, and every
//! example is checked.

#![expect(
    clippy::unwrap_used,
    reason = "a test may stop at the first surprise, in its helpers too"
)]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use doorward::limits::Limit;

/// Where settings are read: the file, the words that the reader begins and ends behind (none: to the end),
/// the section of the README, and what stands before its keys there.
const READERS: &[(&str, &str, &str, &str, &[&str])] = &[
    ("config.rs", "fn read(", "let (inbound", RUN, &[""]),
    ("identity.rs", "impl Settings", "", RUN, &["identity."]),
    (
        "identity/files.rs",
        "impl Settings",
        "",
        RUN,
        &["identity.files."],
    ),
    (
        "federation.rs",
        "impl Settings",
        "",
        RUN,
        &["federation[]."],
    ),
    ("discovery.rs", "impl Settings", "", RUN, &["dns."]),
    ("policy.rs", "impl Settings", "", RUN, &["policy."]),
    ("inbound.rs", "impl Settings", "", RUN, &["inbound[]."]),
    ("outbound.rs", "impl Settings", "", RUN, &["outbound[]."]),
    (
        "outbound/retry.rs",
        "impl Settings",
        "",
        RUN,
        &["outbound[]."],
    ),
    (
        "listen.rs",
        "impl Settings",
        "",
        RUN,
        &["inbound[].", "outbound[]."],
    ),
    (
        "listen.rs",
        "impl<I> Entrance",
        "",
        RUN,
        &["inbound[].", "outbound[]."],
    ),
    ("intercept.rs", "impl Settings", "", RUN, &["intercept."]),
    (
        "intercept.rs",
        "impl Inbound",
        "",
        RUN,
        &["intercept.inbound."],
    ),
    (
        "intercept.rs",
        "impl Outbound",
        "",
        RUN,
        &["intercept.outbound."],
    ),
    (
        "secrets.rs",
        "impl Settings",
        "",
        RUN,
        &[
            "inbound[].standing_secrets.",
            "outbound[].standing_secrets.",
        ],
    ),
    ("audit.rs", "impl Settings", "", RUN, &["audit."]),
    ("audit.rs", "impl Rotate", "", RUN, &["audit.rotate."]),
    (
        "admin.rs",
        "impl Settings",
        "impl MetricsSettings",
        RUN,
        &["admin."],
    ),
    ("admin.rs", "impl MetricsSettings", "", RUN, &["metrics."]),
    ("probes.rs", "impl Settings", "", RUN, &["probes."]),
    ("probes.rs", "impl Check", "", RUN, &["probes.checks[]."]),
    ("inject/settings.rs", "impl Settings", "", INJECT, &[""]),
    (
        "inject/settings.rs",
        "impl Resources",
        "",
        INJECT,
        &["resources."],
    ),
    ("telemetry.rs", "impl Settings", "", RUN, &["log."]),
    ("sandbox.rs", "impl Settings", "", RUN, &["sandbox."]),
    (
        "issuer.rs",
        "impl Settings",
        "impl CaSettings",
        ISSUER,
        &[""],
    ),
    ("issuer.rs", "impl CaSettings", "", ISSUER, &["ca."]),
    (
        "issuer/bundle_endpoint.rs",
        "impl Settings",
        "",
        ISSUER,
        &["federation."],
    ),
    (
        "issuer/registry.rs",
        "impl Entry",
        "impl Selectors",
        ISSUER,
        &["entries[]."],
    ),
    (
        "issuer/registry.rs",
        "impl Selectors",
        "",
        ISSUER,
        &["entries[].selectors."],
    ),
    ("webhook.rs", "impl Config", "", WEBHOOK, &[""]),
    ("webhook.rs", "impl Settings", "", WEBHOOK, &["webhook."]),
    (
        "policy/governance.rs",
        "impl Workload {",
        "",
        WORKLOADS,
        &["workloads[]."],
    ),
    ("cli/policy/test.rs", "impl Table {", "", TABLE, &[""]),
    (
        "cli/policy/test.rs",
        "impl Case {",
        "",
        TABLE,
        &["cases[]."],
    ),
    (
        "policy/governance.rs",
        "impl Owner {",
        "",
        WORKLOADS,
        &["owners[]."],
    ),
];

const RUN: &str = "### `doorward run`";
const ISSUER: &str = "### `doorward issuer`";
const INJECT: &str = "### `doorward inject`";
const WEBHOOK: &str = "### `doorward inject --webhook`";
const WORKLOADS: &str = "### `workloads.yaml`";
const TABLE: &str = "### `doorward policy test`";
const METRICS: &str = "## Every metric";

/// When the examples were written: their grants end.
const WRITTEN: &str = "2026-11-22T12:00:00Z";

#[test]
fn every_configuration_key_is_in_the_readme_and_no_other() {
    for heading in [RUN, ISSUER, INJECT, WEBHOOK, WORKLOADS, TABLE] {
        let mut read = BTreeSet::new();
        for (file, from, to, _, prefixes) in READERS.iter().filter(|reader| reader.3 == heading) {
            let keys = keys_in(between(&source(file), from, to));
            assert!(!keys.is_empty(), "{file}: no keys behind `{from}`");
            for prefix in *prefixes {
                read.extend(keys.iter().map(|key| format!("{prefix}{key}")));
            }
        }
        assert_eq!(first_cells(heading), leaves(&read), "{heading}");
    }
}

#[test]
fn no_reader_of_settings_escapes_the_comparison() {
    // Three readers take the sections of others; that around the list `workloads` has no other key.
    let sections: usize = sources()
        .iter()
        .filter(|(file, _)| file != "document.rs")
        .map(|(_, text)| text.matches(".section()?").count())
        .sum();
    assert_eq!(
        sections - 1 + 3,
        READERS.len(),
        "list the new one in READERS"
    );
}

#[test]
fn every_annotation_is_in_the_readme_and_no_other() {
    let known = doorward::inject::annotations::KNOWN.map(ToOwned::to_owned);
    assert_eq!(first_cells("### Annotations"), known.into());
}

#[test]
fn every_metric_in_the_code_is_in_the_readme_and_no_other() {
    let mut families = BTreeSet::new();
    for (_, text) in sources() {
        for literal in text.split('"').skip(1).step_by(2) {
            let is_name = |c: char| c.is_ascii_lowercase() || c == '_';
            if literal.starts_with("doorward_") && literal.chars().all(is_name) {
                families.insert(literal.to_owned());
            }
        }
    }
    let told: BTreeSet<_> = first_cells(METRICS)
        .into_iter()
        .filter(|name| name.starts_with("doorward_"))
        .collect();
    assert_eq!(told, families);
}

#[test]
fn every_code_of_a_warning_is_in_the_readme_and_no_other() {
    let codes = doorward::policy::Code::ALL.map(|code| code.label().to_owned());
    assert_eq!(first_cells("### Every warning"), codes.into());
}

#[test]
fn every_limit_that_is_counted_is_in_the_readme_and_no_other() {
    let last = |row: Vec<String>| Some(row.last()?.trim_matches('`').to_owned());
    let told: BTreeSet<_> = rows("## Limits").skip(1).filter_map(last).collect();
    let counted = Limit::ALL.iter().map(|limit| limit.label().to_owned());
    // What is bounded by its nature is never reached.
    let told: BTreeSet<_> = told.into_iter().filter(|name| !name.is_empty()).collect();
    assert_eq!(told, counted.collect());
}

#[test]
fn every_row_of_what_ends_a_session_names_its_test() {
    let tests: String = files(&root().join("tests/e2e"))
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    let rows = rows("### What ends a session that is open").skip(1);
    let mut named = BTreeSet::new();
    for row in rows.filter(|row| !row[0].starts_with('-')) {
        let name = row.last().unwrap().trim_matches('`').to_owned();
        let exists = [format!("fn {name}("), format!("{name} =>")]
            .iter()
            .any(|text| tests.contains(text));
        assert!(exists, "no test `{name}`");
        named.insert(name);
    }
    assert!(named.len() >= 10, "{named:?}");
}

#[test]
fn every_row_of_what_breaks_names_its_test_and_every_such_test_has_a_row() {
    let mut texts: Vec<_> = files(&root().join("tests/e2e/faults"))
        .iter()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .collect();
    texts.push(std::fs::read_to_string(root().join("tests/faults.rs")).unwrap());
    let mut tests = BTreeSet::new();
    for text in &texts {
        for test in text.split("\nasync fn ").skip(1) {
            let name = test.split('(').next().unwrap();
            // Helpers have short names.
            if name.matches('_').count() >= 5 {
                tests.insert(name.to_owned());
            }
        }
    }
    let rows = rows("### When something breaks").skip(1);
    let named: BTreeSet<_> = rows
        .map(|row| row.last().unwrap().clone())
        .filter(|name| name.starts_with('`'))
        .map(|name| name.trim_matches('`').to_owned())
        .collect();
    assert_eq!(named, tests);
}

#[test]
fn every_block_is_closed_and_every_link_within_leads_to_a_heading() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (mut headings, mut prose, mut opened) = (BTreeSet::new(), String::new(), None);
    for (number, line) in readme.lines().enumerate() {
        if line.starts_with("```") {
            // A language stands behind the mark that opens a block, nothing behind the one that closes it.
            assert!(
                opened.is_none() || line == "```",
                "line {}: {line}",
                number + 1
            );
            opened = opened.xor(Some(number + 1));
        } else if opened.is_none() {
            if line.starts_with('#') {
                let text = line.trim_start_matches('#').trim().to_lowercase();
                let kept = text
                    .chars()
                    .filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-');
                headings.insert(kept.collect::<String>().replace(' ', "-"));
            }
            prose += line;
            prose.push('\n');
        }
    }
    assert_eq!(
        opened, None,
        "the block that begins on this line has no end"
    );
    let links: Vec<_> = prose.split("](#").skip(1).collect();
    assert!(!links.is_empty());
    for link in links {
        let (to, _) = link.split_once(')').unwrap();
        assert!(headings.contains(to), "#{to} is no heading of {headings:?}");
    }
}

#[test]
fn rules_and_dashboards_ask_for_metrics_that_there_are() {
    let told = first_cells(METRICS);
    let mut asked = BTreeSet::new();
    for dir in ["deploy/prometheus", "deploy/grafana"] {
        for file in files(&root().join(dir)) {
            let text = std::fs::read_to_string(&file).unwrap();
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
            // Recorded series have a colon in their names.
            asked.extend(
                words
                    .filter(|word| word.starts_with("doorward_"))
                    .map(ToOwned::to_owned),
            );
        }
    }
    assert!(asked.len() > 30, "{asked:?}");
    for name in asked {
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        let known = told.contains(&name) || family.is_some_and(|family| told.contains(family));
        assert!(known, "{name} is not in the README");
    }
}

#[test]
fn every_example_is_sound() {
    let mut checked = 0;
    for file in files(&root().join("examples")) {
        let text = std::fs::read_to_string(&file).unwrap();
        if text.contains("\ninbound:") || text.contains("\noutbound:") {
            let file = file.to_str().unwrap();
            assert_sound(&["check", "--deny", "all", "--at", WRITTEN, "--config", file]);
            checked += 1;
        } else if file.ends_with("workloads.yaml") {
            let dir = file.parent().unwrap().to_str().unwrap();
            // On the day they were written there was nothing to warn of.
            assert_sound(&["check", "--deny", "all", "--at", WRITTEN, "--policy", dir]);
            checked += 1;
        }
    }
    assert!(checked >= 6, "{checked} examples");
}

#[test]
fn the_two_services_of_the_example_meet_and_show_the_metrics_of_the_readme() {
    let dir = tempfile::tempdir().unwrap();
    let app = answer_everything();
    let ports: [u16; 4] = free_ports();
    let [peers, outbound, checkout, invoices] = ports.map(|port| format!("127.0.0.1:{port}"));
    let here = dir.path().to_str().unwrap();
    let adapt = |name: &str| {
        let text = std::fs::read_to_string(root().join("examples/two-services").join(name));
        let text = text
            .unwrap()
            .replace("/tmp/doorward", here)
            .replace("examples/two-services", here)
            .replace("uid: 1000", &format!("uid: {}", own_uid()))
            .replace("127.0.0.1:8080", &app.to_string())
            .replace("127.0.0.1:8443", &peers)
            .replace("127.0.0.1:9001", &outbound)
            .replace("127.0.0.1:9911", &checkout)
            .replace("127.0.0.1:9912", &invoices)
            // The example may be read, and this be run, after its end.
            .replace("2027-06-30", "2999-12-31");
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    adapt("policy/invoices.cedar");
    adapt("policy/workloads.yaml");
    let _issuer = Running::start(&["issuer", "--config", &adapt("issuer.yaml")]);
    let _invoices = Running::start(&["run", "--config", &adapt("invoices.yaml")]);
    let _checkout = Running::start(&["run", "--config", &adapt("checkout.yaml")]);
    for metrics in [&invoices, &checkout] {
        until(|| get(metrics, "/ready").is_some_and(|(status, _)| status == 200));
    }

    let allowed = get(&outbound, "/v1/invoices/2041").unwrap();
    assert_eq!((allowed.0, allowed.1.trim()), (200, "the application"));
    let (status, problem) = get(&outbound, "/admin").unwrap();
    assert_eq!(status, 403);
    assert!(problem.contains("Doorward"), "{problem}");

    let told = first_cells(METRICS);
    let mut processes = BTreeSet::new();
    for metrics in [&invoices, &checkout] {
        let (_, text) = get(metrics, "/metrics").unwrap();
        for line in text.lines() {
            let Some(name) = line.strip_prefix("# TYPE ") else {
                continue;
            };
            let (name, kind) = name.split_once(' ').unwrap();
            assert!(told.contains(name), "{name} is not in the README");
            let row = rows(METRICS).find(|row| row[0] == format!("`{name}`"));
            assert_eq!(row.unwrap()[1], kind, "{name}");
            if name.starts_with("process_") {
                processes.insert(name.to_owned());
            }
        }
    }
    let told: BTreeSet<_> = told
        .into_iter()
        .filter(|name| name.starts_with("process_"))
        .collect();
    assert_eq!(told, processes);
}

/// A section whose keys are read in turn is no key of its own.
fn leaves(keys: &BTreeSet<String>) -> BTreeSet<String> {
    let inner = |key: &&String| {
        !keys.iter().any(|other| {
            other.starts_with(&format!("{key}.")) || other.starts_with(&format!("{key}[]."))
        })
    };
    keys.iter().filter(inner).cloned().collect()
}

/// The keys that a reader of settings asks its section for.
fn keys_in(reader: &str) -> BTreeSet<String> {
    let asked = [".required(", ".optional(", ".or(", "timeout("];
    let mut keys = BTreeSet::new();
    for call in asked {
        for rest in reader.split(call).skip(1) {
            // The section itself may be handed over before the key.
            let arguments = rest.trim_start();
            let arguments = arguments.strip_prefix("&mut ").unwrap_or(arguments);
            let arguments = arguments.strip_prefix("section,").unwrap_or(arguments);
            if let Some(key) = arguments.trim_start().strip_prefix('"') {
                keys.insert(key[..key.find('"').unwrap()].to_owned());
            }
        }
    }
    keys
}

/// What stands in backticks in the first cells of the tables behind `heading`.
fn first_cells(heading: &str) -> BTreeSet<String> {
    let name = |row: Vec<String>| Some(row[0].strip_prefix('`')?.strip_suffix('`')?.to_owned());
    rows(heading).filter_map(name).collect()
}

/// The rows of all tables behind `heading`, up to the next heading of its level.
fn rows(heading: &str) -> impl Iterator<Item = Vec<String>> {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let level = heading.split(' ').next().unwrap();
    let behind = readme
        .lines()
        .skip_while(|line| !line.starts_with(heading))
        .skip(1)
        .take_while(|line| !line.starts_with('#') || line.starts_with(&format!("{level}#")));
    let rows: Vec<_> = behind
        .filter_map(|line| line.strip_prefix("| "))
        .map(|line| {
            line.split(" | ")
                .map(|cell| cell.trim_end_matches('|').trim().to_owned())
                .collect()
        })
        .collect();
    assert!(!rows.is_empty(), "no table behind `{heading}`");
    rows.into_iter()
}

/// All files of the library with their names, each without its tests.
fn sources() -> Vec<(String, String)> {
    let src = root().join("src");
    let all = files(&src).into_iter().filter_map(|path| {
        let name = path.strip_prefix(&src).unwrap().to_str()?.to_owned();
        let is_code = name.ends_with(".rs") && !name.ends_with("tests.rs");
        is_code.then(|| (name.clone(), source(&name)))
    });
    all.collect()
}

fn source(name: &str) -> String {
    let text = std::fs::read_to_string(root().join("src").join(name)).unwrap();
    match text.find("\n#[cfg(test)]\nmod tests") {
        Some(tests) => text[..tests].to_owned(),
        None => text,
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let text = &text[text.find(from).unwrap()..];
    // An `impl` ends where a line begins with its brace.
    let end = text.find("\n}\n").unwrap_or(text.len());
    let text = &text[..end];
    match text.find(to) {
        Some(end) if !to.is_empty() => &text[..end],
        _ => text,
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn doorward() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorward"));
    command.current_dir(root()).stdin(Stdio::null());
    command
}

fn assert_sound(args: &[&str]) {
    let output = doorward().args(args).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}\n{told}");
}

/// A process that ends with its test.
struct Running(Child);

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut command = doorward();
        // Only trouble is shown.
        let child = command.args(args).env("RUST_LOG", "warn").spawn();
        Self(child.unwrap())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An application that gives everybody the same answer, until the test's process ends.
fn answer_everything() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let asked = BufReader::new(stream.try_clone().unwrap());
            let head = asked.lines().map_while(Result::ok);
            head.take_while(|line| !line.is_empty()).for_each(drop);
            let answer =
                "HTTP/1.1 200 OK\r\ncontent-length: 15\r\nconnection: close\r\n\r\nthe application";
            // Whoever asked may be gone.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

/// Ports that were free a moment ago: a configuration file must name them.
fn free_ports<const N: usize>() -> [u16; N] {
    let taken = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    taken.map(|listener| listener.local_addr().unwrap().port())
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid()
}

/// Status and body, if somebody answers at `address`.
fn get(address: &str, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

fn until(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come about");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
