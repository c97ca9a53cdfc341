use std::error::Error;
use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::identity::testing::{Ca, leaf};
use crate::telemetry::chain;

/// Answers one request after another with `answer`; what was asked comes back.
async fn serve(answer: &str) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = answer.to_owned();
    let (asked, was_asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = asked.send(converse(stream, &answer).await);
        }
    });
    (address, was_asked)
}

async fn converse(mut stream: impl AsyncRead + AsyncWrite + Unpin, answer: &str) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(request).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.unwrap();
    // The client may have hung up on a large one.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
    head + &String::from_utf8(body).unwrap()
}

fn answer(status: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{body}")
}

fn settings(url: &str) -> Settings {
    Settings {
        url: url.parse().unwrap(),
        ca: None,
        token_file: None,
        timeout: Duration::from_secs(60),
    }
}

const VECTOR: &str = r#"{"status":"success","data":{"resultType":"vector","result":[
    {"metric":{"__name__":"up","job":"a"},"value":[1700000000.123,"3"]},
    {"metric":{"job":"b"},"value":[1700000000,"NaN"]}]}}"#;

#[tokio::test]
async fn a_query_is_posted_as_a_form_and_samples_are_read() {
    let (address, mut asked) = serve(&answer("200 OK", VECTOR)).await;
    let client = Client::open(&settings(&format!("http://{address}/prom/"))).unwrap();
    let series = client
        .instant("sum by (a) (b{c=\"d&e\"})", 1_700_000_000_123)
        .await
        .unwrap();
    let [one] = &series[..] else {
        panic!("what is no number is left out: {series:?}");
    };
    assert_eq!(one.labels["job"], "a");
    assert_eq!(one.samples, [(1_700_000_000_123, 3.0)]);
    let asked = asked.recv().await.unwrap();
    assert!(
        asked.starts_with("POST /prom/api/v1/query HTTP/1.1\r\n"),
        "{asked}"
    );
    assert!(asked.contains(&format!("host: {address}\r\n")), "{asked}");
    let form = "query=sum+by+%28a%29+%28b%7Bc%3D%22d%26e%22%7D%29&time=1700000000.123";
    assert!(asked.ends_with(form), "{asked}");
}

#[tokio::test]
async fn a_range_gives_all_its_samples_and_warnings_are_kept() {
    let body = r#"{"status":"success","warnings":["a store\nis  down"],"data":{"resultType":"matrix",
        "result":[{"metric":{},"values":[[1,"1"],[2,"+Inf"],[3,"2.5"]]}]}}"#;
    let (address, mut asked) = serve(&answer("200 OK", body)).await;
    let client = Client::open(&settings(&format!("http://{address}"))).unwrap();
    let series = client.range("a", 1000, 3000, 500).await.unwrap();
    assert_eq!(series[0].samples, [(1000, 1.0), (3000, 2.5)]);
    assert_eq!(client.warnings(), ["a store is down"]);
    let asked = asked.recv().await.unwrap();
    assert!(
        asked.ends_with("query=a&start=1.000&end=3.000&step=0.500"),
        "{asked}"
    );
}

