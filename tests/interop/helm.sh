#!/usr/bin/env bash
# What the real Helm makes of deploy/helm, and what Kubernetes would make of that: lint, renders for several sets of
# values against those kept here, values that must be refused, and every manifest of deploy/ read strictly into the
# types of its API.
#
#   DOORWARD_GOLDEN=write   keeps the renders of now
set -euo pipefail
# shellcheck source=tests/interop/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
root=$(cd -- "$here/../.." && pwd)
chart=$root/deploy/helm/doorward

# The first time this takes minutes.
go_build helm helm.sh/helm/v4/cmd/helm
(cd -- "$here/helm" && go build -mod=readonly -buildvcs=false -o "$cache/bin/manifests" ./check)
export HELM_CACHE_HOME=$dir/cache HELM_CONFIG_HOME=$dir/config HELM_DATA_HOME=$dir/data
helm() { "$cache/bin/helm" "$@"; }
render() { helm template doorward "$chart" --namespace doorward --include-crds "$@"; }
step helm "built ($(grep -o 'helm/v4 v[^ ]*' "$here/helm/go.mod" | cut -d ' ' -f 2))"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -n 1)
for of in "version: $version" "appVersion: $version"; do
    grep -qx "$of" "$chart/Chart.yaml" || fail "Chart.yaml does not say $of, as Cargo.toml does"
done

for values in "$here"/helm/values/*.yaml; do
    name=$(basename "$values" .yaml)
    golden=$here/helm/golden/$name.yaml
    helm lint --strict --quiet "$chart" --values "$values" >"$dir/lint.log" 2>&1 || fail "$name: lint"
    render --values "$values" >"$dir/$name.yaml" 2>"$dir/render.log" || fail "$name: it is not rendered"
    if [[ ${DOORWARD_GOLDEN:-} == write ]]; then cp "$dir/$name.yaml" "$golden"; fi
    diff -u "$golden" "$dir/$name.yaml" >"$dir/diff.log" || fail "$name: rendered otherwise; is DOORWARD_GOLDEN=write meant?"
    "$cache/bin/manifests" "$golden" >"$dir/manifests.log" 2>&1 || fail "$name: Kubernetes would not take it"
    step helm "$name: linted, rendered as kept, $(sed 's/.*: //' "$dir/manifests.log") that Kubernetes knows"
done

refused=0
while read -r where mistake; do
    if [[ $where == '#'* ]]; then continue; fi
    if render --set trustDomain=example.org --set "$mistake" >"$dir/refused.log" 2>&1; then fail "not refused: $mistake"; fi
    grep -qF -- "at '$where" "$dir/refused.log" || fail "$mistake is not said to be a mistake at $where"
    refused=$((refused + 1))
done <"$here/helm/refused"
((refused > 20)) || fail "only $refused mistakes were tried"
step helm "$refused wrong values refused, each in its place"

# Notes are rendered at an installation only.
for values in "$here"/helm/values/*.yaml; do
    helm install doorward "$chart" --namespace doorward --dry-run=client --values "$values" >"$dir/notes.log" 2>&1 ||
        fail "no notes for $values"
    grep -q "kubectl --namespace doorward rollout status deployment doorward-webhook" "$dir/notes.log" ||
        fail "the notes for $values do not say how to go on"
done
step helm "the notes say how to go on"

# Plain manifests are what the chart makes of itself.
mkdir "$dir/plain" "$dir/data"
HELM=$cache/bin/helm "$root/deploy/kubernetes/render" "$dir/plain"
for rendered in "$dir"/plain/*.yaml; do
    diff -u "$root/deploy/kubernetes/$(basename "$rendered")" "$rendered" >"$dir/diff.log" ||
        fail "$(basename "$rendered") is not what the chart makes: run deploy/kubernetes/render"
done
mapfile -t manifests < <(find "$root/deploy/kubernetes" "$root/deploy/spire" "$root/deploy/cert-manager" -name '*.yaml' \
    ! -name '*.values.yaml' | sort)
"$cache/bin/manifests" -data "$dir/data" "${manifests[@]}" >"$dir/manifests.log" 2>&1 ||
    fail "there are manifests that Kubernetes would not take"
((${#manifests[@]} >= 9)) || fail "only ${#manifests[@]} manifests were seen"
step manifests "${#manifests[@]} files are what Kubernetes knows, and those made of the chart are up to date"

policies=0
for policy in "$dir"/data/*/*.cedar; do
    # On the day they were written there was nothing to warn of.
    "$doorward" check --policy "$(dirname "$policy")" --deny all --at 2026-11-22T12:00:00Z >"$dir/check.log" 2>&1 ||
        fail "a policy in a ConfigMap is not sound"
    policies=$((policies + 1))
