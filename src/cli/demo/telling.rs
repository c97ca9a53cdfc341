//! How is the story told? On a terminal with colour and a line that moves while something works; anywhere
//! else in plain lines that a log can keep.

use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::interval;

/// Where and how it is told.
pub(super) struct Telling {
    /// Nobody listens where there is none.
    to: Option<Box<dyn Write>>,
    look: Look,
}

/// What the reader's end can show.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Whether lines can be written over.
    terminal: bool,
    colour: bool,
    /// Columns.
    width: usize,
}

/// What is being done at the moment, in a few words that change.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<Mutex<String>>);

impl Progress {
    /// Says it.
    pub(super) fn say(&self, words: impl Into<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = words.into();
    }

    fn words(&self) -> String {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

#[derive(Clone, Copy)]
enum Tone {
    Good,
    Bad,
    Quiet,
    Strong,
}

impl Telling {
    /// Tells on stdout.
    pub(super) fn on_stdout() -> Self {
        let stdout = std::io::stdout();
        let look = Look::of(&stdout);
        Self {
            to: Some(Box::new(stdout)),
            look,
        }
    }

    /// Tells on stderr if somebody sits there, because stdout is for the machine.
    pub(super) fn on_the_side() -> Self {
        let stderr = std::io::stderr();
        let look = Look::of(&stderr);
        Self {
            to: look.terminal.then(|| Box::new(stderr) as Box<dyn Write>),
            look,
        }
    }

    /// A title.
    pub(super) fn title(&mut self, text: &str) {
        let text = self.tone(Tone::Strong, text);
        self.line(&format!("\n{text}"));
    }

    /// A paragraph.
    pub(super) fn say(&mut self, text: &str) {
        for line in wrap(text, self.look.width) {
            self.line(&line);
        }
    }

    /// Text as it stands in a file, indented.
    pub(super) fn quote(&mut self, name: &str, text: &str) {
        let name = self.tone(Tone::Quiet, name);
        self.line(&format!("\n    {name}"));
        for line in text.lines() {
            self.line(&format!("    {line}"));
        }
    }

    /// Lines that mean nothing when they are broken: shown where there is room.
    pub(super) fn picture(&mut self, lines: &[&str]) {
        let width = |line: &&str| line.chars().count();
        if lines.iter().map(width).max() <= Some(self.look.width) {
            for line in lines {
                self.line(line);
            }
        }
    }

    /// Something to type or to open, and what for.
    pub(super) fn offer(&mut self, command: &str, purpose: &str) {
        let purpose = self.tone(Tone::Quiet, purpose);
        self.line(&format!("\n  {purpose}\n    {command}"));
    }

    /// Waits for `work`, showing on a terminal that it goes on.
    pub(super) async fn during<T>(
        &mut self,
        name: &str,
        progress: &Progress,
        work: impl Future<Output = T>,
    ) -> T {
        if !self.look.terminal {
            return work.await;
        }
        let mut work = std::pin::pin!(work);
        let mut ticks = interval(TICK);
        let mut frame = 0;
        let done = loop {
            tokio::select! {
                biased;
                done = &mut work => break done,
                _ = ticks.tick() => {
                    frame = (frame + 1) % FRAMES.len();
                    let line = format!("  {} {name:<COLUMN$}{}", FRAMES[frame], progress.words());
                    // A line that wraps could not be written over.
                    let line: String = line.chars().take(self.look.width.saturating_sub(1)).collect();
                    let line = self.tone(Tone::Quiet, &line);
                    self.write(&format!("{ERASE}{line}"));
                }
            }
        };
        self.write(ERASE);
        done
    }

    /// Wipes out the line that moved while something worked.
    pub(super) fn break_off(&mut self) {
        if self.look.terminal {
            self.write(ERASE);
        }
    }

    /// How a step ended: `lines` say what was measured, or what was expected and what happened.
    pub(super) fn step(&mut self, name: &str, ok: bool, lines: &[String]) {
        let tone = if ok { Tone::Good } else { Tone::Bad };
        let mark = match (self.look.terminal, ok) {
            (true, true) => "✓",
            (true, false) => "✗",
            (false, true) => "ok    ",
            (false, false) => "FAILED",
        };
        let indent = 2 + mark.chars().count() + 1;
        let column = if self.look.width < NARROW { 0 } else { COLUMN };
        let room = self.look.width.saturating_sub(indent + column);
        let lines = lines.iter().enumerate().flat_map(|(index, text)| {
            let wrapped = wrap(text, room).into_iter();
            wrapped.map(move |line| (index, line))
        });
        let lines: Vec<_> = lines.collect();
        let (mark, title) = (self.tone(tone, mark), format!("{name:<column$}"));
        let title = self.tone(Tone::Strong, &title);
        let mut lines = lines.into_iter();
        if column == 0 {
            self.line(&format!("  {mark} {title}"));
        } else if let Some((_, first)) = lines.next() {
            self.line(&format!("  {mark} {title}{first}"));
        }
        for (index, line) in lines {
            let line = if index == 0 || !ok {
                line
            } else {
                self.tone(Tone::Quiet, &line)
            };
            self.line(&format!("{:1$}{line}", "", indent + column));
        }
    }

    fn tone(&self, tone: Tone, text: &str) -> String {
        if !self.look.colour || text.trim().is_empty() {
            return text.into();
        }
        let code = match tone {
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Quiet => 2,
            Tone::Strong => 1,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    fn line(&mut self, text: &str) {
        self.write(&format!("{text}\n"));
    }

    /// A reader who has gone away does not stop the demo.
    fn write(&mut self, text: &str) {
        if let Some(to) = &mut self.to {
            let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
        }
    }
}

impl Look {
    fn of(end: &(impl IsTerminal + std::os::fd::AsFd)) -> Self {
        let terminal = end.is_terminal();
        // https://no-color.org: whatever it says, unless it says nothing.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let columns = terminal_size::terminal_size_of(end).map(|(width, _)| width.0.into());
        Self {
            terminal: terminal && !dumb,
            colour: terminal && !dumb && !refused,
            width: columns.unwrap_or(WIDEST).clamp(NARROWEST, WIDEST),
        }
    }
}

/// Breaks `text` so that lines have at most `width` columns: between words, and within those that are
/// longer than a line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let chars: Vec<Vec<char>> = text
        .split_whitespace()
        .map(|word| word.chars().collect())
        .collect();
    let pieces = chars.iter().flat_map(|word| word.chunks(width.max(1)));
    for word in pieces.map(|piece| piece.iter().collect::<String>()) {
        let longer = line.chars().count() + 1 + word.chars().count();
        if !line.is_empty() && longer > width {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    lines.push(line);
    lines
}

/// A length of time as people read it, with three digits.
pub(super) fn time(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    match ms {
        _ if ms < 9.995 => format!("{ms:.2} ms"),
        _ if ms < 99.95 => format!("{ms:.1} ms"),
        _ if ms < 999.5 => format!("{ms:.0} ms"),
        _ => format!("{:.1} s", ms / 1e3),
    }
}

/// A count or an amount with its noun.
pub(super) fn several(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

const FRAMES: [&str; 4] = ["|", "/", "-", "\\"];
const TICK: Duration = Duration::from_millis(120);
/// To the line's beginning, and away with what stands there.
const ERASE: &str = "\r\x1b[2K";
/// The width of the column with the steps' names.
const COLUMN: usize = 18;
/// Below this there is no such column.
const NARROW: usize = 60;
const NARROWEST: usize = 20;
const WIDEST: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    const PIPE: Look = Look {
        terminal: false,
        colour: false,
        width: 100,
    };
    const TERMINAL: Look = Look {
        terminal: true,
        colour: true,
        width: 72,
    };

    async fn told(look: Look) -> String {
        let page = Page::default();
        let mut telling = Telling {
            to: Some(Box::new(page.clone())),
            look,
        };
        telling.title("Two applications");
        let progress = Progress::default();
        progress.say("asking a question that would be far too long for the line of this terminal");
        let work = tokio::time::sleep(TICK * 3);
        telling.during("allowed", &progress, work).await;
        let lines = [
            "GET was answered in 2 ms".into(),
            "granted by somebody".into(),
        ];
        telling.step("allowed", true, &lines);
        telling.step("denied", false, &["expected 403, got 200".into()]);
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipe_gets_plain_lines() {
        let text = told(PIPE).await;
        let expected = "\nTwo applications\n\
                        \x20 ok     allowed           GET was answered in 2 ms\n\
                        \x20                          granted by somebody\n\
                        \x20 FAILED denied            expected 403, got 200\n";
        assert_eq!(text, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_terminal_shows_that_something_works_and_forgets_it() {
        let text = told(TERMINAL).await;
        let drawn = text.split(ERASE);
        let moving: Vec<_> = drawn.filter(|line| line.contains("asking")).collect();
        assert!(moving.len() >= 3, "{text:?}");
        for line in moving {
            let plain = line.replace("\x1b[2m", "").replace("\x1b[0m", "");
            assert!(plain.chars().count() < TERMINAL.width, "{plain}");
            assert!(!plain.contains('\n'), "{plain}");
        }
        let rest = text.rsplit(ERASE).next().unwrap();
        assert!(
            rest.starts_with("  \x1b[32m✓\x1b[0m \x1b[1mallowed"),
            "{rest:?}"
        );
        assert!(rest.contains("\x1b[31m✗\x1b[0m"), "{rest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_terminal_without_colour_gets_none() {
        let look = Look {
            colour: false,
            ..TERMINAL
        };
        let text = told(look).await.replace(ERASE, "");
        assert!(!text.contains('\x1b'), "{text:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn lines_are_broken_to_fit() {
        for width in [30, 59, 60, 80] {
            let look = Look { width, ..PIPE };
            for line in told(look).await.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
            }
        }
        assert_eq!(wrap("a bc d", 4), ["a bc", "d"]);
        assert_eq!(wrap("longer than", 4), ["long", "er", "than"]);
        assert_eq!(wrap("", 3), [""]);
    }

    #[test]
    fn times_have_three_digits() {
        for (micros, expected) in [
            (0, "0.00 ms"),
            (1_234, "1.23 ms"),
            (9_996, "10.0 ms"),
            (99_960, "100 ms"),
            (999_600, "1.0 s"),
            (12_345_678, "12.3 s"),
        ] {
            assert_eq!(time(Duration::from_micros(micros)), expected);
        }
    }
}
