//! The same for opaque bytes: decided once for each session, whether it has its connection to itself or shares
//! it with others.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::{Connection, proxy_header};
use crate::audit::{Kind, Record};
use crate::exchange;
use crate::limits::Limit;
use crate::listen::{self, Stream};
use crate::outcome::Outcome;
use crate::policy::{Act, Permit};
use crate::relay::{self, Passed};
use crate::serve::Watched;
use crate::session::{self, Grant, Granted, Own};
use crate::telemetry::chain;
use crate::tunnel::{self, Asked};
use crate::upstream::DialError;

/// Serves a session that has its connection to itself.
pub(super) async fn serve<IO>(connection: Box<Connection>, mut stream: IO)
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let Some((session, mut record)) = connection.begin() else {
        return;
    };
    let mut passed = Passed::default();
    // What only begins a session must not be part of what relays.
    let outcome = match Box::pin(connection.open(&mut record)).await {
        Ok(mut app) => connection.relay(&mut stream, &mut app, &mut passed).await,
        Err(outcome) => outcome,
    };
    session.ended(outcome);
    record.finish(outcome, passed.from_a, passed.from_b);
}

/// Serves the sessions that share a connection.
pub(super) async fn serve_many<IO>(connection: Box<Connection>, stream: IO)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let inbound = connection.inbound.clone();
    let connection = Arc::new(*connection);
    let credit = inbound.worker.credit.lend();
    if credit.is_scarce() {
        inbound.tally.hit(Limit::Credit);
    }
    let limits = tunnel::Limits::within(credit.bytes(), inbound.settings.http.streams);
    let lost = connection.lost(Own::Shown, |_| Granted::Nothing);
    let take = |asked| {
        let session = serve_one(connection.clone(), asked);
        inbound.worker.tasks.spawn(session);
    };
    let (stream, sight) = Watched::new(stream, true, inbound.settings.http);
    let lifecycle = &inbound.worker.lifecycle;
    let outcome = tunnel::serve(stream, limits, lifecycle, lost, take).await;
    match (sight.reached(), outcome) {
        (Some(limit), _) => inbound.tally.hit(limit),
        // What HTTP/2 itself would not let pass.
        (None, Outcome::Overloaded) => inbound.tally.hit(Limit::Frames),
        (None, _) => {}
    }
}

async fn serve_one(connection: Arc<Connection>, asked: Asked) {
    let Some((session, mut record)) = connection.begin() else {
        return asked.refuse(Outcome::AuditUnavailable);
    };
    let mut passed = Passed::default();
    let outcome = connection.answer(asked, &mut record, &mut passed).await;
    session.ended(outcome);
    record.finish(outcome, passed.from_a, passed.from_b);
}

impl Connection {
    /// Opens the books on a session, if that can be recorded.
    fn begin(&self) -> Option<(exchange::OpenSession, Record)> {
        let inbound = &*self.inbound;
        let session = inbound.meter.session(exchange::Kind::Tcp);
        match inbound.worker.audit.open(Kind::Connection, &self.facts) {
            Ok(mut record) => {
                record.if_dropped(Outcome::Cut);
                Some((session, record))
            }
            Err(_) => {
                session.ended(Outcome::AuditUnavailable);
                None
            }
        }
    }

    async fn answer(&self, asked: Asked, record: &mut Record, passed: &mut Passed) -> Outcome {
        let opened = match asked.is_sound() {
            true => Box::pin(self.open(record)).await,
            false => Err(Outcome::BadRequest),
        };
        // A session that shares its connection takes none of the listener's places for connections.
        let admitted = opened.and_then(|app| Ok((app, self.inbound.requests.admit()?)));
        let (mut app, _admitted) = match admitted {
            Ok(admitted) => admitted,
            Err(outcome) => {
                asked.refuse(outcome);
                return outcome;
            }
        };
        match asked.take() {
            Ok(mut stream) => {
                let outcome = self.relay(&mut stream, &mut app, passed).await;
                if outcome == Outcome::UpstreamFailed {
                    stream.reset();
                }
                outcome
            }
            Err(_) => Outcome::ClientGone,
        }
    }

    /// Decides, and opens the session to the application.
    async fn open(&self, record: &mut Record) -> Result<Stream, Outcome> {
        let now = SystemTime::now();
        self.check(now)?;
        let (answer, verdict) = self.authorize(&Act::Connect, now);
        if let Some(verdict) = verdict {
            record.verdict(verdict);
        }
        let permit = answer.map_err(|_| Outcome::Denied)?;
        self.connect_app(&permit).await.map_err(|error| {
            tracing::warn!(app = %self.app.dialler(), error = %chain(&error), "cannot reach the application");
            error.outcome()
        })
    }

    async fn relay<IO>(&self, stream: &mut IO, app: &mut Stream, passed: &mut Passed) -> Outcome
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let granted = |gate| {
            let act = Act::Connect;
            Granted::Whole(Grant { gate, act })
        };
        let work = async {
            let idle = self.inbound.settings.listener.idle_timeout;
            let counters = self.inbound.meter.counters();
            relay::both_ways(stream, app, idle, counters, passed)
                .await
                .outcome()
        };
        let lost = Box::pin(self.lost(Own::Shown, granted));
        let outcome = session::run(work, lost, &self.inbound.worker.lifecycle).await;
        // The peer is told by the reset of its stream, or by a TLS connection without `close_notify`.
        if outcome != Outcome::Completed {
            listen::break_off(app);
        }
        outcome
    }

    /// Opens a TCP session to the application, which a permit allows.
    async fn connect_app(&self, _permit: &Permit) -> Result<Stream, DialError> {
        let settings = &self.inbound.settings;
        let mut app = self.app.dialler().connect().await?;
        if settings.proxy_protocol {
            let header = proxy_header::encode(
                self.addresses,
                self.standing().map(|standing| standing.peer.id()),
            );
            app.write_all(&header).await.map_err(DialError::Connect)?;
        }
        Ok(app)
    }
}
