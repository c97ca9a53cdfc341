//! What does a caller get to see? The SPIFFE Workload API (version 1), answered from the registry and
//! the CA as they are at this moment, and again whenever they change.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::Stream;
use futures_util::stream::unfold;
use prost_types::value::Kind;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::{error, info, warn};

use crate::identity::{SpiffeId, TrustDomain};
use crate::live::{Live, Snapshot};

use super::attest::Caller;
use super::authority::{Authority, AuthorityError};
use super::proto;
use super::registry::{Entry, Registry};

/// What all connections share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) registry: Live<Registry>,
    pub(crate) authority: Live<Authority>,
    pub(crate) stop: CancellationToken,
}

/// The service itself.
#[derive(Clone, Debug)]
pub(crate) struct WorkloadApi(pub(crate) Arc<Shared>);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl proto::SpiffeWorkloadApi for WorkloadApi {
    type FetchX509SVIDStream = Answers<proto::X509svidResponse>;
    type FetchX509BundlesStream = Answers<proto::X509BundlesResponse>;
    type FetchJWTBundlesStream = Answers<proto::JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<proto::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        Ok(Response::new(answers(self.session(&request)?)))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<proto::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        Ok(Response::new(answers(self.session(&request)?)))
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<proto::JwtsvidRequest>,
    ) -> Result<Response<proto::JwtsvidResponse>, Status> {
        let session = self.session(&request)?;
        session
            .jwt_svids(request.get_ref())
            .await
            .map(Response::new)
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<proto::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        Ok(Response::new(answers(self.session(&request)?)))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<proto::ValidateJwtsvidRequest>,
    ) -> Result<Response<proto::ValidateJwtsvidResponse>, Status> {
        let session = self.session(&request)?;
        // Only whoever has an identity may ask.
        session.entries().await?;
        let authority = session.authority()?;
        let asked = request.get_ref();
        if asked.audience.is_empty() || asked.svid.is_empty() {
            return Err(Status::invalid_argument("audience and svid are required"));
        }
        let (id, claims) = authority
            .value
            .validate(&asked.svid, &asked.audience, SystemTime::now())
            .map_err(|error| {
                Status::invalid_argument(format!("the JWT-SVID is not valid: {error}"))
            })?;
        Ok(Response::new(proto::ValidateJwtsvidResponse {
            spiffe_id: id.to_string(),
            claims: Some(structure(claims)),
        }))
    }
}

impl WorkloadApi {
    /// Begins to serve one request.
    fn session<T>(&self, request: &Request<T>) -> Result<Session, Status> {
        // Workload Endpoint §6.2: keeps out whoever is made to send requests for somebody else.
        let header = request.metadata().get("workload.spiffe.io");
        if header.is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument(
                "the metadata `workload.spiffe.io: true` is missing",
            ));
        }
        let Some(caller) = request.extensions().get::<Arc<Caller>>() else {
            error!("a connection came without its caller's attestation");
            return Err(Status::internal("the caller is not attested"));
        };
        Ok(Session {
            shared: self.0.clone(),
            caller: caller.clone(),
            registry_changes: self.0.registry.changes(),
            authority_changes: self.0.authority.changes(),
            given: None,
            due: None,
        })
    }
}

/// One request of one caller, for as long as its stream is open.
#[derive(Debug)]
struct Session {
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    registry_changes: watch::Receiver<u64>,
    authority_changes: watch::Receiver<u64>,
    /// The caller's entries and the CA's generation that the last answer was made from; none if another
    /// one is to be made in any case.
    given: Option<(Vec<Entry>, u64)>,
    /// When an answer must be made again although nothing has changed.
    due: Option<Due>,
}

#[derive(Clone, Copy, Debug)]
struct Due {
    /// When the last answer was made.
    since: SystemTime,
    at: SystemTime,
}

