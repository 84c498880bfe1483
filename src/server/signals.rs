//! SIGINT and SIGTERM: the first asks for a stop in order, the second ends the process.

use std::io;
use std::sync::mpsc;
use std::thread;

/// Status of a process that a signal ended, less the signal's number.
const EXIT_BY_SIGNAL: i32 = 128;

/// The process's termination signals, which from now on do nothing by themselves.
#[derive(Debug)]
pub(super) struct Signals {
    received: mpsc::Receiver<Signal>,
}

#[derive(Clone, Copy, Debug)]
struct Signal {
    name: &'static str,
    number: i32,
}

const INTERRUPT: Signal = Signal { name: "SIGINT", number: 2 };
#[cfg(unix)]
const TERMINATE: Signal = Signal { name: "SIGTERM", number: 15 };

impl Signals {
    /// Starts listening.
    pub(super) fn listen() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
        let mut source = {
            let _entered = runtime.enter();
            Source::new()?
        };
        let (sender, received) = mpsc::channel();
        thread::Builder::new().name("ds-signals".to_owned()).spawn(move || {
            runtime.block_on(async {
                while let Some(signal) = source.next().await {
                    if sender.send(signal).is_err() {
                        return;
                    }
                }
            });
        })?;
        Ok(Self { received })
    }

    /// Blocks until a signal comes; its name.
    pub(super) fn wait(&self) -> &'static str {
        match self.received.recv() {
            Ok(signal) => signal.name,
            // Only a runtime that shuts down ends the source, and that one lives as long as its thread.
            Err(mpsc::RecvError) => "none",
        }
    }

    /// From now on a signal ends the process at once.
    pub(super) fn exit_at_the_next(self) {
        thread::spawn(move || {
            if let Ok(signal) = self.received.recv() {
                tracing::warn!(signal = signal.name, "stopping at once");
                std::process::exit(EXIT_BY_SIGNAL + signal.number);
            }
        });
    }
}

#[cfg(unix)]
struct Source {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Source {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn next(&mut self) -> Option<Signal> {
        tokio::select! {
            signal = self.interrupt.recv() => signal.map(|()| INTERRUPT),
            signal = self.terminate.recv() => signal.map(|()| TERMINATE),
        }
    }
}

#[cfg(not(unix))]
struct Source;

#[cfg(not(unix))]
impl Source {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Option<Signal> {
        tokio::signal::ctrl_c().await.ok().map(|()| INTERRUPT)
    }
}
