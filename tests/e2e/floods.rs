//! Whoever abuses the protocol is cut off, at a cost that is bounded, and nobody else notices.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::mesh::{
    Client, Http, Mesh, Options, SOON, Sidecar, Tls, eventually, raw, request, status_of,
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame (RFC 9113 §4.1).
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `GET path`, as HPACK (RFC 7541): three fields of the static table with values of their own.
pub(crate) fn ask(path: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87];
    for (name, value) in [(4, path), (1, "app.example")] {
        block.extend([name, u8::try_from(value.len()).unwrap()]);
        block.extend(value.as_bytes());
    }
    block
}

/// The number of the `index`th stream.
fn stream(index: u32) -> u32 {
    1 + 2 * index
}

/// What an attacker says first, and then in the `index`th round.
struct Attack {
    name: &'static str,
    first: Vec<u8>,
    round: fn(u32) -> Vec<u8>,
}

fn attacks() -> Vec<Attack> {
    let open = frame(HEADERS, END_HEADERS, 1, &{
        let mut post = ask("/upload");
        post[0] = 0x83;
        post
    });
    let unended = frame(HEADERS, END_STREAM, 1, &ask("/"));
    vec![
        Attack {
            name: "rapid reset",
            first: Vec::new(),
            round: |index| {
                let begun = frame(HEADERS, END_HEADERS | END_STREAM, stream(index), &ask("/"));
                [begun, frame(RST_STREAM, 0, stream(index), &[0, 0, 0, 8])].concat()
            },
        },
        Attack {
            name: "resets that we are made to send",
            first: Vec::new(),
            round: |index| {
                let begun = frame(HEADERS, END_HEADERS, stream(index), &ask("/"));
                let most = (i32::MAX as u32).to_be_bytes();
                [begun, frame(WINDOW_UPDATE, 0, stream(index), &most)].concat()
            },
        },
        Attack {
            name: "headers without end",
            first: unended.clone(),
            round: |_| {
                let mut field = vec![0, 5];
                field.extend(b"x-pad");
                field.push(100);
                field.extend([b'a'; 100]);
                frame(CONTINUATION, 0, 1, &field)
            },
        },
        Attack {
            name: "empty continuations",
            first: unended,
            round: |_| frame(CONTINUATION, 0, 1, &[]),
        },
        Attack {
            name: "headers without a request",
            first: Vec::new(),
            round: |index| frame(HEADERS, END_HEADERS | END_STREAM, stream(index), &[]),
        },
        Attack {
            name: "empty data",
            first: open.clone(),
            round: |_| frame(DATA, 0, 1, &[]),
        },
        Attack {
            name: "settings",
            first: Vec::new(),
            round: |_| frame(SETTINGS, 0, 0, &[]),
        },
        Attack {
            name: "pings",
            first: Vec::new(),
            round: |_| frame(PING, 0, 0, &[7; 8]),
        },
        Attack {
            name: "window updates",
            first: open,
            round: |index| frame(WINDOW_UPDATE, 0, index % 2, &[0, 0, 0, 1]),
        },
        Attack {
            name: "priorities",
            first: Vec::new(),
            round: |index| frame(PRIORITY, 0, stream(index % 1000), &[0, 0, 0, 0, 1]),
        },
        Attack {
            name: "frames that nobody knows",
            first: Vec::new(),
            round: |_| frame(0x42, 0, 0, &[0; 3]),
        },
    ]
}

