//! What a relay promises, held against streams that do whatever streams may do: read and write in any pieces,
//! hesitate anywhere, end and fail at any point.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// What a stream does when it is asked once; when nothing is left to do, it does all that it is asked for.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// At most so many bytes.
    Some(usize),
    /// Not now.
    Hesitate,
    Fail,
}

/// What one side of a relay will do.
#[derive(Clone, Debug)]
struct Script {
    says: Vec<u8>,
    reads: VecDeque<Step>,
    writes: VecDeque<Step>,
    flushes: VecDeque<Step>,
    end: Goodbye,
}

/// What it answers to the end of the other side.
#[derive(Clone, Copy, Debug)]
enum Goodbye {
    Takes,
    Hesitates,
    IsGone,
    Fails,
}

/// What it has done so far.
#[derive(Debug, Default)]
struct Seen {
    /// Bytes that were read from it.
    said: usize,
    /// That it has said all was read from it.
    finished: bool,
    heard: Vec<u8>,
    unflushed: bool,
    /// It did not take at once what it was given, or did not flush it.
    hesitates: bool,
    told_end: bool,
    failed: bool,
}

struct Side {
    script: Script,
    seen: Arc<Mutex<Seen>>,
}

impl Side {
    fn new(script: &Script) -> (Self, Arc<Mutex<Seen>>) {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let side = Self {
            script: script.clone(),
            seen: seen.clone(),
        };
        (side, seen)
    }
}

fn hesitate<T>(cx: &Context<'_>) -> Poll<T> {
    cx.waker().wake_by_ref();
    Poll::Pending
}

fn fail<T>(seen: &mut Seen) -> Poll<io::Result<T>> {
    seen.failed = true;
    Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
}

impl AsyncRead for Side {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut seen = this.seen.lock().unwrap();
        let most = match this.script.reads.pop_front() {
            Some(Step::Some(most)) => most.max(1),
            Some(Step::Hesitate) => return hesitate(cx),
            Some(Step::Fail) => return fail(&mut seen),
            None => usize::MAX,
        };
        assert!(!seen.finished, "nothing is read behind the end");
        let rest = &this.script.says[seen.said..];
        let piece = &rest[..rest.len().min(most).min(buffer.remaining())];
        buffer.put_slice(piece);
        seen.said += piece.len();
        seen.finished = piece.is_empty();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Side {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let mut seen = this.seen.lock().unwrap();
        assert!(!seen.told_end, "nothing is written behind the end");
        let most = match this.script.writes.pop_front() {
            Some(Step::Some(most)) => most,
            Some(Step::Hesitate) => {
                seen.hesitates = true;
                return hesitate(cx);
            }
            Some(Step::Fail) => return fail(&mut seen),
            None => usize::MAX,
        };
        let piece = &bytes[..bytes.len().min(most)];
        // Such a stream is as good as broken.
        seen.failed |= piece.is_empty();
        seen.heard.extend(piece);
        seen.unflushed |= !piece.is_empty();
        seen.hesitates = false;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut seen = this.seen.lock().unwrap();
        match this.script.flushes.pop_front() {
            Some(Step::Hesitate) => {
                seen.hesitates = true;
                return hesitate(cx);
            }
            Some(Step::Fail) => return fail(&mut seen),
            Some(Step::Some(_)) | None => {}
        }
        (seen.unflushed, seen.hesitates) = (false, false);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut seen = this.seen.lock().unwrap();
        assert!(!seen.told_end, "the end is told once");
        match this.script.end {
            Goodbye::Takes => {}
            Goodbye::Hesitates => {
                this.script.end = Goodbye::Takes;
                seen.hesitates = true;
                return hesitate(cx);
            }
            Goodbye::IsGone => {
                seen.told_end = true;
                return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
            }
            Goodbye::Fails => return fail(&mut seen),
        }
        (seen.told_end, seen.unflushed) = (true, false);
        Poll::Ready(Ok(()))
    }
}

fn steps(may_fail: bool) -> impl Strategy<Value = VecDeque<Step>> {
    let step = prop_oneof![
        4 => (1_usize..300).prop_map(Step::Some),
        1 => (1_usize..100_000).prop_map(Step::Some),
        3 => Just(Step::Hesitate),
    ];
    let failing = prop_oneof![
        30 => step.clone(),
        1 => Just(Step::Some(0)),
        1 => Just(Step::Fail),
    ];
    let step = if may_fail {
        failing.boxed()
    } else {
        step.boxed()
    };
    vec(step, 0..40).prop_map(VecDeque::from)
}

