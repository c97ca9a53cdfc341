//! Nothing of what a peer claims to be, and nothing that concerns its connection alone, goes on; what does go on
//! is what it sent. What we say ourselves reads back as it was meant.
//!
//! The input is a line for the kind of test, and a header in each further line.

use std::time::{Duration, SystemTime};

use doorward::fuzzing::identity_headers;
use doorward::headers::{self, IdentityHeader};
use doorward::identity::SpiffeId;
use doorward::outbound::retry::retry_after;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, Version};

pub fn check(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    let mut sent = HeaderMap::new();
    for line in lines {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(parts.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(parts.next().unwrap_or_default().trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            sent.append(name, value);
        }
    }
    requests(&sent);
    responses(&sent);
    trailers(&sent);
    framing(&sent);
    protocols(&sent);
    identity(first, &sent);
}

fn requests(sent: &HeaderMap) {
    let named = named(sent);
    let expected = without(sent, |name| {
        is_of_connection(name)
            || named.iter().any(|named| named == name)
            || is_claim(name)
            || (name.contains('_') && ["content-length", "transfer-encoding"].contains(&&dashed(name)[..]))
    });
    let mut stripped = sent.clone();
    headers::strip_request(&mut stripped);
    same(&stripped, &with_te(expected, sent));
    let mut again = stripped.clone();
    headers::strip_request(&mut again);
    same(&again, &stripped);
}

fn responses(sent: &HeaderMap) {
    let named = named(sent);
    let expected = without(sent, |name| is_of_connection(name) || named.iter().any(|named| named == name));
    let mut stripped = sent.clone();
    headers::strip_response(&mut stripped);
    same(&stripped, &with_te(expected, sent));
}

fn trailers(sent: &HeaderMap) {
    let mut stripped = sent.clone();
    headers::strip_trailers(&mut stripped);
    for name in stripped.keys().map(HeaderName::as_str) {
        assert!(!is_claim(name), "{name}");
        assert!(name == "te" || !is_of_connection(name), "{name}");
        let frames_or_routes = ["content-length", "host", "authorization", "cookie", "set-cookie", "trailer", "content-type"];
        assert!(!frames_or_routes.contains(&name), "{name}");
    }
    for (name, value) in &stripped {
        assert!(name == "te" || sent.get_all(name).iter().any(|sent| sent == value), "{name}");
    }
}

/// RFC 9112 §6.3, as strictly as it may be read.
fn framing(sent: &HeaderMap) {
    let texts = |name: &str| sent.get_all(name).iter().map(|value| value.as_bytes().to_vec()).collect::<Vec<_>>();
    let (lengths, codings) = (texts("content-length"), texts("transfer-encoding"));
    let number = |text: &[u8]| {
        let text = str::from_utf8(text).unwrap_or("x");
        let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        digits && (text.len() == 1 || !text.starts_with('0'))
    };
    let framed = match (&lengths[..], &codings[..]) {
        ([], []) => true,
        ([length], []) => number(length),
        ([], [coding]) => coding.eq_ignore_ascii_case(b"chunked"),
        _ => false,
    };
    let hidden = named(sent).iter().any(|name| name == "host" || name == "content-length");
    assert_eq!(headers::check_request(sent).is_ok(), framed && !hidden);
    let mut response = Response::new(());
    *response.headers_mut() = sent.clone();
    assert_eq!(headers::check_response(&response).is_ok(), framed);
}

fn protocols(sent: &HeaderMap) {
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut headers = sent.clone();
        headers::add_via(&mut headers, version);
        assert_eq!(headers::take_via(&mut headers), Some(version));
        same(&headers, sent);
    }
    assert_eq!(headers::upgrade(&Method::GET, Version::HTTP_2, sent), None);
    assert_eq!(headers::upgrade(&Method::CONNECT, Version::HTTP_11, sent), None);
    if let Some(protocol) = headers::upgrade(&Method::GET, Version::HTTP_11, sent) {
        assert!(named(sent).iter().any(|name| name == "upgrade"));
        let protocol = protocol.to_str().unwrap().to_ascii_lowercase();
        for http in ["h2c", "h2", "http/1.1", "http/2.0", "tls/1.0", "h3"] {
            assert!(!protocol.split(',').any(|one| one.trim() == http), "{protocol}");
        }
    }
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    if let Some(pause) = retry_after(sent, now) {
        let text = sent["retry-after"].to_str().unwrap().trim().to_owned();
        match text.parse::<u64>() {
            Ok(seconds) => assert_eq!(pause, Duration::from_secs(seconds)),
            // A date, with its time, beyond now.
            Err(_) => assert!(text.contains(':') && pause < Duration::from_secs(10_000 * 366 * 24 * 3600), "{text}"),
        }
    }
}

