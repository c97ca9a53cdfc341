//! How does Kubernetes read YAML, and how is it written so that everybody reads the same?
//!
//! `kubectl` and the API server read YAML 1.1: a plain `on` is true there, and `0644` is 420. What we pass
//! on must mean the same to them afterwards, so this reader goes by their rules, and whatever two versions
//! of YAML read differently is written in quotes. [`crate::document`] reads our own settings, by line and
//! key; it has nothing to pass on.

use std::collections::HashMap;

use saphyr::{Mapping, Scalar, ScalarStyle, Yaml, YamlEmitter};
use saphyr_parser::{Event, Parser, Tag};
use serde_json::{Map, Number, Value};

/// The documents of `text`, in their order.
///
/// # Errors
/// Where it is no YAML, or holds what JSON cannot say.
pub fn read(text: &str) -> Result<Vec<Value>, Error> {
    read_up_to(MOST, text)
}

/// As [`read`], unless there are more values than `most`, those that aliases stand for counted: a few lines of
/// them may stand for more than there is memory.
///
/// # Errors
/// Then too.
pub fn read_up_to(most: usize, text: &str) -> Result<Vec<Value>, Error> {
    let mut reader = Reader {
        most,
        ..Reader::default()
    };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| Error {
            line: error.marker().line(),
            what: error.info().into(),
        })?;
        reader.take(event).map_err(|what| Error {
            line: span.start.line(),
            what,
        })?;
    }
    Ok(reader.documents)
}

/// `value` as one document, without a line `---` before it, with a line break at its end.
#[must_use]
pub fn write(value: &Value) -> String {
    let mut text = String::new();
    let mut emitter = YamlEmitter::new(&mut text);
    emitter.multiline(true);
    // Writing to a string cannot fail, and nothing in the tree is of a style that is not written.
    let _ = emitter.dump(&tree(value));
    let mut text = text.strip_prefix("---\n").unwrap_or(&text).to_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// What keeps a text from being read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct Error {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

#[derive(Default)]
struct Reader {
    /// How many values there may be.
    most: usize,
    documents: Vec<Value>,
    open: Vec<Open>,
    /// What anchors stand for, and of how many values it consists.
    anchors: HashMap<usize, (Value, usize)>,
    /// How many values there are so far, those behind aliases included.
    values: usize,
    /// How many are kept beside for aliases: anchors may stand within each other.
    kept: usize,
}

/// A list or mapping that is not over yet.
struct Open {
    anchor: usize,
    /// How many values there were before it.
    before: usize,
    inside: Inside,
}

enum Inside {
    List(Vec<Value>),
    Mapping {
        entries: Map<String, Value>,
        key: Option<String>,
        merged: Vec<Map<String, Value>>,
    },
}

impl Reader {
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(&text, style, tag.as_deref())?;
                let before = self.values;
                self.value(value, anchor, before)
            }
            Event::SequenceStart(anchor, _) => self.begin(anchor, Inside::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                let inside = Inside::Mapping {
                    entries: Map::new(),
                    key: None,
                    merged: Vec::new(),
                };
                self.begin(anchor, inside)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(open) => self.value(open.inside.whole(), open.anchor, open.before),
                None => Ok(()),
            },
            Event::Alias(anchor) => {
                let Some((value, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err("an alias stands for what holds it".into());
                };
                let before = self.values;
                self.values += size - 1;
                self.value(value, 0, before)
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn begin(&mut self, anchor: usize, inside: Inside) -> Result<(), String> {
        if self.open.len() >= DEEPEST {
            return Err(format!(
                "lists and keys within each other, more than {DEEPEST} deep"
            ));
        }
        self.open.push(Open {
            anchor,
            before: self.values,
            inside,
        });
        Ok(())
    }

    fn value(&mut self, value: Value, anchor: usize, before: usize) -> Result<(), String> {
        self.values += 1;
        let size = self.values - before;
        if anchor != 0 {
            self.kept += size;
        }
        if self.values.max(self.kept) > self.most {
            return Err(format!(
                "more than {} values, those behind aliases counted",
                self.most
            ));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (value.clone(), size));
        }
        match self.open.last_mut() {
            None => {
                self.documents.push(value);
                Ok(())
            }
            Some(open) => open.inside.take(value),
        }
    }
}

impl Inside {
    fn take(&mut self, value: Value) -> Result<(), String> {
        match self {
            Self::List(items) => items.push(value),
            Self::Mapping {
                entries,
                key,
                merged,
            } => match key.take() {
                None => *key = Some(as_key(value)?),
                Some(name) if name == "<<" => match value {
                    Value::Object(other) => merged.push(other),
                    Value::Array(others) => {
                        for other in others {
                            let Value::Object(other) = other else {
                                return Err("`<<` merges mappings, and here is none".into());
                            };
                            merged.push(other);
                        }
                    }
                    _ => return Err("`<<` merges mappings, and here is none".into()),
                },
                Some(name) => {
                    if entries.contains_key(&name) {
                        return Err(format!("the key `{name}` stands here twice"));
                    }
                    entries.insert(name, value);
                }
            },
        }
        Ok(())
    }

    fn whole(self) -> Value {
        match self {
            Self::List(items) => Value::Array(items),
            Self::Mapping {
                mut entries,
                merged,
                ..
            } => {
                // What is written out counts, then what is merged first.
                for (name, value) in merged.into_iter().flatten() {
                    entries.entry(name).or_insert(value);
                }
                Value::Object(entries)
            }
        }
    }
}

/// Keys are text in JSON.
fn as_key(value: Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Bool(_) | Value::Number(_) | Value::Null => Ok(value.to_string()),
        Value::Array(_) | Value::Object(_) => Err("a key must be plain text".into()),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, String> {
    match tag {
        None if style == ScalarStyle::Plain => Ok(plain(text)),
        None => Ok(text.into()),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Ok(text.into()),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix != "binary" => Ok(plain(text)),
        Some(tag) if tag.suffix.is_empty() => Ok(text.into()),
        Some(tag) => Err(format!("the tag `{tag}` says nothing to Kubernetes")),
    }
}

/// What plain text stands for in YAML 1.1, as go-yaml reads it.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return true.into();
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return false.into();
        }
        _ => {}
    }
    let starts_number = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.');
    if !text.starts_with(starts_number) {
        return text.into();
    }
    let digits = text.replace('_', "");
    whole(&digits)
        .or_else(|| fraction(&digits))
        .map_or_else(|| text.into(), Value::Number)
}

