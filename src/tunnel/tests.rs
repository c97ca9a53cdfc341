use std::io;
use std::sync::Arc;
use std::time::Duration;

use h2::client;
use http::{Method, Request, StatusCode};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::*;
use crate::lifecycle::Lifecycle;
use crate::outcome::Outcome;

fn limits() -> Limits {
    Limits::within(4 << 20, 100)
}

/// The side that is asked, and how it ends.
fn asked(io: DuplexStream) -> mpsc::UnboundedReceiver<Asked> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let lifecycle = Lifecycle::default();
        let take = |asked| drop(sender.send(asked));
        serve(io, limits(), &lifecycle, pending(), take).await
    });
    receiver
}

/// Both sides of a connection whose pipe holds `bytes`.
async fn connection(bytes: usize) -> (Opener, mpsc::UnboundedReceiver<Asked>) {
    let (near, far) = duplex(bytes);
    let asked = asked(far);
    let (opener, driven) = open(near, "app.test:1".parse().unwrap()).await.unwrap();
    tokio::spawn(driven);
    (opener, asked)
}

/// Both ends of a further session.
async fn session(opener: &Opener, asked: &mut mpsc::UnboundedReceiver<Asked>) -> (Stream, Stream) {
    let ours = opener.ask().await.unwrap();
    let request = asked.recv().await.unwrap();
    assert!(request.is_sound());
    (ours, request.take().unwrap())
}

async fn read_all(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let mut read = Vec::new();
    stream.read_to_end(&mut read).await?;
    Ok(read)
}

/// Writes `pieces`, says that this was all, and reads all that comes.
async fn talk(mut stream: Stream, pieces: Vec<Vec<u8>>) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    let write = async {
        for piece in pieces {
            writer.write_all(&piece).await.unwrap();
        }
        writer.shutdown().await.unwrap();
    };
    let mut read = Vec::new();
    let (_, length) = tokio::join!(write, reader.read_to_end(&mut read));
    assert_eq!(length.unwrap(), read.len());
    read
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_byte_of_every_session_arrives_once_and_in_order(
        pipe in 64_usize..100_000,
        sessions in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 0..6),
            2..8,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (opener, mut asked) = connection(pipe).await;
            let mut talks = Vec::new();
            for pair in sessions.windows(2) {
                let (ours, theirs) = session(&opener, &mut asked).await;
                let said = [pair[0].clone(), pair[1].clone()];
                talks.push(async move {
                    let heard = tokio::join!(
                        talk(ours, said[0].clone()),
                        talk(theirs, said[1].clone()),
                    );
                    assert!(heard == (said[1].concat(), said[0].concat()), "bytes differ");
                });
            }
            futures_util::future::join_all(talks).await;
        });
    }
}

#[tokio::test]
async fn one_half_may_be_closed_while_the_other_goes_on() {
    let (opener, mut asked) = connection(1000).await;
    let (mut ours, mut theirs) = session(&opener, &mut asked).await;
    ours.write_all(b"that is all").await.unwrap();
    ours.shutdown().await.unwrap();
    assert_eq!(read_all(&mut theirs).await.unwrap(), b"that is all");
    theirs.write_all(&[7; 5000]).await.unwrap();
    drop((read_all(&mut theirs).await, theirs.shutdown().await));
    assert_eq!(read_all(&mut ours).await.unwrap(), [7; 5000]);
}

#[tokio::test]
async fn bytes_go_before_the_answer_and_a_refusal_is_told_to_reader_and_writer() {
    let (opener, mut asked) = connection(64 * 1024).await;
    let mut taken = opener.ask().await.unwrap();
    taken.write_all(b"early").await.unwrap();
    let mut theirs = asked.recv().await.unwrap().take().unwrap();
    let mut early = [0; 5];
    theirs.read_exact(&mut early).await.unwrap();
    assert_eq!(&early, b"early");

    let refusal = |error: io::Error| {
        let refused = error
            .get_ref()
            .and_then(|error| error.downcast_ref::<Refused>());
        *refused.unwrap_or_else(|| panic!("{error:?}"))
    };
    let mut reads = opener.ask().await.unwrap();
    let mut writes = opener.ask().await.unwrap();
    writes.write_all(b"early").await.unwrap();
    asked.recv().await.unwrap().refuse(Outcome::Denied);
    asked.recv().await.unwrap().refuse(Outcome::UpstreamTimeout);
    let error = read_all(&mut reads).await.unwrap_err();
    assert_eq!(refusal(error), Refused(StatusCode::FORBIDDEN));
    let error = loop {
        if let Err(error) = writes.write_all(&[0; 1000]).await {
            break error;
        }
    };
    assert_eq!(refusal(error), Refused(StatusCode::GATEWAY_TIMEOUT));
    // The other one does not notice.
    theirs.write_all(b"late").await.unwrap();
    taken.read_exact(&mut early[..4]).await.unwrap();
    assert_eq!(&early[..4], b"late");
}

