//! What does a record look like in the file? One JSON object a line; its keys are public surface.

use std::fmt::Display;
use std::net::SocketAddr;
use std::time::SystemTime;

use http::Version;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::{Direction, Ended, Facts, Observed, Verdict};
use crate::identity::svid::Leaf;
use crate::secrets::{Finding, Fingerprint, Where};

/// Appends the line of `ended` to `buffer`.
pub(super) fn write(buffer: &mut Vec<u8>, ended: &Ended) {
    let start = buffer.len();
    match serde_json::to_writer(&mut *buffer, &Line::of(ended)) {
        Ok(()) => buffer.push(b'\n'),
        // Neither a map with odd keys nor a failing writer is involved; half a line would be worse.
        Err(_) => buffer.truncate(start),
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(serialize_with = "instant")]
    time: SystemTime,
    #[serde(serialize_with = "text")]
    id: super::ExchangeId,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    direction: &'static str,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<Party<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<Party<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    own: Option<&'a str>,
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SocketAddr>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    plaintext: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Context<'a>>,
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<Grant<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observed: Option<Trial<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secrets: Option<Vec<Secret<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    secrets_action: Option<&'static str>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_out: Option<u64>,
    duration_ms: f64,
}

/// Somebody with a SPIFFE ID, and the certificate that proved it.
#[derive(Serialize)]
struct Party<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    #[serde(flatten)]
    certificate: Option<Certificate<'a>>,
}

#[derive(Serialize)]
struct Certificate<'a> {
    serial: &'a str,
    issuer: &'a str,
    #[serde(serialize_with = "instant")]
    not_after: SystemTime,
}

#[derive(Serialize)]
struct Context<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u8>,
}

#[derive(Serialize)]
struct Grant<'a> {
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
}

#[derive(Serialize)]
struct Trial<'a> {
    decision: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    grant: Option<&'a str>,
}

#[derive(Serialize)]
struct Secret<'a> {
    kind: &'static str,
    #[serde(rename = "where", serialize_with = "text")]
    place: &'a Where,
    #[serde(serialize_with = "text")]
    fingerprint: Fingerprint,
}

impl<'a> Line<'a> {
    fn of(ended: &'a Ended) -> Self {
        let facts = &ended.facts;
        let verdict = facts.verdict.as_ref();
        let carried = facts.carried.as_deref();
        let connection = &facts.connection;
        let own = connection
            .own
            .as_ref()
            .map(crate::identity::SpiffeId::as_str);
        let owner = verdict.and_then(|verdict| verdict.principal_owner.as_deref());
        let leaf = facts.peer.as_ref().or(connection.peer.as_ref());
        // Whoever asks is the principal: the peer inbound, our own application outbound.
        let (principal, peer, own) = match connection.direction {
            Direction::Inbound => (leaf.map(|leaf| Party::of(leaf, owner)), None, own),
            Direction::Outbound => {
                let principal = own.map(|id| Party {
                    id,
                    owner,
                    certificate: None,
                });
                (principal, leaf.map(|leaf| Party::of(leaf, None)), None)
            }
        };
        Self {
            time: facts.time,
            id: facts.id,
            trace_id: facts.trace.map(|trace| format!("{trace:032x}")),
            direction: connection.direction.label(),
            kind: facts.kind.label(),
            principal,
            peer,
            own,
            service: &connection.service,
            source: connection.source,
            destination: connection.destination,
            plaintext: connection.plaintext,
            context: context(ended, facts),
            decision: verdict.map_or("none", |verdict| decision(verdict.allowed)),
            reason: verdict.and_then(|verdict| verdict.reason),
            grant: verdict.and_then(Grant::of),
            generation: verdict.map(|verdict| verdict.generation),
            observed: verdict
                .and_then(|verdict| verdict.observed.as_ref())
                .map(Trial::of),
            secrets: carried.map(|carried| carried.findings().iter().map(Secret::of).collect()),
            secrets_action: carried.map(|carried| carried.action().label()),
            outcome: ended.outcome.label(),
            bytes_in: ended.bytes.map(|bytes| bytes.0),
            bytes_out: ended.bytes.map(|bytes| bytes.1),
            duration_ms: (ended.duration.as_secs_f64() * 1e6).round() / 1e3,
        }
    }
}

impl<'a> Party<'a> {
    fn of(leaf: &'a Leaf, owner: Option<&'a str>) -> Self {
        Self {
            id: leaf.id.as_str(),
            owner,
            certificate: Some(Certificate {
                serial: &leaf.serial,
                issuer: &leaf.issuer,
                not_after: leaf.not_after,
            }),
        }
    }
}

impl<'a> Grant<'a> {
    fn of(verdict: &'a Verdict) -> Option<Self> {
        Some(Self {
            id: verdict.grant.as_deref()?,
            owner: verdict.owner.as_deref(),
        })
    }
}

impl<'a> Secret<'a> {
    fn of(finding: &'a Finding) -> Self {
        Self {
            kind: finding.kind.label(),
            place: &finding.place,
            fingerprint: finding.fingerprint,
        }
    }
}

impl<'a> Trial<'a> {
    fn of(observed: &'a Observed) -> Self {
        Self {
            decision: decision(observed.allowed),
            grant: observed.grant.as_deref(),
        }
    }
}

fn context<'a>(ended: &'a Ended, facts: &Facts) -> Option<Context<'a>> {
    let target = ended.target.as_ref()?;
    Some(Context {
        method: Some(target.method.as_str()),
        host: Some(target.host()).filter(|host| !host.is_empty()),
        path: Some(target.path()),
        protocol: protocol(target.version),
        status: facts.status.map(|status| status.as_u16()),
        grpc_status: facts.grpc_status,
    })
}

const fn decision(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "http/1.0",
        Version::HTTP_11 => "http/1.1",
        Version::HTTP_2 => "http/2",
        _ => "http",
    }
}

/// RFC 3339, UTC, milliseconds.
fn instant<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    match Timestamp::try_from(*time) {
        Ok(time) => serializer.collect_str(&format_args!("{time:.3}")),
        // Past the year 9999, where a certificate may well claim to end.
        Err(_) => serializer.serialize_str("9999-12-31T23:59:59.999Z"),
    }
}

fn text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
