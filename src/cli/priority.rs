//! `torrentfs priority`: changes how urgently a running mount fetches files.

use std::path::{Path, PathBuf};

use axum::http::Method;
use clap::Args;

use super::failure::Failure;
use super::running_mount;
use super::runtime::runtime;
use super::text::count;
use crate::control::orders::{FilesChanged, PriorityChange};
use crate::control::status::Priority;

const DESCRIPTION: &str = "\
A priority lasts until it is changed, or until the mount ends. Reads come first,
whatever the priority.";

const SECTIONS: &str = "\
Priorities:
  skip    fetch only what is read
  normal  fetch in the background
  high    fetch before files of normal priority

Examples:
  torrentfs priority /mnt/all album/02.flac high
  torrentfs priority /mnt/all /mnt/all/album/extras skip";

/// Set the priority of files in a running mount
#[derive(Args, Clone, Debug, PartialEq)]
#[command(before_help = DESCRIPTION, after_help = SECTIONS)]
pub(super) struct PriorityArgs {
    /// Mountpoint, or a path below it
    mountpoint: PathBuf,

    /// File or directory in the mount, with or without the mountpoint in front
    path: PathBuf,

    /// skip, normal or high
    #[arg(value_parser = priority)]
    priority: Priority,
}

fn priority(text: &str) -> Result<Priority, String> {
    [Priority::Skip, Priority::Normal, Priority::High]
        .into_iter()
        .find(|priority| priority.word() == text)
        .ok_or_else(|| "expected skip, normal or high".into())
}

/// Sets the priority of a file, or of all files in a directory.
pub(super) fn run(args: &PriorityArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let mount = running_mount::find(&args.mountpoint)?;
        let mountpoint = PathBuf::from(mount.status().await?.mountpoint);
        let path = relative_to(&mountpoint, &args.path).to_string_lossy().into_owned();
        let change = PriorityChange { path, priority: args.priority };
        let FilesChanged { files } = mount.send(Method::PATCH, "/priority", &change).await?;
        println!("{}: {}", count(files, "file"), args.priority.word());
        Ok(())
    })
}

/// Returns a path relative to the mountpoint, if it lies below; otherwise as it was given.
fn relative_to(mountpoint: &Path, path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).ok();
    let resolved = std::fs::canonicalize(path).ok();
    let relative = [resolved, absolute]
        .into_iter()
        .flatten()
        .find_map(|path| Some(path.strip_prefix(mountpoint).ok()?.to_owned()));
    relative.unwrap_or_else(|| path.to_owned())
}
