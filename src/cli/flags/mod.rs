//! Groups of flags that several commands share, and the parsers of their values.
//!
//! A group has up to two forms. `…Flags` holds what the user gave: `None` means "not given", so that a lower layer (`-o`,
//! the environment, a file) can fill it in. `…Args` holds what it means, with the defaults filled in.

mod http;
mod log;
mod mount;
mod network;
mod options;
mod torrent;
pub(super) mod values;

pub(super) use http::HttpFlags;
pub(super) use log::LogFormat;
pub(super) use mount::MountFlags;
pub(super) use network::{NetworkArgs, NetworkFlags};
pub(super) use options::{Key, MountOptions, Options, keys, nearest};
pub(super) use torrent::TorrentSelection;

/// Layout of all help pages: clap's own, but with the summary above the description.
pub(super) const HELP_TEMPLATE: &str = "\
{about-with-newline}
{before-help}{usage-heading} {usage}

{all-args}{after-help}";
