//! `torrentfs unmount`: ends a mount.

use std::path::PathBuf;

use clap::Args;

use super::failure::{Exit, Failure};
use crate::fs::unmount_path;

const DESCRIPTION: &str = "\
The process that serves the mount announces its end to the trackers (for 2
seconds at most), saves its state and exits. Cached pieces stay. umount(8), also
with -l, `fusermount3 -u` and SIGTERM have the same effect.";

const EXAMPLES: &str = "\
Examples:
  torrentfs unmount /mnt/film";

/// Unmount, and end the process that serves the mount
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = EXAMPLES)]
pub(super) struct UnmountArgs {
    /// Mountpoint
    pub(super) mountpoint: PathBuf,
}

/// Unmounts, and waits until the mount is gone.
pub(super) fn run(args: &UnmountArgs) -> Result<(), Failure> {
    unmount_path(&args.mountpoint).map_err(|error| Failure::new(Exit::Mountpoint, error))
}
