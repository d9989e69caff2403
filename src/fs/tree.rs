//! The inodes of a mount: their kinds and names, and the entries of each directory.
//!
//! Pure. The root has one entry per torrent (a single file, or a directory of many), named by the module `names`.
//! Torrents are added and removed; the files of one torrent never change. Pad files are left out.
//!
//! The upper half of an inode number is the torrent's prefix, taken from its info hash; the lower half is the index of
//! the node in the torrent. So a torrent has the same inode numbers in every mount, except where two torrents of one
//! mount share a prefix: then the second gets the next free one. A tree never reuses a number for another node, and a
//! torrent that is added again gets its old numbers.
//!
//! A hidden torrent is not in the root, but its inodes stay valid until it is forgotten, because its files may be open.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::names::Names;
use crate::metainfo::{FileIndex, FileKind, InfoHash, Metainfo};

/// Inode number of the root directory, fixed by FUSE.
pub const ROOT: u64 = 1;

/// An error of adding a torrent to a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The torrent is in the tree already.
    #[error("torrent {0} is already mounted")]
    Duplicate(InfoHash),
}

/// The kind of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory {
        /// Number of its direct subdirectories.
        subdirectories: u32,
    },
    /// A regular file.
    File {
        /// Index of the file in its torrent.
        index: FileIndex,
        /// Length, in bytes.
        len: u64,
        /// Whether the torrent marks it as executable (`x`).
        executable: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Target, as `readlink` returns it.
        target: Box<str>,
    },
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Offset at which to continue reading the directory after this entry.
    pub next: u64,
    /// Name.
    pub name: &'a str,
    /// Kind.
    pub kind: &'a Kind,
}

/// One inode other than the root.
#[derive(Debug)]
struct Node {
    name: Arc<str>,
    /// Index of the parent in the same torrent; the top node is its own parent.
    parent: u32,
    kind: Kind,
    children: Children,
}

/// The entries of a directory, in order and by name. Empty for other kinds.
#[derive(Debug, Default)]
struct Children {
    order: Vec<u32>,
    names: HashMap<Arc<str>, u32>,
}

/// The nodes of one torrent; the first is its entry in the root. Built before it is added, so that adding is quick.
#[derive(Debug)]
pub struct Subtree {
    info_hash: InfoHash,
    nodes: Vec<Node>,
    /// Total length of its regular files, in bytes.
    bytes: u64,
}

impl Subtree {
    /// Builds the nodes of a torrent.
    pub fn new(metainfo: &Metainfo) -> Self {
        let nodes = nodes(metainfo);
        let len = |node: &Node| if let Kind::File { len, .. } = node.kind { len } else { 0 };
        Self { info_hash: metainfo.info_hash, bytes: nodes.iter().map(len).sum(), nodes }
    }

    fn is_directory(&self) -> bool {
        matches!(self.nodes[0].kind, Kind::Directory { .. })
    }
}

/// A torrent of the tree.
#[derive(Debug)]
struct TorrentEntry {
    subtree: Subtree,
    /// Its position in the root directory; `None` while it is hidden.
    position: Option<u64>,
}

/// Every inode of a mount.
#[derive(Debug)]
pub struct Tree {
    root: Kind,
    /// Torrents by their prefixes.
    torrents: HashMap<u32, TorrentEntry>,
    /// The prefixes in the root, in the order in which torrents were added. A position is never reused, so a directory
    /// read in progress neither misses nor repeats an entry that stays.
    positions: BTreeMap<u64, u32>,
    next_position: u64,
    names: Names,
    /// The prefix of every torrent that was ever in the tree.
    prefixes: HashMap<InfoHash, u32>,
    /// The inverse of `prefixes`.
    prefix_owners: HashMap<u32, InfoHash>,
    /// Number of inodes that can be reached from the root, with the root.
    inodes: u64,
    /// Total length of the regular files that can be reached from the root, in bytes.
    bytes: u64,
}

/// The two halves of an inode number: the prefix of the torrent, and the index of the node in it.
#[derive(Clone, Copy)]
struct NodeId {
    prefix: u32,
    node: u32,
}

/// Position of the first entry of a directory: `.` and `..` have the positions 0 and 1.
const FIRST_POSITION: u64 = 2;

impl Default for Tree {
    fn default() -> Self {
        Self {
            root: Kind::Directory { subdirectories: 0 },
            torrents: HashMap::new(),
            positions: BTreeMap::new(),
            next_position: FIRST_POSITION,
            names: Names::default(),
            prefixes: HashMap::new(),
            prefix_owners: HashMap::new(),
            inodes: 1,
            bytes: 0,
        }
    }
}

