//! The server's binary.

use std::process::ExitCode;

// Many small buffers are allocated on one core thread and freed on another; the system's allocator keeps a high-water
// mark per thread, mimalloc gives it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    durable_streams_server::cli::run()
}
