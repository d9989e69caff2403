//! Errors of starting a tracker.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::allow::AllowError;

/// Error of [`Tracker::start`](super::Tracker::start).
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is in use, not of this machine, or not permitted.
    #[error("cannot listen on {addr}: {source}; choose another address or port with --listen")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
    /// The list of torrents to serve cannot be read.
    #[error(transparent)]
    Allow(#[from] AllowError),
    /// The state file cannot be used.
    #[error("cannot use the state file {}: {why}", path.display())]
    State {
        /// Path of the file.
        path: PathBuf,
        /// Reason.
        why: String,
    },
    /// Another system call failed, such as the start of a thread.
    #[error("cannot start the tracker: {0}")]
    System(#[from] io::Error),
}
