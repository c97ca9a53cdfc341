//! Does it hold with real SPIRE? Runs `tests/interop/spire.sh` where SPIRE is there, and says in a word that
//! it does not where it is not. That word is why there is no harness: it would keep it to itself.
//!
//! | `DOORWARD_SPIRE` | |
//! |---|---|
//! | not set | runs if SPIRE has been built before |
//! | `1` | builds it first, which needs Go, gcc and some minutes |
//! | `0` | does not run |

#[path = "interop/suite.rs"]
mod suite;

use std::process::ExitCode;

fn main() -> ExitCode {
    suite::Suite {
        name: "sidecars_live_on_what_spire_gives_them",
        what: "SPIRE",
        script: "spire.sh",
        switch: "DOORWARD_SPIRE",
        there: &["bin/spire.sum"],
        otherwise: "builds it",
    }
    .main()
}
