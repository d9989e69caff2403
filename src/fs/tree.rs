//! The inodes of a mount: what each is, what it is called, what a directory holds.
//!
//! Pure and immutable: built from the metainfo of the torrents shown, then only read. The root holds one entry a
//! torrent (a single file, or a directory of many); pad files are left out.
//!
//! An inode number is the torrent's part (from its info hash) above the node's place in the torrent (in the torrent's
//! order), so a torrent has the same numbers in every mount. Only where two torrents of one mount agree in 30 bits of
//! their info hashes does the second one move aside.

use std::collections::HashMap;
use std::sync::Arc;

use crate::metainfo::{FileIndex, FileKind, InfoHash, Metainfo};

/// The root directory's inode number, as FUSE wants it.
pub const ROOT: u64 = 1;

/// The longest name, in bytes, as the kernel wants it.
pub const MAX_NAME: usize = 255;

/// Why torrents cannot be shown together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The same torrent was given twice.
    #[error("torrent {0} is given twice")]
    Duplicate(InfoHash),
}

/// What an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory {
        /// Directories directly in it.
        subdirectories: u32,
    },
    /// A regular file.
    File {
        /// Which of its torrent.
        index: FileIndex,
        /// Bytes.
        len: u64,
        /// The `x` attribute.
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// What `readlink` answers.
        target: Box<str>,
    },
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its inode number.
    pub ino: u64,
    /// Where the reading of the directory goes on after it.
    pub next: u64,
    /// What it is called.
    pub name: &'a str,
    /// What it is.
    pub kind: &'a Kind,
}

/// One inode other than the root.
#[derive(Debug)]
struct Node {
    name: Arc<str>,
    /// In the same torrent; the top node is its own parent.
    parent: u32,
    kind: Kind,
    children: Children,
}

/// What a directory holds: in order, and by name. Empty in what is no directory.
#[derive(Debug, Default)]
struct Children {
    order: Vec<u32>,
    names: HashMap<Arc<str>, u32>,
}

/// The nodes of one torrent; the first is what the root shows of it.
#[derive(Debug)]
struct Shown {
    prefix: u32,
    nodes: Vec<Node>,
}

/// Every inode of a mount.
#[derive(Debug)]
pub struct Tree {
    root: Kind,
    torrents: Vec<Shown>,
    /// By the name in the root; values index `torrents`.
    names: HashMap<Arc<str>, usize>,
    /// By the upper half of the inode number; values index `torrents`.
    prefixes: HashMap<u32, usize>,
    /// Bytes of all regular files.
    bytes: u64,
}

/// A node and the torrent it belongs to.
#[derive(Clone, Copy)]
struct Place {
    torrent: usize,
    node: u32,
}

