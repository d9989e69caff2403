//! Hashing again what is had, while it is used: a piece at a time, resting as long as it works, so that reads hardly
//! feel it. What is not as it should be is had no more, and fetched again.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::{Torrent, lock};

/// How far a check of what is had has come.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Verification {
    /// It goes on.
    pub running: bool,
    /// Pieces looked at.
    pub done: u32,
    /// Pieces to look at.
    pub pieces: u32,
    /// Pieces that were not as they should be.
    pub bad: u32,
}

/// Whom to tell how far the hashing of what is there has come, before torrents are used. Called from the threads that do
/// it; one may serve many torrents.
#[derive(Clone)]
pub struct CheckProgress(Arc<dyn Fn(u64, u64) + Send + Sync>);

impl CheckProgress {
    /// Calls this with the bytes that there are to hash in addition, and those that are done in addition.
    pub fn new(tell: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// So many bytes more to hash, and so many more done.
    pub fn tell(&self, more: u64, done: u64) {
        (self.0)(more, done);
    }
}

impl fmt::Debug for CheckProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CheckProgress")
    }
}

impl Torrent {
    /// Begins to hash what is had, if that does not go on already. Must be called within a tokio runtime.
    pub fn verify(self: &Arc<Self>) {
        let mut verification = lock(&self.verification);
        if verification.is_some_and(|verification| verification.running) {
            return;
        }
        let pieces = self.metainfo.layout.lengths().pieces();
        *verification = Some(Verification { running: true, pieces, ..Verification::default() });
        drop(verification);
        tracing::info!(name = %self.metainfo.name, "checking all that is here");
        tokio::spawn(self.clone().run_verification());
    }

    /// The check that goes on, or the last one; `None`: there was none.
    pub fn verification(&self) -> Option<Verification> {
        *lock(&self.verification)
    }

    async fn run_verification(self: Arc<Self>) {
        let closed = self.closed.clone();
        let change =
            |change: &dyn Fn(&mut Verification)| lock(&self.verification).as_mut().into_iter().for_each(change);
        for piece in self.metainfo.layout.lengths().iter() {
            if *closed.borrow() {
                break;
            }
            if self.store.has(piece) {
                let (store, begun) = (self.store.clone(), Instant::now());
                let good = tokio::task::spawn_blocking(move || store.recheck(piece)).await;
                if matches!(good, Ok(Some(false))) {
                    tracing::warn!("piece {piece} of {} is not what it was; fetching it again", self.metainfo.name);
                    change(&|verification| verification.bad += 1);
                }
                tokio::time::sleep(begun.elapsed()).await;
            }
            change(&|verification| verification.done += 1);
        }
        change(&|verification| verification.running = false);
    }
}
