//! Exit codes, and the conversion of every error to one line on standard error.

use std::fmt;
use std::process::{ExitCode, Termination};

use crate::session::SessionError;
use crate::store::StoreError;
use crate::util::is_hidden;

/// The program's exit status. Scripts depend on these numbers: they never change, and `torrentfs help` lists them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// The command did what was asked.
    Success = 0,
    /// The command failed in a way that has no code of its own.
    Failure = 1,
    /// The command line is wrong. clap exits with this code by itself.
    Usage = 2,
    /// The torrent cannot be read or fetched, is malformed, or is of an unsupported kind.
    Torrent = 3,
    /// The mountpoint cannot be used, or FUSE is not available.
    Mountpoint = 4,
    /// A port, the cache directory, a download directory or a file of the tracker cannot be used, or is full.
    Resource = 5,
    /// The checked data is incomplete or damaged.
    Incomplete = 6,
}

impl Exit {
    const ALL: [Self; 7] =
        [Self::Success, Self::Failure, Self::Usage, Self::Torrent, Self::Mountpoint, Self::Resource, Self::Incomplete];

    /// Returns the exit status that has this number.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| *exit as u8 == code)
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        ExitCode::from(self as u8)
    }
}

/// Why a command failed: one line for people and an exit code for scripts.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    message: String,
}

impl Failure {
    /// Keeps the message on one line: control and other hidden characters, which a file name or a server may contain,
    /// become spaces.
    pub(super) fn new(exit: Exit, message: impl fmt::Display) -> Self {
        let message = message.to_string().replace(is_hidden, " ");
        Self { exit, message }
    }

    /// Describes a torrent that a command cannot use, as in "cannot show film.torrent: it is empty".
    pub(super) fn of_torrent(verb: &str, torrent: &str, reason: impl fmt::Display) -> Self {
        Self::new(Exit::Torrent, format!("cannot {verb} {torrent}: {reason}"))
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let exit = match &error {
            // The user named one torrent twice.
            SessionError::Twice(_) | SessionError::Store(StoreError::AlreadyOpen(_)) => Exit::Usage,
            _ => Exit::Resource,
        };
        Self::new(exit, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
