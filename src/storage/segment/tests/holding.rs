use super::*;

#[test]
fn files_that_are_held_stay_until_all_who_hold_them_let_go() {
    let disk = new_disk();
    let store = Arc::new(new_store(&disk));
    let a = settle(&store, vec![run(1, 0, &[50])]);
    let first = Arc::clone(&store).hold();
    let b = rewrite(&store, &[a.id]).unwrap();
    let second = Arc::clone(&store).hold();
    let held = (first.bytes(), second.bytes(), files(&disk).len());
    assert_eq!(held, (a.file_bytes, b.file_bytes, 2));
    assert_eq!(store.disk_bytes(), b.file_bytes, "what is only held is not in use");
    drop(first);
    assert_eq!(files(&disk).len(), 2, "a file more may stay for as long as anything is held");
    let c = rewrite(&store, &[b.id]).unwrap();
    assert_eq!(files(&disk).len(), 3);
    drop(second);
    assert_eq!(files(&disk).len(), 1);
    check_read(&store, 1, 0..50);
    rewrite(&store, &[c.id]).unwrap();
    assert_eq!(files(&disk).len(), 1, "nobody holds anything any more");
}

#[test]
fn who_holds_files_of_a_store_that_is_retired_has_no_claim_to_them_and_removes_none() {
    let disk = new_disk();
    let store = Arc::new(new_store(&disk));
    let a = settle(&store, vec![run(1, 0, &[50])]);
    let hold = Arc::clone(&store).hold();
    rewrite(&store, &[a.id]).unwrap();
    assert!(hold.is_valid());
    store.retire();
    assert!(!hold.is_valid());
    drop(hold);
    assert_eq!(files(&disk).len(), 2, "they are for the next store to see to");
}
