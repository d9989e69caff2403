//! The files of a torrent: their names, and the run of the torrent's bytes that each one is.

use std::ops::Range;
use std::path::PathBuf;

use super::lengths::{Lengths, PieceIndex, PieceRange};

/// Largest number of files accepted in one torrent. Bounds the memory that a small `.torrent` file can claim.
pub const MAX_FILES: usize = 500_000;

/// The position of a file in [`Layout::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIndex(pub u32);

impl FileIndex {
    /// Returns the position as an index into a slice.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// The kind of a file (BEP 47).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// An ordinary file.
    Regular {
        /// Whether it has the `x` attribute.
        executable: bool,
    },
    /// A symbolic link; it has no bytes in the torrent.
    Symlink {
        /// The text that `readlink` returns: relative to the link's own directory, and checked to stay inside the
        /// torrent.
        target: String,
    },
    /// Zeros that align the next file to a piece boundary; never shown, whatever its path.
    Pad,
}

/// One file of a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Path components from the mount's root, the torrent's name first. Each one is safe (not empty, `.` or `..`; no `/`
    /// or NUL; at most 255 bytes). No two files have the same path, and no file's path is a directory of another's.
    pub path: Vec<String>,
    /// Offset of its first byte in the torrent.
    pub offset: u64,
    /// Size in bytes; 0 for a symlink.
    pub len: u64,
    /// The kind of file.
    pub kind: FileKind,
}

impl File {
    /// Returns the bytes of the torrent that the file is.
    pub fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.len
    }

    /// Returns whether it is a pad file.
    pub fn is_pad(&self) -> bool {
        self.kind == FileKind::Pad
    }

    /// Returns whether it has bytes that are kept on a disk: not those of a pad, which are zeros.
    pub fn is_stored(&self) -> bool {
        self.len > 0 && !self.is_pad()
    }

    /// Returns its path relative to the mount's root.
    pub fn relative_path(&self) -> PathBuf {
        self.path.iter().collect()
    }
}

/// The files of a torrent, in the torrent's order, and its pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    lengths: Lengths,
    files: Vec<File>,
}

impl Layout {
    /// Joins the files and the pieces of a torrent.
    ///
    /// # Panics
    /// If `files` do not tile `0..lengths.total()` in order. The parser and the maker of torrents lay them out so.
    pub fn new(lengths: Lengths, files: Vec<File>) -> Self {
        let mut end = 0;
        for file in &files {
            assert_eq!(file.offset, end, "each file begins where the one before it ends");
            end = file.range().end;
        }
        assert_eq!(end, lengths.total(), "the last file ends with the torrent");
        Self { lengths, files }
    }

    /// Returns the lengths of pieces and blocks.
    pub fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// Returns every file by offset, pads and symlinks included.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    /// Returns every file with its index.
    pub fn indexed_files(&self) -> impl Iterator<Item = (FileIndex, &File)> {
        (0..).map(FileIndex).zip(&self.files)
    }

    /// Returns the file with a path as the mount shows it: `NAME` for the only file of a torrent, else `NAME/…`. Costs a
    /// walk over all files.
    pub fn find(&self, path: &str) -> Option<FileIndex> {
        let is_it = |file: &File| !file.is_pad() && file.path.iter().map(String::as_str).eq(path.split('/'));
        self.indexed_files().find(|(_, file)| is_it(file)).map(|(index, _)| index)
    }

    /// Returns the file at an index, if this layout has one.
    pub fn file(&self, index: FileIndex) -> Option<&File> {
        self.files.get(index.index())
    }

    /// Returns the pieces that hold any byte of a file.
    pub fn pieces_of(&self, file: FileIndex) -> PieceRange {
        self.lengths.pieces_in(&self.file(file).map_or(0..0, File::range))
    }

    /// Returns the files that hold any of `bytes`, each with the part of its own bytes. The parts tile `bytes`, which is
    /// clipped to the torrent. Takes logarithmic time to find the first file.
    pub fn extents(&self, bytes: Range<u64>) -> impl Iterator<Item = (FileIndex, Range<u64>)> + '_ {
        let first = self.files.partition_point(|file| file.range().end <= bytes.start);
        let end = if bytes.start < bytes.end { bytes.end } else { 0 };
        (first..)
            .zip(&self.files[first..])
            .take_while(move |(_, file)| file.offset < end)
            .filter(|(_, file)| file.len > 0)
            .map(move |(index, file)| {
                let part = bytes.start.max(file.offset)..end.min(file.range().end);
                // There are at most `MAX_FILES`.
                (FileIndex(index as u32), part.start - file.offset..part.end - file.offset)
            })
    }

    /// Returns the files that hold any byte of a piece, each with the part of its own bytes.
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
    fn files_are_found_by_their_path() {
        let file = |path: &[&str], kind| File {
            path: path.iter().map(|part| (*part).to_owned()).collect(),
            offset: 0,
            len: 0,
            kind,
        };
        let regular = FileKind::Regular { executable: false };
        let files = vec![file(&["a", "pad"], FileKind::Pad), file(&["a", "b", "c"], regular)];
        let layout = Layout { lengths: Lengths::new(1, 16_384).unwrap(), files };
        assert_eq!(layout.find("a/b/c"), Some(FileIndex(1)));
        for missing in ["a/pad", "a/b", "/a/b/c", "a/b/c/", ""] {
            assert_eq!(layout.find(missing), None, "{missing}");
        }
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

    #[test]
    #[should_panic(expected = "each file begins where the one before it ends")]
    fn files_with_a_gap_between_them_are_refused() {
        let file = |offset| File { path: vec![], offset, len: 5, kind: FileKind::Pad };
        Layout::new(Lengths::new(10, 8).unwrap(), vec![file(0), file(6)]);
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
            for (file, _) in layout.indexed_files() {
                let holds = |piece: &PieceIndex| layout.extents_of(*piece).any(|(other, _)| other == file);
                let expected: Vec<_> = layout.lengths().iter().filter(holds).collect();
                prop_assert_eq!(layout.pieces_of(file).collect::<Vec<_>>(), expected);
            }
        }
    }
}
