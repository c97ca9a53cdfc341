//! Whatever a request carries: what is found in it is what is taken off, nothing standing is left, nothing else
//! is touched, and nobody is told the secret.
//!
//! The input is the target in its first line and a header in each further one.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use doorward::document::Document;
use doorward::secrets::{Action, Guard, Key, MOST, Metrics, Settings};
use http::{HeaderName, HeaderValue, Request, Uri};
use prometheus::Registry;

pub fn check(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Ok(target) = Uri::try_from(lines.next().unwrap_or_default()) else {
        return;
    };
    let mut sent = Request::new(());
    *sent.uri_mut() = target;
    for line in lines {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            sent.headers_mut().append(name, value);
        }
    }
    let [observe, strip, deny] = &*GUARDS;
    let pass = |guard: &Guard, request: &mut Request<()>| guard.pass(request, *NOW, "a", "b");

    let mut observed = sent.clone();
    let found = pass(observe, &mut observed);
    assert_eq!((observed.headers(), observed.uri()), (sent.headers(), sent.uri()));
    let mut denied = sent.clone();
    let refused = pass(deny, &mut denied);
    assert_eq!((denied.headers(), denied.uri()), (sent.headers(), sent.uri()));
    assert!(refused.as_ref().is_none_or(|carried| carried.action() == Action::Denied));
    let mut stripped = sent.clone();
    let taken = pass(strip, &mut stripped);

    let findings = found.as_ref().map(doorward::secrets::Carried::findings);
    for other in [&refused, &taken] {
        assert_eq!(other.as_ref().map(doorward::secrets::Carried::findings), findings);
    }
    let Some(taken) = taken else {
        assert_eq!((stripped.headers(), stripped.uri()), (sent.headers(), sent.uri()));
        return;
    };
    if taken.action() == Action::Stripped {
        assert_eq!(pass(observe, &mut stripped.clone()), None, "something is left");
    }
    let removed = removed(&sent, &stripped);
    if taken.action() == Action::Stripped || sent.uri().query().is_none() {
        assert_eq!(removed.len().min(MOST), taken.findings().len(), "{removed:?}");
    }
    let told = format!("{taken:?} {}", taken.advice());
    for secret in removed.iter().filter(|secret| secret.len() > 12) {
        let is_a_name = sent.headers().keys().any(|name| name.as_str().contains(&secret[..]));
        assert!(is_a_name || WORDS.contains(&secret[..]) || !told.contains(&secret[..]), "{secret}");
    }
}

/// The values that are no longer there. What is there stands in its old order.
fn removed(sent: &Request<()>, stripped: &Request<()>) -> Vec<String> {
    let mut removed = Vec::new();
    for name in sent.headers().keys() {
        let mut left = stripped.headers().get_all(name).iter().peekable();
        for value in sent.headers().get_all(name) {
            if left.next_if_eq(&value).is_none() {
                removed.push(String::from_utf8_lossy(value.as_bytes()).into_owned());
            }
        }
        assert!(left.next().is_none());
    }
    assert!(stripped.headers().keys().all(|name| sent.headers().contains_key(name)));
    assert_eq!(sent.uri().path(), stripped.uri().path());
    assert_eq!(sent.uri().authority(), stripped.uri().authority());
    let pairs = |request: &Request<()>| -> Vec<String> {
        request.uri().query().map_or(Vec::new(), |query| query.split('&').map(str::to_owned).collect())
    };
    let mut left = pairs(stripped).into_iter().peekable();
    for pair in pairs(sent) {
        if left.next_if_eq(&pair).is_none() {
            let value = pair.split_once('=').map_or("", |(_, value)| value);
            removed.push(value.to_owned());
        }
    }
    assert!(left.next().is_none());
    removed
}

static NOW: LazyLock<SystemTime> =
    LazyLock::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));

static GUARDS: LazyLock<[Guard; 3]> = LazyLock::new(|| {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let key = Arc::new(Key::generate().unwrap());
    ["observe", "strip", "deny"].map(|mode| {
        let yaml = format!("{{ mode: {mode}, headers: [x-own], query: [own], ignore: ['query token'] }}");
        let settings = Document::new("a.yaml", yaml).read(|node| Settings::read(&node)).unwrap();
        Guard::new(settings, key.clone(), metrics.of("inbound", "a".into()))
    })
});

/// What is told of any secret.
const WORDS: &str = "Carried Finding Fingerprint ApiKeyHeader ApiKeyQuery BearerNoExpiry BearerLongLived \
    api_key_header api_key_query bearer_no_expiry bearer_long_lived The Doorward proxy refuses requests that \
    carry a standing secret: Send it without: the proxies prove who calls. subscription-key client_secret \
    private_token access_token";
