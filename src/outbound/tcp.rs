//! The same for opaque bytes: a session has a connection to itself, or shares one with others.

use std::future::pending;
use std::os::fd::AsFd;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use super::peers::Session;
use super::tunnels::{Carried, Way};
use super::{Connection, passed_through, unanswered};
use crate::audit::{Kind, Record, Verdict};
use crate::exchange;
use crate::listen;
use crate::outcome::Outcome;
use crate::relay::{self, End, Passed};
use crate::session::{self, Granted, Own};
use crate::tls;
use crate::tunnel::Refused;

/// Serves one session to its end.
pub(super) async fn serve<IO>(connection: Connection, mut stream: IO)
where
    IO: AsyncRead + AsyncWrite + AsFd + Unpin,
{
    let outbound = &*connection.outbound;
    let session = outbound.meter.session(exchange::Kind::Tcp);
    let audit = &outbound.worker.audit;
    let Ok(mut record) = audit.open(Kind::Connection, &connection.facts) else {
        listen::break_off(&stream);
        return session.ended(Outcome::AuditUnavailable);
    };
    record.if_dropped(Outcome::Cut);
    let mut passed = Passed::default();
    let outcome = connection
        .relay(&mut stream, &mut record, &mut passed)
        .await;
    if outcome != Outcome::Completed {
        listen::break_off(&stream);
    }
    session.ended(outcome);
    record.finish(outcome, passed.from_a, passed.from_b);
}

impl Connection {
    async fn relay<IO>(&self, stream: &mut IO, record: &mut Record, passed: &mut Passed) -> Outcome
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let outbound = &*self.outbound;
        let Session {
            carried,
            busy: _busy,
        } = match self.peers.connect().await {
            Ok(session) => session,
            Err(error) => {
                self.tell_unreachable(&error);
                record.verdict(unanswered(&error));
                return error.outcome();
            }
        };
        let Carried {
            standing,
            way,
            mut place,
        } = carried;
        place.is_carried();
        match &standing {
            Some(standing) => record.peer(standing.peer.leaf().clone()),
            None => record.verdict(passed_through()),
        }
        let mut refused = false;
        let work = async {
            let idle = outbound.settings.listener.idle_timeout;
            let counters = outbound.meter.counters();
            match way {
                Way::Alone(mut answering) => {
                    relay::both_ways(stream, &mut *answering, idle, counters, passed)
                        .await
                        .outcome()
                }
                Way::Plain(mut answering) => {
                    relay::both_ways(stream, &mut answering, idle, counters, passed)
                        .await
                        .outcome()
                }
                Way::Shared(mut answering) => {
                    let end =
                        relay::both_ways(stream, &mut answering, idle, counters, passed).await;
                    if let End::FailedA(_) = end {
                        answering.reset();
                    }
                    match refusal(&end) {
                        None => end.outcome(),
                        Some(Refused(status)) => {
                            refused = true;
                            declined(status)
                        }
                    }
                }
            }
        };
        let lost = async {
            match &standing {
                Some(standing) => standing.lost(Own::Shown, Granted::Nothing).await,
                None => pending().await,
            }
        };
        let outcome = session::run(work, lost, &outbound.worker.lifecycle).await;
        if refused {
            record.verdict(Verdict {
                reason: Some(tls::Reason::RefusedByPeer.label()),
                ..Verdict::default()
            });
        }
        outcome
    }
}

/// What the peer's sidecar said instead of taking the session.
fn refusal(end: &End) -> Option<Refused> {
    match end {
        End::FailedB(error) => error.get_ref()?.downcast_ref().copied(),
        End::Completed | End::Idle | End::FailedA(_) => None,
    }
}

/// How a session ends that the peer's sidecar answered with `status`.
fn declined(status: StatusCode) -> Outcome {
    match status {
        StatusCode::FORBIDDEN => Outcome::Denied,
        StatusCode::SERVICE_UNAVAILABLE => Outcome::Overloaded,
        StatusCode::GATEWAY_TIMEOUT => Outcome::UpstreamTimeout,
        StatusCode::BAD_GATEWAY => Outcome::UpstreamUnreachable,
        _ => Outcome::UpstreamFailed,
    }
}
