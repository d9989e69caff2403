//! Validation of the `file tree` of BitTorrent v2 (BEP 52).
//!
//! A hybrid torrent is used through its v1 half, so nothing of the tree is kept. Other clients refuse a hybrid with an
//! invalid v2 half, and so do we: it would split the swarm.

use serde::de::MapAccess;
use serde_bytes::ByteBuf;

use super::bencode::{Field, Shape, dict};

/// A directory of the tree, reduced to the first fault found in it. Its recursion is bounded, because bencode with deeper
/// nesting is refused before it is decoded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FileTree {
    pub(super) fault: Option<&'static str>,
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
        let mut fault = None;
        while let Some(name) = dict.next_key::<ByteBuf>()? {
            let found = if name.is_empty() {
                leaf_fault(dict.next_value()?)
            } else {
                match dict.next_value::<Field<FileTree>>()? {
                    Field::Is(tree) => tree.fault,
                    _ => Some("an entry is not a dictionary"),
                }
            };
            fault = fault.or(found);
        }
        Ok(Some(Self { fault }))
    }
}

fn leaf_fault(leaf: Field<Leaf>) -> Option<&'static str> {
    let Field::Is(leaf) = leaf else { return Some("a file is not a dictionary") };
    if leaf.attr.ok().is_some_and(|attr| attr.contains(&b'l')) {
        // A symlink has no bytes, whatever its `length`.
        return None;
    }
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
