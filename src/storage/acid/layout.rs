//! The data directory: its lock, its manifest, its files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use redb::backends::FileBackend;
use serde::{Deserialize, Serialize};

use super::tables::FORMAT_VERSION;
use crate::storage::StorageError;

const LOCK_FILE: &str = "LOCK";
const MANIFEST_FILE: &str = "layout.json";
const MANIFEST_FILE_NEW: &str = "layout.json.new";
const SHARD_FILE: &str = "shard.redb";
const SHARD_FILE_NEW: &str = "shard.redb.new";

/// Name of the hash that maps stream names to shards. Part of the layout: with another hash, streams would be looked for
/// in shards that do not have them.
const SHARD_HASH: &str = "xxh3-64/seed0";

/// What `layout.json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format_version: u64,
    shard_count: usize,
    hash: String,
}

/// The only field that every version of the manifest has.
#[derive(Deserialize)]
struct ManifestVersion {
    format_version: u64,
}

/// A data directory that this process holds.
#[derive(Debug)]
pub(super) struct DataDirectory {
    root: PathBuf,
    shard_count: usize,
    /// Locked for as long as it is open. Never deleted: a second process could lock a successor under the same name.
    lock: File,
}

impl DataDirectory {
    /// Locks the directory; makes it with `explicit_shards` or else `default_shards` if it is new.
    pub(super) fn open(
        root: &Path,
        explicit_shards: Option<usize>,
        default_shards: usize,
    ) -> Result<Self, StorageError> {
        create_dir_durably(root)?;
        let lock = lock(root)?;
        let shard_count = match read_manifest(root)? {
            Some(manifest) => {
                check_manifest(root, &manifest, explicit_shards)?;
                for shard in 0..manifest.shard_count {
                    let path = shard_path(root, shard);
                    if !path.try_exists().map_err(io_failed("looking for", &path))? {
                        return Err(StorageError::Layout(format!(
                            "{} is missing: {MANIFEST_FILE} says that there are {} shards",
                            path.display(),
                            manifest.shard_count
                        )));
                    }
                }
                manifest.shard_count
            }
            None => {
                refuse_leftover_shards(root)?;
                let shard_count = explicit_shards.unwrap_or(default_shards);
                // The manifest comes last: a directory that has one is complete, so a missing file means loss.
                for shard in 0..shard_count {
                    create_shard_file(root, shard)?;
                }
                write_manifest(root, shard_count)?;
                shard_count
            }
        };
        Ok(Self { root: root.to_owned(), shard_count, lock })
    }

    /// Number of shards that the directory was made for.
    pub(super) fn shard_count(&self) -> usize {
        self.shard_count
    }

    /// Bytes of disk that the shard's files take.
    pub(super) fn shard_disk_bytes(&self, shard: usize) -> io::Result<u64> {
        let metadata = fs::metadata(shard_path(&self.root, shard))?;
        // redb makes files longer than it has written to them, so their length would overstate what they take.
        #[cfg(unix)]
        let bytes = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        #[cfg(not(unix))]
        let bytes = metadata.len();
        Ok(bytes)
    }

    /// Bytes that are free for this process on the file system. `None` = it does not tell.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        #[cfg(unix)]
        {
            let space = rustix::fs::fstatvfs(&self.lock).ok()?;
            // File systems that have no idea of their size say 0.
            (space.f_blocks > 0).then(|| space.f_bavail.saturating_mul(space.f_frsize))
        }
        #[cfg(not(unix))]
        {
            let _ = &self.lock;
            None
        }
    }

    /// A file in which to make the shard's database, if it has none yet.
    ///
    /// redb cannot open a file that a crash left half made, nor could anyone tell it from one that lost its header. So the
    /// database is made under another name, and [`DataDirectory::publish_shard`] puts it into its place.
    pub(super) fn draft_shard(&self, shard: usize) -> Result<Option<FileBackend>, StorageError> {
        let path = shard_path(&self.root, shard);
        if fs::metadata(&path).map_err(io_failed("looking at", &path))?.len() > 0 {
            return Ok(None);
        }
        let draft = path.with_file_name(SHARD_FILE_NEW);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&draft)
            .map_err(io_failed("creating", &draft))?;
        backend_of(file, &draft).map(Some)
    }

    /// Durably replaces the shard's empty file by its draft, which has to be closed and complete.
    pub(super) fn publish_shard(&self, shard: usize) -> Result<(), StorageError> {
        let path = shard_path(&self.root, shard);
        let draft = path.with_file_name(SHARD_FILE_NEW);
        File::open(&draft).and_then(|file| file.sync_all()).map_err(io_failed("flushing", &draft))?;
        fs::rename(&draft, &path).map_err(io_failed("renaming to", &path))?;
        sync_dir(shard_dir(&path))
    }

    /// Opens the shard's database file. With `distrust_cache`, what the kernel holds in RAM of it is dropped first, so
    /// that the database is judged by what the disk holds.
    pub(super) fn open_shard(&self, shard: usize, distrust_cache: bool) -> Result<FileBackend, StorageError> {
        let path = shard_path(&self.root, shard);
        let file =
            OpenOptions::new().read(true).write(true).open(&path).map_err(io_failed("opening", &path))?;
        if distrust_cache {
            drop_cached_pages(&file).map_err(io_failed("flushing", &path))?;
        }
        backend_of(file, &path)
    }
}