#[tokio::test]
async fn whoever_floods_us_with_frames_is_cut_off_and_the_others_are_served() {
    let mesh = mesh("").await;
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["h2"]);
    let mut other = tls.client(mesh.gate()).await;
    assert_eq!(other.get("/").await.unwrap().status, 200);
    let before = resident(&mesh.b);
    for (number, attack) in attacks().iter().enumerate() {
        let attacking = tokio::spawn(flood(
            tls.connect(mesh.gate()).await.unwrap(),
            attack.first.clone(),
            attack.round,
        ));
        let mut served = 0;
        while !attacking.is_finished() {
            let answer = tokio::time::timeout(SOON, other.get("/meanwhile")).await;
            assert_eq!(answer.unwrap().unwrap().status, 200, "{}", attack.name);
            served += 1;
            assert!(served < 100_000, "{}", attack.name);
        }
        let sent = attacking.await.unwrap();
        assert!(sent < MOST, "{} went on after {sent} bytes", attack.name);
        let limit = [("limit", "frames")];
        mesh.b
            .counts("doorward_limits_hit_total", &limit, (number + 1) as f64)
            .await;
    }
    let ended = [("outcome", "overloaded"), ("kind", "http")];
    let floods = attacks().len() as f64;
    mesh.b
        .counts("doorward_sessions_ended_total", &ended, floods)
        .await;
    let grown = resident(&mesh.b).saturating_sub(before);
    assert!(grown < MAY_GROW, "grew by {} KiB", grown / 1024);
    assert_eq!(other.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_head_that_unfolds_to_many_times_its_size_is_refused_and_not_kept() {
    let mesh = mesh("").await;
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["h2"]);
    let before = resident(&mesh.b);
    // One large field goes into the dynamic table; each byte after that stands for all of it.
    let bomb = |copies: usize| {
        let mut block = ask("/bomb");
        block.extend([0x40, 5]);
        block.extend(b"x-pad");
        block.extend([0x7f, 0x81, 0x1e]);
        block.extend([b'a'; 3968]);
        block.extend(vec![0xbe; copies]);
        block
    };
    let whole = END_HEADERS | END_STREAM;

    // 160 KB: refused, and the connection goes on.
    let (mut from, mut to) = begin(tls.connect(mesh.gate()).await.unwrap()).await;
    let mut bytes = frame(HEADERS, whole, 1, &bomb(40));
    bytes.extend(frame(HEADERS, whole, 3, &ask("/sound")));
    to.write_all(&bytes).await.unwrap();
    let mut answered = Vec::new();
    while answered.len() < 2 {
        let next = tokio::time::timeout(SOON, read_frame(&mut from)).await;
        let (kind, _, stream, _) = next.unwrap().unwrap();
        if kind == HEADERS {
            answered.push(stream);
        }
    }
    answered.sort_unstable();
    assert_eq!(answered, [1, 3]);
    let seen: Vec<_> = mesh.app.seen().into_iter().map(|seen| seen.path).collect();
    assert_eq!(seen, ["/sound"]);

    // 48 MB each, 4 GB in all: the connection is ended.
    for _ in 0..BOMBS {
        let (mut from, mut to) = begin(tls.connect(mesh.gate()).await.unwrap()).await;
        to.write_all(&frame(HEADERS, whole, 1, &bomb(12_000)))
            .await
            .unwrap();
        let ending = async { while read_frame(&mut from).await.is_some() {} };
        tokio::time::timeout(SOON, ending).await.unwrap();
    }
    let limit = [("limit", "frames")];
    mesh.b
        .counts("doorward_limits_hit_total", &limit, BOMBS.into())
        .await;
    let grown = resident(&mesh.b).saturating_sub(before);
    assert!(grown < MAY_GROW, "grew by {} KiB", grown / 1024);
    let mut other = tls.client(mesh.gate()).await;
    assert_eq!(other.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn answers_that_nobody_reads_are_given_up() {
    let mesh = mesh("stall_timeout: 500ms").await;
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["h2", "http/1.1"]);
    let before = resident(&mesh.b);
    // All the credit there can be, and then not a byte is read.
    let (_from, mut to) = begin(tls.connect(mesh.gate()).await.unwrap()).await;
    let mut bytes = frame(SETTINGS, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    bytes.extend(frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]));
    for index in 0..20 {
        let begun = END_HEADERS | END_STREAM;
        bytes.extend(frame(
            HEADERS,
            begun,
            stream(index),
            &ask("/bytes/50000000"),
        ));
    }
    to.write_all(&bytes).await.unwrap();
    let ended = [("kind", "http"), ("outcome", "idle_timeout")];
    mesh.b
        .counts("doorward_sessions_ended_total", &ended, 1.0)
        .await;
    let tls = Tls::new(Some(&svid), &["http/1.1"]);
    let mut unread = tls.connect(mesh.gate()).await.unwrap();
    unread
        .write_all(b"GET /bytes/50000000 HTTP/1.1\r\nhost: app.example\r\n\r\n")
        .await
        .unwrap();
    mesh.b
        .counts("doorward_sessions_ended_total", &ended, 2.0)
        .await;
    let metrics = mesh.b.metrics().await;
    // Each connection, and the streams that were reset before.
    assert!(metrics.sum("doorward_limits_hit_total", &[("limit", "unread")]) >= 2.0);
    mesh.b.counts("doorward_requests_in_flight", &[], 0.0).await;
    let grown = resident(&mesh.b).saturating_sub(before);
    assert!(grown < MAY_GROW, "grew by {} KiB", grown / 1024);
}

