//! Clients of every kind. One that fails says so to the journal, and goes on.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt, stream};
use http::{Request, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::faults::{Failure, Journal};
use crate::apps::{self, Answer, AnyBody, AnyError, get, get2, http1, http2, summary_of_pattern};

/// Who they are, and how many of each.
const CLIENTS: [(&str, usize); 11] = [
    ("HTTP/1.1", 8),
    ("HTTP/2", 4),
    ("short TCP", 4),
    ("long TCP", 3),
    ("gRPC stream", 2),
    ("WebSocket", 2),
    ("download", 1),
    ("upload", 1),
    ("guarded", 2),
    ("denied", 1),
    ("HTTP/1.1 anew", 1),
];

/// All clients at work.
pub(super) struct Clients(JoinSet<(&'static str, usize)>);

impl Clients {
    /// How much was done by whom.
    pub(super) async fn finish(mut self) -> BTreeMap<&'static str, usize> {
        let mut all = BTreeMap::new();
        while let Some(ended) = self.0.join_next().await {
            let (name, done) = ended.unwrap();
            *all.entry(name).or_default() += done;
        }
        all
    }
}

/// One client of one sidecar.
pub(super) struct Client {
    name: &'static str,
    to: &'static str,
    /// For HTTP, TCP and WebSocket.
    routes: [SocketAddr; 3],
    until: Instant,
    journal: Arc<Journal>,
    done: usize,
    began: Instant,
}

/// Sends through each of the listeners of `a`, of which three lead to `b` and three to `c`.
pub(super) fn start(routes: &[SocketAddr], until: Instant, journal: &Arc<Journal>) -> Clients {
    let mut clients = JoinSet::new();
    for (to, routes) in ["b", "c"].into_iter().zip(routes.chunks(3)) {
        for (name, count) in CLIENTS {
            for _ in 0..count {
                let client = Client {
                    name,
                    to,
                    routes: routes.try_into().unwrap(),
                    until,
                    journal: journal.clone(),
                    done: 0,
                    began: Instant::now(),
                };
                clients.spawn(client.run());
            }
        }
    }
    Clients(clients)
}

type Worked = Result<(), (Failure, AnyError)>;

impl Client {
    async fn run(mut self) -> (&'static str, usize) {
        while !self.is_over() {
            self.began = Instant::now();
            // What takes so long does not end at all.
            let worked = match self.name {
                "HTTP/1.1" => self.http1("/download/1000").await,
                "HTTP/1.1 anew" => self.anew().await,
                "HTTP/2" => self.http2().await,
                "short TCP" => self.short_sessions().await,
                "long TCP" => self.long_session().await,
                "gRPC stream" => self.grpc().await,
                "WebSocket" => self.websocket().await,
                "download" => self.http1("/download/3000000").await,
                "upload" => self.upload().await,
                "guarded" => self.http1("/seen/guarded").await,
                "denied" => self.http1("/seen/denied").await,
                other => panic!("{other}"),
            };
            if let Err((failure, why)) = worked {
                let who = (self.name, self.to);
                self.journal
                    .failed(who, self.began, failure, format!("{why:?}"));
                sleep(Duration::from_millis(50)).await;
            }
        }
        (self.name, self.done)
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Something that must not take for ever.
    async fn soon<T, E: Into<AnyError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, (Failure, AnyError)> {
        match timeout(Duration::from_secs(15), work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err((Failure::Broken, error.into())),
            Err(_) => Err((Failure::Wrong, "no end of it".into())),
        }
    }

    async fn did(&mut self) {
        self.done += 1;
        sleep(PAUSE).await;
        self.began = Instant::now();
    }

    async fn http1(&mut self, path: &str) -> Worked {
        let mut client = self
            .soon(async { http1(TcpStream::connect(self.routes[0]).await?).await })
            .await?;
        while !self.is_over() {
            let answer = self
                .soon(async {
                    client.ready().await?;
                    Answer::of(client.send_request(get(path)).await?).await
                })
                .await?;
            self.judge(path, &answer)?;
            self.did().await;
        }
        Ok(())
    }

    /// A connection for each request.
    async fn anew(&mut self) -> Worked {
        let path = "/download/1000";
        let answer = self
            .soon(async {
                let mut client = http1(TcpStream::connect(self.routes[0]).await?).await?;
                Answer::of(client.send_request(get(path)).await?).await
            })
            .await?;
        self.judge(path, &answer)?;
        self.did().await;
        Ok(())
    }

    async fn http2(&mut self) -> Worked {
        let path = "/download/1000";
        let mut client = self
            .soon(async { http2(TcpStream::connect(self.routes[0]).await?).await })
            .await?;
        while !self.is_over() {
            let answer = self
                .soon(async {
                    client.ready().await?;
                    Answer::of(client.send_request(get2(path)).await?).await
                })
                .await?;
            self.judge(path, &answer)?;
            self.did().await;
        }
        Ok(())
    }

    fn judge(&self, path: &str, answer: &Answer) -> Worked {
        let denied = answer.status == StatusCode::FORBIDDEN;
        if self.name == "denied" {
            return match answer.status {
                StatusCode::FORBIDDEN => Ok(()),
                status if status.is_success() => Err((Failure::Allowed, "200".into())),
                _ => Err((Failure::Unavailable, answer.status.to_string().into())),
            };
        }
        let failure = match answer.status {
            StatusCode::OK if self.name == "guarded" => {
                self.journal.allowed((self.name, self.to), self.began);
                return Ok(());
            }
            StatusCode::OK => {
                let length = path
                    .rsplit('/')
                    .next()
                    .and_then(|length| length.parse().ok());
                if length.is_none_or(|length: usize| answer.body.len() == length) {
                    return Ok(());
                }
                Failure::Wrong
            }
            _ if denied => Failure::Denied,
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Failure::Unavailable,
            _ => Failure::Wrong,
        };
        Err((
            failure,
            format!("{}: {} bytes", answer.status, answer.body.len()).into(),
        ))
    }

    async fn upload(&mut self) -> Worked {
        const LENGTH: usize = 3_000_000;
        let expected = summary_of_pattern(LENGTH);
        let mut client = self
            .soon(async { http1(TcpStream::connect(self.routes[0]).await?).await })
            .await?;
        while !self.is_over() {
            let pieces = apps::pattern(LENGTH).map(|piece| Ok::<_, AnyError>(Frame::data(piece)));
            let body: AnyBody = StreamBody::new(pieces).boxed_unsync();
            let request = Request::post("/sink").header(header::HOST, "app.test");
            let request = request.body(body).unwrap();
            let answer = self
                .soon(async {
                    client.ready().await?;
                    Answer::of(client.send_request(request).await?).await
                })
                .await?;
            self.judge("/sink", &answer)?;
            if answer.text() != expected {
                return Err((Failure::Wrong, answer.text().into()));
            }
            self.did().await;
        }
        Ok(())
    }

    /// A connection for each exchange.
    async fn short_sessions(&mut self) -> Worked {
        let back = self
            .soon(async {
                let mut stream = TcpStream::connect(self.routes[1]).await?;
                stream.write_all(b"and back").await?;
                stream.shutdown().await?;
                let mut back = String::new();
                stream.read_to_string(&mut back).await?;
                Ok::<_, std::io::Error>(back)
            })
            .await?;
        match &back[..] {
            "and back" => {}
            // Nobody is behind it.
            "" => return Err((Failure::Broken, "nothing came back".into())),
            other => return Err((Failure::Wrong, other.into())),
        }
        self.did().await;
        Ok(())
    }

    /// One connection for all exchanges.
    async fn long_session(&mut self) -> Worked {
        let mut stream = self.soon(TcpStream::connect(self.routes[1])).await?;
        while !self.is_over() {
            let mut back = [0; 8];
            self.soon(async {
                stream.write_all(b"and back").await?;
                stream.read_exact(&mut back).await
            })
            .await?;
            if back != *b"and back" {
                return Err((Failure::Wrong, format!("{back:?}").into()));
            }
            self.did().await;
        }
        Ok(())
    }

    async fn websocket(&mut self) -> Worked {
        let stream = self.soon(TcpStream::connect(self.routes[2])).await?;
        let opened = self
            .soon(tokio_tungstenite::client_async(
                "ws://app.test/chat",
                stream,
            ))
            .await;
        let (mut socket, _) = opened?;
        while !self.is_over() {
            let message = self
                .soon(async {
                    socket.send("and back".into()).await?;
                    let message = socket.next().await;
                    message.unwrap_or(Err(tokio_tungstenite::tungstenite::Error::ConnectionClosed))
                })
                .await?;
            match message.into_text() {
                Ok(text) if text == "and back" => {}
                // A close.
                other => return Err((Failure::Broken, format!("{other:?}").into())),
            }
            self.did().await;
        }
        Ok(())
    }

    /// One stream for all messages, each answered before the next.
    async fn grpc(&mut self) -> Worked {
        let channel = self
            .soon(async {
                let endpoint =
                    tonic::transport::Endpoint::from_shared(format!("http://{}", self.routes[0]))?;
                endpoint.connect().await
            })
            .await?;
        let mut client = tonic::client::Grpc::new(channel);
        self.soon(client.ready()).await?;
        let (say, said) = mpsc::channel(1);
        let said = stream::unfold(said, |mut said| async { Some((said.recv().await?, said)) });
        let path = http::uri::PathAndQuery::from_static("/test.PingPong/Play");
        let call = client.streaming(tonic::Request::new(said), path, apps::codec());
        let mut answers = self.of_grpc(call).await?.into_inner();
        while !self.is_over() {
            let number = self.done;
            let answer = self
                .of_grpc(async {
                    // Whether the call has ended is for the answer to say.
                    let _ = say.send(format!("ping {number}")).await;
                    answers.message().await
                })
                .await?;
            match answer {
                Some(answer) if answer == format!("PING {number}") => {}
                None => return Err((Failure::Broken, "the stream ended".into())),
                other => return Err((Failure::Wrong, format!("{other:?}").into())),
            }
            self.did().await;
        }
        drop(say);
        Ok(())
    }

    async fn of_grpc<T>(
        &self,
        work: impl Future<Output = Result<T, tonic::Status>>,
    ) -> Result<T, (Failure, AnyError)> {
        let worked = self.soon(async { Ok::<_, AnyError>(work.await) }).await?;
        worked.map_err(|status| {
            let failure = match status.code() {
                tonic::Code::PermissionDenied => Failure::Denied,
                tonic::Code::Unavailable => Failure::Unavailable,
                // A stream that was reset under way.
                tonic::Code::Cancelled | tonic::Code::Internal | tonic::Code::Unknown => {
                    Failure::Broken
                }
                _ => Failure::Wrong,
            };
            (failure, status.into())
        })
    }
}

/// Between one thing that is done and the next.
const PAUSE: Duration = Duration::from_millis(3);
