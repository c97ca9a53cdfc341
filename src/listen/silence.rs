//! For how long may the other side of a TCP connection give no sign of life?
//!
//! A host that vanished, or a network that was cut, says nothing. The kernel sends what it has to send again
//! for a quarter of an hour, and waits without end where it has nothing to send. Here it is told to ask, by
//! keep-alive probes, and to give up after a limit (`TCP_USER_TIMEOUT`, RFC 5482). That covers whatever the
//! connection carries, costs no timer of ours, and a listening socket hands it on to those it accepts.
//!
//! To the kernel a reader that takes nothing for so long is as good as gone, even if its host answers.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Has the kernel give up the connections of `socket` once nothing has come back for `limit`. It notices by
/// a quarter of that later at most.
///
/// # Errors
/// What the kernel says.
pub(super) fn bound(socket: &impl AsFd, limit: Duration) -> io::Result<()> {
    let socket = SockRef::from(socket);
    let limit = limit.max(LEAST);
    socket.set_tcp_user_timeout(Some(limit))?;
    let probes = TcpKeepalive::new()
        .with_time((limit / 2).clamp(LEAST, LONGEST_PAUSE))
        .with_interval((limit / 8).clamp(LEAST, LONGEST_PAUSE));
    socket.set_tcp_keepalive(&probes)
}

/// The kernel counts pauses in seconds, and a lost segment is sent again within this.
const LEAST: Duration = Duration::from_secs(1);
/// The kernel takes no pause that is much longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600 * 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_limit_that_may_be_set_is_taken_and_handed_on_to_what_is_accepted() {
        for (limit, told, pause) in [
            (Duration::from_millis(1), LEAST, LEAST),
            (
                Duration::from_secs(120),
                Duration::from_secs(120),
                Duration::from_secs(60),
            ),
            (
                Duration::from_secs(86_400),
                Duration::from_secs(86_400),
                LONGEST_PAUSE,
            ),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            bound(&listener, limit).unwrap();
            let address = listener.local_addr().unwrap();
            let _client = tokio::net::TcpStream::connect(address).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            let accepted = SockRef::from(&accepted);
            assert_eq!(accepted.tcp_user_timeout().unwrap(), Some(told));
            assert!(accepted.keepalive().unwrap());
            assert_eq!(accepted.tcp_keepalive_time().unwrap(), pause);
        }
    }
}
