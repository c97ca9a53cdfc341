//! What did the operator write, and where? YAML in; typed values, or every mistake at once, out.
//!
//! A module reads its own settings from a [`Node`]. A reader that cannot make sense of what it finds
//! says so with [`Node::mistake`] and returns `None`; reading goes on, so that one run shows every
//! mistake with its line and key. Keys that nobody asked for are mistakes too.

use std::cell::RefCell;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::net::SocketAddr;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use saphyr::{LoadableYamlNode, MarkedYaml, ScanError, YamlData, YamlLoader};
use saphyr_parser::{Event, Marker, Parser, SpannedEventReceiver as _};

/// One YAML file as read, and the mistakes found in it so far.
#[derive(Debug)]
pub struct Document {
    name: String,
    text: String,
    is_ascii: bool,
    mistakes: RefCell<Vec<Mistake>>,
}

impl Document {
    /// Takes `text`, read from the file that messages call `name`.
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            name: name.into(),
            is_ascii: text.is_ascii(),
            text,
            mistakes: RefCell::default(),
        }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    /// One mistake, naming the path, if the file cannot be read or is not UTF-8.
    pub fn open(path: &Path) -> Result<Self, Mistakes> {
        let name = path.display().to_string();
        let mut text = String::new();
        let read = File::open(path)
            // One byte more, so that what is too long shows.
            .and_then(|file| file.take(LONGEST + 1).read_to_string(&mut text));
        match read {
            Ok(_) => Ok(Self::new(name, text)),
            Err(error) => {
                let document = Self::new(name, "");
                document.record(Mistake {
                    key: String::new(),
                    message: format!("cannot read this file: {error}"),
                    help: None,
                    at: 0..0,
                });
                Err(document.into_mistakes())
            }
        }
    }

    /// Reads the whole document with `read`.
    ///
    /// # Errors
    /// Every mistake found, in the order of their places.
    pub fn read<T>(self, read: impl FnOnce(Node<'_>) -> Option<T>) -> Result<T, Mistakes> {
        let value = match load(&self.text) {
            Ok(tree) => {
                let empty;
                let yaml = match tree.first() {
                    Some(yaml) => yaml,
                    None => {
                        empty = MarkedYaml::from_bare_yaml(saphyr::Yaml::Mapping(
                            saphyr::Mapping::default(),
                        ));
                        &empty
                    }
                };
                let root = Node {
                    document: &self,
                    yaml,
                    key: String::new(),
                };
                if let Some(second) = tree.get(1) {
                    self.record(Mistake {
                        key: String::new(),
                        message: "a second YAML document begins here; one is read".into(),
                        help: Some("remove the line `---` and what follows it".into()),
                        at: self.bytes(second.span),
                    });
                }
                read(root)
            }
            Err(error) => {
                let at = self.byte(error.marker().index());
                self.record(Mistake {
                    key: String::new(),
                    message: format!("not valid YAML: {}", error.info()),
                    help: None,
                    at: at..at,
                });
                None
            }
        };
        match value {
            Some(value) if self.mistakes.borrow().is_empty() => Ok(value),
            _ => Err(self.into_mistakes()),
        }
    }

    fn record(&self, mistake: Mistake) {
        self.mistakes.borrow_mut().push(mistake);
    }

    fn into_mistakes(self) -> Mistakes {
        let mut list = self.mistakes.into_inner();
        list.sort_by_key(|mistake| mistake.at.start);
        // However many there are, the text is there once and is walked through once.
        let text: Arc<str> = self.text.into();
        let source = miette::NamedSource::new(&self.name, text.clone()).with_language("yaml");
        let (mut line, mut from) = (1, 0);
        let mut placed = |mistake: Mistake| {
            let at = mistake.at.start;
            line += text[from..at].matches('\n').count();
            from = at;
            Placed {
                line,
                quoted: source.clone(),
                file: self.name.clone(),
                mistake,
            }
        };
        let list = list.into_iter().map(&mut placed).collect();
        Mistakes { list }
    }

    /// The parser counts characters, everybody else bytes.
    fn byte(&self, character: usize) -> usize {
        if self.is_ascii {
            return character.min(self.text.len());
        }
        self.text
            .char_indices()
            .nth(character)
            .map_or(self.text.len(), |(byte, _)| byte)
    }

    fn bytes(&self, span: saphyr_parser::Span) -> Range<usize> {
        let start = self.byte(span.start.index());
        let end = self.byte(span.end.index()).max(start);
        // A block's span runs up to the next token: show its first line only.
        let text = &self.text[start..end];
        let text = text.lines().next().unwrap_or_default().trim_end();
        start..start + text.len()
    }
}

