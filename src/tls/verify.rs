//! Is this chain good, by the rules of SPIFFE, right now?
//!
//! One verifier serves both sides of a handshake, and [`still_holds`] asks the same question again of a
//! connection that is already open. In order: the leaf is an X.509-SVID, the bundle of *its own* trust
//! domain is known, its chain leads there and none of it was revoked, it was not made to live too long,
//! and, when we dialled, it is one of those who may answer.

use std::iter;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{Cert, EndEntityCert, KeyUsage, VerifiedPath};

use super::proven::{Proven, Window};
use super::{Expected, Peer, Reason, sha256};
use crate::identity::crl::Crls;
use crate::identity::svid::{self, Leaf, SvidError};
use crate::identity::{Bundles, SpiffeId, TrustDomain};

/// Why a peer's certificate is not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// It breaks a rule of the X509-SVID standard.
    #[error("the certificate is not an X.509-SVID")]
    Svid(#[source] SvidError),
    /// No bundle was received for the trust domain that it names.
    #[error("no trust bundle is known for the trust domain {0}")]
    UnknownTrustDomain(TrustDomain),
    /// No root of its trust domain that is valid now vouches for it.
    #[error("no valid root of the certificate's trust domain vouches for it")]
    UnknownCa,
    /// It, or an intermediate of its chain, has ended.
    #[error("the certificate has expired")]
    Expired,
    /// It, or an intermediate of its chain, has not begun: whose clock is wrong?
    #[error("the certificate is not valid yet: compare the clocks of both sides")]
    NotYetValid,
    /// It, or an intermediate of its chain, is on a revocation list of its issuer.
    #[error("the certificate was revoked by its issuer")]
    Revoked,
    /// Its chain breaks another rule of RFC 5280.
    #[error("the certificate chain of {0} is not valid")]
    Chain(SpiffeId, #[source] webpki::Error),
    /// It was made to live longer than is accepted.
    #[error(
        "the certificate of {id} was made to live {}, longer than the {} accepted by identity.max_peer_lifetime",
        humantime::format_duration(*lifetime),
        humantime::format_duration(*most)
    )]
    LifetimeTooLong {
        /// Whose certificate it is.
        id: SpiffeId,
        /// From its start to its end.
        lifetime: Duration,
        /// The most that is accepted.
        most: Duration,
    },
    /// A good certificate, but of somebody else than we dialled.
    #[error("{found} answered, but {expected} was expected")]
    UnexpectedPeer {
        /// Who answered.
        found: SpiffeId,
        /// Who may answer.
        expected: Arc<Expected>,
    },
}

impl VerifyError {
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Svid(_) => Reason::NotAnSvid,
            Self::UnknownTrustDomain(_) => Reason::UnknownTrustDomain,
            Self::UnknownCa => Reason::UnknownCa,
            Self::Expired => Reason::Expired,
            Self::NotYetValid => Reason::NotYetValid,
            Self::Revoked => Reason::Revoked,
            Self::Chain(..) => Reason::BadChain,
            Self::LifetimeTooLong { .. } => Reason::LifetimeTooLong,
            Self::UnexpectedPeer { .. } => Reason::UnexpectedPeer,
        }
    }

    fn chain(id: &SpiffeId, error: webpki::Error) -> Self {
        match error {
            webpki::Error::CertExpired { .. } => Self::Expired,
            webpki::Error::CertNotValidYet { .. } => Self::NotYetValid,
            webpki::Error::CertRevoked => Self::Revoked,
            // A root of the same name with another key is not the root we know.
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                Self::UnknownCa
            }
            error => Self::Chain(id.clone(), error),
        }
    }
}

/// What a chain is held to.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) bundles: Arc<Bundles>,
    pub(super) max_peer_lifetime: Duration,
    /// What was found by these very rules.
    pub(super) proven: Arc<Proven>,
}

