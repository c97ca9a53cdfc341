//! Which identities may a caller have? Registration entries, as the operator wrote them.

use std::path::PathBuf;
use std::time::Duration;

use crate::document::Node;
use crate::identity::{SpiffeId, TrustDomain};

use super::attest::{Caller, Digest};

/// All registration entries, in the order in which they were written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registry {
    entries: Vec<Entry>,
}

/// One registration entry: this identity for whoever has all these properties.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) id: SpiffeId,
    pub(crate) selectors: Selectors,
    /// How long an SVID lives from the moment it is issued.
    pub(crate) lifetime: Duration,
    /// When it is replaced, counted from the same moment.
    pub(crate) rotate_every: Duration,
    /// Tells the workload what the identity is for, where it has several.
    pub(crate) hint: String,
}

/// What a caller must be. All that is given must hold.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Selectors {
    uid: Option<u32>,
    gid: Option<u32>,
    path: Option<PathBuf>,
    sha256: Option<Digest>,
}

/// An hour.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(3600);
const SHORTEST_LIFETIME: Duration = Duration::from_secs(1);
const SHORTEST_ROTATION: Duration = Duration::from_millis(100);

impl Registry {
    /// Reads the list `entries`. Without `domain`, because it was mistaken itself, all other mistakes
    /// are still found. No entry may outlive `longest`, the life of the CA.
    pub(crate) fn read(
        node: &Node<'_>,
        domain: Option<&TrustDomain>,
        longest: Duration,
    ) -> Option<Self> {
        let mut seen: Vec<(usize, Entry)> = Vec::new();
        let entries = node.list(|node| {
            let entry = Entry::read(&node, domain, longest)?;
            let twin = seen
                .iter()
                .find(|(_, other)| other.id == entry.id && other.selectors == entry.selectors);
            if let Some((line, _)) = twin {
                return node.mistake(
                    format_args!("the entry in line {line} has the same id and selectors"),
                    Some("remove one of them"),
                );
            }
            seen.push((node.line(), entry.clone()));
            Some(entry)
        })?;
        Some(Self { entries })
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry, so that nobody is issued anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries that are for `caller`: the first one for each identity.
    pub(crate) async fn matching(&self, caller: &Caller) -> Vec<Entry> {
        let needs_digest = |entry: &Entry| entry.selectors.sha256.is_some();
        if self.entries.iter().any(needs_digest) {
            caller.hash().await;
        }
        let mut found: Vec<Entry> = Vec::new();
        for entry in &self.entries {
            let known = found.iter().any(|other| other.id == entry.id);
            if !known && entry.selectors.hold(caller) {
                found.push(entry.clone());
            }
        }
        found
    }
}

impl Entry {
    fn read(node: &Node<'_>, domain: Option<&TrustDomain>, longest: Duration) -> Option<Self> {
        let mut section = node.section()?;
        let id = section.required("id", |node| read_id(&node, domain));
        let selectors = section.required("selectors", |node| Selectors::read(&node));
        let lifetime = section.or("lifetime", DEFAULT_LIFETIME.min(longest), |node| {
            node.duration(SHORTEST_LIFETIME..=longest)
        });
        let rotate_every = section.optional("rotate_every", |node| {
            let every = node.duration(SHORTEST_ROTATION..=longest)?;
            match lifetime {
                Some(lifetime) if every >= lifetime => node.mistake(
                    format_args!(
                        "`rotate_every` must be shorter than the lifetime, {}",
                        humantime::format_duration(lifetime)
                    ),
                    Some("leave it out for half of the lifetime"),
                ),
                _ => Some(every),
            }
        });
        let hint = section.or("hint", String::new(), |node| node.text().map(Into::into));
        let lifetime = lifetime?;
        Some(Self {
            id: id?,
            selectors: selectors?,
            lifetime,
            rotate_every: rotate_every?.unwrap_or(lifetime / 2),
            hint: hint?,
        })
    }
}

/// A whole SPIFFE ID, or its path within our trust domain.
fn read_id(node: &Node<'_>, domain: Option<&TrustDomain>) -> Option<SpiffeId> {
    let text = node.text()?;
    let whole = match domain {
        Some(domain) if text.starts_with('/') => format!("spiffe://{domain}{text}"),
        None if text.starts_with('/') => return None,
        _ => text.to_owned(),
    };
    let id = match SpiffeId::parse(&whole) {
        Ok(id) => id,
        Err(error) => {
            return node.mistake(
                format_args!("`{text}`: {error}"),
                Some("write for example `spiffe://example.org/checkout`, or `/checkout`"),
            );
        }
    };
    match domain {
        Some(domain) if id.trust_domain() != domain => node.mistake(
            format_args!("`{id}` is outside the trust domain `{domain}`"),
            None,
        ),
        _ => Some(id),
    }
}

impl Selectors {
    fn read(node: &Node<'_>) -> Option<Self> {
        let mut section = node.section()?;
        let number = |node: Node<'_>| u32::try_from(node.count(0..=u64::from(u32::MAX - 1))?).ok();
        let uid = section.optional("uid", number);
        let gid = section.optional("gid", number);
        let path = section.optional("path", |node| {
            let path = node.path()?;
            if path.is_absolute() {
                Some(path)
            } else {
                node.mistake(
                    format_args!("`{}` is not an absolute path", path.display()),
                    Some("write the path at which the kernel knows the executable, as `readlink /proc/PID/exe` shows it"),
                )
            }
        });
        let sha256 = section.optional("sha256", |node| {
            let text = node.text()?;
            match digest_from_hex(text) {
                Some(digest) => Some(digest),
                None => node.mistake(
                    format_args!("`{text}` is not a SHA-256 digest"),
                    Some("write its 64 hexadecimal digits, as `sha256sum` prints them"),
                ),
            }
        });
        let selectors = Self {
            uid: uid?,
            gid: gid?,
            path: path?,
            sha256: sha256?,
        };
        if selectors == Self::default() {
            return node.mistake(
                "an entry without a selector would be for every process",
                Some("give at least one of `uid`, `gid`, `path`, `sha256`"),
            );
        }
        Some(selectors)
    }

