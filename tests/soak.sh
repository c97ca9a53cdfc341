#!/usr/bin/env bash
# Minutes of mixed load (the argument; 5 if there is none) with a new certificate every second, while grants are
# given and withdrawn, the applications are killed and come back, and a sidecar is drained and started again:
# tests/e2e/soak.rs says what is held to be true. Ends with the figures, or with what no fault explains.
#
# DOORWARD names the binary, if it is not to be the debug build: one that cargo built with --release, say.
set -euo pipefail
if [[ -n ${DOORWARD:-} ]]; then
    DOORWARD=$(realpath -- "$DOORWARD")
    export DOORWARD
fi
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

DOORWARD_SOAK_MINUTES=${1:-5} cargo test --locked --test e2e -- --ignored --exact soak::soak --nocapture
