//! Whoever reads a PROXY header by its published layout finds the session's addresses and the peer's SPIFFE ID
//! in it, and behind it exactly what the session began with.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use doorward::fuzzing::proxy_header;
use doorward::identity::SpiffeId;

pub fn check(bytes: &[u8]) {
    let Some((shape, rest)) = bytes.split_first_chunk::<37>() else {
        return;
    };
    let Ok(peer) = str::from_utf8(rest).map(|rest| SpiffeId::parse(&format!("spiffe://{rest}"))) else {
        return;
    };
    let Ok(peer) = peer else {
        return;
    };
    let addresses = match shape[0] % 5 {
        0 => None,
        kind => Some((
            address(kind & 1 == 0, shape[1..19].try_into().unwrap()),
            address(kind & 2 == 0, shape[19..37].try_into().unwrap()),
        )),
    };
    let mut stream = proxy_header(addresses, &peer);
    stream.extend(b"\r\n\r\n\0\r\nQUIT\n!");
    let read = read(&stream);
    assert_eq!(read.addresses, addresses.map(|(from, to)| alike(from, to)));
    assert_eq!(read.spiffe_id, peer.as_str().as_bytes());
    assert_eq!(read.tls_version, b"TLSv1.3");
    assert_eq!(read.behind, b"\r\n\r\n\0\r\nQUIT\n!");
}

fn address(v6: bool, bytes: &[u8; 18]) -> SocketAddr {
    let [a, b, ip @ ..] = *bytes;
    let ip = if v6 {
        IpAddr::V6(Ipv6Addr::from(ip))
    } else {
        IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]))
    };
    SocketAddr::new(ip, u16::from_be_bytes([a, b]))
}

/// Both of one family, as the layout wants.
fn alike(from: SocketAddr, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    let wide = |address: SocketAddr| match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => address,
    };
    match from.is_ipv4() && to.is_ipv4() {
        true => (from, to),
        false => (wide(from), wide(to)),
    }
}

struct Read<'a> {
    addresses: Option<(SocketAddr, SocketAddr)>,
    tls_version: &'a [u8],
    spiffe_id: &'a [u8],
    behind: &'a [u8],
}

/// "The PROXY protocol", §2.2, and nothing that it leaves out.
fn read(stream: &[u8]) -> Read<'_> {
    let (signature, stream) = stream.split_at(12);
    assert_eq!(signature, b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A");
    let (&[command, family, high, low], stream) = stream.split_first_chunk().unwrap();
    assert_eq!(command, 0x21);
    let (mut body, behind) = stream.split_at(usize::from(u16::from_be_bytes([high, low])));
    let mut take = |length: usize| {
        let (taken, rest) = body.split_at(length);
        body = rest;
        taken
    };
    let addresses = match family {
        0x00 => None,
        0x11 => {
            let ips = [0, 1].map(|_| IpAddr::from(<[u8; 4]>::try_from(take(4)).unwrap()));
            Some(ips)
        }
        0x21 => {
            let ips = [0, 1].map(|_| IpAddr::from(<[u8; 16]>::try_from(take(16)).unwrap()));
            Some(ips)
        }
        other => panic!("family {other:#x}"),
    };
    let addresses = addresses.map(|[from, to]| {
        let ports = [0, 1].map(|_| u16::from_be_bytes(take(2).try_into().unwrap()));
        (SocketAddr::new(from, ports[0]), SocketAddr::new(to, ports[1]))
    });
    let [(0x20, ssl), (0xE0, spiffe_id)] = values(body)[..] else {
        panic!("{:?}", values(body));
    };
    let (facts, inner) = ssl.split_at(5);
    assert_eq!(facts, [0b011, 0, 0, 0, 0]);
    let [(0x21, tls_version)] = values(inner)[..] else {
        panic!("{:?}", values(inner));
    };
    Read {
        addresses,
        tls_version,
        spiffe_id,
        behind,
    }
}

fn values(mut body: &[u8]) -> Vec<(u8, &[u8])> {
    let mut values = Vec::new();
    while let Some((&[kind, high, low], rest)) = body.split_first_chunk() {
        let (value, rest) = rest.split_at(usize::from(u16::from_be_bytes([high, low])));
        values.push((kind, value));
        body = rest;
    }
    assert!(body.is_empty());
    values
}
