//! What the issuer does to a client's HTTP/2 does not depend on how its bytes are cut, and once is enough.

use doorward::issuer::fuzzing::filter;

pub fn check(bytes: &[u8]) {
    let Some((size, frames)) = bytes.split_first() else {
        return;
    };
    let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frames].concat();
    let (whole, fine) = filter(&bytes, bytes.len());
    let (cut, fine_too) = filter(&bytes, usize::from(*size).max(1));
    assert_eq!((&whole, fine), (&cut, fine_too));
    // A block may grow, by its references to tables, beyond what is taken: that ends the comparison.
    let (again, _) = filter(&whole, whole.len().max(1));
    assert!(whole.starts_with(&again));
}
