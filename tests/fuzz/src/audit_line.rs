//! Anything may stand in a line of an audit file. What is shown of it moves no cursor, hides nothing, and is not
//! taken for another text; what is read is counted once, as what it is.

use doorward::audit::entry::{Line, harmless, shown};
use doorward::audit::read::{Input, Item, Reader};

pub fn check(bytes: &[u8]) {
    lines(bytes);
    let Ok(text) = str::from_utf8(bytes) else {
        return;
    };
    let (one, other) = text.split_at(text.floor_char_boundary(text.len() / 2));
    for (at, c) in shown(text).char_indices() {
        assert!(is_harmless(c), "{c:?} at {at}");
    }
    assert_eq!(shown(one) == shown(other), one == other);
    let safe = harmless(text);
    assert!(safe.chars().all(|c| is_harmless(c) || matches!(c, '\n' | '\t')));
    if let Ok(json) = serde_json::from_str::<serde_json::Value>(text) {
        assert_eq!(serde_json::from_str::<serde_json::Value>(&safe).unwrap(), json);
    }
}

fn lines(bytes: &[u8]) {
    let compressed = [&b"\x1f\x8b"[..], b"\x28\xb5\x2f\xfd", b"\xfd7zXZ"];
    if compressed.iter().any(|magic| bytes.starts_with(magic)) {
        return;
    }
    let mut expected = Vec::new();
    for line in bytes.strip_suffix(b"\n").unwrap_or(bytes).split(|byte| *byte == b'\n') {
        let parsed = Line::parse(line);
        let ended = [line, b"\n"].concat();
        assert_eq!(format!("{:?}", Line::parse(&ended).ok()), format!("{:?}", parsed.as_ref().ok()));
        if let Ok(Line::Record(entry)) = &parsed {
            let texts = [entry.principal(), entry.grant(), entry.method(), entry.path()];
            for text in texts.into_iter().flatten() {
                assert!(shown(text).chars().all(is_harmless));
            }
        }
        expected.push(match parsed {
            Ok(Line::Record(_)) => "record",
            Ok(Line::Other) => "other",
            Err(_) => "unreadable",
        });
    }
    if bytes.is_empty() {
        expected.clear();
    }
    let file = std::env::temp_dir().join(format!("doorward-fuzz-{}.audit", std::process::id()));
    std::fs::write(&file, bytes).unwrap();
    let mut reader = Reader::new([Input::File(file)]).unwrap();
    let mut found = Vec::new();
    while let Some(item) = reader.line().unwrap() {
        found.push(match item {
            Item::Record(..) => "record",
            Item::Other => "other",
            Item::Unreadable { line, .. } => {
                assert_eq!(usize::try_from(line).unwrap(), found.len() + 1);
                "unreadable"
            }
        });
    }
    assert_eq!(found, expected);
    let counts = reader.counts();
    assert_eq!(counts.records + counts.others + counts.unreadable, found.len() as u64);
}

/// Whether a terminal shows a character, and nothing but it.
fn is_harmless(c: char) -> bool {
    let hidden = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e0fff}');
    !c.is_control() && !hidden
}
