//! Parsing of `.torrent` files: BitTorrent v1 (BEP 3), and hybrids through their v1 half.
//!
//! A field that the filesystem needs is required, and an error names it if it is missing or invalid. Any other invalid
//! field is ignored, because it must not prevent access to the files.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use serde::de::SeqAccess;

use super::bencode::{self, Field, Limits, List, Shape, dict};
use super::error::{Location, MetainfoError};
use super::file_tree::FileTree;
use super::files::{self, required, size};
use super::identity::{InfoHash, PieceHashes};
use super::layout::{File, FileIndex, FileKind, Layout, MAX_FILES};
use super::lengths::Lengths;
use super::names;

/// Size limit of a `.torrent` file in bytes. The hashes of the largest accepted number of pieces fit.
pub const MAX_TORRENT_LEN: usize = Limits::TORRENT.bytes;

/// Limit on trackers per tier, tiers, web seeds of each kind, and DHT nodes; further ones are ignored to bound memory.
const MAX_SOURCES: usize = 128;
/// Length limit of a URL in bytes; longer ones are ignored.
const MAX_URL_LEN: usize = 4096;
/// Length limit of a comment and the like in bytes; longer ones are cut.
const MAX_TEXT_LEN: usize = 16 << 10;
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
    pub info: Bytes,
}

dict! {
    struct Top {
        announce: Vec<u8> = "announce",
        announce_list: List<List<Vec<u8>, MAX_SOURCES>, MAX_SOURCES> = "announce-list",
        comment: Vec<u8> = "comment",
        comment_utf8: Vec<u8> = "comment.utf-8",
        created_by: Vec<u8> = "created by",
        creation_date: i64 = "creation date",
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
        pieces: Vec<u8> = "pieces",
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
    /// Parses a `.torrent` file. White space at the end, as an editor may add it, is ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, MetainfoError> {
        let bytes = bytes.trim_ascii_end();
        let span = bencode::span_of(bytes, b"info", &Limits::TORRENT)?;
        let top = bencode::decode::<Field<Top>>(bytes, &Limits::TORRENT)?.ok().ok_or(MetainfoError::NotADictionary)?;
        let span = span.ok_or(MetainfoError::Missing { location: Location::Top, key: "info" })?;
        let raw_info = Bytes::copy_from_slice(&bytes[span]);
        let info = required(bencode::decode::<Field<Info>>(&raw_info, &Limits::TORRENT)?, Location::Top, "info")?;

        let info_hash = InfoHash::of(&raw_info);
        let name = info.name(info_hash)?;
        let private = info.private == Field::Is(1);
        let source = text(info.source.clone());
        let (layout, hashes) = info.into_content(&name, &raw_info)?;
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
            hashes,
            info: raw_info,
        })
    }
}

impl Metainfo {
    /// Returns whether the torrent also has a BitTorrent v2 half.
    pub fn is_hybrid(&self) -> bool {
        matches!(bencode::span_of(&self.info, b"file tree", &Limits::TORRENT), Ok(Some(_)))
    }

