//! The same streams on another number of shards.

use crate::storage::SHARDS_MAX;
use crate::tools::build::{Origins, build};
use crate::tools::image::Image;
use crate::tools::population::{Population, members};
use crate::tools::{DataDirectory, Progress, ToolError};

/// Spreads all streams over `shard_count` shards. Names, content, offsets and all that is known of them stay; they become
/// other incarnations, so that ETags change. Returns the number of streams, `None` if there are that many shards already.
///
/// Everything is written anew beside what is there, so that the disk needs room for both. Who is cut off leaves the
/// directory as it was, or as it is to be.
///
/// # Errors
/// If the number is none that can be, there is not enough room, or something cannot be read or written.
pub fn reshard(
    directory: &DataDirectory,
    shard_count: usize,
    progress: &mut dyn Progress,
) -> Result<Option<u64>, ToolError> {
    if !(1..=SHARDS_MAX).contains(&shard_count) {
        let what = format!("the number of shards must be between 1 and {SHARDS_MAX}, not {shard_count}");
        return Err(ToolError::Conflict(what));
    }
    let image = Image::open(&directory.taken)?;
    if image.layout.shard_count == shard_count {
        return Ok(None);
    }
    let population = Population::plan(members(&image).collect(), shard_count, image.next_id())?;
    build(&directory.taken, shard_count, &population, &Origins { image: &image, input: None }, progress)?;
    Ok(Some(population.streams.len() as u64))
}
