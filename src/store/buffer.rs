//! A pool of buffers of a piece's size, which are reused instead of freed.
//!
//! Otherwise a stream of a gigabyte would allocate, page-fault and free a gigabyte. The pool keeps only a few MiB of
//! spare buffers, and none beyond its limit. It does not bound the buffers in use: their owners do (the memory tier,
//! the driver's partial pieces).

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::util::lock;

/// Spare buffers kept, in bytes: a few pieces of the usual lengths. A single larger buffer is kept too, up to
/// [`MAX_SPARE_BUFFER`].
const MAX_SPARE: usize = 8 << 20;
/// Length limit of a spare buffer in bytes; longer pieces are rare, and one would use too much memory.
const MAX_SPARE_BUFFER: usize = 32 << 20;

pub(super) struct BufferPool {
    /// Bytes of all buffers above which no spare one is kept.
    limit: u64,
    spare: Mutex<Spare>,
    in_use: AtomicU64,
    /// Bytes of all buffers ever handed out.
    total_allocated: AtomicU64,
}

#[derive(Default)]
struct Spare {
    buffers: Vec<Box<[u8]>>,
    bytes: usize,
}

impl BufferPool {
    pub fn new(limit: u64) -> Self {
        Self { limit, spare: Mutex::default(), in_use: AtomicU64::new(0), total_allocated: AtomicU64::new(0) }
    }

    /// Returns by how many bytes one more buffer of `len` would exceed the limit.
    pub fn excess(&self, len: usize) -> u64 {
        (self.in_use() + len as u64).saturating_sub(self.limit)
    }

    /// Returns a buffer of `len` bytes with unspecified content (zeros, or an old piece).
    pub fn buffer(self: &Arc<Self>, len: usize) -> PieceBuf {
        let spare = {
            let mut spare = lock(&self.spare);
            // The last piece of a torrent is shorter than the others and may use a full-size buffer.
            let found = spare.buffers.iter().rposition(|spare| spare.len() >= len && spare.len() / 2 <= len);
            let found = found.map(|at| spare.buffers.swap_remove(at));
            let taken = found.as_ref().map_or(0, |buffer| buffer.len());
            spare.bytes -= taken;
            self.in_use.fetch_add(taken.max(len) as u64, Relaxed);
            self.trim(&mut spare);
            found
        };
        self.total_allocated.fetch_add(len as u64, Relaxed);
        let buffer = spare.unwrap_or_else(|| vec![0; len].into_boxed_slice());
        PieceBuf { buffer, len, pool: Arc::clone(self) }
    }

    /// Returns the bytes of all buffers in use.
    pub fn in_use(&self) -> u64 {
        self.in_use.load(Relaxed)
    }

    /// Returns the bytes of all buffers ever handed out.
    pub fn total_allocated(&self) -> u64 {
        self.total_allocated.load(Relaxed)
    }

    fn recycle(&self, buffer: Box<[u8]>) {
        self.in_use.fetch_sub(buffer.len() as u64, Relaxed);
        let len = buffer.len();
        if len == 0 || len > MAX_SPARE_BUFFER {
            return;
        }
        let mut spare = lock(&self.spare);
        spare.bytes += len;
        spare.buffers.push(buffer);
        self.trim(&mut spare);
    }

    /// Frees spare buffers above the limit, oldest first: torrents with other piece lengths leave buffers that fit no
    /// request.
    fn trim(&self, spare: &mut Spare) {
        let most = MAX_SPARE.min(self.limit.saturating_sub(self.in_use()).try_into().unwrap_or(usize::MAX));
        while spare.bytes > most && spare.buffers.len() > 1 {
            spare.bytes -= spare.buffers.remove(0).len();
        }
    }
}

/// A writable buffer for one piece. When it, or the [`Bytes`] made from it, is dropped, the buffer returns to the pool.
pub struct PieceBuf {
    buffer: Box<[u8]>,
    len: usize,
    pool: Arc<BufferPool>,
}

impl PieceBuf {
    /// Makes the buffer shareable, without a copy.
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for PieceBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.buffer[..self.len]
    }
}

impl DerefMut for PieceBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }
}

impl AsRef<[u8]> for PieceBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for PieceBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PieceBuf({} bytes)", self.len)
    }
}

impl Drop for PieceBuf {
    fn drop(&mut self) {
        self.pool.recycle(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_reused() {
        let pool = Arc::new(BufferPool::new(0));
        let mut buffer = pool.buffer(1 << 20);
        buffer[5] = 9;
        let address = buffer.as_ptr();
        let frozen = buffer.freeze();
        assert_eq!((frozen.len(), frozen[5], pool.in_use()), (1 << 20, 9, 1 << 20));
        let slice = frozen.slice(4..6);
        drop(frozen);
        assert_eq!(pool.in_use(), 1 << 20, "a slice keeps the buffer in use");
        drop(slice);
        assert_eq!(pool.in_use(), 0);
        let shorter = pool.buffer((1 << 20) - 7);
        assert_eq!((shorter.as_ptr(), shorter.len()), (address, (1 << 20) - 7));
    }

    #[test]
    fn spare_buffers_are_bounded() {
        let pool = Arc::new(BufferPool::new(45 << 20));
        let mut many: Vec<_> = (0..40).map(|n| pool.buffer((1 << 20) + n * 1000)).collect();
        assert_eq!((pool.excess(1 << 20), pool.excess(6 << 20) > 0), (0, true));
        many.truncate(39);
        assert_eq!(lock(&pool.spare).buffers.len(), 1);
        let more: Vec<_> = (0..7).map(|_| pool.buffer(1 << 20)).collect();
        many.truncate(37);
        assert_eq!(lock(&pool.spare).buffers.len(), 1, "no more spare buffers than the limit allows");
        drop((many, more));
        drop(pool.buffer(100 << 20));
        let spare = lock(&pool.spare);
        assert!(spare.bytes <= MAX_SPARE);
        assert_eq!(spare.bytes, spare.buffers.iter().map(|b| b.len()).sum::<usize>());
        assert!(!spare.buffers.is_empty());
    }
}