#[tokio::test]
async fn a_response_without_credit_is_reset_and_the_others_on_its_connection_go_on() {
    let mesh = mesh("stall_timeout: 500ms").await;
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["h2"]);
    let (mut from, mut to) = begin(tls.connect(mesh.gate()).await.unwrap()).await;
    // The connection has credit enough; the first stream gets none but what it begins with.
    let whole = END_HEADERS | END_STREAM;
    let mut bytes = frame(WINDOW_UPDATE, 0, 0, &[0, 0x10, 0, 0]);
    bytes.extend(frame(HEADERS, whole, 1, &ask("/bytes/1000000")));
    to.write_all(&bytes).await.unwrap();
    let mut got = 0;
    let reset = async {
        loop {
            match read_frame(&mut from).await.expect("the connection goes on") {
                (RST_STREAM, _, 1, _) => return,
                (DATA, _, 1, payload) => got += payload.len(),
                _ => {}
            }
        }
    };
    tokio::time::timeout(SOON, reset).await.unwrap();
    assert_eq!(got, 65_535);
    let limit = [("limit", "unread")];
    mesh.b
        .counts("doorward_limits_hit_total", &limit, 1.0)
        .await;
    mesh.b.counts("doorward_requests_in_flight", &[], 0.0).await;

    // A response that pauses is none that nobody takes.
    let paused = frame(HEADERS, whole, 3, &ask("/stream?n=2&ms=1500"));
    to.write_all(&paused).await.unwrap();
    let ended = async {
        loop {
            match read_frame(&mut from).await.expect("the connection goes on") {
                (RST_STREAM, _, 3, _) => return false,
                (DATA | HEADERS, flags, 3, _) if flags & END_STREAM != 0 => return true,
                _ => {}
            }
        }
    };
    assert!(tokio::time::timeout(SOON, ended).await.unwrap());
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up() {
    let mesh = mesh("stall_timeout: 500ms").await;
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["http/1.1"]);
    let mut slow = tls.connect(mesh.gate()).await.unwrap();
    let begun = "POST /upload HTTP/1.1\r\nhost: app.example\r\ncontent-length: 100\r\n\r\nbegun";
    assert_eq!(status_of(&raw(&mut slow, begun.as_bytes()).await), 408);
    let limit = [("limit", "unsent")];
    mesh.b
        .counts("doorward_limits_hit_total", &limit, 1.0)
        .await;
    mesh.b.counts("doorward_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn heads_that_do_not_come_or_are_too_long_end_the_connection() {
    let mesh = mesh("header_timeout: 500ms").await;
    let svid = mesh.issuer.ca().svid("a");
    let one = Tls::new(Some(&svid), &["http/1.1"]);
    let two = Tls::new(Some(&svid), &["h2"]);
    let limit = |limit| [("limit", limit)];
    for (times, tls, begins) in [
        (1.0, &one, "GET / HTTP/1.1\r\nhost: app.exam"),
        (2.0, &one, ""),
        (3.0, &two, "PRI * HTTP/2.0\r\n"),
        (4.0, &two, ""),
    ] {
        let mut slow = tls.connect(mesh.gate()).await.unwrap();
        raw(&mut slow, begins.as_bytes()).await;
        mesh.b
            .counts("doorward_limits_hit_total", &limit("header_time"), times)
            .await;
    }
    let mut long = one.connect(mesh.gate()).await.unwrap();
    let head = format!(
        "GET / HTTP/1.1\r\nhost: app.example\r\nx-pad: {}\r\n\r\n",
        "a".repeat(70_000)
    );
    assert_eq!(status_of(&raw(&mut long, head.as_bytes()).await), 431);
    mesh.b
        .counts("doorward_limits_hit_total", &limit("header_bytes"), 1.0)
        .await;
}