/// What a stream is made of. An answer depends on nothing but the caller's entries, of which there is at
/// least one, and the CA.
trait Answer: Send + Sized + 'static {
    /// Makes it, and says when it must be made again.
    fn make(
        caller: &Caller,
        entries: &[Entry],
        authority: &Authority,
        now: SystemTime,
    ) -> Result<(Self, Option<SystemTime>), AuthorityError>;
}

impl Answer for proto::X509svidResponse {
    /// All of the caller's SVIDs together, each time with new keys.
    fn make(
        caller: &Caller,
        entries: &[Entry],
        authority: &Authority,
        now: SystemTime,
    ) -> Result<(Self, Option<SystemTime>), AuthorityError> {
        let mut svids = Vec::with_capacity(entries.len());
        let mut due = None::<SystemTime>;
        for entry in entries {
            let svid = authority.x509_svid(&entry.id, entry.lifetime, now)?;
            // The CA's own end may have made it shorter than the entry says.
            let half = svid.not_after.duration_since(now).unwrap_or_default() / 2;
            let at = now + entry.rotate_every.min(half.max(SHORTEST_PAUSE));
            due = Some(due.map_or(at, |due| due.min(at)));
            info!(
                id = %entry.id,
                serial = svid.serial,
                not_after = %humantime::format_rfc3339_seconds(svid.not_after),
                %caller,
                "issued an X509-SVID"
            );
            svids.push(proto::X509svid {
                spiffe_id: entry.id.to_string(),
                x509_svid: svid.certificate,
                x509_svid_key: svid.key.to_vec(),
                bundle: authority.x509_bundle(),
                hint: entry.hint.clone(),
            });
        }
        let response = Self {
            svids,
            ..Self::default()
        };
        Ok((response, due))
    }
}

impl Answer for proto::X509BundlesResponse {
    fn make(
        _: &Caller,
        _: &[Entry],
        authority: &Authority,
        _: SystemTime,
    ) -> Result<(Self, Option<SystemTime>), AuthorityError> {
        let bundle = (uri(authority.domain()), authority.x509_bundle());
        let response = Self {
            bundles: HashMap::from([bundle]),
            ..Self::default()
        };
        Ok((response, None))
    }
}

impl Answer for proto::JwtBundlesResponse {
    fn make(
        _: &Caller,
        _: &[Entry],
        authority: &Authority,
        _: SystemTime,
    ) -> Result<(Self, Option<SystemTime>), AuthorityError> {
        let bundle = (uri(authority.domain()), authority.jwt_bundle()?);
        let bundles = HashMap::from([bundle]);
        Ok((Self { bundles }, None))
    }
}

/// The first answer at once, another one whenever it would be different. An error is the last.
fn answers<A: Answer>(session: Session) -> Answers<A> {
    Box::pin(unfold(Some(session), |session| async {
        let mut session = session?;
        let answer = session.next().await;
        let session = answer.is_ok().then_some(session);
        Some((answer, session))
    }))
}

impl Session {
    async fn next<A: Answer>(&mut self) -> Result<A, Status> {
        loop {
            if self.given.is_some() {
                self.woken().await?;
            }
            let entries = self.entries().await?;
            let authority = self.authority()?;
            let basis = (entries, authority.generation);
            if self.given.as_ref() == Some(&basis) {
                continue;
            }
            let now = SystemTime::now();
            let (answer, due) = A::make(&self.caller, &basis.0, &authority.value, now)
                .map_err(|error| failed(&error))?;
            self.due = due.map(|at| Due { since: now, at });
            self.given = Some(basis);
            return Ok(answer);
        }
    }

    /// Waits until there may be a reason for another answer.
    async fn woken(&mut self) -> Result<(), Status> {
        let due = self.due;
        tokio::select! {
            biased;
            () = self.shared.stop.cancelled() => {
                return Err(Status::unavailable("the issuer is stopping"));
            }
            () = changed(&mut self.registry_changes) => {}
            () = changed(&mut self.authority_changes) => {}
            () = reached(due) => self.given = None,
        }
        Ok(())
    }

