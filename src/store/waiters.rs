//! Waiting for pieces.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::metainfo::PieceIndex;
use crate::util::lock;

/// Waiting reads: one [`Notify`] per awaited piece, removed with its last waiter, so the number of waiting reads bounds
/// the size.
#[derive(Default)]
pub(super) struct Waiters {
    waited: Mutex<HashMap<PieceIndex, Waited>>,
    closed: AtomicBool,
}

#[derive(Default)]
struct Waited {
    notify: Arc<Notify>,
    waiters: usize,
}

/// A waiter's registration, removed when its future is dropped.
struct Registered {
    waiters: Arc<Waiters>,
    piece: PieceIndex,
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut waited = lock(&self.waiters.waited);
        if let Some(entry) = waited.get_mut(&self.piece) {
            entry.waiters -= 1;
            if entry.waiters == 0 {
                waited.remove(&self.piece);
            }
        }
    }
}

impl Waiters {
    /// Registers a waiter at once, not at the first poll, and then looks with `is_present` (invariant 3). The future is
    /// ready if the piece was present at that look, is put afterwards, or the torrent is closed.
    pub fn wait(
        self: &Arc<Self>,
        piece: PieceIndex,
        is_present: &dyn Fn() -> bool,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (registered, notified) = {
            let mut waited = lock(&self.waited);
            let entry = waited.entry(piece).or_default();
            entry.waiters += 1;
            (Registered { waiters: Arc::clone(self), piece }, Arc::clone(&entry.notify).notified_owned())
        };
        let ready = self.is_closed() || is_present();
        async move {
            let _registered = registered;
            if !ready {
                notified.await;
            }
        }
    }

    /// Wakes all waiters of a piece. Call it after the piece is visible.
    pub fn wake(&self, piece: PieceIndex) {
        if let Some(entry) = lock(&self.waited).get(&piece) {
            entry.notify.notify_waiters();
        }
    }

    /// Wakes all waiters, present and future.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        lock(&self.waited).values().for_each(|entry| entry.notify.notify_waiters());
    }

    /// Returns whether [`Self::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        lock(&self.waited).len()
    }
}
