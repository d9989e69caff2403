//! The torrents that the tracker serves: all, or those of a list and of a directory of `.torrent` files.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::metainfo::{InfoHash, MAX_TORRENT_LEN, Metainfo};

/// Longest accepted list in bytes, about six million info hashes.
const MAX_LIST_LEN: u64 = 256 << 20;
/// Largest number of directory entries that are read, the same as the default limit on torrents.
const MAX_FILES: usize = 1_000_000;

/// Error of reading the list or the directory of torrents.
#[derive(Debug, thiserror::Error)]
pub enum AllowError {
    /// The list cannot be read.
    #[error("cannot read the list {}: {source}", path.display())]
    List {
        /// Its path.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A line of the list is not an info hash.
    #[error("line {line} of the list {} is not an info hash of 40 hexadecimal digits", path.display())]
    Line {
        /// Its path.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
    },
    /// The directory cannot be read.
    #[error("cannot read the directory {}: {source}", path.display())]
    Directory {
        /// Its path.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// Modification time and length of a file. If they change, the file is read again.
type Stamp = (SystemTime, u64);

/// The sources of the served info hashes.
#[derive(Debug, Default)]
pub(super) struct AllowList {
    list: Option<PathBuf>,
    dir: Option<PathBuf>,
    /// Info hashes of the files in the directory; `None` for a file that is not a valid torrent.
    known: HashMap<PathBuf, (Stamp, Option<InfoHash>)>,
}

impl AllowList {
    pub fn new(list: Option<PathBuf>, dir: Option<PathBuf>) -> Self {
        Self { list, dir, known: HashMap::new() }
    }

    /// Returns whether every torrent is served.
    pub fn allows_all(&self) -> bool {
        self.list.is_none() && self.dir.is_none()
    }

    /// Reads the list, and the new and changed files of the directory, and returns all served info hashes.
    pub fn read(&mut self) -> Result<HashSet<InfoHash>, AllowError> {
        let mut allowed = match &self.list {
            Some(path) => read_list(path)?,
            None => HashSet::new(),
        };
        self.rescan()?;
        allowed.extend(self.known.values().filter_map(|(_, info_hash)| *info_hash));
        Ok(allowed)
    }

    /// Reads the new and changed files of the directory. Returns whether there were any, or files are gone.
    pub fn rescan(&mut self) -> Result<bool, AllowError> {
        let Some(dir) = &self.dir else { return Ok(false) };
        let found = stamps(dir).map_err(|source| AllowError::Directory { path: dir.clone(), source })?;
        let before = self.known.len();
        self.known.retain(|path, _| found.contains_key(path));
        let mut changed = self.known.len() != before;
        for (path, stamp) in found {
            if self.known.get(&path).is_some_and(|(known, _)| *known == stamp) {
                continue;
            }
            changed = true;
            let info_hash = read_torrent(&path)
                .inspect_err(|why| tracing::warn!("cannot serve the torrent {}: {why}", path.display()))
                .ok();
            self.known.insert(path, (stamp, info_hash));
        }
        Ok(changed)
    }
}

/// Returns the `.torrent` files in a directory.
fn stamps(dir: &Path) -> io::Result<HashMap<PathBuf, Stamp>> {
    let mut found = HashMap::new();
    for entry in fs::read_dir(dir)?.take(MAX_FILES) {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| !extension.eq_ignore_ascii_case("torrent")) {
            continue;
        }
        // A file may be deleted in the meantime. Other kinds, such as a FIFO, could block.
        if let Ok((true, modified, len)) =
            fs::metadata(&path).and_then(|meta| Ok((meta.is_file(), meta.modified()?, meta.len())))
        {
            found.insert(path, (modified, len));
        }
    }
    Ok(found)
}

fn read_torrent(path: &Path) -> Result<InfoHash, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_TORRENT_LEN as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| error.to_string())?;
    Metainfo::parse(&bytes).map(|metainfo| metainfo.info_hash).map_err(|error| error.to_string())
}

fn read_list(path: &Path) -> Result<HashSet<InfoHash>, AllowError> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_LIST_LEN + 1).read_to_end(&mut text));
    let read =
        read.and_then(|len| if len as u64 > MAX_LIST_LEN { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) });
    read.map_err(|source| AllowError::List { path: path.into(), source })?;
    parse_list(&text).map_err(|line| AllowError::Line { path: path.into(), line })
}

/// Parses a list: one info hash per line, optionally followed by a comment; lines that start with `#` are comments. The
/// error is the number of the first invalid line.
fn parse_list(text: &[u8]) -> Result<HashSet<InfoHash>, usize> {
    let mut hashes = HashSet::new();
    for (number, line) in (1usize..).zip(text.split(|byte| *byte == b'\n')) {
        let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        match words.next() {
            None | Some([b'#', ..]) => {}
            Some(word) => {
                let hash = str::from_utf8(word).ok().and_then(|word| word.parse().ok());
                hashes.insert(hash.ok_or(number)?);
            }
        }
    }
    Ok(hashes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "c12fe1c06bba254a9dc9f519b335aa7c1367a88a";

    #[test]
    fn lists() {
        let hash: InfoHash = ONE.parse().unwrap();
        let text = format!("# mine\n\n{ONE}\r\n  {}  a film\n#{ONE}", ONE.to_uppercase().replace('C', "D"));
        let hashes = parse_list(text.as_bytes()).unwrap();
        assert!(hashes.len() == 2 && hashes.contains(&hash));
        assert_eq!(parse_list(b""), Ok(HashSet::new()));
        assert_eq!(parse_list(format!("{ONE}\nnonsense\n").as_bytes()), Err(2));
        assert_eq!(parse_list(&ONE.as_bytes()[1..]), Err(1));
        assert_eq!(parse_list(b"\xff\xfe\n"), Err(1));
    }

    #[test]
    fn changes_in_a_directory_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let torrent = |name: &str| {
            format!(
                "d4:infod6:lengthi5e4:name{}:{name}12:piece lengthi16384e6:pieces20:{}ee",
                name.len(),
                "x".repeat(20)
            )
        };
        let hash = |name: &str| Metainfo::parse(torrent(name).as_bytes()).unwrap().info_hash;
        let mut allow = AllowList::new(None, Some(dir.path().into()));
        assert_eq!(allow.read().unwrap(), HashSet::new());
        write("a.torrent", &torrent("a"));
        write("b.TORRENT", &torrent("bee"));
        write("broken.torrent", "d4:infod");
        write("readme.txt", &torrent("c"));
        assert!(allow.rescan().unwrap() && !allow.rescan().unwrap());
        assert_eq!(allow.read().unwrap(), HashSet::from([hash("a"), hash("bee")]));
        // The rest of the file arrives.
        write("broken.torrent", &torrent("whole"));
        fs::remove_file(dir.path().join("a.torrent")).unwrap();
        assert!(allow.rescan().unwrap());
        assert_eq!(allow.read().unwrap(), HashSet::from([hash("bee"), hash("whole")]));

        let list = dir.path().join("list");
        fs::write(&list, ONE).unwrap();
        let mut both = AllowList::new(Some(list.clone()), Some(dir.path().into()));
        assert_eq!(both.read().unwrap().len(), 3);
        fs::write(&list, "x").unwrap();
        assert_eq!(
            both.read().unwrap_err().to_string(),
            format!("line 1 of the list {} is not an info hash of 40 hexadecimal digits", list.display())
        );
        drop(dir);
        assert!(matches!(allow.rescan(), Err(AllowError::Directory { .. })));
        assert!(matches!(both.read(), Err(AllowError::List { .. })));
    }
}
