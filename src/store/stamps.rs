//! Detection of changes that other programs make to the data files.
//!
//! Bytes on the disk are as hostile as bytes from a peer, but hashing every read would halve its speed. So the store knows
//! the [`Stamp`] that each file must have, and compares it after every read ([`Stamps::check`]). Each of its own changes
//! happens in a window ([`Stamps::change`]): the stamp is compared before and taken anew after. After a foreign change all
//! pieces of the file are unverified, and each is hashed before it is served.
//!
//! # Changes that remain unseen
//!
//! - One that falls into a window of ours, which is as short as a write of 128 KiB.
//! - One by another program that writes in a single system call for longer than [`SETTLE_TIME`], behind a piece that was
//!   hashed meanwhile.
//! - One through a shared mapping: the kernel updates the times only when a page becomes dirty, on tmpfs never.
//! - One in the same tick of the filesystem's clock as our last write: 1 to 10 ms before Linux 6.13, and 2 s on FAT. From
//!   6.13 on, ext4, XFS, Btrfs and tmpfs give a file that was examined a new time with its next change, however soon that
//!   comes. On network filesystems, one by another machine while the attributes are cached.
//! - One below the filesystem: bit rot, or a write to the block device.
//!
//! `torrentfs verify` finds those.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::metainfo::FileIndex;
use crate::util::lock;

/// How long a file must have been unchanged for its pieces to be trusted after one hash. The kernel updates the times when
/// a write begins, so a piece can be overwritten after it was hashed, with no sign of it. Longer than a usual write.
pub(super) const SETTLE_TIME: Duration = Duration::from_secs(1);

/// Size and times of a file. All zeros if the file does not exist.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    pub size: u64,
    /// Modification time, and below the status change time, in nanoseconds since 1970.
    pub modified: i64,
    pub changed: i64,
}

impl Stamp {
    pub fn of(about: &Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            size: about.len(),
            modified: nanoseconds(about.mtime(), about.mtime_nsec()),
            changed: nanoseconds(about.ctime(), about.ctime_nsec()),
        }
    }
}

/// The stamp of a file and its inode, which tells a file that took another's place.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    stamp: Stamp,
    inode: u64,
}

impl Seen {
    fn of(about: &Metadata) -> Self {
        Self { stamp: Stamp::of(about), inode: about.ino() }
    }
}

/// Why the pieces of a file are not to be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reason {
    /// The file was never examined.
    New,
    /// Another program changed it, or written bytes are lost: pieces that are just being written are concerned, too.
    Changed,
}

/// The result of a comparison.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub(super) enum Check {
    Unchanged,
    /// Another program changed the file. Its pieces are unverified now.
    Changed,
}

/// The expected state of a file.
#[derive(Default)]
struct Expected {
    /// `None` until the file is first examined.
    seen: Option<Seen>,
    /// A window of ours is open.
    changing: bool,
    /// When another program's change was last noticed.
    noticed: Option<Instant>,
}

#[derive(Default)]
struct Slot {
    /// Held during a window. The kernel would let writes to one file wait for each other anyway.
    turn: Mutex<()>,
    expected: Mutex<Expected>,
}

/// The expected stamps of a torrent's files. Allocated for the first file: most torrents are never read.
pub(super) struct Stamps {
    files: usize,
    slots: OnceLock<Box<[Slot]>>,
}

impl Stamps {
    pub fn new(files: usize) -> Self {
        Self { files, slots: OnceLock::new() }
    }

    fn slot(&self, file: FileIndex) -> &Slot {
        // Indexes are of this torrent.
        &self.slots.get_or_init(|| (0..self.files).map(|_| Slot::default()).collect())[file.index()]
    }

    /// Returns the stamp that a file must have; zeros if it was never examined.
    pub fn expected(&self, file: FileIndex) -> Stamp {
        if self.slots.get().is_none() {
            return Stamp::default();
        }
        lock(&self.slot(file).expected).seen.map_or(Stamp::default(), |seen| seen.stamp)
    }

    /// Returns whether no change by another program was noticed for [`SETTLE_TIME`].
    pub fn is_settled(&self, file: FileIndex) -> bool {
        self.slots.get().is_none()
            || lock(&self.slot(file).expected).noticed.is_none_or(|noticed| noticed.elapsed() >= SETTLE_TIME)
    }

    /// Returns whether neither we nor, as far as was noticed, another program has been changing a file for [`SETTLE_TIME`].
    pub fn is_steady(&self, file: FileIndex) -> bool {
        self.is_settled(file) && !lock(&self.slot(file).expected).changing
    }

    /// Records that a file is not to be trusted for [`SETTLE_TIME`].
    pub fn notice(&self, file: FileIndex) {
        lock(&self.slot(file).expected).noticed = Some(Instant::now());
    }

    /// Sets the stamp that a file must have from now on, before any piece of it is hashed.
    pub fn set(&self, file: FileIndex, about: &Metadata) {
        lock(&self.slot(file).expected).seen = Some(Seen::of(about));
    }

    /// Compares a file that was just read, or opened, with its stamp; `now` is its metadata after that. Calls `distrust` if
    /// another program changed it, or with [`Reason::New`] if it was never examined.
    ///
    /// While a window of ours is open there is nothing to compare: the stamp was right when it began.
    pub fn check(
        &self,
        file: FileIndex,
        opened: &File,
        now: &Metadata,
        distrust: impl FnOnce(Reason),
    ) -> io::Result<Check> {
        let slot = self.slot(file);
        let now = Seen::of(now);
        {
            let expected = lock(&slot.expected);
            if expected.changing || expected.seen == Some(now) {
                return Ok(Check::Unchanged);
            }
        }
        // A window of ours may have ended since the file was examined. None opens while the lock is held.
        let mut expected = lock(&slot.expected);
        if expected.changing {
            return Ok(Check::Unchanged);
        }
        Ok(expected.compare(Seen::of(&opened.metadata()?), distrust))
    }

