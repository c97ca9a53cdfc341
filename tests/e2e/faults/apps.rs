//! The application behind the peer's sidecar fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Response;
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{
    AT_ONCE, End, Faulty, Routes, Sees, Turns, ask, calling, eventually, getting, head,
    reset_at_the_end,
};
use crate::mesh::{Client, Http, request};

/// What takes longer is given up in these tests.
const HASTE: &str = "connect_timeout: 500ms, response_timeout: 500ms";

/// Our callers speak HTTP/2 too, these applications do not.
const HTTP1: &str = "app_protocol: http1, connect_timeout: 200ms";

#[tokio::test]
async fn an_application_that_fails_before_it_answers_is_told_as_a_problem() {
    let nobody = free_address();
    let full = FullBacklog::new().await;
    let garbage = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 what is this?\r\n\r\n";
    let apps = [
        Faulty::saying(b"", End::Reset).await,
        Faulty::saying(b"", End::Close).await,
        Faulty::saying(b"HTTP/1.1 200 OK\r\ncontent-le", End::Close).await,
        Faulty::saying(garbage, End::Never).await,
        Faulty::saying(b"", End::Never).await,
    ];
    let [resets, closes, half, garbage, hangs] = apps.each_ref().map(|app| app.address);
    let unreachable = Sees::problem(502, "upstream_unreachable");
    let failed = Sees::problem(502, "upstream_failed");
    let late = Sees::problem(504, "upstream_timeout");
    let cases = [
        ("refuses connections", nobody, &unreachable, "14"),
        ("accepts no more", full.address, &late, "4"),
        ("resets", resets, &failed, "14"),
        ("closes", closes, &failed, "14"),
        ("closes within the head", half, &failed, "14"),
        ("answers garbage", garbage, &failed, "14"),
        ("never answers", hangs, &late, "4"),
    ];
    // Only who never answers needs a deadline to be told of.
    let deadline = |expected: &Sees| if *expected == late { HASTE } else { "" };
    let routes: Vec<_> = cases
        .iter()
        .map(|(_, app, expected, _)| (*app, HTTP1, deadline(expected)))
        .collect();
    let routes = Routes::to(&routes).await;
    for ((what, _, expected, grpc), entrance) in cases.iter().zip(&routes.a.outbound) {
        let turns = Turns::default();
        let round = async || {
            let http = turns.next();
            assert_eq!(
                &ask(*entrance, http, getting(http)).await,
                *expected,
                "{what}"
            );
        };
        routes.again_and_again(round).await;
        let called = ask(*entrance, Http::Two, calling()).await;
        assert_eq!(called, Sees::Grpc((*grpc).into()), "{what}");
    }
}

#[tokio::test]
async fn a_response_that_breaks_off_is_never_taken_for_a_whole_one() {
    const LENGTH: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nhalf of it";
    const CHUNKS: &[u8] =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nhalf of it\r\n";
    const TO_THE_END: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nhalf of it";
    const BAD_CHUNK: &[u8] =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na\r\nhalf of it\r\nxyz\r\n";
    let cases = [
        (LENGTH, End::Reset),
        (LENGTH, End::Close),
        (CHUNKS, End::Reset),
        (CHUNKS, End::Close),
        (BAD_CHUNK, End::Never),
        (TO_THE_END, End::Reset),
    ];
    let mut apps = Vec::new();
    for (bytes, end) in cases {
        apps.push(Faulty::saying(bytes, end).await);
    }
    // Without a length, only a close in order is an end.
    apps.push(Faulty::saying(TO_THE_END, End::Close).await);
    let routes: Vec<_> = apps.iter().map(|app| (app.address, HTTP1, "")).collect();
    let routes = Routes::to(&routes).await;
    for ((bytes, end), entrance) in cases.iter().zip(&routes.a.outbound) {
        let what = format!("{}, {end:?}", bytes.escape_ascii());
        let turns = Turns::default();
        let round = async || {
            let http = turns.next();
            let seen = ask(*entrance, http, getting(http)).await;
            // The end may overtake the beginning.
            let failed = Sees::problem(502, "upstream_failed");
            let told = seen == Sees::BrokenOff(200) || seen == failed || seen == Sees::Nothing;
            assert!(told, "{what}, {http:?}: {seen:?}");
        };
        routes.again_and_again(round).await;
    }
    let whole = ask(
        *routes.a.outbound.last().unwrap(),
        Http::One,
        getting(Http::One),
    )
    .await;
    assert_eq!(whole, Sees::Whole("half of it".into()));
    let broken = [("outcome", "upstream_failed"), ("direction", "inbound")];
    let ended = routes.b.metrics().await;
    assert!(ended.sum("doorward_requests_total", &broken) >= 1000.0);
}

