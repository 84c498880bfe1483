//! Files that are not what was written. None may be taken for what it was, and none may make the server panic.

use proptest::prelude::*;

use super::*;
use crate::storage::segment::format::{HEADER_BYTES, SegmentKey, TRAILER_BYTES, Trailer, encode_header};

const SMALL: [(u64, Range<u64>); 3] = [(1, 0..23), (2, 500..530), (300, 7..8)];

/// A store with two small segments.
fn small(disk: &MemoryDisk) -> Vec<SegmentMeta> {
    let store = new_store(disk);
    vec![
        settle(&store, vec![run(1, 0, &[10, 3]), run(2, 500, &[30]), run(300, 7, &[1])]),
        settle(&store, vec![run(1, 13, &[10])]),
    ]
}

/// Whether anybody notices that the file of `segment` is not what it was; reads must never give wrong bytes.
fn is_noticed(disk: &MemoryDisk, metas: &[SegmentMeta], keep: &[(u64, Range<u64>)]) -> bool {
    let store = match open(disk, metas, keep) {
        Ok(store) => store,
        Err(StorageError::Corrupt(_)) => return true,
        Err(other) => panic!("{other}"),
    };
    let mut read_fails = false;
    for (stream, positions) in keep {
        match read(&store, *stream, positions.clone()) {
            Ok(bytes) => assert_eq!(bytes, content(*stream, positions.clone())),
            Err(StorageError::Corrupt(_)) => read_fails = true,
            Err(other) => panic!("{other}"),
        }
    }
    let findings = store.verify(&mut |_| ());
    assert!(!read_fails || !findings.is_empty());
    !findings.is_empty()
}

#[test]
fn every_flipped_bit_of_a_file_is_noticed() {
    let disk = new_disk();
    let metas = small(&disk);
    assert!(!is_noticed(&disk, &metas, &SMALL));
    for meta in &metas {
        let intact = file_bytes(&disk, meta.id);
        for bit in 0..intact.len() * 8 {
            let mut damaged = intact.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            put_file(&disk, meta.id, &damaged);
            assert!(is_noticed(&disk, &metas, &SMALL), "bit {bit} of segment {}", meta.id);
        }
        put_file(&disk, meta.id, &intact);
    }
}

#[test]
fn files_of_another_length_are_noticed() {
    let disk = new_disk();
    let metas = small(&disk);
    let intact = file_bytes(&disk, metas[0].id);
    for len in 0..intact.len() + 3 {
        let mut other = intact.clone();
        other.resize(len, 0);
        put_file(&disk, metas[0].id, &other);
        assert_eq!(is_noticed(&disk, &metas, &SMALL), len != intact.len(), "{len} bytes");
        // Also if the catalog were wrong in the same way.
        let meta = SegmentMeta { file_bytes: len as u64, ..metas[0] };
        assert_eq!(is_noticed(&disk, &[meta, metas[1]], &SMALL), len != intact.len(), "{len} bytes");
    }
}

#[test]
fn a_file_is_not_taken_for_another() {
    let disk = new_disk();
    let metas = small(&disk);
    let (a, b) = (file_bytes(&disk, metas[0].id), file_bytes(&disk, metas[1].id));
    put_file(&disk, metas[0].id, &b);
    put_file(&disk, metas[1].id, &a);
    assert!(is_noticed(&disk, &metas, &SMALL));
    let swapped = [SegmentMeta { id: metas[1].id, ..metas[0] }, SegmentMeta { id: metas[0].id, ..metas[1] }];
    assert!(is_noticed(&disk, &swapped, &SMALL));
    put_file(&disk, metas[0].id, &a);
    put_file(&disk, metas[1].id, &b);
    let other_shard = SegmentStore::open(Arc::new(disk.clone()), 4, dir(), &metas, 0, SMALL);
    let error = other_shard.unwrap_err().to_string();
    assert!(error.contains("segment 0000000000000000 of shard 3"), "{error}");
}

#[test]
fn blocks_that_changed_places_are_noticed_and_named() {
    let disk = new_disk();
    let store = new_store(&disk);
    let meta = settle(&store, vec![run(1, 0, &[3 * BLOCK]), run(2, 0, &[BLOCK])]);
    let intact = file_bytes(&disk, meta.id);
    let stride = BLOCK as usize + 8;
    let block = |at: usize| HEADER_BYTES + at * stride..HEADER_BYTES + (at + 1) * stride;
    // Within the run, and the first block of one stream in the place of another's.
    for (from, to) in [(0, 1), (0, 3)] {
        let mut damaged = intact.clone();
        damaged.copy_within(block(from), block(to).start);
        put_file(&disk, meta.id, &damaged);
        let (stream, position) = if to == 1 { (1, BLOCK) } else { (2, 0) };
        let error = read(&store, stream, position..position + 1).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "corrupt data: shard-03/segment-0000000000000000.seg: stream {stream}, position {position}: \
                 the checksum of a block does not match"
            )
        );
        let findings = store.verify(&mut |_| ());
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].content, Some((stream, position..position + BLOCK)));
        assert_eq!(format!("corrupt data: {}", findings[0]).matches("segment-").count(), 1);
        // What is intact is read all the same.
        check_read(&store, 1, 2 * BLOCK..3 * BLOCK);
        check_read(&store, 1, 0..1);
        assert!(store.boundary_at_or_before(stream, position + 1).is_err());
    }
}

