//! What happens while nobody renews us, and once somebody does again: what is valid is used until it ends,
//! what has ended is never used, and a provider's return is all that a sidecar needs.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::mesh::*;

/// Within this a sidecar is back once its provider is.
const BACK: Duration = Duration::from_secs(3);

/// How long SVIDs live where a test waits for their end, in seconds.
const LIFETIME: f64 = 3.0;

#[tokio::test]
async fn a_provider_that_returns_with_its_authority_costs_no_request() {
    let mut mesh = Mesh::with(Options {
        lifetime: "10s",
        rotate_every: Some("1s"),
        ..Options::default()
    })
    .await;
    let Mesh { a, b, issuer, .. } = &mut mesh;
    let mut kept = Client::connect(a.outbound[0], Http::One).await;
    issuer.kill();
    let gone = async {
        for sidecar in [&*a, &*b] {
            eventually("the provider is missed", async || {
                let failures = sidecar.metrics().await;
                (failures.sum("doorward_identity_source_failures_total", &[]) >= 2.0).then_some(())
            })
            .await;
            assert_eq!(kept.get("/").await.unwrap().status, 200);
        }
        let before = [rotations(a).await, rotations(b).await];
        issuer.start().await;
        renewed_within_the_limit(a, b, before).await;
        assert_eq!(kept.get("/").await.unwrap().status, 200);
    };
    let seen = beside(a, b, gone).await;
    assert!(
        seen.iter().all(|look| look.status == 200 && look.ready()),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_provider_that_returns_with_another_authority_is_followed() {
    let mut mesh = Mesh::with(Options {
        lifetime: "1h",
        ..Options::default()
    })
    .await;
    let Mesh { a, b, issuer, .. } = &mut mesh;
    assert_eq!(get(a.outbound[0], "/").await.status, 200);
    let old = issuer.ca().svid("a");
    issuer.forget();
    let before = [rotations(a).await, rotations(b).await];
    issuer.start().await;
    renewed_within_the_limit(a, b, before).await;
    // What each has heard of the other may differ by moments, but no longer.
    within(BACK, "requests pass", async || {
        (get(a.outbound[0], "/").await.status == 200).then_some(())
    })
    .await;
    for _ in 0..20 {
        let look = Look::take(a, b).await;
        assert!(look.status == 200 && look.ready(), "{look:?}");
    }
    // What the old authority has signed is worth nothing any more.
    let mut client = Tls::new(Some(&old), &["h2"]).client(b.inbound[0]).await;
    assert!(client.get("/").await.is_err());
    let new = issuer.ca().svid("a");
    let mut client = Tls::new(Some(&new), &["h2"]).client(b.inbound[0]).await;
    assert_eq!(client.get("/").await.unwrap().status, 200);
}

#[tokio::test]
async fn when_everything_has_ended_the_providers_return_is_enough() {
    let mut mesh = Mesh::with(Options {
        lifetime: "3s",
        ..Options::default()
    })
    .await;
    let Mesh { a, b, issuer, .. } = &mut mesh;
    issuer.kill();
    let (entrance, metrics) = (a.outbound[0], [a.metrics, b.metrics]);
    let ended = async {
        for address in metrics {
            eventually("the certificate ends", async || {
                (get(address, "/ready").await.status == 503).then_some(())
            })
            .await;
        }
        // Longer than any pause between two attempts: nothing has come to rest.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_ne!(get(entrance, "/").await.status, 200);
        issuer.start().await;
        within(BACK, "requests pass", async || {
            (get(entrance, "/").await.status == 200).then_some(())
        })
        .await;
        for _ in 0..20 {
            assert_eq!(get(entrance, "/").await.status, 200);
        }
    };
    let seen = beside(a, b, ended).await;
    assert!(seen.iter().any(|look| look.status == 200), "{seen:?}");
    assert!(seen.iter().any(|look| look.status != 200), "{seen:?}");
}

#[tokio::test]
async fn suspended_past_its_certificates_end_a_sidecar_resumes_with_a_new_one() {
    for suspended in [["a"].as_slice(), &["b"], &["a", "b"]] {
        let mesh = Mesh::with(Options {
            lifetime: "3s",
            ..Options::default()
        })
        .await;
        let Mesh { a, b, .. } = &mesh;
        let stopped: Vec<_> = [a, b]
            .into_iter()
            .filter(|one| suspended.contains(&one.process.name().as_str()))
            .collect();
        let mut kept = Client::connect(a.outbound[0], Http::One).await;
        assert_eq!(kept.get("/").await.unwrap().status, 200);
        for one in &stopped {
            one.process.suspend().await;
        }
        let caught = tokio::spawn(async move { kept.get("/").await.map(|answer| answer.status) });
        past(now() + LIFETIME).await;
        let resumed = now();
        resume(&stopped);
        // It was under way when everything ended: it is answered somehow, and soon.
        let _ = tokio::time::timeout(BACK, caught)
            .await
            .unwrap_or_else(|_| panic!("{suspended:?}: no end of the request under way"));
        within(BACK, format_args!("{suspended:?} is back"), async || {
            (get(a.outbound[0], "/").await.status == 200).then_some(())
        })
        .await;
        let seen = beside(a, b, async {
            for _ in 0..10 {
                let ends = shown_by(b, &mesh.issuer.ca()).await;
                assert!(ends > resumed, "{suspended:?}: shows what ended at {ends}");
            }
        })
        .await;
        assert!(
            seen.iter().all(|look| look.status == 200 && look.ready()),
            "{suspended:?}: {seen:?}"
        );
    }
}

#[tokio::test]
async fn suspended_past_its_certificates_end_a_sidecar_that_nobody_renews_serves_nothing() {
    let mut mesh = Mesh::with(Options {
        lifetime: "3s",
        ..Options::default()
    })
    .await;
    let Mesh {
        a, b, issuer, app, ..
    } = &mut mesh;
    // Peers whose own certificates last: whatever is refused, it is not for their sake.
    let svid = issuer.ca().svid("a");
    let mut kept = Vec::new();
    for alpn in ["http/1.1", "h2"] {
        let mut client = Tls::new(Some(&svid), &[alpn]).client(b.inbound[0]).await;
        assert_eq!(client.get("/").await.unwrap().status, 200, "{alpn}");
        kept.push(client);
    }
    let before = app.seen().len();
    for one in [&*a, &*b] {
        one.process.suspend().await;
    }
    issuer.kill();
    let caught = tokio::spawn(async move {
        let asked = kept.iter_mut().map(|client| client.get("/"));
        join_all(asked).await
    });
    past(now() + LIFETIME).await;
    resume(&[&*a, &*b]);

    // From the first moment on, by its own account too.
    assert_eq!(a.readiness().await.status, 503);
    assert_eq!(b.readiness().await.status, 503);
    for answer in caught.await.unwrap() {
        assert!(
            answer.as_ref().map_or(true, |answer| answer.status == 503),
            "{answer:?}"
        );
    }
    for _ in 0..10 {
        assert_ne!(get(a.outbound[0], "/").await.status, 200);
        let connected = Tls::new(Some(&svid), &["h2"]).connect(b.inbound[0]).await;
        assert!(connected.is_err(), "it presents what has ended");
    }
    assert_eq!(app.seen().len(), before, "the application was asked");

    issuer.start().await;
    within(BACK, "requests pass", async || {
        (get(a.outbound[0], "/").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(a.readiness().await.status, 200);
    assert_eq!(b.readiness().await.status, 200);
}

/// What a request was answered, and whether both sidecars called themselves ready before and after it.
#[derive(Debug)]
struct Look {
    before: [bool; 2],
    status: u16,
    after: [bool; 2],
}

impl Look {
    /// Asks, and compares the answer with what the sidecars say of themselves.
    async fn take(a: &Sidecar, b: &Sidecar) -> Self {
        let readiness = async || {
            let (a, b) = tokio::join!(a.readiness(), b.readiness());
            [a.status == 200, b.status == 200]
        };
        let before = readiness().await;
        let status = get(a.outbound[0], "/").await.status;
        let after = readiness().await;
        let look = Self {
            before,
            status,
            after,
        };
        if before == after {
            assert_eq!(look.ready(), status == 200, "{look:?}");
        }
        look
    }

    fn ready(&self) -> bool {
        self.before == [true; 2] && self.after == [true; 2]
    }
}

/// Takes looks while `event` comes about.
async fn beside(a: &Sidecar, b: &Sidecar, event: impl Future<Output = ()>) -> Vec<Look> {
    tokio::pin!(event);
    let mut seen = Vec::new();
    loop {
        tokio::select! {
            biased;
            () = &mut event => return seen,
            look = Look::take(a, b) => seen.push(look),
        }
    }
}

async fn rotations(sidecar: &Sidecar) -> f64 {
    let metrics = sidecar.metrics().await;
    metrics.sum("doorward_identity_rotations_total", &[])
}

async fn renewed_within_the_limit(a: &Sidecar, b: &Sidecar, before: [f64; 2]) {
    within(BACK, "both have new certificates", async || {
        let now = [rotations(a).await, rotations(b).await];
        (now[0] > before[0] && now[1] > before[1]).then_some(())
    })
    .await;
}

/// When the certificate ends that `sidecar` shows to a peer.
async fn shown_by(sidecar: &Sidecar, ca: &Ca) -> f64 {
    let svid = ca.svid("a");
    let peer = Tls::new(Some(&svid), &["h2"]);
    let shown = peer.connect(sidecar.inbound[0]).await.unwrap();
    let chain = shown.get_ref().1.peer_certificates().unwrap();
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let ends = u32::try_from(leaf.validity().not_after.timestamp()).unwrap();
    f64::from(ends)
}

fn resume(sidecars: &[&Sidecar]) {
    for sidecar in sidecars {
        sidecar.process.signal(Signal::SIGCONT);
    }
}

/// Waits until a second after `end`: certificates end with whole seconds.
async fn past(end: f64) {
    while now() < end + 1.0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}
