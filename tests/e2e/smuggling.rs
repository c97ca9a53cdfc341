//! What is sent as one request never arrives as two, nor as another than policy decided on: a table of
//! what attackers try, sent byte by byte, to an application that keeps every byte it was sent.
//!
//! Behind each case, on the same connection, comes an honest request at once. It is answered with what
//! it asked for, or the connection has ended. What arrives must be requests that no server could read in
//! two ways, and only those that the table names: whole, or broken off where the attempt is.

mod frames;
mod recorder;

use std::fmt::Write as _;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use self::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, Told, block, frame};
use self::recorder::{Own, Recorder, Request};
use crate::mesh::*;

/// The host and the paths that the grant names.
fn policy() -> String {
    let rest = format!(
        "permit (principal == Workload::\"{}\", action, resource == Service::\"{SERVICE}\")\n\
         when {{ context has http && context.http.host == \"app.example\" &&\n\
         (context.http.path like \"/open/*\" || context.http.path == \"*\") }};",
        id("a")
    );
    governed("open-to-a", &rest)
}

struct Scene {
    mesh: Mesh,
    app: Recorder,
    tls: Tls,
}

/// How to get in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// As the application beside `a` does, in plain.
    Entrance,
    /// As any workload with an identity can, over mutual TLS.
    Gate,
}

const WAYS: [Way; 2] = [Way::Entrance, Way::Gate];

impl Scene {
    async fn new(http: Http, own: impl IntoIterator<Item = (String, Own)>) -> Self {
        let app = Recorder::start(own).await;
        let mesh = Mesh::with(Options {
            policy: Some(policy()),
            app: Some(app.address),
            // Whatever the caller speaks, the application is told in text: there is most to go wrong.
            inbound: "protocol: http, app_protocol: http1".into(),
            outbound: "protocol: http".into(),
            ..Options::default()
        })
        .await;
        let alpn: &[&str] = match http {
            Http::One => &["http/1.1"],
            Http::Two => &["h2"],
        };
        let tls = Tls::new(Some(&mesh.issuer.ca().svid("a")), alpn);
        Self { mesh, app, tls }
    }

    async fn connect(&self, way: Way) -> Box<dyn Io> {
        match way {
            Way::Entrance => {
                let stream = TcpStream::connect(self.mesh.entrance()).await.unwrap();
                stream.set_nodelay(true).unwrap();
                Box::new(stream)
            }
            Way::Gate => Box::new(self.tls.connect(self.mesh.gate()).await.unwrap()),
        }
    }

    /// Nothing is under way any more that was asked before: the connections that both sidecars keep are
    /// used once more, and answer what they are asked.
    async fn settle(&self) -> Result<(), String> {
        for way in WAYS {
            let mut io = self.connect(Way::Entrance).await;
            if way == Way::Gate {
                let svid = self.mesh.issuer.ca().svid("a");
                let tls = Tls::new(Some(&svid), &["http/1.1"]);
                io = Box::new(tls.connect(self.mesh.gate()).await.unwrap());
            }
            let answer = raw(&mut io, SETTLED.as_bytes()).await;
            if !answer.ends_with("GET /open/settled 0") {
                return Err(format!("what is asked next is answered with {answer:?}"));
            }
        }
        Ok(())
    }

