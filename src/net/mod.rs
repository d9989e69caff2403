//! Connections to peers: dumb pipes of messages.
//!
//! Owns sockets: calling ([`Dialer`]) and being called ([`Listener`]) over TCP and uTP, plain or encrypted, on IPv4 and
//! IPv6; the handshakes, reading and writing messages, the rate limits. A connection has two tasks. The reading one
//! stops reading while the driver's inbox is full, so a driver that is behind slows its peers down and never grows a
//! queue; the writing one drains a bounded outbox, and a peer that lets its outbox fill up is dropped. Deliberately
//! ignorant of picking and choking: it does not know what a message means.

mod answer;
mod blocklist;
mod connection;
mod dial;
mod gate;
mod handshake;
mod limit;
mod listen;
mod mse;
mod proxy;
mod stream;
mod tcp;
#[cfg(test)]
mod tests;
mod utp;

use std::io;
use std::sync::Arc;

pub use answer::{Host, Listener};
pub use blocklist::{Blocklist, Ranges, Unread};
pub use connection::{Connection, Incoming, Outbox, OutboxFull};
pub use dial::Dialer;
pub use handshake::{DialError, Encryption, Handshaken};
pub use limit::{Limits, RateLimit};
pub use listen::{PortChoice, Sockets};
pub use mse::MseError;
pub use stream::{Stream, Transport};

use crate::route::Route;

/// How peers are reached, and how they reach us.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where peers call.
    pub port: PortChoice,
    /// Listen on and call from there; through a proxy nobody calls us and there is no uTP, for none carries either.
    pub route: Route,
    /// Whether connections are encrypted.
    pub encryption: Encryption,
    /// uTP beside TCP.
    pub utp: bool,
    /// Who is neither called nor answered. May be replaced while running.
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

impl Config {
    /// Opens the sockets. Must be called within a tokio runtime.
    pub fn open(&self) -> io::Result<(Dialer, Sockets)> {
        let sockets = match self.route.proxy {
            Some(_) => Sockets::none(),
            None => Sockets::open(self.port, &self.route.bind, self.utp)?,
        };
        Ok((Dialer::new(self, sockets.utp.clone()), sockets))
    }
}
