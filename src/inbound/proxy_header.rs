//! How does a TCP application learn who connects? A PROXY protocol v2 header with the SPIFFE ID.
//!
//! Layout: "The PROXY protocol, versions 1 & 2", §2.2; TLVs §2.2.1 to §2.2.7.

use std::net::SocketAddr;

use crate::identity::SpiffeId;

/// The type of the value that carries the peer's SPIFFE ID: the first of those left to applications.
pub(super) const SPIFFE_ID_TLV: u8 = 0xE0;

/// The header for a session from the first of `addresses` to the second, by the authenticated `peer`, if there
/// is one. Without addresses (a Unix socket) it says so, and still names the peer.
pub(crate) fn encode(
    addresses: Option<(SocketAddr, SocketAddr)>,
    peer: Option<&SpiffeId>,
) -> Vec<u8> {
    let (family, mut body) = match addresses {
        Some((SocketAddr::V4(from), SocketAddr::V4(to))) => (
            TCP_OVER_IPV4,
            [from.ip().octets(), to.ip().octets()].concat(),
        ),
        Some((from, to)) => {
            let wide = |address: SocketAddr| match address {
                SocketAddr::V4(address) => address.ip().to_ipv6_mapped().octets(),
                SocketAddr::V6(address) => address.ip().octets(),
            };
            (TCP_OVER_IPV6, [wide(from), wide(to)].concat())
        }
        None => (UNSPECIFIED, Vec::new()),
    };
    if let Some((from, to)) = addresses {
        body.extend(from.port().to_be_bytes());
        body.extend(to.port().to_be_bytes());
    }
    if let Some(peer) = peer {
        tlv(&mut body, SSL_TLV, &tls_facts());
        tlv(&mut body, SPIFFE_ID_TLV, peer.as_str().as_bytes());
    }

    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_2_PROXY, family]);
    header.extend(length(&body));
    header.extend(body);
    header
}

/// `PP2_TYPE_SSL`: the peer used TLS 1.3, showed a certificate on this connection, and it was verified.
fn tls_facts() -> Vec<u8> {
    let mut facts = vec![CLIENT_SSL | CLIENT_CERT_CONN];
    facts.extend(VERIFIED.to_be_bytes());
    tlv(&mut facts, SSL_VERSION_TLV, b"TLSv1.3");
    facts
}

fn tlv(to: &mut Vec<u8>, kind: u8, value: &[u8]) {
    to.push(kind);
    to.extend(length(value));
    to.extend(value);
}

/// A SPIFFE ID has at most 2048 bytes (SPIFFE-ID §2.3), so nothing here comes near the limit.
fn length(value: &[u8]) -> [u8; 2] {
    u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes()
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const SSL_TLV: u8 = 0x20;
const SSL_VERSION_TLV: u8 = 0x21;
const CLIENT_SSL: u8 = 0x01;
const CLIENT_CERT_CONN: u8 = 0x02;
const VERIFIED: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_the_published_layout() {
        let peer = SpiffeId::parse("spiffe://a/b").unwrap();
        let from = "192.0.2.1:4660".parse().unwrap();
        let to = "192.0.2.2:443".parse().unwrap();
        let header = encode(Some((from, to)), Some(&peer));
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
        expected.extend([0, 12 + 3 + 15 + 3 + 12]);
        expected.extend([192, 0, 2, 1, 192, 0, 2, 2, 0x12, 0x34, 0x01, 0xbb]);
        expected.extend(b"\x20\0\x0f\x03\0\0\0\0\x21\0\x07TLSv1.3");
        expected.extend(b"\xe0\0\x0cspiffe://a/b");
        assert_eq!(header, expected);
    }

    #[test]
    fn mixed_families_are_told_as_ipv6_and_a_socket_file_as_unspecified() {
        let peer = SpiffeId::parse("spiffe://a/b").unwrap();
        let mixed = encode(
            Some((
                "192.0.2.1:1".parse().unwrap(),
                "[2001:db8::1]:2".parse().unwrap(),
            )),
            Some(&peer),
        );
        assert_eq!(mixed[13], TCP_OVER_IPV6);
        let nobody = encode(
            Some((
                "192.0.2.1:1".parse().unwrap(),
                "192.0.2.2:2".parse().unwrap(),
            )),
            None,
        );
        assert_eq!(nobody[14..16], [0, 12], "addresses and nothing else");
        let unix = encode(None, Some(&peer));
        assert_eq!(unix[13], UNSPECIFIED);
        assert!(unix.ends_with(b"spiffe://a/b"));
    }
}
