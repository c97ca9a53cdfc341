//! How many of a client's HTTP/2 frames carry nothing does not depend on how its bytes are cut, and is what one
//! finds who has all of them before them.

use doorward::fuzzing::idle_frames;

pub fn check(bytes: &[u8]) {
    let Some(((&first, &second), frames)) = bytes.split_first_chunk().map(|([a, b], rest)| ((a, b), rest)) else {
        return;
    };
    let bytes = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frames].concat();
    let expected = counted(frames);
    let (whole, ended) = idle_frames([&bytes[..]]);
    assert_eq!((whole, ended), (expected, expected > 20_000));
    for size in [first, second] {
        let cut = idle_frames(bytes.chunks(usize::from(size).max(1)));
        assert_eq!(cut, (whole, ended), "{size}");
    }
    let first = usize::from(first).min(bytes.len());
    let (begin, end) = bytes.split_at(first);
    assert_eq!(idle_frames([begin, &[], end]), (whole, ended));
}

/// RFC 9113 §4.1 and §6.
fn counted(mut bytes: &[u8]) -> i64 {
    let mut count = 0;
    while bytes.len() >= 9 {
        let length = usize::from(bytes[0]) << 16 | usize::from(bytes[1]) << 8 | usize::from(bytes[2]);
        let ends_stream = bytes[4] & 1 == 1;
        count += match bytes[3] {
            0x0 => i64::from(length == 0 && !ends_stream),
            0x1 => 0,
            _ => 1,
        };
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
    count
}
