//! How threads of a test end together.
//!
//! Tests of the library include this file by its path.
#![allow(dead_code)]

use std::sync::atomic::{AtomicBool, Ordering};

/// Raises a flag when it goes, also by a panic: threads that loop until then would keep a failed test from ending.
#[derive(Debug)]
pub(crate) struct RaiseOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for RaiseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
