//! An open file.

use std::fmt;
use std::io;
use std::thread;

use durable_streams_server::storage::disk::DiskFile;

use super::state::{Call, State, error_of};
use super::{Fault, SimDisk};

pub(super) struct SimFile {
    disk: SimDisk,
    number: u64,
    label: String,
    writable: bool,
}

impl SimFile {
    pub(super) fn new(disk: SimDisk, number: u64, label: String, writable: bool) -> Self {
        Self { disk, number, label, writable }
    }

    fn sync(&self, also: impl FnOnce(&mut State)) -> io::Result<()> {
        let pause = self.disk.lock().sync_takes;
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        self.disk.lock().counted(Call::Sync, &self.label, |state, fault| {
            if let Some(fault) = fault {
                state.fail_sync(self.number);
                return Err(error_of(fault));
            }
            state.file(self.number).sync();
            also(state);
            Ok(())
        })
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("name", &self.label).finish_non_exhaustive()
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.lock().close_handle(self.number);
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        let mut state = self.disk.lock();
        state.look()?;
        Ok(state.file(self.number).live().len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.look()?;
        if state.read_is_to_fail() {
            return Err(error_of(Fault::Io));
        }
        state.file(self.number).live().read(offset, out)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        let what = format!("{} {offset}+{}", self.label, data.len());
        self.disk.lock().counted(Call::Write, &what, |state, fault| {
            let mut fitting = match fault {
                Some(Fault::ShortWrite) => data.len() / 2,
                Some(_) => 0,
                None => data.len(),
            };
            let mut outcome = fault.map_or(Ok(()), |fault| Err(error_of(fault)));
            let missing = state.file(self.number).live().missing_bytes(offset, fitting);
            if state.free_bytes().is_some_and(|free| missing > free) {
                fitting = 0;
                outcome = Err(error_of(Fault::NoSpace));
            }
            if fitting > 0 {
                state.file(self.number).write(offset, &data[..fitting]);
            }
            outcome
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        let what = format!("{} {len}", self.label);
        self.disk.lock().counted(Call::SetLen, &what, |state, fault| {
            if let Some(fault) = fault {
                return Err(error_of(fault));
            }
            state.file(self.number).set_len(len);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(|_| ())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        let mut state = self.disk.lock();
        state.look()?;
        Ok(state.file(self.number).live().allocated_bytes())
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.sync(|state| state.file(self.number).drop_cache())
    }
}
