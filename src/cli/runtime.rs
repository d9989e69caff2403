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
/// after that they never do. A command that nohup(1) has started goes on after SIGHUP.
pub(super) struct Signals {
    signals: [Signal; 3],
    obeys_hangup: bool,
}

impl Signals {
    /// Starts to catch the signals.
    pub(super) fn listen() -> Result<Self, Failure> {
        let obeys_hangup = !ignores_hangup();
        let listen = |kind| signal(kind).map_err(|error| Failure::new(Exit::Resource, error));
        let signals =
            [listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?];
        Ok(Self { signals, obeys_hangup })
    }

    /// Makes SIGHUP count in any case, because it does not end the command but makes it read something again.
    pub(super) fn obey_hangup(&mut self) {
        self.obeys_hangup = true;
    }

    /// Waits for a signal, or returns at once if one arrived since the last call. Returns whether it was SIGHUP.
    pub(super) async fn any(&mut self) -> bool {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => false,
            _ = terminate.recv() => false,
            _ = hangup.recv(), if self.obeys_hangup => true,
        }
    }
}

/// Returns whether this process was started with SIGHUP ignored.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (SignalKind::hangup().as_raw_value() - 1) & 1 == 1
}
