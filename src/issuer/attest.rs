//! Who is at the other end of this Unix socket? What the kernel says, and nothing the caller says.
//!
//! The kernel kept the caller's credentials when it connected (`SO_PEERCRED`). Its executable is read
//! through `/proc/PID/exe`, and a process number alone may have been given to another process since;
//! so the kernel's own handle on the process (`SO_PEERPIDFD`, Linux 6.5) is asked *afterwards* whether
//! that process still lives. If it does, its number cannot have been reused in between.
//!
//! What a path or a digest is worth: processes of one user can trace each other, and one of them can
//! connect and then execute another program. Executable selectors tell well-meaning programs of one
//! user apart; between programs that must not trust each other, different uids are needed too.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use aws_lc_rs::digest;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::sync::{OnceCell, Semaphore};
use tracing::{debug, warn};

/// A SHA-256 digest.
pub(crate) type Digest = [u8; 32];

/// A process at the other end of a connection, as it was when the connection was accepted.
#[derive(Debug)]
pub(crate) struct Caller {
    uid: u32,
    gid: u32,
    pid: i32,
    executable: Option<Executable>,
}

#[derive(Debug)]
struct Executable {
    path: Option<PathBuf>,
    /// Kept open, so that a digest asked for later is that of the same file.
    file: Arc<File>,
    digest: Arc<OnceCell<Option<Digest>>>,
}

/// What the kernel kept of a caller when it connected.
#[derive(Debug)]
pub(crate) struct Credentials {
    uid: u32,
    gid: u32,
    pid: i32,
    handle: Option<OwnedFd>,
}

impl Credentials {
    /// Asks the kernel who connected `socket`. Never blocks.
    ///
    /// # Errors
    /// What the kernel says; it always knows the uid of whoever connected.
    pub(crate) fn of(socket: &impl AsFd) -> io::Result<Self> {
        let peer = getsockopt(socket, sockopt::PeerCredentials)?;
        let handle = match getsockopt(socket, sockopt::PeerPidfd) {
            Ok(handle) => Some(handle),
            Err(error) => {
                // ESRCH, ENODATA, EINVAL: the caller has ended already.
                if error == Errno::ENOPROTOOPT {
                    OLD_KERNEL.call_once(|| {
                        warn!(
                            "this kernel has no SO_PEERPIDFD (Linux 6.5 has): callers' executables \
                             cannot be told reliably, so entries with `path` or `sha256` match nobody"
                        );
                    });
                }
                None
            }
        };
        Ok(Self {
            uid: peer.uid(),
            gid: peer.gid(),
            pid: peer.pid(),
            handle,
        })
    }

    /// The user who connected.
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    /// Finds the executable too. Reads `/proc` and the caller's file system, so it may block.
    pub(crate) fn attest(self) -> Caller {
        let executable = self.handle.as_ref().and_then(|handle| {
            let found = Executable::of(self.pid)
                .inspect_err(|error| {
                    debug!(pid = self.pid, %error, "the caller's executable cannot be read");
                })
                .ok()?;
            // Only now: see the module's description.
            is_alive(handle).then_some(found)
        });
        Caller {
            uid: self.uid,
            gid: self.gid,
            pid: self.pid,
            executable,
        }
    }
}

/// Told once.
static OLD_KERNEL: Once = Once::new();

/// A process handle becomes readable when its process ends.
fn is_alive(handle: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    matches!(poll(&mut asked, PollTimeout::ZERO), Ok(0))
}

impl Executable {
    fn of(pid: i32) -> io::Result<Self> {
        let link = format!("/proc/{pid}/exe");
        let file = File::open(&link)?;
        let path = std::fs::read_link(&link)?;
        Ok(Self {
            path: is_here(&path, &file).then_some(path),
            file: Arc::new(file),
            digest: Arc::default(),
        })
    }
}

/// Whether `path` leads to this very file where *we* stand. It does not if the file was deleted or
/// replaced, nor if the caller made a mount namespace in which another file bears this name.
fn is_here(path: &Path, file: &File) -> bool {
    let (Ok(named), Ok(open)) = (std::fs::metadata(path), file.metadata()) else {
        return false;
    };
    !is_deleted(path) && (named.dev(), named.ino()) == (open.dev(), open.ino())
}

/// The kernel marks the name of an executable that was deleted.
fn is_deleted(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b" (deleted)")
}

impl Caller {
    pub(crate) fn uid(&self) -> u32 {
        self.uid
    }

    pub(crate) fn gid(&self) -> u32 {
        self.gid
    }

