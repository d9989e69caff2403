//! Verification of files on the disk against a torrent.
//!
//! It compares lengths first, and does not read pieces for which bytes are missing. A piece may span several files.
//! BitTorrent v1 cannot tell which of them makes it bad, so a bad piece counts for each of them.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::found::{open, special_kind};
use super::hash::{Content, hash};
use crate::metainfo::{self, FileIndex, FileKind, Metainfo, PieceIndex};

/// Number of files to look for when deciding whether a directory is the torrent's own; more add time and no certainty.
const SAMPLE: usize = 1000;

/// The state of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceState {
    /// All bytes are correct.
    Good,
    /// All bytes are present, and some are wrong.
    Bad,
    /// Bytes are missing or cannot be read.
    Missing,
}

/// The state of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState {
    /// It is correct.
    Good,
    /// It does not exist.
    Missing,
    /// Something of another kind has its name: a directory, or a file in place of a link.
    Other(&'static str),
    /// It is a link with another target.
    LeadsElsewhere,
    /// It cannot be read, for the reason given.
    Unreadable(String),
    /// It has only this number of bytes.
    Short(u64),
    /// It has this number of bytes, which is too many.
    Long(u64),
    /// Some of its pieces are bad.
    Bad,
    /// Its bytes are present, but it shares a piece with another file whose bytes are missing.
    Unchecked,
}

/// A file and its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedFile {
    /// The file in the torrent.
    pub index: FileIndex,
    /// Its expected path on the disk.
    pub path: PathBuf,
    /// Its state.
    pub state: FileState,
    /// Its pieces, including those that it shares with other files.
    pub pieces: Vec<PieceIndex>,
}

/// The result of a verification.
#[derive(Clone, Debug)]
pub struct Check {
    /// The torrent's single file, or its directory.
    pub root: PathBuf,
    /// Every file but pads, in the torrent's order.
    pub files: Vec<CheckedFile>,
    /// The state of each piece.
    pub pieces: Vec<PieceState>,
}

/// Why a verification could not start.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct CheckError {
    /// The path that cannot be read.
    pub path: PathBuf,
    /// The reason.
    pub source: io::Error,
}

impl Check {
    /// Returns whether every file and every piece is correct.
    pub fn is_complete(&self) -> bool {
        self.files.iter().all(|file| file.state == FileState::Good) && self.count(PieceState::Good) == self.pieces.len()
    }

    /// Returns the number of pieces in a state.
    pub fn count(&self, state: PieceState) -> usize {
        self.pieces.iter().filter(|piece| **piece == state).count()
    }

    /// Returns the state of a piece.
    pub fn piece(&self, piece: PieceIndex) -> PieceState {
        self.pieces[piece.index()]
    }
}

