//! The flags of serving a mount over HTTP.

use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;

use crate::cli::failure::{Exit, Failure};
use crate::web::{Http, HttpError};

/// Shortest token, in characters: a shorter one can be guessed.
const MIN_TOKEN: usize = 16;
/// Bytes of a token file that are read: many times the length of any token.
const MAX_TOKEN_FILE: u64 = 4096;

/// Where to serve a mount over HTTP, as given.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct HttpFlags {
    /// Address to serve files, status and API on; a port alone means localhost
    #[arg(long, value_name = "ADDR:PORT", value_parser = http_addr, help_heading = "HTTP")]
    pub(in crate::cli) http: Option<SocketAddr>,

    /// Token that requests must carry, or a path of a file that contains it; needed beyond localhost
    #[arg(long, value_name = "FILE|TOKEN", help_heading = "HTTP")]
    pub(in crate::cli) http_token: Option<String>,
}

impl HttpFlags {
    /// Returns these flags, with those not given taken from `under`.
    pub(in crate::cli) fn over(self, under: Self) -> Self {
        Self { http: self.http.or(under.http), http_token: self.http_token.or(under.http_token) }
    }

    /// Opens the port, if an address is given.
    pub(in crate::cli) fn bind(&self) -> Result<Option<Http>, Failure> {
        let Some(addr) = self.http else {
            // clap cannot check this, because either value may come from the configuration.
            let stray = self.http_token.is_some();
            let message = "--http-token has no effect without --http ADDR:PORT";
            return if stray { Err(Failure::new(Exit::Usage, message)) } else { Ok(None) };
        };
        let token = self.http_token.as_deref().map(token).transpose()?;
        Http::bind(addr, token).map(Some).map_err(|error| {
            let exit = if matches!(error, HttpError::Open(_)) { Exit::Usage } else { Exit::Resource };
            Failure::new(exit, error)
        })
    }
}

/// Parses an address with a port, or a port of this machine.
fn http_addr(text: &str) -> Result<SocketAddr, String> {
    let local = text.strip_prefix("localhost:").unwrap_or(text).parse().map(|port| (Ipv4Addr::LOCALHOST, port).into());
    let addr = local.or_else(|_: std::num::ParseIntError| text.parse());
    addr.map_err(|_| "expected a port or an address with a port, such as 8080 or 127.0.0.1:8080".into())
}

/// Returns the token itself, or the first line of the file that is named.
fn token(given: &str) -> Result<String, Failure> {
    let mut token = given.to_owned();
    if given.contains('/') {
        let mut text = String::new();
        let read = File::open(given).and_then(|file| file.take(MAX_TOKEN_FILE).read_to_string(&mut text));
        read.map_err(|error| Failure::new(Exit::Resource, format!("cannot read the token in {given}: {error}")))?;
        token = text.lines().next().unwrap_or_default().trim().to_owned();
    }
    if token.len() < MIN_TOKEN || !token.chars().all(|c| c.is_ascii_graphic()) {
        let message = format!("an HTTP token needs at least {MIN_TOKEN} printable ASCII characters, without spaces");
        return Err(Failure::new(Exit::Usage, message));
    }
    Ok(token)
}
