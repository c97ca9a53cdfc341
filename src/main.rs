//! Exit codes; nothing else.

use std::process::ExitCode;

/// Gives memory back after connections close, which glibc's allocator does not.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    doorward::cli::main()
}
