//! Does the command line answer as it says? Exit codes, and messages word for word.
//!
//! Each `tests/fixtures/check/NAME.yaml` is a configuration and `NAME.txt` what `doorward check` says of
//! it. Each `tests/fixtures/warnings/CODE` is a policy directory that deserves that warning, with what is
//! said of it in `told.txt`. Each `tests/fixtures/inject/NAME.yaml` is a manifest, `NAME.out.yaml` the same with
//! sidecars, and `NAME.txt` what is said of it. Each `tests/fixtures/asked/NAME.txt` is a question about a policy and its answer.
//! `DOORWARD_BLESS=1 cargo test --test cli` writes these texts anew, to be read before they are committed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use doorward::policy::Code;

/// When the fixtures are looked at.
const NOW: &str = "2099-01-15T12:00:00Z";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn doorward(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(args)
        .current_dir(fixtures())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn check_tells_every_mistake_in_its_place_word_for_word() {
    let bless = std::env::var_os("DOORWARD_BLESS").is_some();
    let mut checked = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(fixtures().join("check")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let config = format!("check/{name}.yaml");
        let output = doorward(&["check", "--at", NOW, "--config", &config]);
        let told = err(&output);
        let expected = path.with_extension("txt");
        if bless {
            std::fs::write(&expected, &told).unwrap();
        }
        let expected = std::fs::read_to_string(&expected).unwrap_or_default();
        if told != expected {
            wrong.push(format!("--- {name}: expected\n{expected}--- told\n{told}"));
        }
        // Only what is sound has nothing marked as a mistake.
        let sound = !told.contains('×');
        assert_eq!(code(&output), i32::from(!sound), "{name}: {told}");
        assert_eq!(told.ends_with("sound\n"), sound, "{name}: {told}");
        assert!(out(&output).is_empty(), "{name}");
        checked += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked >= 20, "only {checked} fixtures");
}

#[test]
fn run_refuses_what_check_refuses_with_the_same_words() {
    for name in ["unknown_keys", "not_yaml", "policy_broken"] {
        let config = format!("check/{name}.yaml");
        let run = doorward(&["run", "--config", &config]);
        assert_eq!(code(&run), 2, "{name}");
        let checked = doorward(&["check", "--config", &config]);
        assert_eq!(err(&run), err(&checked), "{name}");
    }
}

#[test]
fn each_warning_is_told_word_for_word_and_can_be_denied() {
    let bless = std::env::var_os("DOORWARD_BLESS").is_some();
    let mut wrong = Vec::new();
    for label in Code::ALL.map(Code::label) {
        let dir = fixtures().join("warnings").join(label);
        let config = format!("warnings/{label}/doorward.yaml");
        let subject = match dir.join("doorward.yaml").exists() {
            true => ["--config".to_owned(), config],
            false => ["--policy".to_owned(), format!("warnings/{label}")],
        };
        let check = |more: &[&str]| {
            let args = ["check", "--at", NOW, &subject[0], &subject[1]];
            doorward(&[&args[..], more].concat())
        };
        let output = check(&[]);
        let told = err(&output);
        assert_eq!(code(&output), 0, "{label}: {told}");
        if bless {
            std::fs::write(dir.join("told.txt"), &told).unwrap();
        }
        let expected = std::fs::read_to_string(dir.join("told.txt")).unwrap_or_default();
        if told != expected {
            wrong.push(format!("--- {label}: expected\n{expected}--- told\n{told}"));
        }
        // This warning and no other: it can be denied, and nothing else can.
        let others: Vec<_> = Code::ALL.map(Code::label).into();
        let others: Vec<_> = others.into_iter().filter(|other| *other != label).collect();
        for (denied, expected) in [(label, 1), (&others.join(","), 0), ("all", 1)] {
            let output = check(&["--deny", denied]);
            assert_eq!(
                code(&output),
                expected,
                "{label} --deny {denied}: {}",
                err(&output)
            );
        }
        assert_eq!(
            code(&check(&["--deny", "ended", "--deny", label])),
            1,
            "{label}"
        );
        assert_eq!(code(&check(&["--strict"])), 1, "{label}");
        let output = check(&["--json"]);
        let found: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
        assert!(!found.is_empty() && err(&output).is_empty(), "{label}");
        for finding in found {
            assert_eq!(finding["code"], label);
            assert_eq!(finding["severity"], "warning");
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let directories = std::fs::read_dir(fixtures().join("warnings"))
        .unwrap()
        .count();
    assert_eq!(directories, Code::ALL.len());
}

#[test]
fn json_says_where_and_what_of_warnings_and_mistakes_alike() {
    let args = [
        "check",
        "--at",
        NOW,
        "--json",
        "--policy",
        "warnings/ends-soon",
    ];
    let output = doorward(&args);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        found,
        serde_json::json!([{
            "code": "ends-soon",
            "severity": "warning",
            "file": "policy.cedar",
            "line": 4,
            "column": 1,
            "message": "this grant ends within 14 days: `2099-01-20` is near",
            "help": "ask its owner whether it is still needed, and until when",
        }])
    );
    let output = doorward(&["check", "--json", "--config", "check/policy_broken.yaml"]);
    assert_eq!(code(&output), 1);
    let found: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let is_mistake = |found: &serde_json::Value| {
        found["severity"] == "error" && found["code"].is_null() && found["line"].is_u64()
    };
    assert!(
        found.len() >= 6 && found.iter().all(is_mistake),
        "{found:?}"
    );
    let sound = doorward(&[
        "check",
        "--at",
        NOW,
        "--json",
        "--config",
        "check/sound.yaml",
    ]);
    assert_eq!(
        (code(&sound), out(&sound).trim()),
        (0, "[]"),
        "{}",
        err(&sound)
    );
    let unread = doorward(&["check", "--json", "--config", "no/such/file.yaml"]);
    assert_eq!(code(&unread), 1);
    assert!(
        out(&unread).contains("cannot read this file"),
        "{}",
        out(&unread)
    );
}

#[test]
fn an_unknown_code_is_told_with_those_there_are() {
    let output = doorward(&["check", "--deny", "shadow", "--policy", "policy/sound"]);
    assert_eq!(code(&output), 2);
    for label in Code::ALL.map(Code::label) {
        assert!(err(&output).contains(label), "{label}: {}", err(&output));
    }
}

#[test]
fn a_solver_that_is_not_there_is_trouble_and_named() {
    for solver in ["no/such/solver", "/bin/true", "/bin/cat"] {
        let output = Command::new(env!("CARGO_BIN_EXE_doorward"))
            .args(["check", "--symbolic", "--policy", "policy/sound"])
            .current_dir(fixtures())
            .env("CVC5", solver)
            .output()
            .unwrap();
        assert_eq!(code(&output), 2, "{solver}: {}", err(&output));
        assert!(
            err(&output).starts_with("doorward: cannot start the solver cvc5: install it"),
            "{solver}: {}",
            err(&output)
        );
    }
}

#[test]
fn what_the_configuration_denies_is_refused_by_check_and_by_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("doorward.yaml");
    let policy = fixtures().join("warnings/any-action");
    for (deny, refused) in [
        ("any-action", true),
        ("[shadowed, duplicate]", false),
        ("all", true),
    ] {
        let text = format!(
            "identity: {{ workload_api: 'unix:///nowhere.sock' }}\n\
             inbound: [{{ listen: '127.0.0.1:0', service: invoices, app: '127.0.0.1:1' }}]\n\
             audit: {{ path: no/such/directory/audit.jsonl }}\n\
             policy: {{ dir: {}, deny: {deny} }}\n",
            policy.display()
        );
        std::fs::write(&config, text).unwrap();
        let config = config.to_str().unwrap();
        let checked = doorward(&["check", "--at", NOW, "--config", config]);
        assert_eq!(
            code(&checked),
            i32::from(refused),
            "{deny}: {}",
            err(&checked)
        );
        // The audit cannot be had, so that `run` ends in any case.
        let run = doorward(&["run", "--config", config]);
        assert_eq!(code(&run), 2);
        let told = err(&run).contains("this grant is for every action");
        let last = err(&run).contains("audit.jsonl");
        assert_eq!((told, last), (true, !refused), "{deny}: {}", err(&run));
    }
}

#[test]
fn a_port_that_is_taken_stops_the_start_and_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let free = "127.0.0.1:0";
    for (data, metrics, admin) in [
        (address.to_string().as_str(), free, free),
        (free, address.to_string().as_str(), free),
        (free, free, address.to_string().as_str()),
    ] {
        for workers in [1, 2] {
            let text = format!(
                "identity: {{ workload_api: 'unix:///nowhere.sock' }}\n\
                 workers: {workers}\n\
                 outbound: [{{ listen: '{data}', to: 'a:1', peer: 'spiffe://a/b' }}]\n\
                 metrics: {{ listen: '{metrics}' }}\n\
                 admin: {{ listen: '{admin}' }}\n"
            );
            let config = dir.path().join("doorward.yaml");
            std::fs::write(&config, text).unwrap();
            let output = doorward(&["run", "--config", config.to_str().unwrap()]);
            assert_eq!(code(&output), 2, "{}", err(&output));
            let last = err(&output).lines().last().unwrap_or_default().to_owned();
            assert!(
                last.starts_with(&format!("doorward: cannot listen on {address}: ")),
                "{last}"
            );
            assert!(last.contains("in use"), "{last}");
        }
    }
}

