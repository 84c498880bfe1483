//! Starts the real binary for tests and talks to it over the wire.
//!
//! Each integration test is its own program and uses only a part of this, hence the lint switch.
#![allow(dead_code)]

pub(crate) mod dice;
pub(crate) mod ending;
pub(crate) mod http;
pub(crate) mod port;
pub(crate) mod sse;
pub(crate) mod tls;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http::{Client, Origin, PATIENCE};
use tempfile::TempDir;

/// What the server prints before its URL once it listens.
const READY_LINE: &str = "listening on ";

/// Pause between two looks at something that cannot be waited for.
const POLL: Duration = Duration::from_millis(10);

/// A running server with a directory of its own. It is killed and its directory removed when the value is dropped.
#[derive(Debug)]
pub(crate) struct ServerProcess {
    environment: Vec<(String, String)>,
    directory: TempDir,
    running: Option<Running>,
    /// Output of earlier lives, for failure messages.
    past_output: String,
    origin: Origin,
    url: String,
}

#[derive(Debug)]
struct Running {
    child: Child,
    stdout: Output,
    stderr: Output,
}

/// What a process has written to one of its pipes so far.
#[derive(Debug)]
struct Output {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl ServerProcess {
    /// Starts a server with these variables over the defaults of the tests (a free port of 127.0.0.1, no configuration
    /// file, `data` inside an empty directory) and returns when `/readyz` answers 200.
    #[track_caller]
    pub(crate) fn start(environment: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("a temporary directory can be made");
        let mut variables = vec![
            ("DS_SERVER__PORT".to_owned(), "0".to_owned()),
            ("DS_STORAGE__DATA_DIR".to_owned(), path_text(&directory.path().join("data"))),
        ];
        for (name, value) in environment {
            variables.retain(|(known, _)| known != name);
            variables.push(((*name).to_owned(), (*value).to_owned()));
        }
        let mut server = Self {
            environment: variables,
            directory,
            running: None,
            past_output: String::new(),
            origin: Origin { authority: String::new(), trusted_certificate: None },
            url: String::new(),
        };
        server.launch();
        server
    }

    /// `http://127.0.0.1:<port>`, or the same with `https`.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Where the server listens, for clients.
    pub(crate) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// A new client with a connection of its own.
    pub(crate) fn client(&self) -> Client {
        self.origin.client()
    }

    /// The server's working directory; `data` below it holds the streams unless told otherwise.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The process id, while the server runs.
    pub(crate) fn id(&self) -> u32 {
        self.running.as_ref().expect("the server runs").child.id()
    }

    /// Everything that the server wrote to its error output, earlier lives included.
    pub(crate) fn stderr(&self) -> String {
        let present = self.running.as_ref().map(|running| running.stderr.text()).unwrap_or_default();
        format!("{}{present}", self.past_output)
    }

    /// Waits until this is part of [`Self::stderr`], which is read a moment after it was written.
    #[track_caller]
    pub(crate) fn wait_for_stderr(&self, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.stderr().contains(part) {
            assert!(Instant::now() < deadline, "no {part:?} in what the server wrote:\n{}", self.stderr());
            thread::sleep(POLL);
        }
    }

    /// What the server of this life printed so far.
    pub(crate) fn stdout(&self) -> String {
        self.running.as_ref().map(|running| running.stdout.text()).unwrap_or_default()
    }

    /// Changes one variable for the next start.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Ends the process as a power cut would, without a chance to write anything.
    pub(crate) fn kill9(&mut self) {
        let mut running = self.running.take().expect("the server runs");
        running.child.kill().expect("an unreaped child can be killed");
        running.child.wait().expect("a killed child can be waited for");
        self.keep_output(running);
    }

    /// To be held by each of several threads, if others of them go on for as long as the server answers what it does: one
    /// that panics takes the server with it, so that the test ends.
    pub(crate) fn killed_by_panics(&self) -> KillOnPanic<'_> {
        KillOnPanic(self)
    }

