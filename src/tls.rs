//! How does a socket become a peer we know?

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;

use crate::identity::SpiffeId;
use crate::identity::svid::Leaf;

/// Whom a handshake proved to be at the other end, and the proof. Only a handshake makes one.
#[derive(Debug)]
pub struct Peer {
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
}

impl Peer {
    /// The peer's SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.leaf.id
    }

    /// What its leaf certificate says.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// From this instant on its certificate proves nothing.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.leaf.not_after
    }

    /// How long its certificate was made to live.
    #[must_use]
    pub fn lifetime(&self) -> Duration {
        self.leaf.lifetime()
    }

    /// The chain it presented, leaf first, in DER.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}
