//! Are there file descriptors left? Whoever opens connections may use them up, but not the last ones.
//!
//! Linux gives out the lowest free number, so the number of a new descriptor says how many are in use.
//! Connections of the data path leave the highest numbers alone: probes, metrics, the audit file, a changed
//! policy and the identity's source find one even when every connection that may be open is.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Takes what the hard limit allows: the soft one is meant for programs that use `select`, and we do not.
/// Returns how many descriptors there may be.
///
/// # Errors
/// What the kernel says.
pub fn raise() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

/// What a new connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Somebody connected to us.
    Accepted,
    /// We connect onwards, for what was accepted.
    Onwards,
}

impl Use {
    /// Descriptors below this number, of `limit`, are for it. A quarter is left to connect onwards with.
    const fn ceiling(self, limit: u64) -> u64 {
        let reserve = if limit / 8 < RESERVE {
            limit / 8
        } else {
            RESERVE
        };
        match self {
            Self::Accepted => limit - limit / 4,
            Self::Onwards => limit - reserve,
        }
    }

    /// Whether `descriptor`, just opened, is one of those for it.
    ///
    /// # Errors
    /// `EMFILE`, as if there were none.
    pub fn may_have(self, descriptor: &impl AsFd) -> io::Result<()> {
        // A limit that cannot be read is not reached.
        let Ok((limit, _)) = getrlimit(Resource::RLIMIT_NOFILE) else {
            return Ok(());
        };
        let number = u64::try_from(descriptor.as_fd().as_raw_fd()).unwrap_or_default();
        if number < self.ceiling(limit) {
            Ok(())
        } else {
            Err(Errno::EMFILE.into())
        }
    }

    /// Whether there is one for it, as a copy of `open` tells.
    ///
    /// # Errors
    /// What the kernel says, or `EMFILE`.
    pub fn is_left(self, open: &impl AsFd) -> io::Result<()> {
        self.may_have(&open.as_fd().try_clone_to_owned()?)
    }
}

/// Whether `error` says that the process, or the machine, has run out of descriptors or of memory for
/// sockets.
#[must_use]
pub fn ran_out(error: &io::Error) -> bool {
    const OUT: [Errno; 4] = [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM];
    error
        .raw_os_error()
        .is_some_and(|code| OUT.contains(&Errno::from_raw(code)))
}

/// Descriptors that no connection of the data path gets, where there are enough: as many as the admin and
/// metrics listeners may hold, and some for files.
const RESERVE: u64 = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_some_to_those_we_open_for_them_and_both_to_probes() {
        for (limit, accepted, onwards) in [
            (1_048_576, 786_432, 1_048_416),
            (1024, 768, 896),
            (64, 48, 56),
            (0, 0, 0),
        ] {
            assert_eq!(Use::Accepted.ceiling(limit), accepted);
            assert_eq!(Use::Onwards.ceiling(limit), onwards);
        }
    }

    #[test]
    fn only_what_ran_out_is_taken_for_it() {
        for (errno, out) in [
            (Errno::EMFILE, true),
            (Errno::ENFILE, true),
            (Errno::ENOBUFS, true),
            (Errno::ENOMEM, true),
            (Errno::ECONNABORTED, false),
            (Errno::ECONNREFUSED, false),
        ] {
            assert_eq!(ran_out(&errno.into()), out, "{errno}");
        }
        assert!(!ran_out(&io::ErrorKind::OutOfMemory.into()));
    }
}
