//! Any bytes may come from a bundle endpoint. What is taken is written so that it reads the same.
#![no_main]

use doorward::identity::bundle_document::BundleDocument;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|json: &[u8]| {
    if let Ok(document) = BundleDocument::parse(json) {
        let again = BundleDocument::parse(document.render().as_bytes());
        assert_eq!(again.as_ref().ok(), Some(&document), "{again:?}");
    }
});
