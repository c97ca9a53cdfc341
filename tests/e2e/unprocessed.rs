//! A request of which an HTTP/2 server says that it did nothing about it is asked again, whatever it was, and
//! no other one is.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::floods::{
    DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, read_frame,
};
use crate::mesh::*;

const GOAWAY: u8 = 7;
/// `:status: 200`, as HPACK (RFC 7541, appendix A).
const OK: &[u8] = &[0x88];
/// RFC 9113 §7.
const REFUSED_STREAM: u8 = 7;

/// What a [`Server`] does about a request when the head is there, or, where a body follows, when something
/// of it is.
#[derive(Clone, Copy, Debug)]
enum Does {
    /// Refuses it.
    Refuse,
    /// The same, once something of the body has come.
    RefuseBody,
    /// Says that it was not looked at, nor will be any other on the connection.
    Leave,
    /// Says so, but that it was looked at; and goes.
    Break,
    /// Waits for its end and answers 200.
    Answer,
    /// The same, but says before that it will be the last one.
    AnswerLast,
    /// Nothing.
    Wait,
}

/// An HTTP/2 server that does with the first request what the first [`Does`] says, and so on; with those
/// after the last what that says.
struct Server {
    address: SocketAddr,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Debug, Default)]
struct Heard {
    connections: usize,
    requests: usize,
    /// Bytes of all bodies.
    bytes: usize,
}

impl Server {
    async fn start(acceptor: TlsAcceptor, plan: &'static [Does]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::<Mutex<Heard>>::default();
        let all = heard.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let stream = acceptor.accept(stream).await.unwrap();
                all.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, plan, all.clone()));
            }
        });
        Self { address, heard }
    }

    fn heard(&self) -> (usize, usize, usize) {
        let heard = self.heard.lock().unwrap();
        (heard.connections, heard.requests, heard.bytes)
    }
}

async fn serve(io: TlsStream<TcpStream>, plan: &[Does], heard: Arc<Mutex<Heard>>) {
    let (mut from, mut to): (ReadHalf<_>, WriteHalf<_>) = tokio::io::split(io);
    let mut preface = [0; PREFACE.len()];
    from.read_exact(&mut preface).await.unwrap();
    to.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    let mut does = std::collections::HashMap::new();
    while let Some((kind, flags, stream, payload)) = read_frame(&mut from).await {
        let what = match kind {
            HEADERS => {
                let mut heard = heard.lock().unwrap();
                let what = plan[heard.requests.min(plan.len() - 1)];
                heard.requests += 1;
                does.insert(stream, what);
                what
            }
            DATA => {
                heard.lock().unwrap().bytes += payload.len();
                does.get(&stream).copied().unwrap_or(Does::Wait)
            }
            _ => continue,
        };
        let goaway = |last: u32| frame(GOAWAY, 0, 0, &[&last.to_be_bytes()[..], &[0; 4]].concat());
        let refused = frame(RST_STREAM, 0, stream, &[0, 0, 0, REFUSED_STREAM]);
        let whole = END_HEADERS | END_STREAM;
        let said = match what {
            Does::Refuse if kind == HEADERS => refused,
            Does::RefuseBody if kind == DATA => refused,
            Does::Leave if kind == HEADERS => goaway(stream.saturating_sub(2)),
            Does::Break | Does::AnswerLast if kind == HEADERS => goaway(stream),
            Does::Answer | Does::AnswerLast if flags & END_STREAM != 0 => {
                frame(HEADERS, whole, stream, OK)
            }
            _ => continue,
        };
        if to.write_all(&said).await.is_err() || matches!(what, Does::Break) {
            return;
        }
    }
}

/// A sidecar before such a server.
async fn before(plan: &'static [Does], keys: &str) -> (Sidecar, Server, Dirs, Issuer) {
    let dirs = Dirs::new();
    let mut issuer = Issuer::new(&dirs);
    issuer.add(&dirs, "a", "1h", None);
    issuer.start().await;
    let acceptor = Tls::server(&issuer.ca().svid("b"), &["h2"]);
    let server = Server::start(acceptor, plan).await;
    let mut a = Plan::new("a")
        .outbound(server.address, &id("b"), keys)
        .with("workers: 1")
        .start(&dirs, &issuer)
        .await;
    a.ready().await;
    (a, server, dirs, issuer)
}

