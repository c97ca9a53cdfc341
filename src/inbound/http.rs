//! The same for each HTTP request on the connection: strip, decide, add who calls, forward.

use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use futures_util::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{App, AppProtocol, Connection};
use crate::exchange::{self, Coming, Exchange, Form, Reply, Upload};
use crate::headers::{self, Identity};
use crate::limits::Limit;
use crate::outcome::Outcome;
use crate::policy::{Permit, path};
use crate::serve;
use crate::session::{Asked, Grant, Granted, Own, Running};
use crate::target;
use crate::telemetry::chain;
use crate::upgrade;
use crate::upstream::{Asking, SendError, Wanted};

/// Serves the requests of one connection.
pub(super) async fn serve<IO>(connection: Box<Connection>, stream: IO, http2: bool)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let inbound = connection.inbound.clone();
    let kind = inbound.settings.identity_header;
    let identity = connection.standing().map(|standing| {
        let own = standing.own.value.id();
        Identity::new(kind, &standing.peer, own)
    });
    let caller = Arc::new(Caller {
        connection,
        identity: identity.unwrap_or_default(),
        running: Arc::default(),
    });
    let session = inbound.meter.session(exchange::Kind::Http);
    let credit = inbound.worker.credit.lend();
    if credit.is_scarce() {
        inbound.tally.hit(Limit::Credit);
    }
    let granted = |gate| Granted::Each {
        policy: &inbound.policy,
        gate,
        running: &caller.running,
    };
    let lost = caller.connection.lost(Own::InForce, granted).boxed();
    let service = |request| caller.clone().answer(request);
    let outcome = serve::http(
        stream,
        http2,
        inbound.settings.http.bounds(&credit, &inbound.tally),
        &inbound.worker.lifecycle,
        lost,
        &caller.running,
        service,
    );
    session.ended(outcome.await);
}

/// Who calls on this connection.
struct Caller {
    connection: Box<Connection>,
    identity: Identity,
    /// Its requests under way.
    running: Arc<Running>,
}

/// A request that is not passed on.
struct Refused(Outcome);

impl From<Outcome> for Refused {
    fn from(outcome: Outcome) -> Self {
        Self(outcome)
    }
}

/// A request that may be passed on.
struct Cleared {
    permit: Permit,
    /// The HTTP version that our caller's application spoke, where that is known.
    spoken: Option<Version>,
    /// What it asks the connection to become. Rare, and large.
    upgrade: Option<Box<(HeaderValue, Asked)>>,
}

