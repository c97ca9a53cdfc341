//! Any text may stand in the file of the kept CA. What is read from it is written back alike.

use doorward::issuer::fuzzing::kept_ca;

pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    if let Some(written) = kept_ca(text) {
        assert_eq!(kept_ca(&written).as_deref(), Some(written.as_str()));
    }
}
