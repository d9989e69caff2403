//! The cache as a whole: its directory, its limits, its maintenance.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::buffer::{BufferPool, PieceBuf};
use super::dir::{make_dir, scan, take_lock};
use super::error::{StoreError, io_error};
use super::files::Handles;
use super::health::{DiskError, DiskState, Health};
use super::heap_trim::HeapTrim;
use super::ledger::{InactiveTorrent, Ledger, Victim, on_disk};
use super::memory::{Lost, Memory};
use super::torrent::{Save, Torrent};
use crate::metainfo::{InfoHash, PieceIndex};
use crate::sys::process::trim_heap;
use crate::util::lock;

/// Between two rounds of the maintenance.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// Pieces that are only in memory, tried in one round at most.
const MAX_RETRIES: usize = 16;
/// Where and how much to cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Made with mode 0700 if it is not there.
    pub dir: PathBuf,
    /// Bytes of pieces on the disk, over all torrents; `None`: no limit.
    pub disk_limit: Option<u64>,
    /// Bytes of pieces in memory, those under way included, over all torrents.
    pub memory: u64,
}

/// What a cache copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of pieces on the disk, torrents that are not in use included.
    pub disk: u64,
    /// As configured.
    pub disk_limit: Option<u64>,
    /// Bytes of pieces in memory.
    pub memory: u64,
    /// As configured.
    pub memory_limit: u64,
    /// Bytes of all buffers in use: the pieces in memory, partial ones, and what is being served.
    pub buffers: u64,
    /// What is wrong with the disk, in message.
    pub fault: Option<String>,
}

/// The piece cache of one directory, shared by all torrents.
///
/// Dropped without [`Cache::close`] it is as after a kill: what is on the disk is hashed again before it is served.
pub struct Cache {
    pub(super) dir: PathBuf,
    disk_limit: Option<u64>,
    pub(super) memory: Memory,
    pub(super) pool: Arc<BufferPool>,
    pub(super) handles: Handles,
    pub(super) health: Health,
    /// Counts uses; see `Pieces::touch`.
    pub(super) clock: AtomicU64,
    /// Keeps no torrents of its own; see [`Cache::open_shared`].
    pub(super) shared: bool,
    pub(super) ledger: Mutex<Ledger>,
    /// Held while a inactive torrent is removed and while one is taken up, so that the two do not meet.
    pub(super) inactive_lock: Mutex<()>,
    /// Dropped, it ends the maintenance.
    maintenance: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
    /// Keeps other processes out for as long as it is open; `None`: they are not in the way.
    lock_file: Mutex<Option<File>>,
}

/// How far a piece may go to find room on the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reserve {
    /// What is free under the limit.
    Free,
    /// And the place of older pieces.
    Evict,
    /// And beyond the limit: it is pinned.
    Insist,
}

impl Cache {
    /// Where it keeps everything. Others may put files of theirs there, by names that are no info hashes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes a directory, made if it is not there, and counts what it copies. Blocking.
    pub fn open(config: CacheConfig) -> Result<Arc<Cache>, StoreError> {
        Self::with_maintenance(Self::open_unmaintained(config)?)
    }

    fn with_maintenance(cache: Arc<Self>) -> Result<Arc<Self>, StoreError> {
        let (stop, stopped) = channel();
        let weak = Arc::downgrade(&cache);
        let maintenance =
            std::thread::Builder::new().name("store".into()).spawn(move || maintenance_loop(&weak, &stopped));
        let maintenance = maintenance.map_err(io_error("start a thread for", &cache.dir))?;
        *lock(&cache.maintenance) = Some((stop, maintenance));
        Ok(cache)
    }

    /// Uses a directory beside others who do, for torrents that lie elsewhere ([`Place`]): nothing is counted, nothing
    /// evicted. Blocking.
    pub fn open_shared(dir: PathBuf, memory: u64) -> Result<Arc<Cache>, StoreError> {
        make_dir(&dir)?;
        Self::with_maintenance(Self::new(dir, None, memory, Ledger::default(), 0, None))
    }

