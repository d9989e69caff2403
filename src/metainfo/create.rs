//! Creation of BitTorrent v1 `.torrent` files.
//!
//! Pure, except that [`hash_pieces`] reads from the reader that it is given. The caller walks directories.

use std::io::{self, Read};

use serde::Serialize;
use serde_bytes::Bytes;
use sha1::{Digest, Sha1};

use super::error::MetainfoError;
use super::layout::FileKind;
use super::lengths::{Lengths, LengthsError, MAX_PIECE_LEN};
use super::torrent::Metainfo;

/// A file of a new torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Path components below the torrent's name. Empty for a torrent's only file, which has the torrent's name.
    pub path: Vec<String>,
    /// Size in bytes; 0 for a link.
    pub len: u64,
    /// The kind of file. A link's target is relative to the link's own directory and must stay inside the torrent.
    pub kind: FileKind,
}

/// A new torrent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTorrent {
    /// Name of the single file, or of the directory of several.
    pub name: String,
    /// Length of a piece in bytes; by convention a power of two of at least 16 KiB.
    pub piece_len: u32,
    /// Files, in the order in which their bytes are hashed.
    pub files: Vec<NewFile>,
    /// Tracker URLs in tiers (BEP 12).
    pub trackers: Vec<Vec<String>>,
    /// Web seeds (BEP 19).
    pub web_seeds: Vec<String>,
    /// Whether peers may come only from these trackers (BEP 27).
    pub private: bool,
    /// Creation date in seconds since 1970.
    pub creation_date: Option<i64>,
    /// Free text for readers of the torrent.
    pub comment: Option<String>,
    /// The program that creates it.
    pub created_by: Option<String>,
    /// The site that it is created for. Part of `info`, so torrents of the same files for two sites have different hashes.
    pub source: Option<String>,
}

/// Why a torrent cannot be created.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// There are no bytes, or the pieces have an impossible size or number.
    #[error("cannot create the torrent: {0}")]
    Lengths(#[from] LengthsError),
    /// One of several files has no path, or an invalid one.
    #[error("cannot create the torrent: `{0}` is not a valid path within it")]
    Path(String),
    /// The target of a link is outside the torrent.
    #[error("cannot create the torrent: the link `{0}` points outside it")]
    Link(String),
    /// The torrent's name is not a valid file name.
    #[error("cannot create the torrent: `{0}` is not a valid file name")]
    Name(String),
    /// There is not one hash per piece.
    #[error("cannot create the torrent: it has {found} hashes for {pieces} pieces")]
    Hashes {
        /// Number of hashes.
        found: usize,
        /// Number of pieces.
        pieces: u32,
    },
}

/// Why a torrent cannot be created, or would be refused by our own parser.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// It cannot be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The parser would refuse it.
    #[error("{0}")]
    Read(#[from] MetainfoError),
}

// The structs list the keys in any order: the encoder sorts them.

#[derive(Serialize)]
struct Top<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    announce: Option<&'a str>,
    #[serde(rename = "announce-list", skip_serializing_if = "Option::is_none")]
    announce_list: Option<&'a [Vec<String>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<&'a str>,
    #[serde(rename = "created by", skip_serializing_if = "Option::is_none")]
    created_by: Option<&'a str>,
    #[serde(rename = "creation date", skip_serializing_if = "Option::is_none")]
    creation_date: Option<i64>,
    info: Info<'a>,
    #[serde(rename = "url-list", skip_serializing_if = "<[String]>::is_empty")]
    url_list: &'a [String],
}

#[derive(Serialize)]
struct Info<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    attr: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<Entry<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    length: Option<u64>,
    name: &'a str,
    #[serde(rename = "piece length")]
    piece_length: u32,
    pieces: &'a Bytes,
    #[serde(skip_serializing_if = "Option::is_none")]
    private: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
}

#[derive(Serialize)]
struct Entry<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    attr: Option<&'static str>,
    length: u64,
    path: &'a [String],
    #[serde(rename = "symlink path", skip_serializing_if = "Option::is_none")]
    symlink_path: Option<Vec<String>>,
}

