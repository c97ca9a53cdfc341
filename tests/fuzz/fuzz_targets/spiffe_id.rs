//! A SPIFFE ID that is taken has one spelling, and its parts make up the whole.
#![no_main]

use doorward::identity::{SpiffeId, TrustDomain};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(id) = SpiffeId::parse(text) {
        assert_eq!(id.as_str(), text);
        assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
        assert_eq!(
            TrustDomain::parse(id.trust_domain().as_str()).as_ref(),
            Ok(id.trust_domain())
        );
        // Nothing in it that a URL library would read in its own way.
        assert!(!id.path().contains(['%', '?', '#', '@', ':', '\\', ' ']));
        assert!(
            id.path()
                .split('/')
                .skip(1)
                .all(|segment| !["", ".", ".."].contains(&segment))
        );
    }
    if let Ok(domain) = TrustDomain::parse(text) {
        assert!(SpiffeId::parse(&format!("spiffe://{domain}/a")).is_ok());
    }
});
