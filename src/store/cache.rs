//! The cache as a whole: its limits, its open torrents, and its maintenance.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::buffer::{BufferPool, PieceBuf};
use super::dir::{make_cache_dir, scan};
use super::error::{StoreError, io_error};
use super::files::Handles;
use super::health::{DiskError, DiskState, Health};
use super::heap_trim::HeapTrim;
use super::ledger::{InactiveTorrent, Ledger, Victim, on_disk};
use super::lock::{DirLock, take_lock};
use super::memory::{Lost, Memory};
use super::spill::SpillFile;
use super::torrent::{Save, Torrent};
use crate::metainfo::{InfoHash, PieceIndex, RawInfo};
use crate::sys::process::trim_heap;
use crate::util::lock;

/// Maintenance interval. Short, because writeback and state files are started from it.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);
/// Pieces held only in memory that one round of maintenance tries to write, to bound the time that a round takes.
const MAX_RETRIES: usize = 16;
/// Location and limits of a cache.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// The directory; created with mode 0700 if it does not exist.
    pub dir: PathBuf,
    /// Limit on the bytes of pieces on the disk, over all torrents; `None` for no limit.
    pub disk_limit: Option<u64>,
    /// Limit on the bytes of pieces in memory, including partial ones, over all torrents.
    pub memory: u64,
}

/// Usage of a cache's limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of pieces on the disk, including those of torrents that are not open.
    pub disk: u64,
    /// The configured limit.
    pub disk_limit: Option<u64>,
    /// Bytes of pieces in memory.
    pub memory: u64,
    /// The configured limit.
    pub memory_limit: u64,
    /// Bytes of all buffers in use: pieces in memory, partial pieces, and blocks being served.
    pub buffers: u64,
    /// Message about the present fault of the disk, if there is one.
    pub fault: Option<String>,
}

/// The piece cache of one directory, shared by all torrents.
///
/// If it is dropped without [`Cache::close`], the next start treats it as killed: pieces on the disk are hashed again
/// before they are served.
pub struct Cache {
    pub(super) dir: PathBuf,
    disk_limit: Option<u64>,
    pub(super) memory: Memory,
    pub(super) pool: Arc<BufferPool>,
    pub(super) handles: Handles,
    pub(super) health: Health,
    spill: SpillFile,
    /// Counter of piece uses; see `Pieces::touch`.
    pub(super) clock: AtomicU64,
    /// Whether it stores no torrents of its own; see [`Cache::open_shared`].
    pub(super) shared: bool,
    pub(super) ledger: Mutex<Ledger>,
    /// Held while an inactive torrent is removed and while a torrent is opened, so that the two never overlap.
    pub(super) inactive_lock: Mutex<()>,
    /// The maintenance thread, which ends when the sender is dropped.
    maintenance: Mutex<Option<(Sender<()>, JoinHandle<()>)>>,
    /// Excludes other processes; `None` in a shared cache, and when it is closed.
    pub(super) dir_lock: Mutex<Option<DirLock>>,
}

/// How far to go to find room on the disk for a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Reserve {
    /// Use only what is free under the limit.
    Free,
    /// Also evict older pieces.
    Evict,
    /// Also exceed the limit, because the piece is pinned.
    OverLimit,
}

impl Cache {
    /// Returns the cache directory. Other modules may store files there, under names that are not info hashes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens a directory for this process alone, creates it if needed, and counts its content. Blocking.
    pub fn open(config: CacheConfig) -> Result<Arc<Cache>, StoreError> {
        Self::with_maintenance(Self::open_unmaintained(config)?)
    }

    fn with_maintenance(cache: Arc<Self>) -> Result<Arc<Self>, StoreError> {
        let (stop, stopped) = channel();
        let weak = Arc::downgrade(&cache);
        let maintenance =
            std::thread::Builder::new().name("store".into()).spawn(move || maintenance_loop(&weak, &stopped));
        let maintenance = maintenance.map_err(io_error("start the maintenance thread of", &cache.dir))?;
        *lock(&cache.maintenance) = Some((stop, maintenance));
        Ok(cache)
    }

    /// Opens a directory that other processes use too, for torrents whose files are elsewhere
    /// ([`Place`](super::Place)). Nothing is counted or evicted. Blocking.
    pub fn open_shared(dir: PathBuf, memory: u64) -> Result<Arc<Cache>, StoreError> {
        make_cache_dir(&dir)?;
        Self::with_maintenance(Self::new(dir, None, memory, Ledger::default(), 0, None))
    }

    /// Like [`Self::open`], but without the maintenance thread: the caller calls [`Self::maintain`].
    pub(super) fn open_unmaintained(config: CacheConfig) -> Result<Arc<Cache>, StoreError> {
        let CacheConfig { dir, disk_limit, memory } = config;
        make_cache_dir(&dir)?;
        let dir_lock = take_lock(&dir)?;
        let (inactive, clock) = scan(&dir)?;
        Ok(Self::new(dir, disk_limit, memory, Ledger::new(inactive), clock, Some(dir_lock)))
    }

