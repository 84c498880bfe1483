//! Starting engines: [`InMemoryStorage`], [`FileStorage`], [`AcidStorage`], or whichever a configuration asks for.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::config::{AcidBackend, Config, StorageMode};
use crate::engine::affinity::Pinning;
use crate::engine::api::{
    AppendError, AppendRequest, Appended, CreateError, CreateRequest, Created, Health, LookupError, Page,
    ReadError, ReadRequest, Storage, StorageFuture, StreamInfo, Subscription,
};
use crate::engine::backup::Backups;
use crate::engine::clock::Clock;
use crate::engine::core::{self, Shared};
use crate::engine::handle::{Engine, StopOnDrop};
use crate::engine::mailbox::Mailbox;
use crate::engine::opening::Opening;
use crate::engine::quota::{QuotaLimits, Quotas};
use crate::engine::read_budget::ReadBudget;
use crate::engine::request::Mail;
use crate::engine::shard::{Shard, ShardLimits};
use crate::protocol::name::StreamName;
use crate::protocol::offset::RequestedOffset;
use crate::protocol::retention::Retention;
use crate::storage::acid::{AcidLog, AcidOptions, Backend, BackendFactory, IoCounters, page_log_bytes};
use crate::storage::committer::{Committer, Completion};
use crate::storage::disk::{Disk, MemoryDisk};
use crate::storage::file::{FileLog, FileOptions, RewriteOn, SyncPolicy};
use crate::storage::layout::{ShardCount, default_shard_count};
use crate::storage::settler::RewritePace;
use crate::storage::{DiskUse, FreeSpaceProbe, OpenLog, OpenedShard, RoomRule, RoomWatch, StorageError};
use crate::stream::append::StreamLimits;

static ENGINES: AtomicU64 = AtomicU64::new(1);

/// What tests set and a configuration does not.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct EngineOptions {
    /// Where the time comes from.
    pub clock: Clock,
    /// What holds all files instead of the data directory.
    pub disk: Option<Arc<dyn Disk>>,
    /// What redb works on instead of files.
    pub backend: Option<TestBackend>,
    /// What is asked for the room on the disk, instead of its file system.
    pub free_space: Option<FreeSpaceProbe>,
    /// Who is told how far the opening is.
    pub(crate) opening: Opening,
}

/// A [`BackendFactory`] that can be printed.
#[derive(Clone)]
pub struct TestBackend(pub BackendFactory);

impl std::fmt::Debug for TestBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TestBackend")
    }
}

impl EngineOptions {
    /// With this clock.
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// With all files on this disk, which nobody else may use meanwhile.
    pub fn with_disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = Some(disk);
        self
    }

    /// With redb on what the factory makes; all else is on the disk, by default in RAM.
    pub fn with_backend(mut self, factory: BackendFactory) -> Self {
        self.backend = Some(TestBackend(factory));
        self
    }

    /// With a disk that has as much room as the probe says.
    pub fn with_free_space(mut self, probe: FreeSpaceProbe) -> Self {
        self.free_space = Some(probe);
        self
    }
}

impl Engine {
    /// Starts the engine that the configuration asks for. When this returns, every shard takes requests.
    ///
    /// # Errors
    /// Whatever keeps the data directory from being opened, as one clear line.
    pub fn open(config: &Config) -> Result<Self, StorageError> {
        Self::open_telling(config, &Opening::default())
    }

    /// The same, and `opening` knows what is still to be done.
    pub(crate) fn open_telling(config: &Config, opening: &Opening) -> Result<Self, StorageError> {
        let options = &EngineOptions { opening: opening.clone(), ..EngineOptions::default() };
        match config.storage.mode {
            StorageMode::Memory => InMemoryStorage::with_options(config, options).map(|storage| storage.0),
            StorageMode::FileFast | StorageMode::FileDurable => {
                FileStorage::open_with(config, options).map(|storage| storage.0)
            }
            StorageMode::Acid => AcidStorage::open_with(config, options).map(|storage| storage.engine),
        }
    }

