//! What do the first bytes say?

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// A TLS handshake record.
    Tls,
    /// A request line of HTTP/1.
    Http1,
    /// The connection preface of HTTP/2 (RFC 9113 §3.4).
    Http2Preface,
    /// Anything else, silence included.
    Opaque,
}