    /// Where the executable lies, if it lies anywhere by that name.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.executable.as_ref()?.path.as_deref()
    }

    /// The executable's digest, if [`Caller::hash`] was asked for it before.
    pub(crate) fn sha256(&self) -> Option<&Digest> {
        self.executable.as_ref()?.digest.get()?.as_ref()
    }

    /// Computes the executable's digest once. The file cannot change while the process runs.
    pub(crate) async fn hash(&self) {
        let Some(executable) = &self.executable else {
            return;
        };
        if executable.digest.initialized() {
            return;
        }
        let (file, digest) = (executable.file.clone(), executable.digest.clone());
        let pid = self.pid;
        // A task of its own: it goes on when the request that waits for it is cancelled, so that nobody
        // can begin more of them than there are connections.
        let hashing = tokio::spawn(async move {
            let hash = async || {
                let turn = HASHING.acquire().await;
                let hash = move || (sha256(&file), turn).0;
                tokio::task::spawn_blocking(hash).await
            };
            let known = digest.get_or_init(async || match hash().await {
                Ok(Ok(digest)) => Some(digest),
                Ok(Err(error)) => {
                    warn!(pid, %error, "the caller's executable cannot be hashed");
                    None
                }
                Err(_) => None,
            });
            known.await;
        });
        // It fails only when the runtime ends.
        let _ = hashing.await;
    }
}

/// For logs.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exe = self.path().map_or(OsStr::new("?"), Path::as_os_str);
        write!(
            f,
            "uid={} gid={} pid={} exe={:?}",
            self.uid, self.gid, self.pid, exe
        )
    }
}

/// Hashing is bounded in number and size: anybody may connect with an executable of any size.
static HASHING: Semaphore = Semaphore::const_new(2);
const LARGEST_EXECUTABLE: u64 = 1 << 30;

/// Reads by position, not from wherever the file stands.
fn sha256(file: &File) -> io::Result<Digest> {
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 128 * 1024];
    let mut total = 0;
    while total <= LARGEST_EXECUTABLE {
        match file.read_at(&mut buffer, total) {
            Ok(0) => {
                let mut sum = Digest::default();
                sum.copy_from_slice(context.finish().as_ref());
                return Ok(sum);
            }
            Ok(read) => {
                total += read as u64;
                context.update(&buffer[..read]);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("it is larger than 1 GiB"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};

    use super::*;

    impl Caller {
        /// A caller with these facts, without a process.
        pub(crate) fn invented(uid: u32, gid: u32, exe: Option<(&str, Digest)>) -> Self {
            Self {
                uid,
                gid,
                pid: 1,
                executable: exe.map(|(path, digest)| Executable {
                    path: Some(path.into()),
                    file: Arc::new(File::open("/dev/null").unwrap()),
                    digest: Arc::new(OnceCell::new_with(Some(Some(digest)))),
                }),
            }
        }
    }

    #[tokio::test]
    async fn our_own_process_is_known_by_uid_path_and_digest() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let caller = Credentials::of(&ours).unwrap().attest();
        assert_eq!(caller.uid(), nix::unistd::geteuid().as_raw());
        assert_eq!(caller.gid(), nix::unistd::getegid().as_raw());
        assert_eq!(caller.pid.unsigned_abs(), std::process::id());
        let own = std::env::current_exe().unwrap();
        assert_eq!(caller.path(), Some(own.as_path()));
        assert_eq!(caller.sha256(), None);
        caller.hash().await;
        let expected = digest::digest(&digest::SHA256, &std::fs::read(own).unwrap());
        assert_eq!(caller.sha256().unwrap().as_slice(), expected.as_ref());
    }

    #[test]
    fn a_caller_that_ended_before_it_was_looked_at_has_no_executable() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "issuer::attest::tests::connect_and_end",
            ])
            .env(SOCKET, &socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (accepted, _) = listener.accept().unwrap();
        child.wait().unwrap();
        let caller = Credentials::of(&accepted).unwrap().attest();
        assert_eq!(caller.pid.unsigned_abs(), child.id());
        assert_eq!(caller.path(), None);
        assert_eq!(caller.uid(), nix::unistd::geteuid().as_raw());
    }

    #[test]
    fn an_executable_that_was_deleted_or_replaced_has_no_path() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let mut child = loop {
            match Command::new(&program).arg("600").spawn() {
                // A process that another test is just making still holds the file for writing.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                spawned => break spawned.unwrap(),
            }
        };
        let pid = i32::try_from(child.id()).unwrap();
        // Between fork and exec the child is still this test.
        while Executable::of(pid).unwrap().path.as_deref() != Some(&program) {
            std::thread::yield_now();
        }
        std::fs::remove_file(&program).unwrap();
        assert_eq!(Executable::of(pid).unwrap().path, None);
        std::fs::copy("/bin/sleep", dir.path().join("program (deleted)")).unwrap();
        assert_eq!(Executable::of(pid).unwrap().path, None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    const SOCKET: &str = "DOORWARD_TEST_SOCKET";

    #[test]
    #[ignore = "the caller in another test, which runs it as a process of its own"]
    fn connect_and_end() {
        if let Some(socket) = std::env::var_os(SOCKET) {
            UnixStream::connect(socket).unwrap();
        }
    }
}