fn whole(text: &str) -> Option<Number> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = rest.to_ascii_lowercase();
    let (digits, radix) = if let Some(digits) = lower.strip_prefix("0x") {
        (digits, 16)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        (digits, 8)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (digits, 2)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (&lower[1..], 8)
    } else {
        (lower.as_str(), 10)
    };
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None;
    }
    let value = u64::from_str_radix(digits, radix).ok()?;
    if negative {
        0_i64.checked_sub_unsigned(value).map(Number::from)
    } else {
        Some(value.into())
    }
}

fn fraction(text: &str) -> Option<Number> {
    let body = text.trim_start_matches(['+', '-']);
    let is_part = |c: char| c.is_ascii_digit() || matches!(c, '.' | 'e' | 'E' | '+' | '-');
    let begins = body.strip_prefix('.').unwrap_or(body);
    if text.len() - body.len() > 1
        || !begins.starts_with(|c: char| c.is_ascii_digit())
        || !body.chars().all(is_part)
    {
        return None;
    }
    text.parse().ok().and_then(Number::from_f64)
}

fn tree(value: &Value) -> Yaml<'_> {
    match value {
        Value::Null => as_written("null".into(), ScalarStyle::Plain),
        Value::Bool(value) => Yaml::Value(Scalar::Boolean(*value)),
        Value::Number(number) => as_written(number.to_string(), ScalarStyle::Plain),
        Value::String(text) => text_node(text),
        Value::Array(items) => Yaml::Sequence(items.iter().map(tree).collect()),
        Value::Object(entries) => {
            let entries = entries
                .iter()
                .map(|(key, value)| (text_node(key), tree(value)));
            Yaml::Mapping(entries.collect::<Mapping<'_>>())
        }
    }
}

fn text_node(text: &str) -> Yaml<'_> {
    let is_odd = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(
                c,
                '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}'
            )
    };
    if text.contains(is_odd) || looks_like_more(text) {
        as_written(escaped(text), ScalarStyle::DoubleQuoted)
    } else {
        Yaml::Value(Scalar::String(text.into()))
    }
}

/// Whether somebody may take the plain text for a number, a flag, nothing, or a time.
fn looks_like_more(text: &str) -> bool {
    let in_numbers = |c: char| c.is_ascii_hexdigit() || "_:.-+TtZzXxOo ".contains(c);
    let begins = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.');
    !matches!(plain(text), Value::String(_))
        || (text.starts_with(begins) && text.chars().all(in_numbers))
        || text == "<<"
        || text == "="
        || text.starts_with("---")
        || text.starts_with("...")
}

