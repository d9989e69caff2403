//! The state file, which keeps the swarms across a restart.
//!
//! ```text
//! 8  "tftrack1"   8 time of writing, in Unix seconds
//!    per torrent: 20 info hash   4 completed downloads   4 number of IPv4 peers   4 number of IPv6 peers
//!       per peer: 6 or 18 compact address   4 seconds since the last announce; highest bit: it is a seed
//! 20 SHA-1 of all preceding bytes
//! ```
//!
//! Integers are big-endian. A file that deviates from this format or has the wrong checksum is not used at all. The memory
//! for reading is bounded by the length of the file, and the number of torrents and peers by the table.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use sha1::{Digest, Sha1};

use super::peers::Peers;
use super::shards::SHARDS;
use super::table::Table;
use crate::metainfo::InfoHash;
use crate::sys::file::{create_anew, open_to_read};
use crate::wire::take_compact;

/// First bytes of every state file.
const MAGIC: &[u8; 8] = b"tftrack1";
/// Length of magic and time in bytes.
const HEADER_LEN: u64 = 16;
/// Length of the checksum in bytes.
const CHECKSUM_LEN: u64 = 20;
/// Marks a seed in the age of a peer.
const SEED_BIT: u32 = 1 << 31;

/// Error of a state file.
#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file has another format. It may be valuable and is not changed.
    #[error("it is not a state file of this tracker; name another file, or one that does not exist yet")]
    Foreign,
    /// It is a state file with errors.
    #[error("it is damaged")]
    Damaged,
}

/// A saved torrent.
#[derive(Debug, PartialEq)]
pub(super) struct SavedTorrent {
    pub info_hash: InfoHash,
    pub completed: u32,
    /// Address, whether it is a seed, and seconds since its last announce at the time of saving.
    pub peers: Vec<(SocketAddr, bool, u32)>,
}

/// Writes the table to a temporary file, syncs it, and renames it over the old one. The table is locked one shard at a time.
pub(super) fn save(path: &Path, table: &Table, now: u32, unix: u64) -> io::Result<()> {
    let new = sibling(path, ".new");
    let file = create_anew(&new)?;
    let mut writer = BufWriter::new(file);
    let mut sum = Sha1::new();
    let mut write = |bytes: &[u8]| {
        sum.update(bytes);
        writer.write_all(bytes)
    };
    write(MAGIC)?;
    write(&unix.to_be_bytes())?;
    let mut out = Vec::new();
    for nth in 0..SHARDS {
        out.clear();
        table.visit(nth, |info_hash, torrent| {
            let counts = [torrent.v4().len(), torrent.v6().len()];
            out.extend_from_slice(&info_hash.0);
            for number in [torrent.completed, counts[0] as u32, counts[1] as u32] {
                out.extend_from_slice(&number.to_be_bytes());
            }
            put_peers(torrent.v4(), now, &mut out);
            put_peers(torrent.v6(), now, &mut out);
        });
        write(&out)?;
    }
    let sum = sum.finalize();
    writer.write_all(&sum)?;
    writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) => File::open(dir)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

/// Appends the peers of one address family.
fn put_peers<const N: usize>(peers: &Peers<N>, now: u32, out: &mut Vec<u8>) {
    for (addr, seed, seen) in peers.iter() {
        let age = now.saturating_sub(seen).min(SEED_BIT - 1);
        out.extend_from_slice(addr);
        out.extend_from_slice(&(age | if seed { SEED_BIT } else { 0 }).to_be_bytes());
    }
}

/// Reads a state file, and passes the time of writing and each torrent to `restore`. Returns false if there is none.
pub(super) fn load(path: &Path, restore: impl FnMut(u64, SavedTorrent)) -> Result<bool, StateError> {
    // The user may have linked the state to another place, but a FIFO there must not stop the start.
    let mut file = match open_to_read(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    // A device may be endless.
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(StateError::Foreign);
    }
    if meta.len() == 0 {
        return Ok(false);
    }
    let body = check(&mut file, meta.len())?;
    file.rewind()?;
    read(BufReader::new(file).take(body), restore).map(|()| true)
}

/// Renames a damaged file, so that it can be examined.
pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = sibling(path, ".damaged");
    fs::rename(path, &aside)?;
    Ok(aside)
}

