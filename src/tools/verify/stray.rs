//! Files that mean nothing.

use std::collections::HashSet;
use std::path::Path;

use super::{Finding, Report};
use crate::storage::disk::{Disk, DiskEntry};
use crate::storage::generation::ShardName;
use crate::storage::layout::{ADMIN_SOCKET_FILE, LOCK_FILE, Layout, MANIFEST_FILE, shard_dir};
use crate::storage::segment::id_of_file_name;
use crate::storage::{acid, file};

/// Notes what is in the directory and does not belong to it. `opened` is the same disk as the opening of the shards left it:
/// what that has removed is of no use.
pub(super) fn check(disk: &dyn Disk, opened: &dyn Disk, layout: &Layout, report: &mut Report<'_>) {
    for entry in listed(disk, Path::new(""), report) {
        let name = Path::new(&entry.name);
        match ShardName::parse(&entry.name).filter(|_| entry.is_dir) {
            Some(shard) if shard.generation != layout.generation => {
                let what =
                    "left over from a reshard or an import that was cut off; the next start removes it";
                report.add(Finding::note(what).in_file(name));
            }
            Some(shard) if shard.shard >= layout.shard_count => {
                report.add(Finding::note("there is no such shard").in_file(name));
            }
            Some(_) => {}
            None if [LOCK_FILE, MANIFEST_FILE, ADMIN_SOCKET_FILE].contains(&entry.name.as_str()) => {}
            None => report.add(Finding::note("not a file of a data directory").in_file(name)),
        }
    }
    for shard in 0..layout.shard_count {
        let dir = shard_dir(layout.generation, shard);
        let needed: HashSet<String> =
            listed(opened, &dir, report).into_iter().map(|entry| entry.name).collect();
        for entry in listed(disk, &dir, report) {
            let what = if !needed.contains(&entry.name) {
                "of no use; the next start removes it"
            } else if entry.is_dir || !is_of_a_shard(&entry.name) {
                "not a file of a shard"
            } else {
                continue;
            };
            report.add(Finding::note(what).in_shard(shard).in_file(dir.join(&entry.name)));
        }
    }
}

fn listed(disk: &dyn Disk, dir: &Path, report: &mut Report<'_>) -> Vec<DiskEntry> {
    disk.list(dir).unwrap_or_else(|error| {
        report.add(Finding::error(format!("listing it: {error}")).in_file(dir));
        Vec::new()
    })
}

fn is_of_a_shard(name: &str) -> bool {
    [acid::KIND, file::KIND].iter().any(|kind| kind.shard_file == name)
        || id_of_file_name(name).is_some()
        || file::is_own_name(name)
        || acid::is_own_name(name)
}
