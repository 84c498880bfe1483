//! What journal and catalog files have in common: names, a header, and records under a checksum.
//!
//! ```text
//! header (64 bytes)   magic (8 bytes)   version u32   shard u32   number u64   mark u64   durable through u64
//!                     catalog file u64   catalog records u64   zero u32   CRC32C u32 of the 60 bytes before
//! record              mark u64   CRC32C u32 of all that follows   length u32   content   zeros up to a multiple of 8
//! ```
//!
//! Fixed-width integers are little-endian. Records begin at multiples of 8.
//!
//! The *mark* is a random number, one for each file. Clients choose what is inside of records but do not know it: they cannot
//! make bytes that look like a record when those around them are damaged.

use std::mem;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{corrupt, failed};
use crate::storage::StorageError;
use crate::storage::codec::random_mark;
use crate::storage::disk::{Disk, DiskFile, OpenMode};
use crate::storage::pieces::Pieces;

/// Bytes of a file's header.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes of a record before its content.
pub(super) const RECORD_HEADER_BYTES: usize = 16;
/// Records begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;

const VERSION: u32 = 1;
const DRAFT_SUFFIX: &str = ".new";
/// Where the checksummed part of a record begins.
const CHECKED_FROM: usize = 12;

/// Which of the two a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    Journal,
    Catalog,
}

impl FileKind {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::Journal => *b"DSjourn\n",
            Self::Catalog => *b"DScatal\n",
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Self::Journal => "journal-",
            Self::Catalog => "catalog-",
        }
    }

    /// Path of a file, relative to the data directory.
    pub(super) fn path(self, dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("{}{number:016x}.log", self.prefix()))
    }

    /// Path under which a file is made.
    pub(super) fn draft_path(self, dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("{}{number:016x}.log{DRAFT_SUFFIX}", self.prefix()))
    }

    pub(super) fn number_of(self, name: &str) -> Option<u64> {
        let digits = name.strip_prefix(self.prefix())?.strip_suffix(".log")?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if digits.len() != 16 || !digits.bytes().all(is_hex) {
            return None;
        }
        u64::from_str_radix(digits, 16).ok()
    }
}

/// Numbers of the files of one kind in a directory, ascending. Removes drafts of that kind.
pub(super) fn list(disk: &dyn Disk, dir: &Path, kind: FileKind) -> Result<Vec<u64>, StorageError> {
    let mut numbers = Vec::new();
    for entry in disk.list(dir).map_err(failed("listing", dir))? {
        if entry.is_dir || !entry.name.starts_with(kind.prefix()) {
            continue;
        }
        if entry.name.ends_with(DRAFT_SUFFIX) {
            let path = dir.join(&entry.name);
            disk.remove(&path).map_err(failed("removing", &path))?;
        } else if let Some(number) = kind.number_of(&entry.name) {
            numbers.push(number);
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// How far the catalog is durable. A greater one was later, and holds all that a lesser one does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CatalogEnd {
    /// Number of the file; 0 = there was none.
    pub(super) file: u64,
    /// Records of that file.
    pub(super) records: u64,
}

/// The first bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: FileKind,
    pub(super) shard: u32,
    pub(super) number: u64,
    /// Begins every record of the file: [`random_mark`].
    pub(super) mark: u64,
    /// Journal: all groups up to this one were durable when the file was made. Catalog: 0.
    pub(super) durable_through: u64,
    /// Journal: so much of the catalog was durable when the file was made. Catalog: 0.
    pub(super) catalog: CatalogEnd,
}

impl Header {
    /// A header with a mark of its own.
    pub(super) fn new(
        kind: FileKind,
        shard: u32,
        number: u64,
        durable_through: u64,
        catalog: CatalogEnd,
    ) -> Self {
        Self { kind, shard, number, mark: random_mark(), durable_through, catalog }
    }

    /// The header as it is written.
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&self.kind.magic());
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.shard.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.mark.to_le_bytes());
        out[32..40].copy_from_slice(&self.durable_through.to_le_bytes());
        out[40..48].copy_from_slice(&self.catalog.file.to_le_bytes());
        out[48..56].copy_from_slice(&self.catalog.records.to_le_bytes());
        let sum = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn decode(kind: FileKind, path: &Path, bytes: &[u8; HEADER_BYTES]) -> Result<Self, StorageError> {
        if bytes[..8] != kind.magic() {
            return Err(corrupt(path, 0, "the file does not begin as it should"));
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Err(StorageError::Layout(format!(
                "{} has format version {version}; this server reads version {VERSION}",
                path.display()
            )));
        }
        let mark = u64_at(bytes, 24);
        if u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60]) || mark == 0 {
            return Err(corrupt(path, 0, "the file's header does not check out"));
        }
        let (shard, number, durable_through) = (u32_at(bytes, 12), u64_at(bytes, 16), u64_at(bytes, 32));
        let catalog = CatalogEnd { file: u64_at(bytes, 40), records: u64_at(bytes, 48) };
        Ok(Self { kind, shard, number, mark, durable_through, catalog })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"))
}