impl NewTorrent {
    /// Returns the torrent as its readers will see it, with placeholder hashes. Finds faults before the files are hashed.
    pub fn draft(&self) -> Result<Metainfo, DraftError> {
        let total = self.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.len));
        let lengths = Lengths::new(total, u64::from(self.piece_len)).map_err(CreateError::from)?;
        let torrent = self.build(&vec![[0; 20]; lengths.pieces() as usize])?;
        Ok(Metainfo::parse(&torrent)?)
    }

    /// Returns the content of the `.torrent` file. `hashes` holds the SHA-1 of each piece of the concatenated files, as
    /// [`hash_pieces`] returns them.
    pub fn build(&self, hashes: &[[u8; 20]]) -> Result<Vec<u8>, CreateError> {
        if !is_name(&self.name) {
            return Err(CreateError::Name(self.name.clone()));
        }
        let total = self.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.len));
        let lengths = Lengths::new(total, u64::from(self.piece_len))?;
        let only_empty = self.files.iter().all(|file| file.path.is_empty() || file.kind == FileKind::Pad);
        if total == 0 && only_empty {
            return Err(LengthsError::Empty.into());
        }
        if hashes.len() != lengths.pieces() as usize {
            return Err(CreateError::Hashes { found: hashes.len(), pieces: lengths.pieces() });
        }

        let single = match self.files.as_slice() {
            [file] if file.path.is_empty() => Some(file),
            _ => None,
        };
        let files = match single {
            Some(_) => None,
            None => Some(self.files.iter().map(entry).collect::<Result<_, _>>()?),
        };
        let first = self.trackers.iter().flatten().next();
        let top = Top {
            announce: first.map(String::as_str),
            announce_list: (self.trackers.iter().flatten().count() > 1).then_some(&self.trackers),
            comment: self.comment.as_deref(),
            created_by: self.created_by.as_deref(),
            creation_date: self.creation_date,
            info: Info {
                attr: single.and_then(|file| attr(&file.kind)),
                files,
                length: single.map(|file| file.len),
                name: &self.name,
                piece_length: self.piece_len,
                pieces: Bytes::new(hashes.as_flattened()),
                private: self.private.then_some(1),
                source: self.source.as_deref(),
            },
            url_list: &self.web_seeds,
        };
        // Encoding fails only if a key is not a string. Field names are strings.
        Ok(serde_bencode::to_bytes(&top).expect("the keys are strings"))
    }
}

/// Returns a good piece length for a torrent of `total` bytes: a power of two that keeps the number of hashes low, but as
/// short as possible, because no byte can be read before its whole piece has arrived.
pub fn piece_len_for(total: u64) -> u32 {
    let (small, large) = (16 << 10, 4 << 20);
    let fits = |len: &u32| total.div_ceil(u64::from(*len)) <= if *len < large { 2048 } else { 1 << 16 };
    std::iter::successors(Some(small), |len| (*len < MAX_PIECE_LEN).then(|| len * 2))
        .find(fits)
        .unwrap_or(MAX_PIECE_LEN)
}

fn entry(file: &NewFile) -> Result<Entry<'_>, CreateError> {
    if file.path.is_empty() || !file.path.iter().all(|part| is_name(part)) {
        return Err(CreateError::Path(file.path.join("/")));
    }
    let symlink_path = match &file.kind {
        FileKind::Symlink { target } => {
            Some(link_target(&file.path, target).ok_or_else(|| CreateError::Link(file.path.join("/")))?)
        }
        FileKind::Regular { .. } | FileKind::Pad => None,
    };
    Ok(Entry { attr: attr(&file.kind), length: file.len, path: &file.path, symlink_path })
}

fn attr(kind: &FileKind) -> Option<&'static str> {
    match kind {
        FileKind::Regular { executable: true } => Some("x"),
        FileKind::Regular { executable: false } => None,
        FileKind::Symlink { .. } => Some("l"),
        FileKind::Pad => Some("p"),
    }
}

/// Returns a link's target as a path from the torrent's root (BEP 47), or `None` if it is not below the root.
pub fn link_target(link: &[String], target: &str) -> Option<Vec<String>> {
    if target.starts_with('/') {
        return None;
    }
    let mut at: Vec<&str> = link[..link.len() - 1].iter().map(String::as_str).collect();
    for step in target.split('/') {
        match step {
            "" | "." => {}
            ".." => drop(at.pop()?),
            name => at.push(name),
        }
    }
    (!at.is_empty()).then(|| at.into_iter().map(str::to_owned).collect())
}

