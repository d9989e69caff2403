//! The HTTP server of a running mount: API, status page, files and metrics, on a Unix socket and optionally over TCP.
//!
//! | file | owns |
//! |---|---|
//! | `api` | the routes and their description (OpenAPI) |
//! | `files` | `/files/…`: the files of the mount, with range requests, for players and browsers |
//! | `page`, `html` | the status page, and what all pages share |
//! | `metrics` | `/metrics`, for Prometheus |
//! | `guard` | which requests over TCP are allowed |
//! | `json`, `problem` | JSON responses, error responses |
//! | `shared` | the state that handlers share |
//! | `server` | listeners, and serving their connections |
//! | `connections` | how many connections there may be, which is closed for a new one, how much work they may cause |
//! | `body` | bodies of requests and responses, bounded in size, time and memory |
//! | `socket` | the path of a mount's socket, its permissions, and the search for sockets |
//! | `client` | the client side, used by `torrentfs status` and similar commands |
//!
//! Invariants: the Unix socket answers only its owner and root. No request gets a status of 500 or more, and none blocks
//! a torrent's task or a read of the mount. Every connection, header and body is bounded in size and in time, and all of
//! them together in memory. No client can keep others from the status and the orders.
//!
//! [`control`](crate::control) decides the contents of the reports and the effects of orders; this module only carries them.

mod api;
mod body;
pub mod client;
mod connections;
mod files;
mod guard;
mod html;
mod json;
mod metrics;
mod page;
mod problem;
mod server;
mod shared;
pub mod socket;

pub use api::{MAX_UPLOAD, openapi};
pub use problem::Problem;
pub use server::{Http, HttpError, Server};
pub use socket::server_dir;
