//! The inodes of a mount: what each is, what it is called, what a directory holds.
//!
//! Pure. The root holds one entry a torrent (a single file, or a directory of many), by the names of [`names`](super::names);
//! torrents come and go. What is below an entry never changes; pad files are left out.
//!
//! An inode number is the torrent's part (from its info hash) above the node's place in the torrent (in the torrent's
//! order), so a torrent has the same numbers in every mount. Only where two torrents of one mount agree in 30 bits of
//! their info hashes does the second one move aside. A number is never used for anything else as long as the tree lives:
//! a torrent that comes back has the numbers that it had.
//!
//! A torrent that is hidden is out of the root, but its inodes are known until it is forgotten: somebody may have one
//! open.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::names::Names;
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

/// The nodes of one torrent; the first is what the root shows of it. Made beforehand, so that adding is quick.
#[derive(Debug)]
pub struct Branch {
    info_hash: InfoHash,
    nodes: Vec<Node>,
    /// Of all regular files.
    bytes: u64,
}

impl Branch {
    /// What is to be shown of a torrent.
    pub fn new(metainfo: &Metainfo) -> Self {
        let nodes = nodes(metainfo);
        let len = |node: &Node| if let Kind::File { len, .. } = node.kind { len } else { 0 };
        Self { info_hash: metainfo.info_hash, bytes: nodes.iter().map(len).sum(), nodes }
    }

    fn is_directory(&self) -> bool {
        matches!(self.nodes[0].kind, Kind::Directory { .. })
    }
}

/// A branch in the tree.
#[derive(Debug)]
struct Shown {
    branch: Branch,
    /// Its place in the root; `None`: hidden.
    place: Option<u64>,
}

/// Every inode of a mount.
#[derive(Debug)]
pub struct Tree {
    root: Kind,
    /// By the upper half of the inode number.
    torrents: HashMap<u32, Shown>,
    /// The root's entries, in the order of coming. A place is never used twice, so that a listing under way misses
    /// nothing and says nothing twice.
    places: BTreeMap<u64, u32>,
    next_place: u64,
    names: Names,
    /// Of every torrent that was ever here, and the other way round.
    prefixes: HashMap<InfoHash, u32>,
    taken: HashMap<u32, InfoHash>,
    /// Those in the root.
    inodes: u64,
    /// Bytes of all regular files of these.
    bytes: u64,
}

/// A node and the torrent it belongs to.
#[derive(Clone, Copy)]
struct Place {
    torrent: u32,
    node: u32,
}

/// The first place in the root after `.` and `..`.
const FIRST_PLACE: u64 = 2;

impl Default for Tree {
    fn default() -> Self {
        Self {
            root: Kind::Directory { subdirectories: 0 },
            torrents: HashMap::new(),
            places: BTreeMap::new(),
            next_place: FIRST_PLACE,
            names: Names::default(),
            prefixes: HashMap::new(),
            taken: HashMap::new(),
            inodes: 1,
            bytes: 0,
        }
    }
}

