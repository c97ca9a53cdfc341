//! What does TCP cost that never leaves the host?
//!
//! The application is at the other end of the loopback interface, where nothing is lost and no sender is too
//! fast. Congestion control has nothing to find out there, but where a node's own is BBR it sets a timer for what
//! it sends and divides it: sending a mebibyte takes twice the CPU time. Reno does least, and every kernel has it.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use socket2::SockRef;

/// Has the kernel use Reno for connections of `socket` if `address`, their end or the other one, is a loopback
/// address. It must be called before a connection exists: BBR leaves its timer behind. A listening socket hands it
/// on to those that it accepts.
pub(super) fn unpaced(socket: &impl AsFd, address: SocketAddr) {
    if !address.ip().to_canonical().is_loopback() {
        return;
    }
    if let Err(error) = SockRef::from(socket).set_tcp_congestion(b"reno") {
        tracing::debug!(%error, "loopback connections keep the node's congestion control");
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::super::tcp_socket;
    use super::*;

    fn used(socket: &impl AsFd) -> String {
        let name = SockRef::from(socket).tcp_congestion().unwrap();
        String::from_utf8(name)
            .unwrap()
            .trim_end_matches('\0')
            .to_owned()
    }

    #[tokio::test]
    async fn both_ends_of_a_loopback_connection_use_reno() {
        for bound in ["127.0.0.1:0", "[::ffff:127.0.0.1]:0"] {
            let listener = TcpListener::bind(bound).await.unwrap();
            let address = listener.local_addr().unwrap();
            unpaced(&listener, address);
            let socket = tcp_socket(address.ip()).unwrap();
            unpaced(&socket, address);
            let asking = socket.connect(address).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            assert_eq!(
                (used(&asking), used(&accepted)),
                ("reno".into(), "reno".into())
            );
        }
    }

    #[test]
    fn other_addresses_keep_what_the_node_has() {
        let socket = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )
        .unwrap();
        let before = used(&socket);
        for address in ["10.0.0.1:80", "0.0.0.0:80", "[::]:80"] {
            unpaced(&socket, address.parse().unwrap());
            assert_eq!(used(&socket), before);
        }
    }
}
