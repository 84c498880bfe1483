//! Backups that something comes in between of: each fails with a reason, leaves nothing behind, and does the store no harm.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use durable_streams_server::engine::AcidStorage;
use durable_streams_server::engine::api::{AppendError, Storage as _};
use durable_streams_server::storage::backup::{BackupError, BackupSummary};
use durable_streams_server::{Config, InMemoryStorage};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::disk::{Calls, Fault};
use crate::{Machine, within};

type Outcome = Result<BackupSummary, BackupError>;

/// Backs the store up. `during` is called once, when the shards were looked at and nothing is copied yet.
async fn back_up(machine: &Machine, target: &Path, during: impl FnOnce() + Send + 'static) -> Outcome {
    let (engine, target) = (machine.store.engine().clone(), target.to_owned());
    let work = move || {
        let mut during = Some(during);
        let mut tell = |_| {
            if let Some(during) = during.take() {
                during();
            }
            ControlFlow::Continue(())
        };
        engine.backup(&target, &mut tell)
    };
    within(tokio::task::spawn_blocking(work)).await.expect("a backup does not panic")
}

struct Scene {
    machine: Machine,
    names: Vec<String>,
    directory: TempDir,
}

impl Scene {
    async fn new() -> Self {
        let machine = Machine::start(2, 1);
        let names: Vec<String> = (0..2).map(|shard| machine.name_on(shard, "a")).collect();
        for name in &names {
            machine.create(name).await.unwrap();
            machine.append(name, "before;").await.unwrap();
        }
        Self { machine, names, directory: TempDir::new().unwrap() }
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("copy")
    }

    /// Nothing is left of a backup, the store goes on, and another backup works.
    async fn check_no_harm_is_done(&self) {
        assert!(!self.target().exists(), "what was written of the copy was removed");
        self.machine.wait_until_ready().await;
        for name in &self.names {
            self.machine.append(name, "after;").await.unwrap();
            let content = self.machine.content(name).await.unwrap();
            assert!(content.starts_with(b"before;") && content.ends_with(b"after;"));
        }
        let copy = back_up(&self.machine, &self.target(), || {}).await.unwrap();
        assert_eq!(copy.shards, 2);
        for name in &self.names {
            assert_eq!(
                content_of_copy(&self.target(), name).await,
                self.machine.content(name).await.unwrap()
            );
        }
    }
}

async fn content_of_copy(copy: &Path, name: &str) -> Vec<u8> {
    let mut config = Config::default();
    config.storage.data_dir = copy.to_owned();
    let store = AcidStorage::open(&config).expect("a complete backup can be opened");
    let page = within(store.read(crate::read(name))).await.unwrap();
    within(store.shutdown()).await;
    page.data.concat()
}

#[tokio::test]
async fn what_comes_after_the_instant_is_not_in_the_copy() {
    let scene = Scene::new().await;
    let (machine, names) = (scene.machine.clone(), scene.names.clone());
    let handle = Handle::current();
    let during = move || {
        for name in &names {
            handle.block_on(machine.append(name, "meanwhile;")).unwrap();
        }
    };
    back_up(&scene.machine, &scene.target(), during).await.unwrap();
    for name in &scene.names {
        assert_eq!(content_of_copy(&scene.target(), name).await, b"before;");
        assert_eq!(scene.machine.content(name).await.unwrap(), b"before;meanwhile;");
    }
}

#[tokio::test]
async fn a_second_backup_is_refused_while_one_is_under_way() {
    let scene = Scene::new().await;
    let (engine, other) = (scene.machine.store.engine().clone(), scene.directory.path().join("other"));
    let during = move || {
        let refused = engine.backup(&other, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(refused, Err(BackupError::Busy)), "{refused:?}");
        assert!(!other.exists());
    };
    back_up(&scene.machine, &scene.target(), during).await.unwrap();
    fs::remove_dir_all(scene.target()).unwrap();
    scene.check_no_harm_is_done().await;
}

#[tokio::test]
async fn a_backup_that_nobody_waits_for_is_given_up() {
    let scene = Scene::new().await;
    let (engine, target) = (scene.machine.store.engine().clone(), scene.target());
    let work = move || engine.backup(&target, &mut |_| ControlFlow::Break(()));
    let outcome = within(tokio::task::spawn_blocking(work)).await.unwrap();
    assert!(matches!(outcome, Err(BackupError::Cancelled)), "{outcome:?}");
    scene.check_no_harm_is_done().await;
}

