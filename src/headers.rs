//! Which HTTP headers do we strip, add, and never believe?

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE, VIA,
};
use http::{Method, Response, StatusCode, Version};

use crate::identity::SpiffeId;
use crate::outcome::Outcome;
use crate::tls::Peer;

/// Envoy's header: who called, as the proxy proved it.
pub const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// RFC 9440 §2.2: the caller's leaf certificate.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("client-cert");
/// RFC 9440 §2.3: the rest of the caller's chain.
pub const CLIENT_CERT_CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");
/// RFC 9209: which proxy made this response up, and why.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// How an application learns who calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdentityHeader {
    /// `x-forwarded-client-cert`, in Envoy's format.
    Xfcc,
    /// `client-cert` and `client-cert-chain` of RFC 9440.
    ClientCert,
    /// Both.
    Both,
    /// Neither; forged ones are stripped all the same.
    None,
}

/// The identity headers of one connection, made once.
#[derive(Clone, Debug, Default)]
pub struct Identity(Box<[(HeaderName, HeaderValue)]>);

impl Identity {
    /// Says of `peer` what `kind` asks for; `own` is our side of the connection.
    #[must_use]
    pub fn new(kind: IdentityHeader, peer: &Peer, own: &SpiffeId) -> Self {
        let chain = peer.chain().iter().map(AsRef::as_ref);
        let headers = said(kind, own, peer.id(), peer.fingerprint(), chain);
        // SPIFFE IDs, hex and Base64 are all visible ASCII. They live as long as the connection, so nothing is
        // kept of how they were put together.
        let valid = headers
            .into_iter()
            .filter_map(|(name, text)| Some((name, HeaderValue::from_str(&text).ok()?)));
        Self(valid.collect())
    }

    /// Puts them on a request from which [`strip_request`] has removed the peer's own claims.
    pub fn add_to(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            headers.insert(name.clone(), value.clone());
        }
    }
}

/// What the identity headers of `kind` say of a peer with this ID and this chain of certificates in DER, its
/// leaf first.
pub(crate) fn said<'a>(
    kind: IdentityHeader,
    own: &SpiffeId,
    peer: &SpiffeId,
    fingerprint: &[u8; 32],
    chain: impl Iterator<Item = &'a [u8]>,
) -> Vec<(HeaderName, String)> {
    let mut headers = Vec::new();
    if matches!(kind, IdentityHeader::Xfcc | IdentityHeader::Both) {
        let mut hash = String::with_capacity(64);
        for byte in fingerprint {
            // Writing to a string cannot fail.
            let _ = write!(hash, "{byte:02x}");
        }
        headers.push((XFCC, format!("By={own};Hash={hash};URI={peer}")));
    }
    if matches!(kind, IdentityHeader::ClientCert | IdentityHeader::Both) {
        let mut chain = chain.map(|der| format!(":{}:", STANDARD.encode(der)));
        headers.extend(chain.next().map(|leaf| (CLIENT_CERT, leaf)));
        let rest: Vec<_> = chain.collect();
        if !rest.is_empty() {
            headers.push((CLIENT_CERT_CHAIN, rest.join(", ")));
        }
    }
    headers
}

/// Refuses a request that the next server might read in another way than we do: one that leaves open where
/// it ends, or that wants headers removed which say so.
///
/// # Errors
/// [`Outcome::BadRequest`].
pub fn check_request(headers: &HeaderMap) -> Result<(), Outcome> {
    let vital = |name: &str| {
        [HOST, CONTENT_LENGTH]
            .iter()
            .any(|vital| name.eq_ignore_ascii_case(vital.as_str()))
    };
    if options(headers, CONNECTION).any(vital) || !is_framed(headers) {
        return Err(Outcome::BadRequest);
    }
    Ok(())
}

/// Refuses a response that leaves open where it ends, or that changes the protocol although nobody asked.
///
/// # Errors
/// [`Outcome::UpstreamFailed`].
pub fn check_response<B>(response: &Response<B>) -> Result<(), Outcome> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS || !is_framed(response.headers()) {
        return Err(Outcome::UpstreamFailed);
    }
    Ok(())
}