    fn new(
        dir: PathBuf,
        disk_limit: Option<u64>,
        memory: u64,
        ledger: Ledger,
        clock: u64,
        dir_lock: Option<DirLock>,
    ) -> Arc<Self> {
        Arc::new(Self {
            dir,
            disk_limit,
            memory: Memory::new(memory),
            pool: Arc::new(BufferPool::new(memory)),
            handles: Handles::new(),
            health: Health::default(),
            spill: SpillFile::default(),
            // Pieces that no state knows count as used at `clock + 1`; all of them, so that is not the time of the last use.
            clock: AtomicU64::new(clock.saturating_add(2)),
            shared: dir_lock.is_none(),
            ledger: Mutex::new(ledger),
            inactive_lock: Mutex::default(),
            maintenance: Mutex::default(),
            dir_lock: Mutex::new(dir_lock),
        })
    }

    /// Returns a buffer for a piece, with unspecified content. To make room, it drops pieces from memory that are also
    /// on the disk.
    pub fn buffer(&self, len: usize) -> PieceBuf {
        self.memory.evict_copies(self.pool.excess(len));
        self.pool.buffer(len)
    }

    /// Frees the memory of a torrent's `info` value, which is read back from the disk when it is needed. If the disk does
    /// not take it, it stays in memory. Blocking.
    pub fn spill(&self, info: &RawInfo) {
        if let Err(error) = self.spill.store(&self.dir, info) {
            tracing::debug!("cannot move piece hashes from memory to a file in {}: {error}", self.dir.display());
        }
    }

    /// Syncs the data and state of all torrents to the disk. Blocking.
    pub fn flush(&self) {
        for torrent in self.torrents() {
            self.ok_or_report(torrent.save(&self.handles, &self.clock, Save::Synced));
        }
    }

    /// Closes every torrent cleanly, ends the maintenance thread, and releases the directory, which can be opened again at
    /// once. Nothing is put or evicted afterwards. Blocking.
    pub fn close(&self) {
        lock(&self.ledger).closed = true;
        if let Some((stop, maintenance)) = lock(&self.maintenance).take() {
            drop(stop);
            // A panic of the thread has been reported already. The last handle may also be dropped by that thread
            // itself.
            if maintenance.thread().id() != std::thread::current().id() {
                let _ = maintenance.join();
            }
        }
        for torrent in self.torrents() {
            self.close_torrent(&torrent);
        }
        drop(lock(&self.dir_lock).take());
    }

    /// Returns what the cache holds now.
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

    /// Returns the last error of the disk, if no write has succeeded since.
    pub fn failure(&self) -> Option<String> {
        self.health.cause()
    }

    /// Returns the bytes that can be added to a torrent without evicting a piece of an open one.
    pub(super) fn room(&self, torrent: &Torrent) -> u64 {
        if self.health.has_fault(torrent.pieces.id) {
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

    /// Returns the value, or reports the error.
    pub(super) fn ok_or_report<T>(&self, result: Result<T, DiskError>) -> Option<T> {
        result.map_err(|error| self.report(&error)).ok()
    }

    fn report(&self, error: &DiskError) {
        // A download cannot do without one of its files.
        if error.is_refusal() && !self.shared {
            return self.health.report_refusal(error);
        }
        if self.shared {
            // Downloads cannot continue without the disk, and the command reports that itself.
            return self.health.report_failure(&self.dir, error, Instant::now(), false);
        }
        self.health.report(&self.dir, error, Instant::now());
    }

    pub(super) fn notify_lost(lost: Vec<Lost>) {
        lost.into_iter().for_each(|(pieces, piece)| pieces.notify_evicted(piece));
    }

    /// Writes a piece to the disk, if the disk accepts it. The piece is in memory and marked as being written. Returns
    /// whether it is on the disk.
    pub(super) fn write_behind(&self, torrent: &Torrent, piece: PieceIndex, bytes: &[u8], new: bool) -> bool {
        let pinned = torrent.pieces.word(piece).pinned();
        let reserve = match (pinned, new) {
            (true, _) => Reserve::OverLimit,
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
            DiskState::Full if reserve == Reserve::OverLimit => self.evict_bytes(len),
            DiskState::Full | DiskState::Failing => return false,
        }
        let files = || torrent.files.of_piece(piece);
        if self.health.is_failing(begun, torrent.pieces.id, files()) {
            return false;
        }
        if torrent.evictable && !self.reserve(len, reserve) {
            return false;
        }
        let mut written = torrent.write(&self.handles, piece, bytes);
        match &written {
            Ok(_) if disk == DiskState::Working => self.health.report_success(begun),
            Err(error) if disk == DiskState::Working && reserve == Reserve::OverLimit && error.can_make_room() => {
                self.report(error);
                self.evict_bytes(len);
                written = torrent.write(&self.handles, piece, bytes);
            }
            _ => {}
        }
        if written.is_ok() {
            self.health.report_files_success(begun, torrent.pieces.id, files());
        }
        let on_disk = self.ok_or_report(written).unwrap_or(false);
        if !on_disk && torrent.evictable {
            let mut ledger = lock(&self.ledger);
            ledger.active_bytes = ledger.active_bytes.saturating_sub(len);
        }
        on_disk
    }

    /// Counts `len` bytes as used, and makes room for them as far as `reserve` allows. Returns false if there is no
    /// room.
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
            let reserved = reserve == Reserve::OverLimit || !over(&ledger);
            ledger.active_bytes += if reserved { len } else { 0 };
            break reserved;
        };
        self.finish_evictions(victims);
        reserved
    }

