//! Who waits for which piece.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use crate::metainfo::PieceIndex;
use crate::util::lock;

/// One [`Notify`] a waited piece, gone with the last waiter; so its size is bounded by the number of waiting reads.
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

/// Takes a waiter off the list when its future is dropped, finished or not.
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
    /// Registers at once, not at the first poll; then looks with `had` (invariant 3). Ready when the piece was had at
    /// that look, is put afterwards, or the torrent is closed.
    pub fn wait(
        self: &Arc<Self>,
        piece: PieceIndex,
        had: &dyn Fn() -> bool,
    ) -> impl Future<Output = ()> + Send + 'static + use<> {
        let (registered, notified) = {
            let mut waited = lock(&self.waited);
            let entry = waited.entry(piece).or_default();
            entry.waiters += 1;
            (Registered { waiters: Arc::clone(self), piece }, Arc::clone(&entry.notify).notified_owned())
        };
        let ready = self.is_closed() || had();
        async move {
            let _registered = registered;
            if !ready {
                notified.await;
            }
        }
    }

    /// Wakes all who wait for the piece. Call after it can be seen.
    pub fn wake(&self, piece: PieceIndex) {
        if let Some(entry) = lock(&self.waited).get(&piece) {
            entry.notify.notify_waiters();
        }
    }

    /// Wakes everybody, now and for ever.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        lock(&self.waited).values().for_each(|entry| entry.notify.notify_waiters());
    }

    /// Whether everybody was woken for ever.
    pub fn is_closed(&self) -> bool {
        self.closed.load(SeqCst)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        lock(&self.waited).len()
    }
}
