"""Doorward with all that it does in earnest: identities by Workload API, policy, metrics, audit of denials."""

import json
import subprocess

from pair import CLIENT_ID, SERVER_ID, Pair, Site, free_port

NOTE = ("HTTP/2 between the two, HTTP/1.1 for one request at a time and for long responses; policy for each request "
        "or connection, metrics, audit of denials")

GRANTS = f"""\
@id("client-reads") @owner("bench@example.org") @purpose("Requests of the benchmark") @expires("2099-01-01")
permit (principal == Workload::"{CLIENT_ID}", action in Action::"read", resource == Service::"application")
when {{ context.http.path like "/*" }};

@id("client-connects") @owner("bench@example.org") @purpose("Connections of the benchmark") @expires("2099-01-01")
permit (principal == Workload::"{CLIENT_ID}", action == Action::"connect", resource == Service::"application");
"""


OTHERS = """
@id("other-{number}") @owner("bench@example.org") @purpose("Requests of others") @expires("2099-01-01")
permit (principal == Workload::"spiffe://example.org/other-{workload}", action in Action::"read",
        resource == Service::"other-{service}")
when {{ context.http.path like "/v1/items/*" }};
"""


def version(site: Site) -> str:
    return subprocess.run([site.doorward, "--version"], capture_output=True, text=True).stdout.split()[-1]


def start(site: Site, protocol: str, workers: int, grants: int = 1, **listener: str) -> Pair:
    """With so many `grants`, all but the client's for a thousand others at some services. `listener` has further keys
    of both listeners."""
    port, tls_port = free_port(), free_port()
    policy = site.dir / f"policy.{grants}"
    policy.mkdir(exist_ok=True)
    others = (OTHERS.format(number=number, workload=number % 1000, service=number // 1000)
              for number in range(1, grants))
    (policy / "grants.cedar").write_text(GRANTS + "".join(others))
    listeners: dict[str, dict] = {
        "inbound": {
            "inbound": [{
                "listen": f"127.0.0.1:{tls_port}", "service": "application", "protocol": protocol,
                # The others speak nothing else to an application.
                "app": f"127.0.0.1:{site.app_port}", "app_protocol": "http1",
                # As long as that of the others.
                "header_timeout": "1h",
            } | listener],
            "policy": {"dir": str(policy)},
        },
        "outbound": {
            "outbound": [{
                "listen": f"127.0.0.1:{port}", "protocol": protocol,
                "to": f"127.0.0.1:{tls_port}", "peer": SERVER_ID, "header_timeout": "1h",
            } | listener],
        },
    }
    sides = {}
    for side, spiffe_id in ("inbound", SERVER_ID), ("outbound", CLIENT_ID):
        # JSON is YAML.
        name = f"doorward.{tls_port}.{side}"
        config = site.write(f"{name}.yaml", json.dumps(listeners[side] | {
            "identity": {"workload_api": f"unix://{site.dir}/issuer.sock", "spiffe_id": spiffe_id},
            "audit": {"path": f"{site.dir}/{name}.jsonl", "level": "denials"},
            "metrics": {"listen": f"127.0.0.1:{free_port()}"},
            "workers": workers,
        } | site.settings))
        sides[side] = site.start(name, site.doorward, "run", "--config", config)
    site.await_answer(port, *sides.values())
    return Pair("doorward", sides["outbound"], sides["inbound"], port, port, tls_port)
