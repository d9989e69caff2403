//! Listing a directory of `.torrent` and `.magnet` files, and reading the files.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use super::source::{Source, SourceError, is_magnet_file};
use crate::payload::Stamp;

/// A file in the directory.
pub(super) struct ListedFile {
    pub(super) name: OsString,
    /// Changes when the file does.
    pub(super) stamp: Stamp,
    pub(super) modified: SystemTime,
}

/// Lists the `.torrent` and `.magnet` files of a directory, at most `limit` of them, sorted by name. Hidden files are
/// skipped, because other programs use such names for unfinished files. Also returns whether the list is complete.
///
/// If there are more entries, the filesystem may return different ones each time. Then `known` files that were not
/// among them are looked up by name, and take precedence over new ones.
pub(super) fn list(dir: &Path, known: HashSet<OsString>, limit: usize) -> io::Result<(Vec<ListedFile>, bool)> {
    let mut files = Vec::new();
    let mut entries = dir.read_dir()?;
    for entry in entries.by_ref().take(limit) {
        let name = entry?.file_name();
        if name.as_bytes().starts_with(b".") || !(is_magnet(&name) || has_extension(&name, "torrent")) {
            continue;
        }
        files.extend(stat(dir, name));
    }
    let is_complete = entries.next().is_none();
    if !is_complete {
        let (mut old, new): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| known.contains(&file.name));
        let listed: HashSet<OsString> = old.iter().map(|file| file.name.clone()).collect();
        old.extend(known.into_iter().filter(|name| !listed.contains(name)).filter_map(|name| stat(dir, name)));
        let room = limit.saturating_sub(old.len());
        old.extend(new.into_iter().take(room));
        files = old;
    }
    // Sorted, so that of two files with the same torrent always the same one is read first.
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((files, is_complete))
}

/// Returns the metadata of a regular file, following symbolic links.
fn stat(dir: &Path, name: OsString) -> Option<ListedFile> {
    let metadata = dir.join(&name).metadata().ok().filter(|metadata| metadata.is_file())?;
    Some(ListedFile { name, stamp: Stamp::from(&metadata), modified: metadata.modified().ok()? })
}

/// Reads files of a directory, in the given order.
pub(super) fn read_all(dir: &Path, names: Vec<OsString>) -> Vec<Result<Source, SourceError>> {
    names.into_iter().map(|name| Source::read_file(&dir.join(name))).collect()
}

/// Whether a file is a `.magnet` file, by its name.
pub(super) fn is_magnet(name: &OsString) -> bool {
    is_magnet_file(Path::new(name))
}

fn has_extension(name: &OsString, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|other| other.eq_ignore_ascii_case(extension))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// The order in which the filesystem lists the entries must not matter.
    #[test]
    fn known_files_stay_listed_in_a_directory_beyond_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let name = |n: usize| OsString::from(format!("{n}.torrent"));
        let make = |of: std::ops::Range<usize>| of.for_each(|n| fs::write(dir.path().join(name(n)), []).unwrap());
        let names = |known: &HashSet<OsString>| {
            let (files, is_complete) = list(dir.path(), known.clone(), 10).unwrap();
            (files.into_iter().map(|file| file.name).collect::<HashSet<_>>(), is_complete)
        };
        make(0..9);
        fs::write(dir.path().join("note.txt"), []).unwrap();
        let (first, is_complete) = names(&HashSet::new());
        assert_eq!((first.len(), is_complete), (9, true));

        make(9..100);
        let (found, is_complete) = names(&first);
        assert!(found.is_superset(&first) && found.len() <= 10 && !is_complete, "{found:?}");
        for n in 0..4 {
            fs::remove_file(dir.path().join(name(n))).unwrap();
        }
        fs::create_dir(dir.path().join(name(3))).unwrap();
        let gone: HashSet<OsString> = (0..4).map(name).collect();
        let (found, _) = names(&first);
        assert!(found.is_superset(&(&first - &gone)) && found.is_disjoint(&gone) && found.len() <= 10, "{found:?}");
    }
}