    /// Asks the process to end (SIGTERM) and waits until it has.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.wait_for_exit()
    }

    /// Sends a signal by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.id());
        let status = Command::new("sh").args(["-c", &command]).status().expect("sh is there");
        assert!(status.success(), "{command} failed");
    }

    /// Waits until the process has ended by itself.
    #[track_caller]
    pub(crate) fn wait_for_exit(&mut self) -> ExitStatus {
        let mut running = self.running.take().expect("the server runs");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = running.child.try_wait().expect("a child can be asked") {
                self.keep_output(running);
                return status;
            }
            if Instant::now() > deadline {
                self.running = Some(running);
                panic!("the server did not end:\n{}", self.stderr());
            }
            thread::sleep(POLL);
        }
    }

    /// Starts the ended server again on its data, on any free port.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        assert!(self.running.is_none(), "the server still runs");
        self.launch();
    }

    /// The value of a variable as the next start will see it.
    fn variable(&self, name: &str) -> Option<&str> {
        self.environment.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    fn launch(&mut self) {
        let mut child = server_command(self.directory.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server's binary can be started");
        let (lines, printed) = mpsc::channel();
        let stdout = Output::capture(child.stdout.take().expect("stdout is piped"), Some(lines));
        let stderr = Output::capture(child.stderr.take().expect("stderr is piped"), None);
        self.running = Some(Running { child, stdout, stderr });
        self.url = self.wait_for_url(&printed);
        let certificate = self.variable("DS_TLS__CERT_PATH").map(PathBuf::from);
        self.origin = Origin::parse(&self.url, certificate.as_deref());
        self.wait_until_ready();
    }

    #[track_caller]
    fn wait_for_url(&mut self, printed: &Receiver<String>) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match printed.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    if let Some((_, url)) = line.split_once(READY_LINE) {
                        return url.trim().to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the server printed no line with {READY_LINE:?}:\n{}", self.stderr())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.wait_for_exit();
                    panic!("the server ended ({status}) instead of listening:\n{}", self.stderr());
                }
            }
        }
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.client().try_request("GET", "/readyz", &[], b"");
            match answer {
                Ok(response) if response.status == 200 => return,
                answer if Instant::now() > deadline => {
                    panic!("the server did not become ready: {answer:?}\n{}", self.stderr())
                }
                _ => thread::sleep(POLL),
            }
        }
    }

    fn keep_output(&mut self, running: Running) {
        running.stdout.finish();
        self.past_output += &running.stderr.finish();
    }
}

/// See [`ServerProcess::killed_by_panics`].
pub(crate) struct KillOnPanic<'a>(&'a ServerProcess);

impl Drop for KillOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking()
            && let Some(running) = &self.0.running
        {
            // Nobody has waited for the child yet, so the id is its own. It may have ended all the same.
            let _ = Command::new("kill").args(["-KILL", &running.child.id().to_string()]).status();
        }
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            // Fails only for a process that has ended already.
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
        if thread::panicking() {
            eprintln!("error output of the server:\n{}", self.stderr());
        }
    }
}

impl Output {
    /// Reads a pipe to its end, line by line, and hands a copy of each line to `lines`.
    fn capture(pipe: impl Read + Send + 'static, lines: Option<Sender<String>>) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let shared = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let printed = String::from_utf8_lossy(&line).into_owned();
                shared.lock().unwrap_or_else(PoisonError::into_inner).push_str(&printed);
                if let Some(lines) = &lines {
                    // Nobody listens any more once the URL is known.
                    let _ = lines.send(printed);
                }
                line.clear();
            }
        });
        Self { text, reader }
    }

    fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The whole text, once the process has ended.
    fn finish(self) -> String {
        let Self { text, reader } = self;
        reader.join().expect("reading a pipe does not panic");
        text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The binary under test, to be run in `directory` without any setting of the caller's environment.
pub(crate) fn server_command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_durable-streams-server"));
    command.current_dir(directory);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("DS_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

/// A path of this test as text, for variables and command lines.
pub(crate) fn path_text(path: &Path) -> String {
    path.to_str().expect("temporary paths are UTF-8").to_owned()
}
