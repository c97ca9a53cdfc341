//! Manifests in, manifests out: which of their objects have pods, and what becomes of those.
//!
//! YAML with several documents, JSON, and lists of either. A document in which nothing changes is passed on
//! as it is, letter by letter; one that changes keeps all that it says, and the comments before it.

use serde_json::Value;

use super::{Error, Outcome, Owner, Reason, Settings, undo, yaml};

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub enum Task<'a> {
    /// Put sidecars in.
    Inject(&'a Settings),
    /// Take them out again.
    Undo,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The manifests as they are to be applied.
    pub text: String,
    /// What became of each object that has pods, in their order.
    pub told: Vec<Told>,
    /// What keeps this from being applied, each with its place.
    pub mistakes: Vec<String>,
}

/// What became of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its kind and name, as in `Deployment/invoices`.
    pub object: String,
    /// What was done.
    pub done: Done,
}

/// What was done to one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Done {
    /// It has a sidecar, and this is to be known of it.
    Injected(Vec<String>),
    /// It has none.
    LeftAlone(Reason),
    /// It had one.
    Undone,
    /// It had none before.
    Untouched,
}

/// Does `task` to all that is in `text`, which messages call `file`.
#[must_use]
pub fn manifests(task: Task<'_>, file: &str, text: &str) -> Report {
    let mut report = Report::default();
    if text.trim_start().starts_with('{')
        && let Ok(objects) = serde_json::Deserializer::from_str(text)
            .into_iter()
            .collect::<Result<Vec<Value>, _>>()
    {
        report.json(task, file, text, objects);
    } else {
        let mut line = 0;
        for piece in pieces(text) {
            report.yaml(task, file, line, piece);
            line += piece.matches('\n').count();
        }
    }
    report
}

impl Report {
    fn json(&mut self, task: Task<'_>, file: &str, text: &str, objects: Vec<Value>) {
        let (mut written, mut any) = (String::new(), false);
        for mut object in objects {
            any |= self.object(task, file, &mut object);
            written += &format!("{object:#}\n");
        }
        self.text += if any { &written } else { text };
    }

    /// One document, which begins behind so many lines of its file.
    fn yaml(&mut self, task: Task<'_>, file: &str, before: usize, piece: &str) {
        let (head, body) = piece.split_at(head(piece));
        let mut documents = match yaml::read(body) {
            Ok(documents) => documents,
            Err(error) => {
                let line = before + head.matches('\n').count() + error.line;
                self.mistakes.push(format!("{file}:{line}: {}", error.what));
                return;
            }
        };
        let place = format!("{file}:{}", before + head.matches('\n').count() + 1);
        let mut any = false;
        for document in &mut documents {
            any |= self.object(task, &place, document);
        }
        if !any {
            self.text += piece;
            return;
        }
        // A directive is for what was written.
        self.text.extend(
            head.split_inclusive('\n')
                .filter(|line| !line.starts_with('%')),
        );
        let written: Vec<_> = documents.iter().map(yaml::write).collect();
        self.text += &written.join("---\n");
    }

    /// Says whether it changed.
    fn object(&mut self, task: Task<'_>, place: &str, object: &mut Value) -> bool {
        let kind = object["kind"].as_str().unwrap_or_default();
        if kind.ends_with("List") && object["items"].is_array() {
            let items = object.get_mut("items").and_then(Value::as_array_mut);
            let mut any = false;
            for item in items.into_iter().flatten() {
                any |= self.object(task, place, item);
            }
            return any;
        }
        let Some(path) = template(object) else {
            return false;
        };
        let name = object["metadata"]["name"].as_str();
        let name = name.or_else(|| object["metadata"]["generateName"].as_str());
        let name = name.map(ToOwned::to_owned);
        let told = format!("{kind}/{}", name.as_deref().unwrap_or("-"));
        let before = object.clone();
        let done = match object.pointer_mut(path) {
            None => Err(Error::NoPod),
            Some(pod) => one(task, name.as_deref(), pod),
        };
        match done {
            Ok(done) => self.told.push(Told { object: told, done }),
            Err(error) => self.mistakes.push(format!("{place}: {told}: {error}")),
        }
        *object != before
    }
}

fn one(task: Task<'_>, name: Option<&str>, pod: &mut Value) -> Result<Done, Error> {
    match task {
        Task::Inject(settings) => match super::pod(settings, Owner { name }, pod)? {
            Outcome::Injected { notes } => Ok(Done::Injected(notes)),
            Outcome::LeftAlone(reason) => Ok(Done::LeftAlone(reason)),
        },
        Task::Undo => Ok(match undo::undo(pod) {
            true => Done::Undone,
            false => Done::Untouched,
        }),
    }
}

/// Where an object of Kubernetes has its pod, if it is of a kind that has one.
fn template(object: &Value) -> Option<&'static str> {
    let version = object["apiVersion"].as_str()?;
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    match (group, object["kind"].as_str()?) {
        ("", "Pod") => Some(""),
        ("", "ReplicationController")
        | ("apps" | "extensions", "Deployment" | "DaemonSet" | "ReplicaSet" | "StatefulSet")
        | ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

/// The documents of `text`, each with the line `---` that begins it: in YAML that always begins one.
fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let is_marker = |at: usize| {
            let line = &rest[at..];
            line.starts_with("---") && !line[3..].starts_with(|c: char| !c.is_whitespace())
        };
        let mut starts = rest.match_indices('\n').map(|(at, _)| at + 1);
        let end = starts.find(|at| is_marker(*at)).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        Some(piece)
    })
}

/// How long the lines are before the content of a document: its marker, comments, directives, nothing.
fn head(piece: &str) -> usize {
    let lines = piece.split_inclusive('\n').take_while(|line| {
        let line = line.trim();
        line.is_empty()
            || line == "---"
            || line.starts_with(['#', '%'])
            || line.starts_with("--- #")
    });
    lines.map(str::len).sum()
}
