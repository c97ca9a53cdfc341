//! What does a bearer token prove? JWT-SVIDs, fetched for ourselves and validated for others.
//!
//! A token is shown where no certificate can be: it is worth something to whoever holds it, so it is for
//! one audience and lives for minutes. The checks are those of the crate `spiffe`, to which this adds the
//! rules for names that all of our identities follow: a token is only ever checked against the keys of the
//! trust domain that its subject names, with the key that its header names, and with the algorithms
//! ES256, ES384, RS* and PS* (JWT-SVID §3 lists ES512 too, which the cryptography below cannot verify).

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spiffe::{JwtBundle, JwtBundleSet, JwtSvidError, WorkloadApiClient};
use zeroize::Zeroizing;

use super::bundle_document::BundleDocument;
use super::workload_api::{Failure, PATIENCE, connect};
use super::{IdError, SpiffeId, TrustDomain};

/// A JWT-SVID: who it names and how long. The token itself is a secret and never shown by `Debug`.
#[derive(Clone)]
pub struct JwtSvid {
    id: SpiffeId,
    expires: SystemTime,
    token: Zeroizing<String>,
}

impl JwtSvid {
    /// Whom it names.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// From this instant on it proves nothing.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// What goes behind `Authorization: Bearer`.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    fn read(svid: &spiffe::JwtSvid) -> Result<Self, TokenError> {
        let expires = u64::try_from(svid.expiry().unix_timestamp());
        let expires = expires.map_err(|_| JwtSvidError::InvalidExpiration)?;
        Ok(Self {
            // Our own rules for IDs are stricter: a path, and one spelling only.
            id: SpiffeId::parse(svid.claims().sub()).map_err(TokenError::Subject)?,
            expires: UNIX_EPOCH
                .checked_add(Duration::from_secs(expires))
                .ok_or(JwtSvidError::InvalidExpiration)?,
            token: Zeroizing::new(svid.token().to_owned()),
        })
    }
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid")
            .field("id", &self.id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// The keys that sign JWT-SVIDs, of each trust domain.
#[derive(Clone, Debug)]
pub struct JwtBundles(JwtBundleSet);

impl JwtBundles {
    /// Takes the JWT keys of bundle documents.
    ///
    /// # Errors
    /// [`IdError`] for a trust domain that the standard does not know, which [`TrustDomain`] rules out.
    pub fn of<'a>(
        documents: impl IntoIterator<Item = (&'a TrustDomain, &'a BundleDocument)>,
    ) -> Result<Self, IdError> {
        let mut bundles = JwtBundleSet::new();
        for (domain, document) in documents {
            let mut bundle = JwtBundle::new(spiffe::TrustDomain::new(domain.as_str())?);
            for key in &document.jwt {
                let jwk = serde_json::Value::Object(key.jwk().clone()).to_string();
                // It asks for a name and nothing else, and each key of a document has one.
                let _ = bundle.add_jwk_authority_json(jwk.as_bytes());
            }
            bundles.add_bundle(bundle);
        }
        Ok(Self(bundles))
    }
}

/// Fetches a token for `audience` from the Workload API at `endpoint` (`unix:///…`): for the identity
/// `wanted`, or else for the default one.
///
/// # Errors
/// [`FetchError`] if the provider cannot be asked, or gives something else than was asked for.
pub async fn fetch(
    endpoint: &str,
    audience: &str,
    wanted: Option<&SpiffeId>,
) -> Result<JwtSvid, FetchError> {
    if audience.is_empty() {
        return Err(FetchError::Token(TokenError::NoAudience));
    }
    let id = match wanted {
        Some(wanted) => Some(spiffe::SpiffeId::new(wanted.as_str()).map_err(IdError::from)?),
        None => None,
    };
    let asking = async |client: WorkloadApiClient| {
        let fetched = client.fetch_jwt_svid([audience], id.as_ref()).await;
        fetched.map_err(Failure::from)
    };
    let svid = ask(endpoint, asking).await?;
    let found = JwtSvid::read(&svid)?;
    if wanted.is_some_and(|wanted| *wanted != found.id) {
        return Err(FetchError::Other(found.id));
    }
    if !svid.audience().iter().any(|named| named == audience) {
        return Err(FetchError::Audience);
    }
    Ok(found)
}

