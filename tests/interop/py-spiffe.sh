#!/usr/bin/env bash
# The issuer serves py-spiffe, which is gRPC's C core: it sends the socket's path as `:authority`.
set -euo pipefail
# shellcheck source=tests/interop/issuer.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/issuer.sh"

venv=$cache/py-spiffe
wanted=$here/py-spiffe/requirements.txt
if ! cmp -s "$wanted" "$venv/installed.txt"; then
    rm -rf -- "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r "$wanted"
    cp -- "$wanted" "$venv/installed.txt"
fi
step py-spiffe "installed ($("$venv/bin/python" --version))"

start_issuer
timeout 60 "$venv/bin/python" "$here/py-spiffe/client.py" "$dir/watching" || fail "py-spiffe" &
client=$!
# It says when it watches a stream on which the entry can be withdrawn.
for _ in $(seq 300); do
    [[ -e $dir/watching ]] && break
    kill -0 "$client" 2>/dev/null || break
    sleep 0.1
done
reload_entries '[]'
wait "$client"
stop_issuer py-spiffe