#[tokio::test]
async fn a_session_that_breaks_off_is_no_end_and_ends_no_other() {
    let (opener, mut asked) = connection(64 * 1024).await;
    let (mut kept, mut also_kept) = session(&opener, &mut asked).await;
    for explicit in [true, false] {
        for ours_breaks in [true, false] {
            let (ours, theirs) = session(&opener, &mut asked).await;
            let (mut broken, mut other) = match ours_breaks {
                true => (ours, theirs),
                false => (theirs, ours),
            };
            broken.write_all(b"half").await.unwrap();
            let mut half = [0; 4];
            other.read_exact(&mut half).await.unwrap();
            if explicit {
                broken.reset();
            }
            drop(broken);
            let error = read_all(&mut other).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
    }
    kept.write_all(b"x").await.unwrap();
    assert_eq!(also_kept.read_u8().await.unwrap(), b'x');
    assert!(opener.has_room());
}

#[tokio::test]
async fn whoever_does_not_read_stops_his_writer_and_nobody_else() {
    let (opener, mut asked) = connection(64 * 1024).await;
    let (mut fast, mut fast_reader) = session(&opener, &mut asked).await;
    let (mut slow, mut slow_reader) = session(&opener, &mut asked).await;
    let stuck = tokio::spawn(async move {
        let mut written = 0_usize;
        let piece = [1; 10_000];
        loop {
            let waited = tokio::time::timeout(Duration::from_secs(1), slow.write(&piece)).await;
            match waited {
                Ok(count) => written += count.unwrap(),
                Err(_) => return (slow, written),
            }
        }
    });
    let passing = async {
        for _ in 0..1000 {
            fast.write_all(&[2; 10_000]).await.unwrap();
        }
        fast.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(read_all(&mut fast_reader), passing);
    assert_eq!(read.unwrap().len(), 10_000_000);
    let (mut slow, written) = stuck.await.unwrap();
    let most = STREAM_WINDOW as usize + SEND_BUFFER;
    assert!((1..=most).contains(&written), "{written}");
    // It goes on where it stood still.
    let (read, ended) = tokio::join!(read_all(&mut slow_reader), slow.shutdown());
    ended.unwrap();
    assert_eq!(read.unwrap().len(), written);
}

#[tokio::test]
async fn only_a_plain_connect_is_sound() {
    let (near, far) = duplex(64 * 1024);
    let mut asked = asked(far);
    let (mut sender, connection) = client::handshake(near).await.unwrap();
    tokio::spawn(connection);
    for (method, uri, sound) in [
        (Method::CONNECT, "app.test:1", true),
        (Method::GET, "https://app.test/", false),
        (Method::OPTIONS, "https://app.test/", false),
    ] {
        let request = Request::builder().method(method).uri(uri).body(());
        let (_answer, _stream) = sender.send_request(request.unwrap(), false).unwrap();
        assert_eq!(asked.recv().await.unwrap().is_sound(), sound, "{uri}");
    }
}

#[tokio::test]
async fn a_drain_lets_open_sessions_end_and_takes_no_new_ones() {
    let (near, far) = duplex(64 * 1024);
    let lifecycle = Arc::new(Lifecycle::default());
    let (sender, mut asked) = mpsc::unbounded_channel();
    let serving = tokio::spawn({
        let lifecycle = lifecycle.clone();
        async move {
            let take = |asked| drop(sender.send(asked));
            serve(far, limits(), &lifecycle, pending(), take).await
        }
    });
    let (opener, driven) = open(near, "app.test:1".parse().unwrap()).await.unwrap();
    let driving = tokio::spawn(driven);
    let (mut ours, mut theirs) = session(&opener, &mut asked).await;
    lifecycle.drain();
    let refused = async {
        while opener.ask().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), refused)
        .await
        .expect("the goodbye comes");
    ours.write_all(b"last words").await.unwrap();
    ours.shutdown().await.unwrap();
    assert_eq!(read_all(&mut theirs).await.unwrap(), b"last words");
    theirs.shutdown().await.unwrap();
    assert!(read_all(&mut ours).await.unwrap().is_empty());
    drop((ours, theirs, opener));
    assert_eq!(serving.await.unwrap(), Outcome::Completed);
    driving.await.unwrap().unwrap();
}