#[tokio::test]
async fn more_streams_than_may_be_are_refused_and_the_others_go_on() {
    const AT_ONCE: u32 = 1000;
    const REFUSED_STREAM: u32 = 7;
    let mesh = mesh("app_protocol: http2").await;
    let svid = mesh.issuer.ca().svid("a");
    let tls = Tls::new(Some(&svid), &["h2"]);
    let (mut from, mut to) = begin(tls.connect(mesh.gate()).await.unwrap()).await;
    let endless = ask("/stream?n=2&ms=60000");
    let whole = END_HEADERS | END_STREAM;
    let asked = (0..=AT_ONCE).flat_map(|index| frame(HEADERS, whole, stream(index), &endless));
    let asked: Vec<u8> = asked.collect();
    let (mut answered, mut refused) = (false, None);
    let reading = async {
        while !answered || refused.is_none() {
            match read_frame(&mut from).await.expect("the connection goes on") {
                (RST_STREAM, _, stream, why) => refused = Some((stream, why)),
                (HEADERS, ..) => answered = true,
                _ => {}
            }
        }
    };
    let both = async { tokio::join!(to.write_all(&asked), reading).0.unwrap() };
    tokio::time::timeout(SOON, both).await.unwrap();
    let expected = (stream(AT_ONCE), REFUSED_STREAM.to_be_bytes().to_vec());
    assert_eq!(refused, Some(expected));
}

