//! Ours at one end or at both, and tokio-rustls at the other, which has buffers of its own.

use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use rustls::{AlertDescription, ClientConfig, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;
use crate::identity::DEFAULT_MAX_PEER_LIFETIME;
use crate::identity::testing::Ca;
use crate::tls::{Endpoint, Offer, Verifications, nobody};

trait Plain: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Plain for T {}

fn configs() -> (Arc<ServerConfig>, Arc<ClientConfig>) {
    let material = Ca::new("example.org").material("/ledger", &[]);
    let verifications = Verifications::default();
    let endpoint = Endpoint::new(material, DEFAULT_MAX_PEER_LIFETIME, verifications).unwrap();
    let expected = Arc::new("spiffe://example.org/ledger".parse().unwrap());
    let offer = Offer::Nothing as usize;
    let client = endpoint.clients(&expected).unwrap()[offer].clone();
    (endpoint.servers[offer].clone(), client)
}

async fn serve(
    config: Arc<ServerConfig>,
    io: DuplexStream,
) -> io::Result<ServerStream<DuplexStream>> {
    TlsStream::handshake(io, UnbufferedServerConnection::new(config).unwrap()).await
}

async fn dial(
    config: Arc<ClientConfig>,
    io: DuplexStream,
) -> io::Result<ClientStream<DuplexStream>> {
    let tls = UnbufferedClientConnection::new(config, nobody()).unwrap();
    TlsStream::handshake(io, tls).await
}

async fn ours(pipe: usize) -> (ServerStream<DuplexStream>, ClientStream<DuplexStream>) {
    let ((server, client), (near, far)) = (configs(), duplex(pipe));
    let (served, dialled) = tokio::join!(serve(server, near), dial(client, far));
    (served.unwrap(), dialled.unwrap())
}

/// Ours serves.
async fn dialled(
    near: DuplexStream,
    far: DuplexStream,
) -> (ServerStream<DuplexStream>, client::TlsStream<DuplexStream>) {
    let (server, client) = configs();
    let other = TlsConnector::from(client);
    let (served, dialled) = tokio::join!(serve(server, near), other.connect(nobody(), far));
    (served.unwrap(), dialled.unwrap())
}

/// Ours dials.
async fn served(
    near: DuplexStream,
    far: DuplexStream,
) -> (server::TlsStream<DuplexStream>, ClientStream<DuplexStream>) {
    let (server, client) = configs();
    let other = TlsAcceptor::from(server);
    let (served, dialled) = tokio::join!(other.accept(near), dial(client, far));
    (served.unwrap(), dialled.unwrap())
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let patience = std::time::Duration::from_secs(30);
    let done = async { tokio::time::timeout(patience, future).await };
    runtime
        .unwrap()
        .block_on(done)
        .expect("nobody waits for ever")
}

fn some_bytes(length: usize) -> Vec<u8> {
    (0..251).cycle().take(length).collect()
}

#[derive(Clone, Copy, Debug)]
enum Ends {
    Ours,
    Dialled,
    Served,
}

/// What one side does: writes in such pieces, two of them at a time or one, and reads so many bytes at a time.
#[derive(Clone, Debug)]
struct Habits {
    writes: Vec<usize>,
    vectored: bool,
    flushes: bool,
    read: usize,
}

fn habits() -> impl Strategy<Value = Habits> {
    let size = prop_oneof![0..40_usize, 0..3_000_usize, 0..140_000_usize];
    let read = prop_oneof![1..60_usize, 1..20_000_usize, 60_000..70_000_usize];
    (vec(size, 0..8), any::<bool>(), any::<bool>(), read).prop_map(
        |(writes, vectored, flushes, read)| Habits {
            writes,
            vectored,
            flushes,
            read,
        },
    )
}

impl Habits {
    async fn write(&self, to: &mut (impl AsyncWrite + Unpin)) {
        let all = some_bytes(self.writes.iter().sum());
        let mut rest = &all[..];
        for &size in &self.writes {
            let (mut piece, later) = rest.split_at(size);
            while !piece.is_empty() {
                let written = if self.vectored {
                    let (head, tail) = piece.split_at(piece.len() / 3);
                    let both = [IoSlice::new(head), IoSlice::new(tail)];
                    to.write_vectored(&both).await.unwrap()
                } else {
                    to.write(piece).await.unwrap()
                };
                piece = &piece[written..];
            }
            if self.flushes {
                to.flush().await.unwrap();
            }
            rest = later;
        }
        to.shutdown().await.unwrap();
    }

    async fn read(&self, from: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; self.read]);
        loop {
            match from.read(&mut buffer).await.unwrap() {
                0 => return all,
                read => all.extend_from_slice(&buffer[..read]),
            }
        }
    }
}

