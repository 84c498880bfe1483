//! Disks that are full, or too slow.

use std::io::ErrorKind;
use std::time::Duration;

use durable_streams_server::engine::api::{AppendError, CreateError, Storage, Unavailable};
use futures_util::future::join_all;

use crate::disk::{Calls, Fault};
use crate::{Machine, POLL, append, within};

const RECORD_BYTES: usize = 50_000;

#[tokio::test]
async fn a_full_disk_loses_nothing_and_takes_writes_again_when_there_is_room() {
    for (calls, after) in [(Calls::Growths, 0), (Calls::Writes, 30)] {
        let machine = Machine::configured(1, 11, |config| config.storage.journal_bytes = 100_000);
        machine.create("s").await.unwrap();
        let full = Fault { after, error: ErrorKind::StorageFull, lasting: true, ..Fault::next(calls) };
        machine.disks.shard(0).arm(full);
        // Each record is a producer's, so that one whose outcome is unknown can be sent again.
        let record = |seq: u64| append("s", vec![seq as u8; RECORD_BYTES], Some(("p", seq)));
        let mut seq = 0;
        loop {
            match within(machine.store.append(record(seq))).await {
                Ok(_) => seq += 1,
                Err(AppendError::Unavailable(_)) => break,
                Err(other) => panic!("{other}"),
            }
            assert!(seq < 1_000, "the disk is full at some time");
        }
        let expected =
            |records: u64| (0..records).flat_map(|seq| [seq as u8; RECORD_BYTES]).collect::<Vec<u8>>();
        machine.disks.heal();
        machine.wait_until_ready().await;
        let there = machine.content("s").await.unwrap();
        let committed = there.len() > expected(seq).len();
        assert!(there == expected(seq + u64::from(committed)));
        let again = within(machine.store.append(record(seq))).await.unwrap();
        assert_eq!(again.duplicate, committed);
        within(machine.store.append(record(seq + 1))).await.unwrap();
        assert!(machine.content("s").await.unwrap() == expected(seq + 2));
        within(machine.store.shutdown()).await;
    }
}

#[tokio::test]
async fn a_disk_that_does_not_keep_up_is_said_so_and_what_was_taken_is_kept() {
    let machine = Machine::configured(1, 12, |config| config.limits.max_staged_bytes = 10_000);
    machine.create("s").await.unwrap();
    let disk = machine.disks.shard(0);
    for _ in 0..2 {
        let before = machine.tail("s").await.unwrap();
        disk.stall_syncs();
        let burst = join_all((0..40).map(|_| machine.append("s", vec![b'x'; 1_000])));
        let slow = async {
            // The shard answers in order: by then it has looked at the whole burst.
            assert_eq!(machine.tail("s").await, Ok(before), "nothing is durable yet");
            assert!(machine.store.health().is_ready(), "the shard is slow, not broken");
            let late = machine.create("late").await;
            assert_eq!(late.err(), Some(CreateError::Unavailable(Unavailable::Overloaded)));
            disk.resume_syncs();
        };
        let (answers, ()) = tokio::join!(burst, slow);
        let taken = answers.iter().filter(|answer| answer.is_ok()).count() as u64;
        let overloaded = AppendError::Unavailable(Unavailable::Overloaded);
        assert!(answers.iter().filter_map(|answer| answer.as_ref().err()).all(|error| *error == overloaded));
        assert!((5..20).contains(&taken), "{taken} appends fit into the limit, or a little over it");
        assert_eq!(machine.tail("s").await, Ok(before + taken * 1_000));
    }
    machine.append("s", "there is room again").await.unwrap();
    machine.create("late").await.unwrap();
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn what_cannot_be_settled_stays_in_the_journal_until_that_is_full() {
    const JOURNAL_BYTES: usize = 20_000;
    let mut machine = Machine::configured(1, 14, |config| {
        config.storage.journal_bytes = 1_000;
        config.limits.max_staged_bytes = JOURNAL_BYTES as u64;
        config.limits.max_memory_bytes = 0;
    });
    machine.create("s").await.unwrap();
    machine.create("doomed").await.unwrap();
    machine.disks.break_files();
    let overloaded = AppendError::Unavailable(Unavailable::Overloaded);
    let mut taken = 0;
    while let Ok(appended) = machine.append("s", vec![b'x'; 1_000]).await {
        taken += 1_000;
        assert_eq!(appended.tail, taken as u64);
        assert!(taken <= JOURNAL_BYTES);
    }
    assert!(taken > JOURNAL_BYTES / 2, "{taken}");
    assert_eq!(machine.append("s", "late").await, Err(overloaded.clone()));
    let created = machine.create("late").await;
    assert_eq!(created.err(), Some(CreateError::Unavailable(Unavailable::Overloaded)));
    assert!(machine.store.health().is_ready(), "what was taken is safe, and can be read");
    machine.delete("doomed").await.unwrap();
    assert!(machine.content("s").await.unwrap() == vec![b'x'; taken]);
    machine.disks.heal();
    let taken_again = async {
        while let Err(error) = machine.append("s", "x").await {
            assert_eq!(error, overloaded);
            tokio::time::sleep(POLL).await;
        }
    };
    within(taken_again).await;
    machine.crash().await;
    assert!(machine.content("s").await.unwrap() == vec![b'x'; taken + 1]);
    within(machine.store.shutdown()).await;
}

#[tokio::test]
async fn what_is_settled_leaves_the_ram_only_when_it_is_on_disk() {
    const APPENDS: u64 = 150;
    let machine = Machine::configured(1, 13, |config| {
        // Some groups go by between two checkpoints.
        config.storage.journal_bytes = 300;
        config.limits.max_memory_bytes = 0;
    });
    machine.create("s").await.unwrap();
    machine.disks.slow_down(Duration::from_millis(1));
    let writers = (0..3).map(|_| async {
        for _ in 0..APPENDS {
            machine.append("s", "0123456789").await.unwrap();
        }
    });
    let reader = async {
        let mut seen = 0;
        while seen < 3 * APPENDS as usize * 10 {
            // None fails: nothing is wrong with the disk.
            let content = machine.content("s").await.unwrap();
            assert!(content.len() >= seen && content.chunks(10).all(|record| record == b"0123456789"));
            seen = content.len();
        }
    };
    tokio::join!(join_all(writers), reader);
    within(machine.store.shutdown()).await;
}
