//! What about callers that speak no TLS? Whoever does is known by the first bytes, which are looked at and left
//! where they are.
//!
//! With `plaintext: deny` such a caller is told why nothing passes, where its protocol has words for it. With
//! `allow_and_report` it is served, as somebody who proved nothing: no principal, no identity header, no policy,
//! and a record that says so. A listener that lets them in must know what its application speaks
//! (`protocol: http` or `tcp`): where opaque bytes may lead to an HTTP application, they may hold a request with
//! any header, behind an empty line for one.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::socket::{MsgFlags, recv};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::time::timeout;

use crate::audit::ExchangeId;
use crate::exchange;
use crate::listen::{Protocol, Stream};
use crate::outcome::Outcome;
use crate::policy::Allowance;
use crate::tls::Agreed;
use crate::tls::detect::{Detected, detect};

/// What the first bytes say, which stay to be read. Waits until that is clear.
///
/// # Errors
/// What the socket fails with; an end before the first byte says nothing and is an error too.
pub(super) async fn look(stream: &Stream) -> io::Result<Detected> {
    let mut first = [0; LONGEST];
    let mut judge = || {
        let count = recv(stream.as_fd().as_raw_fd(), &mut first, MsgFlags::MSG_PEEK)?;
        match detect(&first[..count]) {
            Some(detected) => Ok(detected),
            None if count == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            // Not readable until there is more: the runtime waits for what comes next.
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    };
    loop {
        let (ready, judged) = match stream {
            Stream::Tcp(stream) => (
                stream.ready(Interest::READABLE).await?,
                stream.try_io(Interest::READABLE, &mut judge),
            ),
            Stream::Unix(stream) => (
                stream.ready(Interest::READABLE).await?,
                stream.try_io(Interest::READABLE, &mut judge),
            ),
        };
        match judged {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                // Nothing comes any more, and waiting for it would not wait.
                if ready.is_read_closed() {
                    return Ok(Detected::Opaque);
                }
            }
            judged => return judged,
        }
    }
}

/// As many bytes as [`detect`] may need.
const LONGEST: usize = 24;

/// How a caller that is let in is served. What is not HTTP is told so on a listener for HTTP.
pub(super) fn carried(protocol: Protocol, detected: Detected) -> Agreed {
    match (protocol, detected) {
        (Protocol::Tcp, _) => Agreed::Opaque,
        (Protocol::Http | Protocol::Auto, Detected::Http2Preface) => Agreed::Http2,
        (Protocol::Http | Protocol::Auto, _) => Agreed::Http1,
    }
}

/// What a refused caller would have sent, as metrics call it.
pub(super) fn kind(detected: Detected) -> exchange::Kind {
    match detected {
        Detected::Http1 | Detected::Http2Preface => exchange::Kind::Http,
        Detected::Tls | Detected::Opaque => exchange::Kind::Tcp,
    }
}

/// Tells a caller that speaks HTTP why it is refused. `id` is the name of the record of it.
pub(super) async fn tell(stream: Stream, detected: Detected, id: Option<ExchangeId>) {
    let answer = match detected {
        Detected::Http1 => http1(id),
        Detected::Http2Preface => http2(),
        Detected::Tls | Detected::Opaque => return,
    };
    // Whoever does not listen is not waited for.
    let _ = timeout(PATIENCE, say(stream, &answer)).await;
}

