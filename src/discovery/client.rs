//! One interface to HTTP and UDP trackers.

use std::sync::Arc;

use reqwest::Url;

use super::pace::Pacer;
use super::reply::{self, Reply};
use super::scrape;
use super::udp::{UdpClient, UdpLimits};
use super::url::{Query, TrackerUrl, announce_url};
use super::{Announce, AnnounceError, Scrape};
use crate::http::{Fetched, HttpClient, HttpLimits, Purpose, RequestError};
use crate::metainfo::InfoHash;
use crate::route::Route;

/// Sends announces and scrapes over HTTP, HTTPS and UDP. Cheap to clone; one serves all torrents.
#[derive(Clone, Debug)]
pub struct TrackerClient {
    http: HttpClient,
    /// `None` behind a proxy: the proxies that we support carry no UDP.
    udp: Option<UdpClient>,
    /// Shared by all torrents.
    pub(super) pacer: Arc<Pacer>,
}

impl TrackerClient {
    /// Creates a client with the default limits. Fails if the proxy or the bind address cannot be used.
    pub fn new(route: Route) -> Result<Self, RequestError> {
        HttpClient::with_route(route, HttpLimits::default()).map(Self::from)
    }

    /// Returns the HTTP client, which uses the same route.
    pub fn http(&self) -> &HttpClient {
        &self.http
    }

    /// Returns why this client cannot reach a tracker, if so.
    pub(super) fn unreachable(&self, url: &TrackerUrl) -> Option<AnnounceError> {
        let udp = url.usable().is_ok_and(|url| url.scheme() == "udp");
        (udp && self.udp.is_none()).then_some(AnnounceError::NotThroughProxy)
    }

    pub(super) async fn announce(
        &self,
        url: &Url,
        announce: &Announce,
        query: &Query<'_>,
    ) -> Result<Reply, AnnounceError> {
        if url.scheme() == "udp" {
            return self.udp()?.announce(url, announce, query).await;
        }
        let url = announce_url(url, announce, query);
        let Fetched { status, body, cut } = self.http.fetch(url, Purpose::Announce, reply::is_whole).await?;
        match (reply::parse(&body), cut) {
            // Some trackers send their reason, or even peers, together with an error status. Any other body says less
            // than the status.
            (refused @ Err(AnnounceError::Refused { .. }), _) => refused,
            (Ok(reply), _) if !reply.peers.is_empty() => Ok(reply),
            _ if !status.is_success() => Err(AnnounceError::Status(status.to_string())),
            (Err(_), Some(cut)) => Err(cut.into()),
            (other, _) => other,
        }
    }

    pub(super) async fn scrape(&self, url: &Url, info_hash: InfoHash) -> Result<Scrape, AnnounceError> {
        if url.scheme() == "udp" {
            return self.udp()?.scrape(url, info_hash).await;
        }
        let url = scrape::scrape_url(url, info_hash).ok_or(AnnounceError::NoScrape)?;
        let (status, body) = self.http.get(url, Purpose::Scrape).await?;
        if !status.is_success() {
            return Err(AnnounceError::Status(status.to_string()));
        }
        scrape::parse(&body, info_hash)
    }

    fn udp(&self) -> Result<&UdpClient, AnnounceError> {
        self.udp.as_ref().ok_or(AnnounceError::NotThroughProxy)
    }

    #[cfg(test)]
    pub(super) fn with_udp(http: HttpClient, limits: UdpLimits) -> Self {
        Self { udp: Some(UdpClient::new(http.route().bind.clone(), limits)), http, pacer: Arc::default() }
    }
}

impl From<HttpClient> for TrackerClient {
    /// Creates a client that sends UDP over the same route.
    fn from(http: HttpClient) -> Self {
        let route = http.route();
        let udp = route.proxy.is_none().then(|| UdpClient::new(route.bind.clone(), UdpLimits::default()));
        Self { http, udp, pacer: Arc::default() }
    }
}
