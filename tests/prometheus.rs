//! Does `doorward report` say what a real Prometheus server knows? Runs `tests/interop/prometheus.sh` where
//! Debian's packages are there, and says in a word that it does not where they are not. That word is why there
//! is no harness: it would keep it to itself.
//!
//! | `DOORWARD_PROMETHEUS` | |
//! |---|---|
//! | not set | runs if the packages have been unpacked before |
//! | `1` | unpacks them first, which needs `apt-get` |
//! | `0` | does not run |

#[path = "interop/suite.rs"]
mod suite;

use std::process::ExitCode;

fn main() -> ExitCode {
    suite::Suite {
        name: "the_report_says_what_prometheus_knows",
        what: "Prometheus",
        script: "prometheus.sh",
        switch: "DOORWARD_PROMETHEUS",
        there: &["debian/prometheus/complete", "debian/chromium/complete"],
        otherwise: "unpacks it",
    }
    .main()
}
