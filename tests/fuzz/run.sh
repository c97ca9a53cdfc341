#!/usr/bin/env bash
# Fuzzes a target: tests/fuzz/run.sh TARGET [options of libFuzzer, such as -max_total_time=600]. Needs neither
# a nightly compiler nor cargo-fuzz: what measures the coverage is in rustc's LLVM. There is no unsafe code
# here for a sanitizer to look into.
#
# What is found goes to target/found; `tests/fuzz/run.sh TARGET -merge=1` puts in corpus/TARGET whatever of it
# reaches something new.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

target=$1
shift
coverage=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
)
# Naming the platform keeps the flags from build scripts and macros.
platform=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="--cfg fuzzing ${coverage[*]}" cargo build --locked --release --target "$platform" --bin "$target"
mkdir -p "corpus/$target" "target/found/$target" artifacts
folders=("target/found/$target" "corpus/$target")
if [[ " $* " == *" -merge=1 "* ]]; then
    folders=("corpus/$target" "target/found/$target")
fi
exec "target/$platform/release/$target" -artifact_prefix="artifacts/$target-" "$@" "${folders[@]}"
