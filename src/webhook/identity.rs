//! What does the server show, and whose certificates does it want to see?

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::identity::bundle_document::{self, BundleFileError};
use crate::identity::{Bundle, Material};
use crate::live::{Change, Live, Source};
use crate::tls::WebServer;
use crate::watch::Watched;

/// The roots of clients, in a file that others replace.
#[derive(Debug)]
pub(super) struct Clients {
    path: PathBuf,
    watched: Watched,
}

impl Clients {
    /// Watches the file at `path`.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            watched: Watched::new([path.clone()]),
            path,
        }
    }
}

impl Source for Clients {
    type Item = Bundle;
    type Error = ClientsError;

    async fn next(&mut self) -> Result<Change<Bundle>, ClientsError> {
        let path = &self.path;
        let text = self.watched.news(|| async { std::fs::read(path) }).await;
        let text = text.map_err(|error| ClientsError::Read(path.clone(), error))?;
        let roots = bundle_document::read_file(&text)
            .map_err(|error| ClientsError::Roots(path.clone(), error))?;
        self.watched.take();
        Ok(Change::Replace(roots))
    }
}

/// Why there are no newer roots of clients.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientsError {
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} cannot be used", .0.display())]
    Roots(PathBuf, #[source] BundleFileError),
}

/// A source of [`Material`] as a source of servers. With `clients`, there is no server until their roots are
/// known.
#[derive(Debug)]
pub(super) struct Servers<S> {
    materials: S,
    clients: Option<(Arc<Live<Bundle>>, watch::Receiver<u64>)>,
    /// What the source said last.
    last: Option<Material>,
}

impl<S> Servers<S> {
    /// Joins both. The future of `materials` must be safe to drop.
    pub(super) fn new(materials: S, clients: Option<Arc<Live<Bundle>>>) -> Self {
        Self {
            materials,
            clients: clients.map(|clients| {
                let changes = clients.changes();
                (clients, changes)
            }),
            last: None,
        }
    }

    /// None, while one of the two is missing.
    fn server(&self) -> Option<Result<WebServer, rustls::Error>> {
        let material = self.last.clone()?;
        match &self.clients {
            None => Some(WebServer::new(material, None)),
            Some((clients, _)) => {
                let roots = clients.get()?;
                Some(WebServer::new(material, Some(&roots.value)))
            }
        }
    }
}

impl<S: Source<Item = Material>> Source for Servers<S> {
    type Item = WebServer;
    type Error = ServersError<S::Error>;

    async fn next(&mut self) -> Result<Change<WebServer>, Self::Error> {
        loop {
            tokio::select! {
                // First, because a source that is down is always ready: to fail.
                biased;
                () = changed(&mut self.clients) => {}
                change = self.materials.next() => match change.map_err(ServersError::Source)? {
                    Change::Replace(material) => self.last = Some(material),
                    Change::Withdraw => {
                        self.last = None;
                        return Ok(Change::Withdraw);
                    }
                },
            }
            if let Some(server) = self.server() {
                return server.map(Change::Replace).map_err(ServersError::Tls);
            }
        }
    }
}

/// Waits until there are other roots; for ever, if nobody asks for any.
async fn changed(clients: &mut Option<(Arc<Live<Bundle>>, watch::Receiver<u64>)>) {
    if let Some((_, changes)) = clients
        && changes.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Why there is no newer server.
#[derive(Debug, thiserror::Error)]
pub(super) enum ServersError<E> {
    /// The source of the certificate failed.
    #[error(transparent)]
    Source(E),
    /// rustls cannot work with it, or with the roots of clients.
    #[error("the certificate, or the roots of clients, cannot be used for TLS")]
    Tls(#[source] rustls::Error),
}
