#!/usr/bin/env bash
# h2spec asks both listeners what RFC 9113 asks of a server: the outbound one in plain, the inbound one over
# mutual TLS. What does not pass is listed with its reason in h2spec/known; what fails besides, or passes all
# the same, fails this script.
set -euo pipefail
# shellcheck source=tests/interop/issuer.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/issuer.sh"

# It has no certificate to show: ghostunnel shows one in its place, and passes its bytes on as they are.
go_build ghostunnel github.com/ghostunnel/ghostunnel
go_build h2spec github.com/summerwind/h2spec/cmd/h2spec
version=$(grep -o 'h2spec v[^ ]*' "$here/h2spec/go.mod")
step h2spec "built (${version#* })"

mkdir -p "$dir/policy"
cat >"$dir/policy/invoices.cedar" <<'CEDAR'
@id("all-for-both")
@owner("payments@example.org")
@purpose("A test")
@expires("2099-01-01")
permit (
  principal in TrustDomain::"example.org",
  action,
  resource == Service::"invoices"
);
CEDAR

ports app gate outbound tunnel metrics_a metrics_b
entries=
declare -A binaries=([a]=$doorward [b]=$doorward [caller]=$cache/bin/ghostunnel)
for workload in "${!binaries[@]}"; do
    path=$(program "$workload" "${binaries[$workload]}")
    entries+="{ id: /$workload, selectors: { path: $path }, lifetime: 1h }, "
done
start_issuer "[$entries]"
start_app "$app"
start_sidecar b "$metrics_b" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
inbound:
- { listen: '127.0.0.1:$gate', service: invoices, app: '127.0.0.1:$app', app_protocol: http1 }
policy: { dir: '$dir/policy' }
YAML
start_sidecar a "$metrics_a" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
outbound:
- { listen: '127.0.0.1:$outbound', to: '127.0.0.1:$gate', peer: spiffe://example.org/b }
YAML
start tunnel "$(program caller "$cache/bin/ghostunnel")" --use-workload-api client --listen "127.0.0.1:$tunnel" \
    --target "127.0.0.1:$gate" --verify-uri spiffe://example.org/b
await 20 "the tunnel listens" listens "$tunnel"

# against WHAT PORT: every case, also those of what a server only should do.
against() {
    expect 200 "$1: a request" --http2-prior-knowledge "http://127.0.0.1:$2/"
    "$cache/bin/h2spec" --strict --host 127.0.0.1 --port "$2" --timeout 5 --junit-report "$dir/report.xml" \
        >"$dir/h2spec.log" 2>&1 || true
    local told
    told=$(python3 "$here/h2spec/compare.py" "$dir/report.xml" "$here/h2spec/known") || fail "$1: $told"
    rm -- "$dir/report.xml"
    step h2spec "$1: $told"
}
against "the outbound listener, in plain" "$outbound"
against "the inbound listener, over mutual TLS" "$tunnel"

finish tunnel KILL
for name in a b; do finish "$name"; done
stop_issuer h2spec