async fn talk(a: (impl Plain, Habits), b: (impl Plain, Habits)) -> [Vec<u8>; 2] {
    let ((a, of_a), (b, of_b)) = (a, b);
    let ((mut from_a, mut to_a), (mut from_b, mut to_b)) = (split(a), split(b));
    let all = tokio::join!(
        of_a.write(&mut to_a),
        of_b.write(&mut to_b),
        of_a.read(&mut from_a),
        of_b.read(&mut from_b),
    );
    [all.2, all.3]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_arrives_once_and_in_order_both_ways_whatever_the_pieces(
        ends in prop_oneof![Just(Ends::Ours), Just(Ends::Dialled), Just(Ends::Served)],
        pipe in prop_oneof![1..30_usize, 30..5_000_usize, 5_000..200_000_usize],
        server in habits(),
        client in habits(),
    ) {
        let sizes = [&server, &client].map(|habits| habits.writes.iter().sum::<usize>());
        // Byte by byte, a mebibyte takes long.
        prop_assume!(pipe > 30 || sizes[0] + sizes[1] < 50_000);
        let heard = block_on(async {
            let (near, far) = duplex(pipe);
            match ends {
                Ends::Ours => {
                    let (a, b) = ours(pipe).await;
                    talk((a, server.clone()), (b, client.clone())).await
                }
                Ends::Dialled => {
                    let (a, b) = dialled(near, far).await;
                    talk((a, server.clone()), (b, client.clone())).await
                }
                Ends::Served => {
                    let (a, b) = served(near, far).await;
                    talk((a, server.clone()), (b, client.clone())).await
                }
            }
        });
        prop_assert_eq!(heard[0].len(), sizes[1]);
        prop_assert_eq!(heard[1].len(), sizes[0]);
        prop_assert!(heard.into_iter().all(|bytes| bytes == some_bytes(bytes.len())));
    }
}

#[tokio::test]
async fn whoever_has_said_his_last_still_hears() {
    let (mut a, mut b) = ours(4096).await;
    a.write_all(b"last").await.unwrap();
    a.shutdown().await.unwrap();
    let mut heard = Vec::new();
    b.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"last");
    b.write_all(b"answer").await.unwrap();
    b.shutdown().await.unwrap();
    let mut heard = Vec::new();
    a.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"answer");
    let kind = |outcome: io::Result<()>| outcome.unwrap_err().kind();
    assert_eq!(kind(a.write_all(b"more").await), io::ErrorKind::BrokenPipe);
}

/// RFC 8446 §6.1: otherwise whoever cuts the connection could pass a part for the whole.
#[tokio::test]
async fn an_end_that_the_peer_has_not_said_is_an_error() {
    let (near, cut) = duplex(64 * 1024);
    let (mut a, mut b) = dialled(near, cut).await;
    b.write_all(b"half of").await.unwrap();
    b.flush().await.unwrap();
    b.get_mut().0.shutdown().await.unwrap();
    let mut heard = Vec::new();
    let error = a.read_to_end(&mut heard).await.unwrap_err();
    assert_eq!(
        (error.kind(), &heard[..]),
        (io::ErrorKind::UnexpectedEof, &b"half of"[..])
    );
}

/// Changes a byte of what is read next.
struct Changed {
    io: DuplexStream,
    at: Option<(usize, u8)>,
}

