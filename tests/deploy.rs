//! The examples in `deploy/` work: settings they name exist, their units and sites are accepted by the programs they are
//! for, and events pass the proxies at once. What needs a program that is not installed says so and is left out.

mod support;

use std::fs;
use std::io;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use durable_streams_server::config::{self as configuration, ConfigLoadOptions};
use support::http::{Origin, PATIENCE};
use support::port::HeldPort;
use support::sse::EventStream;
use support::tls::{CertificateFiles, write_certificate};
use support::{ServerProcess, path_text};
use tempfile::TempDir;

/// Files that set variables of the server.
const FILES_WITH_SETTINGS: [&str; 3] = ["Dockerfile", "compose.yaml", "durable-streams-server.service"];

/// Files that say which variables to set.
const GUIDES: [&str; 3] = ["README.md", "nginx.conf", "Caddyfile"];

#[test]
fn settings_in_the_examples_take_effect() {
    for file in FILES_WITH_SETTINGS {
        let settings = settings_in(&read(file));
        assert!(!settings.is_empty(), "{file} sets nothing");
        let loaded = load(file, &settings);
        for (name, value) in settings {
            let origin = configuration::Origin::Variable(name.clone());
            assert!(
                loaded.settings.iter().any(|found| found.origin == origin),
                "{file}: {name}={value} has no effect"
            );
        }
    }
}

#[test]
fn settings_named_in_the_guides_exist() {
    let choose_files = ["DS_CONFIG_DIR".to_owned(), "DS_PROFILE".to_owned()];
    let known: Vec<String> =
        configuration::KEYS.iter().map(configuration::Key::env_name).chain(choose_files).collect();
    for file in FILES_WITH_SETTINGS.into_iter().chain(GUIDES) {
        for (name, _) in variables_in(&read(file)) {
            assert!(known.contains(&name), "{file}: {name} does not exist");
        }
    }
    for file in GUIDES {
        load(file, &settings_in(&read(file)));
    }
}

#[test]
fn container_probe_tells_a_ready_server_from_a_dead_one() {
    let dockerfile = read("Dockerfile").replace("\\\n", " ");
    let probe =
        dockerfile.lines().find_map(|line| line.strip_prefix("HEALTHCHECK")).expect("the image has a probe");
    let (_, words) = probe.split_once("CMD").expect("the probe is a command");
    let words: Vec<String> = serde_json::from_str(words.trim()).expect("the probe is in exec form");
    let mut server = ServerProcess::start(&[]);
    let address = server.origin().authority.clone();
    let healthy = || {
        let mut command = Command::new(&words[0]);
        run(command.args(&words[1..]).env("DS_SERVER__BIND_ADDRESS", &address)).status.success()
    };
    assert!(healthy(), "the probe refuses a ready server");
    server.kill9();
    assert!(!healthy(), "the probe accepts a dead server");
}

#[test]
fn systemd_accepts_the_unit() {
    if !is_installed("systemd-analyze", "--version") {
        return;
    }
    let directory = TempDir::new().expect("a temporary directory can be made");
    // The unit names where the program is going to be; it has to be somewhere to be accepted.
    let unit = read("durable-streams-server.service")
        .replace("/usr/local/bin/durable-streams-server", env!("CARGO_BIN_EXE_durable-streams-server"));
    let path = directory.path().join("durable-streams-server.service");
    fs::write(&path, unit).expect("the test's directory is writable");
    let output = run(Command::new("systemd-analyze").arg("verify").arg(&path));
    assert!(output.status.success() && text_of(&output).is_empty(), "{}", text_of(&output));
}

