"""Writes what Prometheus could have sampled of three sidecars, as OpenMetrics, and prints what a report on it
must say. Arguments: where the history ends (seconds since the epoch), how long it is, how often it was sampled,
both in seconds, and `gaps` or `whole`.

Sidecar `a` serves `invoices`, `b` serves `ledger`, `c` only asks. `a` restarts three times; once its counters have
passed the old values before the next sample, so that they alone do not show it. `b` appears in the middle. With `gaps`, a tenth of the time was not
sampled. What is expected is counted while the history is made, not computed from the samples."""

import collections
import json
import random
import sys

end, length, every = (int(argument) for argument in sys.argv[1:4])
gaps = sys.argv[4] == "gaps"
random.seed(7)
# Before the window there is something, too, that must not count.
before = length // 10
start = end - length
CHECKOUT, HELPER, NIGHTLY = (f"spiffe://example.org/{name}" for name in ("checkout", "helper", "nightly"))
ATTACKER = 'spiffe://example.org/<img src=x onerror="alert(1)">'
TYPES = {
    "doorward_build_info": "gauge",
    "doorward_identity_info": "gauge",
    "doorward_identity_not_after_timestamp_seconds": "gauge",
    "doorward_identity_updated_timestamp_seconds": "gauge",
    "doorward_policy_policies": "gauge",
    "doorward_policy_loaded_timestamp_seconds": "gauge",
    "doorward_audit_healthy": "gauge",
    "process_start_time_seconds": "gauge",
    "up": "gauge",
}
samples = collections.defaultdict(list)
expected = collections.Counter()


class Sidecar:
    def __init__(self, instance, identity, service, began):
        self.target = {"instance": instance, "job": "doorward"}
        self.identity, self.service = identity, service
        self.began = began
        self.counters = collections.Counter()
        # What was counted since the last sample, which a restart loses.
        self.fresh = collections.Counter()

    def count(self, name, number=1, **labels):
        if number:
            self.fresh[name, tuple(sorted(labels.items()))] += number

    def restart(self, now):
        self.counters.clear()
        self.fresh.clear()
        self.began = now

    def sample(self, now, policies):
        def write(name, value, **labels):
            labels = {**self.target, **labels}
            text = ",".join(f"{key}={json.dumps(text)}" for key, text in labels.items())
            samples[name].append(f"{name}{{{text}}} {value} {now}")

        for key, number in self.fresh.items():
            self.counters[key] += number
            if now > start:
                expected[key] += number
        self.fresh.clear()
        for (name, labels), value in self.counters.items():
            write(name, value, **dict(labels))
        write("up", 1)
        write("doorward_build_info", 1, version="0.1.0")
        write("doorward_identity_info", 1, spiffe_id=self.identity)
        write("doorward_identity_not_after_timestamp_seconds", now + 3000)
        write("doorward_identity_updated_timestamp_seconds", now - 600)
        write("process_start_time_seconds", self.began)
        write("doorward_audit_healthy", 1)
        if self.service:
            write("doorward_policy_policies", policies)
            write("doorward_policy_loaded_timestamp_seconds", self.began)
            write(
                "doorward_request_duration_seconds_count",
                self.counters["doorward_requests_total", DONE(self.service)],
                direction="inbound",
                service=self.service,
            )


def DONE(service):
    labels = {"direction": "inbound", "service": service, "outcome": "completed", "status": "2xx"}
    return tuple(sorted(labels.items()))


def ask(sidecar, principal, grant, number, secret=None):
    service = sidecar.service
    decided = {"decision": "allowed", "reason": "grant"} if grant else {"decision": "denied", "reason": "no_grant"}
    sidecar.count("doorward_decisions_total", number, service=service, principal=principal, grant=grant, **decided)
    ended = ("completed", "2xx") if grant else ("denied", "4xx")
    sidecar.count(
        "doorward_requests_total", number, direction="inbound", service=service, outcome=ended[0], status=ended[1]
    )
    if secret and number:
        labels = {"direction": "inbound", "service": service, "principal": principal, "grant": grant}
        sidecar.count("doorward_standing_secrets_total", number, kind=secret, **labels)
        sidecar.count("doorward_requests_with_standing_secrets_total", number, action="observed", **labels)


a = Sidecar("10.0.0.1:9901", "spiffe://example.org/invoices", "invoices", start - before)
b = Sidecar("10.0.0.2:9901", "spiffe://example.org/ledger", "ledger", start + length // 2)
c = Sidecar("10.0.0.3:9901", CHECKOUT, "", start - before)
restarts = [start + length // 3, start + 2 * length // 3, start + 2 * length // 3 + 6 * every]
gap = (start + 4 * length // 10, start + 5 * length // 10)
now = start - before
while now <= end:
    if restarts and now >= restarts[0]:
        a.restart(restarts.pop(0))
        if not restarts:
            # More than it had before, within one sample.
            ask(a, CHECKOUT, "checkout-reads-invoices", 1_000)
    ask(a, CHECKOUT, "checkout-reads-invoices", random.randrange(40), None)
    ask(a, HELPER, "helper-reads-invoices", random.randrange(3), "basic" if random.random() < 0.2 else None)
    if random.random() < 0.02:
        ask(a, CHECKOUT, "", 1)
    if now - start > length // 4 and random.random() < 0.01:
        ask(a, ATTACKER, "", 1)
    a.count("doorward_decisions_observed_total", random.randrange(2), service="invoices", principal=CHECKOUT,
            grant="no-deletes", decision="would_deny")
    sidecars = [a, c]
    if now >= b.began:
        sidecars.append(b)
        ask(b, CHECKOUT, "checkout-posts-ledger", random.randrange(5))
    for sidecar in sidecars:
        sidecar.count("doorward_identity_rotations_total", 1 if now % 1800 < every else 0)
    if gaps and gap[0] <= now < gap[1]:
        # A counter goes on while nobody looks; a restart within the gap would lose it.
        pass
    else:
        for sidecar in sidecars:
            sidecar.sample(now, policies=6)
    now += every

with open(sys.argv[5], "w") as file:
    for name, lines in samples.items():
        base = name.removesuffix("_total") if name.endswith("_total") else name
        kind = "counter" if name.endswith("_total") else TYPES.get(name, "unknown")
        file.write(f"# TYPE {base if kind == 'counter' else name} {kind}\n")
        file.write("\n".join(lines) + "\n")
    file.write("# EOF\n")


def total(name, **labels):
    wanted = labels.items()
    return sum(count for (family, has), count in expected.items() if family == name and wanted <= dict(has).items())


decided = lambda **labels: total("doorward_decisions_total", **labels)
print(json.dumps({
    "checkout": decided(grant="checkout-reads-invoices"),
    "helper": decided(grant="helper-reads-invoices"),
    "ledger": decided(grant="checkout-posts-ledger"),
    "denied_checkout": decided(principal=CHECKOUT, decision="denied"),
    "denied_attacker": decided(principal=ATTACKER, decision="denied"),
    "allowed": decided(decision="allowed"),
    "denied": decided(decision="denied"),
    "rehearsed": total("doorward_decisions_observed_total"),
    "secrets": total("doorward_standing_secrets_total"),
    "with_secret": total("doorward_requests_with_standing_secrets_total"),
    "requests_invoices": total("doorward_requests_total", service="invoices", outcome="completed"),
    "rotations": total("doorward_identity_rotations_total"),
}))
