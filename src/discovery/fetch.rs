//! Download of a `.torrent` file by its URL.

use std::time::Duration;

use reqwest::Url;

use crate::http::{HttpClient, HttpLimits, Purpose, RequestError};
use crate::util::printable;

/// The reason why a URL yields no `.torrent` file. One line each, without the URL, which may hold a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Not a URL, or not an HTTP URL.
    #[error("this is not an http or https URL")]
    NotAUrl,
    /// The request failed.
    #[error("{0}")]
    Http(RequestError),
    /// The server answered with an unsuccessful status.
    #[error("the server answers {0}")]
    Status(String),
    /// The answer is HTML, most likely a login page or a download page.
    #[error("the server sent a web page, not a .torrent file; give the link of the file itself")]
    WebPage,
}

/// Downloads the file at a URL that the user gave, over `client`'s route. The request takes at most one minute and the
/// body has at most `max_len` bytes; its content is not checked.
pub async fn fetch_torrent(client: &HttpClient, url: &str, max_len: usize) -> Result<Vec<u8>, FetchError> {
    let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let limits = HttpLimits { total: Duration::from_secs(60), body: max_len, ..HttpLimits::default() };
    let client = client.limited(limits).map_err(FetchError::Http)?;
    let (status, body) = client.get(url.ok_or(FetchError::NotAUrl)?, Purpose::User).await.map_err(FetchError::Http)?;
    if !status.is_success() {
        return Err(FetchError::Status(printable(status.to_string().as_bytes(), 100)));
    }
    match body.trim_ascii_start().first() {
        Some(b'<') => Err(FetchError::WebPage),
        _ => Ok(body),
    }
}
