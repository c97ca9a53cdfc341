//! What does a sidecar get that its pod says nothing about?

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::document::{Document, Mistakes, Node, Section};

/// What whoever installs Doorward decides for all pods; their annotations say otherwise where they may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The sidecar's image.
    pub image: String,
    /// The image that makes the packet filter's rules, which needs `nft`; without one, the sidecar's.
    pub intercept_image: Option<String>,
    /// When images are pulled, in Kubernetes' words; without it, as Kubernetes does.
    pub pull_policy: Option<String>,
    /// Where identities come from.
    pub identity: Identity,
    /// Whether connections are led to the sidecar by the packet filter.
    pub intercept: bool,
    /// The user and group that the sidecar runs as, by number.
    pub user: u32,
    /// The ConfigMap with policies, where a pod names none.
    pub policy: Option<String>,
    /// What the sidecar may use.
    pub resources: Resources,
    /// For how long an application still serves after its pod was told to stop, so that everybody has
    /// learned that it goes.
    pub stop_delay: Duration,
}

/// Where a sidecar in a pod gets its identity from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// SPIRE's Workload API, through the CSI driver `csi.spiffe.io`.
    SpiffeCsi,
    /// Files of cert-manager's CSI driver `spiffe.csi.cert-manager.io`.
    CertManager,
    /// A Workload API socket of the node, at this path.
    Socket(PathBuf),
}

/// In Kubernetes' words, as in `50m` and `64Mi`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    /// What it is sure to get.
    pub cpu_request: String,
    /// And at most. It has as many workers as this has whole CPUs, and one at least.
    pub cpu_limit: String,
    /// What it is sure to get.
    pub memory_request: String,
    /// It is killed above this.
    pub memory_limit: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: format!("doorward:{}", env!("CARGO_PKG_VERSION")),
            intercept_image: None,
            pull_policy: None,
            identity: Identity::SpiffeCsi,
            intercept: true,
            user: 2102,
            policy: None,
            resources: Resources::default(),
            stop_delay: Duration::from_secs(5),
        }
    }
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu_request: "50m".into(),
            cpu_limit: "1".into(),
            memory_request: "32Mi".into(),
            memory_limit: "128Mi".into(),
        }
    }
}

impl Settings {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// Every mistake in it, with line and key.
    pub fn open(path: &Path) -> Result<Self, Mistakes> {
        Document::open(path)?.read(|node| Self::read(&node))
    }

    /// Reads what a file says.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        Self::read_from(&mut node.section()?)
    }

    /// The same of a file that says more.
    pub(crate) fn read_from(section: &mut Section<'_>) -> Option<Self> {
        let default = Self::default();
        let image = section.or("image", default.image, |node| Some(node.text()?.into()));
        let intercept_image =
            section.optional("intercept_image", |node| Some(node.text()?.to_owned()));
        let pull_policy = section.optional("pull_policy", |node| {
            let words = PULL_POLICIES.map(|word| (word, word));
            Some(node.choice(&words)?.to_owned())
        });
        let identity = section.or("identity", default.identity, |node| node.parse());
        let intercept = section.or("intercept", default.intercept, |node| node.flag());
        let user = section.or("user", default.user, |node| {
            u32::try_from(node.count(1..=u64::from(MOST_USER))?).ok()
        });
        let policy = section.optional("policy", |node| Some(node.text()?.to_owned()));
        let resources = section.or("resources", default.resources, |node| {
            Resources::read(&node)
        });
        let stop_delay = section.or("stop_delay", default.stop_delay, |node| {
            node.duration(Duration::ZERO..=MOST_STOP_DELAY)
        });
        Some(Self {
            image: image?,
            intercept_image: intercept_image?,
            pull_policy: pull_policy?,
            identity: identity?,
            intercept: intercept?,
            user: user?,
            policy: policy?,
            resources: resources?,
            stop_delay: stop_delay?,
        })
    }
}

