//! Which host and path does a request name, and how is that written for the next hop?

use std::cell::RefCell;

use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::uri::{Authority, InvalidUri, Scheme};
use http::{HeaderValue, Method, Request, Uri, Version};
use http_body::Body;

use crate::outcome::Outcome;

/// A host that was found plain, as requests carry it over HTTP/2 and over HTTP/1.1.
struct Host {
    authority: Authority,
    header: HeaderValue,
}

thread_local! {
    /// The last one that a request named here. Most name the same as the one before them, and comparing takes a
    /// tenth of reading it again.
    static LAST: RefCell<Option<Host>> = const { RefCell::new(None) };
}

impl Host {
    /// What `taken` takes from the last one, if it is written so.
    fn last<T>(text: &[u8], taken: impl FnOnce(&Self) -> T) -> Option<T> {
        LAST.with_borrow(|last| {
            let same = |host: &&Self| host.authority.as_str().as_bytes() == text;
            last.as_ref().filter(same).map(taken)
        })
    }

    /// Keeps a copy: what comes with a request is a piece of all that was read with it.
    fn keep(authority: &Authority) {
        let text = authority.as_str();
        if let (Ok(authority), Ok(header)) =
            (Authority::try_from(text), HeaderValue::from_str(text))
        {
            LAST.set(Some(Self { authority, header }));
        }
    }
}

/// The one host that a request names, if it names any (RFC 9112 §3.2, RFC 9113 §8.3.1).
///
/// # Errors
/// When it names none although it must, or several; or asks for a tunnel.
pub fn check<B>(request: &Request<B>) -> Result<Option<Authority>, Outcome> {
    let path = request.uri().path();
    let whole_server = path == "*" && *request.method() == Method::OPTIONS;
    if *request.method() == Method::CONNECT || !(path.starts_with('/') || whole_server) {
        return Err(Outcome::BadRequest);
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) if host.is_empty() => None,
        (Some(host), None) => Some(read(host.as_bytes()).map_err(|_| Outcome::BadRequest)?),
        (Some(_), Some(_)) => return Err(Outcome::BadRequest),
    };
    let target = request.uri().authority();
    if [target, named.as_ref()]
        .into_iter()
        .flatten()
        .any(|authority| !passes(authority))
    {
        return Err(Outcome::BadRequest);
    }
    match (target, named) {
        // An absolute target counts, whatever the header says; over HTTP/2 the two must agree.
        (Some(target), Some(named)) if request.version() == Version::HTTP_2 && *target != named => {
            Err(Outcome::BadRequest)
        }
        (Some(target), _) => Ok(Some(target.clone())),
        (None, None)
            if request.version() == Version::HTTP_11 && !request.headers().contains_key(HOST) =>
        {
            Err(Outcome::BadRequest)
        }
        (None, named) => Ok(named),
    }
}

fn read(text: &[u8]) -> Result<Authority, InvalidUri> {
    Host::last(text, |host| host.authority.clone()).map_or_else(|| Authority::try_from(text), Ok)
}

/// [`is_plain`], found out once for those that are written alike.
fn passes(authority: &Authority) -> bool {
    if Host::last(authority.as_str().as_bytes(), |_| ()).is_some() {
        return true;
    }
    let plain = is_plain(authority);
    if plain {
        Host::keep(authority);
    }
    plain
}

/// Whether everybody reads the same host in it: no user before it (RFC 9110 §4.2.4), nothing encoded, and
/// behind it only a port.
fn is_plain(authority: &Authority) -> bool {
    let text = authority.as_str();
    if text.bytes().any(|byte| matches!(byte, b'@' | b'%')) {
        return false;
    }
    let is_port = |port: &str| {
        port.is_empty()
            || (port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok())
    };
    match &text[host_of(authority).len()..] {
        "" => true,
        rest => rest.strip_prefix(':').is_some_and(is_port),
    }
}

/// The host in an authority that [`check`] has let pass. In one that names a user too, [`Authority::host`] would
/// find it; nobody asks for that here, and finding it takes ten times as long.
pub fn host_of(authority: &Authority) -> &str {
    let text = authority.as_str();
    let end = match text.as_bytes() {
        [b'[', ..] => text.bytes().position(|byte| byte == b']').map(|at| at + 1),
        _ => text.bytes().position(|byte| byte == b':'),
    };
    &text[..end.unwrap_or(text.len())]
}

