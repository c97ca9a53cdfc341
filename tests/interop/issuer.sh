# Sourced by the scripts beside it: an issuer of their own, for as long as they run.

# shellcheck source=tests/interop/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

socket=$dir/issuer.sock
export SPIFFE_ENDPOINT_SOCKET=unix://$socket

# write_entries ENTRIES: the issuer's configuration, with these registration entries.
write_entries() {
    printf 'trust_domain: example.org\nsocket: %s\nca: { file: %s }\nentries: %s\n' \
        "$socket" "$dir/ca.pem" "$1" >"$dir/issuer.yaml"
}

# start_issuer [ENTRIES]: by default one entry, for whoever runs as we do.
start_issuer() {
    local entries="[{ id: /client, selectors: { uid: $(id -u) }, lifetime: 4s, hint: interop }]"
    write_entries "${1:-$entries}"
    start issuer "$doorward" issuer --config "$dir/issuer.yaml"
    await 10 "the issuer's socket appears" test -S "$socket"
}

# reload_entries ENTRIES: puts other entries in force.
reload_entries() {
    write_entries "$1"
    kill -HUP "${running[issuer]}"
}

# Ends the issuer as an operator would.
stop_issuer() {
    finish issuer
    [[ ! -e $socket ]] || fail "the issuer left its socket behind"
    step "$1" "the issuer stops and removes its socket"
}