#[tokio::test]
async fn an_error_names_the_url_and_what_the_server_said() {
    let refused =
        r#"{"status":"error","errorType":"bad_data","error":"parse error: \u001b[31munexpected"}"#;
    for (answer, said) in [
        (
            answer("400 Bad Request", refused),
            "it answered 400 Bad Request (bad_data): parse error: [31munexpected",
        ),
        (
            answer("200 OK", refused),
            "it answered 200 OK (bad_data): parse error: [31munexpected",
        ),
        (
            answer("401 Unauthorized", "no token\r\n"),
            "it answered with status 401 Unauthorized: no token",
        ),
        (
            answer("302 Found", ""),
            "it answered with status 302 Found: ",
        ),
        (
            answer("200 OK", "<html>a login page</html>"),
            "what it answered is not from Prometheus' API: <html>a login page</html>",
        ),
        (
            answer("200 OK", r#"{"status":"success"}"#),
            "what it answered is not from Prometheus' API: {\"status\":\"success\"}",
        ),
        (
            answer("200 OK", &"long ".repeat(1000)),
            "what it answered is not from Prometheus' API: long long",
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_owned(),
            "its answer could not be read to its end, or is too large",
        ),
        (
            "SSH-2.0-OpenSSH\r\n".to_owned(),
            "it does not speak HTTP as it should",
        ),
    ] {
        let (address, _asked) = serve(&answer).await;
        let client = Client::open(&settings(&format!("http://{address}/p"))).unwrap();
        let error = client.instant("a", 0).await.unwrap_err();
        let told = chain(&error);
        let expected = format!("no answer from http://{address}/p/api/v1/query: {said}");
        assert!(told.starts_with(&expected), "{told}");
        assert!(told.len() < 500, "{told}");
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_is_not_read_to_its_end() {
    let (address, _asked) = serve(&answer("200 OK", &" ".repeat(2000))).await;
    let mut client = Client::open(&settings(&format!("http://{address}"))).unwrap();
    client.largest = 1000;
    let told = chain(&client.instant("a", 0).await.unwrap_err());
    assert!(
        told.contains("or is too large: length limit exceeded"),
        "{told}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = Client::open(&settings(&format!("http://{address}"))).unwrap();
    let told = chain(&client.instant("a", 0).await.unwrap_err());
    assert!(
        told.contains("it took longer than 1m: raise --timeout"),
        "{told}"
    );
    drop(listener);
}

#[tokio::test]
async fn a_server_that_tells_nothing_of_itself_has_no_retention() {
    let told = |retention| {
        let body = format!(r#"{{"status":"success","data":{{"storageRetention":{retention}}}}}"#);
        answer("200 OK", &body)
    };
    let day = Duration::from_secs(86_400);
    for (answer, expected) in [
        (told("\"15d\""), Some(15 * day)),
        (told("\"30d or 10GiB\""), Some(30 * day)),
        (told("\"10GiB\""), None),
        (told("null"), None),
        (answer("404 Not Found", "page not found"), None),
    ] {
        let (address, _asked) = serve(&answer).await;
        let client = Client::open(&settings(&format!("http://{address}"))).unwrap();
        assert_eq!(client.retention().await.unwrap(), expected, "{answer}");
    }
}

#[tokio::test]
async fn over_https_the_ca_vouches_and_the_token_is_sent() {
    let (ours, theirs) = (Ca::new("example.org"), Ca::new("example.org"));
    let mut params = leaf("spiffe://example.org/prometheus");
    params.subject_alt_names = vec![rcgen::SanType::IpAddress([127, 0, 0, 1].into())];
    let minted = ours.mint(&params);
    let acceptor = minted.acceptor();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, mut was_asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                let _ = asked.send(converse(stream, &answer("200 OK", VECTOR)).await);
            }
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let pem = |ca: &Ca| pem::encode(&pem::Pem::new("CERTIFICATE", ca.certificate().to_vec()));
    let with = |ca: &Ca| Settings {
        ca: file("ca.pem", &pem(ca)),
        token_file: file("token", "abc.def\n"),
        ..settings(&format!("https://{address}"))
    };
    let client = Client::open(&with(&ours)).unwrap();
    assert_eq!(client.instant("a", 0).await.unwrap().len(), 1);
    let asked = was_asked.recv().await.unwrap();
    assert!(
        asked.contains("authorization: Bearer abc.def\r\n"),
        "{asked}"
    );
    let client = Client::open(&with(&theirs)).unwrap();
    let told = chain(&client.instant("a", 0).await.unwrap_err());
    assert!(told.contains("no TLS connection could be made"), "{told}");
}

#[test]
fn a_token_never_travels_in_plain() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "abc\n").unwrap();
    for (url, allowed) in [
        ("http://prometheus.example", false),
        ("http://10.0.0.1:9090", false),
        ("http://127.0.0.1:9090", true),
        ("http://[::1]:9090", true),
        ("http://localhost:9090", true),
    ] {
        let opened = Client::open(&Settings {
            token_file: Some(path.clone()),
            ..settings(url)
        });
        assert_eq!(opened.is_ok(), allowed, "{url}");
        if let Err(error) = opened {
            assert!(error.source().is_none() && error.to_string().contains("use https"));
        }
    }
    std::fs::write(&path, "two\nlines").unwrap();
    let opened = Client::open(&Settings {
        token_file: Some(path),
        ..settings("http://127.0.0.1:9090")
    });
    assert!(matches!(opened, Err(OpenError::Token(_))));
}

#[test]
fn a_url_has_a_host_and_perhaps_a_path_and_no_user() {
    for (text, expected) in [
        ("http://127.0.0.1:9090", Ok(("127.0.0.1", 9090, ""))),
        ("https://p.example/prom/", Ok(("p.example", 443, "/prom"))),
        ("http://[::1]", Ok(("::1", 80, ""))),
        ("p.example:9090", Err(UrlError::Malformed)),
        ("ftp://p.example", Err(UrlError::Malformed)),
        ("http://p.example/?a=b", Err(UrlError::Malformed)),
        ("http://", Err(UrlError::Malformed)),
        ("https://admin:secret@p.example", Err(UrlError::User)),
    ] {
        let read: Result<Url, _> = text.parse();
        let read = read.as_ref().map(|url| (&*url.host, url.port, &*url.path));
        assert_eq!(read, expected.as_ref().copied(), "{text}");
    }
}
