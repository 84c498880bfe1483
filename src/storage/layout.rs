//! The data directory: its lock, its manifest, its shards' directories.
//!
//! ```text
//! <data_dir>/
//!   LOCK            held exclusively (flock) while any part of the storage is open
//!   layout.json     {"format_version":1,"storage":"acid","shard_count":N,"hash":"xxh3-64/seed0"}
//!   shard-00/ …     one directory per shard; `shard-00-g1` and so on in later generations
//!   admin.sock      of a running server: see `server::admin`
//! ```
//!
//! A *generation* is one set of shard directories. The manifest names the one in use, so that replacing the manifest puts
//! another one into its place, all shards at once: see `generation`.

mod lock;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub(crate) use self::lock::{create_dir_durably, lock_existing, lock_or_create};
use super::backup::UNFINISHED_FILE;
use super::disk::{Disk, OpenMode, RealDisk};
use super::{SHARDS_MAX, StorageError, generation};

/// Version of the layout, and of every format below it.
pub(crate) const FORMAT_VERSION: u64 = 1;

pub(crate) const LOCK_FILE: &str = "LOCK";
pub(crate) const MANIFEST_FILE: &str = "layout.json";
/// Where a running server is asked for backups.
pub(crate) const ADMIN_SOCKET_FILE: &str = "admin.sock";
const MANIFEST_FILE_NEW: &str = "layout.json.new";
/// Longest manifest that is read. Bytes.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024;

/// Name of the hash that maps stream names to shards. Part of the layout: with another hash, streams would be looked for
/// in shards that do not have them.
const SHARD_HASH: &str = "xxh3-64/seed0";

/// What `layout.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format_version: u64,
    storage: String,
    shard_count: usize,
    hash: String,
    #[serde(default, skip_serializing_if = "is_first_generation")]
    generation: u64,
}

fn is_first_generation(generation: &u64) -> bool {
    *generation == 0
}

/// Which files of a data directory hold its streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// [`Kind::name`].
    pub(crate) storage: String,
    /// Number of shards.
    pub(crate) shard_count: usize,
    /// The set of shard directories that is in use.
    pub(crate) generation: u64,
}

/// The only field that every version of the manifest has.
#[derive(Deserialize)]
struct ManifestVersion {
    format_version: u64,
}

/// What the storage of a mode keeps in a data directory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// Name in the manifest.
    pub(crate) name: &'static str,
    /// File that every shard has once the manifest is written, perhaps without content.
    pub(crate) shard_file: &'static str,
}

/// A data directory that this process holds.
#[derive(Debug)]
pub(crate) struct DataDirectory {
    disk: Arc<dyn Disk>,
    /// What paths are printed below.
    root: PathBuf,
    shard_count: usize,
    generation: u64,
    /// Locked for as long as it is open. Never deleted: a second process could lock a successor under the same name.
    _lock: Option<File>,
}

/// How many shards a data directory is to have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShardCount {
    /// As asked for explicitly: a directory that was made for another number is refused.
    pub(crate) explicit: Option<usize>,
    /// For a new directory, if nothing was asked for.
    pub(crate) default: usize,
}

impl DataDirectory {
    /// Locks the directory; makes it if it is new.
    pub(crate) fn open(root: &Path, kind: Kind, shards: ShardCount) -> Result<Self, StorageError> {
        shards.check()?;
        let lock = lock_or_create(root)?;
        Self::open_on(Arc::new(RealDisk::new(root)), root, Some(lock), kind, shards)
    }

    /// The same on a disk that nobody else can have.
    pub(crate) fn open_unlocked(
        disk: Arc<dyn Disk>,
        kind: Kind,
        shards: ShardCount,
    ) -> Result<Self, StorageError> {
        shards.check()?;
        Self::open_on(disk, Path::new(""), None, kind, shards)
    }

