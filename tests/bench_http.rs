//! The parts of the benches suite, and that it gets along with the server. The figures of a debug build mean nothing.

#![cfg(target_os = "linux")]

#[path = "../benches/http/suite/mod.rs"]
mod suite;

const SERVER: &str = env!("CARGO_BIN_EXE_durable-streams-server");

#[test]
fn without_the_word_of_cargo_bench_nothing_is_measured() {
    let code = suite::main(["http".into()], SERVER.as_ref());
    assert_eq!(format!("{code:?}"), format!("{:?}", std::process::ExitCode::SUCCESS));
}

#[test]
fn the_suite_drives_the_server_and_sees_every_message_once() {
    let workloads =
        "append,create-c16,get-1kB-c16,catch-up-16MiB-json-c2,long-poll,sse,fan-out-10x20-at-500,mixed";
    let line = ["--quick", "--modes", "acid", "--shards", "2", "--workloads", workloads];
    let errors = suite::tests::errors_of(SERVER.as_ref(), &line);
    assert_eq!(errors, [""; 0]);
}
