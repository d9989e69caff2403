//! Peer discovery: trackers over HTTP and UDP (BEP 3, 7, 12, 15, 23, 24, 31, 41, 48), the DHT, local discovery.
//!
//! An [`Announcer`] is one torrent's task: it announces our progress to the torrent's trackers and passes on the peer
//! addresses that they return. It decides which tracker to ask and when. It does not know what becomes of an address.
//!
//! - `announce`: the parameters and outcomes of announces.
//! - `url`: tracker URLs and the announce query.
//! - `reply`, `scrape`, `datagram`: decode a tracker's answers and bound what they contain.
//! - `schedule`: tiers, intervals, back-off and events; pure, with time as an argument.
//! - `udp`: requests over UDP; `client`: one interface to UDP and HTTP trackers.
//! - `pace`: spreads the announces of many torrents over time.
//! - `announcer`: the task that combines them. `fetch`: downloads a `.torrent` file.
//! - `dht`, `lsd`: the other two sources of peers, independent of the rest.
//!
//! Invariants: a tracker is asked no sooner than it allows; the announces of many torrents are spread out, except for a
//! torrent that is being read; every request ends in bounded time with a bounded reply; a passkey in a URL is never
//! displayed (`Display` masks it); a failure is logged when it changes, not each time it repeats.

mod announce;
mod announcer;
mod client;
mod datagram;
mod dht;
mod fetch;
#[cfg(fuzzing)]
mod fuzz;
mod lsd;
mod pace;
mod reply;
mod schedule;
mod scrape;
mod udp;
mod url;

pub use announce::{Announce, AnnounceError, AnnouncedPort, Answer, Retry, Scrape, Transferred, Want};
pub use announcer::{Announcer, Scraped};
pub use client::TrackerClient;
pub use dht::{DHT_BOOTSTRAP, Dht, DhtConfig, DhtSearch, DhtStatus};
pub use fetch::{FetchError, fetch_torrent};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use fuzz::{fuzz_counts_and_datagram, fuzz_reply};
pub use lsd::{Lsd, LsdTorrent};
pub use schedule::TrackerStatus;
pub use url::TrackerUrl;

#[cfg(test)]
mod tests;
