//! What a shard's log has to hold, and random steps on both.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::disk::{Dice, TestDisk};
use crate::storage::file::{Opened, Options, ShardLog, SyncPolicy};
use crate::storage::segment::SegmentMeta;
use crate::storage::{Checkpoint, Group, StorageError, StreamCheckpoint};

type Groups = Vec<(u64, Vec<u8>)>;
type Producers = BTreeMap<Bytes, (u64, u64)>;

/// What the catalog has to hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CatalogModel {
    /// Record and producers.
    streams: BTreeMap<u64, (Vec<u8>, Producers)>,
    segments: BTreeMap<u64, SegmentMeta>,
    trim_before: u64,
    next_stream_id: u64,
    next_segment_id: u64,
    next_group: u64,
}

impl CatalogModel {
    /// A checkpoint is in force that the group number `group` carries.
    fn apply(&mut self, checkpoint: &Checkpoint, group: u64) {
        for stream in &checkpoint.streams {
            let (record, producers) = self.streams.entry(stream.id).or_default();
            record.clone_from(&stream.record);
            let changed = stream.producers.iter().map(|(id, epoch, last)| (id.clone(), (*epoch, *last)));
            producers.extend(changed);
        }
        for id in &checkpoint.removed {
            self.streams.remove(id);
        }
        self.segments.extend(checkpoint.segments_added.iter().map(|segment| (segment.id, *segment)));
        for id in &checkpoint.segments_removed {
            self.segments.remove(id);
        }
        self.trim_before = self.trim_before.max(checkpoint.trim_before);
        self.next_stream_id = self.next_stream_id.max(checkpoint.next_stream_id);
        self.next_segment_id = self.next_segment_id.max(checkpoint.next_segment_id);
        if checkpoint.next_stream_id > 0 {
            // One that says nothing cannot be told from none.
            self.next_group = self.next_group.max(group + 1);
        }
    }

    /// All but `trim_before` and `next_group`, which nobody is told of.
    fn is(&self, opened: &Opened) -> bool {
        let streams: BTreeMap<_, _> = opened
            .streams
            .iter()
            .map(|stream| {
                let producers =
                    stream.producers.iter().map(|(id, epoch, last)| (id.clone(), (*epoch, *last)));
                (stream.id, (stream.record.to_vec(), producers.collect::<Producers>()))
            })
            .collect();
        let segments: BTreeMap<_, _> = opened.segments.iter().map(|segment| (segment.id, *segment)).collect();
        streams == self.streams
            && segments == self.segments
            && opened.next_stream_id == self.next_stream_id
            && opened.next_segment_id == self.next_segment_id
    }
}

/// What both have to hold, and what may be there because it was under way.
#[derive(Debug, Default)]
pub(super) struct Model {
    /// All that was acknowledged, oldest first, trimmed or not.
    groups: Groups,
    /// How many of them a power cut cannot take.
    durable: usize,
    groups_under_way: Groups,
    catalog: CatalogModel,
    /// Each of these may be there instead.
    catalogs_under_way: Vec<CatalogModel>,
    next_group: u64,
    next_stream: u64,
    next_segment: u64,
}

impl Model {
    /// Checks what an opening found, and goes on from there. Only what is durable has to be there if `lost_unsynced`.
    pub(super) fn accept(&mut self, opened: &Opened, lost_unsynced: bool) -> Result<(), String> {
        let mut catalogs = std::mem::take(&mut self.catalogs_under_way);
        catalogs.push(self.catalog.clone());
        let Some(catalog) = catalogs.into_iter().find(|catalog| catalog.is(opened)) else {
            return Err(format!("the catalog is {opened:?}, not {:?}", self.catalog));
        };
        self.catalog = catalog;

        let found: Groups = opened.groups.iter().map(|(number, frames)| (*number, frames.to_vec())).collect();
        let needed = |groups: &[(u64, Vec<u8>)]| -> Groups {
            groups.iter().filter(|(number, _)| *number >= self.catalog.trim_before).cloned().collect()
        };
        let mut all = self.groups.clone();
        all.append(&mut self.groups_under_way);
        let least = if lost_unsynced { self.durable } else { self.groups.len() };
        // A batch that was under way is there as a whole or not at all.
        let mut candidates: Vec<usize> = (least..=self.groups.len()).collect();
        candidates.push(all.len());
        let fits = |&count: &usize| needed(&all[..count]) == found;
        let Some(count) = candidates.into_iter().rev().find(fits) else {
            let numbers: Vec<u64> = found.iter().map(|(number, _)| *number).collect();
            let wanted: Vec<u64> = needed(&self.groups).iter().map(|(number, _)| *number).collect();
            return Err(format!("there are groups {numbers:?}, not {wanted:?} of which {least} are durable"));
        };
        all.truncate(count);
        self.groups = all;
        self.durable = self.groups.len();
        let last = self.groups.last().map_or(0, |(number, _)| *number);
        if opened.next_group <= last || opened.next_group < self.catalog.next_group {
            return Err(format!("the next group is {}, the last one was {last}", opened.next_group));
        }
        self.next_group = opened.next_group;
        Ok(())
    }

