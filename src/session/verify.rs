//! Hashing again the pieces that we have while the torrent is used: one piece at a time, with a pause as long as the
//! work, so that reads hardly notice. A piece that has changed is dropped and fetched again.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::watch;

use crate::metainfo::Metainfo;
use crate::store::TorrentStore;
use crate::util::lock;

/// The progress of a verification.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Verification {
    /// It is under way.
    pub running: bool,
    /// Pieces checked.
    pub done: u32,
    /// Pieces to check.
    pub pieces: u32,
    /// Pieces that had changed.
    pub bad: u32,
}

/// A callback for the progress of hashing torrents before they are used. Called from the threads that hash; one may
/// serve many torrents.
#[derive(Clone)]
pub struct CheckProgress(Arc<dyn Fn(u64, u64) + Send + Sync>);

impl CheckProgress {
    /// Wraps a callback. Its arguments are the additional bytes to hash, and the additional bytes hashed.
    pub fn new(callback: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(callback))
    }

    /// Reports `more` additional bytes to hash, and `done` additional bytes hashed.
    pub fn add(&self, more: u64, done: u64) {
        (self.0)(more, done);
    }
}

impl fmt::Debug for CheckProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckProgress")
    }
}

/// The verification of one torrent: at most one at a time.
#[derive(Debug, Default)]
pub(super) struct Verifier(Mutex<Option<Verification>>);

impl Verifier {
    /// Starts a verification, unless one is under way. It ends early when `closed` is set.
    pub(super) fn start(
        self: &Arc<Self>,
        metainfo: Arc<Metainfo>,
        store: Arc<TorrentStore>,
        closed: watch::Receiver<bool>,
    ) {
        let mut state = lock(&self.0);
        if state.is_some_and(|state| state.running) {
            return;
        }
        let pieces = metainfo.layout.lengths().pieces();
        *state = Some(Verification { running: true, pieces, ..Verification::default() });
        drop(state);
        tracing::info!(name = %metainfo.name, "verifying every piece that we have");
        tokio::spawn(self.clone().run(metainfo, store, closed));
    }

    /// Returns the progress of the verification that is under way, or the result of the last one.
    pub(super) fn state(&self) -> Option<Verification> {
        *lock(&self.0)
    }

    async fn run(self: Arc<Self>, metainfo: Arc<Metainfo>, store: Arc<TorrentStore>, closed: watch::Receiver<bool>) {
        let update = |update: &dyn Fn(&mut Verification)| lock(&self.0).as_mut().into_iter().for_each(update);
        for piece in metainfo.layout.lengths().iter() {
            if *closed.borrow() {
                break;
            }
            if store.has(piece) {
                let (store, begun) = (store.clone(), Instant::now());
                let good = tokio::task::spawn_blocking(move || store.recheck(piece)).await;
                if matches!(good, Ok(Some(false))) {
                    tracing::warn!("piece {piece} of {} has changed on disk; fetching it again", metainfo.name);
                    update(&|state| state.bad += 1);
                }
                tokio::time::sleep(begun.elapsed()).await;
            }
            update(&|state| state.done += 1);
        }
        update(&|state| state.running = false);
    }
}
