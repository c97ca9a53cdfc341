#!/usr/bin/env bash
# A real API server asks the webhook about each pod, with etcd behind it: what is injected, what is left alone and
# what is refused; the webhook's certificate and the roots that vouch for it rotate under load; and every manifest
# under deploy/ is taken by a server-side dry run.
#
#   bash tests/interop/kubernetes.sh build    builds the API server, kubectl and etcd: ten minutes of CPU, 2 GB, once
#
# Without them it is SKIPPED. There is no kubelet: pods are admitted and never run.
set -euo pipefail
if [[ ${1:-} == build ]]; then build=true; shift; fi
# shellcheck source=tests/interop/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

module=$here/kubernetes
bin=$cache/kubernetes
if ! cmp -s "$module/go.sum" "$bin/built.sum"; then
    if [[ ${build:-} != true ]]; then
        echo "SKIPPED: no API server of this version in $bin; \`bash tests/interop/kubernetes.sh build\` makes one, once"
        exit 0
    fi
    mkdir -p "$bin"
    version=$(sed -n 's|.*k8s.io/kubernetes \(v[0-9.]*\).*|\1|p' "$module/go.mod")
    (cd -- "$module" && go build -mod=readonly -buildvcs=false -trimpath \
        -ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version" -o "$bin/" \
        k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl go.etcd.io/etcd/server/v3)
    mv -- "$bin/server" "$bin/etcd"
    cp -- "$module/go.sum" "$bin/built.sum"
fi
if [[ ${build:-} == true ]]; then exit 0; fi
step kubernetes "API server and kubectl $("$bin/kube-apiserver" --version | sed 's/^Kubernetes //'), $("$bin/etcd" --version | head -n 1)"

ports store peers api reviews probes

# The cluster. Whoever shows the token is its administrator; the webhook has an account of its own.
pki=$dir/pki
mkdir "$pki"
openssl genrsa -out "$pki/accounts.key" 2048 2>/dev/null
echo "administrator,administrator,administrator,system:masters" >"$pki/tokens"
start etcd "$bin/etcd" --data-dir "$dir/etcd" --logger zap --log-level error --unsafe-no-fsync \
    --listen-client-urls "http://127.0.0.1:$store" --advertise-client-urls "http://127.0.0.1:$store" \
    --listen-peer-urls "http://127.0.0.1:$peers" --initial-advertise-peer-urls "http://127.0.0.1:$peers" \
    --initial-cluster "default=http://127.0.0.1:$peers"
await 20 "etcd listens" listens "$store"
start api-server "$bin/kube-apiserver" --etcd-servers "http://127.0.0.1:$store" --bind-address 127.0.0.1 \
    --allow-privileged --secure-port "$api" --cert-dir "$pki/api" --token-auth-file "$pki/tokens" --authorization-mode RBAC \
    --service-account-issuer https://kubernetes.default.svc --service-cluster-ip-range 10.0.0.0/24 \
    --service-account-key-file "$pki/accounts.key" --service-account-signing-key-file "$pki/accounts.key"
kubectl() {
    "$bin/kubectl" --kubeconfig=/dev/null --cache-dir="$dir/kubectl" --server="https://127.0.0.1:$api" \
        --certificate-authority="$pki/api/apiserver.crt" --token="${token:-administrator}" "$@"
}
api_is_ready() { [[ $(kubectl get --raw /readyz 2>/dev/null) == ok ]]; }
await 60 "the API server is ready" api_is_ready
step kubernetes "an API server with etcd, ready after $took ms"

# root NAME: a CA of the trust domain. svid ROOT: a certificate of the webhook by that root, put in the place of the
# last one as kubelet does, by moving a link. The host is the one that the API server calls.
root() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj "/CN=$1" \
        -keyout "$pki/$1.key" -out "$pki/$1.pem" -addext "keyUsage=critical,keyCertSign,cRLSign" \
        -addext "subjectAltName=URI:spiffe://example.org" 2>/dev/null
}
serial=0
svid() {
    serial=$((serial + 1))
    local to=$dir/identity/..$serial
    mkdir -p "$to"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj / -keyout "$to/key.pem" \
        -out "$to/request.pem" 2>/dev/null
    cat >"$to/extensions" <<OPENSSL
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectAltName = critical,URI:spiffe://example.org/doorward/webhook,IP:127.0.0.1
OPENSSL
    openssl x509 -req -in "$to/request.pem" -CA "$pki/$1.pem" -CAkey "$pki/$1.key" -set_serial "$serial" -days 1 \
        -extfile "$to/extensions" -out "$to/cert.pem" 2>/dev/null
    cp "$dir/bundle.pem" "$to/bundle.pem"
    ln -sfn "..$serial" "$dir/identity/..next"
    mv -T "$dir/identity/..next" "$dir/identity/..data"
}
root first
cp "$pki/first.pem" "$dir/bundle.pem"
svid first
for file in cert key bundle; do ln -s "..data/$file.pem" "$dir/identity/$file.pem"; done

