"""Three things that must not make a request dearer: open connections, grants, and having worked for long.

The pairs of one curve are up together and take turns, as in the comparison with others. What counts is the ratio, in
each turn, to the cost at the first point; for uptime, to a second pair that is as old and has rested.
"""

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from statistics import median

from pair import Failed, Pair, Site
from peers import doorward
from works import tls_client, warm_up, wrk

STEPS = (1, 10, 100, 1_000, 10_000)
UPTIME = "minutes under load"
# How long a pair works unwatched between two looks at what it costs, in seconds.
BETWEEN = 7

# By curve and point, of each turn: CPU time beside that at the first point, or of the pair that rests.
Curves = dict[str, dict[int, list[float]]]

load = wrk(64)


def measure(site: Site, rounds: int, seconds: float, minutes: int, progress: Callable[[str], None]) -> Curves:
    found: Curves = {}
    for title, prepared in ("idle connections", crowded), ("grants", governed):
        with contextlib.ExitStack() as stack:
            pairs = {}
            for step in STEPS:
                progress(f"{title}: {step:,}")
                pairs[step] = prepared(site, stack, step)
            turns = []
            for turn in range(rounds):
                progress(f"{title}, round {turn + 1} of {rounds}")
                turns.append({step: cost(site, pair, seconds) for step, pair in pairs.items()})
        found[title] = {step: [turn[step] / turn[STEPS[0]] for turn in turns] for step in STEPS}
    found[UPTIME] = {}
    for minute, ratios in aging(site, seconds, minutes):
        progress(f"minute {minute} of {minutes}")
        found[UPTIME][minute] = ratios
    return found


def cost(site: Site, pair: Pair, seconds: float) -> float:
    return load(site, pair, seconds)["cpu_us"]


def started(site: Site, stack: contextlib.ExitStack, grants: int = 1) -> Pair:
    pair = doorward.start(site, "http", 1, grants)
    stack.callback(pair.stop)
    warm_up(site, pair, 1)
    return pair


def governed(site: Site, stack: contextlib.ExitStack, grants: int) -> Pair:
    return started(site, stack, grants)


def crowded(site: Site, stack: contextlib.ExitStack, connections: int) -> Pair:
    """A pair with so many idle connections on each side, each of which has had an answer."""
    pair = started(site, stack)
    holding = stack.enter_context(subprocess.Popen(
        tls_client("hold", site, pair, connections), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    assert holding.stdin and holding.stdout
    stack.callback(holding.stdin.close)
    if not holding.stdout.readline():
        raise Failed("the idle connections did not come about")
    for _ in range(connections):
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", pair.port), 20))
        plain.sendall(b"GET / HTTP/1.1\r\nhost: application\r\n\r\n")
        if not plain.recv(4096).startswith(b"HTTP/1.1 200 "):
            raise Failed("an idle connection had no answer")
    return pair


def aging(site: Site, seconds: float, minutes: int) -> Iterator[tuple[int, list[float]]]:
    with contextlib.ExitStack() as stack:
        working, resting = started(site, stack), started(site, stack)
        for minute in range(1, minutes + 1):
            until = time.monotonic() + 60
            ratios = []
            while time.monotonic() < until:
                load(site, working, BETWEEN)
                ratios.append(cost(site, working, seconds) / cost(site, resting, seconds))
            yield minute, ratios


def report(curves: Curves) -> None:
    """A table for each, as Markdown."""
    for title, points in curves.items():
        print(f"\n| {title} | " + " | ".join(f"{point:,}" for point in points) + " |")
        print("|---" * (len(points) + 1) + "|")
        print("| CPU for each request | " + " | ".join(f"{median(ratios):.2f}" for ratios in points.values()) + " |")
    print("\nMedians of each round's ratio: to the first column; for minutes, to a pair as old that has rested.")