#[tokio::test]
async fn our_own_application_is_held_to_the_same() {
    let mesh = mesh("").await;
    let (_, mut to) = begin(TcpStream::connect(mesh.entrance()).await.unwrap()).await;
    let pings = frame(PING, 0, 0, &[7; 8]).repeat(1000);
    eventually("the application is cut off", async || {
        to.write_all(&pings).await.is_err().then_some(())
    })
    .await;
    let limit = [("limit", "frames")];
    mesh.a
        .counts("doorward_limits_hit_total", &limit, 1.0)
        .await;
    let mut other = Client::connect(mesh.entrance(), Http::Two).await;
    assert_eq!(other.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn many_connections_share_the_credit_for_what_is_not_read() {
    let mesh = mesh("").await;
    let first = credit_of_a_new_connection(&mesh).await;
    assert_eq!(first.1, 32 << 20);
    let mut all = vec![first];
    for _ in 0..150 {
        all.push(credit_of_a_new_connection(&mesh).await);
    }
    let promised: u32 = all.iter().map(|(_, credit)| credit - 65_535).sum();
    assert!(promised <= 512 << 20, "{promised} bytes");
    let limit = [("limit", "credit")];
    let scarce = all.iter().filter(|(_, credit)| *credit < 4 << 20).count();
    assert!(scarce > 0);
    mesh.a
        .counts("doorward_limits_hit_total", &limit, scarce as f64)
        .await;
    // Little credit is enough to be served.
    let mut late = Client::connect(mesh.entrance(), Http::Two).await;
    let mut upload = request("POST", "http://app.example/upload");
    *upload.body_mut() = vec![0; 1 << 20].into();
    assert_eq!(late.ask(upload).await.unwrap().json()["body"], 1 << 20);
    drop((late, all));
    eventually("credit comes back", async || {
        // The connection to the peer has a share too.
        (credit_of_a_new_connection(&mesh).await.1 >= 30 << 20).then_some(())
    })
    .await;
}

/// Begins HTTP/2 at `a` and waits for how much it may send: the WINDOW_UPDATE of the connection says so.
async fn credit_of_a_new_connection(mesh: &Mesh) -> (impl Sized, u32) {
    let (mut from, mut to) = begin(TcpStream::connect(mesh.entrance()).await.unwrap()).await;
    let mut credit = 65_535;
    let reading = async {
        loop {
            match read_frame(&mut from).await.unwrap() {
                (WINDOW_UPDATE, _, 0, more) => {
                    credit += u32::from_be_bytes(more.try_into().unwrap());
                    return;
                }
                (SETTINGS, 1, ..) => {
                    let ping = frame(PING, 0, 0, &[7; 8]);
                    to.write_all(&ping).await.unwrap();
                }
                // Nothing was added, if this is answered first.
                (PING, 1, ..) => return,
                _ => {}
            }
        }
    };
    tokio::time::timeout(SOON, reading).await.unwrap();
    ((from, to), credit)
}

/// A mesh whose `b` has one worker, so that whoever asks meets the attacker there.
pub(crate) async fn mesh(inbound: &str) -> Mesh {
    Mesh::with(Options {
        inbound: inbound.into(),
        b: vec!["workers: 1".into()],
        ..Options::default()
    })
    .await
}

/// Begins HTTP/2 on `io`.
pub(crate) async fn begin<IO>(io: IO) -> (ReadHalf<IO>, WriteHalf<IO>)
where
    IO: AsyncRead + AsyncWrite,
{
    let (from, mut to) = tokio::io::split(io);
    to.write_all(PREFACE).await.unwrap();
    to.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    (from, to)
}

/// Goes on until the other side has ended the connection, or [`MOST`] is sent. Says how many bytes that
/// took.
async fn flood(io: TlsStream<TcpStream>, first: Vec<u8>, round: fn(u32) -> Vec<u8>) -> usize {
    let (from, to) = begin(io).await;
    press(from, to, first, round).await
}

/// The same on a connection that has begun.
pub(crate) async fn press<IO>(
    mut from: ReadHalf<IO>,
    mut to: WriteHalf<IO>,
    first: Vec<u8>,
    round: impl Fn(u32) -> Vec<u8>,
) -> usize
where
    IO: AsyncRead + AsyncWrite + Send + 'static,
{
    let reading = tokio::spawn(async move { while read_frame(&mut from).await.is_some() {} });
    let mut sent = first.len();
    let mut index = 0;
    let mut written = to.write_all(&first).await;
    while written.is_ok() && sent < MOST && !reading.is_finished() {
        let mut bytes = Vec::new();
        while bytes.len() < 32 * 1024 {
            bytes.extend(round(index));
            index += 1;
        }
        sent += bytes.len();
        let soon = tokio::time::timeout(SOON, to.write_all(&bytes));
        written = soon.await.expect("it is taken or refused");
        // Whoever is attacked is tried, not the scheduler of this test.
        tokio::task::yield_now().await;
    }
    reading.abort();
    sent
}

/// Kind, flags, stream and payload of the next frame, if there is one.
pub(crate) async fn read_frame<IO>(io: &mut ReadHalf<IO>) -> Option<(u8, u8, u32, Vec<u8>)>
where
    IO: AsyncRead,
{
    let mut head = [0; 9];
    io.read_exact(&mut head).await.ok()?;
    let [high, middle, low, kind, flags, stream @ ..] = head;
    let length = u32::from_be_bytes([0, high, middle, low]);
    let mut payload = vec![0; length as usize];
    io.read_exact(&mut payload).await.ok()?;
    Some((kind, flags, u32::from_be_bytes(stream), payload))
}

/// The memory of `sidecar` in RAM, in bytes.
pub(crate) fn resident(sidecar: &Sidecar) -> usize {
    let path = format!("/proc/{}/status", sidecar.process.pid());
    let status = std::fs::read_to_string(path).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: usize = line
        .and_then(|rest| rest.split_whitespace().next())
        .map(|number| number.parse().unwrap())
        .unwrap();
    kib * 1024
}

/// Far more than any flood needs to be noticed.
pub(crate) const MOST: usize = 64 << 20;

/// What a sidecar may take more than before, in bytes.
pub(crate) const MAY_GROW: usize = 32 << 20;

/// Connections with a head that unfolds.
const BOMBS: u32 = 80;
