//! A segment file's bytes: header, blocks, footer and trailer. What is in them is described in the module above.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::SegmentMeta;
use crate::storage::codec::Put;

/// Version of the file format, in every header.
pub(super) const FORMAT_VERSION: u32 = 1;
/// Payload of every block of a run but the last.
pub(super) const BLOCK_BYTES: usize = 32 * 1024;
/// Checksum and boundary.
pub(super) const BLOCK_HEADER_BYTES: usize = 8;
/// A full block with its header.
pub(super) const BLOCK_STRIDE: usize = BLOCK_BYTES + BLOCK_HEADER_BYTES;
pub(super) const HEADER_BYTES: usize = 32;
pub(super) const TRAILER_BYTES: usize = 56;

const HEADER_MAGIC: [u8; 8] = *b"\x89DSseg\r\n";
const TRAILER_MAGIC: [u8; 8] = *b"DSsegEND";
/// Where the trailer's checksum stands; it covers the footer and the trailer up to there.
const TRAILER_CRC_AT: usize = 44;
/// A run's entry in the footer takes three varints.
const FOOTER_ENTRY_BYTES_MIN: u64 = 3;
/// In a block's header: no message boundary is known in it.
const NO_BOUNDARY: u32 = u32::MAX;

/// Which segment a byte belongs to. Part of every checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentKey {
    pub(super) shard: u32,
    pub(super) id: u64,
}

/// Path of a segment's file within the data directory.
pub(super) fn file_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("segment-{id:016x}.seg"))
}

/// The id of the segment whose file has the name `name`, if it is the name of one.
pub(crate) fn id_of_file_name(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("segment-")?.strip_suffix(".seg")?;
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if digits.len() != 16 || !digits.bytes().all(lower_hex) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

/// Bytes of file that a run with so much payload takes.
pub(super) fn disk_bytes_of_run(payload_bytes: u64) -> u64 {
    payload_bytes + payload_bytes.div_ceil(BLOCK_BYTES as u64) * BLOCK_HEADER_BYTES as u64
}

pub(super) fn encode_header(key: SegmentKey) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&HEADER_MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&key.shard.to_le_bytes());
    header[16..24].copy_from_slice(&key.id.to_le_bytes());
    let crc = crc32c::crc32c(&header[..28]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Checks a header. The error says what is wrong with it.
pub(super) fn check_header(key: SegmentKey, header: &[u8; HEADER_BYTES]) -> Result<(), String> {
    if header[..8] != HEADER_MAGIC {
        return Err("it does not begin as a segment file does".to_owned());
    }
    if crc32c::crc32c(&header[..28]) != u32_at(header, 28) {
        return Err("the checksum of its header does not match".to_owned());
    }
    let version = u32_at(header, 8);
    if version != FORMAT_VERSION {
        return Err(format!("its format version is {version}, and this server knows {FORMAT_VERSION}"));
    }
    let found = SegmentKey { shard: u32_at(header, 12), id: u64_at(header, 16) };
    check_key(key, found, "header")?;
    if u32_at(header, 24) != 0 {
        return Err("a reserved field of its header is not zero".to_owned());
    }
    Ok(())
}

fn check_key(expected: SegmentKey, found: SegmentKey, place: &str) -> Result<(), String> {
    if expected == found {
        return Ok(());
    }
    Err(format!(
        "its {place} is of segment {:016x} of shard {}, where segment {:016x} of shard {} was expected",
        found.id, found.shard, expected.id, expected.shard
    ))
}

/// One run, as the footer has it and where its blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RunEntry {
    pub(super) stream: u64,
    /// Position of the first byte.
    pub(super) start: u64,
    /// Payload bytes, at least 1.
    pub(super) len: u32,
    /// Of the first block's header in the file.
    pub(super) offset: u64,
}

impl RunEntry {
    pub(super) fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }

    /// Position of the first byte of the block that holds `position`.
    pub(super) fn block_start(&self, position: u64) -> u64 {
        debug_assert!(self.start <= position && position < self.end());
        position - (position - self.start) % BLOCK_BYTES as u64
    }

    /// Where the block whose first byte is at `block_start` is in the file.
    pub(super) fn block_offset(&self, block_start: u64) -> u64 {
        self.offset + (block_start - self.start) / BLOCK_BYTES as u64 * BLOCK_STRIDE as u64
    }

    /// Payload bytes of the block whose first byte is at `block_start`.
    pub(super) fn block_payload_bytes(&self, block_start: u64) -> usize {
        // At most a block, so it fits.
        (self.end() - block_start).min(BLOCK_BYTES as u64) as usize
    }
}

