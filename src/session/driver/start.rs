//! Builds a torrent's task from the resources of its session, and starts it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use tokio::sync::{mpsc, watch};

use super::maintenance::{FIRST_KEEPING, INTERVAL, bytes_left};
use super::partial::Partials;
use super::{Driver, Inputs};
use crate::discovery::Transferred;
use crate::metainfo::Metainfo;
use crate::session::block_times::BlockTimes;
use crate::session::config::TorrentOptions;
use crate::session::context::Context;
use crate::session::error::SessionError;
use crate::session::reads::Reads;
use crate::session::registry::IncomingConnections;
use crate::session::seeding::Seeding;
use crate::session::shares::{Demand, MAX_PARTIAL, MAX_PEERS, Share};
use crate::session::sources::{Finders, Sources};
use crate::session::torrent::Torrent;
use crate::store::{self, Place, StoreError, TorrentSpec, TorrentStore};
use crate::swarm::{self, PeerSource, Stats, Swarm};
use crate::webseed::WebSeed;

/// Maximum number of batches of messages, from all peers, waiting for the task; a batch keeps at most one receive
/// buffer, 128 KiB.
const INBOX: usize = 8;

/// Maximum number of results of work outside the task waiting for it.
const DONE: usize = 64;

/// Maximum number of commands waiting for the task: some for each read of a busy file server.
const COMMANDS: usize = 4096;

/// Opens the torrent's part of the cache and starts its task.
pub(crate) async fn start(
    context: &Context,
    metainfo: Arc<Metainfo>,
    options: TorrentOptions,
    incoming: IncomingConnections,
) -> Result<Arc<Torrent>, SessionError> {
    let (evicted_tx, evicted) = mpsc::unbounded_channel();
    let lengths = *metainfo.layout.lengths();
    let progress = options.progress.map(|progress| {
        let total = lengths.total();
        let bytes = move |done: u32, of: u32| (u128::from(total) * u128::from(done) / u128::from(of.max(1))) as u64;
        let report = move |done: u32, of| match done.checked_sub(1) {
            None => progress.add(total, 0),
            Some(before) => progress.add(0, bytes(done, of) - bytes(before, of)),
        };
        Box::new(report) as store::Progress
    });
    // The user's own files: nothing is fetched, because nothing may be written.
    let partial_seed = matches!(options.place, Place::Seed(_));
    let spec = TorrentSpec { verify: options.verify, place: options.place, progress, ..TorrentSpec::from(&*metainfo) };
    let (cache, info) = (context.config.cache.clone(), metainfo.info.clone());
    // Of a private torrent only its tracker may name peers (BEP 27).
    let keeps_peers = !metainfo.private;
    let opening = tokio::task::spawn_blocking(move || {
        let evicted = Box::new(move |piece| {
            let _ = evicted_tx.send(piece);
        });
        let store = TorrentStore::open(&cache, spec, evicted)?;
        let kept = if keeps_peers { store.kept_peers() } else { Vec::new() };
        // Most torrents are idle from the start.
        cache.spill(&info);
        Ok::<_, StoreError>((store, kept))
    });
    let (store, kept_peers) = opening.await.map_err(|_| SessionError::Ending)??;
    let have = store.have();
    if options.whole && !have.is_full() {
        return Err(SessionError::Incomplete(have));
    }

    let transferred = Arc::new(Transferred::default());
    let (finders, found) = Finders::channel();
    let config = swarm::Config {
        info_hash: metainfo.info_hash,
        lengths,
        metadata: metainfo.info.clone(),
        seed: rand::random(),
        our_id: context.peer_id,
        on_demand: options.on_demand || partial_seed,
        upload: context.config.upload,
        partial_seed,
        pex: context.config.pex && !metainfo.private,
        super_seed: options.super_seed,
        max_peers: MAX_PEERS,
        max_partial: MAX_PARTIAL,
        order: swarm::PickOrder::RarestFirst,
        policy: Arc::default(),
    };
    let clock = context.clock.clone();
    let left = bytes_left(&store, &metainfo, have.count_ones(..) as u32);
    transferred.left.store(left, Ordering::Relaxed);
    let swarm = Swarm::new(config, have, clock.now());
    let sources = Sources::start(
        context,
        metainfo.info_hash,
        metainfo.trackers.clone(),
        metainfo.private,
        transferred.clone(),
        finders,
    );
    if let Some(dht) = context.dht.as_ref().filter(|_| !metainfo.private) {
        metainfo.nodes.iter().for_each(|(host, port)| dht.add_host(host, *port));
    }

    let (inbox_tx, inbox) = mpsc::channel(INBOX);
    let (done_tx, done) = mpsc::channel(DONE);
    let (commands_tx, commands) = mpsc::channel(COMMANDS);
    let (closed_tx, closed) = watch::channel(false);
    let (stats_tx, stats) = watch::channel(Stats::default());
    let announcer = sources.announcer.clone();
    let web_seeds = WebSeed::all(&metainfo, context.trackers.http());
    let share = Share::new(context.shares.clone(), lengths.full_pieces(1));
    let block_times = Arc::new(BlockTimes::default());
    let mut driver = Driver {
        swarm,
        store: store.clone(),
        metainfo: metainfo.clone(),
        handshake: context.registry.handshake(metainfo.info_hash),
        announced: context.announced.clone(),
        upload: context.config.upload,
        dialer: context.dialer.clone(),
        hurried: watch::Sender::new(false),
        limits: context.config.limits.clone(),
        dht: context.dht.clone().filter(|_| !metainfo.private),
        sources,
        transferred,
        peers: HashMap::new(),
        next_peer: 0,
        unflushed: Vec::new(),
        released: Vec::new(),
        web_seeds: web_seeds.iter().map(|seed| (seed.addr(), seed.clone())).collect(),
        seeding: Seeding::new(context.config.seed),
        keep_peers_due: keeps_peers.then(|| clock.now() + FIRST_KEEPING),
        partials: Partials::new(lengths, context.config.cache.clone(), block_times.clone()),
        banned: HashSet::new(),
        checking: 0,
        loading: false,
        inbox: inbox_tx,
        done: done_tx,
        stats: stats_tx,
        maintenance_due: clock.now(),
        maintenance_interval: INTERVAL,
        allowed: share.allowed(clock.now(), Demand::default()),
        share,
        clock: clock.clone(),
        place: context.queue.enter(options.since.unwrap_or_else(SystemTime::now)),
        has_room: true,
    };
    driver.peers_found(options.peers, PeerSource::Manual);
    driver.peers_found(kept_peers, PeerSource::Remembered);
    driver.peers_found(options.found, PeerSource::Magnet);
    // The swarm dials their placeholder addresses as it dials peers, and waits after failures alike.
    driver.peers_found(web_seeds.iter().map(WebSeed::addr).collect(), PeerSource::WebSeed);
    let mut inputs = Inputs { inbox, done, commands, incoming, found, evicted, sleeps: clock.sleeps() };
    tokio::spawn(async move {
        driver.run(&mut inputs, closed_tx).await;
        // The task's parts of the cache are released before the end is announced.
        drop(driver);
        drop(inputs);
    });
    Ok(Arc::new(Torrent {
        metainfo,
        store,
        commands: commands_tx,
        stats,
        announcer,
        web_seeds,
        closed,
        read_timeout: context.config.read_timeout,
        clock,
        runtime: tokio::runtime::Handle::current(),
        next_id: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        paused: AtomicBool::new(false),
        priorities: Default::default(),
        verifier: Default::default(),
        reads: Reads::default(),
        local_files: Default::default(),
        block_times,
    }))
}
