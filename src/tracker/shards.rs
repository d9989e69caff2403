//! Values distributed over shards with a lock each, so that threads rarely wait for each other. Pure.

use crate::util::lock;
use std::sync::{Mutex, MutexGuard};

/// Number of shards. Not a power of two, because a hash map doubles its memory at one: a million torrents, the default
/// limit, fill the maps of 80 shards to three quarters, but those of 64 or 128 only to half.
pub(super) const SHARDS: usize = 80;

/// [`SHARDS`] values of one type, each behind a lock.
#[derive(Debug)]
pub(super) struct Shards<T>(Box<[Mutex<T>]>);

impl<T: Default> Default for Shards<T> {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl<T> Shards<T> {
    /// Locks the shard number `nth`.
    pub fn lock(&self, nth: usize) -> MutexGuard<'_, T> {
        lock(&self.0[nth])
    }

    /// Locks the shard of `key`. `multiplier` must be odd; it decides how keys are distributed.
    pub fn lock_for(&self, key: u64, multiplier: u64) -> MutexGuard<'_, T> {
        // The upper half of the product depends on most of the key's bits.
        let mixed = key.wrapping_mul(multiplier);
        self.lock((mixed >> 32) as usize % SHARDS)
    }
}
