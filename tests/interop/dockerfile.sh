#!/usr/bin/env bash
# The images of deploy/Dockerfile, where there is no Docker: BuildKit's own checks, what it makes of the images'
# configuration, and whether a build is given all that it needs.
set -euo pipefail
# shellcheck source=tests/interop/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
root=$(cd -- "$here/../.." && pwd)
file=$root/deploy/Dockerfile

(cd -- "$here/dockerfile" && go build -mod=readonly -buildvcs=false -o "$cache/bin/dockerfile" .)
"$cache/bin/dockerfile" "$file" >"$dir/dockerfile.log" 2>&1 || fail "BuildKit has something to say about $file"
while read -r told; do step Dockerfile "$told"; done <"$dir/dockerfile.log"
for change in 's/AS build/as build/' 's/^USER 2102:2102/USER 0:0/' 's/^FROM scratch/FROM debian/'; do
    sed "$change" "$file" >"$dir/changed"
    cmp -s "$file" "$dir/changed" && fail "nothing to change by $change"
    "$cache/bin/dockerfile" "$dir/changed" >"$dir/dockerfile.log" 2>&1 && fail "not seen: $change"
done
step Dockerfile "what is wrong on purpose is seen"

# What a build is given must be enough for it: cargo looks for whatever Cargo.toml names.
context=$dir/context
(cd -- "$root" && sed -n 's/^!//p' deploy/Dockerfile.dockerignore | while read -r kept; do
    # shellcheck disable=SC2086
    for path in $kept; do
        mkdir -p "$context/$(dirname "$path")"
        cp -r "$path" "$context/$(dirname "$path")/"
    done
done)
cargo metadata --offline --locked --no-deps --format-version 1 --manifest-path "$context/Cargo.toml" \
    >/dev/null 2>"$dir/metadata.log" || fail "what Dockerfile.dockerignore leaves is not enough for cargo"
step Dockerfile "its context is enough for cargo: $(du -sh "$context" | cut -f 1)"