#[tokio::test]
async fn an_application_over_http2_that_breaks_off_harms_only_what_it_had() {
    let mut apps = Vec::new();
    for fault in Http2Fault::ALL {
        apps.push(Faulty::new(move |stream| http2(stream, fault)).await);
    }
    let keys = "app_protocol: http2";
    let deadline = |fault: Http2Fault| match fault {
        Http2Fault::NoAnswer | Http2Fault::NoPreface => HASTE,
        _ => "",
    };
    let routes: Vec<_> = apps
        .iter()
        .zip(Http2Fault::ALL)
        .map(|(app, fault)| (app.address, keys, deadline(fault)))
        .collect();
    let routes = Routes::to(&routes).await;
    for (fault, entrance) in Http2Fault::ALL.into_iter().zip(&routes.a.outbound) {
        let turns = Turns::default();
        let expected = fault.seen();
        let round = async || {
            let http = turns.next();
            let seen = ask(*entrance, http, getting(http)).await;
            // The end may overtake the beginning.
            let overtaken = expected == Sees::BrokenOff(200)
                && (seen == Sees::problem(502, "upstream_failed") || seen == Sees::Nothing);
            assert!(
                seen == expected || overtaken,
                "{fault:?}, {http:?}: {seen:?}"
            );
        };
        // What is refused while others run goes on another connection, which is kept as any other.
        let kept = match fault {
            Http2Fault::Refused => AT_ONCE,
            _ => 0,
        };
        routes.again_and_again_keeping(kept, round).await;
    }
}

/// What an application does wrong over HTTP/2.
#[derive(Clone, Copy, Debug)]
enum Http2Fault {
    NoAnswer,
    NoPreface,
    ResetStream,
    ResetStreamInBody,
    ResetConnection,
    ResetConnectionInBody,
    Refused,
}

impl Http2Fault {
    const ALL: [Self; 7] = [
        Self::NoAnswer,
        Self::NoPreface,
        Self::ResetStream,
        Self::ResetStreamInBody,
        Self::ResetConnection,
        Self::ResetConnectionInBody,
        Self::Refused,
    ];

    fn seen(self) -> Sees {
        match self {
            Self::NoAnswer | Self::NoPreface => Sees::problem(504, "upstream_timeout"),
            Self::ResetStream | Self::ResetConnection | Self::Refused => {
                Sees::problem(502, "upstream_failed")
            }
            Self::ResetStreamInBody | Self::ResetConnectionInBody => Sees::BrokenOff(200),
        }
    }
}