/// Returns the path with `ending` appended to the file name.
fn sibling(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(ending);
    name.into()
}

/// Checks the magic and the checksum in a separate pass, before anything is used. Returns the length without the checksum.
fn check(file: &mut impl Read, len: u64) -> Result<u64, StateError> {
    let mut magic = [0; MAGIC.len()];
    let complete = (len >= magic.len() as u64).then(|| file.read_exact(&mut magic)).transpose()?;
    if complete.is_none() || magic != *MAGIC {
        return Err(StateError::Foreign);
    }
    let body = len.checked_sub(CHECKSUM_LEN).filter(|body| *body >= HEADER_LEN).ok_or(StateError::Damaged)?;
    let mut sum = Sha1::new();
    sum.update(magic);
    let mut left = body - magic.len() as u64;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        let part = &mut buffer[..usize::try_from(left).unwrap_or(usize::MAX).min(64 * 1024)];
        file.read_exact(part).map_err(truncated)?;
        sum.update(&*part);
        left -= part.len() as u64;
    }
    let mut expected = [0; CHECKSUM_LEN as usize];
    file.read_exact(&mut expected).map_err(truncated)?;
    if sum.finalize()[..] != expected {
        return Err(StateError::Damaged);
    }
    Ok(body)
}

/// Parses the checked part of a file.
fn read(mut from: impl Read, mut restore: impl FnMut(u64, SavedTorrent)) -> Result<(), StateError> {
    let mut head = [0; HEADER_LEN as usize];
    from.read_exact(&mut head).map_err(truncated)?;
    let [.., a, b, c, d, e, f, g, h] = head;
    let saved_at = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    loop {
        let mut info_hash = [0; 20];
        // The file may end only between two torrents.
        match from.read(&mut info_hash[..1])? {
            0 => return Ok(()),
            _ => from.read_exact(&mut info_hash[1..]).map_err(truncated)?,
        }
        let [completed, v4, v6] = [number(&mut from)?, number(&mut from)?, number(&mut from)?];
        let mut peers = Vec::new();
        for _ in 0..v4 {
            peers.push(peer::<6>(&mut from)?);
        }
        for _ in 0..v6 {
            peers.push(peer::<18>(&mut from)?);
        }
        restore(saved_at, SavedTorrent { info_hash: InfoHash(info_hash), completed, peers });
    }
}

fn number(from: &mut impl Read) -> Result<u32, StateError> {
    let mut bytes = [0; 4];
    from.read_exact(&mut bytes).map_err(truncated)?;
    Ok(u32::from_be_bytes(bytes))
}

fn peer<const N: usize>(from: &mut impl Read) -> Result<(SocketAddr, bool, u32), StateError> {
    let mut addr = [0; N];
    from.read_exact(&mut addr).map_err(truncated)?;
    let age = number(from)?;
    let addr = take_compact(&addr).ok_or(StateError::Damaged)?;
    Ok((addr, age & SEED_BIT != 0, age & !SEED_BIT))
}

/// Maps an early end of the file to [`StateError::Damaged`].
fn truncated(error: io::Error) -> StateError {
    if error.kind() == io::ErrorKind::UnexpectedEof { StateError::Damaged } else { error.into() }
}

/// Fuzz target: parses any bytes, also as if the checksum were right, and checks the memory used.
#[cfg(fuzzing)]
pub(super) fn fuzz(bytes: &[u8]) {
    let _ = check(&mut &bytes[..], bytes.len() as u64);
    let mut held = 0;
    let _ = read(bytes, |_, saved| held += 32 + 10 * saved.peers.len());
    assert!(held <= bytes.len());
}

#[cfg(test)]
mod tests {
    use super::super::config::Limits;
    use super::super::table::{Announce, AnnounceResponse, Event};
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    const NOW: u32 = 10_000;

