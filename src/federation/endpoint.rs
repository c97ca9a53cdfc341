//! How is one bundle endpoint asked? A single HTTPS request on a connection of its own, with limits on
//! everything, and the server proved by the profile.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, Uri, header};
use http_body_util::Full;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;

use super::{Profile, Settings};
use crate::identity::bundle_document::{
    self, BundleDocument, BundleDocumentError, BundleFileError,
};
use crate::identity::{Bundle, SpiffeId, TrustDomain};
use crate::{tls, web};

/// How long one request may take in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a bundle is served: an `https` URL with a host, without user, query or fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    text: String,
    host: String,
    port: u16,
    path: String,
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let uri: Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        if uri.scheme_str() != Some("https") {
            return Err(UrlError::Scheme);
        }
        let authority = uri.authority().ok_or(UrlError::Malformed)?;
        let extra = authority.as_str().contains('@') || uri.query().is_some() || text.contains('#');
        if extra || authority.host().is_empty() {
            return Err(UrlError::Extra);
        }
        Ok(Self {
            text: text.to_owned(),
            // An IPv6 address stands in brackets there, and nowhere else.
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(443),
            path: uri.path().to_owned(),
        })
    }
}

impl Url {
    /// The port: 443 unless it names another.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Why a text is not the URL of a bundle endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No URL at all.
    #[error("not a URL: write for example `https://bundles.example.org:8443/`")]
    Malformed,
    /// Keys that come over plain HTTP could be anybody's.
    #[error("a bundle endpoint is reached by `https://`")]
    Scheme,
    /// A user, a query or a fragment.
    #[error("a bundle endpoint's URL has a host and a path and nothing else")]
    Extra,
}

/// One bundle endpoint, and how its server proves itself at the moment.
#[derive(Debug)]
pub(super) struct Endpoint {
    url: Url,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    /// Who answers, with `https_spiffe`; the document in force vouches for it.
    spiffe: Option<SpiffeId>,
    max_lifetime: Duration,
}

impl Endpoint {
    pub(super) fn open(settings: &Settings, max_lifetime: Duration) -> Result<Self, OpenError> {
        let url = settings.url.clone();
        let (tls, spiffe) = match &settings.profile {
            Profile::HttpsSpiffe { endpoint, bundle } => {
                let roots = read(bundle)?;
                let domain = endpoint.trust_domain().clone();
                let tls = expecting(endpoint, domain, roots, max_lifetime);
                (tls.map_err(OpenError::Tls)?, Some(endpoint.clone()))
            }
            Profile::HttpsWeb { ca } => {
                let mut store = RootCertStore::empty();
                for root in read(ca)?.certificates() {
                    store.add(root.clone()).map_err(OpenError::Tls)?;
                }
                (tls::web_client(store).map_err(OpenError::Tls)?, None)
            }
        };
        Ok(Self {
            name: ServerName::try_from(url.host.clone())
                .map_err(|_| OpenError::Host(url.clone()))?,
            url,
            tls: Arc::new(tls),
            spiffe,
            max_lifetime,
        })
    }

    /// From now on `bundle` vouches for the server, if SPIFFE is how it proves itself.
    pub(super) fn believe(
        &mut self,
        domain: &TrustDomain,
        bundle: &Bundle,
    ) -> Result<(), rustls::Error> {
        if let Some(id) = &self.spiffe {
            let tls = expecting(id, domain.clone(), bundle.clone(), self.max_lifetime)?;
            self.tls = Arc::new(tls);
        }
        Ok(())
    }

    /// Asks for the document.
    pub(super) async fn fetch(&self) -> Result<BundleDocument, FetchError> {
        let problem = match tokio::time::timeout(PATIENCE, self.ask()).await {
            Ok(Ok(document)) => return Ok(document),
            Ok(Err(problem)) => problem,
            Err(_) => FetchProblem::Timeout,
        };
        Err(FetchError {
            url: self.url.text.clone(),
            problem: Box::new(problem),
        })
    }

    async fn ask(&self) -> Result<BundleDocument, FetchProblem> {
        let server = web::Server {
            host: self.url.host.clone(),
            port: self.url.port,
            tls: Some(web::Tls {
                name: self.name.clone(),
                config: self.tls.clone(),
            }),
        };
        let request = Request::get(&self.url.path)
            .header(header::HOST, server.host_header())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "doorward")
            .body(Full::default())
            .map_err(FetchProblem::Request)?;
        let response = server.ask(request, bundle_document::LARGEST).await?;
        if response.status() != StatusCode::OK {
            return Err(FetchProblem::Status(response.status()));
        }
        BundleDocument::parse(response.body()).map_err(FetchProblem::Document)
    }
}

fn expecting(
    id: &SpiffeId,
    domain: TrustDomain,
    bundle: Bundle,
    max_lifetime: Duration,
) -> Result<ClientConfig, rustls::Error> {
    let bundles = [(domain, bundle)].into_iter().collect();
    tls::anonymous_client(Arc::new(bundles), id.clone().into(), max_lifetime)
}

fn read(path: &Path) -> Result<Bundle, OpenError> {
    let text = std::fs::read(path).map_err(|error| OpenError::Read(path.into(), error))?;
    let roots = bundle_document::read_file(&text);
    roots.map_err(|error| OpenError::File(path.into(), error))
}

/// Why a relationship cannot be taken up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file that it names cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file that it names holds no certificates.
    #[error("{} cannot be used", .0.display())]
    File(PathBuf, #[source] BundleFileError),
    /// The host is neither a name nor an address.
    #[error("the host of {0} is neither a name nor an address")]
    Host(Url),
    /// rustls cannot work with the certificates.
    #[error("the certificates cannot be used for TLS")]
    Tls(#[source] rustls::Error),
}

/// Why a bundle endpoint gave nothing this time.
#[derive(Debug, thiserror::Error)]
#[error("no bundle from {url}")]
pub struct FetchError {
    url: String,
    #[source]
    problem: Box<FetchProblem>,
}

/// What went wrong there.
#[derive(Debug, thiserror::Error)]
enum FetchProblem {
    #[error("it did not answer within {} s", PATIENCE.as_secs())]
    Timeout,
    #[error(transparent)]
    Web(#[from] web::Problem),
    #[error("the request cannot be written")]
    Request(#[source] http::Error),
    #[error("it answered with status {0}, not 200")]
    Status(StatusCode),
    #[error("its answer is no bundle document")]
    Document(#[source] BundleDocumentError),
}
