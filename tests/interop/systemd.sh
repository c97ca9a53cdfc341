#!/usr/bin/env bash
# What systemd itself makes of the units in deploy/systemd: bash tests/interop/systemd.sh [path of doorward]
#
# Needs no systemd that runs. Where there is no systemd-analyze, Debian's is unpacked in the cache.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
. "$here/debian.sh"

if ! command -v systemd-analyze >/dev/null; then
    unpack systemd
    PATH=$unpacked/usr/bin:$unpacked/bin:$PATH
    LD_LIBRARY_PATH=$(find "$unpacked" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    SYSTEMD_UNIT_PATH=$(find "$unpacked" -path '*/systemd/system' | paste -sd:)
    export LD_LIBRARY_PATH SYSTEMD_UNIT_PATH
fi
step systemd "$(systemd-analyze --version | head -n 1)"

# limit UNIT: how exposed it may be, of 100, by systemd's own reckoning.
limit() {
    case $1 in
        doorward.service) echo 15 ;;
        # It runs as root, and looks at the processes of others.
        doorward-issuer.service) echo 23 ;;
        # It runs as root, in the network of the host, and changes what passes there.
        doorward-intercept.service) echo 21 ;;
        *) fail "$1 has no limit" ;;
    esac
}

seen=0
for unit in "$here"/../../deploy/systemd/*; do
    name=$(basename "$unit")
    # The units name where an installation has the binary.
    sed "s|/usr/local/bin/doorward|$doorward|" "$unit" >"$dir/$name"
    systemd-analyze verify --recursive-errors=no "$dir/$name" >"$dir/verify.log" 2>&1 || fail "$name is not a sound unit"
    [[ ! -s $dir/verify.log ]] || fail "systemd has something to say about $name"
    if [[ $name == *.socket ]]; then
        step "$name" sound
        continue
    fi
    systemd-analyze security --offline=yes --no-pager --threshold="$(limit "$name")" "$dir/$name" >"$dir/security.log" 2>&1 ||
        fail "$name is more exposed than it should be"
    step "$name" "sound; $(tail -n 1 "$dir/security.log" | sed 's/^[^A-Za-z]*//')"
    seen=$((seen + 1))
done
((seen > 1)) || fail "no units were seen"

# A process that systemd itself starts at the first connection, with the sockets that it opened.
read -r metrics entrance < <(python3 -c '
import socket
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in taken))')
cat >"$dir/activated.yaml" <<YAML
identity: { workload_api: unix://$dir/nobody.sock }
outbound: [{ listen: 127.0.0.1:$entrance, to: 127.0.0.1:1, peer: spiffe://example.org/nobody }]
audit: { path: $dir/activated.jsonl }
metrics: { listen: 127.0.0.1:$metrics }
YAML
systemd-socket-activate -l "127.0.0.1:$entrance" -l "127.0.0.1:$metrics" \
    "$doorward" run --config "$dir/activated.yaml" >"$dir/activated.log" 2>&1 &
activated=$!
curl -sf --retry 20 --retry-connrefused --retry-delay 1 -m 20 "http://127.0.0.1:$metrics/live" >/dev/null ||
    fail "nobody answers on a socket that was handed over"
kill "$activated"
wait "$activated" || true
step activation "sockets that systemd opened are served"

# What a unit names must be what the binary takes.
for command in "run --config" "check --config" "issuer --config" "intercept apply --config" "intercept remove --config"; do
    # shellcheck disable=SC2086
    "$doorward" ${command% *} --help | grep -q -- "${command##* }" || fail "doorward has no $command"
done
step commands "those of the units are there"
