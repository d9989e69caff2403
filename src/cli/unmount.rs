//! `torrentfs unmount`: ends a mount.

use std::path::PathBuf;

use clap::Args;

use super::failure::{Exit, Failure};
use crate::fs::unmount_path;

const AFTER_HELP: &str = "\
The mount's process tells its trackers (for 2 seconds at most), saves its state
and exits. Cached pieces stay. `umount`, `fusermount3 -u` and SIGTERM have the
same effect.

Examples:
  torrentfs unmount /mnt/film";

/// Unmount a mount, and end its process
#[derive(Args, Clone, Debug, PartialEq)]
#[command(after_help = AFTER_HELP)]
pub(super) struct UnmountArgs {
    /// Mountpoint
    pub(super) mountpoint: PathBuf,
}

/// Unmounts, and waits until the mount is gone.
pub(super) fn run(args: &UnmountArgs) -> Result<(), Failure> {
    unmount_path(&args.mountpoint).map_err(|error| Failure::new(Exit::Mountpoint, error))
}
