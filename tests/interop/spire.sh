#!/usr/bin/env bash
# Real SPIRE gives two sidecars their identities, renews them, goes away and comes back, and takes one of
# them back.
set -euo pipefail
# shellcheck source=tests/interop/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

# The first time this takes minutes.
go_build spire github.com/spiffe/spire/cmd/spire-server github.com/spiffe/spire/cmd/spire-agent
step spire "built ($("$cache/bin/spire-server" --version 2>&1))"

api=$dir/server.sock
socket=$dir/agent.sock
export SPIFFE_ENDPOINT_SOCKET=unix://$socket
ports server gate outbound app metrics_a metrics_b caller

# server COMMAND... -ARGUMENT...: tells it something.
server() {
    local command=()
    while [[ ${1:--} != -* ]]; do
        command+=("$1")
        shift
    done
    "$cache/bin/spire-server" "${command[@]}" -socketPath "$api" "$@"
}
server_is_healthy() { "$cache/bin/spire-server" healthcheck -socketPath "$api" >/dev/null 2>&1; }
agent_is_healthy() { "$cache/bin/spire-agent" healthcheck -socketPath "$socket" >/dev/null 2>&1; }

cat >"$dir/server.conf" <<CONF
server {
    bind_address = "127.0.0.1"
    bind_port = "$server"
    socket_path = "$api"
    trust_domain = "example.org"
    data_dir = "$dir/server"
    log_level = "INFO"
    experimental { cache_reload_interval = "1s" }
}
plugins {
    DataStore "sql" {
        plugin_data { database_type = "sqlite3", connection_string = "$dir/server.sqlite3" }
    }
    KeyManager "memory" { plugin_data {} }
    NodeAttestor "join_token" { plugin_data {} }
}
CONF
mkdir "$dir/server" "$dir/agent"
start server "$cache/bin/spire-server" run -config "$dir/server.conf"
await 30 "SPIRE's server is healthy" server_is_healthy
server bundle show >"$dir/bundle.pem"

# Its keys are kept on disk: a join token is good for one attestation only. Digests of our binaries are not
# asked for.
cat >"$dir/agent.conf" <<CONF
agent {
    data_dir = "$dir/agent"
    log_level = "INFO"
    server_address = "127.0.0.1"
    server_port = "$server"
    socket_path = "$socket"
    trust_bundle_path = "$dir/bundle.pem"
    trust_domain = "example.org"
    experimental { sync_interval = "1s" }
}
plugins {
    KeyManager "disk" { plugin_data { directory = "$dir/agent" } }
    NodeAttestor "join_token" { plugin_data {} }
    WorkloadAttestor "unix" {
        plugin_data { discover_workload_path = true, workload_size_limit = -1 }
    }
}
CONF
node=spiffe://example.org/node
token=$(server token generate -spiffeID "$node" | sed -n 's/^Token: //p')

# create_entry WORKLOAD BINARY ARGUMENT...: the entry that gives the binary of that path its identity. Sets
# `entry`.
create_entry() {
    entry=$(server entry create -parentID "$node" -spiffeID "spiffe://example.org/$1" -x509SVIDTTL 12 \
        -jwtSVIDTTL 60 -selector "unix:uid:$(id -u)" -selector "unix:path:$2" "${@:3}" |
        sed -n 's/^Entry ID *: *//p')
    [[ -n $entry ]] || fail "no entry for $1"
}
create_entry a "$(program a)"
entry_of_a=$entry
create_entry b "$(program b)"

start_agent() { start agent "$cache/bin/spire-agent" run -config "$dir/agent.conf" "$@"; }
start_agent -joinToken "$token"
await 30 "SPIRE's agent is healthy" agent_is_healthy
step spire "server and agent run, attested by a join token"

