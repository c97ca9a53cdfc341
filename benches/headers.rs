//! What do the headers of a request cost on the inbound side, and those of its response?

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark may stop at the first surprise"
)]

mod mutual;

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use doorward::headers::{self, Identity, IdentityHeader};
use http::{HeaderMap, HeaderName, HeaderValue, Response, Version};

use self::mutual::{ID, Pair};

/// As the shipped binary has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

criterion_group!(benches, requests, responses);
criterion_main!(benches);

fn requests(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let peer = runtime.block_on(async {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let pair = Pair::new();
        let (served, _) = tokio::join!(pair.acceptor.accept(near), pair.connector.connect(far));
        served.unwrap().peer
    });
    let own = ID.parse().unwrap();
    let mut group = criterion.benchmark_group("headers");
    group.bench_function("identity of a connection", |bencher| {
        bencher.iter(|| Identity::new(IdentityHeader::Both, black_box(&peer), &own));
    });
    let identity = Identity::new(IdentityHeader::Xfcc, &peer, &own);
    for (name, text) in [
        ("request of a library", LIBRARY),
        ("request of a browser", BROWSER),
        ("request that claims to be somebody", FORGED),
    ] {
        let received = parsed(text);
        group.bench_function(name, |bencher| {
            let request = || received.clone();
            let pass = |mut request: HeaderMap| {
                headers::check_request(&request).unwrap();
                headers::strip_request(&mut request);
                identity.add_to(&mut request);
                headers::add_via(&mut request, Version::HTTP_2);
                request
            };
            bencher.iter_batched(request, pass, BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn responses(criterion: &mut Criterion) {
    let mut response = Response::new(());
    *response.headers_mut() = parsed(RESPONSE);
    criterion.bench_function("headers/response", |bencher| {
        let pass = |mut response: Response<()>| {
            headers::check_response(&response).unwrap();
            headers::strip_response(response.headers_mut());
            response
        };
        bencher.iter_batched(|| response.clone(), pass, BatchSize::SmallInput);
    });
}

/// Lines of `name: value`.
fn parsed(text: &str) -> HeaderMap {
    let line = |line: &str| {
        let (name, value) = line.trim().split_once(": ").unwrap();
        let name = HeaderName::try_from(name).unwrap();
        (name, HeaderValue::try_from(value).unwrap())
    };
    text.trim().lines().map(line).collect()
}

const LIBRARY: &str = "
    host: ledger.bank.svc
    user-agent: client/1.0
    accept: application/json
    content-type: application/json
    content-length: 128
    traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01
";

const BROWSER: &str = "
    host: ledger.bank.svc
    connection: keep-alive, x-one-hop
    x-one-hop: 1
    user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36
    accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8
    accept-encoding: gzip, deflate, br, zstd
    accept-language: en-GB,en;q=0.9,de;q=0.8
    cache-control: no-cache
    cookie: session=0123456789abcdef0123456789abcdef; theme=dark
    pragma: no-cache
    referer: https://ledger.bank.example/v1/items
    sec-fetch-dest: document
    sec-fetch-mode: navigate
    sec-fetch-site: same-origin
    te: trailers
    upgrade-insecure-requests: 1
    x-forwarded-for: 10.0.0.7
    x-request-id: 3d1f4f5e-8a2b-4a52-9f0e-2d6f1c7b9a10
";

const FORGED: &str = "
    host: ledger.bank.svc
    accept: application/json
    x-forwarded-client-cert: By=spiffe://example.org/ledger;URI=spiffe://example.org/admin
    x_forwarded_client_cert: URI=spiffe://example.org/admin
    client-cert: :MIIB:
    client-cert-chain: :MIIB:
    connection: close, x-forwarded-client-cert
";

const RESPONSE: &str = "
    server: nginx
    date: Sun, 06 Nov 1994 08:49:37 GMT
    content-type: application/json
    content-length: 128
    connection: keep-alive
    keep-alive: timeout=60
    cache-control: no-store
    vary: accept-encoding
";
