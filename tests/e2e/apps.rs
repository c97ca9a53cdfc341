//! Plain applications for sidecars to stand beside, and clients that call them. None of them knows of
//! mutual TLS.

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, Ready, ready};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use futures_util::{SinkExt, TryStreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::mesh::SOON;

pub(crate) type AnyError = Box<dyn Error + Send + Sync>;
pub(crate) type AnyBody = UnsyncBoxBody<Bytes, AnyError>;

/// What an application may be reached through.
pub(crate) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
pub(crate) type AnyIo = Box<dyn Io>;

/// An application that runs until this is dropped.
pub(crate) struct App {
    /// As a configuration writes it.
    pub(crate) address: String,
    /// What waits takes a permit for each step: an event, a slow answer, the slow sink's first read.
    pub(crate) gate: Arc<Semaphore>,
    /// How many requests, or TCP connections, have arrived.
    pub(crate) arrived: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for App {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl App {
    /// Serves each connection with `serve`, on a port of the loopback.
    pub(crate) async fn tcp<S, F>(serve: S) -> Self
    where
        S: Fn(AnyIo) -> F + Send + Sync + 'static,
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        Self::tcp_at("127.0.0.1:0", serve).await
    }

    /// The same at an address of the test's choice.
    pub(crate) async fn tcp_at<S, F>(address: &str, serve: S) -> Self
    where
        S: Fn(AnyIo) -> F + Send + Sync + 'static,
        F: Future<Output = std::io::Result<()>> + Send + 'static,
    {
        let (address, accept) = listen(address).await;
        Self::start(address, accept, counted(serve))
    }

    /// An HTTP application: see [`answer`] for what it does.
    pub(crate) async fn http() -> Self {
        Self::http_at("127.0.0.1:0").await
    }

    /// The same at an address of the test's choice.
    pub(crate) async fn http_at(address: &str) -> Self {
        let (address, accept) = listen(address).await;
        Self::start(address, accept, speak_http)
    }

    /// The same on a Unix socket.
    pub(crate) fn http_on_unix(path: &Path) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let accept = stream::unfold(listener, |listener| async {
            let (stream, _) = listener.accept().await.unwrap();
            Some((Box::new(stream) as AnyIo, listener))
        });
        Self::start(format!("unix:{}", path.display()), accept, speak_http)
    }

    fn start<S, F>(
        address: String,
        accept: impl Stream<Item = AnyIo> + Send + 'static,
        serve: S,
    ) -> Self
    where
        S: Fn(AnyIo, Arc<Semaphore>, Arc<AtomicUsize>) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (gate, arrived) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn({
            let (gate, arrived) = (gate.clone(), arrived.clone());
            async move {
                // Dropped with us, and its tasks with it.
                let mut connections = JoinSet::new();
                let mut accept = std::pin::pin!(accept);
                while let Some(io) = accept.next().await {
                    connections.spawn(serve(io, gate.clone(), arrived.clone()));
                }
            }
        });
        Self {
            address,
            gate,
            arrived,
            task,
        }
    }

    /// Ends it, with all its connections. Its address is free then.
    pub(crate) async fn kill(&mut self) {
        self.task.abort();
        // It was cut short: that is how it should end.
        let _ = (&mut self.task).await;
    }

    /// Lets `steps` steps go on that wait.
    pub(crate) fn release(&self, steps: usize) {
        self.gate.add_permits(steps);
    }

    /// Waits until `count` requests have arrived since the start.
    pub(crate) async fn wait_for(&self, count: usize) {
        let arrived = async {
            while self.arrived.load(Ordering::SeqCst) < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), arrived)
            .await
            .unwrap_or_else(|_| panic!("{count} requests should have arrived"));
    }
}

/// Where it listens, and the connections that come there.
async fn listen(address: &str) -> (String, impl Stream<Item = AnyIo> + Send + 'static) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let accept = stream::unfold(listener, |listener| async {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        Some((Box::new(stream) as AnyIo, listener))
    });
    (address, accept)
}

