#!/usr/bin/env bash
# `doorward report` on a real Prometheus server: of three sidecars that it scrapes, and of thirty days of history;
# and its page in a real browser. Every count that it gives is held against what was sent.
#
# Uses Debian's prometheus and chromium, unpacked in the cache. The page's pictures are left in
# $DOORWARD_CACHE/report. DOORWARD_BROWSER=0 goes without the browser.
set -euo pipefail
# shellcheck source=tests/interop/issuer.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/issuer.sh"
# shellcheck source=tests/interop/debian.sh
source "$here/debian.sh"

unpack prometheus alone
PATH=$unpacked/usr/bin:$PATH
version=$(prometheus --version 2>&1 | sed -n 's/^prometheus, version \([^ ]*\) .*/\1/p')
step prometheus "unpacked (Debian's $version)"
promtool check rules "$here/../../deploy/prometheus/"*.yaml >"$dir/rules.log" || fail "the rules of deploy/prometheus"
promtool test rules "$here/prometheus/"*.test.yaml >"$dir/rules.log" 2>&1 || fail "what the rules of deploy/prometheus say"
step prometheus "the rules of deploy/prometheus are sound, and each alert is silent and fires when it should"

ports app gate outbound outbound_helper metrics_invoices metrics_checkout metrics_helper server
url=http://127.0.0.1:$server

# start_server NAME RETENTION <CONFIGURATION: a server on what is in $dir/NAME.
start_server() {
    cat >"$dir/$1.yml"
    start "$1" prometheus --config.file "$dir/$1.yml" --storage.tsdb.path "$dir/$1" \
        --storage.tsdb.retention.time "$2" --web.listen-address "127.0.0.1:$server" --log.level warn
    await 20 "$1 is ready" server_ready
}
server_ready() { [[ $(status "$url/-/ready") == 200 ]]; }

# value QUERY: the value of its first sample.
value() {
    body --data-urlencode "query=$1" "$url/api/v1/query" |
        python3 -c 'import json, sys; r = json.load(sys.stdin)["data"]["result"]; print(r[0]["value"][1] if r else "none")'
}
value_is() { [[ $(value "$1") == "$2" ]]; }

# report CODE ARGUMENT...: the report as JSON in $dir/report.json; its exit code must be CODE.
report() {
    local code=0 wanted=$1
    shift
    "$doorward" report --prometheus "$url" --policy "$dir/policy" --json "$@" \
        >"$dir/report.json" 2>"$dir/report.log" || code=$?
    [[ $code == "$wanted" ]] || fail "the report ended with $code, not $wanted"
}

# check RUN EXPECTED
check() {
    python3 "$here/prometheus/check.py" "$dir/report.json" "$1" "$2" 2>"$dir/check.log" || fail "the report is wrong ($1)"
}

# Sidecars that are scraped each second.
start_issuer "[$(for workload in invoices checkout helper; do
    echo "{ id: /$workload, selectors: { path: $(program "$workload") }, lifetime: 1h }, "
