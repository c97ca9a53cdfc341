//! Whatever stands in a policy directory: it loads, and then every grant in it has somebody to answer for it and
//! an end, and allows nobody anything afterwards; or it does not, and every mistake is told.
//!
//! The input is policy text, and behind a line of `%%` the registry of workloads.

use std::collections::{BTreeMap, HashSet};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use doorward::identity::SpiffeId;
use doorward::policy::asked::{Asked, Inquiry, What};
use doorward::policy::files::check_texts_at;
use doorward::policy::{Governance, Settings};
use http::Method;
use miette::NarratableReportHandler;

pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let (policies, workloads) = text.split_once("\n%%\n").unwrap_or((text, ""));
    let texts = [("a.cedar", policies), ("workloads.yaml", workloads)];
    let engine = match check_texts_at(texts, &SETTINGS, *NOW) {
        Ok(engine) => engine,
        Err(error) => {
            let mistake = error.diagnostics().next().expect("a mistake");
            assert!(!mistake.to_string().is_empty());
            let mut shown = String::new();
            let rendered = NarratableReportHandler::new().render_report(&mut shown, mistake);
            assert!(rendered.is_ok() && !shown.is_empty());
            return;
        }
    };
    let mut ids = HashSet::new();
    let mut ended = SystemTime::UNIX_EPOCH;
    let mut permits = 0;
    for listed in engine.listing() {
        let grant = &listed.grant;
        assert!(ids.insert(grant.id.clone()), "{}", grant.id);
        assert!(!grant.id.is_empty() && !grant.id.contains(char::is_control));
        if listed.permits {
            permits += 1;
            assert!(grant.owner.is_some() && grant.purpose.is_some());
            ended = ended.max(grant.expires.expect("the end of a grant"));
        } else {
            assert_eq!(grant.expires, None);
        }
    }
    for workload in engine.registry().iter() {
        assert!(engine.registry().get(&workload.id).is_some());
    }
    let inquiry = Inquiry::new(&SETTINGS, engine).unwrap();
    for (at, may) in [(*NOW, permits > 0), (ended, false)] {
        for what in [
            What::Connect,
            What::Http {
                method: Method::GET,
                host: "a".into(),
                path: "/a".into(),
            },
        ] {
            let asked = Asked { at, what, ..ASKED.clone() };
            match inquiry.decide(&asked) {
                Ok(_) => assert!(may, "{asked}"),
                Err(denial) => assert!(!format!("{denial:?}").is_empty()),
            }
        }
    }
}

static NOW: LazyLock<SystemTime> =
    LazyLock::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));

static SETTINGS: LazyLock<Settings> = LazyLock::new(|| Settings {
    governance: Governance::Enforce,
    environment: BTreeMap::from([("region".into(), "eu".into())]),
    ..Settings::of("/nowhere")
});

static ASKED: LazyLock<Asked> = LazyLock::new(|| Asked {
    principal: SpiffeId::parse("spiffe://example.org/a").unwrap(),
    service: "s".into(),
    what: What::Connect,
    source: [127, 0, 0, 1].into(),
    port: 8443,
    lifetime: Duration::from_secs(3600),
    at: *NOW,
});
