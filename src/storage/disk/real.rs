//! Files of the operating system.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Disk, DiskEntry, DiskFile, OpenMode};

/// A directory of the operating system.
#[derive(Clone, Debug)]
pub struct RealDisk {
    root: PathBuf,
    syncs: Arc<Syncs>,
}

/// How often something was made durable, by the disk and all files of it. Logged when the last of them is closed: the cost of
/// a durable append is, for the most part, its share in a sync.
#[derive(Debug, Default)]
struct Syncs(AtomicU64);

impl Syncs {
    fn count(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Syncs {
    fn drop(&mut self) {
        tracing::info!(disk.syncs = *self.0.get_mut(), "data directory closed");
    }
}

impl RealDisk {
    /// The disk whose paths are relative to `root`, which has to exist.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), syncs: Arc::default() }
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        match mode {
            OpenMode::Read => options.read(true),
            OpenMode::Write => options.read(true).write(true),
            OpenMode::Create => options.read(true).write(true).create(true).truncate(true),
        };
        let file = options.open(self.root.join(path))?;
        Ok(Arc::new(RealFile { file, syncs: Arc::clone(&self.syncs) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn link(&self, path: &Path, target: &Path) -> io::Result<()> {
        fs::hard_link(self.root.join(path), target)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(self.root.join(path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let path = self.root.join(path);
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            outcome => outcome,
        }
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(self.root.join(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.root.join(dir))? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            let is_dir = metadata.is_dir();
            let len = if is_dir { 0 } else { metadata.len() };
            entries.push(DiskEntry { name: entry.file_name().to_string_lossy().into_owned(), is_dir, len });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // Windows has no such thing, and keeps names without it.
        #[cfg(unix)]
        {
            self.syncs.count();
            File::open(self.root.join(dir))?.sync_all()?;
        }
        #[cfg(not(unix))]
        let _ = dir;
        Ok(())
    }

    fn free_bytes(&self) -> Option<u64> {
        #[cfg(unix)]
        {
            let space = rustix::fs::statvfs(&self.root).ok()?;
            // File systems that have no idea of their size say 0.
            (space.f_blocks > 0).then(|| space.f_bavail.saturating_mul(space.f_frsize))
        }
        #[cfg(not(unix))]
        None
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    syncs: Arc<Syncs>,
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset)
    }

    /// Without clearing what is going to be read over.
    #[cfg(unix)]
    fn read_onto(&self, offset: u64, bytes: usize, out: &mut Vec<u8>) -> io::Result<()> {
        let (start, end) = (out.len(), out.len() + bytes);
        out.reserve_exact(bytes);
        while out.len() < end {
            let at = offset + (out.len() - start) as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(out), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // There may have been room for more.
        out.truncate(end);
        Ok(())
    }

    #[cfg(windows)]
    fn read_at(&self, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
        while !out.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(&self.file, out, offset)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => {
                    out = &mut out[read..];
                    offset += read as u64;
                }
            }
        }
        Ok(())
    }

    #[cfg(unix)]
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(&self.file, data, offset)
    }

    #[cfg(windows)]
    fn write_at(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(&self.file, data, offset)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => {
                    data = &data[written..];
                    offset += written as u64;
                }
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.count();
        self.file.sync_data()
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        let metadata = self.file.metadata()?;
        #[cfg(unix)]
        let bytes = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
        #[cfg(not(unix))]
        let bytes = metadata.len();
        Ok(bytes)
    }

    fn drop_cache(&self) -> io::Result<()> {
        // Dirty pages are not dropped, so they have to be clean first.
        self.file.sync_all()?;
        #[cfg(target_os = "linux")]
        rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed)?;
        Ok(())
    }
}
