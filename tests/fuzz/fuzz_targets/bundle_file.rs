//! Any bytes may stand in a file that an operator names. What is taken holds at least one root.
#![no_main]

use doorward::identity::bundle_document::read_file;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    if let Ok(bundle) = read_file(text) {
        assert!(bundle.certificates().next().is_some());
    }
});
