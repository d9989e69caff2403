//! Parsing of `.torrent` files: BitTorrent v1 (BEP 3), and hybrids through their v1 half.
//!
//! A field that the filesystem needs is required, and an error names it if it is missing or invalid. Any other invalid
//! field is ignored, because it must not prevent access to the files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::{IgnoredAny, SeqAccess};

use super::bencode::{self, Field, Limits, List, Shape, dict};
use super::error::{Location, MetainfoError};
use super::file_tree::FileTree;
use super::files::{self, required, size};
use super::gzip;
use super::identity::InfoHash;
use super::layout::{File, FileIndex, FileKind, Layout, MAX_FILES};
use super::legacy::{self, Decoder};
use super::lengths::{Lengths, LengthsError};
use super::names;
use super::piece_hashes::PieceHashes;
use super::raw_info::RawInfo;
use super::sniff::{self, Kind};

/// Size limit of a `.torrent` file in bytes. The hashes of the largest accepted number of pieces fit.
pub const MAX_TORRENT_LEN: usize = Limits::TORRENT.bytes;

/// Limit on trackers per tier, tiers, web seeds of each kind, and DHT nodes; further ones are ignored to bound memory.
const MAX_SOURCES: usize = 128;
/// Length limit of a URL in bytes; longer ones are ignored.
const MAX_URL_LEN: usize = 4096;
/// Length limit of a comment and the like in bytes; longer ones are cut.
const MAX_TEXT_LEN: usize = 16 << 10;
/// The fault of a hybrid torrent whose halves differ. Some clients would get one torrent, some another.
const OTHER_FILES: &str = "it has other files than the torrent's `files`";
/// Latest valid creation date: the end of the year 9999, in seconds since 1970. RFC 3339 has no later year.
pub const MAX_DATE: i64 = 253_402_300_799;

/// The content of a `.torrent` file.
#[derive(Clone, Debug)]
pub struct Metainfo {
    /// Identifies the torrent on the network.
    pub info_hash: InfoHash,
    /// Suggested name of the file or directory, made safe. The first component of every file's path.
    pub name: String,
    /// Whether peers may come only from its trackers (BEP 27).
    pub private: bool,
    /// Tracker URLs in tiers (BEP 12), in the order of the file; `announce` alone makes one tier. Neither these URLs nor
    /// those of the seeds below have been parsed.
    pub trackers: Vec<Vec<String>>,
    /// Web seeds: `url-list` (BEP 19).
    pub web_seeds: Vec<String>,
    /// HTTP seeds: `httpseeds` (BEP 17).
    pub http_seeds: Vec<String>,
    /// DHT nodes, host and port (BEP 5).
    pub nodes: Vec<(String, u16)>,
    /// Creation date in seconds since 1970, from 0 to [`MAX_DATE`].
    pub creation_date: Option<i64>,
    /// Free text by the torrent's creator.
    pub comment: Option<String>,
    /// The program that created the torrent.
    pub created_by: Option<String>,
    /// The site that the torrent was created for. Part of `info`, so it changes the info hash.
    pub source: Option<String>,
    /// Pieces and files, shared with the store.
    pub layout: Arc<Layout>,
    /// Hashes that verify the pieces.
    pub hashes: PieceHashes,
    /// The raw `info` value, as hashed. Peers that have only a magnet link download it (BEP 9).
    pub info: RawInfo,
}

dict! {
    struct Top {
        announce: Vec<u8> = "announce",
        announce_list: List<List<Vec<u8>, MAX_SOURCES>, MAX_SOURCES> = "announce-list",
        comment: Vec<u8> = "comment",
        comment_utf8: Vec<u8> = "comment.utf-8",
        codepage: i64 = "codepage",
        created_by: Vec<u8> = "created by",
        creation_date: i64 = "creation date",
        encoding: Vec<u8> = "encoding",
        url_list: OneOrMore = "url-list",
        http_seeds: OneOrMore = "httpseeds",
        nodes: List<Node, MAX_SOURCES> = "nodes",
    }
}

dict! {
    struct Info {
        name: Vec<u8> = "name",
        name_utf8: Vec<u8> = "name.utf-8",
        piece_length: i64 = "piece length",
        length: i64 = "length",
        attr: Vec<u8> = "attr",
        files: List<files::Entry, MAX_FILES> = "files",
        private: i64 = "private",
        meta_version: i64 = "meta version",
        file_tree: FileTree = "file tree",
        source: Vec<u8> = "source",
    }
}

impl Metainfo {
    /// Parses a `.torrent` file, which may be compressed with gzip. Bytes after the dictionary are ignored: some sites add
    /// white space, zeros or the output of a script.
    pub fn parse(bytes: &[u8]) -> Result<Self, MetainfoError> {
        let bytes = &*dictionary(bytes)?;
        Self::parse_dictionary(bytes, |info| Bytes::copy_from_slice(&bytes[info]))
    }

