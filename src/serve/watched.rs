//! Does the other side of a connection take and give what it should? A stream that ends when it does not.
//!
//! hyper and h2 bound what one frame or one head may cost. What they do not see is looked at here: HTTP/2
//! frames that carry nothing, in any number; a preface or a head that never comes to its end; bytes that
//! nobody takes. Whoever answers us on a connection that we opened is held to the same as who connects.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::Limits;
use crate::limits::Limit;

/// What is seen of a stream by whoever gave it away.
#[derive(Debug, Default)]
pub(crate) struct Sight {
    reached: OnceLock<Limit>,
    stalls: AtomicBool,
    upgraded: AtomicBool,
    parts: AtomicBool,
}

impl Sight {
    /// Which limit ended the stream, if one did.
    pub(crate) fn reached(&self) -> Option<Limit> {
        self.reached.get().copied()
    }

    /// Whether our last word has been said, and the other side is heard out.
    pub(super) fn parts(&self) -> bool {
        self.parts.load(Ordering::Relaxed)
    }

    /// From now on another protocol is spoken, in which each side ends for itself.
    pub(super) fn upgrade(&self) {
        self.upgraded.store(true, Ordering::Relaxed);
    }

    /// Whether there is something to be written that the other side has not taken yet.
    pub(super) fn stalls(&self) -> bool {
        self.stalls.load(Ordering::Relaxed)
    }
}

/// Requests that were sent on a connection that we opened, and not looked at yet. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(Arc<AtomicU32>);

impl Asked {
    /// One more is sent.
    pub(crate) fn one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A stream under watch.
pub(crate) struct Watched<IO> {
    io: IO,
    limits: Limits,
    /// There if HTTP/2 is spoken.
    frames: Option<Frames>,
    /// Runs until the preface of HTTP/2 is there, or the rest of a head.
    silence: Option<Silence>,
    /// Runs while the other side takes nothing of what is to be written.
    stall: Option<Pin<Box<Sleep>>>,
    /// Whether whoever is at the other side connected to us.
    accepted: bool,
    /// Runs from our last word to the other side's.
    parting: Option<Pin<Box<Sleep>>>,
    sight: Arc<Sight>,
}

/// The wait for the preface, or for the rest of the head that was the so manieth.
struct Silence(u64, Pin<Box<Sleep>>);

impl<IO> Watched<IO> {
    /// Watches whoever connected.
    pub(crate) fn new(io: IO, http2: bool, limits: Limits) -> (Self, Arc<Sight>) {
        let now = Instant::now();
        let mut watched = Self::with(io, limits, http2.then(|| Frames::new(now)));
        watched.accepted = true;
        if http2 {
            watched.silence = Some(Silence(0, Box::pin(sleep(limits.header_timeout))));
        }
        let sight = watched.sight.clone();
        (watched, sight)
    }

    /// Watches whoever answers on an HTTP/2 connection of ours.
    pub(crate) fn opened(io: IO, limits: Limits, asked: Asked) -> (Self, Arc<Sight>) {
        let watched = Self::with(io, limits, Some(Frames::answering(Instant::now(), asked)));
        let sight = watched.sight.clone();
        (watched, sight)
    }

    fn with(io: IO, limits: Limits, frames: Option<Frames>) -> Self {
        Self {
            io,
            limits,
            frames,
            silence: None,
            stall: None,
            accepted: false,
            parting: None,
            sight: Arc::default(),
        }
    }

    fn end(&self, limit: Limit) -> io::Error {
        // The first one is what ended it.
        let _ = self.sight.reached.set(limit);
        io::ErrorKind::TimedOut.into()
    }

