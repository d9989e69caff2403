//! Faults of the cache's disk, and of single files on it: each is reported once, and writing is retried from time to time.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::substitute::is_refused;
use crate::metainfo::FileIndex;
use crate::util::lock;

/// Time between attempts to write to a disk that failed. Long enough not to disturb it, short enough not to be noticed.
const RETRY: Duration = Duration::from_secs(30);

/// Number of files that fail at the same time beyond which the disk has failed.
const MAX_FAILING: usize = 16;

/// Number of files that cannot be stored and are logged.
const MAX_REFUSED: usize = 100;

/// A file of a torrent, by the number of the torrent in this process.
pub(super) type FileKey = (u32, FileIndex);

/// A failed disk operation.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub(super) struct DiskError {
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
    /// The data file that it is about, if it is about one.
    file: Option<FileKey>,
}

impl DiskError {
    pub fn new(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { action, path, source, file: None }
    }

    /// Makes an error about a data file.
    pub fn of_file(action: &'static str, path: PathBuf, file: FileKey) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path, source, file: Some(file) }
    }

    /// Returns the data file that has a fault of its own. A disk that is full or read-only concerns all of them.
    fn failing_file(&self) -> Option<FileKey> {
        let concerns_all = self.can_make_room() || self.source.kind() == io::ErrorKind::ReadOnlyFilesystem;
        self.file.filter(|_| !concerns_all)
    }

    /// Returns whether the disk is full, as opposed to failing.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) || self.is_too_large()
    }

    /// Returns whether the filesystem has refused the name of a file, and its other name, too.
    pub fn is_refusal(&self) -> bool {
        self.action == "open" && is_refused(&self.source, false)
    }

    /// Returns whether the file may not become so large.
    fn is_too_large(&self) -> bool {
        self.source.kind() == io::ErrorKind::FileTooLarge
    }

    /// Returns what the user can do.
    fn advice(&self) -> &'static str {
        if self.is_too_large() {
            "raise the limit on file sizes (ulimit -f) or choose another --cache-dir"
        } else if self.is_full() {
            "free some space, lower --cache-size or choose another --cache-dir"
        } else {
            "check the disk or choose another --cache-dir"
        }
    }

    /// Returns whether evicting other pieces makes room.
    pub fn can_make_room(&self) -> bool {
        self.is_full() && !self.is_too_large()
    }

    /// Returns whether the file or its bytes are missing, and the disk has no fault.
    pub fn is_gone(&self) -> bool {
        is_gone(&self.source)
    }
}

/// Returns whether another program removed a file or its bytes, on a network filesystem perhaps from another machine.
pub(super) fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, StaleNetworkFileHandle, UnexpectedEof};
    matches!(error.kind(), NotFound | UnexpectedEof | StaleNetworkFileHandle)
}

/// The writes that the disk allows now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DiskState {
    /// Write. After a fault, this is an attempt.
    Working,
    /// Write only after freeing the same amount.
    Full,
    /// Do not write.
    Failing,
}

/// The present fault of a cache's disk, if there is one.
#[derive(Default)]
pub(super) struct Health {
    fault: Mutex<Option<Fault>>,
    /// Files with a fault of their own, [`MAX_FAILING`] at most.
    files: Mutex<HashMap<FileKey, Fault>>,
    /// Files that cannot be stored, while the disk has no fault. Bounds what is logged.
    refused: Mutex<HashSet<PathBuf>>,
}

/// A fault that has not been resolved.
struct Fault {
    /// The error with advice, as logged.
    message: String,
    /// The error alone, without advice.
    cause: String,
    /// Whether evicting pieces makes room, because the disk is full.
    full: bool,
    /// Time from which on the next write is an attempt.
    retry: Instant,
}

impl Health {
    pub fn state(&self, now: Instant) -> DiskState {
        match &*lock(&self.fault) {
            Some(fault) if now < fault.retry => {
                if fault.full {
                    DiskState::Full
                } else {
                    DiskState::Failing
                }
            }
            _ => DiskState::Working,
        }
    }

    /// Returns the fault of the disk, or else of a file.
    pub fn fault(&self) -> Option<String> {
        let disk = lock(&self.fault).as_ref().map(|fault| fault.message.clone());
        disk.or_else(|| lock(&self.files).iter().min_by_key(|(file, _)| **file).map(|(_, fault)| fault.message.clone()))
    }