fn script(may_fail: bool) -> impl Strategy<Value = Script> {
    // Up to several times as much as is read at once.
    let length = prop_oneof![3 => 0_usize..2000, 1 => 0_usize..300_000];
    let end = if may_fail {
        prop_oneof![
            Just(Goodbye::Takes),
            Just(Goodbye::Hesitates),
            Just(Goodbye::IsGone),
            Just(Goodbye::Fails)
        ]
        .boxed()
    } else {
        prop_oneof![
            Just(Goodbye::Takes),
            Just(Goodbye::Hesitates),
            Just(Goodbye::IsGone)
        ]
        .boxed()
    };
    let all = (
        length,
        any::<u8>(),
        steps(may_fail),
        steps(may_fail),
        steps(may_fail),
        end,
    );
    all.prop_map(|(length, seed, reads, writes, flushes, end)| Script {
        says: (0..length)
            .map(|at| u8::try_from(at % 251).unwrap() ^ seed)
            .collect(),
        reads,
        writes,
        flushes,
        end,
    })
}

/// Relays, with a look at both sides whenever it comes to rest.
fn relay(a: &Script, b: &Script) -> (End, Passed, Seen, Seen) {
    let ((mut a, at_a), (mut b, at_b)) = (Side::new(a), Side::new(b));
    let [from_a, from_b] = ["a", "b"].map(|name| IntCounter::new(name, name).unwrap());
    let counters = Counters {
        from_a: &from_a,
        from_b: &from_b,
    };
    let mut passed = Passed::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let end = runtime.block_on(async {
        let work = both_ways(
            &mut a,
            &mut b,
            Duration::from_secs(60),
            counters,
            &mut passed,
        );
        let mut work = std::pin::pin!(work);
        poll_fn(|cx| {
            let end = work.as_mut().poll(cx);
            for side in [&at_a, &at_b] {
                let seen = side.lock().unwrap();
                let waits = end.is_pending() && !seen.told_end;
                assert!(
                    !waits || !seen.unflushed || seen.hesitates,
                    "what was written is under way"
                );
            }
            end
        })
        .await
    });
    assert_eq!((from_a.get(), from_b.get()), (passed.from_a, passed.from_b));
    drop((a, b));
    let [a, b] = [at_a, at_b].map(|seen| Arc::into_inner(seen).unwrap().into_inner().unwrap());
    (end, passed, a, b)
}

proptest! {
    #[test]
    fn every_byte_passes_once_in_order_and_each_end_is_handed_on(a in script(false), b in script(false)) {
        let (end, passed, at_a, at_b) = relay(&a, &b);
        prop_assert!(matches!(end, End::Completed), "{end:?}");
        prop_assert!(at_b.heard == a.says, "bytes differ");
        prop_assert!(at_a.heard == b.says, "bytes differ");
        prop_assert_eq!(passed, Passed { from_a: a.says.len() as u64, from_b: b.says.len() as u64 });
        prop_assert!(at_a.told_end && at_b.told_end);
    }

    #[test]
    fn a_failure_is_named_and_never_looks_like_an_end(a in script(true), b in script(true)) {
        let (end, passed, at_a, at_b) = relay(&a, &b);
        match end {
            End::Completed => prop_assert!(!at_a.failed && !at_b.failed),
            End::FailedA(_) => prop_assert!(at_a.failed && !at_b.failed),
            End::FailedB(_) => prop_assert!(at_b.failed && !at_a.failed),
            End::Idle => prop_assert!(false, "nobody was idle"),
        }
        for (from, says, to, passed) in [
            (&at_a, &a.says, &at_b, passed.from_a),
            (&at_b, &b.says, &at_a, passed.from_b),
        ] {
            prop_assert!(says.starts_with(&to.heard), "bytes differ");
            prop_assert_eq!(passed, from.said as u64);
            // Who was told that this is all has all of it.
            prop_assert!(!to.told_end || (from.finished && to.heard == *says));
        }
    }

    #[test]
    fn a_direction_at_rest_holds_no_buffer(a in script(false), b in script(false)) {
        let ((mut a, at_a), (mut b, at_b)) = (Side::new(&a), Side::new(&b));
        let (mut passed, counter) = (0, IntCounter::new("a", "a").unwrap());
        let mut direction = Direction::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while direction.poll(&mut cx, &mut a, &mut b, &mut passed, &counter).is_pending() {
            let owed = at_a.lock().unwrap().said - at_b.lock().unwrap().heard.len();
            prop_assert!(direction.rest.capacity() <= SCRATCH);
            prop_assert!(owed <= direction.rest.len());
            prop_assert_eq!(owed == 0, direction.rest.capacity() == 0);
        }
        prop_assert_eq!(direction.rest.capacity(), 0);
    }
}
