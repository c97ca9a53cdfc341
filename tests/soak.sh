#!/usr/bin/env bash
# A new certificate every second for minutes (the argument; 5 if there is none) on both sides of 64
# connections that are never idle: HTTP/1.1, HTTP/2, TCP and one gRPC stream. Ends with a line of figures, or
# with the first failures.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

DOORWARD_SOAK_MINUTES=${1:-5} cargo test --locked --test e2e -- --ignored --exact rotation::soak --nocapture
