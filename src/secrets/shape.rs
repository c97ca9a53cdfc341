//! What does a standing secret look like, and where in a request does it stand?
//!
//! The tables prefer to miss one to claiming what is none: a claim goes against somebody's name, and under
//! `deny` it refuses. What is missing here an operator adds by name.

use std::borrow::Cow;
use std::ops::Deref;
use std::time::SystemTime;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::GeneralPurpose;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use zeroize::Zeroizing;

use super::Kind;
use super::jwt::{self, Life};

/// What a place in a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Credentials behind the name of their scheme (RFC 9110 §11.4).
    Credentials,
    /// A key, by the name of the place: whatever stands here is one, unless it is a JWT, which says itself
    /// how long it lives.
    Key,
    /// A token of any sort: only one that shows by itself how long it lives is claimed.
    Token,
}

/// A standing secret in a request.
pub(super) struct Claim<'a> {
    pub(super) kind: Kind,
    pub(super) secret: Secret<'a>,
}

/// The secret alone, without what it is wrapped in: the same wherever it stands. No `Debug`.
pub(super) enum Secret<'a> {
    AsSent(&'a [u8]),
    Decoded(Zeroizing<Vec<u8>>),
}

impl Deref for Secret<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::AsSent(bytes) => bytes,
            Self::Decoded(bytes) => bytes,
        }
    }
}

/// Headers whose name ends so hold a key, whatever vendor's name stands before: `x-api-key`,
/// `x-goog-api-key`, `dd-api-key`, `apikey`, `x-acme-api-token`.
const KEY_ENDINGS: [&str; 3] = ["api-key", "apikey", "api-token"];

/// Other headers that hold a key. All names end in `n` or `y`, as [`of_header`] relies on.
///
/// Not here, because what they hold ends by itself: `x-amz-security-token` (STS, hours), `x-vault-token`
/// (a lease, which a login by SPIFFE makes short), `job-token` (GitLab, as long as the job). Nor
/// `idempotency-key`, `sec-websocket-key` and their like, which are no secrets; nor cookies.
const KEY_HEADERS: [&str; 14] = [
    "x-auth-token", // many; a session's token is mostly a JWT, which is judged by its life
    "x-access-token", // the same
    "x-auth-key",   // Cloudflare's global key
    "private-token", // GitLab, personal
    "deploy-token", // GitLab, of a project
    "x-gitlab-token", // GitLab's web hooks: a shared word
    "x-consul-token", // Consul: without end unless asked otherwise
    "x-nomad-token", // Nomad: the same
    "circle-token", // CircleCI
    "x-figma-token", // Figma
    "x-shopify-access-token", // Shopify, of an installed app
    "x-functions-key", // Azure Functions
    "ocp-apim-subscription-key", // Azure API Management
    "dd-application-key", // Datadog
];

/// Query parameters that hold a key. All names of parameters end in `n`, `t` or `y`, as [`of_parameter`]
/// relies on.
const KEY_PARAMETERS: [&str; 7] = [
    "api_key",
    "apikey",
    "x-api-key",
    "api_token",
    "private_token",    // GitLab
    "subscription-key", // Azure API Management
    "client_secret",    // OAuth 2.0 (RFC 6749 §2.3.1 forbids it here, which stops nobody)
];

/// Query parameters that may hold anything.
///
/// Not here: `sig`, `signature`, `x-amz-signature` (proof made with a key for a limited time, not the
/// key), `code`, `state` and `nonce` (used once).
const TOKEN_PARAMETERS: [&str; 4] = [
    "access_token", // RFC 6750 §2.3
    "auth_token",
    "token",
    "key", // Google's keys show by their beginning; otherwise what a search is for
];

/// Schemes of `authorization` with a key behind them. Those that prove possession of a key without
/// sending it are not claimed: `Digest`, `Negotiate`, `AWS4-HMAC-SHA256`, `Signature`, `Hawk`, `DPoP`.
const KEY_SCHEMES: [&str; 7] = [
    "token",    // GitHub, Django
    "apikey",   // Elasticsearch
    "api-key",  // Yandex
    "key",      // many
    "bot",      // Discord
    "ssws",     // Okta
    "geniekey", // Opsgenie
];

