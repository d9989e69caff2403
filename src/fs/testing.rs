//! Artificial torrents for the unit tests of `fs`.

use crate::metainfo::{File, FileKind, InfoHash, Layout, Lengths, Metainfo, PieceHashes};

/// Returns a regular file; [`metainfo`] sets its offset.
pub fn file(path: &str, len: u64) -> File {
    let path = path.split('/').map(str::to_owned).collect();
    File { path, offset: 0, len, kind: FileKind::Regular { executable: false } }
}

impl File {
    pub(super) fn pad(self) -> Self {
        Self { kind: FileKind::Pad, ..self }
    }

    pub(super) fn executable(self) -> Self {
        Self { kind: FileKind::Regular { executable: true }, ..self }
    }

    pub(super) fn symlink(self, target: &str) -> Self {
        Self { kind: FileKind::Symlink { target: target.to_owned() }, ..self }
    }
}

/// Returns a torrent of these files, one after the other, in pieces of 4 bytes.
pub fn metainfo(seed: u8, name: &str, mut files: Vec<File>) -> Metainfo {
    let mut total = 0;
    for file in &mut files {
        file.offset = total;
        total += file.len;
    }
    Metainfo {
        info_hash: InfoHash::of(&[seed]),
        name: name.to_owned(),
        private: false,
        trackers: Vec::new(),
        web_seeds: Vec::new(),
        http_seeds: Vec::new(),
        nodes: Vec::new(),
        creation_date: Some(1_000_000_000),
        comment: None,
        created_by: None,
        source: None,
        layout: Layout::new(Lengths::new(total, 4).unwrap(), files).into(),
        hashes: PieceHashes::v1(Vec::new()),
        info: bytes::Bytes::new().into(),
    }
}