    fn start_cores(
        config: &Config,
        shards: usize,
        options: &EngineOptions,
        prepare: impl Fn(&mut Shard, &Arc<Shared>) -> Result<(), StorageError> + Sync,
    ) -> Result<Self, StorageError> {
        let limits = &config.limits;
        let in_memory = config.storage.mode == StorageMode::Memory;
        let quotas = QuotaLimits {
            memory_bytes_max: in_memory.then_some(limits.max_memory_bytes),
            streams_max: limits.max_streams,
            disk_bytes_max: limits.max_disk_bytes,
            room: room_rule(config, shards),
        };
        let quotas = Quotas::new(shards, quotas);
        let (mailboxes, mail): (Vec<_>, Vec<_>) = (0..shards).map(|_| Mailbox::new()).unzip();
        let id = ENGINES.fetch_add(1, Ordering::Relaxed);
        let reads = ReadBudget::new(limits.max_read_buffer_bytes, shards);
        let backups = Backups::new(config, options);
        let shared = Arc::new(Shared::new(id, mailboxes, quotas, reads, options.clock.clone(), backups));
        let shard_limits = ShardLimits {
            stream: StreamLimits {
                stream_bytes_max: limits.max_stream_bytes,
                producers_max: limits.max_producers_per_stream,
                retention: Retention {
                    max_age_secs: config.retention.max_age_secs,
                    max_bytes: config.retention.max_bytes,
                },
            },
            staged_bytes_max: limits.max_staged_bytes,
            journal_bytes: journal_bytes(config, shards),
            recent_bytes_max: limits.max_memory_bytes / shards as u64,
        };
        let shards = (0..shards).map(|index| Shard::new(index, shared.clone(), shard_limits.clone()));
        options.opening.begin(shards.len());
        let prepared = prepare_all(shards.collect(), |shard| {
            prepare(shard, &shared)?;
            options.opening.opened(shard.index());
            Ok(())
        })?;
        let ready = prepared.into_iter().zip(mail).collect();
        let stop = Arc::new(StopOnDrop(shared.clone()));
        let pinning = if config.server.pin_cores { Pinning::new() } else { None };
        core::start(&shared, ready, pinning.as_ref())
            .map_err(|source| StorageError::Io { context: "starting the core threads".into(), source })?;
        Ok(Self::of(stop))
    }
}

/// Prepares shards side by side: what takes long about it is reading, and the disk may be good at several reads at a time.
fn prepare_all(
    mut shards: Vec<Shard>,
    prepare: impl Fn(&mut Shard) -> Result<(), StorageError> + Sync,
) -> Result<Vec<Shard>, StorageError> {
    let prepare = &prepare;
    let outcomes: Vec<_> = thread::scope(|scope| {
        let spawn = |shard| thread::Builder::new().spawn_scoped(scope, move || prepare(shard));
        let threads: Vec<_> = shards.iter_mut().map(spawn).collect();
        threads
            .into_iter()
            .map(|thread| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(source) => Err(StorageError::Io { context: "starting a thread".into(), source }),
            })
            .collect()
    });
    outcomes.into_iter().collect::<Result<(), _>>()?;
    Ok(shards)
}

/// Journal size at which a shard begins to settle. Removed streams leave the journal only as it is settled and trimmed, so
/// it must not be what fills a small disk.
fn journal_bytes(config: &Config, shards: usize) -> u64 {
    const OF_DISK_MIN: u64 = 64 * 1024;
    let of_disk =
        config.limits.max_disk_bytes.map_or(u64::MAX, |max| (max / shards as u64 / 4).max(OF_DISK_MIN));
    config.storage.journal_bytes.min(of_disk)
}

fn room_rule(config: &Config, shards: usize) -> RoomRule {
    RoomRule::new(config.storage.min_free_disk_bytes, shards, config.limits.max_staged_bytes)
}

/// Streams in RAM only: gone when the process ends.
#[derive(Clone, Debug)]
pub struct InMemoryStorage(Engine);

