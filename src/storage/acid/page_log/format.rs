//! The files of a page log: a header, and records of pages.
//!
//! ```text
//! header (64 bytes)   magic (8 bytes)   version u32   shard u32   number u64   mark u64   zeros   CRC32C u32 of the 60 before
//!                     at 0, or at 512 if half of the number is odd: of two that are whole the one with the larger number counts
//! record              mark u64   CRC32C u32 of all that follows   length u32 of all that follows
//!                     sequence u64   database length u64   blocks u32   zero u32
//!                     for each block: number u64   bytes u32   zero u32
//!                     the blocks, each without the zeros at its end
//!                     zeros up to a multiple of 4096
//! ```
//!
//! Integers are little-endian. The first record begins at 4096, each other one at the next multiple of that behind the one
//! before, so that no write touches a sector of an earlier one. A block is 4096 bytes of the database, at its number times that.
//!
//! The *mark* is a random number, and another one each time that a file is begun anew. What is left in it of its earlier use is no
//! record, then; nor is what clients put into pages.

use std::io;
use std::sync::Arc;

use crate::storage::codec::random_mark;
use crate::storage::disk::DiskFile;

/// Bytes of a block, and of what records are aligned to.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Where the first record of a file begins.
pub(super) const FIRST_RECORD: u64 = BLOCK_BYTES as u64;

const MAGIC: [u8; 8] = *b"DSpages\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
/// Where a header may be.
const HEADER_SLOTS: [u64; 2] = [0, 512];
/// Bytes of a record before its list of blocks, and of one entry of that.
const PREFIX_BYTES: usize = 40;
const ENTRY_BYTES: usize = 16;
/// Where the checksummed part of a record begins, and the one that `length` counts.
const CHECKED_FROM: usize = 12;
const COUNTED_FROM: usize = 16;

/// Some page, or a part of one.
pub(super) type Block = [u8; BLOCK_BYTES];

/// The first bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) shard: u32,
    /// Grows by one each time that either file is begun anew; the smaller one is the older one.
    pub(super) number: u64,
    /// Begins every record: [`random_mark`].
    pub(super) mark: u64,
}

impl Header {
    /// A header with a mark of its own.
    pub(super) fn new(shard: u32, number: u64) -> Self {
        Self { shard, number, mark: random_mark() }
    }

    /// Writes it beside the one before, which counts as long as this one is not whole.
    pub(super) fn write(&self, file: &dyn DiskFile) -> io::Result<()> {
        file.write_at(HEADER_SLOTS[(self.number / 2 % 2) as usize], &self.encode())
    }

    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.shard.to_le_bytes());
        out[16..24].copy_from_slice(&self.number.to_le_bytes());
        out[24..32].copy_from_slice(&self.mark.to_le_bytes());
        let sum = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads the header of `file`, which has to be shard `shard`'s.
    pub(super) fn read(file: &dyn DiskFile, shard: u32) -> io::Result<Self> {
        let mut newest: Option<Self> = None;
        for at in HEADER_SLOTS {
            let mut bytes = [0; HEADER_BYTES];
            file.read_at(at, &mut bytes).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged("it is shorter than its header"),
                _ => error,
            })?;
            if bytes[..8] != MAGIC || u32_at(&bytes, 60) != crc32c::crc32c(&bytes[..60]) {
                continue;
            }
            if u32_at(&bytes, 8) != VERSION {
                return Err(damaged(&format!("it has version {}, not {VERSION}", u32_at(&bytes, 8))));
            }
            let header =
                Self { shard: u32_at(&bytes, 12), number: u64_at(&bytes, 16), mark: u64_at(&bytes, 24) };
            if newest.is_none_or(|other| other.number < header.number) {
                newest = Some(header);
            }
        }
        let header = newest.ok_or_else(|| damaged("it has no header"))?;
        if header.shard != shard {
            return Err(damaged(&format!("it is of shard {}", header.shard)));
        }
        Ok(header)
    }
}

