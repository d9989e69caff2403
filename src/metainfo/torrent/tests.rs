//! Tests of the parser of `.torrent` files.

use super::*;
use crate::metainfo::{NewFile, NewTorrent};
use proptest::prelude::*;
use std::collections::HashSet;

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
    assert_eq!(read.info.load().unwrap(), raw);
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
        (String::new(), "not a .torrent file: it is empty"),
        (
            "<html><body>Please log in".into(),
            "not a .torrent file: it looks like a web page (HTML); give the link of the file itself",
        ),
        ("d14:failure reason7:no suche".into(), "not a .torrent file: it is an answer that says \"no such\""),
        ("deer".into(), "not a .torrent file: it looks like text"),
        ("dear".into(), "not a .torrent file: it looks like text"),
        ("ink".into(), "not a .torrent file: it looks like text"),
        (
            single("", "")[..40].into(),
            "not a valid .torrent file: it is truncated: the value at byte 28 extends past the end",
        ),
        ("le".into(), "not a .torrent file: it is not a dictionary"),
        ("de".into(), "the torrent has no `info`"),
        ("d4:infoi1ee".into(), "the `info` of the torrent is not a dictionary"),
        ("d4:infodee".into(), "the torrent's `info` has no `name`"),
        ("d4:infod4:name1:tee".into(), "the torrent's `info` has no `piece length`"),
        ("d4:infod4:name1:t12:piece lengthi-1eee".into(), "the `piece length` of the torrent's `info` is negative: -1"),
        ("d4:infod4:name1:t12:piece lengthi8eee".into(), "the torrent's `info` has no `length`"),
        (
            single("", "").replace("i8e", "i0e"),
            "the torrent cannot be used: its piece length 0 is not between 1 and 134217728 bytes",
        ),
        (
            many(&[]),
            "the torrent cannot be used: it has no bytes: it is one empty file or none, which other programs refuse",
        ),
        (
            single("", "").replace("i5e", "i0e"),
            "the torrent cannot be used: it has no bytes: it is one empty file or none, which other programs refuse",
        ),
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
    let root = "r".repeat(32);
    let tree = |name: &str, len: u64| {
        format!("9:file treed1:{name}d0:d6:lengthi{len}e11:pieces root32:{root}eee12:meta versioni2e")
    };
    assert!(parse(&single("", &tree("t", 5))).is_ok());
    for other in [tree("t", 6), tree("u", 5)] {
        assert_eq!(parse(&single("", &other)).unwrap_err(), MetainfoError::FileTree(OTHER_FILES));
    }
}

#[test]
fn the_halves_of_a_hybrid_have_the_same_files() {
    let root = "r".repeat(32);
    let leaf = |len: u64| format!("d0:d6:lengthi{len}e11:pieces root32:{root}ee");
    let hybrid = |tree: &str, entries: &[String]| {
        let tree = format!("d4:infod9:file treed{tree}e");
        parse(&many(entries).replace("d4:infod", &tree)).map(|torrent| torrent.layout.files().len())
    };
    let pad = "d4:attr1:p6:lengthi3e4:pathl4:.pad1:3ee".to_owned();
    let entries = [file(&["a"]), pad, file(&["d", "b"]), link(&["l"], &["a"])];
    let link = "1:ld0:d4:attr1:l12:symlink pathl1:aeee";
    let tree = |first: u64, second: u64| format!("1:a{}1:dd1:b{}e{link}", leaf(first), leaf(second));
    assert_eq!(hybrid(&tree(5, 5), &entries), Ok(4));
    let fault = Err(MetainfoError::FileTree(OTHER_FILES));
    assert_eq!(hybrid(&tree(5, 4), &entries), fault);
    assert_eq!(hybrid(&tree(5, 5), &entries[..3]), fault);
    assert_eq!(hybrid(&format!("1:a{}", leaf(5)), &entries), fault);
    assert_eq!(hybrid(&tree(5, 5).replace("1:b", "1:c"), &entries), fault);
}

#[test]
fn one_path_for_many_files_is_refused() {
    let same = |count| parse(&many(&vec![file(&["a"]); count]));
    assert_eq!(same(33).unwrap_err(), MetainfoError::Duplicates);
    let read = same(32).unwrap();
    let names: HashSet<_> = read.layout.files().iter().map(|file| file.path.clone()).collect();
    assert_eq!(names.len(), 32);
    let pads = vec!["d4:attr1:p6:lengthi3e4:pathl4:.pad1:3ee".to_owned(); 100];
    assert!(parse(&many(&[&pads[..], &[file(&["a"])]].concat())).is_ok());
}

#[test]
fn a_torrent_may_have_only_empty_files() {
    let empty = |entries: &[String]| {
        let torrent = many(entries).replace("i5e4:path", "i0e4:path");
        parse(&torrent.replace(&format!("6:pieces20:{}", "h".repeat(20)), "6:pieces0:"))
    };
    let read = empty(&[file(&["a"]), file(&["d", "b"])]).unwrap();
    assert_eq!((read.layout.lengths().pieces(), read.layout.lengths().total()), (0, 0));
    assert_eq!(read.layout.find("t/d/b"), Some(FileIndex(1)));
    assert_eq!(empty(&["d4:attr1:p6:lengthi0ee".into()]).unwrap_err(), LengthsError::Empty.into());
}