impl Tree {
    /// Builds the tree. Torrents keep their places: what `torrent` answers are indices of this sequence.
    ///
    /// # Errors
    /// If one torrent comes twice.
    pub fn new<'a>(torrents: impl IntoIterator<Item = &'a Metainfo>) -> Result<Self, TreeError> {
        let mut tree = Self {
            root: Kind::Directory { subdirectories: 0 },
            torrents: Vec::new(),
            names: HashMap::new(),
            prefixes: HashMap::new(),
            bytes: 0,
        };
        let mut seen = std::collections::HashSet::new();
        for metainfo in torrents {
            if !seen.insert(metainfo.info_hash) {
                return Err(TreeError::Duplicate(metainfo.info_hash));
            }
            tree.add(metainfo);
        }
        Ok(tree)
    }

    fn add(&mut self, metainfo: &Metainfo) {
        let slot = self.torrents.len();
        let mut nodes = nodes(metainfo);
        let is_directory = matches!(nodes[0].kind, Kind::Directory { .. });
        let name: Arc<str> = names(&metainfo.name, metainfo.info_hash, is_directory)
            .find(|name| !self.names.contains_key(name.as_str()))
            // Endless and without repetition, so a free one is found among the first `slot + 1`.
            .unwrap_or_default()
            .into();
        nodes[0].name = name.clone();
        self.names.insert(name, slot);
        if let (true, Kind::Directory { subdirectories }) = (is_directory, &mut self.root) {
            *subdirectories += 1;
        }
        let [a, b, c, d, ..] = metainfo.info_hash.0;
        // Never 0, so clear of the root's number; below 2^31, so that a number is positive wherever it is taken as signed.
        let bounded = |hash: u32| hash & (u32::MAX >> 1) | 1 << 30;
        let mut prefix = bounded(u32::from_be_bytes([a, b, c, d]));
        while self.prefixes.contains_key(&prefix) {
            prefix = bounded(prefix + 1);
        }
        self.prefixes.insert(prefix, slot);
        self.bytes +=
            nodes.iter().map(|node| if let Kind::File { len, .. } = node.kind { len } else { 0 }).sum::<u64>();
        self.torrents.push(Shown { prefix, nodes });
    }

    /// How many inodes there are.
    pub fn inodes(&self) -> u64 {
        1 + self.torrents.iter().map(|shown| shown.nodes.len() as u64).sum::<u64>()
    }

    /// Bytes of all regular files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What an inode is.
    pub fn kind(&self, ino: u64) -> Option<&Kind> {
        if ino == ROOT { Some(&self.root) } else { Some(&self.node(self.place(ino)?)?.kind) }
    }

    /// Which torrent an inode belongs to; the root belongs to none.
    pub fn torrent(&self, ino: u64) -> Option<usize> {
        self.place(ino).map(|place| place.torrent)
    }

    /// The inode of a name in a directory.
    pub fn lookup(&self, directory: u64, name: &str) -> Option<u64> {
        if directory == ROOT {
            let torrent = *self.names.get(name)?;
            return Some(self.ino(Place { torrent, node: 0 }));
        }
        let place = self.place(directory)?;
        let node = *self.node(place)?.children.names.get(name)?;
        Some(self.ino(Place { node, ..place }))
    }

    /// The directory that an inode is in; the root is in itself.
    pub fn parent(&self, ino: u64) -> Option<u64> {
        if ino == ROOT {
            return Some(ROOT);
        }
        let place = self.place(ino)?;
        let node = self.node(place)?.parent;
        Some(if place.node == 0 { ROOT } else { self.ino(Place { node, ..place }) })
    }

    /// What a directory holds, `.` and `..` first, from an offset that is 0 or an earlier entry's `next`. Empty for what
    /// is no directory.
    pub fn entries(&self, directory: u64, offset: u64) -> impl Iterator<Item = Entry<'_>> {
        let place = self.place(directory);
        let children = match place {
            Some(place) => self.node(place).map_or(0, |node| node.children.order.len()),
            None if directory == ROOT => self.torrents.len(),
            None => 0,
        };
        let end = if matches!(self.kind(directory), Some(Kind::Directory { .. })) { children as u64 + 2 } else { 0 };
        (offset..end).filter_map(move |at| {
            let (ino, name) = match at {
                0 => (directory, Some(".")),
                1 => (self.parent(directory)?, Some("..")),
                _ => (self.child(directory, place, (at - 2) as usize)?, None),
            };
            let (name, kind) = match name {
                Some(name) => (name, self.kind(ino)?),
                None => self.place(ino).and_then(|place| self.node(place)).map(|node| (&*node.name, &node.kind))?,
            };
            Some(Entry { ino, next: at + 1, name, kind })
        })
    }

    /// Every regular file at or below an inode, by torrent.
    pub fn files_below(&self, ino: u64) -> Vec<(usize, Vec<FileIndex>)> {
        if ino == ROOT {
            return (0..self.torrents.len())
                .map(|torrent| (torrent, self.files_of(Place { torrent, node: 0 })))
                .collect();
        }
        self.place(ino).map(|place| (place.torrent, self.files_of(place))).into_iter().collect()
    }

    /// In the torrent's order.
    fn files_of(&self, top: Place) -> Vec<FileIndex> {
        let (mut files, mut open) = (Vec::new(), vec![top.node]);
        while let Some(node) = open.pop() {
            let Some(node) = self.node(Place { node, ..top }) else { continue };
            match node.kind {
                Kind::File { index, .. } => files.push(index),
                Kind::Directory { .. } => open.extend(&node.children.order),
                Kind::Symlink { .. } => {}
            }
        }
        files.sort_unstable();
        files
    }

    fn child(&self, directory: u64, place: Option<Place>, at: usize) -> Option<u64> {
        match place {
            Some(place) => {
                let node = *self.node(place)?.children.order.get(at)?;
                Some(self.ino(Place { node, ..place }))
            }
            None if directory == ROOT && at < self.torrents.len() => Some(self.ino(Place { torrent: at, node: 0 })),
            None => None,
        }
    }

    fn ino(&self, place: Place) -> u64 {
        u64::from(self.torrents[place.torrent].prefix) << 32 | u64::from(place.node)
    }

    fn place(&self, ino: u64) -> Option<Place> {
        let torrent = *self.prefixes.get(&((ino >> 32) as u32))?;
        let node = ino as u32;
        ((node as usize) < self.torrents[torrent].nodes.len()).then_some(Place { torrent, node })
    }

    fn node(&self, place: Place) -> Option<&Node> {
        self.torrents.get(place.torrent)?.nodes.get(place.node as usize)
    }
}