    /// [`Self::open`] without the maintenance: whoever calls this calls [`Self::round`].
    pub(super) fn open_unmaintained(config: CacheConfig) -> Result<Arc<Cache>, StoreError> {
        let CacheConfig { dir, disk_limit, memory } = config;
        make_dir(&dir)?;
        let lock_file = take_lock(&dir)?;
        let (inactive, clock) = scan(&dir)?;
        Ok(Self::new(dir, disk_limit, memory, Ledger::new(inactive), clock, Some(lock_file)))
    }

    fn new(
        dir: PathBuf,
        disk_limit: Option<u64>,
        memory: u64,
        ledger: Ledger,
        clock: u64,
        lock_file: Option<File>,
    ) -> Arc<Self> {
        Arc::new(Self {
            dir,
            disk_limit,
            memory: Memory::new(memory),
            pool: Arc::new(BufferPool::new(memory)),
            handles: Handles::new(),
            health: Health::default(),
            clock: AtomicU64::new(clock.saturating_add(1)),
            shared: lock_file.is_none(),
            ledger: Mutex::new(ledger),
            inactive_lock: Mutex::default(),
            maintenance: Mutex::default(),
            lock_file: Mutex::new(lock_file),
        })
    }

    /// A buffer for a piece. Its content is unspecified until it is written. Pieces in memory that are on the disk, too,
    /// make way for it.
    pub fn buffer(&self, len: usize) -> PieceBuf {
        self.memory.evict_copies(self.pool.excess(len));
        self.pool.buffer(len)
    }

    /// Has the disk keep everything, data and state. Blocking.
    pub fn flush(&self) {
        for torrent in self.torrents() {
            self.ok_or_report(torrent.save(&self.handles, &self.clock, Save::Synced));
        }
    }

    /// Closes every torrent cleanly and ends the maintenance. Blocking; nothing is put or evicted afterwards.
    pub fn close(&self) {
        lock(&self.ledger).closed = true;
        if let Some((stop, maintenance)) = lock(&self.maintenance).take() {
            drop(stop);
            // A maintenance that panicked has said so already; and it may be itself that drops the last handle.
            if maintenance.thread().id() != std::thread::current().id() {
                let _ = maintenance.join();
            }
        }
        for torrent in self.torrents() {
            self.close_torrent(&torrent);
        }
        drop(lock(&self.lock_file).take());
    }

    /// What it copies now.
    pub fn usage(&self) -> Usage {
        Usage {
            disk: lock(&self.ledger).bytes(),
            disk_limit: self.disk_limit,
            memory: self.memory.used(),
            memory_limit: self.memory.limit(),
            buffers: self.pool.in_use(),
            fault: self.health.fault(),
        }
    }

    /// What the disk refused last, if it has not taken anything since.
    pub fn failure(&self) -> Option<String> {
        self.health.cause()
    }

    /// Bytes that can be added to a torrent without evicting a piece of an open one.
    pub(super) fn room(&self, torrent: &Torrent) -> u64 {
        if self.health.fault().is_some() {
            return 0;
        }
        if !torrent.evictable {
            return u64::MAX;
        }
        self.disk_limit.map_or(u64::MAX, |limit| limit.saturating_sub(lock(&self.ledger).active_bytes))
    }

    pub(super) fn torrents(&self) -> Vec<Arc<Torrent>> {
        lock(&self.ledger).torrents.clone()
    }

    /// Reports a failure of the disk, if it is one.
    pub(super) fn ok_or_report<T>(&self, result: Result<T, DiskError>) -> Option<T> {
        result.map_err(|error| self.report(&error)).ok()
    }

    fn report(&self, error: &DiskError) {
        // Without a cache to go on from it is for whoever waits for the files to say so.
        self.health.report_failure(&self.dir, error, Instant::now(), !self.shared);
    }

    pub(super) fn notify_lost(lost: Vec<Lost>) {
        lost.into_iter().for_each(|(pieces, piece)| pieces.notify_evicted(piece));
    }