    /// What was written, or how long it has been waited for that.
    fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stall.take().is_some() {
                self.sight.stalls.store(false, Ordering::Relaxed);
            }
            return written;
        }
        let timeout = self.limits.stall_timeout;
        let stall = self.stall.get_or_insert_with(|| {
            self.sight.stalls.store(true, Ordering::Relaxed);
            Box::pin(sleep(timeout))
        });
        match stall.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(self.end(Limit::Unread))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn earn(&mut self, written: &Poll<io::Result<usize>>) {
        if let (Some(frames), Poll::Ready(Ok(bytes))) = (&mut self.frames, written) {
            frames.earn(*bytes);
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Watched<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buffer);
        let Some(frames) = &mut this.frames else {
            return read;
        };
        if let Poll::Ready(Ok(())) = read
            && frames.read(&buffer.filled()[before..]).is_err()
            && frames.rest(Instant::now()).is_err()
        {
            return Poll::Ready(Err(this.end(Limit::Frames)));
        }
        if !frames.owes_more() {
            this.silence = None;
        } else if read.is_pending() {
            let (head, timeout) = (frames.heads, this.limits.header_timeout);
            let begin = || Silence(head, Box::pin(sleep(timeout)));
            let mut silence = this.silence.take().filter(|silence| silence.0 == head);
            let waiting = silence.get_or_insert_with(begin).1.as_mut();
            if waiting.poll(cx).is_ready() {
                return Poll::Ready(Err(this.end(Limit::HeaderTime)));
            }
            this.silence = silence;
        }
        read
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.earn(&written);
        self.wrote(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        self.earn(&written);
        self.wrote(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(cx, flushed)
    }

    /// Says that nothing more comes, and throws away what the other side still has to say, for [`PARTING`]:
    /// the kernel answers bytes that nobody reads with a reset, which takes our last words from whoever has
    /// not read them yet (RFC 9112 §9.6).
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.parting.is_none() {
            let closed = Pin::new(&mut this.io).poll_shutdown(cx);
            ready!(this.wrote(cx, closed))?;
            if !this.accepted || this.sight.upgraded.load(Ordering::Relaxed) {
                return Poll::Ready(Ok(()));
            }
        }
        let parting = this.parting.get_or_insert_with(|| {
            this.sight.parts.store(true, Ordering::Relaxed);
            Box::pin(sleep(PARTING))
        });
        if parting.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        loop {
            let mut scratch = [MaybeUninit::<u8>::uninit(); SCRATCH];
            let mut thrown_away = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut this.io).poll_read(cx, &mut thrown_away)) {
                Ok(()) if !thrown_away.filled().is_empty() => {}
                // It has gone, in whatever way.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

/// The frames that come in on an HTTP/2 connection (RFC 9113 §4.1), as far as it must be known which of
/// them carry something.
///
/// PING, SETTINGS, WINDOW_UPDATE, PRIORITY, RST_STREAM and empty DATA are part of every conversation, and
/// cheap for whoever sends them without end. So each costs patience, which comes back with time and with
/// what we have to say: whoever reads a large response rightly sends many WINDOW_UPDATEs. On a connection of
/// ours, heads that nobody asked for cost it too: interim responses (RFC 9110 §15.2) may precede a response in
/// any number.
#[derive(Debug)]
pub(crate) struct Frames {
    /// Bytes of the preface that have not come yet.
    preface: usize,
    header: [u8; HEADER],
    /// Bytes of `header` that are there.
    filled: usize,
    /// Bytes of the payload that have not come yet.
    payload: usize,
    /// The kind and the flags of the last frame.
    last: (u8, u8),
    /// Heads that have begun.
    heads: u64,
    /// There on a connection of ours.
    answers: Option<Answers>,
    patience: i64,
    rested: Instant,
}

/// How many heads whoever answers us may send.
#[derive(Debug)]
struct Answers {
    asked: Asked,
    /// For what was asked.
    due: u32,
}

/// The other side's frames have used up our patience.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Frames {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            preface: PREFACE,
            header: [0; HEADER],
            filled: 0,
            payload: 0,
            last: (0, 0),
            heads: 0,
            answers: None,
            patience: MOST * FRAME,
            rested: now,
        }
    }

    /// Those of whoever answers what was `asked`: a server's preface is a frame like any other.
    fn answering(now: Instant, asked: Asked) -> Self {
        Self {
            preface: 0,
            answers: Some(Answers { asked, due: 0 }),
            ..Self::new(now)
        }
    }

