//! Choosing the cache directory of a mount.
//!
//! A cache has one owner at a time, because the owner counts its bytes and evicts. A directory that is given for one mount
//! is therefore exclusive to it, and a directory for all mounts contains one cache for each.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcetera::BaseStrategy;

use super::failure::{Exit, Failure};
use crate::fs::prepare;
use crate::store::{Cache, StoreError};
use crate::sys;

/// Directory, within the shared one, of the caches of mounts that did not get the shared directory itself.
const MOUNTS: &str = "mounts";
/// File that names the mountpoint for which the shared directory itself was opened last.
const NOTE: &str = "mountpoint";
/// Longest name of a cache directory, in bytes: file names have 255 at most.
const MAX_NAME: usize = 200;
/// How long to wait for an ending mount at the same mountpoint to release its cache. It announces its end to trackers for
/// 2 seconds, and saves its state.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two attempts to open a cache that is in use.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The cache directory that a mount was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheDir {
    /// The directory of this mount alone.
    Exclusive(PathBuf),
    /// A directory that all mounts share; `None`: the default one.
    Shared(Option<PathBuf>),
}

impl CacheDir {
    /// Chooses the directory of a mount's cache, and opens it with `open`. Blocks.
    ///
    /// The first of several mounts that share a directory gets it. Every other mount gets a directory in it, named after its
    /// mountpoint, and the same one again at its next mount, because its pieces are there. The lock of the cache decides
    /// which mount is first.
    pub(super) fn open(
        &self,
        mountpoint: &Path,
        open: impl Fn(&Path) -> Result<Arc<Cache>, StoreError>,
    ) -> Result<Arc<Cache>, Failure> {
        let failure = |error| Failure::new(Exit::Resource, error);
        let base = match self {
            Self::Exclusive(dir) => return open(&dir_or_default(Some(dir))?).map_err(failure),
            Self::Shared(dir) => dir_or_default(dir.as_deref())?,
        };
        // Check the mountpoint first: create no directory for one that cannot be used.
        let name = name_of(&usable(mountpoint)?);
        let own = base.join(MOUNTS).join(&name);
        if own.is_dir() {
            return open_when_released(mountpoint, || open(&own));
        }
        let opened = match open(&base) {
            Err(StoreError::InUse { .. }) if last_user(&base).as_ref() == Some(&name) => {
                return open_when_released(mountpoint, || open(&base));
            }
            Err(StoreError::InUse { .. }) => return open(&own).map_err(failure),
            opened => opened.map_err(failure)?,
        };
        // Without this file, only the next mount at this mountpoint cannot wait for this one to end: ignore an error.
        let _ = sys::file::create_anew(&base.join(NOTE)).and_then(|mut note| note.write_all(name.as_bytes()));
        Ok(opened)
    }
}

/// Returns the given directory or the user's default. It is absolute, because a daemon leaves its working directory.
pub(super) fn dir_or_default(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let dir = match given {
        Some(dir) => dir.to_owned(),
        None => etcetera::choose_base_strategy()
            .map_err(|_| {
                Failure::new(
                    Exit::Resource,
                    "cannot find a home directory for the cache; give a directory with --cache-dir",
                )
            })?
            .cache_dir()
            .join("torrentfs"),
    };
    std::path::absolute(&dir)
        .map_err(|error| Failure::new(Exit::Resource, format!("cannot use the cache {}: {error}", dir.display())))
}

/// Returns the name of the mountpoint that uses the shared directory itself, or used it last.
fn last_user(base: &Path) -> Option<String> {
    let mut name = String::new();
    let note = sys::file::open_regular(&base.join(NOTE), File::options().read(true)).ok()?;
    note.take(MAX_NAME as u64 + 1).read_to_string(&mut name).ok()?;
    Some(name)
}

/// Opens a cache that another mount at the same mountpoint is releasing. That mount has either unmounted already, or it is
/// the reason why the mountpoint cannot be used.
fn open_when_released(
    mountpoint: &Path,
    open: impl Fn() -> Result<Arc<Cache>, StoreError>,
) -> Result<Arc<Cache>, Failure> {
    let begin = Instant::now();
    loop {
        match open() {
            Err(StoreError::InUse { .. }) if begin.elapsed() < RELEASE_TIMEOUT => std::thread::sleep(RETRY_INTERVAL),
            opened => return opened.map_err(|error| Failure::new(Exit::Resource, error)),
        }
        usable(mountpoint)?;
    }
}