/// Scalars stay as written: `id: 007` is the text `007`.
///
/// Whatever comes of a node is done by functions that call themselves for what is in it, the parser's own
/// included, so the depth is watched here.
fn load(text: &str) -> Result<Vec<MarkedYaml<'_>>, ScanError> {
    if text.len() as u64 > LONGEST {
        let why = format!("it is longer than {} MiB", LONGEST >> 20);
        return Err(ScanError::new(Marker::default(), why));
    }
    let mut loader = YamlLoader::default();
    loader.early_parse(false);
    let mut depth = 0_usize;
    for event in Parser::new_from_str(text) {
        let (event, span) = event?;
        match event {
            Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
            Event::SequenceEnd | Event::MappingEnd => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            let why = format!("lists and keys within each other, more than {DEEPEST} deep");
            return Err(ScanError::new(span.start, why));
        }
        loader.on_event(event, span);
        if let Some(error) = loader.error() {
            return Err(error.clone());
        }
    }
    Ok(loader.into_documents())
}

/// In bytes: a registry of a hundred thousand workloads is shorter.
const LONGEST: u64 = 32 << 20;

/// Nothing that is read anywhere is deeper than a dozen.
const DEEPEST: usize = 64;

/// One value in a [`Document`], with its key path.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    document: &'a Document,
    yaml: &'a MarkedYaml<'a>,
    key: String,
}

impl<'a> Node<'a> {
    /// Records a mistake at this value. `help` says what to write instead. Always `None`, so that a
    /// reader can end with it.
    pub fn mistake<T>(&self, message: impl fmt::Display, help: Option<&str>) -> Option<T> {
        self.document.record(Mistake {
            key: self.key.clone(),
            message: message.to_string(),
            help: help.map(Into::into),
            at: self.document.bytes(self.yaml.span),
        });
        None
    }

    /// The value at `key` of a mapping, to place a mistake on that shows later. Nothing is asked for by this.
    #[must_use]
    pub fn under(&self, key: &str) -> Option<Self> {
        let YamlData::Mapping(entries) = &self.yaml.data else {
            return None;
        };
        let (_, yaml) = entries.iter().find(|(name, _)| scalar(name) == Some(key))?;
        Some(Self {
            document: self.document,
            yaml,
            key: path_of(&self.key, key),
        })
    }

    /// The path of keys that leads here, as in `inbound[0].listen`.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The line this value starts on, counted from 1.
    #[must_use]
    pub fn line(&self) -> usize {
        self.yaml.span.start.line()
    }

    /// Whether a mapping stands here (and not a scalar or a list).
    #[must_use]
    pub fn is_section(&self) -> bool {
        matches!(self.yaml.data, YamlData::Mapping(_))
    }

    /// Whether a list stands here.
    #[must_use]
    pub fn is_list(&self) -> bool {
        matches!(self.yaml.data, YamlData::Sequence(_))
    }

