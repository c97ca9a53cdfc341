//! Is what the sandbox forbids really forbidden? A child process enters it and then tries everything; and a
//! kernel without Landlock is played by a filter that says so.
//!
//! No harness: a process that enters the sandbox must have one thread, and one that cannot test says so in
//! a word that a harness would keep to itself.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test may stop at the first surprise"
)]

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use doorward::sandbox::{self, Mode, Needs, Part};
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::{prctl, ptrace, signal};
use nix::unistd::{getppid, getuid, setuid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use socket2::{Domain, Protocol, Socket, Type};

const TESTS: [(&str, fn()); 4] = [
    (
        "what_is_given_up_is_refused_and_what_is_needed_is_not",
        what_is_given_up_is_refused_and_what_is_needed_is_not,
    ),
    (
        "whoever_may_connect_from_foreign_addresses_sees_no_packets",
        whoever_may_connect_from_foreign_addresses_sees_no_packets,
    ),
    (
        "a_sandbox_that_cannot_be_had_whole_stops_the_start_if_it_is_required",
        a_sandbox_that_cannot_be_had_whole_stops_the_start_if_it_is_required,
    ),
    (
        "a_kernel_that_has_only_some_of_it_is_told_of_in_the_log",
        a_kernel_that_has_only_some_of_it_is_told_of_in_the_log,
    ),
];

/// What a child process is told to do.
const ROLE: &str = "DOORWARD_TEST_ROLE";

fn main() -> ExitCode {
    match env::var(ROLE).as_deref() {
        Ok("probe") => probe(),
        Ok("without landlock") => without_landlock(),
        _ => {}
    }
    let arguments: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = arguments
        .iter()
        .filter(|word| !word.starts_with('-'))
        .collect();
    for (name, test) in TESTS {
        if arguments.iter().any(|argument| argument == "--list") {
            println!("{name}: test");
        } else if words.is_empty() || words.iter().any(|word| name.contains(*word)) {
            // A failure panics, which ends the process with a code of its own.
            test();
            println!("test {name} ... ok");
        }
    }
    ExitCode::SUCCESS
}

/// This program again, in another role.
fn again(role: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.env(ROLE, role);
    command
}

/// What became of each attempt: nothing, or the number of the error.
type Attempts = BTreeMap<String, Option<i32>>;

/// What a child can do in the sandbox, or with `mode` outside of it; and which parts it was in.
fn try_everything(mode: &str) -> (Vec<String>, Attempts) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["needed", "written", "outside"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("file"), "text").unwrap();
    }
    let peers = ["needed", "other"].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let [needed, other] = peers
        .each_ref()
        .map(|peer| peer.local_addr().unwrap().port().to_string());
    let name = format!("doorward-test-{mode}-{}", std::process::id());
    let _abstract =
        UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let output = again("probe")
        .current_dir(dir.path())
        .env("MODE", mode)
        .env("NEEDED_PORT", needed)
        .env("OTHER_PORT", other)
        .env("ABSTRACT", name)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn what_is_given_up_is_refused_and_what_is_needed_is_not() {
    let (parts, attempts) = try_everything("auto");
    // What is refused must be possible otherwise, to anybody.
    let (_, outside) = try_everything("off");
    for (part, attempt, expected) in [
        (Part::Files, "read what is needed", None),
        (Part::Files, "list what is needed", None),
        (Part::Files, "write what is read", Some(libc::EACCES)),
        (Part::Files, "make a file where is read", Some(libc::EACCES)),
        (Part::Files, "append to what is written", None),
        (Part::Files, "move aside what is written", None),
        (Part::Files, "make anew what is written", None),
        (Part::Files, "remove what was moved aside", None),
        (Part::Files, "read outside", Some(libc::EACCES)),
        (
            Part::Files,
            "read outside in a later thread",
            Some(libc::EACCES),
        ),
        (Part::Files, "write outside", Some(libc::EACCES)),
        (Part::Files, "truncate outside", Some(libc::EACCES)),
        (Part::Files, "list outside", Some(libc::EACCES)),
        (
            Part::Files,
            "read another's environment",
            Some(libc::EACCES),
        ),
        (Part::Files, "read /proc/self/stat", None),
        (Part::Files, "resolve a name", None),
        (Part::Ports, "connect to a port that is needed", None),
        (Part::Ports, "connect to another port", Some(libc::EACCES)),
        (Part::Ports, "bind another port", Some(libc::EACCES)),
        (Part::Scopes, "signal another process", Some(libc::EPERM)),
        (
            Part::Scopes,
            "connect to an abstract socket",
            Some(libc::EPERM),
        ),
        (Part::Syscalls, "start a program", Some(libc::EPERM)),
        (Part::Syscalls, "become a program", Some(libc::EPERM)),
        (Part::Syscalls, "trace", Some(libc::EPERM)),
        (Part::Syscalls, "leave a namespace", Some(libc::EPERM)),
        (Part::Syscalls, "set the user", Some(libc::EPERM)),
        (Part::Syscalls, "make a file in memory", Some(libc::EPERM)),
        (
            Part::Syscalls,
            "open a socket to the kernel's cryptography",
            Some(libc::EPERM),
        ),
        (Part::Syscalls, "open a raw socket", Some(libc::EPERM)),
        (Part::Syscalls, "show the memory again", Some(libc::EPERM)),
        (Part::Memory, "have no memory shown", None),
        (Part::Memory, "have no core", None),
        (Part::Privileges, "have no new privileges", None),
        (Part::Capabilities, "have no capabilities", None),
    ] {
        if !parts.iter().any(|had| had == part.label()) {
            eprintln!(
                "SKIPPED: {attempt}: this kernel does not have the sandbox's part `{}`",
                part.label()
            );
            continue;
        }
        assert_eq!(attempts.get(attempt), Some(&expected), "{attempt}");
        if expected.is_some() && (getuid().is_root() || !ROOTS_ALONE.contains(&attempt)) {
            assert_ne!(outside.get(attempt), Some(&expected), "{attempt} outside");
        }
    }
}