    /// The same of a directory that the caller has locked.
    pub(crate) fn open_held(
        disk: Arc<dyn Disk>,
        root: &Path,
        kind: Kind,
        shards: ShardCount,
    ) -> Result<Self, StorageError> {
        shards.check()?;
        Self::open_on(disk, root, None, kind, shards)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        root: &Path,
        lock: Option<File>,
        kind: Kind,
        shards: ShardCount,
    ) -> Result<Self, StorageError> {
        let mut directory = Self { disk, root: root.to_owned(), shard_count: 0, generation: 0, _lock: lock };
        directory.shard_count = match directory.read_manifest()? {
            Some(manifest) => {
                directory.check_manifest(&manifest, kind, shards.explicit)?;
                directory.generation = manifest.generation;
                for shard in 0..manifest.shard_count {
                    directory.check_shard_file(shard, kind)?;
                    // Whoever gave a file its name may have been stopped before that was durable.
                    directory.sync_dir(&directory.shard_dir(shard))?;
                }
                directory.sync_dir(Path::new(""))?;
                generation::remove_others_if_possible(&*directory.disk, manifest.generation);
                manifest.shard_count
            }
            None => {
                directory.refuse_unfinished_backup()?;
                directory.refuse_leftover_shards(kind)?;
                let count = shards.explicit.unwrap_or(shards.default);
                // The manifest comes last: a directory that has one is complete, so a missing file means loss.
                for shard in 0..count {
                    directory.create_shard(shard, kind)?;
                }
                directory.write_manifest(kind, count)?;
                count
            }
        };
        Ok(directory)
    }

    /// A look at a directory that somebody else has locked. Checks nothing but what the manifest says.
    pub(crate) fn view(disk: Arc<dyn Disk>, root: &Path) -> Result<Option<(Self, Layout)>, StorageError> {
        let mut directory = Self { disk, root: root.to_owned(), shard_count: 0, generation: 0, _lock: None };
        let Some(manifest) = directory.read_manifest()? else { return Ok(None) };
        directory.check_contents(&manifest)?;
        directory.shard_count = manifest.shard_count;
        directory.generation = manifest.generation;
        let Manifest { storage, shard_count, generation, .. } = manifest;
        Ok(Some((directory, Layout { storage, shard_count, generation })))
    }

    /// Makes the shards of another generation, which nothing says to be in use before [`Self::put_in_use`].
    pub(crate) fn begin_generation(
        disk: Arc<dyn Disk>,
        root: &Path,
        kind: Kind,
        layout: &Layout,
    ) -> Result<Self, StorageError> {
        let &Layout { shard_count, generation, .. } = layout;
        let directory = Self { disk, root: root.to_owned(), shard_count, generation, _lock: None };
        for shard in 0..shard_count {
            directory.create_shard(shard, kind)?;
        }
        Ok(directory)
    }

    /// Makes this generation the one in use, durably and in one step. All of its files have to be durable.
    pub(crate) fn put_in_use(&self, kind: Kind) -> Result<(), StorageError> {
        self.write_manifest(kind, self.shard_count)
    }

    /// Directory of a shard, below the data directory.
    pub(crate) fn shard_dir(&self, shard: usize) -> PathBuf {
        shard_dir(self.generation, shard)
    }

    /// Number of shards that the directory was made for.
    pub(crate) fn shard_count(&self) -> usize {
        self.shard_count
    }

    /// The files below.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Turns an error of the disk into ours.
    pub(crate) fn failed(
        &self,
        doing: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> StorageError + use<> {
        io_failed(doing, &self.root.join(path))
    }

    /// Durably replaces the file `path` by the draft beside it, whose content is complete.
    pub(crate) fn publish(&self, draft: &Path, path: &Path) -> Result<(), StorageError> {
        let flush = || self.disk.open(draft, OpenMode::Write)?.sync_data();
        flush().map_err(self.failed("flushing", draft))?;
        self.disk.rename(draft, path).map_err(self.failed("renaming to", path))?;
        self.sync_dir(path.parent().unwrap_or(Path::new("")))
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), StorageError> {
        self.disk.sync_dir(dir).map_err(self.failed("flushing", dir))
    }

    fn check_shard_file(&self, shard: usize, kind: Kind) -> Result<(), StorageError> {
        let path = self.shard_dir(shard).join(kind.shard_file);
        match self.disk.open(&path, OpenMode::Read) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(StorageError::Layout(format!(
                "{} is missing: {MANIFEST_FILE} says that there are {} shards",
                self.root.join(&path).display(),
                self.manifest_shards()
            ))),
            Err(error) => Err(self.failed("looking for", &path)(error)),
        }
    }