    /// This value as a mapping whose keys are asked for one by one.
    #[must_use]
    pub fn section(&self) -> Option<Section<'a>> {
        match &self.yaml.data {
            YamlData::Mapping(entries) => {
                let mut list = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    match scalar(key) {
                        Some(name) => list.push((name, key, value)),
                        None => {
                            Node {
                                yaml: key,
                                ..self.clone()
                            }
                            .mistake::<()>("a key must be plain text", None);
                        }
                    }
                }
                Some(Section {
                    node: self.clone(),
                    entries: list,
                    asked: Vec::new(),
                })
            }
            _ => self.mistake(
                format_args!("expected keys with values here, found {}", self.shape()),
                None,
            ),
        }
    }

    /// This value as a list, each item read by `read`. `None` if any item is wrong.
    #[must_use]
    pub fn list<T>(&self, mut read: impl FnMut(Node<'a>) -> Option<T>) -> Option<Vec<T>> {
        match &self.yaml.data {
            YamlData::Sequence(items) => {
                let read: Vec<Option<T>> = items
                    .iter()
                    .enumerate()
                    .map(|(index, yaml)| {
                        read(Node {
                            document: self.document,
                            yaml,
                            key: format!("{}[{index}]", self.key),
                        })
                    })
                    .collect();
                read.into_iter().collect()
            }
            _ => self.mistake(
                format_args!("expected a list here, found {}", self.shape()),
                Some("write one item a line, each behind `- `"),
            ),
        }
    }

    /// This value as a mapping of free keys, each value read by `read`.
    #[must_use]
    pub fn map<T>(&self, mut read: impl FnMut(Node<'a>) -> Option<T>) -> Option<Vec<(String, T)>> {
        let mut section = self.section()?;
        let names: Vec<String> = section
            .entries
            .iter()
            .map(|entry| entry.0.to_owned())
            .collect();
        let read: Vec<Option<(String, T)>> = names
            .into_iter()
            .map(|name| {
                let value = section.get(&name)?;
                Some((name, read(value)?))
            })
            .collect();
        read.into_iter().collect()
    }

    /// This value as one item or a list of them.
    #[must_use]
    pub fn one_or_more<T>(&self, mut read: impl FnMut(Node<'a>) -> Option<T>) -> Option<Vec<T>> {
        if self.is_list() {
            let items = self.list(read)?;
            if items.is_empty() {
                return self.mistake("at least one item is needed", None);
            }
            Some(items)
        } else {
            Some(vec![read(self.clone())?])
        }
    }

    /// This value as text; empty text is a mistake.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        match scalar(self.yaml) {
            Some("") => self.mistake("a value is missing here", None),
            Some(text) => Some(text),
            None => self.mistake(
                format_args!("expected a single value here, found {}", self.shape()),
                None,
            ),
        }
    }

    /// This value through [`FromStr`]; the error's text becomes the message.
    #[must_use]
    pub fn parse<T: FromStr<Err: fmt::Display>>(&self) -> Option<T> {
        let text = self.text()?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => self.mistake(format_args!("`{text}`: {error}"), None),
        }
    }

    /// This value as an IP address with a port.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        let text = self.text()?;
        match text.parse() {
            Ok(address) => Some(address),
            Err(_) => self.mistake(
                format_args!("`{text}` is not an IP address with a port"),
                Some("write for example `127.0.0.1:8080` or `[::1]:8080`"),
            ),
        }
    }

    /// This value as a path.
    #[must_use]
    pub fn path(&self) -> Option<PathBuf> {
        self.text().map(PathBuf::from)
    }

    /// This value as a length of time, which must lie in `range`.
    #[must_use]
    pub fn duration(&self, range: RangeInclusive<Duration>) -> Option<Duration> {
        let text = self.text()?;
        let help = Some("write a number with its unit, for example `500ms`, `10s`, `5m`, `25h`");
        match humantime::parse_duration(text) {
            Ok(value) if range.contains(&value) => Some(value),
            Ok(_) => self.mistake(
                format_args!(
                    "`{text}` is out of range: from {} to {}",
                    humantime::format_duration(*range.start()),
                    humantime::format_duration(*range.end())
                ),
                None,
            ),
            Err(_) => self.mistake(format_args!("`{text}` is not a length of time"), help),
        }
    }

    /// This value as a whole number, which must lie in `range`.
    #[must_use]
    pub fn count(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text()?;
        match text.parse() {
            Ok(value) if range.contains(&value) => Some(value),
            Ok(_) => self.mistake(
                format_args!(
                    "{text} is out of range: from {} to {}",
                    range.start(),
                    range.end()
                ),
                None,
            ),
            Err(_) => self.mistake(format_args!("`{text}` is not a whole number"), None),
        }
    }

    /// This value as an amount of bytes, which must lie in `range`.
    #[must_use]
    pub fn bytes(&self, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text()?;
        let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
            Some(end) => (&text[..end], text[end..].trim_start()),
            None => (text, ""),
        };
        let shift = match unit {
            "KiB" => Some(10),
            "MiB" => Some(20),
            "GiB" => Some(30),
            _ => None,
        };
        let value = shift.and_then(|shift| number.parse::<u64>().ok()?.checked_mul(1 << shift));
        match value {
            Some(value) if range.contains(&value) => Some(value),
            Some(_) => self.mistake(
                format_args!(
                    "`{text}` is out of range: from {} to {} bytes",
                    range.start(),
                    range.end()
                ),
                None,
            ),
            None => self.mistake(
                format_args!("`{text}` is not an amount of bytes"),
                Some(
                    "write a whole number with its unit, for example `64 KiB`, `100 MiB`, `2 GiB`",
                ),
            ),
        }
    }

    /// This value as `true` or `false`.
    #[must_use]
    pub fn flag(&self) -> Option<bool> {
        self.choice(&[("true", true), ("false", false)])
    }

    /// This value as one of a closed set of words.
    #[must_use]
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        match choices.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(*value),
            None => {
                let words: Vec<_> = choices
                    .iter()
                    .map(|(word, _)| format!("`{word}`"))
                    .collect();
                self.mistake(
                    format_args!("`{text}` is not known here"),
                    Some(&format!("write one of {}", words.join(", "))),
                )
            }
        }
    }

    fn shape(&self) -> &'static str {
        match &self.yaml.data {
            YamlData::Sequence(_) => "a list",
            YamlData::Mapping(_) => "keys with values",
            _ => match scalar(self.yaml) {
                Some("") | None => "nothing",
                Some(_) => "a single value",
            },
        }
    }
}

