//! Files in RAM.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::{Disk, DiskEntry, DiskFile, OpenMode};

/// A disk that is gone with the process. Syncing does nothing, and nothing is ever lost before.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk {
    tree: Arc<Mutex<Tree>>,
}

#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<PathBuf, Arc<MemoryFile>>,
    dirs: BTreeSet<PathBuf>,
}

impl MemoryDisk {
    /// An empty disk. Clones share their files.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree {
    fn check_dir(&self, dir: &Path) -> io::Result<()> {
        let exists = dir == Path::new("") || self.dirs.contains(dir);
        exists.then_some(()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

impl Disk for MemoryDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut tree = self.tree();
        let existing = tree.files.get(path).cloned();
        if mode != OpenMode::Create {
            let file = existing.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            return Ok(file);
        }
        tree.check_dir(dir_of(path))?;
        let file = existing.unwrap_or_default();
        file.set_len(0)?;
        tree.files.insert(path.to_owned(), Arc::clone(&file));
        Ok(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut tree = self.tree();
        let file = tree.files.remove(from).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        tree.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let removed = self.tree().files.remove(path);
        removed.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.tree();
        tree.check_dir(dir_of(path))?;
        tree.dirs.insert(path.to_owned());
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut tree = self.tree();
        tree.check_dir(path)?;
        if tree.files.keys().chain(&tree.dirs).any(|held| dir_of(held) == path) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        tree.dirs.remove(path);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let tree = self.tree();
        tree.check_dir(dir)?;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut entries = Vec::new();
        for path in tree.dirs.iter().filter(|path| dir_of(path) == dir) {
            entries.push(DiskEntry { name: name(path), is_dir: true, len: 0 });
        }
        for (path, file) in tree.files.iter().filter(|(path, _)| dir_of(path) == dir) {
            entries.push(DiskEntry { name: name(path), is_dir: false, len: file.len()? });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.tree().check_dir(dir)
    }

    fn free_bytes(&self) -> Option<u64> {
        None
    }
}

#[derive(Debug, Default)]
struct MemoryFile {
    content: RwLock<Vec<u8>>,
}

impl DiskFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content.read().unwrap_or_else(PoisonError::into_inner).len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.content.read().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let held = start.checked_add(out.len()).and_then(|end| content.get(start..end));
        out.copy_from_slice(held.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let end = start + data.len();
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        content.resize(len, 0);
        content.shrink_to_fit();
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        self.len()
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}
