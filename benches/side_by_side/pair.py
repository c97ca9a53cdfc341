"""What all pairs share: a place to live, certificates, an application, processes that end, and the scales."""

import contextlib
import http.client
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TRUST_DOMAIN = "example.org"
CLIENT_ID = f"spiffe://{TRUST_DOMAIN}/client"
SERVER_ID = f"spiffe://{TRUST_DOMAIN}/server"
# nginx can verify a server only by a DNS name.
SERVER_NAME = f"server.{TRUST_DOMAIN}"

BIG = 1 << 20

LEAF = """\
[req]
prompt = no
distinguished_name = name
x509_extensions = leaf
[name]
O = side by side
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = URI:{id}, DNS:{name}
"""

APPLICATION = """\
daemon off; user root; worker_processes 1; worker_rlimit_nofile 20000;
pid {dir}/application.pid; error_log stderr error;
events {{ worker_connections 9000; }}
http {{
  access_log off; server_tokens off; default_type text/plain; sendfile on; tcp_nopush on; open_file_cache max=16;
  keepalive_requests 1000000000; keepalive_time 24h; keepalive_timeout 1h; client_body_temp_path {dir}/application;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ return 200 "{body}"; }}
    location = /big {{ root {dir}; }}
  }}
}}
"""


# For those who need what the sandbox takes away.
UNCONFINED = {"sandbox": {"mode": "off"}}


class Failed(Exception):
    """A measurement that cannot go on, and why."""


@dataclass
class Pair:
    """Two proxies, one on each side of a mutual TLS connection."""

    name: str
    outbound: subprocess.Popen
    inbound: subprocess.Popen
    # Where the client connects in plain. nginx tells HTTP/2 from HTTP/1.1 by the port.
    port: int
    h2_port: int
    # Where peers connect.
    tls_port: int

    def stop(self) -> None:
        end(self.outbound, self.inbound)


@dataclass
class Site:
    """A temporary directory, a CA and an application. What is started here ends when the block is left."""

    doorward: Path
    envoy: Path
    # Further keys of each sidecar's configuration.
    settings: dict = field(default_factory=dict)
    dir: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="side_by_side.")).resolve())
    children: list[subprocess.Popen] = field(default_factory=list)

    def __enter__(self) -> "Site":
        with contextlib.ExitStack() as failed:
            failed.callback(self.leave)
            self.issue_certificates()
            self.start_application()
            failed.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def leave(self) -> None:
        end(*self.children)
        shutil.rmtree(self.dir, ignore_errors=True)

    def write(self, name: str, text: str) -> Path:
        path = self.dir / name
        path.write_text(text)
        return path

    def start(self, name: str, *command: str | Path) -> subprocess.Popen:
        """Starts a process in a group of its own, so that its children end with it, and Ctrl-C comes to us first."""
        with open(self.dir / f"{name}.log", "w") as log:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.children.append(child)
        return child

    def await_answer(self, port: int, *children: subprocess.Popen) -> None:
        """Waits until the application answers at `port`."""
        self.wait(lambda: answers(port), "no answer from the application", *children)

    def wait(self, condition: Callable[[], bool], otherwise: str, *children: subprocess.Popen) -> None:
        until = time.monotonic() + 20
        while not condition():
            if any(child.poll() is not None for child in children) or time.monotonic() > until:
                raise Failed(f"{otherwise}:\n{self.logs()}")
            time.sleep(0.05)

    def logs(self) -> str:
        said = {log.name: log.read_text()[-800:] for log in self.dir.glob("*.log")}
        return "\n".join(f"{name}: {text}" for name, text in said.items() if text)

    def issue_certificates(self) -> None:
        """Starts Doorward's issuer, and lets its CA vouch for the peers too: they cannot ask a Workload API."""
        uid = os.getuid()
        self.write("issuer.yaml", f"""\
trust_domain: {TRUST_DOMAIN}
socket: {self.dir}/issuer.sock
ca: {{ file: {self.dir}/ca.pem }}
entries:
- {{ id: {CLIENT_ID}, selectors: {{ uid: {uid} }}, lifetime: 24h }}
- {{ id: {SERVER_ID}, selectors: {{ uid: {uid} }}, lifetime: 24h }}
""")
        ca = self.dir / "ca.pem"
        issuer = self.start("issuer", self.doorward, "issuer", "--config", self.dir / "issuer.yaml")
        self.wait(lambda: ca.exists() and (self.dir / "issuer.sock").exists(), "the issuer does not start", issuer)
        openssl("x509", "-in", ca, "-out", self.dir / "ca.crt")
        for name, spiffe_id in ("client", CLIENT_ID), ("server", SERVER_ID):
            wanted = self.write(f"{name}.cnf", LEAF.format(id=spiffe_id, name=f"{name}.{TRUST_DOMAIN}"))
            key, certificate = self.dir / f"{name}.key", self.dir / f"{name}.crt"
            openssl("req", "-x509", "-config", wanted, "-days", "1", "-CA", ca, "-CAkey", ca, "-nodes",
                    "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-keyout", key, "-out", certificate)
            # haproxy reads both from one file.
            self.write(f"{name}.pem", certificate.read_text() + key.read_text())

    def start_application(self) -> None:
        """nginx: 128 bytes at `/`, 1 MiB at `/big`."""
        self.app_port = free_port()
        (self.dir / "big").write_bytes(random.randbytes(BIG))
        text = APPLICATION.format(dir=self.dir, port=self.app_port, body="x" * 128)
        child = self.start("application", "nginx", "-e", "stderr", "-c", self.write("application.conf", text))
        self.await_answer(self.app_port, child)


def openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise Failed(f"openssl {arguments[0]}: {done.stderr}")


def free_port() -> int:
    """A port below those that the kernel gives to whoever connects."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def end(*children: subprocess.Popen) -> None:
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    for child in children:
        child.wait()


def processes(child: subprocess.Popen) -> list[int]:
    """A process and its children: nginx works in these."""
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text()
    return [child.pid, *map(int, children.split())]


def cpu_seconds(*children: subprocess.Popen) -> float:
    """CPU time used so far, user and system, of all threads. It is what `/proc/PID/stat` shows, in nanoseconds
    instead of hundredths of a second: the process's own clock, as clock_getcpuclockid(3) names it."""
    return sum(time.clock_gettime(~pid << 3 | 2) for child in children for pid in processes(child))


def rss_bytes(child: subprocess.Popen) -> int:
    """Memory in RAM. What nginx's processes share counts in each of them."""
    pages = (int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in processes(child))
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")
