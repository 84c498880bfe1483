//! The public conformance suite against the real binary: every test of the base protocol, in every storage mode that
//! exists, with one, two and five shards.
//!
//! The suite's expiry tests tolerate about half a second, so the runs take turns instead of sharing the processor; and where one
//! fails all the same, it is run again with nothing but the others that did.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use support::ServerProcess;
use support::tls::write_certificate;
use tempfile::TempDir;

/// Tests of suite 0.3.6 without its six for subscriptions.
const TESTS_OF_THE_BASE_PROTOCOL: u64 = 332;

/// How the names of tests begin whose outcome is chance if the processor is elsewhere for half a second.
const TIMED: [&str; 2] = ["TTL Expiration Behavior ", "Fork - TTL and Expiry "];

/// How often such a test is run at most.
const ATTEMPTS: usize = 5;

static TURN: Mutex<()> = Mutex::new(());

#[test]
fn memory_mode_with_1_shard_passes_the_public_suite() {
    plain("memory", 1);
}

#[test]
fn memory_mode_with_2_shards_passes_the_public_suite() {
    plain("memory", 2);
}

#[test]
fn memory_mode_with_5_shards_passes_the_public_suite() {
    plain("memory", 5);
}

#[test]
fn acid_mode_with_1_shard_passes_the_public_suite() {
    plain("acid", 1);
}

#[test]
fn acid_mode_with_2_shards_passes_the_public_suite() {
    plain("acid", 2);
}

#[test]
fn acid_mode_with_5_shards_passes_the_public_suite() {
    plain("acid", 5);
}

#[test]
fn file_fast_mode_with_2_shards_passes_the_public_suite() {
    plain("file-fast", 2);
}

#[test]
fn file_durable_mode_with_1_shard_passes_the_public_suite() {
    plain("file-durable", 1);
}

#[test]
fn file_durable_mode_with_5_shards_passes_the_public_suite() {
    plain("file-durable", 5);
}

#[test]
fn https_passes_the_public_suite() {
    let _turn = take_turn();
    let directory = TempDir::new().expect("a temporary directory can be made");
    let files = write_certificate(directory.path());
    let certificate = support::path_text(&files.certificate);
    let key = support::path_text(&files.key);
    let mut environment = environment("memory", "2");
    environment.extend([("DS_TLS__CERT_PATH", certificate.as_str()), ("DS_TLS__KEY_PATH", key.as_str())]);
    let server = ServerProcess::start(&environment);
    assert!(server.url().starts_with("https://127.0.0.1:"), "{}", server.url());
    passes_the_public_suite(&server, &[("NODE_EXTRA_CA_CERTS", &certificate)]);
}

fn plain(mode: &str, shards: usize) {
    let _turn = take_turn();
    let server = ServerProcess::start(&environment(mode, &shards.to_string()));
    passes_the_public_suite(&server, &[]);
}

/// A run that failed poisons the lock but says nothing about the next one.
fn take_turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn environment<'a>(mode: &'a str, shards: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("DS_STORAGE__MODE", mode),
        ("DS_STORAGE__ACID_SHARD_COUNT", shards),
        // Two tests wait for a real timeout and allow five seconds for it.
        ("DS_SERVER__LONG_POLL_TIMEOUT_SECS", "1.5"),
    ]
}

fn passes_the_public_suite(server: &ServerProcess, environment: &[(&str, &str)]) {
    let suite = suite_directory();
    install(&suite);
    let report = report_of(&suite, server, environment, None);
    let mut failures = failures_in(&report);
    let all = tests_run(&report);
    for _ in 1..ATTEMPTS {
        if failures.is_empty() || !failures.iter().all(Failure::is_of_timed_test) {
            break;
        }
        eprintln!("again, as the processor may have been elsewhere:\n{}", texts_of(&failures));
        let names: Vec<String> = failures.iter().map(Failure::pattern).collect();
        let report = report_of(&suite, server, environment, Some(&names.join("|")));
        assert!(tests_run(&report) >= names.len() as u64, "there are no tests {names:?}");
        failures = failures_in(&report);
    }
    assert!(failures.is_empty(), "{} failed of {all}:\n{}", failures.len(), texts_of(&failures));
    assert_eq!(all, TESTS_OF_THE_BASE_PROTOCOL);
}