/// Makes the file of a header durably: first under the name of a draft, so that a file under its own name always has a
/// header. `ahead` zeros follow it.
pub(super) fn create(
    disk: &dyn Disk,
    dir: &Path,
    header: &Header,
    ahead: usize,
) -> Result<Arc<dyn DiskFile>, StorageError> {
    let draft = header.kind.draft_path(dir, header.number);
    let file = disk.open(&draft, OpenMode::Create).map_err(failed("creating", &draft))?;
    let mut first = header.encode().to_vec();
    first.resize(HEADER_BYTES + ahead, 0);
    file.write_at(0, &first).map_err(failed("writing", &draft))?;
    publish(disk, dir, header, &*file)?;
    Ok(file)
}

/// Gives a draft that is complete its own name, durably.
pub(super) fn publish(
    disk: &dyn Disk,
    dir: &Path,
    header: &Header,
    file: &dyn DiskFile,
) -> Result<(), StorageError> {
    let draft = header.kind.draft_path(dir, header.number);
    let path = header.kind.path(dir, header.number);
    file.sync_data().map_err(failed("flushing", &draft))?;
    disk.rename(&draft, &path).map_err(failed("renaming to", &path))?;
    disk.sync_dir(dir).map_err(failed("flushing", dir))
}

/// A file that was there at the opening.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    pub(super) file: Arc<dyn DiskFile>,
    /// Bytes, the header included.
    pub(super) len: u64,
}

/// Opens a file and checks whose it is. What is read from it afterwards is on the disk, and will still be there after a
/// power cut: a server that was killed leaves bytes that only the operating system has, a failed sync leaves bytes that
/// only look as if they were on the disk, and neither may be built upon.
pub(super) fn find(
    disk: &dyn Disk,
    dir: &Path,
    kind: FileKind,
    shard: u32,
    number: u64,
) -> Result<Found, StorageError> {
    let path = kind.path(dir, number);
    let file = disk.open(&path, OpenMode::Write).map_err(failed("opening", &path))?;
    file.sync_data().map_err(failed("flushing", &path))?;
    file.drop_cache().map_err(failed("dropping the cache of", &path))?;
    let len = file.len().map_err(failed("looking at", &path))?;
    let mut bytes = [0; HEADER_BYTES];
    if len < HEADER_BYTES as u64 {
        return Err(corrupt(&path, len, "the file ends within its header"));
    }
    file.read_at(0, &mut bytes).map_err(failed("reading", &path))?;
    let header = Header::decode(kind, &path, &bytes)?;
    if (header.shard, header.number) != (shard, number) {
        return Err(StorageError::Layout(format!(
            "{} belongs to shard {} under number {:x}",
            path.display(),
            header.shard,
            header.number
        )));
    }
    Ok(Found { path, header, file, len })
}

/// Begins a record at the end of `out`; its content is to be appended. Returns where it begins, for [`seal`].
pub(super) fn begin(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.resize(start + RECORD_HEADER_BYTES, 0);
    start
}

/// Ends the record that begins at `start` and reaches to the end of `out`.
pub(super) fn seal(out: &mut Vec<u8>, start: usize, mark: u64) -> Result<(), StorageError> {
    let length = content_bytes(out.len() - start)?;
    out.resize(start + padded(out.len() - start), 0);
    let record = &mut out[start..];
    record[CHECKED_FROM..RECORD_HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    let sum = crc32c::crc32c(&record[CHECKED_FROM..]);
    put_mark_and_sum(record, mark, sum);
    Ok(())
}

/// The same for a record that is all of `out`, and was begun in its small bytes.
pub(super) fn seal_pieces(out: &mut Pieces, mark: u64) -> Result<(), StorageError> {
    let length = content_bytes(out.len())?;
    let padding = padded(out.len()) - out.len();
    let small = out.small_mut();
    small.resize(small.len() + padding, 0);
    small[CHECKED_FROM..RECORD_HEADER_BYTES].copy_from_slice(&length.to_le_bytes());
    // All of the header is in the first piece, as nothing but small bytes has been put before its end.
    let (mut sum, mut unchecked) = (0, CHECKED_FROM);
    for piece in out.iter() {
        sum = crc32c::crc32c_append(sum, &piece[mem::take(&mut unchecked)..]);
    }
    put_mark_and_sum(out.small_mut(), mark, sum);
    Ok(())
}

/// What the length field of a record of `record_bytes` says, which has no padding yet.
fn content_bytes(record_bytes: usize) -> Result<u32, StorageError> {
    u32::try_from(record_bytes - RECORD_HEADER_BYTES).map_err(|_| StorageError::Database {
        context: "writing".to_owned(),
        message: "a commit of 4 GiB or more".to_owned(),
    })
}

fn put_mark_and_sum(record: &mut [u8], mark: u64, sum: u32) {
    record[..8].copy_from_slice(&mark.to_le_bytes());
    record[8..CHECKED_FROM].copy_from_slice(&sum.to_le_bytes());
}

/// `length` rounded up to where the next record may begin.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(ALIGNMENT)
}

