//! Tells of a commit as soon as it is durable.
//!
//! That is before redb says so: once its last sync has succeeded, nothing that it does can undo the commit, but it goes on with
//! what the next one needs, and frees the pages that were replaced. That takes a twelfth of the time of an append that is alone.
//!
//! Which sync it is shows in the header of the database. It has two slots, of which one bit chooses that of the last commit, and
//! each has the number of its transaction. So a commit is durable when the header as it was written last has a higher number in
//! the chosen slot than before the transaction, and a sync that began later has succeeded. Syncs in the middle of a transaction, when the
//! file grows, find the number of before; and so does the first one of a commit that takes two.
//!
//! Only redb's file format 3 is understood. Of a database in another one is told when redb says so.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

use crate::storage::OnDurable;

const MAGIC: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";
/// Where the header has what the slot of the last commit is: in the lowest bit of a byte.
const CHOICE: usize = MAGIC.len();
const SLOTS: usize = 64;
const SLOT_BYTES: usize = 128;
const FORMAT: u8 = 3;
/// Within a slot, after its format, two marks and the roots of two trees.
const TRANSACTION: usize = 8 + 2 * 32 + 32;

/// Which transaction the header of a database says was the last one. `None` = it is of another format.
fn last_transaction(header: &[u8]) -> Option<u64> {
    if !header.starts_with(MAGIC) {
        return None;
    }
    let start = SLOTS + SLOT_BYTES * usize::from(header.get(CHOICE)? & 1);
    let slot = header.get(start..start + SLOT_BYTES)?;
    let number = slot[TRANSACTION..TRANSACTION + 8].try_into().ok()?;
    (slot[0] == FORMAT).then(|| u64::from_le_bytes(number))
}

/// What is known of a database, and who is to be told.
#[derive(Default)]
struct State {
    /// According to the header that was written last. `None` = that is not known.
    transaction: Option<u64>,
    waiting: Option<Waiting>,
}

struct Waiting {
    /// The last transaction before the one that is waited for.
    before: Option<u64>,
    on_durable: OnDurable,
}

impl State {
    fn take_if_newer(&mut self) -> Option<OnDurable> {
        let transaction = self.transaction?;
        let is_newer = |waiting: &mut Waiting| waiting.before.is_some_and(|before| transaction > before);
        self.waiting.take_if(is_newer).map(|waiting| waiting.on_durable)
    }
}

/// Of one opening of a database.
#[derive(Clone, Default)]
pub(super) struct CommitNotice(Arc<Mutex<State>>);

impl std::fmt::Debug for CommitNotice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitNotice").field("transaction", &self.state().transaction).finish_non_exhaustive()
    }
}

impl CommitNotice {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before a transaction begins: `on_durable` is called within its commit, at the earliest. Nobody is told any
    /// more when what this returns is dropped.
    pub(super) fn expect(&self, on_durable: OnDurable) -> Expected<'_> {
        let mut state = self.state();
        let before = state.transaction;
        state.waiting = Some(Waiting { before, on_durable });
        Expected(self)
    }

    /// Takes note of what goes through to `inner`, whose database this is.
    pub(super) fn over<B>(&self, inner: B) -> NoticingBackend<B> {
        NoticingBackend { inner, notice: self.clone() }
    }
}

/// See [`CommitNotice::expect`].
pub(super) struct Expected<'a>(&'a CommitNotice);

impl Expected<'_> {
    /// The commit has succeeded, as redb says: tells of it, if nobody has yet.
    pub(super) fn tell_if_untold(self) {
        let waiting = self.0.state().waiting.take();
        if let Some(waiting) = waiting {
            (waiting.on_durable)();
        }
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.0.state().waiting = None;
    }
}

/// See [`CommitNotice::over`].
#[derive(Debug)]
pub(super) struct NoticingBackend<B> {
    inner: B,
    notice: CommitNotice,
}

