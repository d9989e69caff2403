//! Validation of the `file tree` of BitTorrent v2 (BEP 52).
//!
//! A hybrid torrent is used through its v1 half, so nothing of the tree is kept. Other clients refuse a hybrid with an
//! invalid v2 half, or with one that has other files, and so do we: it would split the swarm.

use std::collections::HashMap;

use serde::de::MapAccess;
use serde_bytes::ByteBuf;

use super::bencode::{Field, Shape, dict};
use super::files::Entry;

/// A directory of the tree, reduced to its files and the first fault found in it. Its recursion is bounded, because bencode
/// with deeper nesting is refused before it is decoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FileTree {
    pub(super) fault: Option<&'static str>,
    /// The files, each with its path from the innermost component to the outermost.
    files: Vec<TreeFile>,
}

#[derive(Debug, PartialEq, Eq)]
struct TreeFile {
    reversed_path: Vec<Vec<u8>>,
    /// Size in bytes; `None` for a symlink, whose size has no meaning.
    len: Option<u64>,
}

impl FileTree {
    /// Returns whether it has one file, with one of these names and this size.
    pub(super) fn is_one_file<'a>(&self, mut names: impl Iterator<Item = &'a Vec<u8>>, len: u64) -> bool {
        let [file] = self.files.as_slice() else { return false };
        let [name] = file.reversed_path.as_slice() else { return false };
        file.len.is_none_or(|found| found == len) && names.any(|other| other == name)
    }

    /// Returns whether it has the same files as `files`, in any order. Pads are not in the tree.
    pub(super) fn has_the_files(&self, entries: &[Field<Entry>]) -> bool {
        let mut lens: HashMap<Vec<&[u8]>, Option<u64>> = HashMap::with_capacity(self.files.len());
        for file in &self.files {
            lens.insert(file.reversed_path.iter().rev().map(Vec::as_slice).collect(), file.len);
        }
        for entry in entries {
            let Field::Is(entry) = entry else { continue };
            if entry.is_pad() {
                continue;
            }
            let Some(found) = entry.raw_paths().find_map(|path| lens.remove(&path)) else { return false };
            if found.zip(entry.len()).is_some_and(|(found, len)| found != len) {
                return false;
            }
        }
        lens.is_empty()
    }
}

dict! {
    struct Leaf {
        length: i64 = "length",
        pieces_root: Vec<u8> = "pieces root",
        attr: Vec<u8> = "attr",
    }
}

impl Shape for FileTree {
    const KIND: &'static str = "a dictionary";

    fn dict<'de, A: MapAccess<'de>>(mut dict: A) -> Result<Option<Self>, A::Error> {
        let mut this = Self::default();
        while let Some(name) = dict.next_key::<ByteBuf>()? {
            let fault = if name.is_empty() {
                this.add_leaf(dict.next_value()?)
            } else {
                match dict.next_value::<Field<FileTree>>()? {
                    Field::Is(tree) => this.add_below(&name, tree),
                    _ => Some("an entry is not a dictionary"),
                }
            };
            this.fault = this.fault.or(fault);
        }
        Ok(Some(this))
    }
}

impl FileTree {
    fn add_below(&mut self, name: &[u8], tree: FileTree) -> Option<&'static str> {
        self.files.extend(tree.files.into_iter().map(|mut file| {
            file.reversed_path.push(name.to_vec());
            file
        }));
        tree.fault
    }

    fn add_leaf(&mut self, leaf: Field<Leaf>) -> Option<&'static str> {
        let Field::Is(leaf) = leaf else { return Some("a file is not a dictionary") };
        let attr = leaf.attr.clone().ok().unwrap_or_default();
        let (is_link, is_pad) = (attr.contains(&b'l'), attr.contains(&b'p'));
        let len = match leaf.length {
            Field::Is(len) if !is_link => u64::try_from(len).ok(),
            _ => None,
        };
        if !is_pad {
            self.files.push(TreeFile { reversed_path: Vec::new(), len });
        }
        // A symlink has no bytes, whatever its `length`.
        if is_link { None } else { leaf_fault(leaf) }
    }
}

fn leaf_fault(leaf: Leaf) -> Option<&'static str> {
    match (leaf.length.ok(), leaf.pieces_root.ok()) {
        (None, _) => Some("a file has no `length`"),
        (Some(..0), _) => Some("a file's `length` is negative"),
        (Some(0), _) => None,
        (Some(_), Some(root)) if root.len() == 32 && root.iter().any(|byte| *byte != 0) => None,
        (Some(_), _) => Some("a file has no `pieces root` of 32 bytes that are not all zero"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::bencode::{Limits, decode};

    fn fault(tree: &[u8]) -> Option<&'static str> {
        decode::<Field<FileTree>>(tree, &Limits::TORRENT).unwrap().ok().unwrap().fault
    }

    #[test]
    fn faults_are_found_at_any_depth() {
        assert_eq!(fault(b"de"), None);
        assert_eq!(fault(b"d1:ad1:bd0:d6:lengthi0eeeee"), None);
        assert_eq!(fault(b"d1:ad1:bd0:d4:attr1:leeee"), None);
        let root = "r".repeat(32);
        let file = format!("d1:ad0:d6:lengthi5e11:pieces root32:{root}eee");
        assert_eq!(fault(file.as_bytes()), None);
        assert!(fault(file.replace(&root, &"\0".repeat(32)).as_bytes()).is_some());
        assert!(fault(b"d1:ad6:lengthi5eee").is_some());
        assert!(fault(b"d1:ad1:bd0:d6:lengthi-5eeeee").is_some());
        assert!(fault(b"d1:ad1:bd0:d6:lengthi5eeeee").is_some());
        assert!(fault(b"d1:ad1:bd0:deeee").is_some());
        assert!(fault(b"d0:i0ee").is_some());
    }
}
