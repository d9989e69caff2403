//! What a running mount tells of itself, and the orders it takes: HTTP and JSON, through a socket of its user's alone
//! and, if asked for, over TCP.
//!
//! | file | owns |
//! |---|---|
//! | `status` | the words of the API: what is told of a mount, its torrents and their peers |
//! | `observe` | from a session's state to those words |
//! | `api` | the routes and their description (OpenAPI) |
//! | `orders` | what changes something |
//! | `files`, `page`, `metrics` | for players and browsers, for people, for Prometheus |
//! | `guard` | who may ask over TCP |
//! | `server` | connections, bounded in number, size and time |
//! | `socket` | where a mount's socket is, who may use it, how it is found |
//! | `client` | the other end: what `torrentfs status` and its like speak through |
//!
//! Invariants: the socket answers its owner and root alone; whatever is asked is answered with less than 500, and
//! nothing asked holds up the torrent's task or a read; every connection, head and body is bounded in size and in time.
//!
//! It knows nothing of FUSE and of peers' sockets: a mount is a [`Library`] that is somewhere.

mod api;
pub mod client;
mod files;
mod guard;
mod metrics;
mod observe;
pub mod orders;
mod page;
mod server;
pub mod socket;
pub mod status;

use std::path::PathBuf;
use std::sync::Arc;

use axum::http::StatusCode;

pub use api::openapi;
pub use server::{Http, HttpError, Server};
pub use socket::server_dir;

use crate::library::Library;
use crate::metainfo::InfoHash;
use crate::session::Torrent;

/// A mount, as far as it can be asked and ordered.
pub struct Mount {
    /// Where it is, canonical.
    pub mountpoint: PathBuf,
    /// The device number of its filesystem, major and minor; without one it has no socket.
    pub device: Option<(u32, u32)>,
    /// Its torrents.
    pub library: Library,
}

impl Mount {
    /// What it shows.
    fn torrents(&self) -> Vec<Shown> {
        self.library.torrents().into_iter().map(|(name, torrent)| Shown { name, torrent }).collect()
    }
}

/// A torrent and the name that it has in the mount's root.
#[derive(Clone)]
pub struct Shown {
    /// The file's or directory's name.
    pub name: String,
    /// The torrent.
    pub torrent: Arc<Torrent>,
}

impl Shown {
    /// The torrent's name on the network.
    pub fn info_hash(&self) -> InfoHash {
        self.torrent.metainfo().info_hash
    }
}

/// Why something is not done: what the answer's status is and what it says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// 400 to 499.
    pub status: StatusCode,
    /// One line for people.
    pub message: String,
}

impl Refusal {
    /// A refusal in one line, whatever a name in it holds.
    pub fn new(status: StatusCode, message: impl std::fmt::Display) -> Self {
        let message = message.to_string().replace(|c: char| c.is_control(), " ");
        Self { status, message }
    }

    fn bad(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    fn not_found(message: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }
}
