//! One door to trackers of every kind.

use std::sync::Arc;

use reqwest::Url;

use super::pace::Pace;
use super::reply::{self, Reply};
use super::scrape;
use super::udp::{UdpClient, UdpLimits};
use super::url::{Query, TrackerUrl, announce_url};
use super::{Announce, AnnounceError, Scrape};
use crate::http::{HttpClient, HttpLimits, Purpose, RequestError};
use crate::metainfo::InfoHash;
use crate::route::Route;

/// Asks trackers over HTTP, HTTPS and UDP. Cheap to clone; one serves all torrents.
#[derive(Clone, Debug)]
pub struct TrackerClient {
    http: HttpClient,
    /// `None` behind a proxy: none of ours carries UDP.
    udp: Option<UdpClient>,
    /// Of all torrents.
    pub(super) pace: Arc<Pace>,
}

impl TrackerClient {
    /// A client with the usual limits. Fails if the proxy or the place to bind to cannot be used.
    pub fn new(route: Route) -> Result<Self, RequestError> {
        HttpClient::with_route(route, HttpLimits::default()).map(Self::from)
    }

    /// The same way for other requests over HTTP.
    pub fn http(&self) -> &HttpClient {
        &self.http
    }

    /// Why a tracker cannot be asked by this client, if so.
    pub(super) fn bar(&self, url: &TrackerUrl) -> Option<AnnounceError> {
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
        let (status, body) = self.http.get(announce_url(url, announce, query), Purpose::Announce).await?;
        match reply::parse(&body) {
            // Some trackers give their reason with an error status; any other body of one says less than the status.
            refused @ Err(AnnounceError::Refused { .. }) => refused,
            _ if !status.is_success() => Err(AnnounceError::Status(status.to_string())),
            other => other,
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
        Self { udp: Some(UdpClient::new(http.route().bind.clone(), limits)), http, pace: Arc::default() }
    }
}

impl From<HttpClient> for TrackerClient {
    /// Over UDP by the same route.
    fn from(http: HttpClient) -> Self {
        let route = http.route();
        let udp = route.proxy.is_none().then(|| UdpClient::new(route.bind.clone(), UdpLimits::default()));
        Self { http, udp, pace: Arc::default() }
    }
}
