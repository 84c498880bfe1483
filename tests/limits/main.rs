//! What the server keeps in RAM stays within its bounds, whatever clients do: the real binary, seen from outside.
//!
//! Bounds are stated with room to spare, as allocators keep some of what was given back; without the limits under test
//! each of them would be exceeded several times over.

mod resident;
#[path = "../support/mod.rs"]
mod support;

mod bodies;
mod descriptors;
mod messages;
mod stalled;
mod streams;