/// Whether everybody finds the same end of the body (RFC 9112 §6.3): one plain number, or chunks alone. Chunks
/// are taken off here, so what is coded in other ways besides could not be passed on.
fn is_framed(headers: &HeaderMap) -> bool {
    let (mut coding, mut length) = (None, None);
    // As in `strip`, one walk costs less than a look-up of each.
    for (name, value) in headers {
        let seen = match name {
            name if *name == TRANSFER_ENCODING => &mut coding,
            name if *name == CONTENT_LENGTH => &mut length,
            _ => continue,
        };
        if seen.replace(value.as_bytes()).is_some() {
            return false;
        }
    }
    match (coding, length) {
        (None, None) => true,
        (Some(coding), None) => coding.eq_ignore_ascii_case(b"chunked"),
        (None, Some(length)) => is_number(length),
        (Some(_), Some(_)) => false,
    }
}

/// Some read a number with a leading zero as octal.
fn is_number(text: &[u8]) -> bool {
    text == b"0"
        || (text.iter().all(u8::is_ascii_digit) && text.first().is_some_and(|first| *first != b'0'))
}

/// Makes a request fit for the next hop: removes what concerns one connection only (RFC 9110 §7.6.1) and
/// every header by which its sender might claim an identity. `te: trailers` stays: gRPC needs it.
///
/// A sender may name any header in `connection`. Headers that the proxy itself decides on are put on after
/// this, so that none can be removed that way.
pub fn strip_request(headers: &mut HeaderMap) {
    strip(headers, |name| {
        is_hop_by_hop(name) || is_claim(name) || is_disguised(name)
    });
}

/// Makes a response fit for the caller: removes what concerns one connection only.
pub fn strip_response(headers: &mut HeaderMap) {
    strip(headers, is_hop_by_hop);
}

/// Removes from trailers what claims an identity, frames or routes a message, proves who sent it or says
/// how to read it (RFC 9110 §6.5.1): some applications read trailers as if they were headers.
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip(trailers, |name| {
        is_hop_by_hop(name) || is_claim(name) || is_for_heads_only(name)
    });
}

/// Most messages have nothing to remove, and finding that out takes one look at each name: a look-up for
/// each header that there might be costs ten times as much.
fn strip(headers: &mut HeaderMap, unwanted: impl Fn(&HeaderName) -> bool) {
    let unwanted: Vec<HeaderName> = headers
        .keys()
        .filter(|name| unwanted(name))
        .cloned()
        .collect();
    for name in unwanted {
        if name == CONNECTION {
            for named in named_in_connection(headers) {
                headers.remove(named);
            }
        }
        if name == TE {
            keep_trailers_only(headers);
        } else {
            headers.remove(name);
        }
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        // Reserved, lest anybody takes it for the option (RFC 9110 §18.4).
        "close"
            | "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "transfer-encoding"
            | "upgrade"
    )
}

fn is_for_heads_only(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "authorization"
            | "cache-control"
            | "content-encoding"
            | "content-length"
            | "content-range"
            | "content-type"
            | "cookie"
            | "expect"
            | "forwarded"
            | "host"
            | "max-forwards"
            | "range"
            | "set-cookie"
            | "trailer"
    )
}

fn named_in_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    options(headers, CONNECTION)
        // What nearly all say. Headers of these names go anyway.
        .filter(|name| !matches!(*name, "close" | "keep-alive"))
        .filter_map(|name| HeaderName::try_from(name).ok())
        .filter(|name| *name != TE)
        .collect()
}