/// The nodes of a torrent, in its order, each directory before what it holds.
fn nodes(metainfo: &Metainfo) -> Vec<Node> {
    let mut nodes = vec![Node {
        name: metainfo.name.as_str().into(),
        parent: 0,
        kind: Kind::Directory { subdirectories: 0 },
        children: Children::default(),
    }];
    for (index, file) in (0..).map(FileIndex).zip(metainfo.layout.files()) {
        let kind = match &file.kind {
            FileKind::Pad => continue,
            FileKind::Regular { executable } => Kind::File { index, len: file.len, executable: *executable },
            FileKind::Symlink { target } => Kind::Symlink { target: target.as_str().into() },
        };
        match file.path.as_slice() {
            // The layout promises that a file's path is no directory of another: this is the only file.
            [] | [_] => nodes[0].kind = kind,
            [_, directories @ .., name] => {
                let mut at = 0;
                for directory in directories {
                    at = match nodes[at as usize].children.names.get(directory.as_str()) {
                        Some(&known) => known,
                        None => attach(&mut nodes, at, directory, Kind::Directory { subdirectories: 0 }),
                    };
                }
                attach(&mut nodes, at, name, kind);
            }
        }
    }
    nodes
}

/// Puts a new node into a directory.
fn attach(nodes: &mut Vec<Node>, parent: u32, name: &str, kind: Kind) -> u32 {
    // A node needs bytes of a .torrent file, whose size is bounded far below 2^32.
    let new = nodes.len() as u32;
    let name: Arc<str> = name.into();
    let directory = &mut nodes[parent as usize];
    if let (Kind::Directory { .. }, Kind::Directory { subdirectories }) = (&kind, &mut directory.kind) {
        *subdirectories += 1;
    }
    directory.children.order.push(new);
    directory.children.names.insert(name.clone(), new);
    nodes.push(Node { name, parent, kind, children: Children::default() });
    new
}

