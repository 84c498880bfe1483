//! What is done to a data directory while no server has it: looking at it, checking it, carrying streams out and in, and
//! spreading them over another number of shards.
//!
//! * [`verify`](mod@verify): every checksum, and whether everything fits together.
//! * [`list`](mod@list): what streams there are.
//! * [`export`](mod@export), [`import`](mod@import): streams as text, and back; `notation` is what the lines look like.
//! * [`reshard`](mod@reshard): another number of shards.
//! * `image`: the state of a directory's streams, and their content in pieces.
//! * `population`: which streams a directory is going to have; `build`: writes all streams of a directory anew, beside the old files, and puts them into their place in one step.
//!
//! What only looks changes nothing on the disk. What changes something leaves the old files in use until the new ones are
//! complete and durable, whenever it is cut off.
//!
//! Every tool needs the directory for itself, and about as much RAM for the state of streams as a server takes for them.
//! Content is never held as a whole.

pub(crate) mod build;
pub mod export;
pub(crate) mod image;
pub mod import;
pub mod list;
pub(crate) mod notation;
pub(crate) mod population;
pub mod reshard;
pub mod verify;

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, StorageMode};
use crate::storage::disk::Disk;
use crate::storage::layout::{Kind, MANIFEST_FILE, ShardCount, default_shard_count};
use crate::storage::offline::OfflineDirectory;
use crate::storage::{StorageError, acid, file};
use crate::tools::image::Image;

/// Why a tool gave up. One line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    /// The data directory cannot be had, read or written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// What goes out cannot be written.
    #[error("writing the output: {0}")]
    Output(io::Error),
    /// What comes in cannot be read.
    #[error("reading the input: {0}")]
    Input(io::Error),
    /// What comes in is not what an export writes, or contradicts itself.
    #[error("line {line} of the input: {what}")]
    Malformed {
        /// Number of the line, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// What comes in does not go together with what is there.
    #[error("{0}")]
    Conflict(String),
    /// There is not enough room on the disk.
    #[error("this needs about {needed} bytes of disk, and {free} are free")]
    NoRoom {
        /// Bytes, estimated.
        needed: u64,
        /// Bytes.
        free: u64,
    },
}

/// Told of how far long work has come.
pub trait Progress {
    /// A part of the work begins, of so many bytes; 0 = nobody knows.
    fn begin(&mut self, what: &str, bytes: u64);
    /// So many bytes of it are done.
    fn advance(&mut self, bytes: u64);
    /// All is done.
    fn end(&mut self);
}

/// Nobody is told.
impl Progress for () {
    fn begin(&mut self, _: &str, _: u64) {}
    fn advance(&mut self, _: u64) {}
    fn end(&mut self) {}
}

/// A data directory that no server has, and that none can take as long as this exists.
#[derive(Debug)]
pub struct DataDirectory {
    taken: OfflineDirectory,
    /// What to make if it has no streams yet.
    new: Option<(Kind, ShardCount)>,
}

impl DataDirectory {
    /// Takes an existing directory, to look at it. Nothing in it is changed or made.
    ///
    /// # Errors
    /// If there is none, or if a server or another tool has it.
    pub fn take(root: &Path) -> Result<Self, ToolError> {
        Ok(Self { taken: OfflineDirectory::take(root)?, new: None })
    }

    /// Takes an existing directory, to change it.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_to_change(root: &Path) -> Result<Self, ToolError> {
        Ok(Self { taken: OfflineDirectory::take_to_change(root, false)?, new: None })
    }

    /// The same of a directory that may not exist: then it is made for the storage mode and the number of shards that the
    /// configuration names, once it is clear what goes into it.
    ///
    /// # Errors
    /// As [`Self::take`], and if there is none and the configuration says that streams are kept in RAM.
    pub fn take_or_create(root: &Path, config: &Config) -> Result<Self, ToolError> {
        let storage = &config.storage;
        let kind = match storage.mode {
            StorageMode::Memory => None,
            StorageMode::Acid => Some(acid::KIND),
            StorageMode::FileFast | StorageMode::FileDurable => Some(file::KIND),
        };
        if kind.is_none() && !root.join(MANIFEST_FILE).exists() {
            return Err(ToolError::Conflict(format!(
                "there is no data directory {}, and storage.mode = \"memory\" does not say which kind to make; set \
                 storage.mode",
                root.display()
            )));
        }
        let shards = ShardCount {
            explicit: None,
            default: storage.acid_shard_count.unwrap_or_else(default_shard_count),
        };
        let taken = OfflineDirectory::take_to_change(root, true)?;
        Ok(Self { taken, new: kind.map(|kind| (kind, shards)) })
    }

    /// Takes all files of a disk that nobody else has.
    #[must_use]
    pub fn on_disk(disk: Arc<dyn Disk>) -> Self {
        Self { taken: OfflineDirectory::on(disk), new: None }
    }

    /// What it has, which is nothing if it is to be made.
    fn image_or_none(&self) -> Result<Image, ToolError> {
        match self.new {
            Some((kind, shards)) if !self.taken.has_layout()? => {
                Ok(Image::empty(kind.name, shards.explicit.unwrap_or(shards.default)))
            }
            _ => Ok(Image::open(&self.taken)?),
        }
    }

    /// Makes it, without streams, if it is new.
    fn create(&self) -> Result<(), ToolError> {
        if let Some((kind, shards)) = self.new {
            self.taken.create(kind, shards)?;
        }
        Ok(())
    }
}
