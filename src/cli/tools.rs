//! The commands that work on a data directory.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::progress::Bar;
use super::{FAILED, backup};
use crate::config::{AcidBackend, Config, StorageMode};
use crate::protocol::name::NameLimits;
use crate::storage::disk::{Disk as _, OpenMode, RealDisk};
use crate::tools::export::export;
use crate::tools::import::{Imported, OnConflict, Source, import};
use crate::tools::list::{ListStyle, list};
use crate::tools::reshard::reshard;
use crate::tools::verify::verify;
use crate::tools::{DataDirectory, ToolError};

/// What to do instead of serving. All of these but `backup` need the data directory for themselves.
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
    /// Write streams as text, one JSON object a line
    ///
    /// Changes nothing in the data directory. Sources of forks come with them.
    Export {
        #[command(flatten)]
        place: Place,
        /// File to write, in one step when it is complete [default: the standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Names of streams, or the beginning of names and `*` [default: all]
        #[arg(value_name = "NAME|PREFIX*")]
        names: Vec<String>,
    },
    /// Read streams from what `export` wrote
    ///
    /// All of it is checked before anything is changed, and either all or nothing is imported. Needs room for all that the
    /// directory then has, beside what it has now.
    Import {
        #[command(flatten)]
        place: Place,
        /// File to read; `-` = the standard input, which is copied into the data directory first
        file: PathBuf,
        /// What becomes of streams that are there already
        #[arg(long, value_enum, default_value = "fail")]
        on_conflict: Conflict,
    },
    /// Spread the streams over another number of shards
    ///
    /// Writes everything anew beside what is there, and then replaces it in one step: needs room for both.
    Reshard {
        #[command(flatten)]
        place: Place,
        /// Number of shards
        #[arg(long, value_name = "N")]
        to: usize,
    },
    /// Copy the data directory, also of a running server, into an empty directory
    Backup {
        #[command(flatten)]
        place: Place,
        /// Directory to write into: empty, or to be made
        #[arg(value_name = "DIR")]
        target: PathBuf,
    },
}

/// What becomes of streams that are there already.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Conflict {
    /// They stay as they are
    Skip,
    /// Nothing is imported
    Fail,
    /// Those of the input take their place
    Replace,
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
        Command::Export { place, output, names } => {
            run_export(place, config, output.as_deref(), names, &mut out).map(|()| ExitCode::SUCCESS)
        }
        Command::Import { place, file, on_conflict } => {
            run_import(place, config, file, *on_conflict, &mut out).map(|()| ExitCode::SUCCESS)
        }
        Command::Reshard { place, to } => {
            run_reshard(place, config, *to, &mut out).map(|()| ExitCode::SUCCESS)
        }
        Command::Backup { place, target } => {
            place.path(config).map(|data_dir| backup::run(data_dir, target, config))
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

fn run_export(
    place: &Place,
    config: &Config,
    output: Option<&Path>,
    names: &[String],
    out: &mut dyn Write,
) -> Result<(), ToolError> {
    let root = place.path(config)?;
    let directory = DataDirectory::take(&root)?;
    let Some(output) = output else {
        return export(&directory, names, out, &mut Bar::default()).map(drop);
    };
    refuse_within(&root, output)?;
    // Whoever finds the file under its name finds all of it.
    let draft = with_suffix(output, ".part");
    let written = File::create(&draft).map_err(ToolError::Output).and_then(|file| {
        let mut file = BufWriter::new(file);
        let exported = export(&directory, names, &mut file, &mut Bar::default())?;
        let file = file.into_inner().map_err(|error| ToolError::Output(error.into_error()))?;
        file.sync_all().and_then(|()| fs::rename(&draft, output)).map_err(ToolError::Output)?;
        Ok(exported)
    });
    let exported = written.inspect_err(|_| {
        // It was of no use, and the error that is told is the first one.
        let _ = fs::remove_file(&draft);
    })?;
    let line = format!("{} streams, {} bytes of content", exported.streams, exported.bytes);
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(ToolError::Output)
}

/// A file that is written must not take the place of one of the data directory.
fn refuse_within(root: &Path, output: &Path) -> Result<(), ToolError> {
    let dir = output.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
    let [root, dir] = [root, dir].map(fs::canonicalize);
    if dir.map_err(ToolError::Output)?.starts_with(root.map_err(ToolError::Output)?) {
        let what = format!("{} is within the data directory", output.display());
        return Err(ToolError::Conflict(what));
    }
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

fn run_import(
    place: &Place,
    config: &Config,
    file: &Path,
    on_conflict: Conflict,
    out: &mut dyn Write,
) -> Result<(), ToolError> {
    let root = place.path(config)?;
    let is_stdin = file == Path::new("-");
    let is_regular = !is_stdin && fs::metadata(file).map_err(ToolError::Input)?.is_file();
    let directory = DataDirectory::take_or_create(&root, config)?;
    let source = if is_stdin {
        Source::spooled(&directory, &mut io::stdin().lock())?
    } else if is_regular {
        let dir = file.parent().filter(|dir| *dir != Path::new("")).unwrap_or(Path::new("."));
        let name = Path::new(file.file_name().unwrap_or_default());
        Source::file(RealDisk::new(dir).open(name, OpenMode::Read).map_err(ToolError::Input)?)
    } else {
        Source::spooled(&directory, &mut File::open(file).map_err(ToolError::Input)?)?
    };
    let on_conflict = match on_conflict {
        Conflict::Skip => OnConflict::Skip,
        Conflict::Fail => OnConflict::Fail,
        Conflict::Replace => OnConflict::Replace,
    };
    let limits = NameLimits {
        max_bytes: config.limits.max_stream_name_bytes,
        max_segments: config.limits.max_stream_name_segments,
    };
    let Imported { added, replaced, skipped } =
        import(&directory, &source, on_conflict, &limits, &mut Bar::default())?;
    let line = format!("{added} streams added, {replaced} replaced, {skipped} skipped");
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(ToolError::Output)
}

fn run_reshard(place: &Place, config: &Config, to: usize, out: &mut dyn Write) -> Result<(), ToolError> {
    let directory = DataDirectory::take_to_change(&place.path(config)?)?;
    let line = match reshard(&directory, to, &mut Bar::default())? {
        None => format!("there are {to} shards already"),
        Some(streams) => format!(
            "{streams} streams on {to} shards; set storage.acid_shard_count to {to}, or leave it away, to serve them"
        ),
    };
    writeln!(out, "{line}").and_then(|()| out.flush()).map_err(ToolError::Output)
}