fn counted<S, F>(
    serve: S,
) -> impl Fn(AnyIo, Arc<Semaphore>, Arc<AtomicUsize>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send
where
    S: Fn(AnyIo) -> F + Send + Sync + 'static,
    F: Future<Output = std::io::Result<()>> + Send + 'static,
{
    move |io, _, arrived| {
        arrived.fetch_add(1, Ordering::SeqCst);
        let served = serve(io);
        Box::pin(async move {
            // Whether it broke is for the client to say.
            drop(served.await);
        })
    }
}

async fn speak_http(io: AnyIo, gate: Arc<Semaphore>, arrived: Arc<AtomicUsize>) {
    let service = service_fn(move |request| {
        arrived.fetch_add(1, Ordering::SeqCst);
        let gate = gate.clone();
        async move { Ok::<_, Infallible>(answer(request, &gate).await) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().max_buf_size(256 * 1024).half_close(true);
    server.http2().max_header_list_size(256 * 1024);
    drop(server.serve_connection(TokioIo::new(io), service).await);
}

/// What the HTTP application says.
async fn answer(request: Request<Incoming>, gate: &Arc<Semaphore>) -> Response<AnyBody> {
    let is_grpc =
        request.headers().get(header::CONTENT_TYPE) == Some(&"application/grpc".parse().unwrap());
    let path = request.uri().path().to_owned();
    let (kind, argument) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    match kind {
        _ if is_grpc && kind == "test.PingPong" => {
            let mut server = tonic::server::Grpc::new(codec());
            server
                .streaming(PingPong, request)
                .await
                .map(|body| body.map_err(AnyError::from).boxed_unsync())
        }
        // The protocol that reached us, and the request as it did.
        "seen" => {
            let mut seen = format!(
                "{:?} {} {}\n",
                request.version(),
                request.method(),
                request.uri()
            );
            for (name, value) in request.headers() {
                seen += &format!("{name}: {}\n", value.to_str().unwrap());
            }
            Response::new(whole(seen))
        }
        // The body comes back frame by frame, trailers too.
        "echo" => {
            let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
            let body = request.into_body().map_err(AnyError::from).boxed_unsync();
            let mut response = Response::new(body);
            if let Some(content_type) = content_type {
                response
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, content_type);
            }
            response
                .headers_mut()
                .insert(header::TRAILER, "x-sum, grpc-status".parse().unwrap());
            response
        }
        "status" => {
            let mut response =
                Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
            *response.status_mut() = argument.parse().unwrap();
            response
        }
        // Nothing of the body is read.
        "refuse" => {
            let mut response = Response::new(whole("too much"));
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            response
        }
        "headers" => {
            let mut response = Response::new(whole("many"));
            for number in 0..argument.parse().unwrap() {
                let name = format!("x-large-{number}")
                    .parse::<header::HeaderName>()
                    .unwrap();
                response
                    .headers_mut()
                    .insert(name, "v".repeat(1000).parse().unwrap());
            }
            response
        }
        "trailers" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "3".parse().unwrap());
            let frames = [Frame::data(Bytes::from("one")), Frame::trailers(trailers)];
            let body = StreamBody::new(stream::iter(frames.map(Ok::<_, AnyError>)));
            let mut response = Response::new(body.boxed_unsync());
            response
                .headers_mut()
                .insert(header::TRAILER, "x-sum".parse().unwrap());
            response
        }
        "events" => {
            let events = stream::unfold((0_usize, gate.clone()), |(number, gate)| async move {
                gate.acquire().await.unwrap().forget();
                let event = format!("data: {number}\n\n");
                Some((
                    Ok::<_, AnyError>(Frame::data(Bytes::from(event))),
                    (number + 1, gate),
                ))
            });
            let mut response = Response::new(StreamBody::new(events).boxed_unsync());
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
            response
        }
        "slow" => {
            gate.acquire().await.unwrap().forget();
            Response::new(whole(argument.to_owned()))
        }
        "sink" => Response::new(whole(read(request.into_body()).await)),
        "slow-sink" => {
            gate.acquire().await.unwrap().forget();
            Response::new(whole(read_slowly(request.into_body()).await))
        }
        "download" => {
            let body = pattern(argument.parse().unwrap()).map(|chunk| Ok(Frame::data(chunk)));
            Response::new(StreamBody::new(body).boxed_unsync())
        }
        _ => Response::new(whole("hello")),
    }
}

pub(crate) fn whole(text: impl Into<Bytes>) -> AnyBody {
    Full::new(text.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

pub(crate) fn nothing() -> AnyBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// How much it was, and its digest: what [`summary_of_pattern`] says of what was sent.
async fn read(mut body: impl Body<Data = Bytes, Error = hyper::Error> + Unpin) -> String {
    let mut summary = Summary::default();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => summary.add(frame.data_ref().map_or(&[], |data| &data[..])),
            Err(error) => return format!("broken: {error}"),
        }
    }
    summary.to_string()
}

async fn read_slowly(mut body: impl Body<Data = Bytes, Error = hyper::Error> + Unpin) -> String {
    let mut summary = Summary::default();
    let mut rest_after = 1 << 20;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => summary.add(frame.data_ref().map_or(&[], |data| &data[..])),
            Err(error) => return format!("broken: {error}"),
        }
        if summary.bytes > rest_after {
            rest_after = summary.bytes + (1 << 20);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    summary.to_string()
}

/// Bytes counted and digested.
pub(crate) struct Summary {
    pub(crate) bytes: usize,
    digest: Context,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            bytes: 0,
            digest: Context::new(&SHA256),
        }
    }
}

