//! Power cuts under `reshard` and `import`: afterwards the directory is as it was or as it is to be, all of it fits together,
//! and the same command finishes the job.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use durable_streams_server::config::{Config, StorageMode};
use durable_streams_server::engine::api::{
    AppendRequest, Body, CreateRequest, ForkAnchor, ForkRequest, ProducerTag, Retention, Storage,
};
use durable_streams_server::engine::clock::Clock;
use durable_streams_server::engine::{AcidStorage, EngineOptions, FileStorage};
use durable_streams_server::protocol::content_type::ContentType;
use durable_streams_server::protocol::json;
use durable_streams_server::protocol::name::{NameLimits, StreamName};
use durable_streams_server::storage::disk::{Disk as _, MemoryDisk, OpenMode};
use durable_streams_server::tools::export::export;
use durable_streams_server::tools::import::{OnConflict, Source, import};
use durable_streams_server::tools::reshard::reshard;
use durable_streams_server::tools::{DataDirectory, ToolError};

use crate::sim_disk::{Count, CutPoint, Dice, Moment, SimDisk, Style};
use crate::store::verify;
use crate::world::START_MS;

const LIMITS: NameLimits = NameLimits { max_bytes: 1024, max_segments: 8 };

/// Starts a store with whatever number of shards there is.
fn store(disk: &SimDisk, mode: StorageMode, journal_bytes: u64) -> Arc<dyn Storage> {
    let mut config = Config::default();
    config.storage.mode = mode;
    config.storage.journal_bytes = journal_bytes;
    config.storage.cache_bytes = 1 << 20;
    let clock = Clock::manual(START_MS);
    let options = EngineOptions::default().with_clock(clock).with_disk(Arc::new(disk.clone()));
    match mode {
        StorageMode::Acid => Arc::new(AcidStorage::open_with(&config, &options).unwrap()),
        _ => Arc::new(FileStorage::open_with(&config, &options).unwrap()),
    }
}

fn name(text: &str) -> StreamName {
    StreamName::from_stored(text)
}

fn body(text: String) -> Body {
    let raw = Bytes::from(text);
    let json = Some(json::parse_body(&raw, 8));
    Body { raw, json }
}

/// Streams of both kinds, with forks, producers, an end and a source that is deleted. `version` is in all of them.
async fn fill(store: &dyn Storage, version: usize) {
    // Some are cut, also while forks need what is cut off.
    let retention =
        |own: &str| Retention { max_bytes: own.ends_with('1').then_some(100), ..Retention::default() };
    let create = |own: &str, is_json: bool, fork: Option<ForkRequest>| CreateRequest {
        retention: retention(own),
        name: name(own),
        content_type: is_json.then(|| ContentType::parse(b"application/json").unwrap()),
        lifetime: None,
        closed: false,
        body: Body::default(),
        fork,
    };
    let append_to = async |n: usize, seq: usize| {
        let own = format!("stream/{n}");
        let text = format!("[\"{}\",{version}]", "x".repeat(n * 40 * seq));
        let append = AppendRequest {
            name: name(&own),
            content_type: Some(match n % 2 {
                0 => ContentType::parse(b"application/json").unwrap(),
                _ => ContentType::octet_stream(),
            }),
            body: body(text),
            close: n % 5 == 4 && seq == 3,
            stream_seq: n.is_multiple_of(3).then(|| Bytes::from(format!("{seq}"))),
            producer: n.is_multiple_of(4).then(|| ProducerTag {
                id: Bytes::from_static(b"p"),
                epoch: version as u64,
                seq: seq as u64,
            }),
        };
        store.append(append).await.unwrap();
    };
    for n in 0..12 {
        store.create(create(&format!("stream/{n}"), n % 2 == 0, None)).await.unwrap();
        for seq in 0..4 {
            append_to(n, seq).await;
        }
    }
    for n in 0..6 {
        let fork =
            ForkRequest { source: name(&format!("stream/{n}")), anchor: ForkAnchor::Tail, sub_offset: 0 };
        store.create(create(&format!("fork/{n}"), n % 2 == 0, Some(fork))).await.unwrap();
        let fork =
            ForkRequest { source: name(&format!("fork/{n}")), anchor: ForkAnchor::Tail, sub_offset: 0 };
        store.create(create(&format!("fork/of/{n}"), n % 2 == 0, Some(fork))).await.unwrap();
    }
    for seq in 4..8 {
        append_to(1, seq).await;
    }
    store.delete(name("stream/0")).await.unwrap();
    store.delete(name("fork/1")).await.unwrap();
}