impl Caller {
    /// Answers one request: with the application's response, or with our refusal.
    fn answer(
        self: Arc<Self>,
        request: Request<Coming>,
    ) -> impl Future<Output = Response<Reply<App>>> + Send + 'static {
        let form = Form::of(&request);
        // What is over before anything is waited for has no place in the future of every request.
        let connection = &self.connection;
        let inbound = &connection.inbound;
        let audit = &inbound.worker.audit;
        let opened = Exchange::record(request, audit, &connection.facts, &inbound.meter);
        async move {
            let (exchange, request) = match opened {
                Ok(opened) => opened,
                Err(outcome) => {
                    let meter = &self.connection.inbound.meter;
                    return exchange::unrecorded(meter, outcome, form);
                }
            };
            match self.pass_on(&exchange, request).await {
                Ok(response) => response,
                Err(Refused(outcome)) => exchange.refuse(outcome, form),
            }
        }
    }

    async fn pass_on(
        self: &Arc<Self>,
        exchange: &Arc<Exchange>,
        mut request: Asking,
    ) -> Result<Response<Reply<App>>, Refused> {
        let Cleared {
            permit,
            spoken,
            upgrade,
        } = self.clear(exchange, &mut request)?;
        match upgrade {
            Some(asked) => {
                let (protocol, asked) = *asked;
                let this = self.clone();
                Box::pin(this.upgrade(&permit, exchange, request, asked, protocol)).await
            }
            None => self.forward(&permit, exchange, request, spoken).await,
        }
    }

    /// Decides on a request, and makes of it what the application is to see.
    fn clear(
        &self,
        exchange: &Arc<Exchange>,
        request: &mut Request<Upload>,
    ) -> Result<Cleared, Refused> {
        let connection = &self.connection;
        let now = SystemTime::now();
        connection.check(now)?;
        headers::check_request(request.headers())?;
        let asked = asked(request, connection.inbound.settings.unsafe_ambiguous_paths)?;
        let (answer, verdict) = connection.authorize(&asked.act(), now);
        if let Some(verdict) = verdict {
            exchange.note(|record| record.verdict(verdict));
        }
        let Ok(permit) = answer else {
            return Err(Outcome::Denied.into());
        };
        exchange.admit(&connection.inbound.requests)?;
        let principal = connection.principal();
        let grant = permit.grant().map_or("", |grant| &grant.id);
        let guard = &connection.inbound.secrets;
        if let Some(carried) = guard.pass(request, now, principal, grant) {
            exchange.carries(carried)?;
        }

        let upgrade = headers::upgrade(request.method(), request.version(), request.headers());
        let upgrade = upgrade.map(|protocol| Box::new((protocol, asked.clone())));
        let generation = permit.generation();
        let proved = connection.standing().is_some();
        // Nobody asks again about somebody whom policy was not asked about.
        let asked = proved.then_some(asked);
        exchange.take_place(self.running.enter(exchange, asked, generation)?);
        let version = request.version();
        let headers = request.headers_mut();
        let told = headers::take_via(headers);
        let spoken = if proved { told } else { Some(version) };
        headers::strip_request(headers);
        self.identity.add_to(headers);
        Ok(Cleared {
            permit,
            spoken,
            upgrade,
        })
    }

    /// Sends a request to the application, which a permit allows.
    async fn forward(
        &self,
        _permit: &Permit,
        exchange: &Arc<Exchange>,
        request: Asking,
        spoken: Option<Version>,
    ) -> Result<Response<Reply<App>>, Refused> {
        let inbound = &self.connection.inbound;
        let http2 = match inbound.settings.app_protocol {
            AppProtocol::Http1 => false,
            AppProtocol::Http2 => true,
            AppProtocol::Auto => match spoken {
                Some(version) => version == Version::HTTP_2,
                None => headers::is_grpc(request.headers()),
            },
        };
        let wanted = if http2 { Wanted::Http2 } else { Wanted::Http1 };
        let answer = std::pin::pin!(self.connection.app.send(request, wanted, exchange));
        match exchange.unless_revoked(answer).await? {
            Ok((mut response, lease)) => {
                headers::check_response(&response)?;
                headers::strip_response(response.headers_mut());
                Ok(exchange.clone().pass_on(response, Some(lease)))
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// Sends a request that asks for an upgrade, which a permit allows, and relays what follows.
    async fn upgrade(
        self: Arc<Self>,
        _permit: &Permit,
        exchange: &Arc<Exchange>,
        mut request: Asking,
        asked: Asked,
        protocol: HeaderValue,
    ) -> Result<Response<Reply<App>>, Refused> {
        let inbound = self.connection.inbound.clone();
        let theirs = hyper::upgrade::on(&mut *request);
        headers::set_upgrade(request.headers_mut(), protocol);
        let answered = {
            let answer = std::pin::pin!(self.connection.app.send_alone(request, exchange));
            exchange.unless_revoked(answer).await?
        };
        let mut response = match answered {
            Ok((response, _)) => response,
            Err(error) => return Err(self.failed(&error)),
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            headers::check_response(&response)?;
            headers::strip_response(response.headers_mut());
            return Ok(exchange.clone().pass_on(response, None));
        }
        let ours = hyper::upgrade::on(&mut response);
        let switched = exchange.switch(response);
        let exchange = exchange.clone();
        inbound.worker.tasks.clone().spawn(async move {
            let act = asked.act();
            let granted = |gate| Granted::Whole(Grant { gate, act });
            let lost = self.connection.lost(Own::Shown, granted);
            let idle = inbound.settings.listener.idle_timeout;
            let lifecycle = &inbound.worker.lifecycle;
            upgrade::relay(
                theirs,
                ours,
                &exchange,
                &inbound.meter,
                idle,
                lost,
                lifecycle,
            )
            .await;
        });
        Ok(switched)
    }

    fn failed(&self, error: &SendError) -> Refused {
        let settings = &self.connection.inbound.settings;
        tracing::warn!(app = %self.connection.app.dialler(), service = %settings.service, error = %chain(error), "the application did not answer");
        Refused(error.outcome())
    }
}

/// What a request asks for, as policy sees it.
fn asked(request: &Request<Upload>, as_written: bool) -> Result<Asked, Outcome> {
    let authority = target::check(request)?;
    let written = request.uri().path();
    let path = match path::decided(written) {
        Ok(path) => path.into_owned(),
        Err(path::Ambiguous) if as_written => written.to_owned(),
        Err(path::Ambiguous) => return Err(Outcome::BadRequest),
    };
    let host = authority.as_ref().map_or("", target::host_of);
    Ok(Asked {
        method: request.method().clone(),
        host: host.to_ascii_lowercase(),
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_request_moves_stays_small() {
        fn size<A, B, F>(_: impl Fn(A, B) -> F) -> usize {
            size_of::<F>()
        }
        let bytes = size(Caller::answer);
        assert!(bytes <= 1280, "the future of a request has {bytes} bytes");
    }
}
