//! Whoever probes the application through its sidecar learns whether it is well, and nothing else; nothing
//! of the question reaches the application.

use http::{HeaderValue, header};

use crate::mesh::{App, Mesh, Options, ask, get, request};

#[tokio::test]
async fn a_probe_learns_whether_the_application_is_well_and_nothing_else() {
    // The configuration names its port.
    let app = App::start().await;
    let port = app.address.port();
    let mesh = Mesh::with(Options {
        app: Some(app.address),
        b: vec![format!(
            "probes: {{ listen: '127.0.0.1:0', checks: [\
             {{ path: /app-health/app/livez, port: {port}, kind: http, target: '/status/204?from=config' }}, \
             {{ path: /app-health/app/readyz, port: {port}, kind: http, target: /status/500 }}, \
             {{ path: /app-health/app/startupz, port: {port}, kind: tcp }}] }}"
        )],
        ..Options::default()
    })
    .await;
    let probes = mesh.b.probes.unwrap();
    let livez = "/app-health/app/livez";
    for (path, status) in [
        (livez, 200),
        ("/app-health/app/livez?port=22", 200),
        ("/app-health/app/readyz", 503),
        ("/app-health/app/startupz", 200),
        ("/app-health/app/other", 404),
        ("/status/204", 404),
        ("/metrics", 404),
    ] {
        let answer = get(probes, path).await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.body.len() < 64, "{path}: {}", answer.text());
    }
    assert_eq!(ask(probes, request("POST", livez)).await.status, 405);
    let mut claimed = request("GET", livez);
    let id = HeaderValue::from_static("URI=spiffe://example.org/admin");
    claimed.headers_mut().insert("x-forwarded-client-cert", id);
    assert_eq!(ask(probes, claimed).await.status, 200);

    let seen = app.seen();
    assert!(!seen.is_empty());
    for request in seen {
        assert_eq!(request.method, "GET");
        assert!(request.path.starts_with("/status/"), "{}", request.path);
        assert!(!request.path.contains("port=22"), "{}", request.path);
        assert!(request.all("x-forwarded-client-cert").is_empty());
        assert_eq!(request.all("host"), [app.address.to_string()]);
        assert_eq!(request.all(header::USER_AGENT.as_str()), ["doorward-probe"]);
    }

    drop(app);
    assert_eq!(get(probes, livez).await.status, 503);
}