/// Runs all tests, or those whose names match a regular expression, and returns what the runner says of them.
fn report_of(
    suite: &Path,
    server: &ServerProcess,
    environment: &[(&str, &str)],
    pattern: Option<&str>,
) -> Value {
    let report_directory = TempDir::new().expect("a temporary directory can be made");
    let report_path = report_directory.path().join("report.json");
    let mut command = Command::new("node");
    command
        .current_dir(suite)
        .arg(Path::new("node_modules").join("vitest").join("vitest.mjs"))
        .args(["run", "--no-coverage", "--reporter=json"])
        .arg(format!("--outputFile={}", report_path.display()))
        .args(pattern.map(|pattern| format!("--testNamePattern={pattern}")))
        .env("CONFORMANCE_TEST_URL", server.url())
        .env("CONFORMANCE_SUBSCRIPTIONS", "0")
        .envs(environment.iter().copied());
    let output = run(&mut command);
    let report = fs::read(&report_path)
        .unwrap_or_else(|error| panic!("the suite left no report ({error}):\n{}", text_of(&output)));
    serde_json::from_slice(&report)
        .unwrap_or_else(|error| panic!("the report is no JSON ({error}):\n{}", text_of(&output)))
}

fn tests_run(report: &Value) -> u64 {
    let count = |name: &str| report[name].as_u64().expect("the report counts tests");
    count("numPassedTests") + count("numFailedTests")
}

/// A test that ran and did not pass, or a file that could not run.
struct Failure {
    name: String,
    reason: String,
}

impl Failure {
    fn is_of_timed_test(&self) -> bool {
        TIMED.iter().any(|begin| self.name.starts_with(begin))
    }

    /// A regular expression for the name.
    fn pattern(&self) -> String {
        let escaped =
            |c: char| if c.is_alphanumeric() || c == ' ' { format!("{c}") } else { format!("\\{c}") };
        self.name.chars().map(escaped).collect()
    }
}

fn texts_of(failures: &[Failure]) -> String {
    failures.iter().map(|Failure { name, reason }| format!("- {name}\n    {reason}\n")).collect()
}

fn failures_in(report: &Value) -> Vec<Failure> {
    let mut failures = Vec::new();
    for file in report["testResults"].as_array().expect("the report lists files") {
        let tests = file["assertionResults"].as_array().expect("the report lists tests");
        for test in tests.iter().filter(|test| test["status"] == "failed") {
            let message = test["failureMessages"][0].as_str().unwrap_or_default();
            let reason: Vec<&str> =
                message.lines().take_while(|line| !line.trim_start().starts_with("at ")).collect();
            let name = test["fullName"].as_str().unwrap_or_default();
            failures.push(Failure { name: name.to_owned(), reason: reason.join("\n    ") });
        }
        if file["status"] == "failed" && failures.is_empty() {
            failures.push(Failure { name: file["name"].to_string(), reason: file["message"].to_string() });
        }
    }
    failures
}

fn suite_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("conformance")
}

/// Installs what the lock file says, unless that has been done. Runs of several `cargo test` at once wait for each
/// other.
fn install(suite: &Path) {
    let tools = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let turn =
        fs::File::create(tools.join("conformance-install.lock")).expect("the target directory is writable");
    turn.lock().expect("files can be locked");
    let wanted = fs::read(suite.join("package-lock.json")).expect("the lock file is part of the repository");
    // A copy of the lock file that was installed: npm's own record differs from it by platform.
    let installed = suite.join("node_modules").join(".installed-package-lock.json");
    if fs::read(&installed).is_ok_and(|found| found == wanted) {
        return;
    }
    let output = run(Command::new("npm").arg("ci").current_dir(suite));
    assert!(output.status.success(), "npm ci failed:\n{}", text_of(&output));
    fs::write(&installed, wanted).expect("npm ci has made the directory");
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| {
        panic!(
            "{} could not be run ({error}). The public conformance suite needs Node.js 20.19 or newer with npm: see \
             https://nodejs.org, or `apt-get install nodejs npm` where the distribution has it",
            command.get_program().display()
        )
    })
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
