//! How does an exchange end? One word for metrics, audit, Proxy-Status and status codes.
//!
//! An exchange is one HTTP request, or one TCP session. None of the matches below has a `_` arm: a new
//! variant must choose its words.

use http::StatusCode;

/// How an HTTP request or a TCP session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Everything was passed on, whatever the application answered.
    Completed,
    /// Policy grants this peer no such thing.
    Denied,
    /// It carries a password or key that does not end, and none may pass here.
    StandingSecret,
    /// The peer's certificate came to its end.
    PeerExpired,
    /// The grant this stood on changed, ended or expired.
    PermitWithdrawn,
    /// The root or intermediate that vouched for the peer is trusted no longer, or it was revoked.
    TrustWithdrawn,
    /// We have no identity to show: none issued yet, or withdrawn.
    IdentityUnavailable,
    /// Our own certificate came to its end and no new one arrived.
    OwnIdentityExpired,
    /// No TLS session came about.
    HandshakeFailed,
    /// The other end proved an identity, but none that is accepted here.
    PeerRefused,
    /// A peer spoke plaintext where mutual TLS is required.
    PlaintextRefused,
    /// It came to the port of intercepted connections, and nobody led it there.
    NotRedirected,
    /// No entry of the configuration leads to where it was going.
    NoRoute,
    /// No connection to the next hop could be made.
    UpstreamUnreachable,
    /// The next hop did not connect or answer in time.
    UpstreamTimeout,
    /// The next hop broke off, or did not speak the protocol.
    UpstreamFailed,
    /// Whoever asked went away first.
    ClientGone,
    /// What was asked is not valid in its protocol.
    BadRequest,
    /// A limit of ours is reached; asking again later may help.
    Overloaded,
    /// It could not have been recorded, so it did not happen.
    AuditUnavailable,
    /// Nothing moved for longer than the idle limit.
    IdleTimeout,
    /// It took longer than a request and its response may.
    RequestTimeout,
    /// The drain's grace was over.
    Cut,
    /// It was given up without a word of its own.
    Aborted,
}

impl Outcome {
    /// Every variant, to register metrics with.
    pub const ALL: [Self; 24] = [
        Self::Completed,
        Self::Denied,
        Self::StandingSecret,
        Self::PeerExpired,
        Self::PermitWithdrawn,
        Self::TrustWithdrawn,
        Self::IdentityUnavailable,
        Self::OwnIdentityExpired,
        Self::HandshakeFailed,
        Self::PeerRefused,
        Self::PlaintextRefused,
        Self::NotRedirected,
        Self::NoRoute,
        Self::UpstreamUnreachable,
        Self::UpstreamTimeout,
        Self::UpstreamFailed,
        Self::ClientGone,
        Self::BadRequest,
        Self::Overloaded,
        Self::AuditUnavailable,
        Self::IdleTimeout,
        Self::RequestTimeout,
        Self::Cut,
        Self::Aborted,
    ];

