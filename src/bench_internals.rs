//! What `benches/engine.rs` needs of what is private. Not for use, and not stable.

use bytes::Bytes;

use crate::storage::pieces::Pieces;
use crate::storage::{StorageError, frame};
use crate::stream::event::Event;

/// Appends the journal's frame of an event of a stream to `out`.
pub fn encode_frame(out: &mut Vec<u8>, stream: u64, event: &Event) {
    let mut pieces = Pieces::from(std::mem::take(out));
    frame::encode(&mut pieces, stream, event);
    *out = pieces.into_vec();
}

/// Streams and events of the journal's frames, in order.
///
/// # Errors
/// If the bytes are not whole frames.
pub fn decode_frames(frames: Bytes) -> Result<Vec<(u64, Event)>, StorageError> {
    frame::decode_all(frames)
}