/// A mapping being read. When it is dropped, keys nobody asked for become mistakes.
#[derive(Debug)]
pub struct Section<'a> {
    node: Node<'a>,
    entries: Vec<(&'a str, &'a MarkedYaml<'a>, &'a MarkedYaml<'a>)>,
    asked: Vec<String>,
}

impl<'a> Section<'a> {
    /// The mapping itself, to place a mistake on.
    #[must_use]
    pub fn node(&self) -> &Node<'a> {
        &self.node
    }

    /// The value at `key`, if the operator wrote one.
    pub fn get(&mut self, key: &str) -> Option<Node<'a>> {
        self.asked.push(key.to_owned());
        let (_, _, yaml) = self.entries.iter().find(|(name, _, _)| *name == key)?;
        Some(Node {
            document: self.node.document,
            yaml,
            key: self.path_of(key),
        })
    }

    /// Reads `key`; its absence is a mistake.
    pub fn required<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(Node<'a>) -> Option<T>,
    ) -> Option<T> {
        match self.get(key) {
            Some(node) => read(node),
            None => self
                .node
                .mistake(format_args!("the key `{key}` is missing"), None),
        }
    }

    /// Reads `key`, or takes `default` where the operator wrote none. `None` only after a mistake.
    pub fn or<T>(
        &mut self,
        key: &str,
        default: T,
        read: impl FnOnce(Node<'a>) -> Option<T>,
    ) -> Option<T> {
        match self.get(key) {
            Some(node) => read(node),
            None => Some(default),
        }
    }

    /// Reads `key` where the operator wrote it: `Some(None)` means absent, `None` a mistake.
    pub fn optional<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(Node<'a>) -> Option<T>,
    ) -> Option<Option<T>> {
        match self.get(key) {
            Some(node) => read(node).map(Some),
            None => Some(None),
        }
    }

    fn path_of(&self, key: &str) -> String {
        path_of(&self.node.key, key)
    }
}