/// Writes the target of `request` in the form that the next hop's protocol wants: over HTTP/2 with
/// scheme and authority, over HTTP/1.1 a path, and a `host` header. A body of unknown length goes in chunks
/// there, whatever the method.
///
/// # Errors
/// When the parts make no target.
pub fn address<B: Body>(
    request: &mut Request<B>,
    http2: bool,
    scheme: Scheme,
) -> Result<(), http::Error> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let body = request.body();
    let open_ended = !body.is_end_stream() && body.size_hint().exact().is_none();
    let headers = request.headers_mut();
    if http2 {
        headers.remove(TRANSFER_ENCODING);
        let host = headers.remove(HOST);
        if parts.authority.is_none() {
            parts.authority = Some(match host {
                Some(host) if !host.is_empty() => read(host.as_bytes())?,
                _ => Authority::from_static("localhost"),
            });
        }
        parts.scheme = Some(scheme);
        *request.version_mut() = Version::HTTP_2;
    } else {
        // An absolute target counts, whatever the header says.
        match parts.authority.take() {
            Some(authority) => {
                let text = authority.as_str();
                let host = Host::last(text.as_bytes(), |host| host.header.clone());
                drop(headers.insert(HOST, host.map_or_else(|| HeaderValue::from_str(text), Ok)?));
            }
            None if !headers.contains_key(HOST) => {
                drop(headers.insert(HOST, HeaderValue::from_static("")));
            }
            None => {}
        }
        // Unasked, hyper does this for all but GET and HEAD, whose bodies it would drop.
        if open_ended && !headers.contains_key(CONTENT_LENGTH) {
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = parts.path_and_query.map(Uri::from).unwrap_or_default();
        return Ok(());
    }
    *request.uri_mut() = Uri::from_parts(parts)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{Empty, StreamBody};

    use super::*;

    type Nothing = Empty<Bytes>;

    fn request(version: Version, method: &str, uri: &str, hosts: &[&str]) -> Request<Nothing> {
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(Empty::new()).unwrap()
    }

    #[test]
    fn a_request_names_one_host_or_is_refused() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        for (version, uri, hosts, named) in [
            (one, "/", &["a:1"][..], Some(Some("a:1"))),
            (one, "/", &["A:1"], Some(Some("A:1"))),
            (one, "/", &["a:1"], Some(Some("a:1"))),
            (one, "/", &["a:1@b"], None),
            (one, "http://b/", &["a"], Some(Some("b"))),
            (one, "/", &[""], Some(None)),
            (one, "/", &[], None),
            (one, "/", &["a", "a"], None),
            (one, "/", &["a b"], None),
            (one, "/", &["a/b"], None),
            (one, "/", &["b@a"], None),
            (one, "/", &["a%2eb"], None),
            (one, "/", &["a:b"], None),
            (one, "/", &["a:+1"], None),
            (one, "/", &["a:65536"], None),
            (one, "/", &["[::1]:80"], Some(Some("[::1]:80"))),
            (one, "http://b@a/", &["a"], None),
            (one, "a:1", &["a:1"], None),
            (one, "*", &["a"], None),
            (Version::HTTP_10, "/", &[], Some(None)),
            (two, "https://a/", &[], Some(Some("a"))),
            (two, "https://a/", &["a"], Some(Some("a"))),
            (two, "https://a/", &["b"], None),
        ] {
            let found = check(&request(version, "GET", uri, hosts)).ok();
            let found = found.map(|authority| authority.map(|authority| authority.to_string()));
            assert_eq!(
                found,
                named.map(|named| named.map(ToOwned::to_owned)),
                "{version:?} {uri} {hosts:?}"
            );
        }
        assert!(check(&request(one, "CONNECT", "a:1", &["a:1"])).is_err());
    }

    #[test]
    fn targets_translate_between_the_protocols_and_back() {
        let mut it = request(Version::HTTP_11, "GET", "/x?y=1", &["a:1"]);
        address(&mut it, true, Scheme::HTTPS).unwrap();
        assert_eq!(it.uri(), "https://a:1/x?y=1");
        assert!(!it.headers().contains_key(HOST));
        address(&mut it, false, Scheme::HTTPS).unwrap();
        assert_eq!(it.uri(), "/x?y=1");
        assert_eq!(it.headers()[HOST], "a:1");
        // The last one that was found plain is written as this one was.
        assert!(check(&request(Version::HTTP_11, "GET", "/", &["A:1"])).is_ok());
        for host in ["A:1", "a:1"] {
            let mut it = request(Version::HTTP_2, "GET", &format!("https://{host}/"), &[]);
            address(&mut it, false, Scheme::HTTPS).unwrap();
            assert_eq!(it.headers()[HOST], host);
            address(&mut it, true, Scheme::HTTPS).unwrap();
            assert_eq!(it.uri().to_string(), format!("https://{host}/"));
        }
        let mut old = request(Version::HTTP_10, "OPTIONS", "*", &[]);
        address(&mut old, true, Scheme::HTTP).unwrap();
        address(&mut old, false, Scheme::HTTP).unwrap();
        assert_eq!(
            (old.uri().path(), &old.headers()[HOST]),
            ("*", &HeaderValue::from_static("localhost"))
        );
    }

    #[test]
    fn a_body_of_unknown_length_is_not_lost_over_http_1_1() {
        let frames = futures_util::stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::new()))]);
        let mut it =
            request(Version::HTTP_2, "GET", "https://a/", &[]).map(|_| StreamBody::new(frames));
        address(&mut it, false, Scheme::HTTP).unwrap();
        assert_eq!(it.headers()[TRANSFER_ENCODING], "chunked");
        address(&mut it, true, Scheme::HTTP).unwrap();
        assert!(!it.headers().contains_key(TRANSFER_ENCODING));
        let mut none = request(Version::HTTP_2, "GET", "https://a/", &[]);
        address(&mut none, false, Scheme::HTTP).unwrap();
        assert!(!none.headers().contains_key(TRANSFER_ENCODING));
    }
}
