#!/usr/bin/env bash
# What `doorward check --symbolic` proves with a real solver, and that nothing is claimed without one:
#   bash tests/interop/cvc5.sh [path of doorward]
#
# Fetches Debian's cvc5 (apt-get) and unpacks it in the cache; installs nothing.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
. "$here/debian.sh"

unpack cvc5
solver=$dir/cvc5
libraries=$(find "$unpacked" -name '*.so*' -printf '%h\n' | sort -u | paste -sd:)
cat >"$solver" <<SH
#!/bin/sh
LD_LIBRARY_PATH='$libraries' exec '$unpacked/usr/bin/cvc5' "\$@"
SH
chmod +x "$solver"
"$solver" --version >/dev/null || fail "the solver does not start"
step "solver" "$("$solver" --version | head -n 1)"

# grant NAME CONDITION...: a file with a grant for each condition, the same otherwise.
grant() {
    local name=$1 condition number=0
    shift
    mkdir -p "$dir/$name"
    for condition; do
        number=$((number + 1))
        cat <<CEDAR
@id("$name-$number")
@owner("payments@example.org")
@purpose("A test")
@expires("2026-12-31")
permit (
  principal == Workload::"spiffe://example.org/checkout",
  action in Action::"read",
  resource == Service::"invoices"
)
when { $condition };
CEDAR
    done >"$dir/$name/grants.cedar"
}

# check NAME ARGUMENT...: the codes that are found, and the exit code.
check() {
    local name=$1 status=0
    shift
    CVC5=$solver "$doorward" check --policy "$dir/$name" --at 2026-06-01T00:00:00Z --deny all --json "$@" \
        >"$dir/$name.json" 2>"$dir/check.log" || status=$?
    python3 -c 'import json, sys; print(*sorted({one["code"] for one in json.load(open(sys.argv[1]))}), sys.argv[2])' \
        "$dir/$name.json" "$status"
}

grant shadowed 'context.source.ip.isInRange(ip("10.0.0.0/8"))' \
    'context.source.ip.isInRange(ip("10.1.0.0/16")) && context.http.path like "/v1/*"'
grant never 'context.now < datetime("2026-03-01") && context.now > datetime("2026-04-01")'
grant duplicate 'context.port > 5 && context.port < 7' 'context.port == 6'
grant sound 'context.source.ip.isInRange(ip("10.0.0.0/8"))' 'context.source.ip.isInRange(ip("192.168.0.0/16"))'

# A line each: the directory, what is found with the solver and without, each with the exit code.
while IFS='|' read -r name proved obvious; do
    found=$(check "$name" --symbolic)
    [[ $found == "$proved" ]] || fail "$name: expected $proved, but the check says $found"
    found=$(check "$name")
    [[ $found == "$obvious" ]] || fail "$name: without the solver, expected $obvious, but the check says $found"
done <<'CASES'
shadowed|shadowed 1|0
never|never-matches 1|0
duplicate|duplicate 1|shadowed 1
sound|0|0
CASES
step "proved" "a shadowed grant, one that never matches, two that say the same; nothing of two that are sound"

status=0
CVC5=$dir/none "$doorward" check --policy "$dir/sound" --symbolic >"$dir/check.log" 2>&1 || status=$?
[[ $status == 2 ]] && grep -q cvc5 "$dir/check.log" || fail "without a solver, \`--symbolic\` must say so"
step "without" "a solver that is not there is told, and nothing is called sound"
