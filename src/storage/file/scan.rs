//! The journal's records, and reading them after a start.
//!
//! ```text
//! content   version (1 byte, = 1)
//!           previous (varint): number of the last group before this record, 0 if there was none
//!           durable through (varint): all groups up to this one were durable when the record was written
//!           catalog file, catalog records (varints): so much of the catalog was durable by then
//!           number of groups (varint), and for each
//!               how much its number is above that of the group before it (varint, at least 1)
//!               frames (string)
//! ```

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::sealed::{self, CatalogEnd, FileKind, Found, HEADER_BYTES};
use super::{corrupt, failed};
use crate::storage::codec::{Put, Take};
use crate::storage::disk::Disk;
use crate::storage::pieces::Pieces;
use crate::storage::{Group, StorageError};

const VERSION: u8 = 1;
/// No file of ours is longer: one record may exceed what a file usually has, by less than this.
const FILE_BYTES_MAX: u64 = 5 << 30;

/// What a record says, without its groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Links {
    pub(super) previous: u64,
    pub(super) durable_through: u64,
    pub(super) catalog: CatalogEnd,
}

/// Appends the content of a record.
pub(super) fn encode(out: &mut Pieces, links: Links, groups: &[Group]) {
    out.put_byte(VERSION);
    out.put_varint(links.previous);
    out.put_varint(links.durable_through);
    out.put_varint(links.catalog.file);
    out.put_varint(links.catalog.records);
    out.put_varint(groups.len() as u64);
    let mut previous = links.previous;
    for group in groups {
        out.put_varint(group.seq - previous);
        out.put_varint(group.frames.len() as u64);
        out.put_pieces(&group.frames);
        previous = group.seq;
    }
}

fn decode_links(record: &mut Take) -> Result<Links, StorageError> {
    match record.byte()? {
        VERSION => Ok(Links {
            previous: record.varint()?,
            durable_through: record.varint()?,
            catalog: CatalogEnd { file: record.varint()?, records: record.varint()? },
        }),
        version => {
            Err(StorageError::Layout(format!("a journal record has version {version}; known is {VERSION}")))
        }
    }
}

/// Takes the groups that follow the links, in order.
fn decode_groups(
    record: &mut Take,
    previous: u64,
    take: &mut dyn FnMut(u64, Bytes),
) -> Result<u64, StorageError> {
    let mut last = previous;
    for _ in 0..record.varint()? {
        let above = record.varint()?;
        last = last
            .checked_add(above)
            .filter(|number| *number > last)
            .ok_or_else(|| record.corrupt("group numbers do not increase"))?;
        take(last, record.string()?);
    }
    if !record.is_empty() {
        return Err(record.corrupt("longer than its contents"));
    }
    Ok(last)
}

/// What the catalog knows of the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// Groups below are not needed.
    pub(super) trim_before: u64,
    /// Groups up to this one were durable.
    pub(super) durable_through: u64,
    /// How much there is of it.
    pub(super) end: CatalogEnd,
}

/// A file that is not written to any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClosedFile {
    pub(super) number: u64,
    /// Number of its last group; `None` if it has none.
    pub(super) last_group: Option<u64>,
    /// Where its records end. Bytes.
    pub(super) end: u64,
    /// Its length.
    pub(super) bytes: u64,
}

/// What the journal holds.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Groups that are needed, in order.
    pub(super) groups: Vec<(u64, Bytes)>,
    /// Number of the last group ever committed, as far as anybody knows.
    pub(super) last_group: u64,
    /// So much of the catalog was durable, as far as the journal knows.
    pub(super) catalog: CatalogEnd,
    pub(super) files: Vec<ClosedFile>,
    /// Bytes after the last record of each file that are not zero: what is left of unfinished commits.
    pub(super) dropped_bytes: u64,
}

