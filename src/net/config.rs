//! The configuration of connections.

use std::sync::Arc;

use super::blocklist::Blocklist;
use super::handshake::Encryption;
use super::listen::PortChoice;
use crate::route::Route;

/// Configuration of the dialer and the listener.
#[derive(Clone, Debug)]
pub struct Config {
    /// Port to listen on.
    pub port: PortChoice,
    /// Bind address and proxy. Behind a proxy there is neither a listener nor uTP, because our proxies carry neither.
    pub route: Route,
    /// Whether connections are encrypted.
    pub encryption: Encryption,
    /// Whether to use uTP in addition to TCP.
    pub utp: bool,
    /// Addresses that are neither dialed nor accepted. May be replaced while running.
    pub blocklist: Arc<Blocklist>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            port: PortChoice::default(),
            route: Route::default(),
            encryption: Encryption::default(),
            utp: true,
            blocklist: Arc::default(),
        }
    }
}