async fn http2(stream: TcpStream, fault: Http2Fault) -> std::io::Result<()> {
    // Closing is resetting, whenever it comes.
    reset_at_the_end(&stream);
    if let Http2Fault::NoPreface = fault {
        return End::Never.of(stream).await;
    }
    let mut connection = h2::server::handshake(stream)
        .await
        .map_err(std::io::Error::other)?;
    let mut kept = Vec::new();
    while let Some(Ok((_, mut respond))) = connection.accept().await {
        match fault {
            Http2Fault::NoPreface => {}
            Http2Fault::NoAnswer => kept.push(respond),
            Http2Fault::ResetStream => respond.send_reset(h2::Reason::INTERNAL_ERROR),
            Http2Fault::Refused => respond.send_reset(h2::Reason::REFUSED_STREAM),
            Http2Fault::ResetConnection => return Ok(()),
            Http2Fault::ResetStreamInBody | Http2Fault::ResetConnectionInBody => {
                let response = Response::new(());
                let Ok(mut body) = respond.send_response(response, false) else {
                    continue;
                };
                // It may be gone with the connection.
                let _ = body.send_data(Bytes::from_static(b"half of it"), false);
                // Writes what has been said, and what there is to do besides is nothing.
                let closed = std::future::poll_fn(|cx| connection.poll_closed(cx));
                let _ = closed.now_or_never();
                if let Http2Fault::ResetConnectionInBody = fault {
                    return Ok(());
                }
                body.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_response_that_comes_a_byte_at_a_time_arrives_whole() {
    const SLOW: &[u8] =
        b"HTTP/1.1 200 OK\r\nx-much: yes\r\ncontent-length: 26\r\n\r\nabcdefghijklmnopqrstuvwxyz";
    let app = Faulty::new(|mut stream| async move {
        head(&mut stream).await?;
        for byte in SLOW {
            stream.write_all(&[*byte]).await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        End::Close.of(stream).await
    })
    .await;
    let routes = Routes::to(&[(app.address, HTTP1, "")]).await;
    let turns = Turns::default();
    let round = async || {
        let http = turns.next();
        let seen = ask(routes.a.outbound[0], http, getting(http)).await;
        assert_eq!(seen, Sees::Whole("abcdefghijklmnopqrstuvwxyz".into()));
    };
    routes.again_and_again(round).await;
}

#[tokio::test]
async fn a_kept_connection_that_closes_as_a_request_comes_costs_nothing_that_may_be_asked_again() {
    let taken = Arc::new(AtomicUsize::new(0));
    let count = taken.clone();
    // The first request on each connection is answered; the second one is read, and the connection closed.
    let app = Faulty::new(move |mut stream| {
        let count = count.clone();
        async move {
            head(&mut stream).await?;
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell")
                .await?;
            head(&mut stream).await?;
            count.fetch_add(1, Ordering::SeqCst);
            End::Close.of(stream).await
        }
    })
    .await;
    let routes = Routes::to(&[(app.address, HTTP1, "")]).await;
    let entrance = routes.a.outbound[0];
    let round = async || {
        let seen = ask(entrance, Http::One, getting(Http::One)).await;
        assert_eq!(seen, Sees::Whole("well".into()));
    };
    routes.again_and_again_keeping(AT_ONCE, round).await;
    assert!(
        taken.load(Ordering::SeqCst) > 50,
        "kept connections were used"
    );

    // What may do something twice is told to have failed, and it was sent once.
    let mut client = Client::connect(entrance, Http::One).await;
    eventually("a POST meets a kept connection", async || {
        let before = taken.load(Ordering::SeqCst);
        let answer = client.ask(request("POST", "/")).await.unwrap();
        match answer.status {
            200 => None,
            status => {
                assert_eq!((status, taken.load(Ordering::SeqCst)), (502, before + 1));
                Some(())
            }
        }
    })
    .await;
}

/// Where nobody listens.
pub(super) fn free_address() -> SocketAddr {
    // A socket that is bound and does not listen refuses connections, and keeps its port to itself.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    std::mem::forget(socket);
    address
}

/// An application that accepts no more, with as many waiting as the kernel lets wait.
struct FullBacklog {
    address: SocketAddr,
    _listener: Socket,
    _waiting: Vec<TcpStream>,
}

impl FullBacklog {
    async fn new() -> Self {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        listener.bind(&any.into()).unwrap();
        listener.listen(1).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        let mut waiting = Vec::new();
        let patience = Duration::from_millis(300);
        while let Ok(connected) = tokio::time::timeout(patience, TcpStream::connect(address)).await
        {
            waiting.push(connected.unwrap());
        }
        Self {
            address,
            _listener: listener,
            _waiting: waiting,
        }
    }
}