# The webhook's own account may read and patch one object.
configuration=tried.doorward.dev
kubectl create namespace doorward >/dev/null
kubectl --namespace doorward create serviceaccount webhook >/dev/null
kubectl create clusterrole webhook --verb=get,patch --resource=mutatingwebhookconfigurations \
    --resource-name="$configuration" >/dev/null
kubectl create clusterrolebinding webhook --clusterrole=webhook --serviceaccount=doorward:webhook >/dev/null
mkdir "$dir/account"
kubectl --namespace doorward create token webhook >"$dir/account/token"
cp "$pki/api/apiserver.crt" "$dir/account/ca.crt"

cat >"$dir/inject.yaml" <<YAML
image: registry.example.org/doorward:1
intercept_image: registry.example.org/doorward-intercept:1
policy: ledger-policy
webhook:
  listen: 127.0.0.1:$reviews
  metrics: { listen: '127.0.0.1:$probes' }
  identity:
    files: { cert: $dir/identity/cert.pem, key: $dir/identity/key.pem, bundle: $dir/identity/bundle.pem }
  service_account: $dir/account
  leave_after: 100ms
YAML
# One for namespaces that want it, as the chart has it. No `caBundle`: that is the webhook's to publish.
cat >"$dir/configuration.yaml" <<YAML
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: { name: $configuration }
webhooks:
  - name: namespaces.inject.doorward.dev
    admissionReviewVersions: [v1]
    clientConfig: { url: 'https://127.0.0.1:$reviews/mutate' }
    failurePolicy: Fail
    reinvocationPolicy: IfNeeded
    sideEffects: None
    timeoutSeconds: 10
    namespaceSelector: { matchLabels: { doorward.dev/inject: enabled } }
    rules:
      - { operations: [CREATE], apiGroups: [''], apiVersions: [v1], resources: [pods], scope: Namespaced }
YAML
kubectl create --filename "$dir/configuration.yaml" >/dev/null

start_webhook() {
    start webhook env KUBERNETES_SERVICE_HOST=127.0.0.1 KUBERNETES_SERVICE_PORT="$api" \
        "$doorward" inject --webhook --config "$dir/inject.yaml" --publish-bundle "$configuration"
}
roots() {
    kubectl get mutatingwebhookconfiguration "$configuration" --output 'jsonpath={.webhooks[0].clientConfig.caBundle}' |
        base64 --decode
}
published() { [[ $(roots) == "$(cat "$dir/bundle.pem")" ]]; }
start_webhook
await 20 "the webhook is ready" ready "$probes"
published || fail "ready, but its bundle is not published"
step kubernetes "the webhook is ready after $took ms, its bundle published by an account that may do nothing else"

for namespace in bank elsewhere; do
    kubectl create namespace "$namespace" >/dev/null
    kubectl --namespace "$namespace" create serviceaccount ledger >/dev/null
done
kubectl label namespace bank doorward.dev/inject=enabled >/dev/null

# pod NAME [ANNOTATION...]: a pod's manifest. `spec` adds to it.
pod() {
    local annotation name=$1
    shift
    cat <<YAML
apiVersion: v1
kind: Pod
metadata:
  name: $name
  annotations:
    example.org/kept: 'yes'
$(for annotation; do echo "    $annotation"; done)
spec:
  serviceAccountName: ledger
  automountServiceAccountToken: false
  ${spec:-}
  containers:
    - name: app
      image: registry.example.org/ledger:1
      ports: [{ containerPort: 8080 }]
      readinessProbe: { httpGet: { path: /ready, port: 8080 } }
YAML
}
admit() { kubectl create --filename - --output yaml "$@" 2>"$dir/warnings.log"; }
sidecars() { kubectl --namespace bank get pod "$1" --output 'jsonpath={.spec.initContainers[?(@.name=="doorward")].restartPolicy}'; }
reviews_so_far() { metric "$probes" doorward_webhook_reviews_total; }

# The API server learns of the configuration a moment after it is written.
injects() { pod probe 'doorward.dev/port: "8080"' | admit --namespace bank --dry-run=server 2>/dev/null | grep -q registry.example.org/doorward:1; }
await 10 "the API server asks" injects