/// Who calls: the SPIFFE ID in the first line, with the headers' values for certificates.
fn identity(first: &[u8], sent: &HeaderMap) {
    let Ok(Ok(peer)) = str::from_utf8(first).map(|rest| SpiffeId::parse(&format!("spiffe://{rest}"))) else {
        return;
    };
    let own = SpiffeId::parse("spiffe://example.org/own").unwrap();
    let mut chain: Vec<_> = sent.values().map(|value| value.as_bytes().to_vec()).collect();
    chain.insert(0, first.to_vec());
    let mut fingerprint = [0; 32];
    for (at, byte) in first.iter().enumerate() {
        fingerprint[at % 32] ^= byte.rotate_left(3);
    }
    let said = identity_headers(IdentityHeader::Both, &own, &peer, &fingerprint, &chain);
    let mut put = HeaderMap::new();
    for (name, text) in said {
        assert!(put.insert(name, HeaderValue::try_from(text).unwrap()).is_none());
    }
    let hex: String = fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    let pairs = [("By", own.as_str()), ("Hash", &hex), ("URI", peer.as_str())];
    assert_eq!(xfcc(put["x-forwarded-client-cert"].to_str().unwrap()), [pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec()]);
    let leaf = binaries(put["client-cert"].to_str().unwrap());
    assert_eq!(leaf, chain[..1]);
    match put.get("client-cert-chain") {
        Some(rest) => assert_eq!(binaries(rest.to_str().unwrap()), chain[1..]),
        None => assert_eq!(chain.len(), 1),
    }
}

/// Envoy's format: elements behind commas, pairs behind semicolons, either within quotes is text.
fn xfcc(text: &str) -> Vec<Vec<(String, String)>> {
    let mut elements = vec![vec![(String::new(), None::<String>)]];
    let (mut quoted, mut escaped) = (false, false);
    for c in text.chars() {
        let element = elements.last_mut().unwrap();
        let (key, value) = element.last_mut().unwrap();
        let has_value = value.is_some();
        let to = value.as_mut().unwrap_or(key);
        match c {
            _ if escaped => {
                to.push(c);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => elements.push(vec![(String::new(), None)]),
            ';' if !quoted => element.push((String::new(), None)),
            '=' if !quoted && !has_value => *value = Some(String::new()),
            c => to.push(c),
        }
    }
    assert!(!quoted);
    let pair = |(key, value): (String, Option<String>)| (key, value.unwrap());
    elements.into_iter().map(|element| element.into_iter().map(pair).collect()).collect()
}

/// RFC 8941 §3.3.5, as items of a list.
fn binaries(text: &str) -> Vec<Vec<u8>> {
    let decode = |item: &str| {
        let digits = item.strip_prefix(':').unwrap().strip_suffix(':').unwrap();
        assert_eq!(digits.len() % 4, 0);
        let (mut bits, mut count, mut bytes) = (0_u32, 0, Vec::new());
        for digit in digits.trim_end_matches('=').bytes() {
            let value = match digit {
                b'A'..=b'Z' => digit - b'A',
                b'a'..=b'z' => digit - b'a' + 26,
                b'0'..=b'9' => digit - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => panic!("{digits}"),
            };
            (bits, count) = (bits << 6 | u32::from(value), count + 6);
            if count >= 8 {
                count -= 8;
                bytes.push(u8::try_from(bits >> count & 0xff).unwrap());
            }
        }
        bytes
    };
    text.split(", ").map(decode).collect()
}

fn named(sent: &HeaderMap) -> Vec<String> {
    let lists = sent.get_all("connection").iter().filter_map(|list| list.to_str().ok());
    lists.flat_map(|list| list.split(',')).map(|name| name.trim().to_ascii_lowercase()).collect()
}

fn is_of_connection(name: &str) -> bool {
    let names = "close connection keep-alive proxy-connection proxy-authenticate proxy-authorization te transfer-encoding upgrade";
    names.split(' ').any(|one| one == name)
}

fn is_claim(name: &str) -> bool {
    ["x-forwarded-client-cert", "client-cert", "client-cert-chain"].contains(&&dashed(name)[..])
}

fn dashed(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}

fn without(sent: &HeaderMap, unwanted: impl Fn(&str) -> bool) -> HeaderMap {
    let kept = sent.iter().filter(|(name, _)| !unwanted(name.as_str()));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// gRPC needs `te: trailers`; nothing else of it goes on.
fn with_te(mut expected: HeaderMap, sent: &HeaderMap) -> HeaderMap {
    let lists = sent.get_all("te").iter().filter_map(|list| list.to_str().ok());
    if lists.flat_map(|list| list.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers")) {
        expected.insert("te", HeaderValue::from_static("trailers"));
    }
    expected
}

fn same(one: &HeaderMap, other: &HeaderMap) {
    assert_eq!(one, other);
}
