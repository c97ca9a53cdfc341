//! Any text may stand in the file of the kept CA. What is read from it is written back alike.
#![no_main]

use doorward::issuer::fuzzing::kept_ca;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Some(written) = kept_ca(text) {
        assert_eq!(kept_ca(&written).as_deref(), Some(written.as_str()));
    }
});
