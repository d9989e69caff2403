//! Download of a `.torrent` file by its URL.

use std::time::Duration;

use reqwest::Url;

use crate::http::{HttpClient, HttpLimits, Purpose, RequestError};
use crate::metainfo::{Document, DocumentError, Magnet};
use crate::util::printable;

/// The reason why a URL yields no torrent. One line each, without the URL, which may hold a secret.
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
    /// The answer names no torrent.
    #[error("the server sent something else: {0}")]
    Document(#[from] DocumentError),
}

/// Downloads what is at a URL that the user gave, over `client`'s route: a `.torrent` file, perhaps compressed, or a magnet
/// link, to which the server may also redirect. The request takes at most one minute and the body has at most
/// `max_len` bytes.
pub async fn fetch_torrent(client: &HttpClient, url: &str, max_len: usize) -> Result<Document, FetchError> {
    let url = Url::parse(url).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url.ok_or(FetchError::NotAUrl)?;
    let limits = HttpLimits { total: Duration::from_secs(60), body: max_len, ..HttpLimits::default() };
    let client = client.limited(limits).map_err(FetchError::Http)?;
    // The client asks for gzip. The parser decompresses, too, because some servers send it without saying so.
    let (status, body) = match client.get(url, Purpose::User).await {
        Ok(answer) => answer,
        Err(RequestError::NotHttp(target)) => match Magnet::from_text(&target.0) {
            Some(magnet) => return Ok(Document::Magnet(magnet.map_err(DocumentError::from)?)),
            None => return Err(FetchError::Http(RequestError::NotHttp(target))),
        },
        Err(error) => return Err(FetchError::Http(error)),
    };
    if !status.is_success() {
        return Err(FetchError::Status(printable(status.to_string().as_bytes(), 100)));
    }
    Ok(Document::parse(body)?)
}