    /// Whether `caller` has every property asked for. What is not known of it does not hold.
    fn hold(&self, caller: &Caller) -> bool {
        // Taken apart so that a selector added later cannot be forgotten here.
        let Self {
            uid,
            gid,
            path,
            sha256,
        } = self;
        uid.is_none_or(|uid| uid == caller.uid())
            && gid.is_none_or(|gid| gid == caller.gid())
            && path
                .as_deref()
                .is_none_or(|path| caller.path() == Some(path))
            && sha256
                .as_ref()
                .is_none_or(|digest| caller.sha256() == Some(digest))
    }
}

fn digest_from_hex(text: &str) -> Option<Digest> {
    let digits = text
        .chars()
        .map(|digit| {
            digit
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        })
        .collect::<Option<Vec<u8>>>()?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    (digits.len() == 64).then_some(bytes)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn read(text: &str) -> Result<Registry, String> {
        let domain = TrustDomain::parse("example.org").unwrap();
        Document::new("e.yaml", text)
            .read(|node| Registry::read(&node, Some(&domain), Duration::from_secs(86_400)))
            .map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn an_entry_has_sensible_defaults() {
        let registry = read("- { id: /a, selectors: { uid: 7 }, lifetime: 10s }\n").unwrap();
        let entry = &registry.entries[0];
        assert_eq!(entry.id.as_str(), "spiffe://example.org/a");
        assert_eq!(entry.rotate_every, Duration::from_secs(5));
        assert_eq!(entry.hint, "");
        let registry = read("- { id: 'spiffe://example.org/a', selectors: { gid: 7 } }").unwrap();
        assert_eq!(registry.entries[0].lifetime, DEFAULT_LIFETIME);
    }

    #[test]
    fn mistakes_are_told_with_their_lines() {
        for (text, told) in [
            ("id: /a", "e.yaml:1: expected a list here"),
            (
                "- selectors: { uid: 1 }",
                "e.yaml:1: [0]: the key `id` is missing",
            ),
            ("- id: /a", "e.yaml:1: [0]: the key `selectors` is missing"),
            (
                "- id: /a\n  selectors: {}",
                "e.yaml:2: [0].selectors: an entry without a selector",
            ),
            (
                "- id: spiffe://other.org/a\n  selectors: { uid: 1 }",
                "e.yaml:1: [0].id: `spiffe://other.org/a` is outside the trust domain",
            ),
            (
                "- id: a//b\n  selectors: { uid: 1 }",
                "e.yaml:1: [0].id: `a//b`",
            ),
            (
                "- id: /a\n  selectors: { uid: root }",
                "e.yaml:2: [0].selectors.uid: `root` is not a whole number",
            ),
            (
                "- id: /a\n  selectors: { uid: 4294967295 }",
                "e.yaml:2: [0].selectors.uid: 4294967295 is out of range",
            ),
            (
                "- id: /a\n  selectors: { path: bin/a }",
                "e.yaml:2: [0].selectors.path: `bin/a` is not an absolute path",
            ),
            (
                "- id: /a\n  selectors: { sha256: abc }",
                "e.yaml:2: [0].selectors.sha256: `abc` is not a SHA-256 digest",
            ),
            (
                "- id: /a\n  selectors: { uuid: 1 }",
                "e.yaml:2: [0].selectors: an entry without a selector",
            ),
            (
                "- id: /a\n  selectors: { uid: 1 }\n  lifetime: 10ms",
                "e.yaml:3: [0].lifetime: `10ms` is out of range",
            ),
            (
                "- id: /a\n  selectors: { uid: 1 }\n  lifetime: 2d",
                "e.yaml:3: [0].lifetime: `2d` is out of range",
            ),
            (
                "- id: /a\n  selectors: { uid: 1 }\n  rotate_every: 1h",
                "e.yaml:3: [0].rotate_every: `rotate_every` must be shorter",
            ),
            (
                "- id: /a\n  selectors: { uid: 1 }\n- id: spiffe://example.org/a\n  selectors: { uid: 1 }",
                "e.yaml:3: [1]: the entry in line 1 has the same id and selectors",
            ),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.starts_with(told), "{text:?}: {error}");
        }
    }

    #[test]
    fn every_mistake_of_every_entry_is_told_at_once() {
        let error = read("- id: x\n  selectors: { uid: y }\n- ide: /a\n").unwrap_err();
        let lines: Vec<_> = error.lines().map(|line| &line[..8]).collect();
        assert_eq!(
            lines,
            ["e.yaml:1", "e.yaml:2", "e.yaml:3", "e.yaml:3", "e.yaml:3"]
        );
    }

    #[tokio::test]
    async fn all_selectors_of_an_entry_must_hold() {
        let digest = [0xab; 32];
        let text = format!(
            "- {{ id: /all, selectors: {{ uid: 7, gid: 8, path: /bin/a, sha256: {} }} }}\n\
             - {{ id: /uid, selectors: {{ uid: 7 }} }}\n\
             - {{ id: /gid, selectors: {{ gid: 8 }} }}\n\
             - {{ id: /path, selectors: {{ path: /bin/a }} }}\n\
             - {{ id: /path, selectors: {{ gid: 8 }}, hint: second }}\n",
            "ab".repeat(32)
        );
        let registry = read(&text).unwrap();
        for (caller, expected) in [
            (
                Caller::invented(7, 8, Some(("/bin/a", digest))),
                vec!["/all", "/uid", "/gid", "/path"],
            ),
            (
                Caller::invented(7, 9, Some(("/bin/a", digest))),
                vec!["/uid", "/path"],
            ),
            (
                Caller::invented(9, 8, Some(("/bin/a", [0; 32]))),
                vec!["/gid", "/path"],
            ),
            (Caller::invented(7, 9, None), vec!["/uid"]),
            (Caller::invented(0, 0, None), vec![]),
        ] {
            let found = registry.matching(&caller).await;
            let ids: Vec<_> = found.iter().map(|entry| entry.id.path()).collect();
            assert_eq!(ids, expected, "{caller}");
        }
        let both = Caller::invented(9, 8, Some(("/bin/a", digest)));
        let path = registry.matching(&both).await.pop().unwrap();
        assert_eq!((path.id.path(), path.hint.as_str()), ("/path", ""));
    }
}
