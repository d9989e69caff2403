//! Opening a torrent: which pieces it already has, and which of them must be hashed first.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::{fs, io, thread};

use fixedbitset::FixedBitSet;

use super::cache::Cache;
use super::dir::make_own_dir;
use super::download;
use super::error::{StoreError, io_error};
use super::files::Files;
use super::lock::take_lock;
use super::pieces::{Pieces, State};
use super::place::{Place, Root};
use super::recover::{DataOnDisk, Extent};
use super::spec::{EvictionSink, Progress, TorrentSpec};
use super::stamps::Stamp;
use super::state::Saved;
use super::torrent::{Save, Torrent};
use crate::metainfo::{File, FileIndex, Lengths, PieceIndex};
use crate::util::lock;

/// Opens a torrent with the pieces that already exist. Blocking: reads the state, examines the files, and hashes all
/// pieces if asked to or if there is data without a state. `evicted` may be called before this returns.
pub(super) fn open(cache: &Cache, torrent: TorrentSpec, evicted: EvictionSink) -> Result<Arc<Torrent>, StoreError> {
    let info_hash = torrent.info_hash;
    let id = {
        let mut ledger = lock(&cache.ledger);
        if ledger.closed {
            return Err(StoreError::Closed);
        }
        if !ledger.open_hashes.insert(info_hash) {
            return Err(StoreError::AlreadyOpen(info_hash));
        }
        ledger.next_id += 1;
        ledger.next_id
    };
    let evictable = torrent.place.is_evictable();
    let inactive = {
        let _guard = lock(&cache.inactive_lock);
        if evictable { lock(&cache.ledger).inactive.remove(&info_hash) } else { None }
    };
    match open_locked(cache, torrent, id, evicted) {
        Ok(torrent) => {
            let torrent = Arc::new(torrent);
            let mut ledger = lock(&cache.ledger);
            if ledger.closed {
                return Err(StoreError::Closed);
            }
            ledger.active_bytes += if evictable { torrent.bytes_on_disk() } else { 0 };
            ledger.torrents.push(Arc::clone(&torrent));
            drop(ledger);
            Ok(torrent)
        }
        Err(error) => {
            let mut ledger = lock(&cache.ledger);
            ledger.open_hashes.remove(&info_hash);
            ledger.inactive.extend(inactive.map(|inactive| (info_hash, inactive)));
            Err(error)
        }
    }
}

fn open_locked(cache: &Cache, spec: TorrentSpec, id: u32, evicted: EvictionSink) -> Result<Torrent, StoreError> {
    if spec.place.is_evictable() && cache.shared {
        return Err(StoreError::Shared(cache.dir.clone()));
    }
    let torrent_dir = spec.place.torrent_dir(&cache.dir, &spec.info_hash);
    if let Some(torrent_dir) = &torrent_dir {
        if let Some(parent) = torrent_dir.parent().filter(|parent| *parent != cache.dir) {
            make_own_dir(parent)?;
        }
        make_own_dir(torrent_dir)?;
    }
    // Two processes with the same cache must not write the same files.
    let dir_lock = match (&spec.place, &torrent_dir) {
        (Place::Download { dir, .. }, Some(torrent_dir)) => {
            Some(take_lock(torrent_dir).map_err(|error| match error {
                StoreError::InUse { holder, .. } => StoreError::Busy { dir: dir.clone(), holder },
                error => error,
            })?)
        }
        _ => None,
    };
    let torrent = load(cache, spec, id, torrent_dir, evicted)?;
    *lock(&torrent.dir_lock) = dir_lock;
    Ok(torrent)
}

