//! What do the first bytes say? And how are they given back to whoever reads next?

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Detected {
    /// A TLS handshake record (RFC 8446 §5.1).
    Tls,
    /// A request line of HTTP/1 (RFC 9112 §3).
    Http1,
    /// The connection preface of HTTP/2 (RFC 9113 §3.4).
    Http2Preface,
    /// Anything else, silence included.
    Opaque,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longest method that is taken for one; registered are at most 17 letters.
const LONGEST_METHOD: usize = 20;

/// Judges the first bytes of a connection; `None` asks for more. At most 24 bytes are needed.
///
/// A word in upper case and a space is taken for HTTP/1, whatever the word: an unknown method must meet
/// the rules for requests rather than slip past them. A protocol that looks alike (`EHLO example.org`)
/// needs a listener that is told so.
#[must_use]
pub fn detect(first: &[u8]) -> Option<Detected> {
    match first {
        [] | [0x16] | [0x16, 0x03] => return None,
        [0x16, 0x03, 0x00..=0x04, ..] => return Some(Detected::Tls),
        _ => {}
    }
    if first.starts_with(PREFACE) {
        return Some(Detected::Http2Preface);
    }
    if PREFACE.starts_with(first) {
        return None;
    }
    let method = first
        .iter()
        .take(LONGEST_METHOD + 1)
        .take_while(|byte| byte.is_ascii_uppercase())
        .count();
    match first.get(method) {
        Some(b' ') if (1..=LONGEST_METHOD).contains(&method) => Some(Detected::Http1),
        None if method <= LONGEST_METHOD => None,
        _ => Some(Detected::Opaque),
    }
}

/// Reads until the first bytes have been judged and gives them back with the connection. Silence until
/// `patience` ends means [`Detected::Opaque`], because there the server speaks first; so does an end
/// before the first byte.
///
/// # Errors
/// What reading fails with.
pub async fn peek<IO>(mut io: IO, patience: Duration) -> io::Result<(Detected, Prefixed<IO>)>
where
    IO: AsyncRead + Unpin,
{
    let deadline = Instant::now() + patience;
    // Room for a whole ClientHello or request head, so that looking costs no extra read.
    let mut prefix = BytesMut::with_capacity(2048);
    let detected = loop {
        if let Some(detected) = detect(&prefix) {
            break detected;
        }
        match timeout_at(deadline, io.read_buf(&mut prefix)).await {
            Ok(Ok(0)) | Err(_) => break Detected::Opaque,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    };
    Ok((detected, Prefixed::new(prefix.freeze(), io)))
}

/// A connection whose first bytes were read already: they come first once more.
#[derive(Debug)]
pub struct Prefixed<IO> {
    prefix: Bytes,
    io: IO,
}

impl<IO> Prefixed<IO> {
    /// Gives `prefix` back to the readers of `io`.
    pub fn new(prefix: Bytes, io: IO) -> Self {
        // An empty `Bytes` may still hold its buffer.
        let prefix = if prefix.is_empty() {
            Bytes::new()
        } else {
            prefix
        };
        Self { prefix, io }
    }

    /// The connection underneath.
    pub fn get_ref(&self) -> &IO {
        &self.io
    }

    /// The bytes not read again yet, and the connection underneath.
    pub fn into_parts(self) -> (Bytes, IO) {
        (self.prefix, self.io)
    }
}

impl<IO: AsFd> AsFd for Prefixed<IO> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.io.as_fd()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Prefixed<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.io).poll_read(cx, buffer);
        }
        let count = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..count]);
        self.prefix.advance(count);
        if self.prefix.is_empty() {
            // Gives the memory back: the connection may live long.
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Prefixed<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    #[test]
    fn the_first_bytes_tell_the_protocol() {
        for (first, expected) in [
            (&b""[..], None),
            (b"\x16", None),
            (b"\x16\x03", None),
            (b"\x16\x03\x01", Some(Detected::Tls)),
            (b"\x16\x03\x03\x02\x00\x01", Some(Detected::Tls)),
            (b"\x16\x03\x05", Some(Detected::Opaque)),
            (b"\x16\x04", Some(Detected::Opaque)),
            (b"\x17\x03\x03", Some(Detected::Opaque)),
            (b"G", None),
            (b"GET", None),
            (b"GET ", Some(Detected::Http1)),
            (b"GET / HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"CONNECT example.org:443 HTTP/1.1", Some(Detected::Http1)),
            (b"FROBNICATE /", Some(Detected::Http1)),
            (b"ABCDEFGHIJKLMNOPQRST", None),
            (b"ABCDEFGHIJKLMNOPQRST /", Some(Detected::Http1)),
            (b"ABCDEFGHIJKLMNOPQRSTU", Some(Detected::Opaque)),
            (b"ABCDEFGHIJKLMNOPQRSTU /", Some(Detected::Opaque)),
            (b" /", Some(Detected::Opaque)),
            (b"get /", Some(Detected::Opaque)),
            (b"GETx", Some(Detected::Opaque)),
            (b"GET\r\n", Some(Detected::Opaque)),
            (b"P", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
            (PREFACE, Some(Detected::Http2Preface)),
            (
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore",
                Some(Detected::Http2Preface),
            ),
            (b"PRI * HTTP/1.1\r\n", Some(Detected::Http1)),
            (b"POST /", Some(Detected::Http1)),
            (b"SSH-2.0-OpenSSH", Some(Detected::Opaque)),
            (b"\x00\x00\x00\x08", Some(Detected::Opaque)),
        ] {
            assert_eq!(detect(first), expected, "{}", first.escape_ascii());
        }
    }

    #[tokio::test]
    async fn bytes_in_pieces_are_judged_and_given_back_whole() {
        let (mut client, server) = duplex(1);
        let text = b"GET / HTTP/1.1\r\n\r\n";
        let writing = tokio::spawn(async move {
            client.write_all(text).await.unwrap();
        });
        let (detected, mut prefixed) = peek(server, PATIENCE).await.unwrap();
        assert_eq!(detected, Detected::Http1);
        let mut read = Vec::new();
        prefixed.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, text);
        writing.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn silence_means_that_the_server_speaks_first() {
        let (mut client, server) = duplex(64);
        let began = Instant::now();
        let (detected, mut prefixed) = peek(server, PATIENCE).await.unwrap();
        assert_eq!((detected, began.elapsed()), (Detected::Opaque, PATIENCE));
        prefixed.write_all(b"220 ready").await.unwrap();
        let mut read = [0; 9];
        client.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"220 ready");
    }

    #[tokio::test(start_paused = true)]
    async fn a_beginning_that_never_goes_on_is_opaque_and_kept() {
        let (mut client, server) = duplex(64);
        client.write_all(b"GE").await.unwrap();
        let (detected, prefixed) = peek(server, PATIENCE).await.unwrap();
        assert_eq!(detected, Detected::Opaque);
        assert_eq!(&prefixed.into_parts().0[..], b"GE");
    }

    #[tokio::test]
    async fn an_end_before_the_first_byte_is_opaque_with_nothing() {
        let (client, server) = duplex(64);
        drop(client);
        let (detected, prefixed) = peek(server, PATIENCE).await.unwrap();
        assert_eq!(detected, Detected::Opaque);
        assert!(prefixed.into_parts().0.is_empty());
    }

    #[tokio::test]
    async fn a_short_buffer_gets_the_prefix_in_parts() {
        let (_client, server) = duplex(64);
        let mut prefixed = Prefixed::new(Bytes::from_static(b"abc"), server);
        let mut two = [0; 2];
        prefixed.read_exact(&mut two).await.unwrap();
        let one = prefixed.read_u8().await.unwrap();
        assert_eq!((&two, one), (b"ab", b'c'));
    }

    proptest::proptest! {
        #[test]
        fn a_judgement_stands_and_24_bytes_are_enough(
            start in "(G|POST |PRI \\* HTTP/2|\x16|\x16\x03|[A-Z ]*)",
            rest in proptest::collection::vec(proptest::prelude::any::<u8>(), 24),
        ) {
            let bytes = [start.as_bytes(), &rest].concat();
            let mut judged = None;
            for end in 0..bytes.len() {
                let now = detect(&bytes[..end]);
                proptest::prop_assert!(judged.is_none() || judged == now);
                proptest::prop_assert!(end < PREFACE.len() || now.is_some());
                judged = now;
            }
        }
    }
}