#[test]
fn an_audit_that_cannot_be_had_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("doorward.yaml");
    let audit = dir.path().join("no/such/directory/audit.jsonl");
    let text = format!(
        "identity: {{ workload_api: 'unix:///nowhere.sock' }}\n\
         outbound: [{{ listen: '127.0.0.1:0', to: 'a:1', peer: 'spiffe://a/b' }}]\n\
         audit: {{ path: '{}' }}\n",
        audit.display()
    );
    std::fs::write(&config, text).unwrap();
    let output = doorward(&["run", "--config", config.to_str().unwrap()]);
    assert_eq!(code(&output), 2, "{}", err(&output));
    assert!(
        err(&output).contains(audit.to_str().unwrap()),
        "{}",
        err(&output)
    );
}

#[test]
fn what_cannot_be_read_or_understood_is_trouble() {
    for args in [
        &["frobnicate"][..],
        &[],
        &["check"],
        &["check", "--config"],
        &["run", "--config", "no/such/file.yaml"],
        &["run", "--wrokers", "2"],
        &["issuer", "--config", "no/such/file.yaml"],
        &["explain", "--policy", "policy/sound"],
        &["who-can", "--policy", "policy/sound"],
        &["who-can", "--policy", "no/such/dir", "--service", "s"],
        &["policy"],
        &["policy", "diff", "policy/sound"],
        &["policy", "diff", "policy/sound", "no/such/dir"],
        &["policy", "fmt"],
        &["policy", "fmt", "no/such/file.cedar"],
        &["policy", "test", "no/such/file.yaml"],
        &[
            "explain",
            "--policy",
            "policy/sound",
            "--principal",
            "checkout",
            "--service",
            "invoices",
        ],
    ] {
        let output = doorward(args);
        assert_eq!(code(&output), 2, "{args:?}: {}", err(&output));
        assert!(out(&output).is_empty(), "{args:?}");
        assert!(!err(&output).trim().is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_are_no_trouble() {
    let output = doorward(&["--version"]);
    assert_eq!(
        out(&output),
        format!("doorward {}\n", env!("CARGO_PKG_VERSION"))
    );
    let output = doorward(&["--help"]);
    assert_eq!(code(&output), 0);
    for command in ["run", "check", "explain", "who-can", "policy", "issuer"] {
        assert!(
            out(&output).contains(&format!("\n  {command} ")),
            "{command}"
        );
        assert_eq!(code(&doorward(&[command, "--help"])), 0, "{command}");
    }
}

#[test]
fn an_issuers_mistakes_are_told_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("issuer.yaml");
    for (text, expected) in [
        (
            "trust_domain: example.org\nsocket: /run/x.sock\n",
            "the key `entries` is missing",
        ),
        (
            "trust_domain: example.org\nsocket: x.sock\nentries: []\n",
            "`x.sock` is not an absolute path",
        ),
        (
            "trust_domain: example.org\nsocket: /run/x.sock\nentries:\n- { id: /a, selectors: {} }\n",
            "an entry without a selector would be for every process",
        ),
        (
            "trust_domain: example.org\nsocket: /run/x.sock\nentries:\n- { id: 'spiffe://other/a', selectors: { uid: 1 } }\n",
            "is outside the trust domain",
        ),
        (
            "trust_domain: example.org\nsocket: /run/x.sock\nentries:\n- { id: /a, selectors: { uid: 1 }, lifetime: 4s, rotate_every: 4s }\n",
            "`rotate_every` must be shorter than the lifetime",
        ),
    ] {
        std::fs::write(&config, text).unwrap();
        let output = doorward(&["issuer", "--config", config.to_str().unwrap()]);
        assert_eq!(code(&output), 2, "{text}");
        assert!(err(&output).contains(expected), "{text}\n{}", err(&output));
    }
}

const ASKED: [&str; 7] = [
    "explain",
    "--principal",
    "spiffe://example.org/checkout",
    "--service",
    "invoices",
    "--policy",
    "policy/sound",
];

fn explain(more: &[&str]) -> Output {
    doorward(&[&ASKED, more].concat())
}

#[test]
fn explain_names_the_grant_that_allows() {
    let output = explain(&["--path", "/v1/invoices/7"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(
        out(&output).contains("checkout-reads-invoices"),
        "{}",
        out(&output)
    );
    let output = explain(&["--path", "/v1/invoices/7", "--json"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        told.to_string().contains("checkout-reads-invoices"),
        "{told}"
    );
}

#[test]
fn explain_says_what_is_missing_when_it_denies() {
    for more in [
        &["--path", "/v2/invoices"][..],
        &["--path", "/v1/invoices/7", "--method", "POST"],
        &["--connect"],
        &["--path", "/v1/invoices/7", "--at", "2100-01-01T00:00:00Z"],
    ] {
        let output = explain(more);
        assert_eq!(
            code(&output),
            1,
            "{more:?}: {}{}",
            out(&output),
            err(&output)
        );
        assert!(!out(&output).is_empty(), "{more:?}");
    }
}

#[test]
fn explain_of_a_broken_policy_is_trouble_and_quotes_it() {
    let mut args = ASKED;
    args[6] = "policy/ungoverned";
    let output = doorward(&args);
    assert_eq!(code(&output), 2);
    assert!(
        err(&output).contains("this permit does not say @id"),
        "{}",
        err(&output)
    );
    assert!(out(&output).is_empty());
}

/// What `doorward audit show` answers is in `tests/fixtures/audit/NAME.txt`.
#[test]
fn audit_records_are_shown_word_for_word() {
    let bless = std::env::var_os("DOORWARD_BLESS").is_some();
    for (name, more) in [
        ("show", &[][..]),
        (
            "denied",
            &["--decision", "deny", "--principal", "spiffe://*"][..],
        ),
        ("secrets", &["--secrets", "--json"][..]),
    ] {
        let args = [&["audit", "show", "audit/invoices.jsonl"], more].concat();
        let output = doorward(&args);
        assert_eq!(code(&output), 0, "{name}: {}", err(&output));
        let told = out(&output) + &err(&output);
        assert!(!told.contains('\u{1b}'), "{name}: {told:?}");
        let path = fixtures().join(format!("audit/{name}.txt"));
        if bless {
            std::fs::write(&path, &told).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(told, expected, "{name}");
    }
}

#[test]
fn lines_that_are_no_records_are_told_and_fail_the_reading() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let good = std::fs::read_to_string(fixtures().join("audit/invoices.jsonl")).unwrap();
    std::fs::write(&path, good + &"oops \u{1b}[2J\n".repeat(12)).unwrap();
    let output = doorward(&["audit", "show", "-n", "1", path.to_str().unwrap()]);
    assert_eq!(code(&output), 1);
    assert_eq!(out(&output).lines().count(), 2, "{}", out(&output));
    let told = err(&output);
    assert!(told.contains("a.jsonl:8: not an audit record"), "{told}");
    assert_eq!(told.matches("not an audit record").count(), 10, "{told}");
    assert!(told.contains("12 lines not understood"), "{told}");
    assert!(!told.contains('\u{1b}'), "{told:?}");
    for command in [&["audit", "show"][..], &["suggest"]] {
        let output = doorward(&[command, &["no/such.jsonl"]].concat());
        assert_eq!(code(&output), 2);
        let told = err(&output);
        assert!(told.contains("cannot read no/such.jsonl"), "{told}");
    }
}

#[test]
fn what_is_suggested_passes_every_check_but_for_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    let out_dir = dir.path().join("new");
    let to = out_dir.to_str().unwrap();
    let suggest = |more: &[&str]| doorward(&[&["suggest", "audit/invoices.jsonl"], more].concat());
    let output = suggest(&["--out", to]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(
        err(&output).contains("2 grants suggested from 2 of 6 records"),
        "{}",
        err(&output)
    );
    assert!(
        err(&output).contains("2 left out: denied"),
        "{}",
        err(&output)
    );
    // What is there is not touched.
    let again = suggest(&["--out", to]);
    assert_eq!(code(&again), 2, "{}", err(&again));
    assert!(err(&again).contains("suggested.cedar"), "{}", err(&again));

    let check = || doorward(&["check", "--strict", "--policy", to]);
    let unowned = err(&check());
    assert_eq!(unowned.matches('×').count(), 2, "{unowned}");
    assert!(unowned.contains("does not say @owner"), "{unowned}");
    assert!(!unowned.contains('⚠'), "{unowned}");
    let file = out_dir.join("suggested.cedar");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(
        &file,
        text.replace("@owner(\"\")", "@owner(\"a@example.org\")"),
    )
    .unwrap();
    let owned = check();
    assert_eq!(code(&owned), 0, "{}", err(&owned));

    let told = suggest(&["--json", "--denied"]);
    let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["counted"], 3, "{told:#}");
    assert_eq!(told["grants"].as_array().unwrap().len(), 3, "{told:#}");
    let nothing = suggest(&["--since", "2026-06-16"]);
    assert_eq!(code(&nothing), 1);
    assert!(out(&nothing).is_empty());
    // Which one is asked for is named as what it takes the place of.
    let tighter = suggest(&["--grant", "checkout-reads-invoices"]);
    assert_eq!(code(&tighter), 0, "{}", err(&tighter));
    let tighter = out(&tighter);
    assert!(
        tighter.contains("@id(\"checkout-reads-invoices-2\")"),
        "{tighter}"
    );
}

/// Questions about a policy: the name of the file with the answer, and the words, at one and the same time.
const QUESTIONS: &[(&str, &str)] = &[
    (
        "explain_allowed",
        "explain --policy asked/before --service invoices --path /v1/invoices/7 \
         --principal spiffe://example.org/checkout",
    ),
    (
        "explain_condition",
        "explain --policy asked/before --service invoices --path /v2/invoices/7 --lifetime 24h \
         --principal spiffe://example.org/checkout",
    ),
    (
        "explain_dry_run",
        "explain --policy asked/before --service invoices --method POST \
         --path /v1/invoices/7/payment --principal spiffe://example.org/checkout",
    ),
    (
        "explain_forbidden",
        "explain --policy asked/before --service invoices --method POST --lifetime 10m \
         --principal spiffe://example.org/agents/auditor",
    ),
    (
        "explain_stranger",
        "explain --policy asked/before --service invoices --path /v1/invoices/7 \
         --principal spiffe://partner.net/checkout",
    ),
    (
        "explain_json",
        "explain --policy asked/before --service invoices --path /v2/invoices/7 --json \
         --principal spiffe://example.org/checkout",
    ),
    (
        "who_can",
        "who-can --policy asked/before --service invoices",
    ),
    (
        "who_can_get",
        "who-can --policy asked/before --service invoices --method GET --path /v1/invoices/7 \
         --lifetime 10m",
    ),
    (
        "who_can_nobody",
        "who-can --policy asked/before --service invoices --method POST \
         --path /v1/invoices/7/payment",
    ),
    (
        "who_can_json",
        "who-can --policy asked/before --service ledger --path /health --json",
    ),
    ("diff", "policy diff asked/before asked/after"),
    ("diff_json", "policy diff asked/before asked/after --json"),
    ("diff_same", "policy diff asked/before asked/before"),
    (
        "fmt_check",
        "policy fmt --check asked/before asked/untidy/a.cedar",
    ),
    ("fmt_broken", "policy fmt asked/untidy/broken.cedar"),
    ("test", "policy test --coverage asked/table.yaml"),
    ("test_mistaken", "policy test asked/mistaken.yaml"),
];

#[test]
fn questions_about_a_policy_are_answered_word_for_word() {
    let bless = std::env::var_os("DOORWARD_BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, words) in QUESTIONS {
        let mut args: Vec<_> = words.split_whitespace().collect();
        if ["explain", "who-can"].contains(&args[0]) || args[1] == "diff" {
            args.extend(["--at", "2026-12-01T12:00:00Z"]);
        }
        let output = doorward(&args);
        let (code, out, err) = (code(&output), out(&output), err(&output));
        let told = format!("{out}{err}exit code {code}\n");
        let file = fixtures().join("asked").join(format!("{name}.txt"));
        if bless {
            std::fs::write(&file, &told).unwrap();
        }
        let expected = std::fs::read_to_string(&file).unwrap_or_default();
        if told != expected {
            wrong.push(format!("--- {name}: expected\n{expected}--- told\n{told}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_examples_decide_as_their_tables_say_and_leave_no_policy_out() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for example in ["two-services", "agents", "legacy"] {
        let table = examples.join(example).join("policy-test.yaml");
        let output = doorward(&["policy", "test", "--coverage", table.to_str().unwrap()]);
        assert_eq!(code(&output), 0, "{}{}", out(&output), err(&output));
        let told = out(&output);
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.ends_with(" passed, 0 failed\n"), "{told}");
        let policy = examples.join(example).join("policy");
        let output = doorward(&["policy", "fmt", "--check", policy.to_str().unwrap()]);
        assert_eq!(code(&output), 0, "{}", out(&output));
    }
}

#[test]
fn fmt_replaces_a_file_at_once_and_keeps_its_mode_and_the_link_to_it() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.cedar");
    let link = dir.path().join("elsewhere.cedar");
    std::fs::copy(fixtures().join("asked/untidy/a.cedar"), &file).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    symlink("a.cedar", &link).unwrap();
    let link = link.to_str().unwrap();
    assert_eq!(code(&doorward(&["policy", "fmt", "--check", link])), 1);
    let output = doorward(&["policy", "fmt", link]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert!(out(&output).is_empty());
    assert_eq!(code(&doorward(&["policy", "fmt", "--check", link])), 0);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        text.starts_with("// What nobody laid out.\n\n@id(\"g\")\n"),
        "{text}"
    );
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o640);
    assert!(std::fs::symlink_metadata(link).unwrap().is_symlink());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn fmt_lays_out_what_comes_in() {
    use std::io::Write;

    let mut child = Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(["policy", "fmt", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = b"forbid(principal,action,resource);";
    child.stdin.take().unwrap().write_all(text).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 0);
    assert_eq!(out(&output), "forbid (principal, action, resource);\n");
}

/// `file`, or what stands in it after it was written anew.
fn golden(file: &Path, told: &str) -> String {
    if std::env::var_os("DOORWARD_BLESS").is_some() {
        std::fs::write(file, told).unwrap();
    }
    std::fs::read_to_string(file).unwrap_or_default()
}

/// The manifests of `tests/fixtures/inject` that are sound.
const MANIFESTS: [&str; 4] = [
    "deployment.yaml",
    "list.yaml",
    "config_map.yaml",
    "pod.json",
];

#[test]
fn manifests_get_their_sidecars_word_for_word() {
    for name in MANIFESTS {
        let file = fixtures().join("inject").join(name);
        let (stem, extension) = name.split_once('.').unwrap();
        let output = doorward(&["inject", file.to_str().unwrap()]);
        assert_eq!(code(&output), 0, "{name}: {}", err(&output));
        let expected = file.with_file_name(format!("{stem}.out.{extension}"));
        assert_eq!(golden(&expected, &out(&output)), out(&output), "{name}");
        let expected = file.with_file_name(format!("{stem}.txt"));
        assert_eq!(golden(&expected, &err(&output)), err(&output), "{name}");

        // Once more changes nothing, not a letter.
        let injected = file.with_file_name(format!("{stem}.out.{extension}"));
        let again = doorward(&["inject", injected.to_str().unwrap()]);
        assert_eq!(out(&again), out(&output), "{name}");

        // Without its sidecars it is a manifest like the first one.
        let undone = doorward(&["inject", "--undo", injected.to_str().unwrap()]);
        assert_eq!(code(&undone), 0, "{name}: {}", err(&undone));
        assert!(!out(&undone).contains("doorward-config"), "{name}");
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join(name);
        std::fs::write(&plain, &undone.stdout).unwrap();
        let again = doorward(&["inject", plain.to_str().unwrap()]);
        assert_eq!(out(&again), out(&output), "{name}");
    }
}

#[test]
fn standard_input_is_read_and_settings_hold_where_annotations_say_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("inject.yaml");
    std::fs::write(
        &settings,
        "image: a/b:1\nintercept: false\nidentity: cert-manager\n",
    )
    .unwrap();
    let manifest = std::fs::File::open(fixtures().join("inject/deployment.yaml")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(["inject", "--identity", "spiffe-csi", "--config"])
        .arg(&settings)
        .arg("-")
        .stdin(manifest)
        .output()
        .unwrap();
    assert_eq!(code(&output), 0, "{}", err(&output));
    let text = out(&output);
    assert!(text.contains("image: \"a/b:1\""), "{text}");
    assert!(text.contains("driver: csi.spiffe.io"), "{text}");
    assert!(!text.contains("doorward-intercept"), "{text}");
    assert!(!text.contains("/app-health/"), "{text}");
    assert!(text.contains("listen: \"0.0.0.0:8443\""), "{text}");

    std::fs::write(&settings, "imag: x\n").unwrap();
    let output = doorward(&["inject", "--config", settings.to_str().unwrap()]);
    assert_eq!(code(&output), 2);
    assert!(
        err(&output).contains("imag: unknown key"),
        "{}",
        err(&output)
    );
}

#[test]
fn what_cannot_be_injected_is_told_in_its_place_and_nothing_is_printed() {
    let output = doorward(&["inject", "inject/mistaken.yaml", "inject/list.yaml"]);
    assert_eq!(code(&output), 2);
    assert_eq!(out(&output), "");
    let expected = fixtures().join("inject/mistaken.txt");
    assert_eq!(golden(&expected, &err(&output)), err(&output));
}
