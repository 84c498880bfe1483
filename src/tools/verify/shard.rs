//! One shard: its journal, catalog and segments, and each of its streams by itself.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Finding, Report, doubled_names};
use crate::engine::shard_of;
use crate::protocol::json::ContentCheck;
use crate::protocol::name::StreamName;
use crate::storage::layout::Layout;
use crate::storage::replay::{self, ReplayTarget as _};
use crate::storage::segment::{self, Examined, SegmentStore};
use crate::storage::{Catalogs, OpenedCatalog, Recovered, SegmentMeta, StorageError};
use crate::stream::state::Closure;
use crate::tools::Progress;
use crate::tools::image::{ShardImage, Streams};

/// The check of one shard.
pub(super) struct ShardCheck<'a, 'r> {
    pub(super) catalogs: &'a dyn Catalogs,
    pub(super) layout: &'a Layout,
    pub(super) shard: usize,
    pub(super) report: &'a mut Report<'r>,
    pub(super) progress: &'a mut dyn Progress,
}

/// What the records say before anything else is known.
#[derive(Default)]
struct Records {
    streams: Streams,
    /// Settled content of those that have any.
    kept: Vec<(u64, Range<u64>)>,
}

impl ShardCheck<'_, '_> {
    /// The streams, unless journal and catalog cannot be read.
    pub(super) fn run(&mut self) -> Option<Streams> {
        let OpenedCatalog { log, recovered, segments, next_segment_id, dropped_bytes } =
            match self.catalogs.open_catalog(self.shard) {
                Ok(opened) => opened,
                Err(error) => {
                    self.error(error.to_string());
                    return None;
                }
            };
        // It was opened to be read, and that is done.
        drop(log);
        if dropped_bytes > 0 {
            let what =
                format!("{dropped_bytes} bytes at the end of journal or catalog are of unfinished commits");
            self.add(Finding::note(what));
        }
        let Recovered { streams, groups, next_stream_id, .. } = recovered;
        let mut records = self.records(streams);
        records.streams.next_id = next_stream_id;
        let damaged = self.segments(&segments, &records.streams);
        let dir = self.dir();
        let disk = self.catalogs.directory().disk();
        let examined = segment::examine(&**disk, self.shard, &dir, &segments, records.kept);
        self.coverage(&examined, &records.streams);
        if let Some(above) = examined.segments.iter().find(|meta| meta.id >= next_segment_id) {
            self.error(format!("segment {:016x} has an id that was not given out", above.id));
        }
        self.journal(groups, &mut records.streams);
        let whole: HashSet<u64> = examined.streams.iter().map(|(id, _)| *id).collect();
        let store = SegmentStore::open(
            Arc::clone(disk),
            self.shard,
            dir,
            &examined.segments,
            next_segment_id,
            examined.streams,
        );
        self.states(&records.streams);
        match store {
            Ok(segments) => {
                let image = ShardImage { streams: records.streams, segments: segments.into() };
                self.contents(&image, &whole, &damaged);
                Some(image.streams)
            }
            Err(error) => {
                self.error(error.to_string());
                Some(records.streams)
            }
        }
    }

    fn dir(&self) -> PathBuf {
        self.catalogs.directory().shard_dir(self.shard)
    }

    fn add(&mut self, finding: Finding) {
        self.report.add(finding.in_shard(self.shard));
    }

    fn error(&mut self, what: String) {
        self.add(Finding::error(what));
    }

    fn error_of_stream(&mut self, id: u64, name: Option<&StreamName>, what: String) {
        self.add(Finding::error(what).of_stream(id, name));
    }

    fn records(&mut self, found: Vec<crate::storage::RecoveredStream>) -> Records {
        let mut records = Records::default();
        for stream in found {
            let id = stream.id;
            match replay::decode(stream) {
                Ok((id, record)) => {
                    records.kept.push((id, record.state.released()..record.settled));
                    records.streams.checkpointed(id, record);
                }
                Err(error) => self.error_of_stream(id, None, error.to_string()),
            }
        }
        records
    }

