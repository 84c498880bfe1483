//! The README keeps its promises: its commands are run, and what they print is compared with what it shows.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use durable_streams_server::config::{Config, ConfigLoadOptions, KEYS, Key};
use support::ServerProcess;
use tempfile::TempDir;

/// The address in the README, which the tests replace by the one of the server they started.
const DEFAULT_URL: &str = "http://localhost:4437";

#[test]
fn readme_opens_with_the_two_commands() {
    let readme = readme();
    let first = fenced_blocks(&readme, "sh").into_iter().next().expect("the README has commands");
    let commands: Vec<&str> =
        first.lines().map(|line| line.split('#').next().unwrap_or_default().trim()).collect();
    assert_eq!(commands, ["cargo run --release", "cargo test"]);
}

#[test]
fn continuous_integration_runs_the_test_command_of_the_readme() {
    let script = read(".ci/run");
    assert!(script.lines().any(|line| line == "cargo test"), "{script}");
}

#[test]
fn a_server_without_configuration_listens_at_the_address_of_the_readme() {
    assert_eq!(
        Config::default().server.bind_address.to_string(),
        DEFAULT_URL.replace("http://localhost", "127.0.0.1")
    );
}

#[test]
fn tour_prints_what_the_readme_shows() {
    let readme = readme();
    let tour = fenced_blocks(&readme, "sh").into_iter().find(|block| block.contains("curl"));
    let tour = tour.expect("the README has a tour");
    assert_eq!(tour.lines().count(), 5, "a tour of five lines:\n{tour}");
    let shown =
        fenced_blocks(&readme, "text").into_iter().next().expect("the README shows what the tail prints");

    let server = ServerProcess::start(&[]);
    let script = tour.replace(DEFAULT_URL, server.url()) + "wait\n";
    assert_eq!(script.matches(server.url()).count(), 5, "{script}");
    let version = Command::new("curl").arg("--version").stdout(Stdio::null()).status();
    assert!(
        version.is_ok_and(|status| status.success()),
        "the README's tour needs curl, which was not found: install it, for example with `apt-get install curl`"
    );
    let output = Command::new("sh").args(["-euc", &script]).output().expect("sh is there");
    let printed = String::from_utf8(output.stdout).expect("the tour prints text");
    let progress = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}\n{progress}");

    let events = printed.strip_prefix("hello, world").unwrap_or_else(|| panic!("{printed}\n{progress}"));
    let shown = controls_and_data(shown);
    let seen = controls_and_data(events);
    // The stream may be closed before the tail has said that it is up to date; then one control says both.
    let closed_early = vec![shown[0].clone(), shown[2].clone()];
    assert!(seen == shown || seen == closed_early, "printed {seen:#?}\nshown {shown:#?}");

    let head = server.client().request("HEAD", "/v1/stream/hello", &[], b"").expect_status(200);
    assert_eq!(head.header("Stream-Closed"), Some("true"));
}

#[test]
fn variables_of_the_readme_exist_with_the_defaults_it_names() {
    let readme = readme();
    let known: Vec<String> = KEYS.iter().map(Key::env_name).collect();
    let mut checked = 0;
    for row in readme.lines().filter(|line| line.starts_with("| `DS_")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let default = cells[2].strip_prefix('`').and_then(|rest| rest.split_once('`'));
        for name in cells[1].split('`').filter(|name| name.starts_with("DS_")) {
            assert!(known.iter().any(|key| key == name), "{name} does not exist");
            if let Some((default, _)) = default {
                assert_eq!(load(&[(name, default)]), load(&[]), "{name}={default} is not the default");
                checked += 1;
            }
        }
    }
    assert!(checked >= 9, "only {checked} defaults were found");
}

/// The configuration that these variables lead to, without any file.
fn load(environment: &[(&str, &str)]) -> Config {
    let directory = TempDir::new().expect("a temporary directory can be made");
    let options =
        ConfigLoadOptions::default().with_config_dir(directory.path()).with_env(environment.iter().copied());
    Config::load(&options).unwrap_or_else(|error| panic!("{error}"))
}

/// The events of an SSE response as `(kind, data)`, without the cursors, which follow the clock.
fn controls_and_data(text: &str) -> Vec<(String, String)> {
    let mut events = Vec::new();
    for block in text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
        let (kind, data) = block.split_once('\n').unwrap_or_else(|| panic!("not an event: {block:?}"));
        let kind = kind.strip_prefix("event: ").unwrap_or_else(|| panic!("not an event: {block:?}"));
        let data = data.strip_prefix("data:").unwrap_or_else(|| panic!("not an event: {block:?}"));
        let data = if kind == "control" {
            let mut control: serde_json::Value = serde_json::from_str(data).expect("a control event is JSON");
            control.as_object_mut().expect("a control event is an object").remove("streamCursor");
            control.to_string()
        } else {
            data.to_owned()
        };
        events.push((kind.to_owned(), data));
    }
    events
}

/// The contents of the fenced blocks of one language.
fn fenced_blocks<'a>(markdown: &'a str, language: &str) -> Vec<&'a str> {
    let opening = format!("```{language}\n");
    let blocks = markdown.split(&opening).skip(1);
    blocks.map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

fn readme() -> String {
    read("README.md")
}

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
