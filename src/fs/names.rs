//! The name of each torrent in the root directory.
//!
//! A torrent has three candidate names: its own, its own with the first eight digits of its info hash, and its own with
//! all forty. The root shows the first candidate that no other torrent of the mount has among its own three. So the
//! names depend only on which torrents are mounted, not on the order in which they were added. Two torrents never share
//! a shown name, because no other torrent can have the same third candidate.

use std::collections::HashMap;
use std::sync::Arc;

use crate::metainfo::InfoHash;

/// Maximum length of a name, in bytes: the kernel's `NAME_MAX`.
pub(super) const MAX_NAME: usize = 255;

/// Digits of the info hash in the second candidate name: short enough to type, long enough to be unique in practice.
const SHORT_HASH_DIGITS: usize = 8;

/// Maximum length of a file extension, in bytes with its dot. A longer one is treated as part of the name.
const MAX_EXTENSION: usize = 16;

/// The names of every torrent in the root.
#[derive(Debug, Default)]
pub(super) struct Names {
    candidates: HashMap<InfoHash, [Arc<str>; 3]>,
    /// The torrents that have a name among their candidates; nearly always one.
    owners: HashMap<Arc<str>, Vec<InfoHash>>,
    /// The torrents by their shown names.
    shown: HashMap<Arc<str>, InfoHash>,
}

impl Names {
    /// Returns the torrent that is shown by a name.
    pub(super) fn find(&self, name: &str) -> Option<InfoHash> {
        self.shown.get(name).copied()
    }

    /// Returns the name by which a torrent is shown.
    pub(super) fn shown_name(&self, torrent: InfoHash) -> Option<&Arc<str>> {
        let candidates = self.candidates.get(&torrent)?;
        let mut unique = candidates[..2].iter();
        unique.find(|name| self.owners.get(*name).is_some_and(|owners| owners.len() == 1)).or(candidates.last())
    }

    /// Adds a torrent. Appends to `changed` every name that appears, disappears or changes its torrent.
    pub(super) fn add(&mut self, torrent: InfoHash, own: &str, is_directory: bool, changed: &mut Vec<Arc<str>>) {
        let candidates = candidates(own, torrent, is_directory).map(Arc::from);
        self.update(torrent, &candidates, changed, |this| {
            for name in distinct(&candidates) {
                this.owners.entry(name.clone()).or_default().push(torrent);
            }
            this.candidates.insert(torrent, candidates.clone());
        });
    }

    /// Removes a torrent. Appends to `changed` as [`add`](Self::add) does.
    pub(super) fn remove(&mut self, torrent: InfoHash, changed: &mut Vec<Arc<str>>) {
        let Some(candidates) = self.candidates.get(&torrent).cloned() else { return };
        self.update(torrent, &candidates, changed, |this| {
            for name in distinct(&candidates) {
                if let Some(owners) = this.owners.get_mut(name) {
                    owners.retain(|owner| *owner != torrent);
                    if owners.is_empty() {
                        this.owners.remove(name);
                    }
                }
            }
            this.candidates.remove(&torrent);
        });
    }

    /// Applies `change` to the owners of these names, then updates the shown names of all affected torrents.
    fn update(
        &mut self,
        torrent: InfoHash,
        candidates: &[Arc<str>; 3],
        changed: &mut Vec<Arc<str>>,
        change: impl FnOnce(&mut Self),
    ) {
        let mut affected = self.affected(torrent, candidates);
        let before: Vec<Arc<str>> = affected.iter().filter_map(|torrent| self.shown_name(*torrent).cloned()).collect();
        change(self);
        affected.extend(self.affected(torrent, candidates));
        let after = affected.into_iter().filter_map(|torrent| Some((self.shown_name(torrent)?.clone(), torrent)));
        let after: Vec<(Arc<str>, InfoHash)> = after.collect();
        for name in before.into_iter().filter(|name| after.iter().all(|(other, _)| other != name)) {
            self.shown.remove(&name);
            changed.push(name);
        }
        for (name, torrent) in after {
            if self.shown.insert(name.clone(), torrent) != Some(torrent) {
                changed.push(name);
            }
        }
    }

