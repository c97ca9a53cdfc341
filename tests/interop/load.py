"""Four clients ask the URL of the first argument on and on, on connections that they keep (`kept`) or on a
fresh one each time (`fresh`). Prints `asking` with the first answer and, when told to end, how many requests
there were and how many failed."""

import http.client
import signal
import sys
import threading
import time
import urllib.parse

url = urllib.parse.urlsplit(sys.argv[1])
fresh = sys.argv[2] == "fresh"
ended = threading.Event()
totals = []


def client(first):
    asked = failed = 0
    connection = None
    while not ended.is_set():
        asked += 1
        try:
            if connection is None:
                connection = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
            connection.request("GET", url.path or "/")
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                failed += 1
                print(time.time(), answer.status, text[:300], flush=True)
            if first:
                first = False
                print("asking", flush=True)
            if fresh or answer.will_close:
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
