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

# The configuration that the chart writes is the one that the binary reads.
if "$doorward" inject --help >/dev/null 2>&1; then
    for values in "$here"/helm/values/*.yaml; do
        render --values "$values" --show-only templates/configmap.yaml | sed -n '/inject.yaml: |/,$p' | sed '1d; s/^    //' \
            >"$dir/inject.yaml"
        "$doorward" inject --config "$dir/inject.yaml" <<<'' >"$dir/inject.log" 2>&1 ||
            fail "doorward does not read the configuration made of $values"
    done
    step helm "doorward reads the configuration that the chart writes"
else
    echo "SKIPPED: the configuration that the chart writes: this doorward has no inject"
fi
