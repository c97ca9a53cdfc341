//! Any bytes may stand in a file that an operator names. What is taken holds at least one root.

use doorward::identity::bundle_document::read_file;

pub fn check(text: &[u8]) {
    if let Ok(bundle) = read_file(text) {
        assert!(bundle.certificates().next().is_some());
    }
}