fn backend_of(file: File, path: &Path) -> Result<FileBackend, StorageError> {
    FileBackend::new(file).map_err(|error| StorageError::Database {
        context: format!("opening {}", path.display()),
        message: error.to_string(),
    })
}

/// Writes out what can be written of a file's cached pages and drops them.
///
/// After a failed write-back Linux marks the page clean but keeps its content: it reads as if it were on disk, and a
/// later fsync does not fail. Without these pages a reader gets what the disk really has.
fn drop_cached_pages(file: &File) -> io::Result<()> {
    // Dirty pages are not dropped, so they have to be clean first.
    file.sync_all()?;
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

fn lock(root: &Path) -> Result<File, StorageError> {
    let path = root.join(LOCK_FILE);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_failed("opening", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StorageError::Locked(root.display().to_string())),
        Err(TryLockError::Error(source)) => Err(io_failed("locking", &path)(source)),
    }
}

fn read_manifest(root: &Path) -> Result<Option<Manifest>, StorageError> {
    let path = root.join(MANIFEST_FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_failed("reading", &path)(error)),
    };
    let malformed = |error| StorageError::Layout(format!("{} is malformed: {error}", path.display()));
    let ManifestVersion { format_version } = serde_json::from_str(&text).map_err(malformed)?;
    if format_version != FORMAT_VERSION {
        return Err(StorageError::Layout(format!(
            "{} has format version {format_version}, this program reads version {FORMAT_VERSION}",
            path.display()
        )));
    }
    serde_json::from_str(&text).map(Some).map_err(malformed)
}

fn check_manifest(
    root: &Path,
    manifest: &Manifest,
    explicit_shards: Option<usize>,
) -> Result<(), StorageError> {
    let path = root.join(MANIFEST_FILE);
    if manifest.hash != SHARD_HASH {
        return Err(StorageError::Layout(format!(
            "{} names the hash {:?}, this program knows {SHARD_HASH:?} only",
            path.display(),
            manifest.hash
        )));
    }
    if !(1..=super::SHARDS_MAX).contains(&manifest.shard_count) {
        return Err(StorageError::Layout(format!(
            "{} says that there are {} shards; there can be 1 to {}",
            path.display(),
            manifest.shard_count,
            super::SHARDS_MAX
        )));
    }
    match explicit_shards {
        Some(explicit) if explicit != manifest.shard_count => Err(StorageError::Layout(format!(
            "storage.acid_shard_count is {explicit}, but the data directory {} was made with {} shards; keep {}, or \
             change the directory with `durable-streams-server reshard`",
            root.display(),
            manifest.shard_count,
            manifest.shard_count
        ))),
        _ => Ok(()),
    }
}

/// Without a manifest nobody knows how the streams were spread over the shards. Files without content are what a first
/// start leaves that was cut off before it wrote the manifest.
fn refuse_leftover_shards(root: &Path) -> Result<(), StorageError> {
    for entry in fs::read_dir(root).map_err(io_failed("listing", root))? {
        let entry = entry.map_err(io_failed("listing", root))?;
        if !entry.file_name().to_string_lossy().starts_with("shard-") {
            continue;
        }
        let path = entry.path().join(SHARD_FILE);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > 0 => {
                return Err(StorageError::Layout(format!(
                    "{} has shards but no {MANIFEST_FILE}: restore that file, or use another data directory",
                    root.display()
                )));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(io_failed("looking at", &path)(error)),
        }
    }
    Ok(())
}

fn write_manifest(root: &Path, shard_count: usize) -> Result<(), StorageError> {
    let manifest = Manifest { format_version: FORMAT_VERSION, shard_count, hash: SHARD_HASH.to_owned() };
    let mut text = serde_json::to_string_pretty(&manifest).map_err(|error| StorageError::Io {
        context: "encoding the manifest".to_owned(),
        source: error.into(),
    })?;
    text.push('\n');
    let new = root.join(MANIFEST_FILE_NEW);
    let write = || -> io::Result<()> {
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(io_failed("writing", &new))?;
    let path = root.join(MANIFEST_FILE);
    fs::rename(&new, &path).map_err(io_failed("renaming to", &path))?;
    sync_dir(root)
}

fn shard_path(root: &Path, shard: usize) -> PathBuf {
    root.join(format!("shard-{shard:02}")).join(SHARD_FILE)
}

fn shard_dir(shard_path: &Path) -> &Path {
    shard_path.parent().expect("shard_path joins the file to a directory")
}

fn create_shard_file(root: &Path, shard: usize) -> Result<(), StorageError> {
    let path = shard_path(root, shard);
    let dir = shard_dir(&path);
    create_dir_durably(dir)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_failed("creating", &path))?;
    file.sync_all().map_err(io_failed("flushing", &path))?;
    sync_dir(dir)
}

/// Creates a directory and those above it, each fsynced together with its entry in its parent.
fn create_dir_durably(dir: &Path) -> Result<(), StorageError> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = match dir.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    create_dir_durably(parent)?;
    match fs::create_dir(dir) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
        Err(error) => return Err(io_failed("creating", dir)(error)),
    }
    sync_dir(dir)?;
    sync_dir(parent)
}

fn sync_dir(dir: &Path) -> Result<(), StorageError> {
    // Elsewhere directories cannot be opened, and their entries are durable with the file.
    #[cfg(unix)]
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_failed("flushing", dir))?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

fn io_failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.display().to_string();
    move |source| StorageError::Io { context: format!("{doing} {path}"), source }
}
