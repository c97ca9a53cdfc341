#!/usr/bin/env bash
# The issuer serves go-spiffe, and two Go programs meet over mutual TLS with what it issued.
set -euo pipefail
# shellcheck source=tests/interop/issuer.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/issuer.sh"

client=$cache/go-spiffe-client
(cd -- "$here/go-spiffe" && go build -mod=readonly -buildvcs=false -o "$client" .)
step go-spiffe "built ($(go env GOVERSION))"

start_issuer
timeout 60 "$client" "$dir/watching" || fail "go-spiffe" &
client_pid=$!
for _ in $(seq 300); do
    [[ -e $dir/watching ]] && break
    kill -0 "$client_pid" 2>/dev/null || break
    sleep 0.1
done
reload_entries '[]'
wait "$client_pid"
stop_issuer go-spiffe
