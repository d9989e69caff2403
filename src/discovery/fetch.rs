//! A `.torrent` file by its URL.

use std::time::Duration;

use reqwest::Url;

use crate::http::{HttpClient, HttpLimits, Purpose, RequestError};
use crate::metainfo::MAX_TORRENT_LEN;
use crate::util::printable;

/// Why a URL gives no `.torrent` file. One line each; never shows the URL, which may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Not a URL, or one of another kind.
    #[error("this is not an http or https URL")]
    NotAUrl,
    /// The transport's reason.
    #[error("{0}")]
    Http(RequestError),
    /// The server says no.
    #[error("the server answers {0}")]
    Status(String),
    /// Most likely a page to log in or to click on.
    #[error("the server sent a web page, not a .torrent file; give the link of the file itself")]
    WebPage,
}

/// Fetches what a user's URL names, by `client`'s way: bounded in time (1 min) and size, and not yet looked into.
pub async fn fetch_torrent(client: &HttpClient, url: &str) -> Result<Vec<u8>, FetchError> {
    let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let limits = HttpLimits { total: Duration::from_secs(60), body: MAX_TORRENT_LEN, ..HttpLimits::default() };
    let client = client.limited(limits).map_err(FetchError::Http)?;
    let (status, body) = client.get(url.ok_or(FetchError::NotAUrl)?, Purpose::Own).await.map_err(FetchError::Http)?;
    if !status.is_success() {
        return Err(FetchError::Status(printable(status.to_string().as_bytes(), 100)));
    }
    match body.trim_ascii_start().first() {
        Some(b'<') => Err(FetchError::WebPage),
        _ => Ok(body),
    }
}
