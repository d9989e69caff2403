//! What changes something: torrents added and removed, limits, pausing, on demand, priorities, checking.
//!
//! Bodies are small and typed; an unknown field is a mistake that is said, not passed over.

use axum::http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

use super::status::{Priority, RateLimits};
use super::{Mount, Refusal, Shown, observe};
use crate::library::{AddError, RemoveError, Source};
use crate::metainfo::{FileIndex, FileKind, InfoHash, Magnet, Metainfo};
use crate::session::Session;

/// Changes to the rate limits. What is left out stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitChanges {
    /// Bytes a second from peers; 0 or `null`: no limit.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub download: Option<Option<u64>>,
    /// Bytes a second to peers; 0 or `null`: no limit.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub upload: Option<Option<u64>>,
}

/// `null` is said, too.
fn given<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Changes to a torrent. What is left out stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TorrentChanges {
    /// Fetch and give nothing, not even for readers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Fetch only what is read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<bool>,
}

/// How much a file, or all in a directory, is wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PriorityChange {
    /// The file or directory, from the mount's root.
    pub path: String,
    /// What it is from now on.
    pub priority: Priority,
}

/// A torrent to be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTorrent {
    /// A magnet link, an info hash, or the http(s) URL of a .torrent file.
    pub source: String,
}

/// What came of adding a torrent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddedTorrent {
    /// 40 hexadecimal digits.
    pub info_hash: String,
    /// What it is called in the mount.
    pub name: String,
    /// It was there before.
    pub already: bool,
}

/// What came of removing a torrent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovedTorrent {
    /// 40 hexadecimal digits.
    pub info_hash: String,
    /// What it was called in the mount.
    pub name: String,
    /// Files of it are open: it goes on for these, and ends with the last.
    pub in_use: bool,
}

/// How many files an order was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FilesChanged {
    /// Files.
    pub files: usize,
}

/// A rate above every line there is would only make sums overflow.
const MAX_RATE: u64 = 1 << 40;

pub(super) fn limit(session: &Session, changes: LimitChanges) -> Result<RateLimits, Refusal> {
    let LimitChanges { download, upload } = changes;
    let limits = session.limits();
    let given = [(download, &limits.down), (upload, &limits.up)];
    if given.iter().any(|(rate, _)| rate.flatten().is_some_and(|rate| rate > MAX_RATE)) {
        return Err(Refusal::bad(format!("a rate is at most {MAX_RATE} bytes a second")));
    }
    for (rate, limit) in given {
        if let Some(rate) = rate {
            limit.set(rate.unwrap_or(0));
        }
    }
    Ok(observe::limits(session))
}

/// What names a torrent. Never a path: who asks may be elsewhere, and what it names is not theirs.
pub(super) fn source(new: &NewTorrent) -> Result<Source, Refusal> {
    let text = new.source.trim();
    let begins = |scheme: &str| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme));
    if begins("magnet:") {
        return Magnet::parse(text).map(Source::Magnet).map_err(unusable);
    }
    if begins("http://") || begins("https://") {
        return Ok(Source::Url(text.to_owned()));
    }
    let info_hash: InfoHash =
        text.parse().map_err(|()| Refusal::bad("a source is a magnet link, an info hash or an http(s) URL"))?;
    Ok(Source::Magnet(info_hash.into()))
}

pub(super) fn torrent_file(bytes: &[u8]) -> Result<Source, Refusal> {
    Metainfo::parse(bytes).map(|metainfo| Source::Torrent(Box::new(metainfo))).map_err(unusable)
}

fn unusable(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, error)
}

pub(super) async fn add(mount: &Mount, source: &Source) -> Result<AddedTorrent, Refusal> {
    match mount.library.add(source).await {
        Ok(added) => {
            let info_hash = added.info_hash.to_string();
            Ok(AddedTorrent { info_hash, name: added.name, already: added.already })
        }
        Err(AddError::Session(error)) => Err(Refusal::new(StatusCode::CONFLICT, error)),
        Err(error) => Err(unusable(error)),
    }
}

pub(super) async fn remove(mount: &Mount, shown: &Shown, delete: bool) -> Result<RemovedTorrent, Refusal> {
    match mount.library.remove(&shown.info_hash().to_string(), delete).await {
        Ok(removed) => {
            let info_hash = removed.info_hash.to_string();
            Ok(RemovedTorrent { info_hash, name: removed.name, in_use: removed.in_use })
        }
        Err(error @ RemoveError::Unknown(_)) => Err(Refusal::not_found(error)),
        Err(error) => Err(Refusal::new(StatusCode::CONFLICT, error)),
    }
}

pub(super) async fn change(shown: &Shown, changes: TorrentChanges) {
    let TorrentChanges { paused, on_demand } = changes;
    if let Some(on_demand) = on_demand {
        shown.torrent.set_on_demand(on_demand).await;
    }
    if let Some(paused) = paused {
        shown.torrent.set_paused(paused).await;
    }
}

/// The torrent of that info hash.
pub(super) fn find(mount: &Mount, info_hash: &str) -> Result<Shown, Refusal> {
    let wanted: InfoHash = info_hash.parse().map_err(|()| Refusal::bad("an info hash has 40 hexadecimal digits"))?;
    let found = mount.torrents().into_iter().find(|shown| shown.info_hash() == wanted);
    found.ok_or_else(|| Refusal::not_found(format!("there is no torrent {wanted} here")))
}

pub(super) fn prioritize(mount: &Mount, change: &PriorityChange) -> Result<FilesChanged, Refusal> {
    let path: Vec<&str> = change.path.split('/').filter(|part| !part.is_empty()).collect();
    let mut count = 0;
    for shown in mount.torrents() {
        let files = shown.files_below(&path);
        count += files.len();
        if !files.is_empty() {
            shown.torrent.prioritize(files, change.priority.into());
        }
    }
    if count == 0 {
        return Err(Refusal::not_found(format!("there is no file or directory {:?} here", change.path)));
    }
    Ok(FilesChanged { files: count })
}

impl Shown {
    /// Regular files at or below a path from the mount's root.
    pub(super) fn files_below(&self, path: &[&str]) -> Vec<FileIndex> {
        let below = match path {
            [] => path,
            [name, below @ ..] if *name == self.name => below,
            _ => return Vec::new(),
        };
        let layout = &self.torrent.metainfo().layout;
        let files = (0..).map(FileIndex).zip(layout.files());
        files
            .filter(|(_, file)| matches!(file.kind, FileKind::Regular { .. }))
            .filter(|(_, file)| {
                let own = file.path.get(1..).unwrap_or_default();
                own.len() >= below.len() && own.iter().zip(below).all(|(own, wanted)| own == wanted)
            })
            .map(|(index, _)| index)
            .collect()
    }
}
