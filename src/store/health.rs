//! Whether the disk takes what is written: reported once when it does not, and tried again from time to time.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::util::lock;

/// Between two tries of a disk that failed.
const RETRY: Duration = Duration::from_secs(30);

/// What failed, on which path.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub(super) struct DiskError {
    pub action: &'static str,
    pub path: PathBuf,
    pub source: io::Error,
}

impl DiskError {
    pub fn new(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self { action, path, source }
    }

    /// No space, as opposed to a disk that fails.
    pub fn is_full(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// The file or its bytes are not there: somebody else removed them. No fault of the disk.
    pub fn is_gone(&self) -> bool {
        matches!(self.source.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
    }
}

/// What a writer may do now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DiskState {
    /// Write. After a fault: try.
    Working,
    /// Only in place of something else.
    Full,
    /// Do not.
    Failing,
}

#[derive(Default)]
pub(super) struct Health {
    fault: Mutex<Option<Fault>>,
}

struct Fault {
    message: String,
    /// The failure alone.
    cause: String,
    full: bool,
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

    pub fn fault(&self) -> Option<String> {
        lock(&self.fault).as_ref().map(|fault| fault.message.clone())
    }

    /// What failed, without what follows for a cache.
    pub fn cause(&self) -> Option<String> {
        lock(&self.fault).as_ref().map(|fault| fault.cause.clone())
    }

    /// Notes a failure; the first since all was well is logged, if `log`.
    pub fn report_failure(&self, dir: &Path, error: &DiskError, now: Instant, log: bool) {
        let advice = if error.is_full() {
            "free some space, or lower --cache-size, or choose another --cache-dir"
        } else {
            "check the disk, or choose another --cache-dir"
        };
        let message = format!("cache {}: {error}; going on from memory and the swarm; {advice}", dir.display());
        let mut fault = lock(&self.fault);
        if fault.is_none() && log {
            tracing::warn!("{message}");
        }
        *fault = Some(Fault { message, cause: error.to_string(), full: error.is_full(), retry: now + RETRY });
    }

    /// A write begun at `begun` succeeded that was no replacement of something else. Only a try that was due since the
    /// fault says that all is well: a write that was under way when another failed says nothing.
    pub fn report_success(&self, begun: Instant) {
        if lock(&self.fault).take_if(|fault| begun >= fault.retry).is_some() {
            tracing::info!("the cache's disk takes data again");
        }
    }

    /// Makes the next try due.
    #[cfg(test)]
    pub fn retry_now(&self) {
        if let Some(fault) = &mut *lock(&self.fault) {
            fault.retry = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_that_was_under_way_ends_no_fault() {
        let (health, before) = (Health::default(), Instant::now());
        let full = DiskError::new("write to", "/cache/film")(io::Error::from_raw_os_error(libc::ENOSPC));
        health.report_failure(Path::new("/cache"), &full, before, true);
        health.report_success(before);
        assert!(health.fault().is_some() && health.state(before) == DiskState::Full);
        health.report_success(before + RETRY);
        assert!(health.fault().is_none() && health.state(before) == DiskState::Working);
    }
}
