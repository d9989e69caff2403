//! The flags that `torrentfs mount`, its `-o` and the configuration share, as given.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::http::HttpFlags;
use super::log::LogFormat;
use super::network::NetworkFlags;
use super::values::{Bound, cache_size, memory, patience, truth};

/// What can be said as a flag and as an option of `-o` alike. `None`: not said.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct MountFlags {
    /// Stay in the terminal instead of going to the background
    #[arg(short, long, value_name = "BOOL", value_parser = truth)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(in crate::cli) foreground: Option<bool>,

    /// Fetch only what is read and what will be next; without it, all that fits the cache
    #[arg(long, value_name = "BOOL", value_parser = truth)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(in crate::cli) on_demand: Option<bool>,

    /// A read that gets no data for so long fails with an I/O error; 0: waits for ever [default: 120s]
    #[arg(long, value_name = "TIME", value_parser = patience)]
    pub(in crate::cli) read_timeout: Option<Bound<Duration>>,

    /// Where this mount alone keeps fetched pieces; what is configured, or the default, is shared: see `torrentfs help
    /// config` [default: torrentfs in the user's cache directory]
    #[arg(long, value_name = "DIR", help_heading = "Cache")]
    pub(in crate::cli) cache_dir: Option<PathBuf>,

    /// What the cache may take on disk, all torrents together, or "unlimited"; the least recently used goes first
    /// [default: 20GiB]
    #[arg(long, value_name = "SIZE", value_parser = cache_size, help_heading = "Cache")]
    pub(in crate::cli) cache_size: Option<Bound<u64>>,

    /// What pieces in memory may take, kept or under way; those under way may take 32MiB even if this is less [default:
    /// 32MiB]
    #[arg(long, value_name = "SIZE", value_parser = memory, help_heading = "Cache")]
    pub(in crate::cli) memory: Option<u64>,

    /// Check the hash of every piece found in the cache before it is used
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Cache")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(in crate::cli) verify: Option<bool>,

    /// When a file is removed from a directory SOURCE, delete what is cached of its torrent, too
    #[arg(long, value_name = "BOOL", value_parser = truth, help_heading = "Cache")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(in crate::cli) delete_removed: Option<bool>,

    #[command(flatten)]
    pub(in crate::cli) network: NetworkFlags,

    #[command(flatten)]
    pub(in crate::cli) http: HttpFlags,

    /// The form of the log [default: journald where systemd leads it there, else human]
    #[arg(long, value_name = "human|json|journald", value_parser = LogFormat::parse)]
    pub(in crate::cli) log_format: Option<LogFormat>,
}

impl MountFlags {
    /// These, and what they leave open from `under`.
    pub(in crate::cli) fn over(self, under: Self) -> Self {
        Self {
            foreground: self.foreground.or(under.foreground),
            on_demand: self.on_demand.or(under.on_demand),
            read_timeout: self.read_timeout.or(under.read_timeout),
            cache_dir: self.cache_dir.or(under.cache_dir),
            cache_size: self.cache_size.or(under.cache_size),
            memory: self.memory.or(under.memory),
            verify: self.verify.or(under.verify),
            delete_removed: self.delete_removed.or(under.delete_removed),
            network: self.network.over(under.network),
            http: self.http.over(under.http),
            log_format: self.log_format.or(under.log_format),
        }
    }
}
