//! Which path does policy decide on? Only one that the application cannot read as another.
//!
//! Applications disagree on `..`, `//`, `\`, `;` and percent-encoding. Where they might read another path
//! than the grant speaks of, there is nothing to decide: the request is refused.

use std::borrow::Cow;

/// The path that grants are held against: unreserved characters stand unencoded (RFC 3986 §6.2.2.2).
///
/// # Errors
/// [`Ambiguous`] if the application might read it as another path.
pub fn decided(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    // The common case is settled without touching the heap.
    if path.bytes().all(is_plain) && !has_odd_segment(path) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path)?;
    if has_odd_segment(&decoded)
        || decoded
            .bytes()
            .any(|byte| byte == b'\\' || byte < b' ' || byte == 0x7f)
    {
        return Err(Ambiguous);
    }
    Ok(Cow::Owned(decoded))
}

/// The path could mean two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path could be read as another path")]
pub struct Ambiguous;

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,=:@".contains(&byte)
}

/// An empty segment before the last, or one that moves about: `.`, `..`, also with parameters behind.
fn has_odd_segment(path: &str) -> bool {
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split(';').next().unwrap_or_default();
        if matches!(name, "." | "..") || (segment.is_empty() && segments.peek().is_some()) {
            return true;
        }
    }
    false
}

fn decode(path: &str) -> Result<String, Ambiguous> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        let hex = rest.get(at + 1..at + 3).ok_or(Ambiguous)?;
        if !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Ambiguous);
        }
        let byte = u8::from_str_radix(hex, 16).map_err(|_| Ambiguous)?;
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                decoded.push(char::from(byte));
            }
            // What separates, ends or hides a path must be written plainly.
            b'/' | b'\\' | b'%' | b';' | 0..=0x1f | 0x7f => return Err(Ambiguous),
            _ => {
                decoded.push('%');
                decoded.push_str(&hex.to_ascii_uppercase());
            }
        }
        rest = &rest[at + 3..];
    }
    decoded.push_str(rest);
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_path_is_decided_as_it_stands() {
        for path in [
            "/",
            "/v1/invoices/7",
            "/a/",
            "/a.b/..c",
            "/@x:y(z)",
            "*",
            "/a;v=1/b",
        ] {
            assert_eq!(decided(path).as_deref(), Ok(path));
        }
    }

    #[test]
    fn needless_encoding_is_undone_and_needful_encoding_kept() {
        assert_eq!(decided("/%61dmin").as_deref(), Ok("/admin"));
        assert_eq!(decided("/caf%c3%a9/%20").as_deref(), Ok("/caf%C3%A9/%20"));
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for path in [
            "/a/../b",
            "/a/..",
            "/./a",
            "//a",
            "/a//b",
            "/a/%2e%2e/b",
            "/a/%2E./b",
            "/a%2fb",
            "/a%5cb",
            "/a\\..\\b",
            "/a/..;x=1/b",
            "/a/;/../b",
            "/a%00b",
            "/a%0d%0ab",
            "/a%252fb",
            "/a%2",
            "/a%zz",
            "/a%+1",
            "/a%3bb/..",
        ] {
            assert_eq!(decided(path), Err(Ambiguous), "{path}");
        }
    }
}
