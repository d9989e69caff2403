//! The `files` list of a multi-file torrent (BEP 3, BEP 47): sizes, safe paths, kinds.

use std::collections::{HashMap, HashSet};

use super::bencode::{Field, List, Shape, dict};
use super::error::{Location, MetainfoError};
use super::layout::{File, FileKind, MAX_FILES};
use super::legacy::Decoder;
use super::names;

/// Largest number of components in a path, without the torrent's name. Real torrents have about ten.
const MAX_COMPONENTS: usize = 64;

/// Length limit of a path in bytes, with the torrent's name. Leaves room in `PATH_MAX` (4096) for the path of the mount or
/// the cache directory, and for the `..` components of a link.
const MAX_PATH: usize = 3072;

/// Largest number of files with one path. Each gets a name of its own. libtorrent gives up at about the same number.
const MAX_DUPLICATES: usize = 32;

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
    /// Returns whether it is a pad.
    pub(super) fn is_pad(&self) -> bool {
        matches!(&self.attr, Field::Is(attr) if attr.contains(&b'p'))
    }

    /// Returns its size in bytes; `None` for a symlink, whose size has no meaning.
    pub(super) fn len(&self) -> Option<u64> {
        match (&self.attr, &self.length) {
            (Field::Is(attr), _) if attr.contains(&b'l') => None,
            (_, Field::Is(len)) => u64::try_from(*len).ok(),
            _ => None,
        }
    }

    /// Returns its paths as they are in the torrent, of which there may be one in UTF-8 beside the other.
    pub(super) fn raw_paths(&self) -> impl Iterator<Item = Vec<&[u8]>> {
        [&self.path, &self.path_utf8].into_iter().filter_map(|path| {
            let Field::Is(path) = path else { return None };
            let parts = path.items.iter().map(|part| match part {
                Field::Is(part) => Some(part.as_slice()),
                _ => None,
            });
            parts.collect()
        })
    }

    /// Returns the path exactly as in the torrent, if each component is a valid file name.
    pub(super) fn raw_path(self) -> Option<Vec<Vec<u8>>> {
        let is_name = |part: &Vec<u8>| {
            !matches!(part.as_slice(), b"" | b"." | b"..") && !part.iter().any(|byte| matches!(byte, b'/' | 0))
        };
        let path = self.path.ok()?.all_items()?;
        (!path.is_empty() && path.iter().all(is_name)).then_some(path)
    }
}

/// Returns the components of an entry's paths that may be in a legacy encoding: those without a UTF-8 form beside them.
pub(super) fn legacy_names(entry: &Field<Entry>) -> impl Iterator<Item = &[u8]> + Clone {
    let lists = match entry {
        Field::Is(entry) if is_utf8(&entry.path_utf8) => [None, Some(&entry.symlink_path)],
        Field::Is(entry) => [Some(&entry.path), Some(&entry.symlink_path)],
        _ => [None, None],
    };
    let items = lists.into_iter().flatten().filter_map(|list| match list {
        Field::Is(list) => Some(list.items.iter()),
        _ => None,
    });
    items.flatten().filter_map(|part| match part {
        Field::Is(part) => Some(part.as_slice()),
        _ => None,
    })
}

/// Reads the files, in the order of the torrent. Their paths start with `root`, which is a safe name.
pub(super) fn read(root: &str, decoder: &Decoder, entries: List<Entry, MAX_FILES>) -> Result<Vec<File>, MetainfoError> {
    if entries.overflow {
        return Err(MetainfoError::TooManyFiles);
    }
    check_duplicates(&entries.items)?;
    let mut offset = 0;
    let mut links = Vec::new();
    let mut files = Vec::with_capacity(entries.items.len());
    for (index, entry) in entries.items.into_iter().enumerate() {
        let location = Location::File(index + 1);
        let Field::Is(entry) = entry else {
            return Err(MetainfoError::Kind {
                location: Location::Info,
                key: "files",
                wanted: "a list of dictionaries",
            });
        };
        let (file, target) = read_entry(root, decoder, entry, offset, location)?;
        links.extend(target.map(|target| (index, target)));
        // A total that saturates is refused later, because it makes too many pieces.
        offset = offset.saturating_add(file.len);
        files.push(file);
    }
    let mut paths: Vec<Vec<String>> = files.iter_mut().map(|file| std::mem::take(&mut file.path)).collect();
    names::make_unique(&mut paths);
    for (file, path) in files.iter_mut().zip(paths) {
        file.path = path;
    }
    resolve_links(&mut files, links);
    Ok(files)
}

