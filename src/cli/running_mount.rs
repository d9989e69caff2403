//! From a mountpoint to the process that serves it: what every command about a running mount begins with.

use std::path::Path;

use axum::http::Method;

use super::failure::{Exit, Failure};
use crate::control::orders::{LimitChanges, TorrentChanges};
use crate::control::status::{RateLimits, Status, TorrentStatus};
use crate::fs::mountinfo;
use crate::fs::unmount::resolve;
use crate::web::client::{Client, ClientError};
use crate::web::socket;

/// A mount that can be asked.
pub(super) struct RunningMount {
    pub(super) client: Client,
    /// Its mountpoint, as the user named it or as it says.
    pub(super) shown: String,
}

/// The mount at a path, or the one that a path lies in.
pub(super) fn find(path: &Path) -> Result<RunningMount, Failure> {
    let shown = path.display().to_string();
    let failure = |why: &dyn std::fmt::Display| Failure::new(Exit::Mountpoint, format!("cannot ask {shown}: {why}"));
    let path = resolve(path).map_err(|error| failure(&error))?;
    let mut found = None;
    for place in path.ancestors() {
        found = mountinfo::mount_at(place).map_err(|error| failure(&error))?;
        if found.is_some() {
            break;
        }
    }
    let Some(mount) = found.filter(mountinfo::Mount::is_torrentfs) else {
        return Err(failure(&"it is not a torrentfs mount; `torrentfs status` lists them"));
    };
    let sockets = socket::all();
    let Some(socket) = sockets.into_iter().find(|found| found.device == mount.device) else {
        return Err(failure(&"no process of this user answers for it; ask as the user who mounted it"));
    };
    Ok(RunningMount { client: Client::new(socket.path), shown })
}

/// Every mount that this user may ask, with what it says. Sockets that nobody serves any more are passed over.
pub(super) async fn all() -> Vec<(RunningMount, Status)> {
    let mut reached = Vec::new();
    for found in socket::all() {
        let client = Client::new(found.path);
        match client.get::<Status>("/status").await {
            Ok(status) => reached.push((RunningMount { client, shown: status.mountpoint.clone() }, status)),
            Err(ClientError::Connect(_)) => {}
            Err(error) => tracing::warn!("{}: {error}", client.socket().display()),
        }
    }
    reached
}

impl RunningMount {
    /// What it says of itself.
    pub(super) async fn status(&self) -> Result<Status, Failure> {
        self.client.get("/status").await.map_err(|error| self.failure(&error))
    }

    pub(super) fn failure(&self, error: &ClientError) -> Failure {
        let exit = match error {
            ClientError::Refused(_) => Exit::Failure,
            ClientError::Connect(_) | ClientError::Broken(_) => Exit::Mountpoint,
        };
        Failure::new(exit, format!("{}: {error}", self.shown))
    }

    /// Those of its torrents that a name or info hash means: exactly one, or without one all.
    pub(super) async fn torrents(&self, name: Option<&str>) -> Result<Vec<TorrentStatus>, Failure> {
        let torrents = self.status().await?.torrents;
        let Some(name) = name else { return Ok(torrents) };
        let wanted = name.trim_matches('/');
        let hash = wanted.to_ascii_lowercase();
        let of = |torrent: &TorrentStatus| torrent.name == wanted || torrent.info_hash == hash;
        match torrents.iter().find(|torrent| of(torrent)) {
            Some(torrent) => Ok(vec![torrent.clone()]),
            None => {
                let names: Vec<&str> = torrents.iter().map(|torrent| torrent.name.as_str()).collect();
                let there =
                    if names.is_empty() { "it has none".to_owned() } else { format!("it has {}", names.join(", ")) };
                Err(Failure::new(Exit::Failure, format!("{} has no torrent {name}; {there}", self.shown)))
            }
        }
    }

    pub(super) async fn order<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, Failure> {
        self.client.send(method, path, body).await.map_err(|error| self.failure(&error))
    }

    pub(super) async fn change(
        &self,
        torrent: &TorrentStatus,
        changes: &TorrentChanges,
    ) -> Result<TorrentStatus, Failure> {
        self.order(Method::PATCH, &format!("/torrents/{}", torrent.info_hash), changes).await
    }

    /// Changes the rate limits; how they are now.
    pub(super) async fn limit(&self, changes: &LimitChanges) -> Result<RateLimits, Failure> {
        self.order(Method::PATCH, "/limits", changes).await
    }
}
