//! Doors for the fuzz targets in `tests/fuzz`, and for nobody else: no other build has them.

use std::time::Duration;

use super::authority::Authority;
use super::filter::Rewriter;
use crate::identity::TrustDomain;

/// What the filter makes of a client's bytes that come in pieces of `size`, and whether it took them all.
#[must_use]
pub fn filter(bytes: &[u8], size: usize) -> (Vec<u8>, bool) {
    let (mut rewriter, mut out) = (Rewriter::default(), Vec::new());
    let taken = bytes
        .chunks(size)
        .all(|piece| rewriter.push(piece, &mut out).is_ok());
    (out, taken)
}

/// Reads a kept CA as it was in the year 2026 and writes it again.
#[must_use]
pub fn kept_ca(text: &str) -> Option<String> {
    let domain = TrustDomain::parse("example.org").ok()?;
    let now = std::time::UNIX_EPOCH + Duration::from_secs(1_796_000_000);
    let lifetime = Duration::from_secs(3600);
    let authority = Authority::from_pem(text, &domain, lifetime, now).ok()?;
    Some(authority.to_pem().to_string())
}
