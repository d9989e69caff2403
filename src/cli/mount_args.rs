//! Everything that a mount needs to know: flags, `-o` and the configuration merged, defaults filled in.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::cache_dir::CacheDir;
use super::flags::{HttpFlags, LogFormat, MountOptions, NetworkArgs, Options};

/// How long a read may wait without progress.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of all cached torrents on disk.
const CACHE_SIZE: u64 = 20 << 30;
/// Bytes of pieces in memory, those under way included. More makes nothing faster: what was read lately is in the kernel's
/// page cache, too.
const MEMORY: u64 = 32 << 20;

/// What `torrentfs mount` is to do: flags and `-o` in one, defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct MountArgs {
    /// `.torrent` files, URLs, magnet links, info hashes, directories; not yet looked at.
    pub sources: Vec<OsString>,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// Do not become a daemon.
    pub foreground: bool,
    /// No background filling.
    pub on_demand: bool,
    /// How long a read may wait without progress; `None`: for ever.
    pub read_timeout: Option<Duration>,
    /// Where pieces are kept on disk.
    pub cache_dir: CacheDir,
    /// Bytes on disk, all torrents together; `None`: unlimited.
    pub cache_size: Option<u64>,
    /// Bytes of pieces in memory, those under way included.
    pub memory: u64,
    /// Check every cached piece.
    pub verify: bool,
    /// Delete what is cached of a torrent whose file is removed from a watched directory.
    pub delete_removed: bool,
    /// How peers are found and reached.
    pub network: NetworkArgs,
    /// Whether and where it is served over HTTP.
    pub(super) http: HttpFlags,
    /// The form of the log; `None`: whatever fits.
    pub log_format: Option<LogFormat>,
    /// Permissions and owner of the files.
    pub options: MountOptions,
}

impl MountArgs {
    /// Fills in what is `configured`, and the defaults.
    pub(super) fn new(sources: Vec<OsString>, mountpoint: PathBuf, given: Options, configured: Options) -> Self {
        // What is said once for all mounts is not said for one.
        let cache_dir = match &given.flags.cache_dir {
            Some(dir) => CacheDir::Exactly(dir.clone()),
            None => CacheDir::Shared(configured.flags.cache_dir.clone()),
        };
        let Options { flags, mount: options } = given.over(configured);
        Self {
            sources,
            mountpoint,
            foreground: flags.foreground.unwrap_or(false),
            on_demand: flags.on_demand.unwrap_or(false),
            read_timeout: flags.read_timeout.map_or(Some(READ_TIMEOUT), |bound| bound.0),
            cache_dir,
            cache_size: flags.cache_size.map_or(Some(CACHE_SIZE), |bound| bound.0),
            memory: flags.memory.unwrap_or(MEMORY),
            verify: flags.verify.unwrap_or(false),
            delete_removed: flags.delete_removed.unwrap_or(false),
            network: flags.network.into(),
            http: flags.http,
            log_format: flags.log_format,
            options,
        }
    }
}