/// Verifies the files at `path`, which is the torrent's own file or directory, or the directory that contains it. Calls
/// `done` from several threads, with the length and state of each piece.
///
/// # Errors
/// If `path` does not exist or cannot be examined.
pub fn check(metainfo: &Metainfo, path: &Path, done: &(dyn Fn(u32, PieceState) + Sync)) -> Result<Check, CheckError> {
    let layout = &metainfo.layout;
    let root = root(metainfo, path).map_err(|source| CheckError { path: path.to_owned(), source })?;
    let mut files = Vec::new();
    // The number of bytes of each file on the disk.
    let mut present = vec![0; layout.files().len()];
    let raw_paths = metainfo.raw_paths();
    for (index, file) in layout.indexed_files() {
        if file.kind == FileKind::Pad {
            present[index.index()] = file.len;
            continue;
        }
        let path = find(&root, file, raw_paths.get(&index));
        let (state, len) = match &file.kind {
            FileKind::Symlink { target } => (link_state(&path, target), 0),
            _ => file_state(&path, file.len),
        };
        present[index.index()] = len;
        files.push(CheckedFile { index, path, state, pieces: Vec::new() });
    }

    let is_present =
        |piece: &PieceIndex| layout.extents_of(*piece).all(|(file, part)| part.end <= present[file.index()]);
    let lengths = layout.lengths();
    let pieces = Mutex::new(vec![PieceState::Missing; lengths.pieces() as usize]);
    let set_state = |piece: PieceIndex, state| {
        pieces.lock().unwrap_or_else(PoisonError::into_inner)[piece.index()] = state;
        done(lengths.len_of(piece), state);
    };
    lengths.iter().filter(|piece| !is_present(piece)).for_each(|piece| set_state(piece, PieceState::Missing));
    let faults = Mutex::new(HashMap::new());
    let content = Paths(files.iter().map(|file| (file.index, file.path.as_path())).collect());
    hash(layout, lengths.iter().filter(is_present), &content, &|piece, result| {
        match result {
            Ok(digest) if metainfo.hashes.matches(piece, &digest).unwrap_or_default() => {
                set_state(piece, PieceState::Good)
            }
            Ok(_) => set_state(piece, PieceState::Bad),
            Err(error) => {
                faults.lock().unwrap_or_else(PoisonError::into_inner).insert(error.file, error.why.to_string());
                set_state(piece, PieceState::Missing);
            }
        }
        ControlFlow::Continue(())
    });
    drop(content);

    let pieces = pieces.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut faults = faults.into_inner().unwrap_or_else(PoisonError::into_inner);
    for file in &mut files {
        file.pieces = layout.pieces_of(file.index).collect();
        if let Some(fault) = faults.remove(&file.index) {
            file.state = FileState::Unreadable(fault);
        } else if file.state == FileState::Good {
            let has = |state| file.pieces.iter().any(|piece| pieces[piece.index()] == state);
            file.state = match () {
                () if has(PieceState::Bad) => FileState::Bad,
                () if has(PieceState::Missing) => FileState::Unchecked,
                () => FileState::Good,
            };
        }
    }
    Ok(Check { root, files, pieces })
}

/// The paths of the files on the disk.
struct Paths<'a>(HashMap<FileIndex, &'a Path>);

impl Content for Paths<'_> {
    fn open(&self, file: FileIndex) -> io::Result<File> {
        open(self.0.get(&file).ok_or(io::ErrorKind::NotFound)?)
    }
}

/// Returns the path of the torrent's file or directory: `path` itself, or its name below `path`.
fn root(metainfo: &Metainfo, path: &Path) -> io::Result<PathBuf> {
    let is_dir = fs::metadata(path)?.is_dir();
    let below = path.join(&metainfo.name);
    let files = metainfo.layout.files();
    if !is_dir || files.iter().all(|file| file.path.len() == 1) {
        return Ok(if is_dir { below } else { path.to_owned() });
    }
    // Of the two possible directories, take the one with more of the files. A torrent may contain a directory of its name.
    let found = |root: &Path| {
        let exists = |file: &&metainfo::File| fs::symlink_metadata(find(root, file, None)).is_ok();
        files.iter().filter(|file| !file.is_pad()).take(SAMPLE).filter(exists).count()
    };
    Ok(if found(path) > found(&below) || !below.is_dir() && has_name(path, &metainfo.name) {
        path.into()
    } else {
        below
    })
}

fn has_name(path: &Path, name: &str) -> bool {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    path.file_name().is_some_and(|found| found == name)
}

/// Returns the path of a file on the disk: its safe path, or its original path in the torrent if only that one exists.
fn find(root: &Path, file: &metainfo::File, raw: Option<&PathBuf>) -> PathBuf {
    // The first component is the torrent's name, which is the root.
    let at = |below: &Path| if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) };
    let safe = at(&file.path[1..].iter().collect::<PathBuf>());
    match raw.map(|raw| at(raw)) {
        Some(raw) if fs::symlink_metadata(&safe).is_err() && fs::symlink_metadata(&raw).is_ok() => raw,
        _ => safe,
    }
}

