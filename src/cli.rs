//! The command line: arguments in, exit codes out.
//!
//! Without a command it serves. The commands are `tools`.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | a clean stop, or what was asked for was done |
//! | 1 | the server or the command could not start, or failed; `verify` found errors |
//! | 2 | the arguments or the configuration are wrong |

mod backup;
mod progress;
mod tools;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::config::{ConfigLoadOptions, Loaded};

const FAILED: u8 = 1;
const MISUSED: u8 = 2;

/// Serves append-only streams over HTTP, by the Durable Streams protocol.
#[derive(Debug, Parser)]
#[command(name = "durable-streams-server", version)]
struct Arguments {
    #[command(subcommand)]
    command: Option<tools::Command>,

    /// Profile: default, dev, prod, prod-tls, or any name with a file in the configuration directory
    #[arg(long, value_name = "NAME", global = true)]
    profile: Option<String>,

    /// TOML file that overrides the standard files
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,

    /// Directory of the standard files [default: config]
    #[arg(long, value_name = "DIR", global = true)]
    config_dir: Option<PathBuf>,

    /// Print the effective configuration with the source of each value, and stop
    #[arg(long)]
    print_config: bool,

    /// Check the configuration, and stop
    #[arg(long, conflicts_with = "print_config")]
    check_config: bool,
}

/// Runs the program: reads the arguments and the configuration, sets up the log, serves until told to stop.
///
/// Errors go to the standard error stream as one line that begins with `error: `.
#[must_use]
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // `--help` and `--version` come this way too, with the exit code 0. A closed pipe is no reason to fail.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(MISUSED));
        }
    };
    let loaded = match Loaded::load(&arguments.options()) {
        Ok(loaded) => loaded,
        Err(error) => return fail(MISUSED, &error),
    };
    if arguments.print_config {
        return print(&loaded);
    }
    if arguments.check_config {
        return print(&"the configuration is right\n");
    }
    if let Some(command) = &arguments.command {
        return match tools::run(command, &loaded.config) {
            Ok(code) => code,
            Err(error) => fail(FAILED, &error),
        };
    }
    if let Err(error) = crate::telemetry::init(&loaded.config.log) {
        return fail(MISUSED, &error);
    }
    match crate::server::run(loaded.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(FAILED, &error),
    }
}

impl Arguments {
    fn options(&self) -> ConfigLoadOptions {
        let mut options = ConfigLoadOptions::default();
        options.profile.clone_from(&self.profile);
        options.config_path.clone_from(&self.config);
        options.config_dir.clone_from(&self.config_dir);
        options
    }
}

/// Writes to the standard output. A reader that has seen enough closes the pipe, which is no failure.
fn print(text: &dyn Display) -> ExitCode {
    match write!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(FAILED, &error),
        _ => ExitCode::SUCCESS,
    }
}

fn fail(code: u8, error: &dyn Display) -> ExitCode {
    // Nobody is left to be told if this fails.
    let _ = writeln!(io::stderr(), "error: {error}");
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_do_not_contradict_each_other() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn arguments_reach_the_options() {
        let line =
            ["durable-streams-server", "--profile", "prod", "--config", "a.toml", "--config-dir", "etc"];
        let options = Arguments::parse_from(line).options();
        let expected = ConfigLoadOptions::default()
            .with_profile("prod")
            .with_config_path("a.toml")
            .with_config_dir("etc");
        assert_eq!(options, expected);
    }
}
