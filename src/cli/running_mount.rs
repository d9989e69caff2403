//! Finding a running mount by a path, and talking to the process that serves it.

use std::path::Path;

use axum::http::Method;

use super::failure::{Exit, Failure};
use crate::control::orders::{LimitChanges, TorrentChanges};
use crate::control::status::{RateLimits, Status, TorrentStatus};
use crate::fs::mountinfo;
use crate::fs::unmount::resolve;
use crate::web::client::{Client, ClientError};
use crate::web::socket;

/// A mount whose control socket this user can reach.
pub(super) struct RunningMount {
    pub(super) client: Client,
    /// Its mountpoint for messages: as the user gave it, or as the mount reports it.
    pub(super) shown: String,
}

/// Finds the mount at a path, or the one that a path lies in.
pub(super) fn find(path: &Path) -> Result<RunningMount, Failure> {
    let shown = path.display().to_string();
    let failure =
        |reason: &dyn std::fmt::Display| Failure::new(Exit::Mountpoint, format!("cannot find mount {shown}: {reason}"));
    let path = resolve(path).map_err(|error| failure(&error))?;
    let mut found = None;
    for ancestor in path.ancestors() {
        found = mountinfo::mount_at(ancestor).map_err(|error| failure(&error))?;
        if found.is_some() {
            break;
        }
    }
    let Some(mount) = found.filter(mountinfo::Mount::is_torrentfs) else {
        return Err(failure(&"it is not a torrentfs mount; `torrentfs status` lists all mounts"));
    };
    let Some(socket) = socket::all().into_iter().find(|socket| socket.device == mount.device) else {
        return Err(failure(&"its control socket is not accessible; run the command as the user who mounted it"));
    };
    Ok(RunningMount { client: Client::new(socket.path), shown })
}

/// Returns every mount that this user can reach, with its status. Ignores sockets of mounts that have ended.
pub(super) async fn all() -> Vec<(RunningMount, Status)> {
    let mut mounts = Vec::new();
    for found in socket::all() {
        let client = Client::new(found.path);
        match client.get::<Status>("/status").await {
            Ok(status) => mounts.push((RunningMount { client, shown: status.mountpoint.clone() }, status)),
            Err(ClientError::Connect(_)) => {}
            Err(error) => tracing::warn!("{}: {error}", client.socket().display()),
        }
    }
    mounts
}

impl RunningMount {
    /// Returns the status of the mount.
    pub(super) async fn status(&self) -> Result<Status, Failure> {
        self.client.get("/status").await.map_err(|error| self.failure(&error))
    }

    /// Returns the torrent with this name or info hash, or all torrents if none is named.
    pub(super) async fn torrents(&self, name: Option<&str>) -> Result<Vec<TorrentStatus>, Failure> {
        let torrents = self.status().await?.torrents;
        let Some(name) = name else { return Ok(torrents) };
        let wanted = name.trim_matches('/');
        let hash = wanted.to_ascii_lowercase();
        match torrents.iter().find(|torrent| torrent.name == wanted || torrent.info_hash == hash) {
            Some(torrent) => Ok(vec![torrent.clone()]),
            None => {
                let names: Vec<&str> = torrents.iter().map(|torrent| torrent.name.as_str()).collect();
                let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
                Err(Failure::new(Exit::Failure, format!("{} has no torrent {name}; it has {names}", self.shown)))
            }
        }
    }

    /// Sends a request to the control API.
    pub(super) async fn send<T: serde::de::DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<T, Failure> {
        self.client.send(method, path, body).await.map_err(|error| self.failure(&error))
    }

    /// Changes the settings of a torrent, and returns its new status.
    pub(super) async fn change(
        &self,
        torrent: &TorrentStatus,
        changes: &TorrentChanges,
    ) -> Result<TorrentStatus, Failure> {
        self.send(Method::PATCH, &format!("/torrents/{}", torrent.info_hash), changes).await
    }

    /// Changes the rate limits, and returns the new ones.
    pub(super) async fn set_limits(&self, changes: &LimitChanges) -> Result<RateLimits, Failure> {
        self.send(Method::PATCH, "/limits", changes).await
    }

    fn failure(&self, error: &ClientError) -> Failure {
        let exit = match error {
            ClientError::Refused(_) => Exit::Failure,
            ClientError::Connect(_) | ClientError::Broken(_) => Exit::Mountpoint,
        };
        Failure::new(exit, format!("{}: {error}", self.shown))
    }
}