    fn table(peers: &[(u8, u16, bool, bool)]) -> Table {
        let mut rng = StdRng::seed_from_u64(1);
        let table = Table::new(Limits::default(), &mut rng);
        for &(torrent, port, v6, seed) in peers {
            let ip = if v6 { [0x2001, 0, 0, 0, 0, 0, 0, 1].into() } else { std::net::IpAddr::from([10, 0, 0, 1]) };
            let announce = Announce {
                info_hash: InfoHash([torrent; 20]),
                addr: (ip, port.max(1)).into(),
                seed,
                event: if seed { Event::Completed } else { Event::Present },
                want: 0,
                both_families: false,
            };
            table.announce(NOW, &announce, &mut rng, &mut AnnounceResponse::default()).unwrap();
        }
        table
    }

    /// Info hash, completed downloads, and peers of a torrent.
    type Content = (InfoHash, u32, Vec<(SocketAddr, bool, u32)>);

    fn content(table: &Table) -> Vec<Content> {
        let mut all = Vec::new();
        for nth in 0..SHARDS {
            table.visit(nth, |info_hash, torrent| {
                let v4 = torrent.v4().iter().map(|(addr, seed, seen)| (take_compact(addr).unwrap(), seed, seen));
                let mut peers: Vec<_> = v4.collect();
                for (addr, seed, seen) in torrent.v6().iter() {
                    peers.push((take_compact(addr).unwrap(), seed, seen));
                }
                peers.sort();
                all.push((*info_hash, torrent.completed, peers));
            });
        }
        all.sort();
        all
    }

    fn loaded(path: &Path) -> Result<Option<(u64, Vec<SavedTorrent>)>, StateError> {
        let (mut all, mut unix) = (Vec::new(), 0);
        let there = load(path, |saved_at, saved| {
            unix = saved_at;
            all.push(saved);
        });
        Ok(there?.then_some((unix, all)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_saved_table_is_restored(
            peers in prop::collection::vec((0u8..5, any::<u16>(), any::<bool>(), any::<bool>()), 0..100),
        ) {
            let (dir, table) = (tempfile::tempdir().unwrap(), table(&peers));
            let path = dir.path().join("state");
            save(&path, &table, NOW + 7, 1_800_000_000).unwrap();
            let (unix, all) = loaded(&path).unwrap().unwrap();
            prop_assert!(peers.is_empty() || unix == 1_800_000_000);
            let again = self::table(&[]);
            for saved in all {
                prop_assert!(again.restore(saved.info_hash, saved.completed));
                for (addr, seed, age) in saved.peers {
                    prop_assert_eq!(age, 7);
                    again.restore_peer(&saved.info_hash, addr, seed, NOW + 7 - age);
                }
            }
            prop_assert_eq!(content(&again), content(&table));
            prop_assert_eq!(again.counts(), table.counts());
            // No temporary file is left.
            prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }

        #[test]
        fn damage_is_detected(at in any::<prop::sample::Index>(), with in 1u8..=255, cut in any::<prop::sample::Index>()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("state");
            save(&path, &table(&[(1, 1, false, true), (1, 2, true, false)]), NOW, 1).unwrap();
            let whole = fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            bytes[at.index(whole.len())] ^= with;
            fs::write(&path, &bytes).unwrap();
            let foreign = at.index(whole.len()) < MAGIC.len();
            match loaded(&path).unwrap_err() {
                StateError::Foreign => prop_assert!(foreign),
                StateError::Damaged => prop_assert!(!foreign),
                StateError::Io(error) => panic!("{error}"),
            }
            fs::write(&path, &whole[..cut.index(whole.len())]).unwrap();
            prop_assert!(cut.index(whole.len()) == 0 || loaded(&path).is_err());
        }

        #[test]
        fn any_file_is_handled(bytes: Vec<u8>) {
            let _ = check(&mut &bytes[..], bytes.len() as u64);
            let _ = read(&bytes[..], |_, _| ());
        }
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thesis");
        assert!(loaded(&path).unwrap().is_none());
        fs::write(&path, "").unwrap();
        assert!(loaded(&path).unwrap().is_none());
        for text in ["x", "All I know meta trackers, in 300 pages"] {
            fs::write(&path, text).unwrap();
            assert!(matches!(loaded(&path), Err(StateError::Foreign)));
        }
        assert!(matches!(loaded(dir.path()), Err(StateError::Foreign)));
        assert!(matches!(loaded(Path::new("/dev/zero")), Err(StateError::Foreign)));
    }
}
