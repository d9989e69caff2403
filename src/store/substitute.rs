//! Other names for files whose own names the filesystem refuses.
//!
//! A torrent may have names that are too long for the filesystem (143 bytes on ecryptfs), or that have characters which it
//! forbids (`:` and `?` on FAT and NTFS, anything but UTF-8 elsewhere). Such a file gets another name, and everything else
//! goes on. Which files have one is found out from the filesystem: it is recorded nowhere, so a directory may be moved to
//! another filesystem.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;

use crate::metainfo::{self, FileIndex};

/// Directory in the cache for files under other names, which are numbered there.
const CACHE_DIR: &str = "renamed";
/// Length limit of the other name of a user's file in bytes: ecryptfs has 143, of the filesystems in use the fewest.
const MAX_NAME: usize = 140;
/// Length limit of an extension that a shortened name keeps, in bytes with the dot.
const MAX_EXTENSION: usize = 32;
/// Names that Windows reserves for devices, with any extension.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// Returns whether a filesystem has refused a name. On creating a file, some say that it does not exist.
pub(super) fn is_refused(error: &io::Error, creating: bool) -> bool {
    match error.raw_os_error() {
        Some(libc::ENAMETOOLONG | libc::EINVAL | libc::EILSEQ) => true,
        Some(libc::ENOENT) => creating,
        _ => false,
    }
}

/// Returns the other path of a file in the cache. Nothing else can have it, because all files of a torrent are below its name.
pub(super) fn in_cache(file: &metainfo::File, index: FileIndex) -> metainfo::File {
    let taken = file.path.first().is_some_and(|name| name.eq_ignore_ascii_case(CACHE_DIR));
    let dir = if taken { format!("{CACHE_DIR}_") } else { CACHE_DIR.to_owned() };
    metainfo::File { path: vec![dir, index.0.to_string()], ..file.clone() }
}

/// Returns the files whose path another one before them has, too, for a filesystem that ignores the case of letters, or dots
/// and spaces at the end. There they would be one file, and each would overwrite the other.
pub(super) fn twins(files: &[metainfo::File]) -> HashMap<FileIndex, FileIndex> {
    let mut first: HashMap<String, FileIndex> = HashMap::with_capacity(files.len());
    let mut twins = HashMap::new();
    for (index, file) in (0..).map(FileIndex).zip(files).filter(|(_, file)| file.is_stored()) {
        let parts = file.path.iter().map(|part| part.trim_end_matches([' ', '.']).to_lowercase());
        match first.entry(parts.collect::<Vec<_>>().join("/")) {
            Entry::Vacant(vacant) => drop(vacant.insert(index)),
            Entry::Occupied(other) => drop(twins.insert(index, *other.get())),
        }
    }
    twins
}

/// Returns the other paths of the files of a download, as far as they have one: names that any filesystem takes, and that no
/// other file of the torrent has, whatever the case of its letters.
pub(super) fn in_download(files: &[metainfo::File]) -> HashMap<FileIndex, Vec<String>> {
    let key = |path: &[String]| path.join("/").to_lowercase();
    let mut taken: HashSet<String> = files.iter().filter(|file| !file.is_pad()).map(|file| key(&file.path)).collect();
    let twins = twins(files);
    let mut others = HashMap::new();
    for (index, file) in (0..).map(FileIndex).zip(files).filter(|(_, file)| !file.is_pad()) {
        let mut path: Vec<String> = file.path.iter().map(|name| portable(name, 0)).collect();
        if path == file.path && !twins.contains_key(&index) {
            continue;
        }
        let mut number = 2;
        while !taken.insert(key(&path)) {
            if let Some((name, own)) = path.last_mut().zip(file.path.last()) {
                let portable = portable(own, 16);
                let (stem, extension) = split(&portable);
                *name = format!("{stem} ({number}){extension}");
            }
            number += 1;
        }
        others.insert(index, path);
    }
    others
}

