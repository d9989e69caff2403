//! The flags that `torrentfs mount`, its `-o` and the configuration share, as given.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::http::HttpFlags;
use super::log::LogFormat;
use super::network::NetworkFlags;
use super::values::{Limit, boolean, size, size_limit, timeout};

/// Everything that a flag, an option of `-o` and a configuration key can set. `None`: not given.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct MountFlags {
    /// Stay in the foreground; Ctrl-C unmounts
    #[arg(short, long, value_name = "BOOL", value_parser = boolean)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(in crate::cli) foreground: Option<bool>,

    /// Fetch only what is read, and a little ahead of it
    #[arg(long, value_name = "BOOL", value_parser = boolean)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(in crate::cli) on_demand: Option<bool>,

    /// Time without data after which a read fails with an I/O error; 0 for never [default: 120s]
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    pub(in crate::cli) read_timeout: Option<Limit<Duration>>,

    /// Answer every read; do not let the kernel read complete files itself
    #[arg(long, value_name = "BOOL", value_parser = boolean)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(in crate::cli) no_passthrough: Option<bool>,

    /// Log format: human, json or journald [default: journald under systemd, else human]
    #[arg(long, value_name = "FORMAT", value_parser = LogFormat::parse)]
    pub(in crate::cli) log_format: Option<LogFormat>,

    /// Cache directory for this mount alone [default: ~/.cache/torrentfs, shared]
    #[arg(long, value_name = "DIR", help_heading = "Cache")]
    pub(in crate::cli) cache_dir: Option<PathBuf>,

    /// Maximum disk space of the cache, or "unlimited" [default: 20GiB]
    #[arg(long, value_name = "SIZE", value_parser = size_limit, help_heading = "Cache")]
    pub(in crate::cli) cache_size: Option<Limit<u64>>,

    /// Memory for pieces, cached or being fetched [default: 32MiB]
    #[arg(long, value_name = "SIZE", value_parser = size, help_heading = "Cache")]
    pub(in crate::cli) memory: Option<u64>,

    /// Hash all cached pieces before mounting
    #[arg(long, value_name = "BOOL", value_parser = boolean, help_heading = "Cache")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(in crate::cli) verify: Option<bool>,

    /// Delete the cached data of a torrent when its file is removed from a SOURCE directory
    #[arg(long, value_name = "BOOL", value_parser = boolean, help_heading = "Cache")]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(in crate::cli) delete_removed: Option<bool>,

    #[command(flatten)]
    pub(in crate::cli) network: NetworkFlags,

    #[command(flatten)]
    pub(in crate::cli) http: HttpFlags,
}

impl MountFlags {
    /// Returns these flags, with those not given taken from `under`.
    pub(in crate::cli) fn over(self, under: Self) -> Self {
        Self {
            foreground: self.foreground.or(under.foreground),
            on_demand: self.on_demand.or(under.on_demand),
            read_timeout: self.read_timeout.or(under.read_timeout),
            no_passthrough: self.no_passthrough.or(under.no_passthrough),
            log_format: self.log_format.or(under.log_format),
            cache_dir: self.cache_dir.or(under.cache_dir),
            cache_size: self.cache_size.or(under.cache_size),
            memory: self.memory.or(under.memory),
            verify: self.verify.or(under.verify),
            delete_removed: self.delete_removed.or(under.delete_removed),
            network: self.network.over(under.network),
            http: self.http.over(under.http),
        }
    }
}