    /// Evicts about `len` bytes of the least recently used pieces.
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

    /// Drops a piece, pinned or not, whose bytes on the disk are wrong, missing or unreadable.
    pub(super) fn discard(&self, torrent: &Torrent, piece: PieceIndex) {
        let begun = {
            let mut ledger = lock(&self.ledger);
            let open = ledger.torrents.iter().any(|open| open.pieces.id == torrent.pieces.id);
            open && ledger.begin_eviction(torrent, piece, on_disk)
        };
        if begun {
            self.ok_or_report(torrent.finish_eviction(&self.handles, &self.memory, piece));
        }
    }

    /// Removes the least recently used inactive torrent. Returns the bytes that it had.
    fn remove_oldest_inactive(&self) -> u64 {
        let _guard = lock(&self.inactive_lock);
        let (info_hash, inactive) = {
            let mut ledger = lock(&self.ledger);
            let Some(oldest) = ledger.oldest_inactive() else { return 0 };
            let Some(inactive) = ledger.inactive.remove(&oldest) else { return 0 };
            (oldest, inactive)
        };
        let torrent_dir = self.dir.join(info_hash.to_string());
        tracing::info!(
            "removed torrent {info_hash}, which is not open, from the cache to free {} bytes",
            inactive.bytes
        );
        self.ok_or_report(fs::remove_dir_all(&torrent_dir).map_err(DiskError::new("remove", torrent_dir)));
        inactive.bytes
    }

    /// Deletes everything stored for a torrent that is not open: its pieces, its state, its metainfo. Blocking.
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
        let torrent_dir = self.dir.join(info_hash.to_string());
        match fs::remove_dir_all(&torrent_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", &torrent_dir)(error)),
            _ => Ok(()),
        }
    }

    /// Syncs and closes one torrent. Its pieces stay in the directory.
    pub(super) fn close_torrent(&self, torrent: &Torrent) {
        if torrent.begin_close() {
            if let Some(torrent_dir) = torrent.torrent_dir.as_ref().filter(|_| torrent.remove_state.load(SeqCst)) {
                if let Err(error) = fs::remove_dir_all(torrent_dir) {
                    tracing::info!("cannot remove the state in {}: {error}", torrent_dir.display());
                }
            } else if let Err(error) = torrent.save(&self.handles, &self.clock, Save::Closed) {
                tracing::warn!("{error}; the torrent's pieces will be hashed again before they are next served");
                let _ = torrent.save(&self.handles, &self.clock, Save::Hint);
            }
            self.forget(torrent);
        }
    }

    /// Removes a closed torrent from the ledger, without I/O.
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
        drop(lock(&torrent.dir_lock).take());
        self.memory.remove_torrent(torrent.pieces.id);
        self.handles.close(torrent.pieces.id);
        self.health.forget(torrent.pieces.id);
    }

    /// Runs one round of maintenance: writes changed state, enforces the limit, and retries failed writes.
    pub(super) fn maintain(&self, now: Instant) {
        let needs_maintenance = |torrent: &&Arc<Torrent>| torrent.needs_maintenance();
        let torrents: Vec<_> = lock(&self.ledger).torrents.iter().filter(needs_maintenance).cloned().collect();
        for torrent in torrents {
            self.ok_or_report(torrent.start_writeback(&self.handles));
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

/// Runs maintenance every second until the cache is closed or dropped.
fn maintenance_loop(cache: &Weak<Cache>, stopped: &std::sync::mpsc::Receiver<()>) {
    let mut heap_trim = HeapTrim::default();
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(MAINTENANCE_INTERVAL) {
        let Some(cache) = cache.upgrade() else { break };
        cache.maintain(Instant::now());
        if heap_trim.record_round(cache.pool.total_allocated()) {
            trim_heap();
        }
    }
}