/// Returns whether `name` is valid for a file or directory.
pub fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Reads `content` to its end. Returns the hash of each piece and the number of bytes. Its memory does not depend on
/// `piece_len`, which must not be 0.
pub fn hash_pieces(mut content: impl Read, piece_len: u32) -> io::Result<(Vec<[u8; 20]>, u64)> {
    if piece_len == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a piece must have at least one byte"));
    }
    let mut buffer = vec![0; 64 << 10];
    let mut hashes = Vec::new();
    let mut total = 0;
    let mut hash = Sha1::new();
    let mut missing = piece_len as usize;
    loop {
        let want = missing.min(buffer.len());
        let read = match content.read(&mut buffer[..want]) {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..read]);
        total += read as u64;
        missing -= read;
        let piece_started = missing < piece_len as usize;
        if missing == 0 || (read == 0 && piece_started) {
            hashes.push(hash.finalize_reset().into());
            missing = piece_len as usize;
        }
        if read == 0 {
            return Ok((hashes, total));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::{Metainfo, Verdict};
    use proptest::prelude::*;

    const REGULAR: FileKind = FileKind::Regular { executable: false };

    fn file(path: &[&str], len: u64) -> NewFile {
        NewFile { path: path.iter().map(|part| part.to_string()).collect(), len, kind: REGULAR }
    }

    fn link(path: &[&str], target: &str) -> NewFile {
        NewFile { kind: FileKind::Symlink { target: target.into() }, ..file(path, 0) }
    }

    #[test]
    fn a_single_file_is_canonical_bencode() {
        let torrent = NewTorrent {
            name: "temp".into(),
            piece_len: 16384,
            files: vec![file(&[], 3)],
            trackers: vec![vec!["http://127.0.0.1/announce".into()]],
            creation_date: Some(7),
            ..Default::default()
        };
        let bytes = torrent.build(&[*b"aaaaaaaaaaaaaaaaaaaa"]).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "d8:announce25:http://127.0.0.1/announce13:creation datei7e4:infod6:lengthi3e4:name4:temp\
             12:piece lengthi16384e6:pieces20:aaaaaaaaaaaaaaaaaaaaee"
        );
    }

    #[test]
    fn a_created_torrent_parses_to_the_same_content() {
        let content: Vec<u8> = (0..50_000u32).map(|n| (n % 251) as u8).collect();
        let (hashes, total) = hash_pieces(content.as_slice(), 16384).unwrap();
        assert_eq!((hashes.len(), total), (4, 50_000));
        let trackers = vec![vec!["http://127.0.0.1:1/a".to_owned(), "udp://127.0.0.1:2".to_owned()]];
        let torrent = NewTorrent {
            name: "two".into(),
            piece_len: 16384,
            files: vec![
                NewFile { kind: FileKind::Regular { executable: true }, ..file(&["bin", "run"], 20_000) },
                file(&["text"], 30_000),
                link(&["a", "link"], "../bin/run"),
                link(&["dir"], "./bin"),
            ],
            trackers: trackers.clone(),
            web_seeds: vec!["http://127.0.0.1:3/".into()],
            source: Some("us".into()),
            private: true,
            creation_date: Some(1_700_000_000),
            comment: Some("a\ncomment".into()),
            created_by: Some("torrentfs".into()),
        };
        let read = Metainfo::parse(&torrent.build(&hashes).unwrap()).unwrap();
        assert_eq!((read.name.as_str(), read.private, &read.trackers), ("two", true, &trackers));
        assert_eq!((read.creation_date, read.comment.as_deref()), (Some(1_700_000_000), Some("a\ncomment")));
        assert_eq!(read.created_by.as_deref(), Some("torrentfs"));
        assert_eq!((read.source.as_deref(), read.web_seeds.as_slice()), (Some("us"), &torrent.web_seeds[..]));
        let files = read.layout.files();
        assert_eq!(files[0].path, ["two", "bin", "run"]);
        assert_eq!(files[0].kind, FileKind::Regular { executable: true });
        assert_eq!((files[1].path.join("/"), files[1].range()), ("two/text".to_owned(), 20_000..50_000));
        assert_eq!(files[2].kind, FileKind::Symlink { target: "../bin/run".into() });
        assert_eq!(files[3].kind, FileKind::Symlink { target: "bin".into() });
        for piece in read.layout.lengths().iter() {
            let range = read.layout.lengths().range_of(piece);
            let data = &content[range.start as usize..range.end as usize];
            assert_eq!(read.hashes.check(piece, data).unwrap(), Verdict::Good);
        }
    }

    #[test]
    fn pieces_are_few_but_small() {
        let (kib, mib, gib) = (1u64 << 10, 1u64 << 20, 1u64 << 30);
        let cases = [
            (0, 16 * kib),
            (32 * mib, 16 * kib),
            (32 * mib + 1, 32 * kib),
            (gib, 512 * kib),
            (8 * gib, 4 * mib),
            (256 * gib, 4 * mib),
            (256 * gib + 1, 8 * mib),
            (u64::MAX, 128 * mib),
        ];
        for (total, len) in cases {
            assert_eq!(u64::from(piece_len_for(total)), len, "{total}");
        }
    }

    #[test]
    fn a_draft_has_everything_but_the_hashes() {
        let torrent = NewTorrent { name: "t".into(), piece_len: 4, files: vec![file(&["a"], 9)], ..Default::default() };
        let draft = torrent.draft().unwrap();
        assert_eq!((draft.layout.lengths().pieces(), draft.layout.files()[0].len), (3, 9));
        let deep = NewTorrent { files: vec![file(&["d"; 65], 9)], ..torrent.clone() };
        assert!(deep.draft().unwrap_err().to_string().contains("too deep"));
        let empty = NewTorrent { files: vec![file(&["a"], 0), file(&["b"], 0)], ..torrent.clone() }.draft().unwrap();
        assert_eq!((empty.layout.lengths().pieces(), empty.layout.files().len()), (0, 2));
        let error = NewTorrent { files: vec![file(&[], 0)], ..torrent }.draft().unwrap_err();
        assert!(error.to_string().contains("one empty file"), "{error}");
    }

    #[test]
    fn torrents_that_would_not_parse_are_refused() {
        let sound = NewTorrent { name: "t".into(), piece_len: 4, files: vec![file(&["a"], 4)], ..Default::default() };
        let hashes = [[0; 20]];
        assert!(sound.build(&hashes).is_ok());
        assert_eq!(sound.build(&[]), Err(CreateError::Hashes { found: 0, pieces: 1 }));
        assert_eq!(
            NewTorrent { files: vec![], ..sound.clone() }.build(&[]),
            Err(CreateError::Lengths(LengthsError::Empty))
        );
        for name in ["", ".", "..", "a/b"] {
            assert_eq!(
                NewTorrent { name: name.into(), ..sound.clone() }.build(&hashes),
                Err(CreateError::Name(name.into()))
            );
            assert!(NewTorrent { files: vec![file(&["d", name], 4)], ..sound.clone() }.build(&hashes).is_err());
        }
        for target in ["/a", "..", "../..", ".", "", "../b"] {
            let files = vec![file(&["a"], 4), link(&["l"], target)];
            assert_eq!(NewTorrent { files, ..sound.clone() }.build(&hashes), Err(CreateError::Link("l".into())));
        }
        let two = NewTorrent { files: vec![file(&[], 2), file(&["b"], 2)], ..sound.clone() };
        assert_eq!(two.build(&hashes), Err(CreateError::Path(String::new())));
    }

    proptest! {
        #[test]
        fn piece_hashes_do_not_depend_on_the_read_sizes(
            content in proptest::collection::vec(any::<u8>(), 0..300),
            piece_len in 1u32..50,
            read_len in 1usize..40,
        ) {
            struct Slow<'a>(&'a [u8], usize);
            impl Read for Slow<'_> {
                fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                    let len = buffer.len().min(self.1);
                    self.0.read(&mut buffer[..len])
                }
            }
            let expected: Vec<[u8; 20]> =
                content.chunks(piece_len as usize).map(|piece| Sha1::digest(piece).into()).collect();
            let found = hash_pieces(Slow(&content, read_len), piece_len).unwrap();
            prop_assert_eq!(found, (expected, content.len() as u64));
        }
    }
}