    /// Parses like [`Self::parse`], but makes no copy of the largest part of the file.
    pub fn parse_owned(bytes: Bytes) -> Result<Self, MetainfoError> {
        let plain = match dictionary(&bytes)? {
            Cow::Borrowed(plain) => bytes.slice_ref(plain),
            Cow::Owned(plain) => plain.into(),
        };
        // The hashes of a hybrid's other half are not kept in memory.
        let share = |info: Range<usize>| match info.len() >= plain.len() / 4 * 3 {
            true => plain.slice(info),
            false => Bytes::copy_from_slice(&plain[info]),
        };
        Self::parse_dictionary(&plain, share)
    }

    /// Parses the dictionary that takes up all of `bytes`; `take` returns a part of them.
    fn parse_dictionary(bytes: &[u8], take: impl FnOnce(Range<usize>) -> Bytes) -> Result<Self, MetainfoError> {
        let (top, span) = bencode::decode_without::<Field<Top>>(bytes, b"info", &Limits::TORRENT)?;
        let top = top.ok().ok_or(MetainfoError::NotADictionary)?;
        let span = span.ok_or_else(|| match sniff::kind(bytes) {
            kind @ (Kind::TrackerReply(_) | Kind::Resume) => MetainfoError::Other(kind),
            _ => MetainfoError::Missing { location: Location::Top, key: "info" },
        })?;
        let raw = take(span);
        let (info, pieces) = bencode::decode_without::<Field<Info>>(&raw, b"pieces", &Limits::TORRENT)?;
        let info = required(info, Location::Top, "info")?;
        let pieces = match pieces {
            None => Field::Absent,
            Some(value) => match bencode::string_in(&raw[value.clone()]) {
                Some(content) => Field::Is(value.start + content.start..value.start + content.end),
                None => Field::Wrong,
            },
        };

        let raw_info = RawInfo::new(raw);
        let info_hash = raw_info.info_hash();
        let stated = legacy::stated(top.encoding.ok().as_deref(), top.codepage.ok());
        let decoder = Decoder::new(stated, info.legacy_names());
        let text = |raw: Field<Vec<u8>>| text(raw, &decoder);
        let name = info.name(info_hash, &decoder)?;
        let private = info.private == Field::Is(1);
        let source = text(info.source.clone());
        let (layout, hashes) = info.into_content(&name, &decoder, pieces)?;
        Ok(Self {
            info_hash,
            name,
            private,
            trackers: trackers(top.announce, top.announce_list),
            web_seeds: seeds(top.url_list),
            http_seeds: seeds(top.http_seeds),
            nodes: top
                .nodes
                .ok()
                .into_iter()
                .flat_map(List::valid_items)
                .map(|Node(host, port)| (host, port))
                .collect(),
            creation_date: top.creation_date.ok().filter(|date| (0..=MAX_DATE).contains(date)),
            comment: text(top.comment_utf8).or_else(|| text(top.comment)),
            created_by: text(top.created_by),
            source,
            layout: layout.into(),
            hashes: PieceHashes::in_info(raw_info.clone(), hashes),
            info: raw_info,
        })
    }
}

/// Returns the dictionary of a `.torrent` file: decompressed, and without what surrounds it.
pub(super) fn dictionary(bytes: &[u8]) -> Result<Cow<'_, [u8]>, MetainfoError> {
    if gzip::is_gzip(bytes) {
        let plain = gzip::gunzip(bytes, MAX_TORRENT_LEN)?;
        let span = dictionary_span(&plain)?;
        return Ok(plain[span].to_vec().into());
    }
    Ok(bytes[dictionary_span(bytes)?].into())
}

fn dictionary_span(bytes: &[u8]) -> Result<Range<usize>, MetainfoError> {
    // A byte order mark, which some editors add.
    let start = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).trim_ascii_start();
    let skipped = bytes.len() - start.len();
    match start {
        [b'd', b'0'..=b'9' | b'e', ..] => {}
        [b'l' | b'i', ..] if bencode::decode_prefix::<IgnoredAny>(start, &Limits::TORRENT).is_ok() => {
            return Err(MetainfoError::NotADictionary);
        }
        _ => return Err(MetainfoError::Other(sniff::kind(bytes))),
    }
    let len = bencode::len_of(start, &Limits::TORRENT)?;
    // A word that begins like an empty dictionary.
    if len == 2 && !start[len..].trim_ascii().is_empty() {
        return Err(MetainfoError::Other(sniff::kind(bytes)));
    }
    Ok(skipped..skipped + len)
}

