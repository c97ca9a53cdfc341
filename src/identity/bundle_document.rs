//! What does a trust domain publish of its keys? The SPIFFE bundle document (Trust Domain and Bundle §4).
//!
//! It is a JWK Set with two further members. A key with the use `x509-svid` carries a root certificate
//! (X509-SVID §6.2), one with the use `jwt-svid` a public key and its name (JWT-SVID §6.2). Keys of
//! other uses or types are for others and passed over. What is for us must be right in everything, or the
//! whole document is refused: half a bundle would look as if the rest had been revoked.

use std::collections::BTreeSet;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::{Bundle, BundleError};

/// The keys of one trust domain, as published.
#[derive(Clone, Debug, PartialEq)]
pub struct BundleDocument {
    /// Grows with every change of the keys (§4.1.1).
    pub sequence: Option<u64>,
    /// How often to look for another document (§4.1.2). Whole seconds.
    pub refresh_hint: Option<Duration>,
    /// Who signs X509-SVIDs. Without roots it trusts nobody: the trust domain has revoked its keys.
    pub x509: Bundle,
    /// Who signs JWT-SVIDs.
    pub jwt: Vec<JwtKey>,
}

/// A public key that signs JWT-SVIDs.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtKey {
    id: String,
    jwk: Map<String, Value>,
}

impl JwtKey {
    /// A key of ours, whose JWK is right by how it was made.
    pub(crate) fn new(id: String, jwk: Map<String, Value>) -> Self {
        Self { id, jwk }
    }

    /// Its name, which a token's header says.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The key as a JWK (RFC 7517).
    #[must_use]
    pub fn jwk(&self) -> &Map<String, Value> {
        &self.jwk
    }
}

/// The largest document that is read, in bytes. A root takes about one thousand.
pub const LARGEST: usize = 1 << 20;

