//! What others than redb want of the logs: that they give back room that they do not need.

use std::io;
use std::sync::Arc;

use redb::StorageBackend;

use super::{LOG_BYTES_MIN, PageLog};
use crate::storage::disk;

/// The page log as redb has it, when somebody else has it too.
#[derive(Clone, Debug)]
pub(in crate::storage::acid) struct Handle(pub(in crate::storage::acid) Arc<PageLog>);

impl PageLog {
    /// What the logs take of the disk. Bytes.
    pub(in crate::storage::acid) fn disk_bytes(&self) -> io::Result<u64> {
        let logs = self.writer().logs.clone();
        logs.iter().map(|log| log.allocated_bytes()).sum()
    }

    /// Makes the logs as short as new ones are. That empties them first, and the next commits have to make them longer
    /// again: it is for a time when there is little to commit. Without room for that it does nothing.
    pub(in crate::storage::acid) fn give_back(&self) -> io::Result<()> {
        self.attempt(|writer| {
            if !disk::has_room_to_fill(&*self.shared.disk) {
                return Ok(());
            }
            self.empty(writer)?;
            // Their headers are durable, so what was behind them is no record any more, whether or not it comes back.
            for log in &writer.logs {
                if log.len()? > LOG_BYTES_MIN {
                    log.set_len(LOG_BYTES_MIN)?;
                }
            }
            writer.filled = writer.logs[writer.active].len()?;
            Ok(())
        })
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
