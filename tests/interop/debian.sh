# Sourced by the scripts beside it: Debian's programs, without installing them.

# unpack PACKAGE [alone]: the package is unpacked in the cache, and what it needs and is not installed, unless
# alone. Sets `unpacked` to where its files are.
unpack() {
    local package=$1 simulated fetched=$cache/debian/$1.fetched
    unpacked=$cache/debian/$package
    [[ -e $unpacked/complete ]] && return
    command -v apt-get >/dev/null && command -v dpkg >/dev/null ||
        { echo "this needs Debian's $package: no apt-get here" >&2; exit 2; }
    rm -rf -- "$unpacked" "$fetched"
    mkdir -p "$unpacked" "$fetched"
    simulate() { apt-get install --simulate --no-install-recommends "$package" 2>/dev/null; }
    if ! simulated=$(simulate); then
        { [[ $(id -u) == 0 ]] && apt-get update >/dev/null && simulated=$(simulate); } ||
            { echo "Debian's $package cannot be found: run \`apt-get update\` as root first" >&2; exit 2; }
    fi
    # What is installed here for other reasons is not fetched twice, except the package itself.
    local -a names=("$package")
    if [[ ${2:-} != alone ]]; then
        readarray -t names < <(printf '%s\n' "$package"; awk '/^Inst/ { print $2 }' <<<"$simulated")
    fi
    (cd -- "$fetched" && printf '%s\n' "${names[@]}" | sort -u | xargs apt-get download >/dev/null 2>&1) ||
        { echo "Debian's $package cannot be fetched" >&2; exit 2; }
    local archive
    for archive in "$fetched"/*.deb; do dpkg -x "$archive" "$unpacked"; done
    rm -rf -- "$fetched"
    touch "$unpacked/complete"
}
