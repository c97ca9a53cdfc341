"""What is asked of each pair, how it is weighed, and the budgets."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pair import Failed, Pair, Site, cpu_seconds, rss_bytes

HERE = Path(__file__).resolve().parent

# The first ones bring in code and pools that those after them share: that is no cost of each.
FIRST_CONNECTIONS = 100
IDLE_CONNECTIONS = 1000
# How long after they have closed memory is looked at, in seconds.
GIVEN_BACK_AFTER = 15

# What one measurement found, by metric: `cpu_us` for each request, `p99_us`, `rate`, `rss_mb` …
Sample = dict[str, float]
Measure = Callable[[Site, Pair, float], Sample]


@dataclass(frozen=True)
class Budget:
    """At most `factor` times what `peer` needs; without a peer, at most `factor`."""

    metric: str
    factor: float
    peer: str | None = None


@dataclass(frozen=True)
class Work:
    title: str
    # What `--only` names.
    kind: str
    measure: Measure
    budgets: tuple[Budget, ...]
    protocol: str = "http"
    workers: int = 1
    # Part of `--quick`.
    main: bool = False

    @property
    def matrix(self) -> bool:
        """Part of `--only matrix`: HTTP by version, connections and workers."""
        return self.kind == "http" and self.title.endswith(MATRIX)


METRICS = {
    "cpu_us": ("CPU", "µs"),
    "p99_us": ("p99", "µs"),
    "rss_mb": ("RSS, larger side", "MB"),
    "connection_kb": ("RSS for each", "KB"),
    "closed_mb": (f"RSS {GIVEN_BACK_AFTER} s after closing", "MB"),
}


def weigh(sides: list[subprocess.Popen], generate: Callable[[], Sample]) -> Sample:
    """Runs a generator, and says what it saw and how much CPU the sides needed for each request."""
    before = cpu_seconds(*sides)
    seen = generate()
    cpu = cpu_seconds(*sides) - before
    requests = seen.pop("requests")
    if seen["errors"] > requests / 1000:
        raise Failed(f"{seen['errors']:.0f} of {requests:.0f} requests failed")
    return seen | {"cpu_us": cpu / requests * 1e6, "rate": requests / seen["seconds"]}


def output(*command: str | Path, **environment: str) -> str:
    """What a generator prints. Killed with us, as `subprocess.run` does."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise Failed(f"{command[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def wrk(connections: int, path: str = "/", rate: int = 0) -> Measure:
    """HTTP/1.1, each connection asking again once it is answered; or at a rate, in requests a second."""
    think = round(connections / rate * 1000) if rate else 0

    def measure(_: Site, pair: Pair, seconds: float) -> Sample:
        return weigh([pair.outbound, pair.inbound], lambda: json.loads(output(
            "wrk", "--threads", "1", "--connections", str(connections), "--duration", f"{seconds:.0f}s",
            "--timeout", "10s", "--script", HERE / "wrk.lua", f"http://127.0.0.1:{pair.port}{path}",
            THINK=str(think)).splitlines()[-1]))

    return measure


def h2load(connections: int, streams: int = 1) -> Measure:
    """HTTP/2 without TLS, so many requests at a time on each connection."""

    def generate(pair: Pair, seconds: float) -> Sample:
        said = output("h2load", "--clients", str(connections), "--max-concurrent-streams", str(streams),
                      "--duration", f"{seconds:.0f}s", f"http://127.0.0.1:{pair.h2_port}/")
        counts = re.search(r"(\d+) done, \d+ succeeded, (\d+) failed, (\d+) errored", said)
        if not counts:
            raise Failed(f"h2load: {said}")
        requests, failed, errored = map(int, counts.groups())
        return {"requests": requests, "errors": failed + errored, "seconds": seconds}

    return lambda _, pair, seconds: weigh([pair.outbound, pair.inbound], lambda: generate(pair, seconds))


def handshakes(site: Site, pair: Pair, seconds: float) -> Sample:
    """New connections to the inbound side, one request on each: only the CPU of that side counts."""
    return weigh([pair.inbound], lambda: json.loads(output(*tls_client("handshakes", site, pair, seconds))))


def tls_client(what: str, site: Site, pair: Pair, amount: float) -> list[str]:
    return [sys.executable, "-B", str(HERE / "tls_client.py"), what, str(pair.tls_port), str(site.dir), str(amount)]


def memory(site: Site, pair: Pair, _: float) -> Sample:
    """Wants a pair that has done nothing yet."""
    idle = max(settled_rss(side) for side in (pair.outbound, pair.inbound))
    with holding(site, pair, FIRST_CONNECTIONS):
        begun = settled_rss(pair.inbound)
        with holding(site, pair, IDLE_CONNECTIONS):
            held = settled_rss(pair.inbound)
    time.sleep(GIVEN_BACK_AFTER)
    return {
        "rss_mb": idle / 1e6,
        "connection_kb": (held - begun) / IDLE_CONNECTIONS / 1e3,
        "closed_mb": rss_bytes(pair.inbound) / 1e6,
    }


@contextlib.contextmanager
def holding(site: Site, pair: Pair, connections: int) -> Iterator[None]:
    command = tls_client("hold", site, pair, connections)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout
        if not client.stdout.readline():
            raise Failed("the idle connections did not come about")
        yield


def settled_rss(side: subprocess.Popen) -> int:
    """Memory in RAM, in bytes, once it has not moved for two seconds."""
    until = time.monotonic() + 15
    readings = [rss_bytes(side)]
    while len(readings) < 9 or len(set(readings[-9:])) > 1 and time.monotonic() < until:
        time.sleep(0.25)
        readings.append(rss_bytes(side))
    return readings[-1]


warm_up = wrk(64)


def no_worse_than(*peers: str) -> tuple[Budget, ...]:
    return tuple(Budget("cpu_us", 1.0, peer) for peer in peers)


# How the titles of the matrix end.
MATRIX = ("one request at a time", " 1 connection", " 64 connections", " 256 connections")

ALL = no_worse_than("haproxy", "envoy", "nginx")
UNHURRIED = (
    *no_worse_than("haproxy", "envoy"), Budget("cpu_us", 0.85, "nginx"), Budget("p99_us", 1.0, "haproxy"))

WORKS = (
    Work("HTTP, 64 connections", "http", wrk(64), (
        Budget("cpu_us", 1.0, "haproxy"), Budget("cpu_us", 0.4, "envoy"), *no_worse_than("nginx")),
        main=True),
    Work("HTTP, one request at a time", "http", wrk(1), UNHURRIED, main=True),
    Work("HTTP, some 2,000 requests/s", "http", wrk(64, rate=2000), UNHURRIED, main=True),
    Work("HTTP, 256 connections", "http", wrk(256), ALL),
    Work("HTTP/2 clients, 1 connection", "http", h2load(1), ALL),
    Work("HTTP/2 clients, 64 connections", "http", h2load(64), ALL),
    Work("HTTP/2 clients, 256 connections", "http", h2load(256), ALL),
    Work("HTTP/2 client, 64 streams on 1 connection", "http", h2load(1, streams=64), ALL),
    Work("1 MiB bodies, 8 connections", "body", wrk(8, "/big"), (
        Budget("cpu_us", 0.6, "nginx"), *no_worse_than("haproxy", "envoy")), main=True),
    Work("full mTLS handshake and one request, inbound", "handshake", handshakes, (
        Budget("cpu_us", 0.6, "envoy"), *no_worse_than("haproxy", "nginx")), main=True),
    Work("two workers, HTTP, 1 connection", "http", wrk(1), ALL, workers=2),
    Work("two workers, HTTP, 64 connections", "http", wrk(64), ALL, workers=2),
    Work("two workers, HTTP, 256 connections", "http", wrk(256), ALL, workers=2),
    Work("two workers, HTTP/2 clients, 1 connection", "http", h2load(1), ALL, workers=2),
    Work("two workers, HTTP/2 clients, 64 connections", "http", h2load(64), ALL, workers=2),
    Work("two workers, HTTP/2 clients, 256 connections", "http", h2load(256), ALL, workers=2),
    Work("TCP, 64 connections", "tcp", wrk(64), (
        Budget("cpu_us", 0.75, "haproxy"), *no_worse_than("envoy", "nginx")), protocol="tcp", main=True),
    Work("TCP, one request at a time", "tcp", wrk(1), ALL, protocol="tcp"),
)

MEMORY = Work(f"memory, {IDLE_CONNECTIONS:,} idle mTLS connections, inbound", "memory", memory, (
    Budget("rss_mb", 12), Budget("connection_kb", 12)), main=True)
