#!/usr/bin/env bash
# ghostunnel is a peer in both directions, with SVIDs from the same Workload API, and each side believes the
# other's SPIFFE ID and no other.
set -euo pipefail
# shellcheck source=tests/interop/issuer.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/issuer.sh"

go_build ghostunnel github.com/ghostunnel/ghostunnel
ghostunnel=$cache/bin/ghostunnel
version=$(grep -o 'ghostunnel v[^ ]*' "$here/ghostunnel/go.mod")
step ghostunnel "built (${version#* })"

ports app gate tcp_gate caller wrong_caller stranger tcp_caller tunnel closed_tunnel \
    outbound to_closed to_nobody tcp_outbound metrics_a metrics_b
declare -A binaries=([a]=$doorward [b]=$doorward [caller]=$ghostunnel [stranger]=$ghostunnel [tunnel]=$ghostunnel)
entries=
for workload in "${!binaries[@]}"; do
    path=$(program "$workload" "${binaries[$workload]}")
    entries+="{ id: /$workload, selectors: { path: $path }, lifetime: 6s }, "
done
start_issuer "[$entries]"
start_app "$app"

grant_reading caller
cat >>"$dir/policy/invoices.cedar" <<'CEDAR'
@id("caller-connects")
@owner("payments@example.org")
@purpose("A test")
@expires("2099-01-01")
permit (
  principal == Workload::"spiffe://example.org/caller",
  action == Action::"connect",
  resource == Service::"ledger"
);
CEDAR
start_sidecar b "$metrics_b" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
inbound:
- { listen: '127.0.0.1:$gate', service: invoices, app: '127.0.0.1:$app' }
- { listen: '127.0.0.1:$tcp_gate', service: ledger, app: '127.0.0.1:$app', protocol: tcp }
policy: { dir: '$dir/policy' }
YAML
start_sidecar a "$metrics_a" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
outbound:
- { listen: '127.0.0.1:$outbound', to: '127.0.0.1:$tunnel', peer: spiffe://example.org/tunnel }
- { listen: '127.0.0.1:$tcp_outbound', to: '127.0.0.1:$tunnel', peer: spiffe://example.org/tunnel, protocol: tcp }
- { listen: '127.0.0.1:$to_closed', to: '127.0.0.1:$closed_tunnel', peer: spiffe://example.org/tunnel }
- { listen: '127.0.0.1:$to_nobody', to: '127.0.0.1:$tunnel', peer: spiffe://example.org/somebody-else }
YAML

# tunnel NAME WORKLOAD client|server PORT TARGET ARGUMENT...
tunnel() {
    local name=$1 workload=$2 mode=$3 listen=$4 target=$5
    shift 5
    start "$name" "$(program "$workload" "$ghostunnel")" --use-workload-api "$mode" --listen "127.0.0.1:$listen" \
        --target "127.0.0.1:$target" "$@"
    await 20 "$name listens" listens "$listen"
}
b_alone=(--verify-uri spiffe://example.org/b)
tunnel caller caller client "$caller" "$gate" "${b_alone[@]}"
tunnel tcp-caller caller client "$tcp_caller" "$tcp_gate" "${b_alone[@]}"
tunnel wrong-caller caller client "$wrong_caller" "$gate" --verify-uri spiffe://example.org/somebody-else
tunnel stranger stranger client "$stranger" "$gate" "${b_alone[@]}"
tunnel tunnel tunnel server "$tunnel" "$app" --allow-uri spiffe://example.org/a
tunnel closed-tunnel tunnel server "$closed_tunnel" "$app" --allow-uri spiffe://example.org/somebody-else
step ghostunnel "six tunnels and two sidecars run"

told=$(body "http://127.0.0.1:$caller/")
[[ $told == *"URI=spiffe://example.org/caller"* ]] || fail "ghostunnel -> doorward: the application was told: $told"
expect 403 "ghostunnel -> doorward: what no grant allows" -X DELETE "http://127.0.0.1:$caller/"
expect 403 "ghostunnel -> doorward: whom no grant names" "http://127.0.0.1:$stranger/"
step ghostunnel "it calls a sidecar: allowed and denied by its SPIFFE ID"
expect 200 "ghostunnel -> doorward, TCP" "http://127.0.0.1:$tcp_caller/"
step ghostunnel "it calls a sidecar that decides by connection"
expect 200 "doorward -> ghostunnel" "http://127.0.0.1:$outbound/"
expect 200 "doorward -> ghostunnel, TCP" "http://127.0.0.1:$tcp_outbound/"
step ghostunnel "a sidecar calls it, over HTTP and TCP"

before=$(body "http://127.0.0.1:$app/seen")
expect 000 "ghostunnel -> doorward: another SPIFFE ID than ghostunnel wants" "http://127.0.0.1:$wrong_caller/"
expect 502 "doorward -> ghostunnel: a SPIFFE ID that ghostunnel does not let in" "http://127.0.0.1:$to_closed/"
expect 502 "doorward -> ghostunnel: another SPIFFE ID than the sidecar wants" "http://127.0.0.1:$to_nobody/"
[[ $(body "http://127.0.0.1:$app/seen") == "$before" ]] || fail "a refused request reached the application"
step ghostunnel "wrong identities are refused, by it and by the sidecars"

# A tunnel's connection keeps the certificate that it began with: only fresh ones outlive a rotation.
start_load load-in "http://127.0.0.1:$caller/" fresh
start_load load-out "http://127.0.0.1:$outbound/" fresh
for port in "$metrics_a" "$metrics_b"; do
    await 30 "two rotations" metric_above "$port" doorward_identity_rotations_total \
        "$(($(metric "$port" doorward_identity_rotations_total) + 1))"
done
end_load load-in
total=$asked
end_load load-out
step ghostunnel "rotations under load: $((total + asked)) requests both ways, none failed"

for name in caller tcp-caller wrong-caller stranger tunnel closed-tunnel; do finish "$name" KILL; done
for name in a b; do finish "$name"; done
stop_issuer ghostunnel