impl AsyncRead for Changed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buffer))?;
        if let Some((at, bit)) = self.at.take() {
            buffer.filled_mut()[before + at] ^= bit;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Changed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_record_that_was_changed_on_its_way_is_an_error_and_the_peer_is_told() {
    use AlertDescription::{BadRecordMac, DecodeError};
    for (at, bit, alert) in [
        (0, 0x40, DecodeError),
        (3, 0x80, DecodeError),
        (HEAD, 0x01, BadRecordMac),
        (HEAD + 20, 0x80, BadRecordMac),
    ] {
        let ((server, client), (io, far)) = (configs(), duplex(64 * 1024));
        let tls = UnbufferedServerConnection::new(server).unwrap();
        let other = TlsConnector::from(client);
        let served = TlsStream::handshake(Changed { io, at: None }, tls);
        let (served, dialled) = tokio::join!(served, other.connect(nobody(), far));
        let (mut a, mut b) = (served.unwrap(), dialled.unwrap());
        a.io.at = Some((at, bit));
        b.write_all(b"pay 10 to the baker, please").await.unwrap();
        b.flush().await.unwrap();

        let error = a.read(&mut [0; 100]).await.unwrap_err();
        let error = error.downcast::<rustls::Error>().unwrap();
        let refused = a.write(b"ok").await.unwrap_err();
        assert_eq!(refused.downcast::<rustls::Error>().unwrap(), error, "{at}");
        let told = b.read(&mut [0; 100]).await.unwrap_err();
        let told = told.downcast::<rustls::Error>().unwrap();
        assert_eq!(told, rustls::Error::AlertReceived(alert), "{at}");
    }
}

#[tokio::test]
async fn keys_are_renewed_under_traffic() {
    let (near, far) = duplex(100_000);
    let (mut a, mut b) = dialled(near, far).await;
    let mut heard = [0; 4];
    for _ in 0..5 {
        b.get_mut().1.refresh_traffic_keys().unwrap();
        b.write_all(b"ping").await.unwrap();
        b.flush().await.unwrap();
        a.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"ping");
        a.write_all(b"pong").await.unwrap();
        a.flush().await.unwrap();
        b.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"pong");
    }
}

/// Whoever writes must first open what has come; who reads must still find it.
#[tokio::test]
async fn what_is_opened_while_writing_is_kept_for_the_reader() {
    let (near, far) = duplex(1 << 20);
    let (mut a, mut b) = dialled(near, far).await;
    let sent = some_bytes(60_000);
    b.write_all(&sent).await.unwrap();
    b.flush().await.unwrap();
    let mut heard = vec![0; 10];
    a.read_exact(&mut heard).await.unwrap();
    // Short of room, it has read one record and no more.
    assert!(!a.session.opened.is_empty());
    a.write_all(b"meanwhile").await.unwrap();
    a.flush().await.unwrap();
    heard.resize(sent.len(), 0);
    a.read_exact(&mut heard[10..]).await.unwrap();
    assert!(heard == sent);
    let mut meanwhile = [0; 9];
    b.read_exact(&mut meanwhile).await.unwrap();
    assert_eq!(&meanwhile, b"meanwhile");
}

#[tokio::test]
async fn a_connection_at_rest_holds_no_buffers() {
    let (mut a, mut b) = ours(1 << 20).await;
    let held = |session: &Session<UnbufferedServerConnection>| {
        [&session.ahead, &session.opened, &session.sealed.bytes].map(Vec::capacity)
    };
    assert_eq!(held(&a.session), [0; 3]);
    for size in [1, 5_000, AT_ONCE, AT_ONCE + 1, 5 * AT_ONCE] {
        let sent = some_bytes(size);
        let mut heard = vec![0; size];
        a.write_all(&sent).await.unwrap();
        a.flush().await.unwrap();
        b.read_exact(&mut heard).await.unwrap();
        b.write_all(&sent).await.unwrap();
        b.flush().await.unwrap();
        a.read_exact(&mut heard).await.unwrap();
        let mut more = [0; 1];
        let mut reading = std::pin::pin!(a.read(&mut more));
        poll_fn(|cx| {
            assert!(reading.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(held(&a.session), [0; 3], "{size}");
    }
}

#[tokio::test]
async fn what_is_no_handshake_is_an_error() {
    let (server, _) = configs();
    for (said, kind) in [
        (&b""[..], io::ErrorKind::UnexpectedEof),
        (b"\x16\x03\x01\x02\x00\x01", io::ErrorKind::UnexpectedEof),
        (
            b"GET / HTTP/1.1\r\nhost: here\r\n\r\n",
            io::ErrorKind::InvalidData,
        ),
        (&[0x17; 100_000], io::ErrorKind::InvalidData),
    ] {
        let (near, mut far) = duplex(1 << 20);
        far.write_all(said).await.unwrap();
        far.shutdown().await.unwrap();
        let error = serve(server.clone(), near).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", said.escape_ascii());
    }
}

/// Memory of each connection: a byte more, and the allocator gives a quarter more (1,536).
#[test]
fn a_stream_is_small() {
    let size = size_of::<ServerStream<crate::listen::Stream>>();
    assert!(size <= 1_280, "{size} bytes");
}
