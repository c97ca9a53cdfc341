//! Which files, ports and processes can still be reached?
//!
//! Unix sockets with a path are not among what is restricted: Landlock can do that since Linux 7.1 only,
//! and what we would allow are those that the resolver, the application and the issuer make anew whenever
//! they start. Neither is UDP.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, LandlockStatus, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use nix::unistd::geteuid;

use super::{Needs, PROCESS, Why};

/// The version up to which this knows what it forbids. Later ones forbid no more.
const KNOWN: ABI = ABI::V6;

/// Gives up everything that is not in `needs`; says which version of Landlock did it.
pub(super) fn confine(needs: &Needs) -> Result<ABI, Why> {
    // Threads that run already would stay outside.
    let threads = std::fs::read_dir("/proc/self/task").map(Iterator::count);
    match threads {
        Ok(1) => {}
        Ok(threads) => return Err(format!("{threads} threads run already")),
        Err(error) => return Err(format!("cannot count the threads: {error}")),
    }
    restrict(&Rules::of(needs, geteuid().is_root())).map_err(|error| error.to_string())
}

/// Paths and ports.
#[derive(Debug, PartialEq, Eq)]
struct Rules {
    read: BTreeSet<PathBuf>,
    write: BTreeSet<PathBuf>,
    bind: BTreeSet<u16>,
    /// None: all of them.
    connect: Option<BTreeSet<u16>>,
}

impl Rules {
    fn of(needs: &Needs, root: bool) -> Self {
        let mut read: BTreeSet<_> = needs.read.iter().flat_map(|path| around(path)).collect();
        read.extend(resolver(root));
        read.insert(PROCESS.into());
        read.extend(RANDOM.map(PathBuf::from));
        let connect: BTreeSet<_> = needs.connect.iter().copied().chain([DNS]).collect();
        let few = !needs.connect_anywhere && connect.len() <= MOST_PORTS;
        Self {
            read,
            write: needs.written.iter().map(|file| place(file)).collect(),
            bind: needs.bind.iter().copied().collect(),
            connect: few.then_some(connect),
        }
    }
}

/// Where a static binary has its random numbers from: what picks the numbers of DNS queries looks `getrandom` up by its
/// name, and finds it only where a loader is.
const RANDOM: [&str; 2] = ["/dev/random", "/dev/urandom"];

/// Each port is a rule, and costs a system call at the start: beyond so many, all of them are allowed.
const MOST_PORTS: usize = 4096;

fn restrict(rules: &Rules) -> Result<ABI, RulesetError> {
    tracing::debug!(?rules, "confined to");
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    let write: BitFlags<AccessFs> =
        read | AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile | AccessFs::Truncate;
    let bind = rules.bind.iter();
    let bind = bind.map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::BindTcp)));
    let mut ports = AccessNet::from_all(KNOWN);
    if rules.connect.is_none() {
        ports.remove(AccessNet::ConnectTcp);
    }
    let connect = rules.connect.iter().flatten();
    let connect =
        connect.map(|port| Ok::<_, RulesetError>(NetPort::new(*port, AccessNet::ConnectTcp)));
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(ports)?
        .scope(Scope::from_all(KNOWN))?
        .create()?
        .add_rules(path_beneath_rules(&rules.read, read))?
        .add_rules(path_beneath_rules(&rules.write, write))?
        .add_rules(bind)?
        .add_rules(connect)?
        .restrict_self()?;
    Ok(match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi,
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => ABI::Unsupported,
    })
}

/// TCP, for answers that UDP cuts off.
const DNS: u16 = 53;

/// What the C library reads to resolve a name, modules that it loads for that included.
///
/// Somebody who renews the address of this machine may put another file in the place of `resolv.conf`, and
/// only a right to its directory holds for that one too. That directory has secrets in it that root can
/// read and others cannot. So root gets the files that there are now.
fn resolver(root: bool) -> Vec<PathBuf> {
    let etc = Path::new("/etc");
    let mut paths: Vec<PathBuf> = LIBRARIES.iter().map(PathBuf::from).collect();
    for name in RESOLVER {
        let file = etc.join(name);
        if let Ok(target) = file.canonicalize()
            && !target.starts_with(etc)
        {
            paths.extend(target.parent().map(Into::into));
        }
        paths.push(file);
    }
    if !root {
        paths.push(etc.into());
    }
    paths
}

const LIBRARIES: [&str; 5] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];