/// Bytes of the record whose first bytes these are, padding included. `None` if none begins here.
pub(super) fn record_bytes(head: &[u8], mark: u64) -> Option<u64> {
    if head.len() < RECORD_HEADER_BYTES || u64_at(head, 0) != mark {
        return None;
    }
    let length = u64::from(u32_at(head, CHECKED_FROM));
    Some((RECORD_HEADER_BYTES as u64 + length).next_multiple_of(ALIGNMENT as u64))
}

/// Where the content is of the record that begins at `at`. `None` if there is none that checks out.
pub(super) fn unseal(bytes: &[u8], at: usize, mark: u64) -> Option<Range<usize>> {
    let record = bytes.get(at..)?;
    let whole = usize::try_from(record_bytes(record, mark)?).ok()?;
    let record = record.get(..whole)?;
    if u32_at(record, 8) != crc32c::crc32c(&record[CHECKED_FROM..]) {
        return None;
    }
    let content = at + RECORD_HEADER_BYTES;
    Some(content..content + u32_at(record, CHECKED_FROM) as usize)
}

/// The first place at or after `from` where a record seems to begin.
pub(super) fn find_mark(bytes: &[u8], from: usize, mark: u64) -> Option<usize> {
    let from = padded(from);
    let words = bytes.get(from..)?.chunks_exact(ALIGNMENT);
    let found = words.enumerate().find(|(_, word)| u64_at(word, 0) == mark);
    found.map(|(index, _)| from + index * ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_flipped_bit_of_a_record_is_noticed(
            content in prop::collection::vec(any::<u8>(), 0..60),
            mark in 1..u64::MAX,
        ) {
            let mut out = vec![0; 8];
            let start = begin(&mut out);
            out.extend_from_slice(&content);
            seal(&mut out, start, mark).unwrap();
            prop_assert_eq!(out.len() % ALIGNMENT, 0);
            let range = unseal(&out, start, mark).unwrap();
            prop_assert_eq!(&out[range], &content[..]);
            prop_assert_eq!(find_mark(&out, 0, mark), Some(start));
            let mut pieces = Pieces::default();
            begin(pieces.small_mut());
            pieces.small_mut().extend_from_slice(&content);
            seal_pieces(&mut pieces, mark).unwrap();
            prop_assert_eq!(&pieces.into_vec(), &out[start..]);
            for bit in start * 8..out.len() * 8 {
                out[bit / 8] ^= 1 << (bit % 8);
                prop_assert!(unseal(&out, start, mark).is_none());
                out[bit / 8] ^= 1 << (bit % 8);
            }
            for len in 0..out.len() {
                prop_assert!(unseal(&out[..len], start, mark).is_none());
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let header = Header::new(FileKind::Journal, 3, 7, 99, CatalogEnd { file: 2, records: 5 });
        let mut bytes = header.encode();
        let path = Path::new("journal");
        assert_eq!(Header::decode(FileKind::Journal, path, &bytes).unwrap(), header);
        assert!(Header::decode(FileKind::Catalog, path, &bytes).is_err());
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(FileKind::Journal, path, &bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn an_unknown_format_version_is_refused_and_named() {
        let mut bytes = Header::new(FileKind::Catalog, 0, 1, 0, CatalogEnd::default()).encode();
        bytes[8] = 9;
        let error = Header::decode(FileKind::Catalog, Path::new("catalog"), &bytes).unwrap_err();
        assert!(matches!(&error, StorageError::Layout(text) if text.contains("version 9")), "{error}");
    }

    #[test]
    fn only_names_that_the_server_gives_are_looked_at() {
        let dir = Path::new("shard-00");
        let path = FileKind::Journal.path(dir, 0x1f);
        assert_eq!(path, dir.join("journal-000000000000001f.log"));
        assert_eq!(FileKind::Journal.number_of("journal-000000000000001f.log"), Some(0x1f));
        for name in
            ["journal-1f.log", "journal-00000000000000+f.log", "catalog-000000000000001f.log", "journal-"]
        {
            assert_eq!(FileKind::Journal.number_of(name), None, "{name}");
        }
    }
}
