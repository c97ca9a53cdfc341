//! When something beside us breaks, callers are told, within the time that a setting gives, and nothing is
//! left behind: no connection, descriptor, thread, session or memory. The README's table "When something
//! breaks" names these tests.

mod apps;
mod peers;
mod process;
mod tcp;
mod uploads;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::mesh::{
    Answer, Client, Dirs, Held, Http, Issuer, Plan, PolicyDir, Sidecar, eventually, grant, id,
    nothing_is_left, request,
};

/// How often a fault is repeated before it is asked what is left of it.
const ROUNDS: usize = 200;

/// How many of them are under way at once.
const AT_ONCE: usize = 50;

/// No setting of these tests lets anything take so long.
const BOUND: Duration = Duration::from_secs(10);

/// Two sidecars with one worker each, and between them a route to each of several applications.
struct Routes {
    a: Sidecar,
    b: Sidecar,
    issuer: Issuer,
    policy: PolicyDir,
    dirs: Dirs,
}

impl Routes {
    /// For each application further keys of the inbound and of the outbound listener.
    async fn to(routes: &[(SocketAddr, &str, &str)]) -> Self {
        let dirs = Dirs::new();
        let mut issuer = Issuer::new(&dirs);
        for workload in ["a", "b"] {
            issuer.add(&dirs, workload, "1h", None);
        }
        issuer.start().await;
        let policy = PolicyDir::new(dirs.file("policy"));
        policy.write("policy.cedar", &grant("all-for-a", "a"));
        let mut plan = Self::plan_b(&policy);
        for (app, keys, _) in routes {
            plan = plan.inbound(app, keys);
        }
        let mut b = plan.start(&dirs, &issuer).await;
        let mut plan = Plan::new("a").with("workers: 1");
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
            policy,
            dirs,
        }
    }

    fn plan_b(policy: &PolicyDir) -> Plan {
        Plan::new("b")
            .with("workers: 1")
            .with(format!("policy: {{ dir: '{}' }}", policy.0.display()))
    }

    /// Has `round` happen [`ROUNDS`] times, and waits until nothing is left of it.
    async fn again_and_again(&self, round: impl AsyncFn()) {
        self.again_and_again_keeping(0, round).await;
    }

    /// The same where up to so many connections to the application are kept for the next request.
    async fn again_and_again_keeping(&self, kept: usize, round: impl AsyncFn()) {
        let some = || join_all((0..AT_ONCE).map(|_| round()));
        // What is kept for the next request, and what is made once, is there after the first ones.
        some().await;
        let mut before = join_all([&self.a, &self.b].map(Held::at_rest)).await;
        before[1].descriptors += kept;
        for _ in 0..ROUNDS / AT_ONCE {
            some().await;
        }
        nothing_is_left(&self.a, &before[0]).await;
        nothing_is_left(&self.b, &before[1]).await;
    }
}

/// What a caller gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sees {
    /// The proxy's refusal: the status, and the word for what went wrong.
    Problem(u16, String),
    /// The refusal of a gRPC call: `grpc-status`.
    Grpc(String),
    /// The application's answer, to its end.
    Whole(Bytes),
    /// The beginning of an answer, and then an error.
    BrokenOff(u16),
    /// An error in place of an answer.
    Nothing,
}

impl Sees {
    fn problem(status: u16, error: &str) -> Self {
        Self::Problem(status, error.into())
    }
}

/// Asks on a connection of its own.
async fn ask(address: SocketAddr, http: Http, asked: Request<Full<Bytes>>) -> Sees {
    let began = Instant::now();
    let seen = tokio::time::timeout(BOUND, async {
        let mut client = Client::connect(address, http).await;
        let Ok(response) = client.send(asked).await else {
            return Sees::Nothing;
        };
        let status = response.status().as_u16();
        let Ok(answer) = Answer::of(response).await else {
            return Sees::BrokenOff(status);
        };
        if answer.headers.contains_key("grpc-status") {
            return Sees::Grpc(answer.header("grpc-status").into());
        }
        match answer.header("content-type") {
            "application/problem+json" => {
                let error = answer.json()["error"].as_str().unwrap().to_owned();
                Sees::Problem(status, error)
            }
            _ => Sees::Whole(answer.body),
        }
    });
    seen.await
        .unwrap_or_else(|_| panic!("nothing after {:?}", began.elapsed()))
}

/// One HTTP after the other.
#[derive(Default)]
struct Turns(AtomicUsize);

impl Turns {
    fn next(&self) -> Http {
        match self.0.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Http::One,
            _ => Http::Two,
        }
    }
}

/// GET, as `http` writes it.
fn getting(http: Http) -> Request<Full<Bytes>> {
    match http {
        Http::One => request("GET", "/"),
        Http::Two => request("GET", "http://app.example/"),
    }
}

/// A gRPC call.
fn calling() -> Request<Full<Bytes>> {
    let mut call = request("POST", "http://app.example/invoices.Invoices/Get");
    let grpc = http::HeaderValue::from_static("application/grpc");
    call.headers_mut().insert("content-type", grpc);
    call
}

/// An application that does one thing wrong on each connection.
struct Faulty {
    address: SocketAddr,
    task: AbortHandle,
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Faulty {
    /// Serves each connection with `serve`.
    async fn new<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                tokio::spawn(serve(stream));
            }
        });
        Self {
            address,
            task: serving.abort_handle(),
        }
    }

    /// Reads a request's head, says `bytes`, and then does what `end` says.
    async fn saying(bytes: &'static [u8], end: End) -> Self {
        Self::new(move |mut stream| async move {
            head(&mut stream).await?;
            stream.write_all(bytes).await?;
            end.of(stream).await
        })
        .await
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// By RST.
    Reset,
    /// By FIN.
    Close,
    /// When the other side ends it.
    Never,
}

impl End {
    async fn of(self, mut stream: TcpStream) -> std::io::Result<()> {
        match self {
            Self::Close => {}
            Self::Reset => reset_at_the_end(&stream),
            Self::Never => drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await),
        }
        Ok(())
    }
}

/// Makes the end of `stream`, however it comes, a reset.
fn reset_at_the_end(stream: &TcpStream) {
    socket2::SockRef::from(stream)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Reads up to the end of a request's head.
async fn head(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut read).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}