/// Which side the owner of a certificate takes in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// Verifies the kept chain of an open connection anew, against the bundles in force now. A certificate
/// that has ended, a root that has left its bundle or a shorter lifetime limit show here.
///
/// Costs as much as the verification in a handshake (some 100 µs): ask on events, not for each request.
///
/// # Errors
/// [`VerifyError`] says what holds no longer.
pub fn still_holds(
    peer: &Peer,
    bundles: &Bundles,
    max_lifetime: Duration,
    now: SystemTime,
) -> Result<(), VerifyError> {
    let (first, intermediates) = peer.split_chain()?;
    let leaf = &peer.leaf;
    check(
        leaf,
        first,
        intermediates,
        peer.side,
        bundles,
        max_lifetime,
        now,
    )
    .map(drop)
}

/// The whole verification but for who is expected. `leaf` was read from `first`.
///
/// The answer is when the path that was found holds: from the start of its youngest certificate to the
/// first end of one, the root aside.
fn check(
    leaf: &Leaf,
    first: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    side: Side,
    bundles: &Bundles,
    max_lifetime: Duration,
    now: SystemTime,
) -> Result<Window, VerifyError> {
    let id = &leaf.id;
    let bundle = bundles
        .get(id.trust_domain())
        .ok_or_else(|| VerifyError::UnknownTrustDomain(id.trust_domain().clone()))?;
    // webpki still accepts a certificate in the second of its end.
    if now >= leaf.not_after {
        return Err(VerifyError::Expired);
    }
    let usage = match side {
        Side::Client => KeyUsage::client_auth(),
        Side::Server => KeyUsage::server_auth(),
    };
    let time = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    let anchors = bundle.anchors(now);
    let sound = |path: &VerifiedPath<'_>| {
        if now >= window(leaf, path)?.until {
            let not_after = time;
            return Err(webpki::Error::CertExpired { time, not_after });
        }
        unrevoked(path, bundles.crls())
    };
    let end_entity =
        EndEntityCert::try_from(first).map_err(|error| VerifyError::chain(id, error))?;
    let window = end_entity
        .verify_for_usage(
            algorithms().all,
            &anchors,
            intermediates,
            time,
            usage,
            None,
            Some(&sound),
        )
        .and_then(|path| window(leaf, &path))
        .map_err(|error| VerifyError::chain(id, error))?;
    let lifetime = leaf.lifetime();
    if lifetime > max_lifetime {
        return Err(VerifyError::LifetimeTooLong {
            id: id.clone(),
            lifetime,
            most: max_lifetime,
        });
    }
    Ok(window)
}

/// When all certificates of a path are valid, the root aside.
fn window(leaf: &Leaf, path: &VerifiedPath<'_>) -> Result<Window, webpki::Error> {
    let own = Window {
        from: leaf.not_before,
        until: leaf.not_after,
    };
    let mut intermediates = path.intermediate_certificates();
    intermediates.try_fold(own, |window, certificate| {
        let validity = svid::validity(&certificate.der());
        let (from, until) = validity.map_err(|_| webpki::Error::BadDer)?;
        Ok(window.and(Window { from, until }))
    })
}

/// Holds every certificate of a path, but for its root, against the lists of whoever issued it.
fn unrevoked(path: &VerifiedPath<'_>, crls: &Crls) -> Result<(), webpki::Error> {
    if crls.is_empty() {
        return Ok(());
    }
    let mut path_keys = path
        .intermediate_certificates()
        .map(Cert::subject_public_key_info);
    let intermediates = path.intermediate_certificates();
    for certificate in iter::once::<&Cert<'_>>(path.end_entity()).chain(intermediates) {
        let key = path_keys.next();
        let key = key.unwrap_or_else(|| webpki::spki_for_anchor(path.anchor()));
        let (serial, issuer) = (certificate.serial(), certificate.issuer());
        if crls.revoke(serial, issuer, &key, algorithms().all) {
            return Err(webpki::Error::CertRevoked);
        }
    }
    Ok(())
}