impl BundleDocument {
    /// Reads a document. An empty set of keys is a document too: it revokes all that were there before.
    ///
    /// # Errors
    /// [`BundleDocumentError`] says what is wrong, and in which key.
    pub fn parse(json: &[u8]) -> Result<Self, BundleDocumentError> {
        if json.len() > LARGEST {
            return Err(BundleDocumentError::TooLarge);
        }
        let set: JwkSet = serde_json::from_slice(json).map_err(BundleDocumentError::Json)?;
        let (mut roots, mut jwt, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
        for (index, jwk) in set.keys.into_iter().enumerate() {
            let key = Key::read(jwk).map_err(|problem| BundleDocumentError::Key(index, problem))?;
            match key {
                Key::X509(root) => roots.push(root),
                Key::Jwt(key) if names.insert(key.id.clone()) => jwt.push(key),
                Key::Jwt(key) => {
                    let problem = KeyProblem::SameName(key.id);
                    return Err(BundleDocumentError::Key(index, problem));
                }
                Key::Other => {}
            }
        }
        Ok(Self {
            sequence: set.spiffe_sequence,
            refresh_hint: set.spiffe_refresh_hint.map(Duration::from_secs),
            x509: Bundle::new(roots).map_err(BundleDocumentError::Root)?,
            jwt,
        })
    }

    /// Writes the document. Reading it gives the same again.
    #[must_use]
    pub fn render(&self) -> String {
        let roots = self.x509.certificates().map(|root| {
            // A root of another type of key would be in no bundle.
            let mut jwk = public_key(root).unwrap_or_default();
            jwk.insert("use".into(), X509_SVID.into());
            jwk.insert("x5c".into(), json!([STANDARD.encode(root)]));
            Value::Object(jwk)
        });
        let keys = self.jwt.iter().map(|key| {
            let mut jwk = key.jwk.clone();
            jwk.insert("use".into(), JWT_SVID.into());
            Value::Object(jwk)
        });
        let mut set = json!({ "keys": roots.chain(keys).collect::<Vec<_>>() });
        if let Some(sequence) = self.sequence {
            set["spiffe_sequence"] = sequence.into();
        }
        if let Some(hint) = self.refresh_hint {
            set["spiffe_refresh_hint"] = hint.as_secs().into();
        }
        set.to_string()
    }
}

/// Reads the roots from a file that an operator gives: certificates in PEM, or a bundle document.
///
/// # Errors
/// [`BundleFileError`] if it is neither, or holds no root.
pub fn read_file(text: &[u8]) -> Result<Bundle, BundleFileError> {
    if text.trim_ascii_start().starts_with(b"{") {
        let bundle = BundleDocument::parse(text)?.x509;
        let found = bundle.certificates().next().is_some();
        return found.then_some(bundle).ok_or(BundleFileError::Empty);
    }
    let blocks = pem::parse_many(text).map_err(BundleFileError::Pem)?;
    if let Some(other) = blocks.iter().find(|block| block.tag() != "CERTIFICATE") {
        return Err(BundleFileError::NotACertificate(other.tag().to_owned()));
    }
    if blocks.is_empty() {
        return Err(BundleFileError::Empty);
    }
    let roots = blocks.into_iter().map(|block| block.into_contents().into());
    Bundle::new(roots).map_err(BundleFileError::Root)
}

/// The document as it is written. A member that comes twice is an error.
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Map<String, Value>>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

/// One entry of the set.
enum Key {
    X509(CertificateDer<'static>),
    Jwt(JwtKey),
    /// Of a use or a type that is not for us.
    Other,
}

const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";

impl Key {
    fn read(jwk: Map<String, Value>) -> Result<Self, KeyProblem> {
        let text = |name| jwk.get(name).and_then(Value::as_str);
        match (text("use"), text("kty")) {
            (Some(X509_SVID), Some("EC" | "RSA" | "OKP")) => root(&jwk).map(Self::X509),
            // JWT-SVID §3: ES*, RS* and PS* are all there is.
            (Some(JWT_SVID), Some("EC" | "RSA")) => {
                if SECRETS.iter().any(|member| jwk.contains_key(*member)) {
                    return Err(KeyProblem::Secret);
                }
                let id = text("kid").filter(|id| !id.is_empty());
                let id = id.ok_or(KeyProblem::NoName)?.to_owned();
                serde_json::from_value::<jsonwebtoken::jwk::Jwk>(shape(&jwk))
                    .ok()
                    .filter(|jwk| jsonwebtoken::DecodingKey::from_jwk(jwk).is_ok())
                    .ok_or(KeyProblem::PublicKey)?;
                Ok(Self::Jwt(JwtKey { id, jwk }))
            }
            _ => Ok(Self::Other),
        }
    }
}

/// The members that make the public key; `use` has a word of SPIFFE's own, which JWK libraries refuse.
fn shape(jwk: &Map<String, Value>) -> Value {
    let members = jwk
        .iter()
        .filter(|(name, _)| MEMBERS.contains(&name.as_str()));
    let members = members.map(|(name, value)| (name.clone(), value.clone()));
    Value::Object(members.collect())
}

/// What makes a public key (RFC 7518 §6, RFC 8037 §2).
const MEMBERS: [&str; 6] = ["kty", "crv", "x", "y", "n", "e"];

/// What makes a private one.
const SECRETS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// The certificate that an entry carries: one, of a CA, with the key that the entry shows.
fn root(jwk: &Map<String, Value>) -> Result<CertificateDer<'static>, KeyProblem> {
    if SECRETS.iter().any(|member| jwk.contains_key(*member)) {
        return Err(KeyProblem::Secret);
    }
    let certificates = jwk.get("x5c").and_then(Value::as_array);
    let Some([Value::String(text)]) = certificates.map(Vec::as_slice) else {
        return Err(KeyProblem::OneCertificate);
    };
    let der = STANDARD.decode(text).map_err(|_| KeyProblem::Certificate)?;
    let Ok(([], certificate)) = X509Certificate::from_der(&der) else {
        return Err(KeyProblem::Certificate);
    };
    if !certificate.is_ca() {
        return Err(KeyProblem::NotCa);
    }
    let shown = public_key(&der).ok_or(KeyProblem::Certificate)?;
    let differs = |name: &&str| {
        jwk.get(*name)
            .is_some_and(|said| Some(said) != shown.get(*name))
    };
    if MEMBERS.iter().any(differs) {
        return Err(KeyProblem::OtherKey);
    }
    Ok(der.into())
}

/// The public key of a certificate as a JWK; `None` for a type of key that SVIDs are not signed with.
fn public_key(certificate: &[u8]) -> Option<Map<String, Value>> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let key = certificate.public_key();
    let base64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let jwk = match key.parsed() {
        Ok(PublicKey::EC(point)) => {
            let (0x04, point) = point
                .data()
                .split_first()
                .map(|(form, rest)| (*form, rest))?
            else {
                return None;
            };
            let curve = match point.len() {
                64 => "P-256",
                96 => "P-384",
                132 => "P-521",
                _ => return None,
            };
            let (x, y) = point.split_at(point.len() / 2);
            json!({ "kty": "EC", "crv": curve, "x": base64(x), "y": base64(y) })
        }
        Ok(PublicKey::RSA(key)) => {
            let unsigned = |number: &[u8]| {
                let zeros = number.iter().take_while(|byte| **byte == 0).count();
                base64(&number[zeros..])
            };
            json!({ "kty": "RSA", "n": unsigned(key.modulus), "e": unsigned(key.exponent) })
        }
        _ if key.algorithm.algorithm.to_id_string() == ED25519 => {
            json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(&key.subject_public_key.data) })
        }
        _ => return None,
    };
    match jwk {
        Value::Object(jwk) => Some(jwk),
        _ => None,
    }
}

