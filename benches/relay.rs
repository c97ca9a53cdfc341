//! What does the relay add to bytes on their way? Everything is in memory: `direct` is what the way costs
//! without it, there and back.

#![expect(
    clippy::unwrap_used,
    reason = "a benchmark may stop at the first surprise"
)]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use doorward::relay::{Counters, End, Passed, both_ways};
use prometheus::IntCounter;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy, duplex, split};
use tokio::join;

/// As the shipped binary has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

criterion_group!(benches, relay);
criterion_main!(benches);

fn relay(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let mut group = criterion.benchmark_group("relay");
    for size in [128, 16 * 1024, 1024 * 1024] {
        group.throughput(Throughput::Bytes(2 * size as u64));
        group.bench_function(BenchmarkId::new("direct", size), |bencher| {
            bencher.iter_custom(|times| runtime.block_on(direct(size, times)));
        });
        group.bench_function(BenchmarkId::new("relayed", size), |bencher| {
            bencher.iter_custom(|times| runtime.block_on(relayed(size, times)));
        });
    }
    group.finish();
    criterion.bench_function("relay/opened and closed", |bencher| {
        bencher.iter_custom(|times| {
            runtime.block_on(async {
                let mut spent = Duration::ZERO;
                for _ in 0..times {
                    spent += relayed(1, 1).await;
                }
                spent
            })
        });
    });
}

async fn direct(size: usize, times: u64) -> Duration {
    let (client, server) = duplex(SOCKET);
    let began = Instant::now();
    join!(ask(client, size, times), echo(server));
    began.elapsed()
}

async fn relayed(size: usize, times: u64) -> Duration {
    let (client, mut a) = duplex(SOCKET);
    let (mut b, server) = duplex(SOCKET);
    let [from_a, from_b] = ["there", "back"].map(|name| IntCounter::new(name, name).unwrap());
    let counters = Counters {
        from_a: &from_a,
        from_b: &from_b,
    };
    let mut passed = Passed::default();
    let began = Instant::now();
    let relay = async {
        let end = both_ways(&mut a, &mut b, IDLE, counters, &mut passed).await;
        assert!(matches!(end, End::Completed));
    };
    join!(ask(client, size, times), relay, echo(server));
    let spent = began.elapsed();
    assert_eq!(passed.from_b, size as u64 * times);
    spent
}

/// Sends so many bytes and waits until they are back, so many times.
async fn ask(client: DuplexStream, size: usize, times: u64) {
    let (mut from, mut to) = split(client);
    let sent = vec![7; size];
    let mut back = vec![0; size];
    for _ in 0..times {
        let (wrote, read) = join!(to.write_all(&sent), from.read_exact(&mut back));
        wrote.unwrap();
        read.unwrap();
    }
    to.shutdown().await.unwrap();
    assert_eq!(from.read(&mut back).await.unwrap(), 0);
}

async fn echo(server: DuplexStream) {
    let (mut from, mut to) = split(server);
    copy(&mut from, &mut to).await.unwrap();
    to.shutdown().await.unwrap();
}

const SOCKET: usize = 256 * 1024;

const IDLE: Duration = Duration::from_secs(3600);