/// Reads a torrent's state and examines its files. Hashes all existing pieces if asked to, or if there is data without
/// a state. Files without pieces in the state are not examined.
///
/// The pieces of a download are all verified at once. Of the user's own files nothing is recorded: each piece is hashed
/// now, or before it is first served.
fn load(
    cache: &Cache,
    spec: TorrentSpec,
    id: u32,
    torrent_dir: Option<PathBuf>,
    evicted: EvictionSink,
) -> Result<Torrent, StoreError> {
    let TorrentSpec { info_hash, layout, hashes, verify, place, progress } = spec;
    let lengths = *layout.lengths();
    let pieces = Arc::new(Pieces::new(id, lengths, evicted));
    let files = Files::new(Arc::clone(&pieces), Root::new(&place, torrent_dir.as_deref()), layout)?;
    let saved = match torrent_dir.as_ref().map(|torrent_dir| torrent_dir.join("state")) {
        Some(state) => match Saved::load(&state) {
            Ok(saved) => saved.filter(|saved| saved.info_hash == info_hash && saved.lengths == lengths),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error("read", &state)(error)),
        },
        None => None,
    };
    let closed = saved.as_ref().is_some_and(|saved| saved.closed);
    let torrent = Torrent::new(info_hash, hashes, pieces, files, torrent_dir, closed);
    let has_data = match &place {
        Place::Cache => fs::read_dir(torrent.files.root.data()).is_ok_and(|mut entries| entries.next().is_some()),
        Place::Download { dir, overwrite } => download::find_existing(&torrent, dir, *overwrite)?,
        Place::Seed(_) => true,
    };
    if let Some(saved) = &saved {
        let uses = saved.have.ones().zip(&saved.uses);
        let pieces = uses.filter_map(|(piece, used)| Some((lengths.piece(u32::try_from(piece).ok()?)?, used)));
        pieces.for_each(|(piece, used)| torrent.pieces.set_last_use(piece, *used));
        torrent.mark_last_use_saved();
    }
    let mut all = FixedBitSet::with_capacity(lengths.pieces() as usize);
    all.insert_range(..);
    match (&place, &saved) {
        _ if verify => check_pieces(cache, &torrent, all, progress)?,
        (Place::Seed(_), _) => assume_present(&torrent, all),
        (_, Some(saved)) => {
            restore(&torrent, saved);
            if !closed {
                reconcile(cache, &torrent, saved);
            }
        }
        (Place::Cache, None) if has_data => {
            let torrent_dir = torrent.files.root.dir().display();
            tracing::warn!("the state in {torrent_dir} is missing or unreadable: hashing all pieces");
            // Evicted pieces are holes.
            let data = DataOnDisk::find(&torrent);
            let has_any = |piece: &PieceIndex| {
                data.as_ref().is_none_or(|data| data.of(&torrent, *piece) != Extent::Little { any: false })
            };
            let mut found = FixedBitSet::with_capacity(lengths.pieces() as usize);
            found.extend(lengths.iter().filter(has_any).map(PieceIndex::index));
            check_pieces(cache, &torrent, found, progress)?;
        }
        (_, None) if has_data => check_pieces(cache, &torrent, all, progress)?,
        _ => {}
    }
    if let Place::Download { overwrite, .. } = place {
        let is_unverified = |piece: &PieceIndex| torrent.pieces.word(*piece).state() == State::Unverified;
        let mut unverified = FixedBitSet::with_capacity(lengths.pieces() as usize);
        unverified.extend(lengths.iter().filter(is_unverified).map(PieceIndex::index));
        check_pieces(cache, &torrent, unverified, None)?;
        download::claim_files(&torrent, saved.as_ref(), overwrite)?;
        if saved.is_none() {
            // From now on files may be created. The state file proves that they are ours, even after a kill.
            torrent.mark_changed();
            let saved = torrent.save(&cache.handles, &cache.clock, Save::Hint);
            saved.map_err(|error| io_error(error.action, &error.path)(error.source))?;
        }
    }
    Ok(torrent)
}

/// Marks all pieces for which the files are long enough as present but unverified.
fn assume_present(torrent: &Torrent, mut present: FixedBitSet) {
    for (index, file) in torrent.files.stored() {
        remove_missing(&torrent.lengths, file, torrent.files.examine(index), &mut present);
    }
    for piece in torrent.lengths.iter().filter(|piece| present.contains(piece.index())) {
        torrent.pieces.advance(piece, State::Missing, State::Unverified);
    }
}

/// Restores the pieces of a state file, as far as the files match it.
fn restore(torrent: &Torrent, saved: &Saved) {
    let (closed, stamps) = (saved.closed, &saved.stamps);
    let (mut have, mut verified) = (saved.have.clone(), saved.verified.clone());
    if !closed || stamps.len() != torrent.files.layout.files().len() {
        verified.clear();
    }
    for (index, file) in torrent.files.stored() {
        let pieces = torrent.files.layout.pieces_of(index).indexes();
        if !have.contains_any_in_range(pieces.clone()) {
            continue;
        }
        let stamp = torrent.files.examine(index);
        if stamps.get(index.index()) != Some(&stamp) {
            verified.remove_range(pieces.clone());
            if closed {
                let path = torrent.files.path(index);
                tracing::warn!(
                    "another program changed {}: its pieces are hashed again before they are served",
                    path.display()
                );
            }
        }
        remove_missing(&torrent.lengths, file, stamp, &mut have);
    }
    for piece in torrent.lengths.iter().filter(|piece| have.contains(piece.index())) {
        let to = if verified.contains(piece.index()) { State::Disk } else { State::Unverified };
        torrent.pieces.advance(piece, State::Missing, to);
    }
}

