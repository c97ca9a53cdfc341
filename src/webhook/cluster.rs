//! How do we ask the API server of the cluster that we run in? With the token of the pod's own service
//! account.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use serde_json::Value;

use crate::identity::bundle_document::{self, BundleFileError};
use crate::{tls, web};

/// The API server, and where the pod's service account is.
#[derive(Debug)]
pub(super) struct Cluster {
    host: String,
    port: u16,
    name: ServerName<'static>,
    account: PathBuf,
}

/// Where Kubernetes puts the pod's service account.
pub(super) const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How long one request may take in all.
const PATIENCE: Duration = Duration::from_secs(10);

/// No object in etcd is larger.
const LARGEST: usize = 3 << 20;

impl Cluster {
    /// The one whose API server the kubelet names in the environment of every container. `account` is the
    /// directory with `token` and `ca.crt`, both of which are renewed there.
    pub(super) fn of_this_pod(account: &Path) -> Result<Self, NoCluster> {
        let variable = |name| std::env::var(name).map_err(|_| NoCluster::Variable(name));
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        Ok(Self {
            port: port.parse().map_err(|_| NoCluster::Port(port))?,
            name: ServerName::try_from(host.clone()).map_err(|_| NoCluster::Host(host.clone()))?,
            host,
            account: account.to_owned(),
        })
    }

    /// Its port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// What is read at each request.
    pub(super) fn files(&self) -> [PathBuf; 2] {
        ["token", "ca.crt"].map(|name| self.account.join(name))
    }

    /// The object at `path`.
    pub(super) async fn get(&self, path: &str) -> Result<Value, ClusterError> {
        self.ask(Method::GET, path, None).await
    }

    /// Changes the object at `path` by a JSON patch (RFC 6902).
    pub(super) async fn patch(&self, path: &str, patch: &Value) -> Result<Value, ClusterError> {
        self.ask(Method::PATCH, path, Some(patch)).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        patch: Option<&Value>,
    ) -> Result<Value, ClusterError> {
        let asking = self.exchange(method, path, patch);
        match tokio::time::timeout(PATIENCE, asking).await {
            Ok(answered) => answered,
            Err(_) => Err(ClusterError::Timeout),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        patch: Option<&Value>,
    ) -> Result<Value, ClusterError> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| ClusterError::Read(path.clone(), error))
        };
        let [token, ca] = &self.files();
        let token = String::from_utf8_lossy(&read(token)?).trim().to_owned();
        let roots = bundle_document::read_file(&read(ca)?)
            .map_err(|error| ClusterError::Roots(ca.clone(), error))?;
        let mut store = RootCertStore::empty();
        for root in roots.certificates() {
            store.add(root.clone()).map_err(ClusterError::Tls)?;
        }
        let server = web::Server {
            host: self.host.clone(),
            port: self.port,
            tls: Some(web::Tls {
                name: self.name.clone(),
                config: Arc::new(tls::web_client(store).map_err(ClusterError::Tls)?),
            }),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, server.host_header())
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "doorward");
        let mut body = Bytes::new();
        if let Some(patch) = patch {
            request = request.header(header::CONTENT_TYPE, "application/json-patch+json");
            body = patch.to_string().into();
        }
        let request = request
            .body(Full::new(body))
            .map_err(ClusterError::Request)?;
        let response = server.ask(request, LARGEST).await?;
        let answer: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        if response.status() != StatusCode::OK {
            // A `Status` says why, for people.
            let why = answer["message"].as_str().unwrap_or("it does not say why");
            return Err(ClusterError::Status(response.status(), why.to_owned()));
        }
        Ok(answer)
    }
}

/// Why there is no API server to ask.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoCluster {
    #[error("the environment has no {0}: this is no pod of Kubernetes")]
    Variable(&'static str),
    #[error("KUBERNETES_SERVICE_HOST is `{0}`, neither a name nor an address")]
    Host(String),
    #[error("KUBERNETES_SERVICE_PORT is `{0}`, not a port")]
    Port(String),
}

/// Why the API server gave nothing this time.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterError {
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} cannot be used", .0.display())]
    Roots(PathBuf, #[source] BundleFileError),
    #[error("its certificates cannot be used for TLS")]
    Tls(#[source] rustls::Error),
    #[error("the request cannot be written")]
    Request(#[source] http::Error),
    #[error("the API server did not answer within {} s", PATIENCE.as_secs())]
    Timeout,
    #[error("the API server cannot be asked")]
    Web(#[from] web::Problem),
    #[error("the API server answered with status {0}: {1}")]
    Status(StatusCode, String),
}
