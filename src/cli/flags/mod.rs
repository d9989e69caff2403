//! Groups of flags that several commands share, and the parsers of their values.
//!
//! A group exists twice: `…Flags` is what the user gave, where `None` means "not given" and a later layer may fill in;
//! `…Args` is what it means, with the defaults filled in.

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