fn path_of(section: &str, key: &str) -> String {
    match section {
        "" => key.to_owned(),
        _ => format!("{section}.{key}"),
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for (name, key, _) in &self.entries {
            if self.asked.iter().any(|asked| asked == name) {
                continue;
            }
            let nearest = self
                .asked
                .iter()
                .map(|asked| (distance(asked, name), asked))
                .min()
                .filter(|(distance, _)| *distance <= 2);
            let help = match nearest {
                Some((_, asked)) => format!("did you mean `{asked}`?"),
                None => format!("known here: {}", self.asked.join(", ")),
            };
            Node {
                document: self.node.document,
                yaml: key,
                key: self.path_of(name),
            }
            .mistake::<()>("unknown key", Some(&help));
        }
    }
}

fn scalar<'a>(yaml: &'a MarkedYaml<'_>) -> Option<&'a str> {
    match &yaml.data {
        YamlData::Representation(text, style, None) => {
            let plain_null =
                *style == saphyr::ScalarStyle::Plain && (text == "~" || text == "null");
            Some(if plain_null { "" } else { text })
        }
        _ => None,
    }
}

/// Edit distance, for "did you mean".
pub(crate) fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[derive(Clone, Debug)]
struct Mistake {
    key: String,
    message: String,
    help: Option<String>,
    at: Range<usize>,
}

/// Every mistake in one file. Shown with the source quoted, through [`miette`].
#[derive(Debug, thiserror::Error)]
#[error("{}", self.list.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes {
    list: Vec<Placed>,
}

impl Mistakes {
    /// The mistakes one by one, each a diagnostic of its own.
    pub fn diagnostics(&self) -> impl Iterator<Item = &(dyn miette::Diagnostic + Send + Sync)> {
        self.list.iter().map(|placed| placed as _)
    }
}

#[derive(Clone, Debug, thiserror::Error)]
#[error("{file}:{line}: {}{}", if mistake.key.is_empty() { String::new() } else { format!("{}: ", mistake.key) }, mistake.message)]
struct Placed {
    mistake: Mistake,
    line: usize,
    file: String,
    quoted: miette::NamedSource<Arc<str>>,
}

