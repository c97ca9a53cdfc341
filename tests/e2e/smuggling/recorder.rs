//! An application that keeps every byte it was sent, and takes only what no server could read in two ways.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// The application. It answers a request with what it understood: `POST /path 5`, the last being the length
/// of the body. Paths with an answer of their own get that, byte for byte.
pub(super) struct Recorder {
    pub(super) address: SocketAddr,
    connections: Arc<Mutex<Vec<Heard>>>,
    task: AbortHandle,
}

/// What came on one connection.
#[derive(Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    /// How many of the bytes were understood.
    understood: usize,
    requests: Vec<Request>,
    /// Why nothing was understood from there on.
    wrong: Option<String>,
}

/// One request that arrived whole.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Its number among all requests to this application.
    number: usize,
    pub(super) method: String,
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Vec<(String, String)>,
}

/// What the application answers, byte for byte, and whether it hangs up then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) bytes: &'static str,
    pub(super) closes: bool,
}

impl Recorder {
    pub(super) async fn start(own: impl IntoIterator<Item = (String, Own)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<Mutex<Vec<Heard>>>::default();
        let own = Arc::new(own.into_iter().collect::<HashMap<_, _>>());
        let shared = connections.clone();
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, shared.clone(), own.clone()));
            }
        });
        Self {
            address,
            connections,
            task: task.abort_handle(),
        }
    }

    /// Every request since the one with this number, in the order of their arrival.
    pub(super) fn since(&self, number: usize) -> Vec<Request> {
        let connections = self.connections.lock().unwrap();
        let requests = connections.iter().flat_map(|heard| &heard.requests);
        let mut late: Vec<_> = requests.filter(|it| it.number >= number).cloned().collect();
        late.sort_by_key(|request| request.number);
        late
    }

    /// How many requests have arrived.
    pub(super) fn count(&self) -> usize {
        let connections = self.connections.lock().unwrap();
        connections.iter().map(|heard| heard.requests.len()).sum()
    }

    /// How many connections it was ever given.
    pub(super) fn connections(&self) -> usize {
        self.connections.lock().unwrap().len()
    }

    /// What could be read in two ways, or was more than the beginning of one request that broke off.
    pub(super) fn misunderstood(&self) -> Vec<String> {
        let connections = self.connections.lock().unwrap();
        let wrong = connections.iter().filter_map(|heard| {
            let rest = heard.bytes[heard.understood..].escape_ascii().to_string();
            match &heard.wrong {
                Some(why) => Some(format!("{why}: {rest}")),
                None if rest.matches(" HTTP/1.1").count() > 1 => Some(format!("not one: {rest}")),
                None => None,
            }
        });
        wrong.collect()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    mut stream: TcpStream,
    connections: Arc<Mutex<Vec<Heard>>>,
    own: Arc<HashMap<String, Own>>,
) {
    stream.set_nodelay(true).unwrap();
    let index = {
        let mut connections = connections.lock().unwrap();
        connections.push(Heard::default());
        connections.len() - 1
    };
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut piece).await {
        let mut answers = Vec::new();
        let mut closes = false;
        {
            let mut connections = connections.lock().unwrap();
            let mut number = connections.iter().map(|heard| heard.requests.len()).sum();
            let heard = &mut connections[index];
            heard.bytes.extend_from_slice(&piece[..length]);
            while heard.wrong.is_none() {
                match parse(&heard.bytes[heard.understood..]) {
                    Err(why) => heard.wrong = Some(why),
                    Ok(None) => break,
                    Ok(Some((mut request, length))) => {
                        heard.understood += length;
                        request.number = number;
                        number += 1;
                        match own.get(&request.target) {
                            Some(own) => {
                                answers.extend_from_slice(own.bytes.as_bytes());
                                closes |= own.closes;
                            }
                            None => answers.extend_from_slice(answer(&request).as_bytes()),
                        }
                        heard.requests.push(request);
                    }
                }
            }
        }
        if stream.write_all(&answers).await.is_err() || closes {
            return;
        }
    }
}

fn answer(request: &Request) -> String {
    let Request {
        method,
        target,
        body,
        ..
    } = request;
    let told = format!("{method} {target} {}", body.len());
    let length = told.len();
    let told = if method == "HEAD" { "" } else { &told };
    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{told}")
}

