//! The store against a model of it that is a map: any sequence of requests, expiries, restarts, crashes and faults of
//! the disk gets the answers, and leaves the content, that the model predicts.
//!
//! A sequence that fails shrinks to a short list of commands, printed with what each of them came to. `PROPTEST_CASES`
//! raises the number of sequences.

// What stands around the tests is a test too.
#![allow(clippy::unwrap_used)]

#[path = "../support/disk.rs"]
mod disk;
mod model;
mod outcome;
mod plan;
mod request;
mod run;
mod store;

use std::sync::Arc;

use disk::Disks;
use durable_streams_server::config::StorageMode;
use proptest::prelude::*;
use run::Run;
use store::Below;

/// Sets the number of cases, unless `PROPTEST_CASES` does. What failed is printed, not kept in a file.
fn cases(count: u32) -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = count;
    }
    config
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn streams_in_memory_behave_as_the_model(setting in plan::settings(), commands in plan::commands(false)) {
        Run::new(setting, Below::Memory).all(&commands);
    }

    #[test]
    fn streams_on_failing_disks_behave_as_the_model(setting in plan::settings(), commands in plan::commands(true)) {
        let disks = Arc::new(Disks::new(setting.shards, setting.seed));
        Run::new(setting, Below::Disks(disks)).all(&commands);
    }
}

proptest! {
    #![proptest_config(cases(12))]

    #[test]
    fn streams_in_a_directory_behave_as_the_model(setting in plan::settings(), commands in plan::commands(true)) {
        for mode in [StorageMode::Acid, StorageMode::FileDurable, StorageMode::FileFast] {
            let directory = tempfile::TempDir::new().expect("a temporary directory can be made");
            Run::new(setting.clone(), Below::Directory(mode, directory)).all(&commands);
        }
    }
}