impl miette::Diagnostic for Placed {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.mistake.help.as_ref().map(|help| Box::new(help) as _)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        (!self.quoted.inner().is_empty()).then_some(&self.quoted as _)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = miette::LabeledSpan> + '_>> {
        let span = miette::LabeledSpan::underline(self.mistake.at.clone());
        Some(Box::new(std::iter::once(span)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Example {
        listen: SocketAddr,
        grace: Duration,
        names: Vec<String>,
    }

    #[test]
    fn what_is_too_deep_or_too_long_is_told_before_anything_is_made_of_it() {
        for (text, told) in [
            ("[".repeat(100_000), ""),
            ("- ".repeat(100_000), "lists and keys within each other"),
            ("{a: ".repeat(100_000), ""),
            (" ".repeat(33 << 20), "it is longer than 32 MiB"),
        ] {
            let told = format!("a.yaml:1: not valid YAML: {told}");
            let found = example(&text).unwrap_err();
            assert!(found.starts_with(&told), "{found}");
        }
        let levels = format!(
            "listen: {}1{}",
            "[".repeat(DEEPEST - 1),
            "]".repeat(DEEPEST - 1)
        );
        assert!(example(&levels).unwrap_err().contains("found a list"));
    }

    #[test]
    fn ten_thousand_mistakes_are_told_each_in_its_line() {
        let text: String = (0..10_000)
            .map(|number| format!("k{number}: {number}\n"))
            .collect();
        let told = example(&text).unwrap_err();
        let lines: Vec<_> = told.lines().collect();
        assert_eq!(lines.len(), 10_001, "the missing key is one more");
        assert!(lines[0].starts_with("a.yaml:1: the key `listen`"));
        assert!(lines[10_000].starts_with("a.yaml:10000: k9999: unknown key"));
    }

    fn example(text: &str) -> Result<Example, String> {
        Document::new("a.yaml", text)
            .read(|node| {
                let mut section = node.section()?;
                let listen = section.required("listen", |node| node.address());
                let grace = section.or("grace", Duration::from_secs(5), |node| {
                    node.duration(Duration::ZERO..=Duration::from_secs(60))
                });
                let names = section.or("names", Vec::new(), |node| {
                    node.one_or_more(|node| node.text().map(Into::into))
                });
                Some(Example {
                    listen: listen?,
                    grace: grace?,
                    names: names?,
                })
            })
            .map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn defaults_fill_what_is_not_written() {
        let read = example("listen: 127.0.0.1:1\nnames: [a, 007]").unwrap();
        assert_eq!(read.grace, Duration::from_secs(5));
        assert_eq!(read.names, ["a", "007"]);
    }

    #[test]
    fn every_mistake_is_told_at_once_with_line_and_key() {
        let told = example("listen: nowhere\ngrace: 5\nnmaes: x\n").unwrap_err();
        assert_eq!(
            told,
            "a.yaml:1: listen: `nowhere` is not an IP address with a port\n\
             a.yaml:2: grace: `5` is not a length of time\n\
             a.yaml:3: nmaes: unknown key"
        );
    }

    #[test]
    fn broken_documents_are_told_with_their_line() {
        for (text, told) in [
            ("listen: [", "a.yaml:1: not valid YAML"),
            (
                "listen: a\nlisten: b",
                "a.yaml:2: not valid YAML: duplicated key",
            ),
            ("", "a.yaml:1: the key `listen` is missing"),
            (
                "- a",
                "a.yaml:1: expected keys with values here, found a list",
            ),
            (
                "listen: 127.0.0.1:1\n---\na: b",
                "a.yaml:3: a second YAML document",
            ),
            ("listen:", "a.yaml:1: listen: a value is missing here"),
        ] {
            let error = example(text).unwrap_err();
            assert!(error.starts_with(told), "{text:?}: {error}");
        }
    }

    #[test]
    fn amounts_of_bytes_have_a_unit() {
        for (text, expected) in [
            ("64 KiB", Ok(64 << 10)),
            ("100MiB", Ok(100 << 20)),
            ("2 GiB", Ok(2 << 30)),
            ("100", Err("a.yaml:1: `100` is not an amount of bytes")),
            ("KiB", Err("a.yaml:1: `KiB` is not an amount of bytes")),
            ("1 MB", Err("a.yaml:1: `1 MB` is not an amount of bytes")),
            (
                "99999999999999 GiB",
                Err("a.yaml:1: `99999999999999 GiB` is not an amount of bytes"),
            ),
            (
                "1 KiB",
                Err("a.yaml:1: `1 KiB` is out of range: from 2048 to 4294967296 bytes"),
            ),
        ] {
            let read = Document::new("a.yaml", text).read(|node| node.bytes(2048..=1 << 32));
            let read = read.map_err(|mistakes| mistakes.to_string());
            assert_eq!(read, expected.map_err(str::to_owned), "{text}");
        }
    }

    #[test]
    fn edit_distance_counts_single_changes() {
        assert_eq!(distance("listen", "listen"), 0);
        assert_eq!(distance("names", "nmaes"), 2);
        assert_eq!(distance("", "abc"), 3);
    }
}
