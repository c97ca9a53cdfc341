//! How long does a token say that it lives? Its signature is the application's business.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use zeroize::Zeroizing;

/// The life of a JSON Web Token (RFC 7519).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It ends within [`A_DAY`].
    Short,
    /// It ends later.
    Long,
    /// It does not end.
    Endless,
}

/// What a credential may live without being called standing.
pub(super) const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// The life of `token`: `exp - iat`, or where it does not say when it was issued, `exp - now`. `None` for
/// what is no signed or unsecured JWT: an encrypted one (five parts) shows nothing, and one with claims of
/// the wrong type is for its recipient to refuse.
pub(super) fn life(token: &[u8], now: SystemTime) -> Option<Life> {
    if token.len() > LONGEST {
        return None;
    }
    let mut parts = str::from_utf8(token).ok()?.splitn(3, '.');
    let (header, claims, signature) = (parts.next()?, parts.next()?, parts.next()?);
    if signature.contains('.') {
        return None;
    }
    let _: Header = decoded(header)?;
    let Claims { exp, iat } = decoded(claims)?;
    let Some(exp) = exp else {
        return Some(Life::Endless);
    };
    let since_1970 = || now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let from = iat.unwrap_or_else(|| since_1970().as_secs_f64());
    Some(if exp - from > A_DAY.as_secs_f64() {
        Life::Long
    } else {
        Life::Short
    })
}

/// In bytes; what is longer is not looked into. Most servers take no longer header at all.
const LONGEST: usize = 16 * 1024;

/// RFC 7515 §4.1.1: the one member that every header has.
#[derive(Deserialize)]
struct Header {
    #[serde(rename = "alg")]
    _alg: IgnoredAny,
}

/// RFC 7519 §4.1.4 and §4.1.6: seconds since 1970, not necessarily whole.
#[derive(Deserialize)]
struct Claims {
    exp: Option<f64>,
    iat: Option<f64>,
}

fn decoded<T: DeserializeOwned>(part: &str) -> Option<T> {
    let json = Zeroizing::new(URL_SAFE_NO_PAD.decode(part).ok()?);
    // Whatever else reads as these, such as a list of their values, is no JWT.
    (json.trim_ascii_start().first() == Some(&b'{')).then_some(())?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        let part = |json: &str| URL_SAFE_NO_PAD.encode(json);
        format!("{}.{}.c2lnbmF0dXJl", part(header), part(claims))
    }

    fn life_of(token: &str) -> Option<Life> {
        life(
            token.as_bytes(),
            UNIX_EPOCH + Duration::from_secs(1_000_000),
        )
    }

    #[test]
    fn a_token_lives_from_its_issue_or_from_now_to_its_end() {
        for (claims, expected) in [
            (r#"{"exp":1003600,"iat":1000000}"#, Life::Short),
            (r#"{"iat":1000000,"exp":1086400}"#, Life::Short),
            (r#"{"iat":1000000,"exp":1086401}"#, Life::Long),
            (r#"{"iat":1000000.5,"exp":1086400.75}"#, Life::Long),
            (r#"{"exp":1003600}"#, Life::Short),
            (r#"{"exp":1086401}"#, Life::Long),
            (r#"{"exp":1}"#, Life::Short),
            (r#"{"exp":-1e300,"iat":1e300}"#, Life::Short),
            (r#"{"exp":1e300,"iat":-1e300}"#, Life::Long),
            (r#"{"iat":1000000}"#, Life::Endless),
            (r#"{"exp":null}"#, Life::Endless),
            ("{}", Life::Endless),
            (r#" {"sub":"a","aud":["b"],"x":{"exp":1}}"#, Life::Endless),
        ] {
            let found = life_of(&token(r#"{"alg":"ES256"}"#, claims));
            assert_eq!(found, Some(expected), "{claims}");
        }
    }

    #[test]
    fn what_is_malformed_is_no_jwt() {
        let (alg, exp) = (r#"{"alg":"ES256"}"#, r#"{"exp":1}"#);
        let whole = token(alg, exp);
        let deep = format!("{}1", r#"{"x":"#.repeat(3000));
        for text in [
            String::new(),
            ".".into(),
            "..".into(),
            "a.b.c".into(),
            "api.example.org".into(),
            whole.replace('.', ""),
            format!("{whole}.x"),
            format!("{whole}.x.y"),
            format!("={whole}"),
            token("{}", exp),
            token(r#"["ES256"]"#, exp),
            token(alg, r#"[1,2]"#),
            token(alg, r#"{"exp":"1"}"#),
            token(alg, r#"{"exp":1,"exp":2}"#),
            token(alg, r#"{"exp":1e999}"#),
            token(alg, "nonsense"),
            token(alg, &deep),
            format!("{}{}", whole, "x".repeat(LONGEST)),
        ] {
            assert_eq!(life_of(&text), None, "{text}");
        }
    }
}
