//! Bounded HTTP requests to servers that we do not trust.
//!
//! HTTP trackers, web seeds and `.torrent` URLs share one [`HttpClient`] type. It owns the limits of a request (time,
//! bytes, redirects), the proxy or address it leaves from, and the rule that a URL taken from a torrent may not reach
//! into the local network ([`Purpose`], [`GlobalOnly`]). [`Masked`] displays URLs without the secrets in them.
//!
//! | file | owns |
//! |---|---|
//! | `client` | requests and redirects through reqwest |
//! | `tolerant`, `mended` | the same for servers whose answers reqwest refuses |
//! | `body` | bodies: bounded, decompressed |
//! | `reach`, `resolve` | which addresses a URL may reach |
//! | `mask` | URLs without secrets |
//!
//! Invariants: every request ends in bounded time with a bounded body; no error text contains a URL; behind a proxy
//! nothing is sent around it. The module does not know what an answer means.

mod body;
mod client;
#[cfg(fuzzing)]
mod fuzz;
mod mask;
mod mended;
mod reach;
mod resolve;
#[cfg(test)]
pub(crate) mod testing;
mod tolerant;

use std::time::Duration;

pub(crate) use client::describe;
pub use client::{Fetched, HttpClient, HttpLimits};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use fuzz::fuzz_answer;
pub use mask::Masked;
pub(crate) use reach::ip_literal;
pub use reach::{Purpose, may_reach_local, names_local_host};
pub use resolve::GlobalOnly;

/// The reason why a request failed before its answer was complete. One line each, without the URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The URL points into the local network where [`may_reach_local`] forbids it.
    #[error("not asked: a torrent's URLs may not reach into the local network, except for announces")]
    Local,
    /// No connection: refused, unreachable, unknown host, TLS.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The connection broke, or the answer does not follow the protocol.
    #[error("the connection failed: {0}")]
    Transport(String),
    /// The answer was not complete in time.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The answer is longer than the limit, in bytes.
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    /// A redirect to a URL of another scheme. Some sites redirect a download to a magnet link.
    #[error("redirected to a URL that is not HTTP")]
    NotHttp(Elsewhere),
    /// Too many redirects, or one that must not be followed.
    #[error("redirected {0}")]
    Redirect(&'static str),
}

/// The target of a redirect that was not followed. It may hold a secret, so errors do not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Elsewhere(pub String);

impl std::fmt::Debug for Elsewhere {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Elsewhere")
    }
}
