//! The sample torrents of libtorrent's own parser tests: we load those that libtorrent loads, and reject the others.
//!
//! They are in `../shared/torrents`, beside the repository. Without them the tests are skipped with a message, but in CI they
//! fail.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use torrentfs::metainfo::{FileKind, Metainfo, MetainfoError};

/// Returns the directory of the samples. `None` skips the test.
fn torrents() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/torrents");
    if dir.join("MANIFEST.tsv").exists() {
        return Some(dir);
    }
    assert!(std::env::var("CI").as_deref() != Ok("true"), "the sample torrents are missing: {}", dir.display());
    eprintln!("skipped: no sample torrents in {}", dir.display());
    None
}

fn parse(dir: &Path, name: &str) -> Result<Metainfo, MetainfoError> {
    let bytes = std::fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    Metainfo::parse(&bytes)
}

/// Returns the paths of the visible files.
fn shown(torrent: &Metainfo) -> Vec<String> {
    let files = torrent.layout.files().iter().filter(|file| file.kind != FileKind::Pad);
    files.map(|file| file.path.join("/")).collect()
}

/// Checks what other modules rely on in every loaded torrent.
fn assert_invariants(name: &str, torrent: &Metainfo) {
    let files = torrent.layout.files();
    let paths: HashSet<_> = files.iter().map(|file| file.path.clone()).collect();
    assert_eq!(paths.len(), files.len(), "{name}: two files share a path");
    let mut offset = 0;
    for file in files {
        assert_eq!(file.offset, offset, "{name}: the files do not tile the torrent");
        offset += file.len;
        assert_eq!(file.path[0], torrent.name, "{name}");
        for depth in 1..file.path.len() {
            assert!(!paths.contains(&file.path[..depth]), "{name}: {:?} is a file and a directory", file.path);
        }
        for part in &file.path {
            assert!(!matches!(part.as_str(), "" | "." | ".."), "{name}: {part:?}");
            assert!(part.len() <= 255 && !part.contains(['/', '\0']), "{name}: {part:?}");
        }
        if let FileKind::Symlink { target } = &file.kind {
            let mut depth = file.path.len() as i64 - 1;
            for step in target.split('/') {
                depth += if step == ".." { -1 } else { 1 };
                assert!(depth >= 1, "{name}: the link {:?} leaves the torrent by {target:?}", file.path);
            }
        }
    }
    assert_eq!(offset, torrent.layout.lengths().total(), "{name}");
}