impl Tree {
    /// Returns a tree of these torrents.
    ///
    /// # Errors
    /// If a torrent occurs twice.
    #[cfg(test)]
    pub fn new<'a>(torrents: impl IntoIterator<Item = &'a Metainfo>) -> Result<Self, TreeError> {
        let mut tree = Self::default();
        for metainfo in torrents {
            tree.add(Subtree::new(metainfo))?;
        }
        Ok(tree)
    }

    /// Adds a torrent to the root, be it new or hidden. Returns the names in the root that changed.
    ///
    /// # Errors
    /// If the torrent is in the root already.
    pub fn add(&mut self, subtree: Subtree) -> Result<Vec<Arc<str>>, TreeError> {
        let info_hash = subtree.info_hash;
        let prefix = self.prefix(info_hash);
        if self.torrents.get(&prefix).is_some_and(|entry| entry.position.is_some()) {
            return Err(TreeError::Duplicate(info_hash));
        }
        let mut changed = Vec::new();
        self.names.add(info_hash, &subtree.nodes[0].name, subtree.is_directory(), &mut changed);
        self.count(&subtree, 1);
        let position = self.next_position;
        self.next_position += 1;
        self.positions.insert(position, prefix);
        self.torrents.insert(prefix, TorrentEntry { subtree, position: Some(position) });
        Ok(changed)
    }

    /// Removes a torrent from the root. Returns the names in the root that changed, or `None` if it was not there.
    pub fn hide(&mut self, info_hash: InfoHash) -> Option<Vec<Arc<str>>> {
        let entry = self.torrents.get_mut(self.prefixes.get(&info_hash)?)?;
        self.positions.remove(&entry.position.take()?);
        let mut changed = Vec::new();
        self.names.remove(info_hash, &mut changed);
        let prefix = self.prefixes[&info_hash];
        if let Some(entry) = self.torrents.remove(&prefix) {
            self.count(&entry.subtree, -1);
            self.torrents.insert(prefix, entry);
        }
        Some(changed)
    }

    /// Drops the inodes of a hidden torrent. Their numbers stay reserved for it.
    pub fn forget(&mut self, info_hash: InfoHash) {
        if let Some(prefix) = self.prefixes.get(&info_hash)
            && self.torrents.get(prefix).is_some_and(|entry| entry.position.is_none())
        {
            self.torrents.remove(prefix);
        }
    }

    /// Adds a subtree to the totals of the root (`sign` 1), or subtracts it (`sign` -1).
    fn count(&mut self, subtree: &Subtree, sign: i64) {
        let directories = i32::from(subtree.is_directory()) * sign as i32;
        if let Kind::Directory { subdirectories } = &mut self.root {
            *subdirectories = subdirectories.saturating_add_signed(directories);
        }
        self.inodes = self.inodes.saturating_add_signed(sign * subtree.nodes.len() as i64);
        self.bytes = self.bytes.saturating_add_signed((subtree.bytes as i64).saturating_mul(sign));
    }

    /// Returns the prefix of a torrent, and reserves one for a new torrent.
    fn prefix(&mut self, info_hash: InfoHash) -> u32 {
        if let Some(known) = self.prefixes.get(&info_hash) {
            return *known;
        }
        let [a, b, c, d, ..] = info_hash.0;
        // Bit 30 keeps the numbers clear of the root's. Bit 31 stays clear, because some programs read inode numbers as
        // signed.
        let bounded = |hash: u32| hash & (u32::MAX >> 1) | 1 << 30;
        let mut prefix = bounded(u32::from_be_bytes([a, b, c, d]));
        while self.prefix_owners.contains_key(&prefix) {
            prefix = bounded(prefix + 1);
        }
        self.prefix_owners.insert(prefix, info_hash);
        self.prefixes.insert(info_hash, prefix);
        prefix
    }

    /// Returns the number of inodes that can be reached from the root.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Returns the total length of the regular files that can be reached from the root, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the kind of an inode.
    pub fn kind(&self, ino: u64) -> Option<&Kind> {
        if ino == ROOT { Some(&self.root) } else { Some(&self.node(self.id(ino)?)?.kind) }
    }

    /// Returns the torrent of an inode, hidden or not; `None` for the root.
    pub fn torrent(&self, ino: u64) -> Option<InfoHash> {
        self.id(ino).map(|id| self.torrents[&id.prefix].subtree.info_hash)
    }

    /// Returns the name of a torrent in the root, or `None` if it is not there.
    pub fn name(&self, info_hash: InfoHash) -> Option<&str> {
        self.names.shown_name(info_hash).map(|name| &**name)
    }

    /// Returns the inode with this name in a directory. Finds nothing in a hidden torrent.
    pub fn lookup(&self, directory: u64, name: &str) -> Option<u64> {
        if directory == ROOT {
            let prefix = *self.prefixes.get(&self.names.find(name)?)?;
            return Some(ino(NodeId { prefix, node: 0 }));
        }
        let id = self.id(directory).filter(|id| self.torrents[&id.prefix].position.is_some())?;
        let node = *self.node(id)?.children.names.get(name)?;
        Some(ino(NodeId { node, ..id }))
    }

    /// Returns the directory that contains an inode. The root contains itself.
    pub fn parent(&self, child: u64) -> Option<u64> {
        if child == ROOT {
            return Some(ROOT);
        }
        let id = self.id(child)?;
        let node = self.node(id)?.parent;
        Some(if id.node == 0 { ROOT } else { ino(NodeId { node, ..id }) })
    }

    /// Returns the names on the way from the root to an inode, or `None` if it cannot be reached.
    pub fn path(&self, ino: u64) -> Option<Vec<&str>> {
        if ino == ROOT {
            return Some(Vec::new());
        }
        let mut id = self.id(ino)?;
        let top = self.name(self.torrents.get(&id.prefix)?.subtree.info_hash)?;
        let mut names = Vec::new();
        while id.node != 0 {
            let node = self.node(id)?;
            names.push(&*node.name);
            id.node = node.parent;
        }
        names.push(top);
        names.reverse();
        Some(names)
    }

    /// Iterates over a directory, `.` and `..` first, starting at an offset that is 0 or the `next` of an earlier
    /// entry. Yields nothing for other kinds of inodes.
    ///
    /// Torrents that are added during a read of the root come at its end; entries that stay are neither missed nor
    /// repeated.
    pub fn entries(&self, directory: u64, offset: u64) -> impl Iterator<Item = Entry<'_>> {
        let is_directory = matches!(self.kind(directory), Some(Kind::Directory { .. }));
        let dots = (offset..if is_directory { FIRST_POSITION } else { 0 }).filter_map(move |at| {
            let (ino, name) = if at == 0 { (directory, ".") } else { (self.parent(directory)?, "..") };
            Some(Entry { ino, next: at + 1, name, kind: self.kind(ino)? })
        });
        let from = offset.max(FIRST_POSITION);
        let root = (directory == ROOT).then(|| self.positions.range(from..)).into_iter().flatten();
        let torrents = root.filter_map(|(at, prefix)| {
            let subtree = &self.torrents.get(prefix)?.subtree;
            let name = self.name(subtree.info_hash)?;
            let ino = ino(NodeId { prefix: *prefix, node: 0 });
            Some(Entry { ino, next: at + 1, name, kind: &subtree.nodes[0].kind })
        });
        let id = self.id(directory);
        let order = id.and_then(|id| self.node(id)).map_or(&[][..], |node| &node.children.order);
        let skipped = usize::try_from(from - FIRST_POSITION).unwrap_or(usize::MAX);
        let nodes = order.iter().enumerate().skip(skipped).filter_map(move |(at, node)| {
            let id = NodeId { node: *node, ..id? };
            let node = self.node(id)?;
            Some(Entry { ino: ino(id), next: at as u64 + FIRST_POSITION + 1, name: &node.name, kind: &node.kind })
        });
        dots.chain(torrents).chain(nodes)
    }

    /// Returns every regular file at or below an inode, grouped by torrent.
    pub fn files_below(&self, ino: u64) -> Vec<(InfoHash, Vec<FileIndex>)> {
        let files = |id: NodeId| (self.torrents[&id.prefix].subtree.info_hash, self.files_of(id));
        if ino == ROOT {
            return self.positions.values().map(|prefix| files(NodeId { prefix: *prefix, node: 0 })).collect();
        }
        self.id(ino).map(files).into_iter().collect()
    }

    /// Returns the regular files at or below a node, in the torrent's order.
    fn files_of(&self, top: NodeId) -> Vec<FileIndex> {
        let (mut files, mut open) = (Vec::new(), vec![top.node]);
        while let Some(node) = open.pop() {
            let Some(node) = self.node(NodeId { node, ..top }) else { continue };
            match node.kind {
                Kind::File { index, .. } => files.push(index),
                Kind::Directory { .. } => open.extend(&node.children.order),
                Kind::Symlink { .. } => {}
            }
        }
        files.sort_unstable();
        files
    }

    /// Splits an inode number. The result is valid: its torrent is in `torrents` and has the node.
    fn id(&self, ino: u64) -> Option<NodeId> {
        let (prefix, node) = ((ino >> 32) as u32, ino as u32);
        let entry = self.torrents.get(&prefix)?;
        ((node as usize) < entry.subtree.nodes.len()).then_some(NodeId { prefix, node })
    }

    fn node(&self, id: NodeId) -> Option<&Node> {
        self.torrents.get(&id.prefix)?.subtree.nodes.get(id.node as usize)
    }
}

fn ino(id: NodeId) -> u64 {
    u64::from(id.prefix) << 32 | u64::from(id.node)
}

/// Returns the nodes of a torrent in its order, each directory before its entries.
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
            // The layout guarantees that no file's path is a directory of another, so this is the only file.
            [] | [_] => nodes[0].kind = kind,
            [_, directories @ .., name] => {
                let mut at = 0;
                for directory in directories {
                    at = match nodes[at as usize].children.names.get(directory.as_str()) {
                        Some(&known) => known,
                        None => push_node(&mut nodes, at, directory, Kind::Directory { subdirectories: 0 }),
                    };
                }
                push_node(&mut nodes, at, name, kind);
            }
        }
    }
    nodes
}

/// Adds a new node to a directory, and returns its index.
fn push_node(nodes: &mut Vec<Node>, parent: u32, name: &str, kind: Kind) -> u32 {
    // Cannot overflow: each node takes some bytes of a .torrent file, whose size is bounded far below 2^32.
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
mod tests;
