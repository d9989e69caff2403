//! From what a torrent is named by to the torrent: what needs the network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{AddError, Source};
use crate::discovery::fetch_torrent;
use crate::metainfo::{Magnet, Metainfo};
use crate::session::{MetadataProgress, Session};
use crate::store::Cache;

/// Names of peers are looked up within this time.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// What it takes to find out about a torrent.
pub struct Resolver<'a> {
    /// Who asks.
    pub session: &'a Session,
    /// Where metadata that was fetched is kept.
    pub cache: &'a Arc<Cache>,
    /// Peers by hand.
    pub peers: &'a [SocketAddr],
    /// How long the metadata of a link is waited for; `None`: for ever.
    pub limit: Option<Duration>,
}

impl Resolver<'_> {
    /// The torrent, and peers found on the way.
    pub async fn resolve(
        &self,
        source: Source,
        progress: &watch::Sender<MetadataProgress>,
    ) -> Result<(Metainfo, Vec<SocketAddr>), AddError> {
        match source {
            Source::Torrent(metainfo) => Ok((*metainfo, Vec::new())),
            Source::Url(url) => {
                let bytes = fetch_torrent(self.session.http(), &url).await?;
                Ok((Metainfo::parse(&bytes)?, Vec::new()))
            }
            Source::Magnet(magnet) => self.of_magnet(&magnet, progress).await,
            Source::Directory(_) => Err(AddError::Directory),
        }
    }

    async fn of_magnet(
        &self,
        magnet: &Magnet,
        progress: &watch::Sender<MetadataProgress>,
    ) -> Result<(Metainfo, Vec<SocketAddr>), AddError> {
        let mut peers = lookup(&magnet.peers).await;
        if let Some(mut metainfo) = kept(self.cache, magnet).await {
            metainfo.adopt(magnet);
            return Ok((metainfo, peers));
        }
        peers.extend(self.peers);
        let limit = self.limit.unwrap_or(Duration::MAX);
        let (metainfo, peers) = self.session.resolve(magnet, peers, limit, progress).await?;
        let (torrent, cache, hash) = (magnet.torrent(&metainfo.info), self.cache.clone(), metainfo.info_hash);
        let kept = tokio::task::spawn_blocking(move || cache.keep_metainfo(&hash, &torrent)).await;
        if let Ok(Err(error)) = kept {
            tracing::warn!("the metadata will have to be fetched again: {error}");
        }
        Ok((metainfo, peers))
    }
}

/// What an earlier mount of the same link fetched.
async fn kept(cache: &Arc<Cache>, magnet: &Magnet) -> Option<Metainfo> {
    let (cache, hash) = (cache.clone(), magnet.info_hash);
    let bytes = tokio::task::spawn_blocking(move || cache.metainfo(&hash)).await.ok()??;
    Metainfo::parse(&bytes).ok().filter(|metainfo| metainfo.info_hash == hash)
}

/// Addresses of peers that a link names.
async fn lookup(peers: &[String]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for peer in peers {
        match tokio::time::timeout(LOOKUP_LIMIT, tokio::net::lookup_host(peer)).await {
            Ok(Ok(addrs)) => found.extend(addrs),
            Ok(Err(error)) => tracing::info!("peer {peer} of the magnet link left out: {error}"),
            Err(_) => tracing::info!("peer {peer} of the magnet link left out: no answer from the name server"),
        }
    }
    found
}
