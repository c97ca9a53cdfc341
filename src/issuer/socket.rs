//! The socket file: made, taken over when nobody answers on it, and removed again.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// A listening Unix socket with its file, which goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) listener: UnixListener,
    path: PathBuf,
    file: (u64, u64),
}

impl Socket {
    /// Listens at `path`. Anybody may connect: it is attestation that decides who gets what. The
    /// directory around it is the operator's and stays as it is.
    pub(crate) async fn bind(path: &Path) -> Result<Self, SocketError> {
        clear(path).await?;
        let listen = || {
            let socket = Self {
                listener: UnixListener::bind(path)?,
                path: path.to_owned(),
                file: identity(path)?,
            };
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))?;
            Ok(socket)
        };
        listen().map_err(|error| SocketError::Bind(path.to_owned(), error))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Another issuer may have put its own file there by now.
        if identity(&self.path).is_ok_and(|file| file == self.file) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes what a predecessor left behind when it was killed.
async fn clear(path: &Path) -> Result<(), SocketError> {
    let bind = |error| SocketError::Bind(path.to_owned(), error);
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(bind(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match timeout(PATIENCE, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(bind)
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Even a listener too busy to answer is one.
        Ok(Ok(_)) | Err(_) => Err(SocketError::Served(path.to_owned())),
        Ok(Err(error)) => Err(bind(error)),
    }
}

const PATIENCE: Duration = Duration::from_secs(2);

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = std::fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

/// Why the issuer cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("{0}: another process already listens on this socket")]
    Served(PathBuf),
    /// It is not ours to remove.
    #[error("{0}: something that is not a socket is in the way")]
    NotASocket(PathBuf),
    /// The system says no.
    #[error("{0}: cannot listen on this socket")]
    Bind(PathBuf, #[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_answers_is_left_alone_and_a_stale_one_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = Socket::bind(&path).await.unwrap();
        let error = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(error, SocketError::Served(_)), "{error}");
        assert!(path.exists());
        drop(first);
        assert!(!path.exists());

        // As a killed process leaves it behind.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Socket::bind(&path).await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o777);

        // A successor's file is not ours to remove.
        std::fs::remove_file(&path).unwrap();
        let third = Socket::bind(&path).await.unwrap();
        drop(second);
        assert!(path.exists());
        drop(third);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn what_is_not_a_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path).await.unwrap_err();
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let nowhere = dir.path().join("no/such/dir");
        let error = Socket::bind(&nowhere).await.unwrap_err();
        assert!(matches!(error, SocketError::Bind(..)), "{error}");
    }
}