    async fn jwt_svids(
        &self,
        request: &proto::JwtsvidRequest,
    ) -> Result<proto::JwtsvidResponse, Status> {
        if request.audience.is_empty() || request.audience.iter().any(String::is_empty) {
            return Err(Status::invalid_argument("an audience is required"));
        }
        let mut entries = self.entries().await?;
        if !request.spiffe_id.is_empty() {
            let wanted = SpiffeId::parse(&request.spiffe_id).map_err(|error| {
                Status::invalid_argument(format!("the requested SPIFFE ID: {error}"))
            })?;
            entries.retain(|entry| entry.id == wanted);
            if entries.is_empty() {
                return Err(self.refusal());
            }
        }
        let authority = self.authority()?;
        let now = SystemTime::now();
        let mut svids = Vec::with_capacity(entries.len());
        for entry in entries {
            let svid = authority
                .value
                .jwt_svid(&entry.id, &request.audience, entry.lifetime, now)
                .map_err(|error| failed(&error))?;
            info!(
                id = %entry.id,
                audience = ?request.audience,
                not_after = %humantime::format_rfc3339_seconds(svid.expires),
                caller = %self.caller,
                "issued a JWT-SVID"
            );
            svids.push(proto::Jwtsvid {
                spiffe_id: entry.id.to_string(),
                svid: svid.token,
                hint: entry.hint,
            });
        }
        Ok(proto::JwtsvidResponse { svids })
    }

    fn authority(&self) -> Result<Arc<Snapshot<Authority>>, Status> {
        let none = || Status::unavailable("the CA is not ready");
        self.shared.authority.get().ok_or_else(none)
    }

    /// The caller's entries, of which there is at least one. None of them is a refusal, which on an open
    /// stream also withdraws what was issued before (Workload API §5.2.1).
    async fn entries(&self) -> Result<Vec<Entry>, Status> {
        let entries = match self.shared.registry.get() {
            Some(registry) => registry.value.matching(&self.caller).await,
            None => Vec::new(),
        };
        if entries.is_empty() {
            return Err(self.refusal());
        }
        Ok(entries)
    }

    fn refusal(&self) -> Status {
        warn!(caller = %self.caller, "refused: no entry is for this caller");
        Status::permission_denied("no identity issued")
    }
}

/// However little is left of the CA, streams do not spin.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// A change that comes while an answer is made is seen by the next one.
async fn changed(changes: &mut watch::Receiver<u64>) {
    if changes.changed().await.is_err() {
        // Nothing changes any more.
        std::future::pending::<()>().await;
    }
}

/// Waits for a time of the clock on the wall, whatever happens to it: a timer alone would not notice
/// that the machine slept, nor that somebody set the clock.
async fn reached(due: Option<Due>) {
    let Some(Due { since, at }) = due else {
        return std::future::pending().await;
    };
    loop {
        let now = SystemTime::now();
        match at.duration_since(now) {
            Ok(left) if !left.is_zero() && now >= since => sleep(left.min(CLOCK_CHECK)).await,
            _ => return,
        }
    }
}

/// Waits until the clock on the wall shows `at`.
pub(crate) async fn wall_clock(at: SystemTime) {
    let since = SystemTime::UNIX_EPOCH;
    reached(Some(Due { since, at })).await;
}

const CLOCK_CHECK: Duration = Duration::from_secs(5);

/// A trust domain's name in maps of bundles.
fn uri(domain: &TrustDomain) -> String {
    format!("spiffe://{domain}")
}

fn failed(cause: &AuthorityError) -> Status {
    error!(error = cause as &dyn std::error::Error, "cannot issue");
    Status::unavailable("the CA cannot issue at this moment")
}

/// JSON as protobuf has it.
fn structure(claims: Map<String, Value>) -> prost_types::Struct {
    let fields = claims
        .into_iter()
        .map(|(name, value)| (name, protobuf(value)))
        .collect();
    prost_types::Struct { fields }
}

fn protobuf(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(items) => Kind::ListValue(prost_types::ListValue {
            values: items.into_iter().map(protobuf).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(structure(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}