/// RFC 8410 §3.
const ED25519: &str = "1.3.101.112";

/// Why a text is no bundle document.
#[derive(Debug, thiserror::Error)]
pub enum BundleDocumentError {
    /// Nobody has that many roots.
    #[error("it is larger than {LARGEST} bytes")]
    TooLarge,
    /// Not JSON, `keys` is missing, or a member is of the wrong type.
    #[error("it is not a JWK Set")]
    Json(#[source] serde_json::Error),
    /// A key that is meant for us is not right. Counted from 0.
    #[error("keys[{0}] cannot be used")]
    Key(usize, #[source] KeyProblem),
    /// A root certificate cannot be a trust anchor.
    #[error("a root certificate cannot be used")]
    Root(#[source] BundleError),
}

/// Why a file holds no roots.
#[derive(Debug, thiserror::Error)]
pub enum BundleFileError {
    /// It begins as a bundle document does, and is none.
    #[error("it is no bundle document")]
    Document(#[from] BundleDocumentError),
    /// Not PEM.
    #[error("it is not PEM")]
    Pem(#[source] pem::PemError),
    /// A private key, for one, has no business there.
    #[error("it holds a block `{0}`, not only certificates")]
    NotACertificate(String),
    /// Nothing in it.
    #[error("it holds no root certificate")]
    Empty,
    /// One of them cannot be a trust anchor.
    #[error("a certificate in it cannot be used as a root")]
    Root(#[source] BundleError),
}

/// What is wrong with a key.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum KeyProblem {
    /// X509-SVID §6.2.
    #[error("`x5c` must hold exactly one certificate")]
    OneCertificate,
    /// Not base64, not X.509, or of an unknown type of key.
    #[error("its certificate cannot be read")]
    Certificate,
    /// Only a CA may sign.
    #[error("its certificate is not that of a CA")]
    NotCa,
    /// RFC 7517 §4.7.
    #[error("its certificate belongs to another key than the one it shows")]
    OtherKey,
    /// JWT-SVID §6.2: a token says which key signed it.
    #[error("`kid` is missing")]
    NoName,
    /// Which one would a token mean?
    #[error("the `kid` {0:?} is there twice")]
    SameName(String),
    /// The members of the public key are missing or malformed.
    #[error("its public key cannot be read")]
    PublicKey,
    /// Somebody has published a private key: nothing it signed proves anything.
    #[error("it holds a private key")]
    Secret,
}

#[cfg(test)]
mod tests {
    use rcgen::{KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;
    use crate::identity::testing::{Ca, leaf};

    fn x5c(der: &[u8]) -> Value {
        json!([STANDARD.encode(der)])
    }

    /// A root as SPIRE publishes it.
    fn x509_key(ca: &Ca) -> Value {
        let mut jwk = public_key(ca.certificate()).unwrap();
        jwk.insert("use".into(), "x509-svid".into());
        jwk.insert("x5c".into(), x5c(ca.certificate()));
        Value::Object(jwk)
    }

    fn jwt_key(kid: &str) -> Value {
        json!({
            "use": "jwt-svid", "kid": kid, "kty": "EC", "crv": "P-256",
            "x": "fK-wKTnKL7KFLM27lqq5DC-bxrVaH6rDV-IcCSEOeL4",
            "y": "wq-g3TQWxYlV51TCPH030yXsRxvujD4hUUaIQrXk4KI",
        })
    }

    fn parse(set: &Value) -> Result<BundleDocument, BundleDocumentError> {
        BundleDocument::parse(set.to_string().as_bytes())
    }

    #[test]
    fn a_document_says_its_roots_its_keys_and_its_times() {
        let (one, two) = (Ca::new("example.org"), Ca::new("example.org"));
        let document = parse(&json!({
            "keys": [x509_key(&one), jwt_key("a"), x509_key(&two), jwt_key("b")],
            "spiffe_sequence": 7, "spiffe_refresh_hint": 300, "other": {},
        }));
        let document = document.unwrap();
        assert_eq!(document.sequence, Some(7));
        assert_eq!(document.refresh_hint, Some(Duration::from_secs(300)));
        let roots: Vec<_> = document.x509.certificates().collect();
        assert_eq!(roots, [one.certificate(), two.certificate()]);
        let names: Vec<_> = document.jwt.iter().map(JwtKey::id).collect();
        assert_eq!(names, ["a", "b"]);
    }

    #[test]
    fn what_is_written_reads_the_same() {
        let ca = Ca::new("example.org");
        for (keys, sequence, hint) in [
            (vec![], None, None),
            (vec![x509_key(&ca)], Some(u64::MAX), Some(1)),
            (vec![jwt_key("a"), jwt_key("b")], Some(0), None),
            (vec![jwt_key("a"), x509_key(&ca)], None, Some(0)),
        ] {
            let mut set = json!({ "keys": keys });
            if let Some(sequence) = sequence {
                set["spiffe_sequence"] = sequence.into();
            }
            if let Some(hint) = hint {
                set["spiffe_refresh_hint"] = hint.into();
            }
            let document = parse(&set).unwrap();
            let again = BundleDocument::parse(document.render().as_bytes()).unwrap();
            assert_eq!(again, document, "{set}");
        }
    }

    #[test]
    fn no_keys_are_distrust_and_a_missing_set_is_a_mistake() {
        let empty = parse(&json!({ "keys": [] })).unwrap();
        assert_eq!(empty.x509.certificates().count(), 0);
        assert!(empty.jwt.is_empty());
        for text in [
            "",
            "{}",
            "[]",
            "{\"keys\":null}",
            "{\"keys\":{}}",
            "{\"keys\":[1]}",
        ] {
            let read = BundleDocument::parse(text.as_bytes());
            assert!(matches!(read, Err(BundleDocumentError::Json(_))), "{text}");
        }
    }

    #[test]
    fn what_is_for_others_is_passed_over() {
        for (what, jwk) in [
            ("no use", json!({ "kty": "EC", "x5c": ["x"] })),
            ("another use", json!({ "use": "sig", "kty": "EC" })),
            ("a use that is no text", json!({ "use": 1, "kty": "EC" })),
            ("no type", json!({ "use": "x509-svid" })),
            (
                "an unknown type",
                json!({ "use": "x509-svid", "kty": "PQ" }),
            ),
            (
                "a secret",
                json!({ "use": "jwt-svid", "kty": "oct", "k": "AA" }),
            ),
            (
                "EdDSA",
                json!({ "use": "jwt-svid", "kty": "OKP", "kid": "a" }),
            ),
            ("nothing", json!({})),
        ] {
            let document = parse(&json!({ "keys": [jwk, jwt_key("a")] })).unwrap();
            assert_eq!(document.jwt.len(), 1, "{what}");
            assert_eq!(document.x509.certificates().count(), 0, "{what}");
        }
    }

    #[test]
    fn a_key_for_us_that_is_not_right_refuses_the_whole_document() {
        let ca = Ca::new("example.org");
        let mut of_a_leaf = x509_key(&ca);
        let minted = ca.mint(&leaf("spiffe://example.org/a"));
        of_a_leaf["x5c"] = x5c(&minted.chain[0]);
        let root = |name: &str, value: Value| {
            let mut jwk = x509_key(&ca);
            jwk[name] = value;
            jwk
        };
        let jwt = |name: &str, value: Value| {
            let mut jwk = jwt_key("b");
            jwk[name] = value;
            jwk
        };
        let other = Ca::new("example.org");
        for (jwk, why) in [
            (root("x5c", Value::Null), KeyProblem::OneCertificate),
            (root("x5c", json!([])), KeyProblem::OneCertificate),
            (root("x5c", json!(["a", "b"])), KeyProblem::OneCertificate),
            (root("x5c", json!([5])), KeyProblem::OneCertificate),
            (root("x5c", json!(["not base64"])), KeyProblem::Certificate),
            (root("x5c", x5c(&[0x30])), KeyProblem::Certificate),
            (
                root("x5c", x5c(&[ca.certificate().as_ref(), &[0]].concat())),
                KeyProblem::Certificate,
            ),
            (root("x5c", x5c(other.certificate())), KeyProblem::OtherKey),
            (root("kty", "RSA".into()), KeyProblem::OtherKey),
            (root("d", "AA".into()), KeyProblem::Secret),
            (of_a_leaf, KeyProblem::NotCa),
            (jwt("kid", Value::Null), KeyProblem::NoName),
            (jwt("kid", "".into()), KeyProblem::NoName),
            (jwt("kid", 5.into()), KeyProblem::NoName),
            (jwt("kid", "a".into()), KeyProblem::SameName("a".into())),
            (jwt("x", Value::Null), KeyProblem::PublicKey),
            (jwt("crv", "P-1".into()), KeyProblem::PublicKey),
            (jwt("x", "!".into()), KeyProblem::PublicKey),
            (jwt("d", "AA".into()), KeyProblem::Secret),
        ] {
            match parse(&json!({ "keys": [jwt_key("a"), jwk.clone()] })) {
                Err(BundleDocumentError::Key(1, found)) => assert_eq!(found, why, "{jwk}"),
                other => panic!("{jwk}: {other:?}"),
            }
        }
    }

    #[test]
    fn numbers_are_whole_and_not_negative() {
        for member in ["spiffe_sequence", "spiffe_refresh_hint"] {
            for value in [json!(-1), json!(1.5), json!("1"), json!([])] {
                let set = json!({ "keys": [], member: value });
                assert!(
                    matches!(parse(&set), Err(BundleDocumentError::Json(_))),
                    "{set}"
                );
            }
        }
        let twice = br#"{"keys":[],"spiffe_sequence":1,"spiffe_sequence":2}"#;
        assert!(BundleDocument::parse(twice).is_err());
        let large = vec![b' '; LARGEST + 1];
        let read = BundleDocument::parse(&large);
        assert!(matches!(read, Err(BundleDocumentError::TooLarge)));
    }

    #[test]
    fn a_file_holds_certificates_in_pem_or_a_document() {
        let ca = Ca::new("example.org");
        let block = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
        let root = block("CERTIFICATE", ca.certificate());
        let document = json!({ "keys": [x509_key(&ca)] }).to_string();
        let twice = format!("# ours\n{root}\n{root}");
        for (text, count) in [(&root, 1), (&twice, 2), (&document, 1)] {
            let bundle = read_file(text.as_bytes()).unwrap();
            assert_eq!(bundle.certificates().count(), count, "{text}");
        }
        let key = block("PRIVATE KEY", &[1]);
        for (text, why) in [
            ("", "no root certificate"),
            ("nonsense", "no root certificate"),
            (" {\"keys\":[]}", "no root certificate"),
            ("{", "no bundle document"),
            (&root[..root.len() / 2], "no root certificate"),
            (&format!("{root}{key}"), "a block `PRIVATE KEY`"),
            (&block("CERTIFICATE", &[0x30]), "cannot be used as a root"),
        ] {
            let error = read_file(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn roots_of_every_type_of_key_show_it() {
        for (algorithm, kty, curve) in [
            (&PKCS_ECDSA_P384_SHA384, "EC", "P-384"),
            (&PKCS_ED25519, "OKP", "Ed25519"),
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate = leaf("spiffe://example.org/a").self_signed(&key).unwrap();
            let jwk = public_key(certificate.der()).unwrap();
            assert_eq!((&jwk["kty"], &jwk["crv"]), (&json!(kty), &json!(curve)));
        }
    }
}