start_app "$app"
grant_reading a caller
start_sidecar b "$metrics_b" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
inbound: [{ listen: '127.0.0.1:$gate', service: invoices, app: '127.0.0.1:$app' }]
policy: { dir: '$dir/policy' }
YAML
start_sidecar a "$metrics_a" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
outbound: [{ listen: '127.0.0.1:$outbound', to: '127.0.0.1:$gate', peer: spiffe://example.org/b }]
YAML
url=http://127.0.0.1:$outbound/
told=$(body "$url")
[[ $told == *"URI=spiffe://example.org/a"* ]] || fail "the application was told: $told"
expect 403 "what no grant allows" -X DELETE "$url"
expect 000 "a stranger" --insecure "https://127.0.0.1:$gate/"
step spire "two sidecars, told apart by unix:path: allowed, denied, a stranger refused"

rotations=doorward_identity_rotations_total
start_load rotation "$url"
for port in "$metrics_a" "$metrics_b"; do
    await 40 "three rotations" metric_above "$port" $rotations "$(($(metric "$port" $rotations) + 2))"
done
end_load rotation
step spire "three rotations each under load: $asked requests, none failed"

# authority active|prepared|old: its ID.
authority() {
    server localauthority x509 show -output json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]]["authority_id"])' "$1"
}
bundle_changes() {
    local before_a before_b
    before_a=$(metric "$metrics_a" doorward_bundle_generation)
    before_b=$(metric "$metrics_b" doorward_bundle_generation)
    "$@" >/dev/null
    await 20 "a has the new bundle" metric_above "$metrics_a" doorward_bundle_generation "$before_a"
    await 20 "b has the new bundle" metric_above "$metrics_b" doorward_bundle_generation "$before_b"
}
certificates_change() {
    local port before=()
    for port in "$metrics_a" "$metrics_b"; do before+=("$(metric "$port" $rotations)"); done
    "$@" >/dev/null
    await 30 "a has a new certificate" metric_above "$metrics_a" $rotations "${before[0]}"
    await 30 "b has a new certificate" metric_above "$metrics_b" $rotations "${before[1]}"
}
start_load activation "$url"
bundle_changes server localauthority x509 prepare
certificates_change server localauthority x509 activate -authorityID "$(authority prepared)"
end_load activation
step spire "another authority prepared and activated: $asked requests, none failed"

# SPIRE's agent may take identities back until it has new ones, for moments.
server localauthority x509 taint -authorityID "$(authority old)" >/dev/null
agent_is_renewed() { grep -q "Successfully rotated agent SVID" "$dir/agent.log"; }
await 30 "the agent has a certificate of the new authority" agent_is_renewed
served() { [[ $(status "$url") == 200 ]]; }
await 3 "served on certificates of the new authority" served
start_load revocation "$url"
bundle_changes server localauthority x509 revoke -authorityID "$(authority old)"
certificates_change true
end_load revocation
step spire "the old authority tainted, then revoked: $asked requests, none failed"

failures=doorward_identity_source_failures_total
start_load outage "$url"
before_a=$(metric "$metrics_a" $failures)
before_b=$(metric "$metrics_b" $failures)
finish agent KILL
await 5 "a asks in vain" metric_above "$metrics_a" $failures "$((before_a + 2))"
await 5 "b asks in vain" metric_above "$metrics_b" $failures "$((before_b + 2))"
rotated_a=$(metric "$metrics_a" $rotations)
rotated_b=$(metric "$metrics_b" $rotations)
start_agent
await 20 "the agent is back" agent_is_healthy
await 3 "a has a new certificate" metric_above "$metrics_a" $rotations "$rotated_a"
longest=$took
await 3 "b has a new certificate" metric_above "$metrics_b" $rotations "$rotated_b"
end_load outage
step spire "agent killed and restarted: $asked requests, none failed; new certificates $((longest + took)) ms after its return"

