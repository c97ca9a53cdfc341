//! Any bytes may come from a bundle endpoint. What is taken is written so that it reads the same.

use doorward::identity::bundle_document::BundleDocument;

pub fn check(json: &[u8]) {
    if let Ok(document) = BundleDocument::parse(json) {
        let again = BundleDocument::parse(document.render().as_bytes());
        assert_eq!(again.as_ref().ok(), Some(&document), "{again:?}");
    }
}
