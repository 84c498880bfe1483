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
    let workloads = "append-c16-s64-1kB-json-producers,create,get,catch-up-16MiB-json-c2,long-poll,sse,fan-out,idle-sse,mixed";
    let line = ["--quick", "--modes", "acid", "--shards", "2", "--workloads", workloads];
    assert_eq!(suite::tests::errors_of(SERVER.as_ref(), &line), [""; 0]);
}

#[test]
fn servers_of_every_mode_are_started_and_those_with_files_restarted() {
    let workloads = ["--workloads", "append-c1-s1-100B,head"];
    let line = [&["--quick", "--modes", "memory,file-fast", "--shards", "1"][..], &workloads].concat();
    assert_eq!(suite::tests::errors_of(SERVER.as_ref(), &line), [""; 0]);
    let sizes = ["--workloads", "growth,many-streams", "--growth", "0.01,0.02", "--many-streams", "500"];
    let line = [&["--quick", "--modes", "file-durable", "--shards", "2"][..], &sizes].concat();
    assert_eq!(suite::tests::errors_of(SERVER.as_ref(), &line), [""; 0]);
}