const RESOLVER: [&str; 9] = [
    "resolv.conf",
    "hosts",
    "nsswitch.conf",
    "host.conf",
    "gai.conf",
    "services",
    "ld.so.cache",
    "ld.so.preload",
    "localtime",
];

/// What is read so that `path` can be, also when something else stands there later: a directory itself, the
/// directory of a file, and the same of what their links lead to. Never the root of all directories.
fn around(path: &Path) -> Vec<PathBuf> {
    let target = path.canonicalize().ok();
    let linked = path.is_symlink().then_some(target.as_deref()).flatten();
    let own = if path.is_dir() { path } else { parent(path) };
    let paths = [Some(own), target.as_deref(), linked.map(parent)];
    let paths = paths.into_iter().flatten();
    let paths = paths.map(|path| if path.is_file() { parent(path) } else { path });
    let mut paths: Vec<_> = paths
        .map(existing)
        .filter(|path| path != Path::new("/"))
        .collect();
    paths.sort();
    paths.dedup();
    // A file right under the root is read as it stands.
    paths.extend(target.filter(|file| parent(file) == Path::new("/")));
    paths
}

/// Where a file that is moved aside and made anew needs rights: in its directory. A pipe or a terminal is
/// only opened.
fn place(file: &Path) -> PathBuf {
    let place = match file.canonicalize() {
        Ok(target) if target.is_file() => parent(&target).to_owned(),
        Ok(target) => target,
        Err(_) => existing(parent(file)),
    };
    match place == Path::new("/") {
        true => file.into(),
        false => place,
    }
}

fn parent(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The path, or what there is of it yet: a right cannot be had to what is not there.
fn existing(path: &Path) -> PathBuf {
    let there = path.ancestors().find(|path| path.exists());
    match there {
        Some(there) if !there.as_os_str().is_empty() => there.into(),
        _ if path.is_absolute() => "/".into(),
        _ => ".".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_file_that_is_replaced_is_read_where_it_is_and_where_its_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (live, archive) = (dir.join("live"), dir.join("archive"));
        for made in [&live, &archive] {
            std::fs::create_dir(made).unwrap();
        }
        std::fs::write(archive.join("key1.pem"), "").unwrap();
        symlink("../archive/key1.pem", live.join("key.pem")).unwrap();
        symlink("archive", dir.join("policy")).unwrap();
        let both = [archive.clone(), live.clone()];
        assert_eq!(around(&live.join("key.pem")), both);
        assert_eq!(around(&live), std::slice::from_ref(&live));
        assert_eq!(
            around(&dir.join("policy")),
            [dir.clone(), archive, dir.join("policy")]
        );
        // Not there yet, nor the directory.
        assert_eq!(around(&live.join("later/key.pem")), [live]);
        assert_eq!(around(Path::new("later.pem")), [Path::new(".")]);
        assert!(around(Path::new("/later/key.pem")).is_empty());
    }

    #[test]
    fn a_file_is_written_in_its_directory_and_a_device_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let file = dir.join("audit.jsonl");
        assert_eq!(place(&file), dir);
        std::fs::write(&file, "").unwrap();
        assert_eq!(place(&file), dir);
        assert_eq!(place(Path::new("/dev/null")), Path::new("/dev/null"));
    }

    #[test]
    fn root_reads_no_more_of_etc_than_names_need() {
        let etc = PathBuf::from("/etc");
        assert!(!resolver(true).contains(&etc));
        assert!(resolver(false).contains(&etc));
        for root in [true, false] {
            let paths = resolver(root);
            assert!(paths.contains(&etc.join("resolv.conf")));
            assert!(!paths.contains(&PathBuf::from("/")));
        }
    }

    #[test]
    fn ports_and_files_are_those_that_were_asked_for_and_those_of_the_resolver() {
        let needs = Needs {
            read: vec!["/usr".into()],
            bind: vec![8443, 8443],
            connect: vec![8080],
            ..Needs::default()
        };
        let rules = Rules::of(&needs, true);
        assert!(rules.read.contains(Path::new("/usr")));
        assert!(rules.write.is_empty());
        assert_eq!(rules.bind, BTreeSet::from([8443]));
        assert_eq!(rules.connect, Some(BTreeSet::from([53, 8080])));
        let connect = |needs| Rules::of(&needs, true).connect;
        let anywhere = Needs {
            connect_anywhere: true,
            ..needs.clone()
        };
        assert_eq!(connect(anywhere), None);
        let many = Needs {
            connect: (1..=u16::MAX).collect(),
            ..needs
        };
        assert_eq!(connect(many), None);
    }
}
