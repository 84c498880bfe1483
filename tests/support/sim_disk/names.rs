//! One directory: names as they are seen, names as they are on the disk, and what happened in between.

use std::collections::BTreeMap;

use super::{Dice, Style, Survives};

/// What a name stands for: number of a file, or of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    File(u64),
    Dir(u64),
}

pub(super) type Names = BTreeMap<String, Target>;

#[derive(Clone, Debug)]
enum Change {
    Set(String, Target),
    Remove(String),
    Rename(String, String),
}

impl Change {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Set(name, target) => {
                names.insert(name.clone(), *target);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Rename(from, to) => {
                // If what came before has not survived, there may be nothing to rename.
                if let Some(target) = names.remove(from) {
                    names.insert(to.clone(), target);
                }
            }
        }
    }

    fn touches(&self, name: &str) -> bool {
        match self {
            Self::Set(own, _) | Self::Remove(own) => own == name,
            Self::Rename(from, to) => from == name || to == name,
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Self::Set(name, _) | Self::Remove(name) => vec![name],
            Self::Rename(from, to) => vec![from, to],
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct SimDir {
    live: Names,
    synced: Names,
    unsynced: Vec<Change>,
}

impl SimDir {
    /// A directory of which everything is on the disk.
    pub(super) fn on_disk(names: Names) -> Self {
        Self { live: names.clone(), synced: names, unsynced: Vec::new() }
    }

    pub(super) fn live(&self) -> &Names {
        &self.live
    }

    pub(super) fn set(&mut self, name: &str, target: Target) {
        self.change(Change::Set(name.to_owned(), target));
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.change(Change::Remove(name.to_owned()));
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) {
        self.change(Change::Rename(from.to_owned(), to.to_owned()));
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.unsynced.push(change);
    }

    pub(super) fn sync(&mut self) {
        self.synced = self.live.clone();
        self.unsynced.clear();
    }

    /// Files that a power cut, or somebody who looks now, may find here.
    pub(super) fn may_hold(&self, file: u64) -> bool {
        let target = Target::File(file);
        let unsynced = |change: &Change| matches!(change, Change::Set(_, set) if *set == target);
        self.live.values().chain(self.synced.values()).any(|held| *held == target)
            || self.unsynced.iter().any(unsynced)
    }

    /// What a power cut leaves of it. Changes of one name, and of names that a rename joins, keep their order.
    pub(super) fn after_cut(&self, style: Style, dice: &mut Dice) -> Names {
        let mut names = self.synced.clone();
        let changes = self.unsynced.len();
        match style.names {
            Survives::Nothing => {}
            Survives::Everything => self.unsynced.iter().for_each(|change| change.apply(&mut names)),
            Survives::Prefix => {
                let survive = dice.roll(changes + 1);
                self.unsynced[..survive].iter().for_each(|change| change.apply(&mut names));
            }
            Survives::Any => {
                for joined in self.independent() {
                    let survive = dice.roll(joined.len() + 1);
                    joined[..survive].iter().for_each(|change| change.apply(&mut names));
                }
            }
        }
        names
    }

    /// The changes, parted so that no two parts have a name in common.
    fn independent(&self) -> Vec<Vec<&Change>> {
        let mut parts: Vec<Vec<&Change>> = Vec::new();
        for change in &self.unsynced {
            let is_joined = |part: &Vec<&Change>| {
                part.iter().any(|other| change.names().iter().any(|name| other.touches(name)))
            };
            let (joined, others): (Vec<_>, Vec<_>) = parts.into_iter().partition(is_joined);
            parts = others;
            // Parts that this change joins have no name in common, so their order among each other is of no account.
            let mut part: Vec<&Change> = joined.into_iter().flatten().collect();
            part.push(change);
            parts.push(part);
        }
        parts
    }
}