#[tokio::test]
async fn a_commit_that_fails_meanwhile_fails_the_backup() {
    for calls in [Calls::Writes, Calls::Syncs] {
        let scene = Scene::new().await;
        let (machine, name) = (scene.machine.clone(), scene.names[1].clone());
        let handle = Handle::current();
        let during = move || {
            machine.disks.shard(1).arm(Fault::next(calls));
            let failed = handle.block_on(machine.append(&name, "lost or not;"));
            assert!(matches!(failed, Err(AppendError::Unavailable(_))), "{failed:?}");
        };
        let outcome = back_up(&scene.machine, &scene.target(), during).await;
        assert!(matches!(outcome, Err(BackupError::ShardUnavailable(_))), "{outcome:?}");
        scene.check_no_harm_is_done().await;
    }
}

#[tokio::test]
async fn a_shard_that_is_being_reopened_refuses_a_backup() {
    let scene = Scene::new().await;
    let disk = scene.machine.disks.shard(0);
    disk.arm(Fault { lasting: true, ..Fault::next(Calls::All) });
    scene.machine.append(&scene.names[0], "lost;").await.unwrap_err();
    scene.machine.wait_until_not_ready().await;
    let outcome = back_up(&scene.machine, &scene.target(), || {}).await;
    assert!(matches!(outcome, Err(BackupError::ShardUnavailable(_))), "{outcome:?}");
    scene.machine.disks.heal();
    scene.check_no_harm_is_done().await;
}

#[tokio::test]
async fn a_commit_that_hangs_makes_the_backup_give_up_and_not_the_other_shards() {
    let scene = Scene::new().await;
    let disk = scene.machine.disks.shard(0);
    disk.stall_syncs();
    let (machine, name) = (scene.machine.clone(), scene.names[0].clone());
    let held = tokio::spawn(async move { machine.append(&name, "late;").await });
    let disks = scene.machine.disks.clone();
    within(tokio::task::spawn_blocking(move || disks.shard(0).wait_for_held_sync())).await.unwrap();
    let (engine, target) = (scene.machine.store.engine().clone(), scene.target());
    let backup =
        tokio::task::spawn_blocking(move || engine.backup(&target, &mut |_| ControlFlow::Continue(())));
    while !backup.is_finished() {
        scene.machine.append(&scene.names[1], "meanwhile;").await.unwrap();
    }
    let outcome = backup.await.unwrap();
    assert!(matches!(outcome, Err(BackupError::ShardUnavailable(_))), "{outcome:?}");
    disk.resume_syncs();
    within(held).await.unwrap().unwrap();
    scene.check_no_harm_is_done().await;
}

#[tokio::test]
async fn a_shutdown_meanwhile_fails_the_backup() {
    let mut scene = Scene::new().await;
    let (store, handle) = (scene.machine.store.clone(), Handle::current());
    let outcome = back_up(&scene.machine, &scene.target(), move || handle.block_on(store.shutdown())).await;
    assert!(matches!(outcome, Err(BackupError::ShardUnavailable(_))), "{outcome:?}");
    assert!(!scene.target().exists());
    let outcome = back_up(&scene.machine, &scene.target(), || {}).await;
    assert!(matches!(outcome, Err(BackupError::ShardUnavailable(_))), "{outcome:?}");
    scene.machine.crash().await;
    scene.check_no_harm_is_done().await;
}

#[tokio::test]
async fn a_target_that_fails_does_no_harm() {
    let scene = Scene::new().await;
    let gone = scene.target();
    let during = move || fs::remove_dir_all(&gone).unwrap();
    let outcome = back_up(&scene.machine, &scene.target(), during).await;
    assert!(matches!(outcome, Err(BackupError::Storage(_))), "{outcome:?}");
    scene.check_no_harm_is_done().await;
}

#[tokio::test]
async fn memory_mode_has_nothing_to_back_up() {
    let store = InMemoryStorage::new(&Config::default()).unwrap();
    let outcome = store.engine().backup(Path::new("/nonexistent/copy"), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(outcome, Err(BackupError::NothingOnDisk)), "{outcome:?}");
}