    /// Changes a file of ours in a window. Calls `distrust` if another program changed it before.
    pub fn change<T>(
        &self,
        file: FileIndex,
        opened: &File,
        distrust: impl Fn(Reason),
        change: impl FnOnce(&Metadata) -> io::Result<T>,
    ) -> io::Result<T> {
        let slot = self.slot(file);
        let _turn = lock(&slot.turn);
        let before = opened.metadata()?;
        {
            let mut expected = lock(&slot.expected);
            let _ = expected.compare(Seen::of(&before), &distrust);
            // After the comparison, so that whoever sees the window also sees the distrust.
            expected.changing = true;
        }
        let changed = change(&before);
        let after = opened.metadata();
        let mut expected = lock(&slot.expected);
        expected.changing = false;
        match after {
            Ok(about) => {
                expected.seen = Some(Seen::of(&about));
                changed
            }
            Err(error) => {
                expected.seen = None;
                distrust(Reason::Changed);
                changed.and(Err(error))
            }
        }
    }
}

#[cfg(test)]
impl Stamps {
    /// Lets no window open.
    pub fn pause(&self, file: FileIndex) -> std::sync::MutexGuard<'_, ()> {
        lock(&self.slot(file).turn)
    }
}

impl Expected {
    fn compare(&mut self, now: Seen, distrust: impl FnOnce(Reason)) -> Check {
        match self.seen.replace(now) {
            Some(before) if before == now => Check::Unchanged,
            Some(_) => {
                self.noticed = Some(Instant::now());
                distrust(Reason::Changed);
                Check::Changed
            }
            None => {
                distrust(Reason::New);
                Check::Unchanged
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn changes_of_others_are_told_from_ours() {
        let (stamps, file) = (Stamps::new(2), FileIndex(1));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let ours = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let theirs = File::options().write(true).open(&path).unwrap();
        let distrusted = Cell::new(0);
        let distrust = |_| distrusted.set(distrusted.get() + 1);
        let write = |at| stamps.change(file, &ours, distrust, |_| ours.write_all_at(b"x", at)).unwrap();
        let check = || stamps.check(file, &ours, &ours.metadata().unwrap(), distrust).unwrap();
        assert_eq!(stamps.expected(file), Stamp::default());
        stamps.set(file, &ours.metadata().unwrap());
        for n in 0..1000 {
            write(n);
            assert_eq!(check(), Check::Unchanged);
        }
        assert_eq!((distrusted.get(), stamps.is_settled(file)), (0, true));
        // Every kind of change counts, and each counts once.
        let changes: [&dyn Fn(); 4] = [
            &|| theirs.write_all_at(b"y", 5).unwrap(),
            &|| theirs.set_len(20).unwrap(),
            &|| theirs.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap(),
            &|| std::fs::rename(&path, dir.path().join("other")).unwrap(),
        ];
        for (n, change) in (1..).zip(changes) {
            // Times are only as fine as the clock of older kernels.
            std::thread::sleep(Duration::from_millis(20));
            change();
            assert_eq!((check(), distrusted.get(), check()), (Check::Changed, n, Check::Unchanged));
            assert!(!stamps.is_settled(file) && stamps.is_settled(FileIndex(0)));
        }
        std::thread::sleep(Duration::from_millis(20));
        theirs.write_all_at(b"z", 6).unwrap();
        write(0);
        assert_eq!((distrusted.get(), check()), (5, Check::Unchanged), "a window begins with a look");
        assert_eq!(stamps.expected(file), Stamp::of(&ours.metadata().unwrap()));
    }

    /// A change in the same tick of the clock as ours, without a pause between them.
    #[test]
    fn a_change_right_after_ours_is_seen_where_the_kernel_gives_fine_times() {
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        if (numbers.next(), numbers.next()) < (Some(6), Some(13)) {
            eprintln!("skipped: Linux {} has coarse times", release.trim());
            return;
        }
        let (stamps, file) = (Stamps::new(1), FileIndex(0));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let ours = File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let theirs = File::options().write(true).open(&path).unwrap();
        stamps.set(file, &ours.metadata().unwrap());
        for n in 0..1000 {
            stamps.change(file, &ours, |_| panic!("a change of ours"), |_| ours.write_all_at(b"x", 0)).unwrap();
            theirs.write_all_at(b"y", 0).unwrap();
            let about = ours.metadata().unwrap();
            assert_eq!(stamps.check(file, &ours, &about, |_| ()).unwrap(), Check::Changed, "change {n}");
        }
    }

    #[test]
    fn our_own_writes_never_count_as_changes() {
        let (stamps, index, opened) = (Stamps::new(1), FileIndex(0), tempfile::tempfile().unwrap());
        stamps.set(index, &opened.metadata().unwrap());
        let distrust = |_| panic!("a change of ours");
        std::thread::scope(|scope| {
            let (stamps, opened) = (&stamps, &opened);
            for writer in 0..2u64 {
                scope.spawn(move || {
                    for n in 0..2000u64 {
                        stamps.change(index, opened, distrust, |_| opened.write_all_at(&[1; 99], n * writer)).unwrap();
                    }
                });
            }
            for _ in 0..2 {
                scope.spawn(move || {
                    for _ in 0..5000 {
                        let about = opened.metadata().unwrap();
                        assert_eq!(stamps.check(index, opened, &about, distrust).unwrap(), Check::Unchanged);
                    }
                });
            }
        });
    }
}