done)]"
start_app "$app"
mkdir -p "$dir/policy"
day() { date -u -d "$1" +%F; }
permit() {
    printf '@id("%s") @owner("payments@example.org") @purpose("A test") @expires("%s") %s\npermit (%s, resource == Service::"invoices");\n' \
        "$1" "$2" "$3" "$4"
}
checkout='principal == Workload::"spiffe://example.org/checkout", action'
{
    permit checkout-reads-invoices "$(day '+100 days')" '@review("2026-01-01")' "$checkout in Action::\"read\""
    permit checkout-deletes "$(day '+100 days')" '@mode("observe")' "$checkout == Action::\"DELETE\""
    permit checkout-soon-writes "$(day '+7 days')" '' "$checkout == Action::\"PUT\""
    permit checkout-ended "$(day '-2 days')" '' "$checkout == Action::\"PATCH\""
    permit nightly-reads-invoices "$(day '+100 days')" '' \
        'principal == Workload::"spiffe://example.org/nightly", action in Action::"read"'
} >"$dir/policy/invoices.cedar"
cat >"$dir/policy/workloads.yaml" <<'YAML'
workloads:
- { id: spiffe://example.org/checkout, owner: shop@example.org, purpose: A test }
- { id: spiffe://example.org/invoices, owner: payments@example.org, purpose: A test }
- { id: spiffe://example.org/nightly, owner: batch@example.org, purpose: A test, kind: job }
YAML
start_invoices() {
    start_sidecar invoices "$metrics_invoices" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
inbound:
- { listen: '127.0.0.1:$gate', service: invoices, app: '127.0.0.1:$app' }
policy: { dir: '$dir/policy' }
YAML
}
start_invoices
for workload in checkout helper; do
    listen=$outbound metrics=$metrics_checkout
    [[ $workload == checkout ]] || { listen=$outbound_helper metrics=$metrics_helper; }
    start_sidecar "$workload" "$metrics" <<YAML
identity: { workload_api: '$SPIFFE_ENDPOINT_SOCKET' }
outbound:
- { listen: '127.0.0.1:$listen', to: '127.0.0.1:$gate', peer: spiffe://example.org/invoices }
YAML
done
start_server scraping 1d <<YAML
global: { scrape_interval: 1s, scrape_timeout: 1s }
scrape_configs:
- job_name: doorward
  static_configs:
  - targets: ['127.0.0.1:$metrics_invoices', '127.0.0.1:$metrics_checkout', '127.0.0.1:$metrics_helper']
YAML
await 20 "three sidecars are scraped" value_is 'count(doorward_build_info)' 3

# The first samples of these counters have the values 7, 3 and 2 already.
decided='sum(doorward_decisions_total)'
for _ in 1 2 3 4 5 6 7; do expect 200 "a grant" "http://127.0.0.1:$outbound/"; done
for _ in 1 2 3; do expect 403 "a dry run" -X DELETE "http://127.0.0.1:$outbound/"; done
for _ in 1 2; do expect 403 "no grant" "http://127.0.0.1:$outbound_helper/"; done
await 20 "what was asked is scraped" value_is "$decided" 12
finish invoices
start_invoices
for _ in 1 2 3 4; do expect 200 "a grant, after a restart" "http://127.0.0.1:$outbound/"; done
for _ in 1 2; do expect 200 "with a password" -u user:password "http://127.0.0.1:$outbound/"; done
await 20 "what was asked after the restart is scraped" value_is "$decided" 6
finish helper
await 20 "the sidecar that stopped is missed" value_is 'count(up == 0)' 1
report 1 --since 10m
check live "{\"allowed\": 13, \"denied\": 3, \"helper\": 2, \"requests\": 13, \"secrets\": 2}"
step prometheus "of three scraped sidecars: 18 requests, a restart, counts exact, what is unused, dormant, due or down"

# What a counter begins with is no increase.
for round in 1 2; do
    expect 403 "a dry run" -X DELETE "http://127.0.0.1:$outbound/"
    expect 200 "with a password" -u user:password "http://127.0.0.1:$outbound/"
    await 20 "round $round is scraped" value_is 'sum(doorward_decisions_total{decision="denied"})' "$round"
done
answered=$(python3 "$here/prometheus/dashboard.py" "$url" "$here/../../deploy/grafana/doorward.json" 2>"$dir/dashboard.log") ||
    fail "the dashboard of deploy/grafana"
step prometheus "the dashboard of deploy/grafana: $answered"

report 2 --since 10m --match 'job="another"'
grep -q 'has no sample of any sidecar' "$dir/report.log" || fail "a fleet that is not there"
report 2 --since 10m --match 'job='
grep -q "no answer from $url/api/v1/.*bad_data.*parse error" "$dir/report.log" || fail "a question that makes no sense"
for name in scraping checkout invoices; do finish "$name"; done
stop_issuer prometheus

# A history. Its end is in the past: what Prometheus is given must not be of the future.
grant() {
    printf '@id("%s") @owner("%s@example.org") @purpose("A test") @expires("2099-01-01") %s\npermit (principal == Workload::"spiffe://example.org/%s", action, resource == Service::"%s");\n' "$@"
}
{
    grant checkout-reads-invoices payments '' checkout invoices
    grant helper-reads-invoices support '' helper invoices
    grant checkout-posts-ledger payments '@review("2026-01-01") @ticket("PAY-7")' checkout ledger
    grant nightly-reads-ledger ledger '' nightly ledger
    grant nightly-reads-archive ledger '' nightly archive
    echo '@id("no-deletes") @mode("observe") forbid (principal, action == Action::"DELETE", resource);'
} >"$dir/policy/invoices.cedar"
cat >>"$dir/policy/workloads.yaml" <<'YAML'
- { id: spiffe://example.org/ledger, owner: ledger@example.org, purpose: A test }
YAML
end=$(($(date +%s) / 60 * 60 - 60))
at=$(date -u -d "@$end" +%FT%TZ)
# backfill NAME LENGTH EVERY gaps|whole
backfill() {
    expected=$(python3 "$here/prometheus/history.py" "$end" "$2" "$3" "$4" "$dir/$1.om")
    promtool tsdb create-blocks-from --max-block-duration 2000h openmetrics "$dir/$1.om" "$dir/$1" >"$dir/promtool.log" 2>&1 ||
        fail "promtool does not take the history"
    start_server "$1" 400d <<<'global: { scrape_interval: 1h }'
}
backfill month $((30 * 86400)) 300 gaps
report 1 --since 30d --at "$at"
check gaps "$expected"
step prometheus "of thirty days with three restarts and three days unseen: counts exact, coverage told"

# The page of it, in a browser that finds no other host.
kept=$cache/report
if [[ ${DOORWARD_BROWSER:-1} != 0 ]]; then
    unpack chromium
    libraries=$(find "$unpacked/usr/lib" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
    mkdir -p "$kept"
    # browse NAME ARGUMENT...: shows the page; what it prints is in $dir/NAME.out, its console in NAME.err.
    browse() {
        local name=$1
        shift
        LD_LIBRARY_PATH=$libraries timeout 120 "$unpacked/usr/lib/chromium/chromium" --headless --no-sandbox \
            --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update \
            --disable-sync --disable-extensions --disable-default-apps --host-resolver-rules='MAP * ~NOTFOUND' \
            --user-data-dir="$dir/profile-$name" --enable-logging=stderr --hide-scrollbars --window-size=1000,3600 \
            --log-net-log="$dir/$name.net" "$@" "file://$dir/page.html" >"$dir/$name.out" 2>"$dir/$name.err" ||
            fail "the browser ends with $?: $(tail -n 5 "$dir/$name.err")"
        ! grep -q CONSOLE "$dir/$name.err" || fail "the page's console: $(grep CONSOLE "$dir/$name.err")"
    }
    code=0
    "$doorward" report --prometheus "$url" --policy "$dir/policy" --since 30d --at "$at" --html "$dir/page.html" \
        2>"$dir/report.log" || code=$?
    [[ $code == 1 ]] || fail "the report ended with $code"
    browse dom --dump-dom
    check page "{\"dom\": \"$dir/dom.out\", \"net\": \"$dir/dom.net\"}"
    step page "rendered in Chromium: every figure of the JSON is on it, nothing runs, nothing is fetched"
    for scheme in dark light; do
        number=$([[ $scheme == dark ]] && echo 0 || echo 1)
        browse "$scheme" --blink-settings=preferredColorScheme="$number" --screenshot="$kept/$scheme.png"
        check "$scheme" "{\"picture\": \"$kept/$scheme.png\"}"
    done
    browse print --print-to-pdf="$kept/page.pdf" --no-pdf-header-footer
    cp -- "$dir/page.html" "$kept/page.html"
    step page "dark and light as the reader wants it; pictures are in $kept"
fi
finish month

# An hour, as it is sampled by default.
backfill hour 3600 15 whole
report 1 --since 1h --at "$at"
check whole "$expected"
step prometheus "of an hour sampled every 15 s: counts exact"
"$doorward" report --prometheus "$url" --policy "$dir/policy" --since 1h --at "$at" >"$dir/hour.txt" 2>&1 || true
mkdir -p "$kept"
cp -- "$dir/hour.txt" "$kept/hour.txt"
finish hour
