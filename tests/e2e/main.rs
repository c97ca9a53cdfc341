//! Does the real binary keep its promises? Each module is one of them; [`mesh`] is what they stand on.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

mod activation;
mod apps;
mod audit;
mod authentication;
mod authorization;
mod drain;
mod faults;
mod federation;
mod files;
mod floods;
mod hostile;
mod http;
mod identity;
mod limits;
mod mesh;
mod outage;
mod pair;
mod plaintext;
mod probes;
mod protocols;
mod revocation;
mod rotation;
mod sandbox;
mod secrets;
mod sessions;
mod smuggling;
mod soak;
mod spoofing;
mod suggest;
mod supervisor;
mod times;
mod tunnel;
mod unprocessed;
mod upstreams;
mod webhook;
mod withdrawal;