fn whoever_may_connect_from_foreign_addresses_sees_no_packets() {
    if !getuid().is_root() {
        eprintln!("SKIPPED: only root has a right to raw sockets that could stay");
        return;
    }
    let (parts, attempts) = try_everything("foreign");
    let (_, outside) = try_everything("off");
    assert!(parts.iter().any(|had| had == Part::Syscalls.label()));
    assert_eq!(
        attempts["connect from an address that is not ours"], None,
        "the right stays"
    );
    for raw in RAW {
        assert_eq!(attempts[raw], Some(libc::EPERM), "{raw}");
        assert_eq!(outside[raw], None, "{raw} outside");
    }
}

/// Sockets that only the filter of system calls denies to whoever keeps the right to them.
const RAW: [&str; 3] = [
    "open a raw socket for IPv4",
    "open a raw socket for IPv6",
    "open a raw socket by its old name",
];

/// As in the kernel's `linux/net.h`.
const SOCK_PACKET: i32 = 10;

/// What nobody else can do anyway.
const ROOTS_ALONE: [&str; 1] = ["open a raw socket"];

/// Enters the sandbox, tries, and tells.
fn probe() -> ! {
    let port = |name| env::var(name).unwrap().parse::<u16>().unwrap();
    let is_off = env::var("MODE").unwrap() == "off";
    let settings = sandbox::Settings {
        mode: if is_off { Mode::Off } else { Mode::Auto },
        unsafe_dumpable: false,
    };
    let needs = Needs {
        read: vec!["needed".into()],
        written: vec!["written/file".into()],
        bind: Vec::new(),
        connect: vec![port("NEEDED_PORT")],
        foreign_addresses: env::var("MODE").unwrap() == "foreign",
        connect_anywhere: false,
    };
    let sandbox = sandbox::enter(&settings, &needs).unwrap();
    let parts = sandbox.parts().filter(|(_, missing)| missing.is_none());
    let parts: Vec<_> = parts.map(|(part, _)| part.label()).collect();

    let mut attempts = Attempts::new();
    let mut attempt = |name: &str, done: io::Result<()>| {
        let error = done.err().map(|error| error.raw_os_error().unwrap_or(-1));
        attempts.insert(name.into(), error);
    };
    let read = |path: &str| fs::read(path).map(drop);
    let list = |path: &str| fs::read_dir(path).map(drop);
    let append = |path: &str| OpenOptions::new().append(true).open(path).map(drop);
    attempt("read what is needed", read("needed/file"));
    attempt("list what is needed", list("needed"));
    attempt("write what is read", append("needed/file"));
    attempt(
        "make a file where is read",
        File::create_new("needed/new").map(drop),
    );
    attempt("append to what is written", append("written/file"));
    attempt(
        "move aside what is written",
        fs::rename("written/file", "written/file.1"),
    );
    attempt(
        "make anew what is written",
        File::create_new("written/file").map(drop),
    );
    attempt(
        "remove what was moved aside",
        fs::remove_file("written/file.1"),
    );
    attempt("read outside", read("outside/file"));
    let later = thread::spawn(|| fs::read("outside/file").map(drop));
    attempt("read outside in a later thread", later.join().unwrap());
    attempt("write outside", append("outside/file"));
    attempt(
        "truncate outside",
        nix::unistd::truncate("outside/file", 0).map_err(Into::into),
    );
    attempt("list outside", list("outside"));
    let environment = format!("/proc/{}/environ", getppid());
    attempt("read another's environment", read(&environment));
    attempt("read /proc/self/stat", read("/proc/self/stat"));
    attempt(
        "resolve a name",
        ("localhost", 80).to_socket_addrs().map(drop),
    );
    let connect = |port: u16| TcpStream::connect(("127.0.0.1", port)).map(drop);
    attempt(
        "connect to a port that is needed",
        connect(port("NEEDED_PORT")),
    );
    attempt("connect to another port", connect(port("OTHER_PORT")));
    attempt(
        "bind another port",
        TcpListener::bind("127.0.0.1:0").map(drop),
    );
    let parent = signal::kill(getppid(), None);
    attempt("signal another process", parent.map_err(Into::into));
    let socket = SocketAddr::from_abstract_name(env::var("ABSTRACT").unwrap()).unwrap();
    attempt(
        "connect to an abstract socket",
        UnixStream::connect_addr(&socket).map(drop),
    );
    attempt(
        "start a program",
        Command::new("/bin/true").spawn().map(drop),
    );
    if !is_off {
        // Outside, these would be the end of the probe.
        attempt("become a program", Err(Command::new("/bin/true").exec()));
        attempt("trace", ptrace::traceme().map_err(Into::into));
    }
    attempt(
        "leave a namespace",
        unshare(CloneFlags::CLONE_FILES).map_err(Into::into),
    );
    attempt("set the user", setuid(getuid()).map_err(Into::into));
    let memory = memfd_create(c"test", MFdFlags::empty());
    attempt(
        "make a file in memory",
        memory.map(drop).map_err(Into::into),
    );
    let open = |family: i32, kind| Socket::new(Domain::from(family), kind, None).map(drop);
    attempt(
        "open a socket to the kernel's cryptography",
        open(libc::AF_ALG, Type::SEQPACKET),
    );
    attempt("open a raw socket", open(libc::AF_PACKET, Type::DGRAM));
    let icmp = |domain, protocol| Socket::new(domain, Type::RAW, Some(protocol)).map(drop);
    attempt(RAW[0], icmp(Domain::IPV4, Protocol::ICMPV4));
    attempt(RAW[1], icmp(Domain::IPV6, Protocol::ICMPV6));
    attempt(RAW[2], open(libc::AF_INET, Type::from(SOCK_PACKET)));
    let foreign = Socket::new(Domain::IPV4, Type::STREAM, None);
    attempt(
        "connect from an address that is not ours",
        foreign.and_then(|socket| socket.set_ip_transparent_v4(true)),
    );
    attempt(
        "show the memory again",
        prctl::set_dumpable(true).map_err(Into::into),
    );

    let check = |holds: bool| {
        if holds {
            Ok(())
        } else {
            Err(io::ErrorKind::Other.into())
        }
    };
    attempt(
        "have no memory shown",
        check(!prctl::get_dumpable().unwrap()),
    );
    attempt(
        "have no core",
        check(getrlimit(Resource::RLIMIT_CORE).unwrap() == (0, 0)),
    );
    attempt(
        "have no new privileges",
        check(prctl::get_no_new_privs().unwrap()),
    );
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let held = |set: &str| {
        let line = status.lines().find(|line| line.starts_with(set)).unwrap();
        line.bytes()
            .skip(set.len() + 1)
            .any(|digit| digit.is_ascii_hexdigit() && digit != b'0')
    };
    let none = !["CapInh", "CapPrm", "CapEff", "CapAmb"]
        .into_iter()
        .any(held);
    let bounded = getuid().is_root() && held("CapBnd");
    attempt("have no capabilities", check(none && !bounded));

    println!("{}", serde_json::to_string(&(parts, attempts)).unwrap());
    std::process::exit(0)
}

