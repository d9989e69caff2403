//! Making a `.torrent` file of BitTorrent v1: what is in it, and the hashes of its pieces.
//!
//! Pure but for [`hash_pieces`], which reads what it is given. Walking a directory is for the caller.

use std::io::{self, Read};

use serde::Serialize;
use serde_bytes::Bytes;
use sha1::{Digest, Sha1};

use super::error::MetainfoError;
use super::layout::FileKind;
use super::lengths::{Lengths, LengthsError, MAX_PIECE_LEN};
use super::torrent::Metainfo;

/// A file of a torrent to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Components below the torrent's name. Empty for the only file of a torrent, which bears the torrent's name.
    pub path: Vec<String>,
    /// Bytes; 0 for a link.
    pub len: u64,
    /// What it is. A link's target is relative to the link's own directory, and must not leave the torrent.
    pub kind: FileKind,
}

/// A torrent to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTorrent {
    /// The file's name, or that of the directory of many.
    pub name: String,
    /// Bytes of a piece. By custom a power of two of at least 16 KiB.
    pub piece_len: u32,
    /// In the order in which their bytes are hashed.
    pub files: Vec<NewFile>,
    /// Tracker URLs in tiers (BEP 12).
    pub trackers: Vec<Vec<String>>,
    /// Web seeds (BEP 19).
    pub web_seeds: Vec<String>,
    /// Peers only from these trackers (BEP 27).
    pub private: bool,
    /// Seconds since 1970.
    pub creation_date: Option<i64>,
    /// Free text.
    pub comment: Option<String>,
    /// The program that makes it.
    pub created_by: Option<String>,
    /// Whom it is for: within `info`, so that each source's torrent of the same files is another torrent.
    pub source: Option<String>,
}

/// Why a torrent cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateError {
    /// No bytes, or pieces of an impossible size or number.
    #[error("cannot make a torrent: {0}")]
    Lengths(#[from] LengthsError),
    /// A file of many without a path, or with an impossible one.
    #[error("cannot make a torrent: `{0}` is no path within it")]
    Path(String),
    /// A link's target lies outside the torrent.
    #[error("cannot make a torrent: the link `{0}` leads outside of it")]
    Link(String),
    /// The torrent's name is empty or no name.
    #[error("cannot make a torrent: `{0}` is no name for it")]
    Name(String),
    /// Not one hash a piece.
    #[error("cannot make a torrent: {found} hashes for {pieces} pieces")]
    Hashes {
        /// Hashes there are.
        found: usize,
        /// Pieces there are.
        pieces: u32,
    },
}

/// Why a torrent cannot be made, or nobody would read it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DraftError {
    /// It cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// It would be refused.
    #[error("{0}")]
    Read(#[from] MetainfoError),
}

// The encoder sorts the keys.

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
    /// The torrent as others will read it, with hashes that are not yet known. Tells what is wrong with it, if anything
    /// is, before they are.
    pub fn draft(&self) -> Result<Metainfo, DraftError> {
        let total = self.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.len));
        let lengths = Lengths::new(total, u64::from(self.piece_len)).map_err(CreateError::from)?;
        let torrent = self.build(&vec![[0; 20]; lengths.pieces() as usize])?;
        Ok(Metainfo::parse(&torrent)?)
    }

    /// The content of the `.torrent` file. `hashes` are the SHA-1 of each piece of the files' bytes, one after the
    /// other, as [`hash_pieces`] gives them.
    pub fn build(&self, hashes: &[[u8; 20]]) -> Result<Vec<u8>, CreateError> {
        if !is_name(&self.name) {
            return Err(CreateError::Name(self.name.clone()));
        }
        let total = self.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.len));
        let lengths = Lengths::new(total, u64::from(self.piece_len))?;
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
        // It fails only where a key is not a string, and these are.
        Ok(serde_bencode::to_bytes(&top).expect("the keys are strings"))
    }
}

/// A good length for the pieces of so many bytes: a power of two, such that the hashes are few, yet small, for nothing
/// can be shown before its piece is whole.
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

/// Where a link's target is, as a path from the torrent's root (BEP 47). `None`: not below it.
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

/// Whether a file or directory can be called so.
pub fn is_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains(['/', '\0'])
}

/// Reads to the end and hashes each piece: the hashes, and how many bytes there were. Memory is bounded, whatever the
/// length of a piece, which must not be 0.
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
        let piece_begun = missing < piece_len as usize;
        if missing == 0 || (read == 0 && piece_begun) {
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
    fn what_is_made_is_what_is_read() {
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
            assert_eq!(read.hashes.check(piece, data), Verdict::Good);
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
    fn a_draft_is_all_but_the_hashes() {
        let torrent = NewTorrent { name: "t".into(), piece_len: 4, files: vec![file(&["a"], 9)], ..Default::default() };
        let draft = torrent.draft().unwrap();
        assert_eq!((draft.layout.lengths().pieces(), draft.layout.files()[0].len), (3, 9));
        let deep = NewTorrent { files: vec![file(&["d"; 65], 9)], ..torrent.clone() };
        assert!(deep.draft().unwrap_err().to_string().contains("too deep"));
        assert!(NewTorrent { files: vec![file(&["a"], 0)], ..torrent }.draft().is_err());
    }

    #[test]
    fn refuses_what_it_would_not_read_back() {
        let sound = NewTorrent { name: "t".into(), piece_len: 4, files: vec![file(&["a"], 4)], ..Default::default() };
        let hashes = [[0; 20]];
        assert!(sound.build(&hashes).is_ok());
        assert_eq!(sound.build(&[]), Err(CreateError::Hashes { found: 0, pieces: 1 }));
        assert_eq!(
            NewTorrent { files: vec![], ..sound.clone() }.build(&hashes),
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
        fn pieces_are_hashed_whatever_the_reads(
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
