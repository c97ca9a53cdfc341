//! What can the process still do once it has started? Only what its configuration makes it do.
//!
//! Whoever finds a way to run code in a proxy finds what the proxy may do. So, before any other thread
//! exists, [`enter`] gives up the rest, and every later thread inherits that. Each [`Part`] is had from the
//! kernel by itself, and is told by its name: in the log, in `/ready` and in `doorward_sandbox_enforced`.
//!
//! System calls are a list of what is denied (`syscalls` argues why); files, ports, signals and abstract
//! sockets are Landlock's, a list of what is allowed (`landlock`).

mod landlock;
mod privileges;
mod syscalls;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;

use ::landlock::ABI;
use caps::Capability;
use prometheus::{IntGaugeVec, Opts, Registry};

use crate::document::Node;

/// The section `sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What happens where the kernel does not have a part of it.
    pub mode: Mode,
    /// Leaves out [`Part::Memory`]: an issuer that runs as our own user could otherwise not see whose
    /// executable we are.
    pub unsafe_dumpable: bool,
}

/// What happens where the kernel does not have a part of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// We start without, and say so.
    Auto,
    /// We do not start.
    Required,
    /// Nothing is given up.
    Off,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            unsafe_dumpable: false,
        }
    }
}

impl Settings {
    /// Reads the section `sandbox`.
    #[must_use]
    pub fn read(node: &Node<'_>) -> Option<Self> {
        let default = Self::default();
        let mut section = node.section()?;
        let mode = section.or("mode", default.mode, |node| {
            node.choice(&[
                ("auto", Mode::Auto),
                ("required", Mode::Required),
                ("off", Mode::Off),
            ])
        });
        let unsafe_dumpable = section.or("unsafe_dumpable", default.unsafe_dumpable, |node| {
            node.flag()
        });
        Some(Self {
            mode: mode?,
            unsafe_dumpable: unsafe_dumpable?,
        })
    }
}

/// What is still needed after the start. Everything else is given up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Files and directories that are read, and that others may replace at any time: what is around a file
    /// is read too, and what is around the file that its links lead to. Those of the name resolver come by
    /// themselves.
    pub read: Vec<PathBuf>,
    /// Files that are written, moved aside and made anew, in directories where that may happen.
    pub written: Vec<PathBuf>,
    /// TCP ports that are bound.
    pub bind: Vec<u16>,
    /// TCP ports that are connected to, at whatever address. DNS on port 53 comes by itself.
    pub connect: Vec<u16>,
    /// Any TCP port may have to be connected to.
    pub connect_anywhere: bool,
    /// Whether connections are made from addresses that are not ours.
    pub foreign_addresses: bool,
}

/// One thing that is given up. The words are public surface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Files that the configuration does not lead to.
    Files,
    /// TCP ports that the configuration does not name.
    Ports,
    /// Signals to other processes, and their abstract sockets.
    Scopes,
    /// System calls that a proxy never makes.
    Syscalls,
    /// Programs with more rights than we have.
    Privileges,
    /// Rights of root.
    Capabilities,
    /// Our memory, to others and to core dumps.
    Memory,
}

impl Part {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 7] = [
        Self::Files,
        Self::Ports,
        Self::Scopes,
        Self::Syscalls,
        Self::Privileges,
        Self::Capabilities,
        Self::Memory,
    ];

    /// Its word. Part of the public metrics surface: never rename one.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Ports => "ports",
            Self::Scopes => "scopes",
            Self::Syscalls => "syscalls",
            Self::Privileges => "privileges",
            Self::Capabilities => "capabilities",
            Self::Memory => "memory",
        }
    }
}

/// Why a part cannot be had.
pub type Why = String;

/// The sandbox that the process is in.
#[derive(Debug)]
pub struct Sandbox {
    parts: Vec<(Part, Result<(), Why>)>,
    /// The rights of root that stay.
    kept: Vec<Capability>,
    /// Landlock lets us read the directory of our own process by its inode, which the kernel would throw
    /// away and make anew if nobody held it.
    _process: Option<File>,
}

