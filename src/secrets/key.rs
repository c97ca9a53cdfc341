//! By what is a secret recognised that is not kept? A keyed fingerprint.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use zeroize::Zeroizing;

/// What fingerprints are made with. Without it nobody can try guesses at a secret against its fingerprint:
/// a plain digest of a password is as good as the password.
pub struct Key(hmac::Key);

impl Key {
    /// A key that ends with the process: fingerprints can be compared from one start to the next stop.
    ///
    /// # Errors
    /// When the system has no random numbers.
    pub fn generate() -> Result<Self, KeyError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new());
        let key = key.map_err(|Unspecified| KeyError::Random)?;
        Ok(Self(key))
    }

    /// The key in the file at `path`, so that fingerprints can be compared over restarts and over all
    /// sidecars with the same file. White space at its end does not count.
    ///
    /// # Errors
    /// Also if others may read the file, or it holds too little to be secret or too much to be meant.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let io = |error| KeyError::Io(path.to_owned(), error);
        let file = File::open(path).map_err(io)?;
        // Asked of the open file, so that nobody can put another one there in between.
        let mode = file.metadata().map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Mode(path.to_owned(), mode));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST + 1));
        let limit = bytes.capacity() as u64;
        file.take(limit).read_to_end(&mut bytes).map_err(io)?;
        let key = bytes.trim_ascii_end();
        if bytes.len() > LONGEST || key.len() < SHORTEST {
            return Err(KeyError::Length(path.to_owned()));
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, key)))
    }

    /// The fingerprint of `secret`.
    #[must_use]
    pub fn fingerprint(&self, secret: &[u8]) -> Fingerprint {
        let tag = hmac::sign(&self.0, secret);
        let (first, _) = tag
            .as_ref()
            .split_first_chunk()
            .expect("a tag of SHA-256 has 32 bytes");
        Fingerprint(*first)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").finish_non_exhaustive()
    }
}

/// In bytes: less can be guessed.
const SHORTEST: usize = 16;

/// In bytes: more is some other file.
const LONGEST: usize = 4096;

/// HMAC-SHA-256 of a secret, its first half: equal for equal secrets, and else of no use to anybody.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why there is no key for fingerprints.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the fingerprint key {}", .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// Whoever can read the key can try guesses.
    #[error("{}: others may read this fingerprint key (mode {:04o}); let only its owner: chmod 600", .0.display(), .1)]
    Mode(PathBuf, u32),
    /// It holds too little to be secret, or too much to be meant.
    #[error("{}: a fingerprint key has {SHORTEST} to {LONGEST} bytes; make one with: openssl rand -hex 32", .0.display())]
    Length(PathBuf),
    /// There is no randomness.
    #[error("the system gives no random numbers")]
    Random,
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_fingerprint_is_the_same_only_for_the_same_secret_under_the_same_key() {
        let (one, other) = (Key::generate().unwrap(), Key::generate().unwrap());
        assert_eq!(one.fingerprint(b"hunter2"), one.fingerprint(b"hunter2"));
        assert_ne!(one.fingerprint(b"hunter2"), one.fingerprint(b"hunter3"));
        assert_ne!(one.fingerprint(b"hunter2"), other.fingerprint(b"hunter2"));
        let shown = one.fingerprint(b"hunter2").to_string();
        assert_eq!(shown.len(), 32);
        assert_eq!(format!("{one:?}"), "Key { .. }");
    }

    #[test]
    fn a_key_file_is_its_owners_alone_and_long_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let open = |content: &[u8], mode| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            Key::open(&path)
        };
        assert!(matches!(Key::open(&path), Err(KeyError::Io(..))));
        let key = b"0123456789abcdef";
        assert!(matches!(open(&key[1..], 0o600), Err(KeyError::Length(_))));
        assert!(matches!(
            open(&[b'x'; 4097], 0o600),
            Err(KeyError::Length(_))
        ));
        for mode in [0o640, 0o604, 0o660] {
            assert!(matches!(open(key, mode), Err(KeyError::Mode(_, found)) if found == mode));
            std::fs::remove_file(&path).unwrap();
        }
        let one = open(key, 0o600).unwrap();
        let same = open(b"0123456789abcdef\n", 0o400).unwrap();
        // RFC 2104 leaves no choice, so this joins with whatever else computes it.
        let expected = "deda27db21d02fd2c8f56d22f15960ff";
        assert_eq!(one.fingerprint(b"hunter2"), same.fingerprint(b"hunter2"));
        assert_eq!(one.fingerprint(b"hunter2").to_string(), expected);
    }
}