impl Tree {
    /// A tree of these torrents.
    ///
    /// # Errors
    /// If one torrent comes twice.
    pub fn new<'a>(torrents: impl IntoIterator<Item = &'a Metainfo>) -> Result<Self, TreeError> {
        let mut tree = Self::default();
        for metainfo in torrents {
            tree.add(Branch::new(metainfo))?;
        }
        Ok(tree)
    }

    /// Shows a torrent: a new one, or one that is hidden. Gives the names in the root that show something else now.
    ///
    /// # Errors
    /// If it is shown already.
    pub fn add(&mut self, branch: Branch) -> Result<Vec<Arc<str>>, TreeError> {
        let info_hash = branch.info_hash;
        let prefix = self.prefix(info_hash);
        if self.torrents.get(&prefix).is_some_and(|shown| shown.place.is_some()) {
            return Err(TreeError::Duplicate(info_hash));
        }
        let mut changed = Vec::new();
        self.names.add(info_hash, &branch.nodes[0].name, branch.is_directory(), &mut changed);
        self.count(&branch, 1);
        let place = self.next_place;
        self.next_place += 1;
        self.places.insert(place, prefix);
        self.torrents.insert(prefix, Shown { branch, place: Some(place) });
        Ok(changed)
    }

    /// Takes a torrent out of the root. Gives the names in the root that show something else now; `None`: it is not
    /// there.
    pub fn hide(&mut self, info_hash: InfoHash) -> Option<Vec<Arc<str>>> {
        let shown = self.torrents.get_mut(self.prefixes.get(&info_hash)?)?;
        self.places.remove(&shown.place.take()?);
        let mut changed = Vec::new();
        self.names.remove(info_hash, &mut changed);
        let prefix = self.prefixes[&info_hash];
        if let Some(shown) = self.torrents.remove(&prefix) {
            self.count(&shown.branch, -1);
            self.torrents.insert(prefix, shown);
        }
        Some(changed)
    }

    /// Forgets the inodes of a hidden torrent, but not their numbers.
    pub fn forget(&mut self, info_hash: InfoHash) {
        if let Some(prefix) = self.prefixes.get(&info_hash)
            && self.torrents.get(prefix).is_some_and(|shown| shown.place.is_none())
        {
            self.torrents.remove(prefix);
        }
    }

    /// Counts a branch in, or out.
    fn count(&mut self, branch: &Branch, sign: i64) {
        let directories = i32::from(branch.is_directory()) * sign as i32;
        if let Kind::Directory { subdirectories } = &mut self.root {
            *subdirectories = subdirectories.saturating_add_signed(directories);
        }
        self.inodes = self.inodes.saturating_add_signed(sign * branch.nodes.len() as i64);
        self.bytes = self.bytes.saturating_add_signed((branch.bytes as i64).saturating_mul(sign));
    }

    /// The upper half of a torrent's inode numbers.
    fn prefix(&mut self, info_hash: InfoHash) -> u32 {
        if let Some(known) = self.prefixes.get(&info_hash) {
            return *known;
        }
        let [a, b, c, d, ..] = info_hash.0;
        // Never 0, so clear of the root's number; below 2^31, so that a number is positive wherever it is taken as signed.
        let bounded = |hash: u32| hash & (u32::MAX >> 1) | 1 << 30;
        let mut prefix = bounded(u32::from_be_bytes([a, b, c, d]));
        while self.taken.contains_key(&prefix) {
            prefix = bounded(prefix + 1);
        }
        self.taken.insert(prefix, info_hash);
        self.prefixes.insert(info_hash, prefix);
        prefix
    }

    /// How many inodes there are.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Bytes of all regular files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What an inode is.
    pub fn kind(&self, ino: u64) -> Option<&Kind> {
        if ino == ROOT { Some(&self.root) } else { Some(&self.node(self.place(ino)?)?.kind) }
    }

    /// Which torrent an inode belongs to, hidden or not; the root belongs to none.
    pub fn torrent(&self, ino: u64) -> Option<InfoHash> {
        self.place(ino).map(|place| self.torrents[&place.torrent].branch.info_hash)
    }

    /// What the root shows a torrent as; `None`: not at all.
    pub fn name(&self, info_hash: InfoHash) -> Option<&str> {
        self.names.of(info_hash).map(|name| &**name)
    }

    /// The inode of a name in a directory. Of a hidden torrent nothing is found.
    pub fn lookup(&self, directory: u64, name: &str) -> Option<u64> {
        if directory == ROOT {
            let torrent = *self.prefixes.get(&self.names.find(name)?)?;
            return Some(ino(Place { torrent, node: 0 }));
        }
        let place = self.place(directory).filter(|place| self.torrents[&place.torrent].place.is_some())?;
        let node = *self.node(place)?.children.names.get(name)?;
        Some(ino(Place { node, ..place }))
    }

    /// The directory that an inode is in; the root is in itself.
    pub fn parent(&self, child: u64) -> Option<u64> {
        if child == ROOT {
            return Some(ROOT);
        }
        let place = self.place(child)?;
        let node = self.node(place)?.parent;
        Some(if place.node == 0 { ROOT } else { ino(Place { node, ..place }) })
    }

    /// What a directory holds, `.` and `..` first, from an offset that is 0 or an earlier entry's `next`. Empty for what
    /// is no directory. In the root what comes meanwhile is at the end, and what stays is neither missed nor said twice.
    pub fn entries(&self, directory: u64, offset: u64) -> impl Iterator<Item = Entry<'_>> {
        let is_directory = matches!(self.kind(directory), Some(Kind::Directory { .. }));
        let dots = (offset..if is_directory { FIRST_PLACE } else { 0 }).filter_map(move |at| {
            let (ino, name) = if at == 0 { (directory, ".") } else { (self.parent(directory)?, "..") };
            Some(Entry { ino, next: at + 1, name, kind: self.kind(ino)? })
        });
        let from = offset.max(FIRST_PLACE);
        let root = (directory == ROOT).then(|| self.places.range(from..)).into_iter().flatten();
        let torrents = root.filter_map(|(at, prefix)| {
            let shown = self.torrents.get(prefix)?;
            let kind = &shown.branch.nodes[0].kind;
            let name = self.name(shown.branch.info_hash)?;
            Some(Entry { ino: ino(Place { torrent: *prefix, node: 0 }), next: at + 1, name, kind })
        });
        let place = self.place(directory);
        let order = place.and_then(|place| self.node(place)).map_or(&[][..], |node| &node.children.order);
        let skipped = usize::try_from(from - FIRST_PLACE).unwrap_or(usize::MAX);
        let nodes = order.iter().enumerate().skip(skipped).filter_map(move |(at, node)| {
            let place = Place { node: *node, ..place? };
            let node = self.node(place)?;
            Some(Entry { ino: ino(place), next: at as u64 + FIRST_PLACE + 1, name: &node.name, kind: &node.kind })
        });
        dots.chain(torrents).chain(nodes)
    }

    /// Every regular file at or below an inode, by torrent.
    pub fn files_below(&self, ino: u64) -> Vec<(InfoHash, Vec<FileIndex>)> {
        let of = |place: Place| (self.torrents[&place.torrent].branch.info_hash, self.files_of(place));
        if ino == ROOT {
            return self.places.values().map(|torrent| of(Place { torrent: *torrent, node: 0 })).collect();
        }
        self.place(ino).map(of).into_iter().collect()
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

    /// Only of a torrent that is in `torrents`.
    fn place(&self, ino: u64) -> Option<Place> {
        let (torrent, node) = ((ino >> 32) as u32, ino as u32);
        let shown = self.torrents.get(&torrent)?;
        ((node as usize) < shown.branch.nodes.len()).then_some(Place { torrent, node })
    }

    fn node(&self, place: Place) -> Option<&Node> {
        self.torrents.get(&place.torrent)?.branch.nodes.get(place.node as usize)
    }
}