    /// A checkpoint for group `seq`, on top of `catalog`.
    fn checkpoint(&mut self, dice: &mut Dice, catalog: &CatalogModel, seq: u64) -> Checkpoint {
        let mut checkpoint = Checkpoint::default();
        for _ in 0..dice.below(5) {
            let is_new = self.next_stream == 0 || dice.one_in(3);
            let id = if is_new { self.next_stream } else { dice.below(self.next_stream) };
            // A removed stream never comes back.
            if !is_new && !catalog.streams.contains_key(&id) {
                continue;
            }
            self.next_stream = self.next_stream.max(id + 1);
            let mut producers = Vec::new();
            for number in 0..dice.below(4) {
                if dice.one_in(2) {
                    producers.push((Bytes::from(format!("producer {number}")), dice.below(3), dice.next()));
                }
            }
            let record = bytes(dice, 200);
            checkpoint.streams.retain(|stream: &StreamCheckpoint| stream.id != id);
            checkpoint.streams.push(super::stream(id, record, producers));
        }
        checkpoint.removed = catalog.streams.keys().copied().filter(|_| dice.one_in(8)).collect();
        if dice.one_in(2) {
            let (file_bytes, footer_crc) = (dice.next(), dice.next() as u32);
            checkpoint.segments_added.push(SegmentMeta { id: self.next_segment, file_bytes, footer_crc });
            self.next_segment += 1;
        }
        checkpoint.segments_removed = catalog.segments.keys().copied().filter(|_| dice.one_in(4)).collect();
        if dice.one_in(5) {
            // As it comes from who only knows of segments.
            return checkpoint;
        }
        // New with each checkpoint, so that the model can tell which one it sees.
        self.next_stream += 1;
        let from = catalog.trim_before;
        checkpoint.trim_before = from + dice.below((seq + 2).saturating_sub(from).max(1));
        checkpoint.next_stream_id = self.next_stream;
        checkpoint.next_segment_id = self.next_segment;
        checkpoint
    }

    /// Commits some groups, perhaps with a checkpoint.
    fn commit(&mut self, log: &mut ShardLog, dice: &mut Dice, sync: SyncPolicy) -> Result<(), StorageError> {
        let mut groups = Vec::new();
        for _ in 0..=dice.below(3) {
            let seq = self.next_group.max(1) + if dice.one_in(4) { dice.below(3) } else { 0 };
            self.next_group = seq + 1;
            let most = if dice.one_in(12) { 12_000 } else { 900 };
            let frames = if dice.one_in(5) { Vec::new() } else { bytes(dice, most) };
            groups.push(Group { seq, frames: frames.into(), ..Group::default() });
        }
        let mut next = self.catalog.clone();
        for group in &mut groups {
            if dice.one_in(2) {
                let checkpoint = self.checkpoint(dice, &next, group.seq);
                next.apply(&checkpoint, group.seq);
                group.checkpoint = Some(checkpoint);
            }
        }
        self.groups_under_way =
            groups.iter().map(|group| (group.seq, group.frames.clone().into_vec())).collect();
        log.commit(&groups)?;
        self.groups.append(&mut self.groups_under_way);
        if sync == SyncPolicy::EachCommit {
            self.durable = self.groups.len();
        }
        // Those of one commit are there together or not at all.
        self.catalogs_under_way.push(next.clone());
        log.checkpoint(&groups)?;
        if groups.iter().any(|group| group.checkpoint.is_some()) {
            self.durable = self.groups.len();
        }
        self.catalogs_under_way.clear();
        self.catalog = next;
        Ok(())
    }

    /// One random step.
    pub(super) fn step(
        &mut self,
        log: &mut ShardLog,
        dice: &mut Dice,
        sync: SyncPolicy,
    ) -> Result<(), StorageError> {
        match dice.below(12) {
            0 => {
                log.flush()?;
                self.durable = self.groups.len();
                assert_eq!(log.dirty_since(), None);
                Ok(())
            }
            1 => log.reclaim().map(|_| ()),
            _ => self.commit(log, dice, sync),
        }
    }
}

fn bytes(dice: &mut Dice, most: u64) -> Vec<u8> {
    let len = dice.below(most);
    // Runs of zeros look like space that was not written yet.
    let zeros = dice.one_in(4);
    (0..len).map(|_| if zeros { 0 } else { dice.next() as u8 }).collect()
}

/// Opens shard 0.
pub(super) fn open(disk: &TestDisk, options: Options) -> Result<(ShardLog, Opened), StorageError> {
    ShardLog::open(&disk.as_disk(), std::path::Path::new("shard-00"), 0, options)
}
