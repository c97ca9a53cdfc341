//! What a decision costs: remembered, not remembered, on a new connection, and what loading costs.
//!
//! *Not remembered* is the worst that a peer can ask for: a policy compares the path with another, so
//! that each new path has to be put to Cedar. Conditions that only test the path are *tested* anew on a
//! new path, and known.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use doorward::policy::{Act, Gate, Metrics, Place, Policy, Settings, Subject, files};

/// As the shipped binary has it.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

criterion_group!(benches, decide);
criterion_main!(benches);

fn decide(criterion: &mut Criterion) {
    let settings = Settings::of("");
    let now = SystemTime::now();
    for grants in [1, 10, 100, 1_000, 10_000] {
        let text = policies(grants);
        let load = || files::check_texts([("a.cedar", &*text)], &settings).expect("sound policies");
        let (begun, before) = (Instant::now(), resident());
        let policy = Policy::new(&settings);
        policy.engine().publish(load());
        let (took, held) = (begun.elapsed(), resident().saturating_sub(before));
        println!("load/{grants}: {took:?}, {held} KiB more in memory");
        let metrics = Metrics::register(&prometheus::Registry::new()).expect("a fresh registry");

        let mut group = criterion.benchmark_group("decide");
        let gate = gate(&policy, &metrics, 0);
        assert!(gate.authorize(&get("/v1/items/7"), now).is_ok());
        group.bench_function(BenchmarkId::new("remembered", grants), |bencher| {
            bencher.iter(|| gate.authorize(black_box(&get("/v1/items/8")), now));
        });
        let mut number = 0_u64;
        group.bench_function(BenchmarkId::new("not remembered", grants), |bencher| {
            bencher.iter(|| {
                number += 1;
                let path = format!("/v1/items/{number}");
                gate.authorize(black_box(&get(&path)), now)
            });
        });
        let tested = self::gate(&policy, &metrics, 1);
        let mut number = 0_u64;
        group.bench_function(BenchmarkId::new("tested", grants), |bencher| {
            bencher.iter(|| {
                number += 1;
                let path = format!("/v1/items/{number}");
                tested.authorize(black_box(&get(&path)), now)
            });
        });
        // The slice of a new principal is cut each time: more of them than are kept.
        let mut number = 0;
        group.bench_function(BenchmarkId::new("new connection", grants), |bencher| {
            bencher.iter(|| {
                number = (number + 1) % 5_000;
                let gate = self::gate(&policy, &metrics, number);
                gate.authorize(black_box(&get("/v1/items/7")), now)
            });
        });
        group.finish();
    }
}

/// Memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .expect("the line is always there")
        .parse()
        .expect("a number")
}

/// Grants to a thousand workloads at ten services, under three rules for everybody.
fn policies(grants: usize) -> String {
    let grant = |number: usize| {
        format!(
            "@id(\"g{number}\") @owner(\"o@example.org\") @purpose(\"p\") @expires(\"2099-01-01\")\n\
             permit (principal == Workload::\"spiffe://example.org/w{}\",\n\
             action in Action::\"read\", resource == Service::\"s{}\")\n\
             when {{ context.http.path like \"/v1/items/*\" }};\n",
            number % 1_000,
            number / 1_000
        )
    };
    let everybody = "
        forbid (principal, action, resource) when { context has http && context.http.path like \"*/admin/*\" };
        forbid (principal, action, resource) unless { context.source.ip.isInRange(ip(\"10.0.0.0/8\")) };
        forbid (principal, action == Action::\"TRACE\", resource);
        forbid (principal == Workload::\"spiffe://example.org/w0\", action in Action::\"read\",
                resource == Service::\"s0\")
        when { [context.http.path].contains(\"/v1/items\") };
    ";
    (0..grants)
        .map(grant)
        .chain([everybody.to_owned()])
        .collect()
}

fn gate(policy: &Arc<Policy>, metrics: &Metrics, number: usize) -> Gate {
    let subject = Subject {
        id: format!("spiffe://example.org/w{number}")
            .parse()
            .expect("a SPIFFE ID"),
        expires: SystemTime::now() + Duration::from_secs(3600),
        lifetime: Duration::from_secs(3600),
    };
    let place = Place {
        service: "s0".into(),
        port: 8443,
        source: [10, 0, 0, 9].into(),
    };
    policy.gate(subject, place, metrics)
}

fn get(path: &str) -> Act<'_> {
    Act::Http {
        method: &http::Method::GET,
        host: "s0.example",
        path,
    }
}