/// Returns the state of a file by its length, and the number of bytes that can be read.
fn file_state(path: &Path, len: u64) -> (FileState, u64) {
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(error) if is_missing(&error) => return (FileState::Missing, 0),
        Err(error) => return (FileState::Unreadable(error.to_string()), 0),
    };
    if let Some(kind) = special_kind(&about) {
        return (FileState::Other(kind), 0);
    }
    if let Err(error) = open(path) {
        return (FileState::Unreadable(error.to_string()), 0);
    }
    let state = match about.len() {
        found if found < len => FileState::Short(found),
        found if found > len => FileState::Long(found),
        _ => FileState::Good,
    };
    (state, about.len())
}

fn link_state(path: &Path, target: &str) -> FileState {
    match fs::symlink_metadata(path) {
        Err(error) if is_missing(&error) => FileState::Missing,
        Err(error) => FileState::Unreadable(error.to_string()),
        Ok(about) if !about.is_symlink() => FileState::Other(special_kind(&about).unwrap_or("file")),
        Ok(_) => {
            let real = |path: &Path| fs::canonicalize(path).ok();
            let same = fs::read_link(path).is_ok_and(|found| found == Path::new(target));
            let points_there = || {
                let expected = path.parent().and_then(|dir| real(&dir.join(target)));
                expected.is_some() && real(path) == expected
            };
            if same || points_there() { FileState::Good } else { FileState::LeadsElsewhere }
        }
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::{NewFile, NewTorrent, hash_pieces};
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tempfile::TempDir;

    const PIECE: u32 = 16_384;
    const REGULAR: FileKind = FileKind::Regular { executable: false };

    /// A directory `t` with `a` (two and a half pieces), `d/b` (the other half and one more), an empty file, a link, and `c`
    /// (half a piece); and its torrent.
    fn sample() -> (TempDir, Metainfo) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("t");
        fs::create_dir_all(root.join("d")).unwrap();
        let content: Vec<u8> = (0..73_728u32).map(|n| (n % 251) as u8).collect();
        fs::write(root.join("a"), &content[..40_960]).unwrap();
        fs::write(root.join("d/b"), &content[40_960..65_536]).unwrap();
        fs::write(root.join("e"), "").unwrap();
        fs::write(root.join("c"), &content[65_536..]).unwrap();
        symlink("d/b", root.join("l")).unwrap();
        let file = |path: &str, len| NewFile { path: path.split('/').map(str::to_owned).collect(), len, kind: REGULAR };
        let link = NewFile { kind: FileKind::Symlink { target: "d/b".into() }, ..file("l", 0) };
        let torrent = NewTorrent {
            name: "t".into(),
            piece_len: PIECE,
            files: vec![file("a", 40_960), file("d/b", 24_576), file("e", 0), file("c", 8192), link],
            ..NewTorrent::default()
        };
        let torrent = torrent.build(&hash_pieces(content.as_slice(), PIECE).unwrap().0).unwrap();
        (dir, Metainfo::parse(&torrent).unwrap())
    }

    /// The states of the files and of the pieces.
    fn states(path: &Path, metainfo: &Metainfo) -> (Vec<FileState>, String) {
        let bytes = AtomicU64::new(0);
        let check = check(metainfo, path, &|len, _| {
            bytes.fetch_add(len.into(), Ordering::Relaxed);
        })
        .unwrap();
        assert_eq!(bytes.into_inner(), metainfo.layout.lengths().total());
        let letter = |state: &PieceState| match state {
            PieceState::Good => '.',
            PieceState::Bad => 'x',
            PieceState::Missing => '-',
        };
        let pieces: String = check.pieces.iter().map(letter).collect();
        let good = check.files.iter().all(|file| file.state == FileState::Good);
        assert_eq!(check.is_complete(), good && pieces == ".....");
        (check.files.into_iter().map(|file| file.state).collect(), pieces)
    }

    use FileState::*;

    #[test]
    fn a_complete_torrent_is_found_by_either_path() {
        let (dir, metainfo) = sample();
        for path in [dir.path().to_owned(), dir.path().join("t")] {
            assert_eq!(states(&path, &metainfo), (vec![Good, Good, Good, Good, Good], ".....".into()));
        }
        // The directory may have any name.
        fs::rename(dir.path().join("t"), dir.path().join("u")).unwrap();
        assert_eq!(states(&dir.path().join("u"), &metainfo).1, ".....");
        assert_eq!(states(dir.path(), &metainfo), (vec![Missing, Missing, Missing, Missing, Missing], "-----".into()));
        assert!(check(&metainfo, &dir.path().join("nowhere"), &|_, _| {}).is_err());
    }

    #[test]
    fn faults_are_reported_by_file_and_by_piece() {
        let (dir, metainfo) = sample();
        let root = dir.path().join("t");
        let states = || states(&root, &metainfo);
        let whole = fs::read(root.join("a")).unwrap();
        let mut bad = whole.clone();
        bad[20_000] ^= 1;
        fs::write(root.join("a"), &bad).unwrap();
        assert_eq!(states(), (vec![Bad, Good, Good, Good, Good], ".x...".into()));
        bad[40_000] ^= 1;
        fs::write(root.join("a"), &bad).unwrap();
        assert_eq!(states(), (vec![Bad, Bad, Good, Good, Good], ".xx..".into()));
        fs::write(root.join("a"), &whole[..20_000]).unwrap();
        assert_eq!(states(), (vec![Short(20_000), Unchecked, Good, Good, Good], ".--..".into()));
        fs::write(root.join("a"), [whole.as_slice(), b"x"].concat()).unwrap();
        assert_eq!(states(), (vec![Long(40_961), Good, Good, Good, Good], ".....".into()));
        fs::remove_file(root.join("a")).unwrap();
        assert_eq!(states(), (vec![Missing, Unchecked, Good, Good, Good], "---..".into()));
        fs::create_dir(root.join("a")).unwrap();
        fs::remove_file(root.join("e")).unwrap();
        fs::remove_file(root.join("l")).unwrap();
        assert_eq!(states(), (vec![Other("directory"), Unchecked, Missing, Good, Missing], "---..".into()));
        symlink("c", root.join("l")).unwrap();
        assert_eq!(states().0[4], LeadsElsewhere);
        fs::remove_file(root.join("l")).unwrap();
        fs::write(root.join("l"), "").unwrap();
        assert_eq!(states().0[4], Other("file"));
        fs::remove_file(root.join("l")).unwrap();
        symlink("./d/../d/b", root.join("l")).unwrap();
        assert_eq!(states().0[4], Good);
    }

    #[test]
    fn files_are_found_under_their_original_names() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("t")).unwrap();
        let new = NewTorrent {
            name: "t".into(),
            piece_len: PIECE,
            files: vec![NewFile { path: vec!["two\nlines".into()], len: 3, kind: REGULAR }],
            ..NewTorrent::default()
        };
        let torrent = new.build(&hash_pieces(&b"abc"[..], PIECE).unwrap().0).unwrap();
        let metainfo = Metainfo::parse(&torrent).unwrap();
        for name in ["two\nlines", "two_lines"] {
            let path = dir.path().join("t").join(name);
            fs::write(&path, "abc").unwrap();
            let check = check(&metainfo, dir.path(), &|_, _| {}).unwrap();
            assert!(check.is_complete() && check.files[0].path == path, "{check:?}");
            fs::remove_file(path).unwrap();
        }
    }

    #[test]
    fn a_single_file_is_found_in_its_directory_or_by_its_path() {
        let dir = tempfile::tempdir().unwrap();
        let file = NewFile { path: vec![], len: 3, kind: REGULAR };
        let new = NewTorrent { name: "f".into(), piece_len: PIECE, files: vec![file], ..NewTorrent::default() };
        let torrent = new.build(&hash_pieces(&b"abc"[..], PIECE).unwrap().0).unwrap();
        let metainfo = Metainfo::parse(&torrent).unwrap();
        let is_complete = |path: &Path| check(&metainfo, path, &|_, _| {}).unwrap().is_complete();
        assert!(!is_complete(dir.path()));
        fs::write(dir.path().join("f"), "abc").unwrap();
        assert!(is_complete(dir.path()) && is_complete(&dir.path().join("f")));
        fs::write(dir.path().join("g"), "abd").unwrap();
        assert!(!is_complete(&dir.path().join("g")));
    }
}