impl Metainfo {
    /// Returns whether the torrent also has a BitTorrent v2 half. May block, like what follows: see [`RawInfo::load`].
    pub fn is_hybrid(&self) -> bool {
        let info = self.info.load().unwrap_or_default();
        matches!(bencode::span_of(&info, b"file tree", &Limits::TORRENT), Ok(Some(_)))
    }

    /// Returns the original paths, below the torrent's name, of files whose paths were changed to be safe. Another program
    /// may have written the files under them. Paths that leave the torrent's directory are omitted.
    pub fn raw_paths(&self) -> HashMap<FileIndex, PathBuf> {
        let info = self.info.load().unwrap_or_default();
        let info = bencode::decode_without::<Field<Info>>(&info, b"pieces", &Limits::TORRENT).ok();
        let info = info.and_then(|(info, _)| info.ok());
        let entries = info.and_then(|info| info.files.ok()).map_or_else(Vec::new, |files| files.items);
        let raw = |(entry, file): (Field<files::Entry>, &File)| {
            let path: PathBuf = entry.ok()?.raw_path()?.into_iter().map(OsString::from_vec).collect();
            (path != file.path[1..].iter().collect::<PathBuf>()).then_some(path)
        };
        let paths = entries.into_iter().zip(self.layout.files()).map(raw);
        (0..).map(FileIndex).zip(paths).filter_map(|(index, path)| Some((index, path?))).collect()
    }
}

impl Info {
    /// Returns the names that may be in a legacy encoding: those without a UTF-8 form beside them.
    fn legacy_names(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let name = match (&self.name_utf8, &self.name) {
            (Field::Is(utf8), _) if std::str::from_utf8(utf8).is_ok() => None,
            (_, Field::Is(name)) => Some(name.as_slice()),
            _ => None,
        };
        let entries = match &self.files {
            Field::Is(files) => files.items.as_slice(),
            _ => &[],
        };
        name.into_iter().chain(entries.iter().flat_map(files::legacy_names))
    }

    /// Returns the name, made safe. The info hash, which is unique, replaces an empty name, `.` and `..`.
    fn name(&self, info_hash: InfoHash, decoder: &Decoder) -> Result<String, MetainfoError> {
        let (name, decoder) = match (&self.name_utf8, &self.name) {
            (Field::Is(name), _) if std::str::from_utf8(name).is_ok() => (name, &Decoder::default()),
            (_, Field::Is(name)) => (name, decoder),
            (_, Field::Absent) => return Err(MetainfoError::Missing { location: Location::Info, key: "name" }),
            (_, Field::Wrong) => {
                return Err(MetainfoError::Kind { location: Location::Info, key: "name", wanted: Vec::<u8>::KIND });
            }
        };
        let is_blank = matches!(name.as_slice(), b"" | b"." | b"..");
        Ok(if is_blank { info_hash.to_string() } else { names::safe(&decoder.decode(name)) })
    }

    /// Returns the files, and where in `info` the piece hashes are; `pieces` is the range of that string.
    fn into_content(
        self,
        name: &str,
        decoder: &Decoder,
        pieces: Field<Range<usize>>,
    ) -> Result<(Layout, Range<usize>), MetainfoError> {
        let location = Location::Info;
        let tree = match self.file_tree {
            Field::Absent => None,
            Field::Wrong => return Err(MetainfoError::FileTree("it is not a dictionary")),
            Field::Is(FileTree { fault: Some(fault), .. }) => return Err(MetainfoError::FileTree(fault)),
            Field::Is(tree) => Some(tree),
        };
        let is_v2 = tree.is_some() || matches!(self.meta_version, Field::Is(2..));
        if is_v2 && pieces == Field::Absent {
            return Err(MetainfoError::V2Only);
        }

        let piece_len = required(self.piece_length, location, "piece length")?;
        let piece_len = u64::try_from(piece_len).map_err(|_| MetainfoError::Negative {
            location,
            key: "piece length",
            value: piece_len,
        })?;
        let files = match self.files {
            Field::Absent => {
                let executable = self.attr.ok().is_some_and(|attr| attr.contains(&b'x'));
                let kind = FileKind::Regular { executable };
                let len = size(self.length, location)?;
                let names = [self.name.ok(), self.name_utf8.ok()];
                if tree.is_some_and(|tree| !tree.is_one_file(names.iter().flatten(), len)) {
                    return Err(MetainfoError::FileTree(OTHER_FILES));
                }
                if len == 0 {
                    return Err(LengthsError::Empty.into());
                }
                vec![File { path: vec![name.to_owned()], offset: 0, len, kind }]
            }
            entries => {
                let entries = required(entries, location, "files")?;
                let is_same = tree.is_none_or(|tree| tree.has_the_files(&entries.items));
                let files = files::read(name, decoder, entries)?;
                if !is_same {
                    return Err(MetainfoError::FileTree(OTHER_FILES));
                }
                if files.iter().all(File::is_pad) {
                    return Err(LengthsError::Empty.into());
                }
                files
            }
        };
        let total = files.last().map_or(0, |last| last.offset.saturating_add(last.len));
        let lengths = Lengths::new(total, piece_len)?;

        let pieces = match pieces {
            Field::Is(pieces) => pieces,
            Field::Absent => return Err(MetainfoError::Missing { location, key: "pieces" }),
            Field::Wrong => return Err(MetainfoError::Kind { location, key: "pieces", wanted: Vec::<u8>::KIND }),
        };
        if pieces.len() as u64 != u64::from(lengths.pieces()) * 20 {
            return Err(MetainfoError::Pieces { found: pieces.len(), pieces: lengths.pieces() });
        }
        Ok((Layout::new(lengths, files), pieces))
    }
}