presents_nothing() { [[ $(status "$url") == 503 ]]; }
withdrawals=doorward_identity_withdrawals_total
before_a=$(metric "$metrics_a" $withdrawals)
server entry delete -entryID "$entry_of_a" >/dev/null
await 15 "a presents nothing" presents_nothing
withdrawn=$took
! ready "$metrics_a" || fail "a is ready without an identity"
ready "$metrics_b" || fail "b is not ready, but nobody took anything from it"
metric_above "$metrics_a" $withdrawals "$before_a" || fail "no withdrawal was counted"
create_entry a "$(program a)"
await 15 "a is served again" served
step spire "entry deleted: not presented after $withdrawn ms; created again: served after $took ms"

# Other clients of the Workload API, which SPIRE knows by their binaries. Each makes the file of its last
# argument once its identity may be withdrawn.
agent_knows_all() { "$cache/bin/spire-agent" api fetch x509 -socketPath "$socket" -silent 2>/dev/null; }
python=$cache/py-spiffe/bin/python
client=$cache/go-spiffe-client
if [[ -x $python && -x $client ]]; then
    create_entry client "$(realpath "$python")" -hint interop
    entry_of_py=$entry
    create_entry client "$client" -hint interop
    entry_of_go=$entry
    # They ask once, so the agent must have heard of them: it hears of all at once.
    create_entry last "$(realpath "$cache/bin/spire-agent")"
    await 15 "the agent knows the newest entry" agent_knows_all
    start py-spiffe "$python" "$here/py-spiffe/client.py" "$dir/py-spiffe.watches"
    start go-spiffe "$client" "$dir/go-spiffe.watches"
    for name in py-spiffe go-spiffe; do
        await 45 "$name watches" test -e "$dir/$name.watches"
    done
    server entry delete -entryID "$entry_of_py" >/dev/null
    server entry delete -entryID "$entry_of_go" >/dev/null
    for name in py-spiffe go-spiffe; do
        wait "${running[$name]}" || fail "$name"
        unset "running[$name]"
        grep -q "withdrawn on the open stream" "$dir/$name.log" || fail "$name has seen no withdrawal"
        step spire "$name beside them: X509-SVID, JWT-SVID, rotations, withdrawal"
    done
else
    echo "skip spire: py-spiffe and go-spiffe beside the sidecars: their own scripts install them"
fi

ghostunnel=$cache/bin/ghostunnel
if [[ -x $ghostunnel ]]; then
    caller_program=$(program caller "$ghostunnel")
    create_entry caller "$caller_program"
    start caller "$caller_program" --use-workload-api client --listen "127.0.0.1:$caller" \
        --target "127.0.0.1:$gate" --verify-uri spiffe://example.org/b
    await 20 "ghostunnel listens" listens "$caller"
    told=$(body "http://127.0.0.1:$caller/")
    [[ $told == *"URI=spiffe://example.org/caller"* ]] || fail "the application was told: $told"
    step spire "ghostunnel beside them, through SPIRE's Workload API: allowed, and named to the application"
    finish caller
else
    echo "skip spire: ghostunnel beside the sidecars: its own script builds it"
fi

for name in a b; do finish "$name"; done

# A JWT-SVID, through our own library. The test's path changes with each build, so its user will do.
server entry create -parentID "$node" -spiffeID spiffe://example.org/token -jwtSVIDTTL 60 \
    -selector "unix:uid:$(id -u)" >/dev/null
jwt=identity::a_token_of_the_provider_at_hand_is_fetched_and_validated
DOORWARD_JWT_SOCKET=unix://$socket cargo test --quiet --locked --manifest-path "$here/../../Cargo.toml" \
    --test e2e -- --ignored --exact "$jwt" --nocapture >"$dir/jwt.log" 2>&1 || fail "$(cat "$dir/jwt.log")"
grep -q "token of spiffe://example.org/token validated" "$dir/jwt.log" || fail "$(cat "$dir/jwt.log")"
step spire "JWT-SVID fetched and validated; another audience and a forged signature refused"

for name in agent server; do finish "$name"; done
step spire "everything stops as told"
