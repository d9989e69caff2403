//! Pieces on the disk that the state file does not know.
//!
//! After a kill the state is up to a second or two old, and after a longer one with a failing disk older still. Blocks that
//! were written since must count against the limit, and the pieces in them are ours to serve once they were hashed. So the
//! files are asked where they have data (`lseek(SEEK_DATA)`); a piece that was evicted is a hole.

use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;

use super::place::Access;
use super::torrent::Torrent;
use crate::metainfo::{File, FileIndex, FileKind, PieceIndex};
use crate::sys::file as sys;

/// The bytes of each piece that are data on the disk, not holes. Pads count as data.
pub(super) struct DataOnDisk(Vec<u32>);

/// How much of a piece is on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Extent {
    /// All of it.
    Whole,
    /// Most of it: a write was cut off, or the filesystem keeps blocks of zeros as holes.
    Most,
    /// Nothing, or little: a write was cut off, or the neighbours of an evicted piece keep parts of its blocks.
    Little { any: bool },
}

impl DataOnDisk {
    /// Finds the data of a torrent's files, which must have been examined. Blocking. Returns `None` if the filesystem does
    /// not tell data from holes.
    pub fn find(torrent: &Torrent) -> Option<Self> {
        let lengths = &torrent.lengths;
        let mut bytes = vec![0; lengths.pieces() as usize];
        let mut add = |range: Range<u64>| {
            for (piece, part) in lengths.parts(&range) {
                bytes[piece.index()] += part.end - part.start;
            }
        };
        for (index, file) in torrent.files.layout.indexed_files() {
            if file.kind == FileKind::Pad {
                add(file.range());
            } else if file.is_stored() {
                let found = data_of(torrent, index, file).unwrap_or_else(|error| {
                    if error.kind() != io::ErrorKind::NotFound {
                        let path = torrent.files.path(index);
                        tracing::warn!("cannot find the data in {}: {error}; it is taken as missing", path.display());
                    }
                    Some(Vec::new())
                });
                found?.into_iter().for_each(|part| add(file.offset + part.start..file.offset + part.end));
            }
        }
        Some(Self(bytes))
    }

    pub fn of(&self, torrent: &Torrent, piece: PieceIndex) -> Extent {
        let (len, data) = (torrent.lengths.len_of(piece), self.0[piece.index()]);
        if data == len {
            Extent::Whole
        } else if data >= len / 2 {
            Extent::Most
        } else {
            Extent::Little { any: data > 0 }
        }
    }
}

/// Returns the ranges of a file that are not holes, in order. Returns `None` if the filesystem cannot tell.
fn data_of(torrent: &Torrent, index: FileIndex, file: &File) -> io::Result<Option<Vec<Range<u64>>>> {
    let (opened, _) = torrent.files.open(index, Access::Read)?;
    let about = torrent.files.path(index).symlink_metadata()?;
    let mut found: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while let Some(start) = sys::next_data(&opened, at)?.filter(|start| *start < file.len) {
        let end = sys::next_hole(&opened, start)?;
        if end <= start {
            // The file shrinks meanwhile.
            break;
        }
        found.push(start..end.min(file.len));
        at = end;
    }
    // A filesystem without holes calls everything data. If it stores less than half of that, it has holes after all and
    // does not show them; compression alone does not halve what is in torrents.
    let all_of_it = found.len() == 1 && found[0] == (0..file.len);
    Ok((!all_of_it || about.blocks() * 512 >= file.len / 2).then_some(found))
}