/// Fetches the keys of all trust domains that the Workload API at `endpoint` knows of.
///
/// # Errors
/// [`FetchError`] if the provider cannot be asked.
pub async fn fetch_bundles(endpoint: &str) -> Result<JwtBundles, FetchError> {
    let asking = async |client: WorkloadApiClient| {
        let fetched = client.fetch_jwt_bundles().await;
        fetched.map_err(Failure::from)
    };
    Ok(JwtBundles(ask(endpoint, asking).await?))
}

async fn ask<T>(
    endpoint: &str,
    asking: impl AsyncFnOnce(WorkloadApiClient) -> Result<T, Failure>,
) -> Result<T, FetchError> {
    let answer = async { asking(connect(endpoint).await?).await };
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    answer
        .unwrap_or(Err(Failure::Silent))
        .map_err(FetchError::Provider)
}

/// Checks what somebody shows as a token for `audience` (JWT-SVID §5), now: form, algorithm, key,
/// signature, audience, times. No leeway is given for clocks.
///
/// # Errors
/// [`TokenError`] says why it proves nothing.
pub fn validate(token: &str, audience: &str, bundles: &JwtBundles) -> Result<JwtSvid, TokenError> {
    if audience.is_empty() {
        return Err(TokenError::NoAudience);
    }
    if token.len() > LONGEST_TOKEN {
        return Err(TokenError::TooLong);
    }
    let svid = spiffe::JwtSvid::parse_and_validate(token, &bundles.0, &[audience])?;
    JwtSvid::read(&svid)
}

/// Headers of HTTP are seldom longer, in bytes.
const LONGEST_TOKEN: usize = 16 * 1024;