/// Sets the target of each link. `links` holds the index of each link and its target as a safe path from the root.
///
/// Targets are relative to the torrent's root (BEP 47), but some programs write them relative to the link's directory. The
/// second reading applies if only it names an existing file. A target that exists in neither reading dangles, but still
/// points inside the torrent.
fn resolve_links(files: &mut [File], links: Vec<(usize, Vec<String>)>) {
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
        // A path through another link may exist.
        let exists =
            |path: &[String]| paths.contains(path) || (1..path.len()).any(|depth| link_paths.contains(&path[..depth]));
        let path = &files[index].path;
        let beside = [&path[..path.len() - 1], &target[1..]].concat();
        let target = if !exists(&target) && exists(&beside) { beside } else { target };
        files[index].kind = FileKind::Symlink { target: names::relative(path, &target) };
    }
}

/// Reads one entry. For a link it also returns the target as a path from the root, and leaves the file's own target empty.
fn read_entry(
    root: &str,
    decoder: &Decoder,
    entry: Entry,
    offset: u64,
    location: Location,
) -> Result<(File, Option<Vec<String>>), MetainfoError> {
    let attr = entry.attr.ok().unwrap_or_default();
    if attr.contains(&b'p') {
        // A pad may have no path, or share it with other pads. It is never shown, so any unique path will do.
        let path = vec![root.to_owned(), format!(".pad-{offset}")];
        return Ok((File { path, offset, len: size(entry.length, location)?, kind: FileKind::Pad }, None));
    }
    let path = match is_utf8(&entry.path_utf8) {
        true => below(root, &Decoder::default(), components(entry.path_utf8, location, "path.utf-8")?, location)?,
        false => below(root, decoder, components(entry.path, location, "path")?, location)?,
    };
    if attr.contains(&b'l') {
        let key = "symlink path";
        let target = components(entry.symlink_path, location, key)?;
        if target.is_empty() {
            return Err(MetainfoError::Kind { location, key, wanted: "the path of a file" });
        }
        let target = below(root, decoder, target, location)?;
        // Some programs give a link the length of its target, but it has no bytes in the torrent.
        let kind = FileKind::Symlink { target: String::new() };
        return Ok((File { path, offset, len: 0, kind }, Some(target)));
    }
    let kind = FileKind::Regular { executable: attr.contains(&b'x') };
    Ok((File { path, offset, len: size(entry.length, location)?, kind }, None))
}

/// Returns whether a path is present and every component is UTF-8.
fn is_utf8(list: &Field<PathList>) -> bool {
    let Field::Is(list) = list else { return false };
    let is_utf8 = |part: &Field<Vec<u8>>| matches!(part, Field::Is(part) if std::str::from_utf8(part).is_ok());
    !list.overflow && !list.items.is_empty() && list.items.iter().all(is_utf8)
}

/// Fails if one path is that of too many files. To find a free name for each, some programs try all numbers before it.
fn check_duplicates(entries: &[Field<Entry>]) -> Result<(), MetainfoError> {
    let mut counts: HashMap<&[Field<Vec<u8>>], usize> = HashMap::new();
    for entry in entries {
        let Field::Is(entry) = entry else { continue };
        let Field::Is(path) = &entry.path else { continue };
        if entry.is_pad() {
            continue;
        }
        let count = counts.entry(&path.items).or_insert(0);
        *count += 1;
        if *count > MAX_DUPLICATES {
            return Err(MetainfoError::Duplicates);
        }
    }
    Ok(())
}

fn components(list: Field<PathList>, location: Location, key: &'static str) -> Result<Vec<Vec<u8>>, MetainfoError> {
    let list = required(list, location, key)?;
    if list.overflow {
        return Err(MetainfoError::PathTooLong(location));
    }
    list.all_items().ok_or(MetainfoError::Kind { location, key, wanted: "a list of strings" })
}

/// Returns a safe path below the root. A path without components becomes one with a substitute name.
fn below(
    root: &str,
    decoder: &Decoder,
    mut components: Vec<Vec<u8>>,
    location: Location,
) -> Result<Vec<String>, MetainfoError> {
    if components.is_empty() {
        components.push(Vec::new());
    }
    let mut path = Vec::with_capacity(1 + components.len());
    path.push(root.to_owned());
    path.extend(components.iter().map(|part| names::safe(&decoder.decode(part))));
    let len: usize = path.iter().map(|part| part.len() + 1).sum();
    if len > MAX_PATH { Err(MetainfoError::PathTooLong(location)) } else { Ok(path) }
}

/// Reads the size in bytes under `length`.
pub(super) fn size(length: Field<i64>, location: Location) -> Result<u64, MetainfoError> {
    let value = required(length, location, "length")?;
    u64::try_from(value).map_err(|_| MetainfoError::Negative { location, key: "length", value })
}

/// Returns the value of a required key.
pub(super) fn required<T: Shape>(field: Field<T>, location: Location, key: &'static str) -> Result<T, MetainfoError> {
    match field {
        Field::Is(value) => Ok(value),
        Field::Absent => Err(MetainfoError::Missing { location, key }),
        Field::Wrong => Err(MetainfoError::Kind { location, key, wanted: T::KIND }),
    }
}
