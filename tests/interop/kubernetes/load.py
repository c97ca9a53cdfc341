"""Four clients make pods at the API server of the first argument, a port, with the token of the second in the
namespace of the third, as dry runs and on and on. Prints `asking` with the first answer and, when told to end,
how many there were and how many were not injected."""

import http.client
import json
import signal
import ssl
import sys
import threading
import time

port, token, namespace = sys.argv[1:]
pod = {
    "apiVersion": "v1",
    "kind": "Pod",
    # As a Deployment's ReplicaSet makes them.
    "metadata": {
        "generateName": "ledger-5d4f8c7b9-",
        "labels": {"pod-template-hash": "5d4f8c7b9"},
        "annotations": {"doorward.dev/port": "8080"},
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "ledger-5d4f8c7b9",
                "uid": "7b1c2f0e-3b7a-4c7e-9d55-0d9a1f9f7d11",
                "controller": True,
            }
        ],
    },
    "spec": {
        "serviceAccountName": "ledger",
        "containers": [{"name": "app", "image": "registry.example.org/ledger:1"}],
    },
}
ended = threading.Event()
totals = []


def client(first):
    asked = failed = 0
    connection = None
    while not ended.is_set():
        asked += 1
        try:
            if connection is None:
                # It is the webhook that is tried, not the API server.
                context = ssl._create_unverified_context()
                connection = http.client.HTTPSConnection("127.0.0.1", int(port), timeout=30, context=context)
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            path = f"/api/v1/namespaces/{namespace}/pods?dryRun=All"
            connection.request("POST", path, json.dumps(pod), headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 201 or b"doorward.dev/injected" not in text:
                failed += 1
                print(time.time(), answer.status, text[:300], flush=True)
            elif first:
                first = False
                print("asking", flush=True)
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
