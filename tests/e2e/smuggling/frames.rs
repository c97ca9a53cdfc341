//! HTTP/2 written and read frame by frame (RFC 9113 §4, RFC 7541).

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The preface, and settings that keep the other side from indexing what it tells: its header blocks can
/// then be read one by one.
pub(super) fn hello() -> Vec<u8> {
    let no_table = [0, 1, 0, 0, 0, 0];
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &no_table),
    ]
    .concat()
}

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

/// The flag of a stream's last frame.
pub(super) const END_STREAM: u8 = 1;
/// The flag of a header block's last frame.
pub(super) const END_HEADERS: u8 = 4;

/// A frame of any type.
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// A header block of literals, names and values as they are.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // Long enough for what tests send: RFC 7541 §5.1 goes on in seven bits.
            match u8::try_from(text.len()) {
                Ok(length @ ..127) => block.push(length),
                _ => {
                    let rest = text.len() - 127;
                    block.push(127);
                    block.push(u8::try_from(rest & 0x7f | 0x80).unwrap());
                    block.push(u8::try_from(rest >> 7).unwrap());
                }
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// A response with this status.
    Status(u16),
    /// The stream was reset with this code.
    Reset(u32),
    /// The connection was given up with this code.
    Goaway(u32),
    /// The connection ended without a word.
    End,
}

/// Reads until the stream is answered, reset, or will never be.
pub(super) async fn told<IO: AsyncRead + Unpin>(io: &mut IO, stream: u32) -> Told {
    loop {
        let mut head = [0; 9];
        if io.read_exact(&mut head).await.is_err() {
            return Told::End;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        if io.read_exact(&mut payload).await.is_err() {
            return Told::End;
        }
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        let of = u32::from_be_bytes(head[5..].try_into().unwrap());
        match head[3] {
            HEADERS if of == stream => match status(&payload) {
                100..=199 => {}
                status => return Told::Status(status),
            },
            RST_STREAM if of == stream => return Told::Reset(number(0)),
            // Without an error it is only a goodbye.
            GOAWAY if number(4) != 0 => return Told::Goaway(number(4)),
            _ => {}
        }
    }
}

/// Writes, unless the other side has gone already.
pub(super) async fn write<IO: AsyncWrite + Unpin>(io: &mut IO, bytes: &[u8]) {
    let _ = io.write_all(bytes).await;
    let _ = io.flush().await;
}

/// The first field of a response's header block: its status.
fn status(block: &[u8]) -> u16 {
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block {
        // A change of the table's size may come before.
        [0x20..=0x3f, rest @ ..] => status(rest),
        [index @ 0x88..=0x8e, ..] => INDEXED[usize::from(index - 0x88)],
        [0x48 | 0x08 | 0x18, length, value @ ..] => {
            let value = &value[..usize::from(length & 0x7f)];
            let digits = if length & 0x80 == 0 {
                String::from_utf8(value.to_vec()).unwrap()
            } else {
                huffman_digits(value)
            };
            digits.parse().unwrap()
        }
        _ => panic!("no status first: {block:02x?}"),
    }
}

/// RFC 7541, appendix B: `0` to `2` have five bits, the other digits six.
fn huffman_digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1))
        .collect();
    let (mut digits, mut rest) = (String::new(), &bits[..]);
    while rest.len() >= 5 {
        let value = |length: usize| rest[..length].iter().fold(0, |sum, bit| sum * 2 + bit);
        let (digit, length) = match value(5) {
            short @ 0..=2 => (short, 5),
            12..=15 if rest.len() >= 6 => (value(6) - 0b01_1001 + 3, 6),
            _ => break,
        };
        digits.push(char::from(b'0' + digit));
        rest = &rest[length..];
    }
    digits
}