/// Gives up everything but `needs`, for ever, in this thread and in those that it will start.
///
/// Call it while there is one thread. What is open stays open.
///
/// # Errors
/// With [`Mode::Required`], if there is a part that cannot be had. The process is then in the others.
pub fn enter(settings: &Settings, needs: &Needs) -> Result<Sandbox, Incomplete> {
    if settings.mode == Mode::Off {
        tracing::warn!(
            "the sandbox is off: whoever takes over this process can do what its user can"
        );
        let off = |part| (part, Err("`sandbox.mode` is `off`".to_owned()));
        return Ok(Sandbox {
            parts: Part::ALL.into_iter().map(off).collect(),
            kept: Vec::new(),
            _process: None,
        });
    }
    let process = File::open(PROCESS).ok();
    // The system calls come last: they deny some that the others are made of.
    let memory = if settings.unsafe_dumpable {
        Err("`sandbox.unsafe_dumpable` is `true`".to_owned())
    } else {
        privileges::hide_memory()
    };
    let privileges = privileges::renounce();
    let confined = landlock::confine(needs);
    let capabilities = privileges::drop_capabilities(needs);
    let kept = capabilities.clone().unwrap_or_default();
    let landlock = |part, since: ABI, linux: &str| match &confined {
        Ok(abi) if *abi >= since => (part, Ok(())),
        Ok(ABI::Unsupported) => (part, Err("this kernel has no Landlock".to_owned())),
        Ok(_) => (part, Err(format!("Landlock does it since Linux {linux}"))),
        Err(why) => (part, Err(why.clone())),
    };
    let parts = vec![
        // Before that, files that cannot be opened for writing could still be truncated.
        landlock(Part::Files, ABI::V3, "6.2"),
        landlock(Part::Ports, ABI::V4, "6.7"),
        landlock(Part::Scopes, ABI::V6, "6.12"),
        (Part::Syscalls, syscalls::deny()),
        (Part::Privileges, privileges),
        (Part::Capabilities, capabilities.map(drop)),
        (Part::Memory, memory),
    ];
    let sandbox = Sandbox {
        parts,
        kept,
        _process: process,
    };
    if settings.mode == Mode::Required && !sandbox.is_whole() {
        return Err(Incomplete(sandbox.missing()));
    }
    Ok(sandbox)
}

/// Whether we may connect from addresses that are not ours. To be asked before anything is given up.
#[must_use]
pub fn may_use_foreign_addresses() -> bool {
    privileges::may_use_foreign_addresses()
}

/// Gives up what an issuer does not need, which reads every caller's executable wherever that lies: its
/// memory is hidden, since the CA's key is in it, and it starts no programs.
#[must_use]
pub fn enter_as_issuer() -> Sandbox {
    let memory = privileges::hide_memory();
    let privileges = privileges::renounce();
    Sandbox {
        parts: vec![
            (Part::Syscalls, syscalls::deny()),
            (Part::Privileges, privileges),
            (Part::Memory, memory),
        ],
        kept: Vec::new(),
        _process: None,
    }
}

/// Our own process, whatever its number.
const PROCESS: &str = "/proc/self";

impl Sandbox {
    /// Each part, and why it is not in force if it is not.
    pub fn parts(&self) -> impl Iterator<Item = (Part, Option<&str>)> {
        let parts = self.parts.iter();
        parts.map(|(part, had)| (*part, had.as_ref().err().map(String::as_str)))
    }

    /// Logs which parts are in force.
    pub fn tell(&self) {
        if self.is_whole() {
            tracing::info!("in the sandbox: {self}");
        } else {
            tracing::warn!("not in all of the sandbox: {self}");
        }
    }

    fn is_whole(&self) -> bool {
        self.parts.iter().all(|(_, had)| had.is_ok())
    }