/// A string or a list of strings; `url-list` may be either (BEP 19).
struct OneOrMore(Vec<Vec<u8>>);

impl Shape for OneOrMore {
    const KIND: &'static str = "a string or a list of strings";

    fn string(text: &[u8]) -> Option<Self> {
        Some(Self(vec![text.to_vec()]))
    }

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Option<Self>, A::Error> {
        let list: Option<List<Vec<u8>, MAX_SOURCES>> = Shape::list(list)?;
        Ok(list.map(|list| Self(list.valid_items().collect())))
    }
}

/// A host and a port (BEP 5).
struct Node(String, u16);

/// An item of a list with items of several kinds.
enum Scalar {
    Number(i64),
    Text(Vec<u8>),
}

impl Shape for Scalar {
    const KIND: &'static str = "a number or a string";

    fn integer(number: i64) -> Option<Self> {
        Some(Self::Number(number))
    }

    fn string(text: &[u8]) -> Option<Self> {
        Some(Self::Text(text.to_vec()))
    }
}

impl Shape for Node {
    const KIND: &'static str = "a list of a host and a port";

    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Option<Self>, A::Error> {
        let pair: Option<List<Scalar, 2>> = Shape::list(list)?;
        let Some(Ok([Scalar::Text(host), Scalar::Number(port)])) =
            pair.and_then(List::all_items).map(<[_; 2]>::try_from)
        else {
            return Ok(None);
        };
        let host = String::from_utf8(host).ok();
        let host = host.filter(|host| (1..=255).contains(&host.len()) && host.chars().all(|c| c.is_ascii_graphic()));
        let port = u16::try_from(port).ok().filter(|port| *port != 0);
        Ok(host.zip(port).map(|(host, port)| Node(host, port)))
    }
}

/// Returns a trimmed URL, if it is UTF-8 and within the length limit. Its users parse it.
fn url(raw: Vec<u8>) -> Option<String> {
    let url = String::from_utf8(raw).ok()?;
    let url = url.trim();
    let sound = !url.is_empty() && url.len() <= MAX_URL_LEN && !url.contains(char::is_control);
    sound.then(|| url.to_owned())
}

/// Returns the trackers in tiers. `announce` counts only if there is no list (BEP 12).
fn trackers(announce: Field<Vec<u8>>, list: Field<List<List<Vec<u8>, MAX_SOURCES>, MAX_SOURCES>>) -> Vec<Vec<String>> {
    let tiers =
        list.ok().into_iter().flat_map(List::valid_items).map(|tier| tier.valid_items().filter_map(url).collect());
    let tiers: Vec<Vec<String>> = tiers.filter(|tier: &Vec<String>| !tier.is_empty()).collect();
    if !tiers.is_empty() {
        return tiers;
    }
    announce.ok().and_then(url).map(|url| vec![vec![url]]).unwrap_or_default()
}

/// Returns each URL once, in the order of the torrent.
fn seeds(list: Field<OneOrMore>) -> Vec<String> {
    let mut seeds = Vec::new();
    for seed in list.ok().into_iter().flat_map(|OneOrMore(urls)| urls).filter_map(url) {
        if !seeds.contains(&seed) {
            seeds.push(seed);
        }
    }
    seeds
}

/// Returns a text, which is in the encoding of the names unless it does not fit.
fn text(raw: Field<Vec<u8>>, names: &Decoder) -> Option<String> {
    // The text may be most of a large file.
    let raw = raw.ok().filter(|raw| !raw.is_empty())?;
    let head = &raw[..raw.len().min(MAX_TEXT_LEN)];
    let decoder = Decoder::new(names.legacy(), std::iter::once(head));
    Some(names::clean_text(decoder.decode(head).as_bytes(), MAX_TEXT_LEN))
}

#[cfg(test)]
mod tests;