fn algorithms() -> &'static WebPkiSupportedAlgorithms {
    &super::provider().signature_verification_algorithms
}

impl Rules {
    /// Everything that must hold of whoever presents this chain, found out now or known from before.
    pub(super) fn prove(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: SystemTime,
    ) -> Result<Arc<Peer>, VerifyError> {
        let proof = Peer::digest(end_entity, intermediates, side);
        if let Some(peer) = self.proven.spares(&proof, now) {
            return Ok(peer);
        }
        let leaf = svid::parse(end_entity).map_err(VerifyError::Svid)?;
        let (bundles, most) = (&self.bundles, self.max_peer_lifetime);
        let window = check(&leaf, end_entity, intermediates, side, bundles, most, now)?;
        let bundle = bundles.get(leaf.id.trust_domain());
        let root_end = bundle.and_then(|bundle| bundle.next_end(now));
        let chain = iter::once(end_entity).chain(intermediates);
        let peer = Arc::new(Peer {
            leaf: Arc::new(leaf),
            chain: chain.map(|der| der.clone().into_owned()).collect(),
            not_after: window.until,
            fingerprint: sha256(end_entity),
            proof,
            side,
        });
        let until = root_end.map_or(window.until, |end| window.until.min(end));
        self.proven.remember(&peer, Window { until, ..window });
        Ok(peer)
    }

    /// The same at a time of rustls.
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        side: Side,
        now: UnixTime,
    ) -> Result<Arc<Peer>, rustls::Error> {
        let now = UNIX_EPOCH + Duration::from_secs(now.as_secs());
        self.prove(end_entity, intermediates, side, now)
            .map_err(into_rustls)
    }
}

/// Verifies whoever dials us: anybody whose proof is good. What they may do is policy's to say.
#[derive(Debug)]
pub(super) struct AnyClient(pub(super) Rules);

/// Verifies whoever answers: a good proof, and one of those whom we expect.
#[derive(Debug)]
pub(super) struct ExpectedServer {
    pub(super) rules: Rules,
    pub(super) expected: Arc<Expected>,
}

impl ClientCertVerifier for AnyClient {
    /// None: the names of our roots are nobody's business before they have authenticated.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0
            .verify(end_entity, intermediates, Side::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ServerCertVerifier for ExpectedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let peer = self
            .rules
            .verify(end_entity, intermediates, Side::Server, now)?;
        if !self.expected.matches(peer.id()) {
            return Err(into_rustls(VerifyError::UnexpectedPeer {
                found: peer.id().clone(),
                expected: self.expected.clone(),
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Our reason, on its way through rustls: in a word of rustls where there is one, because that chooses
/// the alert the peer is told (RFC 8446 §6.2); as it is otherwise, which says `certificate_unknown`.
fn into_rustls(error: VerifyError) -> rustls::Error {
    rustls::Error::InvalidCertificate(match error {
        VerifyError::Expired => CertificateError::Expired,
        VerifyError::NotYetValid => CertificateError::NotValidYet,
        VerifyError::Revoked => CertificateError::Revoked,
        VerifyError::UnknownCa => CertificateError::UnknownIssuer,
        VerifyError::Svid(SvidError::Malformed) => CertificateError::BadEncoding,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    })
}

/// The way back: our reason, if it was ours.
pub(super) fn from_rustls(error: &rustls::Error) -> Option<VerifyError> {
    let rustls::Error::InvalidCertificate(error) = error else {
        return None;
    };
    match error {
        CertificateError::Expired => Some(VerifyError::Expired),
        CertificateError::NotValidYet => Some(VerifyError::NotYetValid),
        CertificateError::Revoked => Some(VerifyError::Revoked),
        CertificateError::UnknownIssuer => Some(VerifyError::UnknownCa),
        CertificateError::BadEncoding => Some(VerifyError::Svid(SvidError::Malformed)),
        CertificateError::Other(OtherError(inner)) => inner.downcast_ref().cloned(),
        _ => None,
    }
}