/// A sidecar on a kernel without Landlock, with this section `sandbox`.
fn on_another_kernel(dir: &Path, section: &str) -> Command {
    let config = dir.join("doorward.yaml");
    let text = format!(
        "identity: {{ workload_api: 'unix://{}/none.sock' }}\noutbound: [{{ listen: '127.0.0.1:0', to: '127.0.0.1:1', peer: 'spiffe://example.org/b' }}]\nsandbox: {section}\n",
        dir.display()
    );
    fs::write(&config, text).unwrap();
    let mut command = again("without landlock");
    command
        .arg(config)
        .env_remove("RUST_LOG")
        .stderr(Stdio::piped());
    command
}

/// Becomes `doorward run`, with a kernel that answers as one would that has never heard of Landlock.
fn without_landlock() -> ! {
    let config = env::args().nth(1).unwrap();
    let rules = [(libc::SYS_landlock_create_ruleset, Vec::new())]
        .into_iter()
        .collect();
    let none = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let arch = env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, none, arch).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    let error = Command::new(env!("CARGO_BIN_EXE_doorward"))
        .args(["run", "--config", &config])
        .env_remove(ROLE)
        .exec();
    panic!("{error}")
}

fn a_sandbox_that_cannot_be_had_whole_stops_the_start_if_it_is_required() {
    let dir = tempfile::tempdir().unwrap();
    let output = on_another_kernel(dir.path(), "{ mode: required }")
        .output()
        .unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    let expected = "the sandbox cannot be had whole: files (this kernel has no Landlock), ports (this kernel \
                    has no Landlock), scopes (this kernel has no Landlock); without these parts we start \
                    with `sandbox: { mode: auto }`";
    assert!(told.contains(expected), "{told}");
}

fn a_kernel_that_has_only_some_of_it_is_told_of_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = on_another_kernel(dir.path(), "{ mode: auto }")
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let told = lines
        .map(Result::unwrap)
        .find(|line| line.contains("the sandbox"));
    child.kill().unwrap();
    child.wait().unwrap();
    let told = told.expect("it says in which sandbox it is");
    let expected =
        "not in all of the sandbox: syscalls, privileges, capabilities, memory; not files (this";
    assert!(told.contains("WARN") && told.contains(expected), "{told}");
}
