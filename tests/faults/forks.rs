//! Forks whose shard, or whose source's shard, fails on the way.

use durable_streams_server::engine::api::{CreateError, LookupError, LookupRefusal, Storage};

use crate::disk::{Calls, Fault, Unsynced};
use crate::{Machine, within};

const SOURCE_SHARD: usize = 0;
const FORK_SHARD: usize = 1;

fn faults() -> impl Iterator<Item = (usize, Fault)> {
    let shards = [SOURCE_SHARD, FORK_SHARD];
    let calls = [(Calls::Syncs, 3), (Calls::Writes, 6)];
    let unsynced = [Unsynced::None, Unsynced::All, Unsynced::Some];
    shards.into_iter().flat_map(move |shard| {
        calls.into_iter().flat_map(move |(calls, most)| {
            (0..most).flat_map(move |after| {
                unsynced
                    .into_iter()
                    .map(move |unsynced| (shard, Fault { after, unsynced, ..Fault::next(calls) }))
            })
        })
    })
}

/// A source with content, and what a fork of it is to be called.
async fn source(seed: u64) -> (Machine, String, String) {
    let machine = Machine::start(2, seed);
    let source = machine.name_on(SOURCE_SHARD, "source");
    let fork = machine.name_on(FORK_SHARD, "fork");
    machine.create(&source).await.unwrap();
    machine.append(&source, "inherited").await.unwrap();
    (machine, source, fork)
}

#[tokio::test]
async fn a_fork_that_failed_on_the_way_leaves_no_pin() {
    for (number, (shard, fault)) in faults().enumerate() {
        let (machine, source, fork) = source(number as u64).await;
        machine.disks.shard(shard).arm(fault);
        let answer = machine.create_with(&fork, Some(&source), None).await;
        machine.disks.heal();
        machine.wait_until_ready().await;
        match &answer {
            Ok(created) => assert!(!created.existed && created.tail == 9),
            Err(CreateError::Unavailable(_)) => {}
            Err(other) => panic!("{other}"),
        }
        let there = machine.content(&fork).await;
        assert!(there.is_ok() || answer.is_err(), "{fault:?} on {shard}: an acknowledged fork is gone");
        if let Ok(content) = there {
            assert_eq!(content, b"inherited");
            machine.delete(&source).await.unwrap();
            assert_eq!(machine.content(&fork).await.unwrap(), b"inherited", "{fault:?} on {shard}");
            machine.insist_on_deleting(&fork).await;
        } else {
            machine.insist_on_deleting(&source).await;
        }
        machine.wait_until_absent(&source).await;
        within(machine.store.shutdown()).await;
    }
}

#[tokio::test]
async fn a_deletion_of_the_last_fork_that_failed_on_the_way_frees_the_source_in_the_end() {
    for (number, (shard, fault)) in faults().enumerate() {
        let (machine, source, fork) = source(number as u64).await;
        machine.create_with(&fork, Some(&source), None).await.unwrap();
        machine.delete(&source).await.unwrap();
        assert_eq!(machine.tail(&source).await, Err(LookupError::Refused(LookupRefusal::Gone)));
        machine.disks.shard(shard).arm(fault);
        let answer = machine.delete(&fork).await;
        assert!(matches!(answer, Ok(()) | Err(LookupError::Unavailable(_))), "{answer:?}");
        // That the fork is gone is on its way to the source's shard, so that may fail only now.
        machine.disks.heal();
        machine.wait_until_ready().await;
        let there = machine.content(&fork).await;
        assert!(
            there.is_err() || answer.is_err(),
            "{fault:?} on {shard}: an acknowledged deletion came back"
        );
        if let Ok(content) = there {
            assert_eq!(content, b"inherited");
            machine.insist_on_deleting(&fork).await;
        }
        machine.wait_until_absent(&source).await;
        within(machine.store.shutdown()).await;
    }
}

#[tokio::test]
async fn both_shards_may_fail_under_many_forks() {
    for seed in 0..6 {
        let (machine, source, _) = source(seed).await;
        for (shard, after) in [(SOURCE_SHARD, seed % 3), (FORK_SHARD, seed / 2)] {
            machine.disks.shard(shard).arm(Fault { after, ..Fault::next(Calls::Syncs) });
        }
        let names: Vec<String> = (0..8).map(|number| format!("fork-{number}")).collect();
        let creations = names.iter().map(|name| machine.create_with(name, Some(&source), None));
        let answers = futures_util::future::join_all(creations).await;
        machine.disks.heal();
        machine.wait_until_ready().await;
        for (name, answer) in names.iter().zip(&answers) {
            let there = machine.content(name).await;
            assert!(there.is_ok() || answer.is_err(), "an acknowledged fork is gone");
            assert!(there.is_err() || there.as_deref() == Ok(&b"inherited"[..]));
        }
        machine.insist_on_deleting(&source).await;
        for name in &names {
            machine.insist_on_deleting(name).await;
        }
        machine.wait_until_absent(&source).await;
        within(machine.store.shutdown()).await;
    }
}

#[tokio::test]
async fn a_crash_between_a_pin_and_its_fork_leaves_no_pin() {
    for unfinished in [SOURCE_SHARD, FORK_SHARD] {
        let (mut machine, source, fork) = source(3).await;
        machine.disks.shard(unfinished).stall_syncs();
        let creation = tokio::spawn({
            let (machine, source, fork) = (machine.clone(), source.clone(), fork.clone());
            async move { machine.create_with(&fork, Some(&source), None).await }
        });
        let disks = machine.disks.clone();
        let held = tokio::task::spawn_blocking(move || disks.shard(unfinished).wait_for_held_sync());
        within(held).await.unwrap();
        machine.crash().await;
        let answer = within(creation).await.unwrap();
        assert!(matches!(answer, Err(CreateError::Unavailable(_))), "{answer:?}");
        if machine.content(&fork).await.is_ok() {
            machine.delete(&fork).await.unwrap();
        }
        machine.delete(&source).await.unwrap();
        machine.wait_until_absent(&source).await;
        within(machine.store.shutdown()).await;
    }
}
