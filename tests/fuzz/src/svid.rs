//! Any bytes may come as a certificate. One that is taken says something that makes sense.

use doorward::identity::{Bundle, SpiffeId, svid};
use rustls_pki_types::CertificateDer;

pub fn check(der: &[u8]) {
    let validity = svid::validity(der);
    if let Ok(leaf) = svid::parse(der) {
        assert_eq!(SpiffeId::parse(leaf.id.as_str()).as_ref(), Ok(&leaf.id));
        assert_eq!(validity, Ok((leaf.not_before, leaf.not_after)));
        let _ = (leaf.lifetime(), leaf.issuer, leaf.serial);
    }
    let _ = Bundle::new([CertificateDer::from(der.to_vec())]);
}
