//! How do clients get through whose `:authority` is no authority?
//!
//! gRPC's C core (Python, C++, Ruby) sends the percent-encoded path of the socket as `:authority`,
//! which the HTTP/2 library under tonic refuses as malformed. So the bytes from client to server are
//! read here first: each header block is decoded (RFC 7541), an unusable `:authority` becomes
//! `localhost`, and the block is written anew without use of the dynamic table, so that the reader
//! behind needs none. All other frames pass untouched. Anything odd ends the connection: the peer is a
//! process on this machine that speaks HTTP/2 wrongly.
//!
//! Memory is bounded by one frame, one header block, and what it decodes to.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::uri::Authority;
use loona_hpack::Decoder;
use loona_hpack::decoder::DecoderError;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A connection whose incoming bytes are corrected.
pub(crate) struct Corrected<S> {
    inner: S,
    rewriter: Rewriter,
    /// Corrected and not yet read; read up to `taken`.
    ready: Vec<u8>,
    taken: usize,
    /// Until the first frame is there.
    greeting: Option<Pin<Box<Sleep>>>,
}

impl<S> Corrected<S> {
    /// Wraps `inner`, on which the first frame must begin before `patience` ends.
    pub(crate) fn new(inner: S, patience: Duration) -> Self {
        Self {
            inner,
            rewriter: Rewriter::default(),
            ready: Vec::new(),
            taken: 0,
            greeting: Some(Box::pin(sleep_until(Instant::now() + patience))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Corrected<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.taken == this.ready.len() {
            if let Some(greeting) = &mut this.greeting
                && greeting.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let mut space = [0; 4096];
            let mut read = ReadBuf::new(&mut space);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.ready.clear();
            this.taken = 0;
            this.rewriter
                .push(read.filled(), &mut this.ready)
                .map_err(|odd| io::Error::new(io::ErrorKind::InvalidData, odd))?;
            if this.rewriter.greeted {
                this.greeting = None;
            }
        }
        let waiting = &this.ready[this.taken..];
        let taken = waiting.len().min(buf.remaining());
        buf.put_slice(&waiting[..taken]);
        this.taken += taken;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Corrected<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

/// What a peer did that HTTP/2 does not allow, or that is more than we hold for it.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub(crate) enum Odd {
    #[error("it does not begin as HTTP/2 does")]
    Preface,
    #[error("a frame is larger than 16 KiB")]
    LargeFrame,
    #[error("a header block is larger than {MAX_BLOCK} bytes")]
    LargeBlock,
    #[error("a header block has too many fields, or decodes to too much")]
    LargeHeaders,
    #[error("a header block comes in too many frames")]
    ManyFrames,
    #[error("a frame stands where it may not")]
    Order,
    #[error("a frame's padding or priority exceeds it")]
    Padding,
    #[error("a header block cannot be decoded: {0}")]
    Hpack(DecoderError),
}

/// The smallest maximum that HTTP/2 knows, which the server behind does not raise.
const MAX_FRAME: usize = 16_384;
/// What gRPC's C core accepts by default.
const MAX_BLOCK: usize = 8_192;
/// Frames that one header block may come in.
const MAX_FRAMES: usize = 16;
/// Fields of one header block; the library's Huffman decoder is slow to start.
const MAX_FIELDS: usize = 64;
/// Names and values of one header block: a short reference may stand for a long value.
const MAX_DECODED: usize = 65_536;
/// The initial size of the dynamic table, which the server behind does not raise.
const MAX_TABLE: usize = 4_096;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

const FRAME_HEAD: usize = 9;
const PRIORITY_FIELDS: usize = 5;

/// Reads the client's bytes as they come and writes corrected ones.
pub(super) struct Rewriter {
    state: State,
    /// The header block being collected.
    block: Option<Block>,
    decoder: Decoder<'static>,
    /// Whether the preface and the head of the first frame have come.
    greeted: bool,
}

enum State {
    /// That many bytes of the preface have come.
    Preface(usize),
    /// A frame's head is coming.
    Head(Vec<u8>),
    /// That many bytes pass untouched.
    Passing(usize),
    /// The payload of a frame with header fields is coming.
    Payload(Head, Vec<u8>),
}

#[derive(Clone, Copy)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

struct Block {
    stream: u32,
    end_stream: bool,
    priority: Option<[u8; PRIORITY_FIELDS]>,
    frames: usize,
    bytes: Vec<u8>,
}

impl Default for Rewriter {
    fn default() -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(MAX_TABLE);
        Self {
            state: State::Preface(0),
            block: None,
            decoder,
            greeted: false,
        }
    }
}

impl Rewriter {
    /// Takes the next `input` and appends what is ready to `out`. After an error nothing may follow.
    pub(super) fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), Odd> {
        while !input.is_empty() {
            match &mut self.state {
                State::Preface(seen) => {
                    let (bytes, rest) = input.split_at(input.len().min(PREFACE.len() - *seen));
                    if bytes != &PREFACE[*seen..*seen + bytes.len()] {
                        return Err(Odd::Preface);
                    }
                    *seen += bytes.len();
                    out.extend_from_slice(bytes);
                    if *seen == PREFACE.len() {
                        self.state = State::Head(Vec::with_capacity(FRAME_HEAD));
                    }
                    input = rest;
                }
                State::Head(bytes) => {
                    input = take(input, bytes, FRAME_HEAD);
                    if let Ok(bytes) = <&[u8; FRAME_HEAD]>::try_from(&bytes[..]) {
                        let bytes = *bytes;
                        self.begin(&bytes, out)?;
                    }
                }
                State::Passing(left) => {
                    let (bytes, rest) = input.split_at(input.len().min(*left));
                    out.extend_from_slice(bytes);
                    *left -= bytes.len();
                    if *left == 0 {
                        self.state = State::Head(Vec::with_capacity(FRAME_HEAD));
                    }
                    input = rest;
                }
                State::Payload(head, bytes) => {
                    input = take(input, bytes, head.length);
                    if bytes.len() == head.length {
                        let (head, bytes) = (*head, std::mem::take(bytes));
                        self.collect(head, &bytes, out)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// A frame's head is complete.
    fn begin(&mut self, bytes: &[u8; FRAME_HEAD], out: &mut Vec<u8>) -> Result<(), Odd> {
        self.greeted = true;
        let head = Head::parse(bytes);
        if head.length > MAX_FRAME {
            return Err(Odd::LargeFrame);
        }
        match (&self.block, head.kind) {
            (None, HEADERS) if head.stream != 0 => {}
            (Some(block), CONTINUATION) if head.stream == block.stream => {}
            (None, HEADERS | CONTINUATION | PUSH_PROMISE) | (Some(_), _) => {
                return Err(Odd::Order);
            }
            (None, _) => {
                out.extend_from_slice(bytes);
                self.state = if head.length == 0 {
                    State::Head(Vec::with_capacity(FRAME_HEAD))
                } else {
                    State::Passing(head.length)
                };
                return Ok(());
            }
        }
        if head.length == 0 {
            return self.collect(head, &[], out);
        }
        self.state = State::Payload(head, Vec::new());
        Ok(())
    }

    /// A frame with header fields is complete.
    fn collect(&mut self, head: Head, payload: &[u8], out: &mut Vec<u8>) -> Result<(), Odd> {
        self.state = State::Head(Vec::with_capacity(FRAME_HEAD));
        let mut block = match self.block.take() {
            Some(mut block) => {
                block.bytes.extend_from_slice(payload);
                block
            }
            None => Block::begin(head, payload)?,
        };
        block.frames += 1;
        if block.bytes.len() > MAX_BLOCK {
            return Err(Odd::LargeBlock);
        }
        if block.frames > MAX_FRAMES {
            return Err(Odd::ManyFrames);
        }
        if head.flags & END_HEADERS == 0 {
            self.block = Some(block);
            return Ok(());
        }
        let fields = self.corrected(&block.bytes)?;
        block.write(&fields, out);
        Ok(())
    }

    /// The fields of a block, corrected, as literals that use no table.
    fn corrected(&mut self, block: &[u8]) -> Result<Vec<u8>, Odd> {
        let (mut fields, mut count, mut decoded) = (Vec::new(), 0, 0);
        let read = self.decoder.decode_with_cb(block, |name, value| {
            count += 1;
            decoded += name.len() + value.len();
            if count > MAX_FIELDS || decoded > MAX_DECODED {
                return;
            }
            let unusable = *name == *b":authority" && Authority::try_from(&*value).is_err();
            let value = if unusable { b"localhost" } else { &*value };
            fields.push(0); // A literal field with a new name, not indexed.
            write_string(&name, &mut fields);
            write_string(value, &mut fields);
        });
        read.map_err(Odd::Hpack)?;
        if count > MAX_FIELDS || decoded > MAX_DECODED {
            return Err(Odd::LargeHeaders);
        }
        Ok(fields)
    }
}

/// Moves bytes from `input` until `bytes` has `wanted` of them; returns the rest.
fn take<'a>(input: &'a [u8], bytes: &mut Vec<u8>, wanted: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(input.len().min(wanted - bytes.len()));
    bytes.extend_from_slice(taken);
    rest
}

impl Head {
    fn parse(bytes: &[u8; FRAME_HEAD]) -> Self {
        let [a, b, c, kind, flags, stream @ ..] = *bytes;
        Self {
            length: usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c),
            kind,
            flags,
            stream: u32::from_be_bytes(stream) & 0x7fff_ffff,
        }
    }

    fn write(self, out: &mut Vec<u8>) {
        // At most MAX_FRAME, so that three bytes hold it.
        let [.., a, b, c] = self.length.to_be_bytes();
        out.extend_from_slice(&[a, b, c, self.kind, self.flags]);
        out.extend_from_slice(&self.stream.to_be_bytes());
    }
}

impl Block {
    /// Takes padding and priority off the first frame (RFC 9113 §6.2).
    fn begin(head: Head, mut payload: &[u8]) -> Result<Self, Odd> {
        let mut padding = 0;
        if head.flags & PADDED != 0 {
            let (length, rest) = payload.split_first().ok_or(Odd::Padding)?;
            padding = usize::from(*length);
            payload = rest;
        }
        let mut priority = None;
        if head.flags & PRIORITY != 0 {
            let (fields, rest) = payload.split_first_chunk().ok_or(Odd::Padding)?;
            priority = Some(*fields);
            payload = rest;
        }
        let length = payload.len().checked_sub(padding).ok_or(Odd::Padding)?;
        Ok(Self {
            stream: head.stream,
            end_stream: head.flags & END_STREAM != 0,
            priority,
            frames: 0,
            bytes: payload[..length].to_vec(),
        })
    }

    /// Writes the block anew, with `fields` in place of its own.
    fn write(&self, fields: &[u8], out: &mut Vec<u8>) {
        let priority = self.priority.as_ref().map_or(&[][..], |fields| &fields[..]);
        let (first, mut rest) = fields.split_at(fields.len().min(MAX_FRAME - PRIORITY_FIELDS));
        let mut flags = 0;
        if self.end_stream {
            flags |= END_STREAM;
        }
        if self.priority.is_some() {
            flags |= PRIORITY;
        }
        let end = |rest: &[u8]| if rest.is_empty() { END_HEADERS } else { 0 };
        Head {
            length: priority.len() + first.len(),
            kind: HEADERS,
            flags: flags | end(rest),
            stream: self.stream,
        }
        .write(out);
        out.extend_from_slice(priority);
        out.extend_from_slice(first);
        while !rest.is_empty() {
            let (next, left) = rest.split_at(rest.len().min(MAX_FRAME));
            rest = left;
            Head {
                length: next.len(),
                kind: CONTINUATION,
                flags: end(rest),
                stream: self.stream,
            }
            .write(out);
            out.extend_from_slice(next);
        }
    }
}

/// A string as it is, without Huffman coding (RFC 7541 §5.2).
fn write_string(text: &[u8], out: &mut Vec<u8>) {
    // Writing to memory cannot fail.
    let _ = loona_hpack::encoder::encode_integer_into(text.len(), 7, 0, out);
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use loona_hpack::Encoder;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const UNUSABLE: &[u8] = b"%2Ftmp%2Fagent.sock";

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        Head {
            length: payload.len(),
            kind,
            flags,
            stream,
        }
        .write(&mut bytes);
        bytes.extend_from_slice(payload);
        bytes
    }

    /// What passes when the bytes come in pieces of `size`.
    fn pass(rewriter: &mut Rewriter, bytes: &[u8], size: usize) -> Result<Vec<u8>, Odd> {
        let mut out = Vec::new();
        for piece in bytes.chunks(size) {
            rewriter.push(piece, &mut out)?;
        }
        Ok(out)
    }

    fn opened() -> Rewriter {
        let mut rewriter = Rewriter::default();
        let passed = pass(&mut rewriter, PREFACE, 24).unwrap();
        assert_eq!(passed, PREFACE);
        rewriter
    }

    type Fields = Vec<(Vec<u8>, Vec<u8>)>;

    fn request(authority: &[u8]) -> Fields {
        let fields: [(&[u8], &[u8]); 5] = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/SpiffeWorkloadAPI/FetchX509SVID"),
            (b":authority", authority),
            (b"workload.spiffe.io", b"true"),
        ];
        fields.map(|(n, v)| (n.to_vec(), v.to_vec())).to_vec()
    }

    fn encode(encoder: &mut Encoder<'_>, fields: &Fields) -> Vec<u8> {
        encoder.encode(fields.iter().map(|(n, v)| (&n[..], &v[..])))
    }

    /// Reads what passed as the server would, with a fresh table: it must not be needed.
    fn decode(passed: &[u8]) -> (u8, u32, Fields) {
        let head = Head::parse(passed[..FRAME_HEAD].try_into().unwrap());
        let (mut block, mut rest) = (Vec::new(), passed);
        let mut flags = 0;
        while !rest.is_empty() {
            let head = Head::parse(rest[..FRAME_HEAD].try_into().unwrap());
            flags = head.flags;
            block.extend_from_slice(&rest[FRAME_HEAD..FRAME_HEAD + head.length]);
            rest = &rest[FRAME_HEAD + head.length..];
        }
        assert_eq!(flags & END_HEADERS, END_HEADERS, "the last one ends it");
        let skip = if head.flags & PRIORITY == 0 { 0 } else { 5 };
        let fields = Decoder::new().decode(&block[skip..]).unwrap();
        (head.flags, head.stream, fields)
    }

    #[test]
    fn only_an_authority_that_is_none_is_replaced() {
        for (sent, arrives) in [
            (UNUSABLE, &b"localhost"[..]),
            (b"/tmp/agent.sock", b"localhost"),
            (b"\xff", b"localhost"),
            (b"", b"localhost"),
            (b"localhost", b"localhost"),
            (b"example.org:8443", b"example.org:8443"),
        ] {
            let block = encode(&mut Encoder::new(), &request(sent));
            let bytes = frame(HEADERS, END_HEADERS, 1, &block);
            let passed = pass(&mut opened(), &bytes, usize::MAX).unwrap();
            assert_eq!(decode(&passed), (END_HEADERS, 1, request(arrives)));
        }
    }

    #[test]
    fn later_blocks_use_the_table_that_earlier_ones_filled() {
        let mut rewriter = opened();
        // `:authority` as a literal to be remembered, and then by its place in the table.
        let first = [&[0x41, 19][..], UNUSABLE].concat();
        let kept = [&[0x42, 7][..], b"OPTIONS"].concat();
        for (stream, block, name, value) in [
            (1, &first[..], b":authority".to_vec(), b"localhost".to_vec()),
            (3, &kept, b":method".to_vec(), b"OPTIONS".to_vec()),
            (5, &[0xbe], b":method".to_vec(), b"OPTIONS".to_vec()),
            (7, &[0xbf], b":authority".to_vec(), b"localhost".to_vec()),
        ] {
            let flags = END_HEADERS | END_STREAM;
            let bytes = frame(HEADERS, flags, stream, block);
            let passed = pass(&mut rewriter, &bytes, 1).unwrap();
            assert_eq!(decode(&passed), (flags, stream, vec![(name, value)]));
        }
    }

    #[test]
    fn padding_priority_and_continuation_are_understood() {
        let block = encode(&mut Encoder::new(), &request(UNUSABLE));
        let (first, second) = block.split_at(7);
        let mut payload = vec![3, 0x80, 0, 0, 0, 42];
        payload.extend_from_slice(first);
        payload.extend_from_slice(&[0; 3]);
        let mut bytes = frame(HEADERS, PADDED | PRIORITY, 9, &payload);
        bytes.extend(frame(CONTINUATION, 0, 9, second));
        bytes.extend(frame(CONTINUATION, END_HEADERS, 9, &[]));
        for size in [1, 2, 7, 1000] {
            let passed = pass(&mut opened(), &bytes, size).unwrap();
            assert_eq!(
                decode(&passed),
                (END_HEADERS | PRIORITY, 9, request(b"localhost"))
            );
            assert_eq!(passed[FRAME_HEAD..][..5], [0x80, 0, 0, 0, 42]);
        }
    }

    #[test]
    fn a_block_that_grows_beyond_a_frame_is_continued() {
        let mut fields = request(b"localhost");
        let long: (Vec<u8>, Vec<u8>) = (b"x-long".to_vec(), vec![b'x'; 3000]);
        fields.extend(std::iter::repeat_n(long, 10));
        let block = encode(&mut Encoder::new(), &fields);
        assert!(block.len() < MAX_BLOCK);
        let bytes = frame(HEADERS, END_HEADERS, 1, &block);
        let passed = pass(&mut opened(), &bytes, usize::MAX).unwrap();
        assert!(passed.len() > MAX_FRAME);
        assert_eq!(decode(&passed).2, fields);
    }

    #[test]
    fn all_other_frames_pass_untouched() {
        let mut bytes = frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]);
        bytes.extend(frame(4, 1, 0, &[]));
        bytes.extend(frame(0, 1, 1, &vec![7; MAX_FRAME]));
        bytes.extend(frame(0xfa, 0xff, 12, b"unknown"));
        for size in [1, 10, 5000, usize::MAX] {
            assert_eq!(pass(&mut opened(), &bytes, size).unwrap(), bytes);
        }
    }

