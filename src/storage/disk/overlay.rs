//! A disk over another one, of which it only reads: what is changed is kept in RAM, and gone with it.
//!
//! So whoever opens a data directory to look at it may do so with the code that opens it to work with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Disk, DiskEntry, DiskFile, OpenMode};

/// Changes are kept in pieces of this size. Bytes.
const PAGE_BYTES: u64 = 4096;

/// See the module. Nothing else may change the disk below meanwhile.
#[derive(Debug)]
pub(crate) struct OverlayDisk {
    below: Arc<dyn Disk>,
    changes: Mutex<Changes>,
}

#[derive(Debug, Default)]
struct Changes {
    /// `None` = removed.
    files: BTreeMap<PathBuf, Option<Arc<OverlayFile>>>,
    dirs: BTreeSet<PathBuf>,
    removed_dirs: BTreeSet<PathBuf>,
}

impl OverlayDisk {
    /// A disk that looks as `below` does.
    pub(crate) fn new(below: Arc<dyn Disk>) -> Self {
        Self { below, changes: Mutex::default() }
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file that may be changed.
    fn own(&self, changes: &mut Changes, path: &Path) -> io::Result<Arc<OverlayFile>> {
        match changes.files.get(path) {
            Some(Some(file)) => Ok(Arc::clone(file)),
            Some(None) => Err(io::ErrorKind::NotFound.into()),
            None => {
                let file = Arc::new(OverlayFile::over(self.below.open(path, OpenMode::Read)?)?);
                changes.files.insert(path.to_owned(), Some(Arc::clone(&file)));
                Ok(file)
            }
        }
    }
}

impl Disk for OverlayDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut changes = self.changes();
        match mode {
            OpenMode::Read if !changes.files.contains_key(path) => self.below.open(path, OpenMode::Read),
            OpenMode::Read | OpenMode::Write => Ok(self.own(&mut changes, path)?),
            OpenMode::Create => {
                let file = Arc::new(OverlayFile::default());
                changes.files.insert(path.to_owned(), Some(Arc::clone(&file)));
                Ok(file)
            }
        }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut changes = self.changes();
        let file = self.own(&mut changes, from)?;
        changes.files.insert(from.to_owned(), None);
        changes.files.insert(to.to_owned(), Some(file));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut changes = self.changes();
        self.own(&mut changes, path)?;
        changes.files.insert(path.to_owned(), None);
        Ok(())
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut changes = self.changes();
        changes.removed_dirs.remove(path);
        changes.dirs.insert(path.to_owned());
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        if !self.list(path)?.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        let mut changes = self.changes();
        changes.dirs.remove(path);
        changes.removed_dirs.insert(path.to_owned());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DiskEntry>> {
        let changes = self.changes();
        let listed = match self.below.list(dir) {
            Ok(listed) => listed,
            Err(_) if changes.dirs.contains(dir) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut entries: BTreeMap<String, DiskEntry> =
            listed.into_iter().map(|entry| (entry.name.clone(), entry)).collect();
        let name_in = |path: &Path| {
            let is_in = path.parent().unwrap_or(Path::new("")) == dir;
            is_in.then(|| path.file_name().unwrap_or_default().to_string_lossy().into_owned())
        };
        for (path, file) in &changes.files {
            let Some(name) = name_in(path) else { continue };
            match file {
                Some(file) => {
                    let entry = DiskEntry { name: name.clone(), is_dir: false, len: file.len()? };
                    entries.insert(name, entry);
                }
                None => drop(entries.remove(&name)),
            }
        }
        for name in changes.dirs.iter().filter_map(|path| name_in(path)) {
            entries.insert(name.clone(), DiskEntry { name, is_dir: true, len: 0 });
        }
        for name in changes.removed_dirs.iter().filter_map(|path| name_in(path)) {
            entries.remove(&name);
        }
        Ok(entries.into_values().collect())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> Option<u64> {
        self.below.free_bytes()
    }
}

/// A file and what was changed in it.
#[derive(Debug, Default)]
struct OverlayFile {
    below: Option<Arc<dyn DiskFile>>,
    content: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    len: u64,
    /// The file below counts up to here; zeros follow.
    below_len: u64,
    /// Whole pages that were written to, by their number.
    pages: HashMap<u64, Box<[u8; PAGE_BYTES as usize]>>,
}

impl OverlayFile {
    fn over(below: Arc<dyn DiskFile>) -> io::Result<Self> {
        let len = below.len()?;
        let content = Content { len, below_len: len, pages: HashMap::new() };
        Ok(Self { below: Some(below), content: Mutex::new(content) })
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills `out` with what is below at `offset`.
    fn read_below(&self, below_len: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = below_len.saturating_sub(offset).min(out.len() as u64) as usize;
        let (held, missing) = out.split_at_mut(there);
        missing.fill(0);
        match &self.below {
            Some(below) if there > 0 => below.read_at(offset, held),
            _ => Ok(()),
        }
    }
}

/// The part of a page that a range of a file meets: number of the page, where in the page, how many bytes.
fn first_page(offset: u64, len: usize) -> (u64, usize, usize) {
    let at = (offset % PAGE_BYTES) as usize;
    (offset / PAGE_BYTES, at, len.min(PAGE_BYTES as usize - at))
}

impl DiskFile for OverlayFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content().len)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.content();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > content.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_below(content.below_len, offset, out)?;
        if content.pages.is_empty() {
            return Ok(());
        }
        let mut done = 0;
        while done < out.len() {
            let (page, at, len) = first_page(offset + done as u64, out.len() - done);
            if let Some(page) = content.pages.get(&page) {
                out[done..done + len].copy_from_slice(&page[at..at + len]);
            }
            done += len;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.content();
        let mut done = 0;
        while done < data.len() {
            let (page, at, len) = first_page(offset + done as u64, data.len() - done);
            if !content.pages.contains_key(&page) {
                let mut bytes = Box::new([0; PAGE_BYTES as usize]);
                self.read_below(content.below_len, page * PAGE_BYTES, &mut bytes[..])?;
                content.pages.insert(page, bytes);
            }
            let held = content.pages.get_mut(&page).expect("it was put there if it was missing");
            held[at..at + len].copy_from_slice(&data[done..done + len]);
            done += len;
        }
        content.len = content.len.max(offset + data.len() as u64);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut content = self.content();
        if len < content.len {
            content.below_len = content.below_len.min(len);
            content.pages.retain(|page, _| page * PAGE_BYTES < len);
            let (page, at, _) = first_page(len, 0);
            if let Some(last) = content.pages.get_mut(&page) {
                last[at..].fill(0);
            }
        }
        content.len = len;
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::MemoryDisk;
    use super::*;

    fn whole(disk: &dyn Disk, path: &Path) -> Vec<u8> {
        let file = disk.open(path, OpenMode::Read).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_at(0, &mut bytes).unwrap();
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_behaves_as_a_disk_of_its_own_and_leaves_the_one_below_alone(
            before in 0..20_000_usize,
            changes in prop::collection::vec((any::<bool>(), 0..30_000_u64, 0..9_000_usize, any::<u8>()), 0..12),
        ) {
            let (below, alone) = (MemoryDisk::new(), MemoryDisk::new());
            let path = Path::new("file");
            let content: Vec<u8> = (0..before).map(|n| n as u8).collect();
            for disk in [&below, &alone] {
                disk.open(path, OpenMode::Create).unwrap().write_at(0, &content).unwrap();
            }
            let overlay = OverlayDisk::new(Arc::new(below.clone()));
            for (cuts, at, len, byte) in changes {
                for disk in [&overlay as &dyn Disk, &alone] {
                    let file = disk.open(path, OpenMode::Write).unwrap();
                    if cuts { file.set_len(at).unwrap() } else { file.write_at(at, &vec![byte; len]).unwrap() }
                }
            }
            prop_assert_eq!(whole(&overlay, path), whole(&alone, path));
            prop_assert_eq!(whole(&below, path), content);
        }
    }

    #[test]
    fn names_are_changed_above_only() {
        let below = MemoryDisk::new();
        below.create_dir(Path::new("d")).unwrap();
        for name in ["d/kept", "d/moved", "d/removed"] {
            below.open(Path::new(name), OpenMode::Create).unwrap().write_at(0, b"x").unwrap();
        }
        let overlay = OverlayDisk::new(Arc::new(below.clone()));
        overlay.rename(Path::new("d/moved"), Path::new("d/elsewhere")).unwrap();
        overlay.remove(Path::new("d/removed")).unwrap();
        overlay.create_dir(Path::new("new")).unwrap();
        overlay.open(Path::new("d/made"), OpenMode::Create).unwrap();
        let names = |disk: &dyn Disk, dir: &str| -> Vec<String> {
            disk.list(Path::new(dir)).unwrap().into_iter().map(|entry| entry.name).collect()
        };
        assert_eq!(names(&overlay, "d"), ["elsewhere", "kept", "made"]);
        assert_eq!(names(&overlay, ""), ["d", "new"]);
        assert_eq!(names(&below, "d"), ["kept", "moved", "removed"]);
        assert_eq!(names(&below, ""), ["d"]);
        let gone = overlay.open(Path::new("d/removed"), OpenMode::Write).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(whole(&overlay, Path::new("d/elsewhere")), b"x");
    }
}