    fn missing(&self) -> Missing {
        let missing = self.parts.iter().filter(|(_, had)| had.is_err());
        Missing(missing.cloned().collect())
    }

    /// Shows each part in the family `doorward_sandbox_enforced`.
    ///
    /// # Errors
    /// If it is there already.
    pub fn show(&self, registry: &Registry) -> prometheus::Result<()> {
        let family = IntGaugeVec::new(
            Opts::new(
                "doorward_sandbox_enforced",
                "1 for each part of the sandbox that this process is in, 0 for one that is switched off or \
                 that the kernel does not have.",
            ),
            &["part"],
        )?;
        for (part, had) in &self.parts {
            family
                .with_label_values(&[part.label()])
                .set(i64::from(had.is_ok()));
        }
        registry.register(Box::new(family))
    }
}

/// What is in force, then what is not and why.
impl fmt::Display for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let had = self.parts.iter().filter(|(_, had)| had.is_ok());
        let had: Vec<_> = had.map(|(part, _)| part.label()).collect();
        f.write_str(&had.join(", "))?;
        for kept in &self.kept {
            write!(f, "; {kept} stays")?;
        }
        if had.is_empty() {
            f.write_str("nothing")?;
        }
        if self.is_whole() {
            return Ok(());
        }
        write!(f, "; not {}", self.missing())
    }
}

#[derive(Debug)]
struct Missing(Vec<(Part, Result<(), Why>)>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (part, had)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{}", part.label())?;
            if let Err(why) = had {
                write!(f, " ({why})")?;
            }
        }
        Ok(())
    }
}

/// A part of the sandbox was asked for and cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "the sandbox cannot be had whole: {0}; without these parts we start with `sandbox: {{ mode: auto }}`"
)]
pub struct Incomplete(Missing);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    #[test]
    fn the_sandbox_is_there_unless_somebody_says_otherwise() {
        let read = |text| Document::new("a.yaml", text).read(|node| Settings::read(&node));
        assert_eq!(read("{}").unwrap(), Settings::default());
        assert_eq!(Settings::default().mode, Mode::Auto);
        let written = read("mode: required\nunsafe_dumpable: true").unwrap();
        assert_eq!(written.mode, Mode::Required);
        assert!(written.unsafe_dumpable);
        let told = read("mode: on").unwrap_err().to_string();
        assert!(told.starts_with("a.yaml:1: mode: "), "{told}");
    }

    #[test]
    fn each_part_is_told_with_the_reason_why_it_is_missing() {
        let sandbox = Sandbox {
            parts: vec![
                (Part::Files, Ok(())),
                (Part::Ports, Err("too old".into())),
                (Part::Syscalls, Ok(())),
            ],
            kept: vec![Capability::CAP_NET_RAW],
            _process: None,
        };
        let told = sandbox.to_string();
        assert_eq!(
            told,
            "files, syscalls; CAP_NET_RAW stays; not ports (too old)"
        );
        let registry = Registry::new();
        sandbox.show(&registry).unwrap();
        let family = &registry.gather()[0];
        let values = family.get_metric().iter().map(|metric| {
            let part = metric.get_label()[0].value().to_owned();
            (part, metric.get_gauge().get_value())
        });
        let expected = [("files", 1.0), ("ports", 0.0), ("syscalls", 1.0)];
        assert!(values.eq(expected.map(|(part, value)| (part.to_owned(), value))));
    }

    #[test]
    fn off_gives_nothing_up_and_says_so() {
        let settings = Settings {
            mode: Mode::Off,
            unsafe_dumpable: false,
        };
        let sandbox = enter(&settings, &Needs::default()).unwrap();
        assert!(sandbox.parts().all(|(_, why)| why.is_some()));
        assert_eq!(sandbox.parts().count(), Part::ALL.len());
        assert!(sandbox.to_string().starts_with("nothing; not files ("));
    }
}