    /// Returns the original paths, below the torrent's name, of files whose paths were changed to be safe. Another program
    /// may have written the files under them. Paths that leave the torrent's directory are omitted.
    pub fn raw_paths(&self) -> HashMap<FileIndex, PathBuf> {
        let info = bencode::decode::<Field<Info>>(&self.info, &Limits::TORRENT).ok().and_then(Field::ok);
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
    /// Returns the name, made safe. The info hash, which is unique, replaces an empty name, `.` and `..`.
    fn name(&self, info_hash: InfoHash) -> Result<String, MetainfoError> {
        let name = match (&self.name_utf8, &self.name) {
            (Field::Is(name), _) if std::str::from_utf8(name).is_ok() => name,
            (_, Field::Is(name)) => name,
            (_, Field::Absent) => return Err(MetainfoError::Missing { location: Location::Info, key: "name" }),
            (_, Field::Wrong) => {
                return Err(MetainfoError::Kind { location: Location::Info, key: "name", wanted: Vec::<u8>::KIND });
            }
        };
        let is_blank = matches!(name.as_slice(), b"" | b"." | b"..");
        Ok(if is_blank { info_hash.to_string() } else { names::safe(name) })
    }

    fn into_content(self, name: &str, raw: &Bytes) -> Result<(Layout, PieceHashes), MetainfoError> {
        let location = Location::Info;
        let has_tree = match self.file_tree {
            Field::Absent => false,
            Field::Wrong => return Err(MetainfoError::FileTree("it is not a dictionary")),
            Field::Is(FileTree { fault: Some(fault) }) => return Err(MetainfoError::FileTree(fault)),
            Field::Is(FileTree { fault: None }) => true,
        };
        let is_v2 = has_tree || matches!(self.meta_version, Field::Is(2..));
        if is_v2 && self.pieces == Field::Absent {
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
                vec![File { path: vec![name.to_owned()], offset: 0, len: size(self.length, location)?, kind }]
            }
            files => files::read(name, required(files, location, "files")?)?,
        };
        let total = files.last().map_or(0, |last| last.offset.saturating_add(last.len));
        let lengths = Lengths::new(total, piece_len)?;

        let pieces = required(self.pieces, location, "pieces")?;
        if pieces.len() as u64 != u64::from(lengths.pieces()) * 20 {
            return Err(MetainfoError::Pieces { found: pieces.len(), pieces: lengths.pieces() });
        }
        // The value `LEN:HASHES` ends with the hashes themselves.
        let span = bencode::span_of(raw, b"pieces", &Limits::TORRENT)?;
        let held = span.map(|span| raw.slice(span.end - pieces.len()..span.end)).filter(|held| *held == pieces);
        Ok((Layout::new(lengths, files), PieceHashes::v1(held.unwrap_or_else(|| pieces.into()))))
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

fn text(raw: Field<Vec<u8>>) -> Option<String> {
    raw.ok().filter(|raw| !raw.is_empty()).map(|raw| names::clean_text(&raw, MAX_TEXT_LEN))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::bencode::BencodeError;
    use crate::metainfo::{NewFile, NewTorrent};
    use proptest::prelude::*;

    /// A string in bencode.
    fn string(text: &str) -> String {
        format!("{}:{text}", text.len())
    }

    /// A list of strings in bencode.
    fn list(parts: &[&str]) -> String {
        format!("l{}e", parts.iter().map(|part| string(part)).collect::<String>())
    }

    /// A torrent of one file of 5 bytes, with additional keys at the top level and in `info`.
    fn single(top: &str, info: &str) -> String {
        format!("d{top}4:infod{info}6:lengthi5e4:name1:t12:piece lengthi8e6:pieces20:{}ee", "h".repeat(20))
    }

    /// A torrent with these entries in `files`, whose bytes must fit one piece.
    fn many(entries: &[String]) -> String {
        let entries = entries.concat();
        format!("d4:infod5:filesl{entries}e4:name1:t12:piece lengthi999e6:pieces20:{}ee", "h".repeat(20))
    }

    fn link(path: &[&str], target: &[&str]) -> String {
        format!("d4:attr1:l6:lengthi0e4:path{}12:symlink path{}e", list(path), list(target))
    }

    fn file(path: &[&str]) -> String {
        format!("d6:lengthi5e4:path{}e", list(path))
    }

    fn parse(torrent: &str) -> Result<Metainfo, MetainfoError> {
        Metainfo::parse(torrent.as_bytes())
    }

    #[test]
    fn the_info_hash_is_of_the_raw_bytes() {
        // Keys are out of order or unknown: encoding them again would change the hash.
        let torrent = single("", "1:zi1e1:ai2e");
        let start = torrent.find("d1:z").unwrap();
        let raw = &torrent.as_bytes()[start..torrent.len() - 1];
        let read = parse(&torrent).unwrap();
        assert_eq!(read.info_hash, InfoHash::of(raw));
        assert_eq!(read.info, raw);
    }

    #[test]
    fn trackers_come_from_the_list_or_else_from_announce() {
        let announce = "8:announce8:http://a";
        assert_eq!(parse(&single(announce, "")).unwrap().trackers, [["http://a"]]);
        let tiers = "13:announce-listll8:http://b7:udp://ci5eel1:\nel8:http://dee";
        let expected = [vec!["http://b", "udp://c"], vec!["http://d"]];
        assert_eq!(parse(&single(&format!("{announce}{tiers}"), "")).unwrap().trackers, expected);
        for nothing in ["13:announce-listle", "13:announce-listllee", "13:announce-listi1e"] {
            assert_eq!(parse(&single(&format!("{announce}{nothing}"), "")).unwrap().trackers, [["http://a"]]);
        }
    }

    #[test]
    fn invalid_optional_fields_are_ignored() {
        let read =
            parse(&single("7:comment3:a\x07b13:creation datei-5e5:nodesll1:hi0eel1:hi1eei2ee8:url-list8:http://s", ""));
        let read = read.unwrap();
        assert_eq!(read.comment.as_deref(), Some("a_b"));
        assert_eq!(read.creation_date, None);
        assert_eq!(read.nodes, [("h".to_owned(), 1)]);
        assert_eq!(read.web_seeds, ["http://s"]);
        assert!(!read.private);
        assert!(parse(&single("", "7:privatei1e")).unwrap().private);
        assert_eq!(parse(&single("13:creation datei99999999999999e", "")).unwrap().creation_date, None);
    }

    #[test]
    fn utf8_names_are_preferred_where_they_are_utf8() {
        let mut torrent = single("", "10:name.utf-82:zz").into_bytes();
        assert_eq!(Metainfo::parse(&torrent).unwrap().name, "zz");
        let at = torrent.windows(2).position(|pair| pair == b"zz").unwrap();
        torrent[at] = 0xff;
        assert_eq!(Metainfo::parse(&torrent).unwrap().name, "t");
        let entry = format!("d6:lengthi5e4:path{}10:path.utf-8{}e", list(&["a"]), list(&["d", "é"]));
        assert_eq!(parse(&many(&[entry])).unwrap().layout.files()[0].path, ["t", "d", "é"]);
    }

    #[test]
    fn paths_stay_inside_the_torrent() {
        let read = parse(&many(&[file(&["..", "..", "etc", "passwd"]), file(&["/etc/passwd"]), file(&["."])])).unwrap();
        let paths: Vec<_> = read.layout.files().iter().map(|file| file.path.join("|")).collect();
        assert_eq!(paths, ["t|__|__|etc|passwd", "t|_etc_passwd", "t|_"]);
    }

    #[test]
    fn raw_paths_that_stay_inside_the_torrent_are_returned() {
        let mut bytes = many(&[file(&["a"]), file(&["b\n", "c"]), file(&["..", "d"]), file(&["/etc"]), file(&["xx"])]);
        bytes = bytes.replace("2:xx", "2:\u{1}x");
        let read = parse(&bytes).unwrap();
        let raw = |n: u32, path: &str| (FileIndex(n), PathBuf::from(path));
        assert_eq!(read.raw_paths(), [raw(1, "b\n/c"), raw(4, "\u{1}x")].into());
        assert_eq!(parse(&single("", "")).unwrap().raw_paths(), HashMap::new());
    }

    #[test]
    fn link_targets_stay_inside_the_torrent() {
        let targets = |entries: &[String]| -> Vec<String> {
            let read = parse(&many(entries)).unwrap();
            let target = |file: &File| match &file.kind {
                FileKind::Symlink { target } => Some(target.clone()),
                _ => None,
            };
            read.layout.files().iter().filter_map(target).collect()
        };
        // From the root (BEP 47), even if a file of that name is also beside the link.
        let both = [file(&["d", "f"]), file(&["f"]), link(&["d", "l"], &["f"])];
        assert_eq!(targets(&both), ["../f"]);
        // Beside the link, if only that file exists.
        assert_eq!(targets(&[file(&["d", "f"]), link(&["d", "l"], &["f"])]), ["f"]);
        // Through another link.
        let chain = [file(&["d", "f"]), link(&["l"], &["d"]), link(&["d", "m"], &["l", "f"])];
        assert_eq!(targets(&chain), ["d", "../l/f"]);
        // A target outside, the link itself, a cycle, a directory above.
        assert_eq!(targets(&[file(&["f"]), link(&["l"], &["..", "..", "etc"])]), ["__/__/etc"]);
        assert_eq!(targets(&[file(&["f"]), link(&["l"], &["/etc/passwd"])]), ["_etc_passwd"]);
        assert_eq!(targets(&[file(&["f"]), link(&["l"], &["l"])]), ["l"]);
        assert_eq!(targets(&[file(&["f"]), link(&["l"], &["m"]), link(&["m"], &["l"])]), ["m", "l"]);
        assert_eq!(targets(&[file(&["d", "f"]), link(&["d", "e", "l"], &["d"])]), [".."]);
        // A link whose path is a directory of a file is renamed, so `..` never passes through a link.
        let clash = parse(&many(&[link(&["d"], &["x"]), file(&["d", "f"]), link(&["d", "l"], &["x"])])).unwrap();
        assert_eq!(clash.layout.files()[0].path, ["t", "d (2)"]);
    }

    #[test]
    fn pads_occupy_bytes_but_no_name() {
        let pad = "d4:attr1:p6:lengthi3e4:pathl4:.pad1:3ee".to_owned();
        let read = parse(&many(&[file(&["a"]), pad.clone(), file(&["b"]), pad, file(&["c"])])).unwrap();
        let kinds: Vec<_> = read.layout.files().iter().map(|file| (file.offset, file.kind == FileKind::Pad)).collect();
        assert_eq!(kinds, [(0, false), (5, true), (8, false), (13, true), (16, false)]);
    }

    #[test]
    fn errors_name_the_faulty_field() {
        let deep = vec!["d"; 65];
        let long = "x".repeat(200);
        let long = vec![long.as_str(); 20];
        let cases = [
            (String::new(), "not a valid .torrent file: there is no data"),
            ("le".into(), "not a .torrent file: it is not a dictionary"),
            ("de".into(), "the torrent has no `info`"),
            ("d4:infoi1ee".into(), "the `info` of the torrent is not a dictionary"),
            ("d4:infodee".into(), "the torrent's `info` has no `name`"),
            ("d4:infod4:name1:tee".into(), "the torrent's `info` has no `piece length`"),
            (
                "d4:infod4:name1:t12:piece lengthi-1eee".into(),
                "the `piece length` of the torrent's `info` is negative: -1",
            ),
            ("d4:infod4:name1:t12:piece lengthi8eee".into(), "the torrent's `info` has no `length`"),
            (
                single("", "").replace("i8e", "i0e"),
                "the torrent cannot be used: its piece length 0 is not between 1 and 134217728 bytes",
            ),
            (many(&[]), "the torrent cannot be used: it has no bytes"),
            (many(&["d6:lengthi5ee".into()]), "the torrent's file 1 has no `path`"),
            (
                many(&[file(&["a"]), file(&["b"]).replace("i5e", "i-7e")]),
                "the `length` of the torrent's file 2 is negative: -7",
            ),
            (many(&[link(&["l"], &[])]), "the `symlink path` of the torrent's file 1 is not the path of a file"),
            (many(&[file(&deep)]), "the torrent's file 1 has a path that is too deep or too long for a filesystem"),
            (many(&[file(&long)]), "the torrent's file 1 has a path that is too deep or too long for a filesystem"),
            (
                single("", "").replace("i5e", "i50e"),
                "the torrent's `pieces` has 20 bytes, but its files make 7 pieces, which need 20 bytes each",
            ),
            (single("", "9:file treei1e"), "the torrent's `file tree` is invalid: it is not a dictionary"),
            (single("1:ai1e1:ai1e", ""), "not a valid .torrent file: the key `a` occurs twice in one dictionary"),
        ];
        for (torrent, fault) in cases {
            assert_eq!(parse(&torrent).unwrap_err().to_string(), fault, "{torrent}");
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let huge = file(&["a"]).replace("i5e", &format!("i{}e", i64::MAX));
        let error = parse(&many(&[huge.clone(), huge.clone(), huge])).unwrap_err();
        assert!(matches!(error, MetainfoError::Lengths(_)), "{error}");
    }

    #[test]
    fn v2_only_torrents_are_not_supported_yet() {
        let tree = "9:file treed1:td0:d6:lengthi0eeee12:meta versioni2e4:name1:t12:piece lengthi16384e";
        assert_eq!(parse(&format!("d4:infod{tree}ee")).unwrap_err(), MetainfoError::V2Only);
        assert!(MetainfoError::V2Only.to_string().contains("not supported yet"));
        assert!(parse(&single("", "9:file treed1:td0:d6:lengthi0eeee12:meta versioni2e")).is_ok());
    }

    #[test]
    fn white_space_at_the_end_is_ignored() {
        assert!(parse(&format!("{}\r\n", single("", ""))).is_ok());
        let error = parse(&format!("{}x", single("", ""))).unwrap_err();
        assert!(matches!(error, MetainfoError::Bencode(BencodeError::Trailing(_))));
    }

    fn sample() -> Vec<u8> {
        let file = |path: &[&str], len| NewFile {
            path: path.iter().map(|part| part.to_string()).collect(),
            len,
            kind: FileKind::Regular { executable: true },
        };
        let torrent = NewTorrent {
            name: "sample".into(),
            piece_len: 16384,
            files: vec![file(&["a", "b"], 20_000), file(&["c"], 30_000)],
            trackers: vec![vec!["http://127.0.0.1/announce".into(), "udp://127.0.0.1:1".into()]],
            comment: Some("text".into()),
            creation_date: Some(1),
            ..Default::default()
        };
        torrent.build(&[[7; 20]; 4]).unwrap()
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Metainfo::parse(&bytes);
        }

        #[test]
        fn damaged_torrents_do_not_panic(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), 0u8..3, any::<u8>()), 1..4),
        ) {
            let mut bytes = sample();
            for (at, edit, byte) in edits {
                let at = at.index(bytes.len());
                match edit {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => { bytes.remove(at); }
                }
            }
            if let Ok(torrent) = Metainfo::parse(&bytes) {
                let total: u64 = torrent.layout.files().iter().map(|file| file.len).sum();
                prop_assert_eq!(total, torrent.layout.lengths().total());
            }
        }
    }
}
