//! What happens when an HTTP/1.1 connection changes its protocol, as for a WebSocket? Bytes both ways, on
//! the standing of the request that asked for it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::exchange::{Exchange, Kind, Meter};
use crate::lifecycle::Lifecycle;
use crate::outcome::Outcome;
use crate::relay::{self, Passed};
use crate::session;

/// Relays between the two upgraded sides until they are done, nothing passed for `idle`, `lost` completes
/// or the drain is over; then ends `exchange`, which asked for it.
pub async fn relay(
    asking: OnUpgrade,
    answering: OnUpgrade,
    exchange: &Exchange,
    meter: &Arc<Meter>,
    idle: Duration,
    lost: impl Future<Output = Outcome>,
    lifecycle: &Lifecycle,
) {
    let (asking, answering) = match tokio::join!(asking, answering) {
        (Ok(asking), Ok(answering)) => (asking, answering),
        (Err(_), _) => return exchange.end(Outcome::ClientGone),
        (_, Err(_)) => return exchange.end(Outcome::UpstreamFailed),
    };
    let (mut asking, mut answering) = (TokioIo::new(asking), TokioIo::new(answering));
    let open = meter.session(Kind::Upgrade);
    let mut passed = Passed::default();
    let work = async {
        let counters = meter.counters();
        relay::both_ways(&mut asking, &mut answering, idle, counters, &mut passed)
            .await
            .outcome()
    };
    let outcome = session::run(work, lost, lifecycle).await;
    open.ended(outcome);
    exchange.passed(passed);
    exchange.end(outcome);
}
