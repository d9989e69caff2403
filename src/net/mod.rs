//! Connections to peers, as pipes of messages.
//!
//! Owns the sockets: dialing ([`Dialer`]) and accepting ([`Listener`]) over TCP and uTP, plain or encrypted, on IPv4
//! and IPv6; the handshakes; reading and writing messages; the rate limits. A connection has two tasks. The reading
//! task stops while the driver's inbox is full, so a slow driver slows its peers down and no queue grows. The writing
//! task drains a bounded outbox; a peer whose outbox fills up is dropped. The module does not know what a message
//! means: picking and choking happen elsewhere.

mod accept;
mod blocklist;
mod config;
mod connection;
mod dial;
mod half_open;
mod handshake;
mod limit;
mod listen;
mod mse;
mod outbox;
mod outgoing;
mod proxy;
mod stream;
mod tcp;
#[cfg(test)]
mod tests;
mod utp;

use std::io;

pub use accept::{Host, Listener};
pub use blocklist::{Blocklist, Ranges, Unread};
pub use config::Config;
pub use connection::{Connection, Incoming};
pub use dial::Dialer;
pub use handshake::{DialError, Encryption, Handshaken};
pub use limit::{Limits, RateLimit};
pub use listen::{PortChoice, Sockets};
pub use mse::MseError;
pub use outbox::{Outbox, OutboxFull};
pub use stream::{Stream, Transport};
pub use utp::Bencoded;

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
