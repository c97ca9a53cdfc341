"""Envoy: HTTP/2 between the two, and RBAC by SPIFFE ID."""

import base64
import json
import re
import socket
import subprocess
from typing import Any

from pair import CLIENT_ID, SERVER_ID, SERVER_NAME, Pair, Site, free_port

NOTE = "HTTP/2 between the two; RBAC by SPIFFE ID for each request; Reno, as Doorward; no access log, no request ids"

Json = dict[str, Any]

NETWORK = "envoy.extensions.filters.network"
HTTP = "envoy.extensions.filters.http"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
TLS = "envoy.extensions.transport_sockets.tls.v3"


def version(site: Site) -> str:
    said = subprocess.run([site.envoy, "--version"], capture_output=True, text=True).stdout
    return "".join(re.findall(r"/(\d+\.\d+\.\d+)/", said))


def typed(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": f"type.googleapis.com/{kind}", **fields}}


def address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


# Doorward chooses it for loopback connections by itself. A node's own may be BBR, which costs more there.
RENO = {
    "level": socket.IPPROTO_TCP, "name": socket.TCP_CONGESTION, "buf_value": base64.b64encode(b"reno").decode(),
    "state": "STATE_PREBIND",
}


def cluster(name: str, port: int, **fields: Any) -> Json:
    no_limit = {"max_connections": 1000000, "max_pending_requests": 1000000, "max_requests": 1000000}
    endpoint = {"endpoint": {"address": address(port)}}
    return {
        "name": name, "type": "STATIC", "connect_timeout": "5s",
        "upstream_bind_config": {"socket_options": [RENO]},
        "circuit_breakers": {"thresholds": [no_limit]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        **fields,
    }


def http_manager(to: str, *filters: Json) -> Json:
    route = {"match": {"prefix": "/"}, "route": {"cluster": to, "timeout": "0s"}}
    router = typed("router", f"{HTTP}.router.v3.Router", suppress_envoy_headers=True)
    return typed(
        "http", f"{NETWORK}.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=to, codec_type="AUTO", generate_request_id=False,
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[*filters, router],
    )


def tcp_proxy(to: str) -> Json:
    return typed("tcp", f"{NETWORK}.tcp_proxy.v3.TcpProxy", stat_prefix=to, cluster=to)


def rules() -> Json:
    client = {"authenticated": {"principal_name": {"exact": CLIENT_ID}}}
    return {"action": "ALLOW", "policies": {"client": {"permissions": [{"any": True}], "principals": [client]}}}


def tls(site: Site, name: str, alpn: list[str], **validation: Any) -> Json:
    certificate = {
        "certificate_chain": {"filename": f"{site.dir}/{name}.crt"},
        "private_key": {"filename": f"{site.dir}/{name}.key"},
    }
    return {
        "alpn_protocols": alpn,
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [certificate],
        "validation_context": {"trusted_ca": {"filename": f"{site.dir}/ca.crt"}, **validation},
    }


def start(site: Site, protocol: str, workers: int) -> Pair:
    port, tls_port = free_port(), free_port()
    if protocol == "http":
        out_filters = [http_manager("peer")]
        in_filters = [http_manager("application", typed("rbac", f"{HTTP}.rbac.v3.RBAC", rules=rules()))]
        http2 = {"@type": f"type.googleapis.com/{OPTIONS}", "explicit_http_config": {"http2_protocol_options": {}}}
        upstream = {"typed_extension_protocol_options": {OPTIONS: http2}}
        offered, accepted = ["h2"], ["h2", "http/1.1"]
    else:
        out_filters = [tcp_proxy("peer")]
        rbac = typed("rbac", f"{NETWORK}.rbac.v3.RBAC", stat_prefix="rbac", rules=rules())
        in_filters = [rbac, tcp_proxy("application")]
        upstream, offered, accepted = {}, [], []

    server = {"san_type": "URI", "matcher": {"exact": SERVER_ID}}
    dial = typed("tls", f"{TLS}.UpstreamTlsContext", sni=SERVER_NAME,
                 common_tls_context=tls(site, "client", offered, match_typed_subject_alt_names=[server]))
    accept = typed("tls", f"{TLS}.DownstreamTlsContext", require_client_certificate=True,
                   common_tls_context=tls(site, "server", accepted))
    application = cluster("application", site.app_port)
    peer = cluster("peer", tls_port, transport_socket=dial, **upstream)
    configs = {
        "inbound": (tls_port, {"transport_socket": accept, "filters": in_filters}, application),
        "outbound": (port, {"filters": out_filters}, peer),
    }
    sides = {}
    for side, (listen, chain, to) in configs.items():
        listener = {"name": side, "address": address(listen), "filter_chains": [chain], "socket_options": [RENO]}
        config = site.write(f"envoy.{side}.json", json.dumps(
            {"static_resources": {"listeners": [listener], "clusters": [to]}}))
        sides[side] = site.start(f"envoy.{side}", site.envoy, "-c", config, "--concurrency", str(workers),
                                 "--disable-hot-restart", "--log-level", "error")
    site.await_answer(port, *sides.values())
    return Pair("envoy", sides["outbound"], sides["inbound"], port, port, tls_port)