/// What vendors begin keys with that end only when somebody withdraws them, or after months. Tokens of the
/// same vendors that end within hours have other beginnings: `ghs_`, `ghu_`, `xoxe.`, `glcbt-`, `ASIA`. An
/// `AKIA…` is the name of a key of AWS, not the key.
const KEY_BEGINNINGS: [&str; 21] = [
    "ghp_",
    "gho_",
    "github_pat_",
    "glpat-",
    "gldt-",
    "npm_",
    "pypi-",
    "sk_live_", // Stripe
    "sk_test_",
    "rk_live_",
    "rk_test_",
    "xoxb-", // Slack
    "xoxp-",
    "xapp-",
    "sk-ant-",  // Anthropic
    "sk-proj-", // OpenAI
    "AIza",     // Google
    "shpat_",   // Shopify
    "dop_v1_",  // DigitalOcean
    "glsa_",    // Grafana
    "lin_api_", // Linear
];

/// In bytes: the shortest of those keys is longer, and what is shorter may be any word.
const SHORTEST_KEY: usize = 20;

/// In bytes: a longer name is none that anybody knows, and would make records long.
pub(super) const LONGEST_NAME: usize = 64;

/// What stands in the header `name`, if it is one that holds secrets.
pub(super) fn of_header(name: &str, own: &[String]) -> Option<Place> {
    // Every request pays for this, so nearly all names are dismissed by their last byte.
    if let Some(b'n' | b'y') = name.as_bytes().last()
        && name.len() <= LONGEST_NAME
    {
        if name == "authorization" || name == "proxy-authorization" {
            return Some(Place::Credentials);
        }
        let ends = |ending: &&str| {
            let from = name.len().checked_sub(ending.len());
            let end = from.and_then(|from| name.as_bytes().get(from..));
            end.is_some_and(|end| alike(end, ending))
        };
        let is = |key: &&str| alike(name.as_bytes(), key);
        if KEY_ENDINGS.iter().any(ends) || KEY_HEADERS.iter().any(is) {
            return Some(Place::Key);
        }
    }
    own.iter()
        .any(|own| alike(name.as_bytes(), own))
        .then_some(Place::Key)
}

/// What stands in a query's parameter `name`, if it is one that holds secrets, and how that is called.
pub(super) fn of_parameter(name: &str, own: &[String]) -> Option<(Place, Cow<'static, str>)> {
    // An operator's word counts more than ours.
    if let Some(own) = own.iter().find(|own| alike(name.as_bytes(), own)) {
        return Some((Place::Key, Cow::Owned(own.clone())));
    }
    // As for headers.
    let (b'n' | b't' | b'y') = name.as_bytes().last()?.to_ascii_lowercase() else {
        return None;
    };
    let known = |names: &'static [&'static str], place| {
        let found = names.iter().find(|known| alike(name.as_bytes(), known));
        found.map(|known| (place, Cow::Borrowed(*known)))
    };
    known(&KEY_PARAMETERS, Place::Key).or_else(|| known(&TOKEN_PARAMETERS, Place::Token))
}

/// Whether `name` is `known`, whatever their case and whether they have `_` or `-`.
pub(super) fn alike(name: &[u8], known: &str) -> bool {
    let fold = |byte: &u8| match byte {
        b'_' => b'-',
        byte => byte.to_ascii_lowercase(),
    };
    name.len() == known.len()
        && name
            .iter()
            .zip(known.as_bytes())
            .all(|(a, b)| fold(a) == fold(b))
}