/// The first request in `bytes` and its length, if all of it is there.
///
/// # Errors
/// When some server might read it in another way.
fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, String> {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| "a head that is no text")?;
    let mut lines = head.split("\r\n");
    let line: Vec<_> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = line[..] else {
        return Err(format!("a request line of its own kind: {line:?}"));
    };
    if !is_token(method) || !(target.starts_with('/') || (method, target) == ("OPTIONS", "*")) {
        return Err(format!("an odd method or target: {method} {target}"));
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("an odd target: {target:?}"));
    }
    let headers = fields(lines)?;
    let all = |name: &str| -> Vec<&str> {
        let named = headers.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value.as_str()).collect()
    };
    let [_] = all("host")[..] else {
        return Err(format!("not one host: {head:?}"));
    };
    let body_at = end + 4;
    let (body, trailers, length) = match (&all("content-length")[..], &all("transfer-encoding")[..])
    {
        ([], []) => (Vec::new(), Vec::new(), body_at),
        ([length], []) => {
            let number = length.parse::<usize>().ok();
            let Some(number) = number.filter(|number| number.to_string() == *length) else {
                return Err(format!("an odd length: {length:?}"));
            };
            let Some(body) = bytes.get(body_at..body_at + number) else {
                return Ok(None);
            };
            (body.to_vec(), Vec::new(), body_at + number)
        }
        ([], ["chunked"]) => match chunks(&bytes[body_at..])? {
            Some((body, trailers, length)) => (body, trailers, body_at + length),
            None => return Ok(None),
        },
        (lengths, codings) => return Err(format!("two framings: {lengths:?} and {codings:?}")),
    };
    let (method, target) = (method.to_owned(), target.to_owned());
    let request = Request {
        number: 0,
        method,
        target,
        headers,
        body,
        trailers,
    };
    Ok(Some((request, length)))
}

type Fields = Vec<(String, String)>;

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Fields, String> {
    lines
        .map(|line| {
            let sound = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
            match line.split_once(": ") {
                Some((name, value)) if is_token(name) && value.bytes().all(sound) => {
                    Ok((name.to_ascii_lowercase(), value.to_owned()))
                }
                _ => Err(format!("no header: {line:?}")),
            }
        })
        .collect()
}

fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, Fields, usize)>, String> {
    let (mut at, mut body) = (0, Vec::new());
    loop {
        let Some(line) = find(&bytes[at..], b"\r\n") else {
            return Ok(None);
        };
        let size = String::from_utf8_lossy(&bytes[at..at + line]);
        if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!("an odd size of a chunk: {size:?}"));
        }
        let size = usize::from_str_radix(&size, 16).map_err(|error| error.to_string())?;
        at += line + 2;
        if size == 0 {
            if bytes[at..].starts_with(b"\r\n") {
                return Ok(Some((body, Vec::new(), at + 2)));
            }
            let Some(end) = find(&bytes[at..], b"\r\n\r\n") else {
                return Ok(None);
            };
            let text = std::str::from_utf8(&bytes[at..at + end]).map_err(|_| "odd trailers")?;
            return Ok(Some((body, fields(text.split("\r\n"))?, at + end + 4)));
        }
        match bytes.get(at..at + size + 2) {
            None => return Ok(None),
            Some(chunk) if chunk.ends_with(b"\r\n") => body.extend_from_slice(&chunk[..size]),
            Some(chunk) => return Err(format!("a chunk without an end: {}", chunk.escape_ascii())),
        }
        at += size + 2;
    }
}

fn is_token(text: &str) -> bool {
    let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(sound)
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|found| found == what)
}

#[test]
fn what_could_be_read_in_two_ways_is_not_taken() {
    let head = "POST / HTTP/1.1\r\nhost: a\r\n";
    for (rest, taken) in [
        ("\r\n", true),
        ("content-length: 1\r\n\r\nx", true),
        (
            "transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            true,
        ),
        ("content-length: 01\r\n\r\nx", false),
        ("content-length: 1\r\ncontent-length: 1\r\n\r\nx", false),
        (
            "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            false,
        ),
        ("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", false),
        (
            "transfer-encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\n\r\n",
            false,
        ),
        ("x : y\r\n\r\n", false),
        ("x: y\r\n z\r\n\r\n", false),
        ("x: y\nz: 1\r\n\r\n", false),
        ("host: b\r\n\r\n", false),
    ] {
        let bytes = format!("{head}{rest}");
        let parsed = parse(bytes.as_bytes());
        let whole = matches!(&parsed, Ok(Some((_, length))) if *length == bytes.len());
        assert_eq!((whole, parsed.is_err()), (taken, !taken), "{bytes:?}");
    }
}
