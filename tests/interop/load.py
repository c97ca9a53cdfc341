"""Four clients ask URL on and on. Prints `asking` with the first answer that is as it should be and, when told to
end, how many requests there were and how many failed."""

import argparse
import http.client
import pathlib
import signal
import ssl
import threading
import time
import urllib.parse

options = argparse.ArgumentParser(description=__doc__)
options.add_argument("url", type=urllib.parse.urlsplit)
options.add_argument("connections", choices=["kept", "fresh"], help="for all requests, or for each")
options.add_argument("--post", metavar="FILE", type=pathlib.Path, help="what is posted, in JSON; without it, GET")
options.add_argument("--token", help="a bearer token")
options.add_argument("--status", type=int, default=200, help="of the answer")
options.add_argument("--holding", metavar="TEXT", type=str.encode, default=b"", help="stands in the answer")
options = options.parse_args()
url = options.url
target = urllib.parse.urlunsplit(url._replace(scheme="", netloc="", path=url.path or "/"))
body = options.post and options.post.read_bytes()
headers = {}
if body:
    headers["content-type"] = "application/json"
if options.token:
    headers["authorization"] = f"Bearer {options.token}"
ended = threading.Event()
totals = []


def connect():
    if url.scheme == "http":
        return http.client.HTTPConnection(url.hostname, url.port, timeout=30)
    # What is behind the server is tried, not the server.
    context = ssl._create_unverified_context()
    return http.client.HTTPSConnection(url.hostname, url.port, timeout=30, context=context)


def client(first):
    asked = failed = 0
    connection = None
    while not ended.is_set():
        asked += 1
        try:
            connection = connection or connect()
            connection.request("POST" if body else "GET", target, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != options.status or options.holding not in text:
                failed += 1
                print(time.time(), answer.status, text[:300], flush=True)
            elif first:
                first = False
                print("asking", flush=True)
            if options.connections == "fresh" or answer.will_close:
                connection.close()
                connection = None
        except (OSError, http.client.HTTPException) as error:
            failed += 1
            connection = None
            print(time.time(), repr(error), flush=True)
        time.sleep(0.02)
    totals.append((asked, failed))


signal.signal(signal.SIGTERM, lambda *_: ended.set())
clients = [threading.Thread(target=client, args=(number == 0,)) for number in range(4)]
for one in clients:
    one.start()
while any(one.is_alive() for one in clients):
    time.sleep(0.02)
print(sum(asked for asked, _ in totals), sum(failed for _, failed in totals))
