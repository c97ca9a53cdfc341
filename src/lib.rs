//! Doorward stands beside an application, gives it a short-lived SPIFFE identity, speaks mutual TLS 1.3 for
//! it, and decides every request. This page is the map of the code; `README.md` is for whoever runs it.
//!
//! # Layers
//!
//! A module imports from its own layer or from lower ones, never upwards. Nobody imports [`config`] but the
//! command line and the composition: each module owns its `Settings`.
//!
//! | layer | modules |
//! |---|---|
//! | 5 composition | [`cli`], [`config`], [`app`], [`runtime`], [`admin`], [`probes`], [`suggest`], [`inject`], [`webhook`] |
//! | 4 data path | [`inbound`], [`outbound`], which never import each other |
//! | 3 what both share | [`descriptors`], [`listen`], [`worker`], [`intercepted`], [`serve`], [`session`], [`exchange`], [`upstream`], [`tunnel`], [`upgrade`], [`relay`], [`headers`], [`target`] |
//! | 2 capabilities | [`tls`], [`discovery`], [`federation`], [`policy`], [`secrets`], [`audit`], [`issuer`], [`intercept`], [`sandbox`], [`web`], [`report`] |
//! | 1 vocabulary | [`identity`], [`live`], [`outcome`], [`limits`], [`lifecycle`], [`telemetry`], [`document`], [`watch`] |
//!
//! # In which order to read
//!
//! 1. [`live`] and [`identity`]: a value that changes while it is in use, and who we are.
//! 2. [`app`]: what is built from what; start and stop.
//! 3. [`listen`], [`inbound`], `inbound/http`: a connection, then a request, as a sentence.
//! 4. [`tls`] and [`policy`]: the two proofs on the way, `Secured` and [`policy::Permit`].
//! 5. [`outbound`], `outbound/http`, `outbound/peers`, [`discovery`], [`upstream`]: the other side, where it
//!    is, and the connections it keeps.
//! 6. [`exchange`], [`serve`], [`session`], [`upgrade`], [`relay`]: what passes, and how it ends.
//! 7. [`audit`], [`outcome`], [`admin`]: what operators are told.
//! 8. [`document`], [`config`]: how every mistake is shown in its place.
//! 9. [`report`]: what a fleet's metrics say about its policy, afterwards.
//! 10. [`issuer`]: a program of its own, behind the same socket as SPIRE.
//! 11. [`inject`] and [`probes`]: how a pod gets its sidecar, and kubelet past it.
//!
//! # The life of a request
//!
//! ```text
//!  application                                                                     application
//!      │ HTTP, plain                                                                    ▲
//!      ▼                                                                                │
//!  listen   take a slot                                     upstream   kept connection, or a new one
//!      ▼                                                                                ▲
//!  tls::detect   which protocol                             headers    ours go on: who calls
//!      ▼                                                    headers    claims and hop-by-hop go off
//!  audit    open the record                                                             ▲
//!      ▼                                                                                │
//!  secrets  passwords and keys: counted, off, or 403        secrets    the same        ─┴─▶ 403
//!      ▼                                                                                ▲ Permit
//!  headers  what it must not claim goes off                 policy     Gate::authorize ─┴─▶ 403
//!      ▼                                                                                ▲
//!  upstream kept connection, or:                            inbound    which path? ambiguous ─▶ 400
//!      ├─ choose an address, connect                        session    does the proof still hold?
//!      └─ tls::Connector: is it who it should be?           audit      open the record
//!      │                                                                                ▲ each request
//!      ▼                                                                                │
//!      ╚═══════════ mTLS 1.3, HTTP/2 ══════════▶ listen ─▶ tls::Acceptor ─▶ Secured { peer, … }
//!
//!  and back: exchange counts the body as it streams, in both sidecars; its end, whatever it is, makes
//!  one Outcome, which the audit record, the metrics and the status all derive from.
//! ```
//!
//! A TCP session takes the same way without `exchange`: it is decided once and `relay` carries the bytes.
//! `session` asks again, of it and of every request under way, when policy, a bundle or a certificate
//! changes, and ends what stands on nothing any more.
//!
//! # Threads and ports
//!
//! | thread | runs |
//! |---|---|
//! | main: the control thread | identity, federation, policy, names, signals, the admin and metrics listeners |
//! | `worker-0` … | a `current_thread` runtime each: its own listening sockets, connections, pools and counters |
//! | the audit writer | takes finished records from each worker's queue and writes them |
//! | blocking pool | loading a changed policy |
//!
//! | socket | speaks | who connects |
//! |---|---|---|
//! | `inbound[].listen` | mutual TLS | peers |
//! | `inbound[].app` | plain | we connect to the application |
//! | `outbound[].listen` | plain | the application |
//! | `intercept.inbound.port`, `intercept.outbound.port` | as `inbound[].listen`, `outbound[].listen` | whoever the packet filter leads there |
//! | `outbound[].to`, or where an intercepted connection was going | mutual TLS | we connect to a peer |
//! | there, with `otherwise: passthrough` | whatever the application speaks | we connect to whoever is there |
//! | `dns.servers`, or those of `/etc/resolv.conf` | DNS, over UDP and TCP | we ask for addresses |
//! | `identity.workload_api` | gRPC on a Unix socket | we connect to SPIRE or [`issuer`] |
//! | `federation[].url` | HTTPS | we connect to another trust domain's bundle endpoint |
//! | `metrics.listen` | HTTP | Prometheus, probes |
//! | `admin.listen` | HTTP, on loopback | people on this machine |
//! | `probes.listen` | HTTP | Kubernetes, to ask whether the application is well |
//!
//! Worker sockets share a port by `SO_REUSEPORT`. They are bound before anything starts, so a taken port
//! stops the start, and they listen only once there is an identity.
//!
//! # What we defend against
//!
//! - **Who is not authenticated** never reaches the application: only [`tls`] makes a `Peer`, and what it
//!   checks is in [`tls::verify`]. Session tickets are off, because resumption would ask no verifier.
//! - **What is not allowed** is not forwarded: whatever connects or forwards takes a [`policy::Permit`], and
//!   only [`policy::Gate::authorize`] makes one. No policy, an error in one, no grant: each is a denial.
//! - **What cannot be recorded** does not happen: a record is opened before anything is decided.
//! - **An identity that ended** gives nothing any more: [`session`] asks for each request and open session.
//! - **What a peer claims** in headers is taken off before ours are put on ([`headers`]), and a path that
//!   could be read in two ways is not decided at all.
//! - **What outlives its purpose** is found: passwords and API keys in requests are counted by who sends
//!   them, and taken off or refused where the operator says so ([`secrets`]).
//! - **What a peer makes us hold** is bounded and counted: [`limits`] names what [`listen`], [`serve`] and [`upstream`] hold.
//! - **What an operator mistypes** stops the start or changes nothing: [`document`] knows no unknown keys.
//! - **Who runs code of theirs in us** finds little: before there is a second thread, [`sandbox`] gives up all
//!   that the configuration does not ask for.
//!
//! What is left to others is in the README's threat model.

// The fuzz targets' properties are tested here too, and speak of us by our name.
#[cfg(test)]
extern crate self as doorward;

pub mod admin;
pub mod app;
pub mod audit;
pub mod cli;
pub mod config;
pub mod descriptors;
pub mod discovery;
pub mod document;
pub mod exchange;
pub mod federation;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod headers;
pub mod identity;
pub mod inbound;
pub mod inject;
pub mod intercept;
pub mod intercepted;
pub mod issuer;
pub mod lifecycle;
pub mod limits;
pub mod listen;
pub mod live;
pub mod outbound;
pub mod outcome;
pub mod policy;
pub mod probes;
pub mod relay;
pub mod report;
pub mod runtime;
pub mod sandbox;
pub mod secrets;
pub mod serve;
pub mod session;
pub mod suggest;
pub mod target;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod upgrade;
pub mod upstream;
pub mod watch;
pub mod web;
pub mod webhook;
pub mod worker;