/// The standing secret that the `value` of a header is, if it is one.
pub(super) fn in_header(place: Place, value: &[u8], now: SystemTime) -> Option<Claim<'_>> {
    let value = value.trim_ascii();
    if place != Place::Credentials {
        return judge(place, Kind::ApiKeyHeader, Secret::AsSent(value), now);
    }
    // Some send a token without the name of a scheme.
    let space = value.iter().position(u8::is_ascii_whitespace);
    let (scheme, credentials) = value.split_at(space.unwrap_or(0));
    let credentials = credentials.trim_ascii();
    let is = |known: &&str| scheme.eq_ignore_ascii_case(known.as_bytes());
    if is(&"basic") {
        return basic(credentials);
    }
    let place = if KEY_SCHEMES.iter().any(is) {
        Place::Key
    } else if scheme.is_empty() || is(&"bearer") {
        Place::Token
    } else {
        return None;
    };
    judge(place, Kind::ApiKeyHeader, Secret::AsSent(credentials), now)
}

/// The standing secret that one `name=value` of a query is, if it is one, and the name of its parameter.
pub(super) fn in_parameter<'a>(
    pair: &'a str,
    own: &[String],
    now: SystemTime,
) -> Option<(Cow<'static, str>, Claim<'a>)> {
    let (name, value) = pair.split_once('=')?;
    let (place, name, secret) = if is_encoded(name) || is_encoded(value) {
        // Each character of a name may be written as three.
        if name.len() > 3 * LONGEST_NAME {
            return None;
        }
        let (name, value) = form_urlencoded::parse(pair.as_bytes()).next()?;
        let (place, name) = of_parameter(&name, own)?;
        let value = Zeroizing::new(value.into_owned().into_bytes());
        (place, name, Secret::Decoded(value))
    } else {
        let (place, name) = of_parameter(name, own)?;
        (place, name, Secret::AsSent(value.as_bytes()))
    };
    let claim = judge(place, Kind::ApiKeyQuery, secret, now)?;
    Some((name, claim))
}

/// Whether `text` of a query means something else than it says.
fn is_encoded(text: &str) -> bool {
    text.bytes().any(|byte| matches!(byte, b'%' | b'+'))
}

fn judge(place: Place, key: Kind, secret: Secret<'_>, now: SystemTime) -> Option<Claim<'_>> {
    if secret.is_empty() {
        return None;
    }
    let kind = match jwt::life(&secret, now) {
        Some(Life::Short) => return None,
        Some(Life::Long) => Kind::BearerLongLived,
        Some(Life::Endless) => Kind::BearerNoExpiry,
        None if place == Place::Key || is_vendors_key(&secret) => key,
        None => return None,
    };
    Some(Claim { kind, secret })
}

fn is_vendors_key(token: &[u8]) -> bool {
    let begins = |beginning: &&str| token.starts_with(beginning.as_bytes());
    token.len() >= SHORTEST_KEY && KEY_BEGINNINGS.iter().any(begins)
}

/// RFC 7617: user and password. What cannot be decoded is for its recipient to refuse, and a secret
/// until then.
fn basic(credentials: &[u8]) -> Option<Claim<'_>> {
    let secret = match BASE64.decode(credentials) {
        Ok(decoded) => Secret::Decoded(Zeroizing::new(decoded)),
        Err(_) => Secret::AsSent(credentials),
    };
    // Nobody, without a password.
    if secret.is_empty() || *secret == *b":" {
        return None;
    }
    let kind = Kind::Basic;
    Some(Claim { kind, secret })
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_in_the_tables_is_found() {
        for name in KEY_ENDINGS.iter().chain(&KEY_HEADERS) {
            assert_eq!(of_header(name, &[]), Some(Place::Key), "{name}");
        }
        let tables = [
            (&KEY_PARAMETERS[..], Place::Key),
            (&TOKEN_PARAMETERS, Place::Token),
        ];
        for (names, place) in tables {
            for name in names {
                for name in [name.to_string(), name.to_uppercase()] {
                    let found = of_parameter(&name, &[]).map(|(place, _)| place);
                    assert_eq!(found, Some(place), "{name}");
                }
            }
        }
    }
}
