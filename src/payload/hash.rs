//! Hashing of pieces on all cores.
//!
//! Each worker takes the next piece and hashes it in chunks that fit the core's own cache. The disk sees reads in order, and
//! memory is one chunk per worker, whatever the piece length. Read-ahead is left to the kernel: `posix_fadvise` hints and
//! a separate reader thread were measured, and made a cold disk slower by a half and by a fifth. Holes in sparse files are
//! not read, and pieces that consist of a hole are hashed only once, because they all have the same hash.

use std::fs::File;
use std::io;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use sha1::{Digest, Sha1};

use crate::metainfo::{FileIndex, FileKind, Layout, PieceIndex};
use crate::sys::file::{next_data, next_hole};

/// Length of a read in bytes. Fits the L2 cache, so that hashing does not wait for memory.
const CHUNK: usize = 128 << 10;

/// The content of pads and holes.
static ZEROS: [u8; CHUNK] = [0; CHUNK];

/// The source of a torrent's files.
pub trait Content: Sync {
    /// Opens a file of the torrent.
    fn open(&self, file: FileIndex) -> io::Result<File>;

    /// Called after a part of a file was read. An error discards the hash.
    fn after_read(&self, _: FileIndex, _: &File) -> io::Result<()> {
        Ok(())
    }
}

/// Why a piece could not be hashed.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct HashError {
    /// The file that could not be read.
    pub file: FileIndex,
    /// The reason.
    pub why: io::Error,
}

/// Hashes `pieces` of a torrent and passes each result to `done`, which is called on any thread and in any order. Returns
/// after the last piece, or soon after `done` breaks.
pub fn hash<P>(
    layout: &Layout,
    pieces: P,
    content: &(impl Content + ?Sized),
    done: &(dyn Fn(PieceIndex, Result<[u8; 20], HashError>) -> ControlFlow<()> + Sync),
) where
    P: Iterator<Item = PieceIndex> + Send,
{
    let pieces = Mutex::new(pieces);
    let stop = AtomicBool::new(false);
    let zero_piece = OnceLock::new();
    let work = || {
        let mut worker =
            Worker { layout, content, zero_piece: &zero_piece, buffer: vec![0; CHUNK].into_boxed_slice(), open: None };
        while !stop.load(Ordering::Relaxed) {
            // In the loop condition, the lock would be held while the piece is hashed.
            let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(piece) = next else { break };
            if done(piece, worker.hash(piece)).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    // One more than there are cores, to keep them busy while a worker waits for the disk.
    let workers = thread::available_parallelism().map_or(1, usize::from) + 1;
    thread::scope(|scope| {
        // If a thread cannot be started the others do its work: this thread is a worker, too.
        (1..workers).for_each(|_| drop(thread::Builder::new().name("hash".into()).spawn_scoped(scope, work)));
        work();
    });
}

/// The state of one thread.
struct Worker<'a, C: ?Sized> {
    layout: &'a Layout,
    content: &'a C,
    /// Hash of a piece of full length that is all zeros.
    zero_piece: &'a OnceLock<[u8; 20]>,
    buffer: Box<[u8]>,
    /// The file that was read last; the next piece is likely in it, too.
    open: Option<Open>,
}

struct Open {
    index: FileIndex,
    file: File,
    len: u64,
    /// Whether its blocks are fewer than its length needs, so that it has holes.
    sparse: bool,
}

impl<C: Content + ?Sized> Worker<'_, C> {
    fn hash(&mut self, piece: PieceIndex) -> Result<[u8; 20], HashError> {
        let layout = self.layout;
        let lengths = layout.lengths();
        if lengths.len_of(piece) == lengths.longest_piece() && self.is_hole(piece) {
            let zeros = || {
                let mut hash = Sha1::new();
                feed_zeros(&mut hash, u64::from(lengths.longest_piece()));
                hash.finalize().into()
            };
            return Ok(*self.zero_piece.get_or_init(zeros));
        }
        let mut hash = Sha1::new();
        for (file, part) in layout.extents_of(piece) {
            self.feed(file, part, &mut hash).map_err(|why| HashError { file, why })?;
        }
        Ok(hash.finalize().into())
    }

    /// Returns whether the piece consists of a hole in one file, which has not changed.
    fn is_hole(&mut self, piece: PieceIndex) -> bool {
        let mut extents = self.layout.extents_of(piece);
        let (Some((index, part)), None) = (extents.next(), extents.next()) else { return false };
        if self.layout.file(index).is_none_or(|file| file.kind == FileKind::Pad) {
            return false;
        }
        let content = self.content;
        let Ok(open) = self.open(index) else { return false };
        open.sparse
            && part.end <= open.len
            && next_data(&open.file, part.start).is_ok_and(|data| data.is_none_or(|at| at >= part.end))
            && open.file.metadata().is_ok_and(|about| about.len() >= part.end)
            && content.after_read(index, &open.file).is_ok()
    }

    /// Adds a part of a file to a hash.
    fn feed(&mut self, index: FileIndex, part: Range<u64>, hash: &mut Sha1) -> io::Result<()> {
        if self.layout.file(index).is_some_and(|file| file.kind == FileKind::Pad) {
            feed_zeros(hash, part.end - part.start);
            return Ok(());
        }
        let content = self.content;
        let mut buffer = std::mem::take(&mut self.buffer);
        let fed = self.open(index).and_then(|open| {
            open.feed(part, &mut buffer, hash)?;
            content.after_read(index, &open.file)
        });
        self.buffer = buffer;
        fed
    }

    fn open(&mut self, index: FileIndex) -> io::Result<&Open> {
        let open = match self.open.take().filter(|open| open.index == index) {
            Some(open) => open,
            None => {
                let file = self.content.open(index)?;
                let about = file.metadata()?;
                // The unit of `st_blocks` is 512 bytes on every filesystem.
                let sparse = about.blocks().saturating_mul(512) < about.len();
                Open { index, file, len: about.len(), sparse }
            }
        };
        Ok(self.open.insert(open))
    }
}