impl Resources {
    fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let default = Self::default();
        let quantity = |node: Node<'_>| match is_quantity(node.text()?) {
            true => Some(node.text()?.to_owned()),
            false => node.mistake("this is no quantity of Kubernetes", Some(QUANTITY_HELP)),
        };
        let cpu_request = section.or("cpu_request", default.cpu_request, quantity);
        let cpu_limit = section.or("cpu_limit", default.cpu_limit, quantity);
        let memory_request = section.or("memory_request", default.memory_request, quantity);
        let memory_limit = section.or("memory_limit", default.memory_limit, quantity);
        Some(Self {
            cpu_request: cpu_request?,
            cpu_limit: cpu_limit?,
            memory_request: memory_request?,
            memory_limit: memory_limit?,
        })
    }
}

impl FromStr for Identity {
    type Err = SocketError;

    fn from_str(text: &str) -> Result<Self, SocketError> {
        match text {
            "spiffe-csi" => Ok(Self::SpiffeCsi),
            "cert-manager" => Ok(Self::CertManager),
            _ => {
                let path = text.strip_prefix("unix://").ok_or(SocketError)?;
                let path = PathBuf::from(path);
                // It is mounted by its directory, so that an agent that starts anew is found again.
                let has_both = path.is_absolute()
                    && path.file_name().is_some()
                    && path.parent().is_some_and(|dir| dir != Path::new("/"));
                has_both.then_some(Self::Socket(path)).ok_or(SocketError)
            }
        }
    }
}

/// The text names no source of identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "write `spiffe-csi`, `cert-manager`, or the socket of an agent on the node in a directory of its own, as in `unix:///run/spire/agent.sock`"
)]
pub struct SocketError;

/// Whether Kubernetes takes `text` for a quantity above nothing.
pub(super) fn is_quantity(text: &str) -> bool {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let units = ["", "m", "k", "M", "G", "Ki", "Mi", "Gi"];
    number.parse().is_ok_and(|number: f64| number > 0.0) && units.contains(&unit)
}

pub(super) const QUANTITY_HELP: &str =
    "write for example `50m` or `0.5` for CPUs, `64Mi` for memory";

/// Kubernetes' words.
pub(super) const PULL_POLICIES: [&str; 3] = ["Always", "IfNotPresent", "Never"];

/// The last one that is a user.
pub(super) const MOST_USER: u32 = u32::MAX - 1;

/// No balancer takes longer to learn of it.
pub(super) const MOST_STOP_DELAY: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, String> {
        let read = Document::new("inject.yaml", text).read(|node| Settings::read(&node));
        read.map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn what_is_not_written_is_the_default() {
        assert_eq!(read(""), Ok(Settings::default()));
        let some = read("image: a/b:1\nidentity: unix:///run/spire/agent.sock\nintercept: false\nresources: { cpu_limit: 500m }").unwrap();
        assert_eq!(
            some.identity,
            Identity::Socket("/run/spire/agent.sock".into())
        );
        assert_eq!((some.image.as_str(), some.intercept), ("a/b:1", false));
        assert_eq!(some.resources.cpu_limit, "500m");
        assert_eq!(some.resources.memory_limit, "128Mi");
    }

    #[test]
    fn every_mistake_has_its_message() {
        for (text, message) in [
            (
                "identity: vault",
                "1: identity: `vault`: write `spiffe-csi`",
            ),
            (
                "identity: unix:///agent.sock",
                "1: identity: `unix:///agent.sock`: write",
            ),
            ("user: 0", "1: user: 0 is out of range"),
            (
                "pull_policy: always",
                "1: pull_policy: `always` is not known here",
            ),
            (
                "resources: { cpu_limit: lots }",
                "1: resources.cpu_limit: this is no quantity",
            ),
            ("stop_delay: 1h", "1: stop_delay: `1h` is out of range"),
            ("imag: x", "1: imag: unknown key"),
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains(message), "{text}\n{told}");
        }
    }

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for text in ["50m", "0.5", "1", "64Mi", "1G"] {
            assert!(is_quantity(text), "{text}");
        }
        for text in ["", "m", "0", "64MB", "-1", "1 Gi", "64mi"] {
            assert!(!is_quantity(text), "{text}");
        }
    }
}
