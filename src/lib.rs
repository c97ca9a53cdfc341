//! Doorward.
pub mod document;
pub mod identity;
pub mod live;
pub mod policy;
pub mod tls;
