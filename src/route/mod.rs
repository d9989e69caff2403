//! By which way everything leaves this machine: through a proxy, from an address, by an interface.
//!
//! Only what the user asked for, in one place, so that peers, trackers, web seeds, the DHT and local discovery leave by
//! the same way. It opens nothing itself.

mod bind;
mod proxy;

pub use bind::{BadBind, Bind};
pub use proxy::{BadProxy, Proxy, ProxyKind};

/// The way of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Everything goes through it, loopback included; what cannot is not sent.
    pub proxy: Option<Proxy>,
    /// Where it leaves.
    pub bind: Bind,
}
