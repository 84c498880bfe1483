//! Checks all that is stored: every checksum, and whether everything fits together.
//!
//! It reads what a server reads at opening, in the same way, and then all of the content. Where that fails it says so and
//! goes on with what is left. Nothing on the disk is changed.

mod families;
mod shard;
mod stray;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use crate::protocol::name::StreamName;
use crate::tools::image::Streams;
use crate::tools::{DataDirectory, Progress};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth to know; nothing is lost.
    Note,
    /// Something is damaged or contradicts itself.
    Error,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Where.
    pub shard: Option<usize>,
    /// Which stream is concerned: its id and, if that is known, its name.
    pub stream: Option<(u64, Option<String>)>,
    /// Which file, within the data directory.
    pub file: Option<PathBuf>,
    /// What it is.
    pub what: String,
}

impl Finding {
    fn error(what: impl Into<String>) -> Self {
        Self { severity: Severity::Error, shard: None, stream: None, file: None, what: what.into() }
    }

    fn note(what: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::error(what) }
    }

    fn in_shard(self, shard: usize) -> Self {
        Self { shard: Some(shard), ..self }
    }

    fn of_stream(self, id: u64, name: Option<&StreamName>) -> Self {
        Self { stream: Some((id, name.map(ToString::to_string))), ..self }
    }

    fn in_file(self, file: impl Into<PathBuf>) -> Self {
        Self { file: Some(file.into()), ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.severity {
            Severity::Note => "note: ",
            Severity::Error => "error: ",
        })?;
        if let Some(shard) = self.shard {
            write!(f, "shard {shard:02}: ")?;
        }
        match &self.stream {
            Some((id, Some(name))) => write!(f, "stream {name:?} (id {id}): ")?,
            Some((id, None)) => write!(f, "stream with id {id}: ")?,
            None => {}
        }
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        f.write_str(&self.what)
    }
}

/// What a verification came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Shards, readable or not.
    pub shards: usize,
    /// Streams that were found.
    pub streams: u64,
    /// Bytes of content of theirs, forks counting what is their own.
    pub bytes: u64,
    /// Findings of this severity.
    pub errors: u64,
    /// Findings of this severity.
    pub notes: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { shards, streams, bytes, errors, notes } = self;
        write!(
            f,
            "{shards} shards, {streams} streams, {bytes} bytes of content: {errors} errors, {notes} notes"
        )
    }
}

/// What is told on the way.
struct Report<'a> {
    summary: Summary,
    tell: &'a mut dyn FnMut(&Finding),
}

impl Report<'_> {
    fn add(&mut self, finding: Finding) {
        match finding.severity {
            Severity::Note => self.summary.notes += 1,
            Severity::Error => self.summary.errors += 1,
        }
        (self.tell)(&finding);
    }
}

/// Verifies a directory. `tell` gets what is found, as it is found. Never fails: whatever keeps it from checking something
/// is a finding.
pub fn verify(
    directory: &DataDirectory,
    progress: &mut dyn Progress,
    tell: &mut dyn FnMut(&Finding),
) -> Summary {
    let mut report = Report { summary: Summary::default(), tell };
    let (layout, catalogs) = match directory.taken.look() {
        Ok(looked) => looked,
        Err(error) => {
            report.add(Finding::error(error.to_string()));
            return report.summary;
        }
    };
    report.summary.shards = layout.shard_count;
    let mut shards: Vec<Option<Streams>> = Vec::with_capacity(layout.shard_count);
    for shard in 0..layout.shard_count {
        // What is damaged in ways that no checksum tells may go against what the code holds for certain.
        let mut check =
            shard::ShardCheck { catalogs: &*catalogs, layout: &layout, shard, report: &mut report, progress };
        let outcome = catch_unwind(AssertUnwindSafe(|| check.run()));
        shards.push(outcome.unwrap_or_else(|_| {
            report.add(Finding::error("the check was cut off by a panic").in_shard(shard));
            None
        }));
    }
    families::check(&shards, &mut report);
    let opened = catalogs.directory().disk();
    stray::check(&**directory.taken.disk(), &**opened, &layout, &mut report);
    progress.end();
    report.summary
}

/// Which names are met in a shard more than once.
fn doubled_names(streams: &Streams) -> impl Iterator<Item = (&StreamName, Vec<u64>)> {
    let mut names: BTreeMap<&StreamName, Vec<u64>> = BTreeMap::new();
    for (id, stream) in &streams.by_id {
        names.entry(&stream.name).or_default().push(*id);
    }
    names.into_iter().filter(|(_, ids)| ids.len() > 1)
}
