//! Doorward.
pub mod admin;
pub mod audit;
pub mod document;
pub mod identity;
pub mod live;
pub mod outcome;
pub mod policy;
pub mod telemetry;
pub mod tls;