    /// What arrived since request `number`, but for our own questions.
    fn arrived(&self, number: usize) -> Vec<Request> {
        let mut arrived = self.app.since(number);
        arrived.retain(|request| request.target != "/open/settled");
        arrived
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A request with these lines in its head, and this body.
fn post(lines: &str, body: &str) -> String {
    format!("POST /open/x HTTP/1.1\r\nhost: app.example\r\n{lines}\r\n{body}")
}

/// A request with this line, and a host.
fn line(line: &str) -> String {
    format!("{line}\r\nhost: app.example\r\n\r\n")
}

/// A request whose body looks like the next request.
const HIDDEN: &str = "GET /open/hidden HTTP/1.1\r\nhost: app.example\r\n\r\n";
const AFTER: &str = "GET /open/after HTTP/1.1\r\nhost: app.example\r\n\r\n";
const SETTLED: &str = "GET /open/settled HTTP/1.1\r\nhost: app.example\r\n\r\n";

/// One attempt over HTTP/1.1.
struct Case {
    what: &'static str,
    sent: String,
    expected: Expected,
}

/// What is expected of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// An answer of this status, and the connection ends.
    Ends(u16),
    /// An answer of this status, nothing arrives, and the next request is served.
    Refused(u16),
    /// It arrives as this, and so does the next.
    Arrives(&'static str),
    /// It arrives as this, and then the connection ends.
    ArrivesAlone(&'static str),
}

fn cases() -> Vec<Case> {
    use Expected::*;
    let case = |what, sent: String, expected| Case {
        what,
        sent,
        expected,
    };
    let hidden = |lines: &str| post(lines, HIDDEN);
    let length = HIDDEN.len();
    vec![
        // Lengths.
        case("a length", post("content-length: 5\r\n", "hello"), Arrives("POST /open/x 5")),
        case("a request in a body", post(&format!("content-length: {length}\r\n"), HIDDEN), Arrives("POST /open/x 48")),
        case("two lengths", hidden("content-length: 0\r\ncontent-length: 48\r\n"), Ends(400)),
        case("two lengths, the other way", hidden("content-length: 48\r\ncontent-length: 0\r\n"), Ends(400)),
        case("the same length twice", post("content-length: 5\r\ncontent-length: 5\r\n", "hello"), Arrives("POST /open/x 5")),
        case("a list of lengths", hidden("content-length: 48, 54\r\n"), Ends(400)),
        case("a list without a space", post("content-length: 5,5\r\n", "hello"), Ends(400)),
        case("a positive length", post("content-length: +5\r\n", "hello"), Ends(400)),
        case("a negative length", hidden("content-length: -1\r\n"), Ends(400)),
        case("a length in hex", post("content-length: 0x5\r\n", "hello"), Ends(400)),
        case("a length with a space behind", post("content-length: 5 \r\n", "hello"), Arrives("POST /open/x 5")),
        case("a length with a tab before", post("content-length:\t5\r\n", "hello"), Arrives("POST /open/x 5")),
        case("a length with a space within", post("content-length: 5 0\r\n", "hello"), Ends(400)),
        case("a length with a vertical tab", post("content-length: \x0b5\r\n", "hello"), Ends(400)),
        case("an empty length", hidden("content-length:\r\n"), Ends(400)),
        case("a length with a fraction", post("content-length: 5.0\r\n", "hello"), Ends(400)),
        case("a length beyond 64 bits", hidden("content-length: 18446744073709551617\r\n"), Ends(400)),
        case("the largest number of 64 bits", hidden("content-length: 18446744073709551615\r\n"), Ends(431)),
        case("a length with leading zeros", post("content-length: 005\r\n", "hello"), Refused(400)),
        case("a length in other digits", post("content-length: \u{ff15}\r\n", "hello"), Ends(400)),
        case("a length with an underscore in its name", post("content-length: 5\r\ncontent_length: 48\r\n", "hello"), Arrives("POST /open/x 5")),
        // Transfer codings.
        case("chunks", post("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"), Arrives("POST /open/x 5")),
        case("chunks of a GET", "GET /open/x HTTP/1.1\r\nhost: app.example\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".into(), Arrives("GET /open/x 5")),
        case("CHUNKED", post("Transfer-Encoding: CHUNKED\r\n", "5\r\nhello\r\n0\r\n\r\n"), Arrives("POST /open/x 5")),
        case("a length before chunks", hidden_chunks("content-length: 4\r\ntransfer-encoding: chunked\r\n"), ArrivesAlone("POST /open/x 0")),
        case("chunks before a length", hidden_chunks("transfer-encoding: chunked\r\ncontent-length: 4\r\n"), ArrivesAlone("POST /open/x 0")),
        case("no length beside chunks", hidden_chunks("transfer-encoding: chunked\r\ncontent-length: x\r\n"), ArrivesAlone("POST /open/x 0")),
        case("chunked, identity", hidden_chunks("transfer-encoding: chunked, identity\r\n"), Ends(400)),
        case("identity, chunked", hidden_chunks("transfer-encoding: identity, chunked\r\n"), Refused(400)),
        case("identity", hidden_chunks("transfer-encoding: identity\r\n"), Ends(400)),
        case("gzip, chunked", hidden_chunks("transfer-encoding: gzip, chunked\r\n"), Refused(400)),
        case("xchunked", hidden_chunks("transfer-encoding: xchunked\r\n"), Ends(400)),
        case("chunked with a parameter", hidden_chunks("transfer-encoding: chunked;q=1\r\n"), Ends(400)),
        case("chunked in quotes", hidden_chunks("transfer-encoding: \"chunked\"\r\n"), Ends(400)),
        case("chunked with a space before", hidden_chunks("transfer-encoding:  chunked\r\n"), Arrives("POST /open/x 0")),
        case("chunked with a tab behind", hidden_chunks("transfer-encoding: chunked\t\r\n"), Arrives("POST /open/x 0")),
        case("chunked with a vertical tab", hidden_chunks("transfer-encoding: \x0bchunked\r\n"), Ends(400)),
        case("chunked twice", hidden_chunks("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"), Refused(400)),
        case("chunked, chunked", hidden_chunks("transfer-encoding: chunked, chunked\r\n"), Refused(400)),
        case("identity and chunked in two lines", hidden_chunks("transfer-encoding: identity\r\ntransfer-encoding: chunked\r\n"), Refused(400)),
        case("chunked and identity in two lines", hidden_chunks("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n"), Ends(400)),
        case("an empty coding", hidden_chunks("transfer-encoding:\r\n"), Ends(400)),
        case("an empty coding before chunked", hidden_chunks("transfer-encoding: ,chunked\r\n"), Refused(400)),
        case("a coding with an underscore in its name", post("content-length: 5\r\ntransfer_encoding: chunked\r\n", "0\r\n\r\n"), Arrives("POST /open/x 5")),
        case("a coding folded", hidden_chunks("transfer-encoding:\r\n chunked\r\n"), Ends(400)),
        case("chunked in HTTP/1.0", "POST /open/x HTTP/1.0\r\nhost: app.example\r\nconnection: keep-alive\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n".into(), Ends(400)),
        // Chunks.
        case("a chunk with an extension", chunked("5;a=b\r\nhello\r\n0\r\n\r\n"), Arrives("POST /open/x 5")),
        case("a chunk with an extension in quotes", chunked("5;a=\"b\r\n\"\r\nhello\r\n0\r\n\r\n"), Ends(400)),
        case("a chunk whose extension ends in LF alone", chunked("5;a\nhello\r\n0\r\n\r\n"), Ends(400)),
        case("a chunk whose size ends in LF alone", chunked("5\nhello\r\n0\r\n\r\n"), Ends(400)),
        case("a chunk whose size ends in CR alone", chunked("5\rhello\r\n0\r\n\r\n"), Ends(400)),
        case("a chunk with an x in its size", chunked("0x5\r\nhello\r\n0\r\n\r\n"), Ends(400)),
        case("a chunk without a size", chunked("\r\nhello\r\n0\r\n\r\n"), Ends(400)),
        case("a chunk with a sign", chunked("+5\r\nhello\r\n0\r\n\r\n"), Ends(400)),
        case("a negative chunk", chunked("-5\r\nhello\r\n0\r\n\r\n"), Ends(400)),
        case("a chunk beyond 64 bits", chunked("10000000000000005\r\nhello\r\n0\r\n\r\n"), Ends(400)),
        case("a chunk with leading zeros", chunked("0005\r\nhello\r\n0\r\n\r\n"), Arrives("POST /open/x 5")),
        case("a chunk with a space behind its size", chunked("5 \r\nhello\r\n0\r\n\r\n"), Arrives("POST /open/x 5")),
        case("a chunk longer than it says", chunked("5\r\nhello!\r\n0\r\n\r\n"), Ends(400)),
        case("a chunk that ends in LF alone", chunked("5\r\nhello\n0\r\n\r\n"), Ends(400)),
        case("a chunk that does not end", chunked("5\r\nhello0\r\n\r\n"), Ends(400)),
        case("a last chunk with a request in an extension", chunked("0;GET /open/hidden HTTP/1.1\r\n\r\n"), Arrives("POST /open/x 0")),
        case("trailers", chunked("5\r\nhello\r\n0\r\nx-sum: 3\r\n\r\n"), Arrives("POST /open/x 5")),
        case("a trailer that is no header", chunked("5\r\nhello\r\n0\r\nGET /open/hidden HTTP/1.1\r\n\r\n"), Ends(400)),
        case("a trailer folded", chunked("5\r\nhello\r\n0\r\nx-a: b\r\n c\r\n\r\n"), Ends(400)),
        // Heads.
        case("a folded header", post("x-a: b\r\n c\r\ncontent-length: 0\r\n", ""), Ends(400)),
        case("a fold first", "GET /open/x HTTP/1.1\r\n x: y\r\nhost: app.example\r\n\r\n".into(), Ends(400)),
        case("a space before a colon", post("content-length : 5\r\n", "hello"), Ends(400)),
        case("a tab before a colon", post("transfer-encoding\t: chunked\r\n", "0\r\n\r\n"), Ends(400)),
        case("a space in a name", post("x y: z\r\n", ""), Ends(400)),
        case("a header without a colon", post("x\r\n", ""), Ends(400)),
        case("a header without a name", post(": x\r\n", ""), Ends(400)),
        case("a name with a NUL", post("x\0y: z\r\n", ""), Ends(400)),
        case("a value with a NUL", post("x: y\0z\r\n", ""), Ends(400)),
        case("a value with CR alone", post("x: y\rz: 1\r\n", ""), Ends(400)),
        case("a value with CR at its end", post("x: y\r\r\n", ""), Ends(400)),
        case("a header that ends in LF alone", post("x: y\ncontent-length: 0\r\n", ""), Arrives("POST /open/x 0")),
        case("a head that ends in LF alone", "GET /open/x HTTP/1.1\nhost: app.example\n\n".into(), Arrives("GET /open/x 0")),
        case("a name in other letters", post("x-\u{e4}: y\r\n", ""), Ends(400)),
        case("a delete character in a value", post("x: y\x7fz\r\n", ""), Ends(400)),
        // Request lines.
        case("a line end first", format!("\r\n\r\n{}", line("GET /open/x HTTP/1.1")), Arrives("GET /open/x 0")),
        case("a space first", line(" GET /open/x HTTP/1.1"), Ends(400)),
        case("two spaces", line("GET  /open/x HTTP/1.1"), Ends(400)),
        case("a tab for a space", line("GET\t/open/x HTTP/1.1"), Ends(400)),
        case("a space behind the version", line("GET /open/x HTTP/1.1 "), Ends(400)),
        case("a request line in the target", line("GET /open/x HTTP/1.1\r\nx: y"), Arrives("GET /open/x 0")),
        case("two targets", line("GET /open/x /closed HTTP/1.1"), Ends(400)),
        case("a CR in the target", line("GET /open/x\rHTTP/1.1"), Ends(400)),
        case("a NUL in the target", line("GET /open/x\0 HTTP/1.1"), Ends(400)),
        case("a line end encoded in the target", line("GET /open/x%0d%0aGET%20/closed HTTP/1.1"), Refused(400)),
        case("a line end encoded in the query", line("GET /open/x?%0d%0aGET%20/closed HTTP/1.1"), Arrives("GET /open/x?%0d%0aGET%20/closed 0")),
        case("a lower-case method", line("get /open/x HTTP/1.1"), Arrives("get /open/x 0")),
        case("a method with brackets", line("G(T /open/x HTTP/1.1"), Ends(400)),
        case("HTTP/0.9", "GET /open/x\r\n\r\n".into(), Ends(400)),
        case("HTTP/1.0", line("GET /open/x HTTP/1.0"), ArrivesAlone("GET /open/x 0")),
        case("HTTP/1.0, kept", line("GET /open/x HTTP/1.0\r\nconnection: keep-alive"), Arrives("GET /open/x 0")),
        case("HTTP/1.0 without a host", "GET /open/x HTTP/1.0\r\n\r\n".into(), Ends(403)),
        case("HTTP/1.2", line("GET /open/x HTTP/1.2"), Ends(400)),
        case("HTTP/2.0", line("GET /open/x HTTP/2.0"), Ends(400)),
        case("HTTP/11.1", line("GET /open/x HTTP/11.1"), Ends(400)),
        case("HTTP/1.10", line("GET /open/x HTTP/1.10"), Ends(400)),
        case("HTTP/-1.1", line("GET /open/x HTTP/-1.1"), Ends(400)),
        case("HTTP/4294967297.1", line("GET /open/x HTTP/4294967297.1"), Ends(400)),
        case("http/1.1", line("GET /open/x http/1.1"), Ends(400)),
        case("an HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\n".into(), Ends(400)),
        // Targets and hosts.
        case("a path that is not granted", line("GET /closed HTTP/1.1"), Refused(403)),
        case("a path that climbs", line("GET /open/../closed HTTP/1.1"), Refused(400)),
        case("a path that climbs in code", line("GET /open/%2e%2e/closed HTTP/1.1"), Refused(400)),
        case("a path with a backslash", line("GET /open/..\\closed HTTP/1.1"), Refused(400)),
        case("a path without a slash", line("GET open/x HTTP/1.1"), Ends(400)),
        case("a path that is another host", line("GET //other.example/open/x HTTP/1.1"), Refused(400)),
        case("a fragment", line("GET /open/x#/../../closed HTTP/1.1"), Arrives("GET /open/x 0")),
        case("a fragment before what is open", line("GET /closed#/open/x HTTP/1.1"), Refused(403)),
        case("an absolute target", line("GET http://app.example/open/x HTTP/1.1"), Arrives("GET /open/x 0")),
        case("an absolute target of another host", line("GET http://other.example/open/x HTTP/1.1"), Refused(403)),
        case("an absolute target without a path", line("GET http://app.example HTTP/1.1"), Refused(403)),
        case("an absolute target with a user", line("GET http://other.example@app.example/open/x HTTP/1.1"), Refused(400)),
        case("a target of another scheme", line("GET file:///open/x HTTP/1.1"), Ends(400)),
        case("CONNECT", line("CONNECT app.example:80 HTTP/1.1"), Refused(400)),
        case("CONNECT to a path", line("CONNECT /open/x HTTP/1.1"), Refused(400)),
        case("an authority without CONNECT", line("GET app.example:80 HTTP/1.1"), Refused(400)),
        case("OPTIONS *", line("OPTIONS * HTTP/1.1"), Arrives("OPTIONS * 0")),
        case("GET *", line("GET * HTTP/1.1"), Refused(400)),
        case("no host", "GET /open/x HTTP/1.1\r\n\r\n".into(), Refused(400)),
        case("an empty host", "GET /open/x HTTP/1.1\r\nhost:\r\n\r\n".into(), Refused(403)),
        case("two hosts", line("GET /open/x HTTP/1.1\r\nhost: other.example"), Refused(400)),
        case("the same host twice", line("GET /open/x HTTP/1.1\r\nhost: app.example"), Refused(400)),
        case("a host with a user", "GET /open/x HTTP/1.1\r\nhost: other.example@app.example\r\n\r\n".into(), Refused(400)),
        case("a host with a path", "GET /open/x HTTP/1.1\r\nhost: app.example/closed\r\n\r\n".into(), Refused(400)),
        case("a host with a space", "GET /open/x HTTP/1.1\r\nhost: app.example other.example\r\n\r\n".into(), Refused(400)),
        case("a host with a list", "GET /open/x HTTP/1.1\r\nhost: app.example, other.example\r\n\r\n".into(), Refused(400)),
        case("a host with no number for a port", "GET /open/x HTTP/1.1\r\nhost: app.example:other.example\r\n\r\n".into(), Refused(400)),
        case("a host with a port too large", "GET /open/x HTTP/1.1\r\nhost: app.example:65536\r\n\r\n".into(), Refused(400)),
        case("a host with two ports", "GET /open/x HTTP/1.1\r\nhost: app.example:80:80\r\n\r\n".into(), Refused(400)),
        case("a host in code", "GET /open/x HTTP/1.1\r\nhost: app%2eexample\r\n\r\n".into(), Refused(400)),
        case("an absolute target and two hosts", line("GET http://app.example/open/x HTTP/1.1\r\nhost: other.example"), Refused(400)),
        case("an absolute target beside another host", "GET http://app.example/open/x HTTP/1.1\r\nhost: other.example\r\n\r\n".into(), Arrives("GET /open/x 0")),
        // What concerns one connection only.
        case("connection: host", post("connection: host\r\ncontent-length: 0\r\n", ""), Refused(400)),
        case("connection: content-length", post("connection: content-length\r\ncontent-length: 48\r\n", HIDDEN), Refused(400)),
        case("connection: transfer-encoding", hidden_chunks("connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n"), Arrives("POST /open/x 0")),
        case("connection: x-forwarded-client-cert", post("connection: x-forwarded-client-cert\r\ncontent-length: 0\r\n", ""), Arrives("POST /open/x 0")),
        case("connection: close and keep-alive", post("connection: close, keep-alive\r\ncontent-length: 0\r\n", ""), ArrivesAlone("POST /open/x 0")),
        case("connection: via, upgrade, te", post("connection: via, upgrade, te, connection\r\nte: gzip;q=1, chunked\r\ncontent-length: 0\r\n", ""), Arrives("POST /open/x 0")),
        case("proxy-connection", post("proxy-connection: keep-alive\r\nkeep-alive: timeout=9\r\ncontent-length: 0\r\n", ""), Arrives("POST /open/x 0")),
        // Upgrades.
        case("an upgrade to h2c", line("GET /open/x HTTP/1.1\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__"), Arrives("GET /open/x 0")),
        case("an upgrade to HTTP/2.0", line("GET /open/101 HTTP/1.1\r\nconnection: upgrade\r\nupgrade: HTTP/2.0"), Refused(502)),
        case("an upgrade to TLS", line("GET /open/101 HTTP/1.1\r\nconnection: upgrade\r\nupgrade: TLS/1.3, HTTP/1.1"), Refused(502)),
        case("an upgrade that is not granted", line("GET /open/x HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket"), Arrives("GET /open/x 0")),
        case("an upgrade with a body", post("connection: upgrade\r\nupgrade: websocket\r\ncontent-length: 48\r\n", HIDDEN), Arrives("POST /open/x 48")),
        case("an upgrade to nothing", line("GET /open/x HTTP/1.1\r\nconnection: upgrade\r\nupgrade:"), Arrives("GET /open/x 0")),
        case("an upgrade that policy refuses", line("GET /closed HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket"), Refused(403)),
        case("another protocol unasked", line("GET /open/101 HTTP/1.1"), Refused(502)),
        // Expectations.
        case("an expectation of a continue with a request behind", post("expect: 100-continue\r\ncontent-length: 5\r\n", "hello"), Arrives("POST /open/x 5")),
        case("an expectation of something else", post("expect: 200-ok\r\ncontent-length: 5\r\n", "hello"), Arrives("POST /open/x 5")),
    ]
}

/// A request that says it has a chunked body in these lines; a request hides behind its last chunk only for
/// who counts otherwise.
fn hidden_chunks(lines: &str) -> String {
    post(lines, "0\r\n\r\n")
}

fn chunked(body: &str) -> String {
    post("transfer-encoding: chunked\r\n", body)
}

fn own_answers() -> [(String, Own); 1] {
    let bytes =
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: HTTP/2.0\r\n\r\n";
    let own = Own {
        bytes,
        closes: false,
    };
    [("/open/101".into(), own)]
}

#[tokio::test]
async fn what_does_not_look_like_a_request_is_a_connection_and_needs_a_grant_for_that() {
    let app = Recorder::start([]).await;
    let mesh = Mesh::with(Options {
        policy: Some(policy()),
        app: Some(app.address),
        ..Options::default()
    })
    .await;
    for disguised in [
        format!("\r\n{AFTER}"),
        format!(" {AFTER}"),
        AFTER.replace("GET", "get"),
        format!("\0{AFTER}"),
        AFTER.replace("GET ", "GET\t"),
    ] {
        let mut io = TcpStream::connect(mesh.entrance()).await.unwrap();
        let told = raw(&mut io, disguised.as_bytes()).await;
        assert_eq!(told, "", "{disguised:?}");
    }
    assert_eq!(mesh.get("/open/x").await.text(), "GET /open/x 0");
    assert_eq!((app.count(), app.misunderstood()), (1, vec![]));
    assert_eq!(app.connections(), 1);
}

#[tokio::test]
async fn what_is_sent_as_one_request_over_http1_arrives_as_that_or_not_at_all() {
    let scene = Scene::new(Http::One, own_answers()).await;
    let mut failures = String::new();
    for way in WAYS {
        for case in cases() {
            if let Err(why) = attempt(&scene, way, &case).await {
                let _ = writeln!(failures, "{way:?}, {}: {why}", case.what);
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    assert_eq!(scene.app.misunderstood(), Vec::<String>::new());
    let ended = [("outcome", "bad_request")];
    let metrics = scene.mesh.b.metrics().await;
    let unread = metrics.sum("doorward_sessions_ended_total", &ended);
    assert!(unread > 0.0, "what cannot be parsed is counted");
}

async fn attempt(scene: &Scene, way: Way, case: &Case) -> Result<(), String> {
    let before = scene.app.count();
    let mut io = scene.connect(way).await;
    let sent = [case.sent.as_bytes(), AFTER.as_bytes()].concat();
    // Whoever is refused may be gone before all is written.
    let _ = io.write_all(&sent).await;
    let answers = answers(&mut io).await;
    drop(io);
    scene.settle().await?;
    let arrived = scene.arrived(before);
    let lines: Vec<String> = arrived
        .iter()
        .map(|it| format!("{} {} {}", it.method, it.target, it.body.len()))
        .collect();
    let after = "GET /open/after 0";
    let (statuses, expected): (&[u16], &[&str]) = match &case.expected {
        Expected::Ends(status) => (&[*status], &[]),
        Expected::Refused(status) => (&[*status, 200], &[after]),
        Expected::Arrives(this) => (&[200, 200], &[this, after]),
        Expected::ArrivesAlone(this) => (&[200], &[this]),
    };
    let told: Vec<u16> = answers.iter().map(|(status, _)| *status).collect();
    // The application may have been asked and have answered with what the caller must not see.
    let asked: Vec<&String> = lines
        .iter()
        .filter(|line| !line.contains("/open/101"))
        .collect();
    if told != statuses || asked != expected {
        return Err(format!(
            "answered {told:?}, arrived {lines:?}, not {:?}",
            case.expected
        ));
    }
    unchanged(&arrived)
}

/// The status and the body of all answers until the connection ends, or what came last was answered.
async fn answers<IO: AsyncRead + Unpin>(io: &mut IO) -> Vec<(u16, String)> {
    let (mut bytes, mut answers) = (Vec::new(), Vec::new());
    let reading = async {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = io.read(&mut piece).await {
            bytes.extend_from_slice(&piece[..length]);
            while let Some((status, body, length)) = whole(&bytes) {
                bytes.drain(..length);
                let last = body == "GET /open/after 0";
                if status >= 200 {
                    answers.push((status, body));
                }
                if last {
                    return;
                }
            }
        }
    };
    if tokio::time::timeout(SOON, reading).await.is_err() {
        answers.push((0, "nothing more, and no end".into()));
    }
    if !bytes.is_empty() {
        answers.push((0, String::from_utf8_lossy(&bytes).into_owned()));
    }
    answers
}

/// The first response in `bytes`, and its length. All that come here have a length, or no body.
fn whole(bytes: &[u8]) -> Option<(u16, String, usize)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let end = text.find("\r\n\r\n")? + 4;
    let head = text[..end].to_ascii_lowercase();
    let status = head.get(9..12)?.parse().ok()?;
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    let body = text.get(end..end + length)?;
    Some((status, body.to_owned(), end + length))
}

/// One attempt over HTTP/2: frames on stream 1.
struct Frames {
    what: &'static str,
    sent: Vec<u8>,
    expected: Expected2,
}

/// What is expected of it. The next request, on stream 3, is served, unless the connection was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected2 {
    /// It is answered in another way than by the application, or not at all.
    Refused(Told),
    /// It arrives as this.
    Arrives(&'static str),
}

const MALFORMED: Expected2 = Expected2::Refused(Told::Reset(PROTOCOL_ERROR));
/// What cannot even be a field is no longer told apart from a connection out of step.
const GIVEN_UP: Expected2 = Expected2::Refused(Told::Goaway(PROTOCOL_ERROR));
const BAD: Expected2 = Expected2::Refused(Told::Status(400));
const DENIED: Expected2 = Expected2::Refused(Told::Status(403));
/// RFC 9113 §7.
const PROTOCOL_ERROR: u32 = 1;

/// The fields of a sound request, with those of the same name replaced and all others behind.
fn fields<'a>(changed: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "app.example"),
        (":path", "/open/x"),
    ];
    for (name, value) in changed {
        match fields.iter_mut().find(|(key, _)| key == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields
}

fn without<'a>(name: &str, changed: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = fields(changed);
    fields.retain(|(key, _)| *key != name);
    fields
}

/// A request without a body.
fn bare(fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(fields))
}

/// A request with this body, and trailers if there are any.
fn full(fields: &[(&str, &str)], body: &str, trailers: &[(&str, &str)]) -> Vec<u8> {
    let last = if trailers.is_empty() { END_STREAM } else { 0 };
    let mut frames = [
        frame(HEADERS, END_HEADERS, 1, &block(fields)),
        frame(DATA, last, 1, body.as_bytes()),
    ]
    .concat();
    if !trailers.is_empty() {
        let flags = END_HEADERS | END_STREAM;
        frames.extend(frame(HEADERS, flags, 1, &block(trailers)));
    }
    frames
}

fn frames() -> Vec<Frames> {
    use Expected2::*;
    let case = |what, sent, expected| Frames {
        what,
        sent,
        expected,
    };
    let with =
        |what, changed: &[(&str, &str)], expected| case(what, bare(&fields(changed)), expected);
    let length = |what, length: &str, expected| {
        case(
            what,
            full(&fields(&[("content-length", length)]), "hello", &[]),
            expected,
        )
    };
    vec![
        // Lengths.
        case(
            "a body",
            full(&fields(&[]), "hello", &[]),
            Arrives("POST /open/x 5"),
        ),
        case(
            "a request for a body",
            full(&fields(&[]), HIDDEN, &[]),
            Arrives("POST /open/x 48"),
        ),
        length("a length", "5", Arrives("POST /open/x 5")),
        length("a length too small", "3", MALFORMED),
        length("a length too large", "50", MALFORMED),
        length("a positive length", "+5", MALFORMED),
        length("a length in hex", "0x5", MALFORMED),
        length("a list of lengths", "5, 5", MALFORMED),
        length("a length with a space", "5 ", MALFORMED),
        length("a length with leading zeros", "005", BAD),
        length("a length beyond 64 bits", "18446744073709551621", MALFORMED),
        case(
            "an empty length",
            bare(&fields(&[("content-length", "")])),
            BAD,
        ),
        case(
            "a length without a body",
            bare(&fields(&[("content-length", "48")])),
            MALFORMED,
        ),
        case(
            "the same length twice",
            full(
                &[
                    &fields(&[])[..],
                    &[("content-length", "5"), ("content-length", "5")],
                ]
                .concat(),
                "hello",
                &[],
            ),
            BAD,
        ),
        case(
            "two lengths",
            full(
                &[
                    &fields(&[])[..],
                    &[("content-length", "5"), ("content-length", "6")],
                ]
                .concat(),
                "hello",
                &[],
            ),
            MALFORMED,
        ),
        case(
            "a length in disguise",
            full(&fields(&[("content_length", "48")]), "hello", &[]),
            Arrives("POST /open/x 5"),
        ),
        // What concerns one connection only.
        with(
            "transfer-encoding",
            &[("transfer-encoding", "chunked")],
            MALFORMED,
        ),
        with("connection", &[("connection", "host")], MALFORMED),
        with("keep-alive", &[("keep-alive", "timeout=5")], MALFORMED),
        with(
            "proxy-connection",
            &[("proxy-connection", "keep-alive")],
            MALFORMED,
        ),
        with("upgrade", &[("upgrade", "websocket")], MALFORMED),
        with("te: gzip", &[("te", "gzip")], MALFORMED),
        with(
            "te: trailers",
            &[("te", "trailers")],
            Arrives("POST /open/x 0"),
        ),
        // Fields.
        with("a name in capitals", &[("X-Y", "z")], GIVEN_UP),
        with(
            "a name in capitals that counts",
            &[("Transfer-Encoding", "chunked")],
            GIVEN_UP,
        ),
        with("no name", &[("", "z")], GIVEN_UP),
        with("a name with a space", &[("x y", "z")], GIVEN_UP),
        with("a name with a colon", &[("x: y\r\nz", "1")], GIVEN_UP),
        with(
            "a name with a line end",
            &[("x\r\ntransfer-encoding", "chunked")],
            GIVEN_UP,
        ),
        with(
            "a value with a line end",
            &[("x", "y\r\ntransfer-encoding: chunked")],
            GIVEN_UP,
        ),
        with("a value with LF alone", &[("x", "y\nz: 1")], GIVEN_UP),
        with("a value with CR alone", &[("x", "y\rz: 1")], GIVEN_UP),
        with("a value with a NUL", &[("x", "y\0z")], GIVEN_UP),
        with(
            "a value with a request",
            &[(
                "x",
                "y\r\n\r\nGET /open/hidden HTTP/1.1\r\nhost: app.example\r\n\r\n",
            )],
            GIVEN_UP,
        ),
        // Pseudo-headers.
        case(
            "a pseudo-header behind a header",
            bare(&[&fields(&[])[..3], &[("x", "y"), (":path", "/open/x")]].concat()),
            MALFORMED,
        ),
        case(
            "two paths",
            bare(&[&fields(&[])[..], &[(":path", "/closed")]].concat()),
            MALFORMED,
        ),
        case(
            "two methods",
            bare(&[&fields(&[])[..], &[(":method", "GET")]].concat()),
            MALFORMED,
        ),
        case(
            "two authorities",
            bare(&[&fields(&[])[..], &[(":authority", "other.example")]].concat()),
            MALFORMED,
        ),
        with(
            "a pseudo-header that does not exist",
            &[(":other", "x")],
            GIVEN_UP,
        ),
        with("a status", &[(":status", "200")], MALFORMED),
        case("no method", bare(&without(":method", &[])), MALFORMED),
        case("no scheme", bare(&without(":scheme", &[])), MALFORMED),
        case("no path", bare(&without(":path", &[])), MALFORMED),
        case("no authority", bare(&without(":authority", &[])), DENIED),
        case(
            "a host for the authority",
            bare(&without(":authority", &[("host", "app.example")])),
            Arrives("POST /open/x 0"),
        ),
        case(
            "two hosts for the authority",
            bare(
                &[
                    &without(":authority", &[])[..],
                    &[("host", "app.example"), ("host", "other.example")],
                ]
                .concat(),
            ),
            BAD,
        ),
        with(
            "a host beside the authority",
            &[("host", "app.example")],
            Arrives("POST /open/x 0"),
        ),
        with(
            "another host than the authority",
            &[("host", "other.example")],
            BAD,
        ),
        with("an empty authority", &[(":authority", "")], MALFORMED),
        with(
            "an authority with a user",
            &[(":authority", "other.example@app.example")],
            BAD,
        ),
        with(
            "an authority with a path",
            &[(":authority", "app.example/closed")],
            MALFORMED,
        ),
        with(
            "an authority with a line end",
            &[(":authority", "app.example\r\nx: y")],
            MALFORMED,
        ),
        with(
            "an authority with a space",
            &[(":authority", "app.example other.example")],
            MALFORMED,
        ),
        with(
            "an authority with a port that is none",
            &[(":authority", "app.example:other")],
            BAD,
        ),
        with(
            "another authority",
            &[(":authority", "other.example")],
            DENIED,
        ),
        with("an empty path", &[(":path", "")], MALFORMED),
        with("a path without a slash", &[(":path", "open/x")], MALFORMED),
        with(
            "a path that is a URL",
            &[(":path", "http://other.example/open/x")],
            MALFORMED,
        ),
        with(
            "a path that begins with its query",
            &[(":path", "?/open/x")],
            DENIED,
        ),
        with(
            "a path that is another host",
            &[(":path", "//other.example/open/x")],
            BAD,
        ),
        with(
            "a path with a space",
            &[(":path", "/open/x HTTP/1.1")],
            MALFORMED,
        ),
        with(
            "a path with a line end",
            &[(
                ":path",
                "/open/x HTTP/1.1\r\nhost: app.example\r\n\r\nGET /closed",
            )],
            MALFORMED,
        ),
        with("a path with a NUL", &[(":path", "/open/x\0")], MALFORMED),
        with(
            "a path with a fragment",
            &[(":path", "/open/x#/../../closed")],
            Arrives("POST /open/x 0"),
        ),
        with("a path that climbs", &[(":path", "/open/../closed")], BAD),
        with(
            "a path that is not granted",
            &[(":path", "/closed")],
            DENIED,
        ),
        with("a star for a path", &[(":path", "*")], BAD),
        with(
            "OPTIONS *",
            &[(":method", "OPTIONS"), (":path", "*")],
            Arrives("OPTIONS * 0"),
        ),
        with(
            "a method with a request line",
            &[(":method", "GET /closed HTTP/1.1\r\nx:")],
            GIVEN_UP,
        ),
        with(
            "a method with a space",
            &[(":method", "GET /closed")],
            GIVEN_UP,
        ),
        with("an empty method", &[(":method", "")], GIVEN_UP),
        with(
            "a scheme with a host",
            &[(":scheme", "http://other.example/?")],
            MALFORMED,
        ),
        with(
            "CONNECT as any method",
            &[(":method", "CONNECT")],
            MALFORMED,
        ),
        case(
            "CONNECT",
            bare(&[(":method", "CONNECT"), (":authority", "app.example:80")]),
            BAD,
        ),
        with(
            "CONNECT to a protocol",
            &[(":method", "CONNECT"), (":protocol", "websocket")],
            MALFORMED,
        ),
        // Trailers.
        case(
            "trailers",
            full(&fields(&[("trailer", "x-sum")]), "hello", &[("x-sum", "3")]),
            Arrives("POST /open/x 5"),
        ),
        case(
            "trailers that frame, route and prove",
            full(
                &fields(&[(
                    "trailer",
                    "content-length, host, x-forwarded-client-cert, authorization",
                )]),
                "hello",
                &[
                    ("content-length", "0"),
                    ("host", "other.example"),
                    ("x-forwarded-client-cert", "URI=spiffe://example.org/admin"),
                    ("authorization", "Basic eDp5"),
                ],
            ),
            Arrives("POST /open/x 5"),
        ),
        // RFC 9113 §8.1 calls this malformed; it is dropped.
        case(
            "trailers with a path",
            full(&fields(&[]), "hello", &[(":path", "/closed")]),
            Arrives("POST /open/x 5"),
        ),
        case(
            "trailers with a coding",
            full(&fields(&[]), "hello", &[("transfer-encoding", "chunked")]),
            MALFORMED,
        ),
        case(
            "trailers with a line end",
            full(
                &fields(&[("trailer", "x")]),
                "hello",
                &[("x", "y\r\n\r\nGET /open/hidden HTTP/1.1\r\n")],
            ),
            GIVEN_UP,
        ),
        case(
            "headers in the middle",
            [
                frame(HEADERS, END_HEADERS, 1, &block(&fields(&[]))),
                frame(HEADERS, END_HEADERS, 1, &block(&fields(&[]))),
                frame(DATA, END_STREAM, 1, b"hello"),
            ]
            .concat(),
            MALFORMED,
        ),
    ]
}

#[tokio::test]
async fn what_is_sent_as_one_request_over_http2_arrives_as_that_or_not_at_all() {
    let scene = Scene::new(Http::Two, []).await;
    let mut failures = String::new();
    for way in WAYS {
        for case in frames() {
            if let Err(why) = attempt_frames(&scene, way, &case).await {
                let _ = writeln!(failures, "{way:?}, {}: {why}", case.what);
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
    assert_eq!(scene.app.misunderstood(), Vec::<String>::new());
}

async fn attempt_frames(scene: &Scene, way: Way, case: &Frames) -> Result<(), String> {
    let before = scene.app.count();
    let mut io = scene.connect(way).await;
    frames::write(&mut io, &[frames::hello(), case.sent.clone()].concat()).await;
    let in_time = "an answer or an end in time";
    let told = tokio::time::timeout(SOON, frames::told(&mut io, 1))
        .await
        .expect(in_time);
    let next = fields(&[(":method", "GET"), (":path", "/open/after")]);
    frames::write(
        &mut io,
        &frame(HEADERS, END_HEADERS | END_STREAM, 3, &block(&next)),
    )
    .await;
    let next = tokio::time::timeout(SOON, frames::told(&mut io, 3))
        .await
        .expect(in_time);
    drop(io);
    scene.settle().await?;
    let arrived = scene.arrived(before);
    let lines: Vec<String> = arrived
        .iter()
        .map(|it| format!("{} {} {}", it.method, it.target, it.body.len()))
        .collect();
    let (answer, mut expected) = match case.expected {
        Expected2::Refused(told) => (told, vec![]),
        Expected2::Arrives(this) => (Told::Status(200), vec![this]),
    };
    let after = match answer {
        Told::Goaway(_) => Told::End,
        _ => {
            expected.push("GET /open/after 0");
            Told::Status(200)
        }
    };
    if (told, next) != (answer, after) || lines != expected {
        return Err(format!(
            "told {told:?}, then {next:?}, arrived {lines:?}, not {:?}",
            case.expected
        ));
    }
    unchanged(&arrived)
}

/// Nothing arrived under another host, with the claims of a caller, or with what would frame it anew.
fn unchanged(arrived: &[Request]) -> Result<(), String> {
    for Request {
        headers, trailers, ..
    } in arrived
    {
        let strange = |(name, value): &&(String, String)| match name.as_str() {
            "host" => value != "app.example",
            "content_length" | "transfer_encoding" => true,
            "x-forwarded-client-cert" => !value.ends_with("URI=spiffe://example.org/a"),
            _ => false,
        };
        let strange: Vec<_> = headers.iter().filter(strange).collect();
        let trailers: Vec<_> = trailers
            .iter()
            .filter(|(name, _)| name != "x-sum")
            .collect();
        if !strange.is_empty() || !trailers.is_empty() {
            return Err(format!(
                "arrived with {strange:?} and the trailers {trailers:?}"
            ));
        }
    }
    Ok(())
}

/// What the application says wrong.
struct Wrong {
    what: &'static str,
    method: &'static str,
    own: Own,
    /// What the caller is told in its place.
    told: (u16, &'static str),
}

fn wrongs() -> Vec<Wrong> {
    let case = |what, bytes, told| Wrong {
        what,
        method: "GET",
        own: Own {
            bytes,
            closes: false,
        },
        told,
    };
    let head = |what, bytes, told| Wrong {
        method: "HEAD",
        ..case(what, bytes, told)
    };
    let failed = (502, "");
    vec![
        case(
            "an honest answer",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            (200, "hello"),
        ),
        case(
            "two answers",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
            (200, "hello"),
        ),
        case(
            "more than its length",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello and more",
            (200, "hello"),
        ),
        case(
            "a body where there is none",
            "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
            (204, ""),
        ),
        case(
            "a body of what has not changed",
            "HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
            (304, ""),
        ),
        head(
            "a body of a HEAD",
            "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged",
            (200, ""),
        ),
        case(
            "a length and chunks",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            failed,
        ),
        case(
            "two lengths",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
            failed,
        ),
        case(
            "the same length twice",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello",
            failed,
        ),
        case(
            "a list of lengths",
            "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
            failed,
        ),
        case(
            "a positive length",
            "HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello",
            failed,
        ),
        case(
            "another coding",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            failed,
        ),
        case(
            "chunked twice",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
            failed,
        ),
        case(
            "no coding",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n",
            failed,
        ),
        case(
            "another protocol unasked",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            failed,
        ),
        case(
            "a word before",
            "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            (200, "hello"),
        ),
        case(
            "a continue that nobody waits for",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            (200, "hello"),
        ),
        case(
            "a folded header",
            "HTTP/1.1 200 OK\r\nx: y\r\n z\r\ncontent-length: 5\r\n\r\nhello",
            failed,
        ),
        case(
            "a space before a colon",
            "HTTP/1.1 200 OK\r\ncontent-length : 5\r\n\r\nhello",
            failed,
        ),
        case(
            "a value with CR alone",
            "HTTP/1.1 200 OK\r\nx: y\rz: 1\r\ncontent-length: 5\r\n\r\nhello",
            failed,
        ),
        case(
            "a value with a NUL",
            "HTTP/1.1 200 OK\r\nx: y\0z\r\ncontent-length: 5\r\n\r\nhello",
            failed,
        ),
        case(
            "another version",
            "HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            failed,
        ),
        case(
            "a status of four digits",
            "HTTP/1.1 2000 OK\r\ncontent-length: 5\r\n\r\nhello",
            failed,
        ),
        case(
            "a status below 100",
            "HTTP/1.1 099 OK\r\ncontent-length: 5\r\n\r\nhello",
            failed,
        ),
        case("no HTTP", "220 ready\r\n", failed),
        case(
            "what concerns one connection only",
            "HTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=9\r\ncontent-length: 5\r\n\r\nhello",
            (200, "hello"),
        ),
    ]
}

#[tokio::test]
async fn an_answer_that_could_be_two_is_passed_on_as_one_or_not_at_all() {
    let path = |number: usize| format!("/open/own/{number}");
    let own = wrongs().into_iter().enumerate();
    let scene = Scene::new(
        Http::One,
        own.map(|(number, case)| (path(number), case.own)),
    )
    .await;
    let mut failures = String::new();
    for way in WAYS {
        for (number, case) in wrongs().iter().enumerate() {
            let Wrong {
                what, method, told, ..
            } = case;
            let mut io = scene.connect(way).await;
            let asked = line(&format!("{method} {} HTTP/1.1", path(number)));
            let _ = io.write_all((asked + AFTER).as_bytes()).await;
            let answers = answers(&mut io).await;
            let same = |(status, body): &(u16, String)| {
                // What we say ourselves is not the application's.
                *status == told.0 && (body == told.1 || body.contains("upstream_failed"))
            };
            let right = match &answers[..] {
                [first, (200, after)] => same(first) && after == "GET /open/after 0",
                _ => false,
            };
            if !right {
                let _ = writeln!(failures, "{way:?}, {what}: answered {answers:?}");
            }
            if let Err(why) = scene.settle().await {
                let _ = writeln!(failures, "{way:?}, {what}: {why}");
            }
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}