/// Makes `out` a record that has no mark yet.
pub(super) fn encode_record(
    out: &mut Vec<u8>,
    sequence: u64,
    database_len: u64,
    blocks: &[(u64, Arc<Block>)],
) -> io::Result<()> {
    out.clear();
    out.extend_from_slice(&[0; COUNTED_FROM]);
    out.extend_from_slice(&sequence.to_le_bytes());
    out.extend_from_slice(&database_len.to_le_bytes());
    let count = u32::try_from(blocks.len()).map_err(|_| too_large())?;
    out.extend_from_slice(&u64::from(count).to_le_bytes());
    for (number, block) in blocks {
        out.extend_from_slice(&number.to_le_bytes());
        out.extend_from_slice(&(used_bytes(block) as u64).to_le_bytes());
    }
    for (_, block) in blocks {
        out.extend_from_slice(&block[..used_bytes(block)]);
    }
    let len = u32::try_from(out.len() - COUNTED_FROM).map_err(|_| too_large())?;
    out[CHECKED_FROM..COUNTED_FROM].copy_from_slice(&len.to_le_bytes());
    let sum = crc32c::crc32c(&out[CHECKED_FROM..]);
    out[8..CHECKED_FROM].copy_from_slice(&sum.to_le_bytes());
    out.resize(out.len().next_multiple_of(BLOCK_BYTES), 0);
    Ok(())
}

/// Makes it a record of the file with this mark.
pub(super) fn mark_record(record: &mut [u8], mark: u64) {
    record[..8].copy_from_slice(&mark.to_le_bytes());
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, "a commit of more than 4 GiB")
}

/// Bytes of a block before the zeros at its end, to a multiple of 16.
fn used_bytes(block: &Block) -> usize {
    block.chunks_exact(16).rposition(|chunk| chunk != [0; 16]).map_or(0, |last| (last + 1) * 16)
}

/// What a record has.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) sequence: u64,
    pub(super) database_len: u64,
    pub(super) blocks: Vec<(u64, Arc<Block>)>,
}

/// The records of a file, which has the mark `mark`, and where the next one goes.
///
/// The first one that is incomplete ends them, as a crash leaves it so. If there are complete ones behind it, it was none.
pub(super) fn read_records(file: &dyn DiskFile, mark: u64) -> io::Result<(Vec<Record>, u64)> {
    let len = usize::try_from(file.len()?).map_err(|_| damaged("it is too large"))?;
    let mut bytes = vec![0; len];
    file.read_at(0, &mut bytes)?;
    let mut records: Vec<Record> = Vec::new();
    let mut at = BLOCK_BYTES;
    while let Some((record, end)) = decode_record(bytes.get(at..).unwrap_or_default(), mark) {
        if records.last().is_some_and(|last| last.sequence + 1 != record.sequence) {
            return Err(damaged(&format!("the record at {at} does not follow the one before")));
        }
        records.push(record);
        at += end;
    }
    let mut behind = (at + BLOCK_BYTES..len).step_by(BLOCK_BYTES);
    if let Some(later) = behind.find(|&later| decode_record(&bytes[later..], mark).is_some()) {
        return Err(damaged(&format!("the record at {at} is damaged, and one at {later} is whole")));
    }
    Ok((records, at as u64))
}

/// The record at the beginning of `bytes`, and where the next one begins.
fn decode_record(bytes: &[u8], mark: u64) -> Option<(Record, usize)> {
    let prefix = bytes.get(..PREFIX_BYTES)?;
    if u64_at(prefix, 0) != mark {
        return None;
    }
    let end = COUNTED_FROM + u32_at(prefix, CHECKED_FROM) as usize;
    let checked = bytes.get(CHECKED_FROM..end)?;
    if crc32c::crc32c(checked) != u32_at(prefix, 8) {
        return None;
    }
    // What follows was written like that: a checksum of what a program with an error wrote would be right, too.
    let count = u32_at(prefix, 32) as usize;
    let mut content = PREFIX_BYTES + count.checked_mul(ENTRY_BYTES)?;
    let mut blocks = Vec::with_capacity(count);
    for entry in bytes.get(PREFIX_BYTES..content)?.chunks_exact(ENTRY_BYTES) {
        let used = u32_at(entry, 8) as usize;
        let mut block = [0; BLOCK_BYTES];
        block.get_mut(..used)?.copy_from_slice(bytes.get(content..content + used)?);
        content += used;
        blocks.push((u64_at(entry, 0), Arc::new(block)));
    }
    let record = Record { sequence: u64_at(prefix, 16), database_len: u64_at(prefix, 24), blocks };
    (content == end).then_some((record, end.next_multiple_of(BLOCK_BYTES)))
}

/// An error that says what is wrong with a page log.
pub(super) fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the page log is damaged: {what}"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("these are four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("these are eight bytes"))
}