    /// The word in metrics and audit. Part of the public surface: never rename one.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Denied => "denied",
            Self::StandingSecret => "standing_secret",
            Self::PeerExpired => "peer_expired",
            Self::PermitWithdrawn => "permit_withdrawn",
            Self::TrustWithdrawn => "trust_withdrawn",
            Self::IdentityUnavailable => "identity_unavailable",
            Self::OwnIdentityExpired => "own_identity_expired",
            Self::HandshakeFailed => "handshake_failed",
            Self::PeerRefused => "peer_refused",
            Self::PlaintextRefused => "plaintext_refused",
            Self::NotRedirected => "not_redirected",
            Self::NoRoute => "no_route",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamFailed => "upstream_failed",
            Self::ClientGone => "client_gone",
            Self::BadRequest => "bad_request",
            Self::Overloaded => "overloaded",
            Self::AuditUnavailable => "audit_unavailable",
            Self::IdleTimeout => "idle_timeout",
            Self::RequestTimeout => "request_timeout",
            Self::Cut => "cut",
            Self::Aborted => "aborted",
        }
    }

    /// The status that the proxy itself answers with, while it still can. `None` where the application
    /// answered, or where nobody is left to be answered.
    #[must_use]
    pub const fn status(self) -> Option<StatusCode> {
        match self {
            Self::Completed | Self::ClientGone | Self::NotRedirected | Self::Aborted => None,
            Self::PlaintextRefused => Some(StatusCode::UPGRADE_REQUIRED),
            Self::BadRequest => Some(StatusCode::BAD_REQUEST),
            Self::Denied
            | Self::StandingSecret
            | Self::PeerExpired
            | Self::PermitWithdrawn
            | Self::TrustWithdrawn
            | Self::NoRoute => Some(StatusCode::FORBIDDEN),
            Self::IdleTimeout => Some(StatusCode::REQUEST_TIMEOUT),
            Self::HandshakeFailed
            | Self::PeerRefused
            | Self::UpstreamUnreachable
            | Self::UpstreamFailed => Some(StatusCode::BAD_GATEWAY),
            Self::IdentityUnavailable
            | Self::OwnIdentityExpired
            | Self::Overloaded
            | Self::AuditUnavailable
            | Self::Cut => Some(StatusCode::SERVICE_UNAVAILABLE),
            Self::UpstreamTimeout | Self::RequestTimeout => Some(StatusCode::GATEWAY_TIMEOUT),
        }
    }

    /// The error of a `Proxy-Status` field (RFC 9209 §2.3). `None` where there was no error.
    #[must_use]
    pub const fn proxy_error(self) -> Option<&'static str> {
        match self {
            Self::Completed => None,
            Self::Denied | Self::StandingSecret | Self::PermitWithdrawn => {
                Some("http_request_denied")
            }
            Self::PeerExpired | Self::TrustWithdrawn | Self::PeerRefused => {
                Some("tls_certificate_error")
            }
            Self::HandshakeFailed | Self::PlaintextRefused => Some("tls_protocol_error"),
            Self::NotRedirected | Self::NoRoute => Some("destination_not_found"),
            Self::UpstreamUnreachable => Some("connection_refused"),
            Self::UpstreamTimeout => Some("connection_timeout"),
            Self::RequestTimeout => Some("http_response_timeout"),
            Self::UpstreamFailed | Self::ClientGone | Self::Cut | Self::Aborted => {
                Some("connection_terminated")
            }
            Self::BadRequest | Self::IdleTimeout => Some("http_request_error"),
            Self::Overloaded => Some("proxy_internal_response"),
            Self::IdentityUnavailable | Self::OwnIdentityExpired | Self::AuditUnavailable => {
                Some("proxy_internal_error")
            }
        }
    }

    /// The gRPC status that goes with [`Outcome::status`] (gRPC, *Status codes and their use*).
    #[must_use]
    pub const fn grpc_status(self) -> u8 {
        match self {
            Self::Completed => 0,
            Self::ClientGone | Self::Aborted => 1,
            Self::UpstreamTimeout | Self::IdleTimeout | Self::RequestTimeout => 4,
            Self::Denied
            | Self::StandingSecret
            | Self::PermitWithdrawn
            | Self::NotRedirected
            | Self::NoRoute => 7,
            Self::BadRequest => 13,
            Self::IdentityUnavailable
            | Self::OwnIdentityExpired
            | Self::HandshakeFailed
            | Self::PeerRefused
            | Self::UpstreamUnreachable
            | Self::UpstreamFailed
            | Self::Overloaded
            | Self::AuditUnavailable
            | Self::Cut => 14,
            Self::PeerExpired | Self::TrustWithdrawn | Self::PlaintextRefused => 16,
        }
    }

    /// A few words for people: the title of a problem document (RFC 9457 §3.1.4). They tell a peer
    /// nothing about policy.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Denied => "Access denied",
            Self::StandingSecret => "No standing secret may pass here",
            Self::PeerExpired => "The other side's certificate has expired",
            Self::PermitWithdrawn => "Access was withdrawn",
            Self::TrustWithdrawn => "The other side's certificate is no longer trusted",
            Self::IdentityUnavailable => "The proxy has no identity",
            Self::OwnIdentityExpired => "The proxy's certificate has expired",
            Self::HandshakeFailed => "The TLS handshake failed",
            Self::PeerRefused => "The other end is not who it should be",
            Self::PlaintextRefused => "Mutual TLS is required",
            Self::NotRedirected => "This port is not to be connected to",
            Self::NoRoute => "Nothing leads there",
            Self::UpstreamUnreachable => "The service cannot be reached",
            Self::UpstreamTimeout => "The service did not answer in time",
            Self::UpstreamFailed => "The service broke off",
            Self::ClientGone => "The caller went away",
            Self::BadRequest => "The request is not valid",
            Self::Overloaded => "The proxy is at its limit",
            Self::AuditUnavailable => "The proxy cannot keep its audit record",
            Self::IdleTimeout => "Nothing moved for too long",
            Self::RequestTimeout => "The request took too long",
            Self::Cut => "The proxy is stopping",
            Self::Aborted => "Given up",
        }
    }

    /// Whether access was refused or taken away: a record of it is kept at every audit level.
    #[must_use]
    pub const fn is_refusal(self) -> bool {
        match self {
            Self::Denied
            | Self::StandingSecret
            | Self::PeerExpired
            | Self::PermitWithdrawn
            | Self::TrustWithdrawn
            | Self::IdentityUnavailable
            | Self::OwnIdentityExpired
            | Self::HandshakeFailed
            | Self::PeerRefused
            | Self::PlaintextRefused
            | Self::NotRedirected
            | Self::NoRoute
            | Self::AuditUnavailable => true,
            Self::Completed
            | Self::UpstreamUnreachable
            | Self::UpstreamTimeout
            | Self::UpstreamFailed
            | Self::ClientGone
            | Self::BadRequest
            | Self::Overloaded
            | Self::IdleTimeout
            | Self::RequestTimeout
            | Self::Cut
            | Self::Aborted => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_outcome_has_a_label_of_its_own_fit_for_prometheus() {
        let labels: BTreeSet<_> = Outcome::ALL.iter().map(|outcome| outcome.label()).collect();
        assert_eq!(labels.len(), Outcome::ALL.len());
        for label in labels {
            assert!(
                label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{label}"
            );
        }
    }

    #[test]
    fn what_the_proxy_answers_itself_names_an_error() {
        for outcome in Outcome::ALL {
            if outcome.status().is_some() {
                assert!(outcome.proxy_error().is_some(), "{outcome:?}");
                assert_ne!(outcome.grpc_status(), 0, "{outcome:?}");
            }
        }
    }

    #[test]
    fn refusals_and_failures_keep_their_codes() {
        for (outcome, status, error, grpc) in [
            (Outcome::Denied, Some(403), "http_request_denied", 7),
            (Outcome::StandingSecret, Some(403), "http_request_denied", 7),
            (Outcome::PeerExpired, Some(403), "tls_certificate_error", 16),
            (Outcome::PeerRefused, Some(502), "tls_certificate_error", 14),
            (
                Outcome::UpstreamUnreachable,
                Some(502),
                "connection_refused",
                14,
            ),
            (Outcome::UpstreamTimeout, Some(504), "connection_timeout", 4),
            (
                Outcome::RequestTimeout,
                Some(504),
                "http_response_timeout",
                4,
            ),
            (
                Outcome::AuditUnavailable,
                Some(503),
                "proxy_internal_error",
                14,
            ),
            (
                Outcome::PlaintextRefused,
                Some(426),
                "tls_protocol_error",
                16,
            ),
            (Outcome::ClientGone, None, "connection_terminated", 1),
        ] {
            let told = (
                outcome.status().map(|status| status.as_u16()),
                outcome.proxy_error(),
                outcome.grpc_status(),
            );
            assert_eq!(told, (status, Some(error), grpc), "{outcome:?}");
        }
    }
}
