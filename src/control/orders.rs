//! Orders: everything that changes the state of a mount. They add and remove torrents, set limits and priorities,
//! pause and resume, and switch between fetching on demand and fetching everything.
//!
//! Each order is a small type. An unknown field is an error.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::mount::{Mount, MountedTorrent};
use super::observe;
use super::refusal::{Refusal, RefusalKind};
use super::status::{Priority, RateLimits};
use crate::library::{AddError, RemoveError, Source};
use crate::metainfo::{Document, InfoHash, Magnet, unquote};
use crate::session::Session;

/// Changes to the limits. Omitted fields stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitChanges {
    /// Maximum download rate in bytes per second; 0 or `null` for no limit.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub download: Option<Option<u64>>,
    /// Maximum upload rate in bytes per second; 0 or `null` for no limit.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub upload: Option<Option<u64>>,
    /// Maximum number of torrents that download in the background at the same time; 0 or `null` for no limit.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "present")]
    pub active_downloads: Option<Option<usize>>,
}

/// Distinguishes `null` from an omitted field.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Changes to a torrent. Omitted fields stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TorrentChanges {
    /// Stop all transfers, even for blocked reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Fetch only what is read, nothing in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<bool>,
}

/// Priority for a file, or for all files in a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriorityChange {
    /// Path of the file or directory, from the root of the mount.
    pub path: String,
    /// New priority.
    pub priority: Priority,
}

/// A torrent to add.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTorrent {
    /// Magnet link, info hash, or http(s) URL of a .torrent file or of a magnet link.
    pub source: String,
}

/// Result of adding a torrent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddedTorrent {
    /// Info hash, 40 hexadecimal digits.
    pub info_hash: String,
    /// Name in the root of the mount.
    pub name: String,
    /// Whether the mount already had it.
    pub already: bool,
}

/// Result of removing a torrent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovedTorrent {
    /// Info hash, 40 hexadecimal digits.
    pub info_hash: String,
    /// Name that it had in the root of the mount.
    pub name: String,
    /// Whether files of it are open. It is served until the last of them is closed.
    pub in_use: bool,
}

/// Number of files that an order changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FilesChanged {
    /// Number of files.
    pub files: usize,
}

/// Highest rate limit in bytes per second, 1 TiB/s: more than any link, and small enough that sums do not overflow.
const MAX_RATE: u64 = 1 << 40;

/// Changes the limits, and returns the new ones.
pub(crate) fn set_limits(session: &Session, changes: LimitChanges) -> Result<RateLimits, Refusal> {
    let LimitChanges { download, upload, active_downloads } = changes;
    let limits = session.limits();
    let requested = [(download, &limits.down), (upload, &limits.up)];
    if requested.iter().any(|(rate, _)| rate.flatten().is_some_and(|rate| rate > MAX_RATE)) {
        return Err(Refusal::invalid(format!("a rate limit is at most {MAX_RATE} bytes per second")));
    }
    for (rate, limit) in requested {
        if let Some(rate) = rate {
            limit.set(rate.unwrap_or(0));
        }
    }
    if let Some(limit) = active_downloads {
        session.set_active_downloads(limit.filter(|limit| *limit > 0));
    }
    Ok(observe::limits(session))
}

/// Parses the source of a new torrent. Paths are refused: the client may be on another machine, or have fewer
/// permissions than this process.
pub(crate) fn source(new: &NewTorrent) -> Result<Source, Refusal> {
    let text = unquote(&new.source);
    if let Some(magnet) = Magnet::from_text(text) {
        return magnet.map(Source::Magnet).map_err(unusable);
    }
    let begins = |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    if begins("http://") || begins("https://") {
        return Ok(Source::Url(text.to_owned()));
    }
    Err(Refusal::invalid("the source must be a magnet link, an info hash or an http(s) URL"))
}

/// Parses the contents of a `.torrent` file, or of a file that contains a magnet link.
pub(crate) fn torrent_file(bytes: &[u8]) -> Result<Source, Refusal> {
    Document::parse(bytes.to_vec()).map(Source::from).map_err(unusable)
}

fn unusable(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalKind::Unusable, error)
}

/// Adds a torrent to the mount. Waits until its metadata is there.
pub(crate) async fn add(mount: &Mount, source: &Source) -> Result<AddedTorrent, Refusal> {
    match mount.library.add(source).await {
        Ok(added) => {
            let info_hash = added.info_hash.to_string();
            Ok(AddedTorrent { info_hash, name: added.name, already: added.already })
        }
        Err(AddError::Session(error)) => Err(Refusal::new(RefusalKind::Conflict, error)),
        Err(error) => Err(unusable(error)),
    }
}

/// Removes a torrent from the mount; with `delete`, also its cached pieces.
pub(crate) async fn remove(mount: &Mount, mounted: &MountedTorrent, delete: bool) -> Result<RemovedTorrent, Refusal> {
    match mount.library.remove(&mounted.info_hash().to_string(), delete).await {
        Ok(removed) => {
            let info_hash = removed.info_hash.to_string();
            Ok(RemovedTorrent { info_hash, name: removed.name, in_use: removed.in_use })
        }
        Err(error @ RemoveError::Unknown(_)) => Err(Refusal::not_found(error)),
        Err(error) => Err(Refusal::new(RefusalKind::Conflict, error)),
    }
}

/// Pauses or resumes a torrent, and switches fetching on demand.
pub(crate) async fn change(mounted: &MountedTorrent, changes: TorrentChanges) {
    let TorrentChanges { paused, on_demand } = changes;
    if let Some(on_demand) = on_demand {
        mounted.torrent.set_on_demand(on_demand).await;
    }
    if let Some(paused) = paused {
        mounted.torrent.set_paused(paused).await;
    }
}

/// Finds the torrent with an info hash.
pub(crate) fn find(mount: &Mount, info_hash: &str) -> Result<MountedTorrent, Refusal> {
    let wanted: InfoHash =
        info_hash.parse().map_err(|()| Refusal::invalid("an info hash must have 40 hexadecimal digits"))?;
    let found = mount.torrents().into_iter().find(|mounted| mounted.info_hash() == wanted);
    found.ok_or_else(|| Refusal::not_found(format!("this mount has no torrent {wanted}")))
}

/// Sets the priority of a file, or of all files in a directory.
pub(crate) fn prioritize(mount: &Mount, change: &PriorityChange) -> Result<FilesChanged, Refusal> {
    let path: Vec<&str> = change.path.split('/').filter(|part| !part.is_empty()).collect();
    let mut count = 0;
    for mounted in mount.torrents() {
        let files = mounted.files_below(&path);
        count += files.len();
        if !files.is_empty() {
            mounted.torrent.prioritize(files, change.priority.into());
        }
    }
    if count == 0 {
        return Err(Refusal::not_found(format!("this mount has no file or directory {:?}", change.path)));
    }
    Ok(FilesChanged { files: count })
}
