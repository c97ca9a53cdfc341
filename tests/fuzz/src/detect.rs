//! A judgement is never taken back by a further byte, and comes within the bytes that were promised.

use doorward::tls::detect::detect;

pub fn check(bytes: &[u8]) {
    let mut judged = None;
    for end in 0..=bytes.len() {
        let now = detect(&bytes[..end]);
        assert!(judged.is_none() || now == judged, "{end}");
        judged = now;
    }
    assert!(judged.is_some() || bytes.len() < 24);
}
