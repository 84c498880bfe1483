//! The commands that work on a data directory which no server has.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{FAILED, progress::Bar};
use crate::config::{AcidBackend, Config, StorageMode};
use crate::tools::list::{ListStyle, list};
use crate::tools::verify::verify;
use crate::tools::{DataDirectory, ToolError};

/// What to do instead of serving. All of these need the data directory for themselves.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check every checksum of a data directory, and whether everything in it fits together
    ///
    /// Changes nothing. Prints one line for each finding, and ends with 1 if there are errors among them.
    Verify {
        #[command(flatten)]
        place: Place,
    },
    /// List the streams of a data directory, sorted by name
    ///
    /// Changes nothing.
    List {
        #[command(flatten)]
        place: Place,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        /// Only streams whose name begins with this
        prefix: Option<String>,
    },
}

/// Which data directory.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Data directory [default: storage.data_dir of the configuration]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Place {
    fn path(&self, config: &Config) -> Result<PathBuf, ToolError> {
        if let Some(named) = &self.data_dir {
            return Ok(named.clone());
        }
        let storage = &config.storage;
        let keeps_nothing = match storage.mode {
            StorageMode::Memory => Some("storage.mode is \"memory\""),
            StorageMode::Acid if storage.acid_backend == AcidBackend::InMemory => {
                Some("storage.acid_backend is \"in-memory\"")
            }
            _ => None,
        };
        match keeps_nothing {
            None => Ok(storage.data_dir.clone()),
            Some(why) => Err(ToolError::Conflict(format!(
                "{why}: the streams are in the RAM of the server, and there is no data directory; name one with \
                 --data-dir, or a configuration that has one"
            ))),
        }
    }
}

/// Does it.
pub(super) fn run(command: &Command, config: &Config) -> Result<ExitCode, ToolError> {
    let mut out = BufWriter::new(io::stdout().lock());
    let outcome = match command {
        Command::Verify { place } => run_verify(place, config, &mut out),
        Command::List { place, json, prefix } => {
            let directory = DataDirectory::take(&place.path(config)?)?;
            let style = if *json { ListStyle::Json } else { ListStyle::Table };
            list(&directory, prefix.as_deref().unwrap_or_default(), style, &mut out)
                .map(|()| ExitCode::SUCCESS)
        }
    };
    match outcome {
        // A reader that has seen enough closes the pipe, which is no failure.
        Err(ToolError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        outcome => outcome,
    }
}

fn run_verify(place: &Place, config: &Config, out: &mut dyn Write) -> Result<ExitCode, ToolError> {
    let directory = DataDirectory::take(&place.path(config)?)?;
    let mut failed = None;
    let summary = verify(&directory, &mut Bar::default(), &mut |finding| {
        failed = failed.take().or(writeln!(out, "{finding}").and_then(|()| out.flush()).err());
    });
    if let Some(error) = failed {
        return Err(ToolError::Output(error));
    }
    writeln!(out, "{summary}").and_then(|()| out.flush()).map_err(ToolError::Output)?;
    Ok(if summary.errors == 0 { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}