/// A block whose checksum matches.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block<'a> {
    /// Position of the first byte.
    pub(super) start: u64,
    pub(super) payload: &'a [u8],
    /// Position of the first message boundary that is known to be in it.
    pub(super) boundary: Option<u64>,
}

impl Block<'_> {
    pub(super) fn end(&self) -> u64 {
        self.start + self.payload.len() as u64
    }
}

/// Fills in the header of `block`, whose payload of at least a byte is in place. `boundary` is an offset in the
/// payload.
pub(super) fn seal_block(key: SegmentKey, stream: u64, start: u64, boundary: Option<u32>, block: &mut [u8]) {
    let boundary = boundary.unwrap_or(NO_BOUNDARY);
    let (header, payload) = block.split_at_mut(BLOCK_HEADER_BYTES);
    let crc = block_crc(key, stream, start, boundary, payload);
    header[..4].copy_from_slice(&crc.to_le_bytes());
    header[4..].copy_from_slice(&boundary.to_le_bytes());
}

/// Checks the block `bytes`, header and payload, which is expected to be that of `stream` at `start`.
pub(super) fn open_block(
    key: SegmentKey,
    stream: u64,
    start: u64,
    bytes: &[u8],
) -> Result<Block<'_>, &'static str> {
    let Some((header, payload)) = bytes.split_at_checked(BLOCK_HEADER_BYTES) else {
        return Err("a block is too short");
    };
    let boundary = u32_at(header, 4);
    if block_crc(key, stream, start, boundary, payload) != u32_at(header, 0) {
        return Err("the checksum of a block does not match");
    }
    let boundary = match boundary {
        NO_BOUNDARY => None,
        offset if (offset as usize) < payload.len() => Some(start + u64::from(offset)),
        _ => return Err("a block's message boundary is outside of it"),
    };
    Ok(Block { start, payload, boundary })
}

/// Everything that says what a block is stands in its checksum, so that a block that was written to the wrong place, or
/// is left from another file, is not taken for the one expected there.
fn block_crc(key: SegmentKey, stream: u64, start: u64, boundary: u32, payload: &[u8]) -> u32 {
    let mut identity = [0; 32];
    identity[..4].copy_from_slice(&key.shard.to_le_bytes());
    identity[4..12].copy_from_slice(&key.id.to_le_bytes());
    identity[12..20].copy_from_slice(&stream.to_le_bytes());
    identity[20..28].copy_from_slice(&start.to_le_bytes());
    identity[28..].copy_from_slice(&boundary.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&identity), payload)
}

/// The fixed end of a file: what the footer is, and how much is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) footer_offset: u64,
    pub(super) footer_bytes: u64,
    pub(super) runs: u64,
    pub(super) payload_bytes: u64,
}

impl Trailer {
    /// Trailer and checksum of a file that ends with `footer`.
    pub(super) fn encode(&self, key: SegmentKey, footer: &[u8]) -> ([u8; TRAILER_BYTES], u32) {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..8].copy_from_slice(&self.footer_offset.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.footer_bytes.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.runs.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&key.id.to_le_bytes());
        bytes[40..44].copy_from_slice(&key.shard.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(footer), &bytes[..TRAILER_CRC_AT]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes[48..].copy_from_slice(&TRAILER_MAGIC);
        (bytes, crc)
    }

    /// Takes what can be judged before the footer is read: after this, the footer lies within the file.
    pub(super) fn decode(
        meta: &SegmentMeta,
        key: SegmentKey,
        bytes: &[u8; TRAILER_BYTES],
    ) -> Result<Self, String> {
        if bytes[48..] != TRAILER_MAGIC {
            return Err("it does not end as a segment file does".to_owned());
        }
        let crc = u32_at(bytes, TRAILER_CRC_AT);
        if crc != meta.footer_crc {
            return Err(format!(
                "the checksum of its footer is {crc:08x}, where {:08x} is on record",
                meta.footer_crc
            ));
        }
        let found = SegmentKey { shard: u32_at(bytes, 40), id: u64_at(bytes, 32) };
        check_key(key, found, "trailer")?;
        let trailer = Self {
            footer_offset: u64_at(bytes, 0),
            footer_bytes: u64_at(bytes, 8),
            runs: u64_at(bytes, 16),
            payload_bytes: u64_at(bytes, 24),
        };
        let end = trailer
            .footer_offset
            .checked_add(trailer.footer_bytes)
            .and_then(|end| end.checked_add(TRAILER_BYTES as u64));
        if end != Some(meta.file_bytes) || trailer.footer_offset < HEADER_BYTES as u64 {
            return Err("its trailer does not say where its footer is".to_owned());
        }
        if trailer.runs > trailer.footer_bytes / FOOTER_ENTRY_BYTES_MIN {
            return Err("its footer is too short for its runs".to_owned());
        }
        Ok(trailer)
    }