    fn manifest_shards(&self) -> String {
        self.read_manifest()
            .ok()
            .flatten()
            .map_or("more".to_owned(), |manifest| manifest.shard_count.to_string())
    }

    fn create_shard(&self, shard: usize, kind: Kind) -> Result<(), StorageError> {
        let dir = self.shard_dir(shard);
        self.disk.create_dir(&dir).map_err(self.failed("creating", &dir))?;
        let path = dir.join(kind.shard_file);
        let create = || self.disk.open(&path, OpenMode::Create)?.sync_data();
        create().map_err(self.failed("creating", &path))?;
        self.sync_dir(&dir)?;
        self.sync_dir(Path::new(""))
    }

    fn read_manifest(&self) -> Result<Option<Manifest>, StorageError> {
        let path = Path::new(MANIFEST_FILE);
        let read = || -> io::Result<Vec<u8>> {
            let file = self.disk.open(path, OpenMode::Read)?;
            let mut text = vec![0; file.len()?.min(MANIFEST_BYTES_MAX) as usize];
            file.read_at(0, &mut text)?;
            Ok(text)
        };
        let text = match read() {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed("reading", path)(error)),
        };
        let path = self.root.join(path);
        let malformed = |error| StorageError::Layout(format!("{} is malformed: {error}", path.display()));
        let ManifestVersion { format_version } = serde_json::from_slice(&text).map_err(malformed)?;
        if format_version != FORMAT_VERSION {
            return Err(StorageError::Layout(format!(
                "{} has format version {format_version}, this program reads version {FORMAT_VERSION}",
                path.display()
            )));
        }
        serde_json::from_slice(&text).map(Some).map_err(malformed)
    }

    fn check_manifest(
        &self,
        manifest: &Manifest,
        kind: Kind,
        explicit_shards: Option<usize>,
    ) -> Result<(), StorageError> {
        self.check_contents(manifest)?;
        let path = self.root.join(MANIFEST_FILE);
        if manifest.storage != kind.name {
            return Err(StorageError::Layout(format!(
                "{} says that the directory holds {:?} storage, and storage.mode asks for {:?}; use another data \
                 directory, or `durable-streams-server export` and `import`",
                path.display(),
                manifest.storage,
                kind.name
            )));
        }
        match explicit_shards {
            Some(explicit) if explicit != manifest.shard_count => Err(StorageError::Layout(format!(
                "storage.acid_shard_count is {explicit}, but the data directory {} was made with {} shards; keep {}, \
                 or change the directory with `durable-streams-server reshard --to {explicit}`",
                self.root.display(),
                manifest.shard_count,
                manifest.shard_count
            ))),
            _ => Ok(()),
        }
    }

    /// Checks what does not depend on what is asked for.
    fn check_contents(&self, manifest: &Manifest) -> Result<(), StorageError> {
        let path = self.root.join(MANIFEST_FILE);
        if manifest.hash != SHARD_HASH {
            return Err(StorageError::Layout(format!(
                "{} names the hash {:?}, this program knows {SHARD_HASH:?} only",
                path.display(),
                manifest.hash
            )));
        }
        if !(1..=SHARDS_MAX).contains(&manifest.shard_count) {
            return Err(StorageError::Layout(format!(
                "{} says that there are {} shards; there can be 1 to {SHARDS_MAX}",
                path.display(),
                manifest.shard_count,
            )));
        }
        Ok(())
    }

    /// The manifest comes last in a backup, too.
    fn refuse_unfinished_backup(&self) -> Result<(), StorageError> {
        match self.disk.open(Path::new(UNFINISHED_FILE), OpenMode::Read) {
            Ok(_) => Err(StorageError::Layout(format!(
                "{} is a backup that was not finished, and cannot be used; remove it, and make another one",
                self.root.display()
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.failed("looking for", Path::new(UNFINISHED_FILE))(error)),
        }
    }

    /// Without a manifest nobody knows how the streams were spread over the shards. Files without content are what a first
    /// start leaves that was cut off before it wrote the manifest.
    fn refuse_leftover_shards(&self, kind: Kind) -> Result<(), StorageError> {
        let listed = self.disk.list(Path::new("")).map_err(self.failed("listing", Path::new("")))?;
        for entry in listed.iter().filter(|entry| entry.is_dir && entry.name.starts_with("shard-")) {
            let dir = Path::new(&entry.name);
            let files = self.disk.list(dir).map_err(self.failed("listing", dir))?;
            if files.iter().any(|file| file.len > 0 || file.name != kind.shard_file) {
                return Err(StorageError::Layout(format!(
                    "{} has shards but no {MANIFEST_FILE}: restore that file, or use another data directory",
                    self.root.display()
                )));
            }
        }
        Ok(())
    }

    fn write_manifest(&self, kind: Kind, shard_count: usize) -> Result<(), StorageError> {
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            storage: kind.name.to_owned(),
            shard_count,
            hash: SHARD_HASH.to_owned(),
            generation: self.generation,
        };
        let mut text = serde_json::to_string_pretty(&manifest).map_err(|error| StorageError::Io {
            context: "encoding the manifest".to_owned(),
            source: error.into(),
        })?;
        text.push('\n');
        let draft = Path::new(MANIFEST_FILE_NEW);
        let write = || self.disk.open(draft, OpenMode::Create)?.write_at(0, text.as_bytes());
        write().map_err(self.failed("writing", draft))?;
        self.publish(draft, Path::new(MANIFEST_FILE))
    }
}