    /// Returns whether the disk has a fault, or a file of this torrent.
    pub fn has_fault(&self, torrent: u32) -> bool {
        lock(&self.fault).is_some() || lock(&self.files).keys().any(|file| file.0 == torrent)
    }

    /// Returns whether one of a torrent's files has failed so recently that nothing is written to it.
    pub fn is_failing(&self, now: Instant, torrent: u32, files: impl IntoIterator<Item = FileIndex>) -> bool {
        let failing = lock(&self.files);
        let is_failing = |file| failing.get(&(torrent, file)).is_some_and(|fault| now < fault.retry);
        !failing.is_empty() && files.into_iter().any(is_failing)
    }

    /// Forgets the files of a torrent.
    pub fn forget(&self, torrent: u32) {
        lock(&self.files).retain(|file, _| file.0 != torrent);
    }

    /// Returns the error alone, without the advice for a cache.
    pub fn cause(&self) -> Option<String> {
        lock(&self.fault).as_ref().map(|fault| fault.cause.clone())
    }

    /// Records a failure of the disk, or of one file, which leaves the others alone. Logs the first one of a fault.
    pub fn report(&self, dir: &Path, error: &DiskError, now: Instant) {
        let Some(file) = error.failing_file() else { return self.report_failure(dir, error, now, true) };
        let mut files = lock(&self.files);
        if files.len() >= MAX_FAILING && !files.contains_key(&file) {
            files.clear();
            drop(files);
            return self.report_failure(dir, error, now, true);
        }
        let message = format!("{error}; continuing without this file in the cache; {}", error.advice());
        let fault = Fault { message, cause: error.to_string(), full: false, retry: now + RETRY };
        if !files.contains_key(&file) {
            tracing::warn!("{}", fault.message);
        }
        files.insert(file, fault);
    }

    /// Records a failure of the disk. With `log`, logs the first one of a fault.
    pub fn report_failure(&self, dir: &Path, error: &DiskError, now: Instant, log: bool) {
        let advice = error.advice();
        let message = format!("cache {}: {error}; continuing with memory and the swarm only; {advice}", dir.display());
        let mut fault = lock(&self.fault);
        if fault.is_none() && log {
            tracing::warn!("{message}");
        }
        let full = error.can_make_room();
        *fault = Some(Fault { message, cause: error.to_string(), full, retry: now + RETRY });
    }

    /// Logs that a file cannot be stored. Its pieces stay in memory and the swarm; other files are not concerned.
    pub fn report_refusal(&self, error: &DiskError) {
        let mut refused = lock(&self.refused);
        if refused.len() < MAX_REFUSED && refused.insert(error.path.clone()) {
            tracing::warn!("{error}; this file is not cached");
        }
    }

    /// Records a successful write that began at `begun` and replaced nothing. Only an attempt that began after the
    /// retry time ends a fault: a write that was under way when another one failed proves nothing.
    pub fn report_success(&self, begun: Instant) {
        if lock(&self.fault).take_if(|fault| begun >= fault.retry).is_some() {
            tracing::info!("the disk of the cache accepts data again");
        }
    }

    /// Records a successful write to a torrent's files that began at `begun`.
    pub fn report_files_success(&self, begun: Instant, torrent: u32, files: impl IntoIterator<Item = FileIndex>) {
        let mut failing = lock(&self.files);
        if failing.is_empty() {
            return;
        }
        for file in files.into_iter().map(|file| (torrent, file)) {
            if failing.get(&file).is_some_and(|fault| begun >= fault.retry) && failing.remove(&file).is_some() {
                tracing::info!("a file of the cache accepts data again");
            }
        }
    }

    /// Makes the next attempt due now.
    #[cfg(test)]
    pub fn retry_now(&self) {
        lock(&self.files).values_mut().for_each(|fault| fault.retry = Instant::now());
        if let Some(fault) = &mut *lock(&self.fault) {
            fault.retry = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_begun_before_a_fault_does_not_end_it() {
        let (health, before) = (Health::default(), Instant::now());
        let full = DiskError::new("write to", "/cache/film")(io::Error::from_raw_os_error(libc::ENOSPC));
        health.report_failure(Path::new("/cache"), &full, before, true);
        health.report_success(before);
        assert!(health.fault().is_some() && health.state(before) == DiskState::Full);
        health.report_success(before + RETRY);
        assert!(health.fault().is_none() && health.state(before) == DiskState::Working);
    }
}
