//! The start of a torrent's task: everything that it owns, put together.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::{OnceCell, mpsc, watch};

use super::{Driver, Inputs, LOOK, left};
use crate::discovery::Transferred;
use crate::metainfo::Metainfo;
use crate::net::Handshaken;
use crate::session::holepunch::Introductions;
use crate::session::origins::{Origins, PeerSource};
use crate::session::partial::Partials;
use crate::session::reads::Reads;
use crate::session::seeding::Seeding;
use crate::session::shares::{MAX_PARTIAL, MAX_PEERS, Share};
use crate::session::sources::{Finders, Sources};
use crate::session::{Session, SessionError, Torrent, TorrentOptions};
use crate::store::{self, Place, TorrentSpec, TorrentStore};
use crate::swarm::{self, Stats, Swarm};
use crate::webseed::WebSeed;

/// Batches of messages from all peers that may wait for the task; a batch keeps one receive buffer at most, 128 KiB.
const INBOX: usize = 8;

/// What work done elsewhere gives back and may wait for the task.
const DONE: usize = 64;

/// Commands from readers that may wait for the task.
const COMMANDS: usize = 4096;

/// Half-open connections of one torrent.
const MAX_CONNECTING: usize = 16;

/// Opens the torrent's part of the cache and starts its task.
pub(in crate::session) async fn start(
    session: &Session,
    metainfo: Arc<Metainfo>,
    options: TorrentOptions,
    callers: mpsc::Receiver<Box<Handshaken>>,
) -> Result<Arc<Torrent>, SessionError> {
    let (evicted_tx, evicted) = mpsc::unbounded_channel();
    let lengths = *metainfo.layout.lengths();
    let progress = options.progress.map(|tell| {
        let total = lengths.total();
        let bytes = move |done: u32, of: u32| (u128::from(total) * u128::from(done) / u128::from(of.max(1))) as u64;
        let news = move |done: u32, of| match done.checked_sub(1) {
            None => tell.tell(total, 0),
            Some(before) => tell.tell(0, bytes(done, of) - bytes(before, of)),
        };
        Box::new(news) as store::Progress
    });
    // The user's own files: nothing is fetched, for there is nowhere to put it.
    let given = matches!(options.place, Place::Seed(_));
    let spec = TorrentSpec { verify: options.verify, place: options.place, progress, ..TorrentSpec::from(&*metainfo) };
    let cache = session.config.cache.clone();
    let opening = tokio::task::spawn_blocking(move || {
        TorrentStore::open(
            &cache,
            spec,
            Box::new(move |piece| {
                let _ = evicted_tx.send(piece);
            }),
        )
    });
    let store = opening.await.map_err(|_| SessionError::Ending)??;
    let have = store.have();
    if options.whole && !have.is_full() {
        return Err(SessionError::Incomplete(have));
    }

    let transferred = Arc::new(Transferred::default());
    let (finders, found) = Finders::channel();
    let config = swarm::Config {
        lengths,
        seed: rand::random(),
        our_id: session.peer_id,
        info_hash: metainfo.info_hash,
        on_demand: options.on_demand || given,
        upload: session.config.upload,
        super_seed: options.super_seed,
        max_peers: MAX_PEERS,
        max_connecting: MAX_CONNECTING,
        max_partial: MAX_PARTIAL,
        order: swarm::PickOrder::RarestFirst,
        policy: Arc::default(),
    };
    transferred.left.store(left(&store, &metainfo), Ordering::Relaxed);
    let swarm = Swarm::new(config, have, Instant::now());
    let sources = Sources::start(
        session,
        metainfo.info_hash,
        metainfo.trackers.clone(),
        metainfo.private,
        transferred.clone(),
        finders,
    );
    if let Some(dht) = session.dht.as_ref().filter(|_| !metainfo.private) {
        metainfo.nodes.iter().for_each(|(host, port)| dht.add_host(host, *port));
    }

    let (inbox_tx, inbox) = mpsc::channel(INBOX);
    let (done_tx, done) = mpsc::channel(DONE);
    let (commands_tx, commands) = mpsc::channel(COMMANDS);
    let (closed_tx, closed) = watch::channel(false);
    let (stats_tx, stats) = watch::channel(Stats::default());
    let announcer = sources.announcer.clone();
    let seeds = WebSeed::all(&metainfo, session.http());
    let share = Share::new(session.shares.clone());
    let mut driver = Driver {
        swarm,
        cache: session.config.cache.clone(),
        store: store.clone(),
        metainfo: metainfo.clone(),
        ours: session.doors.handshake(metainfo.info_hash),
        port: session.announced.clone(),
        pex: session.config.pex && !metainfo.private,
        upload: session.config.upload,
        given,
        dialer: session.dialer.clone(),
        limits: session.config.limits.clone(),
        dht: session.dht.clone().filter(|_| !metainfo.private),
        sources,
        transferred,
        peers: HashMap::new(),
        next_peer: 0,
        introductions: Introductions::new(Instant::now()),
        origins: Origins::new(),
        web_seeds: seeds.into_iter().map(|seed| (seed.addr(), seed)).collect(),
        seeding: Seeding::new(session.config.seed),
        partials: Partials::new(lengths),
        banned: HashSet::new(),
        working: 0,
        inbox: inbox_tx,
        done: done_tx,
        stats: stats_tx,
        look_at: Instant::now(),
        look: LOOK,
        allowed: share.allowed(Instant::now()),
        share,
    };
    driver.found(options.peers, PeerSource::Manual);
    driver.found(options.found, PeerSource::Magnet);
    // By addresses that stand for no host: the swarm calls them as it calls peers, and backs off alike.
    driver.found(driver.web_seeds.keys().copied().collect(), PeerSource::WebSeed);
    let inputs = Inputs { inbox, done, commands, callers, found, evicted };
    tokio::spawn(async move {
        driver.run(inputs, closed_tx).await;
    });
    Ok(Arc::new(Torrent {
        metainfo,
        store,
        commands: commands_tx,
        stats,
        announcer,
        closed,
        read_timeout: session.config.read_timeout,
        runtime: tokio::runtime::Handle::current(),
        next_id: AtomicU64::new(0),
        stopping: AtomicBool::new(false),
        priorities: Mutex::default(),
        verification: Mutex::default(),
        reads: Reads::default(),
        flowing: OnceCell::new(),
    }))
}
