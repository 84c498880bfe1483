//! The server's binary.

use std::process::ExitCode;

// Many small buffers are allocated on one core thread and freed on another; the system's allocator keeps a high-water
// mark per thread, mimalloc gives it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // The allocator asks for huge pages. Buffers of a megabyte come and go here, and clearing two megabytes for each took
    // half of the CPU of large appends.
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
    durable_streams_server::cli::run()
}
