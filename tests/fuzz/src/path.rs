//! The path that policy decides on is the one that every application reads, however it reads.

use doorward::policy::path;

pub fn check(bytes: &[u8]) {
    let Ok(path) = str::from_utf8(bytes) else {
        return;
    };
    let Ok(told) = path::decided(path) else {
        let read = READERS.map(|reader| reader(path.as_bytes()));
        let agree = read.iter().all(|one| *one == read[0]);
        assert!(!agree || is_odd(path), "{path:?} means one thing");
        return;
    };
    for reader in READERS {
        assert_eq!(reader(path.as_bytes()), reader(told.as_bytes()), "{path:?}");
    }
    let read = READERS.map(|reader| reader(path.as_bytes()));
    assert!(read.iter().all(|one| *one == read[0]), "{path:?}: {read:?}");
    assert_eq!(path::decided(&told).as_deref(), Ok(&told[..]), "{path:?}");
    assert!(!told.bytes().any(|byte| byte.is_ascii_control() || byte == b'\\'));
    // Of several spellings of one path, one is left (RFC 3986 §6.2.2).
    for (at, _) in told.match_indices('%') {
        let hex = &told[at + 1..at + 3];
        let byte = u8::from_str_radix(hex, 16).unwrap();
        assert_eq!(hex, format!("{byte:02X}"), "{path:?}");
        assert!(!byte.is_ascii_alphanumeric() && !b"-._~".contains(&byte), "{path:?}");
    }
}

type Reader = fn(&[u8]) -> Vec<u8>;

/// How applications make a path of what was sent. What parameters say is left out.
const READERS: [Reader; 7] = [
    |path| bare(&decode(path)),
    |path| bare(&moved(&decode(path))),
    |path| bare(&decode(&moved(path))),
    |path| bare(&decode(&decode(path))),
    |path| bare(&moved(&merged(&decode(path)))),
    |path| bare(&moved(&bare(&decode(path)))),
    |path| bare(&moved(&decode(&bare(&slashed(path))))),
];

/// What is refused although everybody above reads it alike.
fn is_odd(path: &str) -> bool {
    let escapes: Vec<_> = path.match_indices('%').collect();
    let odd_escape = |at: &(usize, &str)| match path.get(at.0 + 1..at.0 + 3) {
        Some(hex) if hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            let byte = u8::from_str_radix(hex, 16).unwrap();
            byte.is_ascii_control() || b"/\\%;".contains(&byte)
        }
        _ => true,
    };
    path.bytes().any(|byte| byte.is_ascii_control() || byte == b'\\')
        || escapes.iter().any(odd_escape)
        // Nobody sends a target without the slash in front but `*`, which has none to move about.
        || !path.starts_with('/')
        || path.contains("//")
}

fn decode(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut rest = path;
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        let digit = |at: usize| behind.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap());
                rest = &behind[2..];
            }
            _ => decoded.push(*first),
        }
    }
    decoded
}

/// Without dot segments (RFC 3986 §5.2.4).
fn moved(path: &[u8]) -> Vec<u8> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let segments: Vec<_> = path.split(|byte| *byte == b'/').collect();
    for (at, segment) in segments.iter().enumerate() {
        let last = at + 1 == segments.len();
        match *segment {
            b".." => {
                if kept.len() > 1 {
                    kept.pop();
                }
            }
            b"." => {}
            _ => {
                kept.push(segment);
                continue;
            }
        }
        if last {
            kept.push(b"");
        }
    }
    kept.join(&b'/')
}

/// As Windows would have it.
fn slashed(path: &[u8]) -> Vec<u8> {
    let slash = |byte: &u8| if *byte == b'\\' { b'/' } else { *byte };
    path.iter().map(slash).collect()
}

fn merged(path: &[u8]) -> Vec<u8> {
    let mut merged = path.to_vec();
    merged.dedup_by(|a, b| *a == b'/' && *b == b'/');
    merged
}

/// Without the parameters of its segments.
fn bare(path: &[u8]) -> Vec<u8> {
    let name = |segment: &[u8]| segment.split(|byte| *byte == b';').next().unwrap().to_vec();
    let segments: Vec<_> = path.split(|byte| *byte == b'/').map(name).collect();
    segments.join(&b'/')
}
