//! The rules of one stream, pure: `(state, command, now) → decision`. No I/O, no clock of its own, no async.
//!
//! * [`command`]: what a stream is asked to do, and its answers.
//! * [`refusal`]: why it says no.
//! * [`state`]: what a stream is, and how an [`event`] changes it. Replaying events rebuilds the state.
//! * [`event`]: what happened; storage keeps these as frames.
//! * [`create`], [`append`]: the decisions, in the order of `protocol.md` §4.
//! * [`producer`]: idempotent producers.
//! * [`fork`]: where a fork's inherited bytes come from.
//! * [`expiry`]: sliding and fixed lifetimes.
//! * [`retention`]: when the beginning of a stream goes.

pub mod append;
pub mod command;
pub mod create;
pub mod event;
pub mod expiry;
pub mod fork;
pub mod producer;
pub mod refusal;
pub mod retention;
pub mod state;