#[test]
fn all_damage_is_found_and_neighbours_are_one_finding() {
    let disk = new_disk();
    let store = new_store(&disk);
    let meta = settle(&store, vec![run(1, 0, &[10 * BLOCK]), run(2, 0, &[10])]);
    let other = settle(&store, vec![run(1, 10 * BLOCK, &[10])]);
    let mut damaged = file_bytes(&disk, meta.id);
    for block in [2, 3, 4, 7] {
        damaged[HEADER_BYTES + block * (BLOCK as usize + 8) + 100] ^= 1;
    }
    put_file(&disk, meta.id, &damaged);
    put_file(&disk, other.id, &[]);
    let mut seen = 0;
    let findings = store.verify(&mut |bytes| seen += bytes);
    assert_eq!(seen, meta.file_bytes);
    let content: Vec<_> = findings.iter().map(|finding| finding.content.clone()).collect();
    assert_eq!(content, [Some((1, 2 * BLOCK..5 * BLOCK)), Some((1, 7 * BLOCK..8 * BLOCK)), None]);
    assert!(findings[2].to_string().contains("segment-0000000000000001.seg: it has 0 bytes"));
    assert_eq!(verify_segment(&disk, &dir(), 3, &meta, &mut |_| ()), findings[..2]);
}

#[test]
fn a_damaged_segment_is_not_rewritten_again_and_again() {
    let disk = new_disk();
    let store = new_store(&disk);
    let meta = settle(&store, vec![run(1, 0, &[1000]), run(2, 0, &[10])]);
    let other = settle(&store, vec![run(3, 0, &[1000]), run(4, 0, &[10])]);
    store.forget(&[1]);
    let mut damaged = file_bytes(&disk, meta.id);
    damaged[HEADER_BYTES + 1008 + 10] ^= 1;
    put_file(&disk, meta.id, &damaged);
    let plan = store.choose_rewrite(u64::MAX).unwrap();
    assert_eq!((plan.segments(), plan.live_bytes()), (&[meta.id][..], 10));
    let outcome = store.rewrite(plan, &mut |_| ControlFlow::Continue(()));
    assert!(matches!(outcome, Err(StorageError::Corrupt(_))));
    assert_eq!(files(&disk).len(), 2);
    assert_eq!(store.choose_rewrite(u64::MAX), None);
    store.forget(&[3]);
    assert_eq!(store.choose_rewrite(u64::MAX).unwrap().segments(), [other.id]);
}

/// A file whose checksums are right, whatever it says.
fn forged(key: SegmentKey, body: &[u8], footer: &[u8], trailer: &Trailer) -> (Vec<u8>, SegmentMeta) {
    let mut bytes = encode_header(key).to_vec();
    bytes.extend_from_slice(body);
    bytes.extend_from_slice(footer);
    let (trailer, footer_crc) = trailer.encode(key, footer);
    bytes.extend_from_slice(&trailer);
    let file_bytes = bytes.len() as u64;
    (bytes, SegmentMeta { id: key.id, file_bytes, footer_crc })
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..200_u64,
        any::<u64>(),
        (0..64_u32, 0..3_u64).prop_map(|(bit, less)| (1 << bit) - less.min(1))
    ]
}

fn varints() -> impl Strategy<Value = Vec<u8>> {
    use crate::storage::codec::Put;
    prop::collection::vec(number(), 0..12).prop_map(|numbers| {
        let mut bytes = Vec::new();
        for number in numbers {
            bytes.put_varint(number);
        }
        bytes
    })
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn footers_that_lie_are_refused_without_panic(
        body in prop::collection::vec(any::<u8>(), 0..200),
        footer in prop_oneof![varints(), prop::collection::vec(any::<u8>(), 0..40)],
        fields in prop::array::uniform4(prop::option::weighted(0.3, number())),
        runs in 0..5_u64,
        kept in (number(), number(), number()),
    ) {
        let disk = new_disk();
        let key = SegmentKey { shard: 3, id: 0 };
        let trailer = Trailer {
            footer_offset: fields[0].unwrap_or((HEADER_BYTES + body.len()) as u64),
            footer_bytes: fields[1].unwrap_or(footer.len() as u64),
            runs: fields[2].unwrap_or(runs),
            payload_bytes: fields[3].unwrap_or((body.len() as u64).saturating_sub(8 * runs)),
        };
        let (bytes, meta) = forged(key, &body, &footer, &trailer);
        put_file(&disk, 0, &bytes);
        let keep = [(kept.0, kept.1.min(kept.2)..kept.1.max(kept.2))];
        for keep in [&keep[..], &[]] {
            match open(&disk, &[meta], keep) {
                Ok(store) => {
                    store.verify(&mut |_| ());
                    for (stream, positions) in keep {
                        prop_assert!(positions.is_empty() || read(&store, *stream, positions.clone()).is_err());
                    }
                }
                Err(StorageError::Corrupt(_)) => {}
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
        verify_segment(&disk, &dir(), 3, &meta, &mut |_| ());
    }

    #[test]
    fn files_of_anything_are_refused_without_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300),
        with_header in any::<bool>(),
        meta_crc in any::<u32>(),
    ) {
        let disk = new_disk();
        if with_header && bytes.len() >= HEADER_BYTES + TRAILER_BYTES {
            bytes[..HEADER_BYTES].copy_from_slice(&encode_header(SegmentKey { shard: 3, id: 0 }));
        }
        put_file(&disk, 0, &bytes);
        let meta = SegmentMeta { id: 0, file_bytes: bytes.len() as u64, footer_crc: meta_crc };
        prop_assert!(matches!(open(&disk, &[meta], &[]), Err(StorageError::Corrupt(_))));
        prop_assert_eq!(verify_segment(&disk, &dir(), 3, &meta, &mut |_| ()).len(), 1);
    }
}
