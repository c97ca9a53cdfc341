//! What must be true of whatever strangers and operators choose: a function a target. Each panics where it is
//! not, and says nothing else.

macro_rules! targets {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// The name of each target, and what it checks.
        pub const TARGETS: &[(&str, fn(&[u8]))] = &[$((stringify!($name), $name::check)),*];
    };
}

targets![
    audit_chain,
    audit_line,
    bundle_document,
    bundle_file,
    config,
    crl,
    detect,
    headers,
    http2_filter,
    http2_frames,
    kept_ca,
    path,
    policy,
    proxy_header,
    secrets,
    spiffe_id,
    suggest,
    svid,
];
