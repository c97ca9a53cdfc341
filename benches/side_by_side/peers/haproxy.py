"""haproxy: HTTP/2 between the two. It has no word for the URI in a certificate, so the client's is looked for among
the bytes of the certificate, once for each connection; of the server it checks the DNS name."""

import subprocess

from pair import CLIENT_ID, SERVER_NAME, Pair, Site, free_port

NOTE = "HTTP/2 between the two; SPIFFE ID of the client once a connection, DNS name of the server; no policy, no log"

COMMON = """\
global
  nbthread {workers}
  maxconn 9000
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode {protocol}
  timeout connect 5s
  timeout client 1h
  timeout server 1h
{reuse}
"""


def version(_: Site) -> str:
    return subprocess.run(["haproxy", "-v"], capture_output=True, text=True).stdout.split()[2]


def hex_uri(spiffe_id: str) -> str:
    """The ID as a subject alternative name in a certificate: tag, length, text."""
    return (bytes([0x86, len(spiffe_id)]) + spiffe_id.encode()).hex().upper()


def start(site: Site, protocol: str, workers: int) -> Pair:
    port, tls_port = free_port(), free_port()
    http = protocol == "http"
    common = COMMON.format(workers=workers, protocol=protocol, reuse="  http-reuse always" if http else "")
    pool = "pool-max-conn 10000" if http else ""
    inbound = f"""{common}
listen inbound
  tcp-request session reject unless {{ ssl_c_der,hex -m sub {hex_uri(CLIENT_ID)} }}
  bind 127.0.0.1:{tls_port} ssl crt {site.dir}/server.pem ca-file {site.dir}/ca.crt verify required {
      "alpn h2,http/1.1" if http else ""}
  server application 127.0.0.1:{site.app_port} {pool}
"""
    outbound = f"""{common}
listen outbound
  bind 127.0.0.1:{port}
  server peer 127.0.0.1:{tls_port} ssl crt {site.dir}/client.pem ca-file {site.dir}/ca.crt verify required \
    sni str({SERVER_NAME}) verifyhost {SERVER_NAME} {pool} {"alpn h2" if http else ""}
"""
    sides = {}
    for side, text in ("inbound", inbound), ("outbound", outbound):
        config = site.write(f"haproxy.{side}.cfg", text)
        sides[side] = site.start(f"haproxy.{side}", "haproxy", "-db", "-f", config)
    site.await_answer(port, *sides.values())
    return Pair("haproxy", sides["outbound"], sides["inbound"], port, port, tls_port)
