//! From what a torrent is named by to the torrent: what needs the network, and the live line meanwhile.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, interval};

use super::Failure;
use super::args::Exit;
use super::engine::refused;
use super::network::NetworkArgs;
use super::source::{Source, fault};
use crate::discovery::fetch_torrent;
use crate::metainfo::{Magnet, Metainfo};
use crate::session::{MetadataError, MetadataProgress, Session};
use crate::store::Cache;

/// Names of peers are looked up within this time.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);
/// Where there is no terminal, a line so often.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The torrent, and peers found on the way. `wanted` is asked now and then: false ends it.
pub(super) async fn resolve(
    source: Source,
    named: &OsStr,
    network: &NetworkArgs,
    session: &Session,
    cache: &Arc<Cache>,
    wanted: &dyn Fn() -> bool,
) -> Result<(Metainfo, Vec<SocketAddr>), Failure> {
    let shown = named.to_string_lossy();
    match source {
        Source::Torrent(metainfo) => Ok((*metainfo, Vec::new())),
        Source::Url(url) => {
            let bytes = fetch_torrent(session.http(), &url).await.map_err(|error| fault(&shown, error))?;
            let metainfo = Metainfo::parse(&bytes).map_err(|error| fault(&shown, error))?;
            Ok((metainfo, Vec::new()))
        }
        Source::Magnet(magnet) => of_magnet(&magnet, &shown, network, session, cache, wanted).await,
    }
}

async fn of_magnet(
    magnet: &Magnet,
    shown: &str,
    network: &NetworkArgs,
    session: &Session,
    cache: &Arc<Cache>,
    wanted: &dyn Fn() -> bool,
) -> Result<(Metainfo, Vec<SocketAddr>), Failure> {
    let mut peers = lookup(&magnet.peers).await;
    if let Some(mut metainfo) = kept(cache, magnet).await {
        metainfo.adopt(magnet);
        return Ok((metainfo, peers));
    }
    peers.extend(&network.peers);
    let limit = network.metadata_timeout.unwrap_or(Duration::MAX);
    let (progress, shown_progress) = watch::channel(MetadataProgress::default());
    let name = magnet.name.clone().unwrap_or_else(|| magnet.info_hash.to_string());
    let resolved = tokio::select! {
        resolved = session.resolve(magnet, peers, limit, &progress) => resolved,
        never = show(&name, shown_progress) => match never {},
        () = unwanted(wanted) => return Err(Failure::new(Exit::Failure, "nobody waits for it any more")),
    };
    clear_line();
    let (metainfo, peers) = resolved.map_err(|error| match error {
        MetadataError::Session(error) => refused(error),
        error => fault(shown, error),
    })?;
    let (torrent, cache, hash) = (magnet.torrent(&metainfo.info), cache.clone(), metainfo.info_hash);
    let kept = tokio::task::spawn_blocking(move || cache.keep_metainfo(&hash, &torrent)).await;
    if let Ok(Err(error)) = kept {
        tracing::warn!("the metadata will have to be fetched again: {error}");
    }
    Ok((metainfo, peers))
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

async fn unwanted(wanted: &dyn Fn() -> bool) {
    let mut now_and_then = interval(Duration::from_millis(200));
    while wanted() {
        now_and_then.tick().await;
    }
}

/// Shows how far it is, for ever: one changing line on a terminal, a line now and then elsewhere.
async fn show(name: &str, mut progress: watch::Receiver<MetadataProgress>) -> Infallible {
    let live = io::stderr().is_terminal();
    let mut said = Instant::now();
    loop {
        let MetadataProgress { found, peers, had, pieces } = *progress.borrow_and_update();
        let pieces = if pieces == 0 { String::new() } else { format!(", {had} of {pieces} pieces") };
        let line = format!("metadata of {name}: {found} peers found, {peers} asked{pieces}");
        if live {
            let _ = write!(io::stderr(), "\r\x1b[K{line}");
        } else if said.elapsed() >= LINE_EVERY {
            said = Instant::now();
            let _ = writeln!(io::stderr(), "{line}");
        }
        tokio::select! {
            // The sender lives as long as this is polled.
            _ = progress.changed() => {}
            () = tokio::time::sleep(LINE_EVERY) => {}
        }
    }
}

fn clear_line() {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}