impl InMemoryStorage {
    /// Starts `storage.acid_shard_count` core threads, by default one for each core. They end when the last clone is
    /// dropped, or with [`Storage::shutdown`].
    ///
    /// # Errors
    /// If the operating system gives no threads.
    pub fn new(config: &Config) -> Result<Self, StorageError> {
        Self::with_options(config, &EngineOptions::default())
    }

    /// The same with a clock of one's own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_options(config: &Config, options: &EngineOptions) -> Result<Self, StorageError> {
        let mut config = config.clone();
        config.storage.mode = StorageMode::Memory;
        let shards = config.storage.acid_shard_count.unwrap_or_else(default_shard_count);
        Engine::start_cores(&config, shards, options, |_, _| Ok(())).map(Self)
    }

    /// The engine below.
    pub fn engine(&self) -> &Engine {
        &self.0
    }
}

/// Streams in one redb database per shard: an answer to a mutation is a committed transaction.
#[derive(Clone, Debug)]
pub struct AcidStorage {
    engine: Engine,
    counters: Arc<IoCounters>,
}

impl AcidStorage {
    /// Opens `storage.data_dir`, making it if need be, recovers what it holds, and starts the core threads.
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process uses the directory, [`StorageError::Layout`] if it was made with
    /// another shard count, and whatever the operating system or the database have to say.
    pub fn open(config: &Config) -> Result<Self, StorageError> {
        Self::open_with(config, &EngineOptions::default())
    }

    /// The same with a clock or a redb backend of one's own.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(config: &Config, options: &EngineOptions) -> Result<Self, StorageError> {
        let mut config = config.clone();
        config.storage.mode = StorageMode::Acid;
        let mut acid = AcidOptions::new(&config.storage.data_dir);
        acid.shards = config.storage.acid_shard_count;
        acid.default_shards = default_shard_count();
        acid.cache_bytes = config.storage.cache_bytes;
        acid.two_phase_commit = config.storage.acid_two_phase_commit;
        acid.page_log_bytes = page_log_bytes(config.storage.journal_bytes);
        acid.backend = match (&options.backend, &options.disk, config.storage.acid_backend) {
            (Some(test), disk, _) => {
                let disk = disk.clone().unwrap_or_else(|| Arc::new(MemoryDisk::new()));
                Backend::Factory(test.0.clone(), disk)
            }
            (None, Some(disk), _) => Backend::Disk(disk.clone()),
            (None, None, AcidBackend::InMemory) => Backend::InMemory,
            (None, None, AcidBackend::File) => Backend::File,
        };
        acid.free_space.clone_from(&options.free_space);
        let log = Arc::new(AcidLog::new(acid)?);
        let counters = log.counters();
        let shards = log.shard_count();
        let engine = start_on(&config, options, shards, log)?;
        Ok(Self { engine, counters })
    }

    /// The engine below.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What the databases did to their files so far.
    pub fn io_counters(&self) -> &IoCounters {
        &self.counters
    }
}

/// Streams in files of our own: an answer to a mutation is a write to the journal, with `file-durable` an fsynced one.
#[derive(Clone, Debug)]
pub struct FileStorage(Engine);

impl FileStorage {
    /// Opens `storage.data_dir`, making it if need be, recovers what it holds, and starts the core threads. Whether
    /// answers wait for an fsync is `storage.mode`'s concern; they do in all modes but [`StorageMode::FileFast`].
    ///
    /// # Errors
    /// [`StorageError::Locked`] if another process uses the directory, [`StorageError::Layout`] if it was made for another
    /// storage or shard count, and whatever the operating system has to say.
    pub fn open(config: &Config) -> Result<Self, StorageError> {
        Self::open_with(config, &EngineOptions::default())
    }

