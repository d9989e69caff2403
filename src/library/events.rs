//! Change notifications of one directory, from the kernel's inotify.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use inotify::{Inotify, WatchMask};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// The kernel's notifications about a directory. They say only that something changed.
pub(super) struct DirectoryEvents {
    inotify: Inotify,
    /// Becomes readable when an event arrives.
    readiness: AsyncFd<OwnedFd>,
}

impl DirectoryEvents {
    /// Watches a directory. Returns `None` if the kernel cannot, with a warning if inotify itself is unavailable.
    pub(super) fn open(dir: &Path) -> Option<Self> {
        let opened = Inotify::init().and_then(|inotify| {
            let readiness = sys::file::readiness(inotify.as_fd().try_clone_to_owned()?)?;
            Ok(Self { inotify, readiness })
        });
        let mut events = opened
            .inspect_err(|error| {
                tracing::warn!("cannot watch {} for changes, scanning it every 2 s instead: {error}", dir.display());
            })
            .ok()?;
        events.watch(dir).then_some(events)
    }

    /// Watches the directory that is at this path now. Returns whether the kernel can.
    pub(super) fn watch(&mut self, dir: &Path) -> bool {
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF;
        self.inotify.watches().add(dir, mask).is_ok()
    }

    /// Waits for an event.
    pub(super) async fn wait(&mut self) {
        loop {
            let Ok(mut ready) = self.readiness.readable().await else { return std::future::pending().await };
            if ready.try_io(|_| read_events(&mut self.inotify)).is_ok() {
                return;
            }
        }
    }

    /// Discards the pending events.
    pub(super) fn drain(&mut self) {
        while read_events(&mut self.inotify).is_ok() {}
    }
}

fn read_events(inotify: &mut Inotify) -> io::Result<()> {
    inotify.read_events(&mut [0; 4096]).map(drop)
}