/// A directory with them, whose store was shut down.
fn filled(mode: StorageMode, version: usize) -> SimDisk {
    let disk = SimDisk::new(version as u64);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = store(&disk, mode, 2_000);
        fill(&*store, version).await;
        store.shutdown().await;
    });
    disk
}

fn directory(disk: &SimDisk) -> DataDirectory {
    DataDirectory::on_disk(Arc::new(disk.clone()))
}

/// Everything that is known of all streams.
fn text(disk: &SimDisk) -> String {
    let mut out = Vec::new();
    export(&directory(disk), &[], &mut out, &mut ()).unwrap();
    String::from_utf8(out).unwrap()
}

/// The next state of a directory that is changed again and again, each time with the power cut somewhere.
struct Cuts<'a> {
    disk: SimDisk,
    dice: Dice,
    mode: StorageMode,
    work: &'a dyn Fn(&SimDisk) -> Result<(), ToolError>,
    cuts: u64,
    /// Cuts after which the work was done.
    done: u64,
}

impl Cuts<'_> {
    /// Does the work up to that point. `false` = it came to its end before.
    fn cut(&mut self, count: Count, number: u64, target: &str) -> bool {
        let before = text(&self.disk);
        let moment = Moment::ALL[self.dice.roll(3)];
        let point = CutPoint { count, number, moment };
        let number_now = |disk: &SimDisk| if count == Count::Syncs { disk.syncs() } else { disk.calls() };
        self.disk.cut_at(CutPoint { number: number + number_now(&self.disk), ..point });
        let outcome = (self.work)(&self.disk);
        if self.disk.spare() {
            outcome.unwrap();
            assert!(text(&self.disk) == target, "{point}: done, and not as it should be");
            return false;
        }
        let style = Style::draw(&mut self.dice);
        let trace = self.disk.trace();
        self.disk = self.disk.power_cut(&mut self.dice, style);
        self.cuts += 1;
        let told = format!("{:?}, {point}, {style}:\n{trace}", self.mode);
        verify(&self.disk);
        let now = text(&self.disk);
        assert!(now == before || now == target, "{told}");
        assert!(outcome.is_err() || now == target, "it was said to be done: {told}");
        self.done += u64::from(now == target);
        match self.dice.roll(3) {
            0 => {
                // The same again.
                (self.work)(&self.disk).unwrap();
                assert!(text(&self.disk) == target, "{told}");
            }
            1 => {
                // A server, which removes what is left over.
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async { store(&self.disk, self.mode, 1 << 20).shutdown().await });
                assert!(text(&self.disk) == now, "{told}");
                let shards = self.disk.list(Path::new("")).unwrap();
                let dirs = shards.iter().filter(|entry| entry.is_dir).count();
                assert!([2, 3, 5].contains(&dirs), "{dirs} directories: {told}");
            }
            _ => {}
        }
        verify(&self.disk);
        true
    }
}