/// POST with a body of five bytes, of which the last three are written only when `more` completes.
async fn post(entrance: SocketAddr, first: &str, more: impl Future<Output = ()>) -> u16 {
    let mut stream = TcpStream::connect(entrance).await.unwrap();
    let head = format!("POST / HTTP/1.1\r\nhost: app.example\r\ncontent-length: 5\r\n\r\n{first}");
    stream.write_all(head.as_bytes()).await.unwrap();
    more.await;
    status_of(&raw(&mut stream, &b"hello"[first.len()..]).await)
}

#[tokio::test]
async fn what_was_not_acted_on_is_asked_again_whatever_it_was() {
    use Does::{Answer, Break, Leave, Refuse};
    for (plan, method, status, requests, again) in [
        (&[Refuse, Answer][..], "POST", 200, 2, 1.0),
        (&[Refuse, Refuse, Answer], "POST", 200, 3, 2.0),
        (&[Leave, Answer], "POST", 200, 2, 0.0),
        (&[Leave, Leave, Answer], "GET", 200, 3, 0.0),
        // Not without end.
        (&[Refuse], "GET", 502, 3, 2.0),
        (&[Leave], "GET", 502, 3, 0.0),
        // It may have been acted on.
        (&[Break, Answer], "POST", 502, 1, 0.0),
    ] {
        let (a, server, _dirs, _issuer) = before(plan, "").await;
        let answer = ask(a.outbound[0], request(method, "/")).await;
        assert_eq!(answer.status, status, "{plan:?} {method}");
        assert_eq!(server.heard().1, requests, "{plan:?} {method}");
        let why = [("why", "unprocessed")];
        a.counts("doorward_upstream_retries_total", &why, again)
            .await;
    }
}

#[tokio::test]
async fn the_budget_counts_for_what_was_refused() {
    let (a, server, ..) = before(&[Does::Refuse, Does::Answer], "retry_budget: 0").await;
    assert_eq!(get(a.outbound[0], "/").await.status, 502);
    assert_eq!(server.heard().1, 1);
    a.counts("doorward_upstream_retries_over_budget_total", &[], 1.0)
        .await;
}

#[tokio::test]
async fn a_body_goes_along_unless_something_of_it_is_gone() {
    for plan in [
        &[Does::Refuse, Does::Answer][..],
        &[Does::Leave, Does::Answer],
    ] {
        let (a, server, ..) = before(plan, "").await;
        let twice = async {
            eventually("it is asked again", async || {
                (server.heard().1 == 2).then_some(())
            })
            .await;
        };
        assert_eq!(post(a.outbound[0], "", twice).await, 200, "{plan:?}");
        assert_eq!((server.heard().1, server.heard().2), (2, 5), "{plan:?}");
    }

    let (a, server, ..) = before(&[Does::RefuseBody, Does::Answer], "").await;
    assert_eq!(post(a.outbound[0], "he", async {}).await, 502);
    assert_eq!(server.heard().1, 1);
}

#[tokio::test]
async fn a_farewell_breaks_off_nothing_that_was_begun_before() {
    let (a, server, ..) = before(&[Does::AnswerLast, Does::Answer], "").await;
    let entrance = a.outbound[0];
    let another = async {
        eventually("the first piece is there", async || {
            (server.heard().2 == 2).then_some(())
        })
        .await;
        assert_eq!(get(entrance, "/").await.status, 200);
        assert_eq!(server.heard().0, 2);
    };
    assert_eq!(post(entrance, "he", another).await, 200);
    assert_eq!((server.heard().1, server.heard().2), (2, 5));
}

#[tokio::test]
async fn a_connection_that_refuses_while_it_is_busy_is_not_asked_next() {
    let plan = &[Does::Wait, Does::Refuse, Does::Answer];
    let (a, server, ..) = before(plan, "").await;
    let entrance = a.outbound[0];
    let waits = tokio::spawn(async move { get(entrance, "/").await.status });
    eventually("the first one is there", async || {
        (server.heard().1 == 1).then_some(())
    })
    .await;
    assert_eq!(server.heard().0, 1);
    assert_eq!(ask(entrance, request("POST", "/")).await.status, 200);
    assert_eq!((server.heard().0, server.heard().1), (2, 3));
    waits.abort();
}