/// What a torrent may be called in the root, best first: its own name, then with the start of its info hash, with all of
/// it, and with a number too. A file keeps its extension, by which players know it.
fn names(name: &str, info_hash: InfoHash, is_directory: bool) -> impl Iterator<Item = String> {
    let hash = info_hash.to_string();
    let (stem, extension) = match name.rfind('.') {
        Some(dot) if !is_directory && dot > 0 && name.len() - dot <= 16 => name.split_at(dot),
        _ => (name, ""),
    };
    let with = move |mark: &str| {
        let mark = format!(" [{mark}]{extension}");
        let room = MAX_NAME.saturating_sub(mark.len()).min(stem.len());
        let end = (0..=room).rev().find(|&end| stem.is_char_boundary(end)).unwrap_or(0);
        format!("{}{mark}", &stem[..end])
    };
    let marks = [hash[..8].to_owned(), hash.clone()].into_iter().chain((2u64..).map(move |n| format!("{hash} {n}")));
    std::iter::once(name.to_owned()).chain(marks.map(move |mark| with(&mark)))
}

#[cfg(test)]
mod tests {
    use super::super::testing::{file, metainfo};
    use super::*;

    fn listing(tree: &Tree, directory: u64) -> Vec<String> {
        tree.entries(directory, 0).map(|entry| entry.name.to_owned()).collect()
    }

    fn find(tree: &Tree, path: &str) -> u64 {
        path.split('/').fold(ROOT, |at, name| tree.lookup(at, name).unwrap_or_else(|| panic!("no {name} of {path}")))
    }

    fn album(seed: u8) -> Metainfo {
        metainfo(
            seed,
            "album",
            vec![
                file("album/cd1/b.flac", 5),
                file("album/.pad/3", 3).pad(),
                file("album/cd1/a.flac", 4),
                file("album/cd2/a.flac", 0),
                file("album/play", 6).executable(),
                file("album/latest", 0).symlink("cd1/b.flac"),
            ],
        )
    }

    #[test]
    fn a_directory_is_shown_in_the_torrents_order_without_pads() {
        let tree = Tree::new([&album(1)]).unwrap();
        assert_eq!(listing(&tree, ROOT), [".", "..", "album"]);
        let album = find(&tree, "album");
        assert_eq!(listing(&tree, album), [".", "..", "cd1", "cd2", "play", "latest"]);
        assert_eq!(listing(&tree, find(&tree, "album/cd1")), [".", "..", "b.flac", "a.flac"]);
        assert_eq!(tree.kind(album), Some(&Kind::Directory { subdirectories: 2 }));
        assert_eq!(tree.kind(ROOT), Some(&Kind::Directory { subdirectories: 1 }));
        let play = Kind::File { index: FileIndex(4), len: 6, executable: true };
        assert_eq!(tree.kind(find(&tree, "album/play")), Some(&play));
        assert_eq!(tree.kind(find(&tree, "album/latest")), Some(&Kind::Symlink { target: "cd1/b.flac".into() }));
        assert_eq!(tree.lookup(album, "cd3"), None);
        assert_eq!(tree.lookup(find(&tree, "album/play"), "x"), None);
        assert_eq!((tree.inodes(), tree.bytes()), (9, 15));
        assert_eq!(listing(&tree, find(&tree, "album/play")), [""; 0]);
    }

    #[test]
    fn parents_lead_back_to_the_root() {
        let tree = Tree::new([&album(1)]).unwrap();
        let deep = find(&tree, "album/cd1/a.flac");
        assert_eq!(tree.parent(deep), Some(find(&tree, "album/cd1")));
        assert_eq!(tree.parent(find(&tree, "album")), Some(ROOT));
        assert_eq!(tree.parent(ROOT), Some(ROOT));
        let dots: Vec<_> = tree.entries(find(&tree, "album/cd1"), 0).take(2).map(|entry| entry.ino).collect();
        assert_eq!(dots, [find(&tree, "album/cd1"), find(&tree, "album")]);
    }

    #[test]
    fn inode_numbers_depend_on_the_torrent_alone() {
        let (one, other) = (album(1), metainfo(2, "film.mkv", vec![file("film.mkv", 9)]));
        let alone = Tree::new([&one]).unwrap();
        let second = Tree::new([&other, &one]).unwrap();
        for path in ["album", "album/cd1", "album/cd2/a.flac", "album/play"] {
            assert_eq!(find(&alone, path), find(&second, path), "{path}");
        }
        assert_eq!(second.torrent(find(&second, "film.mkv")), Some(0));
        assert_eq!(second.torrent(find(&second, "album/play")), Some(1));
        assert_eq!(second.torrent(ROOT), None);
    }