fn keep_trailers_only(headers: &mut HeaderMap) {
    let trailers = options(headers, TE).any(|coding| coding.eq_ignore_ascii_case("trailers"));
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// The items of a list in one or several headers of the same name.
fn options(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Whether a header claims an identity, also where it is written with `_` in the place of `-`:
/// applications behind CGI, WSGI or Rack cannot tell the two apart.
fn is_claim(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    [XFCC, CLIENT_CERT, CLIENT_CERT_CHAIN]
        .iter()
        .any(|ours| is_alike(name, ours))
}

/// Whether such an application would take a header for one that says where the body ends.
fn is_disguised(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    let frames = |ours: &HeaderName| is_alike(name, ours) && name != ours.as_str().as_bytes();
    [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(frames)
}

/// Few names are as long as one that is looked for, so this costs a request next to nothing.
fn is_alike(name: &[u8], ours: &HeaderName) -> bool {
    let ours = ours.as_str().as_bytes();
    let alike = |(a, b): (&u8, &u8)| a == b || (*a == b'_' && *b == b'-');
    name.len() == ours.len() && name.iter().zip(ours).all(alike)
}

/// The protocol that an HTTP/1.1 request asks to change to, such as `websocket` (RFC 9110 §7.8).
#[must_use]
pub fn upgrade(method: &Method, version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 || *method == Method::CONNECT {
        return None;
    }
    let protocol = headers.get(UPGRADE)?;
    let asked = options(headers, CONNECTION).any(|option| option.eq_ignore_ascii_case("upgrade"));
    // Further requests would pass out of every later decision's sight.
    let hidden = protocol
        .to_str()
        .map_or(true, |text| text.split(',').any(carries_requests));
    (asked && !hidden).then(|| protocol.clone())
}

/// Whether a protocol is HTTP once more, in another version or under TLS (RFC 2817).
fn carries_requests(protocol: &str) -> bool {
    let name = protocol.trim().split('/').next().unwrap_or_default();
    let carries = |http: &&str| name.eq_ignore_ascii_case(http);
    ["h2", "h2c", "h3", "http", "tls"].iter().any(carries)
}

/// Asks for, or grants, an upgrade on a message from which hop-by-hop headers were stripped.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Whether a request body is gRPC, which is answered in trailers even when refused.
#[must_use]
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Says in `via` which protocol the application spoke (RFC 9110 §7.6.3), so that the sidecar at the other
/// end can speak the same to its own.
pub fn add_via(headers: &mut HeaderMap, version: Version) {
    let value = if version == Version::HTTP_2 {
        VIA_2
    } else {
        VIA_1
    };
    headers.append(VIA, HeaderValue::from_static(value));
}

/// Takes our sidecar's `via` off again and returns what it said. An application sees no trace of us.
pub fn take_via(headers: &mut HeaderMap) -> Option<Version> {
    let mut written = headers.get_all(VIA).iter();
    let version = match written.next_back()?.as_bytes() {
        value if value == VIA_2.as_bytes() => Version::HTTP_2,
        value if value == VIA_1.as_bytes() => Version::HTTP_11,
        _ => return None,
    };
    let others: Vec<_> = written.cloned().collect();
    headers.remove(VIA);
    for value in others {
        headers.append(VIA, value);
    }
    Some(version)
}

const VIA_1: &str = "1.1 doorward";
const VIA_2: &str = "2 doorward";

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (
                name.parse::<HeaderName>().unwrap(),
                value.parse::<HeaderValue>().unwrap(),
            )
        };
        let mut map = HeaderMap::new();
        for (name, value) in list.iter().map(pair) {
            map.append(name, value);
        }
        map
    }

    #[test]
    fn hop_by_hop_headers_and_those_a_peer_names_go() {
        let mut map = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", "te"),
            ("x-secret", "1"),
            ("close", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic eDp5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        strip_request(&mut map);
        assert_eq!(map, headers(&[("te", "trailers"), ("accept", "*/*")]));
    }

    #[test]
    fn every_claimed_identity_goes() {
        let mut map = headers(&[
            ("x-forwarded-client-cert", "URI=spiffe://example.org/admin"),
            ("X-Forwarded-Client-Cert", "URI=spiffe://example.org/root"),
            ("client-cert", ":AAAA:"),
            ("client-cert-chain", ":AAAA:"),
            ("x_forwarded_client_cert", "URI=spiffe://example.org/admin"),
            ("X-Forwarded_Client-Cert", "URI=spiffe://example.org/admin"),
            ("client_cert", ":AAAA:"),
            ("Client_Cert_Chain", ":AAAA:"),
            ("client-cert-serial", "1"),
            ("x-client-cert", "1"),
            ("accept", "*/*"),
        ]);
        strip_request(&mut map);
        let kept = [
            ("client-cert-serial", "1"),
            ("x-client-cert", "1"),
            ("accept", "*/*"),
        ];
        assert_eq!(map, headers(&kept));
    }

    #[test]
    fn a_message_says_in_one_way_where_it_ends_or_is_refused() {
        for (list, sound) in [
            (&[][..], true),
            (&[("content-length", "0")], true),
            (&[("content-length", "10")], true),
            (&[("content-length", "")], false),
            (&[("content-length", "05")], false),
            (&[("content-length", "+5")], false),
            (&[("content-length", "5, 5")], false),
            (&[("content-length", "5"), ("content-length", "5")], false),
            (&[("transfer-encoding", "Chunked")], true),
            (&[("transfer-encoding", "gzip, chunked")], false),
            (&[("transfer-encoding", "chunked, chunked")], false),
            (&[("transfer-encoding", "identity")], false),
            (
                &[
                    ("transfer-encoding", "chunked"),
                    ("transfer-encoding", "chunked"),
                ],
                false,
            ),
            (
                &[("transfer-encoding", "chunked"), ("content-length", "5")],
                false,
            ),
        ] {
            let map = headers(list);
            assert_eq!(check_request(&map).is_ok(), sound, "{list:?}");
            let mut response = Response::new(());
            *response.headers_mut() = map;
            assert_eq!(check_response(&response).is_ok(), sound, "{list:?}");
        }
    }

    #[test]
    fn no_peer_can_have_removed_what_a_request_is_read_by() {
        for named in ["host", "close, Content-Length", "HOST"] {
            let map = headers(&[("connection", named)]);
            assert_eq!(check_request(&map), Err(Outcome::BadRequest), "{named}");
        }
        let harmless = headers(&[("connection", "keep-alive, x-hop")]);
        assert_eq!(check_request(&harmless), Ok(()));
    }

    #[test]
    fn another_protocol_unasked_is_no_response() {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        assert_eq!(check_response(&response), Err(Outcome::UpstreamFailed));
    }

    #[test]
    fn lengths_in_disguise_go() {
        let mut map = headers(&[
            ("content_length", "54"),
            ("Transfer_Encoding", "chunked"),
            ("content-length", "5"),
            ("content_type", "text/plain"),
        ]);
        strip_request(&mut map);
        let kept = [("content-length", "5"), ("content_type", "text/plain")];
        assert_eq!(map, headers(&kept));
    }

    #[test]
    fn trailers_frame_route_and_prove_nothing() {
        let mut map = headers(&[
            ("content-length", "5"),
            ("transfer-encoding", "chunked"),
            ("host", "other.example"),
            ("authorization", "Bearer x"),
            ("x-forwarded-client-cert", "URI=spiffe://example.org/admin"),
            ("connection", "x-sum"),
            ("set-cookie", "a=b"),
            ("grpc-status", "0"),
        ]);
        strip_trailers(&mut map);
        assert_eq!(map, headers(&[("grpc-status", "0")]));
    }

    #[test]
    fn only_a_real_upgrade_of_http_1_1_is_one() {
        let get = Method::GET;
        let asked = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
        ];
        let is = |version, list: &[(&str, &str)]| upgrade(&get, version, &headers(list)).is_some();
        assert!(is(Version::HTTP_11, &asked));
        assert!(!is(Version::HTTP_10, &asked));
        assert!(!is(Version::HTTP_2, &asked));
        assert!(!is(Version::HTTP_11, &asked[1..]));
        for hidden in [
            "h2c",
            "websocket, H2C",
            "HTTP/2.0",
            "TLS/1.3, HTTP/1.1",
            "h2",
        ] {
            let asked = [("connection", "upgrade"), ("upgrade", hidden)];
            assert!(!is(Version::HTTP_11, &asked), "{hidden}");
        }
    }

    #[test]
    fn via_carries_the_protocol_and_leaves_no_trace() {
        let mut map = headers(&[("via", "1.0 fred")]);
        add_via(&mut map, Version::HTTP_2);
        assert_eq!(take_via(&mut map), Some(Version::HTTP_2));
        assert_eq!(map, headers(&[("via", "1.0 fred")]));
        assert_eq!(take_via(&mut map), None);
    }
}
