#!/usr/bin/env bash
# The images of deploy/Dockerfile, where there is no Docker: BuildKit's own checks and what it makes of the
# images' configuration; the same build by hand; and the binary in a root that holds nothing else, as in the
# image.
#
#   DOORWARD_STATIC   a static binary that is there already, in place of building one
set -euo pipefail
# shellcheck source=tests/interop/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
root=$(cd -- "$here/../.." && pwd)
file=$root/deploy/Dockerfile

(cd -- "$here/dockerfile" && go build -mod=readonly -buildvcs=false -o "$cache/bin/dockerfile" .)
"$cache/bin/dockerfile" "$file" >"$dir/dockerfile.log" 2>&1 || fail "BuildKit has something to say about $file"
while read -r told; do step Dockerfile "$told"; done <"$dir/dockerfile.log"
for change in 's/AS build/as build/' 's/^USER 2102:2102/USER 0:0/' 's/^FROM scratch/FROM debian/'; do
    sed "$change" "$file" >"$dir/changed"
    cmp -s "$file" "$dir/changed" && fail "nothing to change by $change"
    "$cache/bin/dockerfile" "$dir/changed" >"$dir/dockerfile.log" 2>&1 && fail "not seen: $change"
done
step Dockerfile "what is wrong on purpose is seen"

# What a build is given must be enough for it: cargo looks for whatever Cargo.toml names.
context=$dir/context
(cd -- "$root" && sed -n 's/^!//p' deploy/Dockerfile.dockerignore | while read -r kept; do
    # shellcheck disable=SC2086
    for path in $kept; do
        mkdir -p "$context/$(dirname "$path")"
        cp -r "$path" "$context/$(dirname "$path")/"
    done
done)
cargo metadata --offline --locked --no-deps --format-version 1 --manifest-path "$context/Cargo.toml" \
    >/dev/null 2>"$dir/metadata.log" || fail "what Dockerfile.dockerignore leaves is not enough for cargo"
step Dockerfile "its context is enough for cargo: $(du -sh "$context" | cut -f 1)"

static=${DOORWARD_STATIC:-}
if [[ -z $static ]]; then
    host=$(rustc -vV | sed -n 's/^host: //p')
    flags=$(sed -n 's/.*RUSTFLAGS="\([^"]*\)".*/\1/p' "$file")
    [[ -n $flags ]] || fail "no flags in $file"
    (cd -- "$root" && RUSTFLAGS=$flags nice cargo build --locked --bin doorward --target "$host" --message-format=json) \
        >"$dir/build.json" 2>"$dir/build.log" || fail "the static binary is not built"
    static=$(sed -n 's/.*"executable":"\([^"]*doorward\)".*/\1/p' "$dir/build.json")
fi
if readelf --program-headers --wide "$static" | grep -q INTERP; then fail "$static asks for a loader"; fi
if readelf --dynamic --wide "$static" | grep -q NEEDED; then fail "$static asks for libraries"; fi
step static "$("$static" --version): no loader, no libraries, $(du -h --apparent-size "$static" | cut -f 1)"

"$static" demo --once >"$dir/demo.log" 2>&1 || fail "the demo of the static binary"
step static "the demo holds: identities, rotation, policy, audit"

# Without a loader some crates find the C library's calls no more, and look for files instead.
ports gate outbound metrics names
python3 - "$names" >"$dir/names.log" 2>&1 <<'PY' &
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", int(sys.argv[1])))
while True:
    query, address = server.recvfrom(512)
    # There is no such name.
    server.sendto(query[:2] + b"\x81\x83" + query[4:6] + bytes(6) + query[12:], address)
PY
running[names]=$!
cat >"$dir/resolves.yaml" <<YAML
identity: { workload_api: unix://$dir/agent.sock }
inbound: [{ listen: '127.0.0.1:$gate', service: invoices, app: '127.0.0.1:8080' }]
outbound: [{ listen: '127.0.0.1:$outbound', to: 'ledger.invalid:$gate', peer: spiffe://example.org/ledger }]
policy: { dir: $root/examples/two-services/policy }
dns: { servers: '127.0.0.1:$names' }
metrics: { listen: '127.0.0.1:$metrics' }
YAML
start resolves "$static" run --config "$dir/resolves.yaml"
asked() { body "http://127.0.0.1:$metrics/metrics" | grep -q '^doorward_dns_lookups_total{.*} [1-9]'; }
await 30 "it asks for the address of a peer" asked
finish resolves
finish names KILL
step static "asks for the addresses of names in its sandbox"

if ((EUID != 0)); then
    echo "SKIPPED: a root with nothing but the binary: it takes root to make one"
    exit
fi
# As a container runtime makes it: the binary, what the pod brings, and the files that name other hosts.
empty=$dir/empty
mkdir -p "$empty/usr/local/bin" "$empty/etc/doorward" "$empty/dev"
cp --archive /dev/random /dev/urandom "$empty/dev/"
cp "$static" "$empty/usr/local/bin/doorward"
cp -r "$root/examples/two-services/policy" "$empty/etc/doorward/"
echo 127.0.0.1 localhost >"$empty/etc/hosts"
echo nameserver 127.0.0.1 >"$empty/etc/resolv.conf"
chmod -R go+rX "$empty"
ports gate outbound metrics
cat >"$empty/etc/doorward/doorward.yaml" <<YAML
identity: { workload_api: unix:///run/spire/agent.sock }
inbound: [{ listen: '127.0.0.1:$gate', service: invoices, app: '127.0.0.1:8080' }]
outbound: [{ listen: '127.0.0.1:$outbound', to: 'localhost:$gate', peer: spiffe://example.org/ledger }]
policy: { dir: /etc/doorward/policy }
metrics: { listen: '127.0.0.1:$metrics' }
YAML
inside=(chroot --userspec=2102:2102 "$empty" /usr/local/bin/doorward)
"${inside[@]}" check --config /etc/doorward/doorward.yaml --at 2026-11-22T12:00:00Z >"$dir/inside.log" 2>&1 ||
    fail "check, in an empty root"
start inside "${inside[@]}" run
answers() { [[ $(status "http://127.0.0.1:$metrics/live") == 200 ]]; }
await 20 "the sidecar lives in an empty root" answers
# There is no provider, and it says so.
[[ $(body "http://127.0.0.1:$metrics/ready") == *'"identity","ready":false'* ]] || fail "it is ready without an identity"
finish inside
step static "runs in an empty root, as user 2102"