    #[test]
    fn torrents_of_one_name_are_told_apart() {
        let films: Vec<_> = (1..=2).map(|seed| metainfo(seed, "film.mkv", vec![file("film.mkv", 9)])).collect();
        let albums = [album(3), album(4)];
        let tree = Tree::new(films.iter().chain(&albums)).unwrap();
        let short = |metainfo: &Metainfo| metainfo.info_hash.to_string()[..8].to_owned();
        assert_eq!(
            listing(&tree, ROOT)[2..],
            [
                "film.mkv",
                &format!("film [{}].mkv", short(&films[1])),
                "album",
                &format!("album [{}]", short(&albums[1]))
            ]
        );
        assert_eq!(Tree::new([&albums[0], &albums[0]]).unwrap_err(), TreeError::Duplicate(albums[0].info_hash));
    }

    #[test]
    fn a_name_marked_apart_still_fits() {
        let long = "ß".repeat(127);
        let hash = InfoHash([0xab; 20]);
        for name in names(&long, hash, true).take(5) {
            assert!(name.len() <= MAX_NAME, "{} bytes", name.len());
        }
        assert!(names(&format!("{}.mkv", "x".repeat(251)), hash, false).nth(1).unwrap().ends_with(" [abababab].mkv"));
        assert_eq!(names(".hidden", hash, false).nth(1).unwrap(), ".hidden [abababab]");
    }

    #[test]
    fn equal_starts_of_info_hashes_do_not_clash() {
        let torrents: Vec<_> = (0..3u8)
            .map(|last| {
                let mut metainfo = metainfo(9, &format!("film{last}"), vec![file(&format!("film{last}"), 1)]);
                metainfo.info_hash = InfoHash([0xff; 20]);
                metainfo.info_hash.0[19] = last;
                metainfo
            })
            .collect();
        let tree = Tree::new(&torrents).unwrap();
        for (slot, name) in ["film0", "film1", "film2"].iter().enumerate() {
            assert_eq!(tree.torrent(find(&tree, name)), Some(slot));
        }
    }

    #[test]
    fn numbers_from_outside_are_checked() {
        let tree = Tree::new([&album(1)]).unwrap();
        let past = find(&tree, "album") + 1_000_000;
        for ino in [0, 2, past, u64::MAX] {
            assert_eq!(tree.kind(ino), None);
            assert_eq!(tree.lookup(ino, "album"), None);
            assert_eq!(tree.parent(ino), None);
            assert_eq!(tree.entries(ino, 0).count(), 0);
            assert!(tree.files_below(ino).is_empty());
        }
        assert_eq!(tree.entries(ROOT, u64::MAX).count(), 0);
    }

    #[test]
    fn reading_goes_on_where_it_stopped() {
        let files = (0..20_000).map(|n| file(&format!("many/{n}"), 1)).collect();
        let tree = Tree::new([&metainfo(1, "many", files)]).unwrap();
        let many = find(&tree, "many");
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let before = names.len();
            for entry in tree.entries(many, offset).take(77) {
                names.push(entry.name.to_owned());
                offset = entry.next;
            }
            if names.len() == before {
                break;
            }
        }
        assert_eq!(names.len(), 20_002);
        assert_eq!((names[2].as_str(), names[20_001].as_str()), ("0", "19999"));
        assert_eq!(tree.files_below(ROOT), [(0, (0..20_000).map(FileIndex).collect())]);
    }

    #[test]
    fn a_torrent_of_pads_is_an_empty_directory() {
        let tree = Tree::new([&metainfo(1, "void", vec![file("void/.pad/4", 4).pad()])]).unwrap();
        assert_eq!(listing(&tree, find(&tree, "void")), [".", ".."]);
    }
}
