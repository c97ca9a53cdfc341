"""A peer with a certificate, as a process of its own: `handshakes` makes new connections for a while, `hold` keeps
many open until its input ends. Each connection carries one request, so the server has finished the handshake too.
What it did is one line of JSON.

usage: tls_client.py handshakes|hold PORT DIRECTORY SECONDS|CONNECTIONS
"""

import json
import socket
import ssl
import sys
import threading
import time

THREADS = 4
REQUEST = b"GET / HTTP/1.1\r\nhost: application\r\n\r\n"


def context(directory: str) -> ssl.SSLContext:
    """TLS 1.3 as `client`. Sessions are never resumed: nobody hands one in."""
    client = ssl.create_default_context(cafile=f"{directory}/ca.crt")
    client.check_hostname = False
    client.minimum_version = ssl.TLSVersion.TLSv1_3
    client.load_cert_chain(f"{directory}/client.crt", f"{directory}/client.key")
    return client


def connect(client: ssl.SSLContext, port: int) -> ssl.SSLSocket:
    """A connection that has had one answer."""
    plain = socket.create_connection(("127.0.0.1", port), 20)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    secured = client.wrap_socket(plain)
    secured.sendall(REQUEST)
    answer = secured.recv(4096)
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise OSError(f"answered {answer[:40]!r}")
    return secured


def handshakes(client: ssl.SSLContext, port: int, seconds: float) -> dict[str, float]:
    began = time.monotonic()
    done = [0] * THREADS
    errors = [0] * THREADS

    def work(thread: int) -> None:
        while time.monotonic() < began + seconds:
            try:
                connect(client, port).close()
                done[thread] += 1
            except OSError:
                errors[thread] += 1

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"requests": sum(done), "errors": sum(errors), "seconds": time.monotonic() - began}


def main() -> None:
    what, port, directory, amount = sys.argv[1:]
    client = context(directory)
    if what == "handshakes":
        print(json.dumps(handshakes(client, int(port), float(amount))))
        return
    held = [connect(client, int(port)) for _ in range(int(amount))]
    print(json.dumps({"held": len(held)}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
