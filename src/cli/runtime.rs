//! The async runtime of a command, and the signals that end it.

use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Exit, Failure};
use crate::sys;

/// Threads for blocking work: hashing, and reads and writes of files.
const BLOCKING_THREADS: usize = 32;
/// Open files to ask the system for: enough for the connections, cache files and tracker requests of a thousand torrents.
const OPEN_FILES: u64 = 4096;

/// Builds the runtime. A daemon must fork before, because no other thread survives a fork.
pub(super) fn runtime() -> Result<runtime::Runtime, Failure> {
    if let Err(error) = sys::process::raise_descriptor_limit(OPEN_FILES) {
        tracing::debug!("cannot raise the limit of open files: {error}");
    }
    runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Resource, format!("cannot start threads: {error}")))
}

/// The signals that end a command: SIGINT, SIGTERM and SIGHUP. Until [`Self::listen`] is called they kill the process;
/// after that they never do.
pub(super) struct Signals([Signal; 3]);

impl Signals {
    /// Starts to catch the signals.
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::new(Exit::Resource, error));
        Ok(Self([listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?]))
    }

    /// Waits for a signal, or returns at once if one arrived since the last call. Returns whether it was SIGHUP.
    pub(super) async fn any(&mut self) -> bool {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
            _ = hangup.recv() => true,
        }
    }
}
