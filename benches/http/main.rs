//! Drives the server over loopback, beside other Durable Streams servers if told to: `cargo bench --bench http -- --help`.
//!
//! What it measures and how is in `suite`.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
#[cfg_attr(
    test,
    allow(
        unused_imports,
        dead_code,
        reason = "cargo sets `test` for benches, but the tests are run by tests/bench_http.rs"
    )
)]
mod suite;

#[cfg(target_os = "linux")]
fn main() -> ExitCode {
    suite::main(std::env::args_os(), env!("CARGO_BIN_EXE_durable-streams-server").as_ref())
}

/// The generator waits with epoll and reads what servers take from `/proc`.
#[cfg(not(target_os = "linux"))]
fn main() -> ExitCode {
    eprintln!("this suite needs Linux");
    ExitCode::SUCCESS
}
