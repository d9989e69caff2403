//! Serving a mount over HTTP: the flags.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;

use clap::Args;

use crate::cli::failure::{Exit, Failure};
use crate::web::{Http, HttpError};

/// A shorter token can be guessed.
const LEAST_TOKEN: usize = 16;
/// A file with a token in it is not longer.
const MAX_TOKEN: u64 = 4096;

/// As given.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub(in crate::cli) struct HttpFlags {
    /// Serve status, orders and the files over HTTP, too; every user of this machine may ask there
    #[arg(long, value_name = "ADDR:PORT", help_heading = "HTTP")]
    pub(in crate::cli) http: Option<SocketAddr>,

    /// What every request must bear: a file that holds it, by a path with a '/', or the token itself (which `ps` shows);
    /// needed where others can reach the address
    #[arg(long, value_name = "FILE|TOKEN", help_heading = "HTTP")]
    pub(in crate::cli) http_token: Option<String>,
}

impl HttpFlags {
    /// These, and what they leave open from `under`.
    pub(in crate::cli) fn over(self, under: Self) -> Self {
        Self { http: self.http.or(under.http), http_token: self.http_token.or(under.http_token) }
    }

    /// Takes the address, if one is asked for.
    pub(in crate::cli) fn bind(&self) -> Result<Option<Http>, Failure> {
        let Some(addr) = self.http else {
            // Not a matter of the parser: either may be configured.
            let stray = self.http_token.is_some();
            let why = "--http-token is of no use without --http, which says where to serve";
            return if stray { Err(Failure::new(Exit::Usage, why)) } else { Ok(None) };
        };
        let token = self.http_token.as_deref().map(token).transpose()?;
        Http::bind(addr, token).map(Some).map_err(|error| {
            let exit = if matches!(error, HttpError::Open(_)) { Exit::Usage } else { Exit::Resource };
            Failure::new(exit, error)
        })
    }
}

/// The token itself, or what is in the file.
fn token(given: &str) -> Result<String, Failure> {
    let mut token = given.to_owned();
    if given.contains('/') {
        let mut text = String::new();
        let read = File::open(given).and_then(|file| file.take(MAX_TOKEN).read_to_string(&mut text));
        read.map_err(|error| Failure::new(Exit::Resource, format!("cannot read the token in {given}: {error}")))?;
        token = text.lines().next().unwrap_or_default().trim().to_owned();
    }
    if token.len() < LEAST_TOKEN || !token.chars().all(|c| c.is_ascii_graphic()) {
        let why = format!("an HTTP token has at least {LEAST_TOKEN} letters, digits or signs, and no space");
        return Err(Failure::new(Exit::Usage, why));
    }
    Ok(token)
}