    #[test]
    fn what_is_odd_ends_the_connection() {
        let block = encode(&mut Encoder::new(), &request(UNUSABLE));
        let begun = frame(HEADERS, 0, 1, &block);
        let after_begun = |kind, stream| [begun.clone(), frame(kind, 4, stream, &[])].concat();
        let many_small = [
            begun.clone(),
            frame(CONTINUATION, 0, 1, &[]).repeat(MAX_FRAMES),
        ];
        let many_large = [
            frame(HEADERS, 0, 1, &[]),
            frame(CONTINUATION, 0, 1, &[0; 5000]).repeat(2),
        ];
        // A value of 4,000 bytes, remembered, and then referred to in one byte each time.
        let bomb = [
            &encode(
                &mut Encoder::new(),
                &vec![(b"x".to_vec(), vec![b'x'; 4000])],
            )[..],
            &[0xbe; 50],
        ]
        .concat();
        for (bytes, why) in [
            (frame(0, 0, 1, &vec![0; MAX_FRAME + 1]), Odd::LargeFrame),
            (frame(HEADERS, 4, 0, &block), Odd::Order),
            (frame(CONTINUATION, 4, 1, &block), Odd::Order),
            (frame(PUSH_PROMISE, 4, 1, &block), Odd::Order),
            (after_begun(HEADERS, 1), Odd::Order),
            (after_begun(CONTINUATION, 3), Odd::Order),
            (after_begun(0, 1), Odd::Order),
            (frame(HEADERS, END_HEADERS | PADDED, 1, &[]), Odd::Padding),
            (
                frame(HEADERS, END_HEADERS | PADDED, 1, &[2, 0]),
                Odd::Padding,
            ),
            (
                frame(HEADERS, END_HEADERS | PRIORITY, 1, &[0; 4]),
                Odd::Padding,
            ),
            (many_small.concat(), Odd::ManyFrames),
            (many_large.concat(), Odd::LargeBlock),
            (
                frame(HEADERS, END_HEADERS, 1, &[0x82; MAX_FIELDS + 1]),
                Odd::LargeHeaders,
            ),
            (frame(HEADERS, END_HEADERS, 1, &bomb), Odd::LargeHeaders),
            (
                frame(HEADERS, END_HEADERS, 1, &[0xff]),
                Odd::Hpack(DecoderError::IntegerDecodingError(
                    loona_hpack::decoder::IntegerDecodingError::NotEnoughOctets,
                )),
            ),
            (
                // The table may not grow beyond what the server announced.
                frame(HEADERS, END_HEADERS, 1, &[0x3f, 0xe2, 0x1f, 0x82]),
                Odd::Hpack(DecoderError::InvalidMaxDynamicSize),
            ),
        ] {
            for size in [1, usize::MAX] {
                assert_eq!(pass(&mut opened(), &bytes, size), Err(why));
            }
        }
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nXX"] {
            let refused = pass(&mut Rewriter::default(), bytes, 1);
            assert_eq!(refused, Err(Odd::Preface));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), size in 1usize..64) {
            let _ = pass(&mut opened(), &bytes, size);
            let _ = pass(&mut opened(), &frame(HEADERS, END_HEADERS, 1, &bytes), size);
            let _ = pass(&mut opened(), &frame(HEADERS, END_HEADERS | PADDED | PRIORITY, 1, &bytes), size);
        }

        #[test]
        fn pieces_make_no_difference(fields in proptest::collection::vec((any::<Vec<u8>>(), any::<Vec<u8>>()), 0..9), size in 1usize..64) {
            let bytes = frame(HEADERS, END_HEADERS, 1, &encode(&mut Encoder::new(), &fields));
            prop_assert_eq!(pass(&mut opened(), &bytes, size), pass(&mut opened(), &bytes, usize::MAX));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_says_nothing_is_not_waited_for() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(PREFACE).await.unwrap();
        let mut corrected = Corrected::new(ours, Duration::from_secs(5));
        let error = corrected.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);

        let (ours, mut theirs) = tokio::io::duplex(64);
        let settings = frame(4, 0, 0, &[]);
        theirs.write_all(PREFACE).await.unwrap();
        theirs.write_all(&settings).await.unwrap();
        let mut corrected = Corrected::new(ours, Duration::from_secs(5));
        let mut read = [0; 33];
        corrected.read_exact(&mut read).await.unwrap();
        assert_eq!(read[24..], settings);
        let waiting = corrected.read_u8();
        let patient = tokio::time::timeout(Duration::from_secs(600), waiting).await;
        assert!(patient.is_err(), "an idle connection may stay");
        drop(theirs);
        assert_eq!(corrected.read(&mut read).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_is_odd_is_an_error_of_the_stream() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut corrected = Corrected::new(ours, Duration::from_secs(5));
        let error = corrected.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
