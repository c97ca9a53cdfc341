//! Which server does a TLS client ask for (SNI, RFC 6066 §3)? Read from its first bytes, which are given back.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

use super::detect::Prefixed;

/// Reads the ClientHello at the beginning of `stream` and gives it back, with the name in it: in lower case,
/// and none where it says none, is none, is longer than [`LONGEST`], or has not come to its end within
/// `patience`.
///
/// # Errors
/// What reading fails with.
pub async fn peek<IO>(
    stream: Prefixed<IO>,
    patience: Duration,
) -> io::Result<(Option<String>, Prefixed<IO>)>
where
    IO: AsyncRead + Unpin,
{
    let until = Instant::now() + patience;
    let (first, mut io) = stream.into_parts();
    let mut hello = Hello::default();
    let mut prefix = match hello.name(&first) {
        Judged::Done(name) => return Ok((name, Prefixed::new(first, io))),
        Judged::More => BytesMut::from(first),
    };
    loop {
        let seen = prefix.len();
        let name = match timeout_at(until, io.read_buf(&mut prefix)).await {
            Ok(Ok(0)) | Err(_) => None,
            Ok(Ok(_)) if prefix.len() > LONGEST => None,
            Ok(Ok(_)) => match hello.name(&prefix[seen..]) {
                Judged::More => continue,
                Judged::Done(name) => name,
            },
            Ok(Err(error)) => return Err(error),
        };
        return Ok((name, Prefixed::new(prefix.freeze(), io)));
    }
}

/// In bytes. With post-quantum key shares, a usual one has two thousand.
pub const LONGEST: usize = 16 * 1024;

/// A ClientHello that comes in pieces.
#[derive(Default)]
struct Hello(Acceptor);

enum Judged {
    More,
    Done(Option<String>),
}

impl Hello {
    fn name(&mut self, mut piece: &[u8]) -> Judged {
        while !piece.is_empty() {
            // Reading from memory only fails where a ClientHello cannot go on like this.
            if !matches!(self.0.read_tls(&mut piece), Ok(1..)) {
                return Judged::Done(None);
            }
            match self.0.accept() {
                Ok(None) => {}
                Ok(Some(hello)) => {
                    let name = hello
                        .client_hello()
                        .server_name()
                        .map(str::to_ascii_lowercase);
                    return Judged::Done(name);
                }
                Err(_) => return Judged::Done(None),
            }
        }
        Judged::More
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    fn hello(name: &str) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let name = name.to_owned().try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    async fn peeked(bytes: Vec<u8>, narrow: usize) -> (Option<String>, Vec<u8>) {
        let (mut client, server) = duplex(narrow);
        let sent = bytes.clone();
        let writing = tokio::spawn(async move { client.write_all(&sent).await });
        let stream = Prefixed::new(Bytes::new(), server);
        let (name, mut stream) = peek(stream, PATIENCE).await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        let _ = writing.await;
        (name, back)
    }

    #[tokio::test]
    async fn the_name_is_read_whatever_the_pieces_and_every_byte_given_back() {
        let mut bytes = hello("Ledger.bank.svc");
        bytes.extend(b"and more");
        for narrow in [1, 700, 65536] {
            let (name, back) = peeked(bytes.clone(), narrow).await;
            assert_eq!(name.as_deref(), Some("ledger.bank.svc"));
            assert_eq!(back, bytes);
        }
    }

    #[tokio::test]
    async fn what_says_no_name_has_none_and_is_given_back() {
        let endless = [
            &b"\x16\x03\x01\x40\x00\x01\x00\xff\x00"[..],
            &[0; 2 * LONGEST],
        ]
        .concat();
        for bytes in [
            hello("10.0.0.1"),
            hello("ledger.bank.svc")[..100].to_vec(),
            b"\x16\x03\x01\x00\x05hello".to_vec(),
            b"\x16\x03\x01\xff\xff\x01\x00".to_vec(),
            endless,
        ] {
            let (name, back) = peeked(bytes.clone(), 65536).await;
            assert_eq!(name, None);
            assert!(back == bytes, "bytes differ");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_go_on_is_not_waited_for() {
        let (mut client, server) = duplex(4096);
        let bytes = hello("ledger.bank.svc");
        client.write_all(&bytes[..50]).await.unwrap();
        let began = Instant::now();
        let stream = Prefixed::new(Bytes::new(), server);
        let (name, stream) = peek(stream, PATIENCE).await.unwrap();
        assert_eq!((name, began.elapsed()), (None, PATIENCE));
        assert_eq!(&stream.into_parts().0[..], &bytes[..50]);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_bring_it_down(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
            let mut hello = Hello::default();
            let record = [&b"\x16\x03\x01\x02\x00\x01"[..], &bytes].concat();
            let _ = hello.name(&record);
        }
    }
}