/// Reads the whole journal. Changes nothing, but removes drafts.
pub(super) fn scan(disk: &dyn Disk, dir: &Path, shard: u32, known: Known) -> Result<Scan, StorageError> {
    let mut scanner = Scanner {
        known,
        proof: Proof { through: known.durable_through, by: "the catalog".to_owned() },
        chain: 0,
        dir: dir.to_owned(),
        end: (dir.to_owned(), 0),
        scan: Scan::default(),
    };
    for number in sealed::list(disk, dir, FileKind::Journal)? {
        scanner.read_file(&sealed::find(disk, dir, FileKind::Journal, shard, number)?)?;
    }
    scanner.finish()
}

/// The greatest group that is known to have been durable.
#[derive(Debug)]
struct Proof {
    through: u64,
    /// Who says so, for error messages.
    by: String,
}

struct Scanner {
    known: Known,
    proof: Proof,
    /// Number of the last group read.
    chain: u64,
    dir: PathBuf,
    /// Where reading stopped last, for error messages.
    end: (PathBuf, u64),
    scan: Scan,
}

impl Scanner {
    fn read_file(&mut self, found: &Found) -> Result<(), StorageError> {
        let Found { path, header, .. } = found;
        let bytes = read_whole(found)?;
        let by = || format!("the header of {}", path.display());
        self.prove(header.durable_through, by);
        self.prove_catalog(header.catalog, by)?;
        let mut at = HEADER_BYTES;
        let mut last_group = None;
        while let Some(content) = sealed::unseal(&bytes, at, header.mark) {
            let next = sealed::padded(content.end);
            if self.take_record(path, at, bytes.slice(content))? {
                last_group = Some(self.chain);
            }
            self.end = (path.clone(), next as u64);
            at = next;
        }
        self.look_beyond(path, &bytes, at, header.mark)?;
        self.scan.files.push(ClosedFile {
            number: header.number,
            last_group,
            end: at as u64,
            bytes: found.len,
        });
        Ok(())
    }

    /// Appends a record to the chain. Returns whether it has groups.
    fn take_record(&mut self, path: &Path, at: usize, content: Bytes) -> Result<bool, StorageError> {
        let mut record = Take::new(content, "journal record");
        let links = decode_links(&mut record)?;
        if links.previous < self.chain {
            let chain = self.chain;
            return Err(corrupt(
                path,
                at as u64,
                format_args!(
                    "the record follows group {}, but group {chain} comes before it",
                    links.previous
                ),
            ));
        }
        if links.previous > self.chain && links.previous >= self.known.trim_before {
            return Err(self.lost(links.previous, &format!("{} at byte {at}", path.display())));
        }
        let by = || format!("{} at byte {at}", path.display());
        self.prove(links.durable_through, by);
        self.prove_catalog(links.catalog, by)?;
        let trim_before = self.known.trim_before;
        let groups = &mut self.scan.groups;
        let last = decode_groups(&mut record, links.previous, &mut |number, frames| {
            if number >= trim_before {
                groups.push((number, frames));
            }
        })
        .map_err(|error| corrupt(path, at as u64, error))?;
        self.chain = last;
        Ok(last > links.previous)
    }

    /// Looks at what follows the last good record of a file. Nothing of it is used; but records that check out may tell
    /// that what is missing was durable.
    fn look_beyond(&mut self, path: &Path, bytes: &Bytes, end: usize, mark: u64) -> Result<(), StorageError> {
        let rest = bytes.get(end..).unwrap_or_default();
        let Some(last) = rest.iter().rposition(|&byte| byte != 0) else { return Ok(()) };
        self.scan.dropped_bytes += last as u64 + 1;
        self.end = (path.to_owned(), end as u64);
        let mut from = end;
        while let Some(at) = sealed::find_mark(bytes, from, mark) {
            from = at + sealed::ALIGNMENT;
            if let Some(content) = sealed::unseal(bytes, at, mark) {
                from = content.end;
                let links = decode_links(&mut Take::new(bytes.slice(content), "journal record"))?;
                let by = || format!("{} at byte {at}", path.display());
                self.prove(links.durable_through, by);
                self.prove_catalog(links.catalog, by)?;
            }
        }
        Ok(())
    }

    fn prove(&mut self, through: u64, by: impl FnOnce() -> String) {
        if through > self.proof.through {
            self.proof = Proof { through, by: by() };
        }
    }

