//! How is a Prometheus server asked? By its HTTP API, over HTTP or HTTPS, with limits on time and size.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::identity::bundle_document::{self, BundleFileError};
use crate::{tls, web};

/// The labels of a series, the name of its metric among them as `__name__`.
pub type Labels = BTreeMap<String, String>;

/// One series of an answer: its labels, and its samples in order of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Who it is.
    pub labels: Labels,
    /// Times in milliseconds since the epoch, and values; those that are no number are left out.
    pub samples: Vec<(i64, f64)>,
}

/// Where a server is: `http` or `https`, a host, and perhaps a path before `/api/v1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    text: String,
    host: String,
    port: u16,
    secure: bool,
    path: String,
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let uri: Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(UrlError::Malformed),
        };
        let authority = uri.authority().ok_or(UrlError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::User);
        }
        if uri.query().is_some() || text.contains('#') || authority.host().is_empty() {
            return Err(UrlError::Malformed);
        }
        Ok(Self {
            text: text.trim_end_matches('/').to_owned(),
            // An IPv6 address stands in brackets there, and nowhere else.
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority
                .port_u16()
                .unwrap_or(if secure { 443 } else { 80 }),
            secure,
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Url {
    fn is_here(&self) -> bool {
        let address: Option<IpAddr> = self.host.parse().ok();
        self.host == "localhost" || address.is_some_and(|address| address.is_loopback())
    }
}

/// Why a text is not the URL of a Prometheus server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No URL, or one with more than a path.
    #[error(
        "write for example `http://127.0.0.1:9090` or `https://prometheus.example.org/prometheus`"
    )]
    Malformed,
    /// A user, and perhaps a password: it would show in the process list.
    #[error("a user does not belong in the URL: write `--token-file FILE`")]
    User,
}

/// How the server is to be asked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it is.
    pub url: Url,
    /// Who may vouch for it, in PEM; only for `https`.
    pub ca: Option<PathBuf>,
    /// A file with the bearer token that it wants.
    pub token_file: Option<PathBuf>,
    /// How long one answer may take.
    pub timeout: Duration,
}

/// Somebody who asks one server.
#[derive(Debug)]
pub struct Client {
    url: Url,
    server: web::Server,
    token: Option<HeaderValue>,
    timeout: Duration,
    largest: usize,
    warnings: Mutex<BTreeSet<String>>,
}

