//! What is shown while files are hashed before they are used. One torrent at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::progress::Progress;

/// While it lives, [`Checking::tell`] shows.
pub(super) struct Checking(());

struct Shown {
    what: String,
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
    /// Begins to show how much of `name` is checked.
    pub(super) fn start(name: &str, quiet: bool) -> Self {
        *shown() = Some(Shown { what: format!("checking {name}"), quiet, progress: None });
        Self(())
    }

    /// So many bytes are done, of so many.
    pub(super) fn tell(done: u64, of: u64) {
        if let Some(Shown { what, quiet, progress }) = &mut *shown() {
            progress.get_or_insert_with(|| Progress::start(what, of, *quiet)).set(done);
        }
    }
}

impl Drop for Checking {
    fn drop(&mut self) {
        drop(shown().take());
    }
}
