//! The peer's sidecar is killed, stopped or started anew.

use std::io::ErrorKind;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{BOUND, Held, Routes, Sees, ask, getting, nothing_is_left};
use crate::mesh::{App, Http, SOON, Sidecar, eventually, within};

#[tokio::test]
async fn a_peer_that_is_killed_fails_what_was_under_way_and_serves_again_once_it_is_back() {
    let app = App::start().await;
    let mut routes = Routes::to(&[(app.address, "", "")]).await;
    let entrance = routes.a.outbound[0];
    let serves = async || {
        for http in [Http::One, Http::Two] {
            let seen = ask(entrance, http, getting(http)).await;
            assert!(matches!(seen, Sees::Whole(_)), "{seen:?}");
        }
    };
    serves().await;
    let before = Held::at_rest(&routes.a).await;
    for round in 0..3 {
        let mut waiting = JoinSet::new();
        for _ in 0..40 {
            waiting.spawn(async move {
                let slow = crate::mesh::request("POST", "/slow?ms=60000");
                ask(entrance, Http::One, slow).await
            });
        }
        eventually("they are under way", async || {
            let inbound = [("direction", "inbound")];
            let metrics = routes.b.metrics().await;
            (metrics.sum("doorward_requests_in_flight", &inbound) > 39.0).then_some(())
        })
        .await;
        routes.b.process.signal(Signal::SIGKILL);
        while let Some(seen) = waiting.join_next().await {
            assert_eq!(seen.unwrap(), Sees::problem(502, "upstream_failed"));
        }
        routes.b.process.exit().await;
        let seen = ask(entrance, Http::One, getting(Http::One)).await;
        assert_eq!(seen, Sees::problem(502, "upstream_unreachable"), "{round}");

        routes.b = back(&routes, &app).await;
        serves().await;
        nothing_is_left(&routes.a, &before).await;
    }
}

/// The same sidecar once more, where it was.
async fn back(routes: &Routes, app: &App) -> Sidecar {
    let plan = Routes::plan_b(&routes.policy).inbound_at(routes.b.inbound[0], app.address, "");
    let mut back = plan.start(&routes.dirs, &routes.issuer).await;
    back.ready().await;
    back
}

#[tokio::test]
async fn a_peer_that_starts_anew_under_load_costs_no_request_that_it_had_not_taken() {
    let app = App::start().await;
    let mut routes = Routes::to(&[(app.address, "", "")]).await;
    let entrance = routes.a.outbound[0];
    let load = tokio::spawn(async move {
        let mut seen = Vec::new();
        loop {
            let what = ask(entrance, Http::One, getting(Http::One)).await;
            let is_back = matches!(what, Sees::Whole(_))
                && seen.iter().any(|one| !matches!(one, Sees::Whole(_)));
            seen.push(what);
            if is_back {
                return seen;
            }
        }
    });
    eventually("the load is there", async || {
        (app.seen().len() > 20).then_some(())
    })
    .await;
    // In order: what was taken is answered, and then nobody is there for a while.
    assert_eq!(routes.b.terminate().await, Some(0));
    eventually("it is missed", async || {
        let unreachable = [("outcome", "upstream_unreachable")];
        let metrics = routes.a.metrics().await;
        (metrics.sum("doorward_requests_total", &unreachable) > 0.0).then_some(())
    })
    .await;
    routes.b = back(&routes, &app).await;
    for seen in tokio::time::timeout(SOON, load).await.unwrap().unwrap() {
        let refused = Sees::problem(502, "upstream_unreachable");
        assert!(
            matches!(seen, Sees::Whole(_)) || seen == refused,
            "{seen:?}"
        );
    }
}

#[tokio::test]
async fn a_peer_that_is_stopped_is_given_up_within_the_deadlines_and_used_again_once_it_goes_on() {
    let app = App::start().await;
    let http = "protocol: http";
    let routes = Routes::to(&[
        (
            app.address,
            http,
            "response_timeout: 1s, connect_timeout: 1s",
        ),
        (app.address, http, ""),
        (
            app.address,
            "protocol: tcp",
            "protocol: tcp, idle_timeout: 1s",
        ),
    ])
    .await;
    let [hasty, patient, tcp] = routes.a.outbound[..] else {
        panic!("three routes");
    };
    for entrance in [hasty, patient] {
        let seen = ask(entrance, Http::Two, getting(Http::Two)).await;
        assert!(matches!(seen, Sees::Whole(_)), "{seen:?}");
    }
    let mut session = TcpStream::connect(tcp).await.unwrap();
    let asked = b"GET / HTTP/1.1\r\nhost: app.example\r\n\r\n";
    session.write_all(asked).await.unwrap();
    assert!(session.read(&mut [0; 4096]).await.unwrap() > 0);
    let before = Held::by(&routes.a).await;

    // Its kernel goes on: it acknowledges what we send, and lets in who connects.
    routes.b.process.suspend().await;
    session.write_all(asked).await.unwrap();
    let without_deadline = tokio::spawn(async move {
        let answer = crate::mesh::request("POST", "/");
        let mut client = crate::mesh::Client::connect(patient, Http::One).await;
        let answer = client.send(answer).await.unwrap();
        answer.status().as_u16()
    });
    for _ in 0..3 {
        let seen = ask(hasty, Http::One, getting(Http::One)).await;
        assert_eq!(seen, Sees::problem(504, "upstream_timeout"));
    }
    // A TCP session has no other limit than that of its idling.
    let ending = async {
        loop {
            // What is left of the first answer comes before it.
            match session.read(&mut [0; 4096]).await {
                Ok(1..) => {}
                end => return end,
            }
        }
    };
    let ended = tokio::time::timeout(BOUND, ending).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    // A request without a deadline ends when the connection's PING is not answered: 15 s and 15 s.
    let pings = Duration::from_secs(30) + BOUND;
    let status = tokio::time::timeout(pings, without_deadline).await;
    assert_eq!(status.unwrap().unwrap(), 502);

    routes.b.process.signal(Signal::SIGCONT);
    for entrance in [hasty, patient] {
        within(BOUND, "it is used again", async || {
            let seen = ask(entrance, Http::One, getting(Http::One)).await;
            matches!(seen, Sees::Whole(_)).then_some(())
        })
        .await;
    }
    nothing_is_left(&routes.a, &before).await;
}
