//! Backups of an engine at work: brings the shards together, and has what they had in that instant copied.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::config::{AcidBackend, Config, StorageMode};
use crate::engine::embed::EngineOptions;
use crate::engine::handle::Engine;
use crate::engine::request::Mail;
use crate::storage::backup::{
    self, BackupError, BackupSummary, Missed, OnProgress, ShardSnapshot, Target, tickets,
};
use crate::storage::offline::OfflineDirectory;
use crate::storage::{Catalogs, CommitLog, OpenedShard, StorageError, open_shard};

/// Times that the shards are asked to come together. A busy disk is no reason to stop commits for longer at one time.
const ATTEMPTS: usize = 5;
/// Pause between them.
const ATTEMPT_PAUSE: Duration = Duration::from_millis(200);

/// What an engine knows of its backups.
#[derive(Debug)]
pub(crate) struct Backups {
    /// Where the data are; `None` = not in a directory of the operating system.
    data_dir: Option<PathBuf>,
    /// Memory mode.
    nothing_stored: bool,
    under_way: AtomicBool,
}

impl Backups {
    pub(crate) fn new(config: &Config, options: &EngineOptions) -> Self {
        let storage = &config.storage;
        let in_ram = storage.mode == StorageMode::Memory
            || (storage.mode == StorageMode::Acid && storage.acid_backend == AcidBackend::InMemory)
            || options.disk.is_some()
            || options.backend.is_some();
        Self {
            data_dir: (!in_ram).then(|| storage.data_dir.clone()),
            nothing_stored: storage.mode == StorageMode::Memory,
            under_way: AtomicBool::new(false),
        }
    }

    /// `None` if there is one already.
    fn begin(&self) -> Option<UnderWay<'_>> {
        let was = self.under_way.swap(true, Ordering::AcqRel);
        (!was).then_some(UnderWay(&self.under_way))
    }
}

struct UnderWay<'a>(&'a AtomicBool);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Engine {
    /// Where the data are, if that is a directory of the operating system.
    pub(crate) fn data_dir(&self) -> Option<&Path> {
        self.shared.backups.data_dir.as_deref()
    }

    /// Copies everything that was acknowledged before the call, and perhaps more, into the directory `target`, which has to be
    /// empty or not to exist: a data directory in which every stream is as it was at one instant, the same for all. A server
    /// that is started on it goes on from there.
    ///
    /// Requests go on being served. Commits of all shards pause for as long as the slowest of those under way takes; nothing
    /// waits for the copying. Segments are linked where the file system allows it. `progress` is told how far it is, and
    /// may end it.
    ///
    /// Blocks: not to be called on a thread that runs async tasks.
    ///
    /// # Errors
    /// [`BackupError`]. What was written is removed then, as far as that is possible; a server refuses what is left of it.
    pub fn backup(&self, target: &Path, progress: OnProgress<'_>) -> Result<BackupSummary, BackupError> {
        if self.shared.backups.nothing_stored {
            return Err(BackupError::NothingOnDisk);
        }
        let _under_way = self.shared.backups.begin().ok_or(BackupError::Busy)?;
        let mut target = Target::new(target, self.data_dir(), progress)?;
        match self.snapshots() {
            Ok((shards, paused)) => {
                target.set_paused(paused);
                backup::write(shards, target)
            }
            Err(error) => {
                target.abandon();
                Err(error)
            }
        }
    }

    fn snapshots(&self) -> Result<(Vec<ShardSnapshot>, Duration), BackupError> {
        let mut attempt = 1;
        loop {
            match self.try_snapshots() {
                Err(Missed::TooLate) if attempt < ATTEMPTS => {
                    attempt += 1;
                    thread::sleep(ATTEMPT_PAUSE);
                }
                outcome => return Ok(outcome?),
            }
        }
    }

    /// All shards as of one instant, and for how long their commits stood still.
    fn try_snapshots(&self) -> Result<(Vec<ShardSnapshot>, Duration), Missed> {
        let (tickets, outcomes) = tickets(self.shard_count());
        for (shard, ticket) in tickets.into_iter().enumerate() {
            self.post(shard, Mail::Snapshot(ticket));
        }
        let mut found: Vec<Option<ShardSnapshot>> = Vec::new();
        found.resize_with(self.shard_count(), || None);
        let mut paused = Duration::ZERO;
        for outcome in outcomes {
            paused = paused.max(outcome.paused);
            // The others are not waited for: one of them may be what hangs. They find that it is over.
            found[outcome.shard] = Some(outcome.snapshot?);
        }
        Ok((found.into_iter().flatten().collect(), paused))
    }
}

/// Copies the data directory of a server that does not run: see [`Engine::backup`]. Holds the directory's lock meanwhile.
///
/// The manifest says what the directory holds; of the configuration only `storage.data_dir` counts.
///
/// # Errors
/// [`BackupError`]; [`StorageError::Locked`] in it if somebody has the directory.
pub fn backup_offline(
    config: &Config,
    target: &Path,
    progress: OnProgress<'_>,
) -> Result<BackupSummary, BackupError> {
    let data_dir = &config.storage.data_dir;
    // What is no data directory is refused before a lock file is made in it.
    OfflineDirectory::take(data_dir)?.layout()?;
    let taken = OfflineDirectory::take_to_change(data_dir, false)?;
    let (layout, catalogs) = taken.open()?;
    let target = Target::new(target, Some(data_dir), progress)?;
    // All of them before anything is copied: what cannot be opened is no backup. Open until the end, as closing a log ends
    // its snapshot.
    match open_all(&*catalogs, layout.shard_count) {
        Ok((_logs, shards)) => backup::write(shards, target),
        Err(error) => {
            target.abandon();
            Err(error.into())
        }
    }
}

type OpenedLogs = (Vec<Box<dyn CommitLog>>, Vec<ShardSnapshot>);

fn open_all(catalogs: &dyn Catalogs, shards: usize) -> Result<OpenedLogs, StorageError> {
    let (mut logs, mut snapshots) = (Vec::new(), Vec::new());
    for shard in 0..shards {
        let OpenedShard { mut log, segments, .. } = open_shard(catalogs, shard)?;
        snapshots.push(ShardSnapshot { log: log.snapshot()?, segments: segments.hold() });
        logs.push(log);
    }
    Ok((logs, snapshots))
}