/// Compares a state that is not of a clean close with the disk. Takes up pieces that were written since, as unverified;
/// forgets those that were evicted since; and frees what is left of others.
fn reconcile(cache: &Cache, torrent: &Torrent, saved: &Saved) {
    let examined = |file: FileIndex| saved.have.contains_any_in_range(torrent.files.layout.pieces_of(file).indexes());
    for (file, _) in torrent.files.stored().filter(|(file, _)| !examined(*file)) {
        torrent.files.examine(file);
    }
    let Some(data) = DataOnDisk::find(torrent) else { return };
    let pieces = &torrent.pieces;
    let (mut taken, mut forgotten) = (0, 0);
    for piece in torrent.lengths.iter() {
        match (data.of(torrent, piece), pieces.word(piece).state()) {
            (Extent::Whole, State::Missing) => {
                pieces.advance(piece, State::Missing, State::Unverified);
                // They were written last.
                pieces.set_last_use(piece, saved.clock.saturating_add(1));
                taken += 1;
            }
            // Files of a user may have zeros as holes, and nothing is evicted from them.
            (Extent::Little { .. }, State::Unverified) if torrent.evictable => {
                pieces.advance(piece, State::Unverified, State::Missing);
                cache.ok_or_report(torrent.free(&cache.handles, piece));
                forgotten += 1;
            }
            (Extent::Most, State::Unverified) if torrent.evictable => {
                // Few pieces, unless the filesystem keeps zeros as holes. A torn one must not take the place of another.
                let mut buffer = cache.buffer(torrent.lengths.len_of(piece) as usize);
                check_piece(cache, torrent, piece, true, &mut buffer);
            }
            (Extent::Most | Extent::Little { any: true }, State::Missing) => {
                cache.ok_or_report(torrent.free(&cache.handles, piece));
            }
            _ => {}
        }
    }
    if taken + forgotten > 0 {
        torrent.mark_changed();
        tracing::debug!(info_hash = %torrent.info_hash, taken, forgotten, "compared the saved state with the disk");
    }
}

/// Removes the pieces that need bytes beyond the end of a file on the disk.
fn remove_missing(lengths: &Lengths, file: &File, stamp: Stamp, pieces: &mut FixedBitSet) {
    if stamp.size < file.len {
        pieces.remove_range(lengths.pieces_in(&(file.offset + stamp.size..file.range().end)).indexes());
    }
}

/// Hashes the given pieces on all cores; pieces for which bytes are missing fail. A failed piece in the cache is freed.
fn check_pieces(
    cache: &Cache,
    torrent: &Torrent,
    which: FixedBitSet,
    progress: Option<Progress>,
) -> Result<(), StoreError> {
    if which.is_clear() || !torrent.files.root.data().exists() {
        return Ok(());
    }
    torrent.clear_closed_mark().map_err(|error| io_error(error.action, &error.path)(error.source))?;
    let lengths = &torrent.lengths;
    let mut present = which.clone();
    for (index, file) in torrent.files.stored() {
        remove_missing(lengths, file, torrent.files.examine(index), &mut present);
    }
    let which: Vec<PieceIndex> = lengths.iter().filter(|piece| which.contains(piece.index())).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicU32::new(0));
    if let Some(progress) = &progress {
        progress(0, which.len() as u32);
    }
    let work = || {
        let mut buffer = cache.buffer(lengths.longest_piece() as usize);
        while let Some(piece) = which.get(next.fetch_add(1, Relaxed)) {
            check_piece(cache, torrent, *piece, present.contains(piece.index()), &mut buffer);
            let done = done.fetch_add(1, Relaxed) + 1;
            if let Some(progress) = &progress {
                progress(done, which.len() as u32);
            }
        }
    };
    let workers = thread::available_parallelism().map_or(1, usize::from).min(which.len());
    thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
    torrent.mark_changed();
    Ok(())
}

fn check_piece(cache: &Cache, torrent: &Torrent, piece: PieceIndex, is_present: bool, buffer: &mut [u8]) {
    let buffer = &mut buffer[..torrent.lengths.len_of(piece) as usize];
    // No other thread has the torrent yet.
    torrent.pieces.change(piece, State::Unverified, |_| true);
    let word = torrent.pieces.word(piece);
    let good = is_present && cache.ok_or_report(torrent.check_on_disk(&cache.handles, piece, buffer)) == Some(true);
    if good {
        torrent.trust(piece, word);
        return;
    }
    torrent.pieces.change(piece, State::Missing, |_| true);
    cache.ok_or_report(torrent.free(&cache.handles, piece));
}
