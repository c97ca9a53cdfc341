//! Two sidecars with a route to each of a test's own applications; [`Mesh`](crate::mesh::Mesh) brings one.

use tokio::net::TcpStream;

use crate::apps::App;
use crate::mesh::{Dirs, Issuer, Plan, PolicyDir, Sidecar, grant, id};

/// What is not as usual.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// How long SVIDs live.
    pub(crate) lifetime: &'static str,
    /// When they are replaced.
    pub(crate) rotate_every: Option<&'static str>,
    /// How long a drain waits, in both.
    pub(crate) drain_grace: &'static str,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            lifetime: "1h",
            rotate_every: None,
            drain_grace: "30s",
        }
    }
}

/// The sidecars `a`, which calls, and `b`, which is called.
#[derive(Debug)]
pub(crate) struct Pair {
    // In this order they go: who depends on another goes first.
    pub(crate) a: Sidecar,
    pub(crate) b: Sidecar,
    pub(crate) issuer: Issuer,
    _dirs: Dirs,
}

impl Pair {
    /// A route to `app`, with the same `protocol` at both ends.
    pub(crate) async fn of(app: &App, protocol: &str) -> Self {
        let keys = format!("protocol: {protocol}");
        Self::with(&[(app, &keys, &keys)], Terms::default()).await
    }

    /// For each application a route, with further keys for the inbound and for the outbound listener.
    pub(crate) async fn with(routes: &[(&App, &str, &str)], terms: Terms) -> Self {
        let dirs = Dirs::new();
        let mut issuer = Issuer::new(&dirs);
        for workload in ["a", "b"] {
            issuer.add(&dirs, workload, terms.lifetime, terms.rotate_every);
        }
        issuer.start().await;
        let policy = PolicyDir::new(dirs.file("policy"));
        policy.write("policy.cedar", &grant("all-for-a", "a"));

        let grace = format!("drain_grace: {}", terms.drain_grace);
        let mut plan = Plan::new("b")
            .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
            .with(&grace);
        for (app, keys, _) in routes {
            plan = plan.inbound(&app.address, keys);
        }
        let mut b = plan.start(&dirs, &issuer).await;
        let mut plan = Plan::new("a").with(&grace);
        for ((_, _, keys), gate) in routes.iter().zip(&b.inbound) {
            plan = plan.outbound(*gate, &id("b"), keys);
        }
        let mut a = plan.start(&dirs, &issuer).await;
        a.ready().await;
        b.ready().await;
        Self {
            a,
            b,
            issuer,
            _dirs: dirs,
        }
    }

    /// What the calling application does: it connects in plain.
    pub(crate) async fn connect(&self) -> TcpStream {
        self.connect_to(0).await
    }

    /// The same to the application of another route.
    pub(crate) async fn connect_to(&self, route: usize) -> TcpStream {
        let stream = TcpStream::connect(self.a.outbound[route]).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}
