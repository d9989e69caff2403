//! Where each file lies in the torrent's one run of bytes, and what it is called.

use std::ops::Range;

use super::{Lengths, PieceIndex};

/// A file's place in [`Layout::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIndex(pub u32);

/// What a file is (BEP 47).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// An ordinary file.
    Regular {
        /// The `x` attribute.
        executable: bool,
    },
    /// A symbolic link; it has no bytes in the torrent. The target is relative to the link's own directory, as
    /// `readlink` gives it, and was checked to stay inside the torrent.
    Symlink {
        /// What `readlink` answers.
        target: String,
    },
    /// Bytes that only align the next file to a piece; shown to nobody, whatever its path.
    Pad,
}

/// One file of a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Components from the mount's root, the torrent's name first. Each is safe (not empty, `.` or `..`; no `/` or NUL;
    /// at most 255 bytes) and the whole is told apart from every other file's; no file's path is a directory of another.
    pub path: Vec<String>,
    /// Where it begins in the torrent, in bytes.
    pub offset: u64,
    /// Its size in bytes; 0 for a symlink.
    pub len: u64,
    /// What it is.
    pub kind: FileKind,
}

impl File {
    /// Its bytes, counted in the torrent.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }
}

/// The files of a torrent, in the torrent's order, and its pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    lengths: Lengths,
    files: Vec<File>,
}

impl Layout {
    /// `files` must tile `0..lengths.total()` in order; the parser and the maker of torrents see to it.
    pub fn new(lengths: Lengths, files: Vec<File>) -> Self {
        debug_assert_eq!(files.iter().map(|f| f.len).sum::<u64>(), lengths.total());
        Self { lengths, files }
    }

    /// Pieces and blocks.
    pub fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// Every file, pads and symlinks too, by offset.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// The file at an index that came from this layout.
    pub fn file(&self, index: FileIndex) -> Option<&File> {
        self.files.get(index.0 as usize)
    }

    /// The parts of files that `bytes` of the torrent are made of, in order: which file, and which of its own bytes.
    /// They tile `bytes`, clipped to the torrent; files without bytes are not among them. Finds the first by halving.
    pub fn extents(&self, bytes: Range<u64>) -> impl Iterator<Item = (FileIndex, Range<u64>)> + '_ {
        let first = self.files.partition_point(|file| file.range().end <= bytes.start);
        let end = if bytes.start < bytes.end { bytes.end } else { 0 };
        (first..)
            .zip(&self.files[first..])
            .take_while(move |(_, file)| file.offset < end)
            .filter(|(_, file)| file.len > 0)
            .map(move |(index, file)| {
                let part = bytes.start.max(file.offset)..end.min(file.range().end);
                // The parser accepts no more than `MAX_FILES`.
                (FileIndex(index as u32), part.start - file.offset..part.end - file.offset)
            })
    }

    /// The parts of files that a piece is made of, in order.
    pub fn extents_of(&self, piece: PieceIndex) -> impl Iterator<Item = (FileIndex, Range<u64>)> + '_ {
        self.extents(self.lengths.range_of(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(sizes: &[u64], piece_len: u64) -> Option<Layout> {
        let mut offset = 0;
        let files = sizes.iter().enumerate().map(|(n, len)| {
            let file =
                File { path: vec![n.to_string()], offset, len: *len, kind: FileKind::Regular { executable: false } };
            offset += len;
            file
        });
        let files = files.collect();
        Some(Layout::new(Lengths::new(offset, piece_len).ok()?, files))
    }

    #[test]
    fn empty_files_and_empty_ranges_have_no_extents() {
        let layout = layout(&[0, 10, 0, 0, 5, 0], 8).unwrap();
        let all: Vec<_> = layout.extents(0..u64::MAX).collect();
        assert_eq!(all, [(FileIndex(1), 0..10), (FileIndex(4), 0..5)]);
        assert_eq!(layout.extents(10..12).collect::<Vec<_>>(), [(FileIndex(4), 0..2)]);
        for nothing in [0..0, 3..3, 10..10, 15..15, 15..99, 99..100] {
            assert_eq!(layout.extents(nothing).count(), 0);
        }
        assert_eq!(layout.extents(Range { start: 9, end: 3 }).count(), 0);
    }

    proptest! {
        #[test]
        fn extents_are_the_bytes_one_by_one(
            sizes in proptest::collection::vec(prop_oneof![Just(0u64), 0u64..20], 1..20),
            start in 0u64..200,
            len in 0u64..60,
        ) {
            let Some(layout) = layout(&sizes, 7) else { return Ok(()) };
            // The naive model: each byte of the torrent, by its file and its place there.
            let model: Vec<(u32, u64)> =
                (0..).zip(&sizes).flat_map(|(file, size)| (0..*size).map(move |at| (file, at))).collect();
            let expected: Vec<_> = model.iter().copied().skip(start as usize).take(len as usize).collect();
            let found: Vec<_> = layout
                .extents(start..start + len)
                .flat_map(|(file, range)| range.map(move |at| (file.0, at)))
                .collect();
            prop_assert_eq!(found, expected);
            let by_piece: Vec<_> = layout
                .lengths()
                .iter()
                .flat_map(|piece| layout.extents_of(piece))
                .flat_map(|(file, range)| range.map(move |at| (file.0, at)))
                .collect();
            prop_assert_eq!(by_piece, model);
        }
    }
}
