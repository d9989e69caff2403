//! Status reports of a running mount, and the orders it accepts, independent of the protocol that carries them.
//!
//! | file | owns |
//! |---|---|
//! | `mount` | a mount and its torrents, by the names that the mount shows |
//! | `status` | the data types of a report: the vocabulary of the API |
//! | `observe` | builds these from the state of a session |
//! | `orders` | everything that changes the state of a mount |
//! | `refusal` | why an order is refused |
//!
//! Invariant: no report and no order blocks a torrent's task or a read; a torrent whose task is too busy is reported
//! without its peers.
//!
//! This module knows nothing of HTTP (that is `web`), of FUSE or of peer connections: a mount is a
//! [`Library`](crate::library::Library) with a mountpoint.

mod mount;
pub(crate) mod observe;
pub mod orders;
mod refusal;
pub mod status;

pub use mount::Mount;
pub(crate) use mount::MountedTorrent;
pub use refusal::{Refusal, RefusalKind};
