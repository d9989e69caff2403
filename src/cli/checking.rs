//! What is shown while files are hashed before they are used. One torrent at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::progress::Progress;

/// While it lives, [`Checking::tell`] shows.
pub(super) struct Checking(());

struct Shown {
    what: String,
    bytes: u64,
    quiet: bool,
    /// From the first time it is told: what needs no hashing shows nothing.
    progress: Option<Progress>,
}

/// The session takes a plain function, for its threads call it at all times.
static SHOWN: Mutex<Option<Shown>> = Mutex::new(None);

fn shown() -> MutexGuard<'static, Option<Shown>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Checking {
    /// Begins to show that so many bytes of `name` are checked.
    pub(super) fn start(name: &str, bytes: u64, quiet: bool) -> Self {
        *shown() = Some(Shown { what: format!("checking {name}"), bytes, quiet, progress: None });
        Self(())
    }

    /// So many pieces are done, of so many.
    pub(super) fn tell(done: u32, of: u32) {
        if let Some(Shown { what, bytes, quiet, progress }) = &mut *shown() {
            let progress = progress.get_or_insert_with(|| Progress::start(what, *bytes, *quiet));
            progress.set((u128::from(*bytes) * u128::from(done) / u128::from(of.max(1))) as u64);
        }
    }
}

impl Drop for Checking {
    fn drop(&mut self) {
        drop(shown().take());
    }
}
