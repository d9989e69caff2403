//! Where a mount has its cache.
//!
//! A cache has one owner at a time, for it counts and evicts. So what one mount is told goes for it alone, and what is
//! said for all of them is where each finds its own.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use etcetera::BaseStrategy;

use super::failure::{Exit, Failure};
use crate::fs::prepare;
use crate::store::{Cache, StoreError};

/// Where mounts have their caches that did not get the shared directory itself.
const MOUNTS: &str = "mounts";
/// Says for which mount point the shared directory itself was opened last.
const NOTE: &str = "mountpoint";
/// The longest name of a cache: a name has 255 bytes at most.
const MAX_NAME: usize = 200;
/// How long a mount that ended at the same place may still be saving what it knows and telling its trackers.
const LEAVE: Duration = Duration::from_secs(10);
const TRY: Duration = Duration::from_millis(50);

/// Where a mount is to have its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheDir {
    /// In this directory: it was named for this mount.
    Exactly(PathBuf),
    /// In this one, or below it: it stands for every mount. `None`: the default.
    Shared(Option<PathBuf>),
}

impl CacheDir {
    /// Decides, and opens it by `open`. Blocking.
    ///
    /// Of mounts that share a directory the first has it, and each other one a directory below, named after its mount
    /// point, for good: there it finds its pieces again. The cache's lock says who is first.
    pub(super) fn open(
        &self,
        mountpoint: &Path,
        open: impl Fn(&Path) -> Result<Arc<Cache>, StoreError>,
    ) -> Result<Arc<Cache>, Failure> {
        let fault = |error| Failure::new(Exit::Resource, error);
        let base = match self {
            Self::Exactly(dir) => return open(&dir_or_default(Some(dir))?).map_err(fault),
            Self::Shared(dir) => dir_or_default(dir.as_deref())?,
        };
        // One that cannot be mounted on gets no directory.
        let name = name_of(&ready(mountpoint)?);
        let own = base.join(MOUNTS).join(&name);
        if own.is_dir() {
            return patiently(mountpoint, || open(&own));
        }
        let opened = match open(&base) {
            Err(StoreError::InUse { .. }) if noted(&base).as_ref() == Some(&name) => {
                return patiently(mountpoint, || open(&base));
            }
            Err(StoreError::InUse { .. }) => return open(&own).map_err(fault),
            opened => opened.map_err(fault)?,
        };
        // Without the note the next mount at this place would not wait for the end of this one: no reason to fail.
        let _ = fs::write(base.join(NOTE), &name);
        Ok(opened)
    }
}

/// The directory, or the user's default; absolute, for a daemon leaves its working directory.
pub(super) fn dir_or_default(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let dir = match given {
        Some(dir) => dir.to_owned(),
        None => etcetera::choose_base_strategy()
            .map_err(|_| {
                Failure::new(Exit::Resource, "no home directory to keep the cache in; name one with --cache-dir")
            })?
            .cache_dir()
            .join("torrentfs"),
    };
    std::path::absolute(&dir)
        .map_err(|error| Failure::new(Exit::Resource, format!("cannot use cache {}: {error}", dir.display())))
}

/// For which mount point the shared directory itself is, or was, in use.
fn noted(base: &Path) -> Option<String> {
    let mut name = String::new();
    File::open(base.join(NOTE)).ok()?.take(MAX_NAME as u64 + 1).read_to_string(&mut name).ok()?;
    Some(name)
}

/// Whoever has the cache is about to leave it, for nothing is mounted here any more; or to mount here, and then that is
/// the fault.
fn patiently(mountpoint: &Path, open: impl Fn() -> Result<Arc<Cache>, StoreError>) -> Result<Arc<Cache>, Failure> {
    let begin = Instant::now();
    loop {
        match open() {
            Err(StoreError::InUse { .. }) if begin.elapsed() < LEAVE => std::thread::sleep(TRY),
            opened => return opened.map_err(|error| Failure::new(Exit::Resource, error)),
        }
        ready(mountpoint)?;
    }
}

/// The mount point, if it can be mounted on.
fn ready(mountpoint: &Path) -> Result<PathBuf, Failure> {
    prepare(mountpoint).map_err(|error| Failure::new(Exit::Mountpoint, error))
}

/// A name for what belongs to a mount point, as systemd makes them: `/mnt/my film` is `mnt-my\x20film`.
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
    use super::*;
    use crate::store::CacheConfig;

    fn open(dir: &Path) -> Result<Arc<Cache>, StoreError> {
        Cache::open(CacheConfig { dir: dir.to_owned(), disk_limit: None, memory: 1 << 20 })
    }

    #[test]
    fn the_first_has_the_directory_and_each_other_mount_point_one_of_its_own_for_good() {
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
        assert_eq!(at(&b).dir(), own(&b), "where its pieces are, though the other one is free");
        assert_eq!(at(&tmp.join("b/../a")).dir(), base);

        // One after another at different places: all in the same.
        let c = tmp.join("c");
        fs::create_dir(&c).unwrap();
        assert_eq!(at(&c).dir(), base);
        assert!(!own(&a).exists() && !own(&c).exists());
        assert!(CacheDir::Shared(Some(base.clone())).open(&tmp.join("nowhere"), open).is_err());
        assert_eq!(fs::read_dir(base.join("mounts")).unwrap().count(), 1);
    }

    #[test]
    fn a_mount_that_just_ended_at_the_same_place_is_waited_for() {
        let tmp = tempfile::tempdir().unwrap();
        let (base, dir) = (tmp.path().join("base"), CacheDir::Shared(Some(tmp.path().join("base"))));
        let ending = dir.open(tmp.path(), open).unwrap();
        let tried = std::cell::Cell::new(0);
        let again = dir.open(tmp.path(), |dir| {
            tried.set(tried.get() + 1);
            if tried.get() == 3 {
                ending.close();
            }
            open(dir)
        });
        assert_eq!(again.unwrap().dir(), base);
    }

    #[test]
    fn a_directory_named_for_one_mount_is_that_mounts_or_nobodys() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = CacheDir::Exactly(tmp.path().to_owned());
        let first = dir.open("/nowhere".as_ref(), open).unwrap();
        assert_eq!(first.dir(), tmp.path());
        let refused = dir.open(tmp.path(), open).err().unwrap();
        assert_eq!(refused.exit, Exit::Resource);
        assert!(refused.to_string().contains("in use"), "{refused}");
    }

    #[test]
    fn names_are_systemds() {
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