/// Shards of a new directory unless somebody asks for another number: as many as there are cores for this process.
pub(crate) fn default_shard_count() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(SHARDS_MAX)
}

impl ShardCount {
    fn check(self) -> Result<(), StorageError> {
        for count in self.explicit.iter().chain([&self.default]) {
            if !(1..=SHARDS_MAX).contains(count) {
                return Err(StorageError::Layout(format!(
                    "storage.acid_shard_count must be between 1 and {SHARDS_MAX}, not {count}"
                )));
            }
        }
        Ok(())
    }
}

/// Writes the manifest of a directory whose shards are complete and durable. `root` is what paths are printed below.
pub(crate) fn write_manifest_to(
    disk: &Arc<dyn Disk>,
    root: &Path,
    kind: Kind,
    shard_count: usize,
) -> Result<(), StorageError> {
    let directory = DataDirectory {
        disk: Arc::clone(disk),
        root: root.to_owned(),
        shard_count,
        generation: 0,
        _lock: None,
    };
    directory.write_manifest(kind, shard_count)
}

/// Takes the manifest, and its draft, from a directory that is given up. What cannot be removed stays.
pub(crate) fn remove_manifest(disk: &dyn Disk) {
    for name in [MANIFEST_FILE, MANIFEST_FILE_NEW] {
        let _ = disk.remove(Path::new(name));
    }
}

/// Whether a directory has a manifest, and with it everything else.
pub(crate) fn is_complete(root: &Path) -> bool {
    root.join(MANIFEST_FILE).exists()
}

/// Directory of a shard in a generation, below the data directory.
pub(crate) fn shard_dir(generation: u64, shard: usize) -> PathBuf {
    match generation {
        0 => format!("shard-{shard:02}").into(),
        _ => format!("shard-{shard:02}-g{generation}").into(),
    }
}

fn io_failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError + use<> {
    let path = path.display().to_string();
    move |source| StorageError::Io { context: format!("{doing} {path}"), source }
}
