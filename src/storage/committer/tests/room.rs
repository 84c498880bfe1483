//! What the commit thread says of the room on its disk.

use super::*;

#[test]
fn room_is_looked_at_again_without_traffic_while_it_is_scarce() {
    let rig = Rig::with_free(1500, []);
    for free in [900, 500, 1700] {
        *rig.below.free.lock().unwrap() = Some(free);
        assert_eq!(rig.expect_room(), free);
    }
    *rig.below.reusable.lock().unwrap() = 300;
    assert_eq!(rig.expect_room(), 2000);
    // Now that there is plenty, nobody looks before something is written.
    *rig.below.free.lock().unwrap() = Some(1);
    rig.submit([1]);
    rig.committer.close();
    assert!(matches!(rig.next(), Completion::Durable { through: 1 }));
    rig.expect_closed();
}

#[test]
fn many_bytes_are_a_reason_to_look_at_once() {
    let rig = Rig::with_free(5000, []);
    *rig.below.free.lock().unwrap() = Some(4000);
    rig.committer.submit(Group { seq: 1, frames: vec![0; COMMIT_BYTES_MAX].into(), ..Group::default() });
    assert_eq!(rig.expect_room(), 4000);
}

#[test]
fn once_a_write_found_no_room_only_what_is_freed_since_counts() {
    let mut rig = Rig::with_free(5000, [Act::RunOut]);
    *rig.below.reusable.lock().unwrap() = 4000;
    rig.submit([1]);
    rig.expect_failed("as told");
    assert_eq!(rig.expect_room(), 0);
    rig.committer.acknowledge_failure();
    *rig.below.reusable.lock().unwrap() = 4300;
    assert_eq!(rig.expect_room(), 300);
    *rig.below.free.lock().unwrap() = Some(5500);
    assert_eq!(rig.expect_room(), 800);
    rig.submit([2]);
    rig.expect_durable(2);
}