    /// Returns a torrent with these candidates, and the torrents whose shown name may change when it is added or
    /// removed.
    ///
    /// A third owner of a name changes nothing for the first two, so a thousand torrents of one name cost no more than
    /// two.
    fn affected(&self, torrent: InfoHash, candidates: &[Arc<str>; 3]) -> Vec<InfoHash> {
        let owners = candidates.iter().filter_map(|name| self.owners.get(name));
        let few = owners.filter(|owners| owners.len() <= 2).flatten();
        let mut all: Vec<InfoHash> = few.chain([&torrent]).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Iterates over the names, skipping duplicates.
fn distinct(names: &[Arc<str>; 3]) -> impl Iterator<Item = &Arc<str>> {
    names.iter().enumerate().filter(|(at, name)| !names[..*at].contains(name)).map(|(_, name)| name)
}

/// Returns the three candidate names, preferred first. A file keeps its extension, because players go by it.
fn candidates(name: &str, info_hash: InfoHash, is_directory: bool) -> [String; 3] {
    let hash = info_hash.to_string();
    let (stem, extension) = match name.rfind('.') {
        Some(dot) if !is_directory && dot > 0 && name.len() - dot <= MAX_EXTENSION => name.split_at(dot),
        _ => (name, ""),
    };
    let with = |mark: &str| {
        let mark = format!(" [{mark}]{extension}");
        let room = MAX_NAME.saturating_sub(mark.len()).min(stem.len());
        let end = (0..=room).rev().find(|&end| stem.is_char_boundary(end)).unwrap_or(0);
        format!("{}{mark}", &stem[..end])
    };
    [name.to_owned(), with(&hash[..SHORT_HASH_DIGITS]), with(&hash)]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hash(n: u8) -> InfoHash {
        InfoHash([n; 20])
    }

    fn shown(names: &Names) -> Vec<(String, InfoHash)> {
        let mut shown: Vec<_> = names.shown.iter().map(|(name, torrent)| (name.to_string(), *torrent)).collect();
        shown.sort();
        shown
    }

    #[test]
    fn two_torrents_of_one_name_are_marked_until_one_is_removed() {
        let (mut names, mut changed) = (Names::default(), Vec::new());
        names.add(hash(0xaa), "film.mkv", false, &mut changed);
        assert_eq!(changed, [Arc::from("film.mkv")]);
        changed.clear();
        names.add(hash(0xbb), "film.mkv", false, &mut changed);
        assert_eq!(names.shown_name(hash(0xaa)).unwrap().as_ref(), "film [aaaaaaaa].mkv");
        assert_eq!(names.find("film [bbbbbbbb].mkv"), Some(hash(0xbb)));
        assert_eq!(names.find("film.mkv"), None);
        assert_eq!(changed, ["film.mkv", "film [aaaaaaaa].mkv", "film [bbbbbbbb].mkv"].map(Arc::from));
        names.remove(hash(0xaa), &mut changed);
        assert_eq!(shown(&names), [("film.mkv".to_owned(), hash(0xbb))]);
        names.remove(hash(0xbb), &mut changed);
        assert!(names.shown.is_empty() && names.owners.is_empty() && names.candidates.is_empty());
    }

    #[test]
    fn a_marked_name_fits_the_limit() {
        for name in candidates(&"ß".repeat(127), hash(0xab), true) {
            assert!(name.len() <= MAX_NAME, "{} bytes", name.len());
        }
        assert!(candidates(&format!("{}.mkv", "x".repeat(251)), hash(0xab), false)[1].ends_with(" [abababab].mkv"));
        assert_eq!(candidates(".hidden", hash(0xab), false)[1], ".hidden [abababab]");
    }

    proptest! {
        /// Some of these torrents have the marked names of others as their own.
        #[test]
        fn shown_names_depend_only_on_the_torrents_present(
            torrents in prop::collection::btree_map(0u8..6, (0usize..8, any::<bool>()), 1..6),
            order in prop::collection::vec(any::<prop::sample::Index>(), 12),
        ) {
            let own = |at: usize| {
                let marked = |n: u8, at: usize| candidates("film.mkv", hash(n), false)[at].clone();
                ["film.mkv".into(), "film".into(), marked(0, 1), marked(0, 2), marked(1, 1), marked(1, 2), marked(2, 1), "x".into()][at].clone()
            };
            let mut in_order = Names::default();
            for (n, (name, is_directory)) in &torrents {
                in_order.add(hash(*n), &own(*name), *is_directory, &mut Vec::new());
            }
            // In another order; some torrents are removed and added again.
            let (mut shuffled, mut present) = (Names::default(), std::collections::BTreeSet::new());
            for index in order {
                let (n, (name, is_directory)) = torrents.iter().nth(index.index(torrents.len())).unwrap();
                let before = shown(&shuffled);
                let mut changed = Vec::new();
                if present.insert(*n) {
                    shuffled.add(hash(*n), &own(*name), *is_directory, &mut changed);
                } else {
                    present.remove(n);
                    shuffled.remove(hash(*n), &mut changed);
                }
                let after = shown(&shuffled);
                let differs = before.iter().filter(|entry| !after.contains(entry)).chain(after.iter().filter(|entry| !before.contains(entry)));
                for (name, _) in differs {
                    prop_assert!(changed.iter().any(|changed| **changed == **name), "{name} is not reported as changed");
                }
                prop_assert_eq!(after.len(), present.len());
            }
            for (n, (name, is_directory)) in torrents.iter().filter(|(n, _)| !present.contains(n)) {
                shuffled.add(hash(*n), &own(*name), *is_directory, &mut Vec::new());
            }
            prop_assert_eq!(shown(&shuffled), shown(&in_order));
            prop_assert_eq!(shown(&in_order).len(), torrents.len(), "two torrents share a name");
        }
    }
}