/// Returns a name that any filesystem takes, with `spare` bytes of room.
fn portable(name: &str, spare: usize) -> String {
    let forbidden =
        |c: char| c.is_control() || matches!(c, '<' | '>' | ':' | '"' | '\\' | '|' | '?' | '*' | '\u{fffd}');
    let mut name: String = name.chars().map(|c| if forbidden(c) { '_' } else { c }).collect();
    let kept = name.trim_end_matches([' ', '.']).len();
    let cut_off = "_".repeat(usize::from(kept < name.len()));
    name.truncate(kept);
    name.push_str(&cut_off);
    let stem = name.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let numbered =
        |prefix| stem.strip_prefix(prefix).is_some_and(|rest: &str| matches!(rest.as_bytes(), [b'1'..=b'9']));
    if DEVICES.contains(&stem.as_str()) || numbered("com") || numbered("lpt") {
        name.insert(0, '_');
    }
    if name.len() + spare > MAX_NAME {
        let (stem, extension) = split(&name);
        let end = MAX_NAME - spare - extension.len();
        // Byte 0 is always a character boundary.
        let end = (0..=end.min(stem.len())).rev().find(|end| stem.is_char_boundary(*end)).unwrap_or(0);
        name = format!("{}{extension}", stem[..end].trim_end());
    }
    name
}

/// Splits a name into a stem and an extension.
fn split(name: &str) -> (&str, &str) {
    let dot = name.rfind('.').filter(|dot| *dot > 0 && name.len() - dot <= MAX_EXTENSION).unwrap_or(name.len());
    name.split_at(dot)
}

/// Returns the path of a file relative to its root, for messages.
pub(super) fn shown(path: &[String]) -> String {
    path.iter().collect::<PathBuf>().display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metainfo::FileKind;
    use proptest::prelude::*;

    fn file(path: &str) -> metainfo::File {
        let path = path.split('/').map(str::to_owned).collect();
        metainfo::File { path, offset: 0, len: 1, kind: FileKind::Regular { executable: false } }
    }

    fn others(paths: &[&str]) -> Vec<(u32, String)> {
        let files: Vec<_> = paths.iter().map(|path| file(path)).collect();
        let mut others: Vec<_> =
            in_download(&files).into_iter().map(|(index, path)| (index.0, path.join("/"))).collect();
        others.sort();
        others
    }

    #[test]
    fn other_names_are_plain_and_distinct() {
        let names = ["t/a:b", "t/a_b", "t/a?b", "t/plain", "t: x/c.", "t/NUL.txt", "t/com1", "t/command"];
        let expected = [(0, "t/a_b (2)"), (2, "t/a_b (3)"), (4, "t_ x/c_"), (5, "t/_NUL.txt"), (6, "t/_com1")];
        assert_eq!(others(&names), expected.map(|(index, path)| (index, path.to_owned())));
        assert_eq!(others(&["t/B", "t/b", "T/c", "t/c. "]), [(1, "t/b (2)".into()), (3, "t/c_".into())]);
        let long = format!("t/{}.mkv", "é".repeat(120));
        assert_eq!(others(&[&long]), [(0, format!("t/{}.mkv", "é".repeat(68)))]);
    }

    #[test]
    fn other_names_in_the_cache_are_numbered() {
        let path = |name: &str| in_cache(&file(name), FileIndex(7)).path.join("/");
        assert_eq!((path("t/a"), path("Renamed/a")), ("renamed/7".to_owned(), "renamed_/7".to_owned()));
    }

    proptest! {
        #[test]
        fn no_two_files_have_the_same_name(names in proptest::collection::btree_set("[ab:?]{1,4}(\\.[ab]{1,3})?", 1..12)) {
            let files: Vec<_> = names.iter().map(|name| file(&format!("t/{name}"))).collect();
            let others = in_download(&files);
            let mut all: Vec<String> = files.iter().map(|file| file.path.join("/")).collect();
            for path in others.values() {
                prop_assert!(path.iter().all(|name| !name.contains([':', '?']) && name.len() <= MAX_NAME));
                all.push(path.join("/").to_lowercase());
            }
            let count = all.len();
            let distinct: HashSet<String> = all.into_iter().collect();
            prop_assert_eq!(distinct.len(), count);
        }
    }
}