pod ledger 'doorward.dev/port: "8080"' >"$dir/ledger.yaml"
admit --namespace bank <"$dir/ledger.yaml" >"$dir/ledger.admitted" || fail "not admitted: $(cat "$dir/warnings.log")"
[[ $(sidecars ledger) == Always ]] || fail "no sidecar: $(cat "$dir/ledger.admitted")"
grep -q "example.org/kept: \"yes\"" "$dir/ledger.admitted" || fail "an annotation is lost"
step kubernetes "a pod is injected, with a native sidecar"

# What it is, without who and when; nor what an injection found there: the API server has written defaults by then.
content() {
    sed -E '/^status:/,$d; /^  (creationTimestamp|resourceVersion|uid): /d; /^    doorward.dev\/injected: /d' "$1"
}
kubectl --namespace bank delete --now pod ledger >/dev/null 2>&1
"$doorward" inject --config "$dir/inject.yaml" "$dir/ledger.yaml" >"$dir/injected.yaml" 2>"$dir/inject.log" || fail "inject"
admit --namespace bank <"$dir/injected.yaml" >"$dir/twice.admitted" || fail "not admitted: $(cat "$dir/warnings.log")"
diff <(content "$dir/ledger.admitted") <(content "$dir/twice.admitted") >"$dir/diff.log" ||
    fail "a pod injected by hand comes to be another than one that the webhook injects"
step kubernetes "a manifest that is injected already comes to be the same pod"

# As if another webhook had been asked in between.
mirrored() { sed -E '/^ *(- )?image: /s|registry.example.org/doorward|mirror.example.org/doorward|' "$1"; }
kubectl --namespace bank delete --now pod ledger >/dev/null 2>&1
admit --namespace bank < <(mirrored "$dir/injected.yaml") >"$dir/mirrored.admitted" || fail "not admitted: $(cat "$dir/warnings.log")"
mirrored "$dir/ledger.admitted" >"$dir/mirrored.expected"
grep -q mirror.example.org/doorward-intercept "$dir/mirrored.expected" || fail "no image was led elsewhere"
diff <(content "$dir/mirrored.expected") <(content "$dir/mirrored.admitted") >"$dir/diff.log" ||
    fail "images that others led elsewhere are led back"
step kubernetes "images that others led elsewhere since stay there"

pod optedout 'doorward.dev/port: "8080"' 'doorward.dev/inject: disabled' | admit --namespace bank >"$dir/optedout"
[[ -z $(sidecars optedout) && ! -s $dir/warnings.log ]] || fail "injected or warned of, though it opted out"
spec='hostNetwork: true' pod onnode 'doorward.dev/port: "8080"' | admit --namespace bank >"$dir/onnode"
[[ -z $(sidecars onnode) ]] || fail "injected, though its network is the node's"
grep -q "Warning: doorward: this pod gets no sidecar: .*hostNetwork" "$dir/warnings.log" ||
    fail "whoever made it is not warned: $(cat "$dir/warnings.log")"
step kubernetes "who opted out and who has the node's network are left alone, the latter with a warning"

if pod wrong 'doorward.dev/prot: "8080"' | admit --namespace bank >"$dir/wrong"; then fail "a mistake was admitted"; fi
grep -q 'denied the request: doorward: .*doorward.dev/prot' "$dir/warnings.log" ||
    fail "the refusal does not say why: $(cat "$dir/warnings.log")"
step kubernetes "a mistake is refused: $(sed 's/.*denied the request: //' "$dir/warnings.log" | head -n 1 | cut -c 1-120)"

before=$(reviews_so_far)
pod elsewhere 'doorward.dev/port: "8080"' | admit --namespace elsewhere >"$dir/elsewhere"
! grep -q registry.example.org/doorward "$dir/elsewhere" || fail "injected where nobody wants it"
[[ $(reviews_so_far) == "$before" ]] || fail "asked about a namespace that is not selected"
injects || fail "a dry run shows no sidecar"
! kubectl --namespace bank get pod probe >/dev/null 2>&1 || fail "a dry run made a pod"
step kubernetes "a namespace that is not selected is not asked about; a dry run shows the sidecar and makes nothing"

# Under load: a new certificate, new roots in the way SPIRE rotates them, and somebody who overwrites the bundle.
rotations=doorward_identity_rotations_total
rotated() { local before; before=$(metric "$probes" $rotations); svid "$1"; await 10 "a new certificate is in force" metric_above "$probes" $rotations "$before"; }
# As a Deployment's ReplicaSet makes them.
start_load rotation "https://127.0.0.1:$api/api/v1/namespaces/bank/pods?dryRun=All" kept \
    --post "$here/kubernetes/pod.json" --token administrator --status 201 --holding doorward.dev/injected