    /// Whether the other side has not finished its preface, or a head that it has begun.
    fn owes_more(&self) -> bool {
        let (kind, flags) = self.last;
        let in_head = matches!(kind, HEADERS | CONTINUATION)
            && (self.payload > 0 || flags & END_HEADERS == 0);
        self.preface > 0 || in_head
    }

    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), TooMany> {
        take(&mut bytes, &mut self.preface);
        while !bytes.is_empty() {
            take(&mut bytes, &mut self.payload);
            let piece = bytes.len().min(HEADER - self.filled);
            let (head, rest) = bytes.split_at(piece);
            self.header[self.filled..self.filled + piece].copy_from_slice(head);
            self.filled += piece;
            bytes = rest;
            if self.filled == HEADER {
                self.filled = 0;
                self.frame();
            }
        }
        if self.patience < 0 {
            return Err(TooMany);
        }
        Ok(())
    }

    /// How many frames' worth of patience is gone.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn spent(&self) -> i64 {
        MOST - self.patience / FRAME
    }

    fn frame(&mut self) {
        let [high, middle, low, kind, flags, ..] = self.header;
        let length = u32::from_be_bytes([0, high, middle, low]);
        self.payload = length as usize;
        self.last = (kind, flags);
        self.patience -= match kind {
            DATA if length > 0 || flags & END_STREAM != 0 => 0,
            HEADERS => {
                self.heads += 1;
                let unasked = self.answers.as_mut().is_some_and(|answers| !answers.take());
                if unasked {
                    FRAME + i64::from(length)
                } else {
                    0
                }
            }
            _ => FRAME,
        };
    }

    /// We said something.
    fn earn(&mut self, bytes: usize) {
        let earned = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.patience = self.patience.saturating_add(earned).min(MOST * FRAME);
    }

    /// Adds what the time since the last rest gives back.
    fn rest(&mut self, now: Instant) -> Result<(), TooMany> {
        let milliseconds = now.duration_since(self.rested).as_millis();
        let rested = i64::try_from(milliseconds).unwrap_or(i64::MAX);
        self.rested = now;
        self.patience = self
            .patience
            .saturating_add(rested.saturating_mul(EACH_MILLISECOND * FRAME))
            .min(MOST * FRAME);
        if self.patience < 0 {
            return Err(TooMany);
        }
        Ok(())
    }
}

impl Answers {
    /// Whether one more head is due.
    fn take(&mut self) -> bool {
        let asked = self.asked.0.swap(0, Ordering::Relaxed);
        let more = asked.saturating_mul(HEADS_EACH);
        self.due = self.due.saturating_add(more).min(MOST_HEADS);
        let due = self.due > 0;
        self.due = self.due.saturating_sub(1);
        due
    }
}

/// Skips what `left` says of `bytes`.
fn take(bytes: &mut &[u8], left: &mut usize) {
    let skipped = bytes.len().min(*left);
    *bytes = &bytes[skipped..];
    *left -= skipped;
}

/// How long whoever connected to us is heard out after our last word.
const PARTING: Duration = Duration::from_millis(500);
/// Room for what is thrown away. It is not initialised, so its size costs nothing.
const SCRATCH: usize = 8192;

/// The length of the client's preface, `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n`.
const PREFACE: usize = 24;
/// The length of a frame's header.
const HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Heads that each request of ours may have for an answer: the response's, its trailers, some interim ones.
const HEADS_EACH: u32 = 4;
/// Such heads that may be due at once: more than those of all requests that share a connection.
const MOST_HEADS: u32 = 1024;