    /// Brings a piece that is in memory, marked as being written, to the disk if that takes it.
    pub(super) fn write_behind(&self, torrent: &Torrent, piece: PieceIndex, bytes: &[u8], new: bool) -> bool {
        let pinned = torrent.pieces.word(piece).pinned();
        let reserve = match (pinned, new) {
            (true, _) => Reserve::Insist,
            (false, true) => Reserve::Evict,
            (false, false) => Reserve::Free,
        };
        let on_disk = self.try_disk(torrent, piece, bytes, reserve);
        Self::notify_lost(self.memory.finish_write(&torrent.pieces, piece, on_disk));
        on_disk
    }

    fn try_disk(&self, torrent: &Torrent, piece: PieceIndex, bytes: &[u8], reserve: Reserve) -> bool {
        let len = bytes.len() as u64;
        let begun = Instant::now();
        let disk = self.health.state(begun);
        match disk {
            DiskState::Working => {}
            DiskState::Full if reserve == Reserve::Insist => self.evict_bytes(len),
            DiskState::Full | DiskState::Failing => return false,
        }
        if torrent.evictable && !self.reserve(len, reserve) {
            return false;
        }
        let mut written = torrent.write(&self.handles, piece, bytes);
        match &written {
            Ok(_) if disk == DiskState::Working => self.health.report_success(begun),
            Err(error) if disk == DiskState::Working && reserve == Reserve::Insist && error.is_full() => {
                self.report(error);
                self.evict_bytes(len);
                written = torrent.write(&self.handles, piece, bytes);
            }
            _ => {}
        }
        let on_disk = self.ok_or_report(written).unwrap_or(false);
        if !on_disk && torrent.evictable {
            let mut ledger = lock(&self.ledger);
            ledger.active_bytes = ledger.active_bytes.saturating_sub(len);
        }
        on_disk
    }

    /// Counts `len` bytes as used, making room for them as far as allowed. False: there is none.
    fn reserve(&self, len: u64, reserve: Reserve) -> bool {
        let mut victims = Vec::new();
        let reserved = loop {
            let mut ledger = lock(&self.ledger);
            let over = |ledger: &Ledger| self.disk_limit.is_some_and(|limit| ledger.bytes() + len > limit);
            if over(&ledger) && !ledger.inactive.is_empty() {
                drop(ledger);
                self.remove_oldest_inactive();
                continue;
            }
            let hopeless = reserve == Reserve::Evict && self.disk_limit.is_some_and(|limit| len > limit);
            while reserve != Reserve::Free && !hopeless && over(&ledger) {
                match ledger.evict() {
                    Some(victim) => victims.push(victim),
                    None => break,
                }
            }
            let reserved = reserve == Reserve::Insist || !over(&ledger);
            ledger.active_bytes += if reserved { len } else { 0 };
            break reserved;
        };
        self.finish_evictions(victims);
        reserved
    }

    /// Frees about `len` bytes of what was used longest ago.
    fn evict_bytes(&self, len: u64) {
        let mut freed = self.remove_oldest_inactive();
        let mut victims = Vec::new();
        while freed < len {
            let Some((torrent, piece)) = lock(&self.ledger).evict() else { break };
            freed += u64::from(torrent.lengths.len_of(piece));
            victims.push((torrent, piece));
        }
        self.finish_evictions(victims);
    }

    fn finish_evictions(&self, victims: Vec<Victim>) {
        for (torrent, piece) in victims {
            self.ok_or_report(torrent.finish_eviction(&self.handles, &self.memory, piece));
        }
    }

    /// Drops a piece whose bytes on the disk are wrong, gone or unreadable, pinned or not.
    pub(super) fn discard(&self, torrent: &Torrent, piece: PieceIndex) {
        let taken = {
            let mut ledger = lock(&self.ledger);
            let open = ledger.torrents.iter().any(|open| open.pieces.id == torrent.pieces.id);
            open && ledger.take(torrent, piece, on_disk)
        };
        if taken {
            self.ok_or_report(torrent.finish_eviction(&self.handles, &self.memory, piece));
        }
    }