#[test]
fn a_piece_length_may_be_longer_than_the_torrent() {
    let read = parse(&single("", "").replace("i8e", "i536854528e")).unwrap();
    assert_eq!(read.layout.lengths().longest_piece(), 5);
    assert!(parse(&single("", "").replace("i8e", "i536870912e")).is_err());
}

/// Replaces a text by other bytes of the same length.
fn with_bytes(torrent: impl AsRef<[u8]>, text: &str, bytes: &[u8]) -> Vec<u8> {
    let torrent = torrent.as_ref();
    assert_eq!(text.len(), bytes.len());
    let at = torrent.windows(text.len()).position(|found| found == text.as_bytes()).unwrap();
    [&torrent[..at], bytes, &torrent[at + text.len()..]].concat()
}

#[test]
fn legacy_names_become_readable() {
    let cp1251 = |text: &str| encoding_rs::WINDOWS_1251.encode(text).0.into_owned();
    let mut torrent = many(&[file(&["xxxxx"]), file(&["yyyyy"]), file(&["d", "zzzzz.mp3"])]).into_bytes();
    for (text, name) in [("xxxxx", "Фильм"), ("yyyyy", "Книга"), ("zzzzz", "Песня")] {
        torrent = with_bytes(&torrent, text, &cp1251(name));
    }
    let read = Metainfo::parse(&torrent).unwrap();
    let names: Vec<_> = read.layout.files().iter().map(|file| file.path[1..].join("/")).collect();
    assert_eq!(names, ["Фильм", "Книга", "d/Песня.mp3"]);
    // The bytes of the torrent, as another program may have used them.
    let raw = &read.raw_paths()[&FileIndex(0)];
    assert_eq!(raw.as_os_str().as_encoded_bytes(), cp1251("Фильм"));
}

#[test]
fn a_stated_encoding_and_utf8_names_are_used() {
    let gbk = encoding_rs::GBK.encode("电影").0;
    let stated = single("8:encoding3:GBK", "").replace("4:name1:t", "4:name4:xxxx");
    let read = Metainfo::parse(&with_bytes(&stated, "xxxx", &gbk)).unwrap();
    assert_eq!(read.name, "电影");
    let stated = single("8:codepagei936e7:comment4:cccc", "").replace("4:name1:t", "4:name4:xxxx");
    let read = Metainfo::parse(&with_bytes(with_bytes(&stated, "xxxx", &gbk), "cccc", &gbk)).unwrap();
    assert_eq!((read.name.as_str(), read.comment.as_deref()), ("电影", Some("电影")));
    // A name in UTF-8 beside it wins, whatever is stated.
    let both = single("8:encoding3:GBK", "10:name.utf-86:电影").replace("4:name1:t", "4:name4:xxxx");
    assert_eq!(Metainfo::parse(&with_bytes(&both, "xxxx", &gbk)).unwrap().name, "电影");
}

#[test]
fn names_that_become_the_same_stay_distinct() {
    // The first is UTF-8, the second the same name in CP1251.
    let entries = [file(&["Фильм"]), file(&["xxxxx"])];
    let name = encoding_rs::WINDOWS_1251.encode("Фильм").0;
    let read = Metainfo::parse(&with_bytes(many(&entries), "xxxxx", &name)).unwrap();
    let names: Vec<_> = read.layout.files().iter().map(|file| file.path[1].as_str()).collect();
    assert_eq!(names, ["Фильм", "Фильм (2)"]);
}

#[test]
fn what_surrounds_the_dictionary_is_ignored() {
    let plain = single("", "").into_bytes();
    let expected = Metainfo::parse(&plain).unwrap();
    let after: [&[u8]; 6] = [b"\r\n", &[0; 16], b"errot: no is id", b"e", b"d4:infodee", &[0xff; 1000]];
    for extra in after {
        let surrounded = [&plain, extra].concat();
        for read in [Metainfo::parse(&surrounded), Metainfo::parse_owned(surrounded.clone().into())] {
            let read = read.unwrap();
            assert_eq!((read.info_hash, &read.info), (expected.info_hash, &expected.info));
            assert_eq!(read.info.load().unwrap(), expected.info.load().unwrap());
        }
    }
    for extra in [&b"\xef\xbb\xbf"[..], b"\r\n ", b"\xef\xbb\xbf\n"] {
        assert_eq!(Metainfo::parse(&[extra, &plain].concat()).unwrap().info_hash, expected.info_hash);
    }
}

#[test]
fn compressed_torrents_are_read() {
    use std::io::Write;
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    let plain = single("", "");
    let read = Metainfo::parse(&gzip(format!("\n{plain}\n").as_bytes())).unwrap();
    assert_eq!(read.info_hash, parse(&plain).unwrap().info_hash);
    let error = Metainfo::parse(&gzip(b"<html>")).unwrap_err();
    assert_eq!(error, MetainfoError::Other(Kind::WebPage));
    let cut = gzip(plain.as_bytes());
    assert_eq!(
        Metainfo::parse(&cut[..cut.len() - 9]).unwrap_err().to_string(),
        "not a valid .torrent file: the gzip-compressed data is damaged or cut off"
    );
    // Compressed twice is not what anybody sends.
    assert!(matches!(Metainfo::parse(&gzip(&gzip(plain.as_bytes()))), Err(MetainfoError::Other(_))));
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