    /// Checks a footer and what the trailer says of it.
    pub(super) fn check_footer(&self, key: SegmentKey, crc: u32, footer: &[u8]) -> Result<(), String> {
        if footer.len() as u64 != self.footer_bytes || self.encode(key, footer).1 != crc {
            return Err("the checksum of its footer does not match".to_owned());
        }
        Ok(())
    }
}

/// The footer of a file that is being written.
#[derive(Debug, Default)]
pub(super) struct FooterBuilder {
    bytes: Vec<u8>,
    runs: u64,
    payload_bytes: u64,
    stream: u64,
    end: u64,
}

impl FooterBuilder {
    /// Adds a run, which comes after all that were added: by stream, then by position.
    pub(super) fn add(&mut self, stream: u64, start: u64, len: u32) {
        debug_assert!(len > 0);
        let same_stream = stream == self.stream;
        self.bytes.put_varint(stream - self.stream);
        self.bytes.put_varint(if same_stream { start - self.end } else { start });
        self.bytes.put_varint(u64::from(len));
        self.stream = stream;
        self.end = start + u64::from(len);
        self.runs += 1;
        self.payload_bytes += u64::from(len);
    }

    /// The footer and its trailer, if it begins at `footer_offset`.
    pub(super) fn finish(self, footer_offset: u64) -> (Vec<u8>, Trailer) {
        let trailer = Trailer {
            footer_offset,
            footer_bytes: self.bytes.len() as u64,
            runs: self.runs,
            payload_bytes: self.payload_bytes,
        };
        (self.bytes, trailer)
    }
}

/// The runs that a footer lists, in order. After an error there is nothing more.
///
/// The footer's checksum has been checked; still, nothing is believed that does not fit together.
#[derive(Clone, Debug)]
pub(super) struct FooterRuns {
    footer: Bytes,
    trailer: Trailer,
    at: usize,
    runs_left: u64,
    payload_left: u64,
    stream: u64,
    end: u64,
    offset: u64,
}

impl FooterRuns {
    pub(super) fn new(trailer: &Trailer, footer: Bytes) -> Self {
        Self {
            footer,
            trailer: *trailer,
            at: 0,
            runs_left: trailer.runs,
            payload_left: trailer.payload_bytes,
            stream: 0,
            end: 0,
            offset: HEADER_BYTES as u64,
        }
    }

    /// One integer. The decoder of frames and records hands out shared slices, which costs several times as much; and
    /// the time that an opening takes is mostly spent here.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.footer.get(self.at)?;
            self.at += 1;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn run(&mut self) -> Option<RunEntry> {
        let delta = self.varint()?;
        let start = self.varint()?;
        let len = u32::try_from(self.varint()?).ok().filter(|&len| len > 0)?;
        let stream = self.stream.checked_add(delta)?;
        let start = if delta == 0 { self.end.checked_add(start)? } else { start };
        let run = RunEntry { stream, start, len, offset: self.offset };
        self.stream = stream;
        self.end = start.checked_add(u64::from(len))?;
        self.offset = self.offset.checked_add(disk_bytes_of_run(u64::from(len)))?;
        self.payload_left = self.payload_left.checked_sub(u64::from(len))?;
        (self.offset <= self.trailer.footer_offset).then_some(run)
    }

    fn is_complete(&self) -> bool {
        self.at == self.footer.len() && self.payload_left == 0 && self.offset == self.trailer.footer_offset
    }
}

impl Iterator for FooterRuns {
    type Item = Result<RunEntry, &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let Some(left) = self.runs_left.checked_sub(1) else {
            if self.is_complete() {
                return None;
            }
            // Said once: what is left of the footer counts as read.
            self.at = self.footer.len();
            self.payload_left = 0;
            self.offset = self.trailer.footer_offset;
            return Some(Err("its footer, its trailer and its length contradict each other"));
        };
        self.runs_left = left;
        let run = self.run();
        if run.is_none() {
            self.runs_left = 0;
            self.at = self.footer.len();
            self.payload_left = 0;
            self.offset = self.trailer.footer_offset;
        }
        Some(run.ok_or("its footer does not list runs one after the other"))
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
