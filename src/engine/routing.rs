//! The map from stream names to shards. It is a promise to every data directory: the name of the hash stands in the
//! layout manifest, and its output must never depend on version or processor.

use xxhash_rust::xxh3::xxh3_64;

/// Name of the hash, as written into the layout manifest.
pub const HASH_NAME: &str = "xxh3-64/seed0";

/// Shard that owns the stream of this decoded name.
pub fn shard_of(name: &str, shard_count: usize) -> usize {
    // Multiply-shift instead of a remainder: uses the high bits, which are as good as any, and needs no division.
    ((u128::from(xxh3_64(name.as_bytes())) * shard_count as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_what_it_was_when_data_was_written() {
        let shards = ["a", "chat/1", "äöü", ""].map(|name| shard_of(name, 8));
        assert_eq!(xxh3_64(b""), 0x2d06_8005_38d3_94c2, "the reference value of the hash's specification");
        assert_eq!(shards[3], 1);
        assert!(shards.iter().all(|&shard| shard < 8));
    }

    #[test]
    fn names_spread_evenly() {
        let mut counts = [0; 5];
        for n in 0..10_000 {
            counts[shard_of(&format!("stream-{n}"), 5)] += 1;
        }
        assert!(counts.iter().all(|&count| (1_800..2_200).contains(&count)), "{counts:?}");
    }
}
