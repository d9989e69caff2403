//! Fetching the metainfo of a source from the network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::source::Source;
use crate::discovery::{FetchError, fetch_torrent};
use crate::metainfo::{Document, Magnet, Metainfo};
use crate::session::{MetadataError, MetadataProgress, Session, SessionError};
use crate::store::Cache;

/// Time limit for looking up the host name of one peer; name servers answer within a second or not at all.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// Longest `.torrent` file that is fetched, in bytes. Servers are strangers; larger files can be added from the disk.
const MAX_FETCHED_LEN: usize = 16 << 20;
/// Permits for fetching `.torrent` files, two at the same time, of the whole process: they bound its memory. Parsing one
/// takes three times its size.
static FETCHES: Semaphore = Semaphore::const_new(2);

/// An error of adding a torrent. The message is one line, without the source.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// The URL cannot be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The metadata cannot be fetched from peers.
    #[error(transparent)]
    Metadata(MetadataError),
    /// The session or the cache failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A directory holds many torrents: it is watched, not added.
    #[error("a directory cannot be added to a running mount, only mounted")]
    Directory,
}

impl From<MetadataError> for AddError {
    fn from(error: MetadataError) -> Self {
        match error {
            MetadataError::Session(error) => Self::Session(error),
            error => Self::Metadata(error),
        }
    }
}

/// Fetches metainfo.
pub struct Resolver<'a> {
    /// Session that connects to peers and servers.
    pub session: &'a Session,
    /// Cache that keeps fetched metadata.
    pub cache: &'a Arc<Cache>,
    /// Peers given by the user.
    pub peers: &'a [SocketAddr],
    /// Time limit for fetching the metadata of a magnet link; `None` means no limit.
    pub limit: Option<Duration>,
}

impl Resolver<'_> {
    /// Returns the metainfo of a source, and the peers found on the way.
    pub async fn resolve(
        &self,
        source: Source,
        progress: &watch::Sender<MetadataProgress>,
    ) -> Result<(Metainfo, Vec<SocketAddr>), AddError> {
        match source {
            Source::Torrent(metainfo) => Ok((*metainfo, Vec::new())),
            Source::Url(url) => {
                let document = {
                    // The semaphore is never closed. The permit is held until the body is parsed.
                    let _permit = FETCHES.acquire().await;
                    fetch_torrent(self.session.http(), &url, MAX_FETCHED_LEN).await?
                };
                match document {
                    Document::Torrent(metainfo) => Ok((*metainfo, Vec::new())),
                    Document::Magnet(magnet) => self.resolve_magnet(&magnet, progress).await,
                }
            }
            Source::Magnet(magnet) => self.resolve_magnet(&magnet, progress).await,
            Source::Directory(_) => Err(AddError::Directory),
        }
    }

    async fn resolve_magnet(
        &self,
        magnet: &Magnet,
        progress: &watch::Sender<MetadataProgress>,
    ) -> Result<(Metainfo, Vec<SocketAddr>), AddError> {
        let mut peers = lookup(&magnet.peers).await;
        if let Some(mut metainfo) = cached_metainfo(self.cache, magnet).await {
            metainfo.merge(magnet);
            return Ok((metainfo, peers));
        }
        peers.extend(self.peers);
        let limit = self.limit.unwrap_or(Duration::MAX);
        let (metainfo, peers) = self.session.resolve(magnet, peers, limit, progress).await?;
        let (info, magnet, cache) = (metainfo.info.clone(), magnet.clone(), self.cache.clone());
        let saved = tokio::task::spawn_blocking(move || {
            // It has just arrived, and so is in memory.
            let torrent = magnet.torrent(&info.resident().unwrap_or_default());
            cache.keep_metainfo(&info.info_hash(), &torrent)
        });
        let saved = saved.await;
        if let Ok(Err(error)) = saved {
            tracing::warn!("cannot save the metadata, the next mount must fetch it again: {error}");
        }
        Ok((metainfo, peers))
    }
}

/// Returns the metainfo that an earlier mount of the same link has fetched.
async fn cached_metainfo(cache: &Arc<Cache>, magnet: &Magnet) -> Option<Metainfo> {
    let (cache, hash) = (cache.clone(), magnet.info_hash);
    let bytes = tokio::task::spawn_blocking(move || cache.metainfo(&hash)).await.ok()??;
    Metainfo::parse_owned(bytes.into()).ok().filter(|metainfo| metainfo.info_hash == hash)
}

/// Returns the addresses of the peers of a magnet link.
async fn lookup(peers: &[String]) -> Vec<SocketAddr> {
    let mut found = Vec::new();
    for peer in peers {
        match tokio::time::timeout(LOOKUP_LIMIT, tokio::net::lookup_host(peer)).await {
            Ok(Ok(addrs)) => found.extend(addrs),
            Ok(Err(error)) => tracing::info!("ignoring peer {peer} of the magnet link: {error}"),
            Err(_) => tracing::info!("ignoring peer {peer} of the magnet link: the name server does not answer"),
        }
    }
    found
}