impl Client {
    /// Reads the files that `settings` names. Nobody is asked yet.
    ///
    /// # Errors
    /// [`OpenError`] if one cannot be used, or a token would travel in plain.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        let url = settings.url.clone();
        let tls = match url.secure {
            true => Some(tls_for(&url, settings.ca.as_deref())?),
            false => None,
        };
        let token = match &settings.token_file {
            None => None,
            Some(_) if !url.secure && !url.is_here() => return Err(OpenError::Plain(url)),
            Some(path) => Some(token(path)?),
        };
        Ok(Self {
            server: web::Server {
                host: url.host.clone(),
                port: url.port,
                tls,
            },
            url,
            token,
            timeout: settings.timeout,
            largest: LARGEST,
            warnings: Mutex::default(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// What the server warned of so far, as of data that it could not reach.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.warnings.lock();
        let warnings = warnings.unwrap_or_else(PoisonError::into_inner);
        warnings.iter().cloned().collect()
    }

    /// The answer to `query` at `at`, in milliseconds since the epoch. A range gives all its samples.
    ///
    /// # Errors
    /// [`AskError`] with the URL and what the server said.
    pub async fn instant(&self, query: &str, at: i64) -> Result<Vec<Series>, AskError> {
        let form = [("query", query), ("time", &seconds(at))];
        self.series("/api/v1/query", &form).await
    }

    /// The answers to `query` at `from`, every `step` after it, until `to`, all in milliseconds.
    ///
    /// # Errors
    /// As [`Client::instant`].
    pub async fn range(
        &self,
        query: &str,
        from: i64,
        to: i64,
        step: i64,
    ) -> Result<Vec<Series>, AskError> {
        let form = [
            ("query", query),
            ("start", &*seconds(from)),
            ("end", &*seconds(to)),
            ("step", &*seconds(step)),
        ];
        self.series("/api/v1/query_range", &form).await
    }

    /// How long the server says that it keeps what it has; none where it does not tell, as servers that
    /// only speak its language do.
    ///
    /// # Errors
    /// If it cannot be asked at all.
    pub async fn retention(&self) -> Result<Option<Duration>, AskError> {
        match self
            .ask::<RuntimeInfo>("/api/v1/status/runtimeinfo", None)
            .await
        {
            Ok(told) => Ok(told.storage_retention.as_deref().and_then(duration)),
            Err(error) if error.is_an_answer() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn series(&self, path: &str, form: &[(&str, &str)]) -> Result<Vec<Series>, AskError> {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(form);
        let data: Data = self.ask(path, Some(body.finish())).await?;
        let series = match data {
            Data::Vector(vector) => vector
                .into_iter()
                .map(|one| (one.metric, vec![one.value]))
                .collect(),
            Data::Matrix(matrix) => matrix
                .into_iter()
                .map(|one| (one.metric, one.values))
                .collect(),
            Data::Scalar(_) | Data::String(_) => Vec::new(),
        };
        let read = series
            .into_iter()
            .map(|(labels, samples): (_, Vec<_>)| Series {
                labels,
                samples: samples.into_iter().filter_map(sample).collect(),
            });
        Ok(read.filter(|series| !series.samples.is_empty()).collect())
    }

    /// Long queries do not fit in a URL, so they are posted as a form.
    async fn ask<T: DeserializeOwned>(
        &self,
        path: &str,
        form: Option<String>,
    ) -> Result<T, AskError> {
        let asked = tokio::time::timeout(self.timeout, self.try_ask(path, form)).await;
        asked
            .unwrap_or(Err(Problem::Timeout(self.timeout)))
            .map_err(|problem| AskError {
                url: format!("{}{path}", self.url),
                problem: Box::new(problem),
            })
    }

    async fn try_ask<T: DeserializeOwned>(
        &self,
        path: &str,
        form: Option<String>,
    ) -> Result<T, Problem> {
        let method = match form {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url.path))
            .header(header::HOST, self.server.host_header())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, "doorward");
        if form.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        let body = Full::new(Bytes::from(form.unwrap_or_default()));
        let request = request.body(body).map_err(Problem::Request)?;
        let response = self.server.ask(request, self.largest).await?;
        let (status, body) = (response.status(), response.body());
        match serde_json::from_slice(body) {
            Ok(Answer {
                data: Some(data),
                error: None,
                warnings,
                ..
            }) if status == StatusCode::OK => {
                let mut kept = self.warnings.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend(warnings.iter().map(|warning| shown(warning.as_bytes())));
                Ok(data)
            }
            Ok(Answer {
                error: Some(said),
                kind,
                ..
            }) => Err(Problem::Refused {
                status,
                kind: shown(kind.as_bytes()),
                said: shown(said.as_bytes()),
            }),
            _ if status != StatusCode::OK => Err(Problem::Status {
                status,
                said: shown(body),
            }),
            _ => Err(Problem::Strange { said: shown(body) }),
        }
    }
}

/// What thousands of series with 120 samples each take, and more than enough to stop at.
const LARGEST: usize = 256 << 20;

/// What is here when nobody says otherwise.
const SYSTEM_CA: &str = "/etc/ssl/certs/ca-certificates.crt";

fn tls_for(url: &Url, ca: Option<&Path>) -> Result<web::Tls, OpenError> {
    let path = ca.unwrap_or(Path::new(SYSTEM_CA));
    let text = std::fs::read(path).map_err(|error| OpenError::Read(path.into(), error))?;
    let roots = bundle_document::read_file(&text);
    let roots = roots.map_err(|error| OpenError::Ca(path.into(), error))?;
    let mut store = RootCertStore::empty();
    for root in roots.certificates() {
        store.add(root.clone()).map_err(OpenError::Tls)?;
    }
    let name = ServerName::try_from(url.host.clone());
    Ok(web::Tls {
        name: name.map_err(|_| OpenError::Host(url.clone()))?,
        config: Arc::new(tls::web_client(store).map_err(OpenError::Tls)?),
    })
}

fn token(path: &Path) -> Result<HeaderValue, OpenError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| OpenError::Read(path.into(), error))?;
    let mut value = HeaderValue::from_str(&format!("Bearer {}", text.trim()))
        .map_err(|_| OpenError::Token(path.into()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A text of the server's, fit to be shown: one line, not too long, nothing that moves a cursor.
fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let words: Vec<_> = text.split_whitespace().collect();
    let line = words.join(" ");
    let mut cut: String = line
        .chars()
        .filter(|c| !c.is_control())
        .take(LONGEST_SAYING)
        .collect();
    if cut.len() < line.len() {
        cut.push('…');
    }
    cut
}

const LONGEST_SAYING: usize = 300;

fn seconds(milliseconds: i64) -> String {
    format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a time in milliseconds is far from where an f64 and an i64 differ"
)]
fn sample((time, value): (f64, String)) -> Option<(i64, f64)> {
    let value: f64 = value.parse().ok()?;
    value
        .is_finite()
        .then_some(((time * 1000.0).round() as i64, value))
}

/// A duration as Prometheus writes it, as in `15d` or `2w`, perhaps with a size behind it.
fn duration(text: &str) -> Option<Duration> {
    let first = text.split_whitespace().next()?;
    humantime::parse_duration(first).ok()
}

#[derive(Deserialize)]
struct Answer<T> {
    data: Option<T>,
    #[serde(default)]
    warnings: Vec<String>,
    #[serde(rename = "errorType", default)]
    kind: String,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Instant>),
    Matrix(Vec<Range>),
    Scalar(serde::de::IgnoredAny),
    String(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct Instant {
    metric: Labels,
    value: (f64, String),
}

#[derive(Deserialize)]
struct Range {
    metric: Labels,
    values: Vec<(f64, String)>,
}

#[derive(Deserialize)]
struct RuntimeInfo {
    #[serde(rename = "storageRetention")]
    storage_retention: Option<String>,
}

/// Why the server cannot be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// A file holds no certificates.
    #[error("{} cannot be used as the CAs that may vouch for the server", .0.display())]
    Ca(PathBuf, #[source] BundleFileError),
    /// A file holds no token.
    #[error("{} does not hold a bearer token: one line of visible characters", .0.display())]
    Token(PathBuf),
    /// The token could be read by anybody on the way.
    #[error("the token would travel in plain to {0}: use https")]
    Plain(Url),
    /// The host is neither a name nor an address.
    #[error("the host of {0} is neither a name nor an address")]
    Host(Url),
    /// rustls cannot work with the certificates.
    #[error("the certificates cannot be used for TLS")]
    Tls(#[source] rustls::Error),
}

/// Why the server gave no answer to one question.
#[derive(Debug, thiserror::Error)]
#[error("no answer from {url}")]
pub struct AskError {
    url: String,
    #[source]
    problem: Box<Problem>,
}

impl AskError {
    /// Whether the server answered, if only that it would not.
    fn is_an_answer(&self) -> bool {
        matches!(
            *self.problem,
            Problem::Refused { .. } | Problem::Status { .. } | Problem::Strange { .. }
        )
    }
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("it took longer than {}: raise --timeout, or shorten --since", humantime::format_duration(*.0))]
    Timeout(Duration),
    #[error(transparent)]
    Web(#[from] web::Problem),
    #[error("the request cannot be written")]
    Request(#[source] http::Error),
    #[error("it answered {status} ({kind}): {said}")]
    Refused {
        status: StatusCode,
        kind: String,
        said: String,
    },
    #[error("it answered with status {status}: {said}")]
    Status { status: StatusCode, said: String },
    #[error("what it answered is not from Prometheus' API: {said}")]
    Strange { said: String },
}

#[cfg(test)]
mod tests;
