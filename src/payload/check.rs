//! Whether files on a disk are those of a torrent, and if not, what is wrong with which.
//!
//! A file's length is looked at first: pieces that cannot be whole are not read. A piece may lie in several files, and
//! BitTorrent v1 cannot tell which of them is to blame for a bad one: it counts for each.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::found::{kind, open};
use super::hash::{Content, hash};
use crate::metainfo::{self, FileIndex, FileKind, Metainfo, PieceIndex};

/// Files that are looked for to tell whether a directory is the torrent's own.
const SAMPLE: usize = 1000;

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceState {
    /// Every byte is the torrent's.
    Good,
    /// All bytes are there, and some are not the torrent's.
    Bad,
    /// Not all bytes are there, or can be read.
    Missing,
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileState {
    /// As the torrent has it.
    Good,
    /// Not there.
    Missing,
    /// There is something else: a directory, or for a link a file.
    Other(&'static str),
    /// A link that leads elsewhere.
    LeadsElsewhere,
    /// It cannot be read, for this reason.
    Unreadable(String),
    /// So many bytes are there, which are too few.
    Short(u64),
    /// So many bytes are there, which are too many.
    Long(u64),
    /// Some of its pieces are bad.
    Bad,
    /// All of it is there, but a piece that it shares with another file cannot be checked for that one's sake.
    Unchecked,
}

/// A file and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckedFile {
    /// Which of the torrent.
    pub index: FileIndex,
    /// Where it is, or should be.
    pub path: PathBuf,
    /// What it is.
    pub state: FileState,
    /// Its pieces, those shared with other files among them.
    pub pieces: Vec<PieceIndex>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Check {
    /// The file of a torrent of one, or the directory of many.
    pub root: PathBuf,
    /// Every file but pads, in the torrent's order.
    pub files: Vec<CheckedFile>,
    /// By piece.
    pub pieces: Vec<PieceState>,
}

/// Why nothing could be checked.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {source}")]
pub struct CheckError {
    /// What.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl Check {
    /// Whether everything is there as the torrent has it.
    pub fn is_complete(&self) -> bool {
        self.files.iter().all(|file| file.state == FileState::Good) && self.count(PieceState::Good) == self.pieces.len()
    }

    /// Pieces that are so.
    pub fn count(&self, state: PieceState) -> usize {
        self.pieces.iter().filter(|piece| **piece == state).count()
    }

    /// What a piece is.
    pub fn piece(&self, piece: PieceIndex) -> PieceState {
        self.pieces[piece.index()]
    }
}

/// Checks the files at `path`: the torrent's own file or directory, or the directory that holds it. `done` is called as
/// pieces are done, with their length and what they are, from several threads.
///
/// # Errors
/// If `path` cannot be looked at.
pub fn check(metainfo: &Metainfo, path: &Path, done: &(dyn Fn(u32, PieceState) + Sync)) -> Result<Check, CheckError> {
    let layout = &metainfo.layout;
    let root = root(metainfo, path).map_err(|source| CheckError { path: path.to_owned(), source })?;
    let mut files = Vec::new();
    // Of each file, how many bytes there are.
    let mut there = vec![0; layout.files().len()];
    let raw_paths = metainfo.raw_paths();
    for (index, file) in layout.indexed_files() {
        if file.kind == FileKind::Pad {
            there[index.0 as usize] = file.len;
            continue;
        }
        let path = find(&root, file, raw_paths.get(&index));
        let (state, len) = match &file.kind {
            FileKind::Symlink { target } => (look_at_link(&path, target), 0),
            _ => look_at_file(&path, file.len),
        };
        there[index.0 as usize] = len;
        files.push(CheckedFile { index, path, state, pieces: Vec::new() });
    }

    let is_there =
        |piece: &PieceIndex| layout.extents_of(*piece).all(|(file, part)| part.end <= there[file.0 as usize]);
    let lengths = layout.lengths();
    let pieces = Mutex::new(vec![PieceState::Missing; lengths.pieces() as usize]);
    let told = |piece: PieceIndex, state| {
        pieces.lock().unwrap_or_else(PoisonError::into_inner)[piece.index()] = state;
        done(lengths.len_of(piece), state);
    };
    lengths.iter().filter(|piece| !is_there(piece)).for_each(|piece| told(piece, PieceState::Missing));
    let faults = Mutex::new(HashMap::new());
    let content = Paths(files.iter().map(|file| (file.index, file.path.as_path())).collect());
    hash(layout, lengths.iter().filter(is_there), &content, &|piece, result| {
        match result {
            Ok(digest) if metainfo.hashes.is(piece, &digest) => told(piece, PieceState::Good),
            Ok(_) => told(piece, PieceState::Bad),
            Err(unread) => {
                faults.lock().unwrap_or_else(PoisonError::into_inner).insert(unread.file, unread.why.to_string());
                told(piece, PieceState::Missing);
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

/// Where files are.
struct Paths<'a>(HashMap<FileIndex, &'a Path>);

impl Content for Paths<'_> {
    fn open(&self, file: FileIndex) -> io::Result<File> {
        open(self.0.get(&file).ok_or(io::ErrorKind::NotFound)?)
    }
}

/// What `path` is meant to be: the torrent's own file or directory, or where that lies.
fn root(metainfo: &Metainfo, path: &Path) -> io::Result<PathBuf> {
    let is_dir = fs::metadata(path)?.is_dir();
    let below = path.join(&metainfo.name);
    let files = metainfo.layout.files();
    if !is_dir || files.iter().all(|file| file.path.len() == 1) {
        return Ok(if is_dir { below } else { path.to_owned() });
    }
    // A directory of many: where more of the files are. A torrent may hold a directory of its own name.
    let found = |root: &Path| {
        let is_there = |file: &&metainfo::File| fs::symlink_metadata(find(root, file, None)).is_ok();
        files.iter().filter(|file| file.kind != FileKind::Pad).take(SAMPLE).filter(is_there).count()
    };
    Ok(if found(path) > found(&below) || !below.is_dir() && is_called(path, &metainfo.name) {
        path.into()
    } else {
        below
    })
}

fn is_called(path: &Path, name: &str) -> bool {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    path.file_name().is_some_and(|called| called == name)
}

/// Where a file is, whose path was made safe; or under the name that the torrent has, if only that is there.
fn find(root: &Path, file: &metainfo::File, raw: Option<&PathBuf>) -> PathBuf {
    // The first component is the torrent's name, which is the root.
    let at = |below: &Path| if below.as_os_str().is_empty() { root.to_owned() } else { root.join(below) };
    let safe = at(&file.path[1..].iter().collect::<PathBuf>());
    match raw.map(|raw| at(raw)) {
        Some(raw) if fs::symlink_metadata(&safe).is_err() && fs::symlink_metadata(&raw).is_ok() => raw,
        _ => safe,
    }
}

/// What there is, and how many bytes of it can be read.
fn look_at_file(path: &Path, len: u64) -> (FileState, u64) {
    let about = match fs::metadata(path) {
        Ok(about) => about,
        Err(error) if is_missing(&error) => return (FileState::Missing, 0),
        Err(error) => return (FileState::Unreadable(error.to_string()), 0),
    };
    if let Some(kind) = kind(&about) {
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

fn look_at_link(path: &Path, target: &str) -> FileState {
    match fs::symlink_metadata(path) {
        Err(error) if is_missing(&error) => FileState::Missing,
        Err(error) => FileState::Unreadable(error.to_string()),
        Ok(about) if !about.is_symlink() => FileState::Other(kind(&about).unwrap_or("file")),
        Ok(_) => {
            let real = |path: &Path| fs::canonicalize(path).ok();
            let same = fs::read_link(path).is_ok_and(|found| found == Path::new(target));
            let leads_there = || {
                let expected = path.parent().and_then(|dir| real(&dir.join(target)));
                expected.is_some() && real(path) == expected
            };
            if same || leads_there() { FileState::Good } else { FileState::LeadsElsewhere }
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

    /// A directory `t` with `a` (two pieces and a half), `d/b` (the other half and one more), an empty file, a link, and
    /// `c` (half a piece); and its torrent.
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
    fn all_is_well_by_either_path() {
        let (dir, metainfo) = sample();
        for path in [dir.path().to_owned(), dir.path().join("t")] {
            assert_eq!(states(&path, &metainfo), (vec![Good, Good, Good, Good, Good], ".....".into()));
        }
        // Whatever the directory is called.
        fs::rename(dir.path().join("t"), dir.path().join("u")).unwrap();
        assert_eq!(states(&dir.path().join("u"), &metainfo).1, ".....");
        assert_eq!(states(dir.path(), &metainfo), (vec![Missing, Missing, Missing, Missing, Missing], "-----".into()));
        assert!(check(&metainfo, &dir.path().join("nowhere"), &|_, _| {}).is_err());
    }

    #[test]
    fn what_is_wrong_is_told_by_file_and_by_piece() {
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
    fn files_are_found_under_the_names_of_the_torrent() {
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
