# Sourced by the scripts beside it: an issuer of their own, for as long as they run.
#
#   DOORWARD         the doorward binary (or the script's first argument)
#   DOORWARD_CACHE   where downloads and builds are kept, target/interop by default

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
cache=${DOORWARD_CACHE:-$here/../../target/interop}
mkdir -p "$cache"
cache=$(cd -- "$cache" && pwd)

doorward=${1:-${DOORWARD:-$here/../../target/debug/doorward}}
[[ -x $doorward ]] || { echo "no doorward binary at $doorward: give its path" >&2; exit 2; }
doorward=$(realpath -- "$doorward")

dir=$(mktemp -d)
socket=$dir/issuer.sock
export SPIFFE_ENDPOINT_SOCKET=unix://$socket
issuer=

step() { echo "ok   $1: $2"; }
fail() {
    echo "FAIL $1" >&2
    if [[ -f $dir/issuer.log ]]; then sed 's/^/     issuer: /' "$dir/issuer.log" >&2; fi
    exit 1
}

cleanup() {
    if [[ -n $issuer ]]; then
        kill -KILL "$issuer" 2>/dev/null || true
        wait "$issuer" 2>/dev/null || true
    fi
    rm -rf -- "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# write_entries ENTRIES: the issuer's configuration, with these registration entries.
write_entries() {
    printf 'trust_domain: example.org\nsocket: %s\nentries: %s\n' "$socket" "$1" >"$dir/issuer.yaml"
}

start_issuer() {
    write_entries "[{ id: /client, selectors: { uid: $(id -u) }, lifetime: 4s, hint: interop }]"
    "$doorward" issuer --config "$dir/issuer.yaml" >"$dir/issuer.log" 2>&1 &
    issuer=$!
    for _ in $(seq 100); do
        [[ -S $socket ]] && return
        kill -0 "$issuer" 2>/dev/null || fail "the issuer did not start"
        sleep 0.1
    done
    fail "the issuer's socket did not appear"
}

# reload_entries ENTRIES: puts other entries in force.
reload_entries() {
    write_entries "$1"
    kill -HUP "$issuer"
}

# Ends the issuer as an operator would.
stop_issuer() {
    kill -TERM "$issuer"
    wait "$issuer" || fail "the issuer did not exit with 0"
    issuer=
    [[ ! -e $socket ]] || fail "the issuer left its socket behind"
    step "$1" "the issuer stops and removes its socket"
}
