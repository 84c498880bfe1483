//! `backup`: has a running server copy its data directory, or copies that of a stopped one.

use std::fmt::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use indicatif::HumanBytes;

use super::progress::Bar;
use super::{FAILED, fail, print};
use crate::config::Config;
use crate::engine::backup_offline;
use crate::storage::backup::{BackupProgress, BackupSummary};

pub(super) fn run(data_dir: PathBuf, target: &Path, config: &Config) -> ExitCode {
    let mut config = config.clone();
    config.storage.data_dir = data_dir;
    let target = match std::path::absolute(target) {
        Ok(target) => target,
        Err(error) => return fail(FAILED, &format_args!("{}: {error}", target.display())),
    };
    let mut bar = Bar::default();
    let outcome = of_running(&config, &target, &mut bar).and_then(|made| match made {
        Some(summary) => Ok(summary),
        None => of_stopped(&config, &target, &mut bar),
    });
    drop(bar);
    match outcome {
        Ok(summary) => print(&told(&target, &summary)),
        Err(error) => fail(FAILED, &error),
    }
}

/// `None` if no server runs.
fn of_running(config: &Config, target: &Path, bar: &mut Bar) -> Result<Option<BackupSummary>, String> {
    #[cfg(unix)]
    {
        let data_dir = &config.storage.data_dir;
        crate::server::request_backup(data_dir, target, &mut |progress| {
            bar.show("copying", progress.done_bytes, progress.total_bytes);
        })
        .map_err(|error| error.to_string())
    }
    #[cfg(not(unix))]
    {
        let _ = (config, target, bar);
        Ok(None)
    }
}

fn of_stopped(config: &Config, target: &Path, bar: &mut Bar) -> Result<BackupSummary, String> {
    let mut show = |progress: BackupProgress| {
        bar.show("copying", progress.done_bytes, progress.total_bytes);
        ControlFlow::Continue(())
    };
    backup_offline(config, target, &mut show).map_err(|error| error.to_string())
}

fn told(target: &Path, summary: &BackupSummary) -> String {
    let BackupSummary { shards, segments, copied_bytes, linked_bytes, paused } = *summary;
    let mut text = format!(
        "backup complete: {} ({shards} shards, {segments} segments, {} copied, {} linked",
        target.display(),
        HumanBytes(copied_bytes),
        HumanBytes(linked_bytes)
    );
    if !paused.is_zero() {
        let _ = write!(text, ", commits paused for {:.1} ms", paused.as_secs_f64() * 1000.0);
    }
    text.push_str(")\n");
    text
}