/// What a frame that carries nothing costs, in bytes of ours that make up for it.
const FRAME: i64 = 64;
/// Such frames at once.
const MOST: i64 = 20_000;
/// Such frames in each millisecond.
const EACH_MILLISECOND: i64 = 2;

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMITS: Limits = Limits {
        header_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_secs(300),
        header_bytes: 65536,
        streams: 100,
        idle_timeout: Duration::from_secs(3600),
    };

    #[tokio::test(start_paused = true)]
    async fn whoever_connected_may_go_on_for_a_moment_after_our_last_word() {
        for (name, http2, upgraded, heard_out) in [
            ("HTTP/1.1", false, false, true),
            ("HTTP/2", true, false, true),
            ("another protocol", false, true, false),
        ] {
            let (mut client, server) = duplex(64);
            let (mut server, sight) = Watched::new(server, http2, LIMITS);
            if upgraded {
                sight.upgrade();
            }
            let begun = Instant::now();
            let late = async {
                client.write_all(&[0; 1000]).await.unwrap();
                sleep(PARTING / 2).await;
                client.write_all(&[0; 1000]).await.unwrap();
                drop(client);
            };
            if heard_out {
                let (closed, ()) = tokio::join!(server.shutdown(), late);
                closed.unwrap();
                assert_eq!(begun.elapsed(), PARTING / 2, "{name}");
            } else {
                server.shutdown().await.unwrap();
                let mut whole = Vec::new();
                let (read, ()) = tokio::join!(server.read_to_end(&mut whole), late);
                assert_eq!(read.unwrap(), 2000, "{name}");
            }
        }
        // Nobody is waited for without end.
        let (_client, server) = duplex(64);
        let begun = Instant::now();
        Watched::new(server, true, LIMITS)
            .0
            .shutdown()
            .await
            .unwrap();
        assert_eq!(begun.elapsed(), PARTING);
    }

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER + usize::from(length), 0xff);
        frame
    }

    fn after_preface() -> Frames {
        let mut frames = Frames::new(Instant::now());
        frames.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        frames
    }

    fn cost(bytes: &[u8]) -> i64 {
        let mut whole = after_preface();
        whole.read(bytes).unwrap();
        let mut split = after_preface();
        for byte in bytes {
            split.read(&[*byte]).unwrap();
        }
        assert_eq!(whole.patience, split.patience, "pieces matter");
        whole.spent()
    }

    #[tokio::test]
    async fn only_frames_that_carry_nothing_cost() {
        for (name, kind, flags, length, costs) in [
            ("DATA", DATA, 0, 1, 0),
            ("the last DATA", DATA, END_STREAM, 0, 0),
            ("empty DATA", DATA, 0, 0, 1),
            ("HEADERS", HEADERS, 4, 20, 0),
            ("PRIORITY", 2, 0, 5, 1),
            ("RST_STREAM", 3, 0, 4, 1),
            ("SETTINGS", 4, 0, 6, 1),
            ("PING", 6, 0, 8, 1),
            ("WINDOW_UPDATE", 8, 0, 4, 1),
            ("CONTINUATION", 9, 0, 1, 1),
            ("one that nobody knows", 99, 0, 3, 1),
        ] {
            assert_eq!(
                cost(&frame(kind, flags, length).repeat(3)),
                costs * 3,
                "{name}"
            );
        }
    }

    #[tokio::test]
    async fn patience_ends_and_comes_back_with_what_we_say_and_with_time() {
        let pings = |number: i64| frame(6, 0, 8).repeat(usize::try_from(number).unwrap());
        let mut frames = after_preface();
        assert_eq!(frames.read(&pings(MOST)), Ok(()));
        assert_eq!(frames.read(&pings(1)), Err(TooMany));
        frames.earn(64 * 11);
        assert_eq!(frames.read(&pings(10)), Ok(()));
        assert_eq!(frames.read(&pings(2)), Err(TooMany));
        assert_eq!(frames.rest(frames.rested), Err(TooMany));
        let later = frames.rested + Duration::from_millis(5);
        assert_eq!(frames.rest(later), Ok(()));
        assert_eq!(frames.read(&pings(8)), Ok(()));
        assert_eq!(frames.read(&pings(1)), Err(TooMany));
        assert_eq!(frames.rest(later + Duration::from_secs(3600)), Ok(()));
        assert_eq!(frames.patience, MOST * FRAME);
    }

    #[tokio::test]
    async fn whoever_answers_sends_some_heads_for_each_request_and_pays_for_more() {
        let asked = Asked::default();
        let mut frames = Frames::answering(Instant::now(), asked.clone());
        let mut cost = |heads: usize| {
            let before = frames.patience;
            frames
                .read(&frame(HEADERS, END_HEADERS, 20).repeat(heads))
                .unwrap();
            before - frames.patience
        };
        assert_eq!(cost(1), FRAME + 20);
        asked.one();
        assert_eq!(cost(4), 0);
        assert_eq!(cost(2), 2 * (FRAME + 20));
        // Good behaviour is no licence to flood.
        (0..1_000_000).for_each(|_| asked.one());
        assert_eq!(cost(1024), 0);
        assert_eq!(cost(1), FRAME + 20);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_does_not_come_to_its_end_ends_the_connection() {
        let whole = frame(HEADERS, END_HEADERS, 20);
        let begun = frame(HEADERS, 0, 20);
        for (name, bytes, ends) in [
            ("nothing", Vec::new(), false),
            ("a head", whole.clone(), false),
            (
                "a head and its rest",
                [&*begun, &frame(CONTINUATION, END_HEADERS, 20)].concat(),
                false,
            ),
            ("the rest is missing", begun.clone(), true),
            (
                "there is more to come",
                [&*begun, &frame(CONTINUATION, 0, 20)].concat(),
                true,
            ),
            ("a frame is not whole", whole[..HEADER + 5].to_vec(), true),
        ] {
            let (mut client, server) = duplex(1024);
            let (mut server, sight) = Watched::new(server, true, LIMITS);
            client
                .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
                .await
                .unwrap();
            client.write_all(&bytes).await.unwrap();
            let mut buffer = [0; 1024];
            let reading = async { while server.read(&mut buffer).await.is_ok() {} };
            let late = tokio::time::timeout(LIMITS.header_timeout * 2, reading).await;
            assert_eq!(late.is_ok(), ends, "{name}");
            assert_eq!(sight.reached().is_some(), ends, "{name}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn heads_that_come_in_pieces_one_after_another_end_nothing() {
        let (mut client, server) = duplex(1024);
        let (mut server, sight) = Watched::new(server, true, LIMITS);
        client
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        let head = frame(HEADERS, END_HEADERS, 20);
        client.write_all(&head[..10]).await.unwrap();
        let writing = async {
            for _ in 0..10 {
                sleep(LIMITS.header_timeout / 2).await;
                // The end of one, and the beginning of the next.
                client
                    .write_all(&[&head[10..], &head[..10]].concat())
                    .await
                    .unwrap();
            }
        };
        let mut buffer = [0; 1024];
        let reading = async { while server.read(&mut buffer).await.is_ok() {} };
        tokio::select! {
            () = writing => {}
            () = reading => panic!("{sight:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_preface_that_does_not_come_ends_the_connection() {
        let (mut client, server) = duplex(64);
        let (mut server, sight) = Watched::new(server, true, LIMITS);
        client.write_all(b"PRI * HT").await.unwrap();
        let mut buffer = [0; 64];
        assert_eq!(server.read(&mut buffer).await.unwrap(), 8);
        assert!(server.read(&mut buffer).await.is_err());
        assert_eq!(sight.reached(), Some(Limit::HeaderTime));
    }

    #[tokio::test(start_paused = true)]
    async fn only_bytes_that_nobody_takes_end_the_connection() {
        let (mut client, server) = duplex(4);
        let (mut server, sight) = Watched::new(server, false, LIMITS);
        let slow = async {
            let mut taken = [0; 4];
            for _ in 0..5 {
                sleep(LIMITS.stall_timeout / 2).await;
                client.read_exact(&mut taken).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(server.write_all(&[0; 20]), slow);
        written.unwrap();
        assert_eq!((sight.reached(), sight.stalls()), (None, false));
        // Nothing is to be written: silence is no stall.
        sleep(LIMITS.stall_timeout * 2).await;
        server.write_all(&[0; 4]).await.unwrap();
        assert!(server.write_all(&[0; 4]).await.is_err());
        assert_eq!(sight.reached(), Some(Limit::Unread));
    }
}
