//! Sockets that a service manager opened stay open while nobody serves them, so a restart loses nobody.

use std::net::TcpListener;
use std::sync::Arc;

use crate::mesh::*;

#[tokio::test]
async fn who_connects_while_an_activated_sidecar_restarts_waits_and_is_served() {
    let dirs = Dirs::new();
    let mut issuer = Issuer::new(&dirs);
    for workload in ["a", "b"] {
        issuer.add(&dirs, workload, "1h", None);
    }
    issuer.start().await;
    let policy = PolicyDir::new(dirs.file("policy"));
    policy.write("policy.cedar", &grant("all-for-a", "a"));
    let app = App::start().await;

    let socket = Arc::new(TcpListener::bind("127.0.0.1:0").unwrap());
    let address = socket.local_addr().unwrap();
    let start = async || {
        let plan = Plan::new("b")
            .inbound_at(address, app.address, "")
            .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
            .activated(&socket);
        let b = plan.start(&dirs, &issuer).await;
        assert_eq!(b.inbound, [address]);
        b
    };
    let mut a = Plan::new("a")
        .outbound(address, &id("b"), "connect_timeout: 1m")
        .start(&dirs, &issuer)
        .await;
    a.ready().await;
    let entrance = a.outbound[0];

    // Whoever asks before there is anybody to answer waits too.
    let mut waiting: Vec<_> = (0..8)
        .map(|number| tokio::spawn(async move { get(entrance, &format!("/first/{number}")).await }))
        .collect();
    for round in 0..2 {
        let mut b = start().await;
        for asked in waiting.drain(..) {
            assert_eq!(asked.await.unwrap().status, 200, "round {round}");
        }
        b.ready().await;
        assert_eq!(b.terminate().await, Some(0));
        waiting.extend((0..8).map(|number| {
            tokio::spawn(async move { get(entrance, &format!("/{round}/{number}")).await })
        }));
        eventually("they wait in the kernel's queue", async || {
            let metrics = a.metrics().await;
            let under_way = metrics.sum("doorward_requests_in_flight", &[]);
            (under_way >= 8.0).then_some(())
        })
        .await;
    }
    let _b = start().await;
    for asked in waiting {
        assert_eq!(asked.await.unwrap().status, 200);
    }
    assert_eq!(app.seen().len(), 24);
}