async fn say(mut stream: Stream, answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    // What is closed with bytes unread is reset, and the answer may be lost with it.
    let mut unread = [0; 1024];
    for _ in 0..UNREAD / unread.len() {
        if stream.read(&mut unread).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// RFC 9110 §15.5.22, with a problem document (RFC 9457). A `HEAD` gets it with a body too: the connection ends
/// with it.
fn http1(id: Option<ExchangeId>) -> Vec<u8> {
    let outcome = Outcome::PlaintextRefused;
    let id = id.map(|id| id.to_string()).unwrap_or_default();
    let problem = exchange::problem(outcome, &id, Some(ADVICE));
    let status = outcome.status().unwrap_or_default();
    let error = outcome.proxy_error().unwrap_or_default();
    format!(
        "HTTP/1.1 {status}\r\nupgrade: TLS/1.3\r\nconnection: upgrade, close\r\n\
         content-type: application/problem+json\r\ncontent-length: {}\r\n\
         proxy-status: doorward; error={error}\r\n\r\n{problem}",
        problem.len()
    )
    .into_bytes()
}

/// Our settings, none, and a GOAWAY with `INADEQUATE_SECURITY` (RFC 9113 §6.5, §6.8, §7) before any stream.
fn http2() -> Vec<u8> {
    let debug = ADVICE.as_bytes();
    let length = u8::try_from(8 + debug.len()).unwrap_or(8);
    let debug = &debug[..usize::from(length) - 8];
    [
        &[0, 0, 0, 4, 0, 0, 0, 0, 0][..],
        &[0, 0, length, 7, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0, 0, 0xc],
        debug,
    ]
    .concat()
}

const ADVICE: &str = "The Doorward proxy takes mutual TLS only, with a SPIFFE identity. Call through a sidecar, or with an X509-SVID.";

/// How long a refused caller may take to hear it, and how many bytes of its request are read meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);
const UNREAD: usize = 64 << 10;

/// A caller that proved nothing, let in by the operator's word.
#[derive(Debug)]
pub(super) struct Unproved {
    pub(super) allowance: Allowance,
    pub(super) _open: exchange::plaintext::Open,
}

/// The principal of such a caller in metrics: no SPIFFE ID is like it.
pub(super) const NOBODY: &str = "plaintext";

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;

    /// A stream to look at, and its other end.
    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::Unix(ours), theirs)
    }

    #[tokio::test]
    async fn first_bytes_are_judged_in_pieces_and_stay_to_be_read() {
        let (mut ours, mut theirs) = pair();
        let text = b"GET / HTTP/1.1\r\n\r\n";
        let (detected, ()) = tokio::join!(look(&ours), async {
            for byte in text {
                theirs.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        assert_eq!(detected.unwrap(), Detected::Http1);
        drop(theirs);
        let mut read = Vec::new();
        ours.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, text);
    }

    #[tokio::test]
    async fn an_end_before_it_is_clear_is_opaque_and_one_before_anything_says_nothing() {
        for (begun, expected) in [
            (&b""[..], None),
            (b"GE", Some(Detected::Opaque)),
            (b"\x16", Some(Detected::Opaque)),
        ] {
            let (ours, mut theirs) = pair();
            theirs.write_all(begun).await.unwrap();
            drop(theirs);
            assert_eq!(look(&ours).await.ok(), expected, "{begun:?}");
        }
    }

    #[test]
    fn an_answer_is_whole_in_either_version() {
        let answer = String::from_utf8(http1(None)).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 426 Upgrade Required\r\n"));
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())));
        assert!(body.contains("plaintext_refused"), "{body}");
        let frames = http2();
        assert_eq!(frames.len(), 9 + 9 + usize::from(frames[11]));
        assert!(frames.ends_with(ADVICE.as_bytes()));
    }

    #[test]
    fn what_is_let_in_is_carried_as_the_listener_says() {
        use Detected::{Http1, Http2Preface, Opaque};
        for (protocol, detected, agreed) in [
            (Protocol::Http, Http1, Agreed::Http1),
            (Protocol::Http, Http2Preface, Agreed::Http2),
            (Protocol::Http, Opaque, Agreed::Http1),
            (Protocol::Tcp, Http1, Agreed::Opaque),
            (Protocol::Tcp, Opaque, Agreed::Opaque),
            (Protocol::Auto, Opaque, Agreed::Http1),
        ] {
            assert_eq!(carried(protocol, detected), agreed);
        }
    }
}