    /// The same with a clock or a disk of one's own.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_with(config: &Config, options: &EngineOptions) -> Result<Self, StorageError> {
        let mut config = config.clone();
        let is_fast = config.storage.mode == StorageMode::FileFast;
        if !is_fast {
            config.storage.mode = StorageMode::FileDurable;
        }
        let log = FileLog::new(FileOptions {
            data_dir: config.storage.data_dir.clone(),
            disk: options.disk.clone(),
            shards: ShardCount { explicit: config.storage.acid_shard_count, default: default_shard_count() },
            sync: if is_fast { SyncPolicy::OnFlush } else { SyncPolicy::EachCommit },
            flush_interval: config.storage.flush_interval,
            free_space: options.free_space.clone(),
            // Whoever brings a disk wants to know in which order it is used.
            rewrite_on: if options.disk.is_some() { RewriteOn::Checkpoint } else { RewriteOn::Thread },
        })?;
        let shards = log.shard_count();
        start_on(&config, options, shards, Arc::new(log)).map(Self)
    }

    /// The engine below.
    pub fn engine(&self) -> &Engine {
        &self.0
    }
}

/// Starts an engine on storage that was taken, recovering all shards.
fn start_on(
    config: &Config,
    options: &EngineOptions,
    shards: usize,
    opener: Arc<dyn OpenLog>,
) -> Result<Engine, StorageError> {
    let room = room_rule(config, shards);
    let pace = RewritePace { bytes_per_sec: config.storage.rewrite_bytes_per_sec, shards };
    let prepare = |shard: &mut Shard, shared: &Arc<Shared>| open_shard(shard, shared, &opener, room, pace);
    Engine::start_cores(config, shards, options, prepare)
}

/// Recovers a shard and starts its commit thread.
fn open_shard(
    shard: &mut Shard,
    shared: &Arc<Shared>,
    opener: &Arc<dyn OpenLog>,
    room: RoomRule,
    pace: RewritePace,
) -> Result<(), StorageError> {
    let index = shard.index();
    let OpenedShard { log, segments, recovered } = opener.open(index)?;
    let reader = segments.clone();
    let mut watch = RoomWatch::new(index, room);
    watch.look(&*log);
    let taken = log.disk_bytes() + segments.disk_bytes();
    shared.quotas.set_disk_use(index, DiskUse { taken, room: watch.room() });
    let report = {
        let shared = shared.clone();
        Arc::new(move |completion| {
            // Whoever wants to know looks there: nobody has to be woken for it, and what is posted may be read late.
            if let Completion::Disk(disk) | Completion::Reopened { disk, .. } = &completion {
                shared.quotas.set_disk_use(index, *disk);
            }
            if !matches!(completion, Completion::Disk(_)) {
                shared.mailboxes[index].post(Mail::Completion(completion));
            }
        })
    };
    let committer = Committer::spawn(index, opener.clone(), log, segments, pace, watch, report)
        .map_err(|source| StorageError::Io { context: "starting a commit thread".into(), source })?;
    shard.attach_committer(committer);
    shard.restore(recovered, reader)
}

/// Both are engines and nothing else, as far as requests are concerned.
macro_rules! storage_by_engine {
    ($storage:ty, $engine:ident) => {
        impl Storage for $storage {
            fn create(&self, request: CreateRequest) -> StorageFuture<'_, Result<Created, CreateError>> {
                self.$engine().create(request)
            }
            fn append(&self, request: AppendRequest) -> StorageFuture<'_, Result<Appended, AppendError>> {
                self.$engine().append(request)
            }
            fn delete(&self, name: StreamName) -> StorageFuture<'_, Result<(), LookupError>> {
                self.$engine().delete(name)
            }
            fn head(&self, name: StreamName) -> StorageFuture<'_, Result<StreamInfo, LookupError>> {
                self.$engine().head(name)
            }
            fn read(&self, request: ReadRequest) -> StorageFuture<'_, Result<Page, ReadError>> {
                self.$engine().read(request)
            }
            fn subscribe(
                &self,
                name: StreamName,
                from: RequestedOffset,
            ) -> StorageFuture<'_, Result<Subscription, ReadError>> {
                self.$engine().subscribe(name, from)
            }
            fn health(&self) -> Health {
                self.$engine().health()
            }
            fn shutdown(&self) -> StorageFuture<'_, ()> {
                self.$engine().shutdown()
            }
        }
    };
}

storage_by_engine!(InMemoryStorage, engine);
storage_by_engine!(FileStorage, engine);
storage_by_engine!(AcidStorage, engine);