impl<B: StorageBackend> StorageBackend for NoticingBackend<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()?;
        let on_durable = self.notice.state().take_if_newer();
        if let Some(on_durable) = on_durable {
            on_durable();
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)?;
        if offset == 0 {
            self.notice.state().transaction = last_transaction(data);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use redb::backends::InMemoryBackend;
    use redb::{Builder, Database, TableDefinition};

    use super::*;

    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("table");

    /// What a database works on: counts its syncs, and fails if it is to.
    #[derive(Clone, Debug)]
    struct Below {
        content: Arc<InMemoryBackend>,
        syncs: Arc<AtomicUsize>,
        is_broken: Arc<AtomicBool>,
    }

    impl Below {
        fn new() -> Self {
            let content = Arc::new(InMemoryBackend::new());
            Self { content, syncs: Arc::default(), is_broken: Arc::default() }
        }

        fn syncs(&self) -> usize {
            self.syncs.load(Ordering::Relaxed)
        }

        fn header(&self) -> Vec<u8> {
            let mut header = vec![0; SLOTS + 2 * SLOT_BYTES];
            self.content.read(0, &mut header).unwrap();
            header
        }
    }

    impl StorageBackend for Below {
        fn len(&self) -> io::Result<u64> {
            self.content.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.content.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.content.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::Relaxed);
            if self.is_broken.load(Ordering::Relaxed) { Err(io::Error::other("broken")) } else { Ok(()) }
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.content.write(offset, data)
        }
    }

    struct Rig {
        below: Below,
        notice: CommitNotice,
        database: Database,
    }

    /// How many syncs there had been when it was told. 0 = it was not.
    type Told = Arc<AtomicUsize>;

    impl Rig {
        fn new() -> Self {
            let (below, notice) = (Below::new(), CommitNotice::default());
            let database = Builder::new().create_with_backend(notice.over(below.clone())).unwrap();
            let rig = Self { below, notice, database };
            rig.commit(100, false, false).unwrap();
            rig
        }

        fn expect(&self) -> (Told, Expected<'_>) {
            let (told, below) = (Told::default(), self.below.clone());
            let expected = {
                let told = Arc::clone(&told);
                self.notice.expect(Box::new(move || {
                    let before = told.swap(below.syncs(), Ordering::Relaxed);
                    assert_eq!(before, 0, "it is told once");
                }))
            };
            (told, expected)
        }

        /// Returns when it was told before redb returned.
        fn commit(&self, bytes: usize, in_two: bool, broken: bool) -> Result<usize, redb::CommitError> {
            let (told, expected) = self.expect();
            let mut transaction = self.database.begin_write().unwrap();
            transaction.set_two_phase_commit(in_two);
            transaction.open_table(TABLE).unwrap().insert(0, &*vec![7; bytes]).unwrap();
            self.below.is_broken.store(broken, Ordering::Relaxed);
            let outcome = transaction.commit();
            self.below.is_broken.store(false, Ordering::Relaxed);
            let early = told.load(Ordering::Relaxed);
            if outcome.is_ok() {
                expected.tell_if_untold();
                assert_ne!(told.load(Ordering::Relaxed), 0);
            }
            outcome.map(|()| early)
        }
    }

    #[test]
    fn the_header_of_a_database_has_the_number_of_its_last_transaction() {
        let rig = Rig::new();
        let mut before = last_transaction(&rig.below.header()).unwrap();
        for in_two in [false, true, false] {
            rig.commit(10, in_two, false).unwrap();
            let after = last_transaction(&rig.below.header()).unwrap();
            assert!(after > before, "{after} {before}");
            before = after;
        }
    }

    #[test]
    fn what_is_no_header_that_we_know_has_no_number() {
        let mut header = Rig::new().below.header();
        assert_eq!(last_transaction(&header[..SLOTS + 40]), None);
        assert_eq!(last_transaction(&[]), None);
        let slot = SLOTS + SLOT_BYTES * usize::from(header[CHOICE] & 1);
        header[slot] += 1;
        assert_eq!(last_transaction(&header), None);
        header[slot] -= 1;
        assert!(last_transaction(&header).is_some());
        header[0] = b'R';
        assert_eq!(last_transaction(&header), None);
    }

    #[test]
    fn a_commit_is_told_of_within_its_last_sync() {
        let rig = Rig::new();
        for (bytes, in_two, syncs) in [(10, false, 1), (10, true, 2)] {
            let before = rig.below.syncs();
            assert_eq!(rig.commit(bytes, in_two, false).unwrap(), before + syncs);
            assert_eq!(rig.below.syncs(), before + syncs);
        }
    }

    #[test]
    fn a_sync_of_a_file_that_grows_is_not_that_of_the_commit() {
        let rig = Rig::new();
        let before = rig.below.syncs();
        let told = rig.commit(40 << 20, false, false).unwrap();
        assert!(told > before + 1, "it has grown");
        assert_eq!(told, rig.below.syncs());
    }

    #[test]
    fn a_commit_whose_sync_fails_is_never_told_of() {
        let rig = Rig::new();
        assert!(rig.commit(10, false, true).is_err());
        // Whatever becomes durable later, nobody waits for it any more.
        let Rig { database, notice, .. } = rig;
        assert!(notice.state().waiting.is_none());
        drop(database);
    }

    #[test]
    fn without_a_known_header_it_is_told_when_redb_says_so() {
        let rig = Rig::new();
        rig.notice.state().transaction = None;
        assert_eq!(rig.commit(10, false, false).unwrap(), 0);
        assert_ne!(rig.commit(10, false, false).unwrap(), 0);
    }
}
