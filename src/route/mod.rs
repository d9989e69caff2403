//! The route of outgoing traffic: through a proxy, from an address, by an interface.
//!
//! Holds only the user's choice, in one place, so that peers, trackers, web seeds, the DHT and local discovery all use
//! the same route. Opens no sockets itself.

mod bind;
mod proxy;

pub use bind::{BadBind, Bind};
pub use proxy::{BadProxy, Proxy, ProxyKind};

/// The route of all traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Proxy for everything, loopback included. What the proxy cannot carry is not sent.
    pub proxy: Option<Proxy>,
    /// Local address or interface of all sockets.
    pub bind: Bind,
}
