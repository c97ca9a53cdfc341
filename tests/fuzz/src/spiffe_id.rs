//! A SPIFFE ID that is taken has one spelling, and its parts make up the whole.

use doorward::identity::{SpiffeId, TrustDomain};

pub fn check(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
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
}