#[test]
fn nginx_hands_on_each_event_at_once() {
    if !is_installed("nginx", "-v") {
        return;
    }
    let server = ServerProcess::start(&[("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "0")]);
    let directory = TempDir::new().expect("a temporary directory can be made");
    let files = write_certificate(directory.path());
    let held = HeldPort::any();
    let port = held.number();
    let site = read("nginx.conf")
        .replace("server 127.0.0.1:4437;", &format!("server {};", server.origin().authority))
        .replace("listen [::]:443 ssl http2;", "")
        .replace("listen 443 ssl", &format!("listen 127.0.0.1:{port} ssl"))
        .replace("/etc/ssl/certs/streams.example.com.pem", &path_text(&files.certificate))
        .replace("/etc/ssl/private/streams.example.com.key", &path_text(&files.key));
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {name};\n"))
        .collect();
    let main = format!(
        "pid nginx.pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}{site}}}\n"
    );
    fs::write(directory.path().join("nginx.conf"), main).expect("the test's directory is writable");
    let nginx = |arguments: &[&str]| {
        let mut command = Command::new("nginx");
        command.arg("-p").arg(directory.path()).args(["-c", "nginx.conf", "-e", "stderr"]).args(arguments);
        command
    };
    let checked = run(&mut nginx(&["-t"]));
    assert!(checked.status.success(), "{}", text_of(&checked));
    let _running = Proxy::start(&mut nginx(&["-g", "daemon off; master_process off;"]), port);
    each_event_arrives_at_once(port, &files);
}

#[test]
fn caddy_hands_on_each_event_at_once() {
    if !is_installed("caddy", "version") {
        return;
    }
    let server = ServerProcess::start(&[("DS_SERVER__SSE_RECONNECT_INTERVAL_SECS", "0")]);
    let directory = TempDir::new().expect("a temporary directory can be made");
    let files = write_certificate(directory.path());
    let held = HeldPort::any();
    let port = held.number();
    let certificate = format!("tls {} {}", path_text(&files.certificate), path_text(&files.key));
    let site = read("Caddyfile")
        .replace("127.0.0.1:4437", &server.origin().authority)
        .replace("\nstreams.example.com {", &format!("\nhttps://127.0.0.1:{port} {{\n\t{certificate}"));
    let path = directory.path().join("Caddyfile");
    let options = "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n";
    fs::write(&path, format!("{options}{site}")).expect("the test's directory is writable");
    let caddy = |action: &str| {
        let mut command = Command::new("caddy");
        command.arg(action).args(["--adapter", "caddyfile", "--config"]).arg(&path);
        command.env("HOME", directory.path()).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME");
        command
    };
    let checked = run(&mut caddy("validate"));
    assert!(checked.status.success(), "{}", text_of(&checked));
    let _running = Proxy::start(&mut caddy("run"), port);
    each_event_arrives_at_once(port, &files);
}

/// Tails a stream through the proxy and appends through it. An event that the proxy keeps back is never read, as
/// nothing follows it.
fn each_event_arrives_at_once(port: u16, files: &CertificateFiles) {
    let origin = Origin::parse(&format!("https://127.0.0.1:{port}"), Some(&files.certificate));
    let mut writer = origin.client();
    let text = [("Content-Type", "text/plain")];
    // An escaped character has to reach the server as it was sent.
    let path = "/v1/stream/behind%20a%2Fproxy";
    let created = writer.request("PUT", path, &text, b"").expect_status(201);
    assert!(created.header("Location").is_some_and(|location| location.ends_with(path)), "{created:?}");

    let mut tail = EventStream::open(&origin, &format!("{path}?offset=-1&live=sse"), &[])
        .expect("the proxy answers")
        .expect("the stream is there");
    let (kind, _) = next(&mut tail);
    assert_eq!(kind, "control");
    for payload in ["first", "second"] {
        writer.request("POST", path, &text, payload.as_bytes()).expect_status(204);
        assert_eq!(next(&mut tail), ("data".to_owned(), payload.to_owned()));
        assert_eq!(next(&mut tail).0, "control");
    }
}

fn next(tail: &mut EventStream) -> (String, String) {
    tail.next_message().expect("an event arrives").expect("the response goes on")
}

/// A proxy that runs until it is dropped.
struct Proxy(Child);

impl Proxy {
    /// Starts the program and returns when it accepts connections on `port`.
    fn start(command: &mut Command, port: u16) -> Self {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut running = Self(child.spawn().expect("the proxy can be started"));
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = running.0.try_wait().expect("a child can be asked");
            assert!(ended.is_none() && Instant::now() < deadline, "the proxy does not listen: {ended:?}");
            thread::sleep(Duration::from_millis(10));
        }
        running
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Fails only for a process that has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The configuration that these variables lead to.
fn load(file: &str, settings: &[(String, String)]) -> configuration::Loaded {
    let directory = TempDir::new().expect("a temporary directory can be made");
    let options =
        ConfigLoadOptions::default().with_config_dir(directory.path()).with_env(settings.iter().cloned());
    configuration::Loaded::load(&options).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Every `DS_NAME=value` and `DS_NAME: value` of a file, but for the directory of configuration files, which is not here.
fn settings_in(text: &str) -> Vec<(String, String)> {
    let with_value = variables_in(text).into_iter().filter_map(|(name, value)| Some((name, value?)));
    with_value.filter(|(name, _)| name != "DS_CONFIG_DIR").collect()
}

/// Every variable of the server that a file mentions, and its value if it gets one.
fn variables_in(text: &str) -> Vec<(String, Option<String>)> {
    let is_part_of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let mut variables = Vec::new();
    for (start, _) in text.match_indices("DS_") {
        let rest = &text[start..];
        let (name, rest) = rest.split_at(rest.find(|c| !is_part_of_name(c)).unwrap_or(rest.len()));
        let value = rest.strip_prefix('=').or_else(|| rest.strip_prefix(": ")).map(|value| {
            let end = value.find(|c: char| c.is_whitespace() || c == '`').unwrap_or(value.len());
            value[..end].trim_end_matches('.').to_owned()
        });
        variables.push((name.to_owned(), value));
    }
    variables
}

/// Whether a program is there; if not, the test's output says what is left out.
fn is_installed(program: &str, argument: &str) -> bool {
    match Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("{program} is not installed, so its example is not checked");
            false
        }
        Err(error) => panic!("{program}: {error}"),
    }
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display()))
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn read(file: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