#[test]
fn samples_load_or_are_rejected_as_the_manifest_says() {
    let Some(dir) = torrents() else { return };
    let manifest = std::fs::read_to_string(dir.join("MANIFEST.tsv")).expect("the manifest");
    let expected: BTreeMap<&str, (&str, &str)> = manifest
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let mut columns = line.split('\t');
            let mut next = || columns.next().unwrap_or_default();
            (next(), (next(), next()))
        })
        .collect();
    assert!(expected.len() >= 50, "only {} samples in the manifest", expected.len());

    let mut wrong = Vec::new();
    for (&name, &(expect, reason)) in &expected {
        let result = parse(&dir, name);
        if let Ok(torrent) = &result {
            assert_invariants(name, torrent);
        }
        let as_expected = match (expect, &result) {
            // Valid v2 torrents, and no others, are rejected because v2 is not supported yet.
            ("load", Err(MetainfoError::V2Only)) => V2_ONLY.contains(&name),
            ("load", Ok(_)) => !V2_ONLY.contains(&name),
            ("reject", Err(error)) => {
                let line = error.to_string();
                !line.contains('\n') && expected_texts(reason).iter().any(|word| line.contains(word))
            }
            _ => false,
        };
        if !as_expected {
            let found = result.map(|_| "loaded").map_err(|error| error.to_string());
            wrong.push(format!("{name}: expected {expect} {reason}, found {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Valid torrents without a v1 half.
const V2_ONLY: [&str; 3] = ["v2_invalid_filename.torrent", "v2_no_piece_layers.torrent", "v2_symlinks.torrent"];

/// Returns texts of which one is in our message for the error that libtorrent calls `reason`.
fn expected_texts(reason: &str) -> &'static [&'static str] {
    match reason {
        // One of these breaks off in the middle of a dictionary, after which libtorrent finds no name.
        "torrent_missing_name" => &["`name`", "`path`", "not a valid .torrent file"],
        "torrent_invalid_name" => &["`symlink path`", "`path`", "`name`"],
        "torrent_invalid_length" => &["`length`", "no bytes"],
        "torrent_missing_piece_length" => &["`piece length`"],
        "torrent_invalid_hashes" => &["`pieces`"],
        "depth_exceeded" => &["deeper"],
        "torrent_file_parse_failed" => &["`file tree`"],
        "torrent_missing_pieces_root" => &["`pieces root`"],
        // Errors in v2 torrents, which are not supported yet.
        "torrent_invalid_piece_layer" | "too_many_pieces_in_torrent" => &["not supported yet"],
        _ => &[],
    }
}

#[test]
fn names_are_made_safe_and_unique() {
    let Some(dir) = torrents() else { return };
    let shown = |name: &str| shown(&parse(&dir, name).unwrap_or_else(|error| panic!("{name}: {error}")));
    assert_eq!(shown("base.torrent"), ["temp"]);
    assert_eq!(shown("absolute_filename.torrent"), ["temp/abcde", "temp/_foobar"]);
    assert_eq!(shown("empty_path_multi.torrent"), ["temp/abcde", "temp/_", "temp/_ (2)"]);
    assert_eq!(shown("invalid_filename.torrent"), ["\\est2/f", "\\est2/_"]);
    assert_eq!(shown("pad_file_no_path.torrent"), ["temp/foo/bar.txt"]);
    assert_eq!(shown("slash_path2.torrent"), ["temp/abc_.._.._def/_/bar"]);
    assert_eq!(shown("single_multi_file.torrent"), ["temp/foo/bar"]);
    assert_eq!(shown("long_name.torrent").len(), 1);
    assert_eq!(shown("empty-files-2.torrent").len(), 6);

    // An empty name is replaced by the info hash.
    let nameless = parse(&dir, "invalid_name2.torrent").expect("it loads");
    assert_eq!(nameless.name, nameless.info_hash.to_string());
}

#[test]
fn links_stay_inside() {
    let Some(dir) = torrents() else { return };
    let link = |name: &str, path: &str| {
        let torrent = parse(&dir, name).unwrap_or_else(|error| panic!("{name}: {error}"));
        let file = torrent.layout.files().iter().find(|file| file.path.join("/") == path);
        match file.map(|file| file.kind.clone()) {
            Some(FileKind::Symlink { target }) => target,
            other => panic!("{name}: {path} is {other:?}"),
        }
    };
    assert_eq!(link("symlink1.torrent", "temp/a/b/foo"), "bar");
    assert_eq!(link("symlink_filtered_path.torrent", "temp/a/_/foo"), "bar");
    let framework = |path: &str| link("overlapping_symlinks.torrent", &format!("SDL2.framework/{path}"));
    assert_eq!(framework("Headers"), "Versions/Current/Headers");
    // Against BEP 47, this target is relative to the link and does not exist from the root.
    assert_eq!(framework("Versions/Current"), "A");
}

#[test]
fn optional_fields_are_read() {
    let Some(dir) = torrents() else { return };
    let torrent = |name: &str| parse(&dir, name).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(torrent("dht_nodes.torrent").nodes, [("127.0.0.1".to_owned(), 6881), ("192.168.1.1".to_owned(), 6881)]);
    let seeds = torrent("duplicate_web_seeds.torrent");
    assert_eq!(seeds.web_seeds, ["http://foobar.com/foo", "http://foobar.com/foobar", "http://foobar.com/bar"]);
    assert_eq!(seeds.trackers, [["udp://test.com/announce"]]);
    assert_eq!(torrent("httpseed.torrent").http_seeds, ["http://foobar.com/"]);
    assert!(torrent("empty_httpseed.torrent").http_seeds.is_empty());
    assert!(torrent("url_list2.torrent").web_seeds.is_empty());
    let base = torrent("base.torrent");
    assert_eq!((base.creation_date, base.created_by.as_deref()), (Some(1359599503), Some("libtorrent")));
    assert!(!base.private && base.trackers.is_empty() && base.comment.is_none());
    // The executable bit of a hybrid's v1 half.
    let hybrid = torrent("v2_hybrid.torrent");
    let is_x = |file: &torrentfs::metainfo::File| file.kind == FileKind::Regular { executable: true };
    assert!(hybrid.layout.files().iter().any(is_x));
    assert!(hybrid.layout.files().iter().any(|file| file.kind == FileKind::Pad));
    assert_eq!(torrent("large.torrent").layout.lengths().pieces(), 5000);
}

/// Damages each of the first bytes of each small sample, one at a time: parsing never panics, and what it loads keeps the
/// invariants.
#[test]
fn damaged_samples_do_no_harm() {
    let Some(dir) = torrents() else { return };
    let mut samples = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "torrent") {
            continue;
        }
        let name = path.display().to_string();
        let sound = std::fs::read(&path).unwrap();
        if sound.len() > 2000 {
            continue;
        }
        samples += 1;
        for at in 0..sound.len().min(400) {
            for damage in [b'0', b'e', b'-', 0xff] {
                let mut bytes = sound.clone();
                bytes[at] = damage;
                if let Ok(torrent) = Metainfo::parse(&bytes) {
                    assert_invariants(&name, &torrent);
                }
            }
            assert!(Metainfo::parse(&sound[..at]).is_err(), "{name} cut at {at}");
        }
    }
    assert!(samples > 20, "only {samples} small samples");
}
