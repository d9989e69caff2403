//! Everything that a mount needs to know: flags, `-o` and the configuration merged, and the defaults filled in.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::cache_dir::CacheDir;
use super::flags::{HttpFlags, LogFormat, MountOptions, NetworkArgs, Options};
use crate::fs;

/// How long a read may wait without receiving data: longer than a swarm takes to recover from a lost peer or a restarted
/// router, and short enough that no program hangs for good.
const READ_TIMEOUT: Duration = Duration::from_secs(120);
/// Bytes of the disk cache, all torrents together: a few films, and little of a usual disk.
const CACHE_SIZE: u64 = 20 << 30;
/// Bytes of pieces in memory, those being fetched included. More makes nothing faster, because the kernel's page cache
/// also holds what was read lately.
const MEMORY: u64 = 32 << 20;

/// The settings of one mount.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct MountArgs {
    /// `.torrent` files, URLs, magnet links, info hashes and directories, not yet opened.
    pub(super) sources: Vec<OsString>,
    pub(super) mountpoint: PathBuf,
    /// Whether to stay in the foreground instead of becoming a daemon.
    pub(super) foreground: bool,
    /// Whether to fetch only what is read.
    pub(super) on_demand: bool,
    /// How long a read may wait without receiving data; `None`: without limit.
    pub(super) read_timeout: Option<Duration>,
    /// Whether the kernel reads complete files itself.
    pub(super) passthrough: bool,
    pub(super) cache_dir: CacheDir,
    /// Bytes on disk, all torrents together; `None`: unlimited.
    pub(super) cache_size: Option<u64>,
    /// Bytes of pieces in memory, those being fetched included.
    pub(super) memory: u64,
    /// Whether to hash every cached piece before mounting.
    pub(super) verify: bool,
    /// Whether to delete the cached data of a torrent whose file is removed from a watched directory.
    pub(super) delete_removed: bool,
    pub(super) network: NetworkArgs,
    pub(super) http: HttpFlags,
    /// `None`: the format that suits the place where the log goes.
    pub(super) log_format: Option<LogFormat>,
    pub(super) options: MountOptions,
}

impl MountArgs {
    /// Returns the options of the FUSE mount.
    pub(super) fn to_fs(&self) -> fs::MountOptions {
        fs::MountOptions { passthrough: self.passthrough, ..self.options.to_fs() }
    }

    /// Fills in what is `configured`, and then the defaults.
    pub(super) fn new(sources: Vec<OsString>, mountpoint: PathBuf, given: Options, configured: Options) -> Self {
        // A configured directory is for all mounts, and one that is given for this mount only.
        let cache_dir = match &given.flags.cache_dir {
            Some(dir) => CacheDir::Exclusive(dir.clone()),
            None => CacheDir::Shared(configured.flags.cache_dir.clone()),
        };
        let Options { flags, mount: options } = given.over(configured);
        Self {
            sources,
            mountpoint,
            foreground: flags.foreground.unwrap_or(false),
            on_demand: flags.on_demand.unwrap_or(false),
            read_timeout: flags.read_timeout.map_or(Some(READ_TIMEOUT), |limit| limit.0),
            passthrough: flags.no_passthrough != Some(true),
            cache_dir,
            cache_size: flags.cache_size.map_or(Some(CACHE_SIZE), |limit| limit.0),
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