    /// Removes the inactive torrent used longest ago and returns how many bytes it had.
    fn remove_oldest_inactive(&self) -> u64 {
        let _guard = lock(&self.inactive_lock);
        let (info_hash, inactive) = {
            let mut ledger = lock(&self.ledger);
            let Some(oldest) = ledger.oldest_inactive() else { return 0 };
            let Some(inactive) = ledger.inactive.remove(&oldest) else { return 0 };
            (oldest, inactive)
        };
        let home = self.dir.join(info_hash.to_string());
        tracing::info!("dropping {info_hash} from the cache: not in use, and its {} bytes are needed", inactive.bytes);
        self.ok_or_report(fs::remove_dir_all(&home).map_err(DiskError::new("remove", home)));
        inactive.bytes
    }

    /// Deletes what there is of a torrent that nobody has open: its pieces, its state, its kept metadata. Blocking.
    pub fn delete(&self, info_hash: &InfoHash) -> Result<(), StoreError> {
        let _guard = lock(&self.inactive_lock);
        {
            let mut ledger = lock(&self.ledger);
            if ledger.closed {
                return Err(StoreError::Closed);
            }
            if ledger.open_hashes.contains(info_hash) {
                return Err(StoreError::AlreadyOpen(*info_hash));
            }
            ledger.inactive.remove(info_hash);
        }
        self.remove_metainfo(info_hash);
        let home = self.dir.join(info_hash.to_string());
        match fs::remove_dir_all(&home) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", &home)(error)),
            _ => Ok(()),
        }
    }

    /// Syncs and closes one torrent; what it has stays in the directory.
    pub(super) fn close_torrent(&self, torrent: &Torrent) {
        if torrent.begin_close() {
            if let Some(home) = torrent.home.as_ref().filter(|_| torrent.remove_state.load(SeqCst)) {
                if let Err(error) = fs::remove_dir_all(home) {
                    tracing::info!("cannot remove {}: {error}", home.display());
                }
            } else if let Err(error) = torrent.save(&self.handles, &self.clock, Save::Closed) {
                tracing::warn!("{error}; the torrent's pieces will be checked again when it is next used");
                let _ = torrent.save(&self.handles, &self.clock, Save::Hint);
            }
            self.forget(torrent);
        }
    }

    /// Takes a torrent off the books, without I/O.
    pub(super) fn forget(&self, torrent: &Torrent) {
        let last_use = torrent.last_use();
        {
            let mut ledger = lock(&self.ledger);
            let bytes = torrent.bytes_on_disk();
            ledger.open_hashes.remove(&torrent.info_hash);
            ledger.torrents.retain(|other| other.pieces.id != torrent.pieces.id);
            if torrent.evictable {
                ledger.active_bytes = ledger.active_bytes.saturating_sub(bytes);
                ledger.inactive.insert(torrent.info_hash, InactiveTorrent { bytes, last_use });
            }
        }
        drop(lock(&torrent.lock_file).take());
        self.memory.remove_torrent(torrent.pieces.id);
        self.handles.close(torrent.pieces.id);
    }

    /// One round of the maintenance: says what changed, keeps to the limit, tries again what the disk did not take.
    pub(super) fn maintain(&self, now: Instant) {
        for torrent in self.torrents() {
            torrent.start_writeback(&self.handles);
            if self.health.state(now) == DiskState::Working {
                self.ok_or_report(torrent.save_hint(&self.handles, &self.clock, now));
            }
        }
        self.reserve(0, Reserve::Evict);
        if self.memory.memory_only() > 0 && self.health.state(now) == DiskState::Working {
            for (pieces, piece, bytes) in self.memory.claim_memory_only(MAX_RETRIES) {
                match self.torrents().iter().find(|torrent| torrent.pieces.id == pieces.id) {
                    Some(torrent) => self.write_behind(torrent, piece, &bytes, false),
                    None => {
                        Self::notify_lost(self.memory.finish_write(&pieces, piece, false));
                        false
                    }
                };
            }
        }
    }
}

/// The maintenance's life: a round a second until the cache is closed or dropped.
fn maintenance_loop(cache: &Weak<Cache>, stopped: &std::sync::mpsc::Receiver<()>) {
    let mut heap_trim = HeapTrim::default();
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(MAINTENANCE_INTERVAL) {
        let Some(cache) = cache.upgrade() else { break };
        cache.maintain(Instant::now());
        if heap_trim.is_due(cache.pool.total_allocated()) {
            trim_heap();
        }
    }
}