    /// Reads every byte of every segment. Returns the streams that have damaged content.
    fn segments(&mut self, segments: &[SegmentMeta], streams: &Streams) -> HashSet<u64> {
        let bytes = segments.iter().map(|meta| meta.file_bytes).sum();
        self.progress.begin(&format!("verifying shard {:02}", self.shard), bytes);
        let (disk, dir) = (Arc::clone(self.catalogs.directory().disk()), self.dir());
        let number = u32::try_from(self.shard).unwrap_or(u32::MAX);
        let (mut damaged, mut seen) = (HashSet::new(), HashSet::new());
        for meta in segments {
            if !seen.insert(meta.id) {
                self.error(format!("segment {:016x} is listed twice", meta.id));
            }
            let progress = &mut *self.progress;
            let found =
                segment::verify_segment(&*disk, &dir, number, meta, &mut |bytes| progress.advance(bytes));
            for segment::Finding { path, content, what } in found {
                let Some((id, positions)) = content else {
                    self.add(Finding::error(what).in_file(path));
                    continue;
                };
                let Range { start, end } = positions;
                let stream = streams.by_id.get(&id);
                let is_alive = stream.is_some_and(|stream| stream.kept().start < end);
                let what = format!("positions {start} to {end}: {what}");
                let finding = if is_alive { Finding::error(what) } else { Finding::note(what) };
                damaged.extend(is_alive.then_some(id));
                self.add(finding.in_file(path).of_stream(id, stream.map(|stream| &stream.name)));
            }
        }
        damaged
    }

    /// What is settled has to be in the segments, once.
    fn coverage(&mut self, examined: &Examined, streams: &Streams) {
        for (id, error) in &examined.broken_streams {
            let name = streams.by_id.get(id).map(|stream| &stream.name);
            self.error_of_stream(*id, name, error.to_string());
        }
    }

    fn journal(&mut self, groups: Vec<(u64, bytes::Bytes)>, streams: &mut Streams) {
        let mut orphans = HashSet::new();
        for (group, frames) in groups {
            if let Err(error) = replay::replay_group(group, frames, streams, &mut orphans) {
                self.error(format!("group {group} of the journal: {error}"));
            }
        }
        for id in orphans {
            self.error_of_stream(id, None, replay::orphaned(id).to_string());
        }
    }

    /// What a stream's state says by itself.
    fn states(&mut self, streams: &Streams) {
        for (&id, stream) in &streams.by_id {
            self.report.summary.streams += 1;
            let kept = stream.kept();
            self.report.summary.bytes += kept.end.saturating_sub(kept.start);
            let name = Some(&stream.name);
            let belongs = shard_of(stream.name.as_str(), self.layout.shard_count);
            if belongs != self.shard {
                self.error_of_stream(id, name, format!("the name belongs to shard {belongs:02}"));
            }
            if let Closure::Closed(Some(tag)) = &stream.state.closure {
                let known = stream.state.producers.get(&tag.id).map(|known| (known.epoch, known.seq));
                if known != Some((tag.epoch, tag.seq)) {
                    let what = "the producer that closed it is not known with the request that did so";
                    self.error_of_stream(id, name, what.to_owned());
                }
            }
            if kept.start > kept.end {
                let what = format!("it begins at {} and ends at {}", kept.start, kept.end);
                self.error_of_stream(id, name, what);
            }
        }
        for (name, ids) in doubled_names(streams) {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            let name = name.as_str();
            self.error(format!("the name {name:?} is there more than once, as streams {}", ids.join(", ")));
        }
    }

    /// JSON content has to be messages. Of other content nobody knows more than its checksums.
    fn contents(&mut self, image: &ShardImage, whole: &HashSet<u64>, damaged: &HashSet<u64>) {
        let mut failed: HashMap<u64, String> = HashMap::new();
        for (&id, stream) in &image.streams.by_id {
            let is_readable = !damaged.contains(&id) && (stream.is_recent() || whole.contains(&id));
            if !stream.state.content_type.is_json() || !is_readable {
                continue;
            }
            if let Err(why) = check_messages(image, id) {
                failed.insert(id, why);
            }
        }
        for (id, why) in failed {
            let name = &image.streams.by_id[&id].name;
            self.error_of_stream(id, Some(name), why);
        }
    }
}

fn check_messages(image: &ShardImage, id: u64) -> Result<(), String> {
    let start = image.streams.by_id[&id].kept().start;
    let mut check = ContentCheck::default();
    let mut wrong = None;
    let outcome: Result<(), StorageError> = image.read(id, &mut |piece| {
        if wrong.is_none() {
            wrong = check.push(piece, &mut |_| ()).err();
        }
        Ok(())
    });
    outcome.map_err(|error| error.to_string())?;
    let wrong = wrong.map_or_else(|| check.finish().map(drop), Err);
    wrong.map_err(|why| format!("content, counted from position {start}: {why}"))
}
