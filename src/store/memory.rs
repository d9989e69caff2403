//! The memory tier: an LRU cache of whole pieces, bounded in bytes. Pieces that are also on the disk are dropped to
//! make room for partial pieces. Its lock is never held across I/O.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use lru::LruCache;

use super::pieces::{Pieces, State};
use crate::metainfo::PieceIndex;
use crate::util::lock;

/// Bytes that an entry costs beyond its data; they matter if pieces are tiny.
const OVERHEAD: u64 = 256;

/// Whether the disk has a copy of a piece in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum DiskCopy {
    /// It is being written. The entry stays until [`Memory::finish_write`].
    Writing,
    /// It has none: dropping the entry loses the piece ([`State::Memory`]).
    Missing,
    /// It has one.
    Present,
}

struct Entry {
    bytes: Bytes,
    disk_copy: DiskCopy,
    pieces: Arc<Pieces>,
}

impl Entry {
    fn cost(&self) -> u64 {
        self.bytes.len() as u64 + OVERHEAD
    }
}

type Key = (u32, PieceIndex);

/// A piece that left memory and was nowhere else. Notify its owner, without holding a lock.
pub(super) type Lost = (Arc<Pieces>, PieceIndex);

pub(super) struct Memory {
    limit: u64,
    inner: Mutex<Inner>,
}

struct Inner {
    entries: LruCache<Key, Entry>,
    cost: u64,
    /// Number of entries with [`DiskCopy::Missing`].
    memory_only: usize,
}

impl Memory {
    pub fn new(limit: u64) -> Self {
        Self { limit, inner: Mutex::new(Inner { entries: LruCache::unbounded(), cost: 0, memory_only: 0 }) }
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn used(&self) -> u64 {
        lock(&self.inner).cost
    }

    /// Returns the number of pieces that are only in memory.
    pub fn memory_only(&self) -> usize {
        lock(&self.inner).memory_only
    }

    pub fn get(&self, key: Key, count_use: bool) -> Option<Bytes> {
        let mut inner = lock(&self.inner);
        let entry = if count_use { inner.entries.get(&key) } else { inner.entries.peek(&key) };
        entry.map(|entry| entry.bytes.clone())
    }

    /// Inserts a piece that the caller will write to the disk. Returns false if it is already here.
    pub fn insert_writing(&self, pieces: &Arc<Pieces>, piece: PieceIndex, bytes: Bytes) -> (bool, Vec<Lost>) {
        self.insert(pieces, piece, bytes, DiskCopy::Writing)
    }

    /// Inserts a piece that is on the disk, unless it was evicted from there just now.
    pub fn insert_copy(&self, pieces: &Arc<Pieces>, piece: PieceIndex, bytes: Bytes) -> Vec<Lost> {
        let (inserted, lost) = self.insert(pieces, piece, bytes, DiskCopy::Present);
        if inserted && pieces.word(piece).state() != State::Disk {
            self.remove((pieces.id, piece));
        }
        lost
    }

    fn insert(&self, pieces: &Arc<Pieces>, piece: PieceIndex, bytes: Bytes, disk_copy: DiskCopy) -> (bool, Vec<Lost>) {
        let mut inner = lock(&self.inner);
        let key = (pieces.id, piece);
        if inner.entries.contains(&key) {
            return (false, Vec::new());
        }
        let entry = Entry { bytes, disk_copy, pieces: Arc::clone(pieces) };
        inner.cost += entry.cost();
        inner.entries.put(key, entry);
        (true, inner.shrink(self.limit))
    }

    /// Records the end of a write: the piece is on the disk, or only in memory. Enforces the limit.
    pub fn finish_write(&self, pieces: &Arc<Pieces>, piece: PieceIndex, on_disk: bool) -> Vec<Lost> {
        let mut inner = lock(&self.inner);
        let mut lost = Vec::new();
        match inner.entries.peek_mut(&(pieces.id, piece)) {
            Some(entry) if entry.disk_copy == DiskCopy::Writing => {
                entry.disk_copy = if on_disk { DiskCopy::Present } else { DiskCopy::Missing };
                inner.memory_only += usize::from(!on_disk);
            }
            // It was evicted from the disk meanwhile (and may even be back), or its torrent was closed.
            _ if !on_disk && pieces.advance(piece, State::Memory, State::Missing) => {
                lost.push((Arc::clone(pieces), piece));
            }
            _ => {}
        }
        lost.append(&mut inner.shrink(self.limit));
        lost
    }

    /// Returns up to `most` pieces that are only in memory. The caller writes each and calls [`Self::finish_write`].
    pub fn claim_memory_only(&self, most: usize) -> Vec<(Arc<Pieces>, PieceIndex, Bytes)> {
        let mut inner = lock(&self.inner);
        let claim = |(key, entry): (&Key, &mut Entry)| {
            entry.disk_copy = DiskCopy::Writing;
            (Arc::clone(&entry.pieces), key.1, entry.bytes.clone())
        };
        let claimed: Vec<_> = inner
            .entries
            .iter_mut()
            .filter(|(_, entry)| entry.disk_copy == DiskCopy::Missing)
            .take(most)
            .map(claim)
            .collect();
        inner.memory_only -= claimed.len();
        claimed
    }

    /// Drops `bytes` bytes of pieces that are also on the disk, or as many as there are. The newest piece stays,
    /// because its waiters have not read it yet.
    pub fn evict_copies(&self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        let mut inner = lock(&self.inner);
        let until = inner.cost.saturating_sub(bytes);
        while inner.cost > until
            && let Some(key) = inner.oldest(|_, entry| entry.disk_copy == DiskCopy::Present)
        {
            inner.pop(key);
        }
    }

    pub fn remove(&self, key: Key) {
        let mut inner = lock(&self.inner);
        inner.pop(key);
    }

    /// Removes a torrent's pieces. Those that were only in memory are lost.
    pub fn remove_torrent(&self, id: u32) {
        let mut inner = lock(&self.inner);
        let keys: Vec<Key> = inner.entries.iter().map(|(key, _)| *key).filter(|key| key.0 == id).collect();
        for key in keys {
            inner.pop(key);
        }
    }
}

impl Inner {
    fn pop(&mut self, key: Key) -> Option<Entry> {
        let entry = self.entries.pop(&key)?;
        self.cost -= entry.cost();
        self.memory_only -= usize::from(entry.disk_copy == DiskCopy::Missing);
        Some(entry)
    }

