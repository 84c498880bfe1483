//! One file: what is read from it, what is on the disk of it, and what happened in between.

use super::pages::{Excerpt, Pages};
use super::{Dice, Style, Survives};

/// Something that was done to a file and not synced yet.
#[derive(Clone, Debug)]
enum Change {
    /// With the pages as they were afterwards, which is what a cache writes back.
    Write {
        offset: u64,
        len: usize,
        after: Excerpt,
    },
    SetLen(u64),
}

#[derive(Debug, Default)]
pub(super) struct SimInode {
    /// What reads see.
    live: Pages,
    /// What a power cut leaves for certain.
    synced: Pages,
    /// What leads from `synced` to `live`, but for what a failed sync has lost.
    unsynced: Vec<Change>,
    /// Open handles.
    pub(super) handles: usize,
}

impl SimInode {
    /// A file of which everything is on the disk.
    pub(super) fn on_disk(content: Pages) -> Self {
        Self { live: content.clone(), synced: content, ..Self::default() }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.unsynced.is_empty()
    }

    pub(super) fn live(&self) -> &Pages {
        &self.live
    }

    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.live.write(offset, data);
        let after = self.live.excerpt(offset, data.len());
        self.unsynced.push(Change::Write { offset, len: data.len(), after });
    }

    pub(super) fn set_len(&mut self, len: u64) {
        self.live.set_len(len);
        self.unsynced.push(Change::SetLen(len));
    }

    /// Changes bytes behind everybody's back.
    pub(super) fn damage(&mut self, offset: u64, len: usize) {
        let mut bytes = vec![0; len];
        self.live.read(offset, &mut bytes).expect("there is something to damage");
        bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
        self.live.write(offset, &bytes);
        self.synced.write(offset, &bytes);
    }

    /// Writes the dirty pages. Pages that a failed sync has marked clean are not among them, unless they were written
    /// again since.
    pub(super) fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            match change {
                Change::Write { after, .. } => {
                    let (offset, len) = after.span();
                    self.synced.restore(&after, offset, len);
                }
                Change::SetLen(len) => self.synced.forget_from(len),
            }
        }
        self.synced.set_len(self.live.len());
    }

    /// A sync that fails as Linux lets it: of what was not on the disk any part may have got there, and nothing of it is
    /// dirty any more. It is still read.
    pub(super) fn fail_sync(&mut self, dice: &mut Dice) {
        let style = Style { content: Survives::Any, ..Style::draw(dice) };
        self.synced = self.after_cut(style, dice);
        self.unsynced.clear();
    }

    /// What was clean is read from the disk again. To be synced before.
    pub(super) fn drop_cache(&mut self) {
        self.live = self.synced.clone();
    }

    /// What a power cut leaves of it.
    pub(super) fn after_cut(&self, style: Style, dice: &mut Dice) -> Pages {
        let changes = self.unsynced.len();
        // As many changes of the length have reached the disk …
        let (whole, lengths) = match style.content {
            Survives::Nothing => (0, 0),
            Survives::Everything => (changes, changes),
            Survives::Prefix => {
                let whole = dice.roll(changes + 1);
                (whole, (whole + dice.roll(2)).min(changes))
            }
            Survives::Any => (0, dice.roll(changes + 1)),
        };
        let mut disk = self.synced.clone();
        let (mut len, mut len_now) = (disk.len(), disk.len());
        for (at, change) in self.unsynced.iter().enumerate() {
            match change {
                Change::Write { offset, len, after } => {
                    len_now = len_now.max(offset + *len as u64);
                    // … and of the content this.
                    let share = match style.content {
                        _ if at < whole => Share::All,
                        Survives::Prefix if at == whole => Share::Some { one_in: 2 },
                        Survives::Any => Share::draw(dice),
                        _ => Share::None,
                    };
                    share.store(&mut disk, after, *offset, *len, style.sector_bytes, dice);
                }
                Change::SetLen(new) => {
                    len_now = *new;
                    if at < lengths {
                        disk.forget_from(*new);
                    }
                }
            }
            if at < lengths {
                len = len_now;
            }
        }
        disk.forget_from(len);
        disk.set_len(len);
        disk
    }
}

/// How much of one write has reached the disk.
#[derive(Clone, Copy)]
enum Share {
    All,
    None,
    /// Each sector with a chance of one in so many.
    Some {
        one_in: usize,
    },
    /// Each but one in so many.
    Most {
        one_in: usize,
    },
}

impl Share {
    fn draw(dice: &mut Dice) -> Self {
        match dice.roll(6) {
            0 => Self::All,
            1 => Self::None,
            2 => Self::Some { one_in: 8 },
            3 => Self::Most { one_in: 8 },
            _ => Self::Some { one_in: 2 },
        }
    }

    /// Sectors go to the disk as the cache held them then, with what was written into them earlier.
    fn store(
        self,
        disk: &mut Pages,
        after: &Excerpt,
        offset: u64,
        len: usize,
        sector_bytes: usize,
        dice: &mut Dice,
    ) {
        let sectors = offset as usize / sector_bytes..(offset as usize + len).div_ceil(sector_bytes);
        for sector in sectors {
            let stored = match self {
                Self::All => true,
                Self::None => false,
                Self::Some { one_in } => dice.roll(one_in) == 0,
                Self::Most { one_in } => dice.roll(one_in) > 0,
            };
            if stored {
                disk.restore(after, (sector * sector_bytes) as u64, sector_bytes);
            }
        }
    }
}