for _ in 1 2 3; do rotated first; done
root second
cat "$pki/first.pem" "$pki/second.pem" >"$dir/bundle.pem"
rotated first
await 20 "both roots are published" published
both=$took
rotated second
cp "$pki/second.pem" "$dir/bundle.pem"
rotated second
await 20 "the first root is gone" published
# It hears of new roots when they are published, and connects anew for its next question.
connected_anew() { metric_above "$probes" doorward_handshakes_total 2; }
await 20 "the API server has made a new connection with each change of roots" connected_anew
end_load rotation
step kubernetes "five certificates and another root under load: $asked pods, none failed; a root published after $both ms"

kubectl replace --filename "$dir/configuration.yaml" >/dev/null
await 20 "what somebody took away is there again" published
await 10 "the API server asks" injects
step kubernetes "a bundle that somebody overwrote is there again after $took ms"

finish webhook
if pod closed 'doorward.dev/port: "8080"' | admit --namespace bank >"$dir/closed"; then fail "admitted without the webhook"; fi
grep -q "failed calling webhook" "$dir/warnings.log" || fail "not for that reason: $(cat "$dir/warnings.log")"
start_webhook
await 20 "the webhook is ready" ready "$probes"
await 10 "the API server asks" injects
step kubernetes "without the webhook no pod starts where it is wanted; with it again, it does"

# Every manifest, as it is and injected, in a server-side dry run. What needs another project's definitions is left
# out, and said to be.
#
# documents FILE: each of its documents into a file of its own in a new directory. Sets `into`.
documents() {
    into=$(mktemp -d --tmpdir="$dir")
    awk -v into="$into" '/^---( |$)/ { n++; next } { print > sprintf("%s/%03d.yaml", into, n) }' "$1"
}
taken=0
left_out=()
# take NAME FILE: fails if the API server would not take one of its documents.
take() {
    local document group namespace
    documents "$2"
    # A dry run of a namespace makes none.
    for namespace in $(sed -n 's/^  namespace: *\([a-z0-9-]*\) *$/\1/p' "$into"/* | sort -u); do
        kubectl create namespace "$namespace" >/dev/null 2>&1 || true
    done
    for document in "$into"/*; do
        grep -q '^kind:' "$document" || continue
        group=$(sed -n 's/^apiVersion: //p' "$document" | head -n 1)
        case $group in
            cert-manager.io/* | monitoring.coreos.com/* | spire.spiffe.io/*)
                left_out+=("$(sed -n 's/^kind: //p' "$document" | head -n 1) of $group")
                continue
                ;;
        esac
        kubectl apply --dry-run=server --validate=strict --filename "$document" >"$dir/taken.log" 2>&1 ||
            fail "$1: not taken: $(cat "$dir/taken.log"; head -n 8 "$document")"
        taken=$((taken + 1))
    done
}
root=$(cd -- "$here/../.." && pwd)
readarray -t manifests < <(find "$root/deploy/kubernetes" "$root/deploy/spire" -name '*.yaml' 2>/dev/null | sort |
    xargs --no-run-if-empty grep -l '^kind:' || true)
for manifest in "${manifests[@]}"; do
    name=${manifest#"$root/"}
    take "$name" "$manifest"
    if grep -q '^ *doorward.dev/' "$manifest"; then
        "$doorward" inject --config "$dir/inject.yaml" "$manifest" >"$dir/injected.yaml" 2>"$dir/inject.log" ||
            fail "$name: not injected"
        take "$name, injected" "$dir/injected.yaml"
    fi
done
if [[ -x $cache/bin/helm && -d $root/deploy/helm/doorward ]]; then
    for values in "$here"/helm/values/*.yaml; do
        "$cache/bin/helm" template doorward "$root/deploy/helm/doorward" --namespace doorward --include-crds \
            --values "$values" >"$dir/rendered.yaml" 2>"$dir/helm.log" || fail "$values: not rendered"
        take "the chart with $(basename "$values")" "$dir/rendered.yaml"
    done
else
    echo "skip kubernetes: the chart's manifests: helm.sh builds helm, and there is a chart to render"
fi
if ((taken > 0)); then step kubernetes "$taken objects of deploy/ taken by a server-side dry run"; fi
if ((${#left_out[@]} > 0)); then
    echo "skip kubernetes: no definition here: $(printf '%s\n' "${left_out[@]}" | sort | uniq -c | sed 's/^ *//' | paste -s -d ';' | sed 's/;/; /g')"
fi

for name in webhook api-server; do finish "$name"; done
# It would end by the same signal that it is told to end by.
finish etcd KILL
step kubernetes "everything stops as told"
