//! The `files` of a torrent of many (BEP 3, BEP 47): sizes, safe paths, what each is.

use std::collections::HashSet;

use super::bencode::{Field, List, Shape, dict};
use super::error::{MetainfoError, Place};
use super::layout::{File, FileKind, MAX_FILES};
use super::names;

/// The most components of a path, the torrent's name not counted.
const MAX_COMPONENTS: usize = 64;

/// The longest path in bytes, the torrent's name included. Leaves room in `PATH_MAX` for where the mount or the cache
/// is, and for the `..` of a link.
const MAX_PATH: usize = 3072;

type PathList = List<Vec<u8>, MAX_COMPONENTS>;

dict! {
    pub(super) struct Entry {
        length: i64 = "length",
        path: PathList = "path",
        path_utf8: PathList = "path.utf-8",
        attr: Vec<u8> = "attr",
        symlink_path: PathList = "symlink path",
    }
}

impl Entry {
    /// The path as it stands in the torrent, if each of its components is the name of a file or directory.
    pub(super) fn raw_path(self) -> Option<Vec<Vec<u8>>> {
        let is_name = |part: &Vec<u8>| {
            !matches!(part.as_slice(), b"" | b"." | b"..") && !part.iter().any(|byte| matches!(byte, b'/' | 0))
        };
        let path = self.path.ok()?.whole()?;
        (!path.is_empty() && path.iter().all(is_name)).then_some(path)
    }
}

/// The files in the order of the torrent, below a directory called `root`, a safe name.
pub(super) fn read(root: &str, entries: List<Entry, MAX_FILES>) -> Result<Vec<File>, MetainfoError> {
    if entries.overflow {
        return Err(MetainfoError::TooManyFiles);
    }
    let mut offset = 0;
    let mut links = Vec::new();
    let mut files = Vec::with_capacity(entries.items.len());
    for (index, entry) in entries.items.into_iter().enumerate() {
        let place = Place::File(index + 1);
        let Field::Is(entry) = entry else {
            return Err(MetainfoError::Kind { place: Place::Info, key: "files", wanted: "a list of dictionaries" });
        };
        let (file, target) = read_entry(root, entry, offset, place)?;
        links.extend(target.map(|target| (index, target)));
        // A sum that does not fit is refused with the number of its pieces.
        offset = offset.saturating_add(file.len);
        files.push(file);
    }
    let mut paths: Vec<Vec<String>> = files.iter_mut().map(|file| std::mem::take(&mut file.path)).collect();
    names::tell_apart(&mut paths);
    for (file, path) in files.iter_mut().zip(paths) {
        file.path = path;
    }
    aim(&mut files, links);
    Ok(files)
}

/// Lets each link, named by its index, lead to its target, a safe path from the root.
///
/// Targets are relative to the torrent's root (BEP 47), but some makers write them relative to the link. So where the
/// first is not there and the second is, it is the second. A target that is not there at all dangles, inside.
fn aim(files: &mut [File], links: Vec<(usize, Vec<String>)>) {
    if links.is_empty() {
        return;
    }
    let mut paths = HashSet::new();
    let mut link_paths = HashSet::new();
    for file in files.iter().filter(|file| file.kind != FileKind::Pad) {
        (1..=file.path.len()).rev().all(|depth| paths.insert(file.path[..depth].to_vec()));
        if matches!(file.kind, FileKind::Symlink { .. }) {
            link_paths.insert(file.path.clone());
        }
    }
    for (index, target) in links {
        // What lies behind another link may well be there.
        let is_there =
            |path: &[String]| paths.contains(path) || (1..path.len()).any(|depth| link_paths.contains(&path[..depth]));
        let path = &files[index].path;
        let beside = [&path[..path.len() - 1], &target[1..]].concat();
        let target = if !is_there(&target) && is_there(&beside) { beside } else { target };
        files[index].kind = FileKind::Symlink { target: names::relative(path, &target) };
    }
}

/// The file of an entry, and if it is a link, its target as a path from the root; its own `target` is then still empty.
fn read_entry(
    root: &str,
    entry: Entry,
    offset: u64,
    place: Place,
) -> Result<(File, Option<Vec<String>>), MetainfoError> {
    let attr = entry.attr.ok().unwrap_or_default();
    if attr.contains(&b'p') {
        // The path of a pad may be left out, and many share one; nobody sees it.
        let path = vec![root.to_owned(), format!(".pad-{offset}")];
        return Ok((File { path, offset, len: size(entry.length, place)?, kind: FileKind::Pad }, None));
    }
    let path = match utf8(entry.path_utf8) {
        Some(components) => below(root, components, place)?,
        None => below(root, components(entry.path, place, "path")?, place)?,
    };
    if attr.contains(&b'l') {
        let key = "symlink path";
        let target = components(entry.symlink_path, place, key)?;
        if target.is_empty() {
            return Err(MetainfoError::Kind { place, key, wanted: "the path of a file" });
        }
        let target = below(root, target, place)?;
        // Some give a link the length of its target; it has no bytes all the same.
        let kind = FileKind::Symlink { target: String::new() };
        return Ok((File { path, offset, len: 0, kind }, Some(target)));
    }
    let kind = FileKind::Regular { executable: attr.contains(&b'x') };
    Ok((File { path, offset, len: size(entry.length, place)?, kind }, None))
}

/// A path that is there and all UTF-8.
fn utf8(list: Field<PathList>) -> Option<Vec<Vec<u8>>> {
    let components = list.ok()?.whole()?;
    let sound = !components.is_empty() && components.iter().all(|part| std::str::from_utf8(part).is_ok());
    sound.then_some(components)
}

fn components(list: Field<PathList>, place: Place, key: &'static str) -> Result<Vec<Vec<u8>>, MetainfoError> {
    let list = required(list, place, key)?;
    if list.overflow {
        return Err(MetainfoError::PathTooLong(place));
    }
    list.whole().ok_or(MetainfoError::Kind { place, key, wanted: "a list of strings" })
}

/// A safe path below the root. One without components is given a name.
fn below(root: &str, mut components: Vec<Vec<u8>>, place: Place) -> Result<Vec<String>, MetainfoError> {
    if components.is_empty() {
        components.push(Vec::new());
    }
    let mut path = Vec::with_capacity(1 + components.len());
    path.push(root.to_owned());
    path.extend(components.iter().map(|part| names::safe(part)));
    let len: usize = path.iter().map(|part| part.len() + 1).sum();
    if len > MAX_PATH { Err(MetainfoError::PathTooLong(place)) } else { Ok(path) }
}

/// A size in bytes, under `length`.
pub(super) fn size(length: Field<i64>, place: Place) -> Result<u64, MetainfoError> {
    let value = required(length, place, "length")?;
    u64::try_from(value).map_err(|_| MetainfoError::Negative { place, key: "length", value })
}

/// The value of a key that must be there.
pub(super) fn required<T: Shape>(field: Field<T>, place: Place, key: &'static str) -> Result<T, MetainfoError> {
    match field {
        Field::Is(value) => Ok(value),
        Field::Absent => Err(MetainfoError::Missing { place, key }),
        Field::Wrong => Err(MetainfoError::Kind { place, key, wanted: T::KIND }),
    }
}
