//! The same for each HTTP request of our application: strip what it must not claim, forward, pass back.

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Connection, Route, passed_through};
use crate::exchange::{self, Coming, Exchange, Form, Meter, Reply, Upload};
use crate::headers;
use crate::identity::SpiffeId;
use crate::limits::{Limit, Tally};
use crate::outcome::Outcome;
use crate::serve;
use crate::session::{Granted, Own, Running, Standing};
use crate::target;
use crate::upgrade;
use crate::upstream::{self, Asking, SendError, Wanted};
use crate::worker::Worker;

/// Serves the requests of one connection.
pub(super) async fn serve<IO>(connection: Connection, stream: IO, http2: bool)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let outbound = connection.outbound.clone();
    let connection = Arc::new(connection);
    let front = Front {
        worker: &outbound.worker,
        meter: &outbound.meter,
        tally: &outbound.tally,
        limits: outbound.settings.http,
    };
    let service = |request| connection.clone().answer(request);
    front.serve(stream, http2, service).await;
}

/// What holds for a connection from our application, wherever its requests go.
pub(super) struct Front<'a> {
    pub(super) worker: &'a Worker,
    pub(super) meter: &'a Arc<Meter>,
    pub(super) tally: &'a Tally,
    pub(super) limits: serve::Limits,
}

impl Front<'_> {
    /// Serves requests with `service` until the connection ends.
    pub(super) async fn serve<IO, S, F>(self, stream: IO, http2: bool, service: S)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Fn(Request<Coming>) -> F + Unpin,
        F: Future<Output = Response<Reply<Route>>> + Send + 'static,
    {
        let session = self.meter.session(exchange::Kind::Http);
        let credit = self.worker.credit.lend();
        if credit.is_scarce() {
            self.tally.hit(Limit::Credit);
        }
        // Our own application needs no proof to be served.
        let never = std::future::pending().boxed();
        // What a request stands on is the connection to the peer, which sees to it.
        let nothing = Running::default();
        let outcome = serve::http(
            stream,
            http2,
            self.limits.bounds(&credit, self.tally),
            &self.worker.lifecycle,
            never,
            &nothing,
            service,
        );
        session.ended(outcome.await);
    }
}

/// A request that may be passed on.
struct Cleared {
    wanted: Wanted,
    /// What it asks the connection to become. Rare, and large.
    upgrade: Option<Box<HeaderValue>>,
}

impl Connection {
    /// Answers one request: with the peer's response, or with our refusal.
    pub(super) fn answer(
        self: Arc<Self>,
        request: Request<Coming>,
    ) -> impl Future<Output = Response<Reply<Route>>> + Send + 'static {
        let form = Form::of(&request);
        // What is over before anything is waited for has no place in the future of every request.
        let outbound = &self.outbound;
        let audit = &outbound.worker.audit;
        let opened = Exchange::record(request, audit, &self.facts, &outbound.meter);
        async move {
            let (exchange, request) = match opened {
                Ok(opened) => opened,
                Err(outcome) => return exchange::unrecorded(&self.outbound.meter, outcome, form),
            };
            match self.pass_on(&exchange, request).await {
                Ok(response) => response,
                Err(outcome) => exchange.refuse(outcome, form),
            }
        }
    }

    async fn pass_on(
        self: &Arc<Self>,
        exchange: &Arc<Exchange>,
        mut request: Asking,
    ) -> Result<Response<Reply<Route>>, Outcome> {
        let Cleared { wanted, upgrade } = self.clear(exchange, &mut request)?;
        if let Some(protocol) = upgrade {
            return Box::pin(self.upgrade(exchange, request, *protocol)).await;
        }
        let answer = std::pin::pin!(self.peers.send(request, wanted, exchange));
        let (mut response, lease) = match exchange.unless_revoked(answer).await? {
            Ok(answered) => answered,
            Err(error) => return Err(self.failed(exchange, &error)),
        };
        note_peer(exchange, lease.standing());
        headers::check_response(&response)?;
        headers::strip_response(response.headers_mut());
        Ok(exchange.clone().pass_on(response, Some(lease)))
    }

    /// Makes of a request what the peer is to see.
    fn clear(
        &self,
        exchange: &Arc<Exchange>,
        request: &mut Request<Upload>,
    ) -> Result<Cleared, Outcome> {
        headers::check_request(request.headers())?;
        target::check(request)?;
        exchange.admit(&self.outbound.requests)?;
        let principal = self.facts.own.as_ref().map_or("", SpiffeId::as_str);
        let guard = &self.outbound.secrets;
        if let Some(carried) = guard.pass(request, SystemTime::now(), principal, "") {
            exchange.carries(carried)?;
        }
        let version = request.version();
        let upgrade = headers::upgrade(request.method(), version, request.headers());
        let headers = request.headers_mut();
        headers::strip_request(headers);
        if self.outbound.is_plain() {
            exchange.note(|record| record.verdict(passed_through()));
        } else {
            headers::add_via(headers, version);
        }
        let wanted = if self.outbound.is_plain() {
            // What the application would speak without us.
            Wanted::spoken_in(version)
        } else if headers::is_grpc(request.headers()) {
            Wanted::Http2
        } else if version == Version::HTTP_11 && upstream::suits_http1(request) {
            Wanted::Cheapest
        } else {
            Wanted::Any
        };
        Ok(Cleared {
            wanted,
            upgrade: upgrade.map(Box::new),
        })
    }

    /// Sends a request that asks for an upgrade on a connection of its own, and relays what follows.
    async fn upgrade(
        self: &Arc<Self>,
        exchange: &Arc<Exchange>,
        mut request: Asking,
        protocol: HeaderValue,
    ) -> Result<Response<Reply<Route>>, Outcome> {
        let asking = hyper::upgrade::on(&mut *request);
        headers::set_upgrade(request.headers_mut(), protocol);
        let answer = std::pin::pin!(self.peers.send_alone(request, exchange));
        let (mut response, standing) = match exchange.unless_revoked(answer).await? {
            Ok(answered) => answered,
            Err(error) => return Err(self.failed(exchange, &error)),
        };
        note_peer(exchange, standing.as_ref());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::check_response(&response)?;
            headers::strip_response(response.headers_mut());
            return Ok(exchange.clone().pass_on(response, None));
        }
        let answering = hyper::upgrade::on(&mut response);
        let switched = exchange.switch(response);
        let (exchange, this) = (exchange.clone(), self.clone());
        self.outbound.worker.tasks.spawn(async move {
            let outbound = &this.outbound;
            let lost = async {
                match &standing {
                    Some(standing) => standing.lost(Own::Shown, Granted::Nothing).await,
                    None => std::future::pending().await,
                }
            };
            let idle = outbound.settings.listener.idle_timeout;
            let lifecycle = &outbound.worker.lifecycle;
            upgrade::relay(
                asking,
                answering,
                &exchange,
                &outbound.meter,
                idle,
                lost,
                lifecycle,
            )
            .await;
        });
        Ok(switched)
    }

    fn failed(&self, exchange: &Exchange, error: &SendError) -> Outcome {
        self.tell_unreachable(error);
        if let SendError::Dial(error) = error {
            exchange.note(|record| record.verdict(super::unanswered(error)));
        }
        error.outcome()
    }
}

fn note_peer(exchange: &Exchange, standing: Option<&Standing>) {
    if let Some(standing) = standing {
        exchange.note(|record| record.peer(standing.peer.leaf().clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_request_moves_stays_small() {
        fn size<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(Connection::answer);
        assert!(bytes <= 1280, "the future of a request has {bytes} bytes");
    }
}
