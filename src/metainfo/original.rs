//! The paths of files as they are in the torrent, byte for byte.
//!
//! [`File::path`](super::File::path) is made safe for display: other bytes than UTF-8 are decoded, control characters
//! replaced, long names cut. A web server has the file under the name that its maker gave it.

use std::io;

use super::bencode::{Reader, Value};
use super::layout::FileIndex;
use super::torrent::Metainfo;

/// Finds the original path of each file. Keeps one number per file, because a torrent may have half a million.
#[derive(Debug)]
pub struct OriginalPaths {
    /// The list of files, as in `info`.
    files: Vec<u8>,
    /// The torrent's name.
    name: Vec<u8>,
    /// Where the entry of each file begins in `files`; empty if the torrent is a single file.
    entries: Vec<u32>,
}

impl Metainfo {
    /// Returns the original paths. Walks over the whole list of files. May block: see [`RawInfo::load`](super::RawInfo::load).
    pub fn original_paths(&self) -> io::Result<OriginalPaths> {
        let info = self.info.load()?;
        let (mut name, mut name_utf8, mut list, mut entries) = (None, None, &[][..], Vec::new());
        if let Some(Value::Dict(dict)) = Reader::new(&info).next() {
            for (key, value) in dict.pairs() {
                match (key, value) {
                    (b"name", Value::String(text)) => name = Some(text),
                    (b"name.utf-8", Value::String(text)) => name_utf8 = Some(text).filter(|text| is_utf8(text)),
                    (b"files", Value::List(mut files)) => {
                        list = files.rest();
                        // The rest of the list before each item is a slice of the whole.
                        let at = |files: &Reader| (files.rest().as_ptr() as usize - list.as_ptr() as usize) as u32;
                        let mut start = at(&files);
                        while files.next().is_some() {
                            entries.push(start);
                            start = at(&files);
                        }
                        list = &list[..start as usize];
                    }
                    _ => {}
                }
            }
        }
        let name = name_utf8.or(name).unwrap_or_default().to_vec();
        Ok(OriginalPaths { files: list.to_vec(), name, entries })
    }
}

impl OriginalPaths {
    /// Returns the components of a file's path, the torrent's name first. A component that is no file name (empty, `.`,
    /// `..`) is returned as it is. Returns `None` for a file without a path, as pads may be.
    pub fn of(&self, file: FileIndex) -> Option<Vec<Vec<u8>>> {
        let mut path = vec![self.name.clone()];
        if self.entries.is_empty() {
            return (file.index() == 0).then_some(path);
        }
        let entry = self.files.get(*self.entries.get(file.index())? as usize..)?;
        let Some(Value::Dict(entry)) = Reader::new(entry).next() else { return None };
        let (mut raw, mut utf8) = (None, None);
        for (key, value) in entry.pairs() {
            match key {
                b"path" => raw = components(&value),
                b"path.utf-8" => utf8 = components(&value).filter(|parts| parts.iter().all(|part| is_utf8(part))),
                _ => {}
            }
        }
        path.extend(utf8.or(raw)?);
        Some(path)
    }
}

fn components(value: &Value) -> Option<Vec<Vec<u8>>> {
    let Value::List(parts) = *value else { return None };
    let part = |part| if let Value::String(text) = part { Some(text.to_vec()) } else { None };
    parts.map(part).collect::<Option<Vec<_>>>().filter(|parts| !parts.is_empty())
}

fn is_utf8(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn torrent(info: &[&[u8]]) -> Metainfo {
        Metainfo::parse(&[b"d4:infod".as_slice(), &info.concat(), b"ee"].concat()).unwrap()
    }

    fn paths(info: &[&[u8]]) -> Vec<Option<String>> {
        let metainfo = torrent(info);
        let paths = metainfo.original_paths().unwrap();
        let show = |path: Vec<Vec<u8>>| path.iter().map(|part| part.escape_ascii().to_string()).collect::<Vec<_>>();
        (0..=metainfo.layout.files().len() as u32)
            .map(|file| Some(show(paths.of(FileIndex(file))?).join("/")))
            .collect()
    }

    const END: &[u8] = b"12:piece lengthi16384e6:pieces20:hhhhhhhhhhhhhhhhhhhh";

    #[test]
    fn a_single_file_has_the_torrents_name() {
        assert_eq!(paths(&[b"6:lengthi5e4:name5:\xf4\n.mk", END]), [Some("\\xf4\\n.mk".into()), None]);
        assert_eq!(paths(&[b"6:lengthi5e4:name1:\xf410:name.utf-82:\xc3\xa9", END])[0], Some("\\xc3\\xa9".into()));
    }

    #[test]
    fn paths_are_those_of_the_torrent() {
        let name = "x".repeat(300);
        let long = format!("d6:lengthi1e4:pathl{}:{name}ee", name.len());
        let found = paths(&[
            b"5:filesl",
            b"d6:lengthi1e4:pathl1:a4:b\nc\xffee",
            b"d4:attr1:p6:lengthi1ee",
            b"d6:lengthi1e4:pathl1:\xe9e10:path.utf-8l2:\xc3\xa9ee",
            b"d6:lengthi1e4:pathl2:..ee",
            long.as_bytes(),
            b"e4:name1:t",
            END,
        ]);
        let expected = ["t/a/b\\nc\\xff", "", "t/\\xc3\\xa9", "t/..", &format!("t/{name}"), ""];
        assert_eq!(found.into_iter().map(Option::unwrap_or_default).collect::<Vec<_>>(), expected);
    }
}
