use std::time::{Duration, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prometheus::{Registry, TextEncoder};
use proptest::prelude::*;

use super::*;
use crate::document::Document;

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// A JWT with these claims.
fn jwt(claims: &str) -> String {
    let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
    format!("{}.{}.c2ln", part(r#"{"alg":"RS256"}"#), part(claims))
}

fn settings(yaml: &str) -> Settings {
    Document::new("a.yaml", yaml)
        .read(|node| Settings::read(&node))
        .unwrap()
}

fn request(target: &str, headers: &[(&str, &str)]) -> Request<()> {
    let mut request = Request::get(target);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap()
}

fn guard(yaml: &str) -> (Guard, Registry) {
    let registry = Registry::new();
    let metrics = Metrics::register(&registry).unwrap();
    let tally = metrics.of("inbound", "invoices".into());
    let key = Arc::new(Key::generate().unwrap());
    (Guard::new(settings(yaml), key, tally), registry)
}

/// What is found, as `kind in place`.
fn found(settings: &Settings, request: &Request<()>) -> Vec<String> {
    let key = Key::generate().unwrap();
    let findings = settings.find(request.headers(), request.uri(), &key, now());
    let told = |finding: &Finding| format!("{} in {}", finding.kind.label(), finding.place);
    findings.iter().map(told).collect()
}

#[test]
fn standing_secrets_in_headers_are_found() {
    let endless = jwt(r#"{"sub":"a"}"#);
    let yearly = jwt(r#"{"iat":1800000000,"exp":1831536000}"#);
    let yearly_from_now = jwt(r#"{"exp":1831536000}"#);
    for (name, value, expected) in [
        ("authorization", "Basic dXNlcjpwYXNz", "basic"),
        ("authorization", "bAsIc   dXNlcjpwYXNz", "basic"),
        ("authorization", "Basic dXNlcjpwYXM", "basic"),
        ("authorization", "Basic %%%", "basic"),
        ("proxy-authorization", "Basic dXNlcjpwYXNz", "basic"),
        ("x-api-key", "hunter2", "api_key_header"),
        ("X-API-Key", "hunter2", "api_key_header"),
        ("x_api_key", "hunter2", "api_key_header"),
        ("api-key", "hunter2", "api_key_header"),
        ("apikey", "hunter2", "api_key_header"),
        ("x-goog-api-key", "hunter2", "api_key_header"),
        ("x-acme-api-token", "hunter2", "api_key_header"),
        ("x-auth-token", "hunter2", "api_key_header"),
        ("private-token", "hunter2", "api_key_header"),
        ("ocp-apim-subscription-key", "hunter2", "api_key_header"),
        ("authorization", "ApiKey hunter2", "api_key_header"),
        ("authorization", "Token token=hunter2", "api_key_header"),
        (
            "authorization",
            "Bearer ghp_16C7e42F292c6912E7710c838347Ae178B4a",
            "api_key_header",
        ),
        (
            "authorization",
            "glpat-0123456789abcdefghij",
            "api_key_header",
        ),
        (
            "authorization",
            &format!("Bearer {endless}"),
            "bearer_no_expiry",
        ),
        (
            "authorization",
            &format!("bearer  {yearly}"),
            "bearer_long_lived",
        ),
        ("authorization", &yearly, "bearer_long_lived"),
        (
            "authorization",
            &format!("Token {yearly_from_now}"),
            "bearer_long_lived",
        ),
        ("x-access-token", &endless, "bearer_no_expiry"),
    ] {
        let request = request("/", &[("accept", "*/*"), (name, value)]);
        let place = name.to_ascii_lowercase();
        let expected = format!("{expected} in header {place}");
        assert_eq!(
            found(&Settings::default(), &request),
            [expected],
            "{name}: {value}"
        );
    }
}

#[test]
fn standing_secrets_in_queries_are_found() {
    let endless = jwt("{}");
    for (target, expected) in [
        ("/?api_key=x", "api_key_query in query api_key"),
        ("/?API-KEY=x", "api_key_query in query api_key"),
        ("/?a=1&apikey=x&b=2", "api_key_query in query apikey"),
        ("/?api%5Fkey=x", "api_key_query in query api_key"),
        ("/?api_key=%78", "api_key_query in query api_key"),
        ("/?private_token=x", "api_key_query in query private_token"),
        ("/?client_secret=x", "api_key_query in query client_secret"),
        (
            "/?key=AIzaSyDaGmWKa4JsXZ-HjGw7ISLn_3namBGewQe",
            "api_key_query in query key",
        ),
        (
            "/?token=xoxb-17653672481-19874698323-pdFZKVeT",
            "api_key_query in query token",
        ),
        (
            &format!("/?access_token={endless}"),
            "bearer_no_expiry in query access_token",
        ),
        ("http://host/?api_key=x", "api_key_query in query api_key"),
    ] {
        assert_eq!(
            found(&Settings::default(), &request(target, &[])),
            [expected],
            "{target}"
        );
    }
}

#[test]
fn what_may_be_short_lived_or_no_secret_is_not_claimed() {
    let hour = jwt(r#"{"iat":1800000000,"exp":1800003600}"#);
    let svid =
        jwt(r#"{"aud":["b"],"exp":1800000300,"iat":1800000000,"sub":"spiffe://example.org/a"}"#);
    let day = jwt(r#"{"exp":1800086400}"#);
    let encrypted = "eyJhbGciOiJkaXIifQ..AAAA.AAAA.AAAA";
    for (name, value) in [
        ("authorization", &*format!("Bearer {hour}")),
        ("authorization", &format!("Bearer {svid}")),
        ("authorization", &format!("Bearer {day}")),
        ("authorization", &format!("Bearer {encrypted}")),
        ("authorization", "Bearer 2YotnFZFEjr1zCsicMWpAA"),
        (
            "authorization",
            "Bearer ya29.a0AfH6SMBx-short-lived-of-Google",
        ),
        (
            "authorization",
            "Bearer ghs_16C7e42F292c6912E7710c838347Ae178B4a",
        ),
        ("authorization", "Bearer ghp_short"),
        ("authorization", "Bearer"),
        ("authorization", "Basic"),
        ("authorization", "Basic Og=="),
        ("authorization", "Basic "),
        ("authorization", ""),
        ("authorization", "Negotiate YIIJvwYGKwYBBQUCoIIJszCC"),
        (
            "authorization",
            "Digest username=\"Mufasa\", response=\"6629fae4\"",
        ),
        (
            "authorization",
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524, Signature=fe5f",
        ),
        ("authorization", &format!("DPoP {}", jwt("{}"))),
        ("x-api-key", ""),
        ("x-api-key", &hour),
        ("x-access-token", &hour),
        ("x-api-key-id", "hunter2"),
        ("x-api-version", "2"),
        ("idempotency-key", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("x-csrf-token", "hunter2"),
        ("x-amz-security-token", "hunter2"),
        ("x-vault-token", "hvs.CAESIJ"),
        ("x-request-id", "hunter2"),
        ("cookie", "session=hunter2; token=hunter2"),
        ("origin", "https://example.org"),
        (&format!("x-{}-api-key", "a".repeat(60)), "hunter2"),
    ] {
        let request = request("/", &[(name, value)]);
        assert_eq!(
            found(&Settings::default(), &request),
            [""; 0],
            "{name}: {value}"
        );
    }
    for target in [
        "/",
        "/?",
        "/api_key=x",
        "/?api_key",
        "/?api_key=",
        "/?q=api_key",
        "/?my_api_key=x",
        "/?key=shoes",
        "/?token=next-page-2",
        "/?sig=abc&se=2026-01-01",
        "/?X-Amz-Signature=abc",
        &format!("/?access_token={hour}"),
        &format!("/?api_key={hour}"),
        "*",
    ] {
        assert_eq!(
            found(&Settings::default(), &request(target, &[])),
            [""; 0],
            "{target}"
        );
    }
}

#[test]
fn the_same_secret_has_the_same_fingerprint_wherever_it_stands() {
    let key = Key::generate().unwrap();
    let secret = "glpat-0123456789abcdefghij";
    let bearer = format!("Bearer {secret}");
    let target = "/?private_token=glpat%2D0123456789abcdefghij";
    let one = request(
        target,
        &[("private-token", secret), ("authorization", &bearer)],
    );
    let settings = Settings::default();
    let findings = settings.find(one.headers(), one.uri(), &key, now());
    assert_eq!(findings.len(), 3);
    for finding in findings {
        assert_eq!(finding.fingerprint, key.fingerprint(secret.as_bytes()));
    }
    let padded = request("/", &[("authorization", "Basic dXNlcjpwYXM=")]);
    let bare = request("/", &[("proxy-authorization", "Basic dXNlcjpwYXM")]);
    for one in [padded, bare] {
        let findings = settings.find(one.headers(), one.uri(), &key, now());
        assert_eq!(findings[0].fingerprint, key.fingerprint(b"user:pas"));
    }
}

#[test]
fn an_operator_adds_names_and_leaves_kinds_and_places_alone() {
    let shoes = request("/?key=shoes", &[]);
    let found_shoes = found(&settings("{ query: [key] }"), &shoes);
    assert_eq!(found_shoes, ["api_key_query in query key"]);
    let all = request(
        "/?acme=1&api_key=2&other.name=3",
        &[
            ("x-acme-key", "4"),
            ("x_acme_word", "5"),
            ("x-api-key", "6"),
            ("authorization", "Basic dXNlcjpwYXNz"),
        ],
    );
    for (yaml, expected) in [
        (
            "observe",
            &[
                "api_key_header in header x-api-key",
                "basic in header authorization",
                "api_key_query in query api_key",
            ][..],
        ),
        (
            "{ headers: [X_Acme_Key, x-acme-word], query: acme, ignore: [basic, api_key_query] }",
            &[
                "api_key_header in header x-acme-key",
                "api_key_header in header x_acme_word",
                "api_key_header in header x-api-key",
            ],
        ),
        (
            "{ query: [acme, Other.Name], ignore: [header X-API-Key, query api_key, header authorization] }",
            &[
                "api_key_query in query acme",
                "api_key_query in query other.name",
            ],
        ),
    ] {
        let mut found = found(&settings(yaml), &all);
        found.sort();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected, "{yaml}");
    }
}

#[test]
fn mistakes_in_the_settings_are_told() {
    for (yaml, told) in [
        ("off", "`off` is not known here"),
        ("[deny]", "expected a single value here"),
        ("{ mode: refuse }", "mode: `refuse` is not known here"),
        ("{ header: [x] }", "header: unknown key"),
        ("{ headers: ['a b'] }", "headers[0]: `a b` is not a name"),
        (
            "{ ignore: [cookies] }",
            "ignore[0]: `cookies` is neither a kind of secret nor a place",
        ),
        (
            "{ ignore: ['header a b'] }",
            "ignore[0]: `header a b` is neither",
        ),
    ] {
        let read = Document::new("a.yaml", yaml).read(|node| Settings::read(&node));
        let message = read.unwrap_err().to_string();
        assert!(message.contains(told), "{yaml}: {message}");
    }
    assert_eq!(settings("{}"), Settings::default());
    assert_eq!(settings("deny"), settings("{ mode: deny }"));
}

#[test]
fn stripping_takes_off_what_was_found_and_nothing_else() {
    let (guard, _) = guard("strip");
    let hour = jwt(r#"{"exp":1800003600}"#);
    for (target, left) in [
        ("/a%2Fb?x=%20&api_key=1&&y=+;z", "/a%2Fb?x=%20&&y=+;z"),
        ("/?api_key=1", "/"),
        ("/?api_key=1&", "/?"),
        ("/?API_KEY=1&api%5fkey=2&q", "/?q"),
        ("http://host:1/p?api_key=1&q=1", "http://host:1/p?q=1"),
    ] {
        let mut request = request(
            target,
            &[
                ("accept", "*/*"),
                ("authorization", &format!("Bearer {hour}")),
                ("authorization", "Basic dXNlcjpwYXNz"),
                ("x-api-key", ""),
                ("x-api-key", "1"),
                ("x-api-key", "2"),
                ("cookie", "a=b"),
            ],
        );
        let carried = guard.pass(&mut request, now(), "p", "g").unwrap();
        assert_eq!(carried.action(), Action::Stripped);
        assert_eq!(request.uri(), left, "{target}");
        let kept = self::request(
            "/",
            &[
                ("accept", "*/*"),
                ("authorization", &format!("Bearer {hour}")),
                ("x-api-key", ""),
                ("cookie", "a=b"),
            ],
        );
        assert_eq!(request.headers(), kept.headers(), "{target}");
        assert_eq!(guard.pass(&mut request, now(), "p", "g"), None);
    }
}

#[test]
fn a_decoded_value_is_whole() {
    let key = Key::generate().unwrap();
    let one = request("/?client_secret=a%2Bb+c==%26", &[]);
    let findings = Settings::default().find(one.headers(), one.uri(), &key, now());
    assert_eq!(findings[0].fingerprint, key.fingerprint(b"a+b c==&"));
}

#[test]
fn a_sender_of_many_secrets_makes_no_long_record_and_hides_none_from_stripping() {
    let (guard, _) = guard("strip");
    let target = format!("/?{}q=1", "api_key=x&".repeat(1000));
    let mut request = request(&target, &[("x-api-key", "x")]);
    let carried = guard.pass(&mut request, now(), "p", "g").unwrap();
    assert_eq!(carried.findings().len(), MOST);
    assert_eq!(request.uri(), "/?q=1");
    assert!(request.headers().is_empty());
}

#[test]
fn secrets_and_requests_are_counted_by_who_sent_them() {
    let (guard, registry) = guard("deny");
    let mut many = request("/?api_key=1", &[("authorization", "Basic dXNlcjpwYXNz")]);
    let carried = guard
        .pass(&mut many, now(), "spiffe://a/b", "reads")
        .unwrap();
    assert_eq!(
        carried.advice(),
        "The Doorward proxy refuses requests that carry a standing secret: basic in header authorization, \
         api_key_query in query api_key. Send it without: the proxies prove who calls."
    );
    let mut none = request("/", &[("accept", "*/*")]);
    assert_eq!(guard.pass(&mut none, now(), "spiffe://a/b", "reads"), None);
    let text = TextEncoder::new()
        .encode_to_string(&registry.gather())
        .unwrap();
    let labels = r#"direction="inbound",grant="reads""#;
    let who = r#"principal="spiffe://a/b",service="invoices"} 1"#;
    for line in [
        format!("doorward_requests_with_standing_secrets_total{{action=\"denied\",{labels},{who}"),
        format!("doorward_standing_secrets_total{{{labels},kind=\"basic\",{who}"),
        format!("doorward_standing_secrets_total{{{labels},kind=\"api_key_query\",{who}"),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
}

#[test]
fn nothing_shows_the_secret() {
    let (guard, _) = guard("observe");
    let mut request = request("/?api_key=hunter2", &[("x-api-key", "hunter2")]);
    let carried = guard.pass(&mut request, now(), "p", "g").unwrap();
    let told = format!("{carried:?} {guard:?} {}", carried.advice());
    assert!(!told.contains("hunter2"), "{told}");
}

/// Names and values near those that are looked for, and any others.
fn field() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof![
        Just("authorization".to_owned()),
        Just("x-api-key".to_owned()),
        Just("x_auth_token".to_owned()),
        Just("cookie".to_owned()),
        "[a-z_-]{1,70}",
    ];
    let token = prop_oneof![
        Just(jwt("{}")),
        Just(jwt(r#"{"exp":1800003600}"#)),
        Just(jwt(r#"{"exp":1900000000}"#)),
        "[A-Za-z0-9+/=._-]{0,40}",
    ];
    let value = prop_oneof![
        ("(Basic|Bearer|Token|) ", token)
            .prop_map(|(scheme, token)| (scheme + &token).into_bytes()),
        prop::collection::vec(0x20_u8..=0xff, 0..60),
    ];
    (name, value)
}

fn target() -> impl Strategy<Value = String> {
    let pair = prop_oneof![
        "(api_key|API-KEY|token|key|api%5[fF]key|q|%zz|\\+)=?[a-z%+=2]{0,8}",
        "[a-z0-9=%+;?/_-]{0,12}",
    ];
    let query = prop::collection::vec(pair, 0..6).prop_map(|pairs| pairs.join("&"));
    ("[a-z/]{0,8}", prop::option::of(query)).prop_map(|(path, query)| match query {
        Some(query) => format!("/{path}?{query}"),
        None => format!("/{path}"),
    })
}

proptest! {
    #[test]
    fn stripping_leaves_every_other_byte_of_any_request(
        fields in prop::collection::vec(field(), 0..8),
        target in target(),
    ) {
        let settings = Settings::default();
        let mut request = request(&target, &[]);
        for (name, value) in fields {
            if let (Ok(name), Ok(value)) = (
                HeaderName::try_from(name),
                HeaderValue::from_bytes(&value),
            ) {
                request.headers_mut().append(name, value);
            }
        }
        let mut expected = HeaderMap::new();
        for (name, value) in request.headers() {
            let place = shape::of_header(name.as_str(), &[]);
            if place.is_none_or(|place| settings.in_header((name, place), value, now()).is_none()) {
                expected.append(name, value.clone());
            }
        }
        let (path, query) = target.split_once('?').map_or((&*target, None), |(path, query)| (path, Some(query)));
        let pairs = |query: &str| query.split('&').map(ToOwned::to_owned).collect::<Vec<_>>();
        let kept = query.map(pairs).map(|mut pairs| {
            pairs.retain(|pair| settings.in_query(pair, now()).is_none());
            pairs
        });

        settings.strip(&mut request, now()).unwrap();
        prop_assert_eq!(request.headers(), &expected);
        prop_assert_eq!(request.uri().path(), path);
        let left = request.uri().query().map(pairs);
        prop_assert_eq!(left.unwrap_or_default(), kept.unwrap_or_default());
        let key = Key::generate().unwrap();
        prop_assert!(settings.find(request.headers(), request.uri(), &key, now()).is_empty());
    }
}
