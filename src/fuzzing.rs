//! Doors for the fuzz targets in `tests/fuzz`, and for nobody else: no program has them.

use std::net::SocketAddr;

use http::HeaderName;
use tokio::time::Instant;

use crate::headers::{self, IdentityHeader};
use crate::identity::SpiffeId;
use crate::inbound::proxy_header;
use crate::serve::watched;

/// The PROXY header of a session.
#[must_use]
pub fn proxy_header(addresses: Option<(SocketAddr, SocketAddr)>, peer: &SpiffeId) -> Vec<u8> {
    proxy_header::encode(addresses, Some(peer))
}

/// The identity headers that a peer with such a certificate would get.
#[must_use]
pub fn identity_headers(
    kind: IdentityHeader,
    own: &SpiffeId,
    peer: &SpiffeId,
    fingerprint: &[u8; 32],
    chain: &[Vec<u8>],
) -> Vec<(HeaderName, String)> {
    headers::said(
        kind,
        own,
        peer,
        fingerprint,
        chain.iter().map(Vec::as_slice),
    )
}

/// Reads an HTTP/2 connection that comes in such pieces. The frames that carried nothing, and whether our
/// patience ended.
#[must_use]
pub fn idle_frames<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (i64, bool) {
    let mut frames = watched::Frames::new(Instant::now());
    let mut ended = false;
    for piece in pieces {
        ended |= frames.read(piece).is_err();
    }
    (frames.spent(), ended)
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "there it is a crate of its own")]
#[path = "../tests/fuzz/src/lib.rs"]
mod properties;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::properties::TARGETS;

    #[test]
    fn what_fuzzing_has_found_before_still_keeps_the_promises() {
        let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
        for (name, check) in TARGETS {
            let corpus = corpora.join(name);
            let files = corpus
                .read_dir()
                .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()));
            let mut count = 0;
            for file in files {
                check(&std::fs::read(file.unwrap().path()).unwrap());
                count += 1;
            }
            assert!(count > 0, "{name} has no corpus");
        }
    }
}
