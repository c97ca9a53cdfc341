//! Where the CA is kept between two runs, if the operator names a file for it: readable by its owner
//! alone, or not used at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::libc;
use nix::unistd::geteuid;
use zeroize::Zeroizing;

use crate::identity::TrustDomain;

use super::authority::{Authority, AuthorityError};

/// The CA kept at `path`, or a new one that is kept there from now on.
///
/// # Errors
/// [`KeyFileError`]: also if others may read the file, or it is somebody else's.
pub(crate) fn open(
    path: &Path,
    domain: &TrustDomain,
    lifetime: Duration,
    now: SystemTime,
) -> Result<Authority, KeyFileError> {
    let io = |error| KeyFileError::Io(path.to_owned(), error);
    let ca = |error| KeyFileError::Authority(path.to_owned(), error);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let authority = Authority::generate(domain, lifetime, now).map_err(ca)?;
            create(path, &authority.to_pem()).map_err(io)?;
            sync_parent(path).map_err(io)?;
            return Ok(authority);
        }
        Err(error) => return Err(io(error)),
    };
    check(path, &file)?;
    let mut text = Zeroizing::new(String::new());
    (&mut file)
        .take(LARGEST)
        .read_to_string(&mut text)
        .map_err(io)?;
    let authority = Authority::from_pem(&text, domain, lifetime, now).map_err(ca)?;
    if authority.to_pem() != text {
        replace(path, &authority)?;
    }
    Ok(authority)
}

/// Puts `authority` in the place of what is kept at `path`, whole or not at all.
///
/// # Errors
/// [`KeyFileError::Io`]
pub(crate) fn replace(path: &Path, authority: &Authority) -> Result<(), KeyFileError> {
    let write = || {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        create(&beside, &authority.to_pem())?;
        std::fs::rename(&beside, path)?;
        sync_parent(path)
    };
    write().map_err(|error| KeyFileError::Io(path.to_owned(), error))
}

/// Far more than a CA needs.
const LARGEST: u64 = 1 << 20;

/// Asked of the open file, so that nobody can put another one there in between.
fn check(path: &Path, file: &File) -> Result<(), KeyFileError> {
    let found = file
        .metadata()
        .map_err(|error| KeyFileError::Io(path.to_owned(), error))?;
    if !found.is_file() {
        return Err(KeyFileError::NotAFile(path.to_owned()));
    }
    if found.uid() != geteuid().as_raw() {
        return Err(KeyFileError::Owner(path.to_owned(), found.uid()));
    }
    let mode = found.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Mode(path.to_owned(), mode));
    }
    Ok(())
}

/// Writes a file that was not there before and that only its owner can read.
fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

/// Why the CA cannot be kept in its file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// Whoever can read the file can be any workload.
    #[error("{0}: others may read this CA key (mode {1:04o}); let only its owner: chmod 600")]
    Mode(PathBuf, u32),
    /// Whoever owns the file can read it.
    #[error("{0}: this CA key belongs to the user with uid {1}")]
    Owner(PathBuf, u32),
    /// A directory, a pipe.
    #[error("{0}: the CA key must be a plain file")]
    NotAFile(PathBuf),
    /// It cannot be read or written.
    #[error("{0}: the CA key cannot be read or written")]
    Io(PathBuf, #[source] io::Error),
    /// What it holds is not usable.
    #[error("{0}: no CA")]
    Authority(PathBuf, #[source] AuthorityError),
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn open_at(path: &Path, now: SystemTime) -> Result<Authority, KeyFileError> {
        open(path, &TrustDomain::parse("example.org").unwrap(), DAY, now)
    }

    #[test]
    fn the_ca_is_made_once_for_its_owner_alone_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let now = SystemTime::now();
        let first = open_at(&path, now).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = open_at(&path, now).unwrap();
        assert_eq!(again.x509_bundle(), first.x509_bundle());
    }

    #[test]
    fn a_ca_renewed_at_start_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let now = SystemTime::now();
        open_at(&path, now).unwrap();
        let renewed = open_at(&path, now + DAY * 3 / 4).unwrap();
        let again = open_at(&path, now + DAY * 3 / 4).unwrap();
        assert_eq!(again.x509_bundle(), renewed.x509_bundle());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let now = SystemTime::now();
        open_at(&path, now).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o660] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = open_at(&path, now).unwrap_err();
            assert!(matches!(error, KeyFileError::Mode(_, told) if told == mode));
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o400)).unwrap();
        open_at(&path, now).unwrap();
    }

    #[test]
    fn what_is_no_plain_file_of_ours_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let error = open_at(dir.path(), now).unwrap_err();
        assert!(matches!(error, KeyFileError::NotAFile(_)), "{error:?}");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let error = open_at(&link, now).unwrap_err();
        assert!(matches!(error, KeyFileError::Io(..)), "{error:?}");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, "").unwrap();
        std::fs::set_permissions(&empty, Permissions::from_mode(0o600)).unwrap();
        let error = open_at(&empty, now).unwrap_err();
        assert!(matches!(error, KeyFileError::Authority(..)), "{error:?}");
        if !geteuid().is_root() {
            return;
        }
        let path = dir.path().join("ca.pem");
        open_at(&path, now).unwrap();
        std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
        let error = open_at(&path, now).unwrap_err();
        assert!(matches!(error, KeyFileError::Owner(_, 12345)), "{error:?}");
    }
}
