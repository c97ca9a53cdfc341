"""Holds what `doorward report --json` said against what was sent. Arguments: the report, the kind of run, and a
JSON object of what was expected."""

import html.parser
import json
import re
import struct
import sys
import zlib

report = json.load(open(sys.argv[1]))
run, expected = sys.argv[2], json.loads(sys.argv[3])
sections = report["sections"]
mistakes = []


def hold(what, said, wanted):
    if said != wanted:
        mistakes.append(f"{what}: the report says {said!r}, it was {wanted!r}")


def rows(section, *keys, **where):
    found = [row for row in sections[section]["rows"] if where.items() <= row.items()]
    return sorted(tuple(row[key] for key in keys) for row in found)


def used():
    return {row["grant"]: row["allowed"] for row in sections["grants_in_use"]["rows"]}


def id(name):
    return f"spiffe://example.org/{name}"


def live():
    hold("grants in use", used(), {"checkout-reads-invoices": expected["allowed"]})
    hold("unused", rows("unused_grants", "grant", "principal"), [
        ("checkout-soon-writes", id("checkout")), ("nightly-reads-invoices", id("nightly"))])
    hold("dormant", rows("dormant_principals", "principal", "owner"), [(id("nightly"), "batch@example.org")])
    hold("unregistered", rows("unregistered_principals", "principal", "denied"), [(id("helper"), expected["helper"])])
    hold("denials", rows("denials", "principal", "service", "reason", "denied", "owner"), [
        (id("checkout"), "invoices", "no_grant", expected["denied"], "shop@example.org"),
        (id("helper"), "invoices", "no_grant", expected["helper"], "nobody")])
    hold("dry run", rows("dry_run", "would", "grant", "principal", "requests"), [
        ("allow", "checkout-deletes", id("checkout"), expected["denied"])])
    hold("due", rows("grants_due", "grant", "what", "used"), [
        ("checkout-ended", "has ended", 0),
        ("checkout-reads-invoices", "review overdue", expected["allowed"]),
        ("checkout-soon-writes", "ends soon", 0)])
    hold("coverage", rows("coverage", "identity", "service", "state"), [
        (id("checkout"), "", "up"), (id("helper"), "", "down"), (id("invoices"), "invoices", "up")])
    hold("policy", rows("policy", "what"), [])
    hold("audit", rows("audit", "sidecar"), [])
    hold("certificates", rows("rotation", "certificate", act=True), [])
    secrets = expected["secrets"]
    hold("standing secrets", rows("standing_secrets", "kind", "direction", "principal", "grant", "seen", "owner"), [
        ("basic", "inbound", id("checkout"), "checkout-reads-invoices", secrets, "shop@example.org"),
        ("basic", "outbound", id("checkout"), "", secrets, "shop@example.org")])
    hold("score", rows("secretless", "requests", "with_secret", "score", service="invoices", direction="inbound"), [
        (expected["requests"], secrets, 1 - secrets / expected["requests"])])


