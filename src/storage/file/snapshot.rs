//! Journal and catalog of a shard at one instant.
//!
//! Files are appended to and nothing else, so a length says what was there. They are open from the beginning: that their names
//! go meanwhile does no harm.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::opening::KIND;
use crate::storage::backup::{BackupError, LogSnapshot, Target};
use crate::storage::disk::DiskFile;
use crate::storage::layout::Kind;

/// What to copy.
#[derive(Default)]
pub(super) struct FilesSnapshot {
    files: Vec<Part>,
}

struct Part {
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    len: u64,
    /// Follows in the copy.
    ending: Vec<u8>,
}

impl fmt::Debug for FilesSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesSnapshot").field("files", &self.files.len()).finish_non_exhaustive()
    }
}

impl FilesSnapshot {
    /// Adds the first `len` bytes of a file, to be followed by `ending`. `path` is relative to the data directory.
    pub(super) fn add(&mut self, path: &Path, file: Arc<dyn DiskFile>, len: u64, ending: Vec<u8>) {
        self.files.push(Part { path: path.to_owned(), file, len, ending });
    }
}

impl LogSnapshot for FilesSnapshot {
    fn kind(&self) -> Kind {
        KIND
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|part| part.len).sum()
    }

    fn copy(self: Box<Self>, dir: &Path, target: &mut Target<'_>) -> Result<(), BackupError> {
        let path = dir.join(KIND.shard_file);
        target.create(&path)?.sync_data().map_err(target.failed(&path))?;
        self.files
            .iter()
            .try_for_each(|part| target.copy_file(&part.path, &*part.file, part.len, &part.ending))
    }
}