fn as_written(text: String, style: ScalarStyle) -> Yaml<'static> {
    Yaml::Representation(text.into(), style, None)
}

/// As it stands between double quotes.
fn escaped(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => written.extend(['\\', c]),
            '\n' => written.push_str("\\n"),
            '\t' => written.push_str("\\t"),
            c if c.is_control()
                || matches!(c, '\u{2028}'..='\u{2029}' | '\u{feff}' | '\u{fffe}'..='\u{ffff}') =>
            {
                written.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => written.push(c),
        }
    }
    written
}

/// Far more than any manifest has.
const MOST: usize = 1_000_000;

/// As deep as `serde_json` reads.
const DEEPEST: usize = 127;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_text_means_what_it_means_to_kubernetes() {
        for (text, expected) in [
            ("8080", json!(8080)),
            ("0644", json!(420)),
            ("0o644", json!(420)),
            ("0x1F", json!(31)),
            ("-12", json!(-12)),
            ("1_000", json!(1000)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            (".5", json!(0.5)),
            ("on", json!(true)),
            ("No", json!(false)),
            ("~", json!(null)),
            ("08", json!(8.0)),
            ("64Mi", json!("64Mi")),
            ("-", json!("-")),
            ("1.2.3", json!("1.2.3")),
            ("10.0.0.0/8", json!("10.0.0.0/8")),
            ("é", json!("é")),
        ] {
            assert_eq!(plain(text), expected, "{text}");
        }
    }

    #[test]
    fn anchors_merges_and_quotes_are_read() {
        let text = "a: &x { b: 1, c: 'on' }\nd:\n  <<: *x\n  b: 2\ne: [*x, \"0644\"]\nf: |\n  one\n  two\n";
        assert_eq!(
            read(text).unwrap(),
            [json!({
                "a": { "b": 1, "c": "on" },
                "d": { "b": 2, "c": "on" },
                "e": [{ "b": 1, "c": "on" }, "0644"],
                "f": "one\ntwo\n",
            })]
        );
    }

    #[test]
    fn what_cannot_be_passed_on_is_told_with_its_line() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..8 {
            let before = format!("*a{}, ", level - 1).repeat(10);
            bomb += &format!("a{level}: &a{level} [{before}]\n");
        }
        for (text, line, what) in [
            ("a: 1\na: 2\n", 2, "the key `a` stands here twice"),
            ("a: 1\nb: !vault x\n", 2, "says nothing to Kubernetes"),
            ("a: [\n", 2, ""),
            ("? [a]\n: b\n", 1, "a key must be plain text"),
            ("a: &a [*a]\n", 1, "an alias stands for what holds it"),
            (&bomb, 6, "more than 1000000 values"),
            (&"[".repeat(200), 1, "more than 127 deep"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.what.contains(what), "{text}: {error}");
            assert_eq!(error.line, line, "{text}: {error}");
        }
    }

    #[test]
    fn anchors_within_each_other_are_not_kept_without_bound() {
        let nested: String = (0..100).map(|level| format!("&a{level} [")).collect();
        let text = format!("{nested}{}{}", "x, ".repeat(50), "]".repeat(100));
        assert!(read_up_to(20_000, &text).is_ok());
        let error = read_up_to(1_000, &text).unwrap_err();
        assert!(error.what.contains("more than 1000 values"), "{error}");
    }

    #[test]
    fn text_that_looks_like_more_is_quoted() {
        let value = json!({ "a": "0644", "b": "on", "c": "2026-01-01", "d": "64Mi", "e": "", "y": "y", "f": null });
        assert_eq!(
            write(&value),
            "a: \"0644\"\nb: \"on\"\nc: \"2026-01-01\"\nd: 64Mi\ne: \"\"\n\"y\": \"y\"\nf: null\n"
        );
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            any::<String>(),
            "[-+0-9.:_eExob ~#\\[{&*!|>%@`'\"\n\t]{0,8}",
            "(- |\\? |: |# |--- |\\.\\.\\.|\n| ){0,3}[a-z]{0,3}(: | #|\n|:|,| ){0,2}",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            (-1e300_f64..1e300).prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(text.clone(), inner, 0..6)
                    .prop_map(|entries| Value::Object(entries.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_as_the_same(value in any_value()) {
            let text = write(&value);
            prop_assert_eq!(read(&text), Ok(vec![value]), "{}", text);
        }
    }
}
