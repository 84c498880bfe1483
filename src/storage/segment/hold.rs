//! Keeping segment files from being removed while they are copied.

use std::fmt;
use std::mem;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::SegmentStore;
use super::file::Segment;
use crate::storage::backup::{BackupError, Target};

/// Who holds segments, and which files are to be removed after that.
#[derive(Debug, Default)]
pub(super) struct Held {
    holds: usize,
    superfluous: Vec<Arc<Segment>>,
}

/// The segments that were live in one instant. Their files stay until this is dropped, unless the shard is opened anew or
/// closed meanwhile.
pub(crate) struct SegmentHold {
    store: Arc<SegmentStore>,
    segments: Vec<Arc<Segment>>,
}

impl fmt::Debug for SegmentHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentHold").field("segments", &self.segments.len()).finish_non_exhaustive()
    }
}

impl SegmentStore {
    /// Holds what is live. To be called by whoever publishes, so that it is what the catalog says.
    pub(crate) fn hold(self: Arc<Self>) -> SegmentHold {
        self.held().holds += 1;
        let segments = self.index().segments().map(|live| Arc::clone(&live.segment)).collect();
        SegmentHold { store: self, segments }
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a file that is to go, if files are held. A few more than necessary stay that way, for as long.
    pub(super) fn keep_if_held(&self, segment: &Arc<Segment>) -> bool {
        let mut held = self.held();
        let is_held = held.holds > 0;
        if is_held {
            held.superfluous.push(Arc::clone(segment));
        }
        is_held
    }
}

impl SegmentHold {
    /// Length of all files.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.file_bytes).sum()
    }

    /// Links or copies all of them.
    pub(crate) fn copy(&self, target: &mut Target<'_>) -> Result<(), BackupError> {
        self.segments
            .iter()
            .try_for_each(|segment| target.link_or_copy(&*self.store.disk, &segment.path, segment.file_bytes))
    }

    /// Whether the shard was neither opened anew nor closed since.
    pub(crate) fn is_valid(&self) -> bool {
        !self.store.is_retired()
    }

    /// The reason for an error of copying the shard's files: what was copied may have been taken away.
    pub(crate) fn explain(&self, error: BackupError) -> BackupError {
        match error {
            BackupError::Storage(_) if !self.is_valid() => self.gone(),
            error => error,
        }
    }

    /// What to say if it is not valid.
    pub(crate) fn gone(&self) -> BackupError {
        BackupError::ShardUnavailable(format!("shard {} was closed or reopened meanwhile", self.store.shard))
    }
}

impl Drop for SegmentHold {
    fn drop(&mut self) {
        let mut held = self.store.held();
        held.holds -= 1;
        // After that another store may have the directory, and removes what it does not know when it is opened.
        if held.holds == 0 && !self.store.is_retired() {
            for segment in mem::take(&mut held.superfluous) {
                self.store.unlink(&segment);
            }
        }
    }
}