done
((policies > 0)) || fail "no policies were seen"
step manifests "policies in ConfigMaps are sound"

# The configuration that the chart writes is the one that the binary reads, and the example's pods can be injected.
if "$doorward" inject --help 2>/dev/null | grep -q -- --webhook; then
    for application in invoices checkout; do
        "$doorward" inject --config "$dir/data/doorward-webhook/inject.yaml" \
            "$root/deploy/kubernetes/example/$application.yaml" >"$dir/$application.yaml" 2>"$dir/inject.log" ||
            fail "deploy/kubernetes/example/$application.yaml is not injected"
        grep -q "name: doorward-intercept" "$dir/$application.yaml" || fail "nothing was injected into $application"
        "$cache/bin/manifests" "$dir/$application.yaml" >"$dir/manifests.log" 2>&1 ||
            fail "Kubernetes would not take $application with its sidecar"
    done
    step manifests "the example is injected with the configuration that the chart writes"
else
    echo "SKIPPED: injecting the example: this doorward has no webhook"
fi

# The README names files that there are, and commands that Helm takes with this chart.
while read -r named; do
    [[ -e $root/$named ]] || fail "README.md names $named, which is not there"
done < <(grep -o 'deploy/[A-Za-z0-9_./-]*[A-Za-z0-9]' "$root/README.md" | sort -u)
told=0
while read -r command; do
    # shellcheck disable=SC2086
    (cd -- "$root" && helm ${command#helm } --dry-run=client) >"$dir/told.log" 2>&1 || fail "in README.md: $command"
    told=$((told + 1))
done < <(sed -e ':a' -e '/\\$/{N;s/ *\\\n */ /;ba' -e '}' "$root/README.md" | grep '^helm install doorward ' | sed 's/ --wait//')
((told == 2)) || fail "$told installations of the README were tried"
step README "its files are there, and Helm takes its commands"

# SPIRE itself reads its configuration, and takes the entries.
if [[ ! -x $cache/bin/spire-server ]]; then
    echo "SKIPPED: deploy/spire with SPIRE itself: tests/interop/spire.sh builds it"
    exit
fi
for of in server agent; do
    "$cache/bin/spire-$of" validate -config "$dir/data/spire-$of/$of.conf" >"$dir/validate.log" 2>&1 ||
        fail "SPIRE's $of does not understand $of.conf"
done
ports server
mkdir "$dir/server"
cat >"$dir/server.conf" <<CONF
server {
    bind_address = "127.0.0.1"
    bind_port = "$server"
    socket_path = "$dir/server.sock"
    trust_domain = "example.org"
    data_dir = "$dir/server"
}
plugins {
    DataStore "sql" {
        plugin_data { database_type = "sqlite3", connection_string = "$dir/server/store.sqlite3" }
    }
    KeyManager "memory" { plugin_data {} }
    NodeAttestor "join_token" { plugin_data {} }
}
CONF
start server "$cache/bin/spire-server" run -config "$dir/server.conf"
is_healthy() { "$cache/bin/spire-server" healthcheck -socketPath "$dir/server.sock" >/dev/null 2>&1; }
await 30 "SPIRE's server is healthy" is_healthy
# The command's own words come first, where to find the server last.
cat >"$dir/spire-server" <<SH
#!/bin/sh
exec "$cache/bin/spire-server" "\$@" -socketPath "$dir/server.sock"
SH
chmod +x "$dir/spire-server"
SPIRE_SERVER=$dir/spire-server "$root/deploy/spire/register" >"$dir/register.log" 2>&1 || fail "SPIRE does not take the entries"
"$dir/spire-server" entry show >"$dir/entries.log"
for entry in node doorward/webhook ns/shop/sa/invoices ns/shop/sa/checkout; do
    grep -q ": spiffe://example.org/$entry\$" "$dir/entries.log" || fail "there is no entry for $entry"
done
grep -q ": doorward-webhook.doorward.svc\$" "$dir/entries.log" || fail "the webhook has no name"
finish server
step spire "understands deploy/spire, and takes the entries of deploy/spire/register"