/// Why a token proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// A token for everybody is a token for every thief.
    #[error("an audience must be named")]
    NoAudience,
    /// More than we look at.
    #[error("it is longer than {LONGEST_TOKEN} bytes")]
    TooLong,
    /// A rule of the standard that it breaks.
    #[error("it is no valid JWT-SVID")]
    Standard(#[from] JwtSvidError),
    /// Its subject is not the name of a workload.
    #[error("its subject is no SPIFFE ID of a workload")]
    Subject(#[source] IdError),
}

/// Why no token, or no keys, were fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The provider cannot be asked, or has nothing for us.
    #[error("the Workload API gives no JWT-SVID")]
    Provider(#[source] Failure),
    /// What it gave is no token.
    #[error("the token from the Workload API cannot be used")]
    Token(#[from] TokenError),
    /// It gave one for somebody else.
    #[error("the token from the Workload API is of {0}, which was not asked for")]
    Other(SpiffeId),
    /// It gave one for others to read.
    #[error("the token from the Workload API is not for the audience that was asked for")]
    Audience,
    /// The ID that was asked for is none by the standard.
    #[error(transparent)]
    Id(#[from] IdError),
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::jwk::Jwk;
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384};
    use serde_json::{Value, json};

    use super::*;

    const US: &str = "example.org";
    const THEM: &str = "partner.example";
    const AUDIENCE: &str = "https://api.example.org";

    /// A trust domain's signing key, and its public half under the name `kid`.
    struct Key(EncodingKey, Value, KeyPair);

    impl Key {
        fn new(kid: &str, algorithm: Algorithm) -> Self {
            let pair = match algorithm {
                Algorithm::ES384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
                _ => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            };
            let pair = pair.unwrap();
            let key = EncodingKey::from_ec_der(pair.serialized_der());
            let jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
            let mut jwk = serde_json::to_value(jwk).unwrap();
            jwk["kid"] = kid.into();
            jwk["use"] = "jwt-svid".into();
            Self(key, jwk, pair)
        }
    }

    fn bundles(keys: &[(&str, &[&Key])]) -> JwtBundles {
        let documents: Vec<_> = keys
            .iter()
            .map(|(domain, keys)| {
                let keys: Vec<_> = keys.iter().map(|key| &key.1).collect();
                let text = json!({ "keys": keys }).to_string();
                let document = BundleDocument::parse(text.as_bytes()).unwrap();
                (TrustDomain::parse(domain).unwrap(), document)
            })
            .collect();
        JwtBundles::of(
            documents
                .iter()
                .map(|(domain, document)| (domain, document)),
        )
        .unwrap()
    }

    fn now() -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
    }

    fn claims() -> Value {
        json!({ "sub": "spiffe://example.org/a", "aud": [AUDIENCE, "b"], "exp": now() + 60 })
    }

    fn header(kid: &str, algorithm: Algorithm) -> Header {
        Header {
            kid: Some(kid.into()),
            ..Header::new(algorithm)
        }
    }

    fn sign(header: &Header, claims: &Value, key: &EncodingKey) -> String {
        jsonwebtoken::encode(header, claims, key).unwrap()
    }

    #[test]
    fn a_good_token_says_who_and_until_when() {
        for algorithm in [Algorithm::ES256, Algorithm::ES384] {
            let key = Key::new("k", algorithm);
            let token = sign(&header("k", algorithm), &claims(), &key.0);
            let bundles = bundles(&[(US, &[&key]), (THEM, &[])]);
            let svid = validate(&token, AUDIENCE, &bundles).unwrap();
            assert_eq!(svid.id().as_str(), "spiffe://example.org/a");
            assert_eq!(svid.token(), token);
            let left = svid.expires().duration_since(SystemTime::now()).unwrap();
            assert!(left <= Duration::from_secs(60));
            assert!(!format!("{svid:?}").contains(&token));
        }
    }

    #[test]
    fn a_token_that_breaks_a_rule_proves_nothing() {
        let key = Key::new("k", Algorithm::ES256);
        let theirs = Key::new("theirs", Algorithm::ES256);
        let bundles = bundles(&[(US, &[&key]), (THEM, &[&theirs])]);
        let good = header("k", Algorithm::ES256);
        let with = |name: &str, value: Value| {
            let mut claims = claims();
            claims[name] = value;
            sign(&good, &claims, &key.0)
        };
        let without = |name: &str| {
            let mut claims = claims();
            claims.as_object_mut().unwrap().remove(name);
            sign(&good, &claims, &key.0)
        };
        let secret = EncodingKey::from_secret(key.2.public_key_raw());
        let whole = sign(&good, &claims(), &key.0);
        let (signed, _) = whole.rsplit_once('.').unwrap();
        let (_, other_signature) = with("jti", "x".into())
            .rsplit_once('.')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        let none = format!(
            "{}.{}.",
            encoded(br#"{"alg":"none","kid":"k"}"#),
            encoded(claims().to_string().as_bytes())
        );
        assert!(validate(&whole, AUDIENCE, &bundles).is_ok());
        for (what, token) in [
            ("nothing", String::new()),
            ("no token", "a.b.c".into()),
            ("no signature", signed.into()),
            (
                "another token's signature",
                format!("{signed}.{other_signature}"),
            ),
            ("the algorithm `none`", none),
            (
                "a public key as a secret",
                sign(&header("k", Algorithm::HS256), &claims(), &secret),
            ),
            ("another audience", with("aud", json!(["b"]))),
            ("no audience", without("aud")),
            ("ended", with("exp", json!(now() - 1))),
            ("endless", without("exp")),
            ("not begun", with("nbf", json!(now() + 30))),
            ("no subject", without("sub")),
            ("a subject that is no SPIFFE ID", with("sub", "a".into())),
            (
                "a trust domain as subject",
                with("sub", "spiffe://example.org".into()),
            ),
            (
                "another spelling of a subject",
                with("sub", "spiffe://Example.org/a".into()),
            ),
            (
                "somebody of an unknown trust domain",
                with("sub", "spiffe://strange.example/a".into()),
            ),
            (
                "somebody of theirs, signed by our key",
                with("sub", "spiffe://partner.example/a".into()),
            ),
            (
                "somebody of ours, signed by their key",
                sign(&header("theirs", Algorithm::ES256), &claims(), &theirs.0),
            ),
            (
                "their key under our key's name",
                sign(&good, &claims(), &theirs.0),
            ),
            (
                "an unknown key",
                sign(&header("x", Algorithm::ES256), &claims(), &key.0),
            ),
            (
                "no key named",
                sign(&Header::new(Algorithm::ES256), &claims(), &key.0),
            ),
            (
                "another type",
                sign(
                    &Header {
                        typ: Some("at+jwt".into()),
                        ..good.clone()
                    },
                    &claims(),
                    &key.0,
                ),
            ),
            (
                "too long a token",
                with("x", "x".repeat(LONGEST_TOKEN).into()),
            ),
        ] {
            assert!(validate(&token, AUDIENCE, &bundles).is_err(), "{what}");
        }
        assert!(matches!(
            validate(&whole, "", &bundles),
            Err(TokenError::NoAudience)
        ));
    }

    fn encoded(text: &[u8]) -> String {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    }
}