    /// Returns the least recently used entry for which `fits` holds, but never the newest piece.
    fn oldest(&self, fits: impl Fn(&Key, &Entry) -> bool) -> Option<Key> {
        let oldest_first = self.entries.iter().rev().take(self.entries.len().saturating_sub(1));
        oldest_first.filter(|(key, entry)| fits(key, entry)).map(|(key, _)| *key).next()
    }

    /// Drops the least recently used pieces until the rest fits the limit. Pinned pieces that are only in memory go
    /// last. Pieces being written and the newest piece, whose waiters have not read it yet, always stay.
    fn shrink(&mut self, limit: u64) -> Vec<Lost> {
        let mut lost = Vec::new();
        while self.cost > limit {
            let may_drop = |entry: &Entry| entry.disk_copy != DiskCopy::Writing;
            let is_last_copy =
                |key: &Key, entry: &Entry| entry.disk_copy == DiskCopy::Missing && entry.pieces.word(key.1).pinned();
            let victim = self
                .oldest(|key, entry| may_drop(entry) && !is_last_copy(key, entry))
                .or_else(|| self.oldest(|_, entry| may_drop(entry)));
            let Some((key, entry)) = victim.and_then(|key| Some((key, self.pop(key)?))) else { break };
            if entry.disk_copy == DiskCopy::Missing && entry.pieces.advance(key.1, State::Memory, State::Missing) {
                lost.push((entry.pieces, key.1));
            }
        }
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::Lengths;

    #[test]
    fn pieces_that_are_also_on_the_disk_are_dropped_for_buffers() {
        let pieces = Arc::new(Pieces::new(0, Lengths::new(60, 10).unwrap(), Box::new(|_| {})));
        let memory = Memory::new(1 << 20);
        let piece = |n| pieces.lengths.piece(n).unwrap();
        let put = |n, disk_copy| memory.insert(&pieces, piece(n), vec![0; 10].into(), disk_copy);
        let copies = [
            DiskCopy::Missing,
            DiskCopy::Present,
            DiskCopy::Writing,
            DiskCopy::Present,
            DiskCopy::Present,
            DiskCopy::Present,
        ];
        (0..).zip(copies).for_each(|(n, disk_copy)| drop(put(n, disk_copy)));
        let kept = || (0..6).filter(|n| memory.get((0, piece(*n)), false).is_some()).collect::<Vec<_>>();
        memory.get((0, piece(1)), true);
        memory.evict_copies(0);
        assert_eq!(kept(), [0, 1, 2, 3, 4, 5]);
        memory.evict_copies(10 + OVERHEAD + 1);
        assert_eq!(kept(), [0, 1, 2, 5], "the least recently used are dropped");
        memory.evict_copies(1 << 20);
        assert_eq!(kept(), [0, 1, 2], "the newest stays for its waiters");
        assert_eq!(memory.used(), 3 * (10 + OVERHEAD));
    }
}
