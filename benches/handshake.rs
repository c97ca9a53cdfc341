//! What does a full mTLS handshake cost, in total and on each side? Everything is in memory, and the peers know
//! each other: `still_holds` is what it costs more to meet for the first time.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark may stop at the first surprise"
)]

mod mutual;

use std::future::Future;
use std::hint::black_box;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use criterion::{Criterion, criterion_group, criterion_main};
use doorward::identity::svid;
use doorward::tls::verify;

use self::mutual::Pair;

/// As the shipped binary has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const TWO_HOURS: Duration = Duration::from_secs(7200);

/// One handshake, both sides polled in turn: the time that the server took, and the client.
fn one(pair: &Pair) -> [Duration; 2] {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let mut server = pin!(pair.acceptor.accept(near));
    let mut client = pin!(pair.connector.connect(far));
    let mut context = Context::from_waker(Waker::noop());
    let mut spent = [Duration::ZERO; 2];
    let (mut accepted, mut connected) = (None, None);
    while accepted.is_none() || connected.is_none() {
        spent[1] += step(client.as_mut(), &mut connected, &mut context);
        spent[0] += step(server.as_mut(), &mut accepted, &mut context);
    }
    black_box((accepted.unwrap().unwrap(), connected.unwrap().unwrap()));
    spent
}

fn step<F: Future>(
    future: Pin<&mut F>,
    output: &mut Option<F::Output>,
    context: &mut Context<'_>,
) -> Duration {
    if output.is_some() {
        return Duration::ZERO;
    }
    let began = Instant::now();
    if let Poll::Ready(done) = future.poll(context) {
        *output = Some(done);
    }
    began.elapsed()
}

fn handshake(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let _inside = runtime.enter();
    let pair = Pair::new();
    let mut group = criterion.benchmark_group("handshake");
    for (name, sides) in [("both", 0..2), ("inbound", 0..1), ("outbound", 1..2)] {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    spent += one(&pair)[sides.clone()].iter().sum::<Duration>();
                }
                spent
            });
        });
    }
    group.finish();
}

/// What is paid besides: an open connection verified anew, a leaf read.
fn verification(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let pair = Pair::new();
    let secured = runtime.block_on(async {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (served, _) = tokio::join!(pair.acceptor.accept(near), pair.connector.connect(far));
        served.unwrap()
    });
    let bundles = secured.endpoint.value.material().bundles();
    criterion.bench_function("still_holds", |bencher| {
        let now = SystemTime::now();
        bencher.iter(|| verify::still_holds(&secured.peer, bundles, TWO_HOURS, now).unwrap());
    });
    let der = &secured.peer.chain()[0];
    criterion.bench_function("svid::parse", |bencher| {
        bencher.iter(|| svid::parse(black_box(der)).unwrap());
    });
}

criterion_group!(benches, handshake, verification);
criterion_main!(benches);
