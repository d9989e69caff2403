//! Priorities of files in background fetching. Readers get what they need in any case.

use std::collections::BTreeMap;

use fixedbitset::FixedBitSet;

use crate::metainfo::{FileIndex, FileKind, Layout};

/// The priority of a file in background fetching.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Priority {
    /// Not fetched, except for what is read.
    Skip,
    /// The default.
    #[default]
    Normal,
    /// Fetched before all others.
    High,
}

/// Returns the pieces to skip and those to fetch first. A piece that belongs to several files has the highest of their
/// priorities.
pub(super) fn piece_priorities(
    layout: &Layout,
    priorities: &BTreeMap<FileIndex, Priority>,
) -> (FixedBitSet, FixedBitSet) {
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
            // Padding only aligns other files.
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
    fn a_shared_piece_has_the_highest_priority_of_its_files() {
        let sizes = [10, 5, 0, 20, 5];
        let mut offset = 0;
        let files = sizes.iter().map(|len| {
            let kind = FileKind::Regular { executable: false };
            let file = File { path: vec!["x".into()], offset, len: *len, kind };
            offset += len;
            file
        });
        let files = files.collect();
        // With pieces of 8 bytes, the files have the pieces 0 to 1, 1, none, 1 to 4, and 4.
        let layout = Layout::new(Lengths::new(40, 8).unwrap(), files);
        let of = |list: &[(u32, Priority)]| {
            let (skip, high) =
                piece_priorities(&layout, &list.iter().map(|(file, p)| (FileIndex(*file), *p)).collect());
            (skip.ones().collect::<Vec<_>>(), high.ones().collect::<Vec<_>>())
        };
        assert_eq!(of(&[]), (vec![], vec![]));
        assert_eq!(of(&[(0, Priority::Skip)]), (vec![0], vec![]));
        assert_eq!(of(&[(3, Priority::Skip)]), (vec![2, 3], vec![]));
        assert_eq!(of(&[(0, Priority::Skip), (1, Priority::Skip), (3, Priority::High)]), (vec![0], vec![1, 2, 3, 4]));
        assert_eq!(of(&[(4, Priority::High)]), (vec![], vec![4]));
    }
}
