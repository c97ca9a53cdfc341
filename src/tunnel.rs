//! Opaque bytes of many sessions on one connection between two sidecars, as streams of HTTP/2 CONNECT
//! (RFC 9113 §8.5).
//!
//! A connection of its own costs each session a handshake, and each piece of it a TLS record and two system
//! calls on either side. On a shared connection, what many sessions say at one time leaves in one write.
//! Which form is spoken is agreed on by ALPN; a session is decided, recorded and ended alike in both.

mod client;
mod gathered;
mod server;
mod stream;

use std::future::pending;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use h2::{Ping, PingPong};

pub use self::client::{Opener, open};
pub use self::server::{Asked, Limits, serve};
pub use self::stream::{Refused, Stream};
use crate::upstream::{MAX_FRAME, PING_EVERY, STREAM_WINDOW};

/// Completes when the other side does not answer a ping. Polled only when it has woken: a connection is
/// polled for every frame.
fn watch(pings: Option<PingPong>, every: Duration) -> FuturesUnordered<BoxFuture<'static, ()>> {
    let gone = async move {
        let Some(mut pings) = pings else {
            return pending().await;
        };
        loop {
            tokio::time::sleep(every).await;
            let answered = tokio::time::timeout(PING_EVERY, pings.ping(Ping::opaque()));
            if !matches!(answered.await, Ok(Ok(_))) {
                return;
            }
        }
    };
    FuturesUnordered::from_iter([gone.boxed()])
}

/// Sessions that share a connection, of ours.
const STREAMS: u32 = 200;
/// Credit for one shared connection, in bytes: what all its streams may use up together. With less, a few
/// whose readers stand still would hold up all others.
const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
/// What waits in us to be sent on one stream, in bytes.
const SEND_BUFFER: usize = MAX_FRAME as usize * 4;
/// What frames of a few bytes may cost beyond these, in bytes as h2 counts them, before they are read. It does
/// not follow the window: with many connections open, a few keystrokes to a reader that stands still would end
/// all sessions beside it.
const SMALL_FRAMES: usize = 4 << 20;
/// A CONNECT needs little more than a name.
const HEADER_BYTES: u32 = 16 * 1024;

#[cfg(test)]
mod tests;