/// Returns the resolved mountpoint, if it can be mounted on.
fn usable(mountpoint: &Path) -> Result<PathBuf, Failure> {
    prepare(mountpoint).map_err(|error| Failure::new(Exit::Mountpoint, error))
}

/// Returns a file name for a mountpoint, in the form of systemd's: `/mnt/my film` is `mnt-my\x20film`.
pub(super) fn name_of(path: &Path) -> String {
    let text = path.to_string_lossy();
    let mut name = String::new();
    for byte in text.trim_matches('/').bytes() {
        match byte {
            b'/' => name.push('-'),
            b'.' if name.is_empty() => name.push_str("\\x2e"),
            byte if byte.is_ascii_alphanumeric() || b":_.".contains(&byte) => name.push(byte.into()),
            byte => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    match name.len() {
        0 => "-".to_owned(),
        1..=MAX_NAME => name,
        _ => {
            let hash = crate::metainfo::InfoHash::of(text.as_bytes());
            format!("{}-{hash}", &name[..MAX_NAME - 41])
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::store::CacheConfig;

    fn open(dir: &Path) -> Result<Arc<Cache>, StoreError> {
        Cache::open(CacheConfig { dir: dir.to_owned(), disk_limit: None, memory: 1 << 20 })
    }

    #[test]
    fn the_first_mount_gets_the_directory_and_others_keep_one_of_their_own() {
        let tmp = tempfile::tempdir().unwrap();
        let tmp = tmp.path().canonicalize().unwrap();
        let base = tmp.join("base");
        let [a, b] = ["a", "b"].map(|name| {
            fs::create_dir(tmp.join(name)).unwrap();
            tmp.join(name)
        });
        let own = |mountpoint: &Path| base.join("mounts").join(name_of(mountpoint));
        let at = |mountpoint: &Path| CacheDir::Shared(Some(base.clone())).open(mountpoint, open).unwrap();

        let first = at(&a);
        assert_eq!(first.dir(), base);
        let second = at(&b);
        assert_eq!(second.dir(), own(&b));
        first.close();
        second.close();
        assert_eq!(at(&b).dir(), own(&b), "its pieces are there, although the shared one is free");
        assert_eq!(at(&tmp.join("b/../a")).dir(), base);

        // Mounts that do not overlap all use the shared directory.
        let c = tmp.join("c");
        fs::create_dir(&c).unwrap();
        assert_eq!(at(&c).dir(), base);
        assert!(!own(&a).exists() && !own(&c).exists());
        assert!(CacheDir::Shared(Some(base.clone())).open(&tmp.join("nowhere"), open).is_err());
        assert_eq!(fs::read_dir(base.join("mounts")).unwrap().count(), 1);
    }

    #[test]
    fn an_ending_mount_at_the_same_mountpoint_is_waited_for() {
        let tmp = tempfile::tempdir().unwrap();
        let (base, dir) = (tmp.path().join("base"), CacheDir::Shared(Some(tmp.path().join("base"))));
        let ending = dir.open(tmp.path(), open).unwrap();
        let attempts = std::cell::Cell::new(0);
        let again = dir.open(tmp.path(), |dir| {
            attempts.set(attempts.get() + 1);
            if attempts.get() == 3 {
                ending.close();
            }
            open(dir)
        });
        assert_eq!(again.unwrap().dir(), base);
    }

    #[test]
    fn an_exclusive_directory_that_is_in_use_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = CacheDir::Exclusive(tmp.path().to_owned());
        let first = dir.open("/nowhere".as_ref(), open).unwrap();
        assert_eq!(first.dir(), tmp.path());
        let refused = dir.open(tmp.path(), open).err().unwrap();
        assert_eq!(refused.exit, Exit::Resource);
        assert!(refused.to_string().contains("in use"), "{refused}");
    }

    #[test]
    fn names_are_escaped_as_systemd_does() {
        for (path, name) in [
            ("/mnt/film", "mnt-film"),
            ("/mnt/my film/", r"mnt-my\x20film"),
            ("/.hidden/a-b", r"\x2ehidden-a\x2db"),
            ("/mnt/ü", r"mnt-\xc3\xbc"),
            ("/", "-"),
        ] {
            assert_eq!(name_of(Path::new(path)), name);
        }
        let long = |last: &str| name_of(Path::new(&format!("/{}{last}", "x".repeat(300))));
        assert!(long("a").len() <= MAX_NAME && long("a") != long("b"));
    }
}