impl Summary {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        self.digest.update(bytes);
    }

    pub(crate) async fn of(mut io: impl AsyncRead + Unpin, limit: usize) -> std::io::Result<Self> {
        let mut summary = Self::default();
        let mut buffer = vec![0; 64 * 1024];
        while summary.bytes < limit {
            let count = io.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            summary.add(&buffer[..count]);
        }
        Ok(summary)
    }
}

impl std::fmt::Display for Summary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.bytes, self.digest.clone().finish())
    }
}

/// `length` bytes of which no two pieces are alike.
pub(crate) fn pattern(length: usize) -> impl Stream<Item = Bytes> + Send {
    stream::iter(pieces(length))
}

fn pieces(length: usize) -> impl Iterator<Item = Bytes> + Send {
    const PIECE: usize = 64 * 1024;
    (0..length.div_ceil(PIECE)).map(move |number| {
        let size = PIECE.min(length - number * PIECE);
        let mut piece: Vec<u8> = number.to_be_bytes().repeat(size.div_ceil(8));
        piece.truncate(size);
        piece.into()
    })
}

pub(crate) fn summary_of_pattern(length: usize) -> String {
    let mut summary = Summary::default();
    pieces(length).for_each(|piece| summary.add(&piece));
    summary.to_string()
}

pub(crate) async fn write_pattern(
    mut io: impl AsyncWrite + Unpin,
    length: usize,
    written: &AtomicUsize,
) -> std::io::Result<()> {
    for piece in pieces(length) {
        io.write_all(&piece).await?;
        written.fetch_add(piece.len(), Ordering::SeqCst);
    }
    io.flush().await
}

/// gRPC messages that come back in upper case, each before the next is asked for.
struct PingPong;

impl tonic::server::StreamingService<String> for PingPong {
    type Response = String;
    type ResponseStream = Pin<Box<dyn Stream<Item = Result<String, tonic::Status>> + Send>>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<tonic::Streaming<String>>) -> Self::Future {
        let messages = request.into_inner().and_then(|message| {
            ready(match message.as_str() {
                "fail" => Err(tonic::Status::data_loss("as asked")),
                _ => Ok(message.to_uppercase()),
            })
        });
        ready(Ok(tonic::Response::new(messages.boxed())))
    }
}

/// Messages that are `google.protobuf.StringValue`.
pub(crate) fn codec() -> tonic_prost::ProstCodec<String, String> {
    tonic_prost::ProstCodec::default()
}

/// Sends every WebSocket message back.
pub(crate) async fn websocket_echo(io: AnyIo) -> std::io::Result<()> {
    let failed = std::io::Error::other;
    let mut socket = tokio_tungstenite::accept_async(io).await.map_err(failed)?;
    while let Some(message) = socket.next().await {
        let message = message.map_err(failed)?;
        if message.is_text() || message.is_binary() {
            socket.send(message).await.map_err(failed)?;
        }
    }
    Ok(())
}

