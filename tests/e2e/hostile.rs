//! Whoever answers us may be hostile too: it costs no more than it does with whoever asks.

use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::floods::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, MAY_GROW, MOST, PING, PREFACE, PRIORITY,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, press, read_frame, resident,
};
use crate::mesh::{Client, Http, Mesh, Options, SOON, get};

const GOAWAY: u8 = 7;

/// `:status: 200` and `:status: 103`, as HPACK (RFC 7541).
const OK: &[u8] = &[0x88];
const EARLY_HINTS: &[u8] = b"\x08\x03103";

/// What an application answers on `stream`, first and then in the `index`th round.
struct Attack {
    name: &'static str,
    first: fn(stream: u32) -> Vec<u8>,
    round: fn(stream: u32, index: u32) -> Vec<u8>,
}

fn nothing(_: u32) -> Vec<u8> {
    Vec::new()
}

fn begun(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, OK)
}

const ATTACKS: &[Attack] = &[
    Attack {
        name: "pings",
        first: nothing,
        round: |_, _| frame(PING, 0, 0, &[7; 8]),
    },
    Attack {
        name: "settings",
        first: nothing,
        round: |_, _| frame(SETTINGS, 0, 0, &[]),
    },
    Attack {
        name: "window updates",
        first: nothing,
        round: |_, _| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
    },
    Attack {
        name: "priorities",
        first: nothing,
        round: |stream, _| frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 1]),
    },
    Attack {
        name: "interim responses",
        first: nothing,
        round: |stream, _| frame(HEADERS, END_HEADERS, stream, EARLY_HINTS),
    },
    Attack {
        name: "empty data",
        first: begun,
        round: |stream, _| frame(DATA, 0, stream, &[]),
    },
    Attack {
        name: "resets",
        first: begun,
        round: |stream, _| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
    },
    Attack {
        name: "goodbyes",
        first: begun,
        round: |stream, _| frame(GOAWAY, 0, 0, &[&stream.to_be_bytes()[..], &[0; 4]].concat()),
    },
    Attack {
        name: "frames that nobody knows",
        first: nothing,
        round: |_, _| frame(0x42, 0, 0, &[0; 3]),
    },
];

#[tokio::test]
async fn an_application_that_floods_us_with_frames_is_cut_off() {
    let (mesh, listener) = mesh("").await;
    let before = resident(&mesh.b);
    for (number, attack) in ATTACKS.iter().enumerate() {
        let asking = ask(&mesh);
        let mut app = App::accept(&listener).await;
        let stream = app.asked().await;
        let round = |index| (attack.round)(stream, index);
        let sent = press(app.from, app.to, (attack.first)(stream), round).await;
        assert!(sent < MOST, "{} went on after {sent} bytes", attack.name);
        // One that had begun was broken off.
        let answer = asking.await.unwrap();
        assert!(
            answer.is_none_or(|status| status == 502),
            "{answer:?}: {}",
            attack.name
        );
        let limit = [("limit", "frames"), ("direction", "inbound")];
        mesh.b
            .counts("doorward_limits_hit_total", &limit, (number + 1) as f64)
            .await;
        assert_eq!(get(mesh.b.metrics, "/live").await.status, 200);
    }
    let grown = resident(&mesh.b).saturating_sub(before);
    assert!(grown < MAY_GROW, "grew by {} KiB", grown / 1024);
    mesh.b.counts("doorward_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn a_head_without_end_is_not_waited_for() {
    let (mesh, listener) = mesh("header_timeout: 500ms").await;
    for (times, continued) in [(1.0, false), (2.0, true)] {
        let asking = ask(&mesh);
        let mut app = App::accept(&listener).await;
        let stream = app.asked().await;
        let mut head = frame(HEADERS, 0, stream, OK);
        if continued {
            head.extend(frame(CONTINUATION, 0, stream, &[]));
        }
        app.to.write_all(&head).await.unwrap();
        assert_eq!(asking.await.unwrap(), Some(502));
        let limit = [("limit", "header_time")];
        mesh.b
            .counts("doorward_limits_hit_total", &limit, times)
            .await;
    }
}

#[tokio::test]
async fn interim_responses_within_reason_are_no_flood() {
    let (mesh, listener) = mesh("").await;
    let asking = ask(&mesh);
    let mut app = App::accept(&listener).await;
    let mut asking = Some(asking);
    for _ in 0..100 {
        let asking = asking.take().unwrap_or_else(|| ask(&mesh));
        let stream = app.asked().await;
        let hints = frame(HEADERS, END_HEADERS, stream, EARLY_HINTS).repeat(20);
        let answer = frame(HEADERS, END_HEADERS | END_STREAM, stream, OK);
        app.to.write_all(&[hints, answer].concat()).await.unwrap();
        assert_eq!(asking.await.unwrap(), Some(200));
    }
    let limit = [("limit", "frames")];
    mesh.b
        .counts("doorward_limits_hit_total", &limit, 0.0)
        .await;
}

#[tokio::test]
async fn whoever_answers_has_a_share_of_the_credit_too() {
    let (mesh, listener) = mesh("").await;
    let _asking = ask(&mesh);
    let mut app = App::accept(&listener).await;
    let ping = frame(PING, 0, 0, &[7; 8]);
    app.to.write_all(&ping).await.unwrap();
    let mut credit = 65_535;
    loop {
        match app.read().await {
            (WINDOW_UPDATE, _, 0, more) => credit += u32::from_be_bytes(more.try_into().unwrap()),
            (PING, 1, ..) => break,
            _ => {}
        }
    }
    // The connection between the sidecars came first.
    assert!((16 << 20..=32 << 20).contains(&credit), "{credit}");
}

/// A mesh whose `b` speaks HTTP/2 to an application that is ours to play.
async fn mesh(inbound: &str) -> (Mesh, TcpListener) {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let keys = ["app_protocol: http2", inbound];
    let mesh = Mesh::with(Options {
        inbound: keys.join(", ").trim_end_matches(", ").into(),
        b: vec!["workers: 1".into()],
        app: Some(app.local_addr().unwrap()),
        ..Options::default()
    })
    .await;
    (mesh, app)
}

/// Asks the application something. The status of the answer, if there is a whole one.
fn ask(mesh: &Mesh) -> JoinHandle<Option<u16>> {
    let entrance = mesh.entrance();
    tokio::spawn(async move {
        let mut client = Client::connect(entrance, Http::One).await;
        client.get("/").await.ok().map(|answer| answer.status)
    })
}

/// The application's end of one HTTP/2 connection.
struct App {
    from: ReadHalf<TcpStream>,
    to: WriteHalf<TcpStream>,
}

impl App {
    async fn accept(listener: &TcpListener) -> Self {
        let accepted = tokio::time::timeout(SOON, listener.accept()).await;
        let (stream, _) = accepted.unwrap().unwrap();
        let (mut from, mut to) = tokio::io::split(stream);
        let mut preface = [0; PREFACE.len()];
        from.read_exact(&mut preface).await.unwrap();
        to.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        Self { from, to }
    }

    async fn read(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let read = tokio::time::timeout(SOON, read_frame(&mut self.from)).await;
        read.unwrap().expect("the connection is open")
    }

    /// The stream of the next request.
    async fn asked(&mut self) -> u32 {
        loop {
            if let (HEADERS, _, stream, _) = self.read().await {
                return stream;
            }
        }
    }
}