    /// Refuses a catalog that has less than what was durable: it would lack streams, and disown their segments.
    fn prove_catalog(
        &mut self,
        durable: CatalogEnd,
        by: impl FnOnce() -> String,
    ) -> Result<(), StorageError> {
        if durable > self.known.end {
            let found = match self.known.end {
                CatalogEnd { file: 0, .. } => "there is no catalog".to_owned(),
                CatalogEnd { file, records } => {
                    format!("{} has {records} records", FileKind::Catalog.path(&self.dir, file).display())
                }
            };
            return Err(StorageError::Corrupt(format!(
                "what was durable cannot be read any more: {found}, but {} had {} records, as {} says",
                FileKind::Catalog.path(&self.dir, durable.file).display(),
                durable.records,
                by()
            )));
        }
        self.scan.catalog = self.scan.catalog.max(durable);
        Ok(())
    }

    fn lost(&self, through: u64, by: &str) -> StorageError {
        let (path, end) = &self.end;
        corrupt(
            path,
            *end,
            format_args!(
                "what was durable cannot be read any more: groups after {} up to {through} are lost, as {by} says",
                self.chain
            ),
        )
    }

    fn finish(mut self) -> Result<Scan, StorageError> {
        let Proof { through, by } = &self.proof;
        if *through > self.chain && *through >= self.known.trim_before {
            return Err(self.lost(*through, by));
        }
        self.scan.last_group = self.chain.max(*through);
        Ok(self.scan)
    }
}

fn read_whole(found: &Found) -> Result<Bytes, StorageError> {
    if found.len > FILE_BYTES_MAX {
        return Err(corrupt(&found.path, FILE_BYTES_MAX, "the file is longer than a journal file can be"));
    }
    let len = usize::try_from(found.len)
        .map_err(|_| corrupt(&found.path, 0, "the file is longer than this machine can address"))?;
    let mut bytes = vec![0; len];
    found.file.read_at(0, &mut bytes).map_err(failed("reading", &found.path))?;
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn groups() -> impl Strategy<Value = Vec<Group>> {
        let group = (1_u64..1 << 40, prop::collection::vec(any::<u8>(), 0..60));
        prop::collection::vec(group, 0..5).prop_map(|groups| {
            let mut seq = 100;
            let numbered = |(above, frames): (u64, Vec<u8>)| {
                seq += above;
                Group { seq, frames: frames.into(), ..Group::default() }
            };
            groups.into_iter().map(numbered).collect()
        })
    }

    type Groups = Vec<(u64, Vec<u8>)>;

    fn read(content: Bytes) -> Result<(Links, Groups), StorageError> {
        let mut record = Take::new(content, "journal record");
        let links = decode_links(&mut record)?;
        let mut groups = Vec::new();
        decode_groups(&mut record, links.previous, &mut |number, frames| {
            groups.push((number, frames.to_vec()));
        })?;
        Ok((links, groups))
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            groups in groups(),
            durable_through in any::<u64>(),
            file in any::<u64>(),
            records in any::<u64>(),
        ) {
            let links = Links { previous: 100, durable_through, catalog: CatalogEnd { file, records } };
            let mut out = Pieces::default();
            encode(&mut out, links, &groups);
            let given = groups.into_iter().map(|group| (group.seq, group.frames.into_vec())).collect();
            prop_assert_eq!(read(out.into_vec().into()).unwrap(), (links, given));
        }

        #[test]
        fn damaged_records_are_refused_or_read_and_never_panic(
            groups in groups(),
            at in any::<prop::sample::Index>(),
            value in any::<u8>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut out = Pieces::default();
            let links = Links { previous: 100, durable_through: 90, catalog: CatalogEnd::default() };
            encode(&mut out, links, &groups);
            let mut out = out.into_vec();
            prop_assert!(read(Bytes::copy_from_slice(&out[..cut.index(out.len())])).is_err());
            let at = at.index(out.len());
            out[at] = value;
            let _ = read(out.into());
        }
    }
}