fn ino(place: Place) -> u64 {
    u64::from(place.torrent) << 32 | u64::from(place.node)
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
        assert_eq!(second.torrent(find(&second, "film.mkv")), Some(InfoHash::of(&[2])));
        assert_eq!(second.torrent(find(&second, "album/play")), Some(InfoHash::of(&[1])));
        assert_eq!(second.torrent(ROOT), None);
    }

    #[test]
    fn torrents_of_one_name_are_told_apart() {
        let films: Vec<_> = (1..=2).map(|seed| metainfo(seed, "film.mkv", vec![file("film.mkv", 9)])).collect();
        let albums = [album(3), album(4)];
        let tree = Tree::new(films.iter().chain(&albums)).unwrap();
        let short = |metainfo: &Metainfo| metainfo.info_hash.to_string()[..8].to_owned();
        let expected = films.iter().map(|film| format!("film [{}].mkv", short(film)));
        let expected = expected.chain(albums.iter().map(|album| format!("album [{}]", short(album))));
        assert_eq!(listing(&tree, ROOT)[2..], expected.collect::<Vec<_>>());
        assert_eq!(Tree::new([&albums[0], &albums[0]]).unwrap_err(), TreeError::Duplicate(albums[0].info_hash));
    }

    #[test]
    fn torrents_come_and_go_while_the_root_is_listed() {
        let film = |seed: u8| metainfo(seed, &format!("film{seed}"), vec![file(&format!("film{seed}"), 9)]);
        let mut tree = Tree::new(&[film(1), film(2), film(3)]).unwrap();
        let (kept, gone) = (find(&tree, "film3"), find(&tree, "film2"));
        let first: Vec<(String, u64)> =
            tree.entries(ROOT, 0).take(3).map(|entry| (entry.name.to_owned(), entry.next)).collect();
        assert_eq!(tree.hide(InfoHash::of(&[1])).unwrap(), [Arc::from("film1")]);
        assert_eq!(tree.hide(InfoHash::of(&[2])).unwrap().len(), 1);
        assert_eq!(tree.hide(InfoHash::of(&[2])), None);
        tree.add(Branch::new(&film(4))).unwrap();
        let rest: Vec<&str> = tree.entries(ROOT, first[2].1).map(|entry| entry.name).collect();
        assert_eq!((first[2].0.as_str(), rest), ("film1", vec!["film3", "film4"]));
        assert_eq!((tree.inodes(), tree.bytes()), (3, 18));
        // Whoever has it open still sees it; nobody finds it any more.
        assert!(tree.kind(gone).is_some() && tree.torrent(gone) == Some(InfoHash::of(&[2])));
        assert_eq!(tree.lookup(ROOT, "film2"), None);
        tree.forget(InfoHash::of(&[3]));
        assert!(tree.kind(kept).is_some(), "it is not hidden");
        tree.forget(InfoHash::of(&[2]));
        assert_eq!(tree.kind(gone), None);
        // It comes back at the end, by its old number.
        tree.add(Branch::new(&film(2))).unwrap();
        assert_eq!(tree.add(Branch::new(&film(2))).unwrap_err(), TreeError::Duplicate(InfoHash::of(&[2])));
        assert_eq!(find(&tree, "film2"), gone);
        assert_eq!(listing(&tree, ROOT)[2..], ["film3", "film4", "film2"]);
    }

    #[test]
    fn below_a_hidden_torrent_nothing_is_found() {
        let mut tree = Tree::new([&album(1)]).unwrap();
        let cd1 = find(&tree, "album/cd1");
        tree.hide(InfoHash::of(&[1])).unwrap();
        assert_eq!(tree.lookup(cd1, "a.flac"), None);
        assert_eq!(tree.kind(ROOT), Some(&Kind::Directory { subdirectories: 0 }));
        assert_eq!((tree.inodes(), tree.bytes()), (1, 0));
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
        for (torrent, name) in torrents.iter().zip(["film0", "film1", "film2"]) {
            assert_eq!(tree.torrent(find(&tree, name)), Some(torrent.info_hash));
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
        assert_eq!(tree.files_below(ROOT), [(InfoHash::of(&[1]), (0..20_000).map(FileIndex).collect())]);
    }

    #[test]
    fn a_torrent_of_pads_is_an_empty_directory() {
        let tree = Tree::new([&metainfo(1, "void", vec![file("void/.pad/4", 4).pad()])]).unwrap();
        assert_eq!(listing(&tree, find(&tree, "void")), [".", ".."]);
    }
}