#[test]
fn a_cut_at_any_sync_or_call_of_a_reshard_leaves_the_old_shards_or_the_new_ones() {
    for (seed, mode) in [(1, StorageMode::Acid), (2, StorageMode::FileDurable)] {
        let disk = filled(mode, 1);
        // Whatever number there is now, it is to be another one.
        let work = |disk: &SimDisk| {
            let directory = directory(disk);
            match reshard(&directory, 2, &mut ())? {
                None => reshard(&directory, 3, &mut ()).map(drop),
                Some(_) => Ok(()),
            }
        };
        (work)(&disk).unwrap();
        let whole = text(&disk);
        let mut cuts = Cuts { disk, dice: Dice::new(seed), mode, work: &work, cuts: 0, done: 0 };
        let mut number = 1;
        while cuts.cut(Count::Syncs, number, &whole) {
            number += 1;
        }
        for number in (1..).step_by(3) {
            if !cuts.cut(Count::Calls, number, &whole) {
                break;
            }
        }
        println!("{mode:?}: {} cuts of a reshard", cuts.cuts);
        assert!(cuts.cuts > 40, "{}", cuts.cuts);
    }
}

#[test]
fn a_cut_at_any_sync_or_call_of_an_import_leaves_nothing_of_it_or_all_of_it() {
    for (seed, mode) in [(3, StorageMode::Acid), (4, StorageMode::FileDurable)] {
        let disk = filled(mode, 1);
        reshard(&directory(&disk), 2, &mut ()).unwrap();
        let texts = [text(&disk), text(&filled(mode, 2))];
        assert!(texts[0] != texts[1]);
        let files = MemoryDisk::new();
        let inputs = ["one", "two"].map(|name| files.open(Path::new(name), OpenMode::Create).unwrap());
        for (input, text) in inputs.iter().zip(&texts) {
            input.write_at(0, text.as_bytes()).unwrap();
        }
        let mut state = Cuts { disk, dice: Dice::new(seed), mode, work: &|_| Ok(()), cuts: 0, done: 0 };
        for count in [Count::Syncs, Count::Calls] {
            let mut number = 1;
            loop {
                // What is not there now.
                let target = usize::from(text(&state.disk) == texts[0]);
                let source = Source::file(Arc::clone(&inputs[target]));
                let work = |disk: &SimDisk| {
                    import(&directory(disk), &source, OnConflict::Replace, &LIMITS, &mut ()).map(drop)
                };
                let Cuts { disk, dice, mode, cuts, done, .. } = state;
                let mut now = Cuts { disk, dice, mode, work: &work, cuts, done };
                let goes_on = now.cut(count, number, &texts[target]);
                let Cuts { disk, dice, mode, cuts, done, .. } = now;
                state = Cuts { disk, dice, mode, work: &|_| Ok(()), cuts, done };
                if !goes_on {
                    break;
                }
                number += if count == Count::Syncs { 1 } else { 3 };
            }
        }
        println!("{mode:?}: {} cuts of an import, {} after it was done", state.cuts, state.done);
        assert!(state.cuts > 40 && state.done > 0, "{} {}", state.cuts, state.done);
    }
}

/// The incarnations of some streams that are made for this, and deleted again.
async fn incarnations_of_streams_that_go(disk: &SimDisk, mode: StorageMode) -> Vec<u128> {
    let store = store(disk, mode, 1 << 20);
    let mut incarnations = Vec::new();
    for number in 0..20 {
        let own = name(&format!("brief/{number}"));
        let create = CreateRequest {
            name: own.clone(),
            content_type: None,
            lifetime: None,
            retention: Retention::default(),
            closed: false,
            body: Body::default(),
            fork: None,
        };
        store.create(create).await.unwrap();
        incarnations.push(store.head(own.clone()).await.unwrap().incarnation);
        store.delete(own).await.unwrap();
    }
    store.shutdown().await;
    incarnations
}

#[tokio::test]
async fn no_incarnation_comes_again_after_a_reshard_though_nothing_is_left_and_the_clock_stands_still() {
    for mode in [StorageMode::Acid, StorageMode::FileDurable] {
        let disk = SimDisk::new(9);
        let mut all = incarnations_of_streams_that_go(&disk, mode).await;
        for shards in [3, 1, 2] {
            reshard(&directory(&disk), shards, &mut ()).unwrap();
            all.extend(incarnations_of_streams_that_go(&disk, mode).await);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "{mode:?}: ids are given out again");
    }
}