impl Open {
    fn feed(&self, part: Range<u64>, buffer: &mut [u8], hash: &mut Sha1) -> io::Result<()> {
        if part.end > self.len {
            return Err(too_short());
        }
        if !self.sparse {
            return self.feed_data(part, buffer, hash);
        }
        let mut at = part.start;
        while at < part.end {
            // If the filesystem reports no holes, everything is read.
            let data = next_data(&self.file, at).unwrap_or(Some(at)).unwrap_or(part.end).clamp(at, part.end);
            feed_zeros(hash, data - at);
            if data == part.end {
                break;
            }
            at = next_hole(&self.file, data).unwrap_or(part.end).clamp(data + 1, part.end);
            self.feed_data(data..at, buffer, hash)?;
        }
        // A file that was truncated meanwhile looks like a hole from its end on.
        if self.file.metadata()?.len() < part.end { Err(too_short()) } else { Ok(()) }
    }

    fn feed_data(&self, part: Range<u64>, buffer: &mut [u8], hash: &mut Sha1) -> io::Result<()> {
        let mut at = part.start;
        while at < part.end {
            let want = buffer.len().min(usize::try_from(part.end - at).unwrap_or(usize::MAX));
            match self.file.read_at(&mut buffer[..want], at) {
                Ok(0) => return Err(too_short()),
                Ok(read) => {
                    hash.update(&buffer[..read]);
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn feed_zeros(hash: &mut Sha1, mut len: u64) {
    while len > 0 {
        let part = len.min(CHUNK as u64);
        hash.update(&ZEROS[..part as usize]);
        len -= part;
    }
}

fn too_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than the torrent says")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::{self, Lengths};
    use proptest::prelude::*;
    use std::path::PathBuf;

    /// Files in a directory, named by their index.
    struct Numbered(PathBuf);

    impl Content for Numbered {
        fn open(&self, file: FileIndex) -> io::Result<File> {
            File::open(self.0.join(file.0.to_string()))
        }
    }

    fn layout(files: &[(u64, bool)], piece_len: u64) -> Option<Layout> {
        let mut offset = 0;
        let files = files.iter().enumerate().map(|(n, (len, pad))| {
            let kind = if *pad { FileKind::Pad } else { FileKind::Regular { executable: false } };
            let file = metainfo::File { path: vec![n.to_string()], offset, len: *len, kind };
            offset += len;
            file
        });
        let files = files.collect();
        Some(Layout::new(Lengths::new(offset, piece_len).ok()?, files))
    }

    /// The result of `hash` for every piece; an error is the index of the file.
    fn hashes(layout: &Layout, dir: &std::path::Path) -> Vec<Result<[u8; 20], u32>> {
        let results = Mutex::new(vec![Err(u32::MAX); layout.lengths().pieces() as usize]);
        hash(layout, layout.lengths().iter(), &Numbered(dir.into()), &|piece, result| {
            results.lock().unwrap()[piece.index()] = result.map_err(|error| error.file.0);
            ControlFlow::Continue(())
        });
        results.into_inner().unwrap()
    }

    #[derive(Clone, Debug)]
    enum Part {
        Data(usize, u8),
        Hole(u64),
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        #[test]
        fn hashes_are_those_of_the_files_bytes(
            files in proptest::collection::vec((proptest::collection::vec(prop_oneof![
                (0usize..40_000, any::<u8>()).prop_map(|(len, seed)| Part::Data(len, seed)),
                (0u64..300_000).prop_map(Part::Hole),
            ], 0..4), proptest::bool::weighted(0.2)), 1..6),
            piece_len in prop_oneof![Just(16_384u64), Just(65_536), 1000u64..200_000],
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut all = Vec::new();
            let mut lens = Vec::new();
            for (n, (parts, pad)) in files.iter().enumerate() {
                let file = File::create(dir.path().join(n.to_string())).unwrap();
                let begin = all.len();
                for part in parts {
                    match *part {
                        Part::Data(len, seed) if !pad => {
                            let data: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(31) ^ seed).collect();
                            file.write_all_at(&data, (all.len() - begin) as u64).unwrap();
                            all.extend(data);
                        }
                        Part::Data(len, _) => all.resize(all.len() + len, 0),
                        Part::Hole(len) => all.resize(all.len() + len as usize, 0),
                    }
                }
                let len = (all.len() - begin) as u64;
                file.set_len(if *pad { 0 } else { len }).unwrap();
                lens.push((len, *pad));
            }
            let Some(layout) = layout(&lens, piece_len) else { return Ok(()) };
            let expected: Vec<_> = all.chunks(piece_len as usize).map(|piece| Ok(Sha1::digest(piece).into())).collect();
            prop_assert!(hashes(&layout, dir.path()) == expected);
        }
    }

    #[test]
    fn an_unreadable_file_affects_only_its_own_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let write = |n: u32, len: u64| File::create(dir.path().join(n.to_string())).unwrap().set_len(len).unwrap();
        write(0, 30_000);
        write(2, 10_000);
        write(3, 30_000);
        // File 1 is missing; file 2 is a hole that is too short.
        let layout = layout(&[(30_000, false), (10_000, false), (30_000, false), (30_000, false)], 16_384).unwrap();
        let faults: Vec<_> = hashes(&layout, dir.path()).into_iter().map(Result::err).collect();
        assert_eq!(faults, [None, Some(1), Some(1), Some(2), Some(2), None, None]);
    }

    #[test]
    fn hashing_ends_after_a_break() {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("0")).unwrap().set_len(1 << 24).unwrap();
        let layout = layout(&[(1 << 24, false)], 16_384).unwrap();
        let seen = Mutex::new(0);
        hash(&layout, layout.lengths().iter(), &Numbered(dir.path().into()), &|_, _| {
            *seen.lock().unwrap() += 1;
            ControlFlow::Break(())
        });
        let workers = thread::available_parallelism().unwrap().get() + 1;
        assert!((1..=workers).contains(&seen.into_inner().unwrap()));
    }
}
