//! Generations: sets of shard directories beside each other, of which the manifest names the one in use.
//!
//! Who changes a data directory as a whole writes all of it anew beside the old one, makes it durable, replaces the
//! manifest, and then removes the old one. So at any moment one of the two is complete and in use, and the other one means
//! nothing: it is half made or left over, and whoever opens the directory next removes it.

use std::path::Path;

use super::disk::Disk;
use super::layout::shard_dir;

/// A shard's directory, as its name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardName {
    /// Its generation.
    pub(crate) generation: u64,
    /// Its number.
    pub(crate) shard: usize,
}

impl ShardName {
    /// Reads a name of [`shard_dir`]'s making; others are nobody's.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        let (shard, generation) = match name.strip_prefix("shard-")?.split_once("-g") {
            None => (name.strip_prefix("shard-")?, "0"),
            Some(parts) => parts,
        };
        let parsed = Self { generation: generation.parse().ok()?, shard: shard.parse().ok()? };
        (shard_dir(parsed.generation, parsed.shard) == Path::new(name)).then_some(parsed)
    }
}

/// The shard directories of all generations but one.
pub(crate) fn others(disk: &dyn Disk, in_use: u64) -> std::io::Result<Vec<String>> {
    let is_other = |name: &str| ShardName::parse(name).is_some_and(|name| name.generation != in_use);
    let listed = disk.list(Path::new(""))?.into_iter();
    Ok(listed.filter(|entry| entry.is_dir && is_other(&entry.name)).map(|entry| entry.name).collect())
}

/// The number of a generation that nothing in the directory belongs to.
pub(crate) fn unused(disk: &dyn Disk, in_use: u64) -> std::io::Result<u64> {
    let listed = disk.list(Path::new(""))?;
    let found = listed.iter().filter_map(|entry| ShardName::parse(&entry.name)).map(|name| name.generation);
    Ok(found.max().unwrap_or(0).max(in_use) + 1)
}

/// Removes the shards of all generations but one, durably. Returns how many directories that were.
pub(crate) fn remove_others(disk: &dyn Disk, in_use: u64) -> std::io::Result<usize> {
    let others = others(disk, in_use)?;
    for name in &others {
        let dir = Path::new(name);
        for file in disk.list(dir)? {
            disk.remove(&dir.join(&file.name))?;
        }
        // A file that a power cut brings back would be in the way of its directory's end.
        disk.sync_dir(dir)?;
        disk.remove_dir(dir)?;
    }
    if !others.is_empty() {
        disk.sync_dir(Path::new(""))?;
    }
    Ok(others.len())
}

/// The same for somebody who can do without: it costs room, and the next one tries again.
pub(crate) fn remove_others_if_possible(disk: &dyn Disk, in_use: u64) {
    match remove_others(disk, in_use) {
        Ok(0) => {}
        Ok(directories) => tracing::info!(
            directories,
            "removed what a reshard or an import that was cut off left in the data directory"
        ),
        Err(error) => tracing::warn!(
            %error,
            "what a reshard or an import that was cut off left in the data directory could not be removed"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::disk::{MemoryDisk, OpenMode};

    #[test]
    fn names_of_shard_directories_are_read_back_and_others_are_not() {
        for (generation, shard) in [(0, 0), (0, 7), (0, 255), (1, 3), (12, 100)] {
            let name = shard_dir(generation, shard);
            assert_eq!(ShardName::parse(name.to_str().unwrap()), Some(ShardName { generation, shard }));
        }
        for name in ["shard-0", "shard-001", "shard-00-g0", "shard-00-g01", "shard-00-g", "shard-", "x-00"] {
            assert_eq!(ShardName::parse(name), None, "{name}");
        }
    }

    #[test]
    fn all_generations_but_the_one_in_use_are_removed_and_nothing_else() {
        let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
        for dir in ["shard-00", "shard-00-g1", "shard-01-g2", "elsewhere"] {
            disk.create_dir(Path::new(dir)).unwrap();
            disk.open(&Path::new(dir).join("file"), OpenMode::Create).unwrap();
        }
        assert_eq!(unused(&*disk, 1).unwrap(), 3);
        assert_eq!(remove_others(&*disk, 1).unwrap(), 2);
        let left: Vec<_> = disk.list(Path::new("")).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(left, ["elsewhere", "shard-00-g1"]);
        assert_eq!(remove_others(&*disk, 1).unwrap(), 0);
    }
}
