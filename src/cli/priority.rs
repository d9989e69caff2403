//! `torrentfs priority`: how urgently a running mount fetches a file.

use std::path::{Path, PathBuf};

use axum::http::Method;
use clap::Args;

use super::failure::Failure;
use super::running_mount;
use super::runtime::runtime;
use super::text::count;
use crate::control::orders::{FilesChanged, PriorityChange};
use crate::control::status::Priority;

const AFTER_HELP: &str = "\
skip fetches nothing of it but what is read; normal is as all others are; high
comes before all others.

Examples:
  torrentfs priority /mnt/all album/02.flac high
  torrentfs priority /mnt/all /mnt/all/album/extras skip";

/// Fetch files before all others, or only what is read of them, until the mount ends
#[derive(Args, Clone, Debug, PartialEq)]
#[command(after_help = AFTER_HELP)]
pub(super) struct PriorityArgs {
    /// A mount, or a path in it
    mountpoint: PathBuf,

    /// A file or directory in it, from its root on or with the mountpoint before
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Not at all unless it is read, as all others, or before all others
    #[arg(value_name = "skip|normal|high", value_parser = priority)]
    priority: Priority,
}

fn priority(text: &str) -> Result<Priority, String> {
    [Priority::Skip, Priority::Normal, Priority::High]
        .into_iter()
        .find(|priority| priority.word() == text)
        .ok_or_else(|| "expected skip, normal or high".into())
}

/// Says how much a file is wanted.
pub(super) fn run(args: &PriorityArgs) -> Result<(), Failure> {
    runtime()?.block_on(async {
        let reached = running_mount::find(&args.mountpoint)?;
        let mountpoint = PathBuf::from(reached.status().await?.mountpoint);
        let path = within(&mountpoint, &args.path).to_string_lossy().into_owned();
        let change = PriorityChange { path, priority: args.priority };
        let FilesChanged { files } = reached.order(Method::PATCH, "/priority", &change).await?;
        println!("{}: {}", count(files, "file"), args.priority.word());
        Ok(())
    })
}

/// A path from the mount's root, however the user wrote it.
fn within(mountpoint: &Path, path: &Path) -> PathBuf {
    let whole = std::path::absolute(path).ok();
    let resolved = std::fs::canonicalize(path).ok();
    let below =
        [resolved, whole].into_iter().flatten().find_map(|path| Some(path.strip_prefix(mountpoint).ok()?.to_owned()));
    below.unwrap_or_else(|| path.to_owned())
}