/// Sends every byte back as it comes.
pub(crate) async fn echo(io: AnyIo) -> std::io::Result<()> {
    let (mut read, mut write) = tokio::io::split(io);
    tokio::io::copy(&mut read, &mut write).await?;
    write.shutdown().await
}

/// Says nothing before the client has said all.
pub(crate) async fn summarize(mut io: AnyIo) -> std::io::Result<()> {
    let summary = Summary::of(&mut io, usize::MAX).await?;
    io.write_all(summary.to_string().as_bytes()).await?;
    io.shutdown().await
}

/// Speaks first, then echoes.
pub(crate) async fn banner(mut io: AnyIo) -> std::io::Result<()> {
    io.write_all(b"220 ready\r\n").await?;
    echo(io).await
}

/// A collected response.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) async fn of(response: Response<Incoming>) -> Result<Self, AnyError> {
        let (head, body) = response.into_parts();
        let collected = body.collect().await?;
        let trailers = collected.trailers().cloned();
        Ok(Self {
            status: head.status,
            headers: head.headers,
            body: collected.to_bytes(),
            trailers,
        })
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

pub(crate) type Http1 = hyper::client::conn::http1::SendRequest<AnyBody>;
pub(crate) type Http2 = hyper::client::conn::http2::SendRequest<AnyBody>;

/// Speaks HTTP/1.1 on `io`.
pub(crate) async fn http1(io: impl Io + 'static) -> Result<Http1, AnyError> {
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(256 * 1024)
        .handshake(TokioIo::new(io))
        .await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// Speaks HTTP/2 on `io`, without asking first.
pub(crate) async fn http2(io: impl Io + 'static) -> Result<Http2, AnyError> {
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .max_header_list_size(256 * 1024)
        .handshake(TokioIo::new(io))
        .await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A GET as HTTP/1.1 writes it.
pub(crate) fn get(path: &str) -> Request<AnyBody> {
    let request = Request::get(path).header(header::HOST, "app.test");
    request.body(nothing()).unwrap()
}

/// A GET as HTTP/2 writes it.
pub(crate) fn get2(path: &str) -> Request<AnyBody> {
    Request::get(format!("http://app.test{path}"))
        .body(nothing())
        .unwrap()
}

/// The data frames of a body, as they come.
pub(crate) fn frames(body: Incoming) -> impl Stream<Item = Bytes> + Unpin {
    Box::pin(
        BodyStream::new(body)
            .filter_map(|frame| ready(frame.ok().and_then(|frame| frame.into_data().ok()))),
    )
}

/// HTTP/1 written and read by hand.
pub(crate) struct Raw(BufReader<TcpStream>);

impl Raw {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(BufReader::new(stream))
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.unwrap();
    }

    /// The head of a response, in lower case.
    pub(crate) async fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") && head != "\r\n" {
            let line = self.0.read_line(&mut head);
            let count = tokio::time::timeout(SOON, line)
                .await
                .expect("a response in time");
            assert_ne!(count.unwrap(), 0, "the connection ended after {head:?}");
        }
        head.to_ascii_lowercase()
    }

    pub(crate) async fn exactly(&mut self, length: usize) -> String {
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.unwrap();
        String::from_utf8(body).unwrap()
    }

    /// A chunked body, and its trailers as written.
    pub(crate) async fn chunked(&mut self) -> (String, String) {
        let mut body = String::new();
        loop {
            let mut size = String::new();
            self.0.read_line(&mut size).await.unwrap();
            let size = usize::from_str_radix(size.trim(), 16).unwrap();
            if size == 0 {
                let trailers = self.head().await;
                return (body, trailers.strip_suffix("\r\n").unwrap().into());
            }
            body += self.exactly(size + 2).await.trim_end_matches("\r\n");
        }
    }

    /// What comes until the connection ends.
    pub(crate) async fn rest(&mut self) -> String {
        let mut rest = String::new();
        let read = self.0.read_to_string(&mut rest);
        tokio::time::timeout(SOON, read)
            .await
            .expect("an end in time")
            .unwrap();
        rest
    }
}
