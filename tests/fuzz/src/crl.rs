//! Any bytes may stand in a file of revocation lists. What is taken can be asked. With `TMPDIR=/dev/shm` it is
//! fifty times as fast.

use std::time::SystemTime;

use doorward::identity::crl::Crls;

pub fn check(text: &[u8]) {
    let file = std::env::temp_dir().join(format!("doorward-fuzz-{}.crl", std::process::id()));
    std::fs::write(&file, text).unwrap();
    if let Ok(crls) = Crls::open(&file) {
        assert!(!crls.is_empty());
        let _ = crls.overdue(SystemTime::now()).count();
        // An issuer that is surely on no list, with a key that is none.
        assert!(!crls.revoke(&[1], b"nobody", text, &[]));
    }
}
