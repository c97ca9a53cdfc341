//! The service manager is told when there is an identity, that no thread hangs, and that the end has begun.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::mesh::*;

/// What a service manager has heard, one message after the other.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn new(dirs: &Dirs) -> Self {
        let socket = UnixDatagram::bind(dirs.file("notify")).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self {
            socket,
            heard: Vec::new(),
        }
    }

    /// What the sidecar is started with.
    fn environment(dirs: &Dirs, watchdog: Duration) -> String {
        let path = dirs.file("notify");
        let microseconds = watchdog.as_micros();
        format!(
            "export NOTIFY_SOCKET='{}' WATCHDOG_USEC={microseconds}",
            path.display()
        )
    }

    fn listen(&mut self) {
        let mut message = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut message) {
            let text = String::from_utf8_lossy(&message[..length]);
            self.heard.extend(text.lines().map(ToOwned::to_owned));
        }
    }

    fn times(&mut self, line: &str) -> usize {
        self.listen();
        self.heard.iter().filter(|heard| *heard == line).count()
    }

    async fn hears(&mut self, line: &str) {
        eventually(format_args!("the manager hears {line}"), async || {
            (self.times(line) > 0).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_sidecar_says_when_it_is_ready_that_it_lives_and_that_it_ends() {
    let dirs = Dirs::new();
    let mut manager = Manager::new(&dirs);
    let mut issuer = Issuer::new(&dirs);
    issuer.start().await;
    let plan = Plan::new("a").outbound("127.0.0.1:9", "spiffe://example.org/b", "");
    let environment = Manager::environment(&dirs, Duration::from_millis(400));
    let mut sidecar = plan.after(environment).start(&dirs, &issuer).await;

    manager
        .hears("STATUS=not ready: identity: there is no identity: none was issued yet, or it was withdrawn; listeners: 0 of 2 workers accept connections")
        .await;
    assert_eq!(manager.times("READY=1"), 0);
    issuer.add(&dirs, "a", "1h", None);
    issuer.reload();
    manager.hears("READY=1").await;
    manager.hears("STATUS=ready").await;
    let before = manager.times("WATCHDOG=1");
    eventually(
        "it is told again and again that the sidecar lives",
        async || (manager.times("WATCHDOG=1") > before + 2).then_some(()),
    )
    .await;

    issuer.remove("a");
    issuer.reload();
    eventually("it is told why the sidecar is not ready", async || {
        manager.listen();
        let last = manager
            .heard
            .iter()
            .rev()
            .find(|line| line.starts_with("STATUS="));
        last.is_some_and(|line| line.starts_with("STATUS=not ready: identity: "))
            .then_some(())
    })
    .await;
    sidecar.process.signal(Signal::SIGTERM);
    assert_eq!(sidecar.process.exit().await, Some(0));
    assert_eq!(manager.times("STOPPING=1"), 1);
    assert_eq!(manager.times("READY=1"), 1);
}
