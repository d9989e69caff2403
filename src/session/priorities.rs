//! Which files the background fetches first, and which not at all. Readers get what they need whatever is said here.

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;

use super::torrent::Command;
use super::{Torrent, lock};
use crate::metainfo::{FileIndex, FileKind, Layout};
use crate::swarm::Event;

/// How much a file is wanted by the background.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Priority {
    /// Not at all: only what is read of it is fetched.
    Skip,
    /// As the rest.
    #[default]
    Normal,
    /// Before the rest.
    High,
}

impl Torrent {
    /// Changes the priority of files. Those not of this torrent are passed over.
    pub fn prioritize(&self, files: impl IntoIterator<Item = FileIndex>, priority: Priority) {
        let layout = &self.metainfo.layout;
        // Held until the task has it, so that of two changes the later one wins.
        let mut priorities = lock(&self.priorities);
        for file in files.into_iter().filter(|file| layout.file(*file).is_some()) {
            match priority {
                Priority::Normal => priorities.remove(&file),
                other => priorities.insert(file, other),
            };
        }
        let (skip, high) = pieces(layout, &priorities);
        self.tell(Command::Swarm(Event::Priorities { skip, high }));
    }
}

/// The pieces to be left out and those to come first. A piece of several files is as wanted as the most wanted of them.
fn pieces(layout: &Layout, priorities: &BTreeMap<FileIndex, Priority>) -> (FixedBitSet, FixedBitSet) {
    let lengths = layout.lengths();
    let (mut skip, mut high) = (FixedBitSet::new(), FixedBitSet::with_capacity(lengths.pieces() as usize));
    let skips = priorities.values().any(|priority| *priority == Priority::Skip);
    if skips {
        skip.grow(lengths.pieces() as usize);
        skip.insert_range(..);
    }
    for (index, file) in layout.indexed_files().filter(|(_, file)| file.len > 0) {
        let range = layout.pieces_of(index).indexes();
        match priorities.get(&index) {
            Some(Priority::Skip) => {}
            // What only aligns others is wanted by nobody.
            None if file.kind == FileKind::Pad => {}
            None | Some(Priority::Normal) if skips => skip.remove_range(range),
            None | Some(Priority::Normal) => {}
            Some(Priority::High) => {
                high.insert_range(range.clone());
                if skips {
                    skip.remove_range(range);
                }
            }
        }
    }
    (skip, high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::{File, Lengths};

    #[test]
    fn a_shared_piece_is_as_wanted_as_its_most_wanted_file() {
        let sizes = [10, 5, 0, 20, 5];
        let mut offset = 0;
        let files = sizes.iter().map(|len| {
            let kind = FileKind::Regular { executable: false };
            let file = File { path: vec!["x".into()], offset, len: *len, kind };
            offset += len;
            file
        });
        let files = files.collect();
        // Pieces of 8: 0 and 1 of the first file, 1 of the second, 1 to 4 of the fourth, 4 of the last.
        let layout = Layout::new(Lengths::new(40, 8).unwrap(), files);
        let of = |list: &[(u32, Priority)]| {
            let (skip, high) = pieces(&layout, &list.iter().map(|(file, p)| (FileIndex(*file), *p)).collect());
            (skip.ones().collect::<Vec<_>>(), high.ones().collect::<Vec<_>>())
        };
        assert_eq!(of(&[]), (vec![], vec![]));
        assert_eq!(of(&[(0, Priority::Skip)]), (vec![0], vec![]));
        assert_eq!(of(&[(3, Priority::Skip)]), (vec![2, 3], vec![]));
        assert_eq!(of(&[(0, Priority::Skip), (1, Priority::Skip), (3, Priority::High)]), (vec![0], vec![1, 2, 3, 4]));
        assert_eq!(of(&[(4, Priority::High)]), (vec![], vec![4]));
    }
}