def backfilled():
    hold("grants in use", used(), {
        "checkout-reads-invoices": expected["checkout"], "helper-reads-invoices": expected["helper"],
        "checkout-posts-ledger": expected["ledger"]})
    hold("denials", rows("denials", "denied", reason="no_grant"), sorted([
        (expected["denied_checkout"],), (expected["denied_attacker"],)]))
    hold("dry run", rows("dry_run", "would", "grant", "requests"), [("deny", "no-deletes", expected["rehearsed"])])
    hold("standing secrets", rows("standing_secrets", "kind", "seen"), [("basic", expected["secrets"])])
    score = 1 - expected["with_secret"] / expected["requests_invoices"]
    said = rows("secretless", "requests", "with_secret", "score", service="invoices")
    hold("score", said, [(expected["requests_invoices"], expected["with_secret"], score)])
    hold("renewals", sections["rotation"]["notes"][0].split(".")[0],
         f"Certificates were renewed {expected['rotations']} times")
    hold("unregistered", [row[0] for row in rows("unregistered_principals", "principal")],
         [id('<img src=x onerror="alert(1)">'), id("helper")])
    hold("due", rows("grants_due", "grant", "what"), [("checkout-posts-ledger", "review overdue")])
    hold("other coverage", rows("coverage", "service", "owner", state="not seen"), [("archive", "ledger@example.org")])
    coverage = {row["sidecar"]: round(row["covered"], 2) for row in sections["coverage"]["rows"]}
    whole = 0.9 if run == "gaps" else 1.0
    hold("coverage", coverage, {"none": 0.0, "10.0.0.1:9901": whole, "10.0.0.2:9901": 0.5, "10.0.0.3:9901": whole})
    unused = rows("unused_grants", "grant", "used", "act")
    # Its sidecar was sampled once in the first half.
    unused = [(grant, used.replace("30 min 15 s", "30 min"), act) for grant, used, act in unused]
    half = report["window_seconds"] // 2
    half = f"{half // 3600} h" if half >= 3600 else f"{half // 60} min"
    hold("unused", unused, [
        ("nightly-reads-archive", "unknown: no sidecar was seen", False),
        ("nightly-reads-ledger", f"not seen in the {half} that are covered", True)])
    hold("notes", [note.split(".")[0] for note in report["notes"]],
         ["There are samples for 27 d of 30 d"] if run == "gaps" else [])


def page():
    """The page as the browser has it after rendering: its figures are those of the JSON."""
    class Page(html.parser.HTMLParser):
        def __init__(self):
            super().__init__()
            self.words, self.tags, self.skip = [], [], False

        def handle_starttag(self, tag, attributes):
            self.tags.append(tag)
            attributes = dict(attributes)
            for name in ("src", "onerror", "onload", "style"):
                if name in attributes:
                    mistakes.append(f"<{tag}> has {name}")
            if not attributes.get("href", "#").startswith("#"):
                mistakes.append(f"<{tag}> leads to {attributes['href']}")

        def handle_data(self, data):
            self.words.append(data.strip())

    read = Page()
    read.feed(open(expected["dom"]).read())
    for tag in ("script", "img", "link", "iframe", "object"):
        if tag in read.tags:
            mistakes.append(f"the page has <{tag}>")
    hold("drawings", read.tags.count("svg"), 4)
    hold("drawings that say what they are", read.tags.count("desc"), 4)
    hold("captions", read.tags.count("caption"), read.tags.count("table"))
    text = " ".join(read.words)
    for section in sections.values():
        for row in section["rows"][:50]:
            for value in row.values():
                shown = str(value)
                if isinstance(value, (int, str)) and not isinstance(value, bool) and "T00:00:00Z" not in shown:
                    if not (len(shown) == 20 and shown.endswith("Z")) and shown not in text:
                        mistakes.append(f"{section['title']}: {shown!r} is not on the page")
    if str(report["findings"]) not in read.words:
        mistakes.append("the number of findings is not on the page")
    # The browser asks its maker for updates and the time; nobody else may be asked for.
    for address in re.findall(r'"url":"(https?://[^/"]+)', open(expected["net"], errors="replace").read()):
        if not address.endswith((".google.com", ".googleapis.com")):
            mistakes.append(f"the page asks {address}")


def paper():
    """The colour of the first pixel."""
    picture = open(expected["picture"], "rb").read()
    at, data = 8, b""
    while at < len(picture):
        length, kind = struct.unpack(">I4s", picture[at:at + 8])
        if kind == b"IDAT":
            data += picture[at + 8:at + 8 + length]
        at += 12 + length
    # A row begins with how it is filtered, which changes nothing for its first pixel.
    return zlib.decompressobj().decompress(data, 4)[1:4].hex()


def dark():
    hold("paper", paper(), "14171a")


def light():
    hold("paper", paper(), "ffffff")


RUNS = {"live": live, "gaps": backfilled, "whole": backfilled, "page": page, "dark": dark, "light": light}
RUNS[run]()
for mistake in mistakes:
    print(mistake, file=sys.stderr)
sys.exit(bool(mistakes))
