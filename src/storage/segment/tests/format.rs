//! The bytes of a file.

use proptest::prelude::*;

use super::*;
use crate::storage::segment::format::{
    BLOCK_HEADER_BYTES, FooterBuilder, FooterRuns, HEADER_BYTES, TRAILER_BYTES, disk_bytes_of_run,
    id_of_file_name,
};

#[test]
fn a_file_is_as_documented() {
    let disk = new_disk();
    let store = new_store(&disk);
    store.take_key();
    let pieces = vec![Bytes::from_static(b"hi,")];
    let meta = settle(&store, vec![RunSource { stream: 5, start: 300, pieces }]);
    assert_eq!(meta.id, 1);
    let expected = [
        "89445373 65670d0a 01000000 03000000 0100000000000000 00000000 7b3de4b4",
        "00000000 00000000 68692c",
        "05 ac02 03",
        "2b00000000000000 0400000000000000 0100000000000000 0300000000000000 0100000000000000 03000000",
        "00000000 4453736567454e44",
    ];
    let mut bytes = file_bytes(&disk, 1);
    // The checksums that cover content are computed here anew.
    let identity = [&[3, 0, 0, 0][..], &1_u64.to_le_bytes(), &5_u64.to_le_bytes(), &300_u64.to_le_bytes()];
    let block_crc = crc32c::crc32c(&[&identity.concat()[..], &[0; 4], b"hi,"].concat());
    assert_eq!(bytes[32..36], block_crc.to_le_bytes());
    let footer_crc = crc32c::crc32c(&bytes[43..91]);
    assert_eq!(bytes[91..95], footer_crc.to_le_bytes());
    assert_eq!(meta, SegmentMeta { id: 1, file_bytes: 103, footer_crc });
    let header_crc = crc32c::crc32c(&bytes[..28]);
    assert_eq!(bytes[28..32], header_crc.to_le_bytes());
    bytes[28..36].fill(0);
    bytes[91..95].fill(0);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, expected.concat().replace(' ', "").replace("7b3de4b4", "00000000"));
}

#[test]
fn only_names_of_segment_files_are_taken_for_some() {
    let path = super::super::format::file_path(&dir(), 0xfe);
    assert_eq!(path.to_str(), Some("shard-03/segment-00000000000000fe.seg"));
    assert_eq!(id_of_file_name("segment-00000000000000fe.seg"), Some(0xfe));
    for name in [
        "segment-00000000000000FE.seg",
        "segment-0000000000000fe.seg",
        "segment-000000000000000fe.seg",
        "segment-00000000000000fe.seg.new",
        "segment-+0000000000000fe.seg",
        "shard.redb",
    ] {
        assert_eq!(id_of_file_name(name), None, "{name}");
    }
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn footers_list_what_was_added(
        steps in prop::collection::vec((0..3_u64, 0..u64::from(u32::MAX), 1..u32::MAX, 0..50_u32), 0..60),
    ) {
        let mut builder = FooterBuilder::default();
        let mut expected = Vec::new();
        let (mut stream, mut end, mut offset) = (0_u64, 0_u64, HEADER_BYTES as u64);
        for (kind, gap, len, shift) in steps {
            let start = match kind {
                0 => end,
                1 => end + (gap >> (shift % 32)),
                _ => {
                    stream += (gap >> (shift % 32)) + 1;
                    gap
                }
            };
            builder.add(stream, start, len);
            expected.push(super::super::format::RunEntry { stream, start, len, offset });
            end = start + u64::from(len);
            offset += disk_bytes_of_run(len.into());
        }
        let (footer, trailer) = builder.finish(offset);
        let runs: Vec<_> = FooterRuns::new(&trailer, footer.into()).map(Result::unwrap).collect();
        prop_assert_eq!(runs, expected);
    }

    #[test]
    fn runs_of_any_shape_are_read_as_they_were_written(
        runs in prop::collection::btree_map(
            (0..20_u64, any::<u32>()),
            prop::collection::vec(prop_oneof![0..200_u64, BLOCK - 2..BLOCK + 2, 60_000..70_000_u64], 1..5),
            1..12,
        ),
    ) {
        let disk = new_disk();
        let store = new_store(&disk);
        let mut ends = std::collections::BTreeMap::new();
        let mut sources = Vec::new();
        for ((stream, gap), messages) in runs {
            let gap_free = ends.get(&stream).copied();
            let start = gap_free.unwrap_or(u64::from(gap));
            let source = run(stream, start, &messages);
            ends.insert(stream, start + messages.iter().sum::<u64>());
            sources.push(source);
        }
        let expected_bytes: u64 = sources.iter().flat_map(|source| &source.pieces).map(|piece| piece.len() as u64).sum();
        let mut shuffled = sources.clone();
        shuffled.reverse();
        let meta = settle(&store, shuffled);
        prop_assert_eq!(store.live_bytes(), expected_bytes);
        prop_assert_eq!(meta.file_bytes, file_bytes(&disk, meta.id).len() as u64);
        prop_assert!(meta.file_bytes >= (HEADER_BYTES + TRAILER_BYTES) as u64 + expected_bytes);
        prop_assert!(expected_bytes == 0 || meta.file_bytes >= expected_bytes + BLOCK_HEADER_BYTES as u64);
        for source in sources {
            let mut at = source.start;
            for piece in source.pieces {
                let end = at + piece.len() as u64;
                prop_assert_eq!(read(&store, source.stream, at..end).unwrap(), piece);
                at = end;
            }
        }
        prop_assert_eq!(store.verify(&mut |_| ()), vec![]);
    }
}
